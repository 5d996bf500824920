package calib

import (
	"bytes"
	"encoding/binary"
	"errors"
	"math"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"testing"

	"github.com/winnow-moe/winnow/formats/gguf"
	"github.com/winnow-moe/winnow/testdata/fixtures"
)

// badCase is an entry of the corpus of bad and unusual inputs.
type badCase struct {
	ID, Kind, Path, Model, Expect string
	Hints                         []string `json:"contains_hint"`
}

func badCases(tb testing.TB) (root string, cases []badCase) {
	tb.Helper()
	root = filepath.Join(fixtures.Dir(tb, "packs/bad"), "given")
	unmarshal(tb, filepath.Join(root, "manifest.json"), &cases)
	cases = slices.DeleteFunc(cases, func(c badCase) bool { return !strings.HasPrefix(c.Kind, "imatrix-") })
	if len(cases) < 30 {
		tb.Fatalf("%d cases in the corpus, want at least 30", len(cases))
	}
	return root, cases
}

// TestBadCorpus reads each matrix and asks it for the weights of every tensor
// of its model, as quantization does.
func TestBadCorpus(t *testing.T) {
	root, cases := badCases(t)
	for _, c := range cases {
		err := use(t, filepath.Join(root, c.Path), filepath.Join(root, c.Model))
		// That a type needs an entry for every tensor is known to the quantizer.
		if c.Expect == "ok" || strings.HasSuffix(c.ID, "-required-missing") {
			if err != nil {
				t.Errorf("%s: refused: %v", c.ID, err)
			}
			continue
		}
		if !errors.Is(err, ErrInvalid) || !strings.Contains(err.Error(), filepath.Base(c.Path)) {
			t.Errorf("%s: error %v is not ErrInvalid about the file", c.ID, err)
			continue
		}
		for _, group := range c.Hints {
			if !containsAny(err.Error(), strings.Split(group, "|")) {
				t.Errorf("%s: error %q has none of %q", c.ID, err, group)
			}
		}
	}
}

func containsAny(s string, words []string) bool {
	return slices.ContainsFunc(words, func(w string) bool { return strings.Contains(strings.ToLower(s), strings.ToLower(w)) })
}

func use(t *testing.T, path, model string) error {
	t.Helper()
	m, err := Read(path, Options{})
	if err != nil {
		return err
	}
	defer m.Close()
	f, err := gguf.Open(model)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	for _, ti := range f.Tensors() {
		experts := 1
		if len(ti.Shape) > 2 {
			experts = int(ti.Shape[2])
		}
		if _, err := m.Weights(ti.Name, int(ti.RowLen()), experts); err != nil {
			return err
		}
	}
	return nil
}

// legacyFile builds a legacy file: numbers become i32, float32 values and text
// stand for themselves.
func legacyFile(parts ...any) []byte {
	var b []byte
	for _, p := range parts {
		switch p := p.(type) {
		case int:
			b = binary.LittleEndian.AppendUint32(b, uint32(int32(p)))
		case float32:
			b = binary.LittleEndian.AppendUint32(b, math.Float32bits(p))
		case string:
			b = append(b, p...)
		}
	}
	return b
}

