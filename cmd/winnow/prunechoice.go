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
	"github.com/winnow-moe/winnow/verify"
)

// autoRule tries several rules and takes the one whose choice diverges least.
const autoRule = "auto"

// Ways with groups of experts.
const (
	groupsEqual   = "equal"
	groupsFlatten = "flatten"
	groupsAuto    = "auto" // the one that diverges less
)

// choice is a keep-list with what led to it.
type choice struct {
	*prunable
	flags    *pruneFlags
	stats    *calib.Statistics // may be nil
	ev       *evaluation
	matrix   *experts.Scores          // those of --from-imatrix, once computed
	greedy   map[bool]*experts.Scores // by whether groups are given up, once computed
	scores   *experts.Scores          // nil for keep-lists that were read
	list     *experts.KeepList
	tried    []*trial // what was compared; the list is of the best, or was searched by its scores
	best     int
	search   []*verify.Tried // numbers of experts that were measured for --max-kld
	merged   *mergeReport    // nil: experts are not merged, or as the keep-list says
	repaired *repairReport
	flatten  bool            // groups are given up in the choice, before it is merged
	changes  convert.Changes // of weights of the experts that stay; nil: none
	written  []output
	notes    []string
}

// trial is a choice and what it costs on texts.
type trial struct {
	flatten bool
	scores  *experts.Scores // nil for keep-lists that were read
	list    *experts.KeepList
	cost    *verify.Comparison // nil: not measured
}

// decide reads the keep-list, or makes one: the best of several if rules or ways
// with groups are to be tried.
func (a *app) decide(ctx context.Context, c *choice) (err error) {
	if c.tried, err = c.trials(ctx); err != nil {
		return err
	}
	if c.list = c.tried[0].list; c.list.Merge != nil { // it was read
		if err := a.planMerged(ctx, c); err != nil {
			return err
		}
	}
	if search := c.flags.maxKLD > 0; c.ev.text != nil && (!search || len(c.tried) > 1) {
		if err := a.measureTrials(ctx, c); err != nil {
			return err
		}
	}
	c.scores, c.list, c.flatten = c.tried[c.best].scores, c.tried[c.best].list, c.tried[c.best].list.Flatten
	if c.flags.maxKLD > 0 {
		return a.searchFewest(ctx, c)
	}
	return nil
}

// trials makes the choices to compare, or reads the one that was made.
func (c *choice) trials(ctx context.Context) ([]*trial, error) {
	if c.flags.plan != "" {
		list, err := readKeepList(c.flags.plan, &c.model.Params)
		if err == nil && list.Merge != nil && c.flags.slice != "" {
			err = usagef("--slice-imatrix: keep-list %q merges experts: what was measured of experts says nothing about merged ones", c.flags.plan)
		}
		return []*trial{{list: list}}, err
	}
	list, err := c.scoreAll(ctx)
	if err != nil {
		return nil, err
	}
	opt := experts.Options{Flatten: list[0].flatten, MTP: c.defaultMTP(list)}
	opt.Keep, err = c.count(opt)
	if errors.Is(err, experts.ErrRefused) && c.flags.groups == groupsAuto && !opt.Flatten {
		if flat := slices.DeleteFunc(list, func(t *trial) bool { return !t.flatten }); len(flat) > 0 {
			c.notes = append(c.notes, fmt.Sprintf("groups cannot be kept: %v", err))
			list, opt.Flatten = flat, true
			opt.Keep, err = c.count(opt)
		}
	}
	if err != nil {
		return nil, c.groupHint(err, opt)
	}
	// All keep as many, so that they can be compared.
	for _, t := range list {
		opt.Flatten = t.flatten
		if t.list, err = c.choose(t.scores, opt); err != nil {
			return nil, err
		}
	}
	return list, nil
}

// scoreAll computes the scores of all rules and ways with groups to try.
func (c *choice) scoreAll(ctx context.Context) (list []*trial, err error) {
	for _, rule := range c.rules() {
		for _, flatten := range c.ways() {
			t := &trial{flatten: flatten}
			if t.scores, err = c.score(ctx, rule, flatten); err != nil {
				return nil, err
			}
			if !c.flags.protect {
				t.scores.Super = nil
			}
			list = append(list, t)
		}
	}
	return list, nil
}

