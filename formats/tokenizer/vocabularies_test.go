package tokenizer

import (
	"os"
	"path/filepath"
	"slices"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/winnow-moe/winnow/formats/gguf"
	"github.com/winnow-moe/winnow/testdata/fixtures"
)

// vocabularies is the folder of packs/vocabularies.tar.zst.
func vocabularies(t testing.TB, name string) string {
	return filepath.Join(fixtures.Dir(t, "packs/vocabularies"), name)
}

// copyFiles makes a folder of some files of another.
func copyFiles(t testing.TB, dir string, names ...string) string {
	t.Helper()
	files := map[string]any{}
	for _, name := range names {
		raw, err := os.ReadFile(filepath.Join(dir, name))
		if err != nil {
			t.Fatal(err)
		}
		files[name] = raw
	}
	return write(t, files)
}

func wantIDs(t *testing.T, e *Tokenizer, what, text string, want []int32) {
	t.Helper()
	if got := e.Encode(text, EncodeOptions{ParseSpecial: true}); !slices.Equal(got, want) {
		t.Errorf("%s, %.60q:\ngot  %v\nwant %v", what, text, got, want)
	}
}

// TestUnigram compares with the tokenizers library, where the vocabulary comes
// from tokenizer.json, and with SentencePiece, where it comes from
// tokenizer.model; see testdata/vocabularies.py. They differ behind added
// tokens, where only the former puts a space.
func TestUnigram(t *testing.T) {
	for _, name := range []string{"unigram", "unigram_nfkc"} {
		t.Run(name, func(t *testing.T) {
			dir := vocabularies(t, name)
			var cases []struct {
				Text   string
				HF, SP []int32
			}
			readJSON(t, filepath.Join(dir, "goldens.json"), &cases)
			small := []string{"config.json", "tokenizer_config.json"}
			for _, file := range []string{"tokenizer.json", "tokenizer.model"} {
				v, err := Load(copyFiles(t, dir, append(small, file)...), Options{})
				if err != nil {
					t.Fatal(err)
				}
				if v.Model != ModelUnigram {
					t.Errorf("%s: model %q", file, v.Model)
				}
				loaded, stored := encoder(t, v), encoder(t, roundTrip(t, v))
				for _, c := range cases {
					want := c.SP
					if file == "tokenizer.json" {
						want = c.HF
					}
					wantIDs(t, loaded, file, c.Text, want)
					wantIDs(t, stored, file+" through metadata", c.Text, want)
				}
			}
		})
	}
}

// TestUnigramKeys compares the keys with those of llama.cpp's converter, which
// writes them for T5.
func TestUnigramKeys(t *testing.T) {
	dir := vocabularies(t, "unigram_nfkc")
	v, err := Load(dir, Options{})
	if err != nil {
		t.Fatal(err)
	}
	f, err := gguf.Open(filepath.Join(dir, "ref-vocab.gguf"))
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	var got gguf.Metadata
	v.WriteTo(&got)
	gotKeys, gotValues := tokenizerKeys(&got)
	wantKeys, wantValues := tokenizerKeys(f.Metadata())
	if d := cmp.Diff(wantKeys, gotKeys); d != "" {
		t.Errorf("keys (-llama.cpp +winnow):\n%s", d)
	}
	if d := cmp.Diff(wantValues, gotValues); d != "" {
		t.Errorf("values (-llama.cpp +winnow):\n%s", d)
	}
}

// TestRanks compares with the rule of byte strings by rank, and with the
// tokenizers library's BPE; see testdata/vocabularies.py.
func TestRanks(t *testing.T) {
	for name, pre := range map[string]string{"kimi": "kimi-k2", "hy": "hunyuan"} {
		t.Run(name, func(t *testing.T) {
			dir := vocabularies(t, name)
			v, err := Load(dir, Options{})
			if err != nil {
				t.Fatal(err)
			}
			if v.Pre != pre || v.Model != ModelBPE {
				t.Errorf("model %q, pre-tokenizer %q", v.Model, v.Pre)
			}
			var cases []struct {
				Text string
				IDs  []int32
			}
			readJSON(t, filepath.Join(dir, "goldens.json"), &cases)
			var merges []string // by llama.cpp's conversion/qwen.py
			readJSON(t, filepath.Join(dir, "merges.json"), &merges)
			if d := cmp.Diff(merges, v.Merges); d != "" {
				t.Errorf("merges (-llama.cpp +winnow):\n%s", d)
			}
			back := roundTrip(t, v)
			loaded, stored := encoder(t, v), encoder(t, back)
			back.Merges = nil // as some conversions of Kimi K2 leave them out
			ranked := encoder(t, back)
			for i, c := range cases {
				wantIDs(t, loaded, "loaded", c.Text, c.IDs)
				if got := loaded.Decode(c.IDs); got != c.Text {
					t.Errorf("Decode gives %q, want %q", got, c.Text)
				}
				if i == len(cases)-1 {
					continue // has words that only tiktoken takes whole
				}
				wantIDs(t, stored, "stored", c.Text, c.IDs)
				wantIDs(t, ranked, "without merges", c.Text, c.IDs)
			}
		})
	}
}

func TestRankNames(t *testing.T) {
	v, err := Load(vocabularies(t, "kimi"), Options{})
	if err != nil {
		t.Fatal(err)
	}
	n := v.Size() - reservedTokens
	if got := v.Tokens[n : n+5]; !slices.Equal(got, []string{"[BOS]", "[EOS]", "<|im_end|>", v.Tokens[n+3], "<|im_user|>"}) || v.Types[n+3] != TypeControl {
		t.Errorf("control tokens %q", got)
	}
	if v, err = Load(vocabularies(t, "hy"), Options{}); err != nil {
		t.Fatal(err)
	}
	if id, ok := v.BOS(); !ok || v.Tokens[id] != "<|bos|>" || v.Tokens[v.Size()-1] != "<|extra_204|>" {
		t.Errorf("BOS is %d (%v), the last token %q", id, ok, v.Tokens[v.Size()-1])
	}
}

func TestRankErrors(t *testing.T) {
	for _, c := range []struct{ name, file, text, want string }{
		{"base64", "tiktoken.model", "!! 0\n", "line 1"},
		{"rank", "tiktoken.model", "YQ== 0\nYg== x\n", "line 2"},
		{"negative", "tiktoken.model", "YQ== -1\n", "rank -1"},
		{"repeated token", "tiktoken.model", "YQ== 0\nYQ== 1\n", "duplicate"},
		{"repeated rank", "tiktoken.model", "YQ== 0\nYg== 0\n", "duplicate"},
		{"hole", "tiktoken.model", "YQ== 0\nYg== 2\n", "hole"},
		{"empty", "tiktoken.model", "\n", "no tokens"},
		{"unknown cut", "other.tiktoken", "YQ== 0\n", "--pre NAME"},
	} {
		t.Run(c.name, func(t *testing.T) {
			_, err := Load(write(t, map[string]any{c.file: c.text}), Options{})
			refusedWith(t, err, c.want)
		})
	}
	_, err := Load(write(t, map[string]any{"a.tiktoken": "YQ== 0\n", "b.tiktoken": "YQ== 0\n"}), Options{})
	refusedWith(t, err, "2 files")
	_, err = Load(write(t, map[string]any{"tiktoken.model": "YQ== 0\n", "tokenizer_config.json": `{"added_tokens_decoder":{"0":{"content":"x"}}}`}), Options{})
	refusedWith(t, err, "conflict")
}
