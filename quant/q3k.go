package quant

import (
	"encoding/binary"
	"math"
	"math/bits"

	"github.com/winnow-moe/winnow/quant/kernel"
)

// Q3_K: 256 elements in 110 bytes, 16 groups of 16 (ggml-common.h block_q3_K).
//
//	  0  32 B        high bits: bit k of byte m belongs to element 32k+m
//	 32  64 B        low two bits, see packPairs
//	 96  12 B        6-bit codes of the 16 scales: group g's low four bits in
//	                 byte g%8 (low for g < 8), upper two in byte 8+g%4
//	                 at bits 2(g/4)
//	108  f16  d      factor of the group scales
//
// value = d·(scale−32)·(code−4).
const sizeQ3K = 110

func decodeQ3K(dst []float32, src []byte) {
	for len(src) >= sizeQ3K {
		b, y := (*[sizeQ3K]byte)(src), (*[superLen]float32)(dst)
		d := half(b[108:])
		var ls [16]uint8
		unpackScalesQ3K(&ls, b[96:])
		for g, c := range ls {
			scale := d * float32(int8(c)-32)
			q := (*[16]byte)(b[32+g/8*32+g%2*16:])
			high := (*[16]byte)(b[g%2*16:])
			shift, bit := g%8/2*2, g/2
			out := (*[16]float32)(y[16*g:])
			for l := range out {
				c := q[l]>>shift&3 | high[l]>>bit&1<<2
				out[l] = scale * float32(int8(c)-4)
			}
		}
		dst, src = dst[superLen:], src[sizeQ3K:]
	}
}

// unpackScalesQ3K reads the scales, shifted to start at 0.
func unpackScalesQ3K(ls *[16]uint8, src []byte) {
	low, high := binary.LittleEndian.Uint64(src), binary.LittleEndian.Uint32(src[8:])
	upper := func(shift int) uint64 {
		return uint64(high>>shift&(3*eight&math.MaxUint32)) | uint64(high>>(shift+2)&(3*eight&math.MaxUint32))<<32
	}
	binary.LittleEndian.PutUint64(ls[:], low&(15*eight)|upper(0)<<4)
	binary.LittleEndian.PutUint64(ls[8:], low>>4&(15*eight)|upper(4)<<4)
}

var integersQ3K = integerForm{Integers: Integers{Block: superLen, Quads: 4, Offsets: true}, record: func(r *record, b []byte) {
	var ls [16]uint8
	unpackScalesQ3K(&ls, b[96:])
	r.d = half(b[108:])
	r.symmetricScales(func(g int) int32 { return int32(ls[g]) - 32 }, 4, 1)
	for i := range r.codes[:32] {
		g, at := i/4, i%4*8 // of 32 elements, eight
		low, high := word(b[32+g/4*32+at:])>>(g%4*2), word(b[at:])>>g
		putCodes(r.codes[2*i:], low&(3*eight)|high&eight<<2)
	}
}}

func encodeQ3K(dst []byte, src, weights []float32) {
	if k := kernel.Active(); k != nil {
		encodeLanesQ3K(k, dst, src, weights)
		return
	}
	encodeSuper(dst, src, weights, sizeQ3K, encodeBlockQ3K)
}

func encodeBlockQ3K(dst []byte, x, weights []float32) {
	var s superQ3K
	if weights != nil {
		s.searchWeighted(x, weights)
	} else {
		s.search(x)
	}
	s.pack(dst, x, weights != nil)
}

// encodeLanesQ3K is encodeBlockQ3K for all super-blocks of a row.
func encodeLanesQ3K(k *kernel.Set, dst []byte, src, weights []float32) {
	w := workspaces.Get().(*workspace)
	defer workspaces.Put(w)
	w.batches(dst, src, weights, sizeQ3K, func(x, q []float32) {
		if q != nil {
			w.searchWeightedQ3K(k, x, q)
			return
		}
		w.searchQ3K(k, x)
	}, func(b int, dst []byte, x, q []float32) {
		if w.odd[b] {
			encodeBlockQ3K(dst, x, q)
			return
		}
		s := &w.threeBit[b]
		s.kernel = k
		s.pack(dst, x, q != nil)
	})
}

