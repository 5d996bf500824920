package calib

import (
	"errors"
	"fmt"
	"io"
	"maps"
	"math"
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
	// Routers tell models apart: digests of the router's rows for the experts of
	// the first block that has some (see RouterDigests). nil: they are not known.
	Routers []string

	file io.Closer
}

// Close closes the file that statistics were read from. Their sums, and those of
// statistics that they are part of, cannot be used afterwards.
func (s *Statistics) Close() error {
	if s.file == nil {
		return nil
	}
	err := s.file.Close()
	s.file = nil
	return err
}

// Domain is what was measured on the texts of one kind.
type Domain struct {
	Name     string
	Datasets []string
	Chunks   int64
	inputs   map[string]*inputTotals
	experts  map[int]*ExpertTotals
	samples  map[int]*sampled
}

// inputTotals are Σ x² of the inputs of weights that have the same input.
type inputTotals struct {
	weights []string // sorted
	rows    []int64  // of every matrix
	sums    series   // matrix after matrix
}

// Domain returns the domain of a name, a new one if need be.
func (s *Statistics) Domain(name string) *Domain {
	for _, d := range s.Domains {
		if d.Name == name {
			return d
		}
	}
	d := &Domain{Name: name, inputs: map[string]*inputTotals{}, experts: map[int]*ExpertTotals{}, samples: map[int]*sampled{}}
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
// through one of a weight's matrices, for weights that have the same input. The
// numbers of a window are added in one call for each matrix.
func (d *Domain) Input(weights []string, matrix, matrices int, rows int64, squares []float64) error {
	t := d.inputs[weights[0]]
	if t == nil {
		t = &inputTotals{weights: slices.Sorted(slices.Values(weights)), rows: make([]int64, matrices), sums: series{n: matrices * len(squares)}}
		d.addInput(t)
	}
	if len(t.rows) != matrices || t.sums.n != matrices*len(squares) || len(weights) != len(t.weights) {
		return fmt.Errorf("tensor %q: %d weights with %d matrices of %d columns, before that %d with %d and %d values",
			weights[0], len(weights), matrices, len(squares), len(t.weights), len(t.rows), t.sums.n)
	}
	t.rows[matrix] += rows
	if err := t.sums.addAt(matrix*len(squares), squares); err != nil {
		return fmt.Errorf("tensor %q, matrix %d: %w", weights[0], matrix, err)
	}
	return nil
}

// addInput makes totals those of their weights.
func (d *Domain) addInput(t *inputTotals) {
	for _, name := range t.weights {
		d.inputs[name] = t
	}
}

// totals returns the totals of all inputs, each once, by the first of their
// weights.
func (d *Domain) totals() []*inputTotals {
	var list []*inputTotals
	for _, name := range slices.Sorted(maps.Keys(d.inputs)) {
		if t := d.inputs[name]; t.weights[0] == name {
			list = append(list, t)
		}
	}
	return list
}

// Experts adds the statistics of a block over a window.
func (d *Domain) Experts(layer int, sums *ExpertSums) error {
	t := d.experts[layer]
	if t == nil {
		t = newExpertTotals(sums)
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

// Measured reports whether a statistic was measured on all blocks of all texts.
func (s *Statistics) Measured(stat Stat) bool {
	for _, d := range s.Domains {
		for _, t := range d.experts {
			if t.sums[stat].n+len(t.max[stat]) == 0 {
				return false
			}
		}
	}
	return true
}

// merge adds another domain, whose sums are read when they are asked for.
func (d *Domain) merge(o *Domain) error {
	for _, name := range o.Datasets {
		d.AddDataset(name)
	}
	d.Chunks += o.Chunks
	if err := d.mergeInputs(o); err != nil {
		return err
	}
	for layer, from := range o.experts {
		to := d.experts[layer]
		if to == nil {
			d.experts[layer] = from.view()
			continue
		}
		sum, err := to.plus(from)
		if err != nil {
			return fmt.Errorf("block %d: %w", layer, err)
		}
		d.experts[layer] = sum
	}
	return d.mergeSamples(o)
}

// mergeInputs adds up totals. Weights share a sum if they share both summands.
func (d *Domain) mergeInputs(o *Domain) error {
	type pair struct{ to, from *inputTotals }
	sums := map[pair]*inputTotals{}
	for _, name := range slices.Sorted(maps.Keys(o.inputs)) {
		p := pair{d.inputs[name], o.inputs[name]}
		sum := sums[p]
		if sum == nil {
			var err error
			if sum, err = p.from.plus(p.to); err != nil {
				return fmt.Errorf("tensor %q: %w", name, err)
			}
			sums[p] = sum
		}
		sum.weights = append(sum.weights, name)
		d.inputs[name] = sum
	}
	// Of weights that o does not have, some may have shared with others that it has.
	rest := map[*inputTotals]*inputTotals{}
	for _, name := range slices.Sorted(maps.Keys(d.inputs)) {
		if t := d.inputs[name]; o.inputs[name] == nil {
			if rest[t] == nil {
				rest[t] = &inputTotals{rows: t.rows, sums: t.sums}
			}
			rest[t].weights = append(rest[t].weights, name)
			d.inputs[name] = rest[t]
		}
	}
	return nil
}

// plus returns the sum of both, or of one, of no weights yet.
func (t *inputTotals) plus(o *inputTotals) (*inputTotals, error) {
	if o == nil {
		return &inputTotals{rows: slices.Clone(t.rows), sums: t.sums.view()}, nil
	}
	if len(t.rows) != len(o.rows) {
		return nil, invalid("%d matrices with %d values, and %d with %d in the statistics before", len(t.rows), t.sums.n, len(o.rows), o.sums.n)
	}
	sum := &inputTotals{rows: slices.Clone(t.rows)}
	for i, n := range o.rows {
		sum.rows[i] += n
	}
	var err error
	sum.sums, err = t.sums.plus(&o.sums)
	return sum, err
}

// MergeStatistics adds statistics up, domain by domain. The result reads the sums
// of the others when they are asked for.
func MergeStatistics(list ...*Statistics) (*Statistics, error) {
	out := &Statistics{ChunkSize: list[0].ChunkSize, Routers: list[0].Routers}
	for _, s := range list {
		if s.Routers != nil && out.Routers != nil && !slices.Equal(s.Routers, out.Routers) {
			return nil, invalid("statistics of another model than those before: its routers have other weights")
		}
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
	factors, err := s.Factors(weights)
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

// Factors returns what the sums of every domain are multiplied with, so that
// domain d counts as weights[d]/Σ weights of all tokens that were measured; nil
// without weights, where every token counts alike.
func (s *Statistics) Factors(weights Weights) ([]float64, error) {
	if weights == nil {
		return nil, nil
	}
	chunks, sum := int64(0), 0.0
	var names []string
	for _, d := range s.Domains {
		chunks += d.Chunks
		sum += weights[d.Name]
		names = append(names, d.Name)
	}
	for _, name := range slices.Sorted(maps.Keys(weights)) {
		if !slices.Contains(names, name) {
			return nil, invalid("weights name texts of the kind %q; those measured are %q", name, names)
		}
	}
	if !(sum > 0) || math.IsInf(sum, 0) {
		return nil, invalid("the weights of the texts add up to %v, want a positive number", sum)
	}
	factors := make([]float64, len(s.Domains))
	for i, d := range s.Domains {
		factors[i] = weights[d.Name] / sum * float64(chunks) / float64(max(d.Chunks, 1))
	}
	return factors, nil
}

// entry adds up a weight's sums over domains when they are asked for.
func (s *Statistics) entry(name string, factors []float64) (Entry, error) {
	if factors != nil {
		return s.weighted(name, factors), nil
	}
	var total *inputTotals
	for _, d := range s.Domains {
		if t := d.inputs[name]; t != nil {
			var err error
			if total, err = t.plus(total); err != nil {
				return Entry{}, err
			}
		}
	}
	return Entry{Name: name, Counts: total.rows, size: total.sums.n, load: func(dst []float32) error {
		sums, err := total.sums.load()
		for i, v := range sums {
			dst[i] = float32(v.value())
		}
		return errors.Join(err, checkSums(dst, 0))
	}}, nil
}

// weighted is entry with a factor for every domain.
func (s *Statistics) weighted(name string, factors []float64) Entry {
	var rows []float64
	size := 0
	for i, d := range s.Domains {
		t := d.inputs[name]
		if t == nil {
			continue
		}
		if rows == nil {
			rows, size = make([]float64, len(t.rows)), t.sums.n
		}
		for j, n := range t.rows {
			rows[j] += float64(factors[i] * float64(n))
		}
	}
	counts := make([]int64, len(rows))
	for i, n := range rows {
		if n > 0 {
			counts[i] = max(1, int64(n+0.5))
		}
	}
	return Entry{Name: name, Counts: counts, size: size, load: func(dst []float32) error {
		sums, err := s.weightedSums(name, factors, size)
		if err != nil {
			return err
		}
		columns := size / len(rows)
		for i, n := range rows {
			for j := i * columns; j < (i+1)*columns; j++ {
				if dst[j] = 0; n > 0 {
					dst[j] = float32(sums[j] / n * float64(counts[i]))
				}
			}
		}
		return checkSums(dst, 0)
	}}
}

func (s *Statistics) weightedSums(name string, factors []float64, size int) ([]float64, error) {
	sums := make([]float64, size)
	for i, d := range s.Domains {
		t := d.inputs[name]
		if t == nil {
			continue
		}
		values, err := t.sums.values()
		if err != nil {
			return nil, err
		}
		for j, v := range values {
			sums[j] += float64(factors[i] * v)
		}
	}
	return sums, nil
}
