package tokenizer

import (
	"encoding/json"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/winnow-moe/winnow/testdata/fixtures"
)

// oracle is the folder of llama.cpp's tools.
func oracle(t *testing.T) string {
	t.Helper()
	bin := os.Getenv("WINNOW_ORACLE")
	if bin == "" {
		t.Skip("extra test: WINNOW_ORACLE does not name a folder with llama-tokenize")
	}
	return bin
}

// llamaTokenize runs llama.cpp's llama-tokenize on a text.
func llamaTokenize(t *testing.T, model, text string) []int32 {
	t.Helper()
	bin := oracle(t)
	file := filepath.Join(t.TempDir(), "text")
	if err := os.WriteFile(file, []byte(text), 0o666); err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command(filepath.Join(bin, "llama-tokenize"), "-m", model, "-f", file, "--ids", "--no-escape", "--log-disable")
	cmd.Env = append(os.Environ(), "LD_LIBRARY_PATH="+bin)
	out, err := cmd.Output()
	if err != nil {
		t.Fatalf("llama-tokenize: %v", err)
	}
	var ids []int32
	if err := json.Unmarshal(out, &ids); err != nil {
		t.Fatalf("llama-tokenize prints %.200q: %v", out, err)
	}
	return ids
}

// llamaDiffers are texts that llama.cpp is known to cut otherwise than the
// tokenizers library, whose ids count, by model.
var llamaDiffers = map[string]string{
	"gemma4_moe": "\n\n", // the run of line breaks is one word there, or none
}

// TestLlamaTokenize compares with llama-tokenize on llama.cpp's own files.
func TestLlamaTokenize(t *testing.T) {
	oracle(t)
	files := map[string]string{"unigram_nfkc": filepath.Join(vocabularies(t, "unigram_nfkc"), "ref-vocab.gguf")}
	for _, name := range fixtures.Families(t) {
		files[name] = filepath.Join(fixtures.Family(t, name), "ref-bf16.gguf")
	}
	var texts []struct{ Text string }
	readJSON(t, filepath.Join(fixtures.Family(t, "llama"), "tokens.json"), &texts)
	for name, file := range files {
		t.Run(name, func(t *testing.T) {
			e := encoder(t, fromFile(t, file))
			for _, c := range texts {
				text := strings.TrimRight(c.Text, "\n") // the program drops one
				want := llamaTokenize(t, file, text)
				if skip := llamaDiffers[name]; skip != "" && strings.Contains(text, skip) {
					continue
				}
				if got := e.Encode(text, EncodeOptions{AddSpecial: true, ParseSpecial: true}); !slices.Equal(got, want) {
					t.Errorf("%q:\ngot  %v\nwant %v", text, got, want)
				}
			}
		})
	}
}

// TestRealVocabulary compares the ids of whole texts with llama-tokenize's for
// the vocabulary of a released model, and says how fast they come.
func TestRealVocabulary(t *testing.T) {
	file := os.Getenv("WINNOW_REAL_GGUF")
	if file == "" {
		t.Skip("extra test: WINNOW_REAL_GGUF does not name a GGUF file of a released model")
	}
	oracle(t)
	v := fromFile(t, file)
	start := time.Now()
	e := encoder(t, v)
	t.Logf("%d tokens, model %q, pre-tokenizer %q; prepared in %v", v.Size(), v.Model, v.Pre, time.Since(start))
	texts, err := filepath.Glob(filepath.Join(fixtures.Dir(t, "packs/corpus"), "corpus", "eval-*.txt"))
	if err != nil || len(texts) == 0 {
		t.Fatalf("%d texts, %v", len(texts), err)
	}
	for _, path := range texts {
		raw, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		text := strings.TrimRight(string(raw), "\n")
		want := llamaTokenize(t, file, text)
		start := time.Now()
		got := e.Encode(text, EncodeOptions{AddSpecial: true, ParseSpecial: true})
		took := time.Since(start)
		n := 0
		for n < min(len(got), len(want)) && got[n] == want[n] {
			n++
		}
		if n < max(len(got), len(want)) {
			t.Errorf("%s: token %d of %d and %d differs: got %v, want %v", filepath.Base(path), n, len(got), len(want), got[n:min(n+9, len(got))], want[n:min(n+9, len(want))])
		}
		t.Logf("%s: %d bytes, %d tokens equal, %.2f million tokens/s", filepath.Base(path), len(text), len(got), float64(len(got))/took.Seconds()/1e6)
		if back := e.Decode(got[1:]); v.AddBOS() && back != text {
			t.Errorf("%s comes back changed", filepath.Base(path))
		}
	}
}
