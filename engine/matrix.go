package engine

import (
	"context"
	"fmt"
	"sync/atomic"

	"golang.org/x/sync/errgroup"

	"github.com/winnow-moe/winnow/engine/kernel"
	"github.com/winnow-moe/winnow/quant"
)

// tileFloats is the usual size of a decoded weight tile: a MiB, of which
// products keep a panel in a core's first-level cache while tokens pass by.
const tileFloats = 256 << 10

// tileIntegers is the same for weights that are integers: they take a third of
// the memory, so that activations pass by less often.
const tileIntegers = 3 * tileFloats

// chunk is the number of tokens (or other rows of activations) handled at
// once where results pass through a worker's own memory.
const chunk = 96

// worker is the private memory of one goroutine.
type worker struct {
	raw     []byte
	units   []uint32  // integers of weights, or rounded activations
	coded   [2][]byte // rows that go to products as they are
	tiles   [2][]float32
	packed  [2]kernel.Weights
	out     []float32 // products before they are combined
	plain   []float32 // a copy of them
	factors []float32
}

// grow makes *buf at least n long and returns n elements of it. The contents
// are unspecified.
func grow[T any](buf *[]T, n int) []T {
	if cap(*buf) < n {
		*buf = make([]T, n)
	}
	return (*buf)[:n]
}

// parallel calls fn for 0 ≤ i < n, on as many workers as there are threads,
// and returns the first error.
func (m *Model) parallel(ctx context.Context, n int, fn func(ctx context.Context, w *worker, i int) error) error {
	g, ctx := errgroup.WithContext(ctx)
	var next atomic.Int64
	for range min(n, m.opt.Threads) {
		g.Go(func() error {
			w := m.workers.Get().(*worker)
			defer m.workers.Put(w)
			for {
				i := int(next.Add(1)) - 1
				if i >= n {
					return nil
				}
				if err := ctx.Err(); err != nil {
					return err
				}
				if err := fn(ctx, w, i); err != nil {
					return err
				}
			}
		})
	}
	return g.Wait()
}

// chunks calls fn for ranges [first, first+n) that cover total rows.
func (m *Model) chunks(ctx context.Context, total int, fn func(w *worker, first, n int) error) error {
	return m.parallel(ctx, (total+chunk-1)/chunk, func(_ context.Context, w *worker, i int) error {
		return fn(w, i*chunk, min(chunk, total-i*chunk))
	})
}

// read decodes rows [first, first+n) of t into tile buffer b of the worker.
func (m *Model) read(ctx context.Context, w *worker, b int, t *tensor, first, n int) (kernel.Matrix, error) {
	raw, err := m.encoded(ctx, &w.raw, t, first, n)
	if err != nil {
		return kernel.Matrix{}, err
	}
	tile := kernel.NewMatrix(grow(&w.tiles[b], n*t.cols), n, t.cols)
	if err := quant.DecodeRows(t.info.Type, tile.Data, raw); err != nil {
		return kernel.Matrix{}, fmt.Errorf("tensor %q: %w", t.info.Name, err)
	}
	if t.factors == nil {
		return tile, nil
	}
	return tile, m.applyFactors(ctx, w, t, first, tile)
}

// encoded returns rows [first, first+n) of t as they are stored, in *buf if they
// are not in memory.
func (m *Model) encoded(ctx context.Context, buf *[]byte, t *tensor, first, n int) ([]byte, error) {
	size := int(t.info.RowBytes())
	if held := t.held.Load(); held != nil {
		return (*held)[first*size:][:n*size], nil
	}
	return m.src.Rows(ctx, t.index, int64(first), int64(n), grow(buf, n*size))
}

// weights is read for a product with so many tokens: the rows are packed, or
// decoded when they are multiplied.
func (m *Model) weights(ctx context.Context, w *worker, b int, t *tensor, first, n, tokens int) (*kernel.Weights, error) {
	if t.record != nil {
		return m.integers(ctx, w, b, t, first, n)
	}
	if u := t.codes(); u != nil {
		return m.coded(ctx, w, b, t, u, first, n, tokens)
	}
	rows, err := m.read(ctx, w, b, t, first, n)
	if err != nil {
		return nil, err
	}
	w.packed[b].Pack(rows)
	return &w.packed[b], nil
}

// integers is weights for products of integers.
func (m *Model) integers(ctx context.Context, w *worker, b int, t *tensor, first, n int) (*kernel.Weights, error) {
	raw, err := m.encoded(ctx, &w.raw, t, first, n)
	if err != nil {
		return nil, err
	}
	units := grow(&w.units, n*(t.cols/t.record.Block)*t.record.Units())
	if err := quant.IntegerRows(t.info.Type, units, raw); err != nil {
		return nil, fmt.Errorf("tensor %q: %w", t.info.Name, err)
	}
	w.packed[b].PackIntegers(units, n, t.cols, *t.record)
	return &w.packed[b], nil
}

