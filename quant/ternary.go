package quant

import "github.com/winnow-moe/winnow/quant/kernel"

// The ternary types for BitNet models (ggml-common.h block_tq1_0,
// block_tq2_0): 256 elements, value = d·(code−1) with codes 0 to 2, d being
// the largest magnitude.
//
//	TQ1_0  54 B   48 B with five codes each | 4 B with four | f16 d
//	TQ2_0  66 B   64 B | f16 d; byte m of each 32 holds elements m, m+32, m+64
//	              and m+96 of its 128, lowest bits first
//
// A TQ1_0 byte holds its codes as digits of a fraction to base three, most
// significant first: the next digit is the integer part of 3/256 of the byte,
// and multiplying the byte by three moves on. Byte m of the first 32 holds
// elements m, m+32, … of the first 160; byte m of the following 16 holds m,
// m+16, … of the next 80; byte m of the last four m, m+4, … of the last 16.
const (
	sizeTQ1_0 = 54
	sizeTQ2_0 = 66
)

// partsTQ1_0 lists the runs of bytes of a TQ1_0 block.
var partsTQ1_0 = [3]struct{ first, bytes, digits int }{{0, 32, 5}, {32, 16, 5}, {48, 4, 4}}

func decodeTQ1_0(dst []float32, src []byte) {
	for ; len(src) >= sizeTQ1_0; src = src[sizeTQ1_0:] {
		d := half(src[52:])
		for _, p := range partsTQ1_0 {
			for m, b := range src[p.first:][:p.bytes] {
				for n := range p.digits {
					dst[m+n*p.bytes] = float32(int32(uint32(b)*3>>8)-1) * d
					b *= 3
				}
			}
			dst = dst[p.bytes*p.digits:]
		}
	}
}

func decodeTQ2_0(dst []float32, src []byte) {
	for ; len(src) >= sizeTQ2_0; dst, src = dst[superLen:], src[sizeTQ2_0:] {
		d := half(src[64:])
		for h := range 2 {
			q, y := (*[32]byte)(src[32*h:]), (*[128]float32)(dst[128*h:])
			for m, b := range q {
				y[m] = float32(int32(b&3)-1) * d
				y[m+32] = float32(int32(b>>2&3)-1) * d
				y[m+64] = float32(int32(b>>4&3)-1) * d
				y[m+96] = float32(int32(b>>6)-1) * d
			}
		}
	}
}

func encodeTQ1_0(dst []byte, src, _ []float32) {
	if k := kernel.Active(); k != nil {
		encodeBlocks(k.TQ1_0, dst, src, sizeTQ1_0, superLen)
		return
	}
	for ; len(src) >= superLen; dst, src = dst[sizeTQ1_0:], src[superLen:] {
		d := magnitude(src[:superLen])
		putHalf(dst[52:], d)
		var codes [superLen]uint8
		ternary(&codes, (*[superLen]float32)(src), d)
		c := codes[:]
		for _, p := range partsTQ1_0 {
			for m := range p.bytes {
				var number uint32
				for n := range 5 {
					number *= 3
					if n < p.digits {
						number += uint32(c[m+n*p.bytes])
					}
				}
				dst[p.first+m] = uint8((number*256 + 242) / 243)
			}
			c = c[p.bytes*p.digits:]
		}
	}
}

func encodeTQ2_0(dst []byte, src, _ []float32) {
	if k := kernel.Active(); k != nil {
		encodeBlocks(k.TQ2_0, dst, src, sizeTQ2_0, superLen)
		return
	}
	for ; len(src) >= superLen; dst, src = dst[sizeTQ2_0:], src[superLen:] {
		d := magnitude(src[:superLen])
		putHalf(dst[64:], d)
		var codes [superLen]uint8
		ternary(&codes, (*[superLen]float32)(src), d)
		packPairs(dst, &codes)
	}
}

// ternary rounds x/d to codes. A subnormal d has no inverse: ggml converts
// the infinities and NaN to an integer, of which the lowest bits are 0.
func ternary(codes *[superLen]uint8, x *[superLen]float32, d float32) {
	inv := inverse(d)
	if inv-inv != 0 {
		inv = 0
	}
	for i, v := range x {
		codes[i] = uint8(int32(awayFromZero(v*inv)) + 1)
	}
}
