package calib

import "fmt"

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
	name string
	rank int // it has so many dimensions of the number of experts
	max  bool
}

var stats = [numStats]statInfo{
	Tokens: {"tokens", 0, false}, OutputNorm: {"output_norm", 0, false}, OutputSquares: {"output_norm2", 0, false}, ResidualNorm: {"residual_norm", 0, false},
	Selected: {"selected", 1, false}, Gate: {"gate", 1, false}, Norm: {"norm", 1, false}, NormSquares: {"norm2", 1, false},
	Weighted: {"weighted", 1, false}, WeightedSquare: {"weighted2", 1, false}, Easy: {"easy", 1, false}, Mass: {"mass", 1, false},
	MaxAbs: {"max_abs", 1, true}, MaxWeighted: {"max_weighted", 1, true},
	RouterGram: {"router_gram", 2, false}, Together: {"together", 2, false},
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

// NewExpertSums returns sums of no tokens.
func NewExpertSums(experts int) *ExpertSums {
	s := new(ExpertSums)
	for i := range s {
		s[i] = make([]float64, Stat(i).size(experts))
	}
	return s
}

// ExpertTotals are the statistics of one block over a calibration text.
type ExpertTotals struct {
	Experts int
	sums    [numStats][]exact
	max     [numStats][]float64
}

func newExpertTotals(experts int) *ExpertTotals {
	t := &ExpertTotals{Experts: experts}
	for i := range stats {
		if n := Stat(i).size(experts); stats[i].max {
			t.max[i] = make([]float64, n)
		} else {
			t.sums[i] = make([]exact, n)
		}
	}
	return t
}

// Values returns a statistic: one number, or one for each expert, or for each
// pair of experts, row after row.
func (t *ExpertTotals) Values(s Stat) []float64 {
	v := append([]float64{}, t.max[s]...)
	for _, e := range t.sums[s] {
		v = append(v, e.value())
	}
	return v
}

// add adds the sums of some tokens.
func (t *ExpertTotals) add(s *ExpertSums) error {
	for i, values := range s {
		for j, v := range values {
			if stats[i].max {
				t.max[i][j] = max(t.max[i][j], v)
			} else if err := t.sums[i][j].add(v); err != nil {
				return fmt.Errorf("%s: %w", Stat(i), err)
			}
		}
	}
	return nil
}

func (t *ExpertTotals) merge(o *ExpertTotals) error {
	if o.Experts != t.Experts {
		return invalid("%d experts, and %d in the statistics before", o.Experts, t.Experts)
	}
	for i := range stats {
		for j, v := range o.max[i] {
			t.max[i][j] = max(t.max[i][j], v)
		}
		for j, v := range o.sums[i] {
			if err := t.sums[i][j].merge(v); err != nil {
				return fmt.Errorf("%s: %w", Stat(i), err)
			}
		}
	}
	return nil
}
