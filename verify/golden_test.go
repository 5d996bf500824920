package verify

import (
	"encoding/binary"
	"encoding/json"
	"maps"
	"math"
	"os"
	"path/filepath"
	"slices"
	"testing"

	"github.com/winnow-moe/winnow/formats/safetensors"
	"github.com/winnow-moe/winnow/testdata/fixtures"
)

// hfLogits reads the token ids of a family fixture and the logits that HF's
// float32 model gives for them, one row per token.
func hfLogits(t *testing.T, family string) (ids []int32, logits []float32) {
	t.Helper()
	c, err := safetensors.OpenFile(filepath.Join(fixtures.Family(t, family), "logits.safetensors"))
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	read := func(name string) []byte {
		i, ok := c.Lookup(name)
		if !ok {
			t.Fatalf("no tensor %q", name)
		}
		b := make([]byte, c.Tensors()[i].Size)
		if err := c.ReadAt(i, 0, b); err != nil {
			t.Fatal(err)
		}
		return b
	}
	for b := read("input_ids"); len(b) > 0; b = b[8:] {
		ids = append(ids, int32(binary.LittleEndian.Uint64(b)))
	}
	for b := read("logits"); len(b) > 0; b = b[4:] {
		logits = append(logits, math.Float32frombits(binary.LittleEndian.Uint32(b)))
	}
	return ids, logits
}

// replay is a fake that repeats known logits, whatever the tokens.
func replay(logits []float32, rows int) *fakeModel {
	vocab := len(logits) / rows
	return &fakeModel{vocab: vocab, logit: func(_ int32, pos, id int) float64 { return float64(logits[pos*vocab+id]) }}
}

// TestCompareGolden compares every statistic with torch's (testdata/compare.py)
// for logits of real models.
func TestCompareGolden(t *testing.T) {
	ids, base := hfLogits(t, "deepseek_v3")
	_, other := hfLogits(t, "deepseek_v2_lite")
	mixed := make([]float32, len(base))
	for i := range mixed {
		mixed[i] = float32(0.75*base[i]) + float32(0.25*other[i])
	}
	b, err := os.ReadFile(filepath.Join("testdata", "compare.json"))
	if err != nil {
		t.Fatal(err)
	}
	var want Comparison
	if err := json.Unmarshal(b, &want); err != nil || want.Scored == 0 {
		t.Fatal(want, err)
	}
	got, err := Compare(t.Context(), replay(base, len(ids)), replay(mixed, len(ids)), &Text{Windows: [][]int32{ids}}, Options{})
	if err != nil {
		t.Fatal(err)
	}
	g, w := numbers(t, got), numbers(t, want)
	for _, name := range slices.Sorted(maps.Keys(w)) {
		near(t, name, g[name], w[name], 1e-9*math.Abs(w[name])+1e-12)
	}
	if len(w) < 45 {
		t.Errorf("%d numbers compared", len(w))
	}
}

// numbers lists the numbers of the JSON form of v by their path.
func numbers(t *testing.T, v any) map[string]float64 {
	t.Helper()
	b, err := json.Marshal(v)
	if err != nil {
		t.Fatal(err)
	}
	var tree any
	if err := json.Unmarshal(b, &tree); err != nil {
		t.Fatal(err)
	}
	out := map[string]float64{}
	var walk func(path string, v any)
	walk = func(path string, v any) {
		switch v := v.(type) {
		case float64:
			out[path] = v
		case map[string]any:
			for k, x := range v {
				walk(path+"/"+k, x)
			}
		}
	}
	walk("", tree)
	return out
}