// rules are those to try.
func (c *choice) rules() []string {
	if c.flags.rule != autoRule {
		return []string{c.flags.rule}
	}
	rules := []string{"reap", "reap_sum"}
	switch {
	case !lacksSample(c.stats):
		return append(rules, experts.GreedyRule)
	case c.stats.Measured(calib.LeaveOut):
		c.notes = append(c.notes, "rule greedy is not tried, but loo instead: the statistics have no sample of all texts (calibrate --sample)")
		return append(rules, "loo")
	}
	c.notes = append(c.notes, "rules greedy and loo are not tried: the statistics lack what they need (calibrate --sample, --loo)")
	return rules
}

// ways are those with groups to try: whether they are given up.
func (c *choice) ways() (flatten []bool) {
	switch {
	case c.flags.groups == groupsFlatten:
		return []bool{true}
	case c.flags.groups == groupsAuto && c.model.Params.ExpertGroups > 1:
		return []bool{false, true}
	}
	return []bool{false}
}

// count is the number of experts that stay; where it is searched for, the middle
// one of the possible numbers.
func (c *choice) count(opt experts.Options) (int, error) {
	p := &c.model.Params
	if c.flags.maxKLD > 0 {
		counts, err := c.counts(opt.Flatten)
		if err != nil {
			return 0, err
		}
		return counts[len(counts)/2], nil
	}
	target := experts.Target{Keep: c.flags.keep, Ratio: float64(c.flags.ratio), Size: int64(c.flags.size)}
	keep, err := target.Count(p, opt.Flatten, c.bytes(0, opt.MTP))
	if err == nil && keep == p.Experts {
		err = usagef("all %d experts of every block would stay", p.Experts)
	}
	return keep, err
}

// counts are the numbers of experts that the model can have, below its own.
func (c *choice) counts(flatten bool) (list []int, err error) {
	p := &c.model.Params
	for n := 1; n < p.Experts; n++ {
		if experts.CheckCount(p, n, flatten) == nil {
			list = append(list, n)
		}
	}
	if len(list) == 0 {
		return nil, experts.CheckCount(p, p.Experts-1, flatten)
	}
	return list, nil
}

// choose selects experts and says how.
func (c *choice) choose(s *experts.Scores, opt experts.Options) (*experts.KeepList, error) {
	k, err := experts.Select(s, &c.model.Params, opt)
	if err != nil {
		return nil, err
	}
	k.Provenance = experts.Provenance{
		Model: c.path, Rule: s.Rule, Weights: c.flags.weights, Statistics: orDefault(c.flags.stats, c.flags.imatrix), Tool: "winnow " + version,
	}
	switch {
	case s.Rule == experts.RandomRule:
		k.Seed = c.flags.seed
	case c.flags.combine == experts.CombineMax && s.Rule != experts.GreedyRule:
		k.Combine = c.flags.combine
	}
	return k, nil
}

// score computes the scores of a rule. Whether groups are kept or given up matters
// to greedy, which follows what routers do with the experts that are left; other
// rules score single experts.
func (c *choice) score(ctx context.Context, rule string, flatten bool) (s *experts.Scores, err error) {
	switch {
	case rule == experts.GreedyRule && c.stats != nil:
		return c.greedyScore(ctx, flatten)
	case rule == experts.RandomRule:
		return c.randomScore()
	case c.flags.imatrix != "":
		if c.matrix == nil {
			c.matrix, err = c.imatrixScore(ctx, rule)
		}
		return c.matrix, err
	case c.flags.combine == experts.CombineMax:
		s, err = experts.ScoreMax(c.stats, rule, c.flags.weights)
	default:
		s, err = experts.Score(c.stats, rule, c.flags.weights)
	}
	if err != nil {
		return nil, fmt.Errorf("%s: %w", c.flags.stats, err)
	}
	return s, nil
}