// applyFactors multiplies rows of t, from row first on, by the factors of their
// matrices.
func (m *Model) applyFactors(ctx context.Context, w *worker, t *tensor, first int, rows kernel.Matrix) error {
	f := t.factors
	raw, err := m.src.Rows(ctx, f.index, 0, int64(f.rows), grow(&w.raw, int(f.info.Size())))
	if err != nil {
		return err
	}
	factors := grow(&w.factors, f.cols)
	if err := quant.DecodeRows(f.info.Type, factors, raw); err != nil {
		return fmt.Errorf("tensor %q: %w", f.info.Name, err)
	}
	for i := range rows.Rows {
		d := factors[(first+i)/(t.rows/f.cols)]
		for j, x := range rows.Row(i) {
			rows.Row(i)[j] = x * d
		}
	}
	return nil
}

// vector decodes all of a small tensor, nil for nil.
func (m *Model) vector(ctx context.Context, t *tensor) ([]float32, error) {
	if t == nil {
		return nil, nil
	}
	var w worker
	v, err := m.read(ctx, &w, 0, t, 0, t.rows)
	if err != nil {
		return nil, err
	}
	if !finite(v) {
		return nil, fmt.Errorf("tensor %q holds a value that is not finite", t.info.Name)
	}
	return v.Data, nil
}

// tile is a range of rows.
type tile struct{ first, n int }

// tiles cuts rows of the given length into tiles that fit the cache and are,
// with those of so many products like it, enough to keep all threads busy.
func (m *Model) tiles(w *tensor, rows, products int) []tile {
	size := tileFloats
	if w.record != nil {
		size = tileIntegers
	}
	n := min(size/w.cols, (rows*products+4*m.opt.Threads-1)/(4*m.opt.Threads))
	lanes := kernel.Active().Lanes
	n = max(lanes, n/lanes*lanes)
	out := make([]tile, 0, (rows+n-1)/n)
	for first := 0; first < rows; first += n {
		out = append(out, tile{first, min(n, rows-first)})
	}
	return out
}

// product is a multiplication by rows [first, first+rows) of a weight:
// dst[i][j] = Σ_k x[i][k]·w[first+j][k], dst [n, rows], x [n, cols].
type product struct {
	w           *tensor
	first, rows int
	x, dst      kernel.Matrix
	transposed  bool // dst is [rows, n]
	add         bool // dst += instead of dst =
}

// whole multiplies by all rows of w.
func whole(w *tensor, x, dst kernel.Matrix) product {
	return product{w: w, rows: w.rows, x: x, dst: dst}
}

// multiply computes products, tile by tile on all workers.
func (m *Model) multiply(ctx context.Context, products ...product) error {
	type task struct {
		product int
		tile
	}
	var tasks []task
	left, sides := m.operands(), make([]*making, len(products))
	defer left.release()
	for i := range products {
		p := &products[i]
		if !p.transposed {
			sides[i] = left.of(p.x, p.w)
		}
		for _, t := range m.tiles(p.w, p.rows, len(products)) {
			tasks = append(tasks, task{i, t})
		}
	}
	if err := left.make(ctx); err != nil {
		return err
	}
	return m.parallel(ctx, len(tasks), func(ctx context.Context, w *worker, i int) error {
		p, t := &products[tasks[i].product], tasks[i].tile
		if p.transposed {
			rows, err := m.read(ctx, w, 0, p.w, p.first+t.first, t.n)
			if err != nil {
				return err
			}
			dst := p.dst.Slice(t.first, t.n)
			kernel.MatMul(dst, rows, p.x)
			return checkFinite(p.w, dst)
		}
		weights, err := m.weights(ctx, w, 0, p.w, p.first+t.first, t.n, p.x.Rows)
		if err != nil {
			return err
		}
		dst, x := p.dst.Columns(t.first, t.n), sides[tasks[i].product].operand
		if p.add {
			return w.addProduct(p.w, dst, x, weights, nil)
		}
		return checked(p.w, dst, x, weights)
	})
}

// addProduct adds x·weightsᵀ to dst, row i times scale[i] when there is one.
func (w *worker) addProduct(t *tensor, dst kernel.Matrix, x operand, weights *kernel.Weights, scale []float32) error {
	for i := 0; i < dst.Rows; i += chunk {
		n := min(chunk, dst.Rows-i)
		out := kernel.NewMatrix(grow(&w.out, n*weights.Rows), n, weights.Rows)
		if err := checked(t, out, x.slice(i, n), weights); err != nil {
			return err
		}
		for j := range n {
			if scale == nil {
				addTo(dst.Row(i+j), out.Row(j))
			} else {
				kernel.AddScaled(dst.Row(i+j), out.Row(j), scale[i+j])
			}
		}
	}
	return nil
}

func addTo(dst, v []float32) { kernel.AddScaled(dst, v, 1) }

// checked multiplies with an error that names the tensor when a result is not
// finite: the earliest moment at which a broken weight shows.
func checked(t *tensor, dst kernel.Matrix, x operand, w *kernel.Weights) error {
	x.multiply(kernel.Output{Dst: dst, Weights: w})
	return checkFinite(t, dst)
}

// checkFinite is the check of a product with t.
func checkFinite(t *tensor, dst kernel.Matrix) error {
	if finite(dst) {
		return nil
	}
	return fmt.Errorf("the product with tensor %q is not finite: the model or its conversion is damaged, or values overflow float32", t.info.Name)
}

// finite reports whether no element is NaN or infinite.
func finite(m kernel.Matrix) bool {
	for i := range m.Rows {
		if !kernel.Finite(m.Row(i)) {
			return false
		}
	}
	return true
}
