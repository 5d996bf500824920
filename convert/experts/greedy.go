package experts

import "github.com/winnow-moe/winnow/formats/arch"

// GreedyRule ranks experts by when a search takes them out that is after what
// blocks put out.
const GreedyRule = "greedy"

var greedyInfo = RuleInfo{Name: GreedyRule, What: "taken out one by one, each time the one whose loss is felt least"}

// Removal is the order in which the experts of a block go, and what its output
// lacks without the first 0, 1, ... of them; engine.Greedy finds both.
type Removal struct {
	Order  []int
	Errors []float64
}

// Greedy makes scores of removals: an expert scores the number of those that go
// before it. Experts that never go score as many as go.
func Greedy(p *arch.Params, removals map[int]Removal) *Scores {
	s := &Scores{Rule: GreedyRule, Experts: p.Experts, Blocks: map[int][]float64{}, Curve: map[int][]float64{}}
	for l, r := range removals {
		scores := make([]float64, p.Experts)
		for e := range scores {
			scores[e] = float64(len(r.Order))
		}
		for i, e := range r.Order {
			scores[e] = float64(i)
		}
		s.Blocks[l], s.Curve[l] = scores, r.Errors
	}
	return s
}
