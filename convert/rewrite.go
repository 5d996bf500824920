package convert

import (
	"cmp"
	"context"
	"encoding/binary"
	"math"
	"runtime"
	"slices"

	"github.com/winnow-moe/winnow/formats/arch"
	"github.com/winnow-moe/winnow/formats/dtype"
	"github.com/winnow-moe/winnow/formats/gguf"
	"github.com/winnow-moe/winnow/formats/safetensors"
	"github.com/winnow-moe/winnow/quant"
)

// A checkpoint's weights that Changes compute are written in the form in which
// the checkpoint has them. The way from a GGUF tensor's rows to the checkpoint's
// tensor is that of the pieces which make the GGUF tensor, backwards.

// patch puts rows of a GGUF tensor into a tensor of a checkpoint.
type patch struct {
	name  string // of the GGUF tensor
	first int64  // its row with which the piece starts
	piece Piece
}

// patches finds out which tensors of the checkpoint changes reach, and how.
func (f *folderPlan) patches(changes Changes) (map[int][]patch, error) {
	if changes == nil {
		return nil, nil
	}
	out := map[int][]patch{}
	for i := range f.c.tensors {
		t := &f.c.tensors[i]
		if !changes.Has(t.Name) || f.drops(f.tensors[t.Name].Name.Layer) {
			continue
		}
		if t.Order != nil || t.Op != arch.OpNone {
			return nil, notInFolder(t.Name, "has other elements, or in another order, than in a GGUF file")
		}
		row := int64(0)
		for _, p := range t.Pieces {
			if err := f.checkPatch(t, &p); err != nil {
				return nil, err
			}
			out[p.Source] = append(out[p.Source], patch{t.Name, row, p})
			row += p.rows(f.c.inv)
		}
	}
	return out, nil
}

// checkPatch refuses pieces that are not put back, and forms of weights that are
// not encoded.
func (f *folderPlan) checkPatch(t *Tensor, p *Piece) error {
	s := &f.c.inv.Tensors[p.Source]
	if p.Mode != arch.CutRows && p.Mode != arch.CutTransposed {
		return notInFolder(t.Name, "has its rows in another order than in a GGUF file")
	}
	if packed, ok := s.packed.(*scaled); ok && packed.elements == dtype.F8E4M3 {
		if n := f.rowsPerExpert(p.Source); n < s.Rows() && n%packed.blockRows != 0 {
			return notInFolder(t.Name, "has scales that are those of several experts")
		}
		return nil
	}
	if _, ok := s.Storage.blocks(); s.packed != nil || s.computed() || !ok {
		return notInFolder(t.Name, "is stored as "+s.format()+", in which weights are not encoded anew")
	}
	return nil
}

func notInFolder(name, why string) error {
	return hinted("write a GGUF file: --type", refused("tensor %q of the checkpoint %s", name, why))
}

// rowsPerExpert is how many rows of a tensor belong to one expert, all of them
// where they are of one matrix.
func (f *folderPlan) rowsPerExpert(source int) int64 {
	s := &f.c.inv.Tensors[source]
	if at, ok := f.stacked[source]; ok && at.axis == 0 && len(s.Shape) > 1 {
		return s.Rows() / int64(f.keep.Experts)
	}
	return s.Rows()
}

// noteChanged tells which weights are encoded anew.
func (p *FolderPlan) noteChanged(c *Checkpoint) {
	n := 0
	for i := range p.tensors {
		if t := &p.tensors[i]; t.patches != nil && c.inv.Tensors[t.source].packed != nil {
			n++
		}
	}
	if n > 0 {
		p.Notes = append(p.Notes, plural(n, "%d tensor", "%d tensors")+" in F8_E4M3 may change; what differs is encoded anew, with new scales")
	}
}

