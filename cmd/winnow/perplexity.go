package main

import (
	"context"
	"fmt"
	"math"
	"slices"
	"time"

	"github.com/spf13/cobra"
	"github.com/winnow-moe/winnow/convert"
	"github.com/winnow-moe/winnow/engine"
	"github.com/winnow-moe/winnow/formats/gguf"
	"github.com/winnow-moe/winnow/formats/tokenizer"
	"github.com/winnow-moe/winnow/verify"
)

// scoreFlags are the settings of a measurement.
type scoreFlags struct {
	ck          convert.CheckpointOptions
	ctx, chunks int
	stride      int // 0: windows as llama-perplexity has them
	batch       int
	compute     computeValue
	maxMemory   sizeValue // 0: no limit
	checkpoint  string
	every       time.Duration // between saves
	baseFile    string        // of logits, if there is one
}

// computeValue is a flag for the way of the engine's products.
type computeValue engine.Compute

func (v *computeValue) String() string { return engine.Compute(*v).String() }
func (v *computeValue) Type() string   { return "string" }
func (v *computeValue) Set(s string) error {
	c, err := engine.ParseCompute(s)
	*v = computeValue(c)
	return err
}

func (f *scoreFlags) computeFlag(c *cobra.Command) {
	c.Flags().Var(&f.compute, "compute", "`f32|int8`: exact products, or activations of 8 bits as in llama.cpp")
}

// remark says what is special about the numbers of a measurement.
func (v computeValue) remark() string {
	if engine.Compute(v) == engine.ComputeF32 {
		return ""
	}
	return "; --compute int8: activations rounded as llama.cpp rounds them"
}

// addWindows adds the flags that say how texts are cut.
func (f *scoreFlags) addWindows(c *cobra.Command) {
	c.Flags().IntVarP(&f.ctx, "ctx", "c", verify.DefaultCtx, "`N` tokens per window")
	c.Flags().IntVar(&f.stride, "stride", 0, "sliding windows, one every `N` tokens (0: llama-perplexity's)")
	c.Flags().IntVar(&f.chunks, "chunks", 0, "`N` windows of each text (0: all)")
}

// fieldFlag is for texts in .jsonl files.
func fieldFlag(c *cobra.Command, field *string) {
	c.Flags().StringVar(field, "field", "text", "the `NAME` of the field of .jsonl files")
}

// addMemory adds the flags that say how much is evaluated together.
func (f *scoreFlags) addMemory(c *cobra.Command) {
	c.Flags().IntVar(&f.batch, "batch-tokens", 0, "`N` tokens evaluated together (0: as fits the memory)")
	c.Flags().Var(&f.maxMemory, "max-memory", "bound of resident memory, such as 2G (default: none; batches fit half of what is free)")
}

// addRun adds the flags that say how a run goes and change no result.
func (f *scoreFlags) addRun(c *cobra.Command) {
	f.addMemory(c)
	c.Flags().StringVar(&f.checkpoint, "checkpoint", "", "keep an unfinished run in `FILE`, and go on from there")
	c.Flags().DurationVar(&f.every, "checkpoint-every", time.Minute, "least `TIME` between two saves; 0s: after every block")
}

// perplexityJob is what the command line asks for.
type perplexityJob struct {
	flags      scoreFlags
	path       string
	texts      []textFile
	ids, field string
	base, save string
	experts    []string       // keep-lists
	kept       []*keptExperts // what is in them
	ctxGiven   bool
	force      bool
	saved      *verify.LogitsFile // base, if it is a file of logits
	raw        []string           // the contents of texts
	sequences  [][]int32          // the contents of ids
}

