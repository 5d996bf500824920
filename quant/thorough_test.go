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

// thoroughTypes are the types with a thorough search.
func thoroughTypes() (types []gguf.Type) {
	for i := range codecs {
		if codecs[i].thorough != nil {
			types = append(types, codecs[i].Type)
		}
	}
	return types
}

// weightedError returns Σw·(x−y)², y being what a reader sees.
func weightedError(t gguf.Type, encoded []byte, x, w []float32) (sum float64) {
	y := make([]float32, len(x))
	if err := DecodeRows(t, y, encoded); err != nil {
		panic(err)
	}
	for i := range x {
		e, q := float64(x[i])-float64(y[i]), 1.0
		if w != nil {
			q = float64(w[i])
		}
		sum += float64(q * float64(e*e))
	}
	return sum
}

// checkThorough encodes a row with both searches, as every type and with all
// kernels: the thorough one is never worse in any super-block, does not depend
// on kernels, and leaves valid blocks valid.
func checkThorough(t *testing.T, what string, x, w []float32) {
	t.Helper()
	for _, typ := range thoroughTypes() {
		for _, weights := range [][]float32{nil, w} {
			use(t, "portable")
			before := encodeBy(t, DefaultSearch, typ, x, weights)
			after := encodeBy(t, ThoroughSearch, typ, x, weights)
			size := typ.BlockBytes()
			for b := range len(x) / superLen {
				var q []float32
				if weights != nil {
					q = weights[b*superLen:][:superLen]
				}
				old, got := before[b*size:][:size], after[b*size:][:size]
				if bytes.Equal(old, got) {
					continue
				}
				was, is := weightedError(typ, old, x[b*superLen:][:superLen], q), weightedError(typ, got, x[b*superLen:][:superLen], q)
				if !(is <= was*(1+1e-12)) {
					t.Errorf("%s, %s, super-block %d: error %g, by the default search %g", typ, what, b, is, was)
				}
				if Validate(typ, old, size) == nil && Validate(typ, got, size) != nil {
					t.Errorf("%s, %s, super-block %d is not valid", typ, what, b)
				}
			}
			for _, k := range kernel.Sets() {
				use(t, k.Name)
				if got := encodeBy(t, ThoroughSearch, typ, x, weights); !bytes.Equal(got, after) {
					compareBlocks(t, typ.String()+" "+k.Name+" "+what, typ, got, after)
				}
			}
		}
	}
}

func encodeBy(t *testing.T, s Search, typ gguf.Type, x, weights []float32) []byte {
	t.Helper()
	dst := make([]byte, typ.RowBytes(int64(len(x))))
	if err := s.EncodeRows(typ, dst, x, len(x), weights); err != nil {
		t.Fatal(err)
	}
	return dst
}

// TestThoroughNeverWorse uses rows and weights of every nature.
func TestThoroughNeverWorse(t *testing.T) {
	r := rand.New(rand.NewPCG(7, 7))
	const n = 2 * superLen
	for what, make1 := range rowMakers {
		x, w := make([]float32, n), make([]float32, n)
		make1(r, x)
		for how, make2 := range rowMakers {
			make2(r, w)
			for i, v := range w {
				if v-v != 0 {
					w[i] = 1
				} else if how != "bits" {
					w[i] = abs32(v)
				}
			}
			checkThorough(t, what+" weighed by "+how, x, w)
		}
	}
}

// FuzzThorough is TestThoroughNeverWorse for any bits.
func FuzzThorough(f *testing.F) {
	f.Add(bytes.Repeat([]byte{0, 0, 0x80, 0x3f, 0, 0, 0, 0x3f}, superLen))
	f.Add(bytes.Repeat([]byte{1, 0, 0, 0, 0xff, 0xff, 0x7f, 0x7f, 3, 0, 0, 0x80, 0, 0, 0, 0}, superLen/2))
	f.Fuzz(func(t *testing.T, data []byte) {
		var x, w [superLen]float32
		for i := 0; 8*i+8 <= len(data) && i < len(x); i++ {
			x[i] = math.Float32frombits(binary.LittleEndian.Uint32(data[8*i:]))
			if v := math.Float32frombits(binary.LittleEndian.Uint32(data[8*i+4:])); v-v == 0 {
				w[i] = v
			}
		}
		checkThorough(t, "any", x[:], w[:])
	})
}

// student returns a row whose values are distributed by Student's t with four
// degrees of freedom, so that there are outliers, and weights like gauss.
func student(n int) (x, w []float32) {
	r := rand.New(rand.NewPCG(3, 4))
	x, w = make([]float32, n), make([]float32, n)
	for i := range x {
		var chi2 float64
		for range 4 {
			v := r.NormFloat64()
			chi2 += float64(v * v)
		}
		x[i], w[i] = float32(0.02*r.NormFloat64()/math.Sqrt(chi2/4)), float32(r.ExpFloat64())
	}
	return x, w
}

// TestThoroughGains bounds the error that remains, relative to the default
// search, without importance and with it. The bounds are the measured ratios
// and a little more.
func TestThoroughGains(t *testing.T) {
	for _, c := range []struct {
		typ           gguf.Type
		normal, heavy [2]float64
	}{
		{gguf.Q2_K, [2]float64{0.77, 0.90}, [2]float64{0.72, 0.86}},
		{gguf.Q3_K, [2]float64{0.915, 0.965}, [2]float64{0.92, 0.94}},
		{gguf.Q4_K, [2]float64{0.95, 0.93}, [2]float64{0.94, 0.92}},
		{gguf.Q5_K, [2]float64{0.89, 0.875}, [2]float64{0.89, 0.85}},
		{gguf.Q6_K, [2]float64{0.88, 0.87}, [2]float64{0.90, 0.89}},
		{gguf.IQ4XS, [2]float64{0.94, 0.93}, [2]float64{0.94, 0.93}},
	} {
		check := func(what string, limits [2]float64, x, w []float32) {
			for i, weights := range [][]float32{nil, w} {
				before := weightedError(c.typ, encodeBy(t, DefaultSearch, c.typ, x, weights), x, weights)
				after := weightedError(c.typ, encodeBy(t, ThoroughSearch, c.typ, x, weights), x, weights)
				if ratio := after / before; ratio > limits[i] {
					t.Errorf("%s, %s, %d weights: %.4f of the default search's error remains, want at most %v", c.typ, what, len(weights), ratio, limits[i])
				}
			}
		}
		x, w := gauss(64 * superLen)
		check("normal", c.normal, x, w)
		x, w = student(64 * superLen)
		check("heavy tails", c.heavy, x, w)
	}
}

// TestSearchNames has the names of the flag.
func TestSearchNames(t *testing.T) {
	for _, s := range []Search{DefaultSearch, ThoroughSearch} {
		if got, err := ParseSearch(s.String()); err != nil || got != s {
			t.Errorf("%s is read as %v, %v", s, got, err)
		}
	}
	if _, err := ParseSearch("best"); err == nil {
		t.Error("any name is a search")
	}
	if s := ThoroughSearch.For(gguf.Q8_0); s != DefaultSearch {
		t.Errorf("Q8_0 has the search %s", s)
	}
}
