package quant

// Q5_K: 256 elements in 176 bytes, 8 groups of 32 (ggml-common.h block_q5_K).
//
//	 0  f16  d      factor of the group scales
//	 2  f16  dmin   factor of the group minimums
//	 4  12 B        6-bit codes of scales and minimums as in Q4_K
//	16  32 B        fifth bits: bit g of byte l belongs to element 32g+l
//	48  128 B       low four bits, as in Q4_K
//
// value = d·ls·code − dmin·lm.
const sizeQ5K = 176

var searchQ5K = affineType{
	size:     sizeQ5K,
	group:    32,
	scaleMax: 63,
	plain:    affineGrid{n: 31, first: -0.5, delta: 0.1, steps: 15},
	weighted: affineGrid{n: 31, first: -0.9, delta: 0.05, steps: 36},
	spread:   2,
	pack:     packQ5K,
}

func decodeQ5K(dst []float32, src []byte) {
	for len(src) >= sizeQ5K {
		b, y := (*[sizeQ5K]byte)(src), (*[superLen]float32)(dst)
		d, dmin := half(b[0:]), half(b[2:])
		high := (*[32]byte)(b[16:])
		for g := range 4 {
			s1, m1 := scaleMin((*[12]byte)(b[4:]), 2*g)
			s2, m2 := scaleMin((*[12]byte)(b[4:]), 2*g+1)
			d1, min1, d2, min2 := d*s1, float32(dmin*m1), d*s2, float32(dmin*m2)
			q, out := (*[32]byte)(b[48+32*g:]), (*[64]float32)(y[64*g:])
			for l, c := range q {
				h := high[l] >> (2 * g)
				out[l] = float32(d1*float32(c&15|h&1<<4)) - min1
				out[l+32] = float32(d2*float32(c>>4|h&2<<3)) - min2
			}
		}
		dst, src = dst[superLen:], src[sizeQ5K:]
	}
}

var integersQ5K = integerForm{Integers: Integers{Block: superLen, Quads: 4, Mins: true}, record: func(r *record, b []byte) {
	r.affineScales(b, 2)
	for g := range 4 {
		for i, codes := 0, r.codes[16*g:]; i < 4; i++ {
			v, high := word(b[48+32*g+8*i:]), word(b[16+8*i:])>>(2*g)
			putCodes(codes[2*i:], v&(15*eight)|high&eight<<4)
			putCodes(codes[8+2*i:], v>>4&(15*eight)|high>>1&eight<<4)
		}
	}
}}

func encodeQ5K(dst []byte, src, weights []float32) {
	searchQ5K.encode(dst, src, weights)
}

var refineQ5K = refinement{
	size: sizeQ5K, group: 32, hi: 31, scales: 64, mins: 64, wide: 16, wideMins: 16, starts: 1, plainStarts: 1, passes: 2,
	read: readScalesQ4K,
	write: func(b []byte, s *superBlock) {
		writeScalesQ4K(b, s)
		packCodesQ5K(b, &s.codes)
	},
	decode: decodeQ5K,
}

func packCodesQ5K(dst []byte, codes *[superLen]uint8) {
	packBits(dst[16:], codes, 4)
	packCodesQ4K(dst[48:], codes)
}

func packQ5K(dst []byte, x []float32, s *affineSuper, _ bool) {
	limitScales(s)
	scales := (*[12]byte)(dst[4:])
	packScales(scales, &s.ls, &s.lm)
	d, dmin := putHalf(dst, s.d), putHalf(dst[2:], s.dmin)
	s.readScales(scales, d, dmin)
	s.requantize(x, 32, 31)
	packCodesQ5K(dst, &s.codes)
}
