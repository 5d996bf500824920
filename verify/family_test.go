package verify

import (
	"math"
	"testing"

	"github.com/winnow-moe/winnow/convert"
	"github.com/winnow-moe/winnow/engine"
	"github.com/winnow-moe/winnow/quant"
	"github.com/winnow-moe/winnow/testdata/fixtures"
)

// TestConvertedFamilies compares the engine's logits of what winnow makes of a
// checkpoint with HF's, for fixtures of which llama.cpp makes another model.
func TestConvertedFamilies(t *testing.T) {
	for _, family := range []string{"deepseek_v3_fp8", "llama4_maverick", "llama4_smallchunk", "mistral_swa", "phimoe"} {
		t.Run(family, func(t *testing.T) {
			ids, want := hfLogits(t, family)
			m := converted(t, fixtures.Family(t, family))
			h, err := m.Forward(t.Context(), [][]int32{ids})
			if err != nil {
				t.Fatal(err)
			}
			got := make([]float32, len(ids)*m.Vocab())
			if err := m.Logits(t.Context(), h, 0, len(ids), got); err != nil {
				t.Fatal(err)
			}
			if len(got) != len(want) {
				t.Fatalf("%d logits, want %d", len(got), len(want))
			}
			worst := 0.0
			for i := range got {
				worst = max(worst, math.Abs(float64(got[i])-float64(want[i]))) // NaN stays
			}
			t.Logf("logits differ by at most %.2g", worst)
			if !(worst <= 1e-3) {
				t.Errorf("logits differ by %g, want at most 1e-3", worst)
			}
		})
	}
}

// converted loads the F32 file that would be made of a checkpoint.
func converted(t *testing.T, dir string) *engine.Model {
	t.Helper()
	ck, err := convert.OpenCheckpoint(dir, convert.CheckpointOptions{})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { ck.Close() })
	r, err := quant.LookupRecipe("F32")
	if err != nil {
		t.Fatal(err)
	}
	plan, err := ck.Plan(convert.Request{Outputs: []convert.OutputRequest{{Path: "f32.gguf", Recipe: r}}})
	if err != nil {
		t.Fatal(err)
	}
	m, err := engine.Load(convert.NewView(plan, 0, ck, nil), engine.Options{})
	if err != nil {
		t.Fatal(err)
	}
	return m
}
