package kernel

import (
	"math"
	"math/rand/v2"
	"testing"
)

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
