package main

import (
	"context"
	"maps"
	"slices"

	"github.com/winnow-moe/winnow/convert"
	"github.com/winnow-moe/winnow/engine"
	"github.com/winnow-moe/winnow/verify"
)

// repairReport is what it did to fit the experts that stay.
type repairReport struct {
	// Kept says that the model has the fitted weights.
	Kept   bool               `json:"kept"`
	Ridge  float64            `json:"ridge"`
	Before *verify.Comparison `json:"before"`
	After  *verify.Comparison `json:"after"`
	// Gain is by how much the divergence became smaller.
	Gain verify.Estimate `json:"gain"`
}

// repair fits the experts that stay to what those that go did, and keeps that if
// the model diverges less then.
func (a *app) repair(ctx context.Context, c *choice) error {
	ev, kept := c.ev, &keptExperts{list: c.list}
	s, err := a.openSampling(c, ev.whole.model, convert.Changed(ev.whole.model, c.changes))
	if err != nil {
		return err
	}
	sampled := c.sampledBlocks()
	mask := kept.mask()
	mask.Keep = maps.Clone(mask.Keep)
	maps.DeleteFunc(mask.Keep, func(l int, _ []int) bool { return !slices.Contains(sampled, l) })
	fitted := s.engines[1].NewRefit(engine.RefitOptions{Mask: mask, CacheBytes: c.samplingBytes()}, func(ctx context.Context, l int) (whole, changed *engine.Sampled, err error) {
		b, err := s.block(ctx, l)
		if err != nil {
			return nil, nil, err
		}
		return b[0], b[1], nil
	})
	before := c.changes
	c.changes = convert.Both(before, fitted)
	flags := &ev.flags.scoreFlags
	var models []*scored
	for _, changes := range []convert.Changes{before, c.changes} {
		m, err := a.masked(a.newScored(c.path, convert.Changed(ev.whole.model, changes), flags, engine.Options{}), flags, kept)
		if err != nil {
			return err
		}
		models = append(models, m)
	}
	all, err := a.compareModels(ctx, flags, ev.whole, models, ev.text)
	if err != nil {
		return err
	}
	c.repaired = &repairReport{Ridge: engine.DefaultRidge, Before: all[0], After: all[1], Gain: gain(all[0], all[1])}
	if c.repaired.Kept = c.repaired.Gain.Value > 0; !c.repaired.Kept {
		c.changes = before
	}
	return nil
}
