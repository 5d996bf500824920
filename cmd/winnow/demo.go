package main

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"time"

	"github.com/spf13/cobra"
	"github.com/winnow-moe/winnow/convert"
	"github.com/winnow-moe/winnow/engine"
	"github.com/winnow-moe/winnow/testdata"
	"github.com/winnow-moe/winnow/verify"
)

// The demonstration: which files it makes and how it scores them.
const (
	demoTypes  = "Q8_0,Q6_K,Q4_K_M"
	demoModel  = "tiny-r1"
	demoText   = "eval-docs.txt"
	demoCtx    = 256
	demoChunks = 24
)

func newDemoCommand(a *app) *cobra.Command {
	return &cobra.Command{
		Use:   "demo [FOLDER]",
		Short: "Convert and measure the built-in miniature of DeepSeek R1",
		Long: `Unpack a trained miniature of DeepSeek R1 (FP8, 16 experts), convert it to
three GGUF files in one read, and score source and files on a text. Everything
stays in FOLDER (default: winnow-demo), which may be deleted afterwards. On two
cores it takes half a minute.`,
		Args: args(cobra.MaximumNArgs(1)),
		RunE: func(cmd *cobra.Command, pos []string) error {
			dir := "winnow-demo"
			if len(pos) == 1 {
				dir = pos[0]
			}
			return a.demo(cmd.Context(), dir)
		},
	}
}

// demoRow is one line of the demonstration's table.
type demoRow struct {
	File          string           `json:"file"`
	Bytes         int64            `json:"bytes"`
	BitsPerWeight float64          `json:"bits_per_weight"`
	PPL           verify.Estimate  `json:"ppl"`
	KLD           *verify.Estimate `json:"kld,omitempty"`
	SameTop       *verify.Estimate `json:"same_top,omitempty"`
}

func (a *app) demo(ctx context.Context, dir string) error {
	start := time.Now()
	if st, err := os.Stat(dir); err == nil && !st.IsDir() {
		return usagef("%q is a file; demo wants a folder", dir)
	}
	if err := os.MkdirAll(dir, 0o777); err != nil {
		return err
	}
	if err := testdata.UnpackDemo(dir); err != nil {
		return err
	}
	source := filepath.Join(dir, demoModel)
	plan, err := a.demoConvert(ctx, source, dir)
	if err != nil {
		return err
	}
	rows, definition, err := a.demoScore(ctx, source, filepath.Join(dir, demoText), plan)
	if err != nil {
		return err
	}
	return a.printDemo(rows, definition, dir, time.Since(start))
}

// demoConvert writes all files from one read of the checkpoint.
func (a *app) demoConvert(ctx context.Context, source, dir string) (*convert.Plan, error) {
	recipes, err := parseTypes(demoTypes)
	if err != nil {
		return nil, err
	}
	ck, err := convert.OpenCheckpoint(source, convert.CheckpointOptions{})
	if err != nil {
		return nil, err
	}
	defer ck.Close()
	outputs, err := outputNames(filepath.Join(dir, demoModel+"-{type}.gguf"), "", recipes)
	if err != nil {
		return nil, err
	}
	plan, err := ck.Plan(convert.Request{Outputs: outputs})
	if err != nil {
		return nil, err
	}
	return plan, a.execute(ctx, &conversion{plan: plan, data: ck, inputs: ck.Inputs()}, 0, "converting")
}

// demoScore measures the checkpoint itself and every file against it.
func (a *app) demoScore(ctx context.Context, source, textPath string, plan *convert.Plan) ([]demoRow, string, error) {
	flags := &scoreFlags{ctx: demoCtx, chunks: demoChunks}
	raw, err := readText(textPath)
	if err != nil {
		return nil, "", err
	}
	base, err := a.openScored(source, flags)
	if err != nil {
		return nil, "", err
	}
	defer base.model.Close()
	text, err := base.text(raw, flags)
	if err != nil {
		return nil, "", err
	}
	models := []*scored{base}
	for i := range plan.Outputs {
		m, err := a.openScored(plan.Outputs[i].Path, flags)
		if err != nil {
			return nil, "", err
		}
		defer m.model.Close()
		models = append(models, m)
	}
	all, err := scoring(ctx, a, flags, text, models, nil, func(opt verify.Options) ([]*verify.Comparison, error) {
		var engines []verify.Scorer[*engine.Hidden]
		for _, m := range models[1:] {
			engines = append(engines, m.engine)
		}
		return verify.CompareAll(ctx, base.engine, engines, text, opt)
	})
	if err != nil {
		return nil, "", err
	}
	return demoRows(plan.Summary(), all), all[0].Definition, nil
}

func demoRows(sum convert.Summary, all []*verify.Comparison) []demoRow {
	rows := []demoRow{{
		File: demoModel + " (FP8 source)", Bytes: sum.SourceBytes,
		BitsPerWeight: float64(sum.SourceBytes) * 8 / float64(sum.Parameters), PPL: all[0].Base,
	}}
	for i, c := range all {
		out := &sum.Outputs[i]
		rows = append(rows, demoRow{filepath.Base(out.Path), out.FileBytes, out.BitsPerWeight, c.PPL, &c.KLD.Mean, &c.SameTop})
	}
	return rows
}

func (a *app) printDemo(rows []demoRow, definition, dir string, took time.Duration) error {
	if a.json {
		return a.printJSON(struct {
			Folder     string    `json:"folder"`
			Definition string    `json:"definition"`
			Rows       []demoRow `json:"rows"`
			Seconds    float64   `json:"seconds"`
		}{dir, definition, rows, took.Seconds()})
	}
	lines := [][]string{{"file", "size", "bpw", "PPL ± err", "KLD", "same top"}}
	for _, r := range rows {
		kld, top := "-", "-"
		if r.KLD != nil {
			kld, top = fmt.Sprintf("%.6f", r.KLD.Value), fmt.Sprintf("%.2f %%", r.SameTop.Value)
		}
		ppl := fmt.Sprintf("%.4f ± %.4f", r.PPL.Value, r.PPL.Error)
		lines = append(lines, []string{r.File, sizeText(r.Bytes), fmt.Sprintf("%.3f", r.BitsPerWeight), ppl, kld, top})
	}
	a.printf("%s\n", table("lrrrrr", lines))
	for _, text := range []struct{ name, text string }{
		{"bpw", "bits per weight; the source counts without its multi-token prediction block, which is left out"},
		{"KLD", "how far the predictions lie from the source's, in nats per token"},
		{"same top", "share of positions where both find the same token most likely"},
		{"PPL", definition},
	} {
		a.printf("%-9s %s\n", text.name, wrap(text.text, "          "))
	}
	a.printf("\nThe files are in %s (%.1f s).\n", printable(dir), took.Seconds())
	return nil
}
