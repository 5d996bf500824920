package tokenizer

import (
	"encoding/json"
	"errors"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/winnow-moe/winnow/formats/gguf"
	"github.com/winnow-moe/winnow/testdata/fixtures"
)

// write makes a folder of files; values that are not text become JSON.
func write(t testing.TB, files map[string]any) string {
	t.Helper()
	dir := t.TempDir()
	for name, content := range files {
		var raw []byte
		switch c := content.(type) {
		case string:
			raw = []byte(c)
		case []byte:
			raw = c
		default:
			var err error
			if raw, err = json.Marshal(c); err != nil {
				t.Fatal(err)
			}
		}
		path := filepath.Join(dir, name)
		if err := os.MkdirAll(filepath.Dir(path), 0o777); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, raw, 0o666); err != nil {
			t.Fatal(err)
		}
	}
	return dir
}

// TestRoles compares with llama.cpp's converter; see testdata/roles.py.
func TestRoles(t *testing.T) {
	var cases []struct {
		Name     string
		Files    map[string]any
		Special  [][2]any
		Add      [][2]any
		Template any
	}
	readJSON(t, filepath.Join("testdata", "roles.json"), &cases)
	for _, c := range cases {
		t.Run(c.Name, func(t *testing.T) {
			v, err := Load(write(t, c.Files), Options{})
			if err != nil {
				t.Fatal(err)
			}
			special, add := [][2]any{}, [][2]any{}
			for _, s := range v.Special {
				special = append(special, [2]any{s.Kind, float64(s.ID)})
			}
			for _, a := range v.Add {
				add = append(add, [2]any{a.Kind, a.Value})
			}
			if d := cmp.Diff(c.Special, special); d != "" {
				t.Errorf("ids (-llama.cpp +winnow):\n%s", d)
			}
			if d := cmp.Diff(c.Add, add); d != "" {
				t.Errorf("flags (-llama.cpp +winnow):\n%s", d)
			}
			var template any
			if len(v.Templates) > 0 {
				template = v.Templates[0].Text
			}
			if template != c.Template {
				t.Errorf("template %v, want %v", template, c.Template)
			}
		})
	}
}

// small is a tokenizer.json with the tokens of the byte alphabet that its
// tests need.
func small() map[string]any {
	return map[string]any{
		"added_tokens": []any{
			map[string]any{"id": 0, "content": "<s>", "special": true},
			map[string]any{"id": 9, "content": "<tool▁call>"},
		},
		"pre_tokenizer": map[string]any{"type": "ByteLevel", "use_regex": true},
		"model": map[string]any{"type": "BPE", "vocab": map[string]any{"<s>": 0, "a": 1, "b": 2, "Ġ": 3, "ab": 4, "Ġa": 5},
			"merges": []any{[]any{"a", "b"}, "Ġ a"}},
	}
}

// model returns a copy of small with the model changed.
func model(change map[string]any) map[string]any {
	doc := small()
	for k, v := range change {
		doc["model"].(map[string]any)[k] = v
	}
	return doc
}

// with returns a copy of small with the top level changed.
func with(key string, value any) map[string]any {
	doc := small()
	doc[key] = value
	return doc
}

