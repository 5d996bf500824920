package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"strconv"
	"strings"

	"github.com/spf13/cobra"

	"github.com/winnow-moe/winnow/convert"
	"github.com/winnow-moe/winnow/convert/experts"
	"github.com/winnow-moe/winnow/formats/arch"
	"github.com/winnow-moe/winnow/formats/calib"
	"github.com/winnow-moe/winnow/formats/durable"
)

// pruneFlags are the settings of prune.
type pruneFlags struct {
	stats, imatrix string
	keep           int
	ratio          shareValue
	size           sizeValue
	rule           string
	shares         []string
	weights        calib.Weights
	seed           uint64
	groups, mtp    string
	protect        bool
	plan, save     string
	out, slice     string
	page           string
	types          string
	pre            string
	dryRun, force  bool
}

func newPruneCommand(a *app) *cobra.Command {
	flags := pruneFlags{}
	c := &cobra.Command{
		Use:   "prune MODEL --stats FILE --keep N|--ratio R|--size SIZE",
		Short: "Take experts out of a mixture",
		Long: `Choose the experts that stay when a mixture of experts is pruned, as many in
every block, and write the model that is left (--output), a keep-list
(--save-plan), which is a JSON file that can be edited and used again (--plan),
or both. perplexity --experts measures a keep-list before a model is written,
and --report writes a page about it.

A GGUF file becomes a GGUF file, of which every block that stays keeps its
bytes, unless --type asks for other types; a checkpoint folder becomes a folder
in the same form, or with --type GGUF files.

The scores come from what calibrate measured (--stats). Texts of several kinds
can be weighed anew: --weights code=.6,english=.4 makes them count as if those
were their shares of all tokens. Without a calibration the importance matrix
that most published GGUF files come with will do (--from-imatrix), which takes
reading the experts' down projections.

Experts that the model falls apart without (super experts) always stay. Where
experts form groups each keeps as many, or --groups flatten makes them one.

MODEL is a GGUF file or a checkpoint folder. Sizes are those of its own types,
or of the types that it would be converted to (--type).

` + rulesHelp(),
		Example: `  winnow prune R1-Q8_0.gguf --stats r1.gguf --ratio 25% --dry-run
  winnow prune R1-Q8_0.gguf --stats r1.gguf --ratio 25% -o R1-192.gguf
  winnow prune DeepSeek-R1 --stats r1.gguf --weights code=.6,english=.4 \
      --type Q4_K_M --size 250GiB --save-plan coder.json
  winnow prune DeepSeek-R1 --plan coder.json --type Q4_K_M --dry-run`,
		Args: args(cobra.ExactArgs(1)),
		RunE: func(cmd *cobra.Command, pos []string) error {
			if err := flags.check(cmd, pos[0]); err != nil {
				return err
			}
			return a.prune(cmd.Context(), pos[0], &flags)
		},
	}
	flags.add(c)
	return c
}

