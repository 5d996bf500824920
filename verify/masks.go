package verify

import (
	"context"
	"errors"
	"fmt"
	"math"
	"slices"

	"github.com/winnow-moe/winnow/engine"
)

// Masks measures what a model loses without some of its experts, without any
// file written: its predictions with experts that cannot be chosen, which are
// those of a model that never had them (engine.Mask), beside those of a base.
//
// The base runs once: its final hidden states for the whole text are kept, 4
// bytes for every token and element of the residual stream.
type Masks struct {
	base  *remembered
	model *engine.Model
	text  *Text
	opt   Options
}

// NewMasks prepares to measure masks of a model by a text, which should not be
// the one that the masks were chosen by. The base is the model itself, or the one
// that it was quantized from. Checkpoints are not supported.
func NewMasks(base, model *engine.Model, text *Text, opt Options) (*Masks, error) {
	if opt.Checkpoint != nil {
		return nil, errors.New("measuring several masks cannot be kept in a checkpoint")
	}
	return &Masks{&remembered{base, map[batchKey]*engine.Hidden{}}, model, text, opt}, nil
}

// remembered is a model that runs every batch of a text once.
type remembered struct {
	*engine.Model
	runs map[batchKey]*engine.Hidden
}

// batchKey tells the batches of a text apart: where the first window lies, and
// how many there are.
type batchKey struct {
	first *int32
	n     int
}

func (r *remembered) Forward(ctx context.Context, seqs [][]int32) (*engine.Hidden, error) {
	key := batchKey{&seqs[0][0], len(seqs)}
	if h, ok := r.runs[key]; ok {
		return h, nil
	}
	h, err := r.Model.Forward(ctx, seqs)
	if err == nil {
		r.runs[key] = h
	}
	return h, err
}

// Compare measures masks, all in one run over the text.
func (m *Masks) Compare(ctx context.Context, masks ...engine.Mask) ([]*Comparison, error) {
	var models []Scorer[*engine.Hidden]
	for i, mask := range masks {
		without, err := m.model.Masked(mask)
		if err != nil {
			if len(masks) > 1 {
				return nil, fmt.Errorf("choice %d: %w", i, err)
			}
			return nil, err
		}
		models = append(models, without)
	}
	return CompareAll(ctx, m.base, models, m.text, m.opt)
}

// Closest returns which of some comparisons with one base has the smallest mean
// divergence, the first of equals.
func Closest(all []*Comparison) (best int) {
	for i, c := range all {
		if c.KLD.Mean.Value < all[best].KLD.Mean.Value {
			best = i
		}
	}
	return best
}

// Lead says by how much the divergence of the closest of several comparisons on one
// text is smaller than the next one's, with the error that the mean of the
// windows' differences has. next is the number of that one; there must be two.
func Lead(all []*Comparison) (next int, by Estimate) {
	best := Closest(all)
	next = (best + 1) % len(all)
	for i, c := range all {
		if i != best && c.KLD.Mean.Value < all[next].KLD.Mean.Value {
			next = i
		}
	}
	diff := make([]float64, len(all[best].WindowKLD))
	for w := range diff {
		diff[w] = all[next].WindowKLD[w] - all[best].WindowKLD[w]
	}
	return next, Estimate{all[next].KLD.Mean.Value - all[best].KLD.Mean.Value, mean(diff).Error}
}

// Deviation says how far the predictions of two models lie apart that should
// predict the same, such as a pruned model and the whole one under a mask. It is
// over all tokens of the vocabulary, in nats, and 0 where they agree to the bit.
type Deviation struct {
	// Max is the largest |Δ ln p| of any token at any scored position.
	Max float64 `json:"max"`
	// Mean is the mean over the positions of the largest at each.
	Mean float64 `json:"mean"`
}

// CompareTwin is Compare of a model with a base, and at the same time how far the
// model's predictions lie from those of its twin.
func CompareTwin[H Hidden](ctx context.Context, base, model, twin Scorer[H], text *Text, opt Options) (*Comparison, *Deviation, error) {
	far := make([]float64, text.Scored())
	all, err := compareAll(ctx, base, []Scorer[H]{model, twin}, text, opt, func(i int, logits [][]float32) (err error) {
		far[i], err = farthest(logits[1], logits[2])
		return err
	})
	if err != nil {
		return nil, nil, err
	}
	return all[0], &Deviation{slices.Max(far), average(far)}, nil
}

// farthest is the largest difference of the log-probabilities that logits mean.
func farthest(a, b []float32) (far float64, err error) {
	lseA, err := logSumExp(a)
	if err != nil {
		return 0, err
	}
	lseB, err := logSumExp(b)
	if err != nil {
		return 0, err
	}
	for i := range a {
		far = max(far, math.Abs(float64(a[i])-float64(b[i])-lseA+lseB))
	}
	return far, nil
}

// Tried is a number of experts per block and what it costs.
type Tried struct {
	Keep int `json:"keep"`
	*Comparison
}

// Fewest finds the fewest experts per block whose mean divergence is at most
// limit. counts are the numbers to choose from, ascending, and mask says which
// experts stay; masks should be nested, since by bisection of counts it is taken
// for granted that more experts do not diverge more. found, nil if there is
// none, was itself measured; all that were are in tried, in that order.
func (m *Masks) Fewest(ctx context.Context, counts []int, mask func(keep int) (engine.Mask, error), limit float64) (found *Tried, tried []*Tried, err error) {
	low, high := 0, len(counts) // counts below low diverge too much, those from high on do not
	for low < high {
		middle := low + (high-low)/2
		k, err := mask(counts[middle])
		if err != nil {
			return nil, tried, err
		}
		c, err := m.Compare(ctx, k)
		if err != nil {
			return nil, tried, fmt.Errorf("%d experts: %w", counts[middle], err)
		}
		t := &Tried{counts[middle], c[0]}
		if tried = append(tried, t); c[0].KLD.Mean.Value <= limit {
			found, high = t, middle
		} else {
			low = middle + 1
		}
	}
	return found, tried, nil
}
