package quant

import (
	"sync"

	"github.com/winnow-moe/winnow/quant/kernel"
)

// The searches by vector kernels: 32 groups at a time, one per lane. Lanes in
// which a kernel meets numbers it does not handle (NaN, infinities, scales of
// subnormal size) send their block to the portable code.

// batchLen is the number of super-blocks whose scales are searched together:
// their scales and minimums fill the lanes.
const batchLen = kernel.Groups / 2

// workspace is the memory of a row being encoded.
type workspace struct {
	lanes     kernel.Lanes
	scratch   kernel.Scratch
	space     kernel.Space
	affines   [batchLen]affineSuper
	symmetric [batchLen]symmetricSuper
	threeBit  [batchLen]superQ3K
	scalesQ3K [batchLen * 16]float32
	open      [batchLen * 16]uint8 // groups of Q3_K that need sweeps
	oneBit    [batchLen]superIQ1
	cellsIQ1  [32]kernel.CellIQ1
	sumsIQ1   [2][8]float32
	uneven    [batchLen][8]float32   // scales of IQ4_XS
	odd       [batchLen]bool         // super-blocks left to the portable code
	sigma     [batchLen]float32      // σ² of their importance
	tops      [40]float32            // codes at which candidates put the largest value
	none      [kernel.Groups]float32 // zeros
	squares   [8]float32
	pad       [2][8 * superLen]float32
	codes     [kernel.Groups * 32]uint8
}

var workspaces = sync.Pool{New: func() any { return new(workspace) }}

// encodeBlocks encodes blocks of length elements and size bytes.
func encodeBlocks(f kernel.Encoder, dst []byte, src []float32, size, length int) {
	if n := len(src) / length; n > 0 {
		f(&dst[:n*size][0], &src[0], n)
	}
}

// encodeMost is encodeBlocks with a kernel that leaves some blocks to one.
func encodeMost(f func(dst *byte, src *float32, blocks int) int, one func(dst []byte, x []float32), dst []byte, src []float32, size, length int) {
	for n := len(src) / length; n > 0; n-- {
		done := f(&dst[:n*size][0], &src[0], n)
		if done == n {
			return
		}
		one(dst[done*size:], src[done*length:][:length])
		dst, src, n = dst[(done+1)*size:], src[(done+1)*length:], n-done
	}
}

// rows returns rows of w.lanes as an array.
func (w *workspace) rows(first int) *[32][kernel.Groups]float32 {
	return (*[32][kernel.Groups]float32)(w.lanes[first:])
}

// load lays the groups at the start of x and of their weights q, which may be
// nil, out in lanes; lanes beyond the end hold zeros.
func (w *workspace) load(k *kernel.Set, x, q []float32, group int) {
	k.Transpose(w.rows(kernel.RowX), w.whole(0, x, kernel.Groups*group), group)
	if q != nil {
		k.Transpose(w.rows(kernel.RowW), w.whole(1, q, kernel.Groups*group), group)
	}
}

// whole returns the start of n numbers, those of x and then zeros.
func (w *workspace) whole(pad int, x []float32, n int) *float32 {
	if len(x) >= n {
		return &x[0]
	}
	p := &w.pad[pad]
	clear(p[copy(p[:n], x):n])
	return &p[0]
}

// fitAffine searches the grids of the loaded groups.
func (w *workspace) fitAffine(k *kernel.Set, g *affineGrid, group int) (odd uint32) {
	for i := range g.steps + 1 {
		w.tops[i] = g.first + float32(g.delta*float32(i)) + g.n
	}
	fit := k.FitAffine
	if g.absolute {
		fit = k.FitAffineAbsolute
	}
	return fit(&w.lanes, group, g.n, &w.tops[0], g.steps+1)
}

// affine returns the fit in a lane.
func (w *workspace) affine(lane int) affineFit {
	l := &w.lanes
	return affineFit{
		scale: l[kernel.RowScale][lane], min: l[kernel.RowMin][lane],
		inv: l[kernel.RowInv][lane], base: l[kernel.RowBase][lane],
	}
}

// symmetricFit returns the fit in a lane.
func (w *workspace) symmetricFit(lane int, n int32) symmetricFit {
	fit := symmetricFit{scale: w.lanes[kernel.RowScale][lane], inv: w.lanes[kernel.RowInv][lane]}
	if fit.inv != 0 {
		fit.offset = n
	}
	return fit
}

// fitSymmetric searches the grids of the loaded groups.
func (w *workspace) fitSymmetric(k *kernel.Set, group int, n float32) (odd uint32) {
	var c symmetricCandidates
	c.set(1, n)
	count := copy(w.tops[:19], c.inv[:])
	return k.FitSymmetric(&w.lanes, group, n, &w.tops[0], firstBeyond, count-firstBeyond)
}

// batches encodes a row of super-blocks, of size bytes each: search is called
// for batches of them and then pack for each.
func (w *workspace) batches(dst []byte, src, weights []float32, size int,
	search func(x, q []float32), pack func(b int, dst []byte, x, q []float32)) {
	for len(src) > 0 {
		n := min(len(src), batchLen*superLen)
		x, q := src[:n], weights
		if q != nil {
			q, weights = weights[:n], weights[n:]
		}
		clear(w.odd[:])
		search(x, q)
		for b := range n / superLen {
			var qb []float32
			if q != nil {
				qb = q[b*superLen:][:superLen]
			}
			pack(b, dst[:size:size], x[b*superLen:][:superLen], qb)
			dst = dst[size:]
		}
		src = src[n:]
	}
}