// searchQ3K is search for a batch. Only the groups that sweeps may change, most
// are not, go through them.
func (w *workspace) searchQ3K(k *kernel.Set, x []float32) {
	scales, groups := &w.scalesQ3K, len(x)/16
	open := w.open[:0]
	for first := 0; first < groups; first += kernel.Groups {
		w.load(k, x[16*first:], nil, 16)
		odd, some := k.StartThreeBit(&w.lanes)
		*(*[kernel.Groups]float32)(scales[first:]) = w.lanes[kernel.RowScale]
		for ; odd != 0; odd &= odd - 1 {
			w.odd[(first+bits.TrailingZeros32(odd))/16] = true
		}
		for ; some != 0; some &= some - 1 {
			open = append(open, uint8(first+bits.TrailingZeros32(some)))
		}
	}
	for len(open) > 0 {
		n := min(len(open), kernel.Groups)
		w.sweepQ3K(k, x, open[:n])
		open = open[n:]
	}
	for b := range len(x) / superLen {
		w.threeBit[b].spread((*[16]float32)(scales[16*b:]))
	}
}

// sweepQ3K sets the scales of some groups of the batch x.
func (w *workspace) sweepQ3K(k *kernel.Set, x []float32, groups []uint8) {
	pad := &w.pad[0]
	for i, g := range groups {
		*(*[16]float32)(pad[16*i:]) = *(*[16]float32)(x[16*int(g):])
	}
	w.load(k, pad[:16*len(groups)], nil, 16)
	odd := k.FitThreeBit(&w.lanes)
	for lane, g := range groups {
		w.scalesQ3K[g] = w.lanes[kernel.RowScale][lane]
		w.odd[g/16] = w.odd[g/16] || odd>>lane&1 != 0
	}
}

// searchWeightedQ3K is searchWeighted for a batch, whose super-blocks' scales
// are fitted side by side as well.
func (w *workspace) searchWeightedQ3K(k *kernel.Set, x, q []float32) {
	w.variances(k, x, 2)
	var sums [batchLen][16]float32
	w.chunks(k, x, q, 16, func(first int) uint32 {
		w.weigh(k, first, 16)
		return w.fitSymmetric(k, 16, 4)
	}, func(b, g, lane int) {
		w.threeBit[b].fits[g] = w.symmetricFit(lane, 4)
		sums[b][g] = w.lanes[kernel.RowSum][lane]
	})
	scales, weights, blocks := w.rows(kernel.RowX), w.rows(kernel.RowW), len(x)/superLen
	for b := range blocks {
		for g, fit := range w.threeBit[b].fits {
			scales[g][b], weights[g][b] = fit.scale, sums[b][g]
		}
	}
	odd := w.fitSymmetric(k, 16, 32)
	for b := range blocks {
		w.odd[b] = w.odd[b] || odd>>b&1 != 0
		w.threeBit[b].code(w.symmetricFit(b, 32))
	}
}

// superQ3K is a searched super-block.
type superQ3K struct {
	symmetricSuper
	ls [16]uint8 // codes of the group scales, shifted to start at 0
	d  float32   // their factor before rounding
}

// pack writes a searched super-block.
func (s *superQ3K) pack(dst []byte, x []float32, weighted bool) {
	d := putHalf(dst[108:], s.d)
	packScalesQ3K(dst[96:], &s.ls)
	unpackScalesQ3K(&s.ls, dst[96:])
	zeros := d == 0
	for g, c := range s.ls {
		s.scales[g] = d * float32(int8(c)-32)
		zeros = zeros || c == 32
	}
	if s.kernel != nil && !zeros {
		s.kernel.PackThreeBit(&dst[0], &x[0], &s.scales)
		return
	}
	s.requantize(x, 4)
	if !weighted {
		for g, scale := range s.scales {
			if scale == 0 {
				fitThreeBit(s.codes[16*g:][:16], x[16*g:][:16])
			}
		}
	}
	packCodesQ3K(dst, &s.codes)
}

// packScalesQ3K stores scales that are shifted to start at 0.
func packScalesQ3K(dst []byte, ls *[16]uint8) {
	first, last := binary.LittleEndian.Uint64(ls[:]), binary.LittleEndian.Uint64(ls[8:])
	binary.LittleEndian.PutUint64(dst, first&(15*eight)|last&(15*eight)<<4)
	// Scales of NaN may have codes beyond their six bits, which meet the bits
	// of others.
	first, last = first>>4&(15*eight), last>>4&(15*eight)
	binary.LittleEndian.PutUint32(dst[8:], uint32(first)|uint32(first>>32)<<2|uint32(last)<<4|uint32(last>>32)&(3*eight&math.MaxUint32)<<6)
}

