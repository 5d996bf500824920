package main

import (
	"context"
	"errors"
	"fmt"
	"slices"

	"github.com/winnow-moe/winnow/convert"
	"github.com/winnow-moe/winnow/convert/experts"
	"github.com/winnow-moe/winnow/engine"
	"github.com/winnow-moe/winnow/formats/calib"
	"github.com/winnow-moe/winnow/formats/gguf"
)

// sampling runs the experts of a model, or of several that differ in weights only,
// on the tokens that were sampled when the model was calibrated.
type sampling struct {
	*app
	*choice
	engines []*engine.Model
	most    int // tokens of a block
}

// usualSampling is what samples and what is computed of them take at most where
// --max-memory does not say less.
const usualSampling = 2 << 30

// samplingBytes is a quarter of that.
func (c *choice) samplingBytes() int64 {
	total := int64(usualSampling)
	if given := int64(c.flags.evaluation.maxMemory); given > 0 {
		total = min(total, given)
	}
	return total / 4
}

// samplingTokens is how many tokens of a block are worked on: each takes its input
// and the sums of outputs, what its experts' hidden layers hold, and the products of
// the outputs of all pairs of experts.
func (c *choice) samplingTokens() int {
	p := &c.model.Params
	each := 4*(4*p.Embed+p.Experts+p.ExpertsUsed*p.ExpertFF) + 2*p.Experts*p.Experts
	return max(1, int(c.samplingBytes())/each)
}

// openSampling loads models for it.
func (a *app) openSampling(c *choice, models ...gguf.Model) (*sampling, error) {
	if lacksSample(c.stats) {
		return nil, &convert.HintError{
			Err:  &inputError{fmt.Errorf("%q has no sample of the tokens of all texts, which greedy choices, merging and repair take", c.flags.stats)},
			Hint: "calibrate again: --sample N keeps N tokens of every window",
		}
	}
	s := &sampling{app: a, choice: c, most: c.samplingTokens()}
	if n := c.stats.Sampled(); n > s.most {
		note := fmt.Sprintf("of the %d tokens that were sampled %d are used, as the memory allows", n, s.most)
		if !slices.Contains(c.notes, note) {
			c.notes = append(c.notes, note)
		}
	}
	bytes := c.samplingBytes()
	for _, m := range models {
		e, err := engine.Load(m, engine.Options{
			Threads: a.threads, Nextn: true, SampleBytes: min(bytes, engine.DefaultSampleBytes), GroupBytes: min(bytes, engine.DefaultGroupBytes),
		})
		if err != nil {
			return nil, &inputError{fmt.Errorf("%s: %w", c.path, err)}
		}
		s.engines = append(s.engines, e)
	}
	return s, nil
}

// block is the sample of a block in all models.
func (s *sampling) block(ctx context.Context, l int) (list []*engine.Sampled, err error) {
	sample, err := s.stats.Sample(l, s.flags.weights)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", s.flags.stats, err)
	}
	sample = sample.Thin(s.most)
	for _, m := range s.engines {
		b, err := m.Sampled(ctx, l, sample)
		if err != nil {
			return nil, s.about(err)
		}
		list = append(list, b)
	}
	return list, nil
}

// sampledBlocks are those of the trunk, and those of multi-token prediction that
// were sampled, too.
func (c *choice) sampledBlocks() (list []int) {
	p := &c.model.Params
	return slices.DeleteFunc(experts.Blocks(p, experts.PruneMTP), func(l int) bool { return l >= p.Trunk() && !c.stats.HasSample(l) })
}

// about names both files that an error may be due to: the model has the weights,
// the statistics what goes into them.
func (s *sampling) about(err error) error {
	return &inputError{fmt.Errorf("%s, by the sample in %s: %w", s.path, s.flags.stats, err)}
}

// each calls do for blocks, in turn, with their samples in all models. Blocks are
// shown as they are done.
func (s *sampling) each(ctx context.Context, what string, blocks []int, do func(l int, b []*engine.Sampled) error) error {
	bar := s.newProgress(what, false)
	defer bar.finish()
	for i, l := range blocks {
		bar.update(int64(i), int64(len(blocks)), "")
		list, err := s.block(ctx, l)
		if err != nil {
			return err
		}
		if err := do(l, list); err != nil {
			if errors.Is(err, context.Canceled) {
				return err
			}
			return s.about(err)
		}
	}
	bar.update(int64(len(blocks)), int64(len(blocks)), "")
	return nil
}

// superExperts are those that are protected.
func (c *choice) superExperts() ([]experts.Expert, error) {
	if !c.flags.protect {
		return nil, nil
	}
	list, err := experts.SuperExperts(c.stats, c.flags.weights)
	if err != nil {
		err = fmt.Errorf("%s: %w", c.flags.stats, err)
	}
	return list, err
}

// lacksSample reports whether there are texts of which no tokens were sampled.
func lacksSample(s *calib.Statistics) bool {
	return slices.ContainsFunc(s.Domains, func(d *calib.Domain) bool { return d.Chunks > 0 && d.Sampled() == 0 })
}
