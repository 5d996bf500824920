package quant

import (
	"encoding/binary"
	"math"

	"github.com/winnow-moe/winnow/quant/kernel"
)

// The 1-bit codebook types (ggml-common.h block_iq1_s, block_iq1_m): 256
// elements in cells of eight, each a point of a codebook with the values −1,
// 0 and 1, shifted by ⅛ up or down.
//
//	IQ1_S  50 B   f16 d | 32 B low bits of the indices | 8 × u16, one per 32
//	              elements: 4 × 3 upper bits, scale in bits 12 to 14, and
//	              bit 15 for a shift down
//	IQ1_M  56 B   32 B low bits | 16 B, a nibble per cell: 3 upper bits, and
//	              bit 3 for a shift down | 4 × u16: 4 × 3 bits of scales, one
//	              per 16 elements, and a quarter of f16 d on top, the lowest
//	              first
//
// value = d·(2·ls+1)·(point+shift).
const (
	sizeIQ1S = 50
	sizeIQ1M = 56
)

// shiftedIQ1 are the values of the digits with the shift up and down.
var shiftedIQ1 = [2][3]float32{{-0.875, 0.125, 1.125}, {-1.125, -0.125, 0.875}}

func decodeCellIQ1(y []float32, code uint16, down uint8, scale float32) {
	values := &shiftedIQ1[down&1]
	for i := range (*[8]float32)(y) {
		y[i] = scale * values[code>>(2*i)&3]
	}
}

func decodeIQ1S(dst []float32, src []byte) {
	codes := gridIQ1.codes()
	for ; len(src) >= sizeIQ1S; src = src[sizeIQ1S:] {
		d := half(src)
		for g := range 8 {
			word := le16(src[34+2*g:])
			scale := d * float32(2*(word>>12&7)+1)
			for k, low := range src[2+4*g:][:4] {
				index := uint16(low) | word>>(3*k)&7<<8
				decodeCellIQ1(dst, codes[index], uint8(word>>15), scale)
				dst = dst[8:]
			}
		}
	}
}

func decodeIQ1M(dst []float32, src []byte) {
	codes := gridIQ1.codes()
	for ; len(src) >= sizeIQ1M; src = src[sizeIQ1M:] {
		d := scaleIQ1M(src)
		for c := range 32 {
			g := c / 2
			ls := le16(src[48+g/4*2:]) >> (g % 4 * 3) & 7
			high := src[32+g] >> (c % 2 * 4)
			index := uint16(src[c]) | uint16(high&7)<<8
			decodeCellIQ1(dst, codes[index], high>>3, d*float32(2*ls+1))
			dst = dst[8:]
		}
	}
}

// scaleIQ1M puts the quarters of d together.
func scaleIQ1M(b []byte) float32 {
	var h [2]byte
	binary.LittleEndian.PutUint16(h[:], le16(b[48:])>>12|le16(b[50:])>>12<<4|le16(b[52:])>>12<<8|le16(b[54:])>>12<<12)
	return half(h[:])
}

// checkIQ1M finds the first block with a non-finite scale.
func checkIQ1M(b []byte) (int, string) {
	for i := 0; len(b) >= sizeIQ1M; i++ {
		if d := scaleIQ1M(b); d-d != 0 {
			return i, nonFinite("scale", d != d)
		}
		b = b[sizeIQ1M:]
	}
	return -1, ""
}

// fitIQ1 is a searched group of 32 (IQ1_S) or 16 elements (IQ1_M).
type fitIQ1 struct {
	scale float32
	index [4]uint16 // of the cells' points
	down  [4]uint8  // 1 for cells that are shifted down
}

// groupIQ1 is the state of a search.
type groupIQ1 struct {
	x, w []float32
	// order lists the elements by value, equal ones as they come: ggml sorts
	// with the C library's qsort, which is a merge sort there.
	order  [32]uint8
	digits [32]uint8
}

// sort sets the order. The numbers it sorts are in the order of the elements'
// values, −0 counting as 0, with the place in the low bits.
func (g *groupIQ1) sort() {
	var keys [32]int64
	for i, v := range g.x {
		key := int64(i)
		if v != 0 {
			key |= int64(ordered(v)) << 8
		}
		j := i
		for ; j > 0 && keys[j-1] > key; j-- {
			keys[j] = keys[j-1]
		}
		keys[j] = key
	}
	for i := range g.x {
		g.order[i] = uint8(keys[i])
	}
}

