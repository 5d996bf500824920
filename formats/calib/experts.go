package calib

import (
	"fmt"
	"slices"
)

// Stat names a statistic of the experts of a block. With the gate g of an
// expert as it is applied, its output f without gate, and c what it adds to the
// block's routed output y: c = g·f, or f(g·x) where gates apply to inputs.
type Stat int

// The statistics: sums over tokens but for the maxima. Those of every expert
// are over the tokens that chose it, unless all are named.
const (
	Tokens         Stat = iota // tokens
	OutputNorm                 // |y|
	OutputSquares              // |y|²
	ResidualNorm               // |h| of the residual stream h that the block adds to
	Selected                   // 1
	Gate                       // g
	Norm                       // |f|
	NormSquares                // |f|²
	Weighted                   // |c|
	WeightedSquare             // |c|²
	LeaveOut                   // |y−y'|² with the output y' that the block has without it
	Easy                       // max(0, 1 − cos(h, h+y))·|c| (EASY-EP, arXiv 2504.06792)
	Mass                       // softmax of the router's logits, over all tokens
	MaxAbs                     // the largest element of f by magnitude
	MaxWeighted                // the largest |c|
	RouterGram                 // l_i·l_j of the router's logits, over all tokens
	Together                   // 1 where a token chose both i and j
	numStats
)

// statInfo says how a statistic is called in files.
type statInfo struct {
	name     string
	rank     int // it has so many dimensions of the number of experts
	max      bool
	optional bool // it may not have been measured
}

var stats = [numStats]statInfo{
	Tokens: {name: "tokens"}, OutputNorm: {name: "output_norm"}, OutputSquares: {name: "output_norm2"}, ResidualNorm: {name: "residual_norm"},
	Selected: {name: "selected", rank: 1}, Gate: {name: "gate", rank: 1}, Norm: {name: "norm", rank: 1}, NormSquares: {name: "norm2", rank: 1},
	Weighted: {name: "weighted", rank: 1}, WeightedSquare: {name: "weighted2", rank: 1}, LeaveOut: {name: "leave_out", rank: 1, optional: true},
	Easy: {name: "easy", rank: 1}, Mass: {name: "mass", rank: 1},
	MaxAbs: {name: "max_abs", rank: 1, max: true}, MaxWeighted: {name: "max_weighted", rank: 1, max: true},
	RouterGram: {name: "router_gram", rank: 2}, Together: {name: "together", rank: 2},
}

func (s Stat) String() string { return stats[s].name }

// size returns how many numbers the statistic is.
func (s Stat) size(experts int) int {
	n := 1
	for range stats[s].rank {
		n *= experts
	}
	return n
}

// ExpertSums are the statistics of one block over some tokens.
type ExpertSums [numStats][]float64

// NewExpertSums returns sums of no tokens, with LeaveOut if it is measured.
func NewExpertSums(experts int, leaveOut bool) *ExpertSums {
	s := new(ExpertSums)
	for i := range s {
		if Stat(i) != LeaveOut || leaveOut {
			s[i] = make([]float64, Stat(i).size(experts))
		}
	}
	return s
}

// ExpertTotals are the statistics of one block over a calibration text.
type ExpertTotals struct {
	Experts int
	sums    [numStats]series
	max     [numStats][]float64
}

// newExpertTotals returns totals of no tokens for sums like these.
func newExpertTotals(like *ExpertSums) *ExpertTotals {
	t := &ExpertTotals{Experts: len(like[Selected])}
	for i := range stats {
		if n := len(like[i]); stats[i].max {
			t.max[i] = make([]float64, n)
		} else {
			t.sums[i].n = n
		}
	}
	return t
}

// Values returns a statistic: one number, or one for each expert, or for each
// pair of experts, row after row; none if it was not measured.
func (t *ExpertTotals) Values(s Stat) ([]float64, error) {
	if stats[s].max {
		return slices.Clone(t.max[s]), nil
	}
	return t.sums[s].values()
}

// add adds the sums of some tokens.
func (t *ExpertTotals) add(s *ExpertSums) error {
	for i, values := range s {
		if len(values) != t.sums[i].n+len(t.max[i]) {
			return fmt.Errorf("%s: %d numbers, and %d before", Stat(i), len(values), t.sums[i].n+len(t.max[i]))
		}
		if stats[i].max {
			largest(t.max[i], values)
		} else if err := t.sums[i].add(values); err != nil {
			return fmt.Errorf("%s: %w", Stat(i), err)
		}
	}
	return nil
}

// largest makes every element of a the larger of both.
func largest(a, b []float64) {
	for i, v := range b {
		a[i] = max(a[i], v)
	}
}

// view returns the same totals, which are read when they are asked for.
func (t *ExpertTotals) view() *ExpertTotals {
	v := &ExpertTotals{Experts: t.Experts}
	for i := range stats {
		v.sums[i], v.max[i] = t.sums[i].view(), slices.Clone(t.max[i])
	}
	return v
}

// plus returns the totals of both, which reads them when it is asked for. What
// one of them has not measured the sum does not know.
func (t *ExpertTotals) plus(o *ExpertTotals) (*ExpertTotals, error) {
	if o.Experts != t.Experts {
		return nil, invalid("%d experts, and %d in the statistics before", o.Experts, t.Experts)
	}
	out := &ExpertTotals{Experts: t.Experts}
	for i := range stats {
		if stats[i].max {
			out.max[i] = slices.Clone(t.max[i])
			largest(out.max[i], o.max[i])
			continue
		}
		if stats[i].optional && t.sums[i].n*o.sums[i].n == 0 {
			continue
		}
		var err error
		if out.sums[i], err = t.sums[i].plus(&o.sums[i]); err != nil {
			return nil, fmt.Errorf("%s: %w", Stat(i), err)
		}
	}
	return out, nil
}
