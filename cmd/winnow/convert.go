package main

import (
	"context"
	"fmt"
	"path/filepath"
	"runtime/debug"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"
	"github.com/winnow-moe/winnow/convert"
	"github.com/winnow-moe/winnow/formats/gguf"
	"github.com/winnow-moe/winnow/quant"
)

// writeFlags are the flags of the commands that write GGUF files.
type writeFlags struct {
	dryRun, force, noFallback bool
	requant                   bool
	maxMemory, maxShardSize   sizeValue
	maxShardTensors           int
}

func (f *writeFlags) add(c *cobra.Command) {
	f.maxMemory = convert.DefaultMaxMemory
	c.Flags().BoolVar(&f.dryRun, "dry-run", false, "print the plan and write nothing")
	c.Flags().BoolVar(&f.force, "force", false, "replace existing outputs")
	c.Flags().BoolVar(&f.noFallback, "no-fallback", false, "stop where a row length does not fit the type")
	c.Flags().Var(&f.maxMemory, "max-memory", "bound of resident memory, such as 2G")
	c.Flags().Var(&f.maxShardSize, "max-shard-size", "split into files of at most `SIZE`, such as 50G")
	c.Flags().IntVar(&f.maxShardTensors, "max-shard-tensors", 0, "split into files of at most `N` tensors")
}

func (f *writeFlags) request(outputs []convert.OutputRequest) convert.Request {
	r := convert.Request{
		Outputs: outputs,
		Layout:  gguf.LayoutOptions{MaxShardBytes: int64(f.maxShardSize), MaxShardTensors: f.maxShardTensors},
	}
	r.Quant.NoFallback, r.AllowRequantize = f.noFallback, f.requant
	r.Preview = f.dryRun
	return r
}

func newConvertCommand(a *app) *cobra.Command {
	var (
		flags  writeFlags
		recipe recipeFlags
		tower  towerFlags
		ck     convert.CheckpointOptions
		types  string
		out    string
		ollama bool
	)
	c := &cobra.Command{
		Use:   "convert CHECKPOINT [OUTPUT]",
		Short: "Checkpoint folder to GGUF, quantized on the way",
		Long: `Convert a HuggingFace checkpoint folder (safetensors: F32, F16, BF16, FP8,
INT8, MXFP4, NVFP4, packed INT4, GPTQ or AWQ) to GGUF. Several types are made
from one read of the input. MXFP4 and NVFP4 stay what they are in every type.

OUTPUT is a file, a folder, or a name with {type} in it. Without a name the
files are called NAME-SIZE-FINETUNE-VERSION-TYPE by the GGUF naming convention,
split ones with -00001-of-0000N behind it; without a folder they go to the
current one. A file gets its name only when it is complete and on disk.

The general.* keys, such as name, license and base model, come from the model
card (README.md), config.json and the name of the folder.

--ollama puts a Modelfile beside the output, for "ollama create NAME -f
Modelfile": the file, the texts that end an answer, and the license. The prompt
format Ollama takes from the chat template in the file, if it knows it.

Vision towers are left out, as the plan says; --mmproj writes them to a file of
their own, which llama.cpp's tools take beside the model under the same flag.

` + typesHelp(false),
		Example: `  winnow convert DeepSeek-R1 --dry-run --type Q4_K_M
  winnow convert DeepSeek-R1 R1-{type}.gguf --type Q8_0,Q4_K_M
  winnow convert DeepSeek-R1 out/ --type Q4_K_M --max-shard-size 50G`,
		Args: args(cobra.RangeArgs(1, 2)),
		RunE: func(cmd *cobra.Command, pos []string) error {
			switch {
			case len(pos) == 2 && out != "":
				return usagef("the output is given twice: %q and --output %q", pos[1], out)
			case len(pos) == 2:
				out = pos[1]
			}
			recipeType, err := recipe.load(cmd)
			if err != nil {
				return err
			}
			if recipeType != "" && !cmd.Flags().Changed("type") {
				types = recipeType
			}
			if tower.path != "" && out == "" && recipeType == "" && !cmd.Flags().Changed("type") {
				types = "" // only the tower
			}
			return a.convert(cmd.Context(), pos[0], out, types, ck, &flags, &recipe, &tower, ollama)
		},
	}
	c.Flags().StringVar(&types, "type", "Q8_0", "`TYPE`, or several separated by commas")
	c.Flags().StringVarP(&out, "output", "o", "", "same as `OUTPUT`")
	c.Flags().BoolVar(&ollama, "ollama", false, "write a Modelfile for Ollama beside the output")
	c.RegisterFlagCompletionFunc("type", completeTypes)
	checkpointFlags(c, &ck)
	tower.add(c)
	flags.add(c)
	c.Flags().BoolVar(&flags.requant, "allow-requantize", false, "give MXFP4 and NVFP4 weights the type asked for too")
	recipe.add(c)
	return c
}

