package main

import (
	"context"
	"fmt"
	"math/bits"
	"slices"

	"github.com/spf13/cobra"

	"github.com/winnow-moe/winnow/convert"
	"github.com/winnow-moe/winnow/convert/experts"
	"github.com/winnow-moe/winnow/engine"
	"github.com/winnow-moe/winnow/formats/calib"
	"github.com/winnow-moe/winnow/verify"
)

// evaluationFlags say how choices of experts are measured.
type evaluationFlags struct {
	scoreFlags
	field             string
	prompts, generate int
}

func (f *evaluationFlags) add(c *cobra.Command) {
	fieldFlag(c, &f.field)
	f.addWindows(c)
	f.computeFlag(c)
	f.addMemory(c)
	c.Flags().IntVar(&f.prompts, "prompts", 200, "`N` windows of each --verify text are continued, at most")
	c.Flags().IntVar(&f.generate, "generate", 64, "`N` tokens that each is continued by (0: none)")
}

func (f *evaluationFlags) check() error {
	switch {
	case f.prompts < 1:
		return usagef("--prompts is %d, want at least 1; --generate 0 continues none", f.prompts)
	case f.generate < 0:
		return usagef("--generate is %d, want a number of tokens, or 0 for none", f.generate)
	}
	return f.scoreFlags.check()
}

// evaluation is the whole model with the texts to measure choices on.
type evaluation struct {
	app   *app
	path  string
	flags *evaluationFlags
	whole *scored      // nil until it is needed
	text  *verify.Text // of --text; nil: none
	proof *verify.Text // of --verify; nil: none
}

// model opens the whole model, once.
func (ev *evaluation) model() (_ *scored, err error) {
	if ev.whole == nil {
		ev.whole, err = ev.app.openScored(ev.path, &ev.flags.scoreFlags)
	}
	return ev.whole, err
}

// openEvaluation opens what there is to measure on, before anything is written.
func (a *app) openEvaluation(c *choice) (*evaluation, error) {
	ev := &evaluation{app: a, path: c.path, flags: &c.flags.evaluation}
	ev.flags.ck = c.ck
	choices, err := ev.read("--text", c.flags.texts)
	if err != nil {
		return nil, err
	}
	proof, err := ev.read("--verify", c.flags.proof)
	if err == nil {
		c.notes = append(c.notes, calibratedOn(c.stats, choices.texts, proof.texts)...)
	}
	if err != nil || len(choices.texts)+len(proof.texts) == 0 {
		return ev, err
	}
	m, err := ev.model()
	if err != nil {
		return nil, err
	}
	if len(choices.texts) > 0 {
		ev.text, err = choices.text(m)
	}
	if err == nil && len(proof.texts) > 0 {
		ev.proof, err = proof.text(m)
	}
	if err != nil {
		ev.close()
		return nil, err
	}
	return ev, nil
}

// calibratedOn warns of texts that statistics were measured on, going by the names
// of their files: what they say of a choice is too good.
func calibratedOn(s *calib.Statistics, texts ...[]textFile) (warnings []string) {
	if s == nil {
		return nil
	}
	for _, t := range slices.Concat(texts...) {
		for _, d := range s.Domains {
			if slices.Contains(d.Datasets, t.path) {
				if w := fmt.Sprintf("%s was calibrated on: choices look better on it than they are", t.path); !slices.Contains(warnings, w) {
					warnings = append(warnings, w)
				}
				break
			}
		}
	}
	return warnings
}

// read reads the texts of a flag.
func (ev *evaluation) read(flag string, values []string) (j *perplexityJob, err error) {
	j = &perplexityJob{flags: ev.flags.scoreFlags, field: ev.flags.field}
	if j.texts, err = parseTexts(flag, values); err != nil {
		return nil, err
	}
	return j, j.read()
}

func (ev *evaluation) close() {
	if ev.whole != nil {
		ev.whole.model.Close()
	}
}

// changed is the whole model with weights that have changed.
func (a *app) changed(c *choice) *scored {
	if c.changes == nil {
		return c.ev.whole
	}
	return a.newScored(c.path, convert.Changed(c.ev.whole.model, c.changes), &c.ev.flags.scoreFlags, engine.Options{})
}

// measureTrials measures what choices cost, and finds the best.
func (a *app) measureTrials(ctx context.Context, c *choice) error {
	ev := c.ev
	var kept []*keptExperts
	for _, t := range c.tried {
		kept = append(kept, &keptExperts{list: t.list})
	}
	all, err := a.compareMasks(ctx, &ev.flags.scoreFlags, ev.whole, a.changed(c), kept, ev.text)
	if err != nil {
		return err
	}
	for i, cost := range all {
		c.tried[i].cost = cost
	}
	c.best = verify.Closest(all)
	return nil
}

// searchFewest finds the fewest experts that diverge by no more than --max-kld,
// ranked as in the best of what was tried.
func (a *app) searchFewest(ctx context.Context, c *choice) error {
	opt := experts.Options{Flatten: c.list.Flatten, MTP: c.list.MTP}
	counts, err := c.counts(opt.Flatten)
	if err != nil {
		return err
	}
	lists := map[int]*experts.KeepList{}
	choose := func(keep int) (engine.Mask, error) {
		opt.Keep = keep
		list, err := c.choose(c.scores, opt)
		if err != nil {
			return engine.Mask{}, err
		}
		lists[keep] = list
		return (&keptExperts{list: list}).mask(), nil
	}
	found, tried, err := a.fewest(ctx, c, counts, choose)
	if err != nil {
		return err
	}
	c.search = tried
	if found == nil {
		last := tried[len(tried)-1]
		return usagef("no choice diverges by at most %g: with %d of %d experts the KL divergence is %.6f", c.flags.maxKLD, last.Keep, c.model.Params.Experts, last.KLD.Mean.Value)
	}
	c.list = lists[found.Keep]
	return nil
}

// fewest searches with progress: every number that is tried takes a pass over the
// text, and so does the whole model, once.
func (a *app) fewest(ctx context.Context, c *choice, counts []int, choose func(int) (engine.Mask, error)) (found *verify.Tried, tried []*verify.Tried, err error) {
	ev := c.ev
	n := scoringNeeds([]*scored{ev.whole, ev.whole}, false, ev.text)
	n.kept += ev.whole.engine.HiddenBytes(ev.text.Len())
	f, err := ev.flags.memoryFit(n)
	if err != nil {
		return nil, nil, err
	}
	if err := f.apply(ev.whole); err != nil {
		return nil, nil, err
	}
	bar, pass, most := a.newProgress("searching", false), 0, bits.Len(uint(len(counts)))
	defer bar.finish()
	opt := verify.Options{BatchTokens: f.batch, LogitRows: f.rows, Threads: a.threads, Window: func(done, total int, sofar verify.Running) {
		bar.update(int64((pass-1)*total+done), int64(most*total), fmt.Sprintf(" (%s)", runningText(sofar)))
	}}
	m, err := verify.NewMasks(ev.whole.engine, ev.whole.engine, ev.text, opt)
	if err != nil {
		return nil, nil, err
	}
	found, tried, err = m.Fewest(ctx, counts, func(keep int) (engine.Mask, error) {
		pass++
		return choose(keep)
	}, c.flags.maxKLD)
	if err != nil {
		return nil, nil, &inputError{err} // not finite
	}
	return found, tried, nil
}
