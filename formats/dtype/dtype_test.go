package dtype

import (
	"bufio"
	"encoding/binary"
	"fmt"
	"math"
	"math/rand/v2"
	"os"
	"strconv"
	"strings"
	"testing"

	"github.com/x448/float16"
)

func TestNames(t *testing.T) {
	// Sizes in bits, from the format's own table (safetensors/src/tensor.rs, Dtype::bitsize).
	want := map[string]int{
		"F4": 4, "F6_E3M2": 6, "F6_E2M3": 6, "BOOL": 8, "U8": 8, "I8": 8, "F8_E5M2": 8, "F8_E4M3": 8, "F8_E8M0": 8,
		"F8_E4M3FNUZ": 8, "F8_E5M2FNUZ": 8, "I16": 16, "U16": 16, "F16": 16, "BF16": 16,
		"I32": 32, "U32": 32, "F32": 32, "I64": 64, "U64": 64, "F64": 64, "C64": 64,
	}
	for name, bits := range want {
		typ, ok := Parse(name)
		if !ok || typ.String() != name || typ.Bits() != bits {
			t.Errorf("%s: got %v (%v), %d bits, want %d", name, typ, ok, typ.Bits(), bits)
		}
	}
	if len(byName) != len(want) {
		t.Errorf("%d types, want %d", len(byName), len(want))
	}
	for _, name := range []string{"f32", "F128", "", "invalid", "bf16"} {
		if typ, ok := Parse(name); ok {
			t.Errorf("%q is read as %v", name, typ)
		}
	}
	if s := Type(200).String(); s != "type(200)" || Type(200).Bits() != 0 {
		t.Errorf("unknown type prints as %q", s)
	}
}

func TestFloat(t *testing.T) {
	for typ := Bool; typ <= U64; typ++ {
		err := Decode(typ, make([]float32, 8), make([]byte, typ.Bits()))
		integer := strings.ContainsAny(typ.String()[:1], "UIB") && typ != BF16
		if typ.Float() || integer {
			if err != nil {
				t.Errorf("%v: %v", typ, err)
			}
		} else if err == nil || !strings.Contains(err.Error(), typ.String()) {
			t.Errorf("%v: got %v, want an error that names the type", typ, err)
		}
	}
}

func same(a, b float32) bool {
	return math.Float32bits(a) == math.Float32bits(b) || a != a && b != b
}

// TestF8Golden compares all codes with the values of the ml_dtypes package
// (testdata/f8.py writes the file).
func TestF8Golden(t *testing.T) {
	f, err := os.Open("testdata/f8.txt")
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	n := 0
	for sc := bufio.NewScanner(f); sc.Scan(); {
		if strings.HasPrefix(sc.Text(), "#") {
			continue
		}
		words := strings.Fields(sc.Text())
		code, err := strconv.ParseUint(words[0], 16, 8)
		if err != nil {
			t.Fatal(err)
		}
		b := byte(code)
		for i, got := range []float32{FromF8E4M3(b), FromF8E5M2(b), FromF8E8M0(b)} {
			want := float32(math.NaN())
			if bits, err := strconv.ParseUint(words[i+1], 16, 32); err == nil {
				want = math.Float32frombits(uint32(bits))
			}
			if !same(got, want) {
				t.Errorf("column %d, code %#02x: got %v, want %v", i, b, got, want)
			}
		}
		n++
	}
	if n != 256 {
		t.Fatalf("%d codes in the golden file", n)
	}
}

