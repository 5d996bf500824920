package calib

import (
	"cmp"
	"fmt"
	"math"
	"slices"
)

// topExperts is how many of the most used experts a summary names.
const topExperts = 3

// Coverage is a summary of statistics: what was measured, and how evenly the
// experts were used.
type Coverage struct {
	ChunkSize int             `json:"chunk_size"`
	Domains   []DomainSummary `json:"domains"`
	Weights   int             `json:"weights"`
	// Sampled is the number of tokens of which a sample has what goes into experts.
	Sampled int `json:"sampled_tokens"`
	// LeaveOneOut says that it was measured what blocks lack without each expert.
	LeaveOneOut bool           `json:"leave_one_out"`
	Blocks      []BlockSummary `json:"blocks"`
}

// DomainSummary is the extent of a kind of text.
type DomainSummary struct {
	Name     string   `json:"name"`
	Datasets []string `json:"datasets"`
	Chunks   int64    `json:"chunks"`
	Tokens   int64    `json:"tokens"`
}

// BlockSummary is the use of a block's experts.
type BlockSummary struct {
	Block   int `json:"block"`
	Experts int `json:"experts"`
	// Least and Most are the tokens of the experts with the fewest and the most.
	Least int64 `json:"least_tokens"`
	Most  int64 `json:"most_tokens"`
	// Entropy of the shares of the experts in all choices, in bits, and what it
	// were if all were chosen alike.
	Entropy    float64     `json:"entropy"`
	MaxEntropy float64     `json:"max_entropy"`
	Top        []ExpertUse `json:"top"`    // the most used first
	Unused     []int       `json:"unused"` // experts without tokens
	Few        []ExpertUse `json:"few"`    // experts below the limit asked for
}

// ExpertUse is the use of an expert: its tokens and their share in all choices.
type ExpertUse struct {
	Expert int     `json:"expert"`
	Tokens int64   `json:"tokens"`
	Share  float64 `json:"share"`
}

// Covers reports whether the inputs of a weight were measured on any text.
func (s *Statistics) Covers(weight string) bool {
	return slices.ContainsFunc(s.Domains, func(d *Domain) bool { return d.Covers(weight) })
}

// Coverage summarises statistics. Experts with fewer than minTokens tokens are
// listed one by one.
func (s *Statistics) Coverage(minTokens int64) (*Coverage, error) {
	all, err := s.Total()
	if err != nil {
		return nil, err
	}
	c := &Coverage{ChunkSize: s.ChunkSize, Sampled: s.Sampled(), Weights: len(all.inputs), Domains: []DomainSummary{}, Blocks: []BlockSummary{}}
	for _, d := range s.Domains {
		c.Domains = append(c.Domains, DomainSummary{d.Name, append([]string{}, d.Datasets...), d.Chunks, d.Chunks * int64(s.ChunkSize)})
	}
	for _, layer := range all.Layers() {
		b, err := all.experts[layer].summary(layer, minTokens)
		if err != nil {
			return nil, fmt.Errorf("block %d: %w", layer, err)
		}
		c.Blocks = append(c.Blocks, b)
		c.LeaveOneOut = all.experts[layer].sums[LeaveOut].n > 0
	}
	return c, nil
}

func (t *ExpertTotals) summary(block int, minTokens int64) (BlockSummary, error) {
	b := BlockSummary{Block: block, Experts: t.Experts, Unused: []int{}, Few: []ExpertUse{}, MaxEntropy: math.Log2(float64(t.Experts))}
	counts, err := t.Values(Selected)
	if err != nil {
		return b, err
	}
	total := 0.0
	for _, n := range counts {
		total += n
	}
	uses := make([]ExpertUse, len(counts))
	for e, n := range counts {
		uses[e] = ExpertUse{e, int64(n), n / max(total, 1)}
		if n > 0 {
			b.Entropy -= uses[e].Share * math.Log2(uses[e].Share)
		} else {
			b.Unused = append(b.Unused, e)
		}
		if int64(n) < minTokens {
			b.Few = append(b.Few, uses[e])
		}
	}
	slices.SortStableFunc(uses, func(a, b ExpertUse) int { return cmp.Compare(b.Tokens, a.Tokens) })
	b.Top = uses[:min(topExperts, len(uses))]
	if len(uses) > 0 {
		b.Most, b.Least = uses[0].Tokens, uses[len(uses)-1].Tokens
	}
	return b, nil
}
