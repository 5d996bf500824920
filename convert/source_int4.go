package convert

import (
	"context"
	"encoding/binary"
	"slices"
	"strings"

	"github.com/winnow-moe/winnow/formats/dtype"
	"github.com/winnow-moe/winnow/formats/gguf"
	"github.com/winnow-moe/winnow/quant"
)

// wordCodes is the number of 4-bit codes in a 32-bit word.
const wordCodes = 8

// int4 is a weight of 4-bit integers in rows, as compressed-tensors packs them
// (pack-quantized; Kimi K2 Thinking): X.weight_packed I32 [out, in/8] with the
// first of eight codes in the lowest bits, X.weight_scale [out, groups],
// X.weight_shape, and where the integers are not symmetric
// X.weight_zero_point I32 [out/8, groups], packed along the rows.
//
//	value = (code − zero) · scale, zero 8 when symmetric
type int4 struct {
	scale, zero, shape int   // zero is -1 when symmetric
	rows, cols, size   int64 // size: columns of a group
}

func (q *int4) String() string { return "INT4" }
func (q *int4) bits() int64    { return 4 }
func (q *int4) group() int64   { return 2 }

func (q *int4) parts() []int {
	if q.zero < 0 {
		return []int{q.scale, q.shape}
	}
	return []int{q.scale, q.shape, q.zero}
}

// exact: Q4_0 holds (code − 8) · scale, with a scale for each 32.
func (q *int4) exact() (gguf.Type, bool) {
	return gguf.Q4_0, q.zero < 0 && q.size%int64(gguf.Q4_0.BlockLen()) == 0
}

func (d *detector) int4(i int) (*weight, error) {
	s := &d.inv.Tensors[i]
	name, ok := strings.CutSuffix(s.Name, "_packed")
	if !ok || !d.is(i, dtype.I32) {
		return nil, nil
	}
	if len(s.Shape) != 2 {
		return nil, formatError("tensor %q has shape %v, wanted [out, in/%d]", s.Name, s.Shape, wordCodes)
	}
	if j, ok := d.inv.Lookup(name + "_g_idx"); ok {
		return nil, formatError("tensor %q: groups in the order of activations are not supported for packed weights", d.inv.Tensors[j].Name)
	}
	q := &int4{zero: -1, rows: s.Shape[0], cols: wordCodes * s.Shape[1]}
	var err error
	if q.scale, err = d.companion(s.Name, "scales", name+"_scale"); err != nil {
		return nil, err
	}
	if q.shape, err = d.companion(s.Name, "shape", name+"_shape"); err != nil {
		return nil, err
	}
	groups := d.inv.Tensors[q.scale].Cols()
	if err := d.check(q.scale, s.Name, []int64{q.rows, groups}, scaleTypes...); err != nil {
		return nil, err
	}
	if err := d.check(q.shape, s.Name, []int64{2}, dtype.I64, dtype.I32); err != nil {
		return nil, err
	}
	if q.size, err = d.groupSize(q.scale, s.Name, q.cols, groups); err != nil {
		return nil, err
	}
	if j, ok := d.inv.Lookup(name + "_zero_point"); ok {
		q.zero = j
		if err := d.check(j, s.Name, []int64{ceilDiv(q.rows, wordCodes), groups}, dtype.I32); err != nil {
			return nil, err
		}
	}
	return &weight{name, []int64{q.rows, q.cols}, familyInt4, q}, nil
}

// groupSize divides the columns of a weight among its groups.
func (d *detector) groupSize(scale int, of string, cols, groups int64) (int64, error) {
	s := &d.inv.Tensors[scale]
	if groups < 1 || cols%groups != 0 {
		return 0, formatError("tensor %q has shape %v: %q has %d columns, which are not %d equal groups", s.Name, s.Shape, of, cols, groups)
	}
	size := cols / groups
	if list := d.cfg.groups; len(list) > 0 && !slices.Contains(list, size) && (groups != 1 || !slices.Contains(list, -1)) {
		return 0, formatError("tensor %q has shape %v, groups of %d columns of %q, but config.json: quantization_config has group_size %s", s.Name, s.Shape, size, of, numbers(list))
	}
	return size, nil
}

