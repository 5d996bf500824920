package main

import (
	"context"
	"errors"
	"os"
	"path/filepath"

	"github.com/spf13/cobra"
	"github.com/winnow-moe/winnow/convert"
	"github.com/winnow-moe/winnow/formats/gguf"
	"github.com/winnow-moe/winnow/quant"
)

// checkpointFlags are the flags of commands that read a checkpoint folder.
func checkpointFlags(c *cobra.Command, opt *convert.CheckpointOptions) {
	c.Flags().StringVar(&opt.Pre, "pre", "", "`NAME` of the pre-tokenizer, where its structure is not recognised")
	c.Flags().StringVar(&opt.MTP, "mtp", "", "`keep` or drop multi-token prediction blocks (default: as llama.cpp's converter)")
}

// openModel opens a GGUF file, or a checkpoint folder as the F32 model that a
// conversion would give, so that both can be scored alike.
func openModel(path string, opt convert.CheckpointOptions) (gguf.Model, error) {
	st, err := os.Stat(path)
	if err != nil {
		return nil, err
	}
	if !st.IsDir() {
		return gguf.Open(path)
	}
	ck, err := convert.OpenCheckpoint(path, opt)
	if err != nil {
		return nil, err
	}
	view, err := checkpointView(ck)
	if err != nil {
		return nil, errors.Join(err, ck.Close())
	}
	return view, nil
}

// checkpointView presents a checkpoint as its F32 conversion.
func checkpointView(ck *convert.Checkpoint) (*convert.View, error) {
	f32, err := quant.LookupRecipe("F32")
	if err != nil {
		return nil, err
	}
	plan, err := ck.Plan(convert.Request{Outputs: []convert.OutputRequest{{Recipe: f32}}})
	if err != nil {
		return nil, err
	}
	return convert.NewView(plan, 0, ck, ck.Close), nil
}

// conversion is a plan with its input, ready to run.
type conversion struct {
	plan   *convert.Plan
	data   convert.Data
	inputs []string
}

// execute runs a conversion with progress.
func (a *app) execute(ctx context.Context, c *conversion, maxMemory int64, what string) error {
	bar := a.newProgress(what, true)
	defer bar.finish()
	return convert.Run(ctx, c.plan, c.data, convert.RunOptions{
		Threads: a.threads, MaxMemory: maxMemory, Inputs: c.inputs,
		Events: convert.Events{Progress: func(done, total int64) { bar.update(done, total, "") }},
	})
}

// refuseExisting stops before an existing file would be replaced.
func refuseExisting(p *convert.Plan, force bool) error {
	if force {
		return nil
	}
	for i := range p.Outputs {
		for _, path := range p.Outputs[i].Layout.Paths(p.Outputs[i].Path) {
			if st, err := os.Stat(path); err == nil {
				if st.IsDir() {
					return usagef("output %q is a folder", path)
				}
				if st.Mode().IsRegular() {
					return usagef("output %q exists; pass --force to replace it", path)
				}
			}
		}
	}
	return nil
}

// isDir reports whether path is an existing folder.
func isDir(path string) bool {
	st, err := os.Stat(path)
	return err == nil && st.IsDir()
}

// sameAsInput reports whether an output path is one of the inputs, under any name.
func sameAsInput(path string, inputs []string) bool {
	for _, in := range inputs {
		if same, err := gguf.SameFile(path, in); err == nil && same {
			return true
		}
		if filepath.Clean(in) == filepath.Clean(path) {
			return true
		}
	}
	return false
}
