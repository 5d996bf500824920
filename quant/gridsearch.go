package quant

import (
	"math"
	"math/bits"

	"github.com/winnow-moe/winnow/quant/kernel"
)

// The search that the IQ2 and IQ3 types share (quantize_row_iq2_xxs_impl and
// its kin in ggml-quants.c). Elements are magnitudes with their signs stored
// apart. Groups of 16 or 32 elements have a scale and consist of cells, each
// of which becomes a point of a codebook.

// gridType describes one type's search.
type gridType struct {
	grid    *grid
	size    int     // bytes per super-block
	levels  int     // of a digit: 3 in cells of eight, 8 in cells of four
	group   int     // elements per scale
	steps   int     // candidates put the largest magnitude at
	delta   float32 // 2·levels−1+i·delta for i from −steps to steps
	epsilon float32 // groups below it are zero
	spread  float32 // σ² of the importance is (spread·Σx²)/256
	flat    float32 // without importance the weights are flat·σ²+x²
	parity  bool    // the signs of eight elements have an even number of ones
	ranged  bool    // a search without codebook sets the candidates' range
	again   againRule
	// pack writes a super-block, which is cleared; top is the largest scale.
	pack func(dst []byte, fits []gridFit, top float32)
}

// againRule says which cells are rounded again with the scale of the best
// candidate.
type againRule int

const (
	againOff   againRule = iota // those which were not on the grid
	againAny                    // all if one was not, or if nothing was better than zeros
	againEvery                  // all
)

// gridFit is the result of searching a group.
type gridFit struct {
	zero  bool // nothing but zeros, or as good as that
	scale float32
	index [8]uint16 // of the cells' points
	signs [4]uint8  // of eight elements each; an eighth bit may be superfluous
}

// gridGroup is the state of a search.
type gridGroup struct {
	t     *gridType
	cells *gridCells
	reach float32 // largest |x|
	// x are the magnitudes, negative where the sign had to flip, and y the
	// same with 0 instead; w are weights, wx = w·x, and u are the square
	// roots of w, by which neighbours are compared.
	x, y, w, wx, u [32]float32
}

// encode encodes a row.
func (t *gridType) encode(dst []byte, src, weights []float32) {
	if k := kernel.Active(); k != nil {
		t.encodeLanes(k, dst, src, weights)
		return
	}
	encodeSuper(dst, src, weights, t.size, func(dst []byte, x, q []float32) {
		var fits [superLen / 16]gridFit
		ok := t.fitAll(fits[:superLen/t.group], x, q)
		t.store(dst, fits[:superLen/t.group], ok)
	})
}

// fitAll searches the groups of a super-block. It fails like fit.
func (t *gridType) fitAll(fits []gridFit, x, q []float32) bool {
	sigma2 := t.spread * sumSquares(x) / superLen
	for i := range fits {
		if !t.fit(&fits[i], x, q, sigma2) {
			return false
		}
		x = x[t.group:]
		if q != nil {
			q = q[t.group:]
		}
	}
	return true
}

// store writes a super-block; ok says that all groups could be searched.
func (t *gridType) store(dst []byte, fits []gridFit, ok bool) {
	clear(dst)
	if !ok {
		overflowed(dst, 0)
		return
	}
	var top float32
	for i := range fits {
		top = max(top, fits[i].scale)
	}
	t.pack(dst, fits, top)
}

// fit searches one group; q is nil or the importance. It fails where ggml
// aborts: sums overflowed, or weights are negative.
func (t *gridType) fit(f *gridFit, x, q []float32, sigma2 float32) bool {
	*f = gridFit{zero: true}
	g := gridGroup{t: t, cells: t.grid.cells()}
	g.weigh(x, q, sigma2)
	signs, top := g.split(x)
	if top < t.epsilon || top == 0 {
		return true
	}
	scale, base := top/float32(2*t.levels-1), top
	if t.ranged {
		var codes [32]uint8
		scale = fitPositive(codes[:t.group], g.x[:t.group], g.w[:t.group], int32(t.levels)+1)
		base = scale * float32(t.levels)
		if base <= 0 {
			return true
		}
	}
	var codes [8]uint16
	scale, ok := g.search(&codes, scale, base)
	if !ok || scale != scale {
		return false
	}
	f.set(t, &codes, scale, signs)
	return true
}