// chunks lays out the groups of x, with their weights q if not nil, 32 at a
// time; fit searches them, the first of them being number first, and take is
// called for each group g of super-block b and its lane.
func (w *workspace) chunks(k *kernel.Set, x, q []float32, group int,
	fit func(first int) (odd uint32), take func(b, g, lane int)) {
	perSuper := superLen / group
	for first := 0; first < len(x)/group; first += kernel.Groups {
		start := first * group
		if q != nil {
			w.load(k, x[start:], q[start:], group)
		} else {
			w.load(k, x[start:], nil, group)
		}
		odd := fit(first)
		b := first / perSuper
		for lane := 0; lane < min(kernel.Groups, len(x)/group-first); b++ {
			w.odd[b] = w.odd[b] || odd>>lane&(1<<perSuper-1) != 0
			for g := range perSuper {
				take(b, g, lane)
				lane++
			}
		}
	}
}

// blocks loads the blocks of 32 of a row, with their weights if not nil, 32 at
// a time, and calls encode for each such stretch of the row.
func (w *workspace) blocks(k *kernel.Set, src, weights []float32, encode func(x, q []float32)) {
	const n = kernel.Groups * blockLen
	for len(src) > 0 {
		x, q := src[:min(n, len(src))], weights
		if q != nil {
			q, weights = weights[:len(x)], weights[len(x):]
		}
		w.load(k, x, q, blockLen)
		encode(x, q)
		src = src[len(x):]
	}
}

// weigh turns the loaded importance into weights.
func (w *workspace) weigh(k *kernel.Set, first, group int) {
	for lane := range kernel.Groups {
		w.lanes[kernel.RowSigma][lane] = w.sigma[min((first+lane)*group/superLen, batchLen-1)]
	}
	k.Importance(&w.lanes, group)
}

// encodeLanes encodes a row.
func (t *affineType) encodeLanes(k *kernel.Set, dst []byte, src, weights []float32) {
	w := workspaces.Get().(*workspace)
	defer workspaces.Put(w)
	w.batches(dst, src, weights, t.size,
		func(x, q []float32) { t.searchBatch(w, k, x, q) },
		func(b int, dst []byte, x, q []float32) {
			s := &w.affines[b]
			s.kernel = k
			if w.odd[b] {
				s.kernel = nil
				t.search(s, x, q)
			}
			t.pack(dst, x, s, q != nil)
		})
}

// searchBatch is search for up to batchLen super-blocks.
func (t *affineType) searchBatch(w *workspace, k *kernel.Set, x, q []float32) {
	grid, blocks := &t.plain, len(x)/superLen
	if q != nil {
		grid = &t.weighted
		w.variances(k, x, t.spread)
	}
	var sums [batchLen][16]float32
	w.chunks(k, x, q, t.group, func(first int) uint32 {
		if q != nil {
			w.weigh(k, first, t.group)
		} else {
			k.PlainWeights(&w.lanes, t.group)
		}
		return w.fitAffine(k, grid, t.group)
	}, func(b, g, lane int) {
		w.affines[b].fits[g] = w.affine(lane)
		sums[b][g] = w.lanes[kernel.RowSum][lane]
	})
	if q != nil {
		t.scalesByWeight(w, k, &sums, blocks)
		return
	}
	for b := range blocks {
		t.spreadScales(&w.affines[b])
	}
}

// variances sets sigma for the super-blocks of x.
func (w *workspace) variances(k *kernel.Set, x []float32, spread float32) {
	w.sumSquares(k, w.sigma[:], x, superLen)
	for b := range len(x) / superLen {
		w.sigma[b] = spread * w.sigma[b] / superLen
	}
}

// sumSquares sets sums to those of the stretches of x of this length.
func (w *workspace) sumSquares(k *kernel.Set, sums, x []float32, length int) {
	n := len(x) / length
	for i := 0; i < n; {
		if n < len(w.squares) {
			sums[i] = sumSquares(x[i*length:][:length])
			i++
			continue
		}
		i = min(i, n-len(w.squares))
		k.SumSquares(&w.squares, &x[i*length], length)
		i += copy(sums[i:], w.squares[:])
	}
}

// scalesByWeight quantizes the scales and minimums of the batch, the scales of
// super-block b in lane 2b and its minimums in lane 2b+1.
func (t *affineType) scalesByWeight(w *workspace, k *kernel.Set, sums *[batchLen][16]float32, blocks int) {
	x, weight, groups := w.rows(kernel.RowX), w.rows(kernel.RowW), superLen/t.group
	for b := range blocks {
		for g, fit := range w.affines[b].fits[:groups] {
			x[g][2*b], x[g][2*b+1] = fit.scale, fit.min
			weight[g][2*b], weight[g][2*b+1] = sums[b][g], sums[b][g]
		}
	}
	k.FitPositive(&w.lanes, groups, t.scaleMax, &w.tops[0], w.positiveTops(t.scaleMax))
	codes := w.lanes[kernel.RowCodes:]
	for b := range blocks {
		s := &w.affines[b]
		s.d, s.dmin = w.lanes[kernel.RowScale][2*b], w.lanes[kernel.RowScale][2*b+1]
		for g := range groups {
			s.ls[g], s.lm[g] = uint8(codes[g][2*b]), uint8(codes[g][2*b+1])
		}
	}
}

// positiveTops sets tops for the candidates of fitPositive and returns how many
// there are.
func (w *workspace) positiveTops(n int32) (count int) {
	for step := -4; step <= 4; step++ {
		if step != 0 {
			w.tops[count] = float32(0.1*float32(step)) + float32(n)
			count++
		}
	}
	return count
}