func (f *pruneFlags) add(c *cobra.Command) {
	c.Flags().StringVar(&f.stats, "stats", "", "`FILE` of statistics that calibrate wrote")
	c.Flags().StringVar(&f.imatrix, "from-imatrix", "", "`FILE` with an importance matrix instead")
	c.Flags().IntVar(&f.keep, "keep", 0, "`N` experts of every block stay")
	c.Flags().Var(&f.ratio, "ratio", "share `R` of the experts that goes, such as 25% or 0.25")
	c.Flags().Var(&f.size, "size", "as many experts stay as fit the `SIZE`, such as 90GiB")
	c.Flags().StringVar(&f.rule, "rule", "", "`RULE` of the scores (default "+experts.DefaultRule+", of importance matrices "+experts.ImatrixRules[0].Name+")")
	c.Flags().StringSliceVar(&f.shares, "weights", nil, "shares of the kinds of text: `NAME=SHARE,...` (default: every token alike)")
	c.Flags().Uint64Var(&f.seed, "seed", 0, "`N` that random scores follow from")
	c.Flags().BoolVar(&f.protect, "protect", true, "keep super experts whatever their score")
	c.Flags().StringVar(&f.groups, "groups", "equal", "`equal|flatten`: every group keeps as many experts, or they become one")
	c.Flags().StringVar(&f.mtp, "mtp", "", "multi-token prediction blocks: `drop|prune` them (default: prune if they were measured)")
	c.Flags().StringVar(&f.plan, "plan", "", "check and show the keep-list in `FILE` instead")
	c.Flags().StringVarP(&f.out, "output", "o", "", "write the pruned model to `OUT`, a file, a folder, or a name with {type} in it")
	c.Flags().StringVar(&f.slice, "slice-imatrix", "", "write what --stats or --from-imatrix has of the experts that stay to `FILE`")
	c.Flags().StringVar(&f.save, "save-plan", "", "write the keep-list to `FILE`")
	c.Flags().StringVar(&f.page, "report", "", "write a page (HTML) about the choice to `FILE`")
	c.Flags().StringVar(&f.types, "type", "", "`TYPE` of the output and of sizes, or several (default: as the model is)")
	c.Flags().StringVar(&f.pre, "pre", "", "`NAME` of the pre-tokenizer if it is not recognised")
	c.Flags().BoolVar(&f.dryRun, "dry-run", false, "print the choice and write nothing")
	c.Flags().BoolVar(&f.force, "force", false, "replace existing outputs")
	c.RegisterFlagCompletionFunc("type", completeTypes)
	c.RegisterFlagCompletionFunc("rule", cobra.FixedCompletions(ruleNames(), cobra.ShellCompDirectiveNoFileComp))
}

// ruleNames lists all rules.
func ruleNames() (names []string) {
	for _, r := range append(experts.Rules(), experts.ImatrixRules...) {
		names = append(names, r.Name)
	}
	return names
}

// rulesHelp is the part of the help that lists the rules.
func rulesHelp() string {
	rows := [][]string{}
	for _, r := range append(experts.Rules(), experts.ImatrixRules...) {
		rows = append(rows, []string{"  " + r.Name, r.What})
	}
	return "Rules, with the output f of an expert and c = gate·f what it adds to the\nblock's output y:\n" + strings.TrimRight(table("ll", rows), "\n")
}

// check finds mistakes of the command line.
func (f *pruneFlags) check(c *cobra.Command, model string) (err error) {
	if f.weights, err = parseWeights(f.shares); err != nil {
		return err
	}
	if !f.dryRun && f.save == "" && f.out == "" && f.slice == "" && f.page == "" {
		return usagef("prune writes a model or a keep-list: --output OUT, --save-plan FILE, or --dry-run to look at the choice (--report FILE: as a page)")
	}
	if err := f.checkPage(model); err != nil {
		return err
	}
	for _, out := range []string{f.out, f.slice} {
		if out != "" && !f.dryRun && !strings.Contains(out, "{") && !isDir(out) {
			if err := checkOutput(out, []string{model, f.stats, f.imatrix, f.plan}, f.force); err != nil {
				return err
			}
		}
	}
	if f.slice != "" && f.stats == "" && f.imatrix == "" {
		return usagef("--slice-imatrix needs what to slice: --stats or --from-imatrix")
	}
	targets := 0
	for _, name := range []string{"keep", "ratio", "size"} {
		if c.Flags().Changed(name) {
			targets++
		}
	}
	switch {
	case c.Flags().Changed("keep") && f.keep < 1:
		return usagef("--keep is %d, want at least 1", f.keep)
	case f.groups != "equal" && f.groups != "flatten":
		return usagef("--groups is %q, want equal or flatten", f.groups)
	case f.mtp != "" && f.mtp != experts.DropMTP && f.mtp != experts.PruneMTP:
		return usagef("--mtp is %q, want drop or prune", f.mtp)
	case f.plan != "":
		return f.checkPlan(c)
	case targets != 1:
		return usagef("prune needs one of --keep N, --ratio R and --size SIZE")
	}
	if err := f.checkScores(); err != nil || f.save == "" || f.dryRun {
		return err
	}
	return checkOutput(f.save, []string{model, f.stats, f.imatrix}, f.force)
}

