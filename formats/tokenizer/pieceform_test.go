package tokenizer

import (
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"testing"
)

// readMap reads a JSON object.
func readMap(t testing.TB, path string) map[string]any {
	t.Helper()
	var m map[string]any
	readJSON(t, path, &m)
	return m
}

// TestMetaspace compares with the tokenizers library; see testdata/vocabularies.py.
func TestMetaspace(t *testing.T) {
	dir := vocabularies(t, "unigram")
	var rows []struct {
		PreTokenizer map[string]any `json:"pre_tokenizer"`
		Cases        []struct {
			Text string
			IDs  []int32
		}
	}
	readJSON(t, filepath.Join(dir, "metaspace.json"), &rows)
	doc := readMap(t, filepath.Join(dir, "tokenizer.json"))
	doc["normalizer"] = nil
	for _, row := range rows {
		doc["pre_tokenizer"] = row.PreTokenizer
		v, err := Load(write(t, map[string]any{"tokenizer.json": doc}), Options{})
		if err != nil {
			t.Fatal(err)
		}
		if v.spacePrefix() != (row.PreTokenizer["prepend_scheme"] != "never") {
			t.Errorf("%v: add_space_prefix is %v", row.PreTokenizer, v.spacePrefix())
		}
		e := encoder(t, v)
		for _, c := range row.Cases {
			wantIDs(t, e, fmt.Sprint(row.PreTokenizer), c.Text, c.IDs)
		}
	}
}

// TestPieceForms refuses what is not known to be done to texts.
func TestPieceForms(t *testing.T) {
	gemma := func() map[string]any {
		return readMap(t, filepath.Join(vocabularies(t, "tiny-gemma4-moe"), "tokenizer.json"))
	}
	unigram := func() map[string]any { return readMap(t, filepath.Join(vocabularies(t, "unigram"), "tokenizer.json")) }
	for _, c := range []struct {
		name     string
		doc      map[string]any
		key, val string // val is JSON
		opt      Options
		want     string
	}{
		{"normalizer", unigram(), "normalizer", `{"type":"Lowercase"}`, Options{}, "Lowercase"},
		{"replacement", unigram(), "normalizer", `{"type":"Replace","pattern":{"String":"a"},"content":"b"}`, Options{}, "Replace"},
		{"pre_tokenizer", unigram(), "pre_tokenizer", `{"type":"Whitespace"}`, Options{}, "Whitespace"},
		{"character map", unigram(), "normalizer", `{"type":"Precompiled","precompiled_charsmap":"%"}`, Options{}, "base64"},
		{"short character map", unigram(), "normalizer", `{"type":"Precompiled","precompiled_charsmap":"AAAA"}`, Options{}, "too short"},
		{"pre", unigram(), "normalizer", `null`, Options{Pre: "qwen2"}, `"qwen2" does not fit`},
		{"BPE pre", gemma(), "normalizer", `null`, Options{Pre: "qwen2"}, `"qwen2" does not fit`},
		{"squeezing BPE", gemma(), "normalizer", `{"type":"Replace","pattern":{"Regex":" {2,}"},"content":" "}`, Options{}, "collapses"},
		{"prefix", gemma(), "normalizer", `{"type":"Prepend","prepend":"▁"}`, Options{Model: ModelCharBPE}, "changes more"},
		{"other split", gemma(), "pre_tokenizer", `{"type":"Split","pattern":{"String":"a"},"behavior":"MergedWithPrevious"}`, Options{Model: ModelCharBPE}, "--pre gemma4"},
		{"small vocab_size", gemma(), "version", `""`, Options{Model: ModelCharBPE, VocabSize: 100}, "vocab_size"},
	} {
		t.Run(c.name, func(t *testing.T) {
			c.doc[c.key] = json.RawMessage(c.val)
			_, err := Load(write(t, map[string]any{"tokenizer.json": c.doc}), c.opt)
			refusedWith(t, err, c.want)
		})
	}
	doc := gemma()
	doc["pre_tokenizer"] = json.RawMessage(`{"type":"Whitespace"}`)
	v, err := Load(write(t, map[string]any{"tokenizer.json": doc}), Options{Pre: "gemma4"})
	if err != nil || v.Model != ModelCharBPE {
		t.Errorf("--pre gemma4: %v, %v", v, err)
	}
}

func TestUnigramErrors(t *testing.T) {
	for _, c := range []struct{ name, model, want string }{
		{"no list", `{"type":"Unigram","vocab":{}}`, "model.vocab"},
		{"no pair", `{"type":"Unigram","vocab":[["a"]]}`, "model.vocab[0]"},
		{"no number", `{"type":"Unigram","vocab":[["a","b"]]}`, "not a number"},
		{"infinite", `{"type":"Unigram","vocab":[["a",1e300]]}`, "not finite"},
		{"unk", `{"type":"Unigram","vocab":[["a",-1]],"unk_id":1}`, "unk_id"},
	} {
		t.Run(c.name, func(t *testing.T) {
			_, err := Load(write(t, map[string]any{"tokenizer.json": `{"model":` + c.model + `}`}), Options{})
			refusedWith(t, err, c.want)
		})
	}
}

// FuzzTiktoken builds vocabularies from arbitrary tiktoken files.
func FuzzTiktoken(f *testing.F) {
	raw, err := os.ReadFile(filepath.Join(vocabularies(f, "kimi"), "tiktoken.model"))
	if err != nil {
		f.Fatal(err)
	}
	f.Add(raw, "Hello 中文")
	f.Add([]byte("YQ== 0\nYg== 1\nYWI= 2\n"), "abba")
	f.Fuzz(func(t *testing.T, raw []byte, text string) {
		ranks, err := parseTiktoken("tiktoken.model", raw)
		if err != nil {
			return
		}
		v, err := (&folder{ranks: ranks}).load(Options{})
		if err != nil {
			return
		}
		exercise(t, v, text)
	})
}