// addPatches marks the tensors of the folder that are rewritten. Scales are
// written with their weights.
func (p *FolderPlan) addPatches(f *folderPlan, patches map[int][]patch) {
	if len(patches) == 0 {
		return
	}
	at := make(map[int]int, len(p.tensors))
	for i := range p.tensors {
		at[p.tensors[i].source] = i
	}
	for i := range p.tensors {
		t := &p.tensors[i]
		if t.patches = patches[t.source]; t.patches == nil {
			continue
		}
		t.chunk = f.rowsPerExpert(t.source)
		if packed, ok := f.c.inv.Tensors[t.source].packed.(*scaled); ok {
			t.scale = at[packed.scale]
			p.tensors[t.scale].withWeight = true
		}
	}
}

// rewriteBytes is what a rewriter holds per element of a matrix: what there was
// and what there is to be in float32, and in the form of the checkpoint.
const rewriteBytes = 12

// workers is how many tensors are written at a time.
func (p *FolderPlan) workers(c *Checkpoint, opt RunOptions) int64 {
	largest := int64(0)
	for i := range p.tensors {
		if t := &p.tensors[i]; t.patches != nil {
			largest = max(largest, t.chunk*c.inv.Tensors[t.source].Cols())
		}
	}
	if largest == 0 {
		return 1
	}
	threads := cmp.Or(max(0, opt.Threads), runtime.GOMAXPROCS(0))
	budget := cmp.Or(max(0, opt.MaxMemory), DefaultMaxMemory) - baseMemory
	return max(1, min(int64(threads), budget/(largest*rewriteBytes+copyBytes)))
}

// rewriter writes tensors of a folder: changed ones the matrix of one expert at a
// time, others as they are.
type rewriter struct {
	plan   *FolderPlan
	c      *Checkpoint
	w      *safetensors.Writer
	rd     reader
	was    []float32 // what the checkpoint has
	values []float32 // what it is to have
	rows   []float32 // of a GGUF tensor
	raw    []byte
	scales []byte
}

// copyBytes are copied at a time.
const copyBytes = 4 << 20

// write writes what stays of tensor i.
func (r *rewriter) write(ctx context.Context, i int) error {
	switch t := &r.plan.tensors[i]; {
	case t.patches != nil:
		return r.tensor(ctx, i)
	case t.withWeight:
		return nil
	}
	return r.copy(ctx, i)
}

// copy copies what stays of tensor i.
func (r *rewriter) copy(ctx context.Context, i int) error {
	t, out := &r.plan.tensors[i], int64(0)
	r.raw = grow(r.raw, copyBytes)
	for _, s := range t.parts {
		for at := int64(0); at < s.n; {
			b := r.raw[:min(copyBytes, s.n-at)]
			if err := r.c.ReadAt(ctx, t.source, s.off+at, b); err != nil {
				return err
			}
			if err := r.w.WriteAt(i, out, b); err != nil {
				return err
			}
			at, out = at+int64(len(b)), out+int64(len(b))
		}
	}
	return nil
}

// tensor writes changed tensor i, and its scales if it has some.
func (r *rewriter) tensor(ctx context.Context, i int) error {
	t := &r.plan.tensors[i]
	s := &r.c.inv.Tensors[t.source]
	cols := s.Cols()
	for r0 := int64(0); r0 < s.Rows(); r0 += t.chunk {
		if !t.keeps(s.bytes(r0*cols), s.bytes(t.chunk*cols)) {
			continue
		}
		if err := r.fill(ctx, t, r0); err != nil {
			return err
		}
		write := r.floats
		if s.packed != nil {
			write = r.scaled
		}
		if err := write(ctx, i, r0); err != nil {
			return err
		}
	}
	return nil
}

// fill sets values to those of a chunk of rows from r0 on.
func (r *rewriter) fill(ctx context.Context, t *folderTensor, r0 int64) error {
	cols := r.c.inv.Tensors[t.source].Cols()
	r.was = grow(r.was, t.chunk*cols)
	if err := r.rd.read(ctx, t.source, r0, r0+t.chunk, 0, cols, r.was); err != nil {
		return err
	}
	r.values = append(r.values[:0], r.was...)
	for i := range t.patches {
		put := r.putRows
		if t.patches[i].piece.Mode == arch.CutTransposed {
			put = r.putColumns
		}
		if err := put(ctx, &t.patches[i], r0, t.chunk, cols); err != nil {
			return err
		}
	}
	return nil
}

