package gguf

import (
	"fmt"
	"math"
	"strings"
)

// Type is a ggml tensor element type: the number stored in a GGUF tensor
// directory. The numbers are part of the file format (ggml.h enum ggml_type).
type Type uint32

// The types that GGUF files of this format generation may hold.
const (
	F32    Type = 0
	F16    Type = 1
	Q4_0   Type = 2
	Q4_1   Type = 3
	Q5_0   Type = 6
	Q5_1   Type = 7
	Q8_0   Type = 8
	Q8_1   Type = 9
	Q2_K   Type = 10
	Q3_K   Type = 11
	Q4_K   Type = 12
	Q5_K   Type = 13
	Q6_K   Type = 14
	Q8_K   Type = 15
	IQ2XXS Type = 16
	IQ2XS  Type = 17
	IQ3XXS Type = 18
	IQ1S   Type = 19
	IQ4NL  Type = 20
	IQ3S   Type = 21
	IQ2S   Type = 22
	IQ4XS  Type = 23
	I8     Type = 24
	I16    Type = 25
	I32    Type = 26
	I64    Type = 27
	F64    Type = 28
	IQ1M   Type = 29
	BF16   Type = 30
	TQ1_0  Type = 34
	TQ2_0  Type = 35
	MXFP4  Type = 39
	NVFP4  Type = 40
	Q1_0   Type = 41
	Q2_0   Type = 42
)

// typeInfo is the one place where the geometry of a block is written down.
type typeInfo struct {
	name  string
	block int // elements per block
	bytes int // bytes per block
}

// Geometry as in ggml-common.h (block_* structs) and ggml.c type_traits.
var typeTable = map[Type]typeInfo{
	F32: {"F32", 1, 4}, F16: {"F16", 1, 2}, BF16: {"BF16", 1, 2}, F64: {"F64", 1, 8},
	I8: {"I8", 1, 1}, I16: {"I16", 1, 2}, I32: {"I32", 1, 4}, I64: {"I64", 1, 8},
	Q4_0: {"Q4_0", 32, 18}, Q4_1: {"Q4_1", 32, 20}, Q5_0: {"Q5_0", 32, 22}, Q5_1: {"Q5_1", 32, 24},
	Q8_0: {"Q8_0", 32, 34}, Q8_1: {"Q8_1", 32, 36},
	Q2_K: {"Q2_K", 256, 84}, Q3_K: {"Q3_K", 256, 110}, Q4_K: {"Q4_K", 256, 144},
	Q5_K: {"Q5_K", 256, 176}, Q6_K: {"Q6_K", 256, 210}, Q8_K: {"Q8_K", 256, 292},
	IQ2XXS: {"IQ2_XXS", 256, 66}, IQ2XS: {"IQ2_XS", 256, 74}, IQ2S: {"IQ2_S", 256, 82},
	IQ3XXS: {"IQ3_XXS", 256, 98}, IQ3S: {"IQ3_S", 256, 110},
	IQ1S: {"IQ1_S", 256, 50}, IQ1M: {"IQ1_M", 256, 56},
	IQ4NL: {"IQ4_NL", 32, 18}, IQ4XS: {"IQ4_XS", 256, 136},
	TQ1_0: {"TQ1_0", 256, 54}, TQ2_0: {"TQ2_0", 256, 66},
	MXFP4: {"MXFP4", 32, 17}, NVFP4: {"NVFP4", 64, 36},
	Q1_0: {"Q1_0", 128, 18}, Q2_0: {"Q2_0", 64, 18},
}

// removedTypes are numbers that older ggml versions used; naming them makes
// the refusal of an old file understandable.
var removedTypes = map[Type]string{
	4: "Q4_2", 5: "Q4_3", 31: "Q4_0_4_4", 32: "Q4_0_4_8", 33: "Q4_0_8_8",
	36: "IQ4_NL_4_4", 37: "IQ4_NL_4_8", 38: "IQ4_NL_8_8",
}

