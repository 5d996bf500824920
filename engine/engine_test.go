package engine

import (
	"context"
	"math"
	"path/filepath"
	"testing"

	"github.com/winnow-moe/winnow/formats/dtype"
	"github.com/winnow-moe/winnow/formats/gguf"
	"github.com/winnow-moe/winnow/formats/safetensors"
	"github.com/winnow-moe/winnow/testdata/fixtures"
)

func TestMain(m *testing.M) { fixtures.Main(m) }

// tolerance of logits and hidden states against HF: two independent float32
// implementations differ by up to 1.3e-4 on these fixtures.
const tolerance = 1e-3

// golden holds HF's results for one sequence.
type golden struct {
	ids    []int32
	logits []float32 // [tokens, vocab]
	final  []float32 // [tokens, embed], after the output norm; may be nil
}

func openGolden(t testing.TB, path string) *safetensors.Checkpoint {
	t.Helper()
	c, err := safetensors.OpenFile(path)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	return c
}

// numbers reads a tensor; found is false when there is none of that name.
func numbers(t testing.TB, c *safetensors.Checkpoint, name string) (v []float32, found bool) {
	t.Helper()
	i, ok := c.Lookup(name)
	if !ok {
		return nil, false
	}
	info := c.Tensors()[i]
	raw := make([]byte, info.Size)
	if err := c.ReadAt(i, 0, raw); err != nil {
		t.Fatal(err)
	}
	v = make([]float32, info.Size*8/int64(info.DType.Bits()))
	if err := dtype.Decode(info.DType, v, raw); err != nil {
		t.Fatal(err)
	}
	return v, true
}

func ids(v []float32) []int32 {
	out := make([]int32, len(v))
	for i, f := range v {
		out[i] = int32(f)
	}
	return out
}

// familyGolden reads the logits of a family fixture.
func familyGolden(t testing.TB, family string, embed int) golden {
	c := openGolden(t, filepath.Join(fixtures.Family(t, family), "logits.safetensors"))
	in, _ := numbers(t, c, "input_ids")
	logits, _ := numbers(t, c, "logits")
	states, _ := numbers(t, c, "hidden_states") // [layers + 1, tokens, embed]
	return golden{ids: ids(in), logits: logits, final: states[len(states)-len(in)*embed:]}
}

func openModel(t testing.TB, path string, opt Options) *Model {
	t.Helper()
	f, err := gguf.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { f.Close() })
	m, err := Load(f, opt)
	if err != nil {
		t.Fatal(err)
	}
	return m
}

// allLogits runs sequences and returns the logits of all rows.
func allLogits(t testing.TB, m *Model, seqs [][]int32) (*Hidden, []float32) {
	t.Helper()
	h, err := m.Forward(context.Background(), seqs)
	if err != nil {
		t.Fatal(err)
	}
	dst := make([]float32, h.Rows()*m.Vocab())
	if err := m.Logits(context.Background(), h, 0, h.Rows(), dst); err != nil {
		t.Fatal(err)
	}
	return h, dst
}

// maxDiff returns the largest absolute difference; NaN counts as infinite.
func maxDiff(t testing.TB, got, want []float32) float64 {
	t.Helper()
	if len(got) != len(want) || len(got) == 0 {
		t.Fatalf("%d values, want %d", len(got), len(want))
	}
	worst := 0.0
	for i := range got {
		d := math.Abs(float64(got[i]) - float64(want[i]))
		if !(d <= worst) {
			worst = d
		}
	}
	return worst
}

// noReference are fixtures whose reference file is another model than HF's:
// why. The files that winnow makes of them are compared in package verify.
var noReference = map[string]string{
	"deepseek_v3_fp8":   "BF16 does not hold the products of FP8 weights and block scales",
	"mistral_swa":       "the file does not say that there is a sliding window",
	"llama4_smallchunk": "the file does not say how long a chunk is",
	"llama4_maverick":   "the file does not say that queries and keys are not normed",
	"phimoe":            "the file has another factor on the rotary embedding",
	"gpt_oss":           "the file does not say that the ends of YaRN's ramp are not rounded",
}

// TestFamilies compares llama.cpp's files of the fixtures with HF's logits.
func TestFamilies(t *testing.T) {
	for _, family := range fixtures.Families(t) {
		t.Run(family, func(t *testing.T) {
			if why := noReference[family]; why != "" {
				t.Skip(why)
			}
			m := openModel(t, filepath.Join(fixtures.Family(t, family), "ref-bf16.gguf"), Options{})
			want := familyGolden(t, family, m.Params().Embed)
			h, got := allLogits(t, m, [][]int32{want.ids})
			d := maxDiff(t, got, want.logits)
			t.Logf("%d tokens: logits differ by at most %.2g", len(want.ids), d)
			if !(d <= tolerance) {
				t.Errorf("logits differ by %g, want at most %g", d, tolerance)
			}
			if d := maxDiff(t, h.rows.Data, want.final); !(d <= tolerance) {
				t.Errorf("final hidden states differ by %g, want at most %g", d, tolerance)
			}
		})
	}
}
