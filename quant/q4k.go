package quant

import "encoding/binary"

// Q4_K: 256 elements in 144 bytes, 8 groups of 32 (ggml-common.h block_q4_K).
//
//	 0  f16  d      factor of the group scales
//	 2  f16  dmin   factor of the group minimums
//	 4  12 B        6-bit codes of 8 scales and 8 minimums, see packScales
//	16  128 B       codes: byte l of each 32 holds elements l (low) and l+32
//
// value = d·ls·code − dmin·lm.
const sizeQ4K = 144

var searchQ4K = affineType{
	size:     sizeQ4K,
	group:    32,
	scaleMax: 63,
	plain:    affineGrid{n: 15, first: -1, delta: 0.1, steps: 20},
	weighted: affineGrid{n: 15, first: -0.9, delta: 0.05, steps: 36},
	spread:   2,
	pack:     packQ4K,
}

func decodeQ4K(dst []float32, src []byte) {
	for len(src) >= sizeQ4K {
		b, y := (*[sizeQ4K]byte)(src), (*[superLen]float32)(dst)
		d, dmin := half(b[0:]), half(b[2:])
		for g := range 4 {
			s1, m1 := scaleMin((*[12]byte)(b[4:]), 2*g)
			s2, m2 := scaleMin((*[12]byte)(b[4:]), 2*g+1)
			d1, min1, d2, min2 := d*s1, float32(dmin*m1), d*s2, float32(dmin*m2)
			q, out := (*[32]byte)(b[16+32*g:]), (*[64]float32)(y[64*g:])
			for l, c := range q {
				out[l] = float32(d1*float32(c&15)) - min1
				out[l+32] = float32(d2*float32(c>>4)) - min2
			}
		}
		dst, src = dst[superLen:], src[sizeQ4K:]
	}
}

var integersQ4K = integerForm{Integers: Integers{Block: superLen, Quads: 8, Mins: true}, record: func(r *record, block []byte) {
	r.affineScales(block, 1)
	b, codes := (*[128]byte)(block[16:]), (*[64]uint32)(r.codes)
	for i := range 16 {
		v, to := word(b[8*i:]), (*[10]uint32)(codes[i/4*16+i%4*2:])
		low, high := v&(15*eight), v>>4&(15*eight)
		to[0], to[1], to[8], to[9] = uint32(low), uint32(low>>32), uint32(high), uint32(high>>32)
	}
}}

// affineScales reads the factors, scales and minimums of Q4_K and Q5_K; a scale
// is repeated so many times.
func (r *record) affineScales(b []byte, times int) {
	r.d, r.dmin = half(b), half(b[2:])
	first, second, third := binary.LittleEndian.Uint32(b[4:]), binary.LittleEndian.Uint32(b[8:]), binary.LittleEndian.Uint32(b[12:])
	const six, four, two = 0x3f3f3f3f, 0x0f0f0f0f, 0x03030303
	ls := uint64(first&six) | uint64(third&four|first>>6&two<<4)<<32
	lm := uint64(second&six) | uint64(third>>4&four|second>>6&two<<4)<<32
	for g := range r.mins {
		scale, low := uint32(ls>>(8*g)&63), uint32(lm>>(8*g)&63)
		r.mins[g] = low * 0x10001
		for i := range times {
			r.scales[times*g+i] = scale * 0x10001
		}
	}
}

func encodeQ4K(dst []byte, src, weights []float32) {
	searchQ4K.encode(dst, src, weights)
}

var refineQ4K = refinement{
	size: sizeQ4K, group: 32, hi: 15, scales: 64, mins: 64, wide: 16, wideMins: 16, starts: 1, plainStarts: 1, passes: 2,
	read: readScalesQ4K,
	write: func(b []byte, s *superBlock) {
		writeScalesQ4K(b, s)
		packCodesQ4K(b[16:], &s.codes)
	},
	decode: decodeQ4K,
}

// readScalesQ4K reads factors, scales and minimums of Q4_K and Q5_K.
func readScalesQ4K(s *superBlock, b []byte) {
	s.d, s.dmin = half(b), half(b[2:])
	for g := range 8 {
		ls, lm := scaleMin((*[12]byte)(b[4:]), g)
		s.ls[g], s.lm[g] = uint8(ls), uint8(lm)
	}
}

func writeScalesQ4K(b []byte, s *superBlock) {
	putHalf(b, s.d)
	putHalf(b[2:], s.dmin)
	packScales((*[12]byte)(b[4:]), &s.ls, &s.lm)
}

// packCodesQ4K stores the low four bits of the codes of Q4_K and Q5_K.
func packCodesQ4K(dst []byte, codes *[superLen]uint8) {
	for g := range 4 {
		c := codes[64*g:]
		nibbles(dst[32*g:][:32], c, c[32:])
	}
}

func packQ4K(dst []byte, x []float32, s *affineSuper, weighted bool) {
	if !weighted {
		limitScales(s)
	}
	scales := (*[12]byte)(dst[4:])
	packScales(scales, &s.ls, &s.lm)
	d, dmin := putHalf(dst, s.d), putHalf(dst[2:], s.dmin)
	s.readScales(scales, d, dmin)
	s.requantize(x, 32, 15)
	packCodesQ4K(dst[16:], &s.codes)
}

// readScales sets the final grids of Q4_K and Q5_K.
func (s *affineSuper) readScales(packed *[12]byte, d, dmin float32) {
	for g := range 8 {
		ls, lm := scaleMin(packed, g)
		s.scales[g], s.offsets[g] = d*ls, dmin*lm
	}
}

// limitScales caps the codes of scales and minimums to their six bits.
// With importance weights they can exceed them (see fitPositive): ggml caps
// them in Q5_K and lets Q4_K's spill over into their neighbours.
func limitScales(s *affineSuper) {
	for g := range 8 {
		s.ls[g], s.lm[g] = min(63, s.ls[g]), min(63, s.lm[g])
	}
}

// packScales stores the 6-bit codes of Q4_K and Q5_K: those of groups 0 to 3
// in the low bits of bytes 0–3 (scales) and 4–7 (minimums); of groups 4 to 7
// the low four bits in bytes 8–11 (scale low, minimum high), the upper two in
// the top bits of bytes 0–3 and 4–7.
func packScales(dst *[12]byte, ls, lm *[16]uint8) {
	for j := range 4 {
		scale, low := ls[j+4], lm[j+4]
		dst[j] = ls[j] | scale>>4<<6
		dst[j+4] = lm[j] | low>>4<<6
		dst[j+8] = scale&15 | low<<4
	}
}

// scaleMin reads the codes of group g back.
func scaleMin(b *[12]byte, g int) (ls, lm float32) {
	if g < 4 {
		return float32(b[g] & 63), float32(b[g+4] & 63)
	}
	return float32(b[g+4]&15 | b[g-4]>>6<<4), float32(b[g+4]>>4 | b[g]>>6<<4)
}
