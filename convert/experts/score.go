package experts

import (
	"fmt"
	"math"
	"math/rand/v2"
	"slices"
	"strings"

	"github.com/winnow-moe/winnow/formats/arch"
	"github.com/winnow-moe/winnow/formats/calib"
)

// DefaultRule is the mean over its tokens of what an expert adds (REAP,
// arXiv 2510.13999): it does not depend on how often a text uses the expert, and
// so keeps those that other texts need.
const DefaultRule = "reap"

// How the scores of several kinds of text become one: of sums over all of them
// (Score), or as the largest that any kind gives (ScoreMax).
const (
	CombineSum = "sum"
	CombineMax = "max"
)

// RandomRule gives experts random scores: the control that a rule must beat.
const RandomRule = "random"

// share is what a sum over the tokens of an expert is divided by.
type share int

const (
	whole  share = iota // nothing
	perUse              // the expert's tokens; experts without tokens score 0
	perAll              // all tokens
)

// rule is a score made of one statistic.
type rule struct {
	name string
	stat calib.Stat
	per  share
	root bool // the root is taken
	what string
}

// rules are the scores of experts. With f the output of an expert, g its gate and
// c = g·f what it adds, or f(g·x) where gates apply to inputs.
var rules = []rule{
	{"reap", calib.Weighted, perUse, false, "mean |c| (REAP)"},
	{"reap_sum", calib.Weighted, perAll, false, "sum of |c|, per token of the text"},
	{"reap_l2", calib.WeightedSquare, perUse, true, "root of the mean |c|²"},
	{"energy", calib.WeightedSquare, whole, false, "sum of |c|²"},
	{"loo", calib.LeaveOut, whole, false, "sum of |y−y'|²: what the block lacks without the expert"},
	{"frequency", calib.Selected, perAll, false, "share of the tokens that choose the expert"},
	{"seer", calib.Gate, whole, false, "sum of gates (SEER-MoE)"},
	{"gate_mean", calib.Gate, perUse, false, "mean gate"},
	{"ean_sum", calib.Norm, whole, false, "sum of |f| (EAN)"},
	{"ean_mean", calib.Norm, perUse, false, "mean |f|"},
	{"msan", calib.NormSquares, perUse, false, "mean |f|²"},
	{"easy_ep", calib.Easy, whole, false, "sum of |c| by how far a token's residual turns (EASY-EP)"},
}

// RuleInfo describes a rule for people.
type RuleInfo struct {
	Name string `json:"name"`
	What string `json:"what"`
	// Align, of a way to merge: hidden neurons are matched first.
	Align bool `json:"align,omitempty"`
}

// Rules lists the rules.
func Rules() (list []RuleInfo) {
	for _, r := range rules {
		list = append(list, RuleInfo{Name: r.name, What: r.what})
	}
	return append(list, greedyInfo, RuleInfo{Name: RandomRule, What: "random numbers, to compare with"})
}

func findRule(name string) (*rule, error) {
	var names []string
	for i := range rules {
		if rules[i].name == name {
			return &rules[i], nil
		}
		names = append(names, rules[i].name)
	}
	return nil, refused("there is no rule %q; the rules are %s, %s and %s", name, strings.Join(names, ", "), GreedyRule, RandomRule)
}

// Scores say how much experts matter: those with the largest score stay.
type Scores struct {
	Rule    string
	Experts int
	Blocks  map[int][]float64 // by block, of every expert
	// Super are experts that must stay whatever their score.
	Super []Expert
	// Curve is, by block, what its output lacks without the first 0, 1, ... experts
	// that go: Σ|y−y'|²/Σ|y|². nil: it is not known.
	Curve map[int][]float64
}

// Expert is one expert of a block.
type Expert struct {
	Block  int `json:"block"`
	Expert int `json:"expert"`
}

