package tokenizer

import (
	"errors"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/winnow-moe/winnow/formats/gguf"
	"github.com/winnow-moe/winnow/testdata/fixtures"
)

type badCase struct {
	ID, Kind, Path, Op, Expect, Why string
	Hints                           []string `json:"contains_hint"`
}

// judge compares an outcome with what the corpus expects.
func (c badCase) judge(t *testing.T, err error) {
	t.Helper()
	if (err == nil) != (c.Expect == "ok") {
		t.Fatalf("%s: error %v, want %s", c.Why, err, c.Expect)
	}
	if err == nil {
		return
	}
	if !errors.Is(err, ErrInvalid) {
		t.Errorf("error %v is not ErrInvalid", err)
	}
	for _, group := range c.Hints {
		found := false
		for _, word := range strings.Split(group, "|") {
			found = found || strings.Contains(strings.ToLower(err.Error()), strings.ToLower(word))
		}
		if !found {
			t.Errorf("%s: message %q has none of %q", c.Why, err, group)
		}
	}
}

func badCases(t *testing.T) (root string, cases []badCase) {
	root = filepath.Join(fixtures.Dir(t, "packs/bad"), "given")
	readJSON(t, filepath.Join(root, "manifest.json"), &cases)
	return root, cases
}

// TestBadCheckpoints loads the tokenizers of the corpus of bad input, and the
// two configurations that contradict their tokenizer.
func TestBadCheckpoints(t *testing.T) {
	root, cases := badCases(t)
	n := 0
	for _, c := range cases {
		if c.Kind != "tokenizer" && c.ID != "g-cfg-eos_token_id-99999" {
			continue
		}
		n++
		t.Run(c.ID, func(t *testing.T) {
			v, err := Load(filepath.Join(root, c.Path), Options{})
			c.judge(t, err)
			if err == nil {
				roundTrip(t, v)
			}
		})
	}
	if n < 30 {
		t.Errorf("only %d cases", n)
	}
}

// notTokenizer are cases of damaged model parameters, which other packages refuse.
var notTokenizer = []string{"arch-missing", "arch-unknown", "block-count-huge", "head-count-zero", "hparam-missing"}

// TestBadVocabularies reads the GGUF vocabularies of the corpus.
func TestBadVocabularies(t *testing.T) {
	root, cases := badCases(t)
	n := 0
	for _, c := range cases {
		name, ok := strings.CutPrefix(c.ID, "g-gguf-vocab-")
		if !ok || c.Op != "load-vocab" || slices.Contains(notTokenizer, name) {
			continue
		}
		n++
		t.Run(c.ID, func(t *testing.T) {
			f, err := gguf.Open(filepath.Join(root, c.Path))
			if err != nil {
				t.Fatal(err)
			}
			defer f.Close()
			v, err := FromMetadata(f.Metadata())
			c.judge(t, err)
			if err == nil {
				if ids := encoder(t, v).Encode("Hi \u0416", EncodeOptions{}); ids == nil {
					t.Error("no ids")
				}
			}
		})
	}
	if n < 15 {
		t.Errorf("only %d cases", n)
	}
}