func newPerplexityCommand(a *app) *cobra.Command {
	var (
		j     perplexityJob
		texts []string
	)
	c := &cobra.Command{
		Use:   "perplexity MODEL --text [NAME=]FILE... [--base BASE]",
		Short: "Perplexity, and KL divergence from a base model",
		Long: `Score a model on texts with llama-perplexity's definition: a text is tokenized
once and cut into windows of --ctx tokens without overlap; if the vocabulary
adds a BOS token it replaces the first of every window; the second half of
every window is scored. Unlike llama-perplexity without --no-escape,
backslashes in a text are taken as they are.

--experts scores MODEL as if it had only the experts that a keep-list of prune
keeps. No file is written, and the numbers are those of the pruned one. Several
are compared in one run, with --base or the model with all of its experts.

With --stride the definition is that of transformers' documentation: a window
of --ctx tokens begins every N tokens, no BOS token is put into it, and of each
only the tokens are scored that no window before it held.

MODEL is a GGUF file or a checkpoint folder, which is scored with its full
weights and no file written. --base reports how far the predictions lie from
those of a base: a second model, run beside it with nothing stored, or a file
of logits that llama-perplexity --kl-divergence-base or --save-logits wrote,
which brings its own tokens if there is no --text.

Texts may be packed (.gz, .zst). Of .jsonl files the field --field of every
line is read, joined by empty lines. Several texts are cut one by one; each has
a row in the result beside the total. --ids takes sequences of token ids, as
they are.

Products are exact by default: the weights as they decode, activations in
float32. --compute int8 rounds what is multiplied with quantized weights to 8
bits per block, as llama.cpp does: it is faster, and shows what llama.cpp's
users see. It holds for --base, too.

Every block of the model is read once for a batch of windows, so a model may be
larger than memory; --max-memory bounds what is resident and so the batch.
With --checkpoint a run that was stopped goes on where it was last saved; the
file is removed when the run is done.`,
		Example: `  winnow perplexity R1-Q4_K_M.gguf --text wiki.test.raw
  winnow perplexity R1-Q4_K_M.gguf --text wiki.test.raw --base DeepSeek-R1
  winnow perplexity R1-Q4_K_M.gguf --text code=c.jsonl.zst --text prose=p.txt
  winnow perplexity DeepSeek-R1 --text wiki.test.raw --save-logits r1.kld
  winnow perplexity R1-Q4_K_M.gguf --base r1.kld
  winnow perplexity DeepSeek-R1 --text wiki.test.raw --base DeepSeek-R1 \
      --experts coder.json`,
		Args: args(cobra.ExactArgs(1)),
		RunE: func(cmd *cobra.Command, pos []string) (err error) {
			if j.texts, err = parseTexts("--text", texts); err != nil {
				return err
			}
			base, err := a.local(cmd.Context(), []string{j.base})
			if err != nil {
				return err
			}
			j.base = base[0]
			j.path, j.ctxGiven = pos[0], cmd.Flags().Changed("ctx")
			if cmd.Flags().Changed("field") && !slices.ContainsFunc(j.texts, func(t textFile) bool { return isLines(t.path) }) {
				return usagef("--field is for texts in .jsonl files")
			}
			return a.perplexity(cmd.Context(), &j)
		},
	}
	c.Flags().StringArrayVarP(&texts, "text", "f", nil, "the `[NAME=]FILE` to score, may be repeated; - is standard input")
	fieldFlag(c, &j.field)
	c.Flags().StringVar(&j.ids, "ids", "", "a `FILE` of token ids instead: a JSON list of lists")
	c.Flags().StringVar(&j.base, "base", "", "the model or file of logits to compare with: `BASE`")
	c.Flags().StringArrayVar(&j.experts, "experts", nil, "a keep-list `FILE`: score with these experts only; may be repeated")
	c.Flags().StringVar(&j.save, "save-logits", "", "write MODEL's predictions to a `FILE` for --base")
	c.Flags().BoolVar(&j.force, "force", false, "replace an existing file of logits")
	j.flags.addWindows(c)
	j.flags.computeFlag(c)
	j.flags.addRun(c)
	checkpointFlags(c, &j.flags.ck)
	return c
}

