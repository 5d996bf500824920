package main

import (
	"encoding/json"
	"math"
	"os"
	"path/filepath"
	"slices"
	"testing"

	"github.com/winnow-moe/winnow/convert/experts"
	"github.com/winnow-moe/winnow/engine"
	"github.com/winnow-moe/winnow/formats/calib"
	"github.com/winnow-moe/winnow/testdata/fixtures"
)

// goldenScores are the scores of one model and kind of text.
type goldenScores struct {
	IDs    [][]int32                    `json:"ids"`
	Super  [][2]int                     `json:"super_experts"`
	Layers []map[string]json.RawMessage `json:"layers"`
}

func readGoldenScores(t *testing.T, name, domain string) *goldenScores {
	t.Helper()
	b, err := os.ReadFile(filepath.Join(fixtures.Dir(t, "packs/saliency"), "saliency", name+"-"+domain+".json"))
	if err != nil {
		t.Fatal(err)
	}
	g := &goldenScores{}
	if err := json.Unmarshal(b, g); err != nil || len(g.Layers) == 0 {
		t.Fatal(err)
	}
	return g
}

// TestScoresGolden compares scores with those that hooks on HF's modules gave for
// the same tokens. One file has the statistics of three kinds of text; weights
// pick one.
func TestScoresGolden(t *testing.T) {
	domains := []string{"code", "docs", "english"}
	for _, name := range []string{"tiny-llama4", "tiny-gemma4-moe", "tiny-r1-bf16"} {
		t.Run(name, func(t *testing.T) {
			stats := &calib.Statistics{}
			golden := map[string]*goldenScores{}
			for _, domain := range domains {
				golden[domain] = readGoldenScores(t, name, domain)
				s := calibrateWindows(t, miniature(t, name), golden[domain].IDs, engine.Options{})
				s.Domains[0].Name, stats.ChunkSize = domain, s.ChunkSize
				stats.Domains = append(stats.Domains, s.Domains[0])
			}
			for _, domain := range domains {
				for rule := range golden[domain].Layers[0] {
					if rule != "layer" && !slices.Contains(pairScores, rule) {
						golden[domain].compare(t, stats, domain, rule)
					}
				}
			}
		})
	}
}

// compare checks a rule with a kind of text alone. The sums of one of three texts
// of equal length count three times; scores per token do not tell.
func (g *goldenScores) compare(t *testing.T, stats *calib.Statistics, domain, rule string) {
	t.Helper()
	s, err := experts.Score(stats, rule, calib.Weights{domain: 1})
	if err != nil {
		t.Fatal(err)
	}
	factor := 1.0
	if slices.Contains([]string{"energy", "seer", "ean_sum", "easy_ep"}, rule) {
		factor = 3
	}
	if len(s.Blocks) != len(g.Layers) {
		t.Fatalf("%d blocks, want %d", len(s.Blocks), len(g.Layers))
	}
	for _, layer := range g.Layers {
		var l int
		var want []float64
		if json.Unmarshal(layer["layer"], &l) != nil || json.Unmarshal(layer[rule], &want) != nil {
			t.Fatal("unreadable golden scores")
		}
		for e, w := range want {
			if v := s.Blocks[l][e] / factor; !(math.Abs(v-w) <= 1e-4*math.Abs(w)) {
				t.Errorf("%s, block %d, %s of expert %d: %.8g, want %.8g", domain, l, rule, e, v, w)
			}
		}
	}
	var super []experts.Expert
	for _, e := range g.Super {
		super = append(super, experts.Expert{Block: e[0], Expert: e[1]})
	}
	if !slices.Equal(s.Super, super) {
		t.Errorf("%s: super experts %v, want %v", domain, s.Super, super)
	}
}

func TestRangesText(t *testing.T) {
	for want, ids := range map[string][]int{"": nil, "3": {3}, "0-2 4 7-8": {0, 1, 2, 4, 7, 8}} {
		if got := rangesText(ids); got != want {
			t.Errorf("%v: %q, want %q", ids, got, want)
		}
	}
}
