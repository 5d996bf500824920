package safetensors

import (
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/winnow-moe/winnow/formats/dtype"
	"github.com/winnow-moe/winnow/testdata/fixtures"
)

// sample is a set of tensors with odd names, types and shapes.
var sample = []Tensor{
	{Name: "z", DType: dtype.U8, Shape: []int64{3}},
	{Name: "a", DType: dtype.BF16, Shape: []int64{5, 2}},
	{Name: "scalar", DType: dtype.F32},
	{Name: "none", DType: dtype.F32, Shape: []int64{0, 4}},
	{Name: "é \"\\\n\u2028<\x7f", DType: dtype.F8E4M3, Shape: []int64{7}},
	{Name: "big", DType: dtype.I64, Shape: []int64{40}},
	{Name: "b", DType: dtype.F32, Shape: []int64{2, 2}},
}

// writeSample writes the sample with random data, in pieces and concurrently.
func writeSample(t *testing.T, dir string, maxShard int64) [][]byte {
	t.Helper()
	l, err := NewLayout(sample, map[string]string{"format": "pt"}, maxShard)
	if err != nil {
		t.Fatal(err)
	}
	w, err := l.Create(dir)
	if err != nil {
		t.Fatal(err)
	}
	rng := rand.New(rand.NewPCG(1, 2))
	var wg sync.WaitGroup
	data := make([][]byte, len(sample))
	for i, tensor := range l.Tensors() {
		data[i] = make([]byte, tensor.Size)
		for k := range data[i] {
			data[i][k] = byte(rng.Uint32())
		}
		half := tensor.Size / 2
		wg.Go(func() {
			if err := errors.Join(w.WriteAt(i, half, data[i][half:]), w.WriteAt(i, 0, data[i][:half])); err != nil {
				t.Error(err)
			}
		})
	}
	wg.Wait()
	for _, f := range l.Files() {
		if _, err := os.Stat(filepath.Join(dir, f.Path)); !errors.Is(err, fs.ErrNotExist) {
			t.Errorf("%s has its final name before Commit", f.Path)
		}
	}
	if err := w.Commit(); err != nil {
		t.Fatal(err)
	}
	if err := w.Abort(); err != nil {
		t.Fatal(err)
	}
	return data
}

func TestWriteRoundTrip(t *testing.T) {
	for maxShard, wantFiles := range map[int64]int{0: 1, 1 << 40: 1, 60: 3, 1: 6} {
		dir := t.TempDir()
		data := writeSample(t, dir, maxShard)
		c, err := Open(dir)
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
		if len(c.Files()) != wantFiles || len(c.Tensors()) != len(sample) || len(c.Warnings()) != 0 {
			t.Errorf("max %d: %d files, %d tensors, warnings %q", maxShard, len(c.Files()), len(c.Tensors()), c.Warnings())
		}
		if diff := cmp.Diff(map[string]string{"format": "pt"}, c.Metadata()); diff != "" {
			t.Error(diff)
		}
		for i, want := range sample {
			j, ok := c.Lookup(want.Name)
			if !ok {
				t.Fatalf("%q is missing", want.Name)
			}
			got := c.Tensors()[j]
			buf := make([]byte, got.Size)
			if err := c.ReadAt(j, 0, buf); err != nil {
				t.Fatal(err)
			}
			if got.DType != want.DType || len(got.Shape) != len(want.Shape) || !bytes.Equal(buf, data[i]) {
				t.Errorf("%q differs", want.Name)
			}
		}
		left, err := filepath.Glob(filepath.Join(dir, "*"+partial))
		if err != nil || len(left) > 0 {
			t.Errorf("left over: %q, %v", left, err)
		}
		for _, f := range c.Files() {
			head := make([]byte, 9)
			file, err := os.Open(f.Path)
			if err != nil {
				t.Fatal(err)
			}
			if _, err := file.ReadAt(head, 0); err != nil || head[0]%8 != 0 || head[8] != '{' {
				t.Errorf("header starts with % x, %v", head, err)
			}
			file.Close()
		}
	}
}

// TestPythonReadsUs has the reference library read what is written here.
func TestPythonReadsUs(t *testing.T) {
	python, err := exec.LookPath("python3")
	if err == nil {
		err = exec.Command(python, "-c", "import safetensors").Run()
	}
	if err != nil {
		t.Skip("extra test: no python3 with the safetensors package")
	}
	dir := t.TempDir()
	data := writeSample(t, dir, 0)
	const script = `
import sys, safetensors
t = safetensors.deserialize(open(sys.argv[1], "rb").read())
for name, v in sorted(t): print(name.encode().hex(), v["dtype"], list(v["shape"]), bytes(v["data"]).hex())
`
	path := filepath.Join(dir, singleName)
	out, err := exec.Command(python, "-c", script, path).CombinedOutput()
	if err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	for i, want := range sample {
		line := lineWith(string(out), hex(want.Name)+" "+want.DType.String()+" ")
		if !strings.HasSuffix(line, "] "+hex(string(data[i]))) {
			t.Errorf("%q: Python reads %q of %s", want.Name, line, out)
		}
	}
}

func hex(s string) string { return fmt.Sprintf("%x", s) }

func lineWith(text, prefix string) string {
	for line := range strings.Lines(text) {
		if strings.HasPrefix(line, prefix) {
			return strings.TrimSuffix(line, "\n")
		}
	}
	return ""
}

