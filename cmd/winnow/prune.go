package main

import (
	"bytes"
	"context"
	"fmt"
	"maps"
	"math"
	"slices"
	"strconv"
	"strings"

	"github.com/spf13/cobra"

	"github.com/winnow-moe/winnow/convert"
	"github.com/winnow-moe/winnow/convert/experts"
	"github.com/winnow-moe/winnow/engine"
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
	combine        string
	seed           uint64
	maxKLD         float64
	groups, mtp    string
	protect        bool
	plan, save     string
	out, slice     string
	page           string
	types          string
	pre            string
	texts, proof   []string // [NAME=]FILE
	merge          string
	anyModel       bool
	repair         bool
	evaluation     evaluationFlags
	dryRun, force  bool

	inputs []string // files that no output may replace
}

func newPruneCommand(a *app) *cobra.Command {
	flags := pruneFlags{}
	c := &cobra.Command{
		Use:   "prune MODEL --stats FILE --keep N|--ratio R|--max-kld X",
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

--text measures choices before anything is written, by routers that cannot
choose the experts that go: how far predictions diverge from the model's. It
should be text that was not calibrated on. With it the rule is chosen for the
model (--rule auto): the one of reap, reap_sum and greedy that diverges least,
loo instead of greedy without a sample (calibrate --sample); and so is the way
with groups (--groups auto). --max-kld finds the fewest experts
that diverge by no more; rule and groups are then chosen at the middle of the
possible numbers. Without --text the rule is reap, which suits unknown uses.

--verify measures what was chosen, and with --output what was written: how far
it is from the whole model, whether it predicts what that does without these
experts, and how often it repeats itself where it continues the texts. That is
done without a cache and suits small models; --generate 0 leaves it out.

--merge METHOD puts weighted means of experts in the place of those that stay,
and measures pruning to as many beside it, which is often better. --repair fits
the down projections of the experts that stay to what all of them put out; that
is kept if the model diverges less. Both need --text, and the sample of tokens
that calibrate keeps. Weights that they change are encoded anew.

Experts that the model falls apart without (super experts) always stay. Where
experts form groups each keeps as many, or --groups flatten makes them one.

MODEL is a GGUF file or a checkpoint folder. Sizes are those of its own types,
or of the types that it would be converted to (--type).

` + rulesHelp(),
		Example: `  winnow prune R1-Q8_0.gguf --stats r1.gguf --ratio 25% --dry-run
  winnow prune R1-Q8_0.gguf --stats r1.gguf --ratio 25% -o R1-192.gguf
  winnow prune DeepSeek-R1 --stats r1.gguf --weights code=.6,english=.4 \
      --type Q4_K_M --size 250GiB --save-plan coder.json
  winnow prune DeepSeek-R1 --plan coder.json --type Q4_K_M --dry-run
  winnow prune R1-Q8_0.gguf --stats r1.gguf --text code=held-out.txt \
      --max-kld 0.05 --verify code=test.txt -o R1-small.gguf
  winnow prune DeepSeek-R1 --stats r1.gguf --ratio 50% --text held-out.txt \
      --repair --type Q4_K_M --report r1.html -o R1-half.gguf`,
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
	c.Flags().BoolVar(&f.anyModel, "other-model", false, "take statistics of a model with other weights")
	c.Flags().StringVar(&f.imatrix, "from-imatrix", "", "`FILE` with an importance matrix instead")
	c.Flags().IntVar(&f.keep, "keep", 0, "`N` experts of every block stay")
	c.Flags().Var(&f.ratio, "ratio", "share `R` of the experts that goes, such as 25% or 0.25")
	c.Flags().Var(&f.size, "size", "as many experts stay as fit the `SIZE`, such as 90GiB")
	c.Flags().StringVar(&f.rule, "rule", "", "`RULE` of the scores, or auto (default "+experts.DefaultRule+", with --text auto, of importance matrices "+experts.ImatrixRules[0].Name+")")
	c.Flags().Float64Var(&f.maxKLD, "max-kld", 0, "as few experts stay as diverge by at most `X` on the --text")
	c.Flags().StringArrayVarP(&f.texts, "text", "f", nil, "measure choices on this `[NAME=]FILE`, may be repeated")
	c.Flags().StringArrayVar(&f.proof, "verify", nil, "measure the result on this `[NAME=]FILE`, may be repeated")
	f.evaluation.add(c)
	c.Flags().StringSliceVar(&f.shares, "weights", nil, "shares of the kinds of text: `NAME=SHARE,...` (default: every token alike)")
	c.Flags().StringVar(&f.combine, "combine", experts.CombineSum, "`sum|max`: kinds of text add up, or an expert's largest share in any counts")
	c.Flags().Uint64Var(&f.seed, "seed", 0, "`N` that random scores follow from")
	c.Flags().BoolVar(&f.protect, "protect", true, "keep super experts whatever their score")
	c.Flags().StringVar(&f.groups, "groups", "", "`equal|flatten|auto`: every group keeps as many experts, they become one, or the better of both (default equal, with --text auto)")
	c.Flags().StringVar(&f.merge, "merge", "", "merge experts into those that stay by this `METHOD`")
	c.Flags().BoolVar(&f.repair, "repair", false, "fit the down projections of the experts that stay to what the others did")
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
	c.RegisterFlagCompletionFunc("merge", cobra.FixedCompletions(mergeNames(), cobra.ShellCompDirectiveNoFileComp))
	c.RegisterFlagCompletionFunc("rule", cobra.FixedCompletions(ruleNames(), cobra.ShellCompDirectiveNoFileComp))
}

// ruleNames lists all rules.
func ruleNames() (names []string) {
	for _, r := range append(experts.Rules(), experts.ImatrixRules...) {
		names = append(names, r.Name)
	}
	return append(names, autoRule)
}

// rulesHelp is the part of the help that lists the rules.
func rulesHelp() string {
	rows := [][]string{}
	for _, r := range append(experts.Rules(), experts.ImatrixRules...) {
		rows = append(rows, []string{"  " + r.Name, r.What})
	}
	ways := [][]string{}
	for _, r := range experts.MergeRules() {
		ways = append(ways, []string{"  " + r.Name, r.What})
	}
	return "Rules, with the output f of an expert and c = gate·f what it adds to the\nblock's output y:\n" + strings.TrimRight(table("ll", rows), "\n") + "\n\nWays to merge:\n" + strings.TrimRight(table("ll", ways), "\n")
}

// check finds mistakes of the command line.
func (f *pruneFlags) check(c *cobra.Command, model string) (err error) {
	if f.weights, err = parseWeights(f.shares); err != nil {
		return err
	}
	if !f.dryRun && f.save == "" && f.out == "" && f.slice == "" && f.page == "" {
		return usagef("prune writes a model or a keep-list: --output OUT, --save-plan FILE, or --dry-run to look at the choice (--report FILE: as a page)")
	}
	if err := f.checkFiles(model); err != nil {
		return err
	}
	if f.slice != "" && f.stats == "" && f.imatrix == "" {
		return usagef("--slice-imatrix needs what to slice: --stats or --from-imatrix")
	}
	switch {
	case f.weights != nil && f.stats == "":
		return usagef("--weights need --stats")
	case f.weights != nil && !slices.ContainsFunc(slices.Collect(maps.Values(f.weights)), func(w float64) bool { return w > 0 }):
		return usagef("--weights add up to 0, want a positive number")
	case c.Flags().Changed("keep") && f.keep < 1:
		return usagef("--keep is %d, want at least 1", f.keep)
	case f.groups != "" && f.groups != groupsEqual && f.groups != groupsFlatten && f.groups != groupsAuto:
		return usagef("--groups is %q, want equal, flatten or auto", f.groups)
	case f.mtp != "" && f.mtp != experts.DropMTP && f.mtp != experts.PruneMTP:
		return usagef("--mtp is %q, want drop or prune", f.mtp)
	case f.combine != experts.CombineSum && f.combine != experts.CombineMax:
		return usagef("--combine is %q, want sum or max", f.combine)
	}
	if err := f.checkTexts(c); err != nil {
		return err
	}
	if f.plan != "" {
		return f.checkPlan(c)
	}
	targets := 0
	for _, name := range []string{"keep", "ratio", "size", "max-kld"} {
		if c.Flags().Changed(name) {
			targets++
		}
	}
	if targets != 1 {
		return usagef("prune needs one of --keep N, --ratio R, --size SIZE and --max-kld X")
	}
	return f.checkScores()
}

// checkTexts sees that there are texts for what needs them.
func (f *pruneFlags) checkTexts(c *cobra.Command) error {
	switch {
	case c.Flags().Changed("max-kld") && !(f.maxKLD > 0 && f.maxKLD <= math.MaxFloat64):
		return usagef("--max-kld is %g, want a positive number", f.maxKLD)
	case len(f.texts) == 0 && (f.maxKLD > 0 || f.rule == autoRule || f.groups == groupsAuto):
		return usagef("--max-kld, --rule auto and --groups auto measure choices: --text FILE, another one than those calibrated on")
	case len(f.texts) == 0 && (f.merge != "" || f.repair):
		return usagef("--merge and --repair are measured beside what they are to be better than: --text FILE, another one than those calibrated on")
	case f.stats == "" && (f.merge != "" || f.repair):
		return usagef("--merge and --repair need --stats")
	case f.merge != "" && !slices.Contains(mergeNames(), f.merge):
		return usagef("--merge is %q, want one of %s", f.merge, strings.Join(mergeNames(), ", "))
	case f.mtp == experts.PruneMTP && f.merge != "":
		return usagef("--mtp prune and --merge exclude each other: merging leaves multi-token prediction blocks out")
	case f.slice != "" && f.merge != "":
		return usagef("--slice-imatrix and --merge exclude each other: what was measured of experts says nothing about merged ones")
	case slices.ContainsFunc(f.texts, standardInput) && slices.ContainsFunc(f.proof, standardInput):
		return usagef("standard input can be read for one text only, got --text and --verify")
	case len(f.proof) == 0 && (c.Flags().Changed("prompts") || c.Flags().Changed("generate")):
		return usagef("--prompts and --generate are for --verify")
	}
	return f.evaluation.check()
}

// standardInput reports whether a text is read from there.
func standardInput(text string) bool { return text == "-" || strings.HasSuffix(text, "=-") }

// checkPlan refuses what a keep-list has decided already.
func (f *pruneFlags) checkPlan(c *cobra.Command) error {
	for _, name := range []string{"keep", "ratio", "size", "max-kld", "rule", "combine", "from-imatrix", "seed", "groups", "mtp", "protect", "merge", "save-plan"} {
		if c.Flags().Changed(name) && (name != "from-imatrix" || f.slice == "") {
			return usagef("--plan and --%s exclude each other: the keep-list has decided", name)
		}
	}
	return nil
}

// checkScores sees that there is one source of scores, and fills in the rule and
// the way with groups.
func (f *pruneFlags) checkScores() error {
	switch {
	case f.stats != "" && f.imatrix != "":
		return usagef("--stats and --from-imatrix exclude each other")
	case f.combine == experts.CombineMax && f.stats == "":
		return usagef("--combine max needs --stats")
	case (f.rule == autoRule || f.rule == experts.GreedyRule) && f.stats == "":
		return usagef("--rule %s needs --stats", f.rule)
	case f.rule == experts.GreedyRule && f.combine == experts.CombineMax:
		return usagef("--rule greedy goes by all texts together, without --combine max")
	case f.imatrix != "":
		f.rule = orDefault(f.rule, experts.ImatrixRules[0].Name)
	case f.stats == "" && f.rule != experts.RandomRule:
		return usagef("prune needs scores: --stats FILE of calibrate, --from-imatrix FILE, or --rule %s", experts.RandomRule)
	}
	rule, groups := experts.DefaultRule, groupsEqual
	if len(f.texts) > 0 {
		rule, groups = autoRule, groupsAuto
	}
	f.rule, f.groups = orDefault(f.rule, rule), orDefault(f.groups, groups)
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
	c := &choice{prunable: m, flags: flags}
	if err := c.checkOutput(); err != nil {
		return err
	}
	if flags.stats != "" {
		if err := c.openStatistics(ctx); err != nil {
			return err
		}
		defer c.stats.Close()
	}
	if c.ev, err = a.openEvaluation(c); err != nil {
		return err
	}
	defer c.ev.close()
	if err := a.makeChoice(ctx, c); err != nil {
		return err
	}
	report, err := c.report()
	if err != nil {
		return err
	}
	if !flags.dryRun {
		if err := a.write(ctx, c, report); err != nil {
			return err
		}
	}
	if len(flags.proof) > 0 {
		if report.Proofs, err = a.prove(ctx, c); err != nil {
			return err
		}
	}
	if flags.page != "" && !flags.dryRun {
		if err := c.writeHTML(report, flags.page); err != nil {
			return err
		}
	}
	if err := a.printPrune(report, c); err != nil {
		return err
	}
	return checkProofs(report.Proofs, engine.Compute(flags.evaluation.compute))
}

// write writes the keep-list and the models.
func (a *app) write(ctx context.Context, c *choice, r *pruneReport) (err error) {
	if c.flags.save != "" {
		if err := saveKeepList(c.list, c.flags.save); err != nil {
			return err
		}
	}
	if c.written, err = a.apply(ctx, c); err != nil {
		return err
	}
	for _, o := range c.written {
		r.Outputs = append(r.Outputs, o.path)
	}
	return nil
}

// makeChoice makes the choice, and what the flags ask for of it.
func (a *app) makeChoice(ctx context.Context, c *choice) error {
	err := a.decide(ctx, c)
	if err == nil && c.flags.merge != "" {
		err = a.merge(ctx, c)
	}
	if err == nil && c.flags.repair {
		err = a.repair(ctx, c)
	}
	return err
}

// openStatistics reads statistics of the model.
func (c *choice) openStatistics(ctx context.Context) (err error) {
	if c.stats, err = calib.ReadStatistics(c.flags.stats); err != nil {
		return err
	}
	if err = experts.CheckStatistics(c.stats, &c.model.Params, c.without()); err == nil && !c.flags.anyModel {
		err = c.checkRouters(ctx)
	}
	if err == nil {
		if _, err = c.stats.Factors(c.flags.weights); err != nil {
			err = &convert.HintError{Err: err, Hint: "--weights NAME=SHARE,... takes kinds of text that were measured"}
		}
	}
	if err != nil {
		c.stats.Close()
		return fmt.Errorf("%s: %w", c.flags.stats, err)
	}
	return nil
}

// checkRouters sees that statistics were measured on this very model, whatever it
// was quantized to.
func (c *choice) checkRouters(ctx context.Context) error {
	m, _, err := openModel(c.path, c.ck)
	if err != nil {
		return err
	}
	defer m.Close()
	digests, err := routerDigests(ctx, m)
	if err != nil {
		return err
	}
	if err := experts.CheckRouters(c.stats, digests); err != nil {
		return &convert.HintError{Err: err, Hint: "--other-model takes them, as for a model that was trained further"}
	}
	return nil
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
