package main

import (
	"encoding/json"
	"fmt"
	"math"
	"os"
	"testing"

	"github.com/winnow-moe/winnow/engine"
	"github.com/winnow-moe/winnow/formats/calib"
	"github.com/winnow-moe/winnow/testdata/fixtures"
)

// nextnGolden is what testdata/mtp.py measured in a block of multi-token
// prediction, which ran as a layer of HF's code.
type nextnGolden struct {
	Experts saliency  `json:"experts"`
	Input   []float64 `json:"eh_proj"` // Σ x² of every fourth column; of small models only
	Head    []float64 `json:"head"`
}

func nextnGoldens(t *testing.T) (ids [][]int32, models map[string]*nextnGolden) {
	t.Helper()
	b, err := os.ReadFile("testdata/mtp.json")
	if err != nil {
		t.Fatal(err)
	}
	var all struct {
		IDs    [][]int32               `json:"ids"`
		Models map[string]*nextnGolden `json:"models"`
	}
	if err := json.Unmarshal(b, &all); err != nil || len(all.Models) != 5 {
		t.Fatal(len(all.Models), err)
	}
	return all.IDs, all.Models
}

func nextnModel(t *testing.T, name string) string {
	t.Helper()
	if name == "tiny-r1" {
		return fixtures.TinyR1(t)
	}
	return fixtures.Family(t, name)
}

// TestNextnGolden compares what an observer is told of multi-token prediction
// blocks, of every family that has one.
func TestNextnGolden(t *testing.T) {
	ids, models := nextnGoldens(t)
	for name, want := range models {
		t.Run(name, func(t *testing.T) {
			s := calibrateWindows(t, nextnModel(t, name), "keep", ids, engine.Options{ObserveOutput: true, BatchTokens: 60})
			want.Experts.compare(t, s.Domains[0].Layer(want.Experts.Layer))
			if want.Input == nil {
				return
			}
			block := fmt.Sprintf("blk.%d.nextn.", want.Experts.Layer)
			compareInputs(t, s, block+"eh_proj.weight", want)
			if name != "qwen3_next" && name != "qwen3_5_moe" { // which have no output weight of its own
				compareInputs(t, s, block+"shared_head_head.weight", &nextnGolden{Input: want.Head, Experts: want.Experts})
			}
		})
	}
}

func compareInputs(t *testing.T, s *calib.Statistics, name string, want *nextnGolden) {
	t.Helper()
	m, err := s.Matrix(nil)
	if err != nil {
		t.Fatal(err)
	}
	e, ok := m.Find(name)
	if !ok || e.Size() != 4*len(want.Input) || len(e.Counts) != 1 || float64(e.Counts[0]) != want.Experts.Tokens {
		t.Fatalf("%s: %+v, want %d columns of %g rows", name, e, 4*len(want.Input), want.Experts.Tokens)
	}
	sums, err := e.Sums()
	if err != nil {
		t.Fatal(err)
	}
	for i, v := range want.Input {
		if math.Abs(float64(sums[4*i])-v) > 1e-4*v {
			t.Errorf("%s, column %d: %.8g, want %.8g", name, 4*i, sums[4*i], v)
		}
	}
}
