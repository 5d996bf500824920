package report

import (
	"fmt"
	"math"
	"slices"
)

// Prune is what the page of a pruned model shows. What is empty or nil is not
// known, and left out.
type Prune struct {
	Model string `json:"model"` // as it was named
	Arch  string `json:"architecture"`
	Tool  string `json:"tool"`
	// Facts are what else the result follows from: files, weights, a seed.
	Facts []Fact `json:"facts,omitempty"`

	Experts int    `json:"experts"`      // of every block, before
	Keep    int    `json:"keep"`         // of every block, after
	Used    int    `json:"experts_used"` // by a token
	Groups  int    `json:"groups,omitempty"`
	Flatten bool   `json:"flatten,omitempty"` // the groups become one
	MTP     string `json:"mtp,omitempty"`     // what becomes of multi-token prediction blocks: drop or prune

	Rule string `json:"rule,omitempty"`
	// RuleMeaning says what the scores of the rule are.
	RuleMeaning string  `json:"rule_meaning,omitempty"`
	Choice      *Choice `json:"choice,omitempty"` // how the rule was chosen

	Domains []Domain `json:"domains,omitempty"` // kinds of calibration text
	Blocks  []Block  `json:"blocks"`            // those with experts, ascending
	Curves  *Curves  `json:"curves,omitempty"`

	Sizes  []Size  `json:"sizes,omitempty"`
	Counts []Count `json:"counts,omitempty"` // descending by Keep

	// Definition says what the numbers of Texts are, and those of all Measured.
	Definition string `json:"definition,omitempty"`
	// Texts are the model before and after; the first is all texts together if
	// there are several.
	Texts []Text `json:"texts,omitempty"`
	// Written is the largest |Δ ln p| between the predictions of the written file
	// and those that Texts are of, nil if the file was not measured.
	Written *float64 `json:"written_difference,omitempty"`

	Merge  *Merge  `json:"merge,omitempty"`
	Repair *Repair `json:"repair,omitempty"`

	Warnings []string `json:"warnings,omitempty"`
}

// Fact is something said about a result.
type Fact struct {
	Name  string `json:"name"`
	Value string `json:"value"`
}

// Estimate is a value with its standard error, 0 if none is known.
type Estimate struct {
	Value float64 `json:"value"`
	Error float64 `json:"error"`
}

// Measured says how a model without some of its experts predicts a text.
type Measured struct {
	PPL     Estimate `json:"ppl"`
	KLD     Estimate `json:"kld"`      // from the whole model, in nats per token
	SameTop Estimate `json:"same_top"` // in percent
}

// Domain is a kind of calibration text.
type Domain struct {
	Name   string  `json:"name"`
	Tokens float64 `json:"tokens"`
	// Weight is its share in the scores, from 0 to 1; nil: every token counts
	// alike.
	Weight *float64 `json:"weight,omitempty"`
}

// Block is the choice in one block.
type Block struct {
	Block  int       `json:"block"`
	Kept   []int     `json:"kept"`             // experts, ascending
	Super  []int     `json:"super,omitempty"`  // protected experts, ascending
	Scores []float64 `json:"scores,omitempty"` // of every expert
	// Uses are the numbers of tokens that chose an expert: by domain, as in
	// Prune.Domains, and expert.
	Uses [][]float64 `json:"uses,omitempty"`
	// Lost is the share of the tokens' choices that fall on experts that go, 0 to
	// 1, as the scores weigh texts.
	Lost *float64 `json:"choices_lost,omitempty"`
}

// Choice is a choice among several ways of pruning by what they cost.
type Choice struct {
	Text   string  `json:"text,omitempty"` // that they were measured with
	Trials []Trial `json:"trials"`
	Best   int     `json:"best"` // of Trials
	Next   int     `json:"next"` // the second best; Best if it is alone
	// Lead is by how much the divergence of the best is smaller than the next
	// one's.
	Lead Estimate `json:"lead"`
}

// Trial is one way of pruning.
type Trial struct {
	Rule   string `json:"rule"`
	Groups string `json:"groups,omitempty"` // equal or flatten, if that was tried
	Measured
	Domains []Text `json:"domains,omitempty"` // by kind of text
}

// Size is what the model takes in one type.
type Size struct {
	Type   string `json:"type"`
	Before int64  `json:"bytes_before"`
	After  int64  `json:"bytes_after"`
}

// Count is what another number of experts would give.
type Count struct {
	Keep     int       `json:"keep"`
	Bytes    []int64   `json:"bytes,omitempty"` // by type, as in Prune.Sizes
	Lost     *float64  `json:"choices_lost,omitempty"`
	Measured *Measured `json:"measured,omitempty"`
}

// Curves are the errors of blocks by the number of experts kept.
type Curves struct {
	Rule   string  `json:"rule"` // of the order in which experts go
	Blocks []Curve `json:"blocks"`
}

// Curve is that of one block.
type Curve struct {
	Block int `json:"block"`
	// Points ascend by the number of experts.
	Points []Point `json:"points"`
}

