package calib

import (
	"errors"
	"path/filepath"
	"reflect"
	"strings"
	"testing"
)

// ofSome are statistics of four experts, or of those with the numbers in ids,
// as if nothing had been measured of the others.
func ofSome(t *testing.T, ids []int) *Statistics {
	t.Helper()
	s := &Statistics{ChunkSize: 10}
	for di, name := range []string{"code", "chat"} {
		d := s.Domain(name)
		d.AddDataset(name + ".txt")
		d.Chunks = int64(1 + di)
		sums := NewExpertSums(len(ids), true)
		for j := range sums {
			for k := range sums[j] {
				n := 0 // the number in all four
				switch stats[j].rank {
				case 1:
					n = ids[k]
				case 2:
					n = 4*ids[k/len(ids)] + ids[k%len(ids)]
				}
				sums[j][k] = float64(1+di+j+10*n) / 3
			}
		}
		for i, id := range ids {
			for _, l := range []string{"0", "1"} {
				weights := []string{"blk." + l + ".ffn_gate_exps.weight", "blk." + l + ".ffn_up_exps.weight"}
				if l == "1" && len(ids) < 4 {
					continue // block 1 is gone
				}
				if err := d.Input(weights, i, len(ids), int64(id), []float64{float64(id) / 7, float64(di)}); err != nil {
					t.Fatal(err)
				}
			}
		}
		err := errors.Join(d.Input([]string{"blk.0.attn_q.weight"}, 0, 1, 10, []float64{3}), d.Experts(0, sums))
		if len(ids) == 4 {
			err = errors.Join(err, d.Experts(1, sums))
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	return s
}

// TestSelect: what is left of statistics, and of the matrix in them, is what
// would have been measured of the experts that are left.
func TestSelect(t *testing.T) {
	ids := []int{0, 2, 3}
	sel := Selection{
		Experts: 4,
		Weight: func(name string) ([]int, bool) {
			if strings.Contains(name, "_exps") {
				return ids, !strings.HasPrefix(name, "blk.1.")
			}
			return nil, true
		},
		Block: func(l int) []int {
			if l == 1 {
				return nil
			}
			return ids
		},
	}
	got, err := ofSome(t, []int{0, 1, 2, 3}).Select(sel)
	if err != nil {
		t.Fatal(err)
	}
	want := ofSome(t, ids)
	if a, b := dump(t, got), dump(t, want); a != b {
		t.Errorf("got  %s\nwant %s", a, b)
	}
	all, err := ofSome(t, []int{0, 1, 2, 3}).Matrix(nil)
	if err != nil {
		t.Fatal(err)
	}
	for _, form := range []string{"gguf", "dat"} {
		path := filepath.Join(t.TempDir(), "all."+form)
		if err := write(all, form, path); err != nil {
			t.Fatal(err)
		}
		m, err := mustRead(t, path, Options{}).Select(sel)
		if err != nil {
			t.Fatal(err)
		}
		wanted, err := want.Matrix(nil)
		if err != nil {
			t.Fatal(err)
		}
		if len(m.Entries) != len(wanted.Entries) {
			t.Fatalf("%d entries, want %d", len(m.Entries), len(wanted.Entries))
		}
		for i := range m.Entries {
			a, b := &m.Entries[i], &wanted.Entries[i]
			columns, matrices := a.Size(), 1
			if strings.Contains(a.Name, "_exps") {
				columns, matrices = a.Size()/3, 3
			}
			if a.Name != b.Name || a.Size() != b.Size() || form == "gguf" && !reflect.DeepEqual(a.Counts, b.Counts) {
				t.Errorf("%s: %d %v, want %s: %d %v", a.Name, a.Size(), a.Counts, b.Name, b.Size(), b.Counts)
			}
			if form == "dat" { // which has means over other numbers of rows
				continue
			}
			x, err1 := m.Weights(a.Name, columns, matrices)
			y, err2 := wanted.Weights(b.Name, columns, matrices)
			if err := errors.Join(err1, err2); err != nil || !reflect.DeepEqual(x, y) {
				t.Errorf("%s %s: %v, want %v (%v)", form, a.Name, x, y, err)
			}
		}
	}
}

// TestSelectErrors: measurements of another number of experts are refused.
func TestSelectErrors(t *testing.T) {
	sel := Selection{Experts: 5, Weight: func(name string) ([]int, bool) { return []int{1}, strings.Contains(name, "_exps") }, Block: func(int) []int { return []int{1} }}
	s := ofSome(t, []int{0, 1, 2, 3})
	if _, err := s.Select(sel); !errors.Is(err, ErrInvalid) {
		t.Errorf("statistics: %v", err)
	}
	m, err := s.Matrix(nil)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := m.Select(sel); !errors.Is(err, ErrSize) {
		t.Errorf("matrix: %v", err)
	}
}
