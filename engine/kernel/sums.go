package kernel

import "math"

// AddSquares adds the square of every x to its sum; the squares are exact.
func AddSquares(sums []float64, x []float32) {
	sums = sums[:len(x)]
	for i := addSquares(sums, x); i < len(x); i++ {
		f := float64(x[i])
		sums[i] += float64(f * f)
	}
}

// AddProducts adds a·x, rounded, to every sum.
func AddProducts(sums, x []float64, a float64) {
	sums = sums[:len(x)]
	for i := addProducts(sums, x, a); i < len(x); i++ {
		sums[i] += float64(a * x[i])
	}
}

// Inner returns Σ x·y of as many numbers each: the products are exact, and
// eight sums, of every eighth, run in ascending order and are added in pairs.
func Inner(x, y []float32) float64 {
	var sums [8]float64
	y = y[:len(x)]
	for i := inners(&sums, x, y); i < len(x); i++ {
		sums[i%8] += float64(float64(x[i]) * float64(y[i]))
	}
	return folded(sums[:])
}

// MaxAbs returns the largest magnitude in x, which holds no NaN.
func MaxAbs(x []float32) float32 {
	return math.Float32frombits(largestBits(x))
}
