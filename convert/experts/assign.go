package experts

import "math"

// assignment is a way to give every row of a cost matrix [n,n] a column of its
// own such that the sum of the costs is least. The prices prove that: no
// cost[i,j] is below rows[i] + columns[j], and the chosen ones are equal to it,
// but for rounding.
type assignment struct {
	column        []int32 // by row
	rows, columns []float64
}

// solver has the state of assign.
type solver struct {
	n    int
	cost []float64 // [n,n]
	assignment
	row []int32 // by column, -1: free
	// of one search: the length of the shortest path to each column, the row that
	// it comes from, the columns whose path is final and those that are left
	length []float64
	from   []int32
	done   []int32
	left   []int32
}

// assign solves the assignment problem by shortest augmenting paths in O(n³)
// (Jonker and Volgenant, Computing 38, 1987; without their phases that only make
// the start better, as in Crouse, IEEE Trans. Aerosp. Electron. Syst. 52, 2016).
// Costs are finite. Of several best assignments it is always the same one.
func assign(cost []float64, n int) *assignment {
	s := &solver{n: n, cost: cost, row: make([]int32, n), length: make([]float64, n), from: make([]int32, n),
		done: make([]int32, 0, n), left: make([]int32, 0, n)}
	s.assignment = assignment{column: make([]int32, n), rows: make([]float64, n), columns: make([]float64, n)}
	s.start()
	for i := range s.n {
		if s.column[i] < 0 {
			s.augment(int32(i), s.search(int32(i)))
		}
	}
	return &s.assignment
}

// start finds prices that are allowed, and takes what costs nothing more.
func (s *solver) start() {
	n := s.n
	copy(s.columns, s.cost[:n])
	for i := range n {
		s.column[i], s.row[i] = -1, -1
		for j, c := range s.cost[i*n:][:n] {
			s.columns[j] = min(s.columns[j], c)
		}
	}
	for i := range n {
		costs := s.cost[i*n:][:n]
		s.rows[i] = math.Inf(1)
		for j, c := range costs {
			s.rows[i] = min(s.rows[i], c-s.columns[j])
		}
		for j, c := range costs {
			if s.row[j] < 0 && c-s.columns[j] == s.rows[i] {
				s.column[i], s.row[j] = int32(j), int32(i)
				break
			}
		}
	}
}

// search finds the shortest path from a row to a free column, over columns that
// are taken to the rows that have them, and changes the prices along the way so
// that the path costs nothing.
func (s *solver) search(start int32) (free int32) {
	s.done, s.left = s.done[:0], s.left[:0]
	for j := range s.n {
		s.length[j] = math.Inf(1)
		s.left = append(s.left, int32(j))
	}
	at, i := 0.0, start
	for {
		next := s.nearest(i, at)
		j := s.left[next]
		at = s.length[j]
		last := len(s.left) - 1
		s.left[next], s.left = s.left[last], s.left[:last]
		if s.row[j] < 0 {
			s.reprice(start, at)
			return j
		}
		s.done = append(s.done, j)
		i = s.row[j]
	}
}

// nearest makes paths shorter that are so over row i, which is at a distance, and
// returns the place in left of the column with the shortest: of several a free
// one.
func (s *solver) nearest(i int32, at float64) (next int) {
	costs, price, least := s.cost[int(i)*s.n:][:s.n], s.rows[i], math.Inf(1)
	for k, j := range s.left {
		if l := at + (costs[j] - s.columns[j] - price); l < s.length[j] {
			s.length[j], s.from[j] = l, i
		}
		if l := s.length[j]; l < least || l == least && s.row[j] < 0 && s.row[s.left[next]] >= 0 {
			next, least = k, l
		}
	}
	return next
}

// reprice changes the prices of what a search to the distance of a free column
// has reached.
func (s *solver) reprice(start int32, at float64) {
	s.rows[start] += at
	for _, j := range s.done {
		more := at - s.length[j]
		s.rows[s.row[j]] += more
		s.columns[j] -= more
	}
}

// augment gives the rows on the path to a free column the columns ahead of them.
func (s *solver) augment(start, free int32) {
	for j := free; ; {
		i := s.from[j]
		s.row[j] = i
		j, s.column[i] = s.column[i], j
		if i == start {
			return
		}
	}
}