// checkPlan refuses what a keep-list has decided already.
func (f *pruneFlags) checkPlan(c *cobra.Command) error {
	for _, name := range []string{"keep", "ratio", "size", "rule", "from-imatrix", "seed", "groups", "mtp", "protect", "save-plan"} {
		if c.Flags().Changed(name) && (name != "from-imatrix" || f.slice == "") {
			return usagef("--plan and --%s exclude each other: the keep-list has decided", name)
		}
	}
	return nil
}

// checkScores sees that there is one source of scores.
func (f *pruneFlags) checkScores() error {
	switch {
	case f.stats != "" && f.imatrix != "":
		return usagef("--stats and --from-imatrix exclude each other")
	case f.weights != nil && f.stats == "":
		return usagef("--weights need --stats")
	case f.imatrix != "":
		f.rule = orDefault(f.rule, experts.ImatrixRules[0].Name)
	case f.stats == "" && f.rule != experts.RandomRule:
		return usagef("prune needs scores: --stats FILE of calibrate, --from-imatrix FILE, or --rule %s", experts.RandomRule)
	}
	f.rule = orDefault(f.rule, experts.DefaultRule)
	return nil
}

func orDefault(s, def string) string {
	if s == "" {
		return def
	}
	return s
}

// prune chooses experts, or checks a choice, and reports it.
func (a *app) prune(ctx context.Context, path string, flags *pruneFlags) error {
	m, err := openPrunable(path, flags)
	if err != nil {
		return err
	}
	defer m.close()
	var stats *calib.Statistics
	if flags.stats != "" {
		if stats, err = calib.ReadStatistics(flags.stats); err != nil {
			return err
		}
		defer stats.Close()
		if err := experts.CheckStatistics(stats, &m.model.Params); err != nil {
			return fmt.Errorf("%s: %w", flags.stats, err)
		}
	}
	c := &choice{prunable: m, flags: flags, stats: stats}
	if err := c.decide(ctx); err != nil {
		return err
	}
	report, err := c.report()
	if err != nil {
		return err
	}
	if !flags.dryRun {
		if flags.save != "" {
			if err := saveKeepList(c.list, flags.save); err != nil {
				return err
			}
		}
		if err := a.apply(ctx, c); err != nil {
			return err
		}
		if flags.page != "" {
			if err := c.writeHTML(report, flags.page); err != nil {
				return err
			}
		}
	}
	return a.printPrune(report, c)
}

// choice is a keep-list with what led to it.
type choice struct {
	*prunable
	flags  *pruneFlags
	stats  *calib.Statistics // may be nil
	scores *experts.Scores   // nil for keep-lists that were read
	list   *experts.KeepList
	notes  []string
}

// decide reads the keep-list or makes it.
func (c *choice) decide(ctx context.Context) (err error) {
	p := &c.model.Params
	if c.flags.plan != "" {
		c.list, err = readKeepList(c.flags.plan, p)
		return err
	}
	if c.scores, err = c.score(ctx); err != nil {
		return err
	}
	if !c.flags.protect {
		c.scores.Super = nil
	}
	opt := experts.Options{Flatten: c.flags.groups == "flatten", MTP: c.flags.mtp}
	if opt.MTP == "" {
		opt.MTP = c.defaultMTP()
	}
	target := experts.Target{Keep: c.flags.keep, Ratio: float64(c.flags.ratio), Size: int64(c.flags.size)}
	if opt.Keep, err = target.Count(p, opt.Flatten, c.bytes(0, opt.MTP)); err == nil && opt.Keep == p.Experts {
		err = usagef("all %d experts of every block would stay", p.Experts)
	}
	if err != nil {
		return groupHint(err, p, opt.Flatten)
	}
	if c.list, err = experts.Select(c.scores, p, opt); err != nil {
		return err
	}
	c.list.Provenance = experts.Provenance{
		Model: c.path, Rule: c.scores.Rule, Weights: c.flags.weights, Statistics: orDefault(c.flags.stats, c.flags.imatrix), Tool: "winnow " + version,
	}
	if c.scores.Rule == experts.RandomRule {
		c.list.Seed = c.flags.seed
	}
	return nil
}

