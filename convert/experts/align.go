package experts

import (
	"context"
	"math"
	"slices"
)

// neurons are the weights of the hidden neurons of one expert: of each matrix
// that has a row for every neuron the rows [n, width], and the down projection
// turned on its side.
type neurons struct {
	n     int
	parts [][]float32
	data  [len(matrixRoles)][]float32 // that parts are parts of, used again for the next expert
}

// match finds the order in which the hidden neurons of an expert are most like
// those of a center: order[i] is the neuron that comes to stand at place i. It
// makes the sum of |a_i − b_order[i]|² least over all orders, a and b being the
// neurons' weights one behind the other. Weights must be finite.
func match(ctx context.Context, center, expert *neurons, fast Products) ([]int32, error) {
	cost := make([]float64, center.n*center.n)
	subtract := subtractProducts
	if fast != nil {
		subtract = fast.subtract
	}
	for i, part := range center.parts {
		if err := subtract(ctx, cost, part, expert.parts[i], center.n); err != nil {
			return nil, err
		}
	}
	if slices.ContainsFunc(cost, func(v float64) bool { return math.IsNaN(v) || math.IsInf(v, 0) }) {
		return nil, invalid("their weights are not finite")
	}
	// |a|² and |b|² are the same in any order; half of the rest is −a·b.
	return assign(cost, center.n).column, nil
}

// Products multiplies every row of a with every row of b: dst[i,j] = Σ_k a[i,k]·b[j,k],
// a and b being [n, width] and dst [n,n]. It is called by several goroutines at once.
type Products func(dst, a, b []float32, n, width int)

// subtract does what subtractProducts does.
func (f Products) subtract(ctx context.Context, dst []float64, a, b []float32, n int) error {
	products := make([]float32, n*n)
	f(products, a, b, n, len(a)/n)
	for i, v := range products {
		dst[i] -= float64(v)
	}
	return ctx.Err()
}

// panel is how many elements of a row are multiplied before the next rows: those
// of a few rows fit the first cache.
const panel = 256

// subtractProducts subtracts the products of the rows of a and b, both [n,
// width], from dst [n,n]. Products are exact and sums float64.
func subtractProducts(ctx context.Context, dst []float64, a, b []float32, n int) error {
	width := len(a) / n
	wideA, wideB := make([]float64, n*panel), make([]float64, n*panel)
	for first := 0; first < width; first += panel {
		k := min(panel, width-first)
		widen(wideA, a, n, width, first, k)
		widen(wideB, b, n, width, first, k)
		for i := 0; i < n; i += 2 {
			if err := ctx.Err(); err != nil {
				return err
			}
			twoRows(dst, wideA, wideB, i, n, k)
		}
	}
	return nil
}

// widen copies columns [first, first+k) of rows as float64.
func widen(dst []float64, src []float32, n, width, first, k int) {
	for i := range n {
		row := dst[i*k:][:k]
		for x, v := range src[i*width+first:][:k] {
			row[x] = float64(v)
		}
	}
}

// twoRows subtracts the products of rows i and i+1 of a, if it is there, with all
// of b; rows have k elements.
func twoRows(dst, a, b []float64, i, n, k int) {
	row := func(of []float64, r int) []float64 { return of[min(r, n-1)*k:][:k] }
	a0, a1 := row(a, i), row(a, i+1)
	for j := 0; j < n; j += 2 {
		sums := products(a0, a1, row(b, j), row(b, j+1))
		for r, pair := range sums[:min(2, n-i)] {
			for c, sum := range pair[:min(2, n-j)] {
				dst[(i+r)*n+j+c] -= sum
			}
		}
	}
}

// products multiplies two rows with two others: the processor then has several
// sums to go on with at any time.
func products(a0, a1, b0, b1 []float64) (sums [2][2]float64) {
	n := len(b0)
	a0, a1, b1 = a0[:n], a1[:n], b1[:n]
	var s00, s01, s10, s11 float64
	for k, x := range b0 {
		y := b1[k]
		s00 += float64(a0[k] * x)
		s01 += float64(a0[k] * y)
		s10 += float64(a1[k] * x)
		s11 += float64(a1[k] * y)
	}
	return [2][2]float64{{s00, s01}, {s10, s11}}
}
