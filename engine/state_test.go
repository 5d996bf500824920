package engine

import (
	"errors"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/winnow-moe/winnow/testdata/fixtures"
)

// clone copies a state, as a file would.
func (s *State) clone() *State {
	c := &State{Done: s.Done, Parts: slices.Clone(s.Parts)}
	for i := range c.Parts {
		c.Parts[i].Data = slices.Clone(c.Parts[i].Data)
	}
	return c
}

var errStop = errors.New("stop")

// stopAfter ends a pass after so many blocks and keeps its state.
func stopAfter(done int, at **State) func(*State) error {
	return func(s *State) error {
		if s.Done < done {
			return nil
		}
		*at = s.clone()
		return errStop
	}
}

// TestResume stops passes after every block and goes on with another model: the
// bits are those of a pass that was not stopped.
func TestResume(t *testing.T) {
	for _, family := range fixtures.Families(t) {
		path := filepath.Join(fixtures.Family(t, family), "ref-bf16.gguf")
		m := openModel(t, path, Options{})
		seqs := someSeqs(200, 48, 1, 17)
		want, err := m.Forward(t.Context(), seqs)
		if err != nil {
			t.Fatal(family, err)
		}
		for done := 1; done <= m.Blocks(); done++ {
			var at *State
			_, err := m.Resume(t.Context(), seqs, nil, stopAfter(done, &at))
			if !errors.Is(err, errStop) || at == nil || at.Done != done {
				t.Fatalf("%s: not stopped after %d blocks: %v", family, done, err)
			}
			got, err := openModel(t, path, Options{Threads: 1}).Resume(t.Context(), seqs, at, nil)
			if err != nil {
				t.Fatal(family, err)
			}
			if !slices.Equal(got.rows.Data, want.rows.Data) {
				t.Errorf("%s: stopped after %d blocks, the result is another", family, done)
			}
		}
		final, err := m.Resume(t.Context(), seqs, want.State(), nil)
		if err != nil || !slices.Equal(final.rows.Data, want.rows.Data) || final.seqs[2] != want.seqs[2] {
			t.Errorf("%s: resumed at the end: %v", family, err)
		}
	}
}

// TestResumeRefuses wants errors for states of another batch or model.
func TestResumeRefuses(t *testing.T) {
	m := openModel(t, filepath.Join(fixtures.Family(t, "gemma4_e"), "ref-bf16.gguf"), Options{})
	seqs := someSeqs(200, 20)
	var states []*State
	if _, err := m.Resume(t.Context(), seqs, nil, func(s *State) error { states = append(states, s.clone()); return nil }); err != nil {
		t.Fatal(err)
	}
	lent := states[m.Blocks()-2]
	if len(lent.Parts) < 3 {
		t.Fatalf("the state of a model that shares keys has %d parts", len(lent.Parts))
	}
	for hint, change := range map[string]func(*State){
		"after 0 blocks":  func(s *State) { s.Done = 0 },
		"after 99 blocks": func(s *State) { s.Done = 99 },
		"parts, want":     func(s *State) { s.Parts = s.Parts[:1] },
		`want "keys`:      func(s *State) { s.Parts[1].Name = "values.0" },
		`want "x" [20`:    func(s *State) { s.Parts[0].Rows = 19 },
		"not finite":      func(s *State) { s.Parts[2].Data[5] /= 0 * s.Parts[2].Data[5] },
	} {
		s := lent.clone()
		change(s)
		if _, err := m.Resume(t.Context(), seqs, s, nil); err == nil || !strings.Contains(err.Error(), hint) {
			t.Errorf("error %v, want %q", err, hint)
		}
	}
}
