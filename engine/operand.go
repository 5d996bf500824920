package engine

import (
	"context"
	"fmt"
	"slices"
	"strings"

	"github.com/winnow-moe/winnow/engine/kernel"
	"github.com/winnow-moe/winnow/quant"
)

// Compute is how weights are multiplied.
type Compute int

const (
	// ComputeF32 multiplies the numbers that weights decode to and activations as
	// they are, in float32.
	ComputeF32 Compute = iota
	// ComputeInt8 rounds activations as ggml's CPU code does before it multiplies:
	// for quantized weights to 8 bits per block, of 32 or 256 by their type, for
	// F16 and BF16 to these types. Weights of quantized types are multiplied as
	// integers. What decompresses latents and attention stay float32.
	ComputeInt8
)

var computes = [...]string{"f32", "int8"}

func (c Compute) String() string { return computes[c] }

// ParseCompute returns the way that String names so.
func ParseCompute(name string) (Compute, error) {
	i := slices.Index(computes[:], name)
	if i < 0 {
		return 0, fmt.Errorf("%q is none of %s", name, strings.Join(computes[:], ", "))
	}
	return Compute(i), nil
}

// form is what a weight wants to be multiplied with.
type form struct {
	partner  quant.Partner
	rounding kernel.Rounding // Block 0: none
	integers bool            // rounded activations stay integers
}

// bindForm chooses how a weight is multiplied.
func (m *Model) bindForm(t *tensor) {
	if m.opt.Compute != ComputeInt8 {
		return
	}
	codec, _ := quant.Lookup(t.info.Type)
	block := codec.Partner.Block()
	if block > 0 && t.cols%block != 0 {
		return // ggml multiplies no such rows
	}
	t.form = form{partner: codec.Partner, rounding: kernel.Rounding{Block: block}}
	f := codec.Integers()
	if f == nil || t.factors != nil {
		return
	}
	t.form.rounding.Wide, t.form.integers = f.Wide, true
	t.record = &kernel.Record{Block: f.Block, Wide: f.Wide, Codes: f.Codes(), Scales: f.Scales()}
	if f.Offsets {
		t.record.Offsets = f.Pairs()
	}
	if f.Mins {
		t.record.Mins = f.Pairs()
	}
}

// operand is the left side of products: activations, rounded if the weights
// want it. Exactly one of x and rounded is used.
type operand struct {
	x       kernel.Matrix
	rounded *kernel.Rounded
}

// slice views n rows from first on.
func (o operand) slice(first, n int) operand {
	if o.rounded != nil {
		return operand{rounded: o.rounded.Slice(first, n)}
	}
	return operand{x: o.x.Slice(first, n)}
}

// of views the rows of tokens, all of them for nil.
func (o operand) of(tokens []int32) operand {
	switch {
	case tokens == nil:
		return o
	case o.rounded != nil:
		return operand{rounded: o.rounded.Gather(tokens)}
	}
	return operand{x: o.x.Gather(tokens)}
}

// multiply is kernel.Multiply.
func (o operand) multiply(outputs ...kernel.Output) {
	if o.rounded != nil {
		kernel.MultiplyRounded(o.rounded, outputs...)
		return
	}
	kernel.Multiply(o.x, outputs...)
}

// operands makes the left sides of products, each matrix once in each form.
type operands struct {
	m       *Model
	made    []*making
	buffers []*roundBuffer
}

// making is an operand and what it is made from.
type making struct {
	x kernel.Matrix
	t *tensor
	operand
}

// roundBuffer is memory for an operand.
type roundBuffer struct {
	units  []uint32
	floats []float32
}

// operands returns a set whose memory must be given back with release.
func (m *Model) operands() *operands { return &operands{m: m} }

// of returns the operand for the products of x and t. It can be used after make.
func (o *operands) of(x kernel.Matrix, t *tensor) *making {
	if t == nil {
		return nil
	}
	for i := len(o.made) - 1; i >= 0; i-- {
		if have := o.made[i]; have.t.form == t.form && sameMatrix(have.x, x) {
			return have
		}
	}
	made := &making{x: x, t: t, operand: operand{x: x}}
	o.made = append(o.made, made)
	return made
}

// make rounds all of them, on all workers.
func (o *operands) make(ctx context.Context) error {
	type task struct {
		*making
		first, n int
	}
	var tasks []task
	for _, a := range o.made {
		if a.t.form == (form{}) || a.x.Rows == 0 {
			continue
		}
		buf, _ := o.m.rounds.Get().(*roundBuffer)
		if buf == nil {
			buf = new(roundBuffer)
		}
		o.buffers = append(o.buffers, buf)
		if a.t.form.integers {
			a.operand = operand{rounded: kernel.NewRounded(a.t.form.rounding, a.x.Rows, a.x.Cols, &buf.units)}
		} else {
			a.operand = operand{x: kernel.NewMatrix(grow(&buf.floats, a.x.Rows*a.x.Cols), a.x.Rows, a.x.Cols)}
		}
		for i := 0; i < a.x.Rows; i += chunk {
			tasks = append(tasks, task{a, i, min(chunk, a.x.Rows-i)})
		}
	}
	return o.m.parallel(ctx, len(tasks), func(_ context.Context, w *worker, i int) error {
		t := &tasks[i]
		rows := t.x.Slice(t.first, t.n)
		if t.rounded != nil {
			t.rounded.Round(t.first, rows)
			return nil
		}
		return w.roundFloats(t.t.form, t.operand.x.Slice(t.first, t.n), rows)
	})
}

// roundFloats writes x to dst, rounded as ggml does for weights that are
// multiplied as numbers.
func (w *worker) roundFloats(f form, dst, x kernel.Matrix) error {
	if f.rounding.Block > 0 {
		rounded := kernel.NewRounded(f.rounding, x.Rows, x.Cols, &w.units)
		rounded.Round(0, x)
		rounded.Float(dst, 0)
		return nil
	}
	t, _ := f.partner.Type()
	for i := range x.Rows {
		buf := grow(&w.raw, int(t.RowBytes(int64(x.Cols))))
		if err := quant.EncodeRows(t, buf, x.Row(i), x.Cols, nil); err != nil {
			return fmt.Errorf("rounding activations: %w", err)
		}
		if err := quant.DecodeRows(t, dst.Row(i), buf); err != nil {
			return fmt.Errorf("rounding activations: %w", err)
		}
	}
	return nil
}

// release gives the memory back.
func (o *operands) release() {
	for _, b := range o.buffers {
		o.m.rounds.Put(b)
	}
}
