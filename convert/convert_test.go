package convert

import (
	"bytes"
	"context"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/winnow-moe/winnow/formats/gguf"
	"github.com/winnow-moe/winnow/formats/tokenizer"
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

// appendRows puts rows of zeros behind a tensor of a safetensors file.
func appendRows(t *testing.T, path, tensor string, rows int64) {
	t.Helper()
	raw := readFile(t, path)
	n := binary.LittleEndian.Uint64(raw)
	header, data := raw[8:8+n], raw[8+n:]
	type info struct {
		DType   string   `json:"dtype"`
		Shape   []int64  `json:"shape"`
		Offsets [2]int64 `json:"data_offsets"`
	}
	var metadata json.RawMessage
	tensors := map[string]*info{}
	var all map[string]json.RawMessage
	must(t, json.Unmarshal(header, &all))
	for name, v := range all {
		if name == "__metadata__" {
			metadata = v
			continue
		}
		tensors[name] = &info{}
		must(t, json.Unmarshal(v, tensors[name]))
	}
	grown := tensors[tensor]
	end, more := grown.Offsets[1], rows*(grown.Offsets[1]-grown.Offsets[0])/grown.Shape[0]
	for _, x := range tensors {
		if x.Offsets[0] >= end {
			x.Offsets[0] += more
			x.Offsets[1] += more
		}
	}
	grown.Shape[0] += rows
	grown.Offsets[1] += more
	out := map[string]any{}
	for name, x := range tensors {
		out[name] = x
	}
	if metadata != nil {
		out["__metadata__"] = metadata
	}
	header, err := json.Marshal(out)
	must(t, err)
	file := binary.LittleEndian.AppendUint64(nil, uint64(len(header)))
	file = append(file, header...)
	file = append(file, data[:end]...)
	file = append(file, make([]byte, more)...)
	must(t, os.WriteFile(path, append(file, data[end:]...), 0o666))
}

// TestTrimVocab: rows of Gemma 4's embedding that no token has are left out.
func TestTrimVocab(t *testing.T) {
	dir := fixtures.Family(t, "gemma4_moe")
	var cfg map[string]any
	must(t, json.Unmarshal(readFile(t, filepath.Join(dir, "config.json")), &cfg))
	text := cfg["text_config"].(map[string]any)
	text["vocab_size"] = 544
	longer := copyFixture(t, dir, map[string]any{"text_config": text})
	appendRows(t, filepath.Join(longer, "model.safetensors"), "model.language_model.embed_tokens.weight", 32)
	sameFiles(t, convertTo(t, longer, RunOptions{}, "BF16")[0], filepath.Join(dir, "ref-bf16.gguf"))

	text["vocab_size"] = 500
	if _, err := OpenCheckpoint(copyFixture(t, dir, map[string]any{"text_config": text}), CheckpointOptions{}); !errors.Is(err, tokenizer.ErrInvalid) {
		t.Errorf("more tokens than rows: %v", err)
	}
}

// TestLeftOutTokens: a token behind the vocabulary is named in a warning, such
// as Gemma 3's image token in models without vision.
func TestLeftOutTokens(t *testing.T) {
	dir := copyFixture(t, fixtures.Family(t, "gemma3"), nil)
	must(t, os.WriteFile(filepath.Join(dir, "added_tokens.json"), []byte(`{"<image_soft_token>": 262144}`), 0o666))
	ck := openCheckpoint(t, dir, CheckpointOptions{})
	if len(ck.Warnings) != 1 || !strings.Contains(ck.Warnings[0], "<image_soft_token>") {
		t.Errorf("warnings %q", ck.Warnings)
	}
	sameFiles(t, convertTo(t, dir, RunOptions{}, "BF16")[0], filepath.Join(dir, "ref-bf16.gguf"))
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

// TestWithoutMTP compares with hashes of what llama.cpp's converter makes of
// fixtures with --no-mtp. Kept, an MTP block must be there.
func TestWithoutMTP(t *testing.T) {
	for family, want := range map[string]string{
		"qwen3_next":  "306c4789818c754122824156456eb8378b8b0972e77ced5f9a94c9eb6ed61a90",
		"qwen3_5_moe": "79fb8f7578aee13ce26e0923d11fa8d0e8a7acee9d65b9d5d94715f384604ad8",
	} {
		ck := openCheckpoint(t, fixtures.Family(t, family), CheckpointOptions{MTP: "drop"})
		plan, err := ck.Plan(request(t, t.TempDir(), "BF16"))
		must(t, err)
		if got := hash(readFile(t, run(t, plan, ck, RunOptions{})[0])); got != want {
			t.Errorf("%s: the file has hash %s, want %s", family, got, want)
		}
		trunk := slices.DeleteFunc(slices.Clone(ck.inv.Tensors), func(s Source) bool { return strings.HasPrefix(s.Name, "mtp.") })
		keep := openCheckpoint(t, fixtures.Family(t, family), CheckpointOptions{})
		_, _, err = modelTensors(keep.Model, NewInventory(trunk))
		var hint *HintError
		if wantRefusal(t, err, ErrInput, `"mtp.`); !errors.As(err, &hint) || !strings.Contains(hint.Hint, "--mtp drop") {
			t.Errorf("%s without its MTP block: hint of %v", family, err)
		}
	}
}
