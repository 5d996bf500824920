package quant

import "github.com/winnow-moe/winnow/quant/kernel"

// Q4_0, Q4_1, Q5_0 and Q5_1 by importance. Unlike elsewhere, the variance in it
// is that of the whole row.

// meanSquare returns the variance that importance needs.
func meanSquare(row []float32) float32 { return sumSquares(row) / float32(len(row)) }

// weighBlocks turns the loaded importance into weights.
func (w *workspace) weighBlocks(k *kernel.Set, sigma2 float32) {
	for lane := range kernel.Groups {
		w.lanes[kernel.RowSigma][lane] = sigma2
	}
	k.Importance(&w.lanes, blockLen)
}

// symmetricByWeight encodes a row of Q4_0 (n 8) or Q5_0 (n 16).
func symmetricByWeight(dst []byte, src, weights []float32, size int, n int32) {
	sigma2 := meanSquare(src)
	k := kernel.Active()
	if k == nil {
		symmetricBlocks(dst, src, weights, sigma2, size, n)
		return
	}
	w := workspaces.Get().(*workspace)
	defer workspaces.Put(w)
	w.blocks(k, src, weights, func(x, q []float32) {
		w.weighBlocks(k, sigma2)
		odd := w.fitSymmetric(k, blockLen, float32(n))
		scale, inv := &w.lanes[kernel.RowScale], &w.lanes[kernel.RowInv]
		k.MultiplyCodes(&w.codes[0], &x[0], &w.none[0], &inv[0], len(x)/blockLen, blockLen, -n, n-1)
		for b := range len(x) / blockLen {
			out, codes := dst[:size:size], (*[blockLen]uint8)(w.codes[blockLen*b:])
			dst = dst[size:]
			switch {
			case odd>>b&1 != 0:
				symmetricBlocks(out, x[blockLen*b:][:blockLen], q[blockLen*b:], sigma2, size, n)
				continue
			case inv[b] == 0:
				clear(codes[:])
			}
			putHalf(out, scale[b])
			packLegacy(out[2:], codes)
		}
	})
}

// symmetricBlocks is symmetricByWeight for some blocks of a row of this variance.
func symmetricBlocks(dst []byte, src, weights []float32, sigma2 float32, size int, n int32) {
	var codes [blockLen]uint8
	var w [blockLen]float32
	for ; len(src) >= blockLen; dst, src, weights = dst[size:], src[blockLen:], weights[blockLen:] {
		x := src[:blockLen]
		importance(w[:], weights, x, sigma2)
		fit := fitSymmetric(x, w[:], float32(n))
		fit.codes(codes[:], x, n)
		putHalf(dst, fit.scale)
		packLegacy(dst[2:size], &codes)
	}
}

// affineByWeight encodes a row of Q4_1 (n 15) or Q5_1 (n 31).
func affineByWeight(dst []byte, src, weights []float32, size int, n int32) {
	sigma2 := meanSquare(src)
	grid := affineGrid{n: float32(n), first: -0.9, delta: 0.05, steps: 36}
	k := kernel.Active()
	if k == nil {
		grid.blocks(dst, src, weights, sigma2, size)
		return
	}
	w := workspaces.Get().(*workspace)
	defer workspaces.Put(w)
	w.blocks(k, src, weights, func(x, q []float32) {
		w.weighBlocks(k, sigma2)
		odd := w.fitAffine(k, &grid, blockLen)
		base, inv := &w.lanes[kernel.RowBase], &w.lanes[kernel.RowInv]
		k.MultiplyCodes(&w.codes[0], &x[0], &base[0], &inv[0], len(x)/blockLen, blockLen, 0, n)
		for b := range len(x) / blockLen {
			out := dst[:size:size]
			dst = dst[size:]
			if odd>>b&1 != 0 {
				grid.blocks(out, x[blockLen*b:][:blockLen], q[blockLen*b:], sigma2, size)
				continue
			}
			putHalf(out, w.lanes[kernel.RowScale][b])
			putHalf(out[2:], -w.lanes[kernel.RowMin][b])
			packLegacy(out[4:], (*[blockLen]uint8)(w.codes[blockLen*b:]))
		}
	})
}

// blocks is affineByWeight for some blocks of a row of this variance.
func (g *affineGrid) blocks(dst []byte, src, weights []float32, sigma2 float32, size int) {
	var codes [blockLen]uint8
	var w [blockLen]float32
	for ; len(src) >= blockLen; dst, src, weights = dst[size:], src[blockLen:], weights[blockLen:] {
		x := src[:blockLen]
		importance(w[:], weights, x, sigma2)
		fit := g.fit(x, w[:])
		fit.codes(codes[:], x, int32(g.n))
		putHalf(dst, fit.scale)
		putHalf(dst[2:], -fit.min)
		packLegacy(dst[4:size], &codes)
	}
}
