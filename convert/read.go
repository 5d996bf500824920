package convert

import (
	"cmp"
	"context"
	"math"

	"github.com/winnow-moe/winnow/formats/arch"
	"github.com/winnow-moe/winnow/formats/dtype"
	"github.com/winnow-moe/winnow/formats/gguf"
	"github.com/winnow-moe/winnow/quant"
)

// reader computes output rows as float32. Each goroutine has its own; buffers
// grow to the largest unit and are reused.
type reader struct {
	inv    *Inventory
	data   Data
	raw    []byte
	block  []float32 // a source block before rearrangement
	line   []float32 // a row before rearrangement
	wide   []float32 // a row of a window before its edges are cut
	uncut  []float32 // rows of which a tensor has some elements
	scales []float32
	aux    []byte // stored scales or zero points
	codes  []byte // blocks of a GGUF type
	old    []byte // blocks of rows that may have changed
	was    []float32
	index  []int64
	// suspect says that the rows read last may hold NaN or infinities; where it
	// is false the stored numbers have been looked at and none is.
	suspect bool
}

// grow returns a slice of n elements, reusing buf's memory when it suffices.
func grow[T any](buf []T, n int64) []T {
	if int64(cap(buf)) < n {
		return make([]T, n)
	}
	return buf[:n]
}

// rows fills dst with rows [first, first+n) of what a piece contributes.
// len(dst) is n times the output's row length.
func (rd *reader) rows(ctx context.Context, p *Piece, first, n int64, dst []float32) error {
	rd.suspect = false
	if p.Mode == arch.CutTransposed {
		return rd.columns(ctx, p, first, n, dst)
	}
	cols := p.cols(rd.inv)
	if p.Mode == arch.CutRows && p.Step <= 1 && p.ColumnStep <= 1 {
		return rd.read(ctx, p.Source, p.Start+first, p.Start+first+n, p.Column, p.Column+cols, dst)
	}
	if p.Mode == arch.CutInterleaved && p.Step <= 1 && p.ColumnStep <= 1 {
		return rd.interleaved(ctx, p, first, n, cols, dst)
	}
	for i := range n {
		row, column := p.row(first+i), p.Column
		if p.Mode == arch.CutPlanes {
			row, column = p.plane(first+i, p.planes(rd.inv))
		}
		if err := rd.strided(ctx, p, row, column, cols, dst[i*cols:][:cols]); err != nil {
			return err
		}
	}
	return nil
}

// row returns the input row of the piece's row i.
func (p *Piece) row(i int64) int64 {
	if p.Mode == arch.CutInterleaved {
		i = i%2*(p.Count/2) + i/2
	}
	return p.Start + i*max(1, p.Step)
}

// interleaved reads rows of both halves of a piece, each half at once: some
// formats have to be read in many places for one row as for all.
func (rd *reader) interleaved(ctx context.Context, p *Piece, first, n, cols int64, dst []float32) error {
	for half := range int64(2) {
		// Output row 2k+half is row k of the half.
		k0, k1 := (first+1-half)/2, (first+n+1-half)/2
		start := p.Start + half*(p.Count/2)
		rd.block = grow(rd.block, (k1-k0)*cols)
		if k0 == k1 {
			continue
		}
		if err := rd.read(ctx, p.Source, start+k0, start+k1, p.Column, p.Column+cols, rd.block); err != nil {
			return err
		}
		for k := k0; k < k1; k++ {
			copy(dst[(2*k+half-first)*cols:][:cols], rd.block[(k-k0)*cols:])
		}
	}
	return nil
}

// plane returns the input row and first column of the piece's row i, where every
// input row gives so many: the first colour of all lines, then the next.
func (p *Piece) plane(i, planes int64) (row, column int64) {
	lines := planes / p.ColumnStep
	colour, line := i%planes/lines, i%lines
	return p.Start + i/planes, p.Column + line*p.Columns*p.ColumnStep + colour
}

// strided reads n columns of one row from column c on.
func (rd *reader) strided(ctx context.Context, p *Piece, row, c, n int64, dst []float32) error {
	if p.ColumnStep <= 1 {
		return rd.read(ctx, p.Source, row, row+1, c, c+n, dst)
	}
	span := p.span(n)
	rd.line = grow(rd.line, span)
	if err := rd.read(ctx, p.Source, row, row+1, c, c+span, rd.line); err != nil {
		return err
	}
	for i := range dst {
		dst[i] = rd.line[int64(i)*p.ColumnStep]
	}
	return nil
}

