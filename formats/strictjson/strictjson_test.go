package strictjson

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

func TestDecode(t *testing.T) {
	for src, want := range map[string]any{
		` {"a": [1, -2.5e3, true, false, null, "x"], "b": {}}` + "\n": map[string]any{
			"a": []any{json.Number("1"), json.Number("-2.5e3"), true, false, nil, "x"}, "b": map[string]any{}},
		`"\u00e9\ud83d\ude00\n\/\\\"é"`: "é😀\n/\\\"é",
		`"\u0000"`:                      "\x00",
		`18446744073709551616`:          json.Number("18446744073709551616"),
		`[]`:                            []any{},
		`0`:                             json.Number("0"),
	} {
		got, err := Decode([]byte(src))
		if err != nil {
			t.Errorf("%q: %v", src, err)
		} else if diff := cmp.Diff(want, got); diff != "" {
			t.Errorf("%q: %s", src, diff)
		}
	}
}

func TestRefused(t *testing.T) {
	for _, c := range []struct{ src, hint string }{
		{"", "ends"},
		{"  ", "ends"},
		{"\ufeff{}", "byte order mark"},
		{"{\"a\xff\": 1}", "UTF-8"},
		{"\"\xed\xa0\x80\"", "UTF-8"},
		{`{"a":1,"a":1}`, `duplicate key "a"`},
		{`{"a":1,"\u0061":1}`, `duplicate key "a"`},
		{`{"x":{"a":1,"b":{},"a":1}}`, `duplicate key "a"`},
		{manyKeys(40, `"k7":0`), `duplicate key "k7"`},
		{manyKeys(40, `"k39":0`), `duplicate key "k39"`},
		{`{} x`, "trailing"},
		{"{}\x00", "trailing"},
		{`[1,]`, "value"},
		{`[,1]`, "value"},
		{`[1 2]`, "',' or ']'"},
		{`{"a" 1}`, "':'"},
		{`{"a":1,}`, "key"},
		{`{a:1}`, "key"},
		{`{'a':1}`, "key"},
		{`{"a":1`, "ends"},
		{`[1`, "ends"},
		{`"abc`, "inside a string"},
		{`"abc\`, "inside a string"},
		{`"abc\n`, "inside a string"},
		{"\"a\nb\"", "control character"},
		{"\"\\n\nb\"", "control character"},
		{`"\x41"`, "escape"},
		{`"\u12g4"`, "escape"},
		{`"\u12"`, "escape"},
		{`"\ud83d"`, "surrogate"},
		{`"\ude00"`, "surrogate"},
		{`"\ud83d\u0041"`, "surrogate"},
		{`"\ud83dx\ude00"`, "surrogate"},
		{`01`, "trailing"},
		{`-`, "digit"},
		{`-a`, "digit"},
		{`1.`, "digit"},
		{`1e`, "digit"},
		{`1e+`, "digit"},
		{`.5`, "value"},
		{`+1`, "value"},
		{`NaN`, "value"},
		{`nul`, "null"},
		{`trve`, "true"},
		{`falsy`, "false"},
		{`/* c */ {}`, "value"},
		{strings.Repeat("[", 129) + strings.Repeat("]", 129), "deeper than 128"},
		{strings.Repeat(`{"a":`, 100000), "deeper than 128"},
	} {
		_, err := Decode([]byte(c.src))
		if !errors.Is(err, ErrSyntax) || !strings.Contains(err.Error(), c.hint) {
			t.Errorf("%.60q: got %v, want an error with %q", c.src, err, c.hint)
		}
		if s, err := NewScanner(c.src); err == nil {
			if err = s.Skip(); err == nil {
				err = s.End()
			}
			if !errors.Is(err, ErrSyntax) {
				t.Errorf("%.60q: Skip accepts it", c.src)
			}
		}
	}
	if _, err := Decode([]byte(strings.Repeat("[", 128) + strings.Repeat("]", 128))); err != nil {
		t.Errorf("depth 128: %v", err)
	}
}

// manyKeys is an object with keys k0 to k<n-1> and one more member.
func manyKeys(n int, last string) string {
	var b strings.Builder
	b.WriteByte('{')
	for i := range n {
		fmt.Fprintf(&b, `"k%d":0,`, i)
	}
	return b.String() + last + "}"
}

func TestInt(t *testing.T) {
	for src, want := range map[string]int64{"0": 0, "-7": -7, " 9223372036854775807": 1<<63 - 1} {
		s, _ := NewScanner(src)
		if n, err := s.Int(); err != nil || n != want {
			t.Errorf("%q: got %d, %v", src, n, err)
		}
	}
	for src, hint := range map[string]string{"2.0": "integer", "1e3": "integer", "9223372036854775808": "range", `"1"`: "a number"} {
		s, _ := NewScanner(src)
		if _, err := s.Int(); err == nil || !strings.Contains(err.Error(), hint) {
			t.Errorf("%q: got %v, want %q", src, err, hint)
		}
	}
}

func TestWrongKind(t *testing.T) {
	s, _ := NewScanner("  7")
	errs := map[string]error{
		"an object": s.Object(nil), "an array": s.Array(nil), "false": func() error { _, err := s.Bool(); return err }(),
		"a string": func() error { _, err := s.Text(); return err }(),
	}
	for hint, err := range errs {
		if err == nil || !strings.Contains(err.Error(), hint) {
			t.Errorf("got %v, want %q", err, hint)
		}
	}
}

func TestReadFile(t *testing.T) {
	dir := t.TempDir()
	path := filepath.Join(dir, "a.json")
	if err := os.WriteFile(path, []byte("[1,2]"), 0o600); err != nil {
		t.Fatal(err)
	}
	if data, err := ReadFile(path, 5); err != nil || string(data) != "[1,2]" {
		t.Errorf("got %q, %v", data, err)
	}
	for _, c := range []struct {
		path  string
		limit int64
		hint  string
	}{{path, 4, "larger than 4"}, {dir, 9, "not a regular file"}, {path + "x", 9, "a.jsonx"}} {
		if _, err := ReadFile(c.path, c.limit); err == nil || !strings.Contains(err.Error(), c.hint) {
			t.Errorf("%s: got %v, want %q", c.path, err, c.hint)
		}
	}
}

// FuzzStrictJSON: what Decode accepts, encoding/json accepts with the same meaning.
func FuzzStrictJSON(f *testing.F) {
	for _, s := range []string{`{"a":[1,2.5e-3,null,true,"x\u00e9\ud83d\ude00"]}`, `"\ud83d"`, `{"a":1,"a":2}`, " [ ] ", "-0", "1e999", `{"":{"":{}}}`} {
		f.Add([]byte(s))
	}
	f.Fuzz(func(t *testing.T, data []byte) {
		got, err := Decode(data)
		if err != nil {
			if !errors.Is(err, ErrSyntax) {
				t.Fatalf("not ErrSyntax: %v", err)
			}
			return
		}
		dec := json.NewDecoder(bytes.NewReader(data))
		dec.UseNumber()
		var want any
		if err := dec.Decode(&want); err != nil {
			t.Fatalf("encoding/json refuses %q: %v", data, err)
		}
		if diff := cmp.Diff(want, got); diff != "" {
			t.Fatalf("%q: %s", data, diff)
		}
	})
}
