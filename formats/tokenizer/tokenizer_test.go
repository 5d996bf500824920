package tokenizer

import (
	"encoding/json"
	"os"
	"path/filepath"
	"slices"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/winnow-moe/winnow/formats/gguf"
	"github.com/winnow-moe/winnow/testdata/fixtures"
)

func TestMain(m *testing.M) { fixtures.Main(m) }

// family is what a family's description tells Load about its tokenizer.
type family struct {
	name       string
	opt        Options
	normalizes bool // tokenizer.json composes text, which GGUF cannot say
}

var families = []family{
	{name: "deepseek_v2_lite"}, {name: "deepseek_v3"}, {name: "deepseek_v32"}, {name: "deepseek_v3_fp8"},
	{name: "glm4_moe", opt: Options{Prefer: []string{"glm4"}, Special: []SpecialText{
		{"bos", "[gMASK]"}, {"eot", "<|user|>"}, {"unk", "<|endoftext|>"}, {"eom", "<|observation|>"}}}},
	{name: "gpt_oss"}, {name: "gpt_oss_bf16"},
	{name: "granitemoe", opt: Options{Prefer: []string{"refact"}}},
	{name: "hunyuan_v1_moe", opt: Options{Prefer: []string{"hunyuan"}}},
	{name: "llama"},
	{name: "llama4_scout", opt: Options{Prefer: []string{"llama4"}}},
	{name: "llama4_smallchunk", opt: Options{Prefer: []string{"llama4"}}},
	{name: "minimax_m2", opt: Options{Prefer: []string{"minimax-m2"}}},
	{name: "olmo2", opt: Options{Prefer: []string{"dbrx"}}},
	{name: "qwen2", normalizes: true}, {name: "qwen2_moe", normalizes: true}, {name: "qwen3", normalizes: true},
	{name: "qwen3_moe", normalizes: true}, {name: "qwen3_next", normalizes: true}, {name: "qwen3_5_moe", normalizes: true},
	{name: "starcoder2"},
	{name: "mistral"}, {name: "mistral_swa"}, {name: "mixtral"},
	{name: "gemma2", opt: Options{SpacePrefix: new(bool)}},
	{name: "gemma3", opt: Options{SpacePrefix: new(bool)}},
}

// tokenizerKeys returns the tokenizer's keys of m, in order.
func tokenizerKeys(m *gguf.Metadata) (keys []string, values map[string]any) {
	values = map[string]any{}
	for _, k := range m.Keys() {
		if len(k) > 10 && k[:10] == "tokenizer." {
			keys = append(keys, k)
			values[k], _ = m.Get(k)
		}
	}
	return keys, values
}

// TestFamiliesKeys compares keys, values, types and order with llama.cpp's
// conversion of every fixture.
func TestFamiliesKeys(t *testing.T) {
	for _, f := range families {
		t.Run(f.name, func(t *testing.T) {
			t.Parallel()
			dir := fixtures.Family(t, f.name)
			v, err := Load(dir, f.opt)
			if err != nil {
				t.Fatal(err)
			}
			ref, err := gguf.Open(filepath.Join(dir, "ref-bf16.gguf"))
			if err != nil {
				t.Fatal(err)
			}
			defer ref.Close()
			var got gguf.Metadata
			v.WriteTo(&got)
			gotKeys, gotValues := tokenizerKeys(&got)
			wantKeys, wantValues := tokenizerKeys(ref.Metadata())
			if d := cmp.Diff(wantKeys, gotKeys); d != "" {
				t.Errorf("keys (-llama.cpp +winnow):\n%s", d)
			}
			if d := cmp.Diff(wantValues, gotValues); d != "" {
				t.Errorf("values (-llama.cpp +winnow):\n%s", d)
			}
			back, err := FromMetadata(ref.Metadata())
			if err != nil {
				t.Fatal(err)
			}
			var again gguf.Metadata
			back.WriteTo(&again)
			againKeys, againValues := tokenizerKeys(&again)
			if d := cmp.Diff(wantKeys, againKeys); d != "" {
				t.Errorf("keys after reading and writing:\n%s", d)
			}
			if d := cmp.Diff(wantValues, againValues); d != "" {
				t.Errorf("values after reading and writing:\n%s", d)
			}
		})
	}
}

func readJSON(t testing.TB, path string, v any) {
	t.Helper()
	raw, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if err := json.Unmarshal(raw, v); err != nil {
		t.Fatal(err)
	}
}