func TestLoadSmall(t *testing.T) {
	dir := write(t, map[string]any{
		"tokenizer.json": small(),
		"config.json":    map[string]any{"text_config": map[string]any{"vocab_size": 12, "pad_token_id": -1, "eos_token_id": []int{1, 2}}},
		"tokenizer_config.json": map[string]any{
			"added_tokens_decoder": map[string]any{"10": map[string]any{"content": "<pad>"}},
			"chat_template":        []any{map[string]any{"name": "tool-use", "template": "T"}, map[string]any{"name": "default", "template": "D"}},
		},
		"added_tokens.json":      map[string]any{"[extra]": 8},
		"generation_config.json": map[string]any{"eos_token_id": []int{2, 9}},
	})
	v, err := Load(dir, Options{Special: []SpecialText{{"eot", "[extra]"}}})
	if err != nil {
		t.Fatal(err)
	}
	wantTokens := []string{"<s>", "a", "b", "Ġ", "ab", "Ġa", "[PAD6]", "[PAD7]", "[extra]", "<tool call>", "<pad>", "[PAD11]"}
	if d := cmp.Diff(wantTokens, v.Tokens); d != "" {
		t.Error(d)
	}
	if d := cmp.Diff([]int32{3, 1, 1, 1, 1, 1, 5, 5, 4, 4, 3, 5}, v.Types); d != "" {
		t.Error(d)
	}
	if d := cmp.Diff([]string{"a b", "Ġ a"}, v.Merges); d != "" {
		t.Error(d)
	}
	if d := cmp.Diff([]int32{2, 9, 8}, v.EOG); d != "" {
		t.Error(d)
	}
	var m gguf.Metadata
	v.WriteTo(&m)
	if d := cmp.Diff([]string{KeyModel, KeyPre, KeyTokens, KeyTypes, KeyMerges, "tokenizer.ggml.eot_token_id",
		"tokenizer.chat_template.tool_use", KeyChatTemplates, KeyChatTemplate}, m.Keys()); d != "" {
		t.Error(d)
	}
	back := roundTrip(t, v)
	if d := cmp.Diff(v.Templates, back.Templates); d != "" {
		t.Error(d)
	}
	e := encoder(t, v)
	text := "ab aba<tool▁call> ab<pad>"
	want := []int32{4, 3, 4, 1, 9, 3, 4, 10}
	if got := e.Encode(text, EncodeOptions{ParseSpecial: true}); !slices.Equal(got, want) || e.Decode(got) != text {
		t.Errorf("got %v %q, want %v", got, e.Decode(got), want)
	}
	// Characters without a token are dropped, control tokens are text.
	if got := e.Encode("aé<s>b", EncodeOptions{}); !slices.Equal(got, []int32{1, 2}) {
		t.Errorf("got %v", got)
	}
}

