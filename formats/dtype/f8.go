package dtype

import "math"

// The 8-bit types decode by table. E4M3 and E5M2: "FP8 Formats for Deep
// Learning" (arXiv:2209.05433), table 1; E8M0: OCP Microscaling Formats 1.0, §5.4.1.
var (
	f8e4m3 = table8(decodeE4M3)
	f8e5m2 = table8(func(b byte) float32 { return decodeSmall(b, 2, 15) })
	f8e8m0 = table8(decodeE8M0)
	int8s  = table8(func(b byte) float32 { return float32(int8(b)) })
	uint8s = table8(func(b byte) float32 { return float32(b) })
)

func table8(decode func(byte) float32) *[256]float32 {
	var t [256]float32
	for i := range t {
		t[i] = decode(byte(i))
	}
	return &t
}

// decodeSmall reads sign, 7-m exponent bits with the given bias, and m
// mantissa bits; the highest exponent means infinity and NaN as in IEEE 754.
func decodeSmall(b byte, m, bias int) float32 {
	exp, man := int(b&0x7f)>>m, int(b)&(1<<m-1)
	v := math.Ldexp(float64(1<<m+man), exp-bias-m)
	switch {
	case exp == 0:
		v = math.Ldexp(float64(man), 1-bias-m)
	case exp == 1<<(7-m)-1 && man == 0:
		v = math.Inf(1)
	case exp == 1<<(7-m)-1:
		v = math.NaN()
	}
	if b&0x80 != 0 {
		v = -v
	}
	return float32(v)
}

// decodeE4M3 differs from the IEEE scheme in the highest exponent: it holds
// numbers up to 448, and only the mantissa of all ones is NaN.
func decodeE4M3(b byte) float32 {
	if b&0x78 != 0x78 || b&0x7f == 0x7f {
		return decodeSmall(b, 3, 7)
	}
	return 2 * decodeSmall(b-8, 3, 7)
}

func decodeE8M0(b byte) float32 {
	if b == 0xff {
		return float32(math.NaN())
	}
	return float32(math.Ldexp(1, int(b)-127))
}

// F8E4M3Table returns the value of every code of F8_E4M3, for loops that index
// it directly; the caller must not change it.
func F8E4M3Table() *[256]float32 { return f8e4m3 }

// FromF8E4M3 converts one F8_E4M3 code.
func FromF8E4M3(b byte) float32 { return f8e4m3[b] }

// FromF8E5M2 converts one F8_E5M2 code.
func FromF8E5M2(b byte) float32 { return f8e5m2[b] }

// FromF8E8M0 converts one F8_E8M0 code.
func FromF8E8M0(b byte) float32 { return f8e8m0[b] }

// MaxF8E4M3 is the largest number of the type F8_E4M3.
const MaxF8E4M3 = 448

// ToF8E4M3 rounds to F8_E4M3, nearest even. The type has no infinities: larger
// values become MaxF8E4M3. NaN stays NaN.
func ToF8E4M3(f float32) byte {
	u := math.Float32bits(f)
	sign := byte(u>>24) & 0x80
	u &= 0x7fffffff
	switch {
	case u > 0x7f800000:
		return sign | 0x7f
	case u >= 0x43e00000: // 448
		return sign | 0x7e
	case u < 0x3c800000: // 2^-6, below which codes are subnormal
		// The last bit of 2^14+x weighs 2^-9, like that of a subnormal code: the
		// addition rounds x as wanted and leaves it in the lowest byte.
		return sign | byte(math.Float32bits(math.Float32frombits(u)+1<<14))
	}
	// The exponent bias falls from 127 to 7.
	return sign | byte((u-120<<23+0x7ffff+(u>>20&1))>>20)
}
