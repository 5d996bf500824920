package main

import (
	"strings"

	"github.com/spf13/cobra"

	"github.com/winnow-moe/winnow/formats/durable"
	"github.com/winnow-moe/winnow/formats/gguf"
	"github.com/winnow-moe/winnow/quant/recipefile"
)

func newRecipeCommand(a *app) *cobra.Command {
	c := &cobra.Command{
		Use:   "recipe",
		Short: "Recipe files: take one from a GGUF file, show, convert",
		Long: `A recipe file says what to make of a model, for --recipe of quantize and
convert. It is YAML or JSON; each field is the flag of that name, and type is
the file type. Rules name tensors by role and block, by name or by pattern, and
the first that fits decides. What the command line says wins.

  type: Q4_K_M
  token-embedding-type: Q8_0
  tensor-type:
    - {role: [ffn_down_exps, ffn_up_exps], layers: 0-3, type: Q6_K}
    - {name: blk.7.attn_v.weight, type: Q8_0}
    - 'attn_(q|k)=Q5_K'
  imatrix: imatrix.gguf

The fields are type, pure, output-tensor-type, token-embedding-type,
leave-output-tensor, tensor-type, imatrix (beside the recipe file),
include-weights, exclude-weights, prune-layers, override-kv, allow-requantize,
keep-split and no-fallback. The form tensor-types is the list of PATTERN=TYPE
that llama-quantize reads with --tensor-type-file.`,
		Example: `  winnow recipe extract model-Q4_K_M.gguf -o recipe.yaml
  winnow quantize --recipe recipe.yaml other-F32.gguf other.gguf
  winnow recipe show recipe.yaml --format tensor-types -o types.txt`,
		Args: args(cobra.NoArgs),
		RunE: func(*cobra.Command, []string) error { return usagef("say what to do: winnow recipe extract or show") },
	}
	c.AddCommand(newRecipeExtractCommand(a), newRecipeShowCommand(a))
	return c
}

func newRecipeExtractCommand(a *app) *cobra.Command {
	var out recipeOutput
	c := &cobra.Command{
		Use:   "extract MODEL.gguf",
		Short: "Derive the recipe of an existing file, whatever made it",
		Long: `Derive a recipe from a GGUF file: its file type, and rules for the tensors that
the file type's own rules would give another type. Quantizing with it gives
every tensor the type it has in the file.`,
		Example: `  winnow recipe extract model-UD-Q4_K_XL.gguf -o recipe.yaml
  winnow recipe extract model.gguf --format tensor-types -o types.txt`,
		Args: args(cobra.ExactArgs(1)),
		RunE: func(_ *cobra.Command, pos []string) error {
			f, err := gguf.OpenUnmapped(pos[0])
			if err != nil {
				return err
			}
			defer f.Close()
			r, err := recipefile.Extract(f.Metadata(), f.Tensors())
			if err != nil {
				return &inputError{err}
			}
			return a.writeRecipe(r, &out, pos[0])
		},
	}
	out.add(c)
	return c
}

func newRecipeShowCommand(a *app) *cobra.Command {
	var out recipeOutput
	c := &cobra.Command{
		Use:   "show RECIPE",
		Short: "Check a recipe file and write it in another form",
		Args:  args(cobra.ExactArgs(1)),
		RunE: func(_ *cobra.Command, pos []string) error {
			r, err := recipefile.Read(pos[0])
			if err != nil {
				return err
			}
			return a.writeRecipe(r, &out, pos[0])
		},
	}
	out.add(c)
	return c
}

// recipeOutput says where a recipe goes and in which form.
type recipeOutput struct {
	path, format string
	force        bool
}

func (o *recipeOutput) add(c *cobra.Command) {
	c.Flags().StringVarP(&o.path, "output", "o", "", "write to `FILE` instead of the standard output")
	c.Flags().StringVar(&o.format, "format", "", "`yaml|json|tensor-types` (default: json for FILE.json, else yaml)")
	c.Flags().BoolVar(&o.force, "force", false, "replace an existing output")
}

func (a *app) writeRecipe(r *recipefile.File, o *recipeOutput, input string) error {
	format := o.format
	switch {
	case format != "":
	case a.json, strings.HasSuffix(strings.ToLower(o.path), ".json"):
		format = "json"
	default:
		format = "yaml"
	}
	text, err := r.Encode(format)
	if err != nil {
		return &usageError{err}
	}
	if format != "yaml" {
		a.warn(r.Remarks)
	}
	if format == "tensor-types" {
		a.noteBesideList(r, o.path)
	}
	if o.path == "" {
		_, err := a.stdout.Write(text)
		return err
	}
	if err := checkOutput(o.path, []string{input}, o.force); err != nil {
		return err
	}
	return durable.WriteBytes(o.path, text)
}

// noteBesideList says with which arguments a list of PATTERN=TYPE is used.
func (a *app) noteBesideList(r *recipefile.File, path string) {
	if path == "" {
		path = "FILE"
	}
	fileType := r.Type
	if fileType == "" {
		fileType = "TYPE"
	}
	args, lost := r.BesideList()
	line := append([]string{"llama-quantize", "--tensor-type-file", path}, args...)
	a.note("use it as: %s IN OUT %s", strings.Join(line, " "), fileType)
	if len(lost) > 0 {
		a.note("warning: llama-quantize has no %s", strings.Join(lost, ", "))
	}
}