// setDigits gives the first elements in order the digit 0, those from i1 on
// 1 and those from i2 on 2, or the other way round.
func (g *groupIQ1) setDigits(i1, i2 int, reverse bool) {
	for j := range g.x {
		var digit uint8
		if j >= i1 {
			digit++
		}
		if j >= i2 {
			digit++
		}
		if reverse {
			digit = 2 - digit
		}
		g.digits[g.order[j]] = digit
	}
}

// key returns the key of cell k.
func (g *groupIQ1) key(k int) (key uint16) {
	for i := 7; i >= 0; i-- {
		key = key*3 + uint16(g.digits[8*k+i])
	}
	return key
}

// place sets the points of the cells, for digits that are not on the grid
// those nearest by weighted square, and then the scale that is best for them.
// It fails where sums overflow, on which ggml reads beyond its arrays.
func (g *groupIQ1) place(f *fitIQ1) bool {
	cells := gridIQ1.cells()
	var codes [4]uint16
	off := false
	for k := range len(g.x) / 8 {
		key := g.key(k)
		e := cells.entries[key]
		if e&onGrid == 0 {
			off = true
			var terms cellTerms
			values := scaled3(&shiftedIQ1[f.down[k]], f.scale)
			terms.set((*[8]float32)(g.x[8*k:]), (*[8]float32)(g.w[8*k:]), &values)
			code := terms.nearest(cells.neighbours(e), !anyNegative(g.w[8*k:][:8]))
			if code == noCode {
				return false
			}
			key = key3(code)
		}
		f.index[k] = cells.index(key)
		codes[k] = cells.codes[f.index[k]]
	}
	if !off {
		return f.scale >= 0 // not NaN
	}
	var s gridSums
	for k := range len(g.x) / 8 {
		s.addIQ1(g.x[8*k:], g.w[8*k:], codes[k], &shiftedIQ1[f.down[k]])
	}
	if s.a > 0 && s.b > 0 {
		f.scale = s.a / s.b
	}
	return f.scale >= 0
}

// anyNegative reports whether a value has its sign bit set.
func anyNegative(w []float32) bool {
	var signs uint32
	for _, v := range w {
		signs |= math.Float32bits(v)
	}
	return signs>>31 == 1
}

func scaled3(values *[3]float32, d float32) [3]float32 {
	return [3]float32{d * values[0], d * values[1], d * values[2]}
}

// addIQ1 continues A = Σ(w·q)·x and B = Σ(w·q)·q over a cell.
func (s *gridSums) addIQ1(x, w []float32, code uint16, values *[3]float32) {
	for i, v := range x[:8] {
		q := values[code>>(2*i)&3]
		wq := w[i] * q
		s.a += float32(wq * v)
		s.b += float32(wq * q)
	}
}

// splitIQ1 is a division of a group's elements, in order, into those of the
// digits 0, 1 and 2, and which cells are shifted down.
type splitIQ1 struct {
	score, scale float32
	i1, i2       int // first elements of the digits 1 and 2
	down         int // a bit per cell, the first one on top
}

// better reports whether a division with these sums, of which it takes score
// and scale, is better than all before.
func (s *splitIQ1) better(a, b float32) bool {
	if !(a*a > s.score*b && b > 0) { // mostly false in the first part
		return false
	}
	s.scale = a / b
	s.score = s.scale * a
	return true
}

func (s *splitIQ1) set(i1, i2, down int) { s.i1, s.i2, s.down = i1, i2, down }

// endIQ1 is a place between elements in order: the sums Σw·x and Σw before it,
// and what the digits 0 before it and 2 after it add to A and B, shifted up
// and down.
type endIQ1 struct {
	sx, sw      float32
	first, last [2]gridSums
}

// split32 tries all divisions of a group in which all cells have the same
// shift. With prefix sums, A = Σ(w·x)·v and B = Σ(w·v)·v have three terms
// each, one per digit.
func (g *groupIQ1) split32() splitIQ1 {
	var ends [33]endIQ1
	for j, i := range g.order {
		ends[j+1].sx = ends[j].sx + float32(g.w[i]*g.x[i])
		ends[j+1].sw = ends[j].sw + g.w[i]
	}
	for down, v := range &shiftedIQ1 {
		for j := range ends {
			e, sx, sw := &ends[j], ends[32].sx, ends[32].sw
			e.first[down] = gridSums{e.sx * v[0], e.sw * v[0] * v[0]}
			e.last[down] = gridSums{(sx - e.sx) * v[2], (sw - e.sw) * v[2] * v[2]}
		}
	}
	best := splitIQ1{score: -math.MaxFloat32, i1: -1}
	for i1 := range ends {
		begin := &ends[i1]
		up, down := begin.first[0], begin.first[1]
		for i := range ends[i1:] {
			end := &ends[i1:][i]
			a := float32((end.sx - begin.sx) * 0.125)
			b := float32((end.sw - begin.sw) * 0.125 * 0.125)
			if best.better(up.a+a+end.last[0].a, up.b+b+end.last[0].b) {
				best.set(i1, i1+i, 0)
			}
			if best.better(down.a-a+end.last[1].a, down.b+b+end.last[1].b) {
				best.set(i1, i1+i, 0xf)
			}
		}
	}
	return best
}

