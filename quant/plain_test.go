package quant

import (
	"bytes"
	"fmt"
	"math"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"

	"github.com/winnow-moe/winnow/formats/gguf"
	"github.com/winnow-moe/winnow/quant/kernel"
)

// plainTypes are the types whose encoders search nothing when there is no
// importance.
var plainTypes = []gguf.Type{
	gguf.F32, gguf.F16, gguf.BF16, gguf.Q4_0, gguf.Q4_1, gguf.Q5_0, gguf.Q5_1, gguf.Q8_0,
	gguf.MXFP4, gguf.NVFP4, gguf.TQ1_0, gguf.TQ2_0, gguf.Q1_0, gguf.Q2_0,
}

// plainMakers fill rows with what these encoders have rules for, beside what
// rowMakers do.
var plainMakers = map[string]func(r *rand.Rand, x []float32){
	"ties": func(r *rand.Rand, x []float32) {
		for i := range x {
			x[i] = float32(r.IntN(5) - 2)
		}
	},
	"zeros": func(r *rand.Rand, x []float32) {
		for i := range x {
			x[i] = float32(math.Copysign(0, r.Float64()-0.5))
			if i/64%3 == 0 && r.IntN(20) == 0 {
				x[i] = 1e-3
			}
		}
	},
	"subnormal": func(r *rand.Rand, x []float32) {
		for i := range x {
			x[i] = math.Float32frombits(r.Uint32()&(1<<31) | r.Uint32()>>(9+i/32%20))
		}
	},
	"exponents": func(r *rand.Rand, x []float32) {
		for i := range x {
			x[i] = math.Float32frombits(uint32(i/32%255)<<23 | uint32(r.IntN(1<<10)-512)&0x7fffff)
		}
	},
	"odd start": func(r *rand.Rand, x []float32) {
		for i := range x {
			x[i] = float32(r.NormFloat64())
			if i%32 == 0 && r.IntN(3) == 0 {
				x[i] = bitsFloat(r, true)
			}
		}
	},
	"infinite": func(r *rand.Rand, x []float32) {
		for i := range x {
			x[i] = float32(math.Inf(r.IntN(2)*2 - 1))
			if i/64%3 == 0 {
				x[i] = math.Float32frombits(0x7f800000 | r.Uint32()&0x807fffff)
			}
		}
	},
	"bf16": func(r *rand.Rand, x []float32) {
		for i := range x {
			x[i] = math.Float32frombits(math.Float32bits(float32(r.NormFloat64()*0.02)) &^ 0xffff)
		}
	},
	"tiny": func(r *rand.Rand, x []float32) {
		for i := range x {
			x[i] = float32(r.NormFloat64() * 1e-4)
		}
	},
}

// TestPlainEncoders compares all numbers of blocks up to several turns of the
// kernels with the portable code, at odd addresses and between bytes that must
// stay.
func TestPlainEncoders(t *testing.T) {
	r := rand.New(rand.NewPCG(7, 7))
	for _, makers := range []map[string]func(*rand.Rand, []float32){rowMakers, plainMakers} {
		for what, fill := range makers {
			for _, typ := range plainTypes {
				for n := 1; n <= 70; n++ {
					comparePlain(t, typ, what, n, func(x []float32) { fill(r, x) })
				}
			}
		}
	}
}

func comparePlain(t *testing.T, typ gguf.Type, what string, blocks int, fill func(x []float32)) {
	t.Helper()
	const guard = 37
	c, _ := Lookup(typ)
	x := make([]float32, blocks*typ.BlockLen()+1)[1:]
	fill(x)
	want := bytes.Repeat([]byte{0xa5}, blocks*typ.BlockBytes()+2*guard)
	clean := bytes.Clone(want)
	use(t, "portable")
	c.Encode(want[guard:len(want)-guard], x, nil)
	for _, k := range kernel.Sets() {
		use(t, k.Name)
		got := bytes.Clone(clean)
		c.Encode(got[guard:len(got)-guard], x, nil)
		if !bytes.Equal(got, want) {
			compareBlocks(t, fmt.Sprintf("%s %s, %d blocks of %s", typ, k.Name, blocks, what), typ,
				got[guard:len(got)-guard], want[guard:len(want)-guard])
			if blocks <= 70 {
				t.Logf("%v\n%x\n%x", x, got, want)
			}
			t.FailNow()
		}
	}
}

// TestFloatBoundaries rounds every half and every bfloat16, the points between
// them and their neighbours.
func TestFloatBoundaries(t *testing.T) {
	for _, typ := range []gguf.Type{gguf.F16, gguf.BF16} {
		encoded := make([]byte, 2<<16)
		for i := range 1 << 16 {
			encoded[2*i], encoded[2*i+1] = byte(i), byte(i>>8)
		}
		exact := make([]float32, 1<<16)
		decode(t, typ, exact, encoded)
		var x []float32
		for _, v := range exact {
			for _, low := range []uint32{0, 1, 0xfff, 0x1000, 0x1001, 0x1fff, 0x7fff, 0x8000, 0x8001, 0xffff, 0x200000} {
				x = append(x, math.Float32frombits(math.Float32bits(v)|low))
			}
		}
		comparePlain(t, typ, "boundaries", len(x), func(y []float32) { copy(y, x) })
	}
}

