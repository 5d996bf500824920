package quant

import (
	"bytes"
	"encoding/binary"
	"encoding/hex"
	"math"
	"strings"
	"testing"

	"github.com/winnow-moe/winnow/formats/gguf"
)

// TestLayout checks the table against the geometry that package gguf knows.
func TestLayout(t *testing.T) {
	for i := range codecs {
		c := &codecs[i]
		if got, ok := Lookup(c.Type); !ok || got != c {
			t.Errorf("%s: Lookup finds another entry", c.Type)
		}
		for _, o := range c.scales {
			if o+2 > c.Type.BlockBytes() {
				t.Errorf("%s: scale at byte %d of %d", c.Type, o, c.Type.BlockBytes())
			}
		}
		if c.Encode != nil && c.Type.Quantized() && len(c.scales) == 0 && c.values == nil && c.Type != gguf.NVFP4 {
			t.Errorf("%s: no scales to validate", c.Type)
		}
	}
	for typ, size := range map[gguf.Type]int{
		gguf.Q4_0: sizeQ4_0, gguf.Q4_1: sizeQ4_1, gguf.Q5_0: sizeQ5_0, gguf.Q5_1: sizeQ5_1, gguf.Q8_0: sizeQ8_0,
		gguf.Q2_K: sizeQ2K, gguf.Q3_K: sizeQ3K, gguf.Q4_K: sizeQ4K, gguf.Q5_K: sizeQ5K, gguf.Q6_K: sizeQ6K,
		gguf.IQ1S: sizeIQ1S, gguf.IQ1M: sizeIQ1M, gguf.IQ2XXS: sizeIQ2XXS, gguf.IQ2XS: sizeIQ2XS, gguf.IQ2S: sizeIQ2S, gguf.IQ3XXS: sizeIQ3XXS, gguf.IQ3S: sizeIQ3S,
		gguf.IQ4NL: sizeIQ4NL, gguf.IQ4XS: sizeIQ4XS, gguf.MXFP4: sizeMXFP4, gguf.NVFP4: sizeNVFP4,
		gguf.TQ1_0: sizeTQ1_0, gguf.TQ2_0: sizeTQ2_0, gguf.Q1_0: sizeQ1_0, gguf.Q2_0: sizeQ2_0,
	} {
		if size != typ.BlockBytes() {
			t.Errorf("%s: block of %d bytes, package gguf says %d", typ, size, typ.BlockBytes())
		}
	}
	if _, ok := Lookup(gguf.Q8_K); ok {
		t.Error("Q8_K is not a type of files")
	}
}

// TestVarianceOverflow encodes a super-block whose Σx² is finite while 2·Σx²
// is not. The bytes are ggml's (ggml_quantize_chunk of the version in the
// goldens' README).
func TestVarianceOverflow(t *testing.T) {
	x, w := make([]float32, 256), make([]float32, 256)
	for i := range x {
		x[i], w[i] = float32(1-i%2*2), 1
		if i < 32 {
			x[i] = 3.15e18
		}
	}
	for typ, want := range map[gguf.Type]string{
		gguf.Q3_K: strings.Repeat("00fe", 16) + strings.Repeat("00fc", 16) + strings.Repeat("00ff", 16) + strings.Repeat("00", 14),
		gguf.Q4_K: "000000003f000000c0fffffff0f0f0f0" + strings.Repeat("ff0f", 16) + strings.Repeat("ff00", 48),
	} {
		got := make([]byte, typ.BlockBytes())
		if err := EncodeRows(typ, got, x, 256, w); err != nil {
			t.Fatal(err)
		}
		if hex.EncodeToString(got) != want {
			t.Errorf("%s:\n got %x\nwant %s", typ, got, want)
		}
	}
}

// compareHex encodes one row and compares with ggml's bytes; those of
// TestEdges are from ggml_quantize_chunk of the version in the goldens' README.
func compareHex(t *testing.T, typ gguf.Type, x, weights []float32, want string) {
	t.Helper()
	got := make([]byte, typ.RowBytes(int64(len(x))))
	if err := EncodeRows(typ, got, x, len(x), weights); err != nil {
		t.Fatal(err)
	}
	if hex.EncodeToString(got) != want {
		t.Errorf("%s:\n got %x\nwant %s", typ, got, want)
	}
}

