package dtype

import (
	"math"
	"sync"

	"github.com/x448/float16"
)

// f16Table holds the float32 of every half, 256 KiB, built on first use: a
// look-up is several times faster than the conversion in portable Go.
var f16Table = sync.OnceValue(func() *[1 << 16]float32 {
	var t [1 << 16]float32
	for i := range t {
		t[i] = float16.Frombits(uint16(i)).Float32()
	}
	return &t
})

// F16Table returns the float32 value of every half precision bit pattern.
// Hot loops index it directly; the caller must not change it.
func F16Table() *[1 << 16]float32 { return f16Table() }

// FromF16 converts IEEE half precision bits to float32, exactly.
func FromF16(h uint16) float32 { return f16Table()[h] }

// ToF16 rounds to half precision, nearest even. Values of 65520 and more
// become infinite, NaN becomes a quiet NaN of the same sign with no payload
// (0x7E00): ggml's GGML_FP32_TO_FP16 does the same.
func ToF16(f float32) uint16 {
	u := math.Float32bits(f)
	sign := uint16(u>>16) & 0x8000
	u &= 0x7fffffff
	switch {
	case u > 0x7f800000:
		return sign | 0x7e00
	case u >= 0x47800000: // 65536
		return sign | 0x7c00
	case u < 0x38800000: // 2^-14, below which halves are subnormal
		// The last bit of 0.5+x weighs 2^-24, like that of a subnormal half:
		// the addition rounds x as wanted and leaves it in the lower bits.
		return sign | uint16(math.Float32bits(math.Float32frombits(u)+0.5))
	}
	// The exponent bias falls from 127 to 15. A carry out of the mantissa
	// moves the exponent up, to infinity from 65520 on.
	return sign | uint16((u-112<<23+0xfff+(u>>13&1))>>13)
}

// FromBF16 converts bfloat16 bits to float32, exactly.
func FromBF16(b uint16) float32 { return math.Float32frombits(uint32(b) << 16) }

// ToBF16 rounds to bfloat16, nearest even. NaN stays NaN: its upper bits are
// kept and the quiet bit is set (ggml_compute_fp32_to_bf16).
func ToBF16(f float32) uint16 {
	u := math.Float32bits(f)
	if u&0x7fffffff > 0x7f800000 {
		return uint16(u>>16) | 64
	}
	return uint16((u + (0x7fff + (u >> 16 & 1))) >> 16)
}
