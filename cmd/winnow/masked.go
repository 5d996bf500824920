package main

import (
	"context"
	"crypto/sha256"
	"fmt"
	"slices"

	"github.com/winnow-moe/winnow/convert/experts"
	"github.com/winnow-moe/winnow/engine"
	"github.com/winnow-moe/winnow/verify"
)

// keptExperts are the experts that a model is scored with, as if it had no
// others.
type keptExperts struct {
	path string // of the keep-list, if it was read
	list *experts.KeepList
}

// mask says the same to the engine.
func (k *keptExperts) mask() engine.Mask {
	return engine.Mask{Keep: k.list.Blocks, Flatten: k.list.Flatten}
}

// name is that of the keep-list, if there is one.
func (k *keptExperts) name() string {
	if k == nil {
		return ""
	}
	return k.path
}

// digest tells choices apart.
func (k *keptExperts) digest() string {
	h := sha256.New()
	fmt.Fprint(h, k.list.Flatten)
	for _, l := range k.list.Numbers() {
		fmt.Fprintln(h, l, k.list.Blocks[l])
	}
	return digestText(h)
}

// remark says what a measurement is of.
func (k *keptExperts) remark() string {
	if k == nil {
		return ""
	}
	return fmt.Sprintf("; with %d of %d experts per block (%s)", k.list.Keep(), k.list.Experts, printable(k.path))
}

// keep reads the keep-lists, and has the model do with the experts of one if it is
// alone.
func (j *perplexityJob) keep(m *scored) error {
	for _, path := range j.experts {
		list, err := readKeepList(path, m.engine.Params())
		if err != nil {
			return err
		}
		if list.Merge != nil {
			return usagef("keep-list %q merges experts: measure it with winnow prune --plan %s --text FILE", path, path)
		}
		j.kept = append(j.kept, &keptExperts{path, list})
	}
	if len(j.kept) != 1 {
		return nil
	}
	return m.keep(j.kept[0])
}

// keep has a model do with some of its experts.
func (s *scored) keep(k *keptExperts) error {
	s.kept = k
	return s.load()
}

// choicesResult are several choices of experts beside the same base.
type choicesResult struct {
	Model    string   `json:"model"`
	Base     string   `json:"base"`
	Compute  string   `json:"compute"`
	Warnings []string `json:"warnings,omitempty"`
	// Best has the smallest mean divergence, by Lead to Next.
	Best    string          `json:"best"`
	Next    string          `json:"next"`
	Lead    verify.Estimate `json:"lead"`
	Choices []choiceResult  `json:"choices"`
}

type choiceResult struct {
	Experts string `json:"experts"`
	Keep    int    `json:"keep"`
	*verify.Comparison
}

// compareKept scores a model with several choices of experts, which share one
// run of the base: another model, or the same one with all experts.
func (a *app) compareKept(ctx context.Context, j *perplexityJob, m *scored, text *verify.Text) (show func() error, err error) {
	base := m
	if j.base != "" {
		if base, err = a.openBase(j, m, text); err != nil {
			return nil, err
		}
		defer base.model.Close()
	}
	j.raw, j.sequences = nil, nil // their windows are there
	list, err := a.compareMasks(ctx, &j.flags, base, m, j.kept, text)
	if err != nil {
		return nil, err
	}
	r := &choicesResult{Model: m.path, Base: base.path, Compute: m.compute.String(), Warnings: m.warnings}
	if base != m {
		r.Warnings = slices.Concat(m.warnings, base.warnings)
	}
	for i, c := range list {
		r.Choices = append(r.Choices, choiceResult{j.kept[i].path, j.kept[i].list.Keep(), c})
	}
	next, by := verify.Lead(list)
	r.Best, r.Next, r.Lead = j.kept[verify.Closest(list)].path, j.kept[next].path, by
	return func() error { return a.printChoices(m, r) }, nil
}

// compareMasks scores a model with several choices of experts beside a base, all
// in one run.
func (a *app) compareMasks(ctx context.Context, flags *scoreFlags, base, m *scored, kept []*keptExperts, text *verify.Text) ([]*verify.Comparison, error) {
	var models []*scored
	for _, k := range kept {
		s, err := a.masked(m, flags, k)
		if err != nil {
			return nil, err
		}
		models = append(models, s)
	}
	return a.compareModels(ctx, flags, base, models, text)
}

// compareModels scores models beside a base, all in one run.
func (a *app) compareModels(ctx context.Context, flags *scoreFlags, base *scored, models []*scored, text *verify.Text) ([]*verify.Comparison, error) {
	return scoring(ctx, a, flags, text, append([]*scored{base}, models...), nil, func(opt verify.Options) ([]*verify.Comparison, error) {
		var list []verify.Scorer[*engine.Hidden]
		for _, s := range models {
			list = append(list, s.engine)
		}
		return verify.CompareAll(ctx, base.engine, list, text, opt)
	})
}

// masked is a model with some of its experts, beside the one that has all.
func (a *app) masked(m *scored, flags *scoreFlags, k *keptExperts) (*scored, error) {
	s := a.newScored(m.path, m.model, flags, engine.Options{})
	return s, s.keep(k)
}

func (a *app) printChoices(m *scored, r *choicesResult) error {
	if a.json {
		return a.printJSON(r)
	}
	rows := [][]string{{"experts", "kept", "text", "PPL ± err", "PPL ratio", "KLD", "same top"}}
	add := func(name, kept, text string, c *verify.Comparison) {
		rows = append(rows, []string{name, kept, text, fmt.Sprintf("%.4f ± %.4f", c.PPL.Value, c.PPL.Error),
			fmt.Sprintf("%.6f", c.Ratio.Value), fmt.Sprintf("%.6f", c.KLD.Mean.Value), fmt.Sprintf("%.2f %%", c.SameTop.Value)})
	}
	for _, c := range r.Choices {
		add(printable(c.Experts), fmt.Sprint(c.Keep), "all", c.Comparison)
		for _, d := range c.Domains {
			add("", "", printable(d.Name), d)
		}
	}
	a.printf("%s\n", table("lrlrrrr", rows))
	base := r.Choices[0].Base
	a.printf("smallest KLD: %s, by %.6f ± %.6f to %s\n", printable(r.Best), r.Lead.Value, r.Lead.Error, printable(r.Next))
	a.printf("PPL of the base: %.4f ± %.4f\n\n", base.Value, base.Error)
	a.printf("%s\n", wrap(r.Choices[0].Definition+m.compute.remark(), ""))
	return nil
}
