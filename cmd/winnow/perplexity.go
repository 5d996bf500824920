package main

import (
	"compress/gzip"
	"context"
	"fmt"
	"io"
	"os"
	"slices"
	"strings"

	"github.com/klauspost/compress/zstd"
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
	batch       int
}

func newPerplexityCommand(a *app) *cobra.Command {
	var (
		flags      scoreFlags
		text, base string
	)
	c := &cobra.Command{
		Use:   "perplexity MODEL --text FILE [--base MODEL]",
		Short: "Perplexity, and KL divergence from a base model",
		Long: `Score a model on a text with llama-perplexity's definition: the text is
tokenized once and cut into windows of --ctx tokens without overlap; if the
vocabulary adds a BOS token it replaces the first of every window; the second
half of every window is scored. Unlike llama-perplexity without --no-escape,
backslashes in the text are taken as they are.

MODEL is a GGUF file or a checkpoint folder, which is scored with its full
weights and no file written. --base runs a second model beside it and reports
how far the predictions lie apart; nothing is stored.`,
		Example: `  winnow perplexity R1-Q4_K_M.gguf --text wiki.test.raw
  winnow perplexity R1-Q4_K_M.gguf --text wiki.test.raw --base DeepSeek-R1`,
		Args: args(cobra.ExactArgs(1)),
		RunE: func(cmd *cobra.Command, pos []string) error {
			if text == "" {
				return usagef("perplexity needs a text: --text FILE")
			}
			if err := flags.check(); err != nil {
				return err
			}
			return a.perplexity(cmd.Context(), pos[0], base, text, flags)
		},
	}
	c.Flags().StringVarP(&text, "text", "f", "", "the `FILE` to score: text, .gz or .zst; - is standard input")
	c.Flags().StringVar(&base, "base", "", "the `MODEL` to compare with")
	c.Flags().IntVarP(&flags.ctx, "ctx", "c", verify.DefaultCtx, "`N` tokens per window")
	c.Flags().IntVar(&flags.chunks, "chunks", 0, "`N` windows (0: all)")
	c.Flags().IntVar(&flags.batch, "batch-tokens", 0, "`N` tokens evaluated together, which bounds memory (0: 8192)")
	checkpointFlags(c, &flags.ck)
	return c
}

// check finds settings that make no sense for any text.
func (f *scoreFlags) check() error {
	switch {
	case f.ctx < verify.MinCtx:
		return usagef("--ctx is %d, want at least %d: shorter windows have no scored token", f.ctx, verify.MinCtx)
	case f.chunks < 0:
		return usagef("--chunks is %d, want a positive number, or 0 for all", f.chunks)
	case f.batch < 0:
		return usagef("--batch-tokens is %d, want a positive number, or 0 for the default", f.batch)
	}
	return nil
}

// scored is a model ready for measuring.
type scored struct {
	path     string
	model    gguf.Model
	engine   *engine.Model
	warnings []string
	onBlock  func(share float64) // told when some tokens went through a share of the blocks
}

func (a *app) openScored(path string, flags *scoreFlags) (*scored, error) {
	return a.openObserved(path, flags, nil)
}

// openObserved opens a model whose passes an observer follows, if there is one.
func (a *app) openObserved(path string, flags *scoreFlags, observer engine.Observer) (*scored, error) {
	m, warnings, err := openModel(path, flags.ck)
	if err != nil {
		return nil, err
	}
	a.warn(warnings)
	s := &scored{path: path, model: m, warnings: warnings, onBlock: func(float64) {}}
	s.engine, err = engine.Load(m, engine.Options{
		Threads: a.threads, BatchTokens: flags.batch, Observer: observer,
		Events: engine.Events{Layer: func(_, total, tokens int) { s.onBlock(float64(tokens) / float64(total)) }},
	})
	if err != nil {
		m.Close()
		return nil, &inputError{fmt.Errorf("%s: %w", path, err)}
	}
	return s, nil
}

// follow shows how far models are with a number of tokens each. remark adds to
// what is shown.
func (a *app) follow(what string, tokens int, models ...*scored) (remark func(string), finish func()) {
	bar := a.newProgress(what, false)
	const parts = 1000 // of a token's way through the blocks
	done, total, extra := 0.0, int64(len(models)*tokens*parts), ""
	show := func() { bar.update(min(int64(done*parts), total), total, extra) }
	for _, m := range models {
		m.onBlock = func(share float64) {
			done += share
			show()
		}
	}
	show()
	return func(text string) {
		extra = text
		show()
	}, bar.finish
}

func (a *app) perplexity(ctx context.Context, path, base, textPath string, flags scoreFlags) error {
	raw, err := readText(textPath)
	if err != nil {
		return err
	}
	m, err := a.openScored(path, &flags)
	if err != nil {
		return err
	}
	defer m.model.Close()
	text, err := m.text(raw, &flags)
	if err != nil {
		return err
	}
	if base != "" {
		return a.compare(ctx, base, m, raw, text, &flags)
	}
	r, err := scoring(a, &flags, text, []*scored{m}, func(opt verify.Options) (*verify.Result, error) {
		return verify.Perplexity(ctx, m.engine, text, opt)
	})
	if err != nil {
		return err
	}
	return a.printPerplexity(m, r)
}