// columns fills dst with columns [first, first+n) of a piece as rows.
func (rd *reader) columns(ctx context.Context, p *Piece, first, n int64, dst []float32) error {
	c := p.Column + first*max(1, p.ColumnStep)
	rd.block = grow(rd.block, p.Count*n)
	if p.Step <= 1 && p.ColumnStep <= 1 {
		if err := rd.read(ctx, p.Source, p.Start, p.Start+p.Count, c, c+n, rd.block); err != nil {
			return err
		}
	} else {
		for i := range p.Count {
			if err := rd.strided(ctx, p, p.row(i), c, n, rd.block[i*n:][:n]); err != nil {
				return err
			}
		}
	}
	transpose(dst, rd.block, p.Count, n)
	return nil
}

// output fills dst with rows of a tensor: rows [first, first+n) of what a piece
// contributes, rearranged.
func (rd *reader) output(ctx context.Context, t *Tensor, p *Piece, first, n int64, dst []float32) error {
	rows := dst
	if t.wide > 0 {
		rd.uncut = grow(rd.uncut, n*t.wide)
		rows = rd.uncut
	}
	if err := rd.rows(ctx, p, first, n, rows); err != nil {
		return err
	}
	rd.finish(t, rows, dst)
	return nil
}

// finish rearranges the elements of rows of a tensor to dst, which may be rows,
// and applies the tensor's operation.
func (rd *reader) finish(t *Tensor, rows, dst []float32) {
	if n := int64(len(t.Order)); n > 0 {
		wide := cmp.Or(t.wide, n)
		rd.line = grow(rd.line, wide)
		for row, out := rows, dst; len(row) > 0; row, out = row[wide:], out[n:] {
			copy(rd.line, row)
			for i, from := range t.Order {
				out[i] = rd.line[from]
			}
		}
	}
	rows = dst
	rd.suspect = rd.suspect || t.Op != arch.OpNone
	switch t.Op {
	case arch.OpAddOne:
		for i := range rows {
			rows[i]++
		}
	case arch.OpNegExp:
		for i, v := range rows {
			rows[i] = -float32(math.Exp(float64(v)))
		}
	case arch.OpExp:
		for i, v := range rows {
			rows[i] = float32(math.Exp(float64(v)))
		}
	}
}

// transpose writes the rows×cols matrix src as cols×rows.
func transpose(dst, src []float32, rows, cols int64) {
	const tile = 32 // keeps both sides of a tile in the first-level cache
	for r0 := int64(0); r0 < rows; r0 += tile {
		for c0 := int64(0); c0 < cols; c0 += tile {
			for r := r0; r < min(r0+tile, rows); r++ {
				for c := c0; c < min(c0+tile, cols); c++ {
					dst[c*rows+r] = src[r*cols+c]
				}
			}
		}
	}
}

// read decodes columns [c0,c1) of rows [r0,r1) of a source tensor, row after
// row.
func (rd *reader) read(ctx context.Context, src int, r0, r1, c0, c1 int64, dst []float32) error {
	s := &rd.inv.Tensors[src]
	w := c1 - c0
	if s.Compute != nil { // pieces take whole rows
		rd.suspect = true
		return s.Compute(ctx, r0, r1-r0, dst[:(r1-r0)*w])
	}
	if s.packed != nil {
		rd.suspect = true // products may overflow
		return rd.unpack(ctx, src, r0, r1, c0, c1, dst)
	}
	if w == s.Cols() {
		return rd.decode(ctx, src, r0*w, dst[:(r1-r0)*w])
	}
	for r := r0; r < r1; r++ {
		if err := rd.decode(ctx, src, r*s.Cols()+c0, dst[(r-r0)*w:(r-r0+1)*w]); err != nil {
			return err
		}
	}
	return nil
}

