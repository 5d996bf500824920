package main

import (
	"fmt"
	"slices"
	"strconv"

	"github.com/winnow-moe/winnow/verify"
	"github.com/winnow-moe/winnow/verify/report"
)

// changeWarnings say where changes of weights do harm.
func (r *pruneReport) changeWarnings() (list []string) {
	if m := r.Merge; m != nil && m.Gain.Value < 0 {
		list = append(list, fmt.Sprintf("pruning by %s is better than merging by %s here: its KL divergence is smaller by %.6f", m.Rule, m.Method, -m.Gain.Value))
	}
	if r.Repair != nil && !r.Repair.Kept {
		list = append(list, "the repair is left out: with it the model diverges more on the texts")
	}
	return list
}

// printChanges shows what merging and repair do.
func (a *app) printChanges(r *pruneReport) {
	if m := r.Merge; m != nil {
		for _, t := range append([]mergeTrial{m.mergeTrial}, m.Others...) {
			a.printBeside("pruned: "+t.Rule, t.Pruned, "merged: "+m.Method, t.Merged, t.Keep)
		}
		a.printf("%s\n\n", wrap(gainText("merging", m.Gain, "pruning to as many"), "  "))
	}
	if p := r.Repair; p != nil {
		a.printBeside("as chosen", p.Before, "repaired", p.After, r.Keep)
		a.printf("%s\n\n", wrap(gainText("repair", p.Gain, "none"), "  "))
	}
}

// printBeside shows two models beside each other.
func (a *app) printBeside(name string, c *verify.Comparison, other string, d *verify.Comparison, keep int) {
	rows := [][]string{{"", "kept", "text", "PPL before", "after", "KLD", "same top"}}
	rows = append(rows, costRows(c, name, strconv.Itoa(keep))...)
	rows = append(rows, costRows(d, other, strconv.Itoa(keep))...)
	a.printf("%s", table("lrlrrrr", rows))
}

// gainText says what a smaller divergence is due to.
func gainText(what string, gain verify.Estimate, than string) string {
	word, by := "smaller", gain.Value
	if by < 0 {
		word, by = "larger", -by
	}
	text := fmt.Sprintf("%s: a KLD %s by %.6f ± %.6f than with %s", what, word, by, gain.Error, than)
	if by <= gain.Error {
		text += ", which is within the error"
	}
	return text
}

// addChanges tells the page of merging and repair.
func (c *choice) addChanges(p *report.Prune) {
	if m := c.merged; m != nil {
		p.Merge = &report.Merge{Method: m.Method, Aligned: m.Align}
		for _, b := range p.Blocks {
			block := report.MergedBlock{Block: b.Block}
			for _, g := range m.Groups[b.Block] {
				if len(g.Members) > 1 {
					block.Groups = append(block.Groups, report.Group(g))
				}
			}
			p.Merge.Blocks = append(p.Merge.Blocks, block)
		}
		trials := append([]mergeTrial{m.mergeTrial}, m.Others...)
		slices.SortStableFunc(trials, func(a, b mergeTrial) int { return b.Keep - a.Keep })
		for _, t := range trials {
			p.Merge.Trials = append(p.Merge.Trials, report.MergeTrial{Keep: t.Keep, Method: m.Method, Merged: pageMeasured(t.Merged), Pruned: pageMeasured(t.Pruned)})
		}
	}
	if r := c.repaired; r != nil {
		p.Repair = &report.Repair{Kept: r.Kept, Before: pageMeasured(r.Before), After: pageMeasured(r.After), Facts: []report.Fact{
			{Name: "ridge", Value: strconv.FormatFloat(r.Ridge, 'g', -1, 64)},
			{Name: "tokens sampled", Value: strconv.Itoa(c.stats.Sampled())},
		}}
	}
}
