package engine

import (
	"context"
	"math"

	"github.com/winnow-moe/winnow/engine/kernel"
)

// Likeness compares the outputs of all experts of a block, without gates, over
// all tokens of a sample: what experts that become one are chosen by.
type Likeness struct {
	Distance []float64 // [experts, experts]: |mean f_i − mean f_j| (HC-SMoE, arXiv 2410.08589)
	Cosine   []float64 // [experts, experts]: the mean of cos(f_i, f_j)
}

// Likeness runs every expert on every token of the sample.
func (s *Sampled) Likeness(ctx context.Context) (*Likeness, error) {
	n := s.l.par.Experts
	out := &Likeness{make([]float64, n*n), make([]float64, n*n)}
	mean, total := make([]float64, n*s.x.Cols), 0.0
	err := s.portions(ctx, false, func(first, tokens int, outputs kernel.Matrix) error {
		for t := range tokens {
			total += s.weights[first+t]
		}
		sizes := make([]float64, outputs.Rows)
		err := s.m.chunks(ctx, outputs.Rows, func(_ *worker, from, rows int) error {
			for i := from; i < from+rows; i++ {
				sizes[i] = math.Sqrt(kernel.SumSquares(outputs.Row(i)))
			}
			return nil
		})
		if err != nil {
			return err
		}
		return s.m.parallel(ctx, n, func(_ context.Context, _ *worker, i int) error {
			sum := mean[i*s.x.Cols:][:s.x.Cols]
			for t := range tokens {
				at, w := i*tokens+t, s.weights[first+t]
				f := outputs.Row(at)
				for k, v := range f {
					sum[k] += float64(w * float64(v))
				}
				for j := range i + 1 {
					other := j*tokens + t
					if d := sizes[at] * sizes[other]; d > 0 {
						out.Cosine[i*n+j] += float64(w * kernel.Inner(f, outputs.Row(other)) / d)
					}
				}
			}
			return nil
		})
	})
	if err != nil {
		return nil, err
	}
	for i := range n {
		for j := range i + 1 {
			out.Cosine[i*n+j] /= total
			out.Cosine[j*n+i] = out.Cosine[i*n+j]
			sum := 0.0
			for k := range s.x.Cols {
				d := (mean[i*s.x.Cols+k] - mean[j*s.x.Cols+k]) / total
				sum += float64(d * d)
			}
			out.Distance[i*n+j] = math.Sqrt(sum)
			out.Distance[j*n+i] = out.Distance[i*n+j]
		}
	}
	return out, nil
}
