package kernel

import "math"

// Finite reports whether no number is NaN or infinite.
func Finite(x []float32) bool { return largestBits(x) < infinite }

// infinite is the bits of an infinity without its sign; those of NaN are more.
const infinite = 0x7f800000

func signless(v float32) uint32 { return math.Float32bits(v) &^ (1 << 31) }

// largestBits returns the bits, without sign, of the largest number in size, a
// NaN if there is one.
func largestBits(x []float32) uint32 {
	done, bits := largest(x)
	for _, v := range x[done:] {
		bits = max(bits, signless(v))
	}
	return bits
}

// Largest returns the largest number, −∞ if there is none, and whether no number
// is NaN or infinite.
func Largest(x []float32) (top float32, finite bool) {
	done, top, bits := extremes(x)
	for _, v := range x[done:] {
		if v > top {
			top = v
		}
		bits = max(bits, signless(v))
	}
	return top, bits < infinite
}

// Peak returns the largest magnitude, 0 if there are no numbers.
func Peak(x []float32) float32 { return math.Float32frombits(largestBits(x)) }

// SumSquares returns Σ x² in float64: eight sums, of every eighth element, run in
// ascending order and are added in pairs.
func SumSquares(x []float32) float64 {
	var sums [8]float64
	for i, v := range x[sumSquares(&sums, x):] {
		sums[i%8] += float64(float64(v) * float64(v))
	}
	return folded(sums[:])
}

// AddSquares adds x² to sums, which are as many.
func AddSquares(sums []float64, x []float32) {
	sums = sums[:len(x)]
	for i := addSquares(sums, x); i < len(x); i++ {
		sums[i] += float64(float64(x[i]) * float64(x[i]))
	}
}

// AddScaled adds scale·x to dst, which is as long.
func AddScaled(dst, x []float32, scale float32) {
	dst = dst[:len(x)]
	for i := addScaled(dst, x, scale); i < len(x); i++ {
		dst[i] += float32(scale * x[i])
	}
}

// AddScaled64 adds scale·x to dst, which is as long.
func AddScaled64(dst, x []float64, scale float64) {
	dst = dst[:len(x)]
	for i := addScaled64(dst, x, scale); i < len(x); i++ {
		dst[i] += float64(scale * x[i])
	}
}

// Scaled writes scale·x, rounded, times w to dst. All are as long, dst may be x,
// and w may be nil: then it is one.
func Scaled(dst, x, w []float32, scale float32) {
	dst = dst[:len(x)]
	for i := scaled(dst, x, w, scale); i < len(x); i++ {
		v := float32(x[i] * scale)
		if w != nil {
			v *= w[i]
		}
		dst[i] = v
	}
}
