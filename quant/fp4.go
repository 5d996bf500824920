package quant

import (
	"math"

	"github.com/winnow-moe/winnow/quant/kernel"
)

// The types with 4-bit floats (E2M1: sign, two exponent bits, one of
// mantissa) and a small float as scale (ggml-common.h block_mxfp4,
// block_nvfp4; OCP Microscaling Formats 1.0). ggml's table holds twice the
// value of each code, and its scales are halved.
//
//	MXFP4  17 B for 32   E8M0 scale, an exponent | 16 B codes, byte j holds
//	                     elements j (low) and j+16
//	NVFP4  36 B for 64   4 UE4M3 scales, 3 bits of mantissa and no sign, one
//	                     for each 16 | 4 × 8 B codes, byte j of each 8 holds
//	                     elements j (low) and j+8 of its 16
//
// value = d·table[code].
const (
	sizeMXFP4 = 17
	sizeNVFP4 = 36
	lenNVFP4  = 64
)

var tableFP4 = [16]float32{0, 1, 2, 3, 4, 6, 8, 12, 0, -1, -2, -3, -4, -6, -8, -12}

// limitsFP4 holds the bit patterns of the halfway points between neighbouring
// magnitudes of one scale. Positive floats are ordered like their patterns.
type limitsFP4 [7]uint32

func newLimitsFP4(d float32) (l limitsFP4) {
	for i := range l {
		l[i] = math.Float32bits(d * ((tableFP4[i] + tableFP4[i+1]) / 2))
	}
	return l
}

// code returns the code nearest to x, of two the one closer to zero, and
// never −0. ggml compares distances that are rounded; near the halfway points
// they are exact, but see packFarFP4.
func (l *limitsFP4) code(x float32) uint8 {
	bits := math.Float32bits(x)
	m := bits &^ (1 << 31)
	code := (l[0]-m)>>31 + (l[1]-m)>>31 + (l[2]-m)>>31 + (l[3]-m)>>31 +
		(l[4]-m)>>31 + (l[5]-m)>>31 + (l[6]-m)>>31
	// The sign moves to bit 3, where code+7 has a one for all codes but 0.
	return uint8(code | bits>>28&(code+7)&8)
}

// pack stores the codes of x: those of the first half in the low bits.
func (l *limitsFP4) pack(dst []byte, x []float32) {
	low, high := x[:len(dst)], x[len(dst):][:len(dst)]
	for j := range dst {
		dst[j] = l.code(low[j]) | l.code(high[j])<<4
	}
}

func unpackFP4(y []float32, codes []byte, d float32) {
	low, high := y[:len(codes)], y[len(codes):][:len(codes)]
	for j, c := range codes {
		low[j] = d * tableFP4[c&15]
		high[j] = d * tableFP4[c>>4]
	}
}

func magnitude(x []float32) float32 {
	var m uint32
	for _, v := range x {
		m = max(m, math.Float32bits(v)&^(1<<31))
	}
	return math.Float32frombits(m)
}

// halfE8M0 returns half the scale 2^(e−127).
func halfE8M0(e uint8) float32 {
	if e < 2 {
		return math.Float32frombits(0x00200000 << e) // subnormal
	}
	return math.Float32frombits(uint32(e-1) << 23)
}

func decodeMXFP4(dst []float32, src []byte) {
	for ; len(src) >= sizeMXFP4; dst, src = dst[blockLen:], src[sizeMXFP4:] {
		unpackFP4(dst[:blockLen], src[1:sizeMXFP4], halfE8M0(src[0]))
	}
}

// offsetFP4 makes the values of codes positive.
const offsetFP4 = 12

var integersMXFP4 = integerForm{Integers: Integers{Block: blockLen, Quads: 4, Offsets: true}, record: func(r *record, b []byte) {
	r.single(halfE8M0(b[0]), offsetFP4)
	var codes [blockLen]byte
	for j, c := range b[1:] {
		codes[j], codes[j+16] = uint8(tableFP4[c&15]+offsetFP4), uint8(tableFP4[c>>4]+offsetFP4)
	}
	for i := range 4 {
		putCodes(r.codes[2*i:], word(codes[8*i:]))
	}
}}

func encodeMXFP4(dst []byte, src, _ []float32) {
	if k := kernel.Active(); k != nil {
		encodeMost(k.MXFP4, blockMXFP4, dst, src, sizeMXFP4, blockLen)
		return
	}
	for ; len(src) >= blockLen; dst, src = dst[sizeMXFP4:], src[blockLen:] {
		blockMXFP4(dst, src[:blockLen])
	}
}

