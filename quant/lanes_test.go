package quant

import (
	"bytes"
	"encoding/binary"
	"math"
	"math/rand/v2"
	"testing"

	"github.com/winnow-moe/winnow/formats/gguf"
	"github.com/winnow-moe/winnow/quant/kernel"
)

// use selects kernels for the rest of a test.
func use(tb testing.TB, isa string) {
	tb.Helper()
	before := "portable"
	if k := kernel.Active(); k != nil {
		before = k.Name
	}
	if !kernel.Use(isa) {
		tb.Fatalf("no kernels %q", isa)
	}
	tb.Cleanup(func() { kernel.Use(before) })
}

// kernelTypes are the types whose encoders use kernels.
var kernelTypes = []gguf.Type{gguf.Q4_0, gguf.Q4_1, gguf.Q5_0, gguf.Q5_1, gguf.Q2_K, gguf.Q3_K, gguf.Q4_K, gguf.Q5_K, gguf.Q6_K, gguf.IQ4NL, gguf.IQ4XS,
	gguf.IQ1S, gguf.IQ1M, gguf.IQ2XXS, gguf.IQ2XS, gguf.IQ2S, gguf.IQ3XXS, gguf.IQ3S,
	gguf.Q8_0, gguf.TQ1_0, gguf.TQ2_0, gguf.Q1_0, gguf.Q2_0, gguf.MXFP4, gguf.NVFP4, gguf.F16, gguf.BF16, gguf.F32}

// sameAsPortable encodes a row as every type with kernels, with all of them.
func sameAsPortable(t *testing.T, what string, x, w []float32) {
	t.Helper()
	for _, typ := range kernelTypes {
		c, _ := Lookup(typ)
		for _, weights := range [][]float32{nil, w} {
			if weights != nil && !c.UsesWeights || weights == nil && c.NeedsWeights {
				continue
			}
			want := make([]byte, c.Type.RowBytes(int64(len(x))))
			got := make([]byte, len(want))
			use(t, "portable")
			c.Encode(want, x, weights)
			for _, k := range kernel.Sets() {
				use(t, k.Name)
				c.Encode(got, x, weights)
				if !bytes.Equal(got, want) {
					compareBlocks(t, c.Type.String()+" "+k.Name+" "+what, c.Type, got, want)
				}
			}
		}
	}
}

// rowMakers fill rows of different nature.
var rowMakers = map[string]func(r *rand.Rand, x []float32){
	"gauss": func(r *rand.Rand, x []float32) {
		for i := range x {
			x[i] = float32(r.NormFloat64() * 0.02)
		}
	},
	"heavy": func(r *rand.Rand, x []float32) {
		for i := range x {
			x[i] = float32(math.Exp(r.NormFloat64()*4) * float64(1-2*r.IntN(2)))
		}
	},
	"grid": func(r *rand.Rand, x []float32) {
		for i := range x {
			x[i] = float32(r.IntN(17)-8) / 4
		}
	},
	"sparse": func(r *rand.Rand, x []float32) {
		for i := range x {
			x[i] = 0
			if r.IntN(40) == 0 {
				x[i] = float32(r.NormFloat64())
			}
		}
	},
	"positive": func(r *rand.Rand, x []float32) {
		for i := range x {
			x[i] = 1 + float32(r.Float64())
		}
	},
	"sizes": func(r *rand.Rand, x []float32) {
		var size float64
		for i := range x {
			if i%16 == 0 {
				size = math.Exp2(r.Float64()*300 - 160)
			}
			x[i] = float32(r.NormFloat64() * size)
		}
	},
	"bits": func(r *rand.Rand, x []float32) {
		for i := range x {
			x[i] = bitsFloat(r, false)
		}
	},
	"oddities": func(r *rand.Rand, x []float32) {
		for i := range x {
			x[i] = float32(r.NormFloat64())
			if r.IntN(300) == 0 {
				x[i] = bitsFloat(r, true)
			}
		}
	},
}

