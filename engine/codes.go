package engine

import (
	"context"
	"fmt"

	"github.com/winnow-moe/winnow/engine/kernel"
	"github.com/winnow-moe/winnow/quant"
)

// codes returns what takes rows of t apart; nil: they go to products as numbers.
func (t *tensor) codes() *quant.Unpacker {
	if t.factors != nil || kernel.Active().Few() == 0 {
		return nil
	}
	return quant.NewUnpacker(t.info.Type)
}

// coded is weights for a tensor whose rows are taken apart. If there are few
// tokens the weights refer to memory of the worker, or the model's.
func (m *Model) coded(ctx context.Context, w *worker, b int, t *tensor, u *quant.Unpacker, first, n, tokens int) (*kernel.Weights, error) {
	stride := int(t.info.RowBytes())
	raw, err := m.encoded(ctx, &w.coded[b], t, first, n)
	if err != nil {
		return nil, err
	}
	if len(raw) != n*stride {
		return nil, fmt.Errorf("tensor %q: %d rows have %d bytes, want %d", t.info.Name, n, len(raw), n*stride)
	}
	weights := &w.packed[b]
	read := func(c *kernel.Codes, row, rows, first, n int) {
		u.Unpack(c.Codes[:], c.Scales[:], c.Mins[:], raw[row*stride:], stride, rows, first, n)
	}
	if tokens <= kernel.Active().Few() {
		weights.KeepCodes(n, t.cols, u.Mins(), read)
	} else {
		weights.PackCodes(n, t.cols, u.Mins(), read)
	}
	return weights, nil
}
