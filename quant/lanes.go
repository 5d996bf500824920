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
	lanes  kernel.Lanes
	supers [batchLen]affineSuper
	odd    [batchLen]bool    // super-blocks left to the portable code
	sigma  [batchLen]float32 // σ² of their importance
	pad    [2][kernel.Groups * 32]float32
	codes  [kernel.Groups * 32]uint8
}

var workspaces = sync.Pool{New: func() any { return new(workspace) }}

// rows returns rows of w.lanes as an array.
func (w *workspace) rows(first int) *[32][kernel.Groups]float32 {
	return (*[32][kernel.Groups]float32)(w.lanes[first:])
}

// load lays the groups at the start of x and of their weights q, which may be
// nil, out in lanes; lanes beyond the end hold zeros.
func (w *workspace) load(k *kernel.Set, x, q []float32, group int) {
	k.Transpose(w.rows(kernel.RowX), w.whole(0, x, group), group)
	if q != nil {
		k.Transpose(w.rows(kernel.RowW), w.whole(1, q, group), group)
	}
}

// whole returns the start of 32 groups, those of x and then zeros.
func (w *workspace) whole(pad int, x []float32, group int) *float32 {
	n := kernel.Groups * group
	if len(x) >= n {
		return &x[0]
	}
	p := &w.pad[pad]
	clear(p[copy(p[:], x):])
	return &p[0]
}

// fitAffine searches the grids of the loaded groups.
func (w *workspace) fitAffine(k *kernel.Set, g *affineGrid, group int) (odd uint32) {
	tops := g.tops()
	fit := k.FitAffine
	if g.absolute {
		fit = k.FitAffineAbsolute
	}
	return fit(&w.lanes, group, g.n, &tops[0], g.steps+1)
}

// tops returns the codes at which the candidates put the largest value.
func (g *affineGrid) tops() (tops [40]float32) {
	for i := range g.steps + 1 {
		tops[i] = g.first + float32(g.delta*float32(i)) + g.n
	}
	return tops
}

// affine returns the fit in a lane.
func (w *workspace) affine(lane int) affineFit {
	l := &w.lanes
	return affineFit{
		scale: l[kernel.RowScale][lane], min: l[kernel.RowMin][lane],
		inv: l[kernel.RowInv][lane], base: l[kernel.RowBase][lane],
	}
}

// encodeLanes encodes a row.
func (t *affineType) encodeLanes(k *kernel.Set, dst []byte, src, weights []float32) {
	w := workspaces.Get().(*workspace)
	defer workspaces.Put(w)
	for len(src) > 0 {
		n := min(len(src), batchLen*superLen)
		x, q := src[:n], weights
		if q != nil {
			q, weights = weights[:n], weights[n:]
		}
		t.searchBatch(w, k, x, q)
		for b := range n / superLen {
			xb, s := x[b*superLen:][:superLen], &w.supers[b]
			if w.odd[b] {
				var qb []float32
				if q != nil {
					qb = q[b*superLen:][:superLen]
				}
				*s = affineSuper{}
				t.search(s, xb, qb)
			}
			t.pack(dst[:t.size:t.size], xb, s, q != nil)
			dst = dst[t.size:]
		}
		src = src[n:]
	}
}

// searchBatch is search for up to batchLen super-blocks.
func (t *affineType) searchBatch(w *workspace, k *kernel.Set, x, q []float32) {
	grid, blocks := &t.plain, len(x)/superLen
	var sums [batchLen][16]float32
	if q != nil {
		grid = &t.weighted
		w.variances(k, x, t.spread)
	}
	for b := range blocks {
		w.odd[b], w.supers[b].kernel = false, k
	}
	perSuper := superLen / t.group
	for first := 0; first < len(x)/t.group; first += kernel.Groups {
		start := first * t.group
		if q == nil {
			w.load(k, x[start:], nil, t.group)
			k.PlainWeights(&w.lanes, t.group)
		} else {
			w.load(k, x[start:], q[start:], t.group)
			for lane := range kernel.Groups {
				w.lanes[kernel.RowSigma][lane] = w.sigma[min((first+lane)/perSuper, blocks-1)]
			}
			k.Importance(&w.lanes, t.group)
		}
		odd := w.fitAffine(k, grid, t.group)
		for lane := range min(kernel.Groups, len(x)/t.group-first) {
			b, g := (first+lane)/perSuper, (first+lane)%perSuper
			w.supers[b].fits[g] = w.affine(lane)
			sums[b][g] = w.lanes[kernel.RowSum][lane]
			w.odd[b] = w.odd[b] || odd>>lane&1 != 0
		}
	}
	if q != nil {
		t.scalesByWeight(w, k, &sums, blocks)
		return
	}
	for b := range blocks {
		t.spreadScales(&w.supers[b])
	}
}

// variances sets sigma for the super-blocks of x.
func (w *workspace) variances(k *kernel.Set, x []float32, spread float32) {
	blocks := len(x) / superLen
	var sums [8]float32
	for b := 0; b < blocks; {
		if blocks < 8 {
			w.sigma[b] = spread * sumSquares(x[b*superLen:][:superLen]) / superLen
			b++
			continue
		}
		b = min(b, blocks-8)
		k.SumSquares(&sums, &x[b*superLen], superLen)
		for i, s := range sums {
			w.sigma[b+i] = spread * s / superLen
		}
		b += 8
	}
}

// scalesByWeight quantizes the scales and minimums of the batch, the scales of
// super-block b in lane 2b and its minimums in lane 2b+1.
func (t *affineType) scalesByWeight(w *workspace, k *kernel.Set, sums *[batchLen][16]float32, blocks int) {
	x, weight, groups := w.rows(kernel.RowX), w.rows(kernel.RowW), superLen/t.group
	for b := range blocks {
		for g, fit := range w.supers[b].fits[:groups] {
			x[g][2*b], x[g][2*b+1] = fit.scale, fit.min
			weight[g][2*b], weight[g][2*b+1] = sums[b][g], sums[b][g]
		}
	}
	tops := positiveTops(t.scaleMax)
	k.FitPositive(&w.lanes, groups, t.scaleMax, &tops[0], len(tops))
	codes := w.lanes[kernel.RowCodes:]
	for b := range blocks {
		s := &w.supers[b]
		s.d, s.dmin = w.lanes[kernel.RowScale][2*b], w.lanes[kernel.RowScale][2*b+1]
		for g := range groups {
			s.ls[g], s.lm[g] = uint8(codes[g][2*b]), uint8(codes[g][2*b+1])
		}
	}
}

// positiveTops returns the codes at which the candidates of fitPositive put
// the largest value.
func positiveTops(n int32) (tops [8]float32) {
	for i := range tops {
		step := i - 4
		if step >= 0 {
			step++
		}
		tops[i] = float32(0.1*float32(step)) + float32(n)
	}
	return tops
}
