package convert

import (
	"errors"
	"fmt"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"

	"github.com/winnow-moe/winnow/formats/calib"
	"github.com/winnow-moe/winnow/formats/gguf"
	"github.com/winnow-moe/winnow/quant"
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

// TestImportanceNotes: what a matrix lacks is told once, whatever the number of
// outputs, and not at all where entries were left out on purpose.
func TestImportanceNotes(t *testing.T) {
	src, imp := e2eSource(t, "imatrix.gguf")
	imp.Matrix.Filter(nil, []string{"blk.0.attn_q", "blk.0.attn_k"})
	for _, selected := range []bool{false, true} {
		imp.Selected = selected
		plan, err := src.Plan(Request{Outputs: []OutputRequest{{"x.gguf", recipe(t, "Q4_K_M")}, {"y.gguf", recipe(t, "Q5_K_S")}}, Importance: imp})
		if err != nil {
			t.Fatal(err)
		}
		notes := strings.Join(plan.Notes, "\n")
		if strings.Contains(notes, `no entry for 2 tensors, such as "blk.0.attn_k.weight": quantized without`) == selected {
			t.Errorf("selected %v: notes %s", selected, notes)
		}
		if strings.Count(notes, "saw no token for matrices of") != 1 {
			t.Errorf("notes %s", notes)
		}
	}
}

// TestPreview: a plan that is only looked at shows what a run would refuse.
func TestPreview(t *testing.T) {
	src, _ := e2eSource(t, "imatrix.gguf")
	plan, err := src.Plan(Request{Outputs: []OutputRequest{{"x.gguf", recipe(t, "IQ2_XS")}}, Preview: true})
	if err != nil || len(plan.Notes) != 1 || !strings.Contains(plan.Notes[0], "needs an importance matrix; so do ") {
		t.Errorf("notes %q, error %v", plan.Notes, err)
	}
}

// TestZeroImportance: a run reports matrices whose importance is all zero.
func TestZeroImportance(t *testing.T) {
	src, imp := e2eSource(t, "imatrix.gguf")
	name := "blk.0.attn_q.weight"
	e, _ := imp.Matrix.Find(name)
	imp.Matrix = &calib.Matrix{Entries: []calib.Entry{calib.NewEntry(name, make([]float32, e.Size()), []int64{1})}}
	plan, err := src.Plan(Request{Outputs: []OutputRequest{{filepath.Join(t.TempDir(), "x.gguf"), recipe(t, "Q4_K_M")}}, Importance: imp})
	if err != nil {
		t.Fatal(err)
	}
	var mu sync.Mutex
	var got []string
	events := Events{ZeroImportance: func(name string, matrix int64) {
		mu.Lock()
		defer mu.Unlock()
		got = append(got, fmt.Sprint(name, " ", matrix))
	}}
	if err := Run(t.Context(), plan, src, RunOptions{Events: events}); err != nil {
		t.Fatal(err)
	}
	if !slices.Equal(got, []string{name + " 0"}) {
		t.Errorf("reported %q", got)
	}
}

// TestIneffectiveOverrides: types for tensors that change nothing are told.
func TestIneffectiveOverrides(t *testing.T) {
	src, _ := e2eSource(t, "imatrix.gguf")
	o, err := quant.ParseOverride("attn_w=q8_0")
	if err != nil {
		t.Fatal(err)
	}
	req := Request{Outputs: []OutputRequest{{"x.gguf", recipe(t, "F16")}}, Quant: quant.Options{TensorTypes: []quant.Override{o}}}
	plan, err := src.Plan(req)
	want := []string{"attn_w=q8_0 fits no tensor", "F16 heeds no types of single tensors, as in llama-quantize"}
	if err != nil || !slices.Equal(plan.Notes, want) {
		t.Errorf("notes %q, error %v", plan.Notes, err)
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

// TestSearch: the plan and the keys tell where the thorough search is used, and
// which types have none.
func TestSearch(t *testing.T) {
	src, imp := e2eSource(t, "imatrix.gguf")
	req := Request{Outputs: []OutputRequest{{"a.gguf", recipe(t, "Q4_K_M")}, {"b.gguf", recipe(t, "Q8_0")}}, Importance: imp}
	req.Quant.Search = quant.ThoroughSearch
	plan, err := src.Plan(req)
	if err != nil {
		t.Fatal(err)
	}
	doc, counts := plan.Summary(), map[string]int{}
	for _, s := range doc.Outputs[0].Tensors {
		if _, k := strings.CutSuffix(s.Type.String(), "_K"); k != (s.Search == "thorough") {
			t.Errorf("tensor %q of type %s has the search %q", s.Name, s.Type, s.Search)
		}
		counts[s.Search]++
	}
	if doc.Outputs[0].Thorough != counts["thorough"] || counts["thorough"] == 0 || doc.Outputs[1].Thorough != 0 {
		t.Errorf("%d and %d tensors counted, want %d and none", doc.Outputs[0].Thorough, doc.Outputs[1].Thorough, counts["thorough"])
	}
	if v, _ := plan.Outputs[0].Metadata.String(keySearch); v != "thorough" {
		t.Errorf("%s is %q", keySearch, v)
	}
	if _, ok := plan.Outputs[1].Metadata.Get(keySearch); ok {
		t.Errorf("a file without thorough search has %s", keySearch)
	}
	if notes := strings.Join(plan.Notes, "\n"); !strings.Contains(notes, "Q4_K_M: Q5_0 has no thorough search") || !strings.Contains(notes, "Q8_0: Q8_0 has no") {
		t.Errorf("notes %q", notes)
	}
}