// halfIQ1 holds the prefix sums of a cell of an IQ1_M group, in the order of
// the group, and what follows from them. As the digits' values are one apart,
// A for a division is T·v2−(p[i1]+p[i2]), T being the total, and B is
// (W·v2·v2 + pw[i1]·(v0²−v1²)) + pw[i2]·(v1²−v2²).
type halfIQ1 struct {
	p            [17]float32
	total        [2]float32     // T·v2 for the shift up and down
	first, third [2][17]float32 // the terms of B: those of i1 and of i2
}

func (h *halfIQ1) set(g *groupIQ1, k int) {
	var pw [17]float32
	for j, i := range g.order[:16] {
		h.p[j+1], pw[j+1] = h.p[j], pw[j]
		if int(i)/8 == k {
			h.p[j+1] += float32(g.w[i] * g.x[i])
			pw[j+1] += g.w[i]
		}
	}
	for down, v := range &shiftedIQ1 {
		h.total[down] = h.p[16] * v[2]
		whole := float32(pw[16] * v[2] * v[2])
		for j, w := range pw {
			h.first[down][j] = whole + float32(w*(v[0]*v[0]-v[1]*v[1]))
			h.third[down][j] = w * (v[1]*v[1] - v[2]*v[2])
		}
	}
}

// sums returns A and B with the shift up and down.
func (h *halfIQ1) sums(i1, i2 int) (up, down gridSums) {
	p := h.p[i1] + h.p[i2]
	return gridSums{float32(h.total[0]) - p, h.first[0][i1] + h.third[0][i2]},
		gridSums{float32(h.total[1]) - p, h.first[1][i1] + h.third[1][i2]}
}

// split16 tries all divisions of a group of two cells.
func (g *groupIQ1) split16() splitIQ1 {
	var h0, h1 halfIQ1
	h0.set(g, 0)
	h1.set(g, 1)
	best := splitIQ1{score: -math.MaxFloat32, i1: -1}
	for i1 := range 17 {
		for i2 := i1; i2 < 17; i2++ {
			up0, down0 := h0.sums(i1, i2)
			up1, down1 := h1.sums(i1, i2)
			if best.better(up0.a+up1.a, up0.b+up1.b) {
				best.set(i1, i2, 0)
			}
			if best.better(up0.a+down1.a, up0.b+down1.b) {
				best.set(i1, i2, 1)
			}
			if best.better(down0.a+up1.a, down0.b+up1.b) {
				best.set(i1, i2, 2)
			}
			if best.better(down0.a+down1.a, down0.b+down1.b) {
				best.set(i1, i2, 3)
			}
		}
	}
	return best
}

// fit searches a group of 32 or 16 elements x with the weights w. Below
// epsilon it counts as zero.
func (f *fitIQ1) fit(x, w []float32, epsilon float32) bool {
	*f = fitIQ1{}
	if magnitude(x) < epsilon {
		return true
	}
	g := groupIQ1{x: x, w: w}
	g.sort()
	cells := len(x) / 8
	var best splitIQ1
	if cells == 4 {
		best = g.split32()
	} else {
		best = g.split16()
	}
	if best.i1 < 0 {
		return true
	}
	g.setDigits(best.i1, best.i2, best.scale < 0)
	f.scale = abs32(best.scale)
	for k := range cells {
		f.down[k] = uint8(best.down >> (cells - 1 - k) & 1)
		if best.scale < 0 {
			f.down[k] ^= 1
		}
	}
	return g.place(f)
}

// weighIQ1 fills w with the weights of a super-block; q is nil or the
// importance.
func weighIQ1(w, x, q []float32) {
	if q != nil {
		importance(w, q, x, 2*sumSquares(x)/superLen)
		return
	}
	for i, v := range x {
		w[i] = v * v
	}
}

