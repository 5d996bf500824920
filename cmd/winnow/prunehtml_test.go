package main

import (
	"encoding/json"
	"math"
	"testing"

	"github.com/winnow-moe/winnow/engine"
	"github.com/winnow-moe/winnow/formats/calib"
)

// TestPage compares what the page says of experts with what hooks on HF's modules
// counted for the same tokens, and its table of sizes with the choice.
func TestPage(t *testing.T) {
	const name = "tiny-gemma4-moe"
	stats, golden := &calib.Statistics{}, []*goldenScores{}
	for _, domain := range []string{"code", "english"} {
		g := readGoldenScores(t, name, domain)
		s := calibrateWindows(t, miniature(t, name), "", g.IDs, engine.Options{})
		s.Domains[0].Name, stats.ChunkSize = domain, s.ChunkSize
		stats.Domains, golden = append(stats.Domains, s.Domains[0]), append(golden, g)
	}
	flags := &pruneFlags{stats: "stats.gguf", keep: 12, rule: "reap", groups: "equal", protect: true, weights: calib.Weights{"code": 3, "english": 1}}
	m, err := openPrunable(miniature(t, name), flags)
	if err != nil {
		t.Fatal(err)
	}
	defer m.close()
	c := &choice{prunable: m, flags: flags, stats: stats, ev: &evaluation{}}
	if err := (&app{quiet: true}).decide(t.Context(), c); err != nil {
		t.Fatal(err)
	}
	r, err := c.report()
	if err != nil {
		t.Fatal(err)
	}
	p, err := c.page(r)
	if err != nil {
		t.Fatal(err)
	}
	if len(p.Domains) != 2 || *p.Domains[0].Weight != .75 || *p.Domains[1].Weight != .25 {
		t.Fatalf("texts %+v", p.Domains)
	}
	for d, g := range golden {
		tokens := float64(len(g.IDs) * len(g.IDs[0]))
		if p.Domains[d].Tokens != tokens {
			t.Errorf("%s: %v tokens, want %v", p.Domains[d].Name, p.Domains[d].Tokens, tokens)
		}
		for i, layer := range g.Layers {
			var share []float64
			if err := json.Unmarshal(layer["frequency"], &share); err != nil {
				t.Fatal(err)
			}
			for e, v := range share {
				if got := p.Blocks[i].Uses[d][e]; math.Abs(got-v*tokens) > 1e-4*tokens {
					t.Errorf("%s, block %d, expert %d: %v tokens, want %v", p.Domains[d].Name, i, e, got, v*tokens)
				}
			}
		}
	}
	for _, n := range p.Counts {
		if n.Keep != 12 {
			continue
		}
		mean := 0.0
		for _, b := range r.Blocks {
			mean += *b.Lost / float64(len(r.Blocks))
		}
		if n.Bytes[0] != r.Sizes[0].After || math.Abs(*n.Lost-mean) > 1e-12 {
			t.Errorf("12 experts: %d bytes and %v lost, want %d and %v", n.Bytes[0], *n.Lost, r.Sizes[0].After, mean)
		}
	}
	if first := p.Counts[0]; first.Keep != 16 || first.Bytes[0] != r.Sizes[0].Before || *first.Lost != 0 {
		t.Errorf("all experts: %+v", first)
	}
}