// count returns the number of cells in a group.
func (t *gridType) count() int {
	if t.levels == 8 {
		return t.group / 4
	}
	return t.group / 8
}

// set sets what was found.
func (f *gridFit) set(t *gridType, codes *[8]uint16, scale float32, signs [4]uint8) {
	if scale < 0 {
		scale = -scale
		for i := range signs {
			signs[i] = ^signs[i]
		}
	}
	f.zero, f.scale, f.signs = false, scale, signs
	cells := t.grid.cells()
	for k := range t.count() {
		f.index[k] = cells.index(t.key(codes[k]))
	}
}

// weigh sets the weights.
func (g *gridGroup) weigh(x, q []float32, sigma2 float32) {
	x = x[:g.t.group]
	switch {
	case q != nil:
		importance(g.w[:], q, x, sigma2)
	case g.t.flat != 0:
		for i, v := range x {
			g.w[i] = float32(g.t.flat*sigma2) + float32(v*v)
		}
	default:
		for i, v := range x {
			g.w[i] = v * v
		}
	}
	for i := range x {
		g.u[i] = sqrt32(g.w[i])
	}
}

// split sets the magnitudes and returns the signs and the largest magnitude.
// Where the number of signs has to be even and is not, the element of least
// weighted square flips.
func (g *gridGroup) split(x []float32) (signs [4]uint8, top float32) {
	x = x[:g.t.group]
	for i, v := range x {
		g.x[i] = v
		if !(v >= 0) {
			g.x[i] = -v
			signs[i/8] |= 1 << (i % 8)
		}
	}
	g.reach = magnitude(x)
	for k := range g.t.group / 8 {
		if g.t.parity && bits.OnesCount8(signs[k])%2 == 1 {
			i := leastSquare(x[8*k:][:8], g.w[8*k:])
			g.x[8*k+i] = -g.x[8*k+i]
			signs[k] ^= 1 << i
		}
	}
	top = g.x[0]
	for i := range x {
		v := g.x[i]
		g.wx[i] = g.w[i] * v
		if v > 0 {
			g.y[i] = v
		}
		if !(top > v) {
			top = v
		}
	}
	return signs, top
}

// leastSquare returns the first element with the smallest (w·x)·x.
func leastSquare(x, w []float32) int {
	least, at := float32(w[0]*x[0])*x[0], 0
	for i, v := range x {
		if s := float32(w[i]*v) * v; s < least {
			least, at = s, i
		}
	}
	return at
}

// search returns the codes of the cells and their scale. It starts from codes
// of 0 and the given scale; base is the magnitude that the candidates are
// about.
func (g *gridGroup) search(codes *[8]uint16, scale, base float32) (float32, bool) {
	t := g.t
	best := gridBest{scale: scale}
	var sums gridSums
	var last [8]uint16
	again := t.again.none()
	for step := -t.steps; step <= t.steps; step++ {
		id := t.candidate(step) / base
		var candidate [8]uint16
		off, ok := g.round(&candidate, id, 1/id, 0xff)
		if !ok {
			return 0, false
		}
		if step == -t.steps || candidate != last {
			sums, last = t.sums(&candidate, g.w[:], g.wx[:]), candidate
		}
		if best.take(sums) {
			*codes, again = candidate, t.again.cells(off)
		}
	}
	if again == 0 || !(best.scale > 0) {
		return best.scale, true
	}
	if _, ok := g.round(codes, 1/best.scale, best.scale, again); !ok {
		return 0, false
	}
	return t.sums(codes, g.w[:], g.wx[:]).scale(best.scale), true
}

// candidate returns the code of the largest magnitude.
func (t *gridType) candidate(step int) float32 {
	return float32(2*t.levels-1) + float32(t.delta*float32(step))
}

// none returns the cells to round again if no candidate was better than zeros.
func (r againRule) none() uint8 {
	if r == againOff {
		return 0
	}
	return 0xff
}

// cells returns the cells to round again if the best candidate had the cells
// off not on the grid.
func (r againRule) cells(off uint8) uint8 {
	if r == againEvery || r == againAny && off != 0 {
		return 0xff
	}
	return off
}

