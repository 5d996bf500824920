package convert

import (
	"context"
	"errors"
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
	// Threads is the number of tensors' parts worked on at a time; 0 means one
	// per core.
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
	// elementBytes is what a unit of work holds per element at most, apart from
	// the encoded rows: eight bytes stored, four decoded, four rearranged.
	elementBytes = 16
	maxUnit      = 1 << 20 // elements; more brings no speed
	minUnit      = 1 << 12
	// maxStrip is what is decoded, checked and encoded at a time, in elements:
	// all of it stays in a core's own cache.
	maxStrip = 1 << 15
	// readAhead is how many bytes of input are fetched before their turn, so
	// that the disk and the cores both stay busy.
	readAhead = 32 << 20
)

// unit is a piece of work: n rows of what piece contributes to a tensor,
// starting at row first of the piece and at row out of the tensor.
type unit struct {
	tensor     int
	piece      *Piece
	first, out int64
	n          int64
}

// strips cuts a unit into smaller ones, of so many rows.
func (u unit) strips(rows int64) iter.Seq[unit] {
	return func(yield func(unit) bool) {
		for r := int64(0); r < u.n; r += rows {
			if !yield(unit{u.tensor, u.piece, u.first + r, u.out + r, min(rows, u.n-r)}) {
				return
			}
		}
	}
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
	g, ctx := errgroup.WithContext(ctx)
	units := make(chan unit)
	g.Go(func() error {
		defer close(units)
		return ex.feed(ctx, units, unitSize(ex.opt.MaxMemory, threads, len(ex.writers)))
	})
	for range threads {
		g.Go(func() error {
			w := &worker{ex: ex, rd: reader{inv: ex.plan.inv, data: ex.data}, encoded: make([][]byte, len(ex.writers))}
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

// feed hands out units of limit elements in file order.
func (ex *execution) feed(ctx context.Context, units chan<- unit, limit int64) error {
	ahead := newLookahead(ex.plan, ex.data, limit)
	defer ahead.stop()
	last := -1
	for u := range ex.plan.units(limit) {
		if u.tensor != last && ex.opt.Events.Tensor != nil {
			ex.opt.Events.Tensor(ex.plan.Tensors[u.tensor].Name)
		}
		last = u.tensor
		ahead.pass(u)
		select {
		case units <- u:
		case <-ctx.Done():
			return ctx.Err()
		}
	}
	return nil
}

// unitSize divides the memory budget among the workers, in elements.
func unitSize(budget int64, workers, outputs int) int64 {
	if budget <= 0 {
		budget = DefaultMaxMemory
	}
	perElement := int64(elementBytes + 4*outputs) // no output has more than four bytes
	return min(maxUnit, max(minUnit, (budget-baseMemory)/int64(workers)/perElement))
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
	values  []float32 // a strip
	encoded [][]byte  // a unit, for each output
	weights tensorWeights
}

func (w *worker) do(ctx context.Context, u unit) error {
	p := w.ex.plan
	for o := range w.encoded {
		info := p.Info(o, u.tensor)
		w.encoded[o] = grow(w.encoded[o], u.n*info.RowBytes())
	}
	for s := range u.strips(w.stripRows(u)) {
		if err := w.strip(ctx, u, s); err != nil {
			return err
		}
	}
	for o := range w.ex.writers {
		info := p.Info(o, u.tensor)
		if err := w.ex.writers[o].WriteAt(u.tensor, u.out*info.RowBytes(), w.encoded[o]); err != nil {
			return err
		}
	}
	done := w.ex.done.Add(p.storedBytes(u))
	if w.ex.opt.Events.Progress != nil {
		w.ex.opt.Events.Progress(done, w.ex.total)
	}
	return nil
}

// stripRows returns how many rows of a unit are worked on at once: as many as
// stay in a core's cache, but all where few rows would be read in many small
// places, or are computed.
func (w *worker) stripRows(u unit) int64 {
	p := w.ex.plan
	src, t := &p.inv.Tensors[u.piece.Source], &p.Tensors[u.tensor]
	if u.piece.Mode == arch.CutTransposed || src.columnwise() || src.Compute != nil {
		return max(1, u.n)
	}
	info := gguf.TensorInfo{Shape: t.Shape}
	for o := range p.Outputs {
		if !t.holds(p.Outputs[o].Choices[u.tensor].Type) {
			return max(1, maxStrip/max(1, info.RowLen()))
		}
	}
	copied := p.Info(0, u.tensor)
	return max(1, 4*maxStrip/max(1, copied.RowBytes()))
}

// strip fills the rows of a strip for every output: with the blocks of the
// input where it has them in the type wanted, else with values encoded anew.
// Each is read or decoded once.
func (w *worker) strip(ctx context.Context, u, s unit) error {
	t := &w.ex.plan.Tensors[u.tensor]
	var blocks []byte
	decoded := false
	for o := range w.encoded {
		c := &w.ex.plan.Outputs[o].Choices[u.tensor]
		rows := w.rows(o, u, s)
		var err error
		switch {
		case t.holds(c.Type) && blocks != nil:
			copy(rows, blocks)
			continue
		case t.holds(c.Type):
			blocks = rows
			err = w.rd.blocks(ctx, s.piece, s.first, s.n, rows)
		default:
			if !decoded {
				decoded = true
				if err := w.decode(ctx, s); err != nil {
					return err
				}
			}
			if err = w.encode(s, c, rows); err == nil {
				err = w.rd.unchanged(ctx, t, c.Type, s.piece.Start+s.first, w.values, rows)
			}
		}
		if err != nil {
			return err
		}
		if err := w.check(o, s, rows); err != nil {
			return err
		}
	}
	return nil
}

// decode sets values to those of a strip.
func (w *worker) decode(ctx context.Context, s unit) error {
	t := &w.ex.plan.Tensors[s.tensor]
	info := gguf.TensorInfo{Shape: t.Shape}
	cols := info.RowLen()
	w.values = grow(w.values, s.n*cols)
	if err := w.rd.output(ctx, t, s.piece, s.first, s.n, w.values); err != nil {
		return err
	}
	return w.rd.finite(t.Name, s.out, cols, w.values)
}

// rows returns the place of a strip's encoded rows among those of its unit.
func (w *worker) rows(o int, u, strip unit) []byte {
	info := w.ex.plan.Info(o, u.tensor)
	row := info.RowBytes()
	return w.encoded[o][(strip.out-u.out)*row:][:strip.n*row]
}

// encode packs the values of a strip, matrix by matrix, because each matrix of
// a stack has importance weights of its own.
func (w *worker) encode(u unit, c *quant.Choice, dst []byte) error {
	p, typ := w.ex.plan, c.Type
	info := gguf.TensorInfo{Shape: p.Tensors[u.tensor].Shape}
	cols := info.RowLen()
	if codec, _ := quant.Lookup(typ); p.importance == nil || !codec.UsesWeights {
		return c.Search.EncodeRows(typ, dst, w.values, int(cols), nil)
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
		err := c.Search.EncodeRows(typ, dst[r*rowBytes:(r+n)*rowBytes], w.values[r*cols:(r+n)*cols], int(cols), weights)
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

// check makes sure, as llama-quantize does, that a file may hold encoded rows.
func (w *worker) check(o int, u unit, rows []byte) error {
	info := w.ex.plan.Info(o, u.tensor)
	if len(rows) == 0 {
		return nil
	}
	err := quant.Validate(info.Type, rows, int(info.RowBytes()))
	if err == nil {
		return nil
	}
	var block *quant.BlockError
	if errors.As(err, &block) {
		block.Row += u.out
	}
	return rangeError(info.Name, info.Type, err)
}
