package kernel

import (
	"fmt"
	"math"
	"math/rand/v2"
	"testing"
	"unsafe"
)

// codedWeights are rows of codes and what they stand for.
type codedWeights struct {
	codes        [][]int8
	scales, mins [][]float32
	values       Matrix
}

// randomCodes makes rows with minimums or without.
func randomCodes(rng *rand.Rand, rows, cols int, mins bool) *codedWeights {
	w := &codedWeights{values: NewMatrix(make([]float32, rows*cols), rows, cols)}
	for r := range rows {
		codes, scales, low := make([]int8, cols), random(rng, cols/group), make([]float32, cols/group)
		if mins {
			low = random(rng, cols/group)
		}
		for k := range codes {
			codes[k] = int8(rng.IntN(256) - 128)
			w.values.Row(r)[k] = float32(scales[k/group]*float32(codes[k])) - low[k/group]
		}
		w.codes, w.scales, w.mins = append(w.codes, codes), append(w.scales, scales), append(w.mins, low)
	}
	return w
}

// read is a Reader. Without minimums it puts none where they belong.
func (w *codedWeights) read(c *Codes, row, rows, first, n int) {
	for r := range rows {
		for k, code := range w.codes[row+r][first:][:n] {
			c.Codes[r*span+k] = uint8(code)
		}
		copy(c.Scales[r*span/group:], w.scales[row+r][first/group:][:n/group])
		copy(c.Mins[r*span/group:], w.mins[row+r][first/group:][:n/group])
	}
}

// eachCodedSet runs a test with every set of the machine that takes codes.
func eachCodedSet(t *testing.T, test func(t *testing.T)) {
	eachSet(t, func(t *testing.T) {
		if Active().Few() == 0 {
			t.Skip("takes no codes")
		}
		test(t)
	})
	before := Active().Name
	defer Use(before)
	active.Store(shapedForCodes())
	t.Run("shaped", test)
}

// TestCodes wants Dot's bits of weights that come as codes, kept or packed.
func TestCodes(t *testing.T) {
	eachCodedSet(t, func(t *testing.T) {
		rng := rand.New(rand.NewPCG(9, 9))
		for n := range 20 {
			for _, m := range []int{1, 7, 8, 15, 16, 17, 31, 32, 33, 70} {
				for _, k := range []int{32, 96, span, span + 32, 3*span + 224} {
					codesCase(t, rng, n, m, k, m%2 == 0)
				}
			}
		}
	})
}

func codesCase(t *testing.T, rng *rand.Rand, n, m, k int, mins bool) {
	const guard = 12345
	w := randomCodes(rng, m, k, mins)
	x := NewMatrix(random(rng, (n+2)*k), n+2, k).Slice(1, n)
	all := make([]float32, (n+2)*(2*m+3))
	for i := range all {
		all[i] = guard
	}
	dst := NewMatrix(all, n+2, 2*m+3).Columns(1, 2*m).Slice(1, n)
	if rng.IntN(2) == 0 {
		index := make([]int32, n)
		for i, to := range rng.Perm(n) {
			index[i] = int32(to)
		}
		dst, x = dst.Gather(index), x.Gather(index)
	}
	var kept, packed Weights
	kept.KeepCodes(m, k, mins, w.read)
	packed.PackCodes(m, k, mins, w.read)
	Multiply(x, Output{dst.Columns(0, m), &kept}, Output{dst.Columns(m, m), &packed})
	for i := range n {
		for j := range m {
			want := Dot(x.Row(i), w.values.Row(j))
			for _, at := range []int{j, m + j} {
				if got := dst.Row(i)[at]; math.Float32bits(got) != math.Float32bits(want) {
					t.Fatalf("[%d,%d]·[%d,%d]: element %d,%d is %g, Dot gives %g", n, k, m, k, i, at, got, want)
				}
				dst.Row(i)[at] = guard
			}
		}
	}
	for i, v := range all {
		if v != guard {
			t.Fatalf("[%d,%d]·[%d,%d] writes outside its result, at %d", n, k, m, k, i)
		}
	}
}

// shapedForCodes is shaped with kernels for codes, in Go.
func shapedForCodes() *Set {
	s := shaped()
	s.transpose8 = func(dst *float32, dstStride int, src *float32, srcStride int, blocks int) {
		for k := range 8 * blocks {
			for r := range 8 {
				unsafe.Slice(dst, (8*blocks-1)*dstStride+8)[k*dstStride+r] = unsafe.Slice(src, 7*srcStride+8*blocks)[r*srcStride+k]
			}
		}
	}
	s.codes = &codeKernels{transpose: portableTranspose, expand: portableExpand}
	for _, p := range s.products {
		s.codes.products = append(s.codes.products, codeProduct{p.rows, func(dst *float32, stride int, c *float64, x *float32, codes *byte, scales, mins *float32, groups int) {
			w := make([]float32, groups*group*codeRows)
			portableExpand(&w[0], codes, scales, mins, groups)
			p.run(dst, stride, c, x, &w[0], groups*group)
		}})
	}
	return s
}

func portableTranspose(dst, src *byte, blocks int) {
	out, in := unsafe.Slice(dst, blocks*32*halfRows), unsafe.Slice(src, halfRows*span)
	for k := range blocks * 32 {
		for r := range halfRows {
			out[k/32*32*halfRows+k%16*32+k/16%2*16+r] = in[r*span+k]
		}
	}
}

// portableExpand is expand for panels of 32 rows.
func portableExpand(dst *float32, codes *byte, scales, mins *float32, groups int) {
	for k := range groups * group {
		for r := range codeRows {
			code := unsafe.Slice(codes, codeRows*span)[r/16*16*span+k/32*32*halfRows+k%16*32+k/16%2*16+r%16]
			at := k/group*codeRows + r
			unsafe.Slice(dst, groups*group*codeRows)[k*codeRows+r] = float32(unsafe.Slice(scales, groups*codeRows)[at]*float32(int8(code))) - unsafe.Slice(mins, groups*codeRows)[at]
		}
	}
}

func BenchmarkCodes(b *testing.B) {
	rng := rand.New(rand.NewPCG(1, 2))
	const m, k = 128, 2048
	w := randomCodes(rng, m, k, true)
	var c Codes
	w.read(&c, 0, 16, 0, span)
	for _, n := range []int{1, 2, 4, 8} {
		x, dst := NewMatrix(random(rng, n*k), n, k), NewMatrix(make([]float32, n*m), n, m)
		for _, how := range []string{"kept", "packed"} {
			b.Run(fmt.Sprintf("%s/%dx%dx%d", how, n, m, k), func(b *testing.B) {
				if Active().Few() == 0 {
					b.Skip("takes no codes")
				}
				read := func(to *Codes, row, rows, first, n int) {}
				var weights Weights
				for b.Loop() {
					if how == "kept" {
						weights.KeepCodes(m, k, true, read)
					} else {
						weights.PackCodes(m, k, true, read)
					}
					Multiply(x, Output{dst, &weights})
				}
				b.ReportMetric(float64(m*k)*float64(b.N)/b.Elapsed().Seconds()/1e6, "Mweights/s")
			})
		}
	}
}
