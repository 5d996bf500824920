package kernel

import (
	"math"
	"math/rand/v2"
	"slices"
	"testing"
)

func TestAddSquares(t *testing.T) {
	eachSet(t, func(t *testing.T) {
		rng := rand.New(rand.NewPCG(3, 5))
		for n := range 40 {
			x, got := random(rng, n), random64(rng, n+1)
			want := slices.Clone(got)
			for i, v := range x {
				want[i] = math.FMA(float64(v), float64(v), want[i])
			}
			if AddSquares(got[:n], x); !slices.Equal(got, want) {
				t.Fatalf("%d numbers: %g, want %g", n, got, want)
			}
		}
	})
}

func TestAddProducts(t *testing.T) {
	eachSet(t, func(t *testing.T) {
		rng := rand.New(rand.NewPCG(3, 6))
		for n := range 40 {
			x, got := random64(rng, n), random64(rng, n+1)
			want := slices.Clone(got)
			for i, v := range x {
				want[i] += float64(0.3 * v)
			}
			if AddProducts(got[:n], x, 0.3); !slices.Equal(got, want) {
				t.Fatalf("%d numbers: %g, want %g", n, got, want)
			}
		}
	})
}

func random64(rng *rand.Rand, n int) []float64 {
	v := make([]float64, n)
	for i := range v {
		v[i] = rng.NormFloat64()
	}
	return v
}

// TestInner compares with a sum in another order, and sets with each other.
func TestInner(t *testing.T) {
	first := map[int]float64{}
	eachSet(t, func(t *testing.T) {
		rng := rand.New(rand.NewPCG(3, 7))
		for n := range 300 {
			x, y := random(rng, n), random(rng, n)
			want, size := 0.0, 0.0
			for i := n - 1; i >= 0; i-- {
				want = math.FMA(float64(x[i]), float64(y[i]), want)
				size += math.Abs(float64(x[i] * y[i]))
			}
			got := Inner(x, y)
			if math.Abs(got-want) > 1e-14*size {
				t.Fatalf("%d numbers: %g, want %g", n, got, want)
			}
			if was, ok := first[n]; ok && was != got {
				t.Fatalf("%d numbers: %g, another set gives %g", n, got, was)
			}
			first[n] = got
		}
	})
}

func TestMaxAbs(t *testing.T) {
	eachSet(t, func(t *testing.T) {
		rng := rand.New(rand.NewPCG(3, 8))
		for n := range 40 {
			x, want := random(rng, n), float32(0)
			for _, v := range x {
				want = max(want, v, -v)
			}
			if got := MaxAbs(x); got != want {
				t.Fatalf("%d numbers: %g, want %g", n, got, want)
			}
		}
	})
}
