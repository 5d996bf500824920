package main

import (
	"bytes"
	"encoding/json"
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/winnow-moe/winnow/testdata/fixtures"
)

// badCase is an entry of the corpus of bad and unusual inputs. Hints are groups
// of words separated by |; the message must have one of every group.
type badCase struct {
	ID, Path, Entry, Op, Expect string
	Model, FType                string   // of the operation "quantize"
	Hints                       []string `json:"contains_hint"`
	Policy                      bool
}

// decidedOtherwise lists the policy cases whose outcome differs from the
// manifest's on purpose.
var decidedOtherwise = map[string]string{
	"g-gguf-arr-of-arr":    "the specification allows arrays of arrays; they are read with a warning",
	"g-split-second-first": "any part of a split model stands for the whole set",
}

// badCommands say what to run for an operation of the manifest.
var badCommands = map[string]func(c *badCase, root, path, out string) []string{
	"read":       func(_ *badCase, _, path, _ string) []string { return []string{"inspect", path} },
	"merge":      func(_ *badCase, _, path, _ string) []string { return []string{"inspect", path} },
	"load-vocab": func(_ *badCase, _, path, _ string) []string { return []string{"inspect", "--check", path} },
	"convert":    convertBad,
	"tokenizer":  convertBad,
	"quantize": func(c *badCase, root, path, out string) []string {
		ftype := c.FType
		if ftype == "" {
			ftype = "Q4_0"
		}
		return []string{"quantize", "--imatrix", path, filepath.Join(root, c.Model), out, ftype}
	},
}

func convertBad(_ *badCase, _, path, out string) []string {
	return []string{"convert", path, out, "--type", "BF16"}
}

func TestBadCorpus(t *testing.T) {
	root := filepath.Join(fixtures.Dir(t, "packs/bad"), "given")
	manifest, err := os.ReadFile(filepath.Join(root, "manifest.json"))
	if err != nil {
		t.Fatal(err)
	}
	var cases []badCase
	if err := json.Unmarshal(manifest, &cases); err != nil {
		t.Fatal(err)
	}
	ran := 0
	for _, c := range cases {
		command := badCommands[c.Op]
		if command == nil {
			t.Errorf("%s: no command for the operation %q", c.ID, c.Op)
			continue
		}
		ran++
		t.Run(c.ID, func(t *testing.T) {
			path := filepath.Join(withLinks(t, filepath.Join(root, c.Path)), c.Entry)
			dir := t.TempDir()
			var stdout, stderr bytes.Buffer
			status := run(command(&c, root, path, filepath.Join(dir, "out.gguf")), &stdout, &stderr)
			c.check(t, status, stdout.String()+stderr.String())
			if left, _ := os.ReadDir(dir); status != exitOK && len(left) > 0 {
				t.Errorf("left behind: %v", left)
			}
		})
	}
	if ran < 340 {
		t.Errorf("%d cases ran, want at least 340", ran)
	}
}

// check judges an outcome as the corpus's own scorer does.
func (c *badCase) check(t *testing.T, status int, output string) {
	t.Helper()
	if steers(output) {
		t.Errorf("control characters printed: %q", output)
	}
	if c.Expect == "ok" || decidedOtherwise[c.ID] != "" {
		if status != exitOK {
			t.Errorf("exit status %d, want 0: %s", status, output)
		}
		return
	}
	if missing := c.Op == "quantize" && status == exitUsage; status != exitCheckFailed && status != exitInput && !missing {
		t.Errorf("exit status %d, want %d or %d: %s", status, exitCheckFailed, exitInput, output)
	}
	for _, group := range c.Hints {
		has := func(word string) bool { return strings.Contains(strings.ToLower(output), strings.ToLower(word)) }
		if words := strings.Split(group, "|"); !slices.ContainsFunc(words, has) {
			t.Errorf("%q has none of %q", output, words)
		}
	}
}

// linkText matches files of the corpus that stand for symbolic links: the pack
// holds the target as their content.
var linkText = regexp.MustCompile(`^(\.\./\.\./blobs/[0-9a-f]{64}|/etc/hostname|model\.safetensors|m-00002-of-00002\.gguf|blobs/[01])$`)

// withLinks returns path itself or, where it has such files, a copy with links.
func withLinks(t *testing.T, path string) string {
	if st, err := os.Stat(path); err != nil || !st.IsDir() {
		return path
	}
	dst := filepath.Join(t.TempDir(), filepath.Base(path))
	if err := os.CopyFS(dst, os.DirFS(path)); err != nil {
		t.Fatal(err)
	}
	found := false
	err := filepath.WalkDir(dst, func(p string, e fs.DirEntry, err error) error {
		if err != nil || e.IsDir() {
			return err
		}
		b, err := os.ReadFile(p)
		if err != nil || !linkText.Match(b) {
			return err
		}
		found = true
		if err := os.Remove(p); err != nil {
			return err
		}
		return os.Symlink(filepath.FromSlash(string(b)), p)
	})
	if err != nil {
		t.Skipf("no symbolic links here: %v", err)
	}
	if found {
		return dst
	}
	return path
}