// greedyScore takes the experts of every block out one by one, by the sample in
// the statistics and the weights of the model. What all ways with groups need of
// a block is computed once.
func (c *choice) greedyScore(ctx context.Context, flatten bool) (*experts.Scores, error) {
	if c.greedy != nil {
		return c.greedy[flatten], nil
	}
	super, err := c.superExperts()
	if err != nil {
		return nil, err
	}
	m, err := c.ev.model()
	if err != nil {
		return nil, err
	}
	s, err := c.ev.app.openSampling(c, m.model)
	if err != nil {
		return nil, err
	}
	ways, found := c.ways(), map[bool]map[int]experts.Removal{false: {}, true: {}}
	err = s.each(ctx, "taking experts out", c.sampledBlocks(), func(l int, b []*engine.Sampled) error {
		list, err := b[0].Greedy(ctx, c.removals(l, ways, super)...)
		for i, g := range list {
			found[ways[i]][l] = experts.Removal(*g)
		}
		return err
	})
	if err != nil {
		return nil, err
	}
	c.greedy = map[bool]*experts.Scores{}
	for _, flatten := range ways {
		c.greedy[flatten] = experts.Greedy(&c.model.Params, found[flatten])
		c.greedy[flatten].Super = super
	}
	return c.greedy[flatten], nil
}

// removals ask for the orders in which the experts of a block go, one for each way
// with groups, down to the fewest that the model can have.
func (c *choice) removals(l int, ways []bool, super []experts.Expert) (options []engine.GreedyOptions) {
	var stay []int
	for _, e := range super {
		if e.Block == l {
			stay = append(stay, e.Expert)
		}
	}
	for _, flatten := range ways {
		keep := experts.Smallest(&c.model.Params, flatten)
		if keep == 0 {
			keep = c.model.Params.Experts // none can go, which counting them says
		}
		options = append(options, engine.GreedyOptions{Keep: keep, Flatten: flatten, Protected: stay})
	}
	return options
}

// randomScore draws scores. Statistics, if there are any, say which experts to
// protect, so that the control differs from the rules in nothing else.
func (c *choice) randomScore() (s *experts.Scores, err error) {
	s = experts.Random(&c.model.Params, c.flags.seed)
	if c.stats != nil {
		s.Super, err = experts.SuperExperts(c.stats, c.flags.weights)
	}
	return s, err
}

func (c *choice) imatrixScore(ctx context.Context, rule string) (*experts.Scores, error) {
	matrix, err := calib.Read(c.flags.imatrix, calib.Options{})
	if err != nil {
		return nil, err
	}
	defer matrix.Close()
	view, _, err := openModel(c.path, c.ck)
	if err != nil {
		return nil, err
	}
	defer view.Close()
	s, err := experts.ImatrixScore(ctx, matrix, &c.model.Params, rule, convert.DownNorms(view))
	if err != nil {
		return nil, fmt.Errorf("%s: %w", c.flags.imatrix, err)
	}
	return s, nil
}

// defaultMTP prunes MTP blocks if scores are known of all, and else leaves them
// out, as the families' conversion may do anyway.
func (c *choice) defaultMTP(list []*trial) string {
	switch {
	case c.flags.mtp != "":
		return c.flags.mtp
	case c.model.Params.NextnLayers == 0 && c.model.AnnouncedMTP > 0:
		c.notes = append(c.notes, "multi-token prediction blocks are left out, as convert does (--mtp prune prunes them)")
		return experts.DropMTP
	case c.model.Params.NextnLayers == 0:
		return ""
	}
	for _, l := range experts.Blocks(&c.model.Params, experts.PruneMTP) {
		if slices.ContainsFunc(list, func(t *trial) bool { return t.scores.Blocks[l] == nil }) {
			c.notes = append(c.notes, "multi-token prediction blocks are left out: nothing is known of their experts")
			return experts.DropMTP
		}
	}
	return experts.PruneMTP
}

// groupHint says how a number that does not fit the groups can be had, where it can.
func (c *choice) groupHint(err error, opt experts.Options) error {
	p := &c.model.Params
	if opt.Flatten || p.ExpertGroups < 2 || !errors.Is(err, experts.ErrRefused) {
		return err
	}
	least, hint := experts.Smallest(p, false), "no smaller number keeps the groups"
	if least > 0 {
		hint = fmt.Sprintf("multiples of %d from %d on keep the groups", p.ExpertGroups, least)
	}
	opt.Flatten = true
	if _, alone := c.count(opt); alone == nil {
		hint += "; --groups flatten gives them up"
	} else if c.flags.size > 0 || c.flags.keep > p.Experts {
		return err // groups are not what is in the way
	}
	return &convert.HintError{Err: err, Hint: hint}
}