// check finds arguments that do not fit together, and outputs in the way.
func (j *perplexityJob) check() error {
	switch {
	case j.ids != "" && len(j.texts) > 0:
		return usagef("--text and --ids do not go together")
	case j.ids == "" && len(j.texts) == 0 && j.saved == nil:
		return usagef("perplexity needs a text: --text FILE")
	case j.save != "" && (j.ids != "" || j.flags.stride != 0):
		return usagef("--save-logits is for windows as llama-perplexity cuts them of a text, without --stride and --ids")
	case len(j.experts) > 1 && (j.save != "" || j.saved != nil):
		return usagef("several --experts are compared with a model: not with a file of logits, and without --save-logits")
	case j.save != "" && j.flags.checkpoint != "":
		return usagef("--save-logits and --checkpoint do not go together: predictions that were written are not kept")
	}
	if err := j.flags.checkCheckpoint(j.inputs()); err != nil {
		return err
	}
	if j.save != "" {
		if err := checkOutput(j.save, j.inputs(), j.force); err != nil {
			return err
		}
	}
	return j.flags.check()
}

// inputs are the files that no output may replace.
func (j *perplexityJob) inputs() []string {
	in := append([]string{j.path}, j.experts...)
	if j.base != "" {
		in = append(in, j.base)
	}
	for _, t := range j.texts {
		in = append(in, t.path)
	}
	return in
}

// check finds settings that make no sense for any text.
func (f *scoreFlags) check() error {
	switch {
	case f.ctx < verify.MinCtx:
		return usagef("--ctx is %d, want at least %d: shorter windows have no scored token", f.ctx, verify.MinCtx)
	case f.stride < 0 || f.stride > f.ctx:
		return usagef("--stride is %d, want 1 to the %d tokens of a window, so that no token is left out", f.stride, f.ctx)
	case f.chunks < 0:
		return usagef("--chunks is %d, want a positive number, or 0 for all", f.chunks)
	case f.batch < 0:
		return usagef("--batch-tokens is %d, want a positive number, or 0 for the default", f.batch)
	case f.every < 0:
		return usagef("--checkpoint-every is %s, want a time such as 30s, or 0s", f.every)
	}
	return nil
}

// scored is a model ready for measuring.
type scored struct {
	path     string
	model    gguf.Model
	options  engine.Options
	engine   *engine.Model
	warnings []string
	compute  computeValue
	kept     *keptExperts                  // nil: all
	onBlock  func(done, total, tokens int) // see engine.Events
}

func (a *app) openScored(path string, flags *scoreFlags) (*scored, error) {
	return a.openEngine(path, flags, engine.Options{})
}

// openEngine opens a model with options of its own beside those of the flags.
// Where memory is bounded a file is read and not mapped, since pages of a map
// count as the program's.
func (a *app) openEngine(path string, flags *scoreFlags, opt engine.Options) (*scored, error) {
	open := gguf.Open
	if flags.maxMemory > 0 {
		open = gguf.OpenUnmapped
	}
	m, warnings, err := openWith(open, path, flags.ck)
	if err != nil {
		return nil, err
	}
	a.warn(warnings)
	s := a.newScored(path, m, flags, opt)
	s.warnings = warnings
	if err := s.load(); err != nil {
		m.Close()
		return nil, err
	}
	return s, nil
}

// newScored prepares a model for load.
func (a *app) newScored(path string, m gguf.Model, flags *scoreFlags, opt engine.Options) *scored {
	s := &scored{path: path, model: m, compute: flags.compute, onBlock: func(int, int, int) {}}
	opt.Threads, opt.BatchTokens, opt.Compute = a.threads, flags.batch, engine.Compute(flags.compute)
	opt.Events.Layer = func(done, total, tokens int) { s.onBlock(done, total, tokens) }
	s.options = opt
	return s
}

// load makes the engine's model by the options at hand.
func (s *scored) load() (err error) {
	if s.engine, err = engine.Load(s.model, s.options); err == nil && s.kept != nil {
		s.engine, err = s.engine.Masked(s.kept.mask())
	}
	if err != nil {
		return &inputError{fmt.Errorf("%s: %w", s.path, err)}
	}
	return nil
}

// apply makes models keep to what was chosen.
func (f fit) apply(models ...*scored) error {
	for _, m := range models {
		m.options.BatchTokens, m.options.GroupBytes, m.options.HoldOutput = f.batch, f.group, f.hold
		if err := m.load(); err != nil {
			return err
		}
	}
	return nil
}

