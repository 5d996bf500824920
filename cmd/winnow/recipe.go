package main

import (
	"os"
	"path/filepath"
	"strings"

	"github.com/spf13/cobra"
	"github.com/winnow-moe/winnow/convert"
	"github.com/winnow-moe/winnow/formats/calib"
	"github.com/winnow-moe/winnow/formats/gguf"
	"github.com/winnow-moe/winnow/quant"
	"github.com/winnow-moe/winnow/quant/recipefile"
)

// recipeFlags are llama-quantize's flags about types, importance and keys,
// spelled and understood as there.
type recipeFlags struct {
	file              string
	imatrix           string
	include, exclude  []string
	pure, leaveOutput bool
	outputType        string
	embeddingType     string
	tensorTypes       []quant.Override // of the flags in their order, then of the file
	overrides         []string
	matrix            *calib.Matrix // open while the command runs
}

func (f *recipeFlags) add(c *cobra.Command) {
	c.Flags().StringVar(&f.file, "recipe", "", "recipe `FILE` (see winnow recipe); flags win over it")
	c.Flags().StringVar(&f.imatrix, "imatrix", "", "importance matrix `FILE` (GGUF or .dat)")
	c.Flags().StringArrayVar(&f.include, "include-weights", nil, "use the matrix only for tensors with `TEXT` in the name")
	c.Flags().StringArrayVar(&f.exclude, "exclude-weights", nil, "do not use it for tensors with `TEXT` in the name")
	c.Flags().Func("tensor-type", "`REGEX=TYPE` for tensors; may be repeated", f.addTensorType)
	c.Flags().Func("tensor-type-file", "`FILE` with REGEX=TYPE, separated by white space", f.addTensorTypeFile)
	c.Flags().StringVar(&f.outputType, "output-tensor-type", "", "`TYPE` of output.weight")
	c.Flags().StringVar(&f.embeddingType, "token-embedding-type", "", "`TYPE` of the token embeddings")
	c.Flags().BoolVar(&f.pure, "pure", false, "one type for all tensors, no mixture")
	c.Flags().BoolVar(&f.leaveOutput, "leave-output-tensor", false, "keep output.weight as it is")
	c.Flags().StringArrayVar(&f.overrides, "override-kv", nil, "set a key: `KEY=TYPE:VALUE`; may be repeated")
}

func (f *recipeFlags) addTensorType(s string) error {
	o, err := quant.ParseOverride(s)
	if err == nil {
		f.tensorTypes = append(f.tensorTypes, o)
	}
	return err
}

func (f *recipeFlags) addTensorTypeFile(path string) error {
	b, err := os.ReadFile(path)
	if err != nil {
		return err
	}
	for word := range strings.FieldsSeq(string(b)) {
		if err := f.addTensorType(word); err != nil {
			return err
		}
	}
	return nil
}

// load reads the recipe file, if one is named, as the flags of a command that
// are not given on its line. It returns the file type of the recipe, or "".
func (f *recipeFlags) load(c *cobra.Command) (fileType string, err error) {
	if f.file == "" {
		return "", nil
	}
	r, err := recipefile.Read(f.file)
	if err != nil {
		return "", err
	}
	rules, err := r.TensorTypes()
	if err != nil {
		return "", err
	}
	f.tensorTypes = append(f.tensorTypes, rules...) // the first that fits decides
	for _, s := range r.Settings() {
		flag := c.Flags().Lookup(s.Name)
		switch {
		case s.Name == "type", s.Name == "tensor-type":
			continue
		case flag == nil:
			return "", usagef("%s: the field %q means nothing to winnow %s", f.file, s.Name, c.Name())
		case s.Name == "override-kv":
			f.overrides = append(s.Values, f.overrides...) // the last one stands
			continue
		case flag.Changed, len(f.include)+len(f.exclude) > 0 && (s.Name == "include-weights" || s.Name == "exclude-weights"):
			continue
		case s.Name == "imatrix":
			s.Values[0] = besideFile(f.file, s.Values[0])
		}
		for _, v := range s.Values {
			if err := flag.Value.Set(v); err != nil {
				return "", usagef("%s: field %q: %w", f.file, s.Name, err)
			}
		}
	}
	return r.Type, nil
}

// besideFile resolves a path that a file names.
func besideFile(file, path string) string {
	if filepath.IsAbs(path) {
		return path
	}
	return filepath.Join(filepath.Dir(file), path)
}

// apply completes a request. close must be called when the command ends.
func (f *recipeFlags) apply(r *convert.Request) error {
	r.Quant.Pure, r.Quant.LeaveOutput, r.Quant.TensorTypes = f.pure, f.leaveOutput, f.tensorTypes
	var err error
	if r.Quant.OutputType, err = optionalType("output-tensor-type", f.outputType); err != nil {
		return err
	}
	if r.Quant.TokenEmbdType, err = optionalType("token-embedding-type", f.embeddingType); err != nil {
		return err
	}
	for _, s := range f.overrides {
		key, value, err := recipefile.ParseKey(s)
		if err != nil {
			return usagef("--override-kv: %w", err)
		}
		r.Overrides = append(r.Overrides, convert.Override{Key: key, Value: value})
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
	t, err := quant.ParseType(name)
	if err != nil {
		return nil, usagef("--%s: %w", flag, err)
	}
	return &t, nil
}
