package experts

import (
	"math"
	"math/rand/v2"
	"slices"
	"testing"
)

// total adds up what an assignment costs, and sees that every column is used.
func (a *assignment) total(t *testing.T, cost []float64) (sum float64) {
	t.Helper()
	n := len(a.column)
	used := make([]bool, n)
	for i, j := range a.column {
		if used[j] {
			t.Fatalf("column %d has two rows", j)
		}
		used[j] = true
		sum += cost[i*n+int(j)]
	}
	return sum
}

// certify sees that the prices prove the assignment to be a best one: the sum of
// all prices is a bound for any other.
func (a *assignment) certify(t *testing.T, cost []float64) {
	t.Helper()
	n, most := len(a.column), 0.0
	for _, c := range cost {
		most = max(most, math.Abs(c))
	}
	slack := 1e-14 * most * float64(n)
	for i := range n {
		for j := range n {
			over := cost[i*n+j] - a.rows[i] - a.columns[j]
			if over < -slack || int(a.column[i]) == j && over > slack {
				t.Fatalf("row %d, column %d: cost %v is over its prices %v and %v by %v", i, j, cost[i*n+j], a.rows[i], a.columns[j], over)
			}
		}
	}
	a.total(t, cost)
}

// bruteForce tries all assignments.
func bruteForce(cost []float64, n int) float64 {
	var best func(i int, free []int) float64
	best = func(i int, free []int) float64 {
		if i == n {
			return 0
		}
		least := math.Inf(1)
		for k, j := range free {
			least = min(least, cost[i*n+j]+best(i+1, slices.Delete(slices.Clone(free), k, k+1)))
		}
		return least
	}
	return best(0, ascending(make([]float64, n)))
}

func TestAssignAllOrders(t *testing.T) {
	rng := rand.New(rand.NewPCG(1, 2))
	for n := range 9 {
		for range 30 {
			if n == 8 && rng.IntN(10) > 0 {
				continue
			}
			cost := make([]float64, n*n)
			for i := range cost {
				if cost[i] = float64(rng.IntN(7) - 3); rng.IntN(2) == 0 {
					cost[i] += rng.Float64()
				}
			}
			a := assign(cost, n)
			a.certify(t, cost)
			if got, want := a.total(t, cost), bruteForce(cost, n); math.Abs(got-want) > 1e-12 {
				t.Errorf("%v: assignment %v costs %v, the best %v", cost, a.column, got, want)
			}
		}
	}
}

// TestAssignTotals compares with the totals of scipy's linear_sum_assignment
// (testdata/merge.py).
func TestAssignTotals(t *testing.T) {
	for _, c := range []struct {
		n         int
		seed      uint64
		below     uint64
		want, not float64 // of the matrix and, but for the sign, of its negative
	}{
		{5, 1, 10, 8, 36}, {16, 2, 10, 6, 139}, {64, 3, 1000, 1649, 62438}, {64, 4, 3, 0, 128}, {200, 5, 1 << 24, 24570997, 3325909146}, {300, 6, 100, 33, 29662},
	} {
		state, cost := c.seed, make([]float64, c.n*c.n)
		for i := range cost {
			state = state*6364136223846793005 + 1442695040888963407
			cost[i] = float64(state >> 40 % c.below)
		}
		for _, want := range []float64{c.want, -c.not} {
			a := assign(cost, c.n)
			a.certify(t, cost)
			if got := a.total(t, cost); got != want {
				t.Errorf("%d rows, seed %d: %v, want %v", c.n, c.seed, got, want)
			}
			for i := range cost {
				cost[i] = -cost[i]
			}
		}
	}
}

// FuzzAssign: prices prove every result to be best.
func FuzzAssign(f *testing.F) {
	f.Add([]byte{1, 2, 3, 4}, uint64(1))
	f.Add([]byte{0, 0, 0, 0, 0, 0, 0, 0, 9}, uint64(0))
	f.Add([]byte{255, 1, 255, 1, 255, 1, 255, 1, 9, 3, 3, 3, 3, 3, 3, 3}, uint64(1e9))
	f.Fuzz(func(t *testing.T, data []byte, scale uint64) {
		n := int(math.Sqrt(float64(min(len(data), 1000))))
		cost := make([]float64, n*n)
		for i := range cost {
			cost[i] = (float64(data[i]) - 100) * float64(scale) / 7
		}
		assign(cost, n).certify(t, cost)
	})
}

func BenchmarkAssign(b *testing.B) {
	const n = 512
	rng := rand.New(rand.NewPCG(3, 4))
	cost := make([]float64, n*n)
	for i := range cost {
		cost[i] = rng.NormFloat64()
	}
	for b.Loop() {
		assign(cost, n)
	}
}
