package main

import (
	"cmp"
	"context"
	"fmt"
	"maps"
	"slices"
	"strconv"
	"strings"

	"github.com/spf13/cobra"
	"github.com/winnow-moe/winnow/convert/experts"
	"github.com/winnow-moe/winnow/engine"
	"github.com/winnow-moe/winnow/formats/arch"
	"github.com/winnow-moe/winnow/formats/calib"
	"github.com/winnow-moe/winnow/formats/gguf"
	"github.com/winnow-moe/winnow/formats/tokenizer"
	"github.com/winnow-moe/winnow/verify"
)

// calibrateFlags are the settings of a calibration.
type calibrateFlags struct {
	scoreFlags
	texts       []string
	from        int
	out, format string
	minTokens   int64
	sample      int
	loo, output bool
	force       bool
}

func newCalibrateCommand(a *app) *cobra.Command {
	var flags calibrateFlags
	c := &cobra.Command{
		Use:   "calibrate MODEL --text [NAME=]FILE... -o FILE",
		Short: "Importance matrix and expert statistics from texts",
		Long: `Run texts through a model and write what its weights see: an importance matrix
as llama-imatrix makes it, which quantize and llama-quantize take (--imatrix),
and in the same file how often, how strongly and together with which others
each expert is used, and what would be missing without it, for every NAME of
texts.

A text is tokenized once and cut into windows of --ctx tokens without overlap;
if the vocabulary adds a BOS token it replaces the first of every window; all
tokens count. MODEL is a GGUF file of any type or a checkpoint folder.
Multi-token prediction blocks are measured, too, if it has them (--mtp keep).

Sums are exact: runs over parts of the texts, merged, give the file of one run.
--max-memory and --checkpoint are those of perplexity.`,
		Example: `  winnow calibrate R1-Q8_0.gguf --text code=go.txt --text wiki.txt -o r1.gguf
  winnow calibrate merge a.gguf b.gguf -o both.gguf
  winnow inspect r1.gguf`,
		Args: args(cobra.ExactArgs(1)),
		RunE: func(cmd *cobra.Command, pos []string) error {
			if err := flags.check(pos); err != nil {
				return err
			}
			return a.calibrate(cmd.Context(), pos[0], &flags)
		},
	}
	c.Flags().StringArrayVarP(&flags.texts, "text", "f", nil, "a text, .gz or .zst too, and what kind it is: `[NAME=]FILE`, repeatable")
	c.Flags().StringVarP(&flags.out, "output", "o", "", "the `FILE` to write")
	c.Flags().StringVar(&flags.format, "output-format", "gguf", "`gguf|dat`; dat is the older form of an importance matrix and has nothing else")
	c.Flags().BoolVar(&flags.force, "force", false, "replace an existing output")
	c.Flags().IntVarP(&flags.ctx, "ctx", "c", verify.DefaultCtx, "`N` tokens per window")
	c.Flags().IntVar(&flags.chunks, "chunks", 0, "`N` windows of each text (0: all)")
	c.Flags().IntVar(&flags.from, "from-chunk", 0, "`N` windows of each text to leave out first")
	c.Flags().Int64Var(&flags.minTokens, "min-expert-tokens", 1, "warn of experts that saw fewer than `N` tokens")
	flags.computeFlag(c)
	c.Flags().BoolVar(&flags.loo, "loo", true, "measure what a block lacks without each expert (leave one out), which takes one more expert per token")
	c.Flags().IntVar(&flags.sample, "sample", -1, "keep what goes into experts of `N` tokens of each window, for greedy choices, merging and repair (-1: as much as 512 MiB hold, 4 of each window)")
	c.Flags().BoolVar(&flags.output, "process-output", false, "output.weight too, if the model has one")
	flags.addRun(c)
	checkpointFlags(c, &flags.ck)
	c.AddCommand(newMergeCommand(a))
	return c
}

func (f *calibrateFlags) check(pos []string) error {
	switch {
	case len(f.texts) == 0:
		return usagef("calibrate needs a text: --text FILE")
	case f.out == "":
		return usagef("calibrate needs an output: -o FILE")
	case f.format != "gguf" && f.format != "dat":
		return usagef("--output-format is %q, want gguf or dat", f.format)
	case f.sample < -1:
		return usagef("--sample is %d, want a number of tokens, or -1", f.sample)
	case f.from < 0:
		return usagef("--from-chunk is %d, want a positive number, or 0 for all", f.from)
	}
	if err := f.scoreFlags.check(); err != nil {
		return err
	}
	inputs := pos
	for _, t := range f.texts {
		_, path := splitText(t)
		inputs = append(inputs[:len(inputs):len(inputs)], path)
	}
	if err := f.checkCheckpoint(inputs, f.out); err != nil {
		return err
	}
	return checkOutput(f.out, inputs, f.force)
}