// Point is the error of a block with so many of its experts: Σ|y−y'|²/Σ|y|² of
// the routed output y, that without the others being y'.
type Point struct {
	Keep  int     `json:"keep"`
	Error float64 `json:"error"`
}

// Text is a text before and after.
type Text struct {
	Name string   `json:"name,omitempty"`
	Base Estimate `json:"ppl_before"` // perplexity of the whole model
	Measured
	// Repetition of what the models say themselves, nil if they were not asked.
	RepetitionBefore *Repetition `json:"repetition_before,omitempty"`
	RepetitionAfter  *Repetition `json:"repetition_after,omitempty"`
}

// Repetition says how far a model repeats itself when it continues prompts.
type Repetition struct {
	Prompts  int      `json:"prompts"`
	Tokens   int      `json:"tokens"`
	Repeated Estimate `json:"repeated"` // sequences of four tokens that were there before, in percent
	Loops    Estimate `json:"loops"`    // continuations that end in a loop, in percent
}

// Merge says which experts were merged.
type Merge struct {
	Method  string        `json:"method"` // none: it was only tried
	Aligned bool          `json:"aligned"`
	Blocks  []MergedBlock `json:"blocks,omitempty"`
	// Trials compare merging with pruning to as many experts.
	Trials []MergeTrial `json:"trials,omitempty"`
}

// MergedBlock are the groups of a block that became one expert each.
type MergedBlock struct {
	Block  int     `json:"block"`
	Groups []Group `json:"groups"`
}

// Group are experts that became one, in the place of the center.
type Group struct {
	Center  int       `json:"center"`
	Members []int     `json:"members"` // ascending, with the center
	Weights []float64 `json:"weights"` // of the members
}

// MergeTrial compares merging with pruning.
type MergeTrial struct {
	Keep   int      `json:"keep"`
	Method string   `json:"method"`
	Merged Measured `json:"merged"`
	Pruned Measured `json:"pruned"`
}

// Repair says what fitting the remaining experts' down projections anew did.
type Repair struct {
	Kept   bool       `json:"kept"` // the model has them
	Before Measured   `json:"before"`
	After  Measured   `json:"after"`
	Blocks []Repaired `json:"blocks,omitempty"`
	Facts  []Fact     `json:"facts,omitempty"` // settings of the fit
}

// Repaired is the repair of one block, with errors as in Point.
type Repaired struct {
	Block  int     `json:"block"`
	Kept   bool    `json:"kept"`
	Before float64 `json:"before"`
	After  float64 `json:"after"`
}

// check finds what cannot be shown: numbers of things that do not go together.
func (p *Prune) check() error {
	if p.Experts < 1 || p.Keep < 1 || p.Keep > p.Experts || len(p.Blocks) == 0 {
		return fmt.Errorf("report of %d of %d experts in %d blocks", p.Keep, p.Experts, len(p.Blocks))
	}
	for _, b := range p.Blocks {
		if err := p.checkBlock(&b); err != nil {
			return fmt.Errorf("report: block %d: %w", b.Block, err)
		}
	}
	for _, c := range p.Counts {
		if c.Bytes != nil && len(c.Bytes) != len(p.Sizes) {
			return fmt.Errorf("report: %d sizes of %d experts, want %d", len(c.Bytes), c.Keep, len(p.Sizes))
		}
	}
	if c := p.Choice; c != nil && (c.Best >= len(c.Trials) || c.Next >= len(c.Trials)) {
		return fmt.Errorf("report: the best of %d choices are %d and %d", len(c.Trials), c.Best, c.Next)
	}
	if p.Curves == nil {
		return nil
	}
	for _, c := range p.Curves.Blocks {
		if err := c.check(); err != nil {
			return fmt.Errorf("report: curve of block %d: %w", c.Block, err)
		}
	}
	return nil
}

func (p *Prune) checkBlock(b *Block) error {
	if n := len(b.Scores); n != 0 && n != p.Experts {
		return fmt.Errorf("%d scores, want %d", n, p.Experts)
	}
	if n := len(b.Uses); n != 0 && n != len(p.Domains) {
		return fmt.Errorf("uses by %d kinds of text, want %d", n, len(p.Domains))
	}
	for _, uses := range b.Uses {
		if len(uses) != p.Experts {
			return fmt.Errorf("uses of %d experts, want %d", len(uses), p.Experts)
		}
	}
	for _, e := range slices.Concat(b.Kept, b.Super) {
		if e < 0 || e >= p.Experts {
			return fmt.Errorf("expert %d of %d", e, p.Experts)
		}
	}
	return nil
}

func (c *Curve) check() error {
	if len(c.Points) == 0 {
		return fmt.Errorf("no points")
	}
	for _, p := range c.Points {
		if !(p.Error >= 0) || math.IsInf(p.Error, 0) {
			return fmt.Errorf("an error of %v with %d experts", p.Error, p.Keep)
		}
	}
	return nil
}
