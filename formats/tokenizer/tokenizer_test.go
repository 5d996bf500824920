package tokenizer

import (
	"encoding/json"
	"errors"
	"os"
	"path/filepath"
	"slices"
	"testing"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/text/unicode/norm"

	"github.com/winnow-moe/winnow/formats/arch"
	"github.com/winnow-moe/winnow/formats/gguf"
	"github.com/winnow-moe/winnow/testdata/fixtures"
)

func TestMain(m *testing.M) { fixtures.Main(m) }

// optionsOf is what the description of the model's family tells Load, as
// package convert passes it on. Families that are not described need nothing.
func optionsOf(t testing.TB, dir string) Options {
	t.Helper()
	raw, err := os.ReadFile(filepath.Join(dir, "config.json"))
	if err != nil {
		t.Fatal(err)
	}
	cfg, err := arch.ParseConfig(raw)
	if err != nil {
		t.Fatal(err)
	}
	m, err := arch.FromConfig(cfg, false)
	if errors.Is(err, arch.ErrUnsupported) {
		return Options{}
	}
	if err != nil {
		t.Fatal(err)
	}
	opt := Options{VocabSize: m.Params.Vocab, Prefer: m.Family.Pre, Model: m.Family.Tokenizer}
	if m.Family.NoSpacePrefix {
		opt.SpacePrefix = new(bool)
	}
	for _, s := range m.Family.Special {
		opt.Special = append(opt.Special, SpecialText(s))
	}
	return opt
}

// composes reports whether a checkpoint's tokenizer.json has a normalizer that
// its GGUF form cannot say.
func composes(v *Vocab) bool { return v.source != nil && v.source.norm.apply("e\u0301") == "é" }

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
	for _, name := range fixtures.Families(t) {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			dir := fixtures.Family(t, name)
			v, err := Load(dir, optionsOf(t, dir))
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

// TestFamiliesTokens compares with the ids of the tokenizers library, from the
// checkpoint and from llama.cpp's GGUF file.
func TestFamiliesTokens(t *testing.T) {
	for _, name := range fixtures.Families(t) {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			dir := fixtures.Family(t, name)
			var cases []struct {
				Text string
				IDs  []int32
			}
			readJSON(t, filepath.Join(dir, "tokens.json"), &cases)
			if len(cases) < 6 {
				t.Fatalf("%d cases", len(cases))
			}
			v, err := Load(dir, optionsOf(t, dir))
			if err != nil {
				t.Fatal(err)
			}
			loaded, stored := encoder(t, v), encoder(t, fromFile(t, filepath.Join(dir, "ref-bf16.gguf")))
			for _, c := range cases {
				if got := loaded.Encode(c.Text, EncodeOptions{ParseSpecial: true}); !slices.Equal(got, c.IDs) {
					t.Errorf("%q:\ngot  %v\nwant %v", c.Text, got, c.IDs)
				}
				if composes(v) && !norm.NFC.IsNormalString(c.Text) {
					continue
				}
				if got := stored.Encode(c.Text, EncodeOptions{ParseSpecial: true}); !slices.Equal(got, c.IDs) {
					t.Errorf("from the GGUF file, %q:\ngot  %v\nwant %v", c.Text, got, c.IDs)
				}
				// SentencePiece vocabularies lose which spaces were put behind added tokens.
				if got := stored.Decode(c.IDs); !v.spacePrefix() && got != c.Text {
					t.Errorf("Decode gives %q, want %q", got, c.Text)
				}
			}
		})
	}
}

// fromFile reads the vocabulary of a GGUF file.
func fromFile(t testing.TB, path string) *Vocab {
	t.Helper()
	f, err := gguf.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	v, err := FromMetadata(f.Metadata())
	if err != nil {
		t.Fatal(err)
	}
	return v
}

// TestTiny compares with the golden ids of the trained miniatures.
func TestTiny(t *testing.T) {
	for _, c := range []struct{ name, dir, golden, pre string }{
		{"tiny-r1", fixtures.TinyR1(t), filepath.Join(fixtures.Dir(t, "packs/golden-tiny-r1"), "tiny-r1", "tokens.json"), "deepseek-v3"},
		{"tiny-llama4", vocabularies(t, "tiny-llama4"), filepath.Join(vocabularies(t, "tiny-llama4"), "goldens.json"), "llama4"},
		{"tiny-gemma4-moe", vocabularies(t, "tiny-gemma4-moe"), filepath.Join(vocabularies(t, "tiny-gemma4-moe"), "goldens.json"), ""},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			v, err := Load(c.dir, optionsOf(t, c.dir))
			if err != nil {
				t.Fatal(err)
			}
			if v.Pre != c.pre {
				t.Errorf("pre-tokenizer %q, want %q", v.Pre, c.pre)
			}
			var g tinyGolden
			readJSON(t, c.golden, &g)
			g.compare(t, "loaded", v)
			g.compare(t, "stored", roundTrip(t, v))
		})
	}
}

// tinyGolden is the tokens.json of a miniature's goldens.
type tinyGolden struct {
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

func (g *tinyGolden) compare(t *testing.T, name string, v *Vocab) {
	t.Helper()
	if bos, ok := v.BOS(); !ok || bos != g.BOS || !v.AddBOS() {
		t.Errorf("%s: BOS is %d, %v, added %v; want %d, added", name, bos, ok, v.AddBOS(), g.BOS)
	}
	e := encoder(t, v)
	for _, c := range g.Cases {
		wantIDs(t, e, name, c.Text, c.IDs)
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
	wantIDs(t, e, name+" prompt", g.PromptText, g.PromptIDs)
}
