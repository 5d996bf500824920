package main

import (
	"fmt"
	"slices"
	"strconv"
	"strings"

	"github.com/winnow-moe/winnow/convert/experts"
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
	Statistics string             `json:"statistics,omitempty"`
	Super      []experts.Expert   `json:"super_experts"`
	Blocks     []pruneBlock       `json:"blocks"`
	Sizes      []pruneSize        `json:"sizes"`
	Warnings   []string           `json:"warnings"`
}

// pruneBlock is the choice in one block.
type pruneBlock struct {
	Block   int       `json:"block"`
	Kept    []int     `json:"kept"`
	Dropped []int     `json:"dropped"`
	Scores  []float64 `json:"scores,omitempty"`
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
		Rule: c.list.Rule, Weights: c.list.Weights, Statistics: c.list.Statistics, Super: []experts.Expert{}, Sizes: c.sizes(c.list),
		Warnings: append([]string{}, c.notes...),
	}
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
			b.Scores = c.scores.Blocks[l]
		}
		r.Blocks = append(r.Blocks, b)
	}
	r.Warnings = append(r.Warnings, c.superWarnings(r)...)
	r.Warnings = append(r.Warnings, experts.Warnings(p, r.Keep, r.Flatten)...)
	return r, nil
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
	a.printf("%s\n%s\n", pruneTable(r), wrap(pruneText(r), "  "))
	for _, s := range r.Super {
		a.printf("super expert, which stays: %d of block %d\n", s.Expert, s.Block)
	}
	for _, s := range r.Sizes {
		a.printf("%s: %s, before %s\n", s.Type, sizeText(s.After), sizeText(s.Before))
	}
	for _, path := range []string{c.flags.out, c.flags.save, c.flags.slice, c.flags.page} {
		if path != "" && !c.flags.dryRun {
			a.note("written: %s", path)
		}
	}
	return nil
}

// pruneText says in a sentence what is chosen.
func pruneText(r *pruneReport) string {
	text := fmt.Sprintf("%d of %d experts stay in each of %d %s, of which a token uses %d", r.Keep, r.Experts, len(r.Blocks), plural(len(r.Blocks), "block", "blocks"), r.Used)
	if r.Rule != "" {
		text += "; rule " + r.Rule
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
	rows := [][]string{{"block", "kept", "choices lost", "dropped", ""}}
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
