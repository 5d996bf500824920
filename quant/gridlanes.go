package quant

import (
	"math"
	"slices"
	"sync"

	"github.com/winnow-moe/winnow/quant/kernel"
)

// The searches of IQ2 and IQ3 by vector kernels: all candidates of a group at
// once, one per lane. Groups whose numbers could overflow, or leave the range
// in which nearest rounds, and groups with NaN go to the portable code.

// packedCells are gridCells as kernels take them: entries with the code instead
// of the index of a point, and lists whose lengths are even: a code that comes
// again changes nothing.
type packedCells struct {
	entries []uint32
	lists   []uint16
	records []uint32 // of lists
}

func newPackedCells(c *gridCells, levels int) *packedCells {
	p := &packedCells{entries: make([]uint32, len(c.entries))}
	for key, e := range c.entries {
		if e&onGrid != 0 {
			p.entries[key] = kernel.OnGrid | uint32(c.codes[uint16(e)])
			continue
		}
		first, near := len(p.lists), c.neighbours(e)
		p.lists = append(p.lists, near...)
		if len(near)%2 != 0 {
			p.lists = append(p.lists, near[0])
		}
		p.entries[key] = uint32(first)<<listBits | uint32(len(p.lists)-first)
	}
	p.records = make([]uint32, 0, 2*len(p.lists))
	for _, code := range p.lists {
		p.records = kernel.AppendRecord(p.records, code, levels)
	}
	p.lists = slices.Grow(p.lists, listSlack)
	return p
}

// gridChunk is the number of super-blocks whose ranges are searched together:
// their groups of 32 elements fill the lanes.
const gridChunk = 4

// gridWorkspace is the memory of a row being encoded.
type gridWorkspace struct {
	candidates kernel.Candidates
	magnitudes [gridChunk]kernel.Magnitudes
	signs      [gridChunk][32]uint8
	groupTops  [gridChunk][3][16]uint32
	fits       [batchLen][superLen / 16]gridFit
	codes      [8]uint16 // of the group at hand
	workspace
	steps [48]float32 // codes at which candidates put the largest magnitude
}

var gridWorkspaces = sync.Pool{New: func() any { return new(gridWorkspace) }}

// encodeLanes encodes a row.
func (t *gridType) encodeLanes(k *kernel.Set, dst []byte, src, weights []float32) {
	w := gridWorkspaces.Get().(*gridWorkspace)
	defer gridWorkspaces.Put(w)
	w.batches(dst, src, weights, t.size,
		func(x, q []float32) { t.searchBatch(w, k, x, q) },
		func(b int, dst []byte, _, _ []float32) {
			t.store(dst, w.fits[b][:superLen/t.group], !w.odd[b])
		})
}

// searchBatch is fitAll for up to batchLen super-blocks; those for which it
// fails are odd.
func (t *gridType) searchBatch(w *gridWorkspace, k *kernel.Set, x, q []float32) {
	w.variances(k, x, t.spread)
	for step := -t.steps; step <= t.steps; step++ {
		w.steps[step+t.steps] = t.candidate(step)
	}
	for first := 0; first < len(x)/superLen; first += gridChunk {
		blocks := min(gridChunk, len(x)/superLen-first)
		for b := range blocks {
			t.weighSuper(w, k, b, x, q, first+b)
		}
		if t.ranged {
			w.fitRanges(k, blocks, int32(t.levels)+1)
		}
		for b := range blocks {
			for g := range superLen / t.group {
				if !t.fitLanes(w, k, x, q, first, b, g) {
					w.odd[first+b] = true
				}
			}
		}
	}
}

// weighSuper sets the magnitudes of super-block b of the chunk, which is number
// n of the batch.
func (t *gridType) weighSuper(w *gridWorkspace, k *kernel.Set, b int, x, q []float32, n int) {
	sigma2 := w.sigma[n]
	var importance *float32
	switch {
	case q != nil:
		importance = &q[n*superLen]
	case t.flat != 0:
		sigma2 *= t.flat
	default:
		sigma2 = 0
	}
	k.Magnitudes(&w.magnitudes[b], &w.signs[b], &w.groupTops[b], &x[n*superLen], importance, sigma2, t.group, t.parity)
}

// fitRanges sets the scales of all groups of 32 elements in a search without
// codebook: fitPositive.
func (w *gridWorkspace) fitRanges(k *kernel.Set, blocks int, n int32) {
	for i, row := range [...]int{kernel.MagX, kernel.MagW} {
		for b := range blocks {
			copy(w.pad[i][b*superLen:], w.magnitudes[b][row][:])
		}
		clear(w.pad[i][blocks*superLen:])
	}
	k.Transpose(w.rows(kernel.RowX), &w.pad[0][0], 32)
	k.Transpose(w.rows(kernel.RowW), &w.pad[1][0], 32)
	k.FitPositive(&w.lanes, 32, n, &w.tops[0], w.positiveTops(n))
}

