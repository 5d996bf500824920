package main

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"sync"

	"github.com/spf13/cobra"
	"github.com/winnow-moe/winnow/convert"
	"github.com/winnow-moe/winnow/formats/gguf"
	"github.com/winnow-moe/winnow/quant"
)

// checkpointFlags are the flags of commands that read a checkpoint folder.
func checkpointFlags(c *cobra.Command, opt *convert.CheckpointOptions) {
	c.Flags().StringVar(&opt.Pre, "pre", "", "`NAME` of the pre-tokenizer if it is not recognised")
	c.Flags().StringVar(&opt.MTP, "mtp", "", "multi-token prediction blocks: `keep|drop` them (default: as llama.cpp's converter)")
}

// openModel opens a GGUF file, or a checkpoint folder as the F32 model that a
// conversion would give, so that both can be scored alike. warnings are oddities
// of the files.
func openModel(path string, opt convert.CheckpointOptions) (m gguf.Model, warnings []string, err error) {
	return openWith(gguf.Open, path, opt)
}

// openWith is openModel with the function that opens GGUF files.
func openWith(open func(string) (*gguf.File, error), path string, opt convert.CheckpointOptions) (m gguf.Model, warnings []string, err error) {
	st, err := os.Stat(path)
	if err != nil {
		return nil, nil, err
	}
	if !st.IsDir() {
		f, err := open(path)
		if err != nil {
			return nil, nil, err
		}
		return f, f.Warnings, nil
	}
	ck, err := convert.OpenCheckpoint(path, opt)
	if err != nil {
		return nil, nil, err
	}
	view, err := checkpointView(ck)
	if err != nil {
		return nil, nil, errors.Join(err, ck.Close())
	}
	return view, ck.Warnings, nil
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
	beside []modelfile // written when the outputs are
}

// execute runs a conversion with progress. It adds to the plan's notes what
// only the data tells.
func (a *app) execute(ctx context.Context, c *conversion, maxMemory int64, what string) error {
	bar := a.newProgress(what, true)
	var mu sync.Mutex
	zero := map[string]bool{} // tensors with importance of zeros
	threads := a.threads
	if threads == 0 {
		threads = runtime.GOMAXPROCS(0)
	}
	// With one more than there are workers, the runtime lets a worker keep its
	// place during a long system call and wakes no other thread to take it.
	defer runtime.GOMAXPROCS(runtime.GOMAXPROCS(threads + 1))
	err := convert.Run(ctx, c.plan, c.data, convert.RunOptions{
		Threads: threads, MaxMemory: maxMemory, Inputs: c.inputs,
		Events: convert.Events{
			Progress: func(done, total int64) { bar.update(done, total, "") },
			ZeroImportance: func(name string, _ int64) {
				mu.Lock()
				defer mu.Unlock()
				zero[name] = true
			},
		},
	})
	bar.finish()
	if names := slices.Sorted(maps.Keys(zero)); len(names) > 0 {
		note := fmt.Sprintf("the importance of %d %s, such as %q, is zero throughout in some matrix; most types make zeros of it, here as in llama-quantize",
			len(names), plural(len(names), "tensor", "tensors"), names[0])
		c.plan.Notes = append(c.plan.Notes, note)
		a.warn([]string{note})
	}
	return err
}

// outputs lists the files that a conversion writes.
func (c *conversion) outputs() []string {
	var paths []string
	for i := range c.plan.Outputs {
		o := &c.plan.Outputs[i]
		paths = append(paths, o.Layout.Paths(o.Path)...)
	}
	for _, m := range c.beside {
		paths = append(paths, m.path)
	}
	return paths
}

// checkOutputs refuses outputs that may not be written, or twice.
func checkOutputs(list []*conversion, force bool) error {
	seen := map[string]bool{}
	for _, c := range list {
		for _, path := range c.outputs() {
			if seen[filepath.Clean(path)] {
				return usagef("two outputs would be written to %q", path)
			}
			seen[filepath.Clean(path)] = true
			if err := checkOutput(path, c.inputs, force); err != nil {
				return err
			}
		}
	}
	return nil
}

// checkOutput refuses an output that would replace an input or, without force,
// any other file.
func checkOutput(path string, inputs []string, force bool) error {
	for _, in := range inputs {
		if in == "" {
			continue
		}
		if same, err := gguf.SameFile(path, in); err == nil && same || filepath.Clean(in) == filepath.Clean(path) {
			return usagef("output %q is the same file as the input", path)
		}
	}
	if dir := filepath.Dir(path); !isDir(dir) {
		return usagef("the folder %q of the output does not exist", dir)
	}
	switch st, err := os.Stat(path); {
	case err != nil:
	case st.IsDir():
		return usagef("output %q is a folder", path)
	case st.Mode().IsRegular() && !force:
		return &usageError{&convert.HintError{Err: fmt.Errorf("output %q exists", path), Hint: "pass --force to replace it"}}
	}
	return nil
}

// isDir reports whether path is an existing folder.
func isDir(path string) bool {
	st, err := os.Stat(path)
	return err == nil && st.IsDir()
}
