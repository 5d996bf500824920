// Package kernel holds the inner loops of the forward pass: products of
// weights and activations, and the exponential. It knows neither files nor
// models.
//
// Every function is exactly reproducible. An output element is the same
// sequence of rounded operations however rows and columns are grouped into
// calls, however many threads make the calls, and whatever instruction set the
// machine has: products fuse multiplication and addition, everywhere, and
// nothing else does.
package kernel

import (
	"fmt"
	"sync"
)

//go:generate go -C _asm run . -out ../kernel_amd64.s -stubs ../kernel_amd64.go -pkg kernel

// span is the number of products summed in float32 before the sum is carried
// on in float64. It bounds the rounding error of long rows to that of a short
// one and is part of the result: another value gives other last bits.
const span = 256

// xStride is the distance of rows of x as a product wants them: not a power of
// two, for which the rows would share few lines of the cache.
const xStride = span + 16

// most is the largest number of columns that are packed and summed at a time.
const most = 256

// micro is a micro-kernel for a number of rows of x.
type micro[F any] struct {
	rows int
	run  F
}

// product sums k products, at most span, for rows of x, xStride apart, and a
// panel of w. With dst alone it writes the sums there, rows stride apart; with c
// alone it adds them to c, rows of a panel's width without gaps; with both it
// rounds the sum of both to dst.
type product = micro[func(dst *float32, stride int, c *float64, x, w *float32, k int)]

// Weights are rows packed into panels of the width of the machine's products:
// element k of all rows of a panel, then element k+1; rows that are missing in
// the last panel are zeros.
type Weights struct {
	Rows, Cols int
	set        *Set
	data       []float32
	record     Record // of weights that are integers
	coded      coded  // rows that are not packed
}

// Pack makes w the rows of m, and reuses its memory.
func (w *Weights) Pack(m Matrix) {
	w.set, w.coded = active.Load(), coded{}
	w.Rows, w.Cols = m.Rows, m.Cols
	lanes := w.set.Lanes
	w.data = grow(&w.data, w.set.padded(m.Rows)*m.Cols)
	for first := 0; first < m.Rows; first += lanes {
		w.set.pack(w.data[first*m.Cols:][:lanes*m.Cols], m.Slice(first, min(lanes, m.Rows-first)))
	}
}

// pack packs up to Lanes rows.
func (s *Set) pack(dst []float32, m Matrix) {
	if m.Rows < s.Lanes {
		clear(dst)
	}
	lane := 0
	if blocks := m.Cols / 8; s.transpose8 != nil && blocks > 0 && m.Index == nil {
		for ; lane+8 <= m.Rows; lane += 8 {
			s.transpose8(&dst[lane], s.Lanes, &m.Data[lane*m.Stride], m.Stride, blocks)
			for i := lane; i < lane+8; i++ {
				s.scatter(dst, m.Row(i), i, 8*blocks)
			}
		}
	}
	for ; lane < m.Rows; lane++ {
		s.scatter(dst, m.Row(lane), lane, 0)
	}
}

// scatter packs the elements of a row from the given one on.
func (s *Set) scatter(dst, row []float32, lane, from int) {
	for k := from; k < len(row); k++ {
		dst[k*s.Lanes+lane] = row[k]
	}
}

// scratch is the memory of a call.
type scratch struct {
	x, tile []float32
	sums    []float64
	weights Weights
	units   []uint32  // rounded rows of x
	c       []float32 // sums with integers
	panel   panelOfCodes
}

var scratches = sync.Pool{New: func() any { return new(scratch) }}

// grow makes *buf at least n long and returns n elements of it.
func grow[T any](buf *[]T, n int) []T {
	if cap(*buf) < n {
		*buf = make([]T, n)
	}
	return (*buf)[:n]
}

// MatMul computes dst[i][j] = Σ_k x[i][k]·w[j][k] for x [n, k], w [m, k] and
// dst [n, m], which must not overlap the others.
//
// Each sum runs over k in ascending order: spans of 256 products are summed in
// float32 from zero, each product added without being rounded itself; their
// sums are added in float64, from zero, and the total is rounded to float32.
func MatMul(dst, x, w Matrix) {
	check(&dst, &x, w.Rows, w.Cols)
	s := scratches.Get().(*scratch)
	defer scratches.Put(s)
	for j := 0; j < w.Rows; j += most {
		n := min(most, w.Rows-j)
		s.weights.Pack(w.Slice(j, n))
		s.multiply(x, Output{dst.Columns(j, n), &s.weights})
	}
}

// Output is where a product with weights goes.
type Output struct {
	Dst     Matrix
	Weights *Weights
}

// Multiply is MatMul of x and several weights that are packed.
func Multiply(x Matrix, outputs ...Output) {
	for i := range outputs {
		check(&outputs[i].Dst, &x, outputs[i].Weights.Rows, outputs[i].Weights.Cols)
	}
	s := scratches.Get().(*scratch)
	defer scratches.Put(s)
	s.multiply(x, outputs...)
}