func TestLoadErrors(t *testing.T) {
	for _, c := range []struct {
		name  string
		files map[string]any
		opt   Options
		want  string
	}{
		{name: "size without padding", files: map[string]any{"tokenizer.json": small()}, want: "out of range"},
		{name: "huge vocab_size", files: map[string]any{"tokenizer.json": small(), "config.json": `{"vocab_size": 15000000}`}, want: "far larger"},
		{name: "wrong vocab_size", files: map[string]any{"tokenizer.json": small(), "config.json": `{"vocab_size": 1.5}`}, want: "vocab_size"},
		{name: "negative vocab_size", files: map[string]any{"tokenizer.json": small()}, opt: Options{VocabSize: -1}, want: "vocab_size"},
		{name: "override unknown", files: map[string]any{"tokenizer.json": small()}, opt: Options{Pre: "nope"}, want: `"nope" is unknown`},
		{name: "family token missing", files: map[string]any{"tokenizer.json": small()}, opt: Options{VocabSize: 10, Special: []SpecialText{{"eot", "<|user|>"}}}, want: "eot"},
		{name: "tokenizer.json is a list", files: map[string]any{"tokenizer.json": `[]`}, want: "not a JSON object"},
		{name: "no model", files: map[string]any{"tokenizer.json": `{}`}, want: "model"},
		{name: "no model type", files: map[string]any{"tokenizer.json": `{"model":{}}`}, want: "model type"},
		{name: "no vocab", files: map[string]any{"tokenizer.json": model(map[string]any{"vocab": 5})}, want: "model.vocab"},
		{name: "no merges", files: map[string]any{"tokenizer.json": model(map[string]any{"merges": nil})}, want: "merges"},
		{name: "merge of three", files: map[string]any{"tokenizer.json": model(map[string]any{"merges": []any{"a b c"}})}, want: "merge 0"},
		{name: "pair of three", files: map[string]any{"tokenizer.json": model(map[string]any{"merges": []any{[]any{"a", "b", "c"}}})}, want: "merge 0"},
		{name: "unknown result", files: map[string]any{"tokenizer.json": model(map[string]any{"merges": []any{"b a"}})}, opt: Options{VocabSize: 10}, want: `token "ba"`},
		{name: "added tokens no list", files: map[string]any{"tokenizer.json": with("added_tokens", 5)}, want: "added_tokens"},
		{name: "added token no id", files: map[string]any{"tokenizer.json": with("added_tokens", []any{map[string]any{"content": "x"}})}, want: "added_tokens[0]"},
		{name: "normalizer", files: map[string]any{"tokenizer.json": with("normalizer", map[string]any{"type": "Sequence", "normalizers": []any{map[string]any{"type": "Lowercase"}}})}, want: "Lowercase"},
		{name: "decoder no object", files: map[string]any{"tokenizer.json": small(), "tokenizer_config.json": `{"added_tokens_decoder":[]}`}, want: "added_tokens_decoder"},
		{name: "decoder key", files: map[string]any{"tokenizer.json": small(), "tokenizer_config.json": `{"added_tokens_decoder":{"x":{"content":"y"}}}`}, want: `"x"`},
		{name: "decoder empty", files: map[string]any{"tokenizer.json": small(), "tokenizer_config.json": `{"added_tokens_decoder":{"1":{"content":""}}}`}, want: "empty"},
		{name: "decoder conflict", files: map[string]any{"tokenizer.json": small(), "tokenizer_config.json": `{"added_tokens_decoder":{"1":{"content":"z"}}}`}, want: "conflict"},
		{name: "added file", files: map[string]any{"tokenizer.json": small(), "added_tokens.json": `{"z":-1}`}, want: "added_tokens.json"},
		{name: "small file is a list", files: map[string]any{"tokenizer.json": small(), "generation_config.json": `[]`}, want: "generation_config.json"},
		{name: "small file damaged", files: map[string]any{"tokenizer.json": small(), "special_tokens_map.json": `{`}, want: "special_tokens_map.json"},
		{name: "eos outside", files: map[string]any{"tokenizer.json": small(), "generation_config.json": `{"eos_token_id":[1,99]}`}, opt: Options{VocabSize: 10}, want: "eos_token_id 99"},
		{name: "bos outside", files: map[string]any{"tokenizer.json": small(), "config.json": `{"bos_token_id":77,"vocab_size":10}`}, want: "bos_token_id 77"},
		{name: "template without name", files: map[string]any{"tokenizer.json": small(), "tokenizer_config.json": `{"chat_template":[{"template":"x"}]}`}, opt: Options{VocabSize: 10}, want: "chat_template"},
		{name: "template twice", files: map[string]any{"tokenizer.json": small(), "tokenizer_config.json": `{"chat_template":[{"name":"a-","template":"x"},{"name":"a_","template":"x"}]}`}, opt: Options{VocabSize: 10}, want: "two templates"},
		{name: "two texts one id", files: map[string]any{"tokenizer.json": with("added_tokens", []any{map[string]any{"id": 6, "content": "x"}, map[string]any{"id": 6, "content": "y"}})}, want: "conflicting id"},
		{name: "repeated text", files: map[string]any{"tokenizer.json": with("added_tokens", []any{map[string]any{"id": 6, "content": "[PAD7]"}})}, opt: Options{VocabSize: 8}, want: "duplicate token"},
	} {
		t.Run(c.name, func(t *testing.T) {
			_, err := Load(write(t, c.files), c.opt)
			if err == nil || !strings.Contains(err.Error(), c.want) {
				t.Errorf("error %v, want %q in it", err, c.want)
			}
		})
	}
}

