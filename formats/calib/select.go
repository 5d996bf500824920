package calib

import (
	"fmt"
	"slices"
)

// Selection says what a pruned model has of what was measured on the whole one.
type Selection struct {
	// Experts is the number of experts of a block before.
	Experts int
	// Weight tells whether the model has a weight and, where that has a matrix
	// for each expert, which of them are left; nil: it has all its matrices.
	Weight func(name string) (ids []int, has bool)
	// Block returns the experts of a block that are left, nil if it is gone.
	Block func(l int) []int
}

// Select returns the matrix of a pruned model: the sums of what is left, over the
// rows that went there in the whole model. They are read from m, which stays open,
// when they are asked for.
func (m *Matrix) Select(sel Selection) (*Matrix, error) {
	out := &Matrix{Datasets: m.Datasets, Chunks: m.Chunks, ChunkSize: m.ChunkSize, Warnings: m.Warnings, name: m.name}
	for i := range m.Entries {
		e := m.Entries[i]
		ids, has := sel.Weight(e.Name)
		if !has {
			continue
		}
		if ids != nil {
			var err error
			if e, err = e.pick(sel.Experts, ids); err != nil {
				return nil, m.about(e.Name, err)
			}
		}
		out.Entries = append(out.Entries, e)
	}
	return out, nil
}

// pick returns the entry with only some of its matrices.
func (e Entry) pick(experts int, ids []int) (Entry, error) {
	if n := len(e.Counts); n != experts && n != 1 || e.size%experts != 0 {
		return e, invalid("%w: %d counts and %d values, the model has %d experts", ErrSize, n, e.size, experts)
	}
	columns := e.size / experts
	picked := Entry{Name: e.Name, Counts: e.Counts, size: columns * len(ids)}
	if len(e.Counts) == experts {
		picked.Counts = pick(e.Counts, ids)
	}
	picked.load = func(dst []float32) error {
		all := make([]float32, e.size)
		if err := e.load(all); err != nil {
			return err
		}
		for i, id := range ids {
			copy(dst[i*columns:][:columns], all[id*columns:])
		}
		return nil
	}
	return picked, nil
}

func pick[T any](list []T, ids []int) []T {
	out := make([]T, len(ids))
	for i, id := range ids {
		out[i] = list[id]
	}
	return out
}

// Select returns the statistics of a pruned model, as Matrix.Select does: sums
// over the tokens of the whole model, in which others chose the experts.
func (s *Statistics) Select(sel Selection) (*Statistics, error) {
	out := &Statistics{ChunkSize: s.ChunkSize}
	if first := s.firstBlock(); first >= 0 && len(s.Routers) == sel.Experts {
		out.Routers = pick(s.Routers, sel.Block(first))
	}
	for _, d := range s.Domains {
		to := out.Domain(d.Name)
		to.Datasets, to.Chunks = d.Datasets, d.Chunks
		for _, t := range d.totals() {
			picked, err := t.pick(sel)
			if err != nil {
				return nil, fmt.Errorf("tensor %q: %w", t.weights[0], err)
			}
			to.addInput(picked)
		}
		for l, t := range d.experts {
			ids := sel.Block(l)
			if ids == nil {
				continue
			}
			if t.Experts != sel.Experts {
				return nil, invalid("block %d: %d experts, the model has %d", l, t.Experts, sel.Experts)
			}
			if to.experts[l] = t.pick(ids); d.samples[l] != nil {
				to.samples[l] = d.samples[l].pick(ids)
			}
		}
	}
	return out, nil
}

// pick returns the totals of the weights and matrices that are left.
func (t *inputTotals) pick(sel Selection) (*inputTotals, error) {
	out := &inputTotals{rows: t.rows, sums: t.sums}
	for _, name := range t.weights {
		ids, has := sel.Weight(name)
		if !has {
			continue
		}
		if out.weights = append(out.weights, name); ids == nil || len(out.weights) > 1 {
			continue
		}
		if len(t.rows) != sel.Experts {
			return nil, invalid("%w: %d matrices, the model has %d experts", ErrSize, len(t.rows), sel.Experts)
		}
		out.rows = pick(t.rows, ids)
		out.sums = t.sums.pick(spread(ids, t.sums.n/len(t.rows)))
	}
	return out, nil
}

// spread returns the places of all numbers of matrices of n numbers.
func spread(ids []int, n int) (places []int) {
	for _, id := range ids {
		for i := range n {
			places = append(places, id*n+i)
		}
	}
	return places
}

// pick returns the totals of some experts.
func (t *ExpertTotals) pick(ids []int) *ExpertTotals {
	out := &ExpertTotals{Experts: len(ids)}
	for i := range stats {
		places := []int{0}
		for range stats[i].rank {
			var next []int
			for _, p := range places {
				for _, id := range ids {
					next = append(next, p*t.Experts+id)
				}
			}
			places = next
		}
		switch {
		case stats[i].max:
			out.max[i] = pick(t.max[i], places)
		case t.sums[i].n > 0:
			out.sums[i] = t.sums[i].pick(places)
		}
	}
	return out
}

// pick returns the sums in some places, which are read when they are asked for.
func (s *series) pick(places []int) series {
	return series{n: len(places), others: []func() ([]exact, error){func() ([]exact, error) {
		all, err := s.load()
		if err != nil {
			return nil, err
		}
		return pick(all, slices.Clip(places)), nil
	}}}
}
