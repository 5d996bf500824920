package main

import (
	"encoding/json"
	"math"
	"os"
	"path/filepath"
	"slices"
	"testing"

	"github.com/winnow-moe/winnow/convert"
	"github.com/winnow-moe/winnow/engine"
	"github.com/winnow-moe/winnow/formats/calib"
	"github.com/winnow-moe/winnow/testdata/fixtures"
)

// calibrateWindows runs windows through a model, whose options may be changed, with
// what mtp says of its multi-token prediction blocks.
func calibrateWindows(t *testing.T, path, mtp string, windows [][]int32, opt engine.Options) *calib.Statistics {
	t.Helper()
	src, _, err := openModel(path, convert.CheckpointOptions{MTP: mtp})
	if err != nil {
		t.Fatal(err)
	}
	defer src.Close()
	s := &calib.Statistics{ChunkSize: len(windows[0])}
	opt.Observer = s.Domain("test")
	m, err := engine.Load(src, opt)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := m.Forward(t.Context(), windows); err != nil {
		t.Fatal(err)
	}
	s.Domains[0].Chunks = int64(len(windows))
	return s
}

// miniature returns the folder of a trained checkpoint.
func miniature(t *testing.T, name string) string {
	t.Helper()
	switch name {
	case "tiny-r1":
		return fixtures.TinyR1(t)
	case "tiny-r1-bf16":
		return fixtures.Shared(t, "fixtures/tiny-r1-bf16")
	case "qwen3_moe":
		return fixtures.Family(t, name)
	}
	return filepath.Join(fixtures.Dir(t, "packs/"+name), name)
}

// TestImatrixGolden compares importance matrices with llama-imatrix's, both
// computed in float32.
func TestImatrixGolden(t *testing.T) {
	text := filepath.Join(fixtures.Dir(t, "packs/corpus"), "corpus", "calib-code.txt")
	for _, name := range []string{"tiny-r1", "tiny-llama4", "qwen3_moe", "tiny-gemma4-moe"} {
		t.Run(name, func(t *testing.T) {
			a := &app{quiet: true}
			flags := calibrateFlags{texts: []string{text}, out: filepath.Join(t.TempDir(), "stats.gguf"), format: "gguf"}
			flags.ctx, flags.chunks = 64, 16
			m, err := a.openScored(miniature(t, name), &flags.scoreFlags)
			if err != nil {
				t.Fatal(err)
			}
			defer m.model.Close()
			texts, err := m.windows(&flags)
			if err != nil {
				t.Fatal(err)
			}
			s := calibrateWindows(t, miniature(t, name), "", texts[0].windows, engine.Options{})
			if err := s.WriteGGUF(flags.out, nil); err != nil {
				t.Fatal(err)
			}
			compareMatrices(t, flags.out, filepath.Join(fixtures.Dir(t, "packs/calibration"), "calibration/imatrix", name+".gguf"))
		})
	}
}

func compareMatrices(t *testing.T, got, want string) {
	t.Helper()
	var m [2]*calib.Matrix
	for i, path := range []string{got, want} {
		var err error
		if m[i], err = calib.Read(path, calib.Options{}); err != nil || len(m[i].Warnings) > 0 {
			t.Fatal(err, m[i].Warnings)
		}
		defer m[i].Close()
	}
	if len(m[0].Entries) != len(m[1].Entries) || m[0].Chunks != m[1].Chunks || m[0].ChunkSize != m[1].ChunkSize {
		t.Errorf("%d entries, %d chunks of %d; want %d, %d of %d", len(m[0].Entries), m[0].Chunks, m[0].ChunkSize, len(m[1].Entries), m[1].Chunks, m[1].ChunkSize)
	}
	for _, e := range m[1].Entries {
		g, ok := m[0].Find(e.Name)
		if !ok || len(g.Counts) != len(e.Counts) || g.Size() != e.Size() {
			t.Fatalf("%s: %+v, want the form of %+v", e.Name, g, e)
		}
		a, err := g.Sums()
		if err != nil {
			t.Fatal(err)
		}
		b, err := e.Sums()
		if err != nil {
			t.Fatal(err)
		}
		if !slices.Equal(g.Counts, e.Counts) {
			t.Errorf("%s: rows %v, want %v", e.Name, g.Counts, e.Counts)
		}
		worst := 0.0
		for i, v := range b {
			worst = max(worst, math.Abs(float64(a[i])-float64(v))/max(float64(v), 1e-30))
		}
		if worst > 1e-4 {
			t.Errorf("%s: sums differ by up to %.2g", e.Name, worst)
		}
	}
}

