package main

import (
	"fmt"
	"slices"
	"strconv"
	"strings"

	"github.com/winnow-moe/winnow/convert/experts"
	"github.com/winnow-moe/winnow/verify"
)

// pruneReport is the result of prune in the form --json prints.
type pruneReport struct {
	Model      string             `json:"model"`
	Arch       string             `json:"architecture"`
	Experts    int                `json:"experts"`
	Keep       int                `json:"keep"`
	Used       int                `json:"experts_used"`
	Groups     int                `json:"groups,omitempty"`
	Flatten    bool               `json:"flatten,omitempty"`
	MTP        string             `json:"mtp,omitempty"`
	Rule       string             `json:"rule,omitempty"`
	Weights    map[string]float64 `json:"weights,omitempty"`
	Combine    string             `json:"combine,omitempty"`
	Statistics string             `json:"statistics,omitempty"`
	Super      []experts.Expert   `json:"super_experts"`
	Blocks     []pruneBlock       `json:"blocks"`
	Sizes      []pruneSize        `json:"sizes"`
	Measured   []trialReport      `json:"measured,omitempty"`
	Lead       *leadReport        `json:"lead,omitempty"`
	Searched   []*verify.Tried    `json:"searched,omitempty"`
	MaxKLD     float64            `json:"max_kld,omitempty"`
	Merged     string             `json:"merged,omitempty"` // the method by which experts are
	Merge      *mergeReport       `json:"merge,omitempty"`
	Repair     *repairReport      `json:"repair,omitempty"`
	Outputs    []string           `json:"outputs,omitempty"` // models that were written
	Proofs     []*proofReport     `json:"verified,omitempty"`
	Warnings   []string           `json:"warnings"`
}

// trialReport is what a choice costs on the texts.
type trialReport struct {
	Rule    string `json:"rule,omitempty"`
	Flatten bool   `json:"flatten,omitempty"`
	Keep    int    `json:"keep"`
	Chosen  bool   `json:"chosen"`
	*verify.Comparison
}

// leadReport says by how much the divergence of the choice taken is smaller than
// that of the next one.
type leadReport struct {
	Next    string `json:"next"`
	Flatten bool   `json:"flatten,omitempty"`
	verify.Estimate
	index int // of the next one
}

// pruneBlock is the choice in one block.
type pruneBlock struct {
	Block   int       `json:"block"`
	Kept    []int     `json:"kept"`
	Dropped []int     `json:"dropped"`
	Scores  []float64 `json:"scores,omitempty"`
	// Errors are what the block's output lacks without the first 0, 1, ... experts
	// that go, Σ|y−y'|²/Σ|y|², if the rule tells.
	Errors []float64 `json:"errors,omitempty"`
	// Lost is the share of the tokens' choices that fall on dropped experts.
	Lost *float64 `json:"choices_lost,omitempty"`
}

// pruneSize is what the model takes in one type.
type pruneSize struct {
	Type   string `json:"type"`
	Before int64  `json:"bytes_before"`
	After  int64  `json:"bytes_after"`
}

// report describes the choice.
func (c *choice) report() (*pruneReport, error) {
	p := &c.model.Params
	r := &pruneReport{
		Model: c.path, Arch: c.model.Family.Arch, Experts: p.Experts, Keep: c.list.Keep(), Used: p.ExpertsUsed, Flatten: c.list.Flatten, MTP: c.list.MTP,
		Rule: c.list.Rule, Weights: c.list.Weights, Combine: c.list.Combine, Statistics: c.list.Statistics, Super: []experts.Expert{}, Sizes: c.sizes(c.list),
		Searched: c.search, MaxKLD: c.flags.maxKLD, Merge: c.merged, Repair: c.repaired, Warnings: append([]string{}, c.notes...),
	}
	if c.list.Merge != nil {
		r.Merged = c.list.Merge.Method
	}
	r.compared(c)
	if p.ExpertGroups > 1 {
		r.Groups = p.ExpertGroups
	}
	var uses map[int][]float64
	if c.stats != nil {
		frequency, err := experts.Score(c.stats, "frequency", c.flags.weights)
		if err != nil {
			return nil, fmt.Errorf("%s: %w", c.flags.stats, err)
		}
		uses = frequency.Blocks
	}
	for _, l := range c.list.Numbers() {
		b := pruneBlock{Block: l, Kept: c.list.Blocks[l], Dropped: others(p.Experts, c.list.Blocks[l]), Lost: lost(uses[l], c.list.Blocks[l])}
		if c.scores != nil {
			b.Scores, b.Errors = c.scores.Blocks[l], c.scores.Curve[l]
		}
		r.Blocks = append(r.Blocks, b)
	}
	r.Warnings = append(r.Warnings, c.unseenWarnings(uses)...)
	r.Warnings = append(r.Warnings, c.superWarnings(r)...)
	r.Warnings = append(r.Warnings, r.changeWarnings()...)
	r.Warnings = append(r.Warnings, experts.Warnings(p, r.Keep, r.Flatten)...)
	return r, nil
}