// TestF8Formula derives the values in other ways than the tables do: E5M2 as
// the upper byte of a half, E4M3 and E8M0 by assembling float32 bits.
func TestF8Formula(t *testing.T) {
	for i := range 256 {
		b := byte(i)
		if got, want := FromF8E5M2(b), float16.Frombits(uint16(b)<<8).Float32(); !same(got, want) {
			t.Errorf("F8_E5M2 %#02x: got %v, want %v", b, got, want)
		}
		// The exponent field moves up by 127-7; the multiplication makes
		// subnormal codes normal.
		e4m3 := math.Float32frombits(uint32(b&0x7f)<<20) * (1 << 120)
		if b&0x7f == 0x7f {
			e4m3 = float32(math.NaN())
		}
		if got, want := FromF8E4M3(b), float32(math.Copysign(float64(e4m3), float64(int8(b)))); b != 0x80 && !same(got, want) {
			t.Errorf("F8_E4M3 %#02x: got %v, want %v", b, got, want)
		}
		e8m0 := math.Float32frombits(max(uint32(b)<<23, 1<<22))
		if b == 255 {
			e8m0 = float32(math.NaN())
		}
		if got := FromF8E8M0(b); !same(got, e8m0) {
			t.Errorf("F8_E8M0 %#02x: got %v, want %v", b, got, e8m0)
		}
		if F8E4M3Table()[b] != FromF8E4M3(b) && b&0x7f != 0x7f {
			t.Errorf("table differs at %#02x", b)
		}
	}
	if z := FromF8E4M3(0x80); z != 0 || !math.Signbit(float64(z)) {
		t.Errorf("0x80 is %v, want -0", z)
	}
}

func TestHalfEveryCode(t *testing.T) {
	for i := range 1 << 16 {
		h := uint16(i)
		want := float16.Frombits(h).Float32()
		if got := FromF16(h); !same(got, want) {
			t.Fatalf("FromF16(%#04x) = %v, want %v", h, got, want)
		}
		if back := ToF16(want); want == want && back != h {
			t.Fatalf("ToF16(FromF16(%#04x)) = %#04x", h, back)
		}
	}
}

// TestHalfRounding checks every rounding boundary: the value half way between
// two neighbours, which float32 holds exactly, goes to the even one.
func TestHalfRounding(t *testing.T) {
	for h := uint16(0); h < 0x7c00; h++ {
		low, high := FromF16(h), FromF16(h+1)
		if h == 0x7bff {
			high = 65536 // infinity stands for the next power of two
		}
		mid := low/2 + high/2
		inf := float32(math.Inf(1))
		for _, c := range []struct {
			f    float32
			want uint16
		}{{math.Nextafter32(mid, 0), h}, {mid, h + h&1}, {math.Nextafter32(mid, inf), h + 1}} {
			if got := ToF16(c.f); got != c.want {
				t.Fatalf("ToF16(%v) = %#04x, want %#04x", c.f, got, c.want)
			}
			if got := ToF16(-c.f); got != c.want|0x8000 {
				t.Fatalf("ToF16(%v) = %#04x, want %#04x", -c.f, got, c.want|0x8000)
			}
		}
	}
}

func TestHalfRandom(t *testing.T) {
	rng := rand.New(rand.NewPCG(1, 2))
	for range 1 << 20 {
		f := math.Float32frombits(rng.Uint32())
		want := float16.Fromfloat32(f).Bits()
		if f != f {
			want = uint16(math.Float32bits(f)>>31)<<15 | 0x7e00
		}
		if got := ToF16(f); got != want {
			t.Fatalf("ToF16(%v) = %#04x, want %#04x", f, got, want)
		}
	}
}

func TestBF16(t *testing.T) {
	for i := range 1 << 16 {
		b := uint16(i)
		f := FromBF16(b)
		if math.Float32bits(f) != uint32(b)<<16 {
			t.Fatalf("FromBF16(%#04x) = %v", b, f)
		}
		if f != f {
			if got := ToBF16(f); got != b|64 {
				t.Fatalf("NaN %#04x becomes %#04x", b, got)
			}
			continue
		}
		inf := b&0x7fff == 0x7f80
		for _, c := range []struct {
			low  uint32
			want uint16
		}{{0, b}, {0x7fff, b}, {0x8000, b + b&1}, {0x8001, b + 1}} {
			if inf && c.low != 0 {
				continue // those bits are NaN
			}
			if got := ToBF16(math.Float32frombits(uint32(b)<<16 | c.low)); got != c.want {
				t.Fatalf("%#04x%04x rounds to %#04x, want %#04x", b, c.low, got, c.want)
			}
		}
	}
	// A NaN whose payload lies in the lower half only must not become infinite.
	if got := ToBF16(math.Float32frombits(0x7f800001)); got != 0x7fc0 {
		t.Errorf("NaN becomes %#04x", got)
	}
}

