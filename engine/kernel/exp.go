package kernel

import "math"

// Splitting of ln 2 into a part whose product with small whole numbers is
// exact and a remainder.
const (
	ln2High = 6.93147180369123816490e-01
	ln2Low  = 1.90821492927058770002e-10
)

// taylor holds 1/n! from the highest power of the series down.
var taylor = [...]float64{1. / 3628800, 1. / 362880, 1. / 40320, 1. / 5040, 1. / 720, 1. / 120, 1. / 24, 1. / 6, 1. / 2, 1, 1}

// Exp returns e^x, correct to the last bit or next to it: the argument is
// reduced to |r| ≤ ln(2)/2, where ten terms of the series leave an error of
// 3e-13, and everything is computed in float64 and rounded once. NaN gives
// NaN. math.Exp picks instructions by CPU, so its last bits are not the same
// everywhere.
func Exp(x float32) float32 {
	switch {
	case x > 89:
		return float32(math.Inf(1))
	case x < -104:
		return 0
	case x != x:
		return x
	}
	return float32(exp64(float64(x)))
}

// exp64 is e^x for |x| ≤ 700.
func exp64(x float64) float64 {
	n := math.Floor(float64(x*math.Log2E) + 0.5)
	r := x - float64(n*ln2High)
	r -= float64(n * ln2Low)
	s := 0.0
	for _, c := range taylor {
		s = float64(s*r) + c
	}
	// 2ⁿ is a normal float64: |n| ≤ 1011.
	return s * math.Float64frombits(uint64(1023+int64(n))<<52)
}

// lowest is the least argument of exp64: what is below would give less.
const lowest = -700

// SumExp returns Σ e^(x−top) for numbers that are at most top. Eight sums, of
// every eighth element, run in ascending order and are added in pairs. Terms
// below e^-700 count as that.
func SumExp(x []float32, top float64) float64 {
	var sums [8]float64
	for i, v := range x[sumExps(&sums, x, top):] {
		sums[i%8] += exp64(max(lowest, float64(v)-top))
	}
	return folded(sums[:])
}

// CrossExp returns SumExp of x and Σ e^(x−top)·(x−y), summed alike, for as many
// numbers y.
func CrossExp(x, y []float32, top float64) (sum, cross float64) {
	var sums [16]float64
	done := crossExps(&sums, x, y, top)
	y = y[done:]
	for i, v := range x[done:] {
		e := exp64(max(lowest, float64(v)-top))
		sums[i%8] += e
		sums[8+i%8] += float64(e * (float64(v) - float64(y[i])))
	}
	return folded(sums[:8]), folded(sums[8:])
}

// folded adds eight sums in pairs.
func folded(s []float64) float64 {
	return ((s[0] + s[4]) + (s[2] + s[6])) + ((s[1] + s[5]) + (s[3] + s[7]))
}

// Finite reports whether no number is NaN or infinite.
func Finite(x []float32) bool { return largestBits(x) < 0x7f800000 }

// largestBits returns the bits, without sign, of the largest number in size, a
// NaN if there is one.
func largestBits(x []float32) uint32 {
	done, top := largest(x)
	for _, v := range x[done:] {
		top = max(top, math.Float32bits(v)&^(1<<31))
	}
	return top
}

// AddScaled adds scale·x to dst, which is as long.
func AddScaled(dst, x []float32, scale float32) {
	dst = dst[:len(x)]
	for i := addScaled(dst, x, scale); i < len(x); i++ {
		dst[i] += float32(scale * x[i])
	}
}

// Tanh returns the hyperbolic tangent: (e^2x − 1)/(e^2x + 1), and x − x³/3 where
// that would cancel.
func Tanh(x float32) float32 {
	v := float64(x)
	switch {
	case v > 20:
		return 1
	case v < -20:
		return -1
	case v > -1e-3 && v < 1e-3:
		return float32(v - float64(v*v*v)/3)
	}
	e := exp64(2 * v)
	return float32((e - 1) / (e + 1))
}

// GELU returns x/2·(1 + tanh(√(2/π)·(x + 0.044715·x³))) (Hendrycks and Gimpel
// 2016), the form that models call gelu_pytorch_tanh.
func GELU(x float32) float32 { return 0.5 * x * (1 + Tanh(inner(x))) }

// inner is what GELU takes the hyperbolic tangent of.
func inner(x float32) float32 {
	return float32(0.7978845608028654) * (x + float32(float32(0.044715)*float32(x*float32(x*x))))
}

// Softplus returns ln(1 + e^x).
func Softplus(x float32) float32 {
	if x > 20 {
		return x
	}
	return float32(math.Log1p(exp64(max(float64(x), -104))))
}

// Sigmoid returns 1/(1+e^-x).
func Sigmoid(x float32) float32 { return 1 / (1 + Exp(-x)) }

// Exps replaces every number by its Exp.
func Exps(x []float32) {
	for i := exps(x); i < len(x); i++ {
		x[i] = Exp(x[i])
	}
}

// stretch is how many numbers pass through a function's own memory at once.
const stretch = 128

// Sigmoids writes Sigmoid of scale·x to dst, which may be x and is as long.
func Sigmoids(dst, x []float32, scale float32) {
	for i, v := range x {
		dst[i] = -(scale * v)
	}
	Exps(dst[:len(x)])
	for i, v := range dst[:len(x)] {
		dst[i] = 1 / (1 + v)
	}
}

// Gate multiplies g by Sigmoid(scale·g): the activation SiLU, with scale one.
func Gate(g []float32, scale float32) {
	var buf [stretch]float32
	for len(g) > 0 {
		part := g[:min(len(g), stretch)]
		s := buf[:len(part)]
		Sigmoids(s, part, scale)
		for i, v := range s {
			part[i] *= v
		}
		g = g[len(part):]
	}
}

// GELUs replaces every number by its GELU.
func GELUs(x []float32) {
	var buf [stretch]float32
	for len(x) > 0 {
		part := x[:min(len(x), stretch)]
		t := buf[:len(part)]
		for i, v := range part {
			t[i] = inner(v)
		}
		for i := tanhs(t); i < len(t); i++ {
			t[i] = Tanh(t[i])
		}
		for i, v := range t {
			part[i] = 0.5 * part[i] * (1 + v)
		}
		x = x[len(part):]
	}
}

// NoSink is the sink of a softmax that has none.
var NoSink = float32(math.Inf(-1))

// Softmax replaces scores s by e^(scale·s - max) and returns the sum: dividing
// by it gives weights that sum to one. Four sums, of every fourth element from
// the first four on, run in ascending order and are added in pairs. A sink is
// the score, not scaled, of one more element that takes its share and is not
// among the weights.
func Softmax(s []float32, scale, sink float32) float64 {
	top := sink
	for i, v := range s {
		v *= scale
		s[i] = v
		if v > top {
			top = v
		}
	}
	for i, v := range s {
		s[i] = v - top
	}
	Exps(s)
	sum := sumOf(s)
	if sink != NoSink {
		sum += float64(Exp(sink - top))
	}
	return sum
}

func sumOf(s []float32) float64 {
	var a, b, c, d float64
	for ; len(s) >= 4; s = s[4:] {
		a, b, c, d = a+float64(s[0]), b+float64(s[1]), c+float64(s[2]), d+float64(s[3])
	}
	for _, v := range s {
		a += float64(v)
	}
	return (a + b) + (c + d)
}
