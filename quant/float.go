package quant

import (
	"encoding/binary"

	"github.com/winnow-moe/winnow/formats/dtype"
)

// Unpacked types: one element per block, little endian. Package dtype knows
// their conversions; floating point types are rounded to nearest even. ggml
// encodes no doubles and integers, which files hold only to be copied.

func encodeF32(dst []byte, src, _ []float32)  { dtype.EncodeF32(dst, src) }
func encodeF16(dst []byte, src, _ []float32)  { dtype.EncodeF16(dst, src) }
func encodeBF16(dst []byte, src, _ []float32) { dtype.EncodeBF16(dst, src) }

func decodeF32(dst []float32, src []byte)  { decodeAs(dtype.F32, dst, src) }
func decodeF16(dst []float32, src []byte)  { decodeAs(dtype.F16, dst, src) }
func decodeBF16(dst []float32, src []byte) { decodeAs(dtype.BF16, dst, src) }
func decodeF64(dst []float32, src []byte)  { decodeAs(dtype.F64, dst, src) }
func decodeI8(dst []float32, src []byte)   { decodeAs(dtype.I8, dst, src) }
func decodeI16(dst []float32, src []byte)  { decodeAs(dtype.I16, dst, src) }

// decodeAs decodes types whose every value fits float32, except that F64 is
// rounded: dtype.Decode can only fail on wrong lengths.
func decodeAs(t dtype.Type, dst []float32, src []byte) {
	if err := dtype.Decode(t, dst, src); err != nil {
		panic("quant: " + err.Error())
	}
}

// Wider integers are rounded to nearest.

func decodeI32(dst []float32, src []byte) {
	for i := range dst {
		dst[i] = float32(int32(binary.LittleEndian.Uint32(src[4*i:])))
	}
}

func decodeI64(dst []float32, src []byte) {
	for i := range dst {
		dst[i] = float32(int64(binary.LittleEndian.Uint64(src[8*i:])))
	}
}

func le16(b []byte) uint16 { return binary.LittleEndian.Uint16(b) }

// checkF32 and its kin find the first value with all exponent bits set.

func checkF32(b []byte) (int, string) {
	if !exponentF32.full(b) {
		return -1, ""
	}
	for i := 0; len(b) >= 4; i++ {
		if u := binary.LittleEndian.Uint32(b); u&0x7f800000 == 0x7f800000 {
			return i, nonFinite("value", u&0x7fffff != 0)
		}
		b = b[4:]
	}
	return -1, ""
}

func checkF16(b []byte) (int, string) {
	if !exponentF16.full(b) {
		return -1, ""
	}
	for i := 0; len(b) >= 2; i++ {
		if u := le16(b); u&0x7c00 == 0x7c00 {
			return i, nonFinite("value", u&0x3ff != 0)
		}
		b = b[2:]
	}
	return -1, ""
}

func checkBF16(b []byte) (int, string) {
	if !exponentBF16.full(b) {
		return -1, ""
	}
	for i := 0; len(b) >= 2; i++ {
		if u := le16(b); u&0x7f80 == 0x7f80 {
			return i, nonFinite("value", u&0x7f != 0)
		}
		b = b[2:]
	}
	return -1, ""
}

func checkF64(b []byte) (int, string) {
	const exponent = 0x7ff << 52
	for i := 0; len(b) >= 8; i++ {
		if u := binary.LittleEndian.Uint64(b); u&exponent == exponent {
			return i, nonFinite("value", u&(1<<52-1) != 0)
		}
		b = b[8:]
	}
	return -1, ""
}
