package calib

import (
	"fmt"
	"maps"
	"slices"
)

// Statistics is everything that a calibration run measures: the importance
// matrix of every text and what its tokens did with the experts. All sums are
// exact (see exact), so that runs over parts of the texts add up to one over
// all, bit for bit, as long as they are divided between windows.
type Statistics struct {
	// ChunkSize is the number of tokens of a window.
	ChunkSize int
	// Domains are the kinds of text, in the order in which they came.
	Domains []*Domain
}

// Domain is what was measured on the texts of one kind.
type Domain struct {
	Name     string
	Datasets []string
	Chunks   int64
	inputs   map[string]*inputTotals
	experts  map[int]*ExpertTotals
}

// inputTotals are Σ x² of the inputs of a weight.
type inputTotals struct {
	rows []int64 // of every matrix
	sums []exact // matrix after matrix
}

// Domain returns the domain of a name, a new one if need be.
func (s *Statistics) Domain(name string) *Domain {
	for _, d := range s.Domains {
		if d.Name == name {
			return d
		}
	}
	d := &Domain{Name: name, inputs: map[string]*inputTotals{}, experts: map[int]*ExpertTotals{}}
	s.Domains = append(s.Domains, d)
	return d
}

// AddDataset names a text.
func (d *Domain) AddDataset(name string) {
	if !slices.Contains(d.Datasets, name) {
		d.Datasets = append(d.Datasets, name)
	}
}

// Input adds squares, Σ x² of every input column over some rows that went
// through one of a weight's matrices. The numbers of a window are added in one
// call for each matrix.
func (d *Domain) Input(weight string, matrix, matrices int, rows int64, squares []float64) error {
	t := d.inputs[weight]
	if t == nil {
		t = &inputTotals{make([]int64, matrices), make([]exact, matrices*len(squares))}
		d.inputs[weight] = t
	}
	if len(t.rows) != matrices || len(t.sums) != matrices*len(squares) {
		return fmt.Errorf("tensor %q: %d matrices of %d columns, before that %d with %d values", weight, matrices, len(squares), len(t.rows), len(t.sums))
	}
	t.rows[matrix] += rows
	sums := t.sums[matrix*len(squares):]
	for i, v := range squares {
		if err := sums[i].add(v); err != nil {
			return fmt.Errorf("tensor %q, matrix %d, column %d: %w", weight, matrix, i, err)
		}
	}
	return nil
}

// Experts adds the statistics of a block over a window.
func (d *Domain) Experts(layer int, sums *ExpertSums) error {
	t := d.experts[layer]
	if t == nil {
		t = newExpertTotals(len(sums[Selected]))
		d.experts[layer] = t
	}
	if err := t.add(sums); err != nil {
		return fmt.Errorf("block %d: %w", layer, err)
	}
	return nil
}

// Layers returns the numbers of the blocks that have experts.
func (d *Domain) Layers() []int { return slices.Sorted(maps.Keys(d.experts)) }

// Layer returns the statistics of a block.
func (d *Domain) Layer(n int) *ExpertTotals { return d.experts[n] }

// Covers reports whether a weight's inputs were measured.
func (d *Domain) Covers(weight string) bool { return d.inputs[weight] != nil }

// merge adds another domain.
func (d *Domain) merge(o *Domain) error {
	for _, name := range o.Datasets {
		d.AddDataset(name)
	}
	d.Chunks += o.Chunks
	for name, from := range o.inputs {
		to := d.inputs[name]
		if to == nil {
			to = &inputTotals{make([]int64, len(from.rows)), make([]exact, len(from.sums))}
			d.inputs[name] = to
		}
		if err := to.merge(from); err != nil {
			return fmt.Errorf("tensor %q: %w", name, err)
		}
	}
	for layer, from := range o.experts {
		if d.experts[layer] == nil {
			d.experts[layer] = newExpertTotals(from.Experts)
		}
		if err := d.experts[layer].merge(from); err != nil {
			return fmt.Errorf("block %d: %w", layer, err)
		}
	}
	return nil
}

func (t *inputTotals) merge(o *inputTotals) error {
	if len(t.rows) != len(o.rows) || len(t.sums) != len(o.sums) {
		return invalid("%d matrices with %d values, and %d with %d in the statistics before", len(o.rows), len(o.sums), len(t.rows), len(t.sums))
	}
	for i, n := range o.rows {
		t.rows[i] += n
	}
	for i, v := range o.sums {
		if err := t.sums[i].merge(v); err != nil {
			return err
		}
	}
	return nil
}