// compared reports what was measured before the choice.
func (r *pruneReport) compared(c *choice) {
	var costs []*verify.Comparison
	for i, t := range c.tried {
		if t.cost != nil {
			r.Measured = append(r.Measured, trialReport{t.list.Rule, t.list.Flatten, t.list.Keep(), i == c.best, t.cost})
			costs = append(costs, t.cost)
		}
	}
	if len(costs) > 1 {
		next, by := verify.Lead(costs)
		r.Lead = &leadReport{r.Measured[next].Rule, r.Measured[next].Flatten, by, next}
	}
}

// unseenWarnings count the experts that no token chose, which rules know nothing of.
func (c *choice) unseenWarnings(uses map[int][]float64) []string {
	n := 0
	for _, l := range c.list.Numbers() {
		for _, used := range uses[l] {
			if used == 0 {
				n++
			}
		}
	}
	if n == 0 || c.scores == nil || c.scores.Rule == experts.RandomRule {
		return nil
	}
	return []string{fmt.Sprintf("%s: %d %s by no token, so that little is known of %s: calibrate on more text", c.flags.stats, n,
		plural(n, "expert was chosen", "experts were chosen"), plural(n, "it", "them"))}
}

// superWarnings names super experts and, of them, those that do not stay.
func (c *choice) superWarnings(r *pruneReport) (list []string) {
	if c.scores == nil {
		return nil
	}
	r.Super = append(r.Super, c.scores.Super...)
	for _, s := range r.Super {
		if ids, ok := c.list.Blocks[s.Block]; ok && !slices.Contains(ids, s.Expert) {
			list = append(list, fmt.Sprintf("block %d has more super experts than stay: expert %d goes", s.Block, s.Expert))
		}
	}
	return list
}

// others returns the numbers below n that are not in a list.
func others(n int, ids []int) []int {
	out := []int{}
	for e := range n {
		if !slices.Contains(ids, e) {
			out = append(out, e)
		}
	}
	return out
}

// lost returns the share of uses by others than ids, nil if uses are not known.
func lost(uses []float64, ids []int) *float64 {
	all, kept := 0.0, 0.0
	for _, n := range uses {
		all += n
	}
	if all == 0 {
		return nil
	}
	for _, e := range ids {
		kept += uses[e]
	}
	share := max(0, 1-kept/all)
	return &share
}

func (a *app) printPrune(r *pruneReport, c *choice) error {
	if a.json {
		return a.printJSON(r)
	}
	a.warn(r.Warnings)
	a.printMeasured(r, c.flags.evaluation.compute)
	a.printChanges(r)
	a.printf("%s\n%s\n", pruneTable(r), wrap(pruneText(r), "  "))
	for _, s := range r.Super {
		if slices.Contains(c.list.Blocks[s.Block], s.Expert) {
			a.printf("super expert, which stays: %d of block %d\n", s.Expert, s.Block)
		}
	}
	for _, s := range r.Sizes {
		a.printf("%s: %s, before %s\n", s.Type, sizeText(s.After), sizeText(s.Before))
	}
	for _, p := range r.Proofs {
		a.printProof(p, c.flags.evaluation.compute)
	}
	for _, path := range append(slices.Clip(r.Outputs), c.flags.save, c.flags.slice, c.flags.page) {
		if path != "" && !c.flags.dryRun {
			a.note("written: %s", path)
		}
	}
	return nil
}

// textName is the most that a table shows of the name of a text.
const textName = 14

// costRows are the rows of a table for a comparison and its texts, behind some
// columns that stand in the first.
func costRows(c *verify.Comparison, before ...string) (rows [][]string) {
	add := func(before []string, name string, c *verify.Comparison) {
		rows = append(rows, append(before, name, fmt.Sprintf("%.4f", c.Base.Value), fmt.Sprintf("%.4f", c.PPL.Value),
			fmt.Sprintf("%.6f", c.KLD.Mean.Value), fmt.Sprintf("%.2f %%", c.SameTop.Value)))
	}
	add(before, "all", c)
	for _, d := range c.Domains {
		add(make([]string, len(before)), cut(printable(d.Name), textName), d)
	}
	return rows
}

