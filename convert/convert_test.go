package convert

import (
	"bytes"
	"os"
	"path/filepath"
	"testing"

	"github.com/winnow-moe/winnow/quant"
	"github.com/winnow-moe/winnow/testdata/fixtures"
)

func TestMain(m *testing.M) { fixtures.Main(m) }

func recipe(t testing.TB, name string) *quant.Recipe {
	t.Helper()
	r, err := quant.LookupRecipe(name)
	if err != nil {
		t.Fatal(err)
	}
	return r
}

// convertTo converts a checkpoint folder and returns the paths written.
func convertTo(t testing.TB, dir string, opt CheckpointOptions, run RunOptions, types ...string) []string {
	t.Helper()
	ck, err := OpenCheckpoint(dir, opt)
	if err != nil {
		t.Fatal(err)
	}
	defer ck.Close()
	var req Request
	var paths []string
	out := t.TempDir()
	for _, name := range types {
		path := filepath.Join(out, name+".gguf")
		paths = append(paths, path)
		req.Outputs = append(req.Outputs, OutputRequest{Path: path, Recipe: recipe(t, name)})
	}
	plan, err := ck.Plan(req)
	if err != nil {
		t.Fatal(err)
	}
	if err := Run(t.Context(), plan, ck, run); err != nil {
		t.Fatal(err)
	}
	return paths
}

// TestEqualsLlamaCpp compares whole files with llama.cpp's own conversions.
func TestEqualsLlamaCpp(t *testing.T) {
	for _, family := range []string{"deepseek_v3", "deepseek_v3_fp8", "deepseek_v2_lite"} {
		t.Run(family, func(t *testing.T) {
			dir := fixtures.Family(t, family)
			got := convertTo(t, dir, CheckpointOptions{}, RunOptions{}, "BF16")[0]
			sameFiles(t, got, filepath.Join(dir, "ref-bf16.gguf"))
		})
	}
}

func sameFiles(t *testing.T, got, want string) {
	t.Helper()
	a, err := os.ReadFile(got)
	if err != nil {
		t.Fatal(err)
	}
	b, err := os.ReadFile(want)
	if err != nil {
		t.Fatal(err)
	}
	if bytes.Equal(a, b) {
		return
	}
	i := 0
	for i < min(len(a), len(b)) && a[i] == b[i] {
		i++
	}
	t.Errorf("%s differs from %s: sizes %d and %d, first difference at byte %d\ngot  %q\nwant %q", got, want, len(a), len(b), i, window(a, i), window(b, i))
}

func window(b []byte, i int) []byte { return b[max(0, i-40):min(len(b), i+40)] }