// typeIQ1 is what one of the types has of its own.
type typeIQ1 struct {
	size    int     // bytes per super-block
	group   int     // elements per scale
	epsilon float32 // groups below it are zero
	refit   bool    // the factor of the scales is that which is best for their codes
	split   func(k *kernel.Set) func(l *kernel.Lanes, space *kernel.Space, epsilon float32) (odd uint32)
	// pack writes a searched super-block into zeros.
	pack func(dst []byte, s *superIQ1)
	// overflowed marks a block on which ggml aborts.
	overflowed func(dst []byte)
}

// superIQ1 is a super-block on its way to bytes.
type superIQ1 struct {
	fits   [16]fitIQ1
	scales [16]uint16 // their codes
	top    float32    // largest scale
	// sums are A and B of the whole, for points times 2·code+1.
	sums gridSums
}

// round sets the codes of the scales.
func (s *superIQ1) round(groups int) {
	s.top = 0
	for g := range groups {
		s.top = max(s.top, s.fits[g].scale)
	}
	if s.top == 0 {
		return
	}
	id := 1 / (s.top / 15)
	for g := range groups {
		s.scales[g] = roundIQ1(id * s.fits[g].scale)
	}
}

// refit sets the sums, for groups of two cells.
func (s *superIQ1) refit(x, w []float32) {
	codes := gridIQ1.codes()
	for g := range s.fits {
		f := &s.fits[g]
		for k := range 2 {
			values := scaled3(&shiftedIQ1[f.down[k]], float32(2*s.scales[g]+1))
			at := 16*g + 8*k
			s.sums.addIQ1(x[at:], w[at:], codes[f.index[k]], &values)
		}
	}
}

// encode encodes a row.
func (t *typeIQ1) encode(dst []byte, src, weights []float32) {
	if k := kernel.Active(); k != nil {
		t.encodeLanes(k, dst, src, weights)
		return
	}
	encodeSuper(dst, src, weights, t.size, t.encodeBlock)
}

func (t *typeIQ1) encodeBlock(dst []byte, x, q []float32) {
	clear(dst)
	var w [superLen]float32
	weighIQ1(w[:], x, q)
	var s superIQ1
	for g := range superLen / t.group {
		at := t.group * g
		if !s.fits[g].fit(x[at:][:t.group], w[at:][:t.group], t.epsilon) {
			t.overflowed(dst)
			return
		}
	}
	s.round(superLen / t.group)
	if t.refit {
		s.refit(x, w[:])
	}
	t.pack(dst, &s)
}

// encodeLanes is encodeBlock for all super-blocks of a row.
func (t *typeIQ1) encodeLanes(k *kernel.Set, dst []byte, src, weights []float32) {
	w := workspaces.Get().(*workspace)
	defer workspaces.Put(w)
	w.batches(dst, src, weights, t.size,
		func(x, q []float32) { t.searchBatch(w, k, x, q) },
		func(b int, dst []byte, x, q []float32) {
			if w.odd[b] {
				t.encodeBlock(dst, x, q)
				return
			}
			clear(dst)
			t.pack(dst, &w.oneBit[b])
		})
}

// searchBatch searches up to batchLen super-blocks.
func (t *typeIQ1) searchBatch(w *workspace, k *kernel.Set, x, q []float32) {
	if q != nil {
		w.variances(k, x, 2)
	}
	cells := gridIQ1.cells()
	w.chunks(k, x, q, t.group, func(first int) (odd uint32) {
		if q != nil {
			w.weigh(k, first, t.group)
		} else {
			k.SquareWeights(&w.lanes, t.group)
		}
		odd = t.split(k)(&w.lanes, &w.space, t.epsilon)
		return odd | k.PlaceIQ1(&w.lanes, t.group/8, &cells.entries[0], &cells.lists[0], &cells.codes[0])
	}, func(b, g, lane int) { w.takeIQ1(&w.oneBit[b].fits[g], cells, lane, t.group/8) })
	blocks := len(x) / superLen
	for b := range blocks {
		w.oneBit[b].round(superLen / t.group)
	}
	for first := 0; t.refit && first < blocks; first += 8 {
		first = max(0, min(first, blocks-8))
		w.refitIQ1(k, first, x, q)
	}
}