// printMeasured shows what choices cost on the texts, and which was taken.
func (a *app) printMeasured(r *pruneReport, compute computeValue) {
	if len(r.Measured) > 0 {
		rows := [][]string{{"", "kept", "text", "PPL before", "after", "KLD", "same top"}}
		for _, t := range r.Measured {
			rows = append(rows, costRows(t.Comparison, trialName(t.Rule, t.Flatten), strconv.Itoa(t.Keep))...)
		}
		a.printf("%s", table("lrlrrrr", rows))
	}
	if r.Lead != nil {
		taken := r.Measured[slices.IndexFunc(r.Measured, func(t trialReport) bool { return t.Chosen })]
		text := fmt.Sprintf("taken: %s, by a KLD smaller by %.6f ± %.6f than that of %s", trialName(taken.Rule, taken.Flatten), r.Lead.Value, r.Lead.Error, trialName(r.Lead.Next, r.Lead.Flatten))
		if r.Lead.Value <= r.Lead.Error {
			text += ", which is within the error"
		}
		a.printf("%s\n", wrap(text, "  "))
	}
	definition := ""
	if len(r.Measured) > 0 {
		definition = r.Measured[0].Definition
	}
	if len(r.Searched) > 0 {
		definition = r.Searched[0].Definition
		rows := [][]string{{"kept", "text", "PPL before", "after", "KLD", "same top"}}
		for _, t := range r.Searched {
			rows = append(rows, costRows(t.Comparison, strconv.Itoa(t.Keep))...)
		}
		if len(r.Measured) > 0 {
			a.printf("\n")
		}
		a.printf("%sfewest with a KLD of at most %g: %d\n", table("rlrrrr", rows), r.MaxKLD, r.Keep)
	}
	if definition != "" {
		a.printf("%s\n\n", wrap(definition+compute.remark(), ""))
	}
}

// trialName is what a choice is called.
func trialName(rule string, flatten bool) string {
	name := orDefault(rule, "keep-list")
	if flatten {
		name += ", one group"
	}
	return name
}

// printProof shows what pruning costs on the texts of --verify.
func (a *app) printProof(p *proofReport, compute computeValue) {
	what := "the whole model, without the experts that go"
	if p.Path != "" {
		what = printable(p.Path)
	}
	a.printf("\nverified: %s\n%s", what, table("lrrrr", append([][]string{{"text", "PPL before", "after", "KLD", "same top"}}, costRows(p.Comparison)...)))
	if p.Deviation != nil {
		text := fmt.Sprintf("beside the whole model without those experts: |Δ ln p| at most %.2g, on average %.2g", p.Deviation.Max, p.Deviation.Mean)
		if p.Rounded {
			text += ", since the folder rounds weights that changed"
		}
		a.printf("%s\n", wrap(text, "  "))
	}
	if len(p.Continued) > 0 {
		rows := [][]string{{"continued", "prompts", "repeated before", "after", "loops before", "after"}}
		for _, c := range p.Continued {
			row := []string{cut(printable(orDefault(c.Name, "all")), textName), strconv.Itoa(c.After.Prompts)}
			for _, e := range []verify.Estimate{c.Before.Repeated, c.After.Repeated, c.Before.Loops, c.After.Loops} {
				row = append(row, fmt.Sprintf("%.1f %%", e.Value))
			}
			rows = append(rows, row)
		}
		a.printf("\n%s\n", table("lrrrrr", rows))
	}
	a.printf("%s\n", wrap(p.Definition+compute.remark(), ""))
}

// pruneText says in a sentence what is chosen.
func pruneText(r *pruneReport) string {
	text := fmt.Sprintf("%d of %d experts stay in each of %d %s, of which a token uses %d", r.Keep, r.Experts, len(r.Blocks), plural(len(r.Blocks), "block", "blocks"), r.Used)
	if r.Rule != "" {
		text += "; rule " + r.Rule
	}
	if r.Combine != "" {
		text += ", the largest share in any kind of text"
	}
	switch {
	case r.Flatten:
		text += fmt.Sprintf("; the %d groups become one", r.Groups)
	case r.Groups > 1:
		text += fmt.Sprintf("; %d in each of %d groups", r.Keep/r.Groups, r.Groups)
	}
	switch r.MTP {
	case experts.DropMTP:
		text += "; multi-token prediction blocks go"
	case experts.PruneMTP:
		text += "; multi-token prediction blocks are pruned too"
	}
	return text
}

// pruneTable lists the blocks, with as many of the dropped experts as fit.
func pruneTable(r *pruneReport) string {
	gone := "dropped"
	if r.Merged != "" {
		gone = "merged"
	}
	rows := [][]string{{"block", "kept", "choices lost", gone, ""}}
	for _, b := range r.Blocks {
		share := "-"
		if b.Lost != nil {
			share = fmt.Sprintf("%.1f %%", 100**b.Lost)
		}
		rows = append(rows, []string{strconv.Itoa(b.Block), strconv.Itoa(len(b.Kept)), share, strconv.Itoa(len(b.Dropped)), ""})
	}
	room := lineWidth - widest(table("rrrrl", rows)) - 2
	for i, b := range r.Blocks {
		rows[i+1][4] = cut(rangesText(b.Dropped), room)
	}
	return table("rrrrl", rows)
}

// rangesText writes ascending numbers, those in a row as 3-7.
func rangesText(ids []int) string {
	var parts []string
	for i := 0; i < len(ids); {
		j := i
		for j+1 < len(ids) && ids[j+1] == ids[j]+1 {
			j++
		}
		part := strconv.Itoa(ids[i])
		if j > i {
			part += "-" + strconv.Itoa(ids[j])
		}
		parts = append(parts, part)
		i = j + 1
	}
	return strings.Join(parts, " ")
}