// putRows puts rows of a GGUF tensor that are rows of the chunk in their places.
func (r *rewriter) putRows(ctx context.Context, e *patch, r0, chunk, cols int64) error {
	p := &e.piece
	step, n := max(1, p.Step), p.cols(r.c.inv)
	end := min(p.Count, ceilDiv(max(0, r0+chunk-p.Start), step))
	for k := ceilDiv(max(0, r0-p.Start), step); k < end; {
		m := min(end-k, max(1, maxUnit/n))
		if err := r.load(ctx, e, k, m, n); err != nil {
			return err
		}
		for i := range m {
			at := (p.Start+(k+i)*step-r0)*cols + p.Column
			for j, v := range r.rows[i*n : (i+1)*n] {
				r.values[at+int64(j)*max(1, p.ColumnStep)] = v
			}
		}
		k += m
	}
	return nil
}

// putColumns puts rows of a GGUF tensor that are columns of the chunk in their places.
func (r *rewriter) putColumns(ctx context.Context, e *patch, r0, chunk, cols int64) error {
	p := &e.piece
	step := max(1, p.Step)
	if p.Start >= r0+chunk || p.Start+(p.Count-1)*step < r0 {
		return nil
	}
	for k, end := int64(0), p.cols(r.c.inv); k < end; {
		m := min(end-k, max(1, maxUnit/p.Count))
		if err := r.load(ctx, e, k, m, p.Count); err != nil {
			return err
		}
		for i := range p.Count {
			row := p.Start + i*step - r0
			if row < 0 || row >= chunk {
				continue
			}
			at := row*cols + p.Column
			for j := range m {
				r.values[at+(k+j)*max(1, p.ColumnStep)] = r.rows[j*p.Count+i]
			}
		}
		k += m
	}
	return nil
}

// load computes n rows of a GGUF tensor, from row k of an patch's piece on.
func (r *rewriter) load(ctx context.Context, e *patch, k, n, cols int64) error {
	r.rows = grow(r.rows, n*cols)
	if err := r.plan.changes.Rows(ctx, e.name, e.first+k, n, r.rows); err != nil {
		return err
	}
	return checkFinite(e.name, e.first+k, cols, r.rows)
}

// floats writes values as elements of a floating point type.
func (r *rewriter) floats(_ context.Context, i int, r0 int64) error {
	s := &r.c.inv.Tensors[r.plan.tensors[i].source]
	typ, _ := s.Storage.blocks()
	cols := s.Cols()
	r.raw = grow(r.raw, s.bytes(int64(len(r.values))))
	if err := quant.EncodeRows(typ, r.raw, r.values, int(cols), nil); err != nil {
		return formatError("tensor %q: %v", s.Name, err)
	}
	if err := quant.Validate(typ, r.raw, int(typ.RowBytes(cols))); err != nil {
		return rangeError(s.Name, typ, err)
	}
	return r.plan.writeParts(r.w, i, s.bytes(r0*cols), r.raw)
}

func rangeError(name string, typ gguf.Type, err error) error {
	return formatError("tensor %q does not fit the range of %s: %v", name, typ, err)
}

