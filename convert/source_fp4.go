package convert

import (
	"context"
	"slices"
	"strings"

	"github.com/winnow-moe/winnow/formats/dtype"
	"github.com/winnow-moe/winnow/formats/gguf"
	"github.com/winnow-moe/winnow/quant"
)

// The 4-bit floats (E2M1). Checkpoints pack two neighbours into a byte, the
// first in the low half; ggml's blocks have element j and the one half a group
// further in byte j. Getting from one to the other only moves bits.

// tableE2M1 holds the value of each code (OCP Microscaling Formats 1.0, §5.3.3).
var tableE2M1 = [16]float32{0, 0.5, 1, 1.5, 2, 3, 4, 6, 0, -0.5, -1, -1.5, -2, -3, -4, -6}

// regroup turns pairs of neighbours into pairs half a group apart.
func regroup(dst, src []byte) {
	half := len(src) / 2
	low, high := src[:half], src[half:][:half]
	for j := range low {
		dst[2*j] = low[j]&15 | high[j]<<4
		dst[2*j+1] = low[j]>>4 | high[j]&0xf0
	}
}

const (
	groupMXFP4 = 32 // elements of an E8M0 scale
	groupNVFP4 = 16 // elements of an E4M3 scale
	superNVFP4 = 64 // elements of ggml's block
)

// mxfp4 is a weight of groups of 32 codes with a power of two as scale. The
// values are those of ggml's MXFP4.
//
//	gpt-oss              X_blocks U8 [E, out, in/32, 16], X_scales U8 [E, out, in/32]
//	compressed-tensors   X.weight_packed U8 [out, in/2], X.weight_scale U8 [out, in/32]
//	DeepSeek V4          X.weight I8 [out, in/2], X.scale F8_E8M0 [out, in/32]
type mxfp4 struct {
	scale int
	cols  int64
}

func (m *mxfp4) String() string           { return "MXFP4" }
func (m *mxfp4) bits() int64              { return 4 }
func (m *mxfp4) parts() []int             { return []int{m.scale} }
func (m *mxfp4) group() int64             { return groupMXFP4 }
func (m *mxfp4) exact() (gguf.Type, bool) { return gguf.MXFP4, true }

// mxfp4Blocks detects gpt-oss's form.
func (d *detector) mxfp4Blocks(i int) (*weight, error) {
	s := &d.inv.Tensors[i]
	name, ok := strings.CutSuffix(s.Name, "_blocks")
	if !ok || !d.is(i, dtype.U8) {
		return nil, nil
	}
	n := len(s.Shape)
	if n < 3 || s.Shape[n-1] != groupMXFP4/2 {
		return nil, formatError("tensor %q has shape %v, wanted [.., rows, groups, %d]", s.Name, s.Shape, groupMXFP4/2)
	}
	j, err := d.companion(s.Name, "scales", name+"_scales")
	if err != nil {
		return nil, err
	}
	if err := d.check(j, s.Name, s.Shape[:n-1], dtype.U8); err != nil {
		return nil, err
	}
	cols := s.Shape[n-2] * groupMXFP4
	return &weight{name, append(slices.Clone(s.Shape[:n-2]), cols), familyMXFP4, &mxfp4{j, cols}}, nil
}

// mxfp4Packed detects the two forms with rows of bytes.
func (d *detector) mxfp4Packed(i int) (*weight, error) {
	s := &d.inv.Tensors[i]
	name, scale, packed, scales := s.Name, "", dtype.I8, dtype.F8E8M0
	if base, ok := strings.CutSuffix(s.Name, "_packed"); ok {
		name, scale, packed, scales = base, base+"_scale", dtype.U8, dtype.U8
	} else if base, ok := strings.CutSuffix(s.Name, "weight"); ok {
		scale = base + "scale"
	}
	j, ok := d.inv.Lookup(scale)
	if !ok || len(s.Shape) != 2 || !d.is(i, packed) || !d.is(j, scales) {
		return nil, nil
	}
	cols := 2 * s.Shape[1]
	if err := d.check(j, s.Name, []int64{s.Shape[0], ceilDiv(cols, groupMXFP4)}, scales); err != nil {
		return nil, err
	}
	if cols%groupMXFP4 != 0 {
		return nil, formatError("tensor %q has rows of %d codes, wanted a multiple of %d", s.Name, cols, groupMXFP4)
	}
	return &weight{name, []int64{s.Shape[0], cols}, familyMXFP4, &mxfp4{j, cols}}, nil
}