// convert makes files of a checkpoint: of the texts' model in types, if any,
// and of the vision tower.
func (a *app) convert(ctx context.Context, dir, out, types string, opt convert.CheckpointOptions, flags *writeFlags, recipe *recipeFlags, tower *towerFlags, ollama bool) error {
	if strings.EqualFold(filepath.Ext(dir), ".gguf") && !isDir(dir) {
		return &usageError{&convert.HintError{
			Err: fmt.Errorf("%q is a GGUF file; convert wants a checkpoint folder", dir), Hint: "winnow quantize makes GGUF from GGUF",
		}}
	}
	var recipes []*quant.Recipe
	if types != "" {
		var err error
		if recipes, err = checkpointTypes(types); err != nil {
			return err
		}
	}
	ck, err := convert.OpenCheckpoint(dir, opt)
	if err != nil {
		return err
	}
	defer ck.Close()
	defer recipe.close()
	var list []*conversion
	if len(recipes) > 0 {
		plan, err := planTexts(ck, out, recipes, flags, recipe)
		if err != nil {
			return err
		}
		texts := &conversion{plan: plan, data: ck, inputs: ck.Inputs()}
		if ollama {
			if texts.beside, err = planModelfiles(plan, ck); err != nil {
				return err
			}
		}
		list = append(list, texts)
	}
	if plan, err := tower.plan(ck, flags); err != nil {
		return err
	} else if plan != nil {
		list = append(list, &conversion{plan: plan, data: ck, inputs: ck.Inputs()})
	}
	return a.carryOut(ctx, flags, list...)
}

// checkpointTypes reads a list of types that a checkpoint can become.
func checkpointTypes(list string) ([]*quant.Recipe, error) {
	recipes, err := parseTypes(list)
	if err != nil {
		return nil, err
	}
	for _, r := range recipes {
		if r.KeepsTypes {
			return nil, usagef("%s keeps the types of a GGUF file; name a type to convert a checkpoint to", r.Name)
		}
	}
	return recipes, nil
}

// planTexts decides the files of the texts' model. The importance matrix stays open.
func planTexts(ck *convert.Checkpoint, out string, recipes []*quant.Recipe, flags *writeFlags, recipe *recipeFlags) (*convert.Plan, error) {
	outputs, err := outputNames(out, ck.DefaultName(), recipes)
	if err != nil {
		return nil, err
	}
	req := flags.request(outputs)
	if err := recipe.apply(&req); err != nil {
		return nil, err
	}
	plan, err := ck.Plan(req)
	if err != nil {
		return nil, planError(err)
	}
	plan.Notes = append(plan.Notes, recipe.warnings()...)
	return plan, nil
}

// planError marks errors of planning. Since no weight is read for it, what is
// not about the input is about what was asked for, such as --no-fallback.
func planError(err error) error {
	if exitStatus(err) == exitFailure {
		return &usageError{err}
	}
	return err
}

// carryOut prints plans or executes them, and reports the result.
func (a *app) carryOut(ctx context.Context, flags *writeFlags, list ...*conversion) error {
	var plans []*convert.Plan
	var notes []string
	for _, c := range list {
		plans = append(plans, c.plan)
		for _, n := range c.plan.Notes { // plans of one input share some
			if !slices.Contains(notes, n) {
				notes = append(notes, n)
			}
		}
	}
	a.warn(notes)
	if flags.dryRun {
		return a.printPlans(plans)
	}
	if err := checkOutputs(list, flags.force); err != nil {
		return err
	}
	for _, p := range plans {
		for _, text := range fallbackTexts(p) {
			a.note("%s", wrap(text, "        "))
		}
	}
	debug.SetMemoryLimit(int64(flags.maxMemory))
	start := time.Now()
	for _, c := range list {
		if err := a.execute(ctx, c, int64(flags.maxMemory), "converting"); err != nil {
			return err
		}
		if err := a.writeModelfiles(c.beside); err != nil {
			return err
		}
	}
	return a.printResult(plans, time.Since(start))
}
