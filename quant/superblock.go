package quant

import (
	"encoding/binary"

	"github.com/winnow-moe/winnow/formats/dtype"
	"github.com/winnow-moe/winnow/quant/kernel"
)

// superLen is the number of elements of a K type's super-block (QK_K).
const superLen = 256

// half reads a half precision scale.
func half(b []byte) float32 { return dtype.FromF16(le16(b)) }

// quarter and eighth are parts of the scale that a block begins with.
func quarter(b []byte) float32 { return half(b) / 4 }
func eighth(b []byte) float32  { return half(b) / 8 }

// putHalf stores v in half precision and returns the rounded value.
func putHalf(b []byte, v float32) float32 {
	h := dtype.ToF16(v)
	binary.LittleEndian.PutUint16(b, h)
	return dtype.FromF16(h)
}

// roundHalf returns v as half precision holds it.
func roundHalf(v float32) float32 { return dtype.FromF16(dtype.ToF16(v)) }

// encodeSuper calls block for each super-block of a row.
func encodeSuper(dst []byte, src, weights []float32, size int, block func(dst []byte, x, weights []float32)) {
	for len(src) >= superLen {
		var q []float32
		if weights != nil {
			q, weights = weights[:superLen], weights[superLen:]
		}
		block(dst[:size:size], src[:superLen:superLen], q)
		dst, src = dst[size:], src[superLen:]
	}
}

// affineType is what Q2_K, Q4_K and Q5_K have in common: groups with a scale
// and a minimum, whose scales and minimums are themselves small codes times a
// common half precision factor.
type affineType struct {
	size     int        // bytes per super-block
	group    int        // elements per group
	scaleMax int32      // largest code of a scale or minimum
	plain    affineGrid // search without importance weights
	weighted affineGrid // and with them
	spread   float32    // σ² of the importance is (spread·Σx²)/256
	// pack writes a searched super-block of x.
	pack func(dst []byte, x []float32, s *affineSuper, weighted bool)
}

// affineSuper is a searched super-block: the grid of each group, the codes of
// its scale and minimum, and their common factors before rounding.
type affineSuper struct {
	fits    [16]affineFit
	ls, lm  [16]uint8
	d, dmin float32

	// For requantize: the grids scale·code − offset whose factors are those a
	// reader will see, the codes, and the kernels, nil for the portable code.
	scales, offsets [16]float32
	codes           [superLen]uint8
	kernel          *kernel.Set
}

// encode encodes a row.
func (t *affineType) encode(dst []byte, src, weights []float32) {
	if k := kernel.Active(); k != nil {
		t.encodeLanes(k, dst, src, weights)
		return
	}
	var s affineSuper
	encodeSuper(dst, src, weights, t.size, func(dst []byte, x, q []float32) {
		t.search(&s, x, q)
		t.pack(dst, x, &s, q != nil)
	})
}

// search fits all groups of a super-block. q is nil or the importance weights.
func (t *affineType) search(s *affineSuper, x, q []float32) {
	var scales, mins, sums [16]float32
	var weights [32]float32
	groups, grid := superLen/t.group, &t.plain
	w, sigma2 := weights[:t.group], float32(0)
	if q != nil {
		grid, sigma2 = &t.weighted, t.spread*sumSquares(x)/superLen
	}
	for g := range groups {
		xg := x[g*t.group:][:t.group]
		if q != nil {
			importance(w, q[g*t.group:], xg, sigma2)
			sums[g] = sum(w)
		} else {
			plainWeights(w, xg)
		}
		s.fits[g] = grid.fit(xg, w)
		scales[g], mins[g] = s.fits[g].scale, s.fits[g].min
	}
	if q != nil {
		s.d = fitPositive(s.ls[:groups], scales[:groups], sums[:groups], t.scaleMax)
		s.dmin = fitPositive(s.lm[:groups], mins[:groups], sums[:groups], t.scaleMax)
	} else {
		t.spreadScales(s)
	}
}

// spreadScales sets the codes of scales and minimums without importance.
func (t *affineType) spreadScales(s *affineSuper) {
	var scales, mins [16]float32
	groups := superLen / t.group
	for g, fit := range s.fits[:groups] {
		scales[g], mins[g] = fit.scale, fit.min
	}
	s.d = spreadScales(s.ls[:groups], scales[:groups], float32(t.scaleMax))
	s.dmin = spreadScales(s.lm[:groups], mins[:groups], float32(t.scaleMax))
}