// TestEdges has what the goldens lack: NVFP4 scales at the ends of their
// range, with values far beyond the largest code; an IQ2_XXS scale that is not
// 0 and becomes 0; scales that come out negative, because the elements whose
// signs flip outweigh the others; and negative importance for types that can
// use it.
func TestEdges(t *testing.T) {
	var x [superLen]float32
	for i := range lenNVFP4 {
		sign, j := float32(1-i%2*2), float64(i%16)
		x[i] = sign * [4]float32{float32(100 * j), float32(math.Exp2(3 * j)), 1e12, float32(j) * 1e-4}[i/16]
	}
	compareHex(t, gguf.NVFP4, x[:lenNVFP4], nil, "7e7e7e0040c041c952da53db70f070fa770f070f"+strings.Repeat("00", 16))

	x, w := [superLen]float32{1}, [superLen]float32{1e-30}
	for i := range w[1:] {
		w[1+i] = 1e14
	}
	compareHex(t, gguf.IQ2XXS, x[:], w[:], "000001"+strings.Repeat("00", 63))

	for i := range x {
		x[i], w[i] = 1, 1e-6
		if i%8 == 0 {
			x[i], w[i] = -1e-4, 50
		}
	}
	f := strings.Repeat("f", 16)
	compareHex(t, gguf.IQ2XXS, x[:], w[:], "3600"+strings.Repeat("bdbdbdbdffffffff", 8))
	compareHex(t, gguf.IQ2XS, x[:], w[:], "3600"+strings.Repeat("f2ff", 32)+f)
	compareHex(t, gguf.IQ3XXS, x[:], w[:], "3600"+strings.Repeat("d8a8", 32)+f+f+f+f)

	x, w = waves()
	compareHex(t, gguf.IQ1S, x[:], w[:], "15423431c90d05bf971e3d05fd95626a30d599c91805470b2e7c8d6fea342035352d"+
		"b38ae285e176eb045004aa8e3606df8c")
	compareHex(t, gguf.IQ1M, x[:], w[:], "8b87260b0bc74312ee8dbf107af28f7d2dc93024c2ca41f7fafa83901b1a9d94803592"+
		"f7e1927f4ca6d53ce47fc644803888002008500041")
}

// waves returns values in [−3.125, 3.125] and weights of which some are
// negative.
func waves() (x, w [superLen]float32) {
	for i := range x {
		x[i] = float32(i*37%101-50) / 16
		w[i] = float32(1 + i%7)
		if i%5 == 0 {
			w[i] = -w[i]
		}
	}
	return x, w
}

// TestAborts encodes what ggml aborts on: negative importance is refused, and
// importance that overflows leaves a block that Validate refuses.
func TestAborts(t *testing.T) {
	x, negative := waves()
	var huge [superLen]float32
	for typ, importance := range map[gguf.Type]float32{
		gguf.IQ1S: 1e37, gguf.IQ1M: 1e37, gguf.IQ2XS: 3e38, gguf.IQ2S: 3e38, gguf.IQ3XXS: 3e38, gguf.IQ3S: 3e38,
	} {
		dst := make([]byte, typ.BlockBytes())
		for i := range huge {
			huge[i] = importance
		}
		if err := EncodeRows(typ, dst, x[:], superLen, huge[:]); err != nil {
			t.Fatal(err)
		}
		if err := Validate(typ, dst, len(dst)); err == nil || !strings.Contains(err.Error(), "scale is NaN") {
			t.Errorf("%s: huge importance: %v", typ, err)
		}
		err := EncodeRows(typ, dst, x[:], superLen, negative[:])
		if able := typ == gguf.IQ1S || typ == gguf.IQ1M; able && err != nil ||
			!able && (err == nil || !strings.Contains(err.Error(), "column 0 is -1")) {
			t.Errorf("%s: negative importance: %v", typ, err)
		}
	}
}

