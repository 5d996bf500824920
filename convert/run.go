package convert

import (
	"context"
	"iter"
	"runtime"
	"slices"
	"sync/atomic"

	"github.com/winnow-moe/winnow/formats/arch"
	"github.com/winnow-moe/winnow/formats/gguf"
	"github.com/winnow-moe/winnow/quant"
	"golang.org/x/sync/errgroup"
)

// RunOptions bound what a run may use. They never change its output.
type RunOptions struct {
	// Threads is the number of tensors' parts worked on at a time, with some
	// more that wait for the disk; 0 means one per core.
	Threads int
	// MaxMemory bounds resident memory in bytes; 0 means DefaultMaxMemory.
	MaxMemory int64
	// Inputs are files that no output may replace.
	Inputs []string
	Events Events
}

// Events report progress. They are called from worker goroutines and must not
// block. Nil fields are skipped.
type Events struct {
	// Progress is called as input is worked off, in bytes of input.
	Progress func(done, total int64)
	// Tensor is called when the first rows of a tensor are taken up.
	Tensor func(name string)
	// ZeroImportance is called when a matrix of a tensor is encoded by
	// importance weights that are all zero, which makes zeros of it in most
	// types, as in llama-quantize.
	ZeroImportance func(name string, matrix int64)
}

// DefaultMaxMemory bounds a run when nothing else is said.
const DefaultMaxMemory = 512 << 20

const (
	// baseMemory is set aside for the program, the plan and the runtime.
	baseMemory = 192 << 20
	// bytesPerElement is what a unit of work holds per element at most: eight
	// stored, four decoded, four rearranged, four encoded.
	bytesPerElement = 20
	maxUnit         = 1 << 20 // elements; more brings no speed
	minUnit         = 1 << 12
	readAhead       = 2 // workers beyond Threads, so that the disk and the cores both stay busy
)

// unit is a piece of work: n rows of what piece contributes to a tensor,
// starting at row first of the piece and at row out of the tensor.
type unit struct {
	tensor     int
	piece      *Piece
	first, out int64
	n          int64
}

// units cuts the plan into pieces of work of about limit elements, in file
// order, never across pieces.
func (p *Plan) units(limit int64) iter.Seq[unit] {
	return func(yield func(unit) bool) {
		for t := range p.Tensors {
			out := int64(0)
			for i := range p.Tensors[t].Pieces {
				pc := &p.Tensors[t].Pieces[i]
				total := pc.rows(p.inv)
				step := max(1, limit/max(1, p.elements(pc, 1)))
				for first := int64(0); first < total; first += step {
					n := min(step, total-first)
					if !yield(unit{t, pc, first, out + first, n}) {
						return
					}
				}
				out += total
			}
		}
	}
}

// elements returns the stored elements behind n rows of a piece.
func (p *Plan) elements(pc *Piece, n int64) int64 {
	if pc.Mode == arch.CutTransposed {
		return pc.span(n) * pc.Count
	}
	return n * pc.span(pc.cols(p.inv))
}

// Run executes a plan: every output comes from one pass over the input, and
// each gets its final name only when it is complete and on disk. After an
// error or a cancelled context no part of an output stays.
func Run(ctx context.Context, p *Plan, data Data, opt RunOptions) error {
	if err := checkPaths(p); err != nil {
		return err
	}
	ex := &execution{plan: p, data: data, opt: opt}
	defer ex.abort()
	for i := range p.Outputs {
		w, err := p.Outputs[i].Layout.Create(p.Outputs[i].Path, gguf.CreateOptions{Inputs: opt.Inputs})
		if err != nil {
			return err
		}
		ex.writers = append(ex.writers, w)
	}
	if err := ex.run(ctx); err != nil {
		return err
	}
	for _, w := range ex.writers {
		if err := w.Commit(); err != nil {
			return err
		}
	}
	return nil
}

// checkPaths refuses two outputs of one name.
func checkPaths(p *Plan) error {
	seen := map[string]bool{}
	for i := range p.Outputs {
		for _, path := range p.Outputs[i].Layout.Paths(p.Outputs[i].Path) {
			if seen[path] {
				return refused("two outputs would be written to %q", path)
			}
			seen[path] = true
		}
	}
	return nil
}

// execution is the state of one run.
type execution struct {
	plan    *Plan
	data    Data
	opt     RunOptions
	writers []*gguf.Writer
	done    atomic.Int64
	total   int64
}

func (ex *execution) abort() {
	for _, w := range ex.writers {
		w.Abort()
	}
}

func (ex *execution) run(ctx context.Context) error {
	threads := ex.opt.Threads
	if threads <= 0 {
		threads = runtime.GOMAXPROCS(0)
	}
	ex.total = ex.plan.inputBytes()
	workers := threads + readAhead
	g, ctx := errgroup.WithContext(ctx)
	units := make(chan unit)
	g.Go(func() error {
		defer close(units)
		return ex.feed(ctx, units, workers)
	})
	for range workers {
		g.Go(func() error {
			w := &worker{ex: ex, rd: reader{inv: ex.plan.inv, data: ex.data}}
			for u := range units {
				if err := w.do(ctx, u); err != nil {
					return err
				}
			}
			return nil
		})
	}
	return g.Wait()
}

// feed hands out units in file order.
func (ex *execution) feed(ctx context.Context, units chan<- unit, workers int) error {
	last := -1
	for u := range ex.plan.units(unitSize(ex.opt.MaxMemory, workers)) {
		if u.tensor != last && ex.opt.Events.Tensor != nil {
			ex.opt.Events.Tensor(ex.plan.Tensors[u.tensor].Name)
		}
		last = u.tensor
		select {
		case units <- u:
		case <-ctx.Done():
			return ctx.Err()
		}
	}
	return nil
}