// checkShape compares X.weight_shape with the tensor of codes.
func (q *int4) checkShape(ctx context.Context, rd *reader) error {
	v, err := rd.floats(ctx, q.shape, 2, 0, 1, 0, 2)
	if err != nil {
		return err
	}
	if int64(v[0]) != q.rows || int64(v[1]) != q.cols {
		return formatError("tensor %q says [%v %v], but the codes are for %v", rd.inv.Tensors[q.shape].Name, v[0], v[1], []int64{q.rows, q.cols})
	}
	return nil
}

// load reads the codes of a window and the scales of its rows.
func (q *int4) load(ctx context.Context, rd *reader, codes int, r0, r1, c0, c1 int64) (scales []float32, err error) {
	if r0 == 0 {
		if err := q.checkShape(ctx, rd); err != nil {
			return nil, err
		}
	}
	if rd.raw, err = rd.window(ctx, codes, rd.raw, q.cols/2, r0, r1, c0/2, c1/2); err != nil {
		return nil, err
	}
	groups := q.cols / q.size
	return rd.floats(ctx, q.scale, groups, r0, r1, 0, groups)
}

func (q *int4) read(ctx context.Context, rd *reader, codes int, r0, r1, c0, c1 int64, dst []float32) error {
	scales, err := q.load(ctx, rd, codes, r0, r1, c0, c1)
	if err != nil {
		return err
	}
	groups := q.cols / q.size
	if q.zero >= 0 {
		if rd.aux, err = rd.window(ctx, q.zero, rd.aux, 4*groups, r0/wordCodes, (r1-1)/wordCodes+1, 0, 4*groups); err != nil {
			return err
		}
	}
	w := c1 - c0
	for r := r0; r < r1; r++ {
		row, raw := dst[(r-r0)*w:(r-r0+1)*w], rd.raw[(r-r0)*w/2:(r-r0+1)*w/2]
		for c := c0; c < c1; {
			g := c / q.size
			end := min(c1, (g+1)*q.size)
			d, zero := scales[(r-r0)*groups+g], float32(8)
			if q.zero >= 0 {
				word := binary.LittleEndian.Uint32(rd.aux[4*((r/wordCodes-r0/wordCodes)*groups+g):])
				zero = float32(word >> (4 * (r % wordCodes)) & 15)
			}
			for ; c < end; c++ {
				i := c - c0
				row[i] = (float32(raw[i/2]>>(4*(i&1))&15) - zero) * d
			}
		}
	}
	return nil
}

// blocks writes Q4_0. A scale that half precision does not hold exactly makes
// its block like any other values.
func (q *int4) blocks(ctx context.Context, rd *reader, codes int, r0, r1 int64, dst []byte) error {
	scales, err := q.load(ctx, rd, codes, r0, r1, 0, q.cols)
	if err != nil {
		return err
	}
	block := int64(gguf.Q4_0.BlockLen())
	size := gguf.Q4_0.BlockBytes()
	for b := range (r1 - r0) * q.cols / block {
		d, raw, out := scales[b*block/q.size], rd.raw[b*block/2:(b+1)*block/2], dst[b*int64(size):(b+1)*int64(size)]
		if half := dtype.ToF16(d); dtype.FromF16(half) == d {
			binary.LittleEndian.PutUint16(out, half)
			regroup(out[2:], raw)
			continue
		}
		var x [32]float32
		for i := range x {
			x[i] = (float32(raw[i/2]>>(4*(i&1))&15) - 8) * d
		}
		if err := quant.EncodeRows(gguf.Q4_0, out, x[:], len(x), nil); err != nil {
			return err
		}
	}
	return nil
}