func packCodesQ3K(dst []byte, codes *[superLen]uint8) {
	packBits(dst, codes, 2)
	packPairs(dst[32:], codes)
}

var refineQ3K = refinement{
	size: sizeQ3K, group: 16, lo: -4, hi: 3, first: -32, scales: 64, mins: 1, mirrored: true, wide: 16, wideMins: 1, starts: 1, passes: 1,
	read: func(s *superBlock, b []byte) {
		s.d = half(b[108:])
		unpackScalesQ3K(&s.ls, b[96:])
	},
	write: func(b []byte, s *superBlock) {
		packCodesQ3K(b, &s.codes)
		packScalesQ3K(b[96:], &s.ls)
		putHalf(b[108:], s.d)
	},
	decode: decodeQ3K,
}

func (s *superQ3K) searchWeighted(x, q []float32) {
	var scales, sums, w [16]float32
	sigma2 := 2 * sumSquares(x) / superLen
	for g := range scales {
		xg := x[16*g:][:16]
		importance(w[:], q[16*g:], xg, sigma2)
		sums[g] = sum(w[:])
		s.fits[g] = fitSymmetric(xg, w[:], 4)
		scales[g] = s.fits[g].scale
	}
	s.code(fitSymmetric(scales[:], sums[:], 32))
}

// code sets the codes of the scales from their own fit.
func (s *superQ3K) code(fit symmetricFit) {
	var scales [16]float32
	for g, f := range s.fits {
		scales[g] = f.scale
	}
	fit.codes(s.ls[:], scales[:], 32)
	s.d = fit.scale
}

func (s *superQ3K) search(x []float32) {
	var codes [16]uint8
	var scales [16]float32
	for g := range scales {
		scales[g] = fitThreeBit(codes[:], x[16*g:][:16])
	}
	s.spread(&scales)
}

// spread gives the scale of largest magnitude the code −32 and the others
// their share.
func (s *superQ3K) spread(scales *[16]float32) {
	top := peak(scales[:])
	if top == 0 {
		clear(s.ls[:])
		s.d = 0
		return
	}
	inv := -32 / top
	s.d = 1 / inv
	for g, v := range scales {
		c := int8(nearest(inv * v))
		s.ls[g] = uint8(max(-32, min(31, c)) + 32)
	}
}

// fitThreeBit searches codes in [−4, 3] and their scale (ggml's
// make_q3_quants), weighing by x². It starts with the largest magnitude at −4
// and moves single codes while that helps, for at most five sweeps. The codes
// are returned shifted to start at 0, except that zeros stay 0.
func fitThreeBit(codes []uint8, x []float32) float32 {
	top := peak(x)
	if abs32(top) < groupEpsilon {
		clear(codes)
		return 0
	}
	var s sweepQ3K
	inv := -4 / top
	for i, v := range x {
		w := v * v
		s.w[i], s.wx[i] = w, w*v
		s.l[i] = nearestIn(inv*v, -4, 3)
		l := float32(s.l[i])
		s.a += float32(s.wx[i] * l)
		s.b += float32(float32(w*l) * l)
	}
	for range 5 {
		if !s.move(x) {
			break
		}
	}
	for i := range codes {
		codes[i] = uint8(s.l[i] + 4)
	}
	if s.b > 0 {
		return s.a / s.b
	}
	return 0
}

// sweepQ3K is the state of fitThreeBit: weights w = x², products w·x, codes l,
// and the sums A = Σ(w·x)·l and B = Σ(w·l)·l.
type sweepQ3K struct {
	w, wx [16]float32
	l     [16]int32
	a, b  float32
}

// move tries for each code the value that fits best while the others stay, and
// reports whether any changed.
func (s *sweepQ3K) move(x []float32) bool {
	changed := false
	for i, v := range (*[16]float32)(x) {
		w, wx, l := s.w[i], s.wx[i], float32(s.l[i])
		restA := s.a - float32(wx*l)
		if !(restA > 0) {
			continue
		}
		restB := s.b - float32(float32(w*l)*l)
		code := nearestIn(float32(v*restB)/restA, -4, 3)
		if code == s.l[i] {
			continue
		}
		l = float32(code)
		restA += float32(wx * l)
		restB += float32(float32(w*l) * l)
		if restB > 0 && float32(restA*restA)*s.b > float32(s.a*s.a)*restB {
			s.l[i], s.a, s.b, changed = code, restA, restB, true
		}
	}
	return changed
}
