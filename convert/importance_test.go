package convert

import (
	"errors"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/winnow-moe/winnow/formats/calib"
	"github.com/winnow-moe/winnow/formats/gguf"
	"github.com/winnow-moe/winnow/testdata/fixtures"
)

// e2eSource opens the small model of llama-quantize's golden runs and one of
// its importance matrices.
func e2eSource(t *testing.T, imatrix string) (*GGUFSource, *Importance) {
	t.Helper()
	dir := filepath.Join(fixtures.Dir(t, "packs/goldens-quant"), "quant", "e2e")
	f, err := gguf.OpenUnmapped(filepath.Join(dir, "model.gguf"))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { f.Close() })
	m, err := calib.Read(filepath.Join(dir, imatrix), calib.Options{})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { m.Close() })
	return NewGGUFSource("model.gguf", f), &Importance{Matrix: m, File: strings.Repeat("x", 200)}
}

func TestMissingImportance(t *testing.T) {
	src, partial := e2eSource(t, "imatrix_partial.gguf")
	outputs := []OutputRequest{{"x.gguf", recipe(t, "IQ2_XS")}}
	for _, imp := range []*Importance{nil, partial} {
		_, err := src.Plan(Request{Outputs: outputs, Importance: imp})
		var hint *HintError
		if !errors.Is(err, ErrRefused) || !errors.As(err, &hint) || !strings.Contains(err.Error(), "needs an importance matrix") {
			t.Errorf("importance %v: error %v, want a refusal with a hint", imp != nil, err)
		}
	}
}

func TestImportanceSize(t *testing.T) {
	src, imp := e2eSource(t, "imatrix.gguf")
	name := "blk.0.attn_q.weight"
	imp.Matrix = &calib.Matrix{Entries: []calib.Entry{calib.NewEntry(name, make([]float32, 7), []int64{1})}}
	_, err := src.Plan(Request{Outputs: []OutputRequest{{"x.gguf", recipe(t, "Q4_K_M")}}, Importance: imp})
	if !errors.Is(err, ErrInput) || !strings.Contains(err.Error(), name) || !strings.Contains(err.Error(), "7") {
		t.Errorf("error %v, want one with the tensor and both sizes", err)
	}
}

// TestAddedKeys: the keys a request adds come last, in llama-quantize's order.
func TestAddedKeys(t *testing.T) {
	src, imp := e2eSource(t, "imatrix.gguf")
	plan, err := src.Plan(Request{
		Outputs: []OutputRequest{{"x.gguf", recipe(t, "Q4_K_M")}}, Importance: imp,
		Overrides: []Override{{"general.name", "renamed"}}, PruneLayers: []int{1},
	})
	if err != nil {
		t.Fatal(err)
	}
	md := plan.Outputs[0].Metadata
	want := []string{
		"general.quantization_version", "general.file_type", "general.name", keyImatrixFile, keyImatrixDataset,
		keyImatrixEntries, keyImatrixChunks, "qwen3moe.block_count",
	}
	if keys := md.Keys(); !slices.Equal(keys[len(keys)-len(want):], want) {
		t.Errorf("last keys %q, want %q", keys[len(keys)-len(want):], want)
	}
	if file, _ := md.String(keyImatrixFile); len(file) != maxOverride {
		t.Errorf("%s has %d bytes, want %d", keyImatrixFile, len(file), maxOverride)
	}
	if n, _ := md.Int("qwen3moe.block_count"); n != 3 {
		t.Errorf("block_count %d, want 3", n)
	}
	for i := range plan.Tensors {
		if strings.HasPrefix(plan.Tensors[i].Name, "blk.3.") {
			t.Errorf("tensor %q: blocks must be numbered anew", plan.Tensors[i].Name)
		}
	}
}
