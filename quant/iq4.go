package quant

import (
	"encoding/binary"

	"github.com/winnow-moe/winnow/quant/kernel"
)

// The 4-bit types whose codes stand for sixteen unevenly spaced values
// (ggml-common.h block_iq4_nl, block_iq4_xs and kvalues_iq4nl). Byte j of each
// 16 code bytes holds elements j (low) and j+16 of its 32.
//
//	IQ4_NL  18 B for 32    f16 d | 16 B codes
//	                       value = d·table[code]
//	IQ4_XS  136 B for 256  f16 d | u16 high | 4 B low | 128 B codes
//	                       value = d·(ls−32)·table[code]; the scale ls of group
//	                       g has its four low bits in nibble g of low, the two
//	                       upper ones at bit 2g of high
const (
	sizeIQ4NL = 18
	sizeIQ4XS = 136
)

// tableIQ4 holds the values of the codes, in the order of size.
var tableIQ4 = [16]float32{-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113}

// Two neighbouring values of the table meet at a multiple of one half, so the
// integer part of 2v decides which one is nearest. stepsIQ4 has an entry for
// every such integer, from −256 up; scaleIQ4 times v is an integer too if it
// matters, |v| ≥ 4, and its bits above shiftIQ4 are those of 2v.
const (
	scaleIQ4  = 1 << 21
	shiftIQ4  = 20
	offsetIQ4 = 512
)

// codesIQ4 and stepsIQ4 give the code nearest to (i−offsetIQ4)/2 and all
// values up to the next such number, and the value of that code.
var codesIQ4, stepsIQ4 = nearestIQ4()

func nearestIQ4() (codes [2 * offsetIQ4]uint8, steps [2 * offsetIQ4]float32) {
	code := 0
	for i := range codes {
		v := float32(i-offsetIQ4) / 2
		for code < 15 && v-tableIQ4[code] >= tableIQ4[code+1]-v {
			code++
		}
		codes[i], steps[i] = uint8(code), tableIQ4[code]
	}
	return codes, steps
}

// slotIQ4 returns the entry for scaled = scaleIQ4·v, |v| < 256.
func slotIQ4(scaled float32) uint32 {
	return uint32(int32(scaled)>>shiftIQ4+offsetIQ4) % (2 * offsetIQ4)
}

// codeIQ4 returns the code of the value nearest to v; ties go up, NaN to the top.
func codeIQ4(v float32) uint8 {
	if !(v < 113) {
		return 15
	}
	return codesIQ4[slotIQ4(max(v, -127)*scaleIQ4)]
}

func decodeIQ4NL(dst []float32, src []byte) {
	for ; len(src) >= sizeIQ4NL; dst, src = dst[blockLen:], src[sizeIQ4NL:] {
		unpackIQ4((*[blockLen]float32)(dst), (*[16]byte)(src[2:]), half(src))
	}
}

func decodeIQ4XS(dst []float32, src []byte) {
	for ; len(src) >= sizeIQ4XS; dst, src = dst[superLen:], src[sizeIQ4XS:] {
		d := half(src)
		for g := range 8 {
			unpackIQ4((*[blockLen]float32)(dst[32*g:]), (*[16]byte)(src[8+16*g:]), d*float32(int32(scaleIQ4XS(src, g))-32))
		}
	}
}

// scaleIQ4XS reads the scale of group g as it is stored.
func scaleIQ4XS(b []byte, g int) uint8 {
	return b[4+g/2]>>(g%2*4)&15 | uint8(le16(b[2:])>>(2*g)&3)<<4
}

var refineIQ4XS = refinement{
	size: sizeIQ4XS, group: 32, first: -32, scales: 64, mins: 1, mirrored: true, wide: 16, wideMins: 1, starts: 2, plainStarts: 2, passes: 1,
	read: func(s *superBlock, b []byte) {
		s.d = half(b)
		for g := range 8 {
			s.ls[g] = scaleIQ4XS(b, g)
		}
	},
	write: func(b []byte, s *superBlock) {
		putHalf(b, s.d)
		packScalesIQ4XS(b, &s.ls)
		for i := range 128 {
			at := i/16*32 + i%16
			b[8+i] = s.codes[at] | s.codes[at+16]<<4
		}
	},
	decode: decodeIQ4XS,
}