// gridRange has what a group must not exceed for kernels: magnitudes and
// scales, and the square roots of the weights. The largest distance is then
// below 8·2^40·(16·2^30)².
const (
	gridRange  = 1 << 30
	gridWeight = 1 << 40
)

// fitLanes is fit for group g of super-block b of the chunk that starts at
// number first of the batch.
func (t *gridType) fitLanes(w *gridWorkspace, k *kernel.Set, x, q []float32, first, b, g int) bool {
	f := &w.fits[first+b][g]
	ok, done := t.fitOrdinary(w, k, f, b, g)
	if done {
		return ok
	}
	start := (first+b)*superLen + g*t.group
	if q != nil {
		q = q[start:][:t.group]
	}
	return t.fit(f, x[start:][:t.group], q, w.sigma[first+b])
}

// fitOrdinary is fit for groups in the range of the kernels; it reports
// whether the group is done.
func (t *gridType) fitOrdinary(w *gridWorkspace, k *kernel.Set, f *gridFit, b, g int) (ok, done bool) {
	tops := &w.groupTops[b]
	reach := math.Float32frombits(tops[1][g])
	if !(reach < gridRange) || tops[2][g] >= math.Float32bits(gridWeight) {
		return false, false
	}
	*f = gridFit{zero: true}
	top := math.Float32frombits(tops[0][g])
	if top < t.epsilon || top == 0 {
		return true, true
	}
	scale, base := top/float32(2*t.levels-1), top
	if t.ranged {
		scale = w.lanes[kernel.RowScale][b*(superLen/t.group)+g]
		base = scale * float32(t.levels)
		if base <= 0 {
			return true, true
		}
	}
	// The largest and the smallest scale.
	count := 2*t.steps + 1
	if !(w.steps[0]/base > 1.0/gridRange && w.steps[count-1]/base*reach < 1<<20) {
		return false, false
	}
	scale, done = t.searchLanes(w, k, &w.magnitudes[b], g*t.group, scale, base, reach)
	if !done || scale != scale {
		return false, done
	}
	var signs [4]uint8
	copy(signs[:t.group/8], w.signs[b][g*t.group/8:])
	f.set(t, &w.codes, scale, signs)
	return true, true
}

// searchLanes is gridGroup.search for the group that starts at an element of m:
// it sets the codes and returns the scale. It reports whether that was in the
// range of the kernels.
func (t *gridType) searchLanes(w *gridWorkspace, k *kernel.Set, m *kernel.Magnitudes, start int,
	scale, base, reach float32) (_ float32, done bool) {
	fit, round := k.FitCells3, k.RoundCells3
	if t.levels == 8 {
		fit, round = k.FitCells8, k.RoundCells8
	}
	x, cells := &m[kernel.MagX][start], t.grid.packed()
	fit(&w.candidates, x, &cells.entries[0], &cells.records[0], t.count(), &w.steps[0], 2*t.steps+1, base)
	best, again := w.best(t, scale)
	if again == 0 || !(best.scale > 0) {
		return best.scale, true
	}
	inv := 1 / best.scale
	if !(best.scale < gridRange && inv*reach < 1<<20) {
		return 0, false
	}
	round(&w.codes[0], x, &cells.entries[0], &cells.lists[0], int(again), inv, best.scale)
	sums := t.sums(&w.codes, m[kernel.MagW][start:], m[kernel.MagWX][start:])
	return sums.scale(best.scale), true
}

// best sets the codes to those of the best candidate, 0 if none is better than
// zeros with the given scale, and returns the cells to round again.
func (w *gridWorkspace) best(t *gridType, scale float32) (best gridBest, again uint8) {
	best = gridBest{scale: scale}
	count, at := 2*t.steps+1, -1
	a, b := w.candidates[kernel.CandA][:count], w.candidates[kernel.CandB][:count]
	for i := range a {
		if best.take(gridSums{math.Float32frombits(a[i]), math.Float32frombits(b[i])}) {
			at = i
		}
	}
	w.codes = [8]uint16{}
	all := uint8(1<<t.count() - 1)
	if at < 0 {
		return best, t.again.none() & all
	}
	off := uint8(0)
	for i := range t.count() {
		c := w.candidates[kernel.CandCodes+i][at]
		w.codes[i] = uint16(c)
		off |= uint8(c/kernel.OffGrid) << i
	}
	return best, t.again.cells(off) & all
}
