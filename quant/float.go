package quant

import (
	"encoding/binary"
	"math"

	"github.com/winnow-moe/winnow/formats/dtype"
)

// Unpacked types: one element per block, little endian. Floating point types
// are rounded to nearest even; ggml has no encoder for doubles and integers,
// which files hold only in small tensors that are copied.

func le16(b []byte) uint16 { return binary.LittleEndian.Uint16(b) }

func decodeF32(dst []float32, src []byte) {
	for i := range dst {
		dst[i] = math.Float32frombits(binary.LittleEndian.Uint32(src[4*i:]))
	}
}

func encodeF32(dst []byte, src, _ []float32) {
	for i, v := range src {
		binary.LittleEndian.PutUint32(dst[4*i:], math.Float32bits(v))
	}
}

func decodeF16(dst []float32, src []byte) {
	table := dtype.F16Table()
	for i := range dst {
		dst[i] = table[le16(src[2*i:])]
	}
}

func encodeF16(dst []byte, src, _ []float32) {
	for i, v := range src {
		binary.LittleEndian.PutUint16(dst[2*i:], dtype.ToF16(v))
	}
}

func decodeBF16(dst []float32, src []byte) {
	for i := range dst {
		dst[i] = dtype.FromBF16(le16(src[2*i:]))
	}
}

func encodeBF16(dst []byte, src, _ []float32) {
	for i, v := range src {
		binary.LittleEndian.PutUint16(dst[2*i:], dtype.ToBF16(v))
	}
}

func decodeF64(dst []float32, src []byte) {
	for i := range dst {
		dst[i] = float32(math.Float64frombits(binary.LittleEndian.Uint64(src[8*i:])))
	}
}

func decodeI8(dst []float32, src []byte) {
	for i := range dst {
		dst[i] = float32(int8(src[i]))
	}
}

func decodeI16(dst []float32, src []byte) {
	for i := range dst {
		dst[i] = float32(int16(le16(src[2*i:])))
	}
}

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

func checkF32(b []byte) (int, string) {
	for i := 0; 4*i < len(b); i++ {
		if u := binary.LittleEndian.Uint32(b[4*i:]); u&0x7f800000 == 0x7f800000 {
			return i, nonFinite("value", u&0x7fffff != 0)
		}
	}
	return -1, ""
}

func checkF16(b []byte) (int, string) {
	for i := 0; 2*i < len(b); i++ {
		if u := le16(b[2*i:]); u&0x7c00 == 0x7c00 {
			return i, nonFinite("value", u&0x3ff != 0)
		}
	}
	return -1, ""
}

func checkBF16(b []byte) (int, string) {
	for i := 0; 2*i < len(b); i++ {
		if u := le16(b[2*i:]); u&0x7f80 == 0x7f80 {
			return i, nonFinite("value", u&0x7f != 0)
		}
	}
	return -1, ""
}

func checkF64(b []byte) (int, string) {
	const exponent = 0x7ff << 52
	for i := 0; 8*i < len(b); i++ {
		if u := binary.LittleEndian.Uint64(b[8*i:]); u&exponent == exponent {
			return i, nonFinite("value", u&(1<<52-1) != 0)
		}
	}
	return -1, ""
}