// TestDecodeLengths compares every loop with element-wise conversion, for
// lengths around its unrolling.
func TestDecodeLengths(t *testing.T) {
	rng := rand.New(rand.NewPCG(3, 4))
	single := map[Type]func([]byte) float32{
		F8E4M3: func(b []byte) float32 { return FromF8E4M3(b[0]) },
		F8E5M2: func(b []byte) float32 { return FromF8E5M2(b[0]) },
		F8E8M0: func(b []byte) float32 { return FromF8E8M0(b[0]) },
		U8:     func(b []byte) float32 { return float32(b[0]) },
		I8:     func(b []byte) float32 { return float32(int8(b[0])) },
		I16:    func(b []byte) float32 { return float32(int16(binary.LittleEndian.Uint16(b))) },
		U16:    func(b []byte) float32 { return float32(binary.LittleEndian.Uint16(b)) },
		F16:    func(b []byte) float32 { return FromF16(binary.LittleEndian.Uint16(b)) },
		BF16:   func(b []byte) float32 { return FromBF16(binary.LittleEndian.Uint16(b)) },
		F32:    func(b []byte) float32 { return math.Float32frombits(binary.LittleEndian.Uint32(b)) },
		F64:    func(b []byte) float32 { return float32(math.Float64frombits(binary.LittleEndian.Uint64(b))) },
	}
	for typ, one := range single {
		size := typ.Bits() / 8
		for n := range 35 {
			src := make([]byte, n*size)
			for i := range src {
				src[i] = byte(rng.Uint32())
			}
			dst := make([]float32, n)
			if err := Decode(typ, dst, src); err != nil {
				t.Fatal(err)
			}
			for i, got := range dst {
				if want := one(src[i*size:]); !same(got, want) {
					t.Fatalf("%v, element %d of %d: got %v, want %v", typ, i, n, got, want)
				}
			}
		}
	}
}

func TestDecodeF64Rounds(t *testing.T) {
	dst := make([]float32, 3)
	var src []byte
	for _, v := range []float64{1 + 1.0/(1<<24), 1 + 3.0/(1<<24), 1e300} {
		src = binary.LittleEndian.AppendUint64(src, math.Float64bits(v))
	}
	if err := Decode(F64, dst, src); err != nil {
		t.Fatal(err)
	}
	if dst[0] != 1 || dst[1] != 1+2.0/(1<<23) || !math.IsInf(float64(dst[2]), 1) {
		t.Errorf("got %v", dst)
	}
}

func TestDecodeInts(t *testing.T) {
	put := func(bits int, v uint64) []byte { return binary.LittleEndian.AppendUint64(nil, v)[:bits/8] }
	for _, c := range []struct {
		typ  Type
		v    uint64
		want float32
		ok   bool
	}{
		{Bool, 0, 0, true}, {Bool, 1, 1, true}, {Bool, 2, 0, false},
		{I16, 0xffff, -1, true}, {U16, 0xffff, 65535, true},
		{I32, 1 << 24, 1 << 24, true}, {I32, 1<<24 + 1, 0, false}, {I32, 0x80000000, -1 << 31, true},
		{U32, 0xffffffff, 0, false}, {U32, 0xffffff00, 0xffffff00, true},
		{I64, 1<<64 - 3, -3, true}, {I64, 1 << 63, -1 << 63, true}, {I64, 1<<63 - 1, 0, false}, {I64, 1 << 62, 1 << 62, true},
		{U64, 1 << 63, 1 << 63, true}, {U64, 1<<64 - 1, 0, false}, {U64, 1<<53 + 1, 0, false},
	} {
		dst := make([]float32, 1)
		err := Decode(c.typ, dst, put(c.typ.Bits(), c.v))
		if (err == nil) != c.ok || c.ok && dst[0] != c.want {
			t.Errorf("%v %#x: got %v, %v", c.typ, c.v, dst[0], err)
		}
		if !c.ok && (err == nil || !strings.Contains(err.Error(), c.typ.String())) {
			t.Errorf("%v %#x: got %v, want an error that names the type", c.typ, c.v, err)
		}
	}
}

