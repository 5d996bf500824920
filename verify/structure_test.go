package verify

import (
	"context"
	"encoding/json"
	"errors"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/winnow-moe/winnow/formats/gguf"
	"github.com/winnow-moe/winnow/testdata/fixtures"
)

func openGGUF(t *testing.T, path string) *gguf.File {
	t.Helper()
	f, err := gguf.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { f.Close() })
	return f
}

// hinted reports whether some problem contains one alternative of every group
// of hints, ignoring case.
func hinted(problems []Problem, groups []string) bool {
	for _, p := range problems {
		all := true
		for _, group := range groups {
			any := false
			for _, h := range strings.Split(group, "|") {
				any = any || strings.Contains(strings.ToLower(p.Text), strings.ToLower(h))
			}
			all = all && any
		}
		if all {
			return true
		}
	}
	return false
}

// TestBadVocabularies runs the vocabulary cases of the corpus of bad inputs.
func TestBadVocabularies(t *testing.T) {
	root := filepath.Join(fixtures.Dir(t, "packs/bad"), "given")
	b, err := os.ReadFile(filepath.Join(root, "manifest.json"))
	if err != nil {
		t.Fatal(err)
	}
	var cases []struct {
		ID, Kind, Path, Op, Expect string
		Hints                      []string `json:"contains_hint"`
	}
	if err := json.Unmarshal(b, &cases); err != nil {
		t.Fatal(err)
	}
	run := 0
	for _, c := range cases {
		if c.Kind != "gguf" || c.Op != "load-vocab" {
			continue
		}
		run++
		t.Run(c.ID, func(t *testing.T) {
			got := Structure(openGGUF(t, filepath.Join(root, c.Path)))
			if c.Expect == "ok" && len(got) > 0 {
				t.Errorf("problems in a sound file: %+v", got)
			}
			if c.Expect == "error" && !hinted(got, c.Hints) {
				t.Errorf("no problem has the hints %q: %+v", c.Hints, got)
			}
		})
	}
	if run < 20 {
		t.Errorf("%d vocabulary cases, want at least 20", run)
	}
}

// TestReferenceFiles: files of llama.cpp's converter have no problem.
func TestReferenceFiles(t *testing.T) {
	for _, family := range []string{"deepseek_v3", "deepseek_v3_fp8", "deepseek_v2_lite"} {
		if got := Structure(openGGUF(t, filepath.Join(fixtures.Family(t, family), "ref-bf16.gguf"))); len(got) > 0 {
			t.Errorf("%s: %+v", family, got)
		}
	}
	if got := Structure(openGGUF(t, filepath.Join(fixtures.Dir(t, "packs/bad"), "given", "_model", "tiny-f32.gguf"))); len(got) > 0 {
		t.Errorf("tiny-f32: %+v", got)
	}
}

// edited is a model with a changed directory; it has no data.
type edited struct {
	md      *gguf.Metadata
	tensors []gguf.TensorInfo
}

func (e *edited) Metadata() *gguf.Metadata   { return e.md }
func (e *edited) Tensors() []gguf.TensorInfo { return e.tensors }
func (e *edited) Release(int)                {}
func (e *edited) Close() error               { return nil }
func (e *edited) Rows(context.Context, int, int64, int64, []byte) ([]byte, error) {
	return nil, errors.New("Structure reads tensor data")
}

// change edits the tensor of that name in place.
func (e *edited) change(name string, f func(*gguf.TensorInfo)) {
	for i := range e.tensors {
		if e.tensors[i].Name == name {
			f(&e.tensors[i])
		}
	}
}

