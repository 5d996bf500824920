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

// Gate multiplies g by Sigmoid(scale·g), which with scale one is the activation
// SiLU, and by up, which is as long, unless it is nil.
func Gate(g, up []float32, scale float32) {
	for i := gates(g, up, scale); i < len(g); i++ {
		g[i] *= Sigmoid(float32(scale * g[i]))
		if up != nil {
			g[i] *= up[i]
		}
	}
}

// GELUs replaces every number of g by its GELU times that of up, which is as
// long, or one where it is nil.
func GELUs(g, up []float32) {
	for i := gelus(g, up); i < len(g); i++ {
		g[i] = GELU(g[i])
		if up != nil {
			g[i] *= up[i]
		}
	}
}

// Softcap replaces every x by limit·tanh(scale·x/limit).
func Softcap(x []float32, scale, limit float32) {
	for i := softcaps(x, scale, limit); i < len(x); i++ {
		x[i] = limit * Tanh(float32(x[i]*scale)/limit)
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
	done, top := scaledTop(s, scale, sink)
	for i, v := range s[done:] {
		v *= scale
		s[done+i] = v
		if v > top {
			top = v
		}
	}
	var sums [4]float64
	rest := s[expsBelow(&sums, s, top):]
	for i, v := range rest {
		rest[i] = Exp(v - top)
	}
	for ; len(rest) >= 4; rest = rest[4:] {
		for i := range sums {
			sums[i] += float64(rest[i])
		}
	}
	for _, v := range rest {
		sums[0] += float64(v)
	}
	sum := (sums[0] + sums[1]) + (sums[2] + sums[3])
	if sink != NoSink {
		sum += float64(Exp(sink - top))
	}
	return sum
}