// load reads the codes and scales of a window of whole groups.
func (m *mxfp4) load(ctx context.Context, rd *reader, codes int, r0, r1, c0, c1 int64) (err error) {
	if rd.raw, err = rd.window(ctx, codes, rd.raw, m.cols/2, r0, r1, c0/2, c1/2); err != nil {
		return err
	}
	rd.aux, err = rd.window(ctx, m.scale, rd.aux, m.cols/groupMXFP4, r0, r1, c0/groupMXFP4, c1/groupMXFP4)
	return err
}

func (m *mxfp4) blocks(ctx context.Context, rd *reader, codes int, r0, r1 int64, dst []byte) error {
	return m.pack(ctx, rd, codes, r0, r1, 0, m.cols, dst)
}

// pack writes the blocks of a window.
func (m *mxfp4) pack(ctx context.Context, rd *reader, codes int, r0, r1, c0, c1 int64, dst []byte) error {
	if err := m.load(ctx, rd, codes, r0, r1, c0, c1); err != nil {
		return err
	}
	size := gguf.MXFP4.BlockBytes()
	for g, e := range rd.aux {
		if e == 0xff {
			groups := (c1 - c0) / groupMXFP4
			return formatError("tensor %q: the scale of row %d, column %d is not a number", rd.inv.Tensors[m.scale].Name, r0+int64(g)/groups, c0/groupMXFP4+int64(g)%groups)
		}
		block := dst[g*size : (g+1)*size]
		block[0] = e
		regroup(block[1:], rd.raw[g*groupMXFP4/2:(g+1)*groupMXFP4/2])
	}
	return nil
}

func (m *mxfp4) read(ctx context.Context, rd *reader, codes int, r0, r1, c0, c1 int64, dst []float32) error {
	n := (r1 - r0) * (c1 - c0)
	rd.codes = grow(rd.codes, gguf.MXFP4.RowBytes(n))
	if err := m.pack(ctx, rd, codes, r0, r1, c0, c1, rd.codes); err != nil {
		return err
	}
	return quant.DecodeRows(gguf.MXFP4, dst[:n], rd.codes)
}

// nvfp4 is a weight of groups of 16 codes with an E4M3 scale, and one float32
// for the whole weight.
//
//	ModelOpt             X.weight U8 [out, in/2], X.weight_scale, X.weight_scale_2
//	compressed-tensors   X.weight_packed, X.weight_scale, X.weight_global_scale, which divides
//
// ggml's NVFP4 holds codes and scales; llama.cpp has the float32 in a tensor
// beside, "….scale", that it multiplies the product with (conversion/base.py,
// _repack_nvfp4).
type nvfp4 struct {
	scale, global int // global is -1 where there is none
	divides       bool
	rows, cols    int64
	factor        float32 // of the whole weight, read by loadFactors
}

func (v *nvfp4) String() string           { return "NVFP4" }
func (v *nvfp4) bits() int64              { return 4 }
func (v *nvfp4) group() int64             { return groupNVFP4 }
func (v *nvfp4) exact() (gguf.Type, bool) { return gguf.NVFP4, v.cols%superNVFP4 == 0 }

func (v *nvfp4) parts() []int {
	if v.global < 0 {
		return []int{v.scale}
	}
	return []int{v.scale, v.global}
}

