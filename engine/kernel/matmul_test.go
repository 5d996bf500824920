package kernel

import (
	"fmt"
	"math"
	"math/big"
	"math/rand/v2"
	"testing"
	"unsafe"
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

// eachSet runs a test with every set of the machine.
func eachSet(t *testing.T, test func(t *testing.T)) {
	before := Active().Name
	defer Use(before)
	for _, s := range Sets() {
		Use(s.Name)
		t.Run(s.Name, test)
	}
}

// shaped is a portable set of the form that the products for AVX-512 have,
// for machines without it.
func shaped() *Set {
	s := &Set{Name: "shaped", Lanes: 32, block: 112}
	for _, rows := range []int{1, 2, 4, 8, 14} {
		s.products = append(s.products, product{rows, func(dst *float32, stride int, c *float64, x, w *float32, k int) {
			for i := range rows {
				for j := range s.Lanes {
					var sum float32
					for p := range k {
						sum = fma(unsafe.Slice(x, rows*xStride)[i*xStride+p], unsafe.Slice(w, k*s.Lanes)[p*s.Lanes+j], sum)
					}
					total := float64(sum)
					if c != nil {
						total += unsafe.Slice(c, rows*s.Lanes)[i*s.Lanes+j]
					}
					if dst == nil {
						unsafe.Slice(c, rows*s.Lanes)[i*s.Lanes+j] = total
					} else {
						unsafe.Slice(dst, (rows-1)*stride+s.Lanes)[i*stride+j] = float32(total)
					}
				}
			}
		}})
	}
	return s
}

func TestShaped(t *testing.T) {
	before := Active().Name
	defer Use(before)
	active.Store(shaped())
	rng := rand.New(rand.NewPCG(8, 8))
	for _, n := range []int{1, 3, 7, 14, 15, 40, 112, 113, 126} {
		for _, m := range []int{1, 31, 32, 70} {
			matMulCase(t, rng, n, m, 9)
			matMulCase(t, rng, n, m, span+3)
		}
	}
}

// TestMatMul wants Dot's bits in every element for every shape around the
// blocking, with strides, indices and columns, and nothing written elsewhere.
func TestMatMul(t *testing.T) {
	eachSet(t, func(t *testing.T) {
		rng := rand.New(rand.NewPCG(3, 4))
		for n := range 30 {
			for _, m := range []int{0, 1, 3, 8, 16, 17, 31, 32, 41} {
				for _, k := range []int{0, 1, 2, 7, 64, span + 1, 2*span + 3} {
					if k > span && n%5 != 0 {
						continue
					}
					matMulCase(t, rng, n, m, k)
				}
			}
		}
		for _, n := range []int{95, 96, 97, 111, 112, 113, 200} {
			matMulCase(t, rng, n, 33, span-1)
			matMulCase(t, rng, n, 5, span+5)
		}
		matMulCase(t, rng, 7, most+9, 2*span)
	})
}

func matMulCase(t *testing.T, rng *rand.Rand, n, m, k int) {
	const guard = 12345
	x := Matrix{Data: random(rng, (n+4)*(k+3)), Rows: n + 4, Cols: k + 3, Stride: k + 3}.Columns(2, k)
	index := make([]int32, n)
	for i := range index {
		index[i] = int32(rng.IntN(n + 4))
	}
	if rng.IntN(2) == 0 {
		x = x.Slice(1, n)
	} else {
		x = x.Gather(index)
	}
	w := Matrix{Data: random(rng, (m+2)*(k+1)), Rows: m + 2, Cols: k + 1, Stride: k + 1}.Columns(1, k).Slice(1, m)
	all := make([]float32, (n+2)*(m+3))
	for i := range all {
		all[i] = guard
	}
	dst := NewMatrix(all, n+2, m+3).Columns(1, m).Slice(1, n)
	if rng.IntN(2) == 0 {
		MatMul(dst, x, w)
	} else {
		var a, b Weights
		a.Pack(w.Slice(0, m/3))
		b.Pack(w.Slice(m/3, m-m/3))
		Multiply(x, Output{dst.Columns(0, m/3), &a}, Output{dst.Columns(m/3, m-m/3), &b})
	}
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

// TestFMA compares fma with exact arithmetic: random bits of all magnitudes,
// sums near the middle of two float32, and what is not finite.
func TestFMA(t *testing.T) {
	rng := rand.New(rand.NewPCG(5, 6))
	check := func(x, y, z float32) {
		t.Helper()
		got := fma(x, y, z)
		want := float32(x*y) + z // not finite
		exact := new(big.Float).SetPrec(700)
		if f := float64(x) * float64(y) * float64(z); f-f == 0 {
			exact.Mul(big.NewFloat(float64(x)), big.NewFloat(float64(y)))
			exact.Add(exact, big.NewFloat(float64(z)))
			want, _ = exact.Float32()
		}
		if got != want && (got == got || want == want) {
			t.Fatalf("fma(%x, %x, %x) = %x, want %x", x, y, z, got, want)
		}
	}
	for range 200000 {
		a, b, c := math.Float32frombits(rng.Uint32()), math.Float32frombits(rng.Uint32()), math.Float32frombits(rng.Uint32())
		check(a, b, c)
		// A sum that is the middle of two float32 but for a tiny product.
		tiny := float32(math.Ldexp(rng.Float64()-0.5, -rng.IntN(60)-24))
		half := float32(1 + math.Ldexp(float64(rng.IntN(1<<23)), -23))
		check(half, 1+0x1p-23, tiny)
		check(float32(math.Ldexp(1, -24)), 1+float32(math.Ldexp(float64(rng.IntN(8)), -23)), half)
		check(tiny*tiny, float32(math.Ldexp(float64(half), -80)), float32(math.Ldexp(float64(half), -120-rng.IntN(20))))
	}
	check(0x1p-60, 0x1p-60, 1+0x1p-23)
	check(0, 1, 0)
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
	for _, s := range []struct{ n, m, k int }{{1, 64, 2048}, {8, 128, 1024}, {64, 64, 64}, {64, 512, 128}, {512, 128, 1024}, {1024, 64, 2048}, {512, 256, 4096}} {
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

func BenchmarkPack(b *testing.B) {
	w := NewMatrix(random(rand.New(rand.NewPCG(1, 2)), 128<<10), 128, 1024)
	var packed Weights
	b.SetBytes(4 << 17)
	for b.Loop() {
		packed.Pack(w)
	}
}
