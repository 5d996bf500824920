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
	typeArgs          []typeArg
	rules             []quant.Override // of the recipe file
	overrides         []string
	search            string
	matrix            *calib.Matrix // open while the command runs
}

func (f *recipeFlags) add(c *cobra.Command) {
	c.Flags().StringVar(&f.file, "recipe", "", "recipe `FILE` (see winnow recipe); flags win over it")
	c.Flags().StringVar(&f.imatrix, "imatrix", "", "importance matrix `FILE` (GGUF or .dat)")
	c.Flags().StringArrayVar(&f.include, "include-weights", nil, "use the matrix only for tensors with `TEXT` in the name")
	c.Flags().StringArrayVar(&f.exclude, "exclude-weights", nil, "do not use it for tensors with `TEXT` in the name")
	f.typeFlag(c, "tensor-type", "`REGEX=TYPE` for tensors; may be repeated")
	f.typeFlag(c, "tensor-type-file", "`FILE` with REGEX=TYPE, separated by white space")
	c.Flags().StringVar(&f.outputType, "output-tensor-type", "", "`TYPE` of output.weight")
	c.Flags().StringVar(&f.embeddingType, "token-embedding-type", "", "`TYPE` of the token embeddings")
	c.Flags().BoolVar(&f.pure, "pure", false, "one type for all tensors, no mixture")
	c.Flags().BoolVar(&f.leaveOutput, "leave-output-tensor", false, "keep output.weight as it is")
	c.Flags().StringVar(&f.search, "search", "default", "`SEARCH` for codes: default (llama-quantize's bytes) or thorough (lower error, same size)")
	c.Flags().StringArrayVar(&f.overrides, "override-kv", nil, "set a key: `KEY=TYPE:VALUE`; may be repeated")
}

// typeArg is the value of a --tensor-type or --tensor-type-file. Their order
// on the command line matters.
type typeArg struct{ flag, value string }

func (f *recipeFlags) typeFlag(c *cobra.Command, flag, usage string) {
	c.Flags().Func(flag, usage, func(s string) error {
		f.typeArgs = append(f.typeArgs, typeArg{flag, s})
		return nil
	})
}

// tensorTypes reads the types of single tensors; those of a recipe file come last.
func (f *recipeFlags) tensorTypes() ([]quant.Override, error) {
	var out []quant.Override
	for _, arg := range f.typeArgs {
		words, where := []string{arg.value}, "--"+arg.flag
		if arg.flag == "tensor-type-file" {
			b, err := os.ReadFile(arg.value)
			if err != nil {
				return nil, err
			}
			words, where = strings.Fields(string(b)), arg.value
		}
		for _, s := range words {
			o, err := quant.ParseOverride(s)
			if err != nil {
				return nil, usagef("%s: %w", where, err)
			}
			out = append(out, o)
		}
	}
	return append(out, f.rules...), nil
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
	if f.rules, err = r.TensorTypes(); err != nil {
		return "", err
	}
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
	r.Quant.Pure, r.Quant.LeaveOutput = f.pure, f.leaveOutput
	var err error
	if r.Quant.TensorTypes, err = f.tensorTypes(); err != nil {
		return err
	}
	if r.Quant.OutputType, err = optionalType("output-tensor-type", f.outputType); err != nil {
		return err
	}
	if r.Quant.TokenEmbdType, err = optionalType("token-embedding-type", f.embeddingType); err != nil {
		return err
	}
	if r.Quant.Search, err = quant.ParseSearch(f.search); err != nil {
		return usagef("--search: %w", err)
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
	if f.matrix.Filter(f.include, f.exclude); len(f.matrix.Entries) == 0 {
		f.matrix.Warnings = append(f.matrix.Warnings, "no entry of the importance matrix is left: quantizing without one")
		return nil
	}
	r.Importance = &convert.Importance{Matrix: f.matrix, File: f.imatrix, Selected: len(f.include)+len(f.exclude) > 0}
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