func TestLegacyForms(t *testing.T) {
	entry := legacyFile(1, 1, "w", 2, 1, float32(6))
	with := func(parts ...any) []byte { return append(slices.Clone(entry), legacyFile(parts...)...) }
	for _, c := range []struct {
		file    []byte
		want    string // in the error, or in the warnings when it starts with "warn:"
		chunks  int
		dataset []string
	}{
		{entry, "", 0, nil},
		{with(7), "", 7, nil},
		{with(7, 0), "", 7, nil},
		{with(7, 3, "a.b"), "", 7, []string{"a.b"}},
		{with(7, 3, "a.b", "more"), "warn:4 extra bytes", 7, []string{"a.b"}},
		{with("x"), "number of chunks", 0, nil},
		{with(-1), "number of chunks is -1", 0, nil},
		{with(7, -1), "length of the dataset name is -1", 0, nil},
		{with(7, 9, "short"), "truncated", 0, nil},
		{with(7, "x"), "truncated", 0, nil},
		{nil, "empty", 0, nil},
		{legacyFile(1, 1, "\xff", 2, 1, float32(6)), "UTF-8", 0, nil},
		{legacyFile(1, 5000, strings.Repeat("n", 5000), 2, 1, float32(6)), "length of the name is 5000", 0, nil},
		{legacyFile(1, 1, "w", 2, 1, float32(1e38)), "not finite", 0, nil},
		{[]byte("version https://git-lfs.github.com/spec/v1\noid sha256:0\n"), "git-lfs pointer", 0, nil},
		{[]byte("<!DOCTYPE html><html><body>404</body></html>"), "web page", 0, nil},
	} {
		m, err := Parse(bytes.NewReader(c.file), int64(len(c.file)), "x.dat", Options{})
		if warning, ok := strings.CutPrefix(c.want, "warn:"); ok && err == nil {
			if len(m.Warnings) != 1 || !strings.Contains(m.Warnings[0], warning) {
				t.Errorf("%q: warnings %q, want %q", c.file, m.Warnings, warning)
			}
		} else if c.want != "" {
			if !errors.Is(err, ErrInvalid) || !strings.Contains(err.Error(), c.want) || !strings.Contains(err.Error(), "x.dat") {
				t.Errorf("%q: %v, want an error with %q", c.file, err, c.want)
			}
			continue
		}
		if err != nil {
			t.Errorf("%q: %v", c.file, err)
			continue
		}
		if m.Chunks != c.chunks || !slices.Equal(m.Datasets, c.dataset) {
			t.Errorf("%q: %d chunks, datasets %q, want %d, %q", c.file, m.Chunks, m.Datasets, c.chunks, c.dataset)
		}
		if w, err := m.Weights("w", 1, 1); err != nil || w[0] != 3 {
			t.Errorf("%q: weights %v, %v, want 3", c.file, w, err)
		}
	}
}

// ggufFile builds a file of the GGUF form, changed by edit.
func ggufFile(t *testing.T, edit func(*gguf.Metadata, *[]gguf.TensorInfo)) []byte {
	t.Helper()
	meta := &gguf.Metadata{}
	meta.Set(gguf.KeyGeneralType, fileType)
	meta.Set(keyDatasets, []string{"a"})
	meta.Set(keyChunkCount, uint32(1))
	meta.Set(keyChunkSize, uint32(2))
	tensors := []gguf.TensorInfo{{Name: "w.in_sum2", Shape: []int64{2}}, {Name: "w.counts", Shape: []int64{1}}}
	edit(meta, &tensors)
	l, err := gguf.NewLayout(meta, tensors, gguf.LayoutOptions{})
	if err != nil {
		t.Fatal(err)
	}
	b := make([]byte, l.Size())
	copy(b, l.Header(0))
	return b
}