// compare scores a model beside its base. Both must read the text alike.
func (a *app) compare(ctx context.Context, base string, m *scored, raw string, text *verify.Text, flags *scoreFlags) error {
	b, err := a.openScored(base, flags)
	if err != nil {
		return err
	}
	defer b.model.Close()
	baseText, err := b.text(raw, flags)
	if err != nil {
		return err
	}
	if !slices.EqualFunc(text.Windows, baseText.Windows, slices.Equal) {
		return &inputError{fmt.Errorf("%s and %s make different tokens of the text: their predictions cannot be compared", m.path, b.path)}
	}
	r, err := scoring(a, flags, text, []*scored{b, m}, func(opt verify.Options) (*verify.Comparison, error) {
		return verify.Compare(ctx, b.engine, m.engine, text, opt)
	})
	if err != nil {
		return err
	}
	return a.printComparison(m, b, r)
}

// scoring runs a measurement with progress.
func scoring[R any](a *app, flags *scoreFlags, text *verify.Text, models []*scored, measure func(verify.Options) (R, error)) (R, error) {
	remark, finish := a.follow("scoring", len(text.Windows)*flags.ctx, models...)
	defer finish()
	r, err := measure(verify.Options{
		BatchTokens: flags.batch, Threads: a.threads,
		Window: func(_, _ int, ppl float64) { remark(fmt.Sprintf(" (PPL %.4f)", ppl)) },
	})
	if err != nil {
		err = &inputError{err} // not finite, or not to be compared
	}
	return r, err
}

// text tokenizes a text as the model's vocabulary wants it.
func (m *scored) text(raw string, flags *scoreFlags) (*verify.Text, error) {
	v, err := tokenizer.FromMetadata(m.model.Metadata())
	if err != nil {
		return nil, err
	}
	text, err := verify.Tokenize(v, raw, flags.ctx, flags.chunks)
	if err != nil {
		return nil, &inputError{err}
	}
	return text, nil
}

// maxTextBytes bounds an evaluation text; WikiText-103 has half a gigabyte.
const maxTextBytes = 1 << 30

// readText reads a text file.
func readText(path string) (string, error) {
	f := os.Stdin
	if path != "-" {
		var err error
		if f, err = os.Open(path); err != nil {
			return "", err
		}
		defer f.Close()
	}
	text, err := decompress(path, f)
	if err != nil {
		return "", &inputError{fmt.Errorf("%s: %w", path, err)}
	}
	return text, nil
}

// decompress reads everything, unpacking by the ending of the name.
func decompress(name string, r io.Reader) (string, error) {
	switch {
	case strings.HasSuffix(name, ".gz"):
		z, err := gzip.NewReader(r)
		if err != nil {
			return "", err
		}
		r = z
	case strings.HasSuffix(name, ".zst"):
		z, err := zstd.NewReader(r)
		if err != nil {
			return "", err
		}
		defer z.Close()
		r = z
	}
	b, err := io.ReadAll(io.LimitReader(r, maxTextBytes+1))
	if err != nil {
		return "", err
	}
	if len(b) > maxTextBytes {
		return "", fmt.Errorf("the text is longer than %s", sizeText(maxTextBytes))
	}
	return string(b), nil
}

func (a *app) printPerplexity(m *scored, r *verify.Result) error {
	if a.json {
		return a.printJSON(struct {
			Model    string   `json:"model"`
			Warnings []string `json:"warnings,omitempty"`
			*verify.Result
		}{m.path, m.warnings, r})
	}
	a.printf("PPL = %.4f ± %.4f\n", r.PPL.Value, r.PPL.Error)
	a.printf("%s\n", wrap(r.Definition, ""))
	return nil
}

func (a *app) printComparison(m, base *scored, c *verify.Comparison) error {
	if a.json {
		return a.printJSON(struct {
			Model    string   `json:"model"`
			Base     string   `json:"base"`
			Warnings []string `json:"warnings,omitempty"`
			*verify.Comparison
		}{m.path, base.path, append(m.warnings, base.warnings...), c})
	}
	rows := []struct {
		name string
		e    verify.Estimate
		unit string
	}{
		{"PPL of the model", c.PPL, ""},
		{"PPL of the base", c.Base, ""},
		{"PPL ratio", c.Ratio, ""},
		{"ln(PPL ratio)", c.LogRatio, ""},
		{"mean KLD", c.KLD.Mean, " nats"},
		{"mean Δp", c.DeltaP.Mean, " %"},
		{"RMS Δp", c.DeltaPRMS, " %"},
		{"same top token", c.SameTop, " %"},
	}
	for _, r := range rows {
		a.printf("%-16s %14.6f ± %.6f%s\n", r.name, r.e.Value, r.e.Error, r.unit)
	}
	for _, r := range []struct {
		name string
		kld  float64
	}{{"median KLD", c.KLD.Median}, {"99 % KLD", c.KLD.P99}, {"maximum KLD", c.KLD.Max}} {
		a.printf("%-16s %14.6f nats\n", r.name, r.kld)
	}
	a.printf("%s\n", wrap(c.Definition, ""))
	return nil
}