func (a *app) perplexity(ctx context.Context, j *perplexityJob) error {
	if err := j.openSaved(); err != nil {
		return err
	}
	if j.saved != nil {
		defer j.saved.Close()
	}
	if err := j.check(); err != nil {
		return err
	}
	if err := j.read(); err != nil {
		return err
	}
	m, err := a.openScored(j.path, &j.flags)
	if err != nil {
		return err
	}
	defer m.model.Close()
	if err := j.keep(m); err != nil {
		return err
	}
	text, err := j.text(m)
	if err != nil {
		return err
	}
	var row func(int, []float32) error
	var w *verify.LogitsWriter
	if j.save != "" {
		if w, err = verify.CreateLogits(j.save, text, m.engine.Vocab()); err != nil {
			return err
		}
		defer w.Abort()
		row = w.Row
	}
	show, err := a.measure(ctx, j, m, text, row)
	if err != nil {
		return err
	}
	if w != nil {
		if err := w.Commit(); err != nil {
			return err
		}
	}
	if err := show(); err != nil {
		return err
	}
	return j.flags.finished()
}

// measure scores a model, beside a base if there is one, and returns what
// shows the result. row, if not nil, gets the model's logits.
func (a *app) measure(ctx context.Context, j *perplexityJob, m *scored, text *verify.Text, row func(int, []float32) error) (show func() error, err error) {
	if len(j.kept) > 1 {
		return a.compareKept(ctx, j, m, text)
	}
	if j.saved == nil && j.base != "" {
		return a.compare(ctx, j, m, text, row)
	}
	j.raw, j.sequences = nil, nil // their windows are there
	if j.saved != nil {
		r, err := scoring(ctx, a, &j.flags, text, []*scored{m}, row, func(opt verify.Options) (*verify.Comparison, error) {
			return verify.CompareFile(ctx, j.saved, m.engine, text, opt)
		})
		return func() error { return a.printComparison(m, j.base, nil, r) }, err
	}
	r, err := scoring(ctx, a, &j.flags, text, []*scored{m}, row, func(opt verify.Options) (*verify.Result, error) {
		return verify.Perplexity(ctx, m.engine, text, opt)
	})
	return func() error { return a.printPerplexity(m, r) }, err
}

// openSaved opens the base if it is a file of logits, whose windows then are
// those of the measurement.
func (j *perplexityJob) openSaved() (err error) {
	if j.base == "" || !verify.IsLogitsFile(j.base) {
		return nil
	}
	if j.saved, err = verify.OpenLogits(j.base); err != nil {
		return err
	}
	j.flags.baseFile = j.base
	if !j.ctxGiven {
		j.flags.ctx = j.saved.Ctx
	}
	if len(j.texts) == 1 && (j.flags.chunks == 0 || j.flags.chunks > j.saved.Chunks) {
		j.flags.chunks = j.saved.Chunks
	}
	return nil
}

// read reads the texts or token ids.
func (j *perplexityJob) read() (err error) {
	if j.ids != "" {
		j.sequences, err = readSequences(j.ids)
		return err
	}
	j.raw = make([]string, len(j.texts))
	for i, t := range j.texts {
		if j.raw[i], err = readField(t.path, j.field); err != nil {
			return err
		}
	}
	return nil
}

// text makes the windows that a model's vocabulary wants.
func (j *perplexityJob) text(m *scored) (*verify.Text, error) {
	switch {
	case j.ids != "":
		t, err := verify.NewSequences(j.sequences, j.flags.ctx, j.flags.stride, j.flags.chunks)
		if err != nil {
			return nil, &inputError{fmt.Errorf("%s: %w", j.ids, err)}
		}
		return t, nil
	case len(j.texts) == 0:
		return j.savedText(m)
	}
	names, texts := make([]string, len(j.texts)), make([]*verify.Text, len(j.texts))
	for i, f := range j.texts {
		t, err := m.text(j.raw[i], &j.flags)
		if err != nil {
			return nil, fmt.Errorf("%s: %w", f.path, err)
		}
		names[i], texts[i] = f.name, t
	}
	if len(texts) == 1 {
		return texts[0], nil
	}
	return verify.Join(names, texts), nil
}