// plainWeights fills w with the weights ggml uses without importance: |x| in
// groups of 16 (Q2_K), the root mean square plus |x| in groups of 32.
func plainWeights(w, x []float32) {
	var level float32
	if len(x) == 32 {
		level = sqrt32(sumSquares(x) / 32)
	}
	w = w[:len(x)]
	for i, v := range x {
		w[i] = level + abs32(v)
	}
}

// spreadScales gives the largest scale the code n and the others their share.
// It returns the value of one code.
func spreadScales(codes []uint8, scales []float32, n float32) float32 {
	var top, inv float32
	for _, v := range scales {
		if v > top {
			top = v
		}
	}
	if top > 0 {
		inv = n / top
	}
	for i, v := range scales {
		codes[i] = uint8(nearest(inv * v))
	}
	return top / n
}

// requantize sets all codes to those of the final grids. A grid that rounded
// to nothing keeps the codes of the search.
func (s *affineSuper) requantize(x []float32, group int, n int32) {
	groups := superLen / group
	if s.kernel != nil {
		s.kernel.DivideCodes(&s.codes[0], &x[0], &s.offsets[0], &s.scales[0], groups, group, 0, n)
	}
	for g, scale := range s.scales[:groups] {
		c, xg := s.codes[g*group:][:group], x[g*group:][:group]
		switch {
		case scale == 0:
			s.fits[g].codes(c, xg, n)
		case s.kernel == nil:
			for i, v := range xg {
				c[i] = uint8(nearestIn((v+float32(s.offsets[g]))/scale, 0, n))
			}
		}
	}
}

// symmetricSuper is a searched super-block of a type without minimums, whose
// groups are 16 long.
type symmetricSuper struct {
	fits [16]symmetricFit

	// For requantize, as in affineSuper.
	scales, offsets [16]float32 // there are no offsets: zeros
	codes           [superLen]uint8
	kernel          *kernel.Set
}

// requantize sets all codes to those of the final grids scale·(code−n). A grid
// that rounded to nothing keeps the codes of the search.
func (s *symmetricSuper) requantize(x []float32, n int32) {
	if s.kernel != nil {
		s.kernel.DivideCodes(&s.codes[0], &x[0], &s.offsets[0], &s.scales[0], 16, 16, -n, n-1)
	}
	for g, scale := range s.scales {
		c, xg := s.codes[16*g:][:16], x[16*g:][:16]
		switch {
		case scale == 0:
			s.fits[g].codes(c, xg, n)
		case s.kernel == nil:
			for i, v := range xg {
				c[i] = uint8(nearestIn(v/scale, -n, n-1) + n)
			}
		}
	}
}

func sum(w []float32) float32 {
	var s float32
	for _, v := range w {
		s += v
	}
	return s
}

// The packers work on eight codes at a time, as the bytes of a word.
const eight = 0x0101010101010101

// nibbles stores the low four bits of codes: those of low in the lower half of
// each byte, those of high in the upper. Lengths are multiples of 8.
func nibbles(dst, low, high []uint8) {
	low, high = low[:len(dst)], high[:len(dst)]
	for i := 0; i+8 <= len(dst); i += 8 {
		l, h := binary.LittleEndian.Uint64(low[i:]), binary.LittleEndian.Uint64(high[i:])
		binary.LittleEndian.PutUint64(dst[i:], l&(15*eight)|h&(15*eight)<<4)
	}
}

// packPairs stores the lowest two bits of each code: byte l of each 32 holds
// elements l, l+32, l+64 and l+96 of its 128, lowest bits first.
func packPairs(dst []byte, codes *[superLen]uint8) { packPairsFrom(dst, codes, 0) }

// packPairsFrom is packPairs for the two bits from shift on.
func packPairsFrom(dst []byte, codes *[superLen]uint8, shift int) {
	for h := range 2 {
		c, out := (*[128]uint8)(codes[128*h:]), (*[32]byte)(dst[32*h:])
		for l := 0; l < 32; l += 8 {
			var word uint64
			for i := range 4 {
				word |= binary.LittleEndian.Uint64(c[l+32*i:]) >> shift & (3 * eight) << (2 * i)
			}
			binary.LittleEndian.PutUint64(out[l:], word)
		}
	}
}

// packBits stores one bit of each code, the one at shift: bit k of byte l
// belongs to element 32k+l (Q3_K and Q5_K).
func packBits(dst []byte, codes *[superLen]uint8, shift int) {
	out := (*[32]byte)(dst)
	for l := 0; l < 32; l += 8 {
		var word uint64
		for k := range 8 {
			word |= binary.LittleEndian.Uint64(codes[l+32*k:]) >> shift & eight << k
		}
		binary.LittleEndian.PutUint64(out[l:], word)
	}
}
