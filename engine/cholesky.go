package engine

import (
	"fmt"
	"math"

	"github.com/winnow-moe/winnow/engine/kernel"
)

// cholesky solves equations with a symmetric positive definite matrix
// (Golub and Van Loan, Matrix Computations, section 4.2).
type cholesky struct {
	n     int
	lower []float64 // [n, n] of which the part right of the diagonal is not used
}

// newCholesky factors a + ridge·1.
func newCholesky(a kernel.Matrix, ridge float64) (*cholesky, error) {
	c := &cholesky{a.Rows, make([]float64, a.Rows*a.Rows)}
	for i := range c.n {
		row := c.row(i)
		for j := range i + 1 {
			sum := float64(a.Row(i)[j])
			if i == j {
				sum += ridge
			}
			other := c.row(j)
			for k := range j {
				sum -= float64(row[k] * other[k])
			}
			if i > j {
				row[j] = sum / other[j]
				continue
			}
			if !(sum > 0) || math.IsInf(sum, 0) {
				return nil, fmt.Errorf("equations of %d unknowns cannot be solved: pivot %d is %v", c.n, i, sum)
			}
			row[i] = math.Sqrt(sum)
		}
	}
	return c, nil
}

func (c *cholesky) row(i int) []float64 { return c.lower[i*c.n:][:c.n] }

// invert sets dst [n, n] to the inverse.
func (c *cholesky) invert(dst kernel.Matrix) {
	rows := make([]float64, c.n*c.n)
	of := func(i int) []float64 { return rows[i*c.n:][:c.n] }
	for i := range c.n { // the inverse of the lower half, row after row
		of(i)[i] = 1
		for j := range i {
			kernel.AddScaled64(of(i)[:j+1], of(j)[:j+1], -c.row(i)[j])
		}
		scale64(of(i)[:i+1], 1/c.row(i)[i])
	}
	for i := c.n - 1; i >= 0; i-- {
		for j := i + 1; j < c.n; j++ {
			kernel.AddScaled64(of(i), of(j), -c.row(j)[i])
		}
		scale64(of(i), 1/c.row(i)[i])
		for k, v := range of(i) {
			dst.Row(i)[k] = float32(v)
		}
	}
}

func scale64(x []float64, f float64) {
	for i := range x {
		x[i] *= f
	}
}
