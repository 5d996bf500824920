// Package dtype describes the element types of checkpoints: their names in
// safetensors headers, their sizes, and how rows of them become float32 and
// back. It knows no file format.
//
// Rows are little endian, as in safetensors and GGUF. Every conversion to
// float32 is exact except from F64, which rounds to nearest even.
package dtype

import "fmt"

// Type is an element type of the safetensors format. The zero value is no type.
type Type uint8

// The types of safetensors 0.8 (safetensors/src/tensor.rs, enum Dtype).
const (
	Bool       Type = iota + 1 // one byte, 0 or 1
	F4                         // E2M1, two in a byte
	F6E2M3                     // four in three bytes
	F6E3M2                     // four in three bytes
	U8                         // unsigned integers
	I8                         // two's complement integers
	F8E5M2                     // IEEE-like: infinities and NaNs as in half precision
	F8E4M3                     // the "fn" variant: no infinities, one NaN per sign, largest 448
	F8E8M0                     // a power of two, 2^(code-127); code 255 is NaN
	F8E4M3FNUZ                 // E4M3 with bias 8 and no negative zero
	F8E5M2FNUZ                 // E5M2 with bias 16 and no negative zero
	I16
	U16
	F16  // IEEE half precision
	BF16 // upper half of a float32
	I32
	U32
	F32
	C64 // two float32
	F64
	I64
	U64
)

// types is the one table of names and sizes, indexed by Type.
var types = [...]struct {
	name string
	bits int
}{
	{"invalid", 0},
	{"BOOL", 8}, {"F4", 4}, {"F6_E2M3", 6}, {"F6_E3M2", 6}, {"U8", 8}, {"I8", 8},
	{"F8_E5M2", 8}, {"F8_E4M3", 8}, {"F8_E8M0", 8}, {"F8_E4M3FNUZ", 8}, {"F8_E5M2FNUZ", 8},
	{"I16", 16}, {"U16", 16}, {"F16", 16}, {"BF16", 16}, {"I32", 32}, {"U32", 32}, {"F32", 32},
	{"C64", 64}, {"F64", 64}, {"I64", 64}, {"U64", 64},
}

var byName = func() map[string]Type {
	m := make(map[string]Type, len(types))
	for t := Bool; t <= U64; t++ {
		m[types[t].name] = t
	}
	return m
}()

// Parse returns the type that a safetensors header calls name, in exactly this case.
func Parse(name string) (Type, bool) { t, ok := byName[name]; return t, ok }

// String returns the name in safetensors headers, such as "F8_E4M3".
func (t Type) String() string {
	if int(t) < len(types) {
		return types[t].name
	}
	return fmt.Sprintf("type(%d)", uint8(t))
}

// Bits returns the size of one element in bits; 0 when t is no type.
func (t Type) Bits() int {
	if int(t) < len(types) {
		return types[t].bits
	}
	return 0
}

// Float reports whether t is a floating point type that Decode reads. The
// types below eight bits, the FNUZ variants and C64 are not among them:
// checkpoints hold their like as packed bytes with rules of their own.
func (t Type) Float() bool {
	switch t {
	case F64, F32, F16, BF16, F8E4M3, F8E5M2, F8E8M0:
		return true
	}
	return false
}
