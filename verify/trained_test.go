package verify

import (
	"encoding/json"
	"math"
	"os"
	"path/filepath"
	"testing"

	"github.com/winnow-moe/winnow/convert"
	"github.com/winnow-moe/winnow/engine"
	"github.com/winnow-moe/winnow/formats/dtype"
	"github.com/winnow-moe/winnow/formats/gguf"
	"github.com/winnow-moe/winnow/formats/safetensors"
	"github.com/winnow-moe/winnow/quant"
	"github.com/winnow-moe/winnow/testdata/fixtures"
)

// trained are really trained checkpoints with the goldens of HF's code.
var trained = map[string]struct{ bos int32 }{"tiny-gemma4-moe": {2}, "tiny-llama4": {2027}}

// trainedModel loads a checkpoint folder through its plan; nothing is written.
func trainedModel(t *testing.T, name string) *engine.Model {
	t.Helper()
	return checkpointModel(t, filepath.Join(fixtures.Dir(t, "packs/"+name), name), "F32")
}

// checkpointModel loads a checkpoint folder as it would be converted.
func checkpointModel(t *testing.T, path, recipe string) *engine.Model {
	t.Helper()
	m, err := engine.Load(checkpointView(t, path, recipe), engine.Options{})
	if err != nil {
		t.Fatal(err)
	}
	return m
}

// checkpointView opens what a checkpoint folder would be converted to.
func checkpointView(t *testing.T, path, recipe string) gguf.Model {
	t.Helper()
	ck, err := convert.OpenCheckpoint(path, convert.CheckpointOptions{})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { ck.Close() })
	r, err := quant.LookupRecipe(recipe)
	if err != nil {
		t.Fatal(err)
	}
	plan, err := ck.Plan(convert.Request{Outputs: []convert.OutputRequest{{Recipe: r}}})
	if err != nil {
		t.Fatal(err)
	}
	return convert.NewView(plan, 0, ck, nil)
}

func trainedGolden(t *testing.T, name, file string) string {
	return filepath.Join(fixtures.Dir(t, "packs/"+name), name+"-golden", file)
}

// readTensor reads a tensor of numbers of any type.
func readTensor(t *testing.T, path, name string) []float32 {
	t.Helper()
	c, err := safetensors.OpenFile(path)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	i, ok := c.Lookup(name)
	if !ok {
		t.Fatalf("%s has no tensor %q", path, name)
	}
	info := c.Tensors()[i]
	raw := make([]byte, info.Size)
	out := make([]float32, info.Size*8/int64(info.DType.Bits()))
	if err := c.ReadAt(i, 0, raw); err != nil {
		t.Fatal(err)
	}
	if err := dtype.Decode(info.DType, out, raw); err != nil {
		t.Fatal(err)
	}
	return out
}

func readIDs(t *testing.T, path, name string) []int32 {
	t.Helper()
	var ids []int32
	for _, f := range readTensor(t, path, name) {
		ids = append(ids, int32(f)) // below 2^24, so exact
	}
	return ids
}

// TestTrainedLogits compares with HF's logits. Both checkpoints have windows
// or chunks of 64 tokens, which the second sequence crosses several times.
func TestTrainedLogits(t *testing.T) {
	for name := range trained {
		t.Run(name, func(t *testing.T) {
			m, path := trainedModel(t, name), trainedGolden(t, name, "logits.safetensors")
			seqs := [][]int32{readIDs(t, path, "input_ids_0"), readIDs(t, path, "input_ids_1")}
			h, err := m.Forward(t.Context(), seqs)
			if err != nil {
				t.Fatal(err)
			}
			logits := make([]float32, h.Rows()*m.Vocab())
			if err := m.Logits(t.Context(), h, 0, h.Rows(), logits); err != nil {
				t.Fatal(err)
			}
			for i, suffix := range []string{"_0", "_1"} {
				first, _ := h.Seq(i)
				rows, want := readIDs(t, path, "rows"+suffix), readTensor(t, path, "logits"+suffix)
				worst := 0.0
				for r, pos := range rows {
					got := logits[(first+int(pos))*m.Vocab():][:m.Vocab()]
					for j, g := range got {
						d := math.Abs(float64(g) - float64(want[r*m.Vocab()+j]))
						if !(d <= worst) { // NaN too
							worst = d
						}
					}
				}
				t.Logf("sequence %d, %d tokens: logits differ by at most %.2g in %d rows", i, len(seqs[i]), worst, len(rows))
				if !(worst <= 1e-3) || len(rows) < 20 {
					t.Errorf("sequence %d: logits differ by %g in %d rows", i, worst, len(rows))
				}
			}
		})
	}
}

// TestTrainedPerplexity compares the losses of windows of the evaluation texts
// with HF's. That they agree to 1e-5 makes perplexities equal to 0.001 %.
func TestTrainedPerplexity(t *testing.T) {
	for name, c := range trained {
		t.Run(name, func(t *testing.T) {
			b, err := os.ReadFile(trainedGolden(t, name, "ppl.json"))
			if err != nil {
				t.Fatal(err)
			}
			var golden struct {
				Files map[string]struct {
					evaluation
					Losses []float64 `json:"chunk_mean_nll"`
				}
			}
			if err := json.Unmarshal(b, &golden); err != nil || len(golden.Files) != 3 {
				t.Fatal("no golden:", err)
			}
			m := trainedModel(t, name)
			for domain, want := range golden.Files {
				ids := readIDs(t, trainedGolden(t, name, "ids.safetensors"), domain)
				text, err := NewText(name, ids, want.Ctx, 4, c.bos, true)
				if err != nil || len(ids) != want.Tokens {
					t.Fatalf("%d tokens, want %d: %v", len(ids), want.Tokens, err)
				}
				got, err := Perplexity(t.Context(), m, text, Options{})
				if err != nil {
					t.Fatal(err)
				}
				for w, nll := range got.WindowNLL {
					near(t, domain, nll, want.Losses[w], 1e-5) // the golden has six digits
				}
			}
		})
	}
}
