package main

import (
	"context"
	"strconv"

	"github.com/spf13/cobra"
	"github.com/winnow-moe/winnow/convert"
	"github.com/winnow-moe/winnow/formats/gguf"
)

func newQuantizeCommand(a *app) *cobra.Command {
	var (
		flags   writeFlags
		requant bool
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
  winnow quantize model-BF16.gguf Q8_0,Q6_K,Q4_K_M`,
		Args: args(cobra.RangeArgs(2, 4)),
		RunE: func(cmd *cobra.Command, pos []string) error {
			in, out, types, threads, err := quantizeArgs(pos)
			if err != nil {
				return err
			}
			a.useThreads(threads)
			return a.quantize(cmd.Context(), in, out, types, requant, &flags)
		},
	}
	c.Flags().BoolVar(&requant, "allow-requantize", false, "quantize what is already quantized, at a further loss")
	flags.add(c)
	return c
}

// quantizeArgs takes the positional arguments apart as llama-quantize does:
// the output may be left out, and a number of threads may follow the type.
func quantizeArgs(pos []string) (in, out, types string, threads int, err error) {
	in, rest := pos[0], pos[1:]
	if _, e := parseTypes(rest[0]); e != nil && len(rest) > 1 {
		out, rest = rest[0], rest[1:]
	}
	types = rest[0]
	switch len(rest) {
	case 1:
	case 2:
		if threads, err = strconv.Atoi(rest[1]); err != nil || threads < 1 {
			return "", "", "", 0, usagef("the number of threads is %q, wanted a positive number", rest[1])
		}
	default:
		return "", "", "", 0, usagef("too many arguments after the type: %q", rest[1:])
	}
	return in, out, types, threads, nil
}

func (a *app) quantize(ctx context.Context, in, out, types string, requant bool, flags *writeFlags) error {
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
	req := flags.request(outputs)
	req.AllowRequantize = requant
	plan, err := src.Plan(req)
	if err != nil {
		return planError(err)
	}
	plan.Notes = append(plan.Notes, f.Warnings...)
	return a.carryOut(ctx, &conversion{plan, src, src.Inputs()}, flags)
}
