package engine

import "math"

// rmsNorm writes x / sqrt(mean(x²) + eps) · weight to dst, which may be x
// (Zhang and Sennrich 2019, "Root Mean Square Layer Normalization"; HF
// LlamaRMSNorm). The sum of squares is float64.
func rmsNorm(dst, x, weight []float32, eps float32) {
	sum := 0.0
	for _, v := range x {
		sum += float64(v) * float64(v) // exact: a square of 24 bits has 48
	}
	scale := float32(1 / math.Sqrt(sum/float64(len(x))+float64(eps)))
	for i, v := range x {
		dst[i] = float32(v*scale) * weight[i]
	}
}