// Valid reports whether t is a type of this format generation.
func (t Type) Valid() bool { _, ok := typeTable[t]; return ok }

// String returns the name as users write it, such as "Q4_K".
func (t Type) String() string {
	if i, ok := typeTable[t]; ok {
		return i.name
	}
	return fmt.Sprintf("type(%d)", uint32(t))
}

// MarshalText writes the name, so that JSON documents hold "Q4_K", not 12.
func (t Type) MarshalText() ([]byte, error) { return []byte(t.String()), nil }

// ParseType finds a type by name, ignoring case.
func ParseType(name string) (Type, bool) {
	for t, i := range typeTable {
		if strings.EqualFold(i.name, name) {
			return t, true
		}
	}
	return 0, false
}

// BlockLen returns the elements per block; a row must be a multiple of it.
func (t Type) BlockLen() int { return typeTable[t].block }

// BlockBytes returns the bytes per block.
func (t Type) BlockBytes() int { return typeTable[t].bytes }

// RowBytes returns the bytes of a row of n elements, n a multiple of BlockLen.
func (t Type) RowBytes(n int64) int64 {
	i := typeTable[t]
	return n / int64(i.block) * int64(i.bytes)
}

// Quantized reports whether t packs several elements in a block.
func (t Type) Quantized() bool { return typeTable[t].block > 1 }

// TensorInfo is one entry of a tensor directory.
type TensorInfo struct {
	Name string
	Type Type
	// Shape lists the dimensions as GGUF stores them: Shape[0] is the row
	// length (fastest axis). Empty means a scalar.
	Shape []int64
}

// RowLen returns the number of elements of a row.
func (t *TensorInfo) RowLen() int64 {
	if len(t.Shape) == 0 {
		return 1
	}
	return t.Shape[0]
}

// Rows returns the number of rows: the product of all axes but the first.
func (t *TensorInfo) Rows() int64 {
	n := int64(1)
	for i := 1; i < len(t.Shape); i++ {
		n *= t.Shape[i]
	}
	return n
}

// Elements returns the number of elements. Readers and planners have made
// sure with CheckShape that the product does not overflow.
func (t *TensorInfo) Elements() int64 { return t.RowLen() * t.Rows() }

// RowBytes returns the encoded bytes of one row.
func (t *TensorInfo) RowBytes() int64 { return t.Type.RowBytes(t.RowLen()) }

// Size returns the encoded bytes of the tensor, without padding.
func (t *TensorInfo) Size() int64 { return t.RowBytes() * t.Rows() }

// CheckShape verifies that the type is known, that a row is a whole number of
// blocks, and that element and byte counts fit an int64.
func (t *TensorInfo) CheckShape() error {
	if !t.Type.Valid() {
		if old, ok := removedTypes[t.Type]; ok {
			return fmt.Errorf("tensor %q has type %d (%s), which ggml removed", t.Name, uint32(t.Type), old)
		}
		return fmt.Errorf("tensor %q has unknown type %d", t.Name, uint32(t.Type))
	}
	n := int64(1)
	for _, d := range t.Shape {
		if d < 0 {
			return fmt.Errorf("tensor %q has negative dimension %d", t.Name, d)
		}
		if d != 0 && n > math.MaxInt64/16/d {
			return fmt.Errorf("tensor %q is too large: shape %v overflows", t.Name, t.Shape)
		}
		n *= d
	}
	// A zero anywhere hides the other factors from the product above.
	m := int64(1)
	for _, d := range t.Shape {
		if d > 1 {
			if m > math.MaxInt64/16/d {
				return fmt.Errorf("tensor %q is too large: shape %v overflows", t.Name, t.Shape)
			}
			m *= d
		}
	}
	if b := int64(t.Type.BlockLen()); t.RowLen()%b != 0 {
		return fmt.Errorf("tensor %q: row length %d is not a multiple of the %s block size %d", t.Name, t.RowLen(), t.Type, b)
	}
	return nil
}
