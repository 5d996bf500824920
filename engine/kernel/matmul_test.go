package kernel

import (
	"fmt"
	"math/rand/v2"
	"testing"
)

func random(rng *rand.Rand, n int) []float32 {
	v := make([]float32, n)
	for i := range v {
		v[i] = float32(rng.NormFloat64())
	}
	return v
}

func BenchmarkMatMul(b *testing.B) {
	rng := rand.New(rand.NewPCG(1, 2))
	for _, s := range []struct{ n, m, k int }{{1, 64, 2048}, {3, 64, 2048}, {4, 64, 256}, {64, 64, 256}, {64, 64, 2048}, {256, 16, 7168}, {256, 256, 64}} {
		b.Run(fmt.Sprintf("%dx%dx%d", s.n, s.m, s.k), func(b *testing.B) {
			x := NewMatrix(random(rng, s.n*s.k), s.n, s.k)
			w := NewMatrix(random(rng, s.m*s.k), s.m, s.k)
			dst := NewMatrix(make([]float32, s.n*s.m), s.n, s.m)
			for b.Loop() {
				MatMul(dst, x, w)
			}
			flops := 2 * float64(s.n) * float64(s.m) * float64(s.k) * float64(b.N)
			b.ReportMetric(flops/b.Elapsed().Seconds()/1e9, "GFLOP/s")
		})
	}
}
