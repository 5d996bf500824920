// Package recipefile reads, writes and derives recipe files: what to make of a
// model, as a text that people review. A recipe file says what the command
// line of a quantization says, field by field under the flags' names, and
// names tensors also by role and block:
//
//	type: Q4_K_M
//	tensor-type:
//	  - {role: attn_v, layers: 0-3, type: Q8_0}
//	  - {name: blk.7.ffn_down.weight, type: Q6_K}
//	  - 'ffn_(up|gate)=Q5_K'
//
// Files are YAML or JSON, or the plain list of PATTERN=TYPE that llama-quantize
// reads with --tensor-type-file. Rules mean the same in all three: each becomes
// a pattern, and the first that is found in a tensor's name decides.
package recipefile

import (
	"errors"
	"fmt"
	"math"
	"reflect"
	"strconv"
	"strings"

	"github.com/winnow-moe/winnow/quant"
)

// ErrInvalid is wrapped by errors about the content of a recipe file.
var ErrInvalid = errors.New("invalid recipe")

// File is the content of a recipe file. Zero values are fields not given.
type File struct {
	// Path is the file read, or "".
	Path string
	// Remarks are written as comments where the format has any.
	Remarks []string

	// Type is the name or number of a quant.Recipe.
	Type string
	// Rules give tensors types; the first that fits decides.
	Rules []Rule
	// OutputType and TokenEmbdType are names of types.
	OutputType, TokenEmbdType string
	// Pure and LeaveOutput are those of quant.Options.
	Pure, LeaveOutput bool
	// Imatrix is a path, relative to the folder of the recipe file.
	Imatrix string
	// Include and Exclude select entries of the importance matrix.
	Include, Exclude []string
	// PruneLayers are blocks to leave out.
	PruneLayers Layers
	// Overrides are of the form that ParseKey reads.
	Overrides []string
	// AllowRequantize, KeepSplit and NoFallback are the flags of these names.
	AllowRequantize, KeepSplit, NoFallback bool
}

// field is one field of a recipe file.
type field struct {
	name  string             // the flag's
	to    any                // pointer into File
	check func(string) error // of a text or the elements of a list; may be nil
}

// fields is the one list of what a recipe file may say, in writing order.
func (f *File) fields() []field {
	return []field{
		{"type", &f.Type, checkFileType},
		{"pure", &f.Pure, nil},
		{"output-tensor-type", &f.OutputType, checkType},
		{"token-embedding-type", &f.TokenEmbdType, checkType},
		{"leave-output-tensor", &f.LeaveOutput, nil},
		{"tensor-type", &f.Rules, nil},
		{"imatrix", &f.Imatrix, nil},
		{"include-weights", &f.Include, nil},
		{"exclude-weights", &f.Exclude, nil},
		{"prune-layers", &f.PruneLayers, nil},
		{"override-kv", &f.Overrides, checkKey},
		{"allow-requantize", &f.AllowRequantize, nil},
		{"keep-split", &f.KeepSplit, nil},
		{"no-fallback", &f.NoFallback, nil},
	}
}

// given lists the fields that are given, with what their pointers point to.
func (f *File) given() (names []string, values []any) {
	for _, fd := range f.fields() {
		if v := reflect.ValueOf(fd.to).Elem(); !v.IsZero() {
			names, values = append(names, fd.name), append(values, v.Interface())
		}
	}
	return names, values
}

// Setting is a field that is given, with its values as its flag takes them.
type Setting struct {
	Name   string
	Values []string
}

// Settings lists the fields that are given. The values of "tensor-type" are
// PATTERN=TYPE.
func (f *File) Settings() []Setting {
	names, values := f.given()
	out := make([]Setting, len(names))
	for i := range out {
		out[i].Name = names[i]
		switch v := values[i].(type) {
		case []string:
			out[i].Values = v
		case []Rule:
			for j := range v {
				out[i].Values = append(out[i].Values, v[j].String())
			}
		default:
			out[i].Values = []string{fmt.Sprint(v)}
		}
	}
	return out
}

// TensorTypes compiles the rules.
func (f *File) TensorTypes() ([]quant.Override, error) {
	out := make([]quant.Override, len(f.Rules))
	for i := range f.Rules {
		o, err := f.Rules[i].compile()
		if err != nil {
			return nil, err
		}
		if f.Path != "" {
			o.Label = fmt.Sprintf("%s (%s:%d)", f.Rules[i].label(), f.Path, f.Rules[i].line)
		}
		out[i] = o
	}
	return out, nil
}

func checkFileType(s string) error {
	_, err := quant.LookupRecipe(s)
	return err
}

func checkType(s string) error {
	_, err := quant.ParseType(s)
	return err
}

func checkKey(s string) error {
	_, _, err := ParseKey(s)
	return err
}

// maxKeyBytes is the room llama.cpp has for an overridden key, and for a text.
const maxKeyBytes = 127

// ParseKey reads KEY=TYPE:VALUE with the types int, float, bool and str. As in
// llama-quantize an int becomes the unsigned 32-bit number of its magnitude.
func ParseKey(s string) (key string, value any, err error) {
	bad := fmt.Errorf("%q is not KEY=TYPE:VALUE with TYPE int, float, bool or str", s)
	key, rest, ok := strings.Cut(s, "=")
	kind, text, ok2 := strings.Cut(rest, ":")
	if !ok || !ok2 || key == "" || len(key) > maxKeyBytes {
		return "", nil, bad
	}
	switch kind {
	case "int":
		n, err := strconv.ParseInt(text, 10, 64)
		if err != nil || n < -math.MaxUint32 || n > math.MaxUint32 {
			return "", nil, bad
		}
		return key, uint32(max(n, -n)), nil
	case "float":
		x, err := strconv.ParseFloat(text, 32)
		if err != nil {
			return "", nil, bad
		}
		return key, float32(x), nil
	case "bool":
		if text != "true" && text != "false" {
			return "", nil, bad
		}
		return key, text == "true", nil
	case "str":
		if len(text) > maxKeyBytes {
			return "", nil, fmt.Errorf("%s: the text has %d bytes, at most %d are allowed", key, len(text), maxKeyBytes)
		}
		return key, text, nil
	}
	return "", nil, bad
}
