package quant

import "github.com/winnow-moe/winnow/quant/kernel"

// Q6_K: 256 elements in 210 bytes, 16 groups of 16 (ggml-common.h block_q6_K).
//
//	  0  128 B       low four bits: of each 128 elements, byte l (l < 64)
//	                 holds elements l (low) and l+64
//	128  64 B        upper two bits: of each 128 elements, byte l (l < 32)
//	                 holds elements l, l+32, l+64, l+96, lowest bits first
//	192  16 × int8   group scales
//	208  f16  d      factor of the group scales
//
// value = d·scale·(code−32).
const sizeQ6K = 210

func decodeQ6K(dst []float32, src []byte) {
	for len(src) >= sizeQ6K {
		b, y := (*[sizeQ6K]byte)(src), (*[superLen]float32)(dst)
		d := half(b[208:])
		for g := range 16 {
			scale := d * float32(int8(b[192+g]))
			// Group g covers quarter g%8/2 of half g/8.
			low := (*[16]byte)(b[g/8*64+g%4*16:])
			high := (*[16]byte)(b[128+g/8*32+g%2*16:])
			shift, pair := g%8/4*4, g%8/2*2
			out := (*[16]float32)(y[16*g:])
			for l := range out {
				c := low[l]>>shift&15 | high[l]>>pair&3<<4
				out[l] = scale * float32(int8(c)-32)
			}
		}
		dst, src = dst[superLen:], src[sizeQ6K:]
	}
}

var integersQ6K = integerForm{Integers: Integers{Block: superLen, Quads: 2, Offsets: true}, record: func(r *record, b []byte) {
	r.d = half(b[208:])
	r.symmetricScales(func(g int) int32 { return int32(int8(b[192+g])) }, 32, 2)
	for i := range 8 {
		codes := (*[26]uint32)(r.codes[i/4*32+i%4*2:])
		low, next, high := word(b[i/4*64+i%4*8:]), word(b[i/4*64+i%4*8+32:]), word(b[128+8*i:])
		putCodes(codes[:], low&(15*eight)|high&(3*eight)<<4)
		putCodes(codes[8:], next&(15*eight)|high>>2&(3*eight)<<4)
		putCodes(codes[16:], low>>4&(15*eight)|high>>4&(3*eight)<<4)
		putCodes(codes[24:], next>>4&(15*eight)|high>>6&(3*eight)<<4)
	}
}}

// symmetricScales sets the scales of 16 groups, each repeated so many times, and
// what their codes are to be lowered by.
func (r *record) symmetricScales(scale func(g int) int32, offset int32, times int) {
	for g := range 16 {
		fillPairs(r.scales[times*g:][:times], scale(g))
	}
	for j := range r.offsets {
		r.offsets[j] = pair(offset*scale(2*j), offset*scale(2*j+1))
	}
}

func encodeQ6K(dst []byte, src, weights []float32) {
	if k := kernel.Active(); k != nil {
		encodeLanesQ6K(k, dst, src, weights)
		return
	}
	encodeSuper(dst, src, weights, sizeQ6K, encodeBlockQ6K)
}

func encodeBlockQ6K(dst []byte, x, weights []float32) {
	var s symmetricSuper
	var squares [16]float32
	for g := range s.fits {
		xg, w := x[16*g:][:16], squares[:]
		if weights != nil {
			w = weights[16*g:][:16]
		} else {
			for i, v := range xg {
				w[i] = v * v
			}
		}
		s.fits[g] = fitSymmetric(xg, w, 32)
	}
	s.packQ6K(dst, x)
}

// encodeLanesQ6K is encodeBlockQ6K for all super-blocks of a row.
func encodeLanesQ6K(k *kernel.Set, dst []byte, src, weights []float32) {
	w := workspaces.Get().(*workspace)
	defer workspaces.Put(w)
	w.batches(dst, src, weights, sizeQ6K, func(x, q []float32) {
		w.chunks(k, x, q, 16, func(int) uint32 {
			if q == nil {
				k.SquareWeights(&w.lanes, 16)
			}
			return w.fitSymmetric(k, 16, 32)
		}, func(b, g, lane int) { w.symmetric[b].fits[g] = w.symmetricFit(lane, 32) })
	}, func(b int, dst []byte, x, q []float32) {
		if w.odd[b] {
			encodeBlockQ6K(dst, x, q)
			return
		}
		s := &w.symmetric[b]
		s.kernel = k
		s.packQ6K(dst, x)
	})
}

// packQ6K writes a searched super-block.
func (s *symmetricSuper) packQ6K(dst []byte, x []float32) {
	var top float32
	for _, fit := range s.fits {
		if abs32(fit.scale) > abs32(top) {
			top = fit.scale
		}
	}
	if abs32(top) < groupEpsilon {
		clear(dst)
		return
	}
	inv := -128 / top
	d := putHalf(dst[208:], 1/inv)
	for g := range s.scales {
		scale := int8(min(127, nearest(inv*s.fits[g].scale)))
		dst[192+g] = uint8(scale)
		s.scales[g] = d * float32(scale)
	}
	s.requantize(x, 32)
	packCodesQ6K(dst, &s.codes)
}

func packCodesQ6K(dst []byte, codes *[superLen]uint8) {
	for h := range 2 {
		c := codes[128*h:]
		nibbles(dst[64*h:][:64], c, c[64:])
	}
	packPairsFrom(dst[128:], codes, 4)
}

var refineQ6K = refinement{
	size: sizeQ6K, group: 16, lo: -32, hi: 31, first: -128, scales: 256, mins: 1, wide: 64, wideMins: 1, starts: 1, plainStarts: 1, passes: 1,
	read: func(s *superBlock, b []byte) {
		s.d = half(b[208:])
		for g := range s.ls {
			s.ls[g] = b[192+g] ^ 128
		}
	},
	write: func(b []byte, s *superBlock) {
		packCodesQ6K(b, &s.codes)
		for g, ls := range s.ls {
			b[192+g] = ls ^ 128
		}
		putHalf(b[208:], s.d)
	},
	decode: decodeQ6K,
}