// nvfp4 detects both forms.
func (d *detector) nvfp4(i int) (*weight, error) {
	s := &d.inv.Tensors[i]
	name, packed := strings.CutSuffix(s.Name, "_packed")
	j, ok := d.inv.Lookup(name + "_scale")
	if !ok || len(s.Shape) != 2 || !d.is(i, dtype.U8) || !d.is(j, dtype.F8E4M3) {
		return nil, nil
	}
	v := &nvfp4{scale: j, global: -1, divides: packed, rows: s.Shape[0], cols: 2 * s.Shape[1], factor: 1}
	if err := d.check(j, s.Name, []int64{v.rows, ceilDiv(v.cols, groupNVFP4)}, dtype.F8E4M3); err != nil {
		return nil, err
	}
	if v.cols%groupNVFP4 != 0 {
		return nil, formatError("tensor %q has rows of %d codes, wanted a multiple of %d", s.Name, v.cols, groupNVFP4)
	}
	global := name + "_scale_2"
	if packed {
		global = name + "_global_scale"
	}
	if k, ok := d.inv.Lookup(global); ok {
		g := &d.inv.Tensors[k]
		if !d.is(k, dtype.F32) || g.Rows()*g.Cols() != 1 {
			return nil, formatError("tensor %q is %s %v, wanted one F32", g.Name, g.Storage, g.Shape)
		}
		v.global = k
	}
	return &weight{name, []int64{v.rows, v.cols}, familyNVFP4, v}, nil
}

// loadFactors reads the float32 of every NVFP4 weight: they decide which
// tensors a file has.
func loadFactors(ctx context.Context, inv *Inventory, data Data) error {
	rd := &reader{inv: inv, data: data}
	for i := range inv.Tensors {
		v, ok := inv.Tensors[i].packed.(*nvfp4)
		if !ok || v.global < 0 {
			continue
		}
		f, err := rd.floats(ctx, v.global, 1, 0, 1, 0, 1)
		if err != nil {
			return err
		}
		if v.factor = f[0]; v.divides {
			v.factor = 1 / f[0]
		}
		if !(v.factor > 0) || v.factor-v.factor != 0 {
			return formatError("tensor %q is %g, wanted a positive number", inv.Tensors[v.global].Name, f[0])
		}
	}
	return nil
}

// load reads the codes and scales of a window of whole groups. A scale has no
// sign in ggml's type, and the pattern for NaN means 0 there.
func (v *nvfp4) load(ctx context.Context, rd *reader, codes int, r0, r1, c0, c1 int64) (err error) {
	if rd.raw, err = rd.window(ctx, codes, rd.raw, v.cols/2, r0, r1, c0/2, c1/2); err != nil {
		return err
	}
	if rd.aux, err = rd.window(ctx, v.scale, rd.aux, v.cols/groupNVFP4, r0, r1, c0/groupNVFP4, c1/groupNVFP4); err != nil {
		return err
	}
	for g, e := range rd.aux {
		if e >= 0x7f && e != 0x80 {
			groups := (c1 - c0) / groupNVFP4
			return formatError("tensor %q: the scale of row %d, column %d is %v, wanted a positive number",
				rd.inv.Tensors[v.scale].Name, r0+int64(g)/groups, c0/groupNVFP4+int64(g)%groups, dtype.FromF8E4M3(e))
		}
	}
	return nil
}

func (v *nvfp4) blocks(ctx context.Context, rd *reader, codes int, r0, r1 int64, dst []byte) error {
	if err := v.load(ctx, rd, codes, r0, r1, 0, v.cols); err != nil {
		return err
	}
	const perBlock = superNVFP4 / groupNVFP4
	raw, scales := rd.raw, rd.aux
	for size := gguf.NVFP4.BlockBytes(); len(dst) >= size; dst = dst[size:] {
		for g, e := range scales[:perBlock] {
			dst[g] = e & 0x7f
			regroup(dst[perBlock+g*groupNVFP4/2:], raw[g*groupNVFP4/2:(g+1)*groupNVFP4/2])
		}
		raw, scales = raw[superNVFP4/2:], scales[perBlock:]
	}
	return nil
}

// read multiplies the two scales first, as ModelOpt and compressed-tensors do.
func (v *nvfp4) read(ctx context.Context, rd *reader, codes int, r0, r1, c0, c1 int64, dst []float32) error {
	if err := v.load(ctx, rd, codes, r0, r1, c0, c1); err != nil {
		return err
	}
	for g, e := range rd.aux {
		d := dtype.FromF8E4M3(e) * v.factor
		out := dst[g*groupNVFP4 : (g+1)*groupNVFP4]
		for j, b := range rd.raw[g*groupNVFP4/2 : (g+1)*groupNVFP4/2] {
			out[2*j], out[2*j+1] = tableE2M1[b&15]*d, tableE2M1[b>>4]*d
		}
	}
	return nil
}
