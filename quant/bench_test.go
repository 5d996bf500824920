package quant

import (
	"math/rand/v2"
	"testing"

	"github.com/winnow-moe/winnow/formats/gguf"
)

// benchRow is the row length of the benchmarks: that of the models of note.
const benchRow = 4096

// gauss returns a row like a weight matrix has, and weights like an
// importance matrix has.
func gauss(n int) (x, w []float32) {
	r := rand.New(rand.NewPCG(1, 2))
	x, w = make([]float32, n), make([]float32, n)
	for i := range x {
		x[i], w[i] = float32(r.NormFloat64()*0.02), float32(r.ExpFloat64())
	}
	return x, w
}

// BenchmarkEncode counts source bytes (4 per weight) and reports millions of
// weights per second.
func BenchmarkEncode(b *testing.B) {
	x, w := gauss(benchRow)
	for i := range codecs {
		c := &codecs[i]
		if c.Encode == nil {
			continue
		}
		dst := make([]byte, c.Type.RowBytes(benchRow))
		if !c.NeedsWeights {
			bench(b, c.Type.String()+"/4096", func() { c.Encode(dst, x, nil) })
		}
		if c.UsesWeights {
			bench(b, c.Type.String()+"/4096+weights", func() { c.Encode(dst, x, w) })
		}
		if c.thorough != nil {
			bench(b, c.Type.String()+"/4096+thorough", func() { ThoroughSearch.EncodeRows(c.Type, dst, x, benchRow, nil) })
			bench(b, c.Type.String()+"/4096+weights+thorough", func() { ThoroughSearch.EncodeRows(c.Type, dst, x, benchRow, w) })
		}
	}
}

// BenchmarkDecode counts decoded bytes of DecodeRows.
func BenchmarkDecode(b *testing.B) {
	x, w := gauss(benchRow)
	for i := range codecs {
		c := &codecs[i]
		src := make([]byte, c.Type.RowBytes(benchRow))
		if c.Encode != nil {
			c.Encode(src, x, w)
		}
		dst := make([]float32, benchRow)
		bench(b, c.Type.String()+"/4096", func() { DecodeRows(c.Type, dst, src) })
	}
}

// BenchmarkIntegers counts 4 bytes per weight.
func BenchmarkIntegers(b *testing.B) {
	x, w := gauss(benchRow)
	for i := range codecs {
		c := &codecs[i]
		if c.integers == nil {
			continue
		}
		src := make([]byte, c.Type.RowBytes(benchRow))
		c.Encode(src, x, w)
		dst := make([]uint32, benchRow/c.integers.Block*c.integers.Units())
		bench(b, c.Type.String()+"/4096", func() {
			if err := IntegerRows(c.Type, dst, src); err != nil {
				b.Fatal(err)
			}
		})
	}
}

// BenchmarkValidate counts encoded bytes.
func BenchmarkValidate(b *testing.B) {
	for _, t := range []gguf.Type{gguf.F32, gguf.F16, gguf.BF16, gguf.Q8_0, gguf.Q4_K} {
		data := make([]byte, t.RowBytes(1<<16))
		b.Run(t.String(), func(b *testing.B) {
			b.SetBytes(int64(len(data)))
			for b.Loop() {
				if err := Validate(t, data, len(data)); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}

func bench(b *testing.B, name string, row func()) {
	b.Run(name, func(b *testing.B) {
		b.SetBytes(4 * benchRow)
		b.ReportAllocs()
		for b.Loop() {
			row()
		}
		b.ReportMetric(benchRow*float64(b.N)/b.Elapsed().Seconds()/1e6, "Mweights/s")
	})
}