func TestGGUFForms(t *testing.T) {
	type tensors = *[]gguf.TensorInfo
	for _, c := range []struct {
		name string
		edit func(*gguf.Metadata, tensors)
		want string // as in TestLegacyForms
	}{
		{"plain", func(*gguf.Metadata, tensors) {}, ""},
		{"other type", func(m *gguf.Metadata, _ tensors) { m.Set(gguf.KeyGeneralType, "model") }, `warn:general.type is "model"`},
		{"other tensor", func(_ *gguf.Metadata, ts tensors) { *ts = append(*ts, gguf.TensorInfo{Name: "w"}) }, "warn:ignored"},
		{"datasets", func(m *gguf.Metadata, _ tensors) { m.Set(keyDatasets, uint32(1)) }, "warn:UINT32"},
		{"no datasets", func(m *gguf.Metadata, _ tensors) { m.Delete(keyDatasets) }, "imatrix.datasets is missing"},
		{"no chunks", func(m *gguf.Metadata, _ tensors) { m.Delete(keyChunkCount) }, "imatrix.chunk_count is missing"},
		{"chunks", func(m *gguf.Metadata, _ tensors) { m.Set(keyChunkCount, int32(1)) }, "has type INT32"},
		{"chunk size", func(m *gguf.Metadata, _ tensors) { m.Set(keyChunkSize, uint32(1<<31)) }, "at most"},
		{"only other tensors", func(_ *gguf.Metadata, ts tensors) { *ts = []gguf.TensorInfo{{Name: "w"}} }, "no data"},
		{"no name", func(_ *gguf.Metadata, ts tensors) { (*ts)[0].Name, (*ts)[1].Name = ".in_sum2", ".counts" }, "name is empty"},
		{"too many counts", func(_ *gguf.Metadata, ts tensors) { (*ts)[1].Shape = []int64{maxCounts + 1} }, "too many"},
		{"no values", func(_ *gguf.Metadata, ts tensors) { (*ts)[0].Shape = []int64{0} }, "no values"},
	} {
		b := ggufFile(t, c.edit)
		m, err := Parse(bytes.NewReader(b), int64(len(b)), "x.gguf", Options{})
		warning, warns := strings.CutPrefix(c.want, "warn:")
		switch {
		case c.want == "" || warns:
			if err != nil || len(m.Warnings) > 1 || !strings.Contains(strings.Join(m.Warnings, ""), warning) {
				t.Errorf("%s: %v, want warning %q", c.name, err, warning)
			}
		case !errors.Is(err, ErrInvalid) || !strings.Contains(err.Error(), c.want) || !strings.Contains(err.Error(), "x.gguf"):
			t.Errorf("%s: %v, want an error with %q", c.name, err, c.want)
		}
	}
}

// FuzzRead checks that any input is read or refused without a panic, with
// memory in proportion to its size, and that what was read can be written in
// the GGUF form and read again to the same content.
func FuzzRead(f *testing.F) {
	root, cases := badCases(f)
	for _, c := range cases {
		b, err := os.ReadFile(filepath.Join(root, c.Path))
		if err != nil {
			f.Fatal(err)
		}
		f.Add(b)
	}
	dir := f.TempDir()
	f.Fuzz(func(t *testing.T, in []byte) {
		before := allocated()
		m, err := Parse(bytes.NewReader(in), int64(len(in)), "fuzz", Options{})
		if n := allocated() - before; n > 100*uint64(len(in))+1<<20 {
			t.Fatalf("%d bytes allocated for %d bytes of input", n, len(in))
		}
		if err != nil {
			if !errors.Is(err, ErrInvalid) {
				t.Fatalf("error is not ErrInvalid: %v", err)
			}
			return
		}
		if _, err := m.Statistics(); err != nil {
			t.Fatal(err)
		}
		rewrite(t, m, filepath.Join(dir, "out"))
	})
}

func allocated() uint64 {
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	return m.TotalAlloc
}

func rewrite(t *testing.T, m *Matrix, path string) {
	for i := range m.Entries {
		// A legacy file may have names that GGUF has no room for, and more
		// rows than a float32 counts.
		if e := &m.Entries[i]; len(e.Name) > 55 || slices.Max(e.Counts) > 1<<24 {
			return
		}
	}
	if err := m.WriteGGUF(path); err != nil {
		t.Fatalf("what was read cannot be written: %v", err)
	}
	again, err := Read(path, Options{})
	if err != nil {
		t.Fatalf("what was written cannot be read: %v", err)
	}
	defer again.Close()
	if len(again.Warnings) > 0 || again.Chunks != m.Chunks || again.chunkSize() != m.chunkSize() || !slices.Equal(again.Datasets, m.Datasets) {
		t.Fatalf("metadata differs: %+v, before %+v", again, m)
	}
	for i := range m.Entries {
		a, b := &m.Entries[i], &again.Entries[i]
		if a.Name != b.Name || !slices.Equal(a.Counts, b.Counts) || !slices.Equal(sumsOf(t, m, a.Name), sumsOf(t, again, a.Name)) {
			t.Fatalf("entry %q differs", a.Name)
		}
	}
}
