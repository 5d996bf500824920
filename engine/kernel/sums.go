package kernel

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