// TestNonFinite encodes rows with NaN or infinities: no panic, and the
// super-blocks beside the bad one stay as they are (without weights; the
// variance of some types is that of the row).
func TestNonFinite(t *testing.T) {
	clean, importance := gauss(3 * superLen)
	for i := range codecs {
		c := &codecs[i]
		if c.Encode == nil {
			continue
		}
		size := int(c.Type.RowBytes(superLen))
		want, got := make([]byte, 3*size), make([]byte, 3*size)
		var weights []float32
		if c.NeedsWeights {
			weights = importance
		}
		c.Encode(want, clean, weights)
		for _, bad := range []float32{float32(math.NaN()), float32(math.Inf(1)), float32(math.Inf(-1)), 3e38} {
			for _, at := range []int{superLen, superLen + 17, 2*superLen - 1} {
				x := append([]float32(nil), clean...)
				x[at] = bad
				c.Encode(got, x, weights)
				if !bytes.Equal(got[:size], want[:size]) || !bytes.Equal(got[2*size:], want[2*size:]) {
					t.Errorf("%s: %v at %d changes other blocks", c.Type, bad, at)
				}
				c.Encode(got, x, x) // as odd weights
			}
		}
	}
}

// TestValidate plants a NaN and an infinity in every scale and value.
func TestValidate(t *testing.T) {
	for i := range codecs {
		c := &codecs[i]
		n := 2 * superLen
		rowBytes := int(c.Type.RowBytes(int64(n)))
		good := make([]byte, 2*rowBytes)
		if err := Validate(c.Type, good, rowBytes); err != nil {
			t.Errorf("%s: zeros: %v", c.Type, err)
		}
		nan, inf := []byte{0x01, 0x7c}, []byte{0x00, 0xfc}
		offsets := c.scales
		switch c.Type {
		case gguf.MXFP4: // no infinity
			nan, inf, offsets = []byte{0xff}, []byte{0xff}, []int{0}
		case gguf.IQ1M:
			nan, inf, offsets = []byte{0, 0x10, 0, 0, 0, 0xc0, 0, 0x70}, []byte{0, 0, 0, 0, 0, 0xc0, 0, 0xf0}, []int{48}
		case gguf.F32:
			nan, inf, offsets = []byte{1, 0, 0x80, 0x7f}, []byte{0, 0, 0x80, 0xff}, []int{0}
		case gguf.BF16:
			nan, inf, offsets = []byte{0x81, 0x7f}, []byte{0x80, 0xff}, []int{0}
		case gguf.F16:
			offsets = []int{0}
		case gguf.F64:
			nan, inf, offsets = []byte{1, 0, 0, 0, 0, 0, 0xf0, 0x7f}, []byte{0, 0, 0, 0, 0, 0, 0xf0, 0xff}, []int{0}
		}
		for _, o := range offsets {
			for what, value := range map[string][]byte{"NaN": nan, "infinite": inf} {
				if c.Type == gguf.MXFP4 {
					what = "NaN"
				}
				bad := bytes.Clone(good)
				copy(bad[rowBytes+c.Type.BlockBytes()+o:], value)
				err := Validate(c.Type, bad, rowBytes)
				if err == nil || !strings.Contains(err.Error(), "row 1, block 1") || !strings.Contains(err.Error(), what) {
					t.Errorf("%s: %s at byte %d: %v", c.Type, what, o, err)
				}
			}
		}
	}
}

func badWeights(v float64) []float32 {
	w := make([]float32, 256)
	w[0] = float32(v)
	return w
}

