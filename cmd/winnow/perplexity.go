package main

import (
	"compress/gzip"
	"context"
	"fmt"
	"io"
	"os"
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
			return a.perplexity(cmd.Context(), pos[0], base, text, flags)
		},
	}
	c.Flags().StringVarP(&text, "text", "f", "", "the `FILE` to score: plain text, .gz or .zst; - is standard input")
	c.Flags().StringVar(&base, "base", "", "the `MODEL` to compare with")
	c.Flags().IntVarP(&flags.ctx, "ctx", "c", verify.DefaultCtx, "tokens per window")
	c.Flags().IntVar(&flags.chunks, "chunks", 0, "number of windows (0: all)")
	c.Flags().IntVar(&flags.batch, "batch-tokens", 0, "tokens evaluated together, which bounds memory (0: 8192)")
	checkpointFlags(c, &flags.ck)
	return c
}

// scored is a model ready for measuring.
type scored struct {
	model  gguf.Model
	engine *engine.Model
}

func (a *app) openScored(path string, flags *scoreFlags) (*scored, error) {
	m, err := openModel(path, flags.ck)
	if err != nil {
		return nil, err
	}
	e, err := engine.Load(m, engine.Options{Threads: a.threads, BatchTokens: flags.batch})
	if err != nil {
		m.Close()
		return nil, fmt.Errorf("%s: %w", path, err)
	}
	return &scored{m, e}, nil
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
	text, err := evaluationText(m.model, raw, &flags)
	if err != nil {
		return err
	}
	bar := a.newProgress("scoring", false)
	defer bar.finish()
	opt := verify.Options{BatchTokens: flags.batch, Threads: a.threads, Window: func(done, total int, ppl float64) {
		bar.update(int64(done), int64(total), fmt.Sprintf(" (PPL %.4f)", ppl))
	}}
	if base == "" {
		r, err := verify.Perplexity(ctx, m.engine, text, opt)
		bar.finish()
		if err != nil {
			return err
		}
		return a.printPerplexity(path, r)
	}
	b, err := a.openScored(base, &flags)
	if err != nil {
		return err
	}
	defer b.model.Close()
	r, err := verify.Compare(ctx, b.engine, m.engine, text, opt)
	bar.finish()
	if err != nil {
		return err
	}
	return a.printComparison(path, base, r)
}

// evaluationText tokenizes a text as the model's vocabulary wants it.
func evaluationText(m gguf.Model, raw string, flags *scoreFlags) (*verify.Text, error) {
	v, err := tokenizer.FromMetadata(m.Metadata())
	if err != nil {
		return nil, err
	}
	return verify.Tokenize(v, raw, flags.ctx, flags.chunks)
}

// maxTextBytes bounds an evaluation text; WikiText-103 has half a gigabyte.
const maxTextBytes = 1 << 30

// readText reads a text file, decompressing by its ending.
func readText(path string) (string, error) {
	var r io.Reader = os.Stdin
	if path != "-" {
		f, err := os.Open(path)
		if err != nil {
			return "", err
		}
		defer f.Close()
		r = f
	}
	switch {
	case strings.HasSuffix(path, ".gz"):
		z, err := gzip.NewReader(r)
		if err != nil {
			return "", fmt.Errorf("%s: %w", path, err)
		}
		r = z
	case strings.HasSuffix(path, ".zst"):
		z, err := zstd.NewReader(r)
		if err != nil {
			return "", fmt.Errorf("%s: %w", path, err)
		}
		defer z.Close()
		r = z
	}
	b, err := io.ReadAll(io.LimitReader(r, maxTextBytes+1))
	if err != nil {
		return "", fmt.Errorf("%s: %w", path, err)
	}
	if len(b) > maxTextBytes {
		return "", usagef("%s: the text is longer than %s", path, sizeText(maxTextBytes))
	}
	return string(b), nil
}

func (a *app) printPerplexity(path string, r *verify.Result) error {
	if a.json {
		return a.printJSON(struct {
			Model string `json:"model"`
			*verify.Result
		}{path, r})
	}
	a.printf("PPL = %.4f ± %.4f\n", r.PPL.Value, r.PPL.Error)
	a.printf("%s\n", wrap(r.Definition))
	return nil
}

func (a *app) printComparison(path, base string, c *verify.Comparison) error {
	if a.json {
		return a.printJSON(struct {
			Model string `json:"model"`
			Base  string `json:"base"`
			*verify.Comparison
		}{path, base, c})
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
		a.printf("%-18s %12.6f ± %.6f%s\n", r.name, r.e.Value, r.e.Error, r.unit)
	}
	a.printf("%-18s %12.6f nats\n%-18s %12.6f nats\n%-18s %12.6f nats\n", "median KLD", c.KLD.Median, "99 % KLD", c.KLD.P99, "maximum KLD", c.KLD.Max)
	a.printf("%s\n", wrap(c.Definition))
	return nil
}
