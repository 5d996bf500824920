package main

import (
	"bytes"
	"fmt"
	"maps"
	"slices"
	"strconv"

	"github.com/winnow-moe/winnow/convert/experts"
	"github.com/winnow-moe/winnow/formats/calib"
	"github.com/winnow-moe/winnow/formats/durable"
	"github.com/winnow-moe/winnow/verify"
	"github.com/winnow-moe/winnow/verify/report"
)

// writeHTML writes the page of a choice, whole or not at all.
func (c *choice) writeHTML(r *pruneReport, path string) error {
	page, err := c.page(r)
	if err != nil {
		return err
	}
	c.addChanges(page)
	var b bytes.Buffer
	if err := page.WriteHTML(&b); err != nil {
		return err
	}
	return durable.WriteBytes(path, b.Bytes())
}

// page fills the page with what is known of the choice.
func (c *choice) page(r *pruneReport) (*report.Prune, error) {
	p := &report.Prune{
		Model: r.Model, Arch: r.Arch, Tool: "winnow " + version, Facts: c.facts(r),
		Experts: r.Experts, Keep: r.Keep, Used: r.Used, Groups: r.Groups, Flatten: r.Flatten, MTP: r.MTP,
		Rule: r.Rule, RuleMeaning: ruleMeaning(r.Rule), Warnings: r.Warnings,
	}
	for _, s := range r.Sizes {
		p.Sizes = append(p.Sizes, report.Size(s))
	}
	for _, b := range r.Blocks {
		block := report.Block{Block: b.Block, Kept: b.Kept, Scores: b.Scores, Lost: b.Lost}
		for _, s := range r.Super {
			if s.Block == b.Block {
				block.Super = append(block.Super, s.Expert)
			}
		}
		p.Blocks = append(p.Blocks, block)
	}
	var err error
	if c.stats != nil {
		if p.Domains, err = c.pageDomains(p.Blocks); err != nil {
			return nil, fmt.Errorf("%s: %w", c.flags.stats, err)
		}
	}
	if p.Counts, err = c.otherCounts(); err != nil {
		return nil, err
	}
	c.addCurves(p)
	r.addCosts(p)
	return p, nil
}

// addCurves tells the page what blocks lack with fewer and fewer experts, if a
// search of greedy found that out.
func (c *choice) addCurves(p *report.Prune) {
	s := c.greedy[c.flatten]
	if s == nil {
		return
	}
	p.Curves = &report.Curves{Rule: s.Rule}
	for _, b := range p.Blocks {
		curve := report.Curve{Block: b.Block}
		for n, e := range slices.Backward(s.Curve[b.Block]) {
			curve.Points = append(curve.Points, report.Point{Keep: p.Experts - n, Error: e})
		}
		p.Curves.Blocks = append(p.Curves.Blocks, curve)
	}
}

// addCosts tells the page what was measured on texts.
func (r *pruneReport) addCosts(p *report.Prune) {
	if len(r.Measured) > 0 {
		p.Choice = &report.Choice{Text: r.Measured[0].Definition}
	}
	for i, t := range r.Measured {
		trial := report.Trial{Rule: orDefault(t.Rule, "keep-list"), Measured: pageMeasured(t.Comparison), Domains: pageTexts(t.Domains...)}
		if r.Groups > 1 {
			trial.Groups = groupsText(t.Flatten)
		}
		p.Choice.Trials = append(p.Choice.Trials, trial)
		if t.Chosen {
			p.Choice.Best, p.Choice.Next = i, i
		}
	}
	if r.Lead != nil {
		p.Choice.Next, p.Choice.Lead = r.Lead.index, report.Estimate(r.Lead.Estimate)
	}
	for i := range p.Counts {
		if c := r.costWith(p.Counts[i].Keep); c != nil {
			m := pageMeasured(c)
			p.Counts[i].Measured = &m
		}
	}
	if len(r.Proofs) > 0 {
		r.Proofs[0].addTo(p)
	}
}

// costWith is what was measured of a number of experts as they were chosen, nil if
// nothing.
func (r *pruneReport) costWith(keep int) *verify.Comparison {
	switch {
	case keep != r.Keep:
	case r.Repair != nil && r.Repair.Kept:
		return r.Repair.After
	case r.Repair != nil:
		return r.Repair.Before
	case r.Merge != nil:
		return r.Merge.Merged
	}
	for _, t := range r.Searched {
		if t.Keep == keep {
			return t.Comparison
		}
	}
	for _, t := range r.Measured {
		if t.Chosen && t.Keep == keep {
			return t.Comparison
		}
	}
	return nil
}

// addTo tells the page what the model is like before and after.
func (p *proofReport) addTo(page *report.Prune) {
	page.Definition = p.Definition
	page.Texts = pageTexts(slices.Concat([]*verify.Comparison{p.Comparison}, p.Domains)...)
	for i, c := range p.Continued {
		t := &page.Texts[min(i+1, len(page.Texts)-1)]
		before, after := pageRepetition(c.Before), pageRepetition(c.After)
		t.RepetitionBefore, t.RepetitionAfter = &before, &after
	}
	if p.Deviation != nil {
		page.Written = &p.Deviation.Max
	}
	if p.Path != "" {
		page.Facts = append(page.Facts, report.Fact{Name: "measured after writing", Value: p.Path})
	}
}

