package convert

import (
	"context"
	"slices"

	"github.com/winnow-moe/winnow/formats/dtype"
)

// scaled is a weight of 8-bit elements with scales: one for all (per tensor),
// one per row (per channel), or one for each block of rows and columns.
//
//	DeepSeek, Kimi, Qwen       X.weight, X.weight_scale_inv   blocks (quant_method fp8)
//	compressed-tensors         X.weight, X.weight_scale       [1], [out, 1] or blocks
//	FBGEMM                     X.weight, X.weight_scale       [out] or [out, 1]
//
// All three multiply. Element (r, c) is the stored value times scale
// (r / blockRows, c / blockCols); blocks are counted from the top left, and
// those at the edges are partial.
type scaled struct {
	elements             dtype.Type
	scale                int // tensor of scales
	blockRows, blockCols int64
	cols                 int64 // of the weight
}

func (s *scaled) String() string { return s.elements.String() }
func (s *scaled) bits() int64    { return int64(s.elements.Bits()) }
func (s *scaled) parts() []int   { return []int{s.scale} }
func (s *scaled) group() int64   { return 1 }

// scaled detects weights of 8-bit elements.
func (d *detector) scaled(i int) (*weight, error) {
	s := &d.inv.Tensors[i]
	names := []string{s.Name + "_scale_inv", s.Name + "_scale"}
	if d.is(i, dtype.I8) {
		if _, ok := d.inv.Lookup(names[1]); !ok {
			return nil, nil
		}
	} else if !d.is(i, dtype.F8E4M3, dtype.F8E5M2) {
		return nil, nil
	}
	j, err := d.companion(s.Name, "scales", names...)
	if err != nil {
		return nil, err
	}
	p := &scaled{elements: s.Storage.DType, scale: j, cols: s.Cols()}
	if p.blockRows, p.blockCols, err = d.scaleBlock(s, &d.inv.Tensors[j]); err != nil {
		return nil, err
	}
	return &weight{s.Name, s.Shape, familyScaled, p}, nil
}

// scaleBlock returns the size of the block that each scale is for. The shape of
// a grid does not tell, because its last blocks may be partial: config.json does.
func (d *detector) scaleBlock(s, scale *Source) (rows, cols int64, err error) {
	if !slices.Contains(scaleTypes, scale.Storage.DType) {
		return 0, 0, formatError("tensor %q: scales are %s, wanted %s", scale.Name, scale.Storage, typeNames(scaleTypes))
	}
	block := d.cfg.block
	if block[0] > 0 {
		want := []int64{ceilDiv(s.Rows(), block[0]), ceilDiv(s.Cols(), block[1])}
		if !slices.Equal(scale.Shape, want) {
			return 0, 0, formatError("tensor %q has shape %v; %q %v in blocks of %v needs %v", scale.Name, scale.Shape, s.Name, s.Shape, block, want)
		}
		return block[0], block[1], nil
	}
	n := scale.Rows() * scale.Cols()
	switch {
	case n == 1:
		return s.Rows(), s.Cols(), nil
	case n == s.Rows() && (len(scale.Shape) == 1 || scale.Cols() == 1):
		return 1, s.Cols(), nil
	}
	return 0, 0, formatError("tensor %q has shape %v, which is neither one scale nor one for each of the %d rows of %q; for blocks, config.json has no quantization_config.weight_block_size",
		scale.Name, scale.Shape, s.Rows(), s.Name)
}

// read multiplies in float32 as DeepSeek's own kernel (inference/kernel.py,
// weight_dequant).
func (s *scaled) read(ctx context.Context, rd *reader, codes int, r0, r1, c0, c1 int64, dst []float32) error {
	var err error
	if rd.raw, err = rd.window(ctx, codes, rd.raw, s.cols, r0, r1, c0, c1); err != nil {
		return err
	}
	w := c1 - c0
	if err := dtype.Decode(s.elements, dst[:(r1-r0)*w], rd.raw); err != nil {
		return err
	}
	gw, g0 := ceilDiv(s.cols, s.blockCols), r0/s.blockRows
	scales, err := rd.floats(ctx, s.scale, gw, g0, (r1-1)/s.blockRows+1, 0, gw)
	if err != nil {
		return err
	}
	for r := r0; r < r1; r++ {
		row := dst[(r-r0)*w : (r-r0+1)*w]
		factors := scales[(r/s.blockRows-g0)*gw:][:gw]
		for c := c0; c < c1; {
			end := min(c1, (c/s.blockCols+1)*s.blockCols)
			f := factors[c/s.blockCols]
			for i := range row[c-c0 : end-c0] {
				row[c-c0+int64(i)] *= f
			}
			c = end
		}
	}
	return nil
}
