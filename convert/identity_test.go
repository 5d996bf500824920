package convert

import (
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/winnow-moe/winnow/formats/gguf"
)

// TestIdentity compares with gguf-py; see testdata/identity.py.
func TestIdentity(t *testing.T) {
	var cases []struct {
		Folder, Repository, Card, File string
		Params                         int64
		Keys                           [][3]any
	}
	must(t, json.Unmarshal(readFile(t, filepath.Join("testdata", "identity.json")), &cases))
	for i, c := range cases {
		t.Run(fmt.Sprint(i, c.Folder), func(t *testing.T) {
			card, err := parseCard([]byte(c.Card))
			must(t, err)
			size := ""
			if c.Params > 0 {
				size = roundedCount(c.Params)
			}
			id := identify(card, c.Repository, c.Folder, c.Params, size)
			var md gguf.Metadata
			id.writeTo(&md)
			var got [][3]any
			for _, key := range md.Keys() {
				v, _ := md.Get(key)
				typ, _, _ := gguf.TypeOf(v)
				got = append(got, [3]any{key, typ.String(), v})
			}
			if g, w := fmt.Sprint(got), fmt.Sprint(c.Keys); g != w {
				t.Errorf("%s, %q, params %d:\n%s\ngot  %s\nwant %s", c.Folder, c.Repository, c.Params, c.Card, g, w)
			}
			// gguf-py would write into another folder, or begin with a hyphen.
			want := strings.TrimLeft(strings.ReplaceAll(c.File, "/", "-"), "-")
			if got := id.fileName(); got != want {
				t.Errorf("file name %q, want %q", got, want)
			}
		})
	}
	if len(cases) < 70 {
		t.Errorf("%d cases", len(cases))
	}
}

// TestBrokenCards: a model card that cannot be read is a warning.
func TestBrokenCards(t *testing.T) {
	for name, c := range map[string]struct{ card, warning string }{
		"not YAML":      {"---\na: [b\n---\n", "did not find expected"},
		"a list":        {"---\n- a\n---\n", "not a mapping"},
		"a text":        {"---\nabc\n---\n", "not a mapping"},
		"not UTF-8":     {"---\na: \xff\n---\n", "UTF-8"},
		"unknown alias": {"---\nlicense: *x\n---\n", "unknown anchor"},
		"only comments": {"---\n# a\n---\n", ""},
		"no card":       {"# Title\n", ""},
		"other kinds":   {"---\nlicense: {a: b}\nname: [x]\ntags: {a: b}\nbase_model: {a: [b]}\nversion: null\n---\n", ""},
		"a loop":        {"---\ntags: &a [*a, x]\nbase_model: &b {name: *b}\n---\n", ""},
	} {
		t.Run(name, func(t *testing.T) {
			dir := t.TempDir()
			must(t, os.WriteFile(filepath.Join(dir, "README.md"), []byte(c.card), 0o666))
			card, warning := readCard(dir)
			if c.warning == "" && warning != "" || !strings.Contains(warning, c.warning) {
				t.Errorf("warning %q, want %q", warning, c.warning)
			}
			var md gguf.Metadata
			identify(card, "", "model", 1, "").writeTo(&md)
			if name, _ := md.String(gguf.KeyName); name != "Model" {
				t.Errorf("name %q", name)
			}
		})
	}
	dir := t.TempDir()
	must(t, os.Mkdir(filepath.Join(dir, "README.md"), 0o777))
	if _, warning := readCard(dir); !strings.Contains(warning, "not a regular file") {
		t.Errorf("warning %q", warning)
	}
}

// TestFileName: texts of a model card lead to no other folder.
func TestFileName(t *testing.T) {
	for card, want := range map[string]string{
		"name: ../../etc/x":                   "etc-x-7B",
		`basename: "a\u0000b\x1bc\nd"`:        "a-b-c-d-7B",
		"{name: x, version: ../y}":            "x-7B-..-y",
		"{name: 'C:\\x', finetune: '{type}'}": "C--x-7B--type-",
		"name: -rf":                           "rf-7B",
	} {
		c, err := parseCard([]byte("---\n" + card + "\n---\n"))
		must(t, err)
		if got := identify(c, "", "f", 0, "7B").fileName(); got != want {
			t.Errorf("%s: %q, want %q", card, got, want)
		}
	}
}

// TestCachedRepo: a folder of the hub's cache is called as its repository.
func TestCachedRepo(t *testing.T) {
	commit := "/snapshots/0123456789abcdef0123456789abcdef01234567"
	for dir, want := range map[string][2]string{
		"/c/hub/models--org--Some-Model-7B" + commit: {"org/Some-Model-7B", "Some-Model-7B"},
		"/c/models--o.g--a_b" + commit:               {"o.g/a_b", "a_b"},
		"/c/models--org--name/snapshots/main":        {"", "main"},
		"/c/org--name" + commit:                      {"", "0123456789abcdef0123456789abcdef01234567"},
	} {
		if repo, name := cachedRepo(dir), folderName(dir); repo != want[0] || name != want[1] {
			t.Errorf("%s: %q, %q, want %q", dir, repo, name, want)
		}
	}
}