// packScalesIQ4XS stores scales that are shifted to start at 0.
func packScalesIQ4XS(dst []byte, ls *[16]uint8) {
	var high uint16
	low := (*[4]byte)(dst[4:])
	clear(low[:])
	for g, c := range ls[:8] {
		low[g/2] |= c & 15 << (g % 2 * 4)
		high |= uint16(c>>4) << (2 * g)
	}
	binary.LittleEndian.PutUint16(dst[2:], high)
}

func unpackIQ4(y *[blockLen]float32, codes *[16]byte, d float32) {
	for j, c := range codes {
		y[j] = d * tableIQ4[c&15]
		y[j+16] = d * tableIQ4[c>>4]
	}
}

func encodeIQ4NL(dst []byte, src, weights []float32) {
	if k := kernel.Active(); k != nil {
		encodeLanesIQ4NL(k, dst, src, weights)
		return
	}
	encodeBlocksIQ4NL(dst, src, weights)
}

func encodeBlocksIQ4NL(dst []byte, src, weights []float32) {
	for ; len(src) >= blockLen; dst, src = dst[sizeIQ4NL:], src[blockLen:] {
		x := (*[blockLen]float32)(src)
		scale := fitIQ4(x, weights, sumSquares(x[:])*(2.0/blockLen))
		putHalf(dst, scale)
		packIQ4((*[16]byte)(dst[2:]), x, inverse(scale))
		if weights != nil {
			weights = weights[blockLen:]
		}
	}
}

// encodeLanesIQ4NL is encodeBlocksIQ4NL, 32 blocks at a time.
func encodeLanesIQ4NL(k *kernel.Set, dst []byte, src, weights []float32) {
	w := workspaces.Get().(*workspace)
	defer workspaces.Put(w)
	w.blocks(k, src, weights, func(x, q []float32) {
		if q != nil {
			sigma := w.lanes[kernel.RowSigma][:]
			w.sumSquares(k, sigma, x, blockLen)
			for b := range sigma {
				sigma[b] *= 2.0 / blockLen
			}
			k.Importance(&w.lanes, blockLen)
		} else {
			k.SquareWeights(&w.lanes, blockLen)
		}
		odd, blocks := k.FitIQ4(&w.lanes, &w.scratch), len(x)/blockLen
		inv := w.lanes[kernel.RowInv][:blocks]
		for b := range inv {
			inv[b] = inverse(w.lanes[kernel.RowScale][b])
		}
		k.CodesIQ4(&dst[2], sizeIQ4NL, &x[0], &inv[0], blocks)
		for b := range blocks {
			if odd>>b&1 == 0 {
				putHalf(dst[sizeIQ4NL*b:], w.lanes[kernel.RowScale][b])
				continue
			}
			var qb []float32
			if q != nil {
				qb = q[blockLen*b:]
			}
			encodeBlocksIQ4NL(dst[sizeIQ4NL*b:], x[blockLen*b:][:blockLen], qb)
		}
		dst = dst[sizeIQ4NL*blocks:]
	})
}

func encodeIQ4XS(dst []byte, src, weights []float32) {
	if k := kernel.Active(); k != nil {
		encodeLanesIQ4XS(k, dst, src, weights)
		return
	}
	encodeSuper(dst, src, weights, sizeIQ4XS, encodeBlockIQ4XS)
}

func encodeBlockIQ4XS(dst []byte, x, weights []float32) {
	sigma2 := sumSquares(x) * (2.0 / superLen)
	var scales [8]float32
	for g := range scales {
		var q []float32
		if weights != nil {
			q = weights[32*g:]
		}
		scales[g] = fitIQ4((*[blockLen]float32)(x[32*g:]), q, sigma2)
	}
	spreadScalesIQ4XS(dst, &scales)
	for g, inv := range scales {
		packIQ4((*[16]byte)(dst[8+16*g:]), (*[blockLen]float32)(x[32*g:]), inv)
	}
}

