package main

import (
	"context"
	"slices"
	"strconv"
	"strings"

	"github.com/spf13/cobra"
	"github.com/winnow-moe/winnow/convert"
	"github.com/winnow-moe/winnow/formats/gguf"
	"github.com/winnow-moe/winnow/quant/recipefile"
)

func newQuantizeCommand(a *app) *cobra.Command {
	var (
		flags   quantizeFlags
		explain bool
	)
	c := &cobra.Command{
		Use:   "quantize INPUT.gguf [OUTPUT.gguf] TYPE [THREADS]",
		Short: "GGUF to GGUF with other types, byte for byte as llama-quantize",
		Long: `Quantize a GGUF file. The tensors, their types, their order and their bytes are
those of llama-quantize. Several types, separated by commas, are made from one
read; OUTPUT then has {type} in its name or is a folder. Without OUTPUT the
files are written beside the input.

` + typesHelp(true),
		Example: `  winnow quantize model-F32.gguf model-Q4_K_M.gguf Q4_K_M
  winnow quantize model-BF16.gguf Q8_0,Q6_K,Q4_K_M
  winnow quantize --imatrix imatrix.gguf model-F32.gguf small.gguf IQ2_XS
  winnow quantize --explain Q4_K_M model-F32.gguf`,
		Args: args(cobra.RangeArgs(1, 4)),
		RunE: func(cmd *cobra.Command, pos []string) error {
			types, err := flags.recipe.load(cmd)
			if err != nil {
				return err
			}
			if explain {
				return a.explainArgs(pos, types, &flags)
			}
			in, out, types, threads, err := quantizeArgs(pos, types)
			if err != nil {
				return err
			}
			a.useThreads(threads)
			return a.quantize(cmd.Context(), in, out, types, &flags)
		},
	}
	flags.add(c)
	flags.recipe.add(c)
	c.Flags().BoolVar(&explain, "explain", false, "say which tensors get which type and why: --explain TYPE MODEL")
	c.Flags().BoolVar(&flags.requant, "allow-requantize", false, "quantize what is already quantized, at a further loss")
	c.Flags().StringVar(&flags.prune, "prune-layers", "", "leave out the blocks in `LIST`, such as 3,4,5")
	c.Flags().BoolVar(&flags.keepSplit, "keep-split", false, "divide the output into files as the input is")
	c.Flags().Int("max-buffer-size", 0, "accepted for llama-quantize's sake; see --max-memory")
	c.Flags().MarkHidden("max-buffer-size")
	return c
}

// explainArgs takes a type and a model in either order. types are those of a
// recipe file, which stand if the model is alone.
func (a *app) explainArgs(pos []string, types string, flags *quantizeFlags) error {
	if len(pos) == 1 && types != "" {
		return a.explain(types, pos[0], flags)
	}
	if len(pos) != 2 {
		return usagef("--explain takes a type and a model, got %d %s", len(pos), plural(len(pos), "argument", "arguments"))
	}
	types, path := pos[0], pos[1]
	if _, err := parseTypes(types); err != nil {
		if _, e := parseTypes(path); e != nil {
			return err
		}
		types, path = path, types
	}
	return a.explain(types, path, flags)
}

// quantizeFlags are the flags of quantize.
type quantizeFlags struct {
	writeFlags
	recipe    recipeFlags
	keepSplit bool
	prune     string
}

// request makes the whole request of a command line.
func (f *quantizeFlags) request(outputs []convert.OutputRequest) (r convert.Request, err error) {
	r = f.writeFlags.request(outputs)
	r.KeepSplit = f.keepSplit
	if f.prune != "" {
		if r.PruneLayers, err = recipefile.ParseLayers(f.prune); err != nil {
			return r, usagef("--prune-layers: %w", err)
		}
	}
	return r, f.recipe.apply(&r)
}

// quantizeArgs takes the positional arguments apart as llama-quantize does:
// the output may be left out, and a number of threads may follow the type. The
// type may be left out if recipe, that of a recipe file, is not "".
func quantizeArgs(pos []string, recipe string) (in, out, types string, threads int, err error) {
	in, rest := pos[0], pos[1:]
	if len(rest) > 0 {
		_, err := parseTypes(rest[0])
		if err != nil && (recipe != "" || len(rest) > 1 || strings.HasSuffix(rest[0], ".gguf")) {
			out, rest = rest[0], rest[1:]
		}
	}
	types = recipe
	if len(rest) > 0 {
		types, rest = rest[0], rest[1:]
	}
	switch {
	case types == "":
		return "", "", "", 0, usagef("the type is missing: usage is winnow quantize INPUT.gguf [OUTPUT.gguf] TYPE")
	case len(rest) > 1:
		return "", "", "", 0, usagef("too many arguments after the type: %q", rest)
	case len(rest) == 1:
		if threads, err = strconv.Atoi(rest[0]); err != nil || threads < 0 {
			return "", "", "", 0, usagef("the number of threads is %q, wanted a number (0: all cores)", rest[0])
		}
	}
	return in, out, types, threads, nil
}

func (a *app) quantize(ctx context.Context, in, out, types string, flags *quantizeFlags) error {
	recipes, err := parseTypes(types)
	if err != nil {
		return err
	}
	f, err := gguf.OpenUnmapped(in)
	if err != nil {
		return err
	}
	defer f.Close()
	src := convert.NewGGUFSource(in, f)
	outputs, err := outputNames(out, src.DefaultName(), recipes)
	if err != nil {
		return err
	}
	defer flags.recipe.close()
	req, err := flags.request(outputs)
	if err != nil {
		return err
	}
	plan, err := src.Plan(req)
	if err != nil {
		return planError(err)
	}
	plan.Notes = slices.Concat(plan.Notes, f.Warnings, flags.recipe.warnings())
	return a.carryOut(ctx, &flags.writeFlags, &conversion{plan: plan, data: src, inputs: src.Inputs()})
}
