package experts

import (
	"fmt"
	"math"

	"github.com/winnow-moe/winnow/formats/calib"
)

// Likenesses is what statistics say of how alike experts are, by block: all but
// Distance and Cosine, which take weights, too. Texts count as in Score.
func Likenesses(s *calib.Statistics, weights calib.Weights) (map[int]*Likeness, error) {
	m, err := mix(s, weights)
	if err != nil {
		return nil, err
	}
	reap, err := findRule(DefaultRule)
	if err != nil {
		return nil, err
	}
	out := map[int]*Likeness{}
	for _, l := range m.blocks {
		like := &Likeness{}
		if like.Counts, err = m.sum(l, calib.Selected); err == nil {
			like.Reap, err = m.score(reap, l)
		}
		var gram []float64
		if err == nil {
			gram, err = m.sum(l, calib.RouterGram)
		}
		if err != nil {
			return nil, fmt.Errorf("block %d: %w", l, err)
		}
		like.Logits = cosines(gram, len(like.Counts))
		out[l] = like
	}
	return out, nil
}

// cosines turns products of n vectors into cosines.
func cosines(gram []float64, n int) []float64 {
	out := make([]float64, len(gram))
	for i := range n {
		for j := range n {
			if d := math.Sqrt(gram[i*n+i]) * math.Sqrt(gram[j*n+j]); d > 0 {
				out[i*n+j] = gram[i*n+j] / d
			}
		}
	}
	return out
}