// unitSize divides the memory budget among the workers, in elements.
func unitSize(budget int64, workers int) int64 {
	if budget <= 0 {
		budget = DefaultMaxMemory
	}
	return min(maxUnit, max(minUnit, (budget-baseMemory)/int64(workers)/bytesPerElement))
}

// inputBytes is the number that progress counts to.
func (p *Plan) inputBytes() int64 {
	total := int64(0)
	for t := range p.Tensors {
		for i := range p.Tensors[t].Pieces {
			pc := &p.Tensors[t].Pieces[i]
			total += p.inv.Tensors[pc.Source].bytes(p.elements(pc, pc.rows(p.inv)))
		}
	}
	return total
}

// worker computes units; its buffers live as long as it does.
type worker struct {
	ex      *execution
	rd      reader
	values  []float32
	packed  []byte // encoded values
	blocks  []byte // as the input has them
	weights tensorWeights
}

func (w *worker) do(ctx context.Context, u unit) error {
	p := w.ex.plan
	src := &p.inv.Tensors[u.piece.Source]
	decoded, copied := false, false
	for o := range w.ex.writers {
		c := &p.Outputs[o].Choices[u.tensor]
		var rows []byte
		var err error
		if p.Tensors[u.tensor].holds(c.Type) {
			rows, err = w.stored(ctx, u, c.Type, &copied)
		} else {
			rows, err = w.encoded(ctx, u, c, &decoded)
		}
		if err == nil {
			err = w.write(o, u, rows)
		}
		if err != nil {
			return err
		}
	}
	done := w.ex.done.Add(src.bytes(p.elements(u.piece, u.n)))
	if w.ex.opt.Events.Progress != nil {
		w.ex.opt.Events.Progress(done, w.ex.total)
	}
	return nil
}

// stored returns a unit in the blocks of the input, read for the first output
// that wants them.
func (w *worker) stored(ctx context.Context, u unit, t gguf.Type, have *bool) ([]byte, error) {
	if *have {
		return w.blocks, nil
	}
	*have = true
	info := gguf.TensorInfo{Type: t, Shape: w.ex.plan.Tensors[u.tensor].Shape}
	w.blocks = grow(w.blocks, u.n*info.RowBytes())
	return w.blocks, w.rd.blocks(ctx, u.piece, u.first, u.n, w.blocks)
}

// encoded returns a unit in the type of a choice; it is decoded for the first
// output that wants it so.
func (w *worker) encoded(ctx context.Context, u unit, c *quant.Choice, have *bool) ([]byte, error) {
	t := &w.ex.plan.Tensors[u.tensor]
	info := gguf.TensorInfo{Shape: t.Shape}
	cols := info.RowLen()
	if !*have {
		*have = true
		w.values = grow(w.values, u.n*cols)
		if err := w.rd.rows(ctx, u.piece, u.first, u.n, w.values); err != nil {
			return nil, err
		}
		w.rd.finish(t, w.values)
		if err := finite(t.Name, u.out, cols, w.values); err != nil {
			return nil, err
		}
	}
	w.packed = grow(w.packed, c.Type.RowBytes(cols)*u.n)
	return w.packed, w.encode(u, c, cols)
}

// encode packs the values of a unit, matrix by matrix, because each matrix of
// a stack has importance weights of its own.
func (w *worker) encode(u unit, c *quant.Choice, cols int64) error {
	p, typ := w.ex.plan, c.Type
	if codec, _ := quant.Lookup(typ); p.importance == nil || !codec.UsesWeights {
		return c.Search.EncodeRows(typ, w.packed, w.values, int(cols), nil)
	}
	if err := w.weights.load(p, u.tensor); err != nil {
		return err
	}
	perMatrix, rowBytes := matrixRows(p.Tensors[u.tensor].Shape), typ.RowBytes(cols)
	for r := int64(0); r < u.n; {
		matrix := (u.out + r) / perMatrix
		n := min(u.n-r, (matrix+1)*perMatrix-u.out-r)
		weights := w.weights.of(matrix, cols)
		if (u.out+r)%perMatrix == 0 && weights != nil && allZero(weights) && w.ex.opt.Events.ZeroImportance != nil {
			w.ex.opt.Events.ZeroImportance(p.Tensors[u.tensor].Name, matrix)
		}
		err := c.Search.EncodeRows(typ, w.packed[r*rowBytes:(r+n)*rowBytes], w.values[r*cols:(r+n)*cols], int(cols), weights)
		if err != nil {
			return formatError("tensor %q: %v", p.Tensors[u.tensor].Name, err)
		}
		r += n
	}
	return nil
}

func allZero(s []float32) bool {
	return !slices.ContainsFunc(s, func(x float32) bool { return x != 0 })
}

// write checks encoded rows, as llama-quantize does, and stores them.
func (w *worker) write(o int, u unit, rows []byte) error {
	info := w.ex.plan.Info(o, u.tensor)
	if len(rows) == 0 {
		return nil
	}
	if err := quant.Validate(info.Type, rows, int(info.RowBytes())); err != nil {
		return formatError("tensor %q does not fit the range of %s: %v", info.Name, info.Type, err)
	}
	return w.ex.writers[o].WriteAt(u.tensor, u.out*info.RowBytes(), rows)
}