// savedText makes the windows of the tokens in the file of logits.
func (j *perplexityJob) savedText(m *scored) (*verify.Text, error) {
	if j.flags.ctx != j.saved.Ctx || j.flags.stride != 0 {
		return nil, &inputError{fmt.Errorf("%s was made with windows of %d tokens without --stride", j.base, j.saved.Ctx)}
	}
	v, err := tokenizer.FromMetadata(m.model.Metadata())
	if err != nil {
		return nil, err
	}
	bos, _ := v.BOS()
	return j.saved.Text(j.flags.chunks, bos, v.AddBOS()), nil
}

// openBase opens the base model. It must read the text as the model does.
func (a *app) openBase(j *perplexityJob, m *scored, text *verify.Text) (b *scored, err error) {
	if b, err = a.openScored(j.base, &j.flags); err != nil {
		return nil, err
	}
	baseText, err := j.text(b)
	if err == nil && !slices.EqualFunc(text.Windows, baseText.Windows, slices.Equal) {
		err = &inputError{fmt.Errorf("%s and %s make different tokens of the text: their predictions cannot be compared", m.path, b.path)}
	}
	if err != nil {
		b.model.Close()
		return nil, err
	}
	return b, nil
}

// compare scores a model beside a base model.
func (a *app) compare(ctx context.Context, j *perplexityJob, m *scored, text *verify.Text, row func(int, []float32) error) (show func() error, err error) {
	b, err := a.openBase(j, m, text)
	if err != nil {
		return nil, err
	}
	defer b.model.Close()
	j.raw, j.sequences = nil, nil
	r, err := scoring(ctx, a, &j.flags, text, []*scored{b, m}, row, func(opt verify.Options) (*verify.Comparison, error) {
		return verify.Compare(ctx, b.engine, m.engine, text, opt)
	})
	return func() error { return a.printComparison(m, b.path, b.warnings, r) }, err
}

// scoring runs a measurement with progress. row, if not nil, gets the model's
// logits.
func scoring[R any](ctx context.Context, a *app, flags *scoreFlags, text *verify.Text, models []*scored, row func(int, []float32) error, measure func(verify.Options) (R, error)) (r R, err error) {
	f, err := flags.memoryFit(scoringNeeds(models, flags.baseFile != "", text))
	if err != nil {
		return r, err
	}
	if err := f.apply(models...); err != nil {
		return r, err
	}
	keep, err := flags.keep(ctx, "perplexity", text, models)
	if err != nil {
		return r, err
	}
	t := a.follow("scoring", text, true, models...)
	defer t.finish()
	r, err = measure(verify.Options{
		BatchTokens: f.batch, LogitRows: f.rows, Threads: a.threads, Row: row, Checkpoint: keep,
		Window: func(done, _ int, sofar verify.Running) { t.window(done, runningText(sofar)) },
	})
	if err != nil {
		return r, flags.stopped(&inputError{err}) // not finite, or not to be compared
	}
	return r, nil
}

// runningText is the estimate shown while windows are scored.
func runningText(r verify.Running) string {
	if math.IsNaN(r.KLD) {
		return fmt.Sprintf("PPL %.4f", r.PPL)
	}
	return fmt.Sprintf("PPL %.4f, KLD %.6f", r.PPL, r.KLD)
}

// text tokenizes a text as the model's vocabulary wants it.
func (m *scored) text(raw string, flags *scoreFlags) (text *verify.Text, err error) {
	v, err := tokenizer.FromMetadata(m.model.Metadata())
	if err != nil {
		return nil, err
	}
	if flags.stride > 0 {
		text, err = verify.TokenizeStride(v, raw, flags.ctx, flags.stride, flags.chunks)
	} else {
		text, err = verify.Tokenize(v, raw, flags.ctx, flags.chunks)
	}
	if err != nil {
		return nil, &inputError{err}
	}
	return text, nil
}

