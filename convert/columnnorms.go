package convert

import (
	"context"
	"fmt"
	"slices"

	"github.com/winnow-moe/winnow/convert/experts"
	"github.com/winnow-moe/winnow/formats/arch"
	"github.com/winnow-moe/winnow/formats/gguf"
	"github.com/winnow-moe/winnow/quant"
)

// normRows is how many rows are decoded at a time.
const normRows = 256

// DownNorms reads the experts' down projections of a model and returns, for every
// block asked for, Σ_i W[i,j]² of their columns j, expert after expert.
func DownNorms(m gguf.Model) experts.ColumnNorms {
	list := m.Tensors()
	return func(ctx context.Context, block int) ([]float64, error) {
		name := arch.Name{Layer: block, Role: arch.ExpertDown, Suffix: "weight"}.String()
		i := slices.IndexFunc(list, func(t gguf.TensorInfo) bool { return t.Name == name })
		if i < 0 || len(list[i].Shape) != 3 {
			return nil, formatError("tensor %q is missing or not a stack of matrices", name)
		}
		defer m.Release(i)
		out, err := columnNorms(ctx, m, i)
		if err != nil {
			return nil, fmt.Errorf("tensor %q: %w", name, err)
		}
		return out, nil
	}
}

// columnNorms computes the norms of tensor i, a stack of matrices.
func columnNorms(ctx context.Context, m gguf.Model, i int) ([]float64, error) {
	info := &m.Tensors()[i]
	codec, ok := quant.Lookup(info.Type)
	if !ok || codec.Decode == nil {
		return nil, formatError("type %s cannot be read", info.Type)
	}
	cols, rows, matrices := int(info.Shape[0]), info.Shape[1], info.Shape[2]
	out := make([]float64, int(matrices)*cols)
	values := make([]float32, normRows*cols)
	buf := make([]byte, normRows*info.RowBytes())
	for e := range matrices {
		sums := out[int(e)*cols:][:cols]
		for first := int64(0); first < rows; first += normRows {
			n := min(normRows, rows-first)
			raw, err := m.Rows(ctx, i, e*rows+first, n, buf)
			if err != nil {
				return nil, err
			}
			codec.Decode(values[:int(n)*cols], raw)
			for k, v := range values[:int(n)*cols] {
				sums[k%cols] += float64(float64(v) * float64(v))
			}
		}
	}
	return out, nil
}
