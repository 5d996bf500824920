package calib

import (
	"maps"
	"slices"
)

// Merge adds up matrices: sums and counts add, datasets follow each other, the
// number of chunks follows from the largest count. An entry with one count for
// all experts is taken to have that count for each when another has a count per
// expert. The chunk size is that of first.
//
// The result is in memory and equals what llama-imatrix --in-file a,b makes
// with -c set to that chunk size; with a single matrix it is what llama-imatrix
// converts it to. (llama-imatrix takes entries of one count only before those
// with several.)
func Merge(first *Matrix, more ...*Matrix) (*Matrix, error) {
	out := &Matrix{ChunkSize: int(first.chunkSize())}
	totals := map[string]*total{}
	for _, m := range append([]*Matrix{first}, more...) {
		if err := m.check(); err != nil {
			return nil, err
		}
		out.Datasets = append(out.Datasets, m.Datasets...)
		for i := range m.Entries {
			e := &m.Entries[i]
			if totals[e.Name] == nil {
				totals[e.Name] = &total{make([]float32, e.size), make([]int64, len(e.Counts))}
			}
			if err := totals[e.Name].add(e); err != nil {
				return nil, m.about(e.Name, err)
			}
		}
	}
	var most int64
	for _, name := range slices.Sorted(maps.Keys(totals)) {
		t := totals[name]
		out.Entries = append(out.Entries, NewEntry(name, t.sums, t.counts))
		most = max(most, slices.Max(t.counts))
	}
	out.Chunks = int(min(most/out.chunkSize(), maxChunks+1))
	return out, out.check()
}

// total is an entry that grows.
type total struct {
	sums   []float32
	counts []int64
}

func (t *total) add(e *Entry) error {
	if e.size != len(t.sums) {
		return invalid("mismatched sizes: %d values, %d in the matrices before", e.size, len(t.sums))
	}
	counts := e.Counts
	switch {
	case len(t.counts) == 1:
		t.counts = slices.Repeat(t.counts, len(counts))
	case len(counts) == 1:
		counts = slices.Repeat(counts, len(t.counts))
	case len(counts) != len(t.counts):
		return invalid("mismatched numbers of counts: %d, and %d in the matrices before", len(counts), len(t.counts))
	}
	sums := make([]float32, e.size)
	if err := e.load(sums); err != nil {
		return err
	}
	for i, v := range sums {
		t.sums[i] += v
	}
	for i, n := range counts {
		t.counts[i] += n
	}
	return checkSums(t.sums, 0)
}