// Score computes the scores of a rule from statistics. Sums of several domains
// add up, each multiplied as weights say (see calib.Statistics.Factors): with
// weights domain d counts as its share of all tokens, however long its texts;
// without, every token counts alike. Domains of weight 0 do not count.
func Score(s *calib.Statistics, name string, weights calib.Weights) (*Scores, error) {
	r, err := findRule(name)
	if err != nil {
		return nil, err
	}
	m, err := mix(s, weights)
	if err != nil {
		return nil, err
	}
	out := &Scores{Rule: name, Blocks: map[int][]float64{}}
	for _, l := range m.blocks {
		if out.Blocks[l], err = m.score(r, l); err != nil {
			return nil, fmt.Errorf("block %d: %w", l, err)
		}
		out.Experts = len(out.Blocks[l])
	}
	out.Super, _, err = m.super()
	return out, err
}

// ScoreMax computes the scores of a rule for every kind of text alone, each as a
// share of the sum of its block's, and takes the largest that an expert has in
// any: what one kind of text needs stays, however little the others do. Weights
// multiply the shares; without, all kinds count alike.
func ScoreMax(s *calib.Statistics, name string, weights calib.Weights) (*Scores, error) {
	all, err := Score(s, name, weights) // checks weights, and knows the super experts
	if err != nil {
		return nil, err
	}
	for _, scores := range all.Blocks {
		clear(scores)
	}
	for _, d := range s.Domains {
		weight, ok := weights[d.Name]
		if weights == nil {
			weight, ok = 1, d.Chunks > 0
		}
		if !ok || weight == 0 {
			continue
		}
		one, err := Score(s, name, calib.Weights{d.Name: 1})
		if err != nil {
			return nil, err
		}
		for l, scores := range one.Blocks {
			all.raise(l, scores, weight)
		}
	}
	return all, nil
}

// raise takes the scores of a kind of text for the experts that have less.
func (s *Scores) raise(l int, scores []float64, weight float64) {
	sum := 0.0
	for _, v := range scores {
		sum += v
	}
	for e, v := range scores {
		if sum > 0 {
			s.Blocks[l][e] = max(s.Blocks[l][e], weight*v/sum)
		}
	}
}

// SuperExperts lists the experts of which the texts that count show that the
// model falls apart without them.
func SuperExperts(s *calib.Statistics, weights calib.Weights) ([]Expert, error) {
	m, err := mix(s, weights)
	if err != nil {
		return nil, err
	}
	list, _, err := m.super()
	return list, err
}

// Random returns random scores for every block of a model, the same ones for the
// same seed.
func Random(p *arch.Params, seed uint64) *Scores {
	s := &Scores{Rule: RandomRule, Experts: p.Experts, Blocks: map[int][]float64{}}
	for _, l := range Blocks(p, PruneMTP) {
		rng := rand.New(rand.NewPCG(seed, uint64(l)))
		for range p.Experts {
			s.Blocks[l] = append(s.Blocks[l], rng.Float64())
		}
	}
	return s
}

// mixture is statistics with the factor of each domain.
type mixture struct {
	domains []*calib.Domain
	factors []float64 // nil: 1
	blocks  []int     // with experts, of which all that count have statistics
}

// mix takes the domains that count.
func mix(s *calib.Statistics, weights calib.Weights) (*mixture, error) {
	factors, err := s.Factors(weights)
	if err != nil {
		return nil, err
	}
	m := &mixture{}
	if factors == nil {
		all, err := s.Total()
		if err != nil {
			return nil, err
		}
		m.domains = []*calib.Domain{all}
		m.blocks = commonBlocks(s.Domains)
	}
	for i, f := range factors {
		if f > 0 {
			m.domains, m.factors = append(m.domains, s.Domains[i]), append(m.factors, f)
		}
	}
	if factors != nil {
		m.blocks = commonBlocks(m.domains)
	}
	if len(m.blocks) == 0 {
		return nil, invalid("the statistics have no experts: they are of a model without, or of no text")
	}
	return m, nil
}

