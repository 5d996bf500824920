package safetensors

import (
	"bytes"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/winnow-moe/winnow/formats/dtype"
	"github.com/winnow-moe/winnow/testdata/fixtures"
)

func TestMain(m *testing.M) { fixtures.Main(m) }

// badCase is one entry of the manifest of bad and unusual inputs.
type badCase struct {
	ID, Kind, Path, Entry, Expect, Why string
	Hints                              []string `json:"contains_hint"`
}

// badCases returns the cases of one kind and the folder they are in.
func badCases(t *testing.T, kind string) (dir string, cases []badCase) {
	dir = filepath.Join(fixtures.Dir(t, "packs/bad"), "given")
	text, err := os.ReadFile(filepath.Join(dir, "manifest.json"))
	if err != nil {
		t.Fatal(err)
	}
	var all []badCase
	if err := json.Unmarshal(text, &all); err != nil {
		t.Fatal(err)
	}
	for _, c := range all {
		if c.Kind == kind {
			cases = append(cases, c)
		}
	}
	if len(cases) < 20 {
		t.Fatalf("only %d cases of kind %q", len(cases), kind)
	}
	return dir, cases
}

// check compares an outcome with what the manifest expects.
func (c badCase) check(t *testing.T, err error) {
	t.Helper()
	if c.Expect == "ok" {
		if err != nil {
			t.Errorf("refused: %v (%s)", err, c.Why)
		}
		return
	}
	if err == nil {
		t.Fatalf("accepted (%s)", c.Why)
	}
	for _, group := range c.Hints {
		if !containsAny(err.Error(), strings.Split(group, "|")) {
			t.Errorf("error %q has none of %q", err, group)
		}
	}
	if strings.ContainsFunc(err.Error(), func(r rune) bool { return r < ' ' }) {
		t.Errorf("error %q has control characters", err)
	}
}

func containsAny(text string, words []string) bool {
	return slices.ContainsFunc(words, func(w string) bool {
		return strings.Contains(strings.ToLower(text), strings.ToLower(w))
	})
}

func parseFile(t testing.TB, path string) (*Header, error) {
	f, err := os.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	st, err := f.Stat()
	if err != nil {
		t.Fatal(err)
	}
	return Parse(f, st.Size(), filepath.Base(path))
}

func TestBadFiles(t *testing.T) {
	dir, cases := badCases(t, "safetensors")
	for _, c := range cases {
		t.Run(c.ID, func(t *testing.T) {
			path := filepath.Join(dir, c.Path)
			_, err := parseFile(t, path)
			c.check(t, err)
			if err != nil && (!errors.Is(err, ErrFormat) || !strings.Contains(err.Error(), filepath.Base(path))) {
				t.Errorf("error %q is not ErrFormat or does not name the file", err)
			}
		})
	}
}

// file returns the bytes of a file with this header and n bytes of data.
func file(header string, n int) []byte {
	b := binary.LittleEndian.AppendUint64(nil, uint64(len(header)))
	return append(append(b, header...), make([]byte, n)...)
}

func parseBytes(b []byte) (*Header, error) {
	return Parse(bytes.NewReader(b), int64(len(b)), "t.safetensors")
}

func TestParse(t *testing.T) {
	h, err := parseBytes(file(` {"b":{"shape":[2,1],"dtype":"F16","data_offsets":[3,7],"x":[null,{"a":true}]},
		"__metadata__":{"format":"pt"}, "\u0061\n":{"dtype":"U8","shape":[3],"data_offsets":[0,3]},
		"s":{"dtype":"F32","shape":[],"data_offsets":[7,11]}} `, 11))
	if err != nil {
		t.Fatal(err)
	}
	start := h.Tensors[0].Offset
	want := &Header{
		Tensors: []Tensor{
			{Name: "a\n", DType: dtype.U8, Shape: []int64{3}, Offset: start, Size: 3},
			{Name: "b", DType: dtype.F16, Shape: []int64{2, 1}, Offset: start + 3, Size: 4},
			{Name: "s", DType: dtype.F32, Shape: []int64{}, Offset: start + 7, Size: 4},
		},
		Metadata: map[string]string{"format": "pt"},
	}
	if diff := cmp.Diff(want, h); diff != "" {
		t.Error(diff)
	}
}

