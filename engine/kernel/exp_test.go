package kernel

import (
	"math"
	"math/rand/v2"
	"slices"
	"testing"
)

func TestExp(t *testing.T) {
	step := uint32(7919)
	if testing.Short() {
		step *= 16
	}
	for u := uint64(0); u < 1<<32; u += uint64(step) {
		x := math.Float32frombits(uint32(u))
		got, want := Exp(x), float32(math.Exp(float64(x)))
		switch {
		case x != x:
			if got == got {
				t.Fatalf("Exp(NaN) = %g", got)
			}
		case got != want && got != math.Nextafter32(want, got):
			t.Fatalf("Exp(%g) = %g, want %g", x, got, want)
		}
	}
	if Exp(0) != 1 {
		t.Errorf("Exp(0) = %g", Exp(0))
	}
}

func TestSigmoid(t *testing.T) {
	for _, x := range []float32{-200, -30, -1, 0, 0.5, 3, 200} {
		want := 1 / (1 + math.Exp(-float64(x)))
		if got := float64(Sigmoid(x)); math.Abs(got-want) > 1e-7 {
			t.Errorf("Sigmoid(%g) = %g, want %g", x, got, want)
		}
	}
}

func TestSoftmax(t *testing.T) {
	s := []float32{1, -2, 100, 99.5, 97}
	sum := Softmax(s, 0.5, NoSink)
	want := 0.0
	for _, v := range []float64{1, -2, 100, 99.5, 97} {
		want += math.Exp(0.5*v - 50)
	}
	if math.Abs(sum-want) > 1e-6 || s[2] != 1 {
		t.Errorf("sum %g, want %g; weight of the largest %g, want 1", sum, want, s[2])
	}
	if sum := Softmax([]float32{0, float32(math.NaN())}, 1, NoSink); sum == sum {
		t.Errorf("NaN score: sum %g, want NaN", sum)
	}
}

// TestVectors wants the bits of the functions of one number.
func TestVectors(t *testing.T) {
	eachSet(t, func(t *testing.T) {
		rng := rand.New(rand.NewPCG(9, 9))
		for round := range 20000 {
			x := make([]float32, rng.IntN(300))
			for i := range x {
				x[i] = float32(rng.NormFloat64() * math.Ldexp(1, rng.IntN(24)-14))
				if round%4 == 0 {
					x[i] = math.Float32frombits(rng.Uint32())
				}
			}
			up := random(rng, len(x))
			times := func(f func(float32) float32) func(int) float32 {
				return func(i int) float32 { return f(x[i]) }
			}
			timesUp := func(f func(float32) float32) func(int) float32 {
				return func(i int) float32 { return float32(f(x[i])) * up[i] }
			}
			silu := func(v float32) float32 { return v * Sigmoid(1.5*v) }
			top := float32(math.Inf(-1))
			for _, v := range x {
				if v > top {
					top = v
				}
			}
			for name, f := range map[string]struct {
				all func([]float32)
				one func(int) float32
			}{
				"Softmax": {func(x []float32) { Softmax(x, 1, NoSink) }, times(func(v float32) float32 { return Exp(v - top) })},
				"GELUs":   {func(x []float32) { GELUs(x, nil) }, times(GELU)},
				"GELUs·":  {func(x []float32) { GELUs(x, up) }, timesUp(GELU)},
				"Gate":    {func(x []float32) { Gate(x, nil, 1.5) }, times(silu)},
				"Gate·":   {func(x []float32) { Gate(x, up, 1.5) }, timesUp(silu)},
				"Softcap": {func(x []float32) { Softcap(x, 0.3, 30) }, times(func(v float32) float32 { return 30 * Tanh(float32(v*0.3)/30) })},
			} {
				got := slices.Clone(x)
				f.all(got)
				for i, v := range x {
					if want := f.one(i); math.Float32bits(got[i]) != math.Float32bits(want) && (got[i] == got[i] || want == want) {
						t.Fatalf("%s(%g) = %g, want %g", name, v, got[i], want)
					}
				}
			}
		}
	})
}

// TestSumExp compares with math.Exp and all sets with each other.
func TestSumExp(t *testing.T) {
	first := map[int][2]float64{}
	eachSet(t, func(t *testing.T) {
		rng := rand.New(rand.NewPCG(4, 9))
		for n := range 300 {
			x, y := make([]float32, n), random(rng, n)
			want, wantCross, size := 0.0, 0.0, 0.0
			for i := range x {
				x[i] = float32(-rng.ExpFloat64() * 20)
				if rng.IntN(50) == 0 {
					x[i] = -3e38
				}
				e := math.Exp(float64(x[i]) - 1.5)
				want += e
				wantCross += e * float64(x[i]-y[i])
				size += e * math.Abs(float64(x[i]-y[i]))
			}
			sum, cross := CrossExp(x, y, 1.5)
			if got := SumExp(x, 1.5); got != sum || math.Abs(sum-want) > 1e-12*want || math.Abs(cross-wantCross) > 1e-6*size {
				t.Fatalf("%d numbers: %g, %g and %g, want %g and %g", n, got, sum, cross, want, wantCross)
			}
			if was, ok := first[n]; ok && was != [2]float64{sum, cross} {
				t.Fatalf("%d numbers: %g and %g, another set gives %g", n, sum, cross, was)
			}
			first[n] = [2]float64{sum, cross}
		}
	})
}

func BenchmarkSoftmax(b *testing.B) {
	x := random(rand.New(rand.NewPCG(1, 2)), 512)
	y := make([]float32, len(x))
	for b.Loop() {
		copy(y, x)
		Softmax(y, 1, NoSink)
	}
	b.ReportMetric(float64(b.Elapsed().Nanoseconds())/float64(b.N)/512, "ns/number")
}

func BenchmarkGate(b *testing.B) {
	x := random(rand.New(rand.NewPCG(1, 2)), 512)
	y := make([]float32, len(x))
	for b.Loop() {
		copy(y, x)
		Gate(y, x, 1)
	}
	b.ReportMetric(float64(b.Elapsed().Nanoseconds())/float64(b.N)/512, "ns/number")
}

func BenchmarkExp(b *testing.B) {
	s := float32(0)
	for b.Loop() {
		s = Exp(-s - 0.3)
	}
}