// gridSums are A = Σ(w·x)·q and B = Σ(w·q)·q over the magnitudes q of the
// points: A/B is the best scale for them and A²/B what it takes off the error.
type gridSums struct{ a, b float32 }

// scale returns the best scale, or the one given if there is none.
func (s gridSums) scale(otherwise float32) float32 {
	if s.b > 0 {
		return s.a / s.b
	}
	return otherwise
}

// gridBest is the best scale so far and what it takes off the error.
type gridBest struct{ scale, best float32 }

// take takes a candidate if it is better.
func (g *gridBest) take(s gridSums) bool {
	if !(s.b > 0 && s.a*s.a > g.best*s.b) {
		return false
	}
	g.scale = s.a / s.b
	g.best = g.scale * s.a
	return true
}

// oddIQ are the magnitudes that digits stand for.
var oddIQ = [8]float32{1, 3, 5, 7, 9, 11, 13, 15}

func (t *gridType) sums(codes *[8]uint16, w, wx []float32) (s gridSums) {
	size, bits, mask := 8, 2, uint16(3)
	if t.levels == 8 {
		size, bits, mask = 4, 3, 7
	}
	for k := range t.count() {
		code := codes[k]
		w, wx := w[size*k:][:size], wx[size*k:][:size]
		for i, v := range wx {
			q := oddIQ[code&mask]
			code >>= bits
			s.a += float32(v * q)
			s.b += float32(float32(w[i]*q) * q)
		}
	}
	return s
}

// round sets the codes of the cells in the bit set which to the points for
// id·x, of several the one nearest with the scale given. It returns the set
// of the cells that have no point of their own.
func (g *gridGroup) round(codes *[8]uint16, id, scale float32, which uint8) (off uint8, ok bool) {
	plain := id*g.reach < 1<<20
	values := scaled(&oddIQ, scale)
	for k := range g.t.count() {
		if which>>k&1 == 0 {
			continue
		}
		var key uint16
		switch {
		case !plain:
			key = g.keyOutside(k, id)
		case g.t.levels == 3:
			key = keyOf3((*[8]float32)(g.y[8*k:]), id)
		default:
			key = keyOf8((*[4]float32)(g.y[4*k:]), id)
		}
		e := g.cells.entries[key]
		if e&onGrid != 0 {
			codes[k] = g.cells.codes[uint16(e)]
			continue
		}
		off |= 1 << k
		near := g.cells.neighbours(e)
		if g.t.levels == 3 {
			var terms cellTerms
			terms.set((*[8]float32)(g.x[8*k:]), (*[8]float32)(g.u[8*k:]), (*[3]float32)(values[:]))
			codes[k] = terms.nearest(near, true)
		} else {
			codes[k] = nearest8(near, (*[4]float32)(g.x[4*k:]), (*[4]float32)(g.u[4*k:]), &values)
		}
		if codes[k] == noCode {
			return 0, false
		}
	}
	return off, true
}

// key returns the key of a code.
func (t *gridType) key(code uint16) uint16 {
	if t.levels == 3 {
		return key3(code)
	}
	return code
}

// keyOutside returns the key of cell k for an id·x beyond the range in which
// nearest rounds.
func (g *gridGroup) keyOutside(k int, id float32) (key uint16) {
	size := 8
	if g.t.levels == 8 {
		size = 4
	}
	x := g.x[size*k:][:size]
	for i := size - 1; i >= 0; i-- {
		l := nearestIn(0.5*(float32(id*x[i])-1), 0, int32(g.t.levels)-1)
		key = key*uint16(g.t.levels) + uint16(l)
	}
	return key
}

// keyOf3 returns the key of nearestIn((id·y−1)/2, 0, 2), digit by digit. It is
// 1 above 2 and 2 from 4 up, and positive floats are ordered like their bits.
func keyOf3(y *[8]float32, id float32) uint16 {
	const above2, from4 = 0x40000000, 0x40800000 - 1
	var key uint32
	for i := 7; i >= 0; i-- {
		v := math.Float32bits(id * y[i])
		key = key*3 + (above2-v)>>31 + (from4-v)>>31
	}
	return uint16(key)
}

