package quant

// Q2_K: 256 elements in 84 bytes, 16 groups of 16 (ggml-common.h block_q2_K).
//
//	 0  16 B        per group the codes of scale (low) and minimum (high)
//	16  64 B        codes, see packPairs
//	80  f16  d      factor of the group scales
//	82  f16  dmin   factor of the group minimums
//
// value = d·ls·code − dmin·lm.
const sizeQ2K = 84

var searchQ2K = affineType{
	size:     sizeQ2K,
	group:    16,
	scaleMax: 15,
	plain:    affineGrid{n: 3, first: -0.5, delta: 0.1, steps: 15, absolute: true},
	weighted: affineGrid{n: 3, first: -0.9, delta: 0.05, steps: 36},
	spread:   1,
	pack:     packQ2K,
}

func decodeQ2K(dst []float32, src []byte) {
	for len(src) >= sizeQ2K {
		b, y := (*[sizeQ2K]byte)(src), (*[superLen]float32)(dst)
		d, dmin := half(b[80:]), half(b[82:])
		for g := range 16 {
			scale, low := d*float32(b[g]&15), float32(dmin*float32(b[g]>>4))
			q, out := (*[16]byte)(b[16+g/8*32+g%2*16:]), (*[16]float32)(y[16*g:])
			shift := g % 8 / 2 * 2
			for l, c := range q {
				out[l] = float32(scale*float32(c>>shift&3)) - low
			}
		}
		dst, src = dst[superLen:], src[sizeQ2K:]
	}
}

var integersQ2K = integerForm{Integers: Integers{Block: superLen, Quads: 4, Mins: true}, record: func(r *record, b []byte) {
	r.d, r.dmin = half(b[80:]), half(b[82:])
	for g := range r.scales {
		fillPairs(r.scales[g:g+1], int32(b[g]&15))
	}
	for j := range r.mins {
		r.mins[j] = pair(int32(b[2*j]>>4), int32(b[2*j+1]>>4))
	}
	for i := range r.codes[:32] {
		g, at := i/4, i%4*8 // of 32 elements, eight
		putCodes(r.codes[2*i:], word(b[16+g/4*32+at:])>>(g%4*2)&(3*eight))
	}
}}

func encodeQ2K(dst []byte, src, weights []float32) {
	searchQ2K.encode(dst, src, weights)
}

var refineQ2K = refinement{
	size: sizeQ2K, group: 16, hi: 3, scales: 16, mins: 16, wide: 16, wideMins: 16, starts: 1, plainStarts: 1, passes: 2,
	read: func(s *superBlock, b []byte) {
		s.d, s.dmin = half(b[80:]), half(b[82:])
		for g := range s.ls {
			s.ls[g], s.lm[g] = b[g]&15, b[g]>>4
		}
	},
	write: func(b []byte, s *superBlock) {
		for g := range s.ls {
			b[g] = s.ls[g] | s.lm[g]<<4
		}
		packPairs(b[16:], &s.codes)
		putHalf(b[80:], s.d)
		putHalf(b[82:], s.dmin)
	},
	decode: decodeQ2K,
}

func packQ2K(dst []byte, x []float32, s *affineSuper, _ bool) {
	d, dmin := putHalf(dst[80:], s.d), putHalf(dst[82:], s.dmin)
	for g := range 16 {
		b := s.ls[g] | s.lm[g]<<4
		dst[g] = b
		s.scales[g], s.offsets[g] = d*float32(b&15), dmin*float32(b>>4)
	}
	s.requantize(x, 16, 3)
	packPairs(dst[16:], &s.codes)
}