func TestTemplateFiles(t *testing.T) {
	for _, c := range []struct {
		name  string
		files map[string]any
		want  []Template
	}{
		{"none", map[string]any{}, nil},
		{"jinja", map[string]any{"chat_template.jinja": "J"}, []Template{{Text: "J"}}},
		{"json", map[string]any{"chat_template.json": `{"chat_template":"K"}`}, []Template{{Text: "K"}}},
		{"jinja before json", map[string]any{"chat_template.jinja": "J", "chat_template.json": `{"chat_template":"K"}`}, []Template{{Text: "J"}}},
		{"config first", map[string]any{"chat_template.jinja": "J", "tokenizer_config.json": `{"chat_template":"C"}`}, []Template{{Text: "C"}}},
		{"additional", map[string]any{"chat_template.jinja": "J", "additional_chat_templates/rag.jinja": "R"}, []Template{{Text: "J"}, {"rag", "R"}}},
	} {
		t.Run(c.name, func(t *testing.T) {
			files := map[string]any{"tokenizer.json": small(), "tokenizer_config.json": `{}`}
			for name, content := range c.files {
				files[name] = content
			}
			v, err := Load(write(t, files), Options{VocabSize: 10})
			if err != nil {
				t.Fatal(err)
			}
			if d := cmp.Diff(c.want, v.Templates); d != "" {
				t.Error(d)
			}
		})
	}
}

// TestOverride loads an unknown structure under a name.
func TestOverride(t *testing.T) {
	dir := write(t, map[string]any{"tokenizer.json": with("pre_tokenizer", map[string]any{"type": "Metaspace"})})
	v, err := Load(dir, Options{Pre: "qwen2", VocabSize: 10})
	if err != nil || v.Pre != "qwen2" {
		t.Fatalf("%v, %v", v, err)
	}
	if got := encoder(t, v).Encode("ab ab", EncodeOptions{}); !slices.Equal(got, []int32{4, 3, 4}) {
		t.Errorf("got %v", got)
	}
}

// TestEncoderRefuses checks what can be copied but not used.
func TestEncoderRefuses(t *testing.T) {
	v := &Vocab{Model: ModelBPE, Pre: "afmoe", Tokens: []string{"a"}, Merges: []string{}}
	if err := v.check(); err != nil {
		t.Error(err)
	}
	if _, err := v.Encoder(); err == nil {
		t.Error("no error")
	}
}

func refusedWith(t *testing.T, err error, want string) {
	t.Helper()
	if !errors.Is(err, ErrInvalid) || !strings.Contains(err.Error(), want) {
		t.Errorf("error %v, want %q in it", err, want)
	}
}

// TestAddedTokenFlags checks stripping and word boundaries, which only
// tokenizer.json knows.
func TestAddedTokenFlags(t *testing.T) {
	doc := with("added_tokens", []any{
		map[string]any{"id": 6, "content": "<m>", "lstrip": true, "rstrip": true},
		map[string]any{"id": 7, "content": "ba", "single_word": true},
		map[string]any{"id": 8, "content": "<m>b"},
	})
	v, err := Load(write(t, map[string]any{"tokenizer.json": doc}), Options{})
	if err != nil {
		t.Fatal(err)
	}
	e := encoder(t, v)
	for text, want := range map[string][]int32{
		"a  <m> \n b": {1, 6, 2}, "ba": {7}, "aba": {4, 1}, "b ba a": {2, 3, 7, 5}, "<m>b": {8}, "<m": {},
	} {
		if got := e.Encode(text, EncodeOptions{}); !slices.Equal(got, want) {
			t.Errorf("%q: got %v, want %v", text, got, want)
		}
	}
}

// TestSpecialTokensMap takes names from special_tokens_map.json when there is
// no tokenizer_config.json.
func TestSpecialTokensMap(t *testing.T) {
	v, err := Load(write(t, map[string]any{"tokenizer.json": small(), "special_tokens_map.json": `{"bos_token":{"content":"<s>"}}`}), Options{VocabSize: 10})
	if err != nil {
		t.Fatal(err)
	}
	if id, ok := v.BOS(); !ok || id != 0 || v.AddBOS() {
		t.Errorf("BOS %d %v %v", id, ok, v.AddBOS())
	}
}