func TestLayoutRefuses(t *testing.T) {
	many := make([]int64, maxRank+1)
	var huge []Tensor // no size overflows, but their sum does
	for i := range 9 {
		huge = append(huge, Tensor{Name: string(rune('a' + i)), DType: dtype.U8, Shape: []int64{1<<60 - 1}})
	}
	for hint, tensors := range map[string][]Tensor{
		"duplicate":   {{Name: "a", DType: dtype.F32}, {Name: "a", DType: dtype.F32}},
		"not a name":  {{Name: metadataKey, DType: dtype.F32}},
		"\\xff":       {{Name: "\xff", DType: dtype.F32}},
		"dtype":       {{Name: "a"}},
		"negative":    {{Name: "a", DType: dtype.F32, Shape: []int64{-1, -1}}},
		"whole bytes": {{Name: "a", DType: dtype.F4, Shape: []int64{3}}},
		"too large":   {{Name: "a", DType: dtype.F32, Shape: []int64{1 << 62, 2}}},
		"overflows":   huge,
		"more than":   {{Name: "a", DType: dtype.F32, Shape: many}},
	} {
		if _, err := NewLayout(tensors, nil, 0); !errors.Is(err, ErrFormat) || !strings.Contains(err.Error(), hint) {
			t.Errorf("got %v, want ErrFormat with %q", err, hint)
		}
	}
	if _, err := NewLayout(nil, map[string]string{"a": "\xff"}, 0); !errors.Is(err, ErrFormat) {
		t.Errorf("metadata: %v", err)
	}
}

func TestCreateRefusesExisting(t *testing.T) {
	l, err := NewLayout(sample, nil, 60)
	if err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{singleName, indexName, "model-00002-of-00003.safetensors"} {
		dir := t.TempDir()
		write(t, dir, name, "precious")
		if _, err := l.Create(dir); !errors.Is(err, fs.ErrExist) || !strings.Contains(err.Error(), name) {
			t.Errorf("%s: %v", name, err)
		}
		if list, _ := os.ReadDir(dir); len(list) != 1 {
			t.Errorf("%s: %v", name, list)
		}
	}
	if _, err := l.Create(filepath.Join(t.TempDir(), "none")); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("missing folder: %v", err)
	}
}

// TestCommitFailures: whatever fails, nothing is left in the folder.
func TestCommitFailures(t *testing.T) {
	for name, sabotage := range map[string]func(*Writer, string) error{
		"tensor not written": func(w *Writer, dir string) error { return w.Commit() },
		"abort":              func(w *Writer, dir string) error { return errors.Join(w.Abort(), errors.New("aborted")) },
		"partial file gone": func(w *Writer, dir string) error {
			for i, tensor := range w.layout.tensors {
				if err := w.WriteAt(i, 0, make([]byte, tensor.Size)); err != nil {
					return err
				}
			}
			os.Remove(filepath.Join(dir, w.layout.files[1].Path+partial))
			return w.Commit()
		},
		"index blocked": func(w *Writer, dir string) error {
			for i, tensor := range w.layout.tensors {
				if err := w.WriteAt(i, 0, make([]byte, tensor.Size)); err != nil {
					return err
				}
			}
			if err := os.Mkdir(filepath.Join(dir, indexName+partial), 0o700); err != nil {
				return err
			}
			defer os.Remove(filepath.Join(dir, indexName+partial))
			return w.Commit()
		},
	} {
		l, err := NewLayout(sample, nil, 60)
		if err != nil {
			t.Fatal(err)
		}
		dir := t.TempDir()
		w, err := l.Create(dir)
		if err != nil {
			t.Fatal(err)
		}
		if err := sabotage(w, dir); err == nil {
			t.Errorf("%s: no error", name)
		}
		if list, _ := os.ReadDir(dir); len(list) != 0 {
			t.Errorf("%s: left over: %v", name, list)
		}
	}
}

func TestWriteOutside(t *testing.T) {
	l, err := NewLayout(sample, nil, 0)
	if err != nil {
		t.Fatal(err)
	}
	w, err := l.Create(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	defer w.Abort()
	for _, c := range [][2]int64{{-1, 1}, {0, 4}, {3, 1}} {
		if err := w.WriteAt(0, c[0], make([]byte, c[1])); err == nil || !strings.Contains(err.Error(), `"z"`) {
			t.Errorf("%v: %v", c, err)
		}
	}
}

// TestRewriteDemo copies the demonstration checkpoint in other shards and
// compares all tensors.
func TestRewriteDemo(t *testing.T) {
	src, err := Open(fixtures.TinyR1(t))
	if err != nil {
		t.Fatal(err)
	}
	defer src.Close()
	l, err := NewLayout(src.Tensors(), src.Metadata(), 500_000)
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	w, err := l.Create(dir)
	if err != nil {
		t.Fatal(err)
	}
	for i, tensor := range src.Tensors() {
		buf := make([]byte, tensor.Size)
		if err := errors.Join(src.ReadAt(i, 0, buf), w.WriteAt(i, 0, buf)); err != nil {
			t.Fatal(err)
		}
	}
	if err := w.Commit(); err != nil {
		t.Fatal(err)
	}
	dst, err := Open(dir)
	if err != nil {
		t.Fatal(err)
	}
	defer dst.Close()
	if len(dst.Tensors()) != len(src.Tensors()) || len(dst.Files()) < 3 {
		t.Fatalf("%d tensors, want %d, in %d files", len(dst.Tensors()), len(src.Tensors()), len(dst.Files()))
	}
	for i, tensor := range src.Tensors() {
		j, _ := dst.Lookup(tensor.Name)
		a, b := make([]byte, tensor.Size), make([]byte, tensor.Size)
		if err := errors.Join(src.ReadAt(i, 0, a), dst.ReadAt(j, 0, b)); err != nil || !bytes.Equal(a, b) {
			t.Fatalf("%q differs: %v", tensor.Name, err)
		}
	}
}
