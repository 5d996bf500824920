package quant

import "github.com/winnow-moe/winnow/quant/kernel"

// The types with one and two bits a weight (ggml-common.h block_q1_0,
// block_q2_0). Elements follow each other from the lowest bit of the first
// byte up.
//
//	Q1_0  18 B for 128   f16 d | 16 B   value = ±d, + for a one
//	Q2_0  18 B for 64    f16 d | 16 B   value = d·(code−1)
const (
	sizeQ1_0 = 18
	sizeQ2_0 = 18
	lenQ1_0  = 128
	lenQ2_0  = 64
)

func decodeQ1_0(dst []float32, src []byte) {
	for ; len(src) >= sizeQ1_0; dst, src = dst[lenQ1_0:], src[sizeQ1_0:] {
		d, y := half(src), (*[lenQ1_0]float32)(dst)
		values := [2]float32{-d, d}
		for j := range y {
			y[j] = values[src[2+j/8]>>(j%8)&1]
		}
	}
}

func decodeQ2_0(dst []float32, src []byte) {
	for ; len(src) >= sizeQ2_0; dst, src = dst[lenQ2_0:], src[sizeQ2_0:] {
		d, y := half(src), (*[lenQ2_0]float32)(dst)
		for j := range y {
			y[j] = float32(int32(src[2+j/4]>>(j%4*2)&3)-1) * d
		}
	}
}

// encodeQ1_0 keeps the signs; d is the mean magnitude.
func encodeQ1_0(dst []byte, src, _ []float32) {
	const together = 8
	if k, n := kernel.Active(), len(src)/lenQ1_0; k != nil && n >= together {
		k.Q1_0(&dst[:n*sizeQ1_0][0], &src[0], n/together)
		// The last eight, of which some are done.
		dst, src = dst[(n-together)*sizeQ1_0:], src[(n-together)*lenQ1_0:]
		if n%together != 0 {
			k.Q1_0(&dst[0], &src[0], 1)
		}
		return
	}
	for ; len(src) >= lenQ1_0; dst, src = dst[sizeQ1_0:], src[lenQ1_0:] {
		var total float32
		for _, v := range (*[lenQ1_0]float32)(src) {
			total += abs32(v)
		}
		putHalf(dst, total/lenQ1_0)
		for j := range lenQ1_0 / 8 {
			var bits uint8
			for k, v := range (*[8]float32)(src[8*j:]) {
				if v >= 0 {
					bits |= 1 << k
				}
			}
			dst[2+j] = bits
		}
	}
}

// encodeQ2_0 rounds to −d, 0 and d, d being the largest magnitude: the fourth
// code is never used. A subnormal d has no inverse, and what ggml makes of
// the infinities is below the lowest code.
func encodeQ2_0(dst []byte, src, _ []float32) {
	if k := kernel.Active(); k != nil {
		encodeBlocks(k.Q2_0, dst, src, sizeQ2_0, lenQ2_0)
		return
	}
	for ; len(src) >= lenQ2_0; dst, src = dst[sizeQ2_0:], src[lenQ2_0:] {
		x, q := (*[lenQ2_0]float32)(src), (*[16]byte)(dst[2:])
		d := magnitude(x[:])
		putHalf(dst, d)
		inv := inverse(d)
		if inv-inv != 0 {
			clear(q[:])
			continue
		}
		for j := range q {
			var b uint8
			for k, v := range (*[4]float32)(x[4*j:]) {
				b |= uint8(int32(awayFromZero(v*inv))+1) & 3 << (2 * k)
			}
			q[j] = b
		}
	}
}