// TestFallbackBPE loads SentencePiece families from tokenizer.json alone and
// compares with the ids of the tokenizers library.
func TestFallbackBPE(t *testing.T) {
	for _, name := range []string{"mistral", "gemma2"} {
		t.Run(name, func(t *testing.T) {
			src := fixtures.Family(t, name)
			files := map[string]any{}
			for _, f := range []string{"tokenizer.json", "tokenizer_config.json", "config.json"} {
				raw, err := os.ReadFile(filepath.Join(src, f))
				if err != nil {
					t.Fatal(err)
				}
				files[f] = raw
			}
			v, err := Load(write(t, files), Options{})
			if err != nil {
				t.Fatal(err)
			}
			if v.Model != ModelSPM {
				t.Errorf("model %q", v.Model)
			}
			var cases []struct {
				Text string
				IDs  []int32
			}
			readJSON(t, filepath.Join(src, "tokens.json"), &cases)
			e := encoder(t, roundTrip(t, v))
			for _, c := range cases {
				if got := e.Encode(c.Text, EncodeOptions{ParseSpecial: true}); !slices.Equal(got, c.IDs) {
					t.Errorf("%q:\ngot  %v\nwant %v", c.Text, got, c.IDs)
				}
			}
		})
	}
	doc := model(map[string]any{"byte_fallback": true, "unk_token": "<s>", "merges": []any{"a b", "Ġ a", []any{"a", "b"}}})
	doc["pre_tokenizer"] = nil
	if _, err := Load(write(t, map[string]any{"tokenizer.json": doc}), Options{VocabSize: 10}); err == nil || !strings.Contains(err.Error(), "order of the merges") {
		t.Errorf("error %v", err)
	}
}

// FuzzLoadJSON builds vocabularies from arbitrary tokenizer.json texts; what
// loads must survive the way through metadata and give back the text.
func FuzzLoadJSON(f *testing.F) {
	root := filepath.Join(fixtures.Dir(f, "packs/bad"), "given", "tokenizer")
	paths, _ := filepath.Glob(filepath.Join(root, "*", "tokenizer.json"))
	for _, p := range paths {
		if raw, err := os.ReadFile(p); err == nil {
			f.Add(raw, "hello the <s> world")
		}
	}
	raw, _ := json.Marshal(small())
	f.Add(raw, "ab a")
	f.Add([]byte(`{"added_tokens":[{"id":0,"content":"<s>"}],"pre_tokenizer":{"type":"Metaspace"},"model":{"type":"Unigram","unk_id":0,"byte_fallback":true,`+
		`"vocab":[["<s>",0],["a",-2.5],["▁a",-1],["<0x41>",0]]}}`), "a A")
	f.Add([]byte(`{"normalizer":{"type":"Replace","pattern":{"String":" "},"content":"▁"},"model":{"type":"BPE","unk_token":"u","byte_fallback":true,`+
		`"vocab":{"u":0,"a":1,"▁":2,"▁a":3,"\n\n":4,"<0x41>":5},"merges":["▁ a"]}}`), "a\n\n A")
	f.Fuzz(func(t *testing.T, raw []byte, text string) {
		for _, model := range []string{"", ModelCharBPE} {
			tok, err := parseTokenizerJSON(raw)
			if err != nil {
				return
			}
			v, err := (&folder{tokenizer: tok}).load(Options{VocabSize: 70, Model: model})
			if err == nil {
				exercise(t, v, text)
			}
		}
	})
}