// TestKernelsSameBytes compares the kernels with the portable code on rows of
// all lengths up to several batches, with weights of every nature.
func TestKernelsSameBytes(t *testing.T) {
	if len(kernel.Sets()) == 0 {
		t.Skip("this build or machine has no kernels")
	}
	r := rand.New(rand.NewPCG(5, 5))
	for what, make1 := range rowMakers {
		for _, blocks := range []int{1, 2, 3, 7, 8, 9, 16, 17, 20} {
			x, w := make([]float32, blocks*superLen), make([]float32, blocks*superLen)
			make1(r, x)
			for how, make2 := range rowMakers {
				make2(r, w)
				if how != "bits" && how != "oddities" {
					for i, v := range w {
						w[i] = abs32(v)
					}
				}
				sameAsPortable(t, what+" weighed by "+how, x, w)
				if blocks > 3 && how == "gauss" {
					break
				}
			}
		}
	}
}

// TestKernelsDoTheWork makes sure that ordinary rows, and rows with groups of
// zeros, do not end up with the portable code.
func TestKernelsDoTheWork(t *testing.T) {
	x, q := gauss(batchLen * superLen)
	clear(x[100:300])
	for _, k := range kernel.Sets() {
		for _, typ := range []*affineType{&searchQ2K, &searchQ4K, &searchQ5K} {
			for _, weights := range [][]float32{nil, q} {
				var w workspace
				typ.searchBatch(&w, k, x, weights)
				if w.odd != [batchLen]bool{} {
					t.Errorf("%s, %d bytes: left to the portable code: %v", k.Name, typ.size, w.odd)
				}
			}
		}
		var w workspace
		w.searchWeightedQ3K(k, x, q)
		w.searchQ3K(k, x)
		for _, typ := range []*typeIQ1{&searchIQ1S, &searchIQ1M} {
			for _, weights := range [][]float32{nil, q} {
				var w workspace
				typ.searchBatch(&w, k, x, weights)
				if w.odd != [batchLen]bool{} {
					t.Errorf("%s, %d bytes: left to the portable code: %v", k.Name, typ.size, w.odd)
				}
			}
		}
		if w.odd != [batchLen]bool{} {
			t.Errorf("%s, Q3_K: left to the portable code: %v", k.Name, w.odd)
		}
		for _, weights := range [][]float32{nil, q} {
			w.chunks(k, x, weights, blockLen, func(int) uint32 { return k.FitIQ4(&w.lanes, &w.scratch) }, func(_, _, _ int) {})
			if w.odd != [batchLen]bool{} {
				t.Errorf("%s, IQ4_XS: left to the portable code: %v", k.Name, w.odd)
			}
		}
		w.blocks(k, x, q, func(_, _ []float32) {
			w.weighBlocks(k, 1)
			if odd := w.fitSymmetric(k, blockLen, 8); odd != 0 {
				t.Errorf("%s, Q4_0: left to the portable code: %b", k.Name, odd)
			}
			grid := affineGrid{n: 15, first: -0.9, delta: 0.05, steps: 36}
			if odd := w.fitAffine(k, &grid, blockLen); odd != 0 {
				t.Errorf("%s, Q4_1: left to the portable code: %b", k.Name, odd)
			}
		})
	}
}

// FuzzKernels compares all kernels with the portable code on any bits.
func FuzzKernels(f *testing.F) {
	seed := make([]byte, 8*superLen)
	for i := range seed {
		seed[i] = byte(i * 7)
	}
	f.Add(seed)
	f.Add(bytes.Repeat([]byte{0, 0, 0x80, 0x7f, 1, 0, 0, 0}, superLen))
	f.Add(bytes.Repeat([]byte{0, 0, 0x80, 0x3f, 0, 0, 0, 0x3f}, superLen))
	f.Fuzz(func(t *testing.T, data []byte) {
		var x, w [2 * superLen]float32
		for i := 0; 8*i+8 <= len(data) && i < len(x); i++ {
			x[i] = math.Float32frombits(binary.LittleEndian.Uint32(data[8*i:]))
			w[i] = math.Float32frombits(binary.LittleEndian.Uint32(data[8*i+4:]))
		}
		sameAsPortable(t, "any", x[:], w[:])
	})
}
