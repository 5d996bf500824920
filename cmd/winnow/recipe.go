package main

import (
	"math"
	"os"
	"strconv"
	"strings"

	"github.com/spf13/cobra"
	"github.com/winnow-moe/winnow/convert"
	"github.com/winnow-moe/winnow/formats/calib"
	"github.com/winnow-moe/winnow/formats/gguf"
	"github.com/winnow-moe/winnow/quant"
)

// recipeFlags are llama-quantize's flags about types, importance and keys,
// spelled and understood as there.
type recipeFlags struct {
	imatrix           string
	include, exclude  []string
	pure, leaveOutput bool
	outputType        string
	embeddingType     string
	tensorTypes       []string
	tensorTypeFile    string
	overrides         []string
	matrix            *calib.Matrix // open while the command runs
}

func (f *recipeFlags) add(c *cobra.Command) {
	c.Flags().StringVar(&f.imatrix, "imatrix", "", "importance matrix `FILE` (GGUF or .dat)")
	c.Flags().StringArrayVar(&f.include, "include-weights", nil, "use the matrix only for tensors with `TEXT` in the name")
	c.Flags().StringArrayVar(&f.exclude, "exclude-weights", nil, "do not use it for tensors with `TEXT` in the name")
	c.Flags().StringArrayVar(&f.tensorTypes, "tensor-type", nil, "`REGEX=TYPE` for tensors; may be repeated")
	c.Flags().StringVar(&f.tensorTypeFile, "tensor-type-file", "", "`FILE` with REGEX=TYPE, separated by white space")
	c.Flags().StringVar(&f.outputType, "output-tensor-type", "", "`TYPE` of output.weight")
	c.Flags().StringVar(&f.embeddingType, "token-embedding-type", "", "`TYPE` of the token embeddings")
	c.Flags().BoolVar(&f.pure, "pure", false, "one type for all tensors, no mixture")
	c.Flags().BoolVar(&f.leaveOutput, "leave-output-tensor", false, "keep output.weight as it is")
	c.Flags().StringArrayVar(&f.overrides, "override-kv", nil, "set a key: `KEY=TYPE:VALUE`; may be repeated")
}

// apply completes a request. close must be called when the command ends.
func (f *recipeFlags) apply(r *convert.Request) error {
	r.Quant.Pure, r.Quant.LeaveOutput = f.pure, f.leaveOutput
	var err error
	if r.Quant.OutputType, err = optionalType("output-tensor-type", f.outputType); err != nil {
		return err
	}
	if r.Quant.TokenEmbdType, err = optionalType("token-embedding-type", f.embeddingType); err != nil {
		return err
	}
	if r.Quant.TensorTypes, err = f.tensorOverrides(); err != nil {
		return err
	}
	for _, s := range f.overrides {
		o, err := parseOverride(s)
		if err != nil {
			return err
		}
		r.Overrides = append(r.Overrides, o)
	}
	return f.openMatrix(r)
}

func (f *recipeFlags) openMatrix(r *convert.Request) (err error) {
	switch {
	case len(f.include) > 0 && len(f.exclude) > 0:
		return usagef("--include-weights and --exclude-weights exclude each other")
	case f.imatrix == "" && len(f.include)+len(f.exclude) > 0:
		return usagef("--include-weights and --exclude-weights need --imatrix")
	case f.imatrix == "":
		return nil
	}
	if f.matrix, err = calib.Read(f.imatrix, calib.Options{}); err != nil {
		return err
	}
	f.matrix.Filter(f.include, f.exclude)
	r.Importance = &convert.Importance{Matrix: f.matrix, File: f.imatrix}
	return nil
}

// warnings are the oddities of the importance matrix.
func (f *recipeFlags) warnings() []string {
	if f.matrix == nil {
		return nil
	}
	return f.matrix.Warnings
}

func (f *recipeFlags) close() {
	if f.matrix != nil {
		f.matrix.Close()
	}
}

func optionalType(flag, name string) (*gguf.Type, error) {
	if name == "" {
		return nil, nil
	}
	t, ok := gguf.ParseType(name)
	if !ok {
		return nil, usagef("--%s: unknown type %q", flag, name)
	}
	return &t, nil
}

func (f *recipeFlags) tensorOverrides() ([]quant.Override, error) {
	list := f.tensorTypes
	if f.tensorTypeFile != "" {
		b, err := os.ReadFile(f.tensorTypeFile)
		if err != nil {
			return nil, err
		}
		list = append(list[:len(list):len(list)], strings.Fields(string(b))...)
	}
	var out []quant.Override
	for _, s := range list {
		o, err := quant.ParseOverride(s)
		if err != nil {
			return nil, &usageError{err}
		}
		out = append(out, o)
	}
	return out, nil
}

// parseOverride reads KEY=TYPE:VALUE. As in llama-quantize an int becomes the
// unsigned 32-bit number of its magnitude.
func parseOverride(s string) (convert.Override, error) {
	bad := usagef("--override-kv %q is not KEY=TYPE:VALUE with TYPE int, float, bool or str", s)
	key, rest, ok := strings.Cut(s, "=")
	kind, value, ok2 := strings.Cut(rest, ":")
	if !ok || !ok2 || key == "" || len(key) > 127 {
		return convert.Override{}, bad
	}
	o := convert.Override{Key: key}
	switch kind {
	case "int":
		n, err := strconv.ParseInt(value, 10, 64)
		if err != nil || n < -math.MaxUint32 || n > math.MaxUint32 {
			return o, bad
		}
		o.Value = uint32(max(n, -n))
	case "float":
		x, err := strconv.ParseFloat(value, 32)
		if err != nil {
			return o, bad
		}
		o.Value = float32(x)
	case "bool":
		if value != "true" && value != "false" {
			return o, bad
		}
		o.Value = value == "true"
	case "str":
		if len(value) > 127 {
			return o, usagef("--override-kv %s: the text has %d bytes, at most 127 are allowed", key, len(value))
		}
		o.Value = value
	default:
		return o, bad
	}
	return o, nil
}

// parseLayers reads a list of block numbers.
func parseLayers(s string) ([]int, error) {
	var out []int
	for _, f := range strings.Split(s, ",") {
		n, err := strconv.Atoi(strings.TrimSpace(f))
		if err != nil || n < 0 {
			return nil, usagef("--prune-layers: %q is not a block number", f)
		}
		out = append(out, n)
	}
	return out, nil
}
