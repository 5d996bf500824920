package engine

import (
	"crypto/sha256"
	"encoding/binary"
	"fmt"
	"slices"
	"strings"
	"testing"

	"github.com/winnow-moe/winnow/formats/arch"
	"github.com/winnow-moe/winnow/formats/calib"
	"github.com/winnow-moe/winnow/testdata/fixtures"
)

// recorder keeps what an observer is told, in the order of each weight and block.
type recorder map[string][]string

func (r recorder) Input(weights []string, matrix, matrices int, rows int64, squares []float64) error {
	for _, name := range weights {
		r[name] = append(r[name], fmt.Sprintf("%d/%d %d rows %x of %v", matrix, matrices, rows, digest(squares), weights))
	}
	return nil
}

func (r recorder) Experts(block int, sums *calib.ExpertSums) error {
	name := fmt.Sprint("experts ", block)
	text := ""
	for _, s := range sums {
		text += fmt.Sprintf("%x", digest(s))
	}
	r[name] = append(r[name], text)
	return nil
}

func digest(v []float64) [32]byte {
	b, _ := binary.Append(nil, binary.LittleEndian, v)
	return sha256.Sum256(b)
}

// sorted puts reports of a stacked weight, which come batch by batch, in an
// order that does not depend on batches.
func (r recorder) sorted() recorder {
	for _, v := range r {
		slices.Sort(v)
	}
	return r
}

// TestObserver: of every family an observer is told of each weight of a block,
// the same whatever the threads, batches and groups, and changes no bit.
func TestObserver(t *testing.T) {
	for _, family := range fixtures.Families(t) {
		t.Run(family, func(t *testing.T) {
			a := alter(t, family)
			seqs := someSeqs(a.load(t, Options{}).Vocab(), 40, 70, 3)
			plain, err := a.load(t, Options{}).Forward(t.Context(), seqs)
			if err != nil {
				t.Fatal(err)
			}
			var first recorder
			for i, opt := range []Options{{Threads: 1}, {Threads: 3, BatchTokens: 50}, {Threads: 2}} {
				got := recorder{}
				opt.Observer, opt.LeaveOneOut, opt.ObserveOutput = got, true, true
				m := a.load(t, opt)
				if i == 2 {
					m.budget = 1
				}
				h, err := m.Forward(t.Context(), seqs)
				if err != nil {
					t.Fatal(err)
				}
				if !slices.Equal(h.rows.Data, plain.rows.Data) {
					t.Error("the observer changes the hidden states")
				}
				if i == 0 {
					first = got.sorted()
					checkObserved(t, m, first)
					checkOutput(t, m, h, first)
				} else if fmt.Sprint(got.sorted()) != fmt.Sprint(first) {
					t.Errorf("options %d: other reports", i)
				}
			}
		})
	}
}

// checkObserved looks for matrices of blocks that were not observed, or not once
// per sequence.
func checkObserved(t *testing.T, m *Model, got recorder) {
	t.Helper()
	for _, info := range m.src.Tensors() {
		name := arch.ParseName(info.Name)
		if len(info.Shape) < 2 || !strings.HasPrefix(info.Name, "blk.") || name.Suffix != "weight" || m.Idle(name) != "" || strings.Contains(info.Name, "conv1d") || name.Role == arch.NextnEmbd {
			continue
		}
		switch reports := got[info.Name]; {
		case len(reports) == 0:
			t.Errorf("%s is not observed", info.Name)
		case !strings.Contains(info.Name, "_exps") && len(reports) != 3:
			t.Errorf("%s has %d reports for 3 sequences", info.Name, len(reports))
		}
	}
	for l := range m.Params().Layers {
		if n := len(got[fmt.Sprint("experts ", l)]); m.block(l).router.w != nil && n != 3 {
			t.Errorf("block %d: %d reports of experts", l, n)
		}
	}
}

// checkOutput compares what is told of the output weight with the hidden states
// that it is multiplied with.
func checkOutput(t *testing.T, m *Model, h *Hidden, got recorder) {
	t.Helper()
	if m.output.w == m.embd {
		return
	}
	name := m.output.w.info.Name
	want := recorder{}
	for _, s := range h.seqs {
		squares := make([]float64, h.rows.Cols)
		for i := range s.n {
			for j, v := range h.rows.Row(s.first + i) {
				squares[j] += float64(float64(v) * float64(v))
			}
		}
		if err := want.Input([]string{name}, 0, 1, int64(s.n), squares); err != nil {
			t.Fatal(err)
		}
	}
	if !slices.Equal(got[name], want.sorted()[name]) {
		t.Errorf("%s: other reports than its input", name)
	}
}

// TestObserverInt8: an observer changes no bit of products of integers either.
func TestObserverInt8(t *testing.T) {
	for _, family := range fixtures.Families(t) {
		a := alter(t, family)
		opt := Options{Compute: ComputeInt8}
		seqs := someSeqs(a.load(t, opt).Vocab(), 40, 3)
		plain, err := a.load(t, opt).Forward(t.Context(), seqs)
		if err != nil {
			t.Fatal(err)
		}
		opt.Observer, opt.LeaveOneOut = recorder{}, true
		h, err := a.load(t, opt).Forward(t.Context(), seqs)
		if err != nil {
			t.Fatal(err)
		}
		if !slices.Equal(h.rows.Data, plain.rows.Data) {
			t.Errorf("%s: the observer changes the hidden states", family)
		}
	}
}