// decode decodes with the kernels, all of which must give the portable bits;
// any NaN is as good as another.
func decode(t *testing.T, typ gguf.Type, dst []float32, src []byte) {
	t.Helper()
	use(t, "portable")
	if err := DecodeRows(typ, dst, src); err != nil {
		t.Fatal(err)
	}
	for _, k := range kernel.Sets() {
		use(t, k.Name)
		got := make([]float32, len(dst)+2)
		if err := DecodeRows(typ, got[1:len(got)-1], src); err != nil {
			t.Fatal(err)
		}
		if got[0] != 0 || got[len(got)-1] != 0 {
			t.Fatalf("%s %s: memory around the result changes", typ, k.Name)
		}
		for i, v := range got[1 : len(got)-1] {
			if math.Float32bits(v) != math.Float32bits(dst[i]) && (v == v || dst[i] == dst[i]) {
				t.Fatalf("%s %s: element %d is %#08x, want %#08x", typ, k.Name, i, math.Float32bits(v), math.Float32bits(dst[i]))
			}
		}
	}
}

// TestDecoders decodes random bytes of all lengths.
func TestDecoders(t *testing.T) {
	r := rand.New(rand.NewPCG(8, 8))
	for i := range codecs {
		typ := codecs[i].Type
		for n := range 100 {
			src := make([]byte, n*typ.BlockBytes())
			for i := range src {
				src[i] = byte(r.Uint32())
			}
			decode(t, typ, make([]float32, n*typ.BlockLen()), src)
		}
	}
}

// TestDecodersOfScales decodes blocks with every half, and every byte of the
// types that have one, as each of their scales.
func TestDecodersOfScales(t *testing.T) {
	for i := range codecs {
		c := &codecs[i]
		size, scales := c.Type.BlockBytes(), c.scales
		if c.Type == gguf.MXFP4 {
			scales = []int{0}
		}
		for _, at := range scales {
			src := make([]byte, size<<16)
			for i := range 1 << 16 {
				b := src[size*i:][:size]
				for j := range b {
					b[j] = byte(i + 37*j)
				}
				for _, other := range scales {
					b[other], b[other+1] = byte(i*31), byte(0x3c|i>>15<<7)
				}
				b[at], b[at+1] = byte(i), byte(i>>8)
			}
			decode(t, c.Type, make([]float32, c.Type.BlockLen()<<16), src)
		}
	}
}

// TestFloatKernelsDoTheWork makes sure that ordinary weights of any size, and
// zeros, are not left to the portable code.
func TestFloatKernelsDoTheWork(t *testing.T) {
	for _, k := range kernel.Sets() {
		for _, scale := range []float32{100, 1, 0.1, 0.01, 0.001, 0} {
			x, _ := gauss(benchRow)
			for i := range x {
				x[i] *= scale
			}
			dst := make([]byte, gguf.NVFP4.RowBytes(benchRow))
			if n := len(x) / blockLen; k.MXFP4(&dst[0], &x[0], n) != n {
				t.Errorf("%s, weights times %v: MXFP4 is left to the portable code", k.Name, scale)
			}
			if n := len(x) / lenNVFP4; k.NVFP4(&dst[0], &x[0], n) != n {
				t.Errorf("%s, weights times %v: NVFP4 is left to the portable code", k.Name, scale)
			}
		}
	}
}

// TestValidateEverywhere plants what is not finite at each place, among the
// largest numbers, which are. The scale of Q5_1 is its second.
func TestValidateEverywhere(t *testing.T) {
	const n = 150
	half := func(low, high byte, size int) []byte { return append([]byte{low, high}, make([]byte, size-2)...) }
	for _, c := range []struct {
		typ       gguf.Type
		good, bad []byte
	}{
		{gguf.F32, []byte{0xff, 0xff, 0x7f, 0xff}, []byte{0, 0, 0x80, 0xff}},
		{gguf.F16, []byte{0xff, 0x7b}, []byte{0x01, 0x7c}},
		{gguf.BF16, []byte{0x7f, 0xff}, []byte{0x80, 0x7f}},
		{gguf.Q8_0, half(0xff, 0xfb, 34), half(0x00, 0xfc, 34)},
		{gguf.Q5_1, half(0xff, 0xfb, 24), append(half(0, 0, 2), half(0xff, 0x7f, 22)...)},
	} {
		for _, isa := range append(kernel.Sets(), &kernel.Set{Name: "portable"}) {
			use(t, isa.Name)
			b := slices.Repeat(c.good, n)
			if err := Validate(c.typ, b, len(b)); err != nil {
				t.Fatalf("%s: %v", isa.Name, err)
			}
			for i := range n {
				copy(b[i*len(c.bad):], c.bad)
				err := Validate(c.typ, b, len(b))
				if want := fmt.Sprintf("row 0, block %d: ", i); err == nil || !strings.Contains(err.Error(), want) {
					t.Fatalf("%s: %v, want %q", isa.Name, err, want)
				}
				copy(b[i*len(c.bad):], c.good)
			}
		}
	}
}
