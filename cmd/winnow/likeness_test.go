package main

import (
	"encoding/json"
	"errors"
	"math"
	"testing"

	"github.com/winnow-moe/winnow/convert"
	"github.com/winnow-moe/winnow/convert/experts"
	"github.com/winnow-moe/winnow/engine"
	"github.com/winnow-moe/winnow/formats/calib"
)

// pairScores are what the golden scores of code have of any two experts, row after
// row up to the diagonal.
var pairScores = []string{"l2_dist_mean_all", "pair_cos_sim_tokens", "router_logit_cos_sim"}

// TestLikenessGolden compares what a sample of all tokens says of any two experts
// with what hooks on HF's modules gave for the same tokens.
func TestLikenessGolden(t *testing.T) {
	for _, name := range []string{"tiny-llama4", "tiny-gemma4-moe", "tiny-r1-bf16"} {
		t.Run(name, func(t *testing.T) {
			golden := readGoldenScores(t, name, "code")
			src, _, err := openModel(miniature(t, name), convert.CheckpointOptions{})
			if err != nil {
				t.Fatal(err)
			}
			defer src.Close()
			stats := &calib.Statistics{ChunkSize: len(golden.IDs[0])}
			d := stats.Domain("code")
			d.Chunks = int64(len(golden.IDs))
			m, err := engine.Load(src, engine.Options{Observer: d, Sampler: d, SampleTokens: stats.ChunkSize})
			if err != nil {
				t.Fatal(err)
			}
			if _, err := m.Forward(t.Context(), golden.IDs); err != nil {
				t.Fatal(err)
			}
			plain, err := engine.Load(src, engine.Options{})
			if err != nil {
				t.Fatal(err)
			}
			known, err := experts.Likenesses(stats, nil)
			if err != nil {
				t.Fatal(err)
			}
			for _, layer := range golden.Layers {
				var l int
				if json.Unmarshal(layer["layer"], &l) != nil {
					t.Fatal("unreadable golden scores")
				}
				sample, err := stats.Sample(l, nil)
				if err != nil {
					t.Fatal(err)
				}
				s, err := plain.Sampled(t.Context(), l, sample)
				if err != nil {
					t.Fatal(err)
				}
				like, err := s.Likeness(t.Context())
				if err != nil {
					t.Fatal(err)
				}
				got := map[string][]float64{"l2_dist_mean_all": like.Distance, "pair_cos_sim_tokens": like.Cosine, "router_logit_cos_sim": known[l].Logits}
				for _, name := range pairScores {
					comparePairs(t, l, name, got[name], layer[name])
				}
			}
		})
	}
}

func comparePairs(t *testing.T, l int, name string, got []float64, raw json.RawMessage) {
	t.Helper()
	var want []float64
	if err := json.Unmarshal(raw, &want); err != nil {
		t.Fatal(err)
	}
	n, at := int(math.Sqrt(float64(len(got)))), 0
	if len(want) != n*(n+1)/2 {
		t.Fatalf("block %d, %s: %d numbers, want %d", l, name, len(want), n*(n+1)/2)
	}
	largest := 0.0
	for _, v := range want {
		largest = max(largest, math.Abs(v))
	}
	for i := range n {
		for j := range i + 1 {
			v, w := got[i*n+j], want[at]
			if at++; !(math.Abs(v-w) <= 1e-4*math.Abs(w)+1e-5*largest) || got[j*n+i] != v {
				t.Errorf("block %d, %s of %d and %d: %.8g, want %.8g", l, name, i, j, v, w)
			}
		}
	}
}

// TestSampleErrors: what goes wrong with a sample names the model and the statistics.
func TestSampleErrors(t *testing.T) {
	s := &sampling{choice: &choice{prunable: &prunable{path: "m.gguf"}, flags: &pruneFlags{stats: "s.gguf"}}}
	if err := s.about(errors.New("x")); exitStatus(err) != exitInput || err.Error() != "m.gguf, by the sample in s.gguf: x" {
		t.Errorf("status %d, %v", exitStatus(err), err)
	}
}