// encodeLanesIQ4XS is encodeBlockIQ4XS for all super-blocks of a row.
func encodeLanesIQ4XS(k *kernel.Set, dst []byte, src, weights []float32) {
	w := workspaces.Get().(*workspace)
	defer workspaces.Put(w)
	w.batches(dst, src, weights, sizeIQ4XS, func(x, q []float32) {
		if q != nil {
			w.variances(k, x, 2)
		}
		w.chunks(k, x, q, 32, func(first int) uint32 {
			if q != nil {
				w.weigh(k, first, 32)
			} else {
				k.SquareWeights(&w.lanes, 32)
			}
			return k.FitIQ4(&w.lanes, &w.scratch)
		}, func(b, g, lane int) { w.uneven[b][g] = w.lanes[kernel.RowScale][lane] })
	}, func(b int, dst []byte, x, q []float32) {
		if w.odd[b] {
			encodeBlockIQ4XS(dst, x, q)
			return
		}
		spreadScalesIQ4XS(dst, &w.uneven[b])
		k.CodesIQ4(&dst[8], 16, &x[0], &w.uneven[b][0], 8)
	})
}

// spreadScalesIQ4XS gives the scale of largest magnitude the code −32 and the
// others their share. It turns the scales into the inverse ones that the codes
// of the elements are for; in these the factor is not rounded to half.
func spreadScalesIQ4XS(dst []byte, scales *[8]float32) {
	var top float32
	for _, scale := range scales {
		if abs32(scale) > abs32(top) {
			top = scale
		}
	}
	d := -top / 32
	putHalf(dst, d)
	share := inverse(d)
	var codes [16]uint8
	for g, scale := range scales {
		ls := nearestIn(share*scale, -32, 31)
		codes[g] = uint8(ls + 32)
		scales[g] = inverse(d * float32(ls))
	}
	packScalesIQ4XS(dst, &codes)
}

// packIQ4 stores the codes nearest to inv·x.
func packIQ4(dst *[16]byte, x *[blockLen]float32, inv float32) {
	for j := range dst {
		dst[j] = codeIQ4(inv*x[j]) | codeIQ4(inv*x[j+16])<<4
	}
}

// fitIQ4 searches the scale of 32 elements (the search within
// quantize_row_iq4_nl_impl): sixteen inverse scales that send the largest
// magnitude to between −134 and −120; for each the least-squares scale A/B of
// its codes; and the largest A²/B wins. q is nil or the importance.
func fitIQ4(x *[blockLen]float32, q []float32, sigma2 float32) float32 {
	top := peak(x[:])
	if abs32(top) < groupEpsilon {
		return 0
	}
	var w [blockLen]float32
	if q != nil {
		importance(w[:], q, x[:], sigma2)
	} else {
		for i, v := range x {
			w[i] = v * v
		}
	}
	// The first candidate and that of step 0 differ in their rounding.
	inv := [16]float32{1 / (-top / tableIQ4[0])}
	for step := -7; step <= 7; step++ {
		inv[step+8] = (float32(step) + tableIQ4[0]) / top
	}
	var a, b [16]float32
	for i := 0; i < len(inv); i += 2 {
		a[i], b[i], a[i+1], b[i+1] = sumsIQ4(x, &w, inv[i]*scaleIQ4, inv[i+1]*scaleIQ4)
	}
	var scale float32
	if b[0] > 0 {
		scale = a[0] / b[0]
	}
	best := scale * a[0]
	for i := 1; i < len(inv); i++ {
		if b[i] > 0 && a[i]*a[i] > best*b[i] {
			scale = a[i] / b[i]
			best = scale * a[i]
		}
	}
	return scale
}

// sumsIQ4 returns A = Σ(w·v)·x and B = Σ(w·v)·v over the values v nearest to
// inv·x, for two inverse scales that are scaled for slotIQ4.
func sumsIQ4(x, w *[blockLen]float32, inv0, inv1 float32) (a0, b0, a1, b1 float32) {
	for i, v := range x {
		y := stepsIQ4[slotIQ4(inv0*v)]
		wy := w[i] * y
		a0 += float32(wy * v)
		b0 += float32(wy * y)
		y = stepsIQ4[slotIQ4(inv1*v)]
		wy = w[i] * y
		a1 += float32(wy * v)
		b1 += float32(wy * y)
	}
	return a0, b0, a1, b1
}
