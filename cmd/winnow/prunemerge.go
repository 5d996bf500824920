package main

import (
	"context"
	"fmt"
	"math"
	"sync"

	"github.com/winnow-moe/winnow/convert"
	"github.com/winnow-moe/winnow/convert/experts"
	"github.com/winnow-moe/winnow/engine"
	"github.com/winnow-moe/winnow/engine/kernel"
	"github.com/winnow-moe/winnow/formats/gguf"
	"github.com/winnow-moe/winnow/quant"
	"github.com/winnow-moe/winnow/verify"
)

// mergeReport is a merge of experts, beside pruning to as many.
type mergeReport struct {
	Method string                  `json:"method"`
	Align  bool                    `json:"align"`
	Groups map[int][]experts.Group `json:"groups"` // by block
	mergeTrial
	// Others compare with other numbers of experts.
	Others []mergeTrial `json:"others,omitempty"`
}

// mergeTrial is what merging and pruning to so many experts cost.
type mergeTrial struct {
	Keep   int                `json:"keep"`
	Rule   string             `json:"rule"` // of the pruning
	Merged *verify.Comparison `json:"merged"`
	Pruned *verify.Comparison `json:"pruned"`
	// Gain is by how much the divergence is smaller than that of pruning.
	Gain verify.Estimate `json:"gain"`
}

// mergeNames lists the ways to merge.
func mergeNames() (names []string) {
	for _, r := range experts.MergeRules() {
		names = append(names, r.Name)
	}
	return names
}

// merger forms groups of a model's experts and measures what becomes of it.
type merger struct {
	*app
	*choice
	likeness map[int]*experts.Likeness
	super    []experts.Expert
}

// merge puts a merge to as many experts in the place of the choice, and measures
// both.
func (a *app) merge(ctx context.Context, c *choice) error {
	if err := convert.NotMerged(c.mergedBefore()); err != nil {
		return planError(err)
	}
	m := &merger{app: a, choice: c}
	var err error
	if m.super, err = c.superExperts(); err != nil {
		return err
	}
	if m.likeness, err = m.compare(ctx); err != nil {
		return err
	}
	list, changes, err := m.to(ctx, c.list.Keep())
	if err != nil {
		return err
	}
	if c.list.MTP == experts.PruneMTP {
		c.notes = append(c.notes, "multi-token prediction blocks are left out, as their experts are not merged")
	}
	r := &mergeReport{Method: list.Merge.Method, Align: list.Merge.Align, Groups: list.Merge.Groups}
	if r.mergeTrial, err = m.measure(ctx, c.list, list, changes); err != nil {
		return err
	}
	if c.flags.page != "" {
		if r.Others, err = m.others(ctx, r.mergeTrial); err != nil {
			return err
		}
	}
	c.merged, c.list, c.changes = r, list, changes
	if c.scores, err = experts.Score(c.stats, experts.MergeScore(list.Merge.Method), c.flags.weights); err != nil {
		return fmt.Errorf("%s: %w", c.flags.stats, err)
	}
	c.scores.Super = m.super
	return nil
}

// mergedBefore is the method by which the model was merged already, if it was.
func (m *prunable) mergedBefore() string {
	if m.folder != nil {
		return m.folder.Merged()
	}
	return m.file.Merged()
}

// compare finds out how alike experts are.
func (m *merger) compare(ctx context.Context) (map[int]*experts.Likeness, error) {
	s, err := m.openSampling(m.choice, m.ev.whole.model)
	if err != nil {
		return nil, err
	}
	blocks, err := experts.Likenesses(m.stats, m.flags.weights)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", m.flags.stats, err)
	}
	return blocks, s.each(ctx, "comparing", experts.Blocks(&m.model.Params, experts.DropMTP), func(l int, b []*engine.Sampled) error {
		like, err := b[0].Likeness(ctx)
		if err == nil {
			blocks[l].Distance, blocks[l].Cosine = like.Distance, like.Cosine
		}
		return err
	})
}

// to forms groups for so many experts, and prepares their weights.
func (m *merger) to(ctx context.Context, keep int) (*experts.KeepList, convert.Changes, error) {
	p := &m.model.Params
	opt := experts.Options{Keep: keep, Flatten: p.ExpertGroups > 1}
	if m.list.MTP != "" {
		opt.MTP = experts.DropMTP // which merging leaves out
	}
	list, err := experts.SelectMerged(m.flags.merge, m.likeness, m.super, p, opt)
	if err != nil {
		return nil, nil, err
	}
	list.Provenance = m.list.Provenance
	list.Rule = m.flags.merge
	changes, err := m.mergeWeights(ctx, m.choice, list, m.ev.whole.model)
	return list, changes, err
}

