package experts

import (
	"context"
	"fmt"

	"github.com/winnow-moe/winnow/formats/arch"
	"github.com/winnow-moe/winnow/formats/calib"
)

// ImatrixRules are the rules for importance matrices, which know how large the
// inputs a of the experts' down projections W are but neither gates nor outputs:
// the sum of |f|² if inputs were not correlated, Σ_j Σ a_j²·|W[:,j]|², and its
// mean over the tokens of the expert.
var ImatrixRules = []RuleInfo{
	{Name: "imx_energy", What: "sum of |f|² as an importance matrix tells"},
	{Name: "imx_msan", What: "mean of |f|² as an importance matrix tells"},
}

// ColumnNorms returns Σ_i W[i,j]² of every input column j of the down projections
// of a block: experts × columns numbers, expert after expert.
type ColumnNorms func(ctx context.Context, block int) ([]float64, error)

// ImatrixScore computes the scores of a rule from an importance matrix, for the
// blocks of the trunk and for MTP blocks that it has. No super experts are known.
func ImatrixScore(ctx context.Context, m *calib.Matrix, p *arch.Params, name string, norms ColumnNorms) (*Scores, error) {
	if name != ImatrixRules[0].Name && name != ImatrixRules[1].Name {
		return nil, refused("there is no rule %q for importance matrices; the rules are %s and %s", name, ImatrixRules[0].Name, ImatrixRules[1].Name)
	}
	if err := checkRouted(p); err != nil {
		return nil, err
	}
	s := &Scores{Rule: name, Experts: p.Experts, Blocks: map[int][]float64{}}
	for _, l := range Blocks(p, PruneMTP) {
		e, ok := m.Find(downName(l))
		if !ok && l >= p.Trunk() {
			continue
		}
		if !ok {
			return nil, invalid("the importance matrix has no entry for %q", downName(l))
		}
		if e.Size() != p.Experts*p.ExpertFF || len(e.Counts) != p.Experts {
			return nil, invalid("tensor %q: the importance matrix has %d values with %d counts, the model %d experts of %d columns", e.Name, e.Size(), len(e.Counts), p.Experts, p.ExpertFF)
		}
		score, err := imatrixScore(ctx, e, l, norms)
		if err != nil {
			return nil, err
		}
		for i, n := range e.Counts {
			if name == ImatrixRules[1].Name && n > 0 {
				score[i] /= float64(n)
			}
		}
		s.Blocks[l] = score
	}
	return s, nil
}

// imatrixScore returns Σ_j in_sum2[e,j]·|W[:,j]|² of every expert.
func imatrixScore(ctx context.Context, e *calib.Entry, l int, norms ColumnNorms) ([]float64, error) {
	sums, err := e.Sums()
	if err != nil {
		return nil, err
	}
	w, err := norms(ctx, l)
	if err != nil {
		return nil, err
	}
	if len(w) != len(sums) {
		return nil, fmt.Errorf("block %d: %d column norms, want %d", l, len(w), len(sums))
	}
	score := make([]float64, len(e.Counts))
	for i, v := range sums {
		score[i/e.Columns()] += float64(float64(v) * w[i])
	}
	return score, nil
}
