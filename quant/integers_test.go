package quant

import (
	"math"
	"math/rand/v2"
	"testing"

	"github.com/winnow-moe/winnow/formats/gguf"
)

// values computes the elements of a record by the formula of Integers.
func (f *Integers) values(r []uint32) []float64 {
	out := make([]float64, f.Block)
	low, high := func(u uint32) float64 { return float64(int16(u)) }, func(u uint32) float64 { return float64(int16(u >> 16)) }
	half := func(u uint32, second bool) float64 {
		if second {
			return high(u)
		}
		return low(u)
	}
	codes, scales := r[:f.Codes()], r[f.Codes():][:f.Scales()]
	rest := r[f.Codes()+f.Scales():]
	var offsets, mins []uint32
	if f.Offsets {
		offsets, rest = rest[:f.Pairs()], rest[f.Pairs():]
	}
	if f.Mins {
		mins, rest = rest[:f.Pairs()], rest[f.Pairs():]
	}
	d := float64(math.Float32frombits(rest[0]))
	for i := range out {
		var n float64
		if f.Wide {
			n = half(codes[i/2], i%2 == 1)
		} else {
			n = float64(codes[i/4]>>(i%4*8)&255) * low(scales[i/(4*f.Quads)])
		}
		if f.Offsets {
			n -= half(offsets[i/32], i/16%2 == 1)
		}
		out[i] = d * n
		if f.Mins {
			out[i] -= float64(math.Float32frombits(rest[1])) * half(mins[i/32], i/16%2 == 1)
		}
	}
	return out
}

// TestIntegerForms compares the records of random blocks with what they decode to.
func TestIntegerForms(t *testing.T) {
	rng := rand.New(rand.NewPCG(1, 2))
	for i := range codecs {
		c := &codecs[i]
		f := c.Integers()
		if f == nil {
			continue
		}
		t.Run(c.Type.String(), func(t *testing.T) {
			block := make([]byte, c.Type.BlockBytes())
			want := make([]float32, f.Block)
			units := make([]uint32, f.Units())
			for n := 0; n < 300; {
				for j := range block {
					block[j] = byte(rng.Uint32())
				}
				if Validate(c.Type, block, len(block)) != nil {
					continue
				}
				n++
				c.Decode(want, block)
				if err := IntegerRows(c.Type, units, block); err != nil {
					t.Fatal(err)
				}
				largest := 0.0
				for _, v := range want {
					largest = max(largest, math.Abs(float64(v)))
				}
				for j, v := range f.values(units) {
					if math.Abs(v-float64(want[j])) > 1e-6*largest {
						t.Fatalf("element %d is %g, decoded %g", j, v, want[j])
					}
				}
			}
		})
	}
}

// TestIntegersCover says which types of ggml with 8-bit partners have integers.
func TestIntegersCover(t *testing.T) {
	for i := range codecs {
		c := &codecs[i]
		rounded := c.Partner == PartnerQ8_0 || c.Partner == PartnerQ8_K
		switch c.Type {
		case gguf.NVFP4, gguf.Q1_0, gguf.Q2_0: // blocks unlike those of their partner
			rounded = false
		}
		if (c.integers != nil) != rounded {
			t.Errorf("%s: integers %v, want %v", c.Type, c.integers != nil, rounded)
		}
		if f := c.Integers(); f != nil && f.Block != c.Type.BlockLen() {
			t.Errorf("%s: blocks of %d, want %d", c.Type, f.Block, c.Type.BlockLen())
		}
	}
}

func TestIntegerRowsErrors(t *testing.T) {
	if IntegerRows(gguf.F32, nil, nil) == nil {
		t.Error("F32 has integers")
	}
	if IntegerRows(gguf.Q4_0, make([]uint32, 3), make([]byte, sizeQ4_0)) == nil {
		t.Error("a short record passed")
	}
}
