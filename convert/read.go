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
	cols := rd.inv.Tensors[p.Source].Cols()
	switch p.Mode {
	case arch.CutTransposed:
		rd.block = grow(rd.block, p.Count*n)
		if err := rd.read(ctx, p.Source, p.Start, p.Start+p.Count, first, first+n, rd.block); err != nil {
			return err
		}
		transpose(dst, rd.block, p.Count, n)
		return nil
	case arch.CutInterleaved:
		half := p.Count / 2
		for i := range n {
			j := first + i
			src := p.Start + j%2*half + j/2
			if err := rd.read(ctx, p.Source, src, src+1, 0, cols, dst[i*cols:(i+1)*cols]); err != nil {
				return err
			}
		}
		return nil
	}
	return rd.read(ctx, p.Source, p.Start+first, p.Start+first+n, 0, cols, dst)
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