// score computes the scores that the flags ask for.
func (c *choice) score(ctx context.Context) (*experts.Scores, error) {
	switch {
	case c.flags.rule == experts.RandomRule:
		return c.randomScore()
	case c.flags.imatrix != "":
		return c.imatrixScore(ctx)
	}
	s, err := experts.Score(c.stats, c.flags.rule, c.flags.weights)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", c.flags.stats, err)
	}
	return s, nil
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

func (c *choice) imatrixScore(ctx context.Context) (*experts.Scores, error) {
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
	s, err := experts.ImatrixScore(ctx, matrix, &c.model.Params, c.flags.rule, convert.DownNorms(view))
	if err != nil {
		return nil, fmt.Errorf("%s: %w", c.flags.imatrix, err)
	}
	return s, nil
}

// defaultMTP prunes MTP blocks if scores are known of all, and else leaves them
// out, as the families' conversion may do anyway.
func (c *choice) defaultMTP() string {
	switch {
	case c.model.Params.NextnLayers == 0 && c.model.AnnouncedMTP > 0:
		c.notes = append(c.notes, "multi-token prediction blocks are left out, as convert does (--mtp prune prunes them)")
		return experts.DropMTP
	case c.model.Params.NextnLayers == 0:
		return ""
	}
	for _, l := range experts.Blocks(&c.model.Params, experts.PruneMTP) {
		if c.scores.Blocks[l] == nil {
			c.notes = append(c.notes, "multi-token prediction blocks are left out: nothing is known of their experts")
			return experts.DropMTP
		}
	}
	return experts.PruneMTP
}

// groupHint says how a number that does not fit the groups can be had.
func groupHint(err error, p *arch.Params, flatten bool) error {
	if flatten || p.ExpertGroups < 2 || !errors.Is(err, experts.ErrRefused) {
		return err
	}
	hint := "no smaller number keeps the groups; --groups flatten gives them up"
	if least := experts.Smallest(p, false); least > 0 {
		hint = fmt.Sprintf("multiples of %d from %d on keep the groups; --groups flatten gives them up", p.ExpertGroups, least)
	}
	return &convert.HintError{Err: err, Hint: hint}
}

// saveKeepList writes a keep-list whole or not at all.
func saveKeepList(k *experts.KeepList, path string) error {
	var b bytes.Buffer
	if err := k.Write(&b); err != nil {
		return err
	}
	return durable.WriteBytes(path, b.Bytes())
}

// shareValue is a flag for a share, written as 25% or 0.25.
type shareValue float64

// Set implements pflag.Value.
func (v *shareValue) Set(s string) error {
	num, percent := strings.CutSuffix(strings.TrimSpace(s), "%")
	f, err := strconv.ParseFloat(strings.TrimSpace(num), 64)
	if percent {
		f /= 100
	}
	if err != nil || !(f > 0 && f < 1) {
		return usagef("%q is not a share such as 25%% or 0.25, more than nothing and less than all", s)
	}
	*v = shareValue(f)
	return nil
}

// String implements pflag.Value.
func (v *shareValue) String() string {
	if *v == 0 {
		return ""
	}
	return strconv.FormatFloat(float64(*v), 'g', -1, 64)
}

// Type implements pflag.Value.
func (v *shareValue) Type() string { return "R" }