// mergeWeights prepares the weights of the experts that a keep-list merges.
func (a *app) mergeWeights(ctx context.Context, c *choice, list *experts.KeepList, m gguf.Model) (convert.Changes, error) {
	bar := a.newProgress("aligning", false)
	defer bar.finish()
	w, err := experts.NewMerge(ctx, c.model, list.Merge.Groups, weightRows(m), experts.MergeOptions{
		Align: list.Merge.Align, Threads: a.threads,
		Products: func(dst, x, y []float32, n, width int) {
			kernel.MatMul(kernel.NewMatrix(dst, n, n), kernel.NewMatrix(x, n, width), kernel.NewMatrix(y, n, width))
		},
		Progress: func(done, total int) { bar.update(int64(done), int64(total), "") },
	})
	if err != nil {
		return nil, &inputError{fmt.Errorf("%s: %w", c.path, err)}
	}
	return w, nil
}

// weightRows reads weights of a model as float32.
func weightRows(m gguf.Model) experts.Rows {
	index := map[string]int{}
	for i, t := range m.Tensors() {
		index[t.Name] = i
	}
	buffers := sync.Pool{New: func() any { return new([]byte) }}
	return func(ctx context.Context, name string, first, n int64, dst []float32) error {
		i, ok := index[name]
		if !ok {
			return fmt.Errorf("tensor %q is missing", name)
		}
		info := &m.Tensors()[i]
		buf := buffers.Get().(*[]byte)
		defer buffers.Put(buf)
		if need := int(n * info.RowBytes()); cap(*buf) < need {
			*buf = make([]byte, need)
		}
		raw, err := m.Rows(ctx, i, first, n, (*buf)[:n*info.RowBytes()])
		if err != nil {
			return err
		}
		return quant.DecodeRows(info.Type, dst, raw)
	}
}

// measure measures a merge and a choice of as many experts.
func (m *merger) measure(ctx context.Context, pruned, merged *experts.KeepList, changes convert.Changes) (t mergeTrial, err error) {
	flags := &m.ev.flags.scoreFlags
	ways := []struct {
		model *scored
		list  *experts.KeepList
	}{{m.newScored(m.path, convert.Changed(m.ev.whole.model, changes), flags, engine.Options{}), merged}, {m.ev.whole, pruned}}
	var models []*scored
	for _, w := range ways {
		s, err := m.masked(w.model, flags, &keptExperts{list: w.list})
		if err != nil {
			return t, err
		}
		models = append(models, s)
	}
	all, err := m.compareModels(ctx, flags, m.ev.whole, models, m.ev.text)
	if err != nil {
		return t, err
	}
	return mergeTrial{Keep: merged.Keep(), Rule: pruned.Rule, Merged: all[0], Pruned: all[1], Gain: gain(all[1], all[0])}, nil
}

// gain is by how much the divergence of the second is smaller than that of the
// first.
func gain(before, after *verify.Comparison) verify.Estimate {
	all := []*verify.Comparison{before, after}
	_, by := verify.Lead(all)
	if verify.Closest(all) == 0 {
		by.Value = -by.Value
	}
	return by
}

// mergeShares are the shares of the experts that go in the comparisons of the page.
var mergeShares = []float64{0.25, 0.5}

// others compares merging with pruning to the other numbers of mergeShares that
// the model can have.
func (m *merger) others(ctx context.Context, taken mergeTrial) (list []mergeTrial, err error) {
	p := &m.model.Params
	for _, share := range mergeShares {
		opt := experts.Options{Keep: p.Experts - int(math.Round(share*float64(p.Experts))), Flatten: m.list.Flatten, MTP: m.list.MTP}
		if m.scores == nil || opt.Keep == taken.Keep || experts.CheckCount(p, opt.Keep, opt.Flatten) != nil {
			continue
		}
		pruned, err := m.choose(m.scores, opt)
		if err != nil {
			return nil, err
		}
		merged, changes, err := m.to(ctx, opt.Keep)
		if err != nil {
			return nil, err
		}
		t, err := m.measure(ctx, pruned, merged, changes)
		if err != nil {
			return nil, err
		}
		list = append(list, t)
	}
	return list, nil
}

// planMerged prepares the weights of a keep-list that merges and was read.
func (a *app) planMerged(ctx context.Context, c *choice) error {
	if err := convert.NotMerged(c.mergedBefore()); err != nil {
		return planError(err)
	}
	m, err := c.ev.model()
	if err != nil {
		return err
	}
	c.changes, err = a.mergeWeights(ctx, c, c.list, m.model)
	return err
}
