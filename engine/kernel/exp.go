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
func GELU(x float32) float32 {
	inner := float32(0.7978845608028654) * (x + float32(float32(0.044715)*float32(x*float32(x*x))))
	return 0.5 * x * (1 + Tanh(inner))
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

// NoSink is the sink of a softmax that has none.
var NoSink = float32(math.Inf(-1))

// Softmax replaces scores s by e^(scale·s - max) and returns the sum: dividing
// by it gives weights that sum to one. The sum runs in ascending order. A sink
// is the score, not scaled, of one more element that takes its share and is
// not among the weights.
func Softmax(s []float32, scale, sink float32) float64 {
	top := sink
	for i, v := range s {
		s[i] = v * scale
		top = max(top, s[i])
	}
	sum := 0.0
	for i, v := range s {
		s[i] = Exp(v - top)
		sum += float64(s[i])
	}
	if sink != NoSink {
		sum += float64(Exp(sink - top))
	}
	return sum
}