// MergeStatistics adds statistics up, domain by domain.
func MergeStatistics(list ...*Statistics) (*Statistics, error) {
	out := &Statistics{ChunkSize: list[0].ChunkSize}
	for _, s := range list {
		if s.ChunkSize != out.ChunkSize {
			return nil, invalid("windows of %d tokens, and of %d in the statistics before: their sums do not go together", s.ChunkSize, out.ChunkSize)
		}
		for _, d := range s.Domains {
			if err := out.Domain(d.Name).merge(d); err != nil {
				return nil, err
			}
		}
	}
	return out, nil
}

// Total returns the statistics of all domains together.
func (s *Statistics) Total() (*Domain, error) {
	var sum Statistics
	d := sum.Domain("all")
	for _, o := range s.Domains {
		if err := d.merge(o); err != nil {
			return nil, err
		}
	}
	return d, nil
}

// Weights are the shares of domains in an importance matrix.
type Weights map[string]float64

// Matrix returns the importance matrix: of all rows alike, or with weights so
// that every domain has its share of the tokens, whatever the length of its
// texts; domains without weight are left out then. Counts are whole numbers, so
// weighted ones are rounded and their sums with them.
func (s *Statistics) Matrix(weights Weights) (*Matrix, error) {
	factors, err := s.factors(weights)
	if err != nil {
		return nil, err
	}
	m := &Matrix{ChunkSize: s.ChunkSize}
	names := map[string]bool{}
	for _, d := range s.Domains {
		m.Datasets = append(m.Datasets, d.Datasets...)
		m.Chunks += int(d.Chunks)
		for name := range d.inputs {
			names[name] = true
		}
	}
	for _, name := range slices.Sorted(maps.Keys(names)) {
		e, err := s.entry(name, factors)
		if err != nil {
			return nil, fmt.Errorf("tensor %q: %w", name, err)
		}
		m.Entries = append(m.Entries, e)
	}
	return m, m.check()
}

// factors returns what the sums of every domain are multiplied with; nil: 1.
func (s *Statistics) factors(weights Weights) ([]float64, error) {
	if weights == nil {
		return nil, nil
	}
	chunks, sum, known := int64(0), 0.0, 0
	for _, d := range s.Domains {
		chunks += d.Chunks
		if w, ok := weights[d.Name]; ok {
			sum, known = sum+w, known+1
		}
	}
	if known != len(weights) || !(sum > 0) {
		return nil, invalid("weights %v do not fit the domains", weights)
	}
	factors := make([]float64, len(s.Domains))
	for i, d := range s.Domains {
		factors[i] = weights[d.Name] / sum * float64(chunks) / float64(max(d.Chunks, 1))
	}
	return factors, nil
}

// entry adds up a weight's sums over domains.
func (s *Statistics) entry(name string, factors []float64) (Entry, error) {
	if factors != nil {
		return s.weighted(name, factors), nil
	}
	var total *inputTotals
	for _, d := range s.Domains {
		t := d.inputs[name]
		if t == nil {
			continue
		}
		if total == nil {
			total = &inputTotals{make([]int64, len(t.rows)), make([]exact, len(t.sums))}
		}
		if err := total.merge(t); err != nil {
			return Entry{}, err
		}
	}
	sums := make([]float32, len(total.sums))
	for i, v := range total.sums {
		sums[i] = float32(v.value())
	}
	return NewEntry(name, sums, total.rows), nil
}

func (s *Statistics) weighted(name string, factors []float64) Entry {
	var rows, sums []float64
	for i, d := range s.Domains {
		t := d.inputs[name]
		if t == nil {
			continue
		}
		if rows == nil {
			rows, sums = make([]float64, len(t.rows)), make([]float64, len(t.sums))
		}
		for j, n := range t.rows {
			rows[j] += factors[i] * float64(n)
		}
		for j, v := range t.sums {
			sums[j] += factors[i] * v.value()
		}
	}
	counts, out := make([]int64, len(rows)), make([]float32, len(sums))
	columns := len(sums) / len(rows)
	for i, n := range rows {
		if n == 0 {
			continue
		}
		counts[i] = max(1, int64(n+0.5))
		for j := range columns {
			out[i*columns+j] = float32(sums[i*columns+j] / n * float64(counts[i]))
		}
	}
	return NewEntry(name, out, counts)
}