// commonBlocks returns the blocks that all domains with statistics have those of:
// multi-token prediction may have been measured on some of the texts only.
func commonBlocks(domains []*calib.Domain) (list []int) {
	for _, d := range domains {
		have := d.Layers()
		switch {
		case list == nil:
			list = have
		case len(have) > 0:
			list = slices.DeleteFunc(list, func(l int) bool { return !slices.Contains(have, l) })
		}
	}
	return list
}

// fold combines a statistic of a block over the domains.
func (m *mixture) fold(l int, stat calib.Stat, add func(sum []float64, factor float64, values []float64)) ([]float64, error) {
	var sum []float64
	for i, d := range m.domains {
		t := d.Layer(l)
		if t == nil {
			return nil, invalid("the texts %q have no statistics of it, others do", d.Name)
		}
		values, err := t.Values(stat)
		if err != nil {
			return nil, err
		}
		if len(values) == 0 {
			return nil, invalid("the statistics lack %q, which the rule needs", stat)
		}
		if sum == nil {
			sum = make([]float64, len(values))
		}
		if len(values) != len(sum) {
			return nil, invalid("the texts %q have statistics of %d experts, others of %d", d.Name, len(values), len(sum))
		}
		factor := 1.0
		if m.factors != nil {
			factor = m.factors[i]
		}
		add(sum, factor, values)
	}
	return sum, nil
}

// sum adds a statistic up.
func (m *mixture) sum(l int, stat calib.Stat) ([]float64, error) {
	return m.fold(l, stat, func(sum []float64, factor float64, values []float64) {
		for i, v := range values {
			sum[i] += float64(factor * v)
		}
	})
}

// score computes a rule for the experts of a block.
func (m *mixture) score(r *rule, l int) ([]float64, error) {
	score, err := m.sum(l, r.stat)
	if err != nil {
		return nil, err
	}
	tokens, err := m.sum(l, calib.Tokens)
	if err != nil {
		return nil, err
	}
	uses, err := m.sum(l, calib.Selected)
	if err != nil {
		return nil, err
	}
	for e := range score {
		switch by := map[share]float64{whole: 1, perUse: uses[e], perAll: tokens[0]}[r.per]; {
		case by > 0:
			score[e] /= by
		default:
			score[e] = 0
		}
		if r.root {
			score[e] = math.Sqrt(score[e])
		}
	}
	return score, nil
}

// The rule for super experts (Su et al., arXiv 2507.23279, and the code of REAP).
const (
	superQuantile = 0.995
	superShare    = 0.1  // of the largest output
	superBlocks   = 0.75 // share of the MoE blocks, from the first
)

// super lists the experts without which models fall apart: those of the first
// blocks with an output element beyond almost all others', and beyond which
// magnitude that is. Multi-token prediction blocks count where they are measured.
func (m *mixture) super() (list []Expert, threshold float64, err error) {
	blocks := m.blocks
	peaks := make([][]float64, len(blocks))
	var all []float64
	for i, l := range blocks {
		peaks[i], err = m.fold(l, calib.MaxAbs, func(sum []float64, _ float64, values []float64) {
			for e, v := range values {
				sum[e] = max(sum[e], v)
			}
		})
		if err != nil {
			return nil, 0, fmt.Errorf("block %d: %w", l, err)
		}
		all = append(all, peaks[i]...)
	}
	slices.Sort(all)
	threshold = max(quantile(all, superQuantile), all[len(all)-1]*superShare)
	for i, l := range blocks[:int(float64(len(blocks))*superBlocks)] {
		for e, v := range peaks[i] {
			if v > threshold {
				list = append(list, Expert{l, e})
			}
		}
	}
	return list, threshold, nil
}

// quantile interpolates between the values next to the place of q in a sorted
// list, which is q·(n−1) behind the first.
func quantile(sorted []float64, q float64) float64 {
	at := q * float64(len(sorted)-1)
	i := int(at)
	if i+1 == len(sorted) {
		return sorted[i]
	}
	return sorted[i] + float64((at-float64(i))*(sorted[i+1]-sorted[i]))
}