// scaled writes values as 8-bit floats with scales. Blocks whose values are the
// checkpoint's keep their bytes.
func (r *rewriter) scaled(ctx context.Context, i int, r0 int64) error {
	t := &r.plan.tensors[i]
	s := &r.c.inv.Tensors[t.source]
	p, cols := s.packed.(*scaled), s.Cols()
	r.raw = grow(r.raw, t.chunk*cols)
	if err := r.c.ReadAt(ctx, t.source, r0*cols, r.raw); err != nil {
		return err
	}
	scale := r.c.inv.Tensors[p.scale].Storage.DType
	size := int64(scale.Bits() / 8)
	perRow, g0 := ceilDiv(cols, p.blockCols), r0/p.blockRows
	r.scales = grow(r.scales, ceilDiv(t.chunk, p.blockRows)*perRow*size)
	if err := r.c.ReadAt(ctx, p.scale, g0*perRow*size, r.scales); err != nil {
		return err
	}
	for a := int64(0); a < t.chunk; a += p.blockRows {
		for c := int64(0); c < cols; c += p.blockCols {
			b := block{a, min(t.chunk, a+p.blockRows), c, min(cols, c+p.blockCols), cols}
			at := (a/p.blockRows*perRow + c/p.blockCols) * size
			if err := r.encodeBlock(b, scale, r.scales[at:at+size]); err != nil {
				return formatError("tensor %q: %v", s.Name, err)
			}
		}
	}
	if err := r.plan.writeParts(r.w, t.scale, g0*perRow*size, r.scales); err != nil {
		return err
	}
	return r.plan.writeParts(r.w, i, r0*cols, r.raw)
}

// block is rows [r0,r1) and columns [c0,c1) of a matrix.
type block struct{ r0, r1, c0, c1, cols int64 }

// rows calls do with the range of every row.
func (b block) rows(do func(from, to int64)) {
	for r := b.r0; r < b.r1; r++ {
		do(r*b.cols+b.c0, r*b.cols+b.c1)
	}
}

// encodeBlock encodes the values of a block that has changed:
//
//	scale = max |v| / 448 rounded to its own type      code = E4M3(v / scale)
//
// in float32, to nearest even. With max |v| = 448 · scale no code is out of range but
// where the scale was rounded down; there it is the largest code.
func (r *rewriter) encodeBlock(b block, typ dtype.Type, scale []byte) error {
	same, largest := true, float32(0)
	b.rows(func(from, to int64) {
		same = same && slices.Equal(r.values[from:to], r.was[from:to])
		for _, v := range r.values[from:to] {
			largest = max(largest, float32(math.Abs(float64(v))))
		}
	})
	if same {
		return nil
	}
	f, err := encodeScale(typ, scale, largest/dtype.MaxF8E4M3)
	if err != nil {
		return err
	}
	b.rows(func(from, to int64) {
		for i := from; i < to; i++ {
			r.raw[i] = dtype.ToF8E4M3(r.values[i] / f)
		}
	})
	return nil
}

// encodeScale writes a scale and returns the number written: 1 for 0, which
// nothing can be divided by, and the smallest number for one that is smaller.
func encodeScale(typ dtype.Type, dst []byte, scale float32) (float32, error) {
	if scale == 0 {
		scale = 1
	}
	switch typ {
	case dtype.F32:
		dtype.EncodeF32(dst, []float32{scale})
		return scale, nil
	case dtype.BF16:
		binary.LittleEndian.PutUint16(dst, max(1, dtype.ToBF16(scale)))
	default:
		binary.LittleEndian.PutUint16(dst, max(1, dtype.ToF16(scale)))
	}
	var out [1]float32
	if err := dtype.Decode(typ, out[:], dst); err != nil {
		return 0, err
	}
	if !quant.AllFinite(out[:]) {
		return 0, formatError("the scale %g is beyond the range of %s", scale, typ)
	}
	return out[0], nil
}

// keeps reports whether any of n bytes of the tensor's source from off on stay.
func (t *folderTensor) keeps(off, n int64) bool {
	for _, s := range t.parts {
		if s.off < off+n && off < s.off+s.n {
			return true
		}
	}
	return false
}

// writeParts writes what stays of the bytes of tensor i's source from off on.
func (p *FolderPlan) writeParts(w *safetensors.Writer, i int, off int64, b []byte) error {
	out := int64(0)
	for _, s := range p.tensors[i].parts {
		from, to := max(s.off, off), min(s.off+s.n, off+int64(len(b)))
		if from < to {
			if err := w.WriteAt(i, out+from-s.off, b[from-off:to-off]); err != nil {
				return err
			}
		}
		out += s.n
	}
	return nil
}
