package engine

import (
	"context"
	"fmt"
	"math"
	"math/rand/v2"
	"testing"

	"github.com/winnow-moe/winnow/engine/kernel"
	"github.com/winnow-moe/winnow/formats/gguf"
	"github.com/winnow-moe/winnow/quant"
)

// TestProductsOfTypes multiplies few and many tokens by encoded rows of every
// type that is written, and wants the bits of kernel.Dot with decoded rows.
func TestProductsOfTypes(t *testing.T) {
	const rows = 70
	rng := rand.New(rand.NewPCG(21, 12))
	normal := func(n int) []float32 {
		v := make([]float32, n)
		for i := range v {
			v[i] = float32(rng.NormFloat64())
		}
		return v
	}
	for typ := range gguf.Type(64) {
		c, ok := quant.Lookup(typ)
		if !ok || c.Encode == nil {
			continue
		}
		cols := 2 * 256
		if typ.BlockLen() <= 32 {
			cols += 3 * 32
		}
		weights := make([]float32, cols)
		for i := range weights {
			weights[i] = 1
		}
		decoded, encoded := normal(rows*cols), make([]byte, rows*typ.RowBytes(int64(cols)))
		if err := quant.EncodeRows(typ, encoded, decoded, cols, weights); err != nil {
			t.Fatal(err)
		}
		if err := quant.DecodeRows(typ, decoded, encoded); err != nil {
			t.Fatal(err)
		}
		m := &Model{src: &someTensors{data: [][]byte{encoded}, rows: rows}, opt: Options{Threads: 2}}
		m.workers.New = func() any { return new(worker) }
		w := &tensor{info: &gguf.TensorInfo{Name: "w", Type: typ, Shape: []int64{int64(cols), rows}}, rows: rows, cols: cols}
		for _, tokens := range []int{1, 2, 3, 4, 5, 7, 8, 31, 32, 33, 100} {
			x, dst := kernel.NewMatrix(normal(tokens*cols), tokens, cols), kernel.NewMatrix(make([]float32, tokens*rows), tokens, rows)
			if err := m.multiply(context.Background(), whole(w, x, dst)); err != nil {
				t.Fatal(err)
			}
			compareWithDot(t, fmt.Sprintf("%s, %d tokens", typ, tokens), dst, x, kernel.NewMatrix(decoded, rows, cols))
		}
	}
}

func compareWithDot(t *testing.T, what string, dst, x, w kernel.Matrix) {
	t.Helper()
	for i := range dst.Rows {
		for j, got := range dst.Row(i) {
			if want := kernel.Dot(x.Row(i), w.Row(j)); math.Float32bits(got) != math.Float32bits(want) {
				t.Fatalf("%s: element %d,%d is %g, kernel.Dot gives %g", what, i, j, got, want)
			}
		}
	}
}