// FuzzLoadSPM does the same for tokenizer.model.
func FuzzLoadSPM(f *testing.F) {
	root := filepath.Join(fixtures.Dir(f, "packs/bad"), "given", "tokenizer")
	paths, _ := filepath.Glob(filepath.Join(root, "*", "tokenizer.model"))
	paths = append(paths, filepath.Join(fixtures.Family(f, "mistral"), "tokenizer.model"))
	for _, p := range paths {
		if raw, err := os.ReadFile(p); err == nil {
			f.Add(raw, "hello the <s> world")
		}
	}
	f.Fuzz(func(t *testing.T, raw []byte, text string) {
		m, err := parseSPM(raw)
		if err != nil {
			return
		}
		v, err := (&folder{spm: m}).load(Options{})
		if err != nil {
			return
		}
		exercise(t, v, text)
	})
}

func exercise(t *testing.T, v *Vocab, text string) {
	t.Helper()
	back := roundTrip(t, v)
	for _, v := range []*Vocab{v, back} {
		e := encoder(t, v)
		for _, id := range e.Encode(text, EncodeOptions{AddSpecial: true, ParseSpecial: true}) {
			if id < 0 || int(id) >= v.Size() {
				t.Fatalf("id %d of %d", id, v.Size())
			}
		}
		e.Decode([]int32{-1, 0, int32(v.Size())})
	}
}

// FuzzRoundTrip checks that decoding gives the text back.
func FuzzRoundTrip(f *testing.F) {
	v, err := Load(fixtures.TinyR1(f), Options{})
	if err != nil {
		f.Fatal(err)
	}
	e := encoder(f, v)
	for _, s := range readCuts(f).Texts {
		f.Add(s, true)
	}
	f.Fuzz(func(t *testing.T, s string, special bool) {
		opt := EncodeOptions{ParseSpecial: special}
		if got := e.Decode(e.Encode(s, opt)); got != s {
			t.Fatalf("%q comes back as %q", s, got)
		}
	})
}

// TestLongWords encodes words without any cut, which must not take quadratic time.
func TestLongWords(t *testing.T) {
	dirs := map[string]string{"byte-level": fixtures.TinyR1(t), "spm": fixtures.Family(t, "gemma2"),
		"char BPE": vocabularies(t, "tiny-gemma4-moe"), "unigram": vocabularies(t, "unigram"), "ranks": vocabularies(t, "kimi")}
	for name, dir := range dirs {
		v, err := Load(dir, optionsOf(t, dir))
		if err != nil {
			t.Fatal(err)
		}
		e := encoder(t, v)
		for _, s := range []string{strings.Repeat("a", 1<<18), strings.Repeat(" ", 1<<18), strings.Repeat("中", 1<<16), strings.Repeat("the", 1<<16)} {
			start := time.Now()
			got := e.Decode(e.Encode(s, EncodeOptions{}))
			if got != s {
				t.Errorf("%s: %.8q… comes back changed", name, s)
			}
			if took := time.Since(start); took > 30*time.Second {
				t.Errorf("%s: %.8q… took %v", name, s, took)
			}
		}
	}
}

// BenchmarkEncode encodes English text, by a byte-level and a SentencePiece vocabulary.
func BenchmarkEncode(b *testing.B) {
	raw, err := os.ReadFile(filepath.Join(fixtures.Dir(b, "packs/corpus"), "corpus", "eval-docs.txt"))
	if err != nil {
		b.Fatal(err)
	}
	text := string(raw)
	for name, dir := range map[string]string{"deepseek-v3": fixtures.TinyR1(b), "qwen2": fixtures.Family(b, "qwen2"),
		"gpt-4o": fixtures.Family(b, "gpt_oss"), "deepseek-llm": fixtures.Family(b, "deepseek_v2_lite"), "spm": fixtures.Family(b, "mistral")} {
		v, err := Load(dir, Options{})
		if err != nil {
			b.Fatal(err)
		}
		e := encoder(b, v)
		b.Run(name, func(b *testing.B) {
			b.SetBytes(int64(len(text)))
			for b.Loop() {
				e.Encode(text, EncodeOptions{})
			}
		})
	}
}