// saliency is what hooks on HF's modules measured in a block. It has the gates,
// norms and so on of each expert under the names of saliency_oracle.py.
type saliency struct {
	Layer    int         `json:"layer"`
	Tokens   float64     `json:"tokens"`
	Count    []float64   `json:"count"`
	Gate     []float64   `json:"sum_gate"`
	Norm     []float64   `json:"sum_norm"`
	Norm2    []float64   `json:"sum_norm2"`
	Weighted []float64   `json:"sum_gnorm"`
	Energy   []float64   `json:"sum_gnorm2"`
	Easy     []float64   `json:"easy_ep"`
	MaxAbs   []float64   `json:"max_abs"`
	MaxNorm  []float64   `json:"max_gnorm"`
	Mass     []float64   `json:"prob_mean"`
	Gram     [][]float64 `json:"router_logit_cos_sim"`
	Together [][]float64 `json:"coselection"`
	Out      float64     `json:"mean_out_norm"`
	RMS      float64     `json:"rms_out"`
	Residual float64     `json:"mean_resid_norm"`
}

// TestExpertStatisticsGolden compares the statistics of experts with those that
// hooks on HF's modules gave for the same tokens.
func TestExpertStatisticsGolden(t *testing.T) {
	for _, name := range []string{"tiny-llama4", "tiny-gemma4-moe", "tiny-r1-bf16"} {
		t.Run(name, func(t *testing.T) {
			b, err := os.ReadFile(filepath.Join(fixtures.Dir(t, "packs/calibration"), "calibration/saliency", name+".json"))
			if err != nil {
				t.Fatal(err)
			}
			var want struct {
				IDs    [][]int32  `json:"ids"`
				Layers []saliency `json:"layers"`
			}
			if err := json.Unmarshal(b, &want); err != nil || len(want.Layers) == 0 {
				t.Fatal(err)
			}
			d := calibrateWindows(t, miniature(t, name), "", want.IDs, engine.Options{}).Domains[0]
			if len(d.Layers()) != len(want.Layers) {
				t.Fatalf("blocks %v, want %d", d.Layers(), len(want.Layers))
			}
			for _, w := range want.Layers {
				w.compare(t, d.Layer(w.Layer))
			}
		})
	}
}

func (w *saliency) compare(t *testing.T, got *calib.ExpertTotals) {
	t.Helper()
	check := func(what calib.Stat, got, want []float64) {
		if len(got) != len(want) {
			t.Fatalf("block %d, %s: %d numbers, want %d", w.Layer, what, len(got), len(want))
		}
		for i := range want {
			if math.Abs(got[i]-want[i]) > 1e-4*math.Abs(want[i]) {
				t.Errorf("block %d, %s of %d: %.8g, want %.8g", w.Layer, what, i, got[i], want[i])
			}
		}
	}
	total := func(v ...float64) []float64 {
		for i := range v {
			v[i] *= w.Tokens
		}
		return v
	}
	for stat, want := range map[calib.Stat][]float64{
		calib.Tokens: {w.Tokens}, calib.OutputNorm: total(w.Out), calib.OutputSquares: total(w.RMS * w.RMS), calib.ResidualNorm: total(w.Residual),
		calib.Selected: w.Count, calib.Gate: w.Gate, calib.Norm: w.Norm, calib.NormSquares: w.Norm2, calib.Weighted: w.Weighted,
		calib.WeightedSquare: w.Energy, calib.Easy: w.Easy, calib.MaxAbs: w.MaxAbs, calib.MaxWeighted: w.MaxNorm, calib.Mass: total(w.Mass...),
	} {
		check(stat, statistic(t, got, stat), want)
	}
	if w.Gram == nil {
		return
	}
	n := got.Experts
	gram, together := statistic(t, got, calib.RouterGram), statistic(t, got, calib.Together)
	for i := range n {
		check(calib.Together, together[i*n:][:n], w.Together[i])
		cos := make([]float64, n)
		for j := range cos {
			cos[j] = gram[i*n+j] / math.Sqrt(gram[i*n+i]*gram[j*n+j])
		}
		check(calib.RouterGram, cos, w.Gram[i])
	}
}

func statistic(t *testing.T, of *calib.ExpertTotals, s calib.Stat) []float64 {
	t.Helper()
	v, err := of.Values(s)
	if err != nil {
		t.Fatal(err)
	}
	return v
}
