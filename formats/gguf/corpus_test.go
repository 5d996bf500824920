package gguf

import (
	"encoding/json"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"github.com/winnow-moe/winnow/testdata/fixtures"
)

func TestMain(m *testing.M) { fixtures.Main(m) }

// badCase is an entry of the corpus of bad and unusual inputs.
type badCase struct {
	ID, Kind, Path, Entry, Op, Expect string
	Hints                             []string `json:"contains_hint"`
	Policy                            bool
}

// accepted lists policy cases decided otherwise than the manifest suggests.
var accepted = map[string]string{
	"g-gguf-arr-of-arr":    "the specification allows arrays of arrays; they are read with a warning",
	"g-split-second-first": "any part stands for the whole set",
}

// symlinks lists the cases whose files stand for symbolic links, which the
// pack stores as text.
var symlinks = map[string]bool{"g-split-ok-symlinks": true, "g-split-shard2-symlink-loop": true}

func badCases(tb testing.TB) (root string, cases []badCase) {
	tb.Helper()
	root = filepath.Join(fixtures.Dir(tb, "packs/bad"), "given")
	b, err := os.ReadFile(filepath.Join(root, "manifest.json"))
	if err != nil {
		tb.Fatal(err)
	}
	var all []badCase
	if err := json.Unmarshal(b, &all); err != nil {
		tb.Fatal(err)
	}
	for _, c := range all {
		if c.Kind == "gguf" || c.Kind == "gguf-split" {
			cases = append(cases, c)
		}
	}
	if len(cases) < 100 {
		tb.Fatalf("%d cases in the corpus, want at least 100", len(cases))
	}
	return root, cases
}

func TestBadCorpus(t *testing.T) {
	root, cases := badCases(t)
	for _, c := range cases {
		t.Run(c.ID, func(t *testing.T) {
			path := filepath.Join(root, c.Path)
			if symlinks[c.ID] {
				path = withSymlinks(t, path)
			}
			path = filepath.Join(path, c.Entry)
			for name, open := range map[string]func(string) (*File, error){"mapped": Open, "unmapped": OpenUnmapped} {
				f, err := open(path)
				if err == nil {
					readAll(t, f)
				}
				checkOutcome(t, c, name, err)
			}
		})
	}
}

// withSymlinks copies a folder, turning small text files into the links they
// describe.
func withSymlinks(t *testing.T, src string) string {
	dst := t.TempDir()
	err := filepath.WalkDir(src, func(p string, e fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		rel, _ := filepath.Rel(src, p)
		to := filepath.Join(dst, rel)
		if e.IsDir() {
			return os.MkdirAll(to, 0o777)
		}
		b, err := os.ReadFile(p)
		if err != nil {
			return err
		}
		if len(b) < 64 && !strings.HasPrefix(string(b), "GGUF") {
			return os.Symlink(string(b), to)
		}
		return os.WriteFile(to, b, 0o666)
	})
	if err != nil {
		t.Fatal(err)
	}
	return dst
}

// readAll reads every tensor, so that a bad extent cannot stay hidden.
func readAll(t *testing.T, f *File) {
	t.Helper()
	defer f.Close()
	for i, ti := range f.Tensors() {
		b, err := f.Rows(t.Context(), i, 0, ti.Rows(), nil)
		if err != nil || int64(len(b)) != ti.Size() {
			t.Errorf("tensor %q: %d bytes, error %v, want %d bytes", ti.Name, len(b), err, ti.Size())
		}
		f.Release(i)
	}
}

func checkOutcome(t *testing.T, c badCase, how string, err error) {
	t.Helper()
	// Vocabulary rules belong to formats/tokenizer; the files themselves are sound.
	if c.Expect == "ok" || accepted[c.ID] != "" || c.Op == "load-vocab" {
		if err != nil {
			t.Errorf("%s: refused: %v", how, err)
		}
		return
	}
	if err == nil {
		t.Errorf("%s: accepted, want an error with %q", how, c.Hints)
		return
	}
	var pe *fs.PathError
	if !errors.Is(err, ErrFormat) && !errors.As(err, &pe) && !errors.Is(err, syscall.ELOOP) {
		t.Errorf("%s: error is neither ErrFormat nor of the file system: %v", how, err)
	}
	for _, group := range c.Hints {
		if !containsAny(err.Error(), strings.Split(group, "|")) {
			t.Errorf("%s: error %q has none of %q", how, err, group)
		}
	}
}

func containsAny(s string, words []string) bool {
	for _, w := range words {
		if strings.Contains(strings.ToLower(s), strings.ToLower(w)) {
			return true
		}
	}
	return false
}
