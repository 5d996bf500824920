package convert

import (
	"context"

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
	scales []float32
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
	cols := rd.inv.Tensors[p.Source].Cols()
	rd.suspect = false
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
	rd.suspect = true // products may overflow
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

// finite returns an error naming the first NaN or infinity among the rows read
// last: x, of cols values each, the first of which is row first of the tensor.
func (rd *reader) finite(name string, first, cols int64, x []float32) error {
	if !rd.suspect || quant.AllFinite(x) {
		return nil
	}
	for i, v := range x {
		if v-v != 0 {
			return formatError("tensor %q: the value at row %d, column %d is %v; weights must be finite", name, first+int64(i)/cols, int64(i)%cols, v)
		}
	}
	return nil
}
