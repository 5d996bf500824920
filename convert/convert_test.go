package convert

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"testing"

	"github.com/winnow-moe/winnow/formats/gguf"
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

// must fails when any of the errors is not nil.
func must(t testing.TB, errs ...error) {
	t.Helper()
	for _, err := range errs {
		if err != nil {
			t.Fatal(err)
		}
	}
}

func openCheckpoint(t testing.TB, dir string, opt CheckpointOptions) *Checkpoint {
	t.Helper()
	ck, err := OpenCheckpoint(dir, opt)
	must(t, err)
	t.Cleanup(func() { ck.Close() })
	return ck
}

func openGGUF(t testing.TB, path string) *gguf.File {
	t.Helper()
	f, err := gguf.Open(path)
	must(t, err)
	t.Cleanup(func() { f.Close() })
	return f
}

// request asks for one file per type in a folder, called TYPE.gguf.
func request(t testing.TB, dir string, types ...string) Request {
	t.Helper()
	var req Request
	for _, name := range types {
		req.Outputs = append(req.Outputs, OutputRequest{Path: filepath.Join(dir, name+".gguf"), Recipe: recipe(t, name)})
	}
	return req
}

// run executes a plan and returns the paths of its outputs.
func run(t testing.TB, p *Plan, data Data, opt RunOptions) []string {
	t.Helper()
	must(t, Run(t.Context(), p, data, opt))
	var paths []string
	for i := range p.Outputs {
		paths = append(paths, p.Outputs[i].Path)
	}
	return paths
}

// convertTo converts a checkpoint folder and returns the paths written.
func convertTo(t testing.TB, dir string, opt RunOptions, types ...string) []string {
	t.Helper()
	ck := openCheckpoint(t, dir, CheckpointOptions{})
	plan, err := ck.Plan(request(t, t.TempDir(), types...))
	must(t, err)
	return run(t, plan, ck, opt)
}

// quantizeTo quantizes a GGUF file and returns the paths written.
func quantizeTo(t testing.TB, path string, allow bool, types ...string) []string {
	t.Helper()
	src := NewGGUFSource(path, openGGUF(t, path))
	req := request(t, t.TempDir(), types...)
	req.AllowRequantize = allow
	plan, err := src.Plan(req)
	must(t, err)
	return run(t, plan, src, RunOptions{Inputs: src.Inputs()})
}

// copyFixture copies a checkpoint folder and changes its config.json; a nil
// value deletes a setting.
func copyFixture(t testing.TB, dir string, changes map[string]any) string {
	t.Helper()
	to := filepath.Join(t.TempDir(), filepath.Base(dir))
	must(t, os.CopyFS(to, os.DirFS(dir)))
	path := filepath.Join(to, "config.json")
	must(t, os.WriteFile(path, edit(t, readFile(t, path), changes), 0o666))
	return to
}

// edit changes top-level settings of a JSON object; nil deletes.
func edit(t testing.TB, text []byte, changes map[string]any) []byte {
	t.Helper()
	var top map[string]any
	must(t, json.Unmarshal(text, &top))
	for k, v := range changes {
		if top[k] = v; v == nil {
			delete(top, k)
		}
	}
	out, err := json.Marshal(top)
	must(t, err)
	return out
}

func readFile(t testing.TB, path string) []byte {
	t.Helper()
	b, err := os.ReadFile(path)
	must(t, err)
	return b
}

// differences are keys of a fixture's file that llama.cpp's converter writes
// otherwise or not at all, and why.
var differences = map[string]map[string]string{
	"mistral_swa":     {"llama.attention.sliding_window": "llama.cpp has no sliding window for this architecture"},
	"gpt_oss":         {"gpt-oss.rope.scaling.yarn_exact": "llama.cpp always rounds the ends of YaRN's ramp"},
	"llama4_maverick": {"llama4.attention.no_qk_norm": "llama.cpp leaves the norms out where there are 128 experts"},
	"phimoe":          {"phimoe.rope.scaling.attn_factor": "llama.cpp computes it from the contexts, HF takes it from short_mscale and long_mscale"},
	"llama4_smallchunk": {
		"llama4.attention.chunk_size":         "llama.cpp takes 8192 for granted",
		"llama4.attention.temperature_length": "llama.cpp takes 8192 for granted",
	},
}

// TestEqualsLlamaCpp compares with llama.cpp's own conversions: whole files
// where nothing is known to differ, else keys and tensors.
func TestEqualsLlamaCpp(t *testing.T) {
	for _, family := range fixtures.Families(t) {
		t.Run(family, func(t *testing.T) {
			dir := fixtures.Family(t, family)
			got, want := convertTo(t, dir, RunOptions{}, "BF16")[0], filepath.Join(dir, "ref-bf16.gguf")
			if len(differences[family]) == 0 {
				sameFiles(t, got, want)
				return
			}
			ours, theirs := openGGUF(t, got), openGGUF(t, want)
			a, b := ours.Metadata().Clone(), theirs.Metadata().Clone()
			for key := range differences[family] {
				a.Delete(key)
				b.Delete(key)
			}
			sameMetadata(t, a, b)
			if fmt.Sprint(ours.Tensors()) != fmt.Sprint(theirs.Tensors()) {
				t.Errorf("tensors %v, want %v", ours.Tensors(), theirs.Tensors())
			}
			sameRows(t, ours, theirs)
		})
	}
}

func sameMetadata(t *testing.T, got, want *gguf.Metadata) {
	t.Helper()
	if !slices.Equal(got.Keys(), want.Keys()) {
		t.Errorf("keys %q, want %q", got.Keys(), want.Keys())
	}
	for _, k := range want.Keys() {
		g, _ := got.Get(k)
		if w, _ := want.Get(k); fmt.Sprintf("%T %v", g, g) != fmt.Sprintf("%T %v", w, w) {
			t.Errorf("key %q is %.100v (%T), want %.100v (%T)", k, g, g, w, w)
		}
	}
}

// allRows returns the encoded bytes of a whole tensor.
func allRows(t testing.TB, m gguf.Model, i int) []byte {
	t.Helper()
	b, err := m.Rows(context.Background(), i, 0, m.Tensors()[i].Rows(), nil)
	must(t, err)
	return b
}

// sameRows compares all tensors of got, by name, with those of want in type
// and bytes.
func sameRows(t *testing.T, got, want gguf.Model) {
	t.Helper()
	index := map[string]int{}
	for i, info := range want.Tensors() {
		index[info.Name] = i
	}
	for i, info := range got.Tensors() {
		j, ok := index[info.Name]
		if !ok {
			t.Errorf("tensor %q is not expected", info.Name)
			continue
		}
		if w := want.Tensors()[j]; w.Type != info.Type || !slices.Equal(w.Shape, info.Shape) {
			t.Errorf("tensor %v, want %v", info, w)
		} else if !bytes.Equal(allRows(t, got, i), allRows(t, want, j)) {
			t.Errorf("tensor %q differs", info.Name)
		}
	}
}

func sameFiles(t *testing.T, got, want string) {
	t.Helper()
	a, b := readFile(t, got), readFile(t, want)
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