func TestDecodeWrongLength(t *testing.T) {
	for _, n := range []int{0, 7, 9, 16} {
		if err := Decode(F32, make([]float32, 2), make([]byte, n)); err == nil {
			t.Errorf("2 elements of F32 from %d bytes: no error", n)
		}
	}
	if err := Decode(0, make([]float32, 2), nil); err == nil {
		t.Error("no type: no error")
	}
}

func TestEncode(t *testing.T) {
	rng := rand.New(rand.NewPCG(5, 6))
	for n := range 20 {
		src := make([]float32, n)
		for i := range src {
			src[i] = math.Float32frombits(rng.Uint32())
		}
		f32, f16, bf16 := make([]byte, 4*n+1), make([]byte, 2*n+1), make([]byte, 2*n+1)
		f32[4*n], f16[2*n], bf16[2*n] = 0xaa, 0xaa, 0xaa
		EncodeF32(f32, src)
		EncodeF16(f16, src)
		EncodeBF16(bf16, src)
		for i, f := range src {
			if got := binary.LittleEndian.Uint32(f32[4*i:]); got != math.Float32bits(f) {
				t.Fatalf("F32 %v: %#x", f, got)
			}
			if got := binary.LittleEndian.Uint16(f16[2*i:]); got != ToF16(f) {
				t.Fatalf("F16 %v: %#x", f, got)
			}
			if got := binary.LittleEndian.Uint16(bf16[2*i:]); got != ToBF16(f) {
				t.Fatalf("BF16 %v: %#x", f, got)
			}
		}
		if f32[4*n] != 0xaa || f16[2*n] != 0xaa || bf16[2*n] != 0xaa {
			t.Fatal("written past the end")
		}
	}
}

func BenchmarkDecode(b *testing.B) {
	const n = 16384
	for _, typ := range []Type{F8E4M3, F16, BF16, F32, F64} {
		b.Run(fmt.Sprintf("%v/%d", typ, n), func(b *testing.B) {
			src, dst := make([]byte, n*typ.Bits()/8), make([]float32, n)
			rng := rand.New(rand.NewPCG(7, 8))
			for i := range src {
				src[i] = byte(rng.Uint32())
			}
			b.SetBytes(int64(len(src)))
			for b.Loop() {
				if err := Decode(typ, dst, src); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}

func BenchmarkEncode(b *testing.B) {
	const n = 16384
	src, dst := make([]float32, n), make([]byte, 4*n)
	rng := rand.New(rand.NewPCG(9, 10))
	for i := range src {
		src[i] = float32(rng.NormFloat64() * 0.02)
	}
	for name, f := range map[string]func([]byte, []float32){"F16": EncodeF16, "BF16": EncodeBF16, "F32": EncodeF32} {
		b.Run(fmt.Sprintf("%s/%d", name, n), func(b *testing.B) {
			b.SetBytes(4 * n)
			for b.Loop() {
				f(dst, src)
			}
		})
	}
}

// TestF8Rounding checks every rounding boundary of F8_E4M3, which float32 holds
// exactly: half way between two neighbours the even one is taken.
func TestF8Rounding(t *testing.T) {
	inf := float32(math.Inf(1))
	for c := byte(0); c < 0x7e; c++ {
		mid := (FromF8E4M3(c) + FromF8E4M3(c+1)) / 2
		for _, x := range []struct {
			f    float32
			want byte
		}{{FromF8E4M3(c), c}, {math.Nextafter32(mid, 0), c}, {mid, c + c&1}, {math.Nextafter32(mid, inf), c + 1}} {
			if got := ToF8E4M3(x.f); got != x.want {
				t.Fatalf("ToF8E4M3(%v) = %#02x, want %#02x", x.f, got, x.want)
			}
			if got := ToF8E4M3(-x.f); got != x.want|0x80 {
				t.Fatalf("ToF8E4M3(%v) = %#02x, want %#02x", -x.f, got, x.want|0x80)
			}
		}
	}
	for _, f := range []float32{MaxF8E4M3, 464, 465, 1e30, inf} {
		if a, b := ToF8E4M3(f), ToF8E4M3(-f); a != 0x7e || b != 0xfe {
			t.Errorf("±%v become %#02x and %#02x", f, a, b)
		}
	}
	if c := ToF8E4M3(float32(math.NaN())); c != 0x7f {
		t.Errorf("NaN becomes %#02x", c)
	}
}
