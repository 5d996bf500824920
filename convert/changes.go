package convert

import (
	"context"
	"fmt"
	"maps"
	"slices"
	"strings"
	"sync"

	"github.com/winnow-moe/winnow/formats/arch"
	"github.com/winnow-moe/winnow/formats/dtype"
	"github.com/winnow-moe/winnow/formats/gguf"
	"github.com/winnow-moe/winnow/quant"
)

// Changes are weights that are computed instead of read, such as those of
// merged experts. Tensors have the names and shapes that a GGUF file of the
// whole model has, with all its experts.
type Changes interface {
	// Has reports whether the rows of a tensor are computed.
	Has(name string) bool
	// Rows fills dst with rows [first, first+n) of a tensor that it has. It is
	// safe for concurrent use.
	Rows(ctx context.Context, name string, first, n int64, dst []float32) error
}

// changed reports whether the tensor's rows are computed by Changes.
func (t *Tensor) changed() bool { return t.replaced != nil }

// inputs are the pieces of the input that the tensor comes from, those that
// Changes compute it from included.
func (t *Tensor) inputs() []Piece {
	if t.changed() {
		return t.replaced
	}
	return t.Pieces
}

// change puts computed rows in the place of those of the tensors that changes has.
func (p *Plan) change(changes Changes, m *arch.Model) error {
	if changes == nil {
		return nil
	}
	own := newExpertTensors(m)
	inv := &Inventory{Tensors: slices.Clip(p.inv.Tensors), index: p.inv.index} // the input's own stays as it is
	p.inv = inv
	for i := range p.Tensors {
		t := &p.Tensors[i]
		if weight, _, ok := arch.Factors(t.measured); ok && own[t.measured] == nil && changes.Has(weight) {
			return factored(weight, t.measured)
		}
		if !changes.Has(t.measured) {
			continue
		}
		if t.factor != nil {
			return factored(t.measured, t.factor.Name)
		}
		info := gguf.TensorInfo{Shape: t.Shape}
		shape := slices.Clone(t.Shape)
		slices.Reverse(shape)
		inv.Tensors = append(inv.Tensors, Source{
			Name: t.measured, Storage: Storage{DType: dtype.F32}, Shape: shape,
			Compute: func(ctx context.Context, first, n int64, dst []float32) error {
				return changes.Rows(ctx, t.measured, first, n, dst)
			},
		})
		t.replaced, t.Pieces = t.Pieces, []Piece{{Source: len(inv.Tensors) - 1, Count: info.Rows()}}
		t.From, t.Order, t.Op = t.From+", changed", nil, arch.OpNone
	}
	return nil
}

func factored(weight, factors string) error {
	return hinted("convert the model to another type first",
		refused("tensor %q has factors beside it, in %q; such a weight cannot be changed", weight, factors))
}

// encodeChanged makes choices of types for changed tensors that would be copied:
// they are encoded in the type that they have.
func (p *Plan) encodeChanged(choices []quant.Choice, search quant.Search) {
	for i := range choices {
		c := &choices[i]
		if !p.Tensors[i].changed() || !c.Copied {
			continue
		}
		c.Rule, c.Copied = c.Rule+"; changed", false
		c.Search, c.NeedsWeights = search.For(c.Type), quant.WantsWeights(c.Type)
	}
}

// noteChanged tells where numbers that a block type holds are encoded anew.
func (p *Plan) noteChanged() {
	for o := range p.Outputs {
		counts := map[string]int{}
		for i := range p.Tensors {
			t, c := &p.Tensors[i], &p.Outputs[o].Choices[i]
			if t.changed() && t.stored != nil && t.stored.Quantized() {
				anew := "they are"
				if *t.stored == c.Type {
					anew = "what differs is"
				}
				from, _, _ := strings.Cut(t.From, ",")
				counts[fmt.Sprintf("in %s are changed: %s encoded anew as %s", from, anew, c.Type)]++
			}
		}
		for _, text := range slices.Sorted(maps.Keys(counts)) {
			p.Notes = append(p.Notes, fmt.Sprintf("%s: %d of the tensors that the input has %s", p.Outputs[o].Recipe.Name, counts[text], text))
		}
	}
}