func encoder(t testing.TB, v *Vocab) *Tokenizer {
	t.Helper()
	e, err := v.Encoder()
	if err != nil {
		t.Fatal(err)
	}
	return e
}

// roundTrip writes the vocabulary to metadata and reads it back.
func roundTrip(t testing.TB, v *Vocab) *Vocab {
	t.Helper()
	var m gguf.Metadata
	v.WriteTo(&m)
	back, err := FromMetadata(&m)
	if err != nil {
		t.Fatal(err)
	}
	return back
}

// TestFamiliesTokens compares with the ids of the tokenizers library.
func TestFamiliesTokens(t *testing.T) {
	for _, f := range families {
		t.Run(f.name, func(t *testing.T) {
			t.Parallel()
			dir := fixtures.Family(t, f.name)
			var cases []struct {
				Text string
				IDs  []int32
			}
			readJSON(t, filepath.Join(dir, "tokens.json"), &cases)
			if len(cases) < 6 {
				t.Fatalf("%d cases", len(cases))
			}
			v, err := Load(dir, f.opt)
			if err != nil {
				t.Fatal(err)
			}
			loaded, stored := encoder(t, v), encoder(t, roundTrip(t, v))
			for _, c := range cases {
				if got := loaded.Encode(c.Text, EncodeOptions{ParseSpecial: true}); !slices.Equal(got, c.IDs) {
					t.Errorf("%q:\ngot  %v\nwant %v", c.Text, got, c.IDs)
				}
				if f.normalizes {
					continue
				}
				if got := stored.Encode(c.Text, EncodeOptions{ParseSpecial: true}); !slices.Equal(got, c.IDs) {
					t.Errorf("after WriteTo and FromMetadata, %q:\ngot  %v\nwant %v", c.Text, got, c.IDs)
				}
				// SentencePiece vocabularies lose which spaces were put behind added tokens.
				if got := stored.Decode(c.IDs); v.Model == ModelBPE && got != c.Text {
					t.Errorf("Decode gives %q, want %q", got, c.Text)
				}
			}
		})
	}
}

// TestTinyR1 compares with the golden ids of the demonstration checkpoint.
func TestTinyR1(t *testing.T) {
	var golden struct {
		Cases []struct {
			Text    string
			IDs     []int32
			Special []int32 `json:"ids_with_special"`
			Tokens  []string
			Decoded string
		}
		BOS        int32
		PromptText string  `json:"chat_prompt_text"`
		PromptIDs  []int32 `json:"chat_prompt_ids"`
	}
	readJSON(t, filepath.Join(fixtures.Dir(t, "packs/golden-tiny-r1"), "tiny-r1", "tokens.json"), &golden)
	v, err := Load(fixtures.TinyR1(t), Options{})
	if err != nil {
		t.Fatal(err)
	}
	if v.Pre != "deepseek-v3" {
		t.Errorf("pre-tokenizer %q", v.Pre)
	}
	if bos, ok := v.BOS(); !ok || bos != golden.BOS || !v.AddBOS() {
		t.Errorf("BOS is %d, %v, added %v; want %d, added", bos, ok, v.AddBOS(), golden.BOS)
	}
	for name, v := range map[string]*Vocab{"loaded": v, "stored": roundTrip(t, v)} {
		e := encoder(t, v)
		for _, c := range golden.Cases {
			got := e.Encode(c.Text, EncodeOptions{ParseSpecial: true})
			if !slices.Equal(got, c.IDs) {
				t.Errorf("%s %q:\ngot  %v\nwant %v", name, c.Text, got, c.IDs)
			}
			if got := e.Encode(c.Text, EncodeOptions{AddSpecial: true, ParseSpecial: true}); !slices.Equal(got, c.Special) {
				t.Errorf("%s with special tokens %q:\ngot  %v\nwant %v", name, c.Text, got, c.Special)
			}
			if got := e.Decode(c.IDs); got != c.Decoded {
				t.Errorf("%s: Decode gives %q, want %q", name, got, c.Decoded)
			}
			for i, id := range c.IDs {
				if v.Tokens[id] != c.Tokens[i] {
					t.Errorf("%s: token %d is %q, want %q", name, id, v.Tokens[id], c.Tokens[i])
				}
			}
		}
		if got := e.Encode(golden.PromptText, EncodeOptions{ParseSpecial: true}); !slices.Equal(got, golden.PromptIDs) {
			t.Errorf("%s prompt:\ngot  %v\nwant %v", name, got, golden.PromptIDs)
		}
	}
}