func (a *app) printPerplexity(m *scored, r *verify.Result) error {
	if a.json {
		return a.printJSON(struct {
			Model    string   `json:"model"`
			Compute  string   `json:"compute"`
			Experts  string   `json:"experts,omitempty"`
			Warnings []string `json:"warnings,omitempty"`
			*verify.Result
		}{m.path, m.compute.String(), m.kept.name(), m.warnings, r})
	}
	a.printf("PPL = %.4f ± %.4f\n", r.PPL.Value, r.PPL.Error)
	if len(r.Domains) > 0 {
		rows := [][]string{{"text", "scored", "PPL ± err"}}
		for _, d := range r.Domains {
			rows = append(rows, []string{printable(d.Name), fmt.Sprint(d.Scored), fmt.Sprintf("%.4f ± %.4f", d.PPL.Value, d.PPL.Error)})
		}
		a.printf("\n%s\n", table("lrr", rows))
	}
	a.printf("%s\n", wrap(r.Definition+m.kept.remark()+m.compute.remark(), ""))
	return nil
}

func (a *app) printComparison(m *scored, base string, warnings []string, c *verify.Comparison) error {
	if a.json {
		return a.printJSON(struct {
			Model    string   `json:"model"`
			Base     string   `json:"base"`
			Compute  string   `json:"compute"`
			Experts  string   `json:"experts,omitempty"`
			Warnings []string `json:"warnings,omitempty"`
			*verify.Comparison
		}{m.path, base, m.compute.String(), m.kept.name(), slices.Concat(m.warnings, warnings), c})
	}
	rows := []struct {
		name string
		e    verify.Estimate
		unit string
	}{
		{"PPL of the model", c.PPL, ""},
		{"PPL of the base", c.Base, ""},
		{"PPL difference", c.Difference, ""},
		{"PPL ratio", c.Ratio, ""},
		{"ln(PPL ratio)", c.LogRatio, ""},
		{"mean KLD", c.KLD.Mean, " nats"},
		{"mean Δp", c.DeltaP.Mean, " %"},
		{"RMS Δp", c.DeltaPRMS, " %"},
		{"same top token", c.SameTop, " %"},
		{"same top 5", c.SameTop5, " %"},
	}
	for _, r := range rows {
		a.printf("%-16s %14.6f ± %.6f%s\n", r.name, r.e.Value, r.e.Error, r.unit)
	}
	a.printf("%-16s %14.6f\n\n%s\n", "correlation", c.Correlation, percentileTable(c))
	if len(c.Domains) > 0 {
		a.printf("%s\n", domainTable(c.Domains))
	}
	a.printf("%s\n", wrap(c.Definition+m.kept.remark()+m.compute.remark(), ""))
	return nil
}

// percentileTable shows how the divergence and the change of the probability
// of the text's token are distributed.
func percentileTable(c *verify.Comparison) string {
	rows := [][]string{{"percentile", "KLD", "Δp, %"}}
	k, p := &c.KLD, &c.DeltaP
	for _, r := range []struct {
		name   string
		kld, p float64
	}{
		{"maximum", k.Max, p.Max}, {"99.9", k.P999, p.P999}, {"99", k.P99, p.P99}, {"95", k.P95, p.P95}, {"90", k.P90, p.P90}, {"75", k.P75, p.P75},
		{"median", k.Median, p.Median},
		{"25", k.P25, p.P25}, {"10", k.P10, p.P10}, {"5", k.P5, p.P5}, {"1", k.P1, p.P1}, {"0.1", k.P01, p.P01}, {"minimum", k.Min, p.Min},
	} {
		rows = append(rows, []string{r.name, fmt.Sprintf("%.6f", r.kld), fmt.Sprintf("%.3f", r.p)})
	}
	return table("lrr", rows)
}

func domainTable(domains []*verify.Comparison) string {
	rows := [][]string{{"text", "scored", "PPL ± err", "PPL ratio", "KLD", "same top"}}
	for _, d := range domains {
		rows = append(rows, []string{printable(d.Name), fmt.Sprint(d.Scored), fmt.Sprintf("%.4f ± %.4f", d.PPL.Value, d.PPL.Error),
			fmt.Sprintf("%.6f", d.Ratio.Value), fmt.Sprintf("%.6f", d.KLD.Mean.Value), fmt.Sprintf("%.2f %%", d.SameTop.Value)})
	}
	return table("lrrrrr", rows)
}
