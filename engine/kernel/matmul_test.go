package kernel

import (
	"fmt"
	"math"
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

// TestDot holds the specification to exact arithmetic: within a span the
// error is that of a float32 sum, beyond it does not grow.
func TestDot(t *testing.T) {
	rng := rand.New(rand.NewPCG(1, 2))
	for n := range 1200 {
		x, w := random(rng, n), random(rng, n)
		exact, size := 0.0, 0.0
		for i := range x {
			p := float64(x[i]) * float64(w[i])
			exact, size = exact+p, size+math.Abs(p)
		}
		bound := size * math.Min(float64(n), span) * 0x1p-24
		if d := math.Abs(float64(Dot(x, w)) - exact); d > bound+math.Abs(exact)*0x1p-24 {
			t.Fatalf("%d products: error %g, at most %g", n, d, bound)
		}
	}
	// 1 is lost in a float32 sum beside 2^25, but not across spans.
	x := make([]float32, 3*span)
	x[0], x[span], x[2*span] = 1<<25, 1, -1<<25
	one := make([]float32, len(x))
	for i := range one {
		one[i] = 1
	}
	if got := Dot(x, one); got != 1 {
		t.Errorf("sum over spans is %g, want 1", got)
	}
}

// TestMatMul wants Dot's bits in every element for every shape around the
// blocking, with strides, indices and columns, and nothing written elsewhere.
func TestMatMul(t *testing.T) {
	rng := rand.New(rand.NewPCG(3, 4))
	const guard = 12345
	for n := range 6 {
		for m := range 8 {
			for _, k := range []int{0, 1, 2, 7, span - 1, span, span + 1, 2*span + 3} {
				x := Matrix{Data: random(rng, 10*(k+3)), Rows: 10, Cols: k + 3, Stride: k + 3}.Columns(2, k)
				index := make([]int32, n)
				for i := range index {
					index[i] = int32(rng.IntN(10))
				}
				if rng.IntN(2) == 0 {
					x = x.Slice(1, n)
				} else {
					x = x.Gather(index)
				}
				w := NewMatrix(random(rng, (m+1)*k), m+1, k).Slice(1, m)
				all := make([]float32, (n+2)*(m+3))
				for i := range all {
					all[i] = guard
				}
				dst := NewMatrix(all, n+2, m+3).Columns(1, m).Slice(1, n)
				MatMul(dst, x, w)
				for i := range n {
					for j := range m {
						got, want := dst.Row(i)[j], Dot(x.Row(i), w.Row(j))
						if math.Float32bits(got) != math.Float32bits(want) {
							t.Fatalf("[%d,%d]·[%d,%d]: element %d,%d is %g, Dot gives %g", n, k, m, k, i, j, got, want)
						}
						dst.Row(i)[j] = guard
					}
				}
				for i, v := range all {
					if v != guard {
						t.Fatalf("[%d,%d]·[%d,%d] writes outside its result, at %d", n, k, m, k, i)
					}
				}
			}
		}
	}
}

func TestMatMulShapes(t *testing.T) {
	defer func() {
		if recover() == nil {
			t.Error("mismatched shapes: no panic")
		}
	}()
	v := make([]float32, 6)
	MatMul(NewMatrix(v, 2, 2), NewMatrix(v, 2, 3), NewMatrix(v, 3, 2))
}

func BenchmarkMatMul(b *testing.B) {
	rng := rand.New(rand.NewPCG(1, 2))
	for _, s := range []struct{ n, m, k int }{{1, 64, 2048}, {3, 64, 2048}, {64, 64, 256}, {64, 64, 2048}, {256, 16, 7168}, {256, 256, 64}} {
		b.Run(fmt.Sprintf("%dx%dx%d", s.n, s.m, s.k), func(b *testing.B) {
			x := NewMatrix(random(rng, s.n*s.k), s.n, s.k)
			w := NewMatrix(random(rng, s.m*s.k), s.m, s.k)
			dst := NewMatrix(make([]float32, s.n*s.m), s.n, s.m)
			b.SetBytes(int64(4 * s.m * s.k))
			for b.Loop() {
				MatMul(dst, x, w)
			}
			flops := 2 * float64(s.n) * float64(s.m) * float64(s.k) * float64(b.N)
			b.ReportMetric(flops/b.Elapsed().Seconds()/1e9, "GFLOP/s")
		})
	}
}