func TestStructure(t *testing.T) {
	ref := openGGUF(t, filepath.Join(fixtures.Family(t, "deepseek_v3"), "ref-bf16.gguf"))
	tokens, _ := ref.Metadata().Strings("tokenizer.ggml.tokens")
	for name, c := range map[string]struct {
		edit func(*edited)
		want []Problem // Text is a part of the text
	}{
		"nothing": {func(e *edited) {}, nil},
		"missing": {func(e *edited) { e.tensors = e.tensors[:len(e.tensors)-1] },
			[]Problem{{Missing, ref.Tensors()[len(ref.Tensors())-1].Name, "is missing"}}},
		"optional": {func(e *edited) {
			e.tensors = slices.DeleteFunc(e.tensors, func(t gguf.TensorInfo) bool { return t.Name == "output.weight" })
		}, nil},
		"renamed": {func(e *edited) {
			e.change("blk.0.attn_norm.weight", func(t *gguf.TensorInfo) { t.Name = "blk.0.attn_nrom.weight" })
		}, []Problem{{Missing, "blk.0.attn_norm.weight", "is missing"}, {Unexpected, "blk.0.attn_nrom.weight", "has no place in deepseek2"}}},
		"shape": {func(e *edited) {
			e.change("output_norm.weight", func(t *gguf.TensorInfo) { t.Shape = []int64{63} })
		}, []Problem{{Shape, "output_norm.weight", "has shape [63], want [64]"}}},
		"factors": {func(e *edited) {
			e.tensors = append(e.tensors, gguf.TensorInfo{Name: "blk.1.ffn_up_exps.scale", Shape: []int64{8}},
				gguf.TensorInfo{Name: "blk.1.attn_output.input_scale", Shape: []int64{1}})
		}, nil},
		"factors of nothing": {func(e *edited) {
			e.tensors = append(e.tensors, gguf.TensorInfo{Name: "blk.1.ffn_pu.scale", Shape: []int64{1}})
		}, []Problem{{Unexpected, "blk.1.ffn_pu.scale", "has no place"}}},
		"factors of another shape": {func(e *edited) {
			e.tensors = append(e.tensors, gguf.TensorInfo{Name: "blk.1.ffn_up_exps.scale", Shape: []int64{2}})
		}, []Problem{{Shape, "blk.1.ffn_up_exps.scale", "has shape [2], want [8]"}}},
		"trailing one": {func(e *edited) {
			e.change("output_norm.weight", func(t *gguf.TensorInfo) { t.Shape = []int64{64, 1} })
		}, nil},
		"embedding": {func(e *edited) {
			e.change("token_embd.weight", func(t *gguf.TensorInfo) { t.Shape = []int64{64, 500} })
		}, []Problem{{Shape, "token_embd.weight", "[64 500], want [64 512]"}}},
		"architecture": {func(e *edited) { e.md.Set("general.architecture", "deepsek2") },
			[]Problem{{Metadata, "", `unknown architecture "deepsek2"`}}},
		"key missing": {func(e *edited) { e.md.Delete("deepseek2.block_count") },
			[]Problem{{Metadata, "", `"deepseek2.block_count" is missing`}}},
		"key type": {func(e *edited) { e.md.Set("deepseek2.embedding_length", uint64(64)) },
			[]Problem{{Metadata, "", `"deepseek2.embedding_length" has type UINT64, want UINT32`}}},
		"key unusable": {func(e *edited) { e.md.Set("deepseek2.embedding_length", "64") },
			[]Problem{{Metadata, "", `deepseek2.embedding_length`}}},
		"experts": {func(e *edited) {
			e.md.Set("deepseek2.expert_count", uint32(2048))
			e.tensors = nil
		}, []Problem{{Metadata, "", "at most 1024"}}},
		"no vocabulary": {func(e *edited) { e.md.Delete("tokenizer.ggml.model") },
			[]Problem{{Vocabulary, "", "tokenizer.ggml.model is missing"}}},
		"vocabulary size": {func(e *edited) { e.md.Set("deepseek2.vocab_size", uint32(len(tokens)+8)); e.tensors = nil },
			[]Problem{{Metadata, "", "tokenizer.ggml.tokens has 512 entries, but the model's vocabulary has 520"}}},
		"two things": {func(e *edited) { e.md.Delete("tokenizer.ggml.model"); e.md.Delete("general.architecture") },
			[]Problem{{Metadata, "", "general.architecture"}, {Vocabulary, "", "tokenizer.ggml.model"}}},
	} {
		t.Run(name, func(t *testing.T) {
			e := &edited{ref.Metadata().Clone(), slices.Clone(ref.Tensors())}
			c.edit(e)
			got := Structure(e)
			if len(got) != len(c.want) {
				t.Fatalf("got %+v, want %+v", got, c.want)
			}
			for i, w := range c.want {
				if got[i].Kind != w.Kind || got[i].Tensor != w.Tensor || !strings.Contains(got[i].Text, w.Text) {
					t.Errorf("got %+v, want %+v", got[i], w)
				}
			}
		})
	}
}
