package engine

import (
	"context"
	"math"

	"github.com/winnow-moe/winnow/engine/kernel"
	"github.com/winnow-moe/winnow/formats/arch"
)

// normer is a norm with its weights decoded.
type normer struct {
	kind         arch.Norm
	weight, bias []float32
	eps          float32
}

// normer decodes the weights of a norm of the model's kind.
func (m *Model) normer(ctx context.Context, norm affine) (n normer, err error) {
	n = normer{kind: m.arch.Family.Block.Norm, eps: m.Params().NormEps}
	if n.weight, err = m.vector(ctx, norm.w); err == nil {
		n.bias, err = m.vector(ctx, norm.b)
	}
	return n, err
}

// apply writes the norm of x to dst, which may be x.
func (n *normer) apply(dst, x []float32) {
	if n.kind == arch.LayerNorm {
		layerNorm(dst, x, n.weight, n.bias, n.eps)
		return
	}
	rmsNorm(dst, x, n.weight, n.eps)
}

// layerNorm writes (x − mean)/sqrt(variance + eps)·weight + bias to dst, which
// may be x (Ba et al. 2016). Sums are float64; bias may be nil.
func layerNorm(dst, x, weight, bias []float32, eps float32) {
	mean := 0.0
	for _, v := range x {
		mean += float64(v)
	}
	mean /= float64(len(x))
	sum := 0.0
	for _, v := range x {
		d := float64(v) - mean
		sum += float64(d * d)
	}
	scale := 1 / math.Sqrt(sum/float64(len(x))+float64(eps))
	for i, v := range x {
		dst[i] = float32((float64(v)-mean)*scale) * weight[i]
	}
	if bias != nil {
		addTo(dst, bias)
	}
}

// rmsNorm writes x / sqrt(mean(x²) + eps) · weight to dst, which may be x
// (Zhang and Sennrich 2019, "Root Mean Square Layer Normalization"; HF
// LlamaRMSNorm). The sum of squares is float64. Without weight it is 1.
func rmsNorm(dst, x, weight []float32, eps float32) {
	scale := float32(1 / math.Sqrt(kernel.SumSquares(x)/float64(len(x))+float64(eps)))
	kernel.Scaled(dst, x, weight, scale)
}