// unchanged puts the input's blocks in the place of encoded rows whose values
// are the input's: types need not give back the blocks whose values they encode.
// The values and rows are those from row first of the whole tensor on.
func (rd *reader) unchanged(ctx context.Context, t *Tensor, typ gguf.Type, first int64, values []float32, rows []byte) error {
	if !t.changed() || t.stored == nil || *t.stored != typ {
		return nil
	}
	cols, size := t.Shape[0], typ.RowBytes(t.Shape[0])
	n, start := int64(len(values))/cols, int64(0)
	rd.old, rd.was = grow(rd.old, n*size), grow(rd.was, n*cols)
	for i := range t.replaced {
		pc := &t.replaced[i]
		a, b := max(first, start), min(first+n, start+pc.rows(rd.inv))
		if a < b {
			if err := rd.blocks(ctx, pc, a-start, b-a, rd.old[(a-first)*size:(b-first)*size]); err != nil {
				return err
			}
		}
		start += pc.rows(rd.inv)
	}
	if err := quant.DecodeRows(typ, rd.was, rd.old); err != nil {
		return err
	}
	for r := range n {
		if slices.Equal(values[r*cols:(r+1)*cols], rd.was[r*cols:(r+1)*cols]) {
			copy(rows[r*size:(r+1)*size], rd.old[r*size:])
		}
	}
	return nil
}

// changedModel is a model with changes.
type changedModel struct {
	gguf.Model
	changes Changes
	infos   []gguf.TensorInfo
	values  sync.Pool // of *[]float32
}

// Changed is a model with changes, whose tensors are float32 where they are
// computed. Release and Close are the model's.
func Changed(m gguf.Model, changes Changes) gguf.Model {
	if changes == nil {
		return m
	}
	c := &changedModel{Model: m, changes: changes, infos: slices.Clone(m.Tensors())}
	c.values.New = func() any { return new([]float32) }
	for i := range c.infos {
		if changes.Has(c.infos[i].Name) {
			c.infos[i].Type = gguf.F32
		}
	}
	return c
}

// Tensors implements gguf.Model.
func (c *changedModel) Tensors() []gguf.TensorInfo { return c.infos }

// Rows implements gguf.Model.
func (c *changedModel) Rows(ctx context.Context, i int, first, n int64, buf []byte) ([]byte, error) {
	info := &c.infos[i]
	if !c.changes.Has(info.Name) {
		return c.Model.Rows(ctx, i, first, n, buf)
	}
	if err := checkRange(info, first, n); err != nil {
		return nil, err
	}
	cols := info.RowLen()
	values := c.values.Get().(*[]float32)
	defer c.values.Put(values)
	*values = grow(*values, n*cols)
	if err := c.changes.Rows(ctx, info.Name, first, n, *values); err != nil {
		return nil, err
	}
	if err := checkFinite(info.Name, first, cols, *values); err != nil {
		return nil, err
	}
	buf = grow(buf, n*info.RowBytes())
	dtype.EncodeF32(buf, *values)
	return buf, nil
}

// checkRange refuses rows that a tensor does not have.
func checkRange(info *gguf.TensorInfo, first, n int64) error {
	if first < 0 || n < 0 || first > info.Rows()-n {
		return fmt.Errorf("tensor %q: rows %d to %d of %d", info.Name, first, first+n, info.Rows())
	}
	return nil
}

// bothChanges are changes on top of others.
type bothChanges struct{ under, over Changes }

// Both are changes of a model that others have changed already; either may be nil.
func Both(under, over Changes) Changes {
	switch {
	case under == nil:
		return over
	case over == nil:
		return under
	}
	return &bothChanges{under, over}
}

func (b *bothChanges) Has(name string) bool { return b.over.Has(name) || b.under.Has(name) }

func (b *bothChanges) Rows(ctx context.Context, name string, first, n int64, dst []float32) error {
	if b.over.Has(name) {
		return b.over.Rows(ctx, name, first, n, dst)
	}
	return b.under.Rows(ctx, name, first, n, dst)
}