func blockMXFP4(dst []byte, x []float32) {
	e := exponentMXFP4(magnitude(x))
	dst[0] = e
	limits := newLimitsFP4(halfE8M0(e))
	limits.pack(dst[1:sizeMXFP4], x)
}

// exponentMXFP4 returns the scale's exponent, two below that of the largest
// magnitude. The logarithm is rounded to float32 before its integer part is
// taken, so magnitudes just below a power of two count as that power; those
// below 2^−125 wrap around to a huge scale. ggml has both.
func exponentMXFP4(top float32) uint8 {
	bits := math.Float32bits(top)
	if bits == 0 {
		return 0
	}
	e := int32(bits>>23) - 127
	if bits&0x7fffff > 0x7fff00 || e < -126 { // near enough, or subnormal
		e = int32(math.Floor(float64(float32(math.Log2(float64(top))))))
	}
	return uint8(e - 2 + 127)
}

// checkMXFP4 finds the first block whose scale is not a number.
func checkMXFP4(b []byte) (int, string) {
	for i := 0; len(b) >= sizeMXFP4; i++ {
		if b[0] == 0xff {
			return i, nonFinite("scale", true)
		}
		b = b[sizeMXFP4:]
	}
	return -1, ""
}

func decodeNVFP4(dst []float32, src []byte) {
	for ; len(src) >= sizeNVFP4; dst, src = dst[lenNVFP4:], src[sizeNVFP4:] {
		for g := range 4 {
			unpackFP4(dst[16*g:][:16], src[4+8*g:][:8], halfUE4M3(src[g]))
		}
	}
}

func encodeNVFP4(dst []byte, src, _ []float32) {
	if k := kernel.Active(); k != nil {
		encodeMost(k.NVFP4, blockNVFP4, dst, src, sizeNVFP4, lenNVFP4)
		return
	}
	for ; len(src) >= lenNVFP4; dst, src = dst[sizeNVFP4:], src[lenNVFP4:] {
		blockNVFP4(dst, src[:lenNVFP4])
	}
}

func blockNVFP4(dst []byte, block []float32) {
	for g := range 4 {
		x, codes := block[16*g:][:16], dst[4+8*g:][:8]
		top := magnitude(x)
		dst[g] = toUE4M3(top / 6)
		d := halfUE4M3(dst[g])
		if top > 16*d {
			packFarFP4(codes, x, d)
			continue
		}
		limits := newLimitsFP4(d)
		limits.pack(codes, x)
	}
}

// packFarFP4 packs values that may be far beyond the largest code, because
// the scale is at an end of its range. Then rounding makes distances equal,
// and the first code wins: one of the other sign, or 0.
func packFarFP4(dst []byte, x []float32, d float32) {
	nearest := func(v float32) (code uint8) {
		least := abs32(v)
		for i, t := range tableFP4 {
			if e := abs32(float32(t*d) - v); e < least {
				code, least = uint8(i), e
			}
		}
		return code
	}
	for j := range dst {
		dst[j] = nearest(x[j]) | nearest(x[j+len(dst)])<<4
	}
}

// halfUE4M3 returns half the scale: (1+m/8)·2^(e−7), or m·2^−9 if e is 0.
// The pattern for NaN stands for 0, and the top bit is ignored.
func halfUE4M3(b uint8) float32 {
	e, m := b>>3&15, float32(b&7)
	switch {
	case b == 0x7f:
		return 0
	case e == 0:
		return m / (1 << 10)
	}
	return (1 + m/8) * math.Float32frombits((uint32(e)+127-8)<<23)
}

// toUE4M3 rounds v to a scale. Halves go up, where the mantissa bits beyond
// the fourth are dropped first, and everything from 256 up becomes 448.
func toUE4M3(v float32) uint8 {
	const largest = 0x7e
	if !(v > 0) {
		return 0
	}
	bits := math.Float32bits(v)
	e := int(bits>>23) - 127 + 7
	switch {
	case e <= 0:
		return uint8(min(7, int32(float32(v*512)+0.5)))
	case e >= 15:
		return largest
	}
	// A mantissa that rounds up to 8 carries into the exponent.
	code := uint32(e)<<3 + bits>>20&7 + bits>>19&1
	if code >= 15<<3 {
		return largest
	}
	return uint8(code)
}