func TestWrongArguments(t *testing.T) {
	x, out := make([]float32, 512), make([]byte, 288)
	for name, err := range map[string]error{
		"no encoder":         EncodeRows(gguf.I32, out, x, 256, nil),
		"no encoder for":     EncodeRows(gguf.Q8_K, out, x, 256, nil),
		"positive multiple":  EncodeRows(gguf.Q4_K, out, x, 128, nil),
		"not whole rows":     EncodeRows(gguf.Q4_K, out, x[:500], 256, nil),
		"weights for rows":   EncodeRows(gguf.Q4_K, out, x, 256, x),
		"destination has":    EncodeRows(gguf.Q4_K, out[1:], x, 256, nil),
		"needs importance":   EncodeRows(gguf.IQ2XXS, out[:132], x, 256, nil),
		"column 0 is NaN":    EncodeRows(gguf.Q4_K, out, x, 256, badWeights(math.NaN())),
		"column 0 is +Inf":   EncodeRows(gguf.IQ4XS, out[:272], x, 256, badWeights(math.Inf(1))),
		"no decoder":         DecodeRows(gguf.Q8_K, x, out),
		"not whole Q4_K":     DecodeRows(gguf.Q4_K, x, out[1:]),
		"destination has 51": DecodeRows(gguf.Q4_K, x[1:], out),
		"no codec":           Validate(gguf.Q8_K, out, 292),
		"whole Q4_K rows":    Validate(gguf.Q4_K, out, 100),
	} {
		if err == nil || !strings.Contains(err.Error(), name) {
			t.Errorf("want an error with %q, got %v", name, err)
		}
	}
	if err := EncodeRows(gguf.Q4_K, out, x, 256, nil); err != nil {
		t.Error(err)
	}
}

// TestIntegers decodes the types that files hold but nothing encodes.
func TestIntegers(t *testing.T) {
	for typ, src := range map[gguf.Type][]byte{
		gguf.I8:  {0xfe},
		gguf.I16: {0xfe, 0xff},
		gguf.I32: {0xfe, 0xff, 0xff, 0xff},
		gguf.I64: {0xfe, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff},
		gguf.F64: {0, 0, 0, 0, 0, 0, 0, 0xc0},
		gguf.F32: {0, 0, 0, 0xc0},
	} {
		var got [1]float32
		if err := DecodeRows(typ, got[:], src); err != nil || got[0] != -2 {
			t.Errorf("%s: %v, %v, want -2", typ, got[0], err)
		}
	}
}

// TestScaleNaN decodes the NVFP4 scale that stands for NaN, which counts as 0.
func TestScaleNaN(t *testing.T) {
	block := bytes.Repeat([]byte{0x7f}, sizeNVFP4)
	y := make([]float32, lenNVFP4)
	if err := DecodeRows(gguf.NVFP4, y, block); err != nil || y[0] != 0 {
		t.Errorf("%v, %v, want 0", y[0], err)
	}
}

// FuzzEncodeDecode encodes arbitrary bit patterns, plainly and with arbitrary
// weights, and decodes what came out.
func FuzzEncodeDecode(f *testing.F) {
	seed := make([]byte, 8*superLen)
	for i := range seed {
		seed[i] = byte(i * 7)
	}
	f.Add(seed)
	f.Add(bytes.Repeat([]byte{0, 0, 0x80, 0x7f, 1, 0, 0, 0}, superLen))
	f.Fuzz(func(t *testing.T, data []byte) {
		var x, w [superLen]float32
		for i := 0; 8*i+8 <= len(data) && i < superLen; i++ {
			x[i] = math.Float32frombits(binary.LittleEndian.Uint32(data[8*i:]))
			w[i] = math.Float32frombits(binary.LittleEndian.Uint32(data[8*i+4:]))
		}
		for i := range codecs {
			c := &codecs[i]
			if c.Encode == nil {
				continue
			}
			size := int(c.Type.RowBytes(superLen))
			for _, weights := range [][]float32{nil, w[:]} {
				if weights == nil && c.NeedsWeights {
					continue
				}
				dst := bytes.Repeat([]byte{0xa5}, size+8)
				c.Encode(dst[:size], x[:], weights) // EncodeRows refuses such weights
				if !bytes.Equal(dst[size:], bytes.Repeat([]byte{0xa5}, 8)) {
					t.Fatalf("%s: written past the end", c.Type)
				}
				again := make([]byte, size) // encoding must not depend on what dst held
				c.Encode(again, x[:], weights)
				if !bytes.Equal(again, dst[:size]) {
					t.Fatalf("%s: two encodings differ", c.Type)
				}
				y := make([]float32, superLen)
				if err := DecodeRows(c.Type, y, dst[:size]); err != nil {
					t.Fatal(err)
				}
			}
		}
	})
}
