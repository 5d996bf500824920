package report

import (
	"fmt"
	"path"
	"slices"
	"strconv"
	"strings"
)

// page decides what the page says.
func (p *Prune) page() *page {
	g := &page{
		Title:    fmt.Sprintf("%s: %d of %d experts", path.Base(strings.ReplaceAll(p.Model, `\`, "/")), p.Keep, p.Experts),
		Lead:     p.lead(),
		Tool:     p.Tool,
		Tiles:    p.tiles(),
		Warnings: p.Warnings,
	}
	for _, s := range []*section{p.cost(), p.counts(), p.choice(), p.expertSection(), p.domainSection(), p.curveSection(), p.mergeSection(), p.repairSection(), p.blockSection(), p.origin()} {
		if s != nil {
			g.Sections = append(g.Sections, s)
		}
	}
	return g
}

// lead says in a sentence what was done.
func (p *Prune) lead() string {
	s := fmt.Sprintf("Of the %d experts in each of %s %d stay, of which a token uses %d", p.Experts, plural(len(p.Blocks), "block", "blocks"), p.Keep, p.Used)
	switch {
	case p.Flatten:
		s += fmt.Sprintf("; their %d groups become one", p.Groups)
	case p.Groups > 1:
		s += fmt.Sprintf("; %d in each of %d groups", p.Keep/p.Groups, p.Groups)
	}
	switch p.MTP {
	case "drop":
		s += "; multi-token prediction blocks go"
	case "prune":
		s += "; multi-token prediction blocks are pruned too"
	}
	return s + "."
}

func (p *Prune) tiles() (list []tile) {
	list = append(list, tile{"experts of a block", fmt.Sprintf("%d → %d", p.Experts, p.Keep), fmt.Sprintf("%.0f %% go", 100*(1-float64(p.Keep)/float64(p.Experts)))})
	if p.Rule != "" {
		list = append(list, tile{"rule", p.Rule, p.RuleMeaning})
	}
	for _, s := range p.Sizes {
		list = append(list, tile{"size, " + s.Type, bytesText(s.After), "before " + bytesText(s.Before) + ", " + change(s.Before, s.After)})
	}
	if len(p.Texts) > 0 {
		t := p.Texts[0]
		list = append(list, tile{"KL divergence", fmt.Sprintf("%.4f", t.KLD.Value), t.KLD.margin(4) + "nats per token"}, tile{"same top token", fmt.Sprintf("%.1f %%", t.SameTop.Value), t.SameTop.margin(1) + "of the tokens"})
	}
	if share := p.meanLost(); share != nil {
		list = append(list, tile{"choices lost", sharePercent(share), "of the calibration tokens' choices"})
	}
	return list
}

// meanLost is the mean share of choices that are lost, over blocks.
func (p *Prune) meanLost() *float64 {
	sum, n := 0.0, 0
	for _, b := range p.Blocks {
		if b.Lost != nil {
			sum += *b.Lost
			n++
		}
	}
	if n == 0 {
		return nil
	}
	sum /= float64(n)
	return &sum
}

// cost compares the model before and after.
func (p *Prune) cost() *section {
	if len(p.Texts) == 0 {
		return nil
	}
	s := &section{ID: "cost", Title: "Before and after", Text: p.definition()}
	t := &table{Caption: "Perplexity (PPL) before and after, KL divergence (KLD, nats per token) from the whole model", Columns: numbers("text", "PPL before", "PPL after", "KLD", "same top token")}
	for i, x := range p.Texts {
		t.add(textName(i, x.Name), x.Base.format(4), x.PPL.format(4), x.KLD.format(6), x.SameTop.percent())
	}
	s.Tables = []*table{t}
	if r := p.repetition(); r != nil {
		s.Tables = append(s.Tables, r)
	}
	if p.Written != nil {
		s.Text = append(s.Text, fmt.Sprintf("Between the written model and the whole one without those experts ln p differs by %.2g at most.", *p.Written))
	}
	return s
}

func (p *Prune) definition() []string {
	if p.Definition == "" {
		return nil
	}
	return []string{p.Definition}
}

// textName is that of text i.
func textName(i int, name string) string {
	if name == "" && i == 0 {
		return "all"
	}
	return name
}

// repetition compares how far the models repeat themselves.
func (p *Prune) repetition() *table {
	t := &table{
		Caption: "Greedy continuations: sequences of four tokens that were there before, and continuations that end in a loop",
		Columns: numbers("text", "prompts", "tokens", "repeated before", "repeated after", "loops before", "loops after"),
	}
	for i, x := range p.Texts {
		a, b := x.RepetitionBefore, x.RepetitionAfter
		if a == nil || b == nil {
			continue
		}
		t.add(textName(i, x.Name), countText(float64(b.Prompts)), countText(float64(b.Tokens)), a.Repeated.percent(), b.Repeated.percent(), a.Loops.percent(), b.Loops.percent())
	}
	if len(t.Rows) == 0 {
		return nil
	}
	return t
}

// counts is what other numbers of experts would give.
func (p *Prune) counts() *section {
	if len(p.Counts) == 0 {
		return nil
	}
	t := &table{Caption: "Sizes and losses by the number of experts of a block", Columns: numbers("experts")}
	lost, measured := false, false
	for _, c := range p.Counts {
		lost, measured = lost || c.Lost != nil, measured || c.Measured != nil
	}
	for _, s := range p.Sizes {
		t.Columns = append(t.Columns, column{Name: "size, " + s.Type}, column{Name: "change"})
	}
	if lost {
		t.Columns = append(t.Columns, column{Name: "choices lost"})
	}
	if measured {
		t.Columns = append(t.Columns, column{Name: "KLD"}, column{Name: "PPL"}, column{Name: "same top token"})
	}
	for _, c := range p.Counts {
		cells := []string{strconv.Itoa(c.Keep)}
		for i, s := range p.Sizes {
			if c.Bytes == nil {
				cells = append(cells, unknown, unknown)
				continue
			}
			cells = append(cells, bytesText(c.Bytes[i]), change(s.Before, c.Bytes[i]))
		}
		if lost {
			cells = append(cells, sharePercent(c.Lost))
		}
		if measured {
			cells = append(cells, c.Measured.cells()...)
		}
		t.add(cells...)
		t.mark(c.Keep == p.Keep)
	}
	s := &section{ID: "counts", Title: "How many experts", Tables: []*table{t}}
	if lost {
		s.Text = []string{"Choices lost are the share of the calibration tokens' choices that fall on experts that go, their mean over the blocks."}
	}
	return s
}

// cells are the divergence, the perplexity and the agreement.
func (m *Measured) cells() []string {
	if m == nil {
		return []string{unknown, unknown, unknown}
	}
	return []string{m.KLD.format(6), m.PPL.format(4), m.SameTop.percent()}
}

// choice lists what was tried.
func (p *Prune) choice() *section {
	c := p.Choice
	if c == nil || len(c.Trials) == 0 {
		return nil
	}
	s := &section{ID: "choice", Title: "How the rule was chosen"}
	best, next := c.Trials[c.Best], c.Trials[c.Next]
	text := "The smallest KL divergence is that of " + best.name() + ", " + best.KLD.format(6) + " nats per token"
	if c.Next != c.Best {
		text += ", by " + c.Lead.format(6) + " before " + next.name()
	}
	s.Text = []string{text + "."}
	if c.Text != "" {
		s.Text = append(s.Text, "Measured with "+c.Text+", without a file written.")
	}
	t := &table{Caption: "Ways of pruning to as many experts", Columns: numbers("rule", "KLD", "PPL", "same top token")}
	for i, x := range c.Trials {
		t.add(append([]string{x.name()}, x.cells()...)...)
		t.mark(i == c.Best)
	}
	s.Tables = []*table{t}
	if d := c.byText(); d != nil {
		s.Tables = append(s.Tables, d)
	}
	return s
}

func (t *Trial) name() string {
	if t.Groups == "" {
		return t.Rule
	}
	return t.Rule + ", groups " + t.Groups
}

// byText compares the trials on each kind of text.
func (c *Choice) byText() *table {
	t := &table{Caption: "KL divergence by kind of text", Columns: numbers("rule")}
	for _, d := range c.Trials[0].Domains {
		t.Columns = append(t.Columns, column{Name: d.Name})
	}
	for i, x := range c.Trials {
		if len(x.Domains) != len(t.Columns)-1 || len(x.Domains) == 0 {
			return nil
		}
		cells := []string{x.name()}
		for _, d := range x.Domains {
			cells = append(cells, d.KLD.format(6))
		}
		t.add(cells...)
		t.mark(i == c.Best)
	}
	return t
}

// mergeSection says which experts were merged, and whether that is better than
// pruning.
func (p *Prune) mergeSection() *section {
	m := p.Merge
	if m == nil {
		return nil
	}
	s := &section{ID: "merge", Title: "Merging"}
	if m.Method != "" {
		text := "Experts are merged by " + m.Method
		if m.Aligned {
			text += ", their neurons aligned first"
		}
		s.Text = []string{text + "."}
	}
	t := &table{Caption: "KL divergence of merging and of pruning to as many experts", Columns: append(numbers("experts"), column{"method", true}, column{Name: "KLD merged"}, column{Name: "KLD pruned"}, column{"better", true})}
	for _, x := range m.Trials {
		t.add(strconv.Itoa(x.Keep), x.Method, x.Merged.KLD.format(6), x.Pruned.KLD.format(6), x.better())
	}
	if len(t.Rows) > 0 {
		s.Tables = append(s.Tables, t)
	}
	if g := m.groups(); len(g.Rows) > 0 {
		s.Tables = append(s.Tables, g)
	}
	return s
}

// better names the way of the smaller divergence.
func (t *MergeTrial) better() string {
	a, b := t.Merged.KLD.Value, t.Pruned.KLD.Value
	switch {
	case a == b:
		return "equal"
	case a < b:
		return fmt.Sprintf("merging, by %.1f %%", 100*(1-a/b))
	}
	return fmt.Sprintf("pruning, by %.1f %%", 100*(1-b/a))
}

// groups lists the groups of more than one expert.
func (m *Merge) groups() *table {
	t := &table{Caption: "Groups of experts that became one", Columns: []column{{"block", true}, {"center: members (weights)", true}}, Folded: true}
	for _, b := range m.Blocks {
		var groups []string
		for _, g := range b.Groups {
			if len(g.Members) > 1 {
				groups = append(groups, g.text())
			}
		}
		t.add(strconv.Itoa(b.Block), strings.Join(groups, "; "))
	}
	return t
}

func (g *Group) text() string {
	var parts []string
	for i, e := range g.Members {
		part := strconv.Itoa(e)
		if i < len(g.Weights) {
			part += fmt.Sprintf(" (%.2f)", g.Weights[i])
		}
		parts = append(parts, part)
	}
	return fmt.Sprintf("%d: %s", g.Center, strings.Join(parts, ", "))
}

// repairSection says what fitting down projections anew did.
func (p *Prune) repairSection() *section {
	r := p.Repair
	if r == nil {
		return nil
	}
	verdict := "It is not kept: the divergence on texts that it was not fitted to is not smaller."
	if r.Kept {
		verdict = "It is kept: the divergence on texts that it was not fitted to is smaller."
	}
	s := &section{ID: "repair", Title: "Repair", Text: []string{"The down projections of the experts that stay are fitted anew to what the whole block adds. " + verdict}}
	t := &table{Caption: "Before and after the repair", Columns: numbers("model", "KLD", "PPL", "same top token")}
	t.add(append([]string{"as chosen"}, r.Before.cells()...)...)
	t.mark(!r.Kept)
	t.add(append([]string{"repaired"}, r.After.cells()...)...)
	t.mark(r.Kept)
	s.Tables = []*table{t}
	if f := factTable("Settings of the fit", r.Facts); f != nil {
		s.Tables = append(s.Tables, f)
	}
	if len(r.Blocks) == 0 {
		return s
	}
	blocks := &table{Caption: "Error of each block, share of |y|²", Columns: append(numbers("block", "before", "after"), column{"repair kept", true}), Folded: len(r.Blocks) > unfolded}
	for _, b := range r.Blocks {
		kept := "no"
		if b.Kept {
			kept = "yes"
		}
		blocks.add(strconv.Itoa(b.Block), fmt.Sprintf("%.3g %%", 100*b.Before), fmt.Sprintf("%.3g %%", 100*b.After), kept)
	}
	s.Tables = append(s.Tables, blocks)
	return s
}

// expertSection is the map of scores and tokens.
func (p *Prune) expertSection() *section {
	s := &section{ID: "experts", Title: "Experts", Maps: []*heatMap{p.scoreMap()}}
	s.Text = []string{"Colours compare an expert with the median of its block, experts of value 0 aside. Scores of different blocks do not compare."}
	if p.Rule != "" && p.RuleMeaning != "" {
		s.Text[0] += " The score is " + p.Rule + ": " + p.RuleMeaning + "."
	}
	var super []string
	for _, b := range p.Blocks {
		if len(b.Super) > 0 {
			super = append(super, fmt.Sprintf("block %d: %s", b.Block, rangesText(b.Super)))
		}
	}
	if len(super) > 0 {
		s.Text = append(s.Text, "Super experts, whose outputs are far beyond all others', stay whatever their score: "+strings.Join(super, "; ")+".")
	}
	return s
}

// domainSection says which texts experts are for.
func (p *Prune) domainSection() *section {
	if len(p.Domains) < 2 || !p.any(func(b *Block) bool { return b.Uses != nil }) {
		return nil
	}
	s := &section{ID: "texts", Title: "Experts by kind of text", Maps: []*heatMap{p.domainMap()}}
	s.Text = []string{fmt.Sprintf("An expert prefers a text if 1 − H/log D is at least %g, and strongly from %g on: H is the entropy of the shares that the D kinds of text have in its use, each counted per token of the text.", prefers, strongly)}
	t := &table{Caption: "What the choice leaves of each kind of text", Columns: numbers("text", "tokens", "weight", "experts that prefer it", "of them stay", "choices lost")}
	for d, domain := range p.Domains {
		all, stay, lost := p.preferring(d)
		weight := "by tokens"
		if domain.Weight != nil {
			weight = sharePercent(domain.Weight)
		}
		t.add(domain.Name, countText(domain.Tokens), weight, strconv.Itoa(all), strconv.Itoa(stay), sharePercent(lost))
	}
	s.Tables = []*table{t}
	return s
}

// preferring counts the experts that prefer a domain, those of them that stay, and
// the share of its tokens' choices that fall on experts that go.
func (p *Prune) preferring(domain int) (all, stay int, lost *float64) {
	uses, gone := 0.0, 0.0
	for i := range p.Blocks {
		b := &p.Blocks[i]
		if b.Uses == nil {
			continue
		}
		for e, n := range b.Uses[domain] {
			kept := slices.Contains(b.Kept, e)
			uses += n
			if !kept {
				gone += n
			}
			if f := p.preference(b, e); f.shares == nil || f.best != domain || f.degree < prefers {
				continue
			}
			all++
			if kept {
				stay++
			}
		}
	}
	if uses > 0 {
		gone /= uses
		lost = &gone
	}
	return all, stay, lost
}

// curveSection shows the error curves.
func (p *Prune) curveSection() *section {
	if p.Curves == nil || len(p.Curves.Blocks) == 0 {
		return nil
	}
	return &section{ID: "curves", Title: "Error by number of experts", Text: []string{p.curveSummary()}, Chart: p.chart()}
}

// unfolded is how many rows a table shows at once.
const unfolded = 16

// blockSection lists the blocks.
func (p *Prune) blockSection() *section {
	t := &table{Caption: fmt.Sprintf("The choice in %s", plural(len(p.Blocks), "block", "blocks")), Columns: numbers("block", "stay", "choices lost"), Folded: len(p.Blocks) > unfolded}
	if p.Curves != nil {
		t.Columns = append(t.Columns, column{Name: "error"})
	}
	super := p.any(func(b *Block) bool { return len(b.Super) > 0 })
	if super {
		t.Columns = append(t.Columns, column{"super experts", true})
	}
	t.Columns = append(t.Columns, column{"experts that go", true})
	for _, b := range p.Blocks {
		cells := []string{strconv.Itoa(b.Block), strconv.Itoa(len(b.Kept)), sharePercent(b.Lost)}
		if p.Curves != nil {
			cells = append(cells, p.curveError(b.Block))
		}
		if super {
			cells = append(cells, rangesText(b.Super))
		}
		t.add(append(cells, rangesText(p.gone(&b)))...)
	}
	return &section{ID: "blocks", Title: "Blocks", Tables: []*table{t}}
}

// curveError is the error of a block as its curve has it.
func (p *Prune) curveError(block int) string {
	for _, c := range p.Curves.Blocks {
		if err, ok := c.at(p.Keep); ok && c.Block == block {
			return fmt.Sprintf("%.3g %%", 100*err)
		}
	}
	return unknown
}

// gone lists the experts that go.
func (p *Prune) gone(b *Block) (list []int) {
	for e := range p.Experts {
		if !slices.Contains(b.Kept, e) {
			list = append(list, e)
		}
	}
	return list
}

// origin says where all this comes from.
func (p *Prune) origin() *section {
	facts := append([]Fact{{"model", p.Model}, {"architecture", p.Arch}}, p.Facts...)
	return &section{ID: "origin", Title: "Where this comes from", Tables: []*table{factTable("Inputs", append(facts, Fact{"made by", p.Tool}))}}
}

// factTable lists facts, nil if there are none.
func factTable(caption string, facts []Fact) *table {
	if len(facts) == 0 {
		return nil
	}
	t := &table{Caption: caption, Columns: []column{{"what", true}, {"value", true}}}
	for _, f := range facts {
		t.add(f.Name, f.Value)
	}
	return t
}