// keyOf8 returns the key of nearestIn((id·y−1)/2, 0, 7), digit by digit.
func keyOf8(y *[4]float32, id float32) uint16 {
	var key uint32
	for i := 3; i >= 0; i-- {
		v := 0.5 * (float32(id*y[i]) - 1)
		key = key*8 + min(7, math.Float32bits(v+roundMagic)&0x7fffff-0x400000)
	}
	return uint16(key)
}

// noCode is no code: all distances overflowed.
const noCode = 0xffff

// firstLeast finds the first of the smallest distances: their bits on top,
// which are ordered like the distances because these are not negative, and the
// place in the list below.
type firstLeast int64

// with takes another distance, without a branch that the machine could not
// predict.
func (f firstLeast) with(distance float32, place int) firstLeast {
	d := firstLeast(math.Float32bits(distance))<<32 + firstLeast(place) - f
	return f + d&(d>>63)
}

// code returns the code at the place found, unless all distances overflowed.
func (f firstLeast) code(codes []uint16) uint16 {
	if uint64(f)>>32 >= uint64(math.Float32bits(math.MaxFloat32)) {
		return noCode
	}
	return codes[uint32(f)]
}

// cellTerms are the parts of Σ(w·e)·e, where e = value−x, over a cell of eight:
// for each element one for each value of its digit.
type cellTerms [8][4]float32

func (t *cellTerms) set(x, w *[8]float32, values *[3]float32) {
	for i, v := range x {
		for l, q := range values {
			e := q - v
			t[i][l] = float32(w[i]*e) * e
		}
	}
}

// nearest returns the first of the codes with the smallest sum; positive says
// that no weight is negative.
func (t *cellTerms) nearest(codes []uint16, positive bool) uint16 {
	if positive {
		return t.nearestPositive(codes)
	}
	least, best := float32(math.MaxFloat32), uint16(noCode)
	for _, c := range codes {
		var sum float32
		for i := range t {
			sum += t[i][c>>(2*i)&3]
		}
		if sum < least {
			least, best = sum, c
		}
	}
	return best
}

// nearestPositive is nearest without negative weights. The codes share the 27
// sums of the first three elements.
func (t *cellTerms) nearestPositive(codes []uint16) uint16 {
	var three [64]float32
	for c := range 3 {
		for b := range 3 {
			for a := range 3 {
				three[c<<4|b<<2|a] = t[0][a] + t[1][b] + t[2][c]
			}
		}
	}
	least := firstLeast(math.MaxInt64)
	for i, code := range codes {
		c := uint32(code)
		least = least.with(three[c&63]+t[3][c>>6&3]+t[4][c>>8&3]+t[5][c>>10&3]+
			t[6][c>>12&3]+t[7][c>>14&3], i)
	}
	return least.code(codes)
}

// nearest8 returns the first of the codes with the smallest Σ(u·e)·e over a
// cell of four; values are those of the digits.
func nearest8(codes []uint16, x, u *[4]float32, values *[8]float32) uint16 {
	least := firstLeast(math.MaxInt64)
	for i, c := range codes {
		e0, e1 := values[c&7]-x[0], values[c>>3&7]-x[1]
		e2, e3 := values[c>>6&7]-x[2], values[c>>9&7]-x[3]
		least = least.with(float32(float32(u[0]*e0)*e0)+float32(float32(u[1]*e1)*e1)+
			float32(float32(u[2]*e2)*e2)+float32(float32(u[3]*e3)*e3), i)
	}
	return least.code(codes)
}

// roundScales rounds the scales of the groups to codes in [0, 15], which stand
// for d·(2·code+1), and returns d.
func roundScales(codes []uint8, fits []gridFit, top float32) (d float32) {
	d = top / 31
	id := 1 / d
	for i := range fits {
		codes[i] = uint8(nearestIn(0.5*(float32(id*fits[i].scale)-1), 0, 15))
	}
	return d
}

// evenSigns completes seven stored signs with their parity.
func evenSigns(s uint8) uint8 { return s&127 | uint8(bits.OnesCount8(s&127))<<7 }

// overflowed marks a block on which ggml aborts: half precision NaN for its
// scale, with which Validate refuses it.
func overflowed(dst []byte, scale int) {
	clear(dst)
	dst[scale], dst[scale+1] = 0x00, 0x7e
}
