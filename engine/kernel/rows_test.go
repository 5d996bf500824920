package kernel

import (
	"math"
	"math/rand/v2"
	"slices"
	"testing"
)

func TestAddScaled(t *testing.T) {
	eachSet(t, func(t *testing.T) {
		rng := rand.New(rand.NewPCG(6, 9))
		for n := range 40 {
			x, got := random(rng, n), random(rng, n+1)
			want := slices.Clone(got)
			for i, v := range x {
				want[i] += float32(0.3 * v)
			}
			if AddScaled(got[:n], x, 0.3); !slices.Equal(got, want) {
				t.Fatalf("%d numbers: %g, want %g", n, got, want)
			}
		}
	})
}

func TestAddSquares(t *testing.T) {
	eachSet(t, func(t *testing.T) {
		rng := rand.New(rand.NewPCG(6, 8))
		for n := range 40 {
			x, got := random(rng, n), make([]float64, n+1)
			for i := range got {
				got[i] = rng.Float64()
			}
			want := slices.Clone(got)
			for i, v := range x {
				want[i] += float64(v) * float64(v)
			}
			if AddSquares(got[:n], x); !slices.Equal(got, want) {
				t.Fatalf("%d numbers: %g, want %g", n, got, want)
			}
		}
	})
}

func TestAddScaled64(t *testing.T) {
	eachSet(t, func(t *testing.T) {
		rng := rand.New(rand.NewPCG(6, 7))
		for n := range 40 {
			x, got := make([]float64, n), make([]float64, n+1)
			for i := range x {
				x[i], got[i] = rng.NormFloat64(), rng.NormFloat64()
			}
			want := slices.Clone(got)
			for i, v := range x {
				want[i] += float64(0.3 * v)
			}
			if AddScaled64(got[:n], x, 0.3); !slices.Equal(got, want) {
				t.Fatalf("%d numbers: %g, want %g", n, got, want)
			}
		}
	})
}

func TestScaled(t *testing.T) {
	eachSet(t, func(t *testing.T) {
		rng := rand.New(rand.NewPCG(6, 6))
		for n := range 40 {
			x, w, got := random(rng, n), random(rng, n), random(rng, n+1)
			plain, weighted := slices.Clone(got), slices.Clone(got)
			for i, v := range x {
				plain[i] = 0.3 * v
				weighted[i] = plain[i] * w[i]
			}
			if Scaled(got[:n], x, nil, 0.3); !slices.Equal(got, plain) {
				t.Fatalf("%d numbers: %g, want %g", n, got, plain)
			}
			if Scaled(got[:n], x, w, 0.3); !slices.Equal(got, weighted) {
				t.Fatalf("%d numbers, weighted: %g, want %g", n, got, weighted)
			}
		}
	})
}

// TestSumSquares compares with a sum of another order and all sets with each other.
func TestSumSquares(t *testing.T) {
	first := map[int]float64{}
	eachSet(t, func(t *testing.T) {
		rng := rand.New(rand.NewPCG(6, 5))
		for n := range 300 {
			x, want := random(rng, n), 0.0
			for _, v := range x {
				want += float64(v) * float64(v)
			}
			got := SumSquares(x)
			if math.Abs(got-want) > 1e-14*want {
				t.Fatalf("%d numbers: %g, want %g", n, got, want)
			}
			if was, ok := first[n]; ok && was != got {
				t.Fatalf("%d numbers: %g, another set gives %g", n, got, was)
			}
			first[n] = got
		}
	})
}

func TestLargest(t *testing.T) {
	eachSet(t, func(t *testing.T) {
		rng := rand.New(rand.NewPCG(6, 4))
		for n := 1; n < 60; n++ {
			x := random(rng, n)
			for i := range x {
				x[i] -= 100 * float32(n%2) // all negative, every second time
			}
			if got, ok := Largest(x); got != slices.Max(x) || !ok {
				t.Fatalf("%d numbers: %g, %t, want %g", n, got, ok, slices.Max(x))
			}
			peak := float32(0)
			for _, v := range x {
				peak = max(peak, v, -v)
			}
			if got := Peak(x); got != peak {
				t.Fatalf("%d numbers: peak %g, want %g", n, got, peak)
			}
		}
		if got, _ := Largest(nil); !math.IsInf(float64(got), -1) {
			t.Errorf("no numbers: %g", got)
		}
	})
}

func TestFinite(t *testing.T) {
	eachSet(t, func(t *testing.T) {
		for n := range 40 {
			x := make([]float32, n)
			for i := range x {
				x[i] = -math.MaxFloat32
			}
			if !Finite(x) {
				t.Fatalf("%d finite numbers: false", n)
			}
			for i := range x {
				for _, bad := range []float64{math.Inf(1), math.Inf(-1), math.NaN()} {
					x[i] = float32(bad)
					if _, ok := Largest(x); ok || Finite(x) {
						t.Fatalf("%d numbers, %g at %d: true", n, bad, i)
					}
				}
				x[i] = 1
			}
		}
	})
}
