package quant

import (
	"encoding/binary"

	"github.com/winnow-moe/winnow/formats/dtype"
	"github.com/winnow-moe/winnow/quant/kernel"
)

// Unpacked types: one element per block, little endian. Package dtype knows
// their conversions; floating point types are rounded to nearest even. ggml
// encodes no doubles and integers, which files hold only to be copied.

func encodeF32(dst []byte, src, _ []float32) {
	if kernel.Active() != nil {
		copy(dst[:4*len(src)], kernel.Bytes(src))
		return
	}
	dtype.EncodeF32(dst, src)
}

func encodeF16(dst []byte, src, _ []float32) {
	if k := kernel.Active(); k != nil {
		encodeBlocks(k.F16, dst, src, 2*blockLen, blockLen)
		dst, src = dst[2*whole(src):], src[whole(src):]
	}
	dtype.EncodeF16(dst, src)
}

func encodeBF16(dst []byte, src, _ []float32) {
	if k := kernel.Active(); k != nil {
		encodeBlocks(k.BF16, dst, src, 2*blockLen, blockLen)
		dst, src = dst[2*whole(src):], src[whole(src):]
	}
	dtype.EncodeBF16(dst, src)
}

// whole returns how many of the numbers a kernel does, by the block.
func whole(x []float32) int { return len(x) / blockLen * blockLen }

func decodeF32(dst []float32, src []byte) {
	if kernel.Active() != nil {
		copy(kernel.Bytes(dst), src[:4*len(dst)])
		return
	}
	decodeAs(dtype.F32, dst, src)
}

func decodeF16(dst []float32, src []byte) {
	if k := kernel.Active(); k != nil && len(dst) >= blockLen {
		k.FromF16(&dst[0], &src[:2*len(dst)][0], len(dst)/blockLen)
		dst, src = dst[whole(dst):], src[2*whole(dst):]
	}
	decodeAs(dtype.F16, dst, src)
}

func decodeBF16(dst []float32, src []byte) {
	if k := kernel.Active(); k != nil && len(dst) >= blockLen {
		k.FromBF16(&dst[0], &src[:2*len(dst)][0], len(dst)/blockLen)
		dst, src = dst[whole(dst):], src[2*whole(dst):]
	}
	decodeAs(dtype.BF16, dst, src)
}

func decodeF64(dst []float32, src []byte) { decodeAs(dtype.F64, dst, src) }
func decodeI8(dst []float32, src []byte)  { decodeAs(dtype.I8, dst, src) }
func decodeI16(dst []float32, src []byte) { decodeAs(dtype.I16, dst, src) }

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
	const exponent = 0x7f800000
	first := 0
	if k := kernel.Active(); k != nil {
		first = skip(k.Finite32, b, exponent) / 4
	}
	for i := first; len(b) >= 4*i+4; i++ {
		if u := binary.LittleEndian.Uint32(b[4*i:]); u&exponent == exponent {
			return i, nonFinite("value", u&(1<<23-1) != 0)
		}
	}
	return -1, ""
}

func checkF16(b []byte) (int, string)  { return check16(b, 0x7c00) }
func checkBF16(b []byte) (int, string) { return check16(b, 0x7f80) }

func check16(b []byte, exponent uint16) (int, string) {
	first := 0
	if k := kernel.Active(); k != nil {
		first = skip(k.Finite16, b, uint32(exponent)*0x10001) / 2
	}
	for i := first; len(b) >= 2*i+2; i++ {
		if u := le16(b[2*i:]); u&exponent == exponent {
			return i, nonFinite("value", u&^exponent<<1 != 0)
		}
	}
	return -1, ""
}

// skip returns the length of a start of b that holds finite numbers.
func skip(finite func(src *byte, stretches int, exponent uint32) int, b []byte, exponent uint32) int {
	const stretch = 128
	if len(b) < stretch {
		return 0
	}
	return stretch * finite(&b[0], len(b)/stretch, exponent)
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