// takeIQ1 sets f to the fit in a lane.
func (w *workspace) takeIQ1(f *fitIQ1, cells *gridCells, lane, count int) {
	integer := func(row int) uint32 { return math.Float32bits(w.lanes[row][lane]) }
	*f = fitIQ1{}
	if int32(integer(kernel.RowCodes)) < 0 {
		return
	}
	f.scale = w.lanes[kernel.RowScale][lane]
	shifts := integer(kernel.RowShift)
	for c := range count {
		f.index[c] = cells.index(key3(uint16(integer(kernel.RowCodes + c))))
		f.down[c] = uint8(shifts >> c & 1)
	}
}

// refitIQ1 is refit for the eight super-blocks from first on, or all there are.
func (w *workspace) refitIQ1(k *kernel.Set, first int, x, q []float32) {
	codes, supers := gridIQ1.codes(), w.oneBit[first:min(first+8, len(x)/superLen)]
	for b := range supers {
		s := &supers[b]
		for c := range w.cellsIQ1 {
			f, cell := &s.fits[c/2], &w.cellsIQ1[c]
			cell.Code[b] = uint32(codes[f.index[c%2]])
			cell.Shift[b] = shiftedIQ1[f.down[c%2]][1]
			cell.Scale[b] = float32(2*s.scales[c/2] + 1)
		}
	}
	x = x[first*superLen:]
	var importance *float32
	if q != nil {
		importance = w.whole(1, q[first*superLen:], 8*superLen)
	}
	a, b := &w.sumsIQ1[0], &w.sumsIQ1[1]
	k.SumsIQ1(a, b, w.whole(0, x, 8*superLen), importance, (*[8]float32)(w.sigma[first:]), &w.cellsIQ1, &w.space)
	for i := range supers {
		supers[i].sums = gridSums{a[i], b[i]}
	}
}

var searchIQ1S = typeIQ1{
	size: sizeIQ1S, group: 32, epsilon: 1e-12,
	split: func(k *kernel.Set) func(*kernel.Lanes, *kernel.Space, float32) uint32 { return k.SplitIQ1S },
	pack:  packIQ1S, overflowed: func(dst []byte) { overflowed(dst, 0) },
}

var searchIQ1M = typeIQ1{
	size: sizeIQ1M, group: 16, epsilon: 1e-7, refit: true,
	split: func(k *kernel.Set) func(*kernel.Lanes, *kernel.Space, float32) uint32 { return k.SplitIQ1M },
	pack:  packIQ1M, overflowed: func(dst []byte) { putScaleIQ1M(dst, float32(math.NaN())) },
}

func encodeIQ1S(dst []byte, src, weights []float32) { searchIQ1S.encode(dst, src, weights) }

func packIQ1S(dst []byte, s *superIQ1) {
	putHalf(dst, s.top/15*1.125)
	for g := range 8 {
		f := &s.fits[g]
		var word uint16
		for k, index := range f.index {
			dst[2+4*g+k] = uint8(index)
			word |= index >> 8 << (3 * k)
		}
		if s.top != 0 {
			word |= s.scales[g]<<12 | uint16(f.down[0])<<15
		}
		binary.LittleEndian.PutUint16(dst[34+2*g:], word)
	}
}

// roundIQ1 returns the code of a scale.
func roundIQ1(scale float32) uint16 {
	return uint16(nearestIn(0.5*(float32(scale)-1), 0, 7))
}

func encodeIQ1M(dst []byte, src, weights []float32) { searchIQ1M.encode(dst, src, weights) }

func packIQ1M(dst []byte, s *superIQ1) {
	for g := range s.fits {
		f := &s.fits[g]
		dst[2*g], dst[2*g+1] = uint8(f.index[0]), uint8(f.index[1])
		dst[32+g] = uint8(f.index[0]>>8 | f.index[1]>>8<<4)
		if s.top != 0 {
			dst[32+g] |= f.down[0]<<3 | f.down[1]<<7
			word := dst[48+g/4*2:]
			binary.LittleEndian.PutUint16(word, le16(word)|s.scales[g]<<(g%4*3))
		}
	}
	if s.top == 0 {
		return
	}
	d := s.top / 15
	if s.sums.b > 0 {
		d = s.sums.a / s.sums.b
	}
	putScaleIQ1M(dst, d*1.1125)
}

// putScaleIQ1M stores d in four quarters.
func putScaleIQ1M(b []byte, d float32) {
	var h [2]byte
	putHalf(h[:], d)
	for i := range 4 {
		word := b[48+2*i:]
		quarter := le16(h[:]) >> (4 * i) << 12
		binary.LittleEndian.PutUint16(word, le16(word)|quarter)
	}
}