func pageMeasured(c *verify.Comparison) report.Measured {
	return report.Measured{PPL: report.Estimate(c.PPL), KLD: report.Estimate(c.KLD.Mean), SameTop: report.Estimate(c.SameTop)}
}

func pageTexts(all ...*verify.Comparison) (list []report.Text) {
	for _, c := range all {
		list = append(list, report.Text{Name: c.Name, Base: report.Estimate(c.Base), Measured: pageMeasured(c)})
	}
	return list
}

func pageRepetition(r *verify.Repetition) report.Repetition {
	return report.Repetition{Prompts: r.Prompts, Tokens: r.Tokens, Repeated: report.Estimate(r.Repeated), Loops: report.Estimate(r.Loops)}
}

// groupsText names a way with groups as --groups does.
func groupsText(flatten bool) string {
	if flatten {
		return groupsFlatten
	}
	return groupsEqual
}

// facts are what the choice follows from.
func (c *choice) facts(r *pruneReport) (list []report.Fact) {
	add := func(name, value string) {
		if value != "" {
			list = append(list, report.Fact{Name: name, Value: value})
		}
	}
	add("keep-list", c.flags.plan)
	add("scores from", r.Statistics)
	if c.flags.stats != r.Statistics {
		add("statistics", c.flags.stats)
	}
	if r.Rule == experts.RandomRule {
		add("seed", strconv.FormatUint(c.list.Seed, 10))
	}
	for _, name := range slices.Sorted(maps.Keys(r.Weights)) {
		add("weight of "+name, strconv.FormatFloat(r.Weights[name], 'g', -1, 64))
	}
	add("scores of several texts", r.Combine)
	if c.scores != nil && !c.flags.protect {
		add("super experts", "not protected")
	}
	return list
}

// ruleMeaning says what scores of a rule are.
func ruleMeaning(name string) string {
	for _, r := range append(experts.Rules(), experts.ImatrixRules...) {
		if r.Name == name {
			return r.What
		}
	}
	return ""
}

// pageDomains returns the kinds of text that were measured, and adds to every
// block how often they use its experts.
func (c *choice) pageDomains(blocks []report.Block) (list []report.Domain, err error) {
	weights := 0.0
	for _, w := range c.list.Weights {
		weights += w
	}
	for _, d := range c.stats.Domains {
		if len(d.Layers()) == 0 {
			continue // it had no text
		}
		domain := report.Domain{Name: d.Name}
		if weights > 0 {
			share := c.list.Weights[d.Name] / weights
			domain.Weight = &share
		}
		for i := range blocks {
			t := d.Layer(blocks[i].Block)
			if t == nil {
				continue // a multi-token prediction block
			}
			tokens, err := t.Values(calib.Tokens)
			if err != nil {
				return nil, err
			}
			uses, err := t.Values(calib.Selected)
			if err != nil {
				return nil, err
			}
			domain.Tokens, blocks[i].Uses = tokens[0], append(blocks[i].Uses, uses)
		}
		list = append(list, domain)
	}
	return list, nil
}

// countShares are the shares of the experts, in eighths, that the page compares.
var countShares = []int{7, 6, 5, 4, 3, 2}

// otherCounts says what other numbers of experts would give: the whole model, the
// choice, and shares that the model can have.
func (c *choice) otherCounts() (list []report.Count, err error) {
	p := &c.model.Params
	counts := []int{p.Experts, c.list.Keep()}
	groups := 1
	if p.ExpertGroups > 1 && !c.list.Flatten {
		groups = p.ExpertGroups
	}
	for _, share := range countShares {
		keep := p.Experts * share / 8 / groups * groups
		if experts.CheckCount(p, keep, c.list.Flatten) == nil {
			counts = append(counts, keep)
		}
	}
	for _, t := range c.search {
		counts = append(counts, t.Keep)
	}
	slices.Sort(counts)
	for _, keep := range slices.Backward(slices.Compact(counts)) {
		n := report.Count{Keep: keep}
		mtp := c.list.MTP
		if keep == p.Experts {
			mtp = ""
		}
		for i := range max(1, len(c.types)) {
			n.Bytes = append(n.Bytes, c.bytes(i, mtp).Total(keep))
		}
		list = append(list, n)
	}
	return list, c.loseWith(list)
}

// loseWith adds the mean share of the choices that fall on experts that go, if it
// is known.
func (c *choice) loseWith(list []report.Count) error {
	if c.scores == nil || c.stats == nil {
		return nil
	}
	uses, err := experts.Score(c.stats, "frequency", c.flags.weights)
	if err != nil {
		return fmt.Errorf("%s: %w", c.flags.stats, err)
	}
	for i := range list {
		share := 0.0
		if keep := list[i].Keep; keep < c.list.Experts {
			k, err := experts.Select(c.scores, &c.model.Params, experts.Options{Keep: keep, Flatten: c.list.Flatten, MTP: c.list.MTP})
			if err != nil {
				return err
			}
			share = meanLost(uses.Blocks, k)
		}
		list[i].Lost = &share
	}
	return nil
}

// meanLost is the mean of the shares of choices lost, over the blocks whose uses
// are known.
func meanLost(uses map[int][]float64, k *experts.KeepList) float64 {
	sum, n := 0.0, 0
	for _, l := range k.Numbers() {
		if share := lost(uses[l], k.Blocks[l]); share != nil {
			sum += *share
			n++
		}
	}
	return sum / float64(max(1, n))
}
