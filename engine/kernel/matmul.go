// Package kernel holds the inner loops of the forward pass: products of
// weights and activations, and the exponential. It knows neither files nor
// models.
//
// Every function is exactly reproducible. An output element is the same
// sequence of rounded operations however rows and columns are grouped into
// calls, however many threads make the calls, and whatever instruction set the
// program is compiled for: products are converted to float32 before they are
// added, which forbids the compiler to fuse the two.
package kernel

import "fmt"

// Matrix is a view of Rows rows of Cols elements whose starts lie Stride
// elements apart in Data. With an Index, row i of the view is row Index[i] of
// Data, so that scattered rows take part in a product without being copied.
type Matrix struct {
	Data               []float32
	Rows, Cols, Stride int
	Index              []int32
}

// NewMatrix views data as rows of cols elements without gaps.
func NewMatrix(data []float32, rows, cols int) Matrix {
	return Matrix{Data: data[:rows*cols], Rows: rows, Cols: cols, Stride: cols}
}

// Row returns row i.
func (m *Matrix) Row(i int) []float32 {
	if m.Index != nil {
		i = int(m.Index[i])
	}
	return m.Data[i*m.Stride:][:m.Cols:m.Cols]
}

// Columns views n columns from first on.
func (m Matrix) Columns(first, n int) Matrix {
	if m.Rows > 0 {
		m.Data = m.Data[first:]
	}
	m.Cols = n
	return m
}

// Slice views n rows from first on.
func (m Matrix) Slice(first, n int) Matrix {
	if m.Index != nil {
		m.Index = m.Index[first : first+n]
	} else if n > 0 {
		m.Data = m.Data[first*m.Stride:]
	}
	m.Rows = n
	return m
}

// Gather views the rows named by index.
func (m Matrix) Gather(index []int32) Matrix {
	m.Index, m.Rows = index, len(index)
	return m
}

// span is the number of products summed in float32 before the sum is carried
// on in float64. It bounds the rounding error of long rows to that of a short
// one and is part of the result: another value gives other last bits.
const span = 256

// MatMul computes dst[i][j] = Σ_k x[i][k]·w[j][k] for x [n, k], w [m, k] and
// dst [n, m], which must not overlap the others.
//
// Each sum runs over k in ascending order: spans of 256 products are summed in
// float32 from zero, their sums are added in float64, the total is rounded to
// float32. Sums of no products are zero.
func MatMul(dst, x, w Matrix) {
	if dst.Rows != x.Rows || dst.Cols != w.Rows || x.Cols != w.Cols {
		panic(fmt.Sprintf("kernel: [%d,%d]·[%d,%d]ᵀ into [%d,%d]", x.Rows, x.Cols, w.Rows, w.Cols, dst.Rows, dst.Cols))
	}
	i := 0
	for ; i+2 <= x.Rows; i += 2 {
		matMul2(&dst, &x, &w, i)
	}
	if i < x.Rows {
		matMul1(dst.Row(i), x.Row(i), &w)
	}
}

// matMul2 computes rows i and i+1 of dst.
func matMul2(dst, x, w *Matrix, i int) {
	x0, x1 := x.Row(i), x.Row(i+1)
	d0, d1 := dst.Row(i), dst.Row(i+1)
	j := 0
	for ; j+2 <= w.Rows; j += 2 {
		d0[j], d0[j+1], d1[j], d1[j+1] = dot2x2(x0, x1, w.Row(j), w.Row(j+1))
	}
	if j < w.Rows {
		d0[j], d1[j] = Dot(x0, w.Row(j)), Dot(x1, w.Row(j))
	}
}

// matMul1 computes one row of dst.
func matMul1(dst, x []float32, w *Matrix) {
	j := 0
	for ; j+4 <= w.Rows; j += 4 {
		dst[j], dst[j+1], dst[j+2], dst[j+3] = dot1x4(x, w.Row(j), w.Row(j+1), w.Row(j+2), w.Row(j+3))
	}
	for ; j < w.Rows; j++ {
		dst[j] = Dot(x, w.Row(j))
	}
}

// Dot returns one element of MatMul's result, Σ_k x[k]·w[k]: the specification
// of every other product here. x and w have the same length.
func Dot(x, w []float32) float32 {
	var total float64
	for len(x) > 0 {
		n := min(span, len(x))
		var sum float32
		u := w[:n]
		for i, v := range x[:n] {
			sum += float32(v * u[i])
		}
		total += float64(sum)
		x, w = x[n:], w[n:]
	}
	return float32(total)
}

// dot2x2 is Dot of every x with every w: xw = s00, s01, s10, s11. Four sums
// at a time keep the adders busy; with eight the compiler runs out of
// registers, and the loop takes more than twice as long per product.
func dot2x2(x0, x1, w0, w1 []float32) (s00, s01, s10, s11 float32) {
	var t00, t01, t10, t11 float64
	for k := 0; k < len(x0); k += span {
		var a, b, c, d float32
		u := x0[k:min(k+span, len(x0))]
		v, p, q := x1[k:][:len(u)], w0[k:][:len(u)], w1[k:][:len(u)]
		for i, f := range u {
			g, y, z := v[i], p[i], q[i]
			a += float32(f * y)
			b += float32(f * z)
			c += float32(g * y)
			d += float32(g * z)
		}
		t00, t01, t10, t11 = t00+float64(a), t01+float64(b), t10+float64(c), t11+float64(d)
	}
	return float32(t00), float32(t01), float32(t10), float32(t11)
}

// dot1x4 is Dot of x with four rows.
func dot1x4(x, w0, w1, w2, w3 []float32) (s0, s1, s2, s3 float32) {
	var t0, t1, t2, t3 float64
	for k := 0; k < len(x); k += span {
		var a, b, c, d float32
		u := x[k:min(k+span, len(x))]
		p, q, r, s := w0[k:][:len(u)], w1[k:][:len(u)], w2[k:][:len(u)], w3[k:][:len(u)]
		for i, f := range u {
			a += float32(f * p[i])
			b += float32(f * q[i])
			c += float32(f * r[i])
			d += float32(f * s[i])
		}
		t0, t1, t2, t3 = t0+float64(a), t1+float64(b), t2+float64(c), t3+float64(d)
	}
	return float32(t0), float32(t1), float32(t2), float32(t3)
}