func check(dst, x *Matrix, rows, cols int) {
	if dst.Rows != x.Rows || dst.Cols != rows || x.Cols != cols {
		panic(fmt.Sprintf("kernel: [%d,%d]·[%d,%d]ᵀ into [%d,%d]", x.Rows, x.Cols, rows, cols, dst.Rows, dst.Cols))
	}
}

// multiply computes products with weights of both kinds.
func (s *scratch) multiply(x Matrix, outputs ...Output) {
	if x.Cols == 0 {
		for _, o := range outputs {
			for i := range o.Dst.Rows {
				clear(o.Dst.Row(i))
			}
		}
		return
	}
	packed := outputs[:0:0]
	for _, o := range outputs {
		if o.Weights.coded.read != nil {
			s.few(x, o)
		} else {
			packed = append(packed, o)
		}
	}
	if len(packed) > 0 {
		s.blocks(x, packed)
	}
}

// blocks computes products with weights that are packed. It takes as many rows
// of x at a time as the second-level cache holds of a span.
func (s *scratch) blocks(x Matrix, outputs []Output) {
	set := outputs[0].Weights.set
	for i := 0; i < x.Rows; i += set.block {
		s.block(set, i, x.Slice(i, min(set.block, x.Rows-i)), outputs)
	}
}

// block computes rows of the outputs, from row at on, for those of x: span by
// span, panel by panel, so that of each panel a span stays in the first-level
// cache while the rows pass by.
func (s *scratch) block(set *Set, at int, x Matrix, outputs []Output) {
	var sums []float64
	if x.Cols > span {
		columns := 0
		for _, o := range outputs {
			columns += set.padded(o.Weights.Rows)
		}
		sums = grow(&s.sums, columns*set.block)
		clear(sums)
	}
	s.tile = grow(&s.tile, set.Lanes*set.products[len(set.products)-1].rows)
	for first := 0; first < x.Cols; first += span {
		k := min(span, x.Cols-first)
		s.load(set, x.Columns(first, k))
		c := sums
		for _, o := range outputs {
			for j := 0; j < o.Weights.Rows; j += set.Lanes {
				p := panel{set: set, w: &o.Weights.data[j*x.Cols+first*set.Lanes], k: k, last: first+k == x.Cols}
				if sums != nil {
					p.sums, c = c[:set.Lanes*set.block], c[set.Lanes*set.block:]
				}
				s.rows(&p, o.Dst.Slice(at, x.Rows), j)
			}
		}
	}
}

// padded returns the columns of the panels of so many rows.
func (s *Set) padded(rows int) int { return (rows + s.Lanes - 1) / s.Lanes * s.Lanes }

// panel is a span of a panel of weights.
type panel struct {
	set  *Set
	w    *float32
	k    int
	sums []float64 // of the spans so far, if there are several
	last bool
}

// rows multiplies the loaded rows of x by a panel, for columns of dst from j on.
func (s *scratch) rows(panel *panel, dst Matrix, j int) {
	for i := 0; i < dst.Rows; {
		p := forRows(panel.set.products, dst.Rows-i)
		var c *float64
		if panel.sums != nil {
			c = &panel.sums[i*panel.set.Lanes]
		}
		if panel.last {
			s.finish(panel, p, dst, i, j, c)
		} else {
			p.run(nil, 0, c, &s.x[i*xStride], panel.w, panel.k)
		}
		i += p.rows
	}
}

// forRows returns the kernel, of those by rows ascending, to begin so many rows
// with: the smallest that takes all, or the largest, or the one before it if that
// takes them in two turns: a product of very few rows waits for its own sums.
func forRows[F any](list []micro[F], rows int) *micro[F] {
	for i := range list {
		if list[i].rows >= rows {
			return &list[i]
		}
	}
	last := len(list) - 1
	if last > 0 && 2*list[last-1].rows >= rows {
		last--
	}
	return &list[last]
}

// taken returns the rows that the products for so many take, zeros included.
func (s *Set) taken(rows int) int {
	n := 0
	for n < rows {
		n += forRows(s.products, rows-n).rows
	}
	return n
}

// load copies the rows of x to where products find them, and after them zeros
// for a product that takes more rows than there are.
func (s *scratch) load(set *Set, x Matrix) {
	s.x = grow(&s.x, set.block*xStride)
	for i := range x.Rows {
		copy(s.x[i*xStride:], x.Row(i))
	}
	for i := x.Rows; i < set.taken(x.Rows); i++ {
		clear(s.x[i*xStride:][:x.Cols])
	}
}

// finish makes the last span's sums elements of dst from row i and column j on:
// those that it has.
func (s *scratch) finish(panel *panel, p *product, dst Matrix, i, j int, c *float64) {
	x, lanes := &s.x[i*xStride], panel.set.Lanes
	rows, cols := min(p.rows, dst.Rows-i), min(lanes, dst.Cols-j)
	if dst.Index == nil && rows == p.rows && cols == lanes {
		p.run(&dst.Row(i)[j], dst.Stride, c, x, panel.w, panel.k)
		return
	}
	p.run(&s.tile[0], lanes, c, x, panel.w, panel.k)
	for r := range rows {
		copy(dst.Row(i + r)[j:], s.tile[r*lanes:][:cols])
	}
}
