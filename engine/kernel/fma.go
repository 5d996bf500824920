package kernel

import (
	"math"
	"unsafe"
)

// fma returns x·y + z rounded once to float32, as instructions that fuse the
// two do. The product of two float32 is exact in float64. Their float64 sum,
// rounded again to float32, is wrong only if the first rounding ends in the
// middle between two float32; such sums, and those so small that the middle
// lies elsewhere, are rounded to odd first, which is enough for a second
// rounding to be right (Boldo and Melquiond 2008, "Emulation of FMA and
// correctly rounded sums: proved algorithms using rounding to odd").
func fma(x, y, z float32) float32 {
	p, c := float64(x)*float64(y), float64(z)
	s := p + c
	if doubtful(s) {
		s = roundOdd(p, c, s)
	}
	return float32(s)
}

// doubtful reports whether rounding s to float32 may differ from rounding what
// s is rounded from.
func doubtful(s float64) bool {
	b := math.Float64bits(s)
	return b<<35 == 1<<63 || b<<1 < 2*normal
}

// normal is the smallest normal float32 as bits of a float64.
const normal = (1023 - 126) << 52

// roundOdd returns p + c, of which s is the nearest float64: s itself if it is
// exact, else that of the two float64 around the sum whose last bit is one.
//
//go:noinline
func roundOdd(p, c, s float64) float64 {
	// The error of the sum, exact (Knuth's TwoSum).
	t := s - p
	e := (p - (s - t)) + (c - t)
	b := math.Float64bits(s)
	if e == 0 || e != e || b&1 != 0 {
		return s
	}
	if (e > 0) == (s > 0) {
		return math.Float64frombits(b + 1)
	}
	return math.Float64frombits(b - 1)
}

// Dot returns one element of MatMul's result, Σ_k x[k]·w[k]: the specification
// of every product here. x and w have the same length.
func Dot(x, w []float32) float32 {
	var total float64
	for len(x) > 0 {
		n := min(span, len(x))
		var sum float32
		u := w[:n]
		for i, v := range x[:n] {
			sum = fma(v, u[i], sum)
		}
		total += float64(sum)
		x, w = x[n:], w[n:]
	}
	return float32(total)
}

// product1x4 is the portable product: one row of x and a panel of four
// columns.
func product1x4(dst *float32, _ int, c *float64, x, w *float32, k int) {
	var c0, c1, c2, c3 float64 // float32, the sums
	panel := unsafe.Slice(w, 4*k)
	for i, v := range unsafe.Slice(x, k) {
		f, p := float64(v), (*[4]float32)(panel[4*i:])
		p0, p1, p2, p3 := f*float64(p[0]), f*float64(p[1]), f*float64(p[2]), f*float64(p[3])
		s0, s1, s2, s3 := p0+c0, p1+c1, p2+c2, p3+c3
		if doubtful(s0) {
			s0 = roundOdd(p0, c0, s0)
		}
		if doubtful(s1) {
			s1 = roundOdd(p1, c1, s1)
		}
		if doubtful(s2) {
			s2 = roundOdd(p2, c2, s2)
		}
		if doubtful(s3) {
			s3 = roundOdd(p3, c3, s3)
		}
		c0, c1, c2, c3 = float64(float32(s0)), float64(float32(s1)), float64(float32(s2)), float64(float32(s3))
	}
	var totals [4]float64
	if c != nil {
		totals = *(*[4]float64)(unsafe.Slice(c, 4))
	}
	for i, s := range [...]float64{c0, c1, c2, c3} {
		totals[i] += s
	}
	if dst == nil {
		copy(unsafe.Slice(c, 4), totals[:])
		return
	}
	for i, t := range totals {
		unsafe.Slice(dst, 4)[i] = float32(t)
	}
}
