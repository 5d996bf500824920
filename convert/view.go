package convert

import (
	"context"
	"sync"

	"github.com/winnow-moe/winnow/formats/gguf"
)

// View presents what an output of a plan would contain as a model, with rows
// computed when asked for and nothing written.
type View struct {
	plan    *Plan
	output  int
	data    Data
	infos   []gguf.TensorInfo
	starts  [][]int64 // starts[t][i]: first row of piece i of tensor t
	readers sync.Pool
	close   func() error
}

// NewView makes a model of output o of a plan. closer, if not nil, is called
// by Close.
func NewView(p *Plan, o int, data Data, closer func() error) *View {
	v := &View{plan: p, output: o, data: data, infos: p.infos(o), close: closer}
	v.readers.New = func() any { return &worker{rd: reader{inv: p.inv, data: data}} }
	v.starts = make([][]int64, len(p.Tensors))
	for t := range p.Tensors {
		row := int64(0)
		for i := range p.Tensors[t].Pieces {
			v.starts[t] = append(v.starts[t], row)
			row += p.Tensors[t].Pieces[i].rows(p.inv)
		}
	}
	return v
}

var _ gguf.Model = (*View)(nil)

// Metadata implements gguf.Model.
func (v *View) Metadata() *gguf.Metadata { return v.plan.Outputs[v.output].Metadata }

// Tensors implements gguf.Model.
func (v *View) Tensors() []gguf.TensorInfo { return v.infos }

// Rows implements gguf.Model.
func (v *View) Rows(ctx context.Context, i int, first, n int64, buf []byte) ([]byte, error) {
	info := &v.infos[i]
	if err := checkRange(info, first, n); err != nil {
		return nil, err
	}
	w := v.readers.Get().(*worker)
	defer v.readers.Put(w)
	cols := info.RowLen()
	if v.plan.Tensors[i].holds(info.Type) {
		buf = grow(buf, n*info.RowBytes())
		return buf, v.fillBlocks(ctx, &w.rd, i, first, n, buf)
	}
	w.values = grow(w.values, n*cols)
	if err := v.fill(ctx, &w.rd, i, first, n, w.values); err != nil {
		return nil, err
	}
	buf = grow(buf, n*info.RowBytes())
	if err := v.plan.Outputs[v.output].Choices[i].Search.EncodeRows(info.Type, buf, w.values, int(cols), nil); err != nil {
		return nil, err
	}
	return buf, v.keep(ctx, &w.rd, i, first, n, w.values, buf)
}

// fill computes rows that may span several pieces.
func (v *View) fill(ctx context.Context, rd *reader, t int, first, n int64, dst []float32) error {
	cols := v.infos[t].RowLen()
	return v.spans(t, first, n, func(p *Piece, at, k, out int64) error {
		rows := dst[out*cols : (out+k)*cols]
		if err := rd.output(ctx, &v.plan.Tensors[t], p, at, k, rows); err != nil {
			return err
		}
		return rd.finite(v.infos[t].Name, first+out, cols, rows)
	})
}

// keep restores the blocks of rows that Changes leave as they are.
func (v *View) keep(ctx context.Context, rd *reader, t int, first, n int64, values []float32, dst []byte) error {
	cols, size := v.infos[t].RowLen(), v.infos[t].RowBytes()
	return v.spans(t, first, n, func(p *Piece, at, k, out int64) error {
		return rd.unchanged(ctx, &v.plan.Tensors[t], v.infos[t].Type, p.Start+at, values[out*cols:(out+k)*cols], dst[out*size:(out+k)*size])
	})
}

// fillBlocks copies rows that may span several pieces.
func (v *View) fillBlocks(ctx context.Context, rd *reader, t int, first, n int64, dst []byte) error {
	size := v.infos[t].RowBytes()
	return v.spans(t, first, n, func(p *Piece, at, k, out int64) error {
		return rd.blocks(ctx, p, at, k, dst[out*size:(out+k)*size])
	})
}

// spans calls do for the pieces that rows [first, first+n) of a tensor lie in:
// for k rows from row at of the piece on, which are the range's from row out on.
func (v *View) spans(t int, first, n int64, do func(p *Piece, at, k, out int64) error) error {
	pieces, starts := v.plan.Tensors[t].Pieces, v.starts[t]
	i := 0
	for i+1 < len(pieces) && starts[i+1] <= first {
		i++
	}
	for out := int64(0); out < n; i++ {
		at := first + out - starts[i]
		k := min(n-out, pieces[i].rows(v.plan.inv)-at)
		if err := do(&pieces[i], at, k, out); err != nil {
			return err
		}
		out += k
	}
	return nil
}

// Release implements gguf.Model; nothing is kept.
func (v *View) Release(int) {}

// Close implements gguf.Model.
func (v *View) Close() error {
	if v.close == nil {
		return nil
	}
	return v.close()
}
