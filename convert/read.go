package convert

import (
	"context"
	"encoding/binary"
	"math"

	"github.com/winnow-moe/winnow/formats/arch"
	"github.com/winnow-moe/winnow/formats/dtype"
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
	scales []float32
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
	if p.Mode == arch.CutTransposed {
		return rd.columns(ctx, p, first, n, dst)
	}
	cols := p.cols(rd.inv)
	if p.Mode == arch.CutRows && p.Step <= 1 && p.ColumnStep <= 1 {
		return rd.read(ctx, p.Source, p.Start+first, p.Start+first+n, p.Column, p.Column+cols, dst)
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

// finish rearranges the elements of rows of a tensor and applies its operation.
func (rd *reader) finish(t *Tensor, rows []float32) {
	if n := len(t.Order); n > 0 {
		rd.line = grow(rd.line, int64(n))
		for row := rows; len(row) > 0; row = row[n:] {
			copy(rd.line, row)
			for i, from := range t.Order {
				row[i] = rd.line[from]
			}
		}
	}
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

// read decodes columns [c0,c1) of rows [r0,r1) of a source tensor, scales
// applied, row after row.
func (rd *reader) read(ctx context.Context, src int, r0, r1, c0, c1 int64, dst []float32) error {
	s := &rd.inv.Tensors[src]
	w := c1 - c0
	if w == s.Cols() {
		if err := rd.decode(ctx, src, r0*w, dst[:(r1-r0)*w]); err != nil {
			return err
		}
	} else {
		for r := r0; r < r1; r++ {
			if err := rd.decode(ctx, src, r*s.Cols()+c0, dst[(r-r0)*w:(r-r0+1)*w]); err != nil {
				return err
			}
		}
	}
	if s.Scale >= 0 {
		return rd.scale(ctx, s, r0, r1, c0, c1, dst)
	}
	return nil
}

// decode reads len(dst) consecutive elements from element first on.
func (rd *reader) decode(ctx context.Context, src int, first int64, dst []float32) error {
	s := &rd.inv.Tensors[src]
	if s.Values != nil {
		copy(dst, s.Values[first:])
		return nil
	}
	rd.raw = grow(rd.raw, s.bytes(int64(len(dst))))
	if err := rd.data.ReadAt(ctx, src, s.bytes(first), rd.raw); err != nil {
		return err
	}
	if s.Storage.IsGGUF {
		return quant.DecodeRows(s.Storage.GGUF, dst, rd.raw)
	}
	if s.Storage.DType == dtype.F32 {
		for i := range dst { // the compiler turns this into plain loads
			dst[i] = math.Float32frombits(binary.LittleEndian.Uint32(rd.raw[4*i:]))
		}
		return nil
	}
	return dtype.Decode(s.Storage.DType, dst, rd.raw)
}

// scale multiplies a decoded block by its block scales, in float32 as
// DeepSeek's own kernel (inference/kernel.py, weight_dequant).
func (rd *reader) scale(ctx context.Context, s *Source, r0, r1, c0, c1 int64, dst []float32) error {
	grid := &rd.inv.Tensors[s.Scale]
	gw, g0 := grid.Cols(), r0/s.BlockRows
	g1 := (r1-1)/s.BlockRows + 1
	rd.scales = grow(rd.scales, (g1-g0)*gw)
	if err := rd.decode(ctx, s.Scale, g0*gw, rd.scales); err != nil {
		return err
	}
	w := c1 - c0
	for r := r0; r < r1; r++ {
		row := dst[(r-r0)*w : (r-r0+1)*w]
		factors := rd.scales[(r/s.BlockRows-g0)*gw:][:gw]
		for c := c0; c < c1; {
			end := min(c1, (c/s.BlockCols+1)*s.BlockCols)
			f := factors[c/s.BlockCols]
			for i := range row[c-c0 : end-c0] {
				row[c-c0+int64(i)] *= f
			}
			c = end
		}
	}
	return nil
}

// finite returns an error naming the first NaN or infinity among rows of cols
// values, the first of which is row first of the tensor. A running sum of x·0
// stays 0 unless a value is not finite.
func finite(name string, first, cols int64, x []float32) error {
	var a, b, c, d float32
	i := 0
	for ; i+4 <= len(x); i += 4 {
		a += x[i] * 0
		b += x[i+1] * 0
		c += x[i+2] * 0
		d += x[i+3] * 0
	}
	for ; i < len(x); i++ {
		a += x[i] * 0
	}
	if a+b+c+d == 0 {
		return nil
	}
	for i, v := range x {
		if v-v != 0 {
			return formatError("tensor %q: the value at row %d, column %d is %v; weights must be finite", name, first+int64(i)/cols, int64(i)%cols, v)
		}
	}
	return nil
}
