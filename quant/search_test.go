package quant

import (
	"math"
	"math/rand/v2"
	"testing"
)

// bitsFloat returns floats of all magnitudes, among them zeros of both signs,
// subnormals and, if odd is set, NaN and infinities.
func bitsFloat(r *rand.Rand, odd bool) float32 {
	for {
		v := math.Float32frombits(r.Uint32())
		switch r.IntN(8) {
		case 0:
			v = math.Float32frombits(r.Uint32() & 0x80000000)
		case 1:
			v = float32(r.IntN(7) - 3)
		case 2:
			v = float32(r.NormFloat64())
		}
		if odd || v-v == 0 {
			return v
		}
	}
}

// TestNearest pins the results outside the range of proper rounding, which are
// a property of ggml's formula that blocks of subnormals meet.
func TestNearest(t *testing.T) {
	inf := float32(math.Inf(1))
	for _, c := range []struct {
		in   float32
		want int32
	}{
		{0, 0}, {0.5, 0}, {-0.5, 0}, {1.5, 2}, {-2.5, -2}, {4194303, 4194303}, {-4194304, -4194304},
		{inf, -4194304}, {-inf, -4194304}, {float32(math.NaN()), 0},
	} {
		if got := nearest(c.in); got != c.want {
			t.Errorf("nearest(%v) = %d, want %d", c.in, got, c.want)
		}
	}
}

func TestAwayFromZero(t *testing.T) {
	r := rand.New(rand.NewPCG(1, 1))
	values := []float32{0.5, -0.5, 0.49999997, 1.5, 2.5, -126.5, 126.49999}
	for range 100000 {
		values = append(values, float32(r.Float64()*256-128), float32(r.IntN(512)-256)/2)
	}
	for _, v := range values {
		if got, want := int32(awayFromZero(v)), int32(math.Round(float64(v))); got != want {
			t.Fatalf("%v rounds to %d, want %d", v, got, want)
		}
	}
}

// TestExtremes compares with the comparisons that ggml makes one by one.
func TestExtremes(t *testing.T) {
	r := rand.New(rand.NewPCG(2, 2))
	x := make([]float32, 8)
	for range 200000 {
		for i := range x {
			x[i] = bitsFloat(r, true)
		}
		wantLo, wantHi := x[0], x[0]
		var wantTop, magnitude float32
		for _, v := range x {
			if v < wantLo {
				wantLo = v
			}
			if v > wantHi {
				wantHi = v
			}
			if a := float32(math.Abs(float64(v))); a > magnitude {
				magnitude, wantTop = a, v
			}
		}
		lo, hi := extremes(x)
		if !same(lo, wantLo) || !same(hi, wantHi) {
			t.Fatalf("extremes(%v) = %v, %v, want %v, %v", x, lo, hi, wantLo, wantHi)
		}
		if top := peak(x); !same(top, wantTop) {
			t.Fatalf("peak(%v) = %v, want %v", x, top, wantTop)
		}
	}
}

func same(a, b float32) bool {
	return math.Float32bits(a) == math.Float32bits(b) || a != a && b != b
}

// TestBound checks that bound never exceeds the loss it stands for, on lines
// near the best one, where it is used.
func TestBound(t *testing.T) {
	r := rand.New(rand.NewPCG(3, 3))
	x, w := make([]float32, 32), make([]float32, 32)
	near := 0
	for range 20000 {
		size := math.Exp(r.Float64()*40 - 20)
		for i := range x {
			x[i] = float32(r.NormFloat64() * size)
			w[i] = float32(math.Exp(r.NormFloat64() * 3))
		}
		s := affineSearch{x: x, w: w, n: 15}
		s.measure()
		if !s.boundable {
			t.Fatalf("bound is not used for %v", x)
		}
		inv := (15 + float32(r.Float64()-0.5)) / (s.hi - s.base)
		s1, s2, sx := s.sums(inv)
		scale, low := 1/inv*(1+float32(r.NormFloat64()*0.02)), s.base*(1+float32(r.NormFloat64()*0.02))
		bound, loss := s.bound(scale, low, s1, s2, sx), float64(s.loss(scale, low, false))
		if bound > loss {
			t.Fatalf("bound %v above loss %v for x %v, w %v, scale %v, low %v", bound, loss, x, w, scale, low)
		}
		if bound > 0.9*loss {
			near++
		}
	}
	if near < 15000 {
		t.Errorf("bound is within a tenth of the loss in only %d cases", near)
	}
}

// TestUnclampedLoops compares the loops that do without a clamp with the plain
// definition of the codes.
func TestUnclampedLoops(t *testing.T) {
	r := rand.New(rand.NewPCG(4, 4))
	x, w := make([]float32, 16), make([]float32, 16)
	for range 20000 {
		n := float32(int(4) << r.IntN(4))
		for i := range x {
			x[i], w[i] = float32(r.NormFloat64()), float32(r.ExpFloat64())
			if r.IntN(4) == 0 {
				x[i] = float32(r.IntN(9)-4) / 4
			}
		}
		top := peak(x)
		if top == 0 {
			continue
		}
		var c symmetricCandidates
		c.measure(x, w, top, n)
		for i, inv := range c.inv {
			wx := make([]float32, len(x))
			for j := range x {
				wx[j] = w[j] * x[j]
			}
			if a, b := clampedSums(x, w, wx, inv, n); a != c.a[i] || b != c.b[i] {
				t.Fatalf("n %v, candidate %d of %v: sums %v, %v, want %v, %v", n, i, x, c.a[i], c.b[i], a, b)
			}
		}
		s := affineSearch{x: x, w: w, n: n - 1}
		s.measure()
		if s.hi <= s.base {
			continue
		}
		inv := (n - 1 + float32(r.Float64()*2-1)) / (s.hi - s.base)
		s.sums(inv)
		for i, v := range x {
			if want := float32(nearestIn(inv*(v-s.base), 0, int32(n)-1)); s.l[i] != want {
				t.Fatalf("n %v, inv %v: code %v of %v, want %v", n-1, inv, s.l[i], x, want)
			}
		}
	}
}
