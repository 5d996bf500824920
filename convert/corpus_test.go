package convert

import (
	"encoding/json"
	"errors"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/winnow-moe/winnow/formats/arch"
	"github.com/winnow-moe/winnow/formats/safetensors"
	"github.com/winnow-moe/winnow/formats/tokenizer"
	"github.com/winnow-moe/winnow/testdata/fixtures"
)

// links are cases that need symbolic links, which the pack does not hold;
// formats/safetensors tests these.
var links = []string{"g-idx-link-outside", "g-idx-ok-hf-cache", "g-ckpt-link-loop"}

// TestBadCorpus converts every checkpoint of the corpus of bad input. What is
// wrong must be refused with words that help, and leave no file.
func TestBadCorpus(t *testing.T) {
	root := filepath.Join(fixtures.Dir(t, "packs/bad"), "given")
	var cases []struct {
		ID, Op, Path, Expect, Why string
		Hints                     []string `json:"contains_hint"`
	}
	must(t, json.Unmarshal(readFile(t, filepath.Join(root, "manifest.json")), &cases))
	n := 0
	for _, c := range cases {
		if c.Op != "convert" || slices.Contains(links, c.ID) {
			continue
		}
		n++
		t.Run(c.ID, func(t *testing.T) {
			out := t.TempDir()
			err := tryConvert(t, filepath.Join(root, c.Path), out)
			if (err == nil) != (c.Expect == "ok") {
				t.Fatalf("%s: error %v, want %s", c.Why, err, c.Expect)
			}
			left, e := os.ReadDir(out)
			must(t, e)
			if (len(left) == 1) != (err == nil) {
				t.Errorf("%d files left after error %v", len(left), err)
			}
			if err != nil {
				checkMessage(t, err, c.Hints)
			}
		})
	}
	if n < 75 {
		t.Errorf("only %d cases", n)
	}
}

// tryConvert does what the command does, and returns the first error.
func tryConvert(t *testing.T, dir, out string) error {
	ck, err := OpenCheckpoint(dir, CheckpointOptions{})
	if err != nil {
		return err
	}
	defer ck.Close()
	plan, err := ck.Plan(request(t, out, "BF16"))
	if err != nil {
		return err
	}
	return Run(t.Context(), plan, ck, RunOptions{Inputs: ck.Inputs()})
}

func checkMessage(t *testing.T, err error, hints []string) {
	t.Helper()
	known := false
	for _, kind := range []error{ErrInput, arch.ErrUnsupported, tokenizer.ErrInvalid, safetensors.ErrFormat} {
		known = known || errors.Is(err, kind)
	}
	if !known {
		t.Errorf("error %v is of no known kind", err)
	}
	text := strings.ToLower(err.Error())
	for _, group := range hints {
		if !slices.ContainsFunc(strings.Split(group, "|"), func(w string) bool { return strings.Contains(text, strings.ToLower(w)) }) {
			t.Errorf("message %q has none of %q", err, group)
		}
	}
}

// TestOpenErrors covers faults around the weights that the corpus lacks.
func TestOpenErrors(t *testing.T) {
	base := fixtures.Family(t, "deepseek_v3")
	for name, c := range map[string]struct {
		file, text string // file "" means: no folder at all
		words      []string
	}{
		"generation list":   {"generation_config.json", "[]", []string{"generation_config.json", "object"}},
		"generation broken": {"generation_config.json", "{", []string{"generation_config.json"}},
		"generation UTF-8":  {"generation_config.json", "\"\xff\"", []string{"generation_config.json"}},
		"no vocabulary":     {"tokenizer.json", "{}", []string{"tokenizer.json"}},
		"no folder":         {"", "", []string{"none"}},
	} {
		t.Run(name, func(t *testing.T) {
			dir := filepath.Join(t.TempDir(), "none")
			if c.file != "" {
				dir = copyFixture(t, base, nil)
				must(t, os.WriteFile(filepath.Join(dir, c.file), []byte(c.text), 0o666))
			}
			_, err := OpenCheckpoint(dir, CheckpointOptions{})
			if err == nil {
				t.Fatal("no error")
			}
			for _, w := range c.words {
				if !strings.Contains(err.Error(), w) {
					t.Errorf("message %q lacks %q", err, w)
				}
			}
		})
	}
}