// What samples take at most unless they are asked for, but for one token of every
// window.
const (
	windowSample = 4 << 20 // bytes of a window
	wholeSample  = 512 << 20
)

// sampleTokens returns how many tokens of a window are sampled.
func (f *calibrateFlags) sampleTokens(p *arch.Params, texts []calibrationText) int {
	if f.sample >= 0 {
		return f.sample
	}
	windows := 0
	for _, t := range texts {
		windows += len(t.windows)
	}
	return max(1, min(windowSample, wholeSample/max(1, windows))/max(1, sampledBytes(p)))
}

// sampledBytes is what the sample of a token takes in all blocks.
func sampledBytes(p *arch.Params) int {
	return 4 * (p.Embed + p.Experts) * len(experts.Blocks(p, experts.PruneMTP))
}

// splitText returns the kind of text and the file of a --text flag.
func splitText(s string) (name, path string) {
	if name, path, ok := strings.Cut(s, "="); ok && name != "" && !strings.ContainsAny(name, `/\`) {
		return name, path
	}
	return "default", s
}

// observer passes what the engine tells on to the domain at hand.
type observer struct{ *calib.Domain }

func (a *app) calibrate(ctx context.Context, path string, flags *calibrateFlags) error {
	watch := &observer{}
	m, err := a.openEngine(path, &flags.scoreFlags, engine.Options{Observer: watch, LeaveOneOut: flags.loo, ObserveOutput: flags.output})
	if err != nil {
		return err
	}
	defer m.model.Close()
	texts, err := m.windows(flags)
	if err != nil {
		return err
	}
	m.options.Sampler, m.options.SampleTokens = watch, flags.sampleTokens(m.engine.Params(), texts)
	if flags.output && !slices.ContainsFunc(m.model.Tensors(), func(t gguf.TensorInfo) bool { return t.Name == "output.weight" }) {
		a.warn([]string{"the model has no output.weight, its embedding takes that part: --process-output adds nothing"})
	}
	stats := &calib.Statistics{ChunkSize: flags.ctx}
	if stats.Routers, err = routerDigests(ctx, m.model); err != nil {
		return &inputError{fmt.Errorf("%s: %w", path, err)}
	}
	for _, t := range texts {
		stats.Domain(t.name)
	}
	if err := a.observe(ctx, m, texts, stats, watch, &flags.scoreFlags); err != nil {
		return err
	}
	if err := writeStatistics(stats, flags.out, flags.format, nil); err != nil {
		return err
	}
	if err := a.reportCalibration(stats, m, flags.minTokens); err != nil {
		return err
	}
	return flags.finished()
}

// observe runs texts through a model, whose observer adds to the statistics of
// their domains.
func (a *app) observe(ctx context.Context, m *scored, texts []calibrationText, stats *calib.Statistics, watch *observer, flags *scoreFlags) error {
	all := &verify.Text{}
	for _, t := range texts {
		all.Windows = append(all.Windows, t.windows...)
		all.Parts = append(all.Parts, verify.Part{Name: t.name, Windows: len(t.windows)})
	}
	f, err := flags.memoryFit(observingNeeds(m, all, len(stats.Domains)))
	if err != nil {
		return err
	}
	if err := f.apply(m); err != nil {
		return err
	}
	keep, err := flags.keep(ctx, "calibrate", all, []*scored{m},
		verify.Fact{Name: "--loo", Value: strconv.FormatBool(m.options.LeaveOneOut)},
		verify.Fact{Name: "--process-output", Value: strconv.FormatBool(m.options.ObserveOutput)},
		verify.Fact{Name: "--sample", Value: strconv.Itoa(m.options.SampleTokens)})
	if err != nil {
		return err
	}
	if keep != nil {
		keep.Sums = keptStatistics{stats}
	}
	t := a.follow("calibrating", all, false, m)
	defer t.finish()
	opt := verify.Options{BatchTokens: f.batch, Checkpoint: keep, Window: func(done, _ int, _ verify.Running) { t.window(done, "") }}
	err = verify.Observe(ctx, m.engine, all, opt, func(part int) {
		watch.Domain = stats.Domain(texts[part].name)
		watch.AddDataset(texts[part].path)
	}, func(windows int) { watch.Chunks += int64(windows) })
	if err != nil {
		return flags.stopped(&inputError{err})
	}
	return nil
}

// calibrationText is a text cut into windows.
type calibrationText struct {
	name, path string
	windows    [][]int32
}

// windows cuts the texts.
func (m *scored) windows(flags *calibrateFlags) ([]calibrationText, error) {
	v, err := tokenizer.FromMetadata(m.model.Metadata())
	if err != nil {
		return nil, err
	}
	var out []calibrationText
	for _, text := range flags.texts {
		name, path := splitText(text)
		raw, err := readText(path)
		if err != nil {
			return nil, err
		}
		chunks := flags.chunks
		if chunks > 0 {
			chunks += flags.from
		}
		t, err := verify.Tokenize(v, raw, flags.ctx, chunks)
		if err != nil {
			return nil, &inputError{fmt.Errorf("%s: %w", path, err)}
		}
		if flags.from >= len(t.Windows) {
			return nil, usagef("--from-chunk %d leaves nothing of the %d windows of %q", flags.from, len(t.Windows), path)
		}
		out = append(out, calibrationText{name, path, t.Windows[flags.from:]})
	}
	return out, nil
}

func writeStatistics(s *calib.Statistics, path, format string, weights calib.Weights) error {
	if format == "gguf" {
		return s.WriteGGUF(path, weights)
	}
	m, err := s.Matrix(weights)
	if err != nil {
		return err
	}
	return m.WriteDat(path)
}

func newMergeCommand(a *app) *cobra.Command {
	var (
		out, format string
		shares      []string
		minTokens   int64
		force       bool
	)
	c := &cobra.Command{
		Use:   "merge FILE... -o FILE",
		Short: "Add files of calibrate up, or weigh their texts anew",
		Long: `Add up what calibrate measured in several runs. The sums are exact: the result
is that of one run over all texts. With --weights the importance matrix gives
every kind of text its share of the tokens, however long its texts are; the
statistics in the file stay sums, so it can be weighed again.`,
		Example: `  winnow calibrate merge a.gguf b.gguf -o both.gguf
  winnow calibrate merge stats.gguf --weights code=0.6,chat=0.4 -o coder.gguf`,
		Args: args(cobra.MinimumNArgs(1)),
		RunE: func(_ *cobra.Command, pos []string) error {
			weights, err := parseWeights(shares)
			switch {
			case err != nil:
				return err
			case out == "":
				return usagef("merge needs an output: -o FILE")
			case format != "gguf" && format != "dat":
				return usagef("--output-format is %q, want gguf or dat", format)
			}
			if err := checkOutput(out, pos, force); err != nil {
				return err
			}
			s, closeAll, err := mergeStatistics(pos)
			defer closeAll()
			if err != nil {
				return err
			}
			if err := writeStatistics(s, out, format, weights); err != nil {
				return err
			}
			return a.reportCalibration(s, nil, minTokens)
		},
	}
	c.Flags().StringVarP(&out, "output", "o", "", "the `FILE` to write")
	c.Flags().StringVar(&format, "output-format", "gguf", "`gguf|dat`")
	c.Flags().StringSliceVar(&shares, "weights", nil, "shares of the kinds of text in the importance matrix: `NAME=SHARE,...`")
	c.Flags().Int64Var(&minTokens, "min-expert-tokens", 1, "warn of experts that saw fewer than `N` tokens")
	c.Flags().BoolVar(&force, "force", false, "replace an existing output")
	return c
}

func parseWeights(list []string) (calib.Weights, error) {
	if len(list) == 0 {
		return nil, nil
	}
	w := calib.Weights{}
	for _, s := range list {
		name, share, ok := strings.Cut(s, "=")
		f, err := strconv.ParseFloat(share, 64)
		if !ok || err != nil || !(f >= 0) || f > 1e9 {
			return nil, usagef("--weights has %q, want NAME=SHARE with a share of 0 to 1e9", s)
		}
		if _, twice := w[name]; twice {
			return nil, usagef("--weights has %q twice", name)
		}
		w[name] = f
	}
	return w, nil
}

// mergeStatistics adds files up, which stay open until close is called.
func mergeStatistics(paths []string) (sum *calib.Statistics, closeAll func(), err error) {
	var all []*calib.Statistics
	closeAll = func() {
		for _, s := range all {
			s.Close()
		}
	}
	for _, p := range paths {
		s, err := calib.ReadStatistics(p)
		if err != nil {
			return nil, closeAll, err
		}
		all = append(all, s)
	}
	sum, err = calib.MergeStatistics(all...)
	return sum, closeAll, err
}

// calibrationReport is the result of calibrate in the form --json prints.
type calibrationReport struct {
	*calib.Coverage
	Uncovered []string `json:"uncovered_tensors"` // weights of blocks that nothing is known of
}

// reportCalibration prints what statistics cover, and warns of gaps. Without
// a model the weights it has are not known.
func (a *app) reportCalibration(s *calib.Statistics, m *scored, minTokens int64) error {
	c, err := s.Coverage(minTokens)
	if err != nil {
		return err
	}
	r := calibrationReport{c, []string{}}
	var gaps []string
	if m != nil {
		r.Uncovered = append(r.Uncovered, uncovered(s, m.model)...)
		gaps = explainGaps(r.Uncovered, m.engine.Idle)
	}
	if a.json {
		return a.printJSON(r)
	}
	a.printCoverage(c)
	a.warn(gaps)
	a.warn(fewTokens(c, minTokens))
	return nil
}

// uncovered lists the weights of blocks that were not measured.
func uncovered(s *calib.Statistics, m gguf.Model) (names []string) {
	for _, t := range m.Tensors() {
		matrix := len(t.Shape) > 1 && strings.HasPrefix(t.Name, "blk.") && strings.HasSuffix(t.Name, ".weight")
		switch arch.ParseName(t.Name).Role {
		case arch.NextnEmbd, arch.NextnSharedHead: // as the model's embedding and output weight
			continue
		}
		if matrix && !strings.Contains(t.Name, "conv1d") && !s.Covers(t.Name) {
			names = append(names, t.Name)
		}
	}
	return names
}

// explainGaps says block by block which weights were not measured and why.
func explainGaps(names []string, idle func(arch.Name) string) (warnings []string) {
	type gap struct {
		block  int
		reason string
	}
	weights := map[gap][]string{}
	for _, name := range names {
		n := arch.ParseName(name)
		g := gap{n.Layer, cmp.Or(idle(n), "no token went through")}
		weights[g] = append(weights[g], strings.TrimSuffix(strings.TrimPrefix(name, fmt.Sprintf("blk.%d.", n.Layer)), ".weight"))
	}
	gaps := slices.SortedFunc(maps.Keys(weights), func(a, b gap) int {
		return cmp.Or(cmp.Compare(a.block, b.block), cmp.Compare(a.reason, b.reason))
	})
	for _, g := range gaps {
		warnings = append(warnings, fmt.Sprintf("block %d, not measured (%s): %s", g.block, g.reason, strings.Join(weights[g], ", ")))
	}
	return warnings
}

// fewTokens warns of experts with few tokens, block by block.
func fewTokens(c *calib.Coverage, minTokens int64) (warnings []string) {
	for _, l := range c.Blocks {
		if len(l.Few) == 0 {
			continue
		}
		var list []string
		for _, e := range l.Few {
			list = append(list, fmt.Sprintf("%d (%d)", e.Expert, e.Tokens))
		}
		warnings = append(warnings, fmt.Sprintf("block %d: %d of %d experts saw fewer than %d tokens: %s",
			l.Block, len(l.Few), l.Experts, minTokens, strings.Join(list, ", ")))
	}
	return warnings
}

// printCoverage shows domains and the use of experts.
func (a *app) printCoverage(c *calib.Coverage) {
	rows := [][]string{{"text", "windows", "tokens", "files"}}
	for _, d := range c.Domains {
		rows = append(rows, []string{printable(d.Name), strconv.FormatInt(d.Chunks, 10), strconv.FormatInt(d.Tokens, 10), ""})
	}
	room := lineWidth - widest(table("lrrl", rows))
	for i, d := range c.Domains {
		rows[i+1][3] = cut(printable(strings.Join(d.Datasets, ", ")), max(room, 16))
	}
	a.printf("%s%d weights measured, windows of %d tokens\n", table("lrrl", rows), c.Weights, c.ChunkSize)
	if len(c.Blocks) == 0 {
		return
	}
	rows = [][]string{{"block", "experts", "unused", "tokens", "entropy", "most used"}}
	for _, l := range c.Blocks {
		var top []string
		for _, e := range l.Top {
			top = append(top, fmt.Sprintf("%d (%.0f %%)", e.Expert, 100*e.Share))
		}
		rows = append(rows, []string{strconv.Itoa(l.Block), strconv.Itoa(l.Experts), strconv.Itoa(len(l.Unused)),
			fmt.Sprintf("%d to %d", l.Least, l.Most), fmt.Sprintf("%.2f of %.2f", l.Entropy, l.MaxEntropy), strings.Join(top, " ")})
	}
	a.printf("\n%s", table("rrrrrl", rows))
	if c.Sampled > 0 {
		a.printf("%d tokens sampled for choosing, merging and repairing experts\n", c.Sampled)
	}
	if !c.LeaveOneOut {
		a.printf("not measured: what blocks lack without each expert (--loo)\n")
	}
	for _, l := range c.Blocks {
		if len(l.Unused) > 0 {
			a.printf("%s\n", wrap(fmt.Sprintf("block %d, never used: %s", l.Block, strings.Trim(fmt.Sprint(l.Unused), "[]")), "  "))
		}
	}
}