// unpack reads a window of a packed weight. Its columns are widened to whole
// groups where the format wants them, a row at a time.
func (rd *reader) unpack(ctx context.Context, src int, r0, r1, c0, c1 int64, dst []float32) error {
	s := &rd.inv.Tensors[src]
	g := s.packed.group()
	a0, a1 := c0/g*g, min(ceilDiv(c1, g)*g, s.Cols())
	if a0 == c0 && a1 == c1 {
		return s.packed.read(ctx, rd, src, r0, r1, c0, c1, dst)
	}
	w := c1 - c0
	rd.wide = grow(rd.wide, a1-a0)
	for r := r0; r < r1; r++ {
		if err := s.packed.read(ctx, rd, src, r, r+1, a0, a1, rd.wide); err != nil {
			return err
		}
		copy(dst[(r-r0)*w:(r-r0+1)*w], rd.wide[c0-a0:])
	}
	return nil
}

// window reads bytes [b0,b1) of every row [r0,r1) of a stored tensor whose rows
// take stride bytes, into buf.
func (rd *reader) window(ctx context.Context, tensor int, buf []byte, stride, r0, r1, b0, b1 int64) ([]byte, error) {
	w := b1 - b0
	buf = grow(buf, (r1-r0)*w)
	if w == stride {
		return buf, rd.data.ReadAt(ctx, tensor, r0*stride, buf)
	}
	for r := r0; r < r1; r++ {
		if err := rd.data.ReadAt(ctx, tensor, r*stride+b0, buf[(r-r0)*w:(r-r0+1)*w]); err != nil {
			return buf, err
		}
	}
	return buf, nil
}

// decode reads len(dst) consecutive elements from element first on.
func (rd *reader) decode(ctx context.Context, src int, first int64, dst []float32) error {
	s := &rd.inv.Tensors[src]
	if s.Values != nil {
		copy(dst, s.Values[first:])
		rd.suspect = true // nobody has looked
		return nil
	}
	t, ok := s.Storage.blocks()
	var raw []byte
	if ok && t == gguf.F32 {
		raw = quant.StoredF32(dst)
	}
	inPlace := raw != nil
	if !inPlace {
		rd.raw = grow(rd.raw, s.bytes(int64(len(dst))))
		raw = rd.raw
	}
	if err := rd.data.ReadAt(ctx, src, s.bytes(first), raw); err != nil {
		return err
	}
	rd.suspect = rd.suspect || !ok || nonFinite(t, raw)
	switch {
	case inPlace:
		return nil
	case ok:
		return quant.DecodeRows(t, dst, raw)
	}
	return dtype.Decode(s.Storage.DType, dst, raw)
}

// nonFinite reports whether numbers stored as t may be NaN or infinite. It looks
// at types whose numbers are float32 numbers, too.
func nonFinite(t gguf.Type, raw []byte) bool {
	switch t {
	case gguf.F16, gguf.BF16, gguf.F32:
		return quant.Validate(t, raw, t.BlockBytes()) != nil
	}
	return true
}

// blocks copies rows [first, first+n) of what a piece contributes in the blocks
// of the GGUF type that holds them as they are; see Tensor.stored.
func (rd *reader) blocks(ctx context.Context, p *Piece, first, n int64, dst []byte) error {
	if p.Mode == arch.CutRows && p.Step <= 1 {
		return rd.rowBlocks(ctx, p.Source, p.Start+first, p.Start+first+n, dst)
	}
	size := int64(len(dst)) / n
	for i := range n {
		r := p.row(first + i)
		if err := rd.rowBlocks(ctx, p.Source, r, r+1, dst[i*size:(i+1)*size]); err != nil {
			return err
		}
	}
	return nil
}

func (rd *reader) rowBlocks(ctx context.Context, src int, r0, r1 int64, dst []byte) error {
	s := &rd.inv.Tensors[src]
	if s.Storage.IsGGUF {
		return rd.data.ReadAt(ctx, src, s.bytes(r0*s.Cols()), dst)
	}
	return s.packed.(lossless).blocks(ctx, rd, src, r0, r1, dst)
}

// finite returns an error naming the first NaN or infinity among the rows read
// last: x, of cols values each, the first of which is row first of the tensor.
func (rd *reader) finite(name string, first, cols int64, x []float32) error {
	if !rd.suspect {
		return nil
	}
	return checkFinite(name, first, cols, x)
}

// checkFinite is reader.finite for rows that nobody has looked at.
func checkFinite(name string, first, cols int64, x []float32) error {
	if quant.AllFinite(x) {
		return nil
	}
	for i, v := range x {
		if v-v != 0 {
			return formatError("tensor %q: the value at row %d, column %d is %v; weights must be finite", name, first+int64(i)/cols, int64(i)%cols, v)
		}
	}
	return nil
}