// TestParseRefuses has the faults that the corpus of bad files lacks.
func TestParseRefuses(t *testing.T) {
	entry := func(fields string) []byte { return file(`{"t":{`+fields+`}}`, 4) }
	html := append([]byte("<!DOCTYPE html><html>"), make([]byte, 80)...)
	for _, c := range []struct {
		data []byte
		hint string
	}{
		{entry(`"dtype":"F32","data_offsets":[0,4]`), "shape is missing"},
		{entry(`"dtype":7,"shape":[1],"data_offsets":[0,4]`), "dtype: "},
		{entry(`"dtype":"F32","shape":[1],"data_offsets":[0,4,4]`), "has 3 numbers"},
		{entry(`"dtype":"F32","shape":[1],"data_offsets":[9223372036854775800,9223372036854775804]`), "overflow"},
		{entry(`"dtype":"F32","shape":[` + strings.Repeat("1,", 64) + `1],"data_offsets":[0,4]`), "more than 64"},
		{entry(`"dtype":"F32","shape":[1],"data_offsets":[0,4],"DType":"F32"`), "only in case"},
		{file(`{"`+strings.Repeat("n", 5000)+`":{}}`, 0), "5000 bytes"},
		{file(`{"__metadata__":null}`, 0), "__metadata__"},
		{file(`{"__metadata__":{"a":{}}}`, 0), `"a"`},
		{html, "HTML"},
		{[]byte("PK\x03\x04aaaaaaaaaaaaaaaaaaaaaaaa"), "pickle"},
		{[]byte("\x80\x02}q\x00aaaaaaaaaaaaaaaaaaaa"), "pickle"},
		{[]byte(`{"weight_map":{}}`), "JSON, where"},
		{make([]byte, 100), "zeros"},
	} {
		_, err := parseBytes(c.data)
		if !errors.Is(err, ErrFormat) || !strings.Contains(err.Error(), c.hint) {
			t.Errorf("got %v, want ErrFormat with %q", err, c.hint)
		}
	}
}

// failingReader holds a header length of 64 and then fails with err.
type failingReader struct{ err error }

func (r failingReader) ReadAt(p []byte, off int64) (int, error) {
	if off > 0 {
		return 0, r.err
	}
	return copy(p, []byte{64, 0, 0, 0, 0, 0, 0, 0}), io.EOF
}

func TestParseReadErrors(t *testing.T) {
	if _, err := Parse(failingReader{io.EOF}, 1000, "x"); !errors.Is(err, io.ErrUnexpectedEOF) {
		t.Errorf("file shorter than its size: %v", err)
	}
	fault := errors.New("input/output error")
	if _, err := Parse(failingReader{fault}, 1000, "x"); !errors.Is(err, fault) || errors.Is(err, ErrFormat) {
		t.Errorf("fault of the disk: %v", err)
	}
}

// FuzzParse: no panic, errors are ErrFormat, memory is bounded by the input,
// and what parses re-writes and re-parses equal.
func FuzzParse(f *testing.F) {
	f.Add(file(`{"a":{"dtype":"F32","shape":[1],"data_offsets":[0,4]},"__metadata__":{"k":"\u00e9\n"}}`, 4))
	f.Add(file(`{"a\u0001\"\\":{"dtype":"F4","shape":[2,3],"data_offsets":[1,4]},"z":{"dtype":"BOOL","shape":[],"data_offsets":[0,1]}} `, 4))
	f.Add(file(`{}`, 0))
	f.Fuzz(func(t *testing.T, data []byte) {
		h, err := parseBytes(data)
		if err != nil {
			if !errors.Is(err, ErrFormat) {
				t.Fatalf("not ErrFormat: %v", err)
			}
			if len(err.Error()) > 30*1024 {
				t.Fatalf("message of %d bytes", len(err.Error()))
			}
			return
		}
		again := rewrite(t, h)
		byName := func(a, b Tensor) int { return strings.Compare(a.Name, b.Name) }
		slices.SortFunc(h.Tensors, byName)
		slices.SortFunc(again.Tensors, byName)
		for i := range h.Tensors {
			h.Tensors[i].Offset, again.Tensors[i].Offset = 0, 0
		}
		if diff := cmp.Diff(h, again); diff != "" {
			t.Fatal(diff)
		}
	})
}

// rewrite lays out the tensors of h as a new file and parses its header.
func rewrite(t *testing.T, h *Header) *Header {
	l, err := NewLayout(h.Tensors, h.Metadata, 0)
	if err != nil {
		t.Fatalf("what parses cannot be written: %v", err)
	}
	again, err := Parse(bytes.NewReader(l.headers[0]), l.files[0].Size, "again")
	if err != nil {
		t.Fatalf("what is written does not parse: %v", err)
	}
	return again
}

// TestParseAllocations bounds memory by the input: many tiny entries.
func TestParseAllocations(t *testing.T) {
	data := file("{"+strings.Join(entries(5000), ",")+"}", 0)
	allocs := testing.AllocsPerRun(3, func() {
		if _, err := parseBytes(data); err != nil {
			t.Fatal(err)
		}
	})
	if perTensor := allocs / 5000; perTensor > 2 {
		t.Errorf("%.1f allocations per tensor", perTensor)
	}
}

func entries(n int) []string {
	list := make([]string, n)
	for i := range list {
		list[i] = fmt.Sprintf(`"model.layers.%d.weight":{"dtype":"F8_E4M3","shape":[0,7168],"data_offsets":[0,0]}`, i)
	}
	return list
}

func BenchmarkParse(b *testing.B) {
	data := file("{"+strings.Join(entries(600), ",")+"}", 0)
	b.SetBytes(int64(len(data)))
	b.ReportAllocs()
	for b.Loop() {
		if _, err := parseBytes(data); err != nil {
			b.Fatal(err)
		}
	}
}
