package gguf

import (
	"bytes"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"reflect"
	"runtime"
	"strings"
	"sync"
	"syscall"
	"testing"

	"github.com/google/go-cmp/cmp"
	"pgregory.net/rapid"

	"github.com/winnow-moe/winnow/testdata/fixtures"
)

// families are fixtures with a file that llama.cpp's converter wrote.
var families = []string{"deepseek_v3", "deepseek_v2_lite", "gpt_oss", "mixtral", "gemma3"}

// Laying out what llama.cpp's converter wrote gives its bytes again.
func TestLayoutLikeConverter(t *testing.T) {
	for _, name := range families {
		path := filepath.Join(fixtures.Family(t, name), "ref-bf16.gguf")
		want, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		f, err := Open(path)
		if err != nil {
			t.Fatal(err)
		}
		defer f.Close()
		l := mustLayout(t, f.Metadata(), f.Tensors(), LayoutOptions{})
		if got := inMemory(t, l, f)[0]; !bytes.Equal(got, want) {
			t.Errorf("%s: %d bytes differ from the converter's %d", name, len(got), len(want))
		}
	}
}

// Splitting gives the bytes of gguf-py's writer; see testdata/README.md.
func TestSplitLikeGGUFPy(t *testing.T) {
	f, err := Open("testdata/gguf-py/single.gguf")
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	for name, opt := range map[string]LayoutOptions{"single": {}, "count": {MaxShardTensors: 2}, "size": {MaxShardBytes: 200}} {
		l := mustLayout(t, f.Metadata(), f.Tensors(), opt)
		files := inMemory(t, l, f)
		for i, p := range l.Paths("testdata/gguf-py/" + name + ".gguf") {
			want, err := os.ReadFile(p)
			if err != nil {
				t.Fatal(err)
			}
			if !bytes.Equal(files[i], want) {
				t.Errorf("%s: differs from what gguf-py wrote", p)
			}
		}
	}
}

func mustLayout(t testing.TB, meta *Metadata, tensors []TensorInfo, opt LayoutOptions) *Layout {
	t.Helper()
	l, err := NewLayout(meta, tensors, opt)
	if err != nil {
		t.Fatal(err)
	}
	return l
}

// inMemory writes the files of a layout with the data of m.
func inMemory(t testing.TB, l *Layout, m Model) [][]byte {
	t.Helper()
	files := make([][]byte, l.Shards())
	for i := range files {
		files[i] = make([]byte, l.ShardSize(i))
		copy(files[i], l.Header(i))
	}
	for i, ti := range m.Tensors() {
		b, err := m.Rows(t.Context(), i, 0, ti.Rows(), nil)
		if err != nil {
			t.Fatal(err)
		}
		shard, off := l.Place(i)
		copy(files[shard][off:], b)
	}
	return files
}

func TestLayoutRefuses(t *testing.T) {
	f32 := func(name string, shape ...int64) TensorInfo { return TensorInfo{name, F32, shape} }
	deep := any([]uint8{})
	for range maxNesting {
		deep = []Nested{{deep}}
	}
	meta := func(k string, v any) *Metadata { m := &Metadata{}; m.Set(k, v); return m }
	many := &Metadata{}
	for i := range maxKeys - 2 {
		many.Set(fmt.Sprint(i), true)
	}
	cases := []struct {
		meta    *Metadata
		tensors []TensorInfo
		want    string
	}{
		{nil, []TensorInfo{f32("a", 1), f32("a", 2)}, "duplicate"},
		{nil, []TensorInfo{f32("", 1)}, "empty"},
		{nil, []TensorInfo{f32(strings.Repeat("n", 64), 1)}, "too long"},
		{nil, []TensorInfo{f32("a", 1, 1, 1, 1, 1)}, "dimensions"},
		{nil, []TensorInfo{{"a", Q4_K, []int64{255}}}, "multiple"},
		{nil, []TensorInfo{{"a", 4, []int64{32}}}, "removed"},
		{nil, []TensorInfo{f32("a", 1<<40), f32("b", 1<<58), f32("c", 1<<58), f32("d", 1<<58), f32("e", 1<<58)}, "larger than"},
		{meta(KeyAlignment, uint32(48)), nil, "power of two"},
		{meta(KeyAlignment, int32(32)), nil, "UINT32"},
		{meta("", true), nil, "empty"},
		{meta("k\x00", true), nil, "NUL"},
		{meta(strings.Repeat("k", maxKeyBytes+1), true), nil, "too long"},
		{meta("k", deep), nil, "deeper"},
		{meta("k", []Nested{{1.5}}), nil, "float64"},
		{meta("k", strings.Repeat("s", maxStringBytes+1)), nil, "too large"},
		{meta("k", []string{strings.Repeat("s", maxStringBytes+1)}), nil, "too large"},
		{meta("k", make([]string, maxStrings+1)), nil, "too large"},
		{meta("k", make([]Nested, maxStrings+1)), nil, "too large"},
		{meta("k", make([]bool, maxNumbers+1)), nil, "too large"},
		{many, nil, "keys are too many"},
		{nil, make([]TensorInfo, maxTensors+1), "too many"},
	}
	for _, c := range cases {
		if c.meta == nil {
			c.meta = &Metadata{}
		}
		if _, err := NewLayout(c.meta, c.tensors, LayoutOptions{}); err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("error %v, want %q", err, c.want)
		}
	}
	tensors := make([]TensorInfo, maxSplits+1)
	for i := range tensors {
		tensors[i] = f32(fmt.Sprint(i), 1)
	}
	if _, err := NewLayout(&Metadata{}, tensors, LayoutOptions{MaxShardTensors: 1}); err == nil || !strings.Contains(err.Error(), "shards") {
		t.Errorf("error %v, want one about the number of shards", err)
	}
}

// The alignment travels to every shard: readers take it per file.
func TestSplitAlignment(t *testing.T) {
	meta := &Metadata{}
	meta.Set(KeyName, "x")
	meta.Set(KeyAlignment, uint32(64))
	tensors := []TensorInfo{{"a", F32, []int64{3}}, {"b", F32, []int64{3}}, {"c", F32, []int64{3}}}
	l := mustLayout(t, meta, tensors, LayoutOptions{MaxShardTensors: 2})
	for i := range l.Shards() {
		file := make([]byte, l.ShardSize(i))
		copy(file, l.Header(i))
		d, err := Parse(bytes.NewReader(file), int64(len(file)), "x")
		if err != nil || d.Alignment != 64 || len(d.Warnings) > 0 {
			t.Errorf("shard %d: error %v, directory %+v", i, err, d)
		}
	}
}

// testModel is an in-memory model with random data.
func testModel(tb testing.TB) (*Metadata, []TensorInfo, [][]byte) {
	tb.Helper()
	meta := &Metadata{}
	meta.Set(KeyArchitecture, "llama")
	meta.Set("tokenizer.ggml.tokens", []string{"a", "b"})
	tensors := []TensorInfo{{"a", F32, []int64{33, 7}}, {"b", Q8_0, []int64{64, 3, 2}}, {"none", F32, []int64{0}}, {"c", BF16, []int64{1001}}, {"d", I8, nil}}
	rng := rand.New(rand.NewPCG(1, 2))
	data := make([][]byte, len(tensors))
	for i := range tensors {
		data[i] = make([]byte, tensors[i].Size())
		for j := range data[i] {
			data[i][j] = byte(rng.Uint32())
		}
	}
	return meta, tensors, data
}

// fill writes all tensors in small pieces from several goroutines.
func fill(w *Writer, data [][]byte) error {
	var wg sync.WaitGroup
	errs := make(chan error, 1000)
	for i, d := range data {
		for off := 0; off < len(d); off += 100 {
			wg.Go(func() { errs <- w.WriteAt(i, int64(off), d[off:min(off+100, len(d))]) })
		}
	}
	wg.Wait()
	close(errs)
	var all error
	for err := range errs {
		all = errors.Join(all, err)
	}
	return all
}

func TestWriteAndRead(t *testing.T) {
	meta, tensors, data := testModel(t)
	for name, opt := range map[string]LayoutOptions{"single": {}, "split": {MaxShardTensors: 2}, "by size": {MaxShardBytes: 1000}} {
		t.Run(name, func(t *testing.T) {
			path := filepath.Join(t.TempDir(), "m.gguf")
			l := mustLayout(t, meta, tensors, opt)
			w, err := l.Create(path, CreateOptions{})
			if err != nil {
				t.Fatal(err)
			}
			defer w.Abort()
			if err := fill(w, data); err != nil {
				t.Fatal(err)
			}
			for _, p := range l.Paths(path) {
				if _, err := os.Stat(p); err == nil {
					t.Errorf("%s exists before Commit", p)
				}
			}
			if err := w.Commit(); err != nil {
				t.Fatal(err)
			}
			checkModel(t, l.Paths(path)[l.Shards()-1], meta, tensors, data)
			if left := listDir(t, filepath.Dir(path)); len(left) != l.Shards() {
				t.Errorf("folder holds %q, want %d files", left, l.Shards())
			}
			if err := errors.Join(w.Commit(), w.WriteAt(0, 0, nil)); !errors.Is(err, os.ErrClosed) {
				t.Errorf("after Commit: %v, want closed", err)
			}
		})
	}
}

func checkModel(t *testing.T, path string, meta *Metadata, tensors []TensorInfo, data [][]byte) {
	t.Helper()
	f, err := Open(path)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if len(f.Warnings) > 0 {
		t.Errorf("warnings %q", f.Warnings)
	}
	if d := cmp.Diff(meta, f.Metadata(), cmp.AllowUnexported(Metadata{})); d != "" {
		t.Errorf("metadata differs: %s", d)
	}
	for i, ti := range f.Tensors() {
		if ti.Name != tensors[i].Name || ti.Type != tensors[i].Type || ti.Elements() != tensors[i].Elements() {
			t.Errorf("tensor %d is %v, want %v", i, ti, tensors[i])
		}
		if b, err := f.Rows(t.Context(), i, 0, ti.Rows(), nil); err != nil || !bytes.Equal(b, data[i]) {
			t.Errorf("tensor %q: data differs, error %v", ti.Name, err)
		}
		part, off := f.Place(i)
		if p := f.Parts()[part]; off < p.DataOffset || off+ti.Size() > p.Size {
			t.Errorf("tensor %q at %d of part %d", ti.Name, off, part)
		}
	}
}

func listDir(t *testing.T, dir string) (names []string) {
	t.Helper()
	es, err := os.ReadDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	for _, e := range es {
		names = append(names, e.Name())
	}
	return names
}

func TestAbortLeavesNothing(t *testing.T) {
	meta, tensors, data := testModel(t)
	dir := t.TempDir()
	path := filepath.Join(dir, "m.gguf")
	for _, opt := range []LayoutOptions{{}, {MaxShardTensors: 1}} {
		w, err := mustLayout(t, meta, tensors, opt).Create(path, CreateOptions{})
		if err != nil {
			t.Fatal(err)
		}
		if err := w.WriteAt(0, 0, data[0]); err != nil {
			t.Fatal(err)
		}
		w.Abort()
		w.Abort()
		if left := listDir(t, dir); len(left) > 0 {
			t.Errorf("left behind: %q", left)
		}
	}
}

func TestCommitRefusesMissingBytes(t *testing.T) {
	meta, tensors, data := testModel(t)
	path := filepath.Join(t.TempDir(), "m.gguf")
	writeFile(t, path, []byte("older output"))
	w, err := mustLayout(t, meta, tensors, LayoutOptions{}).Create(path, CreateOptions{})
	if err != nil {
		t.Fatal(err)
	}
	last := len(data[1]) - 1
	data[1] = data[1][:last]
	if err := fill(w, data); err != nil {
		t.Fatal(err)
	}
	if err := w.Commit(); err == nil || !strings.Contains(err.Error(), fmt.Sprintf(`tensor "b": %d bytes were written, want %d`, last, last+1)) {
		t.Errorf("error %v, want the missing byte of tensor b", err)
	}
	// A byte written twice does not make up for one that is missing.
	w.WriteAt(0, 0, []byte{0})
	if err := w.Commit(); err == nil || !strings.Contains(err.Error(), `tensor "a"`) {
		t.Errorf("error %v, want the extra byte of tensor a", err)
	}
	w.Abort()
	if b, _ := os.ReadFile(path); string(b) != "older output" {
		t.Errorf("the older output is %q", b)
	}
}

func TestWriteAtBounds(t *testing.T) {
	meta, tensors, data := testModel(t)
	w, err := mustLayout(t, meta, tensors, LayoutOptions{}).Create(filepath.Join(t.TempDir(), "m.gguf"), CreateOptions{})
	if err != nil {
		t.Fatal(err)
	}
	defer w.Abort()
	size := int64(len(data[0]))
	for _, off := range []int64{-1, 1, size, size + 1, 1 << 62} {
		if err := w.WriteAt(0, off, data[0]); err == nil || !strings.Contains(err.Error(), `"a"`) {
			t.Errorf("offset %d: error %v", off, err)
		}
	}
}

func TestCreateRefuses(t *testing.T) {
	meta, tensors, _ := testModel(t)
	l := mustLayout(t, meta, tensors, LayoutOptions{})
	dir := t.TempDir()
	in := filepath.Join(dir, "in.gguf")
	writeFile(t, in, []byte("precious"))
	link, hard := filepath.Join(dir, "link.gguf"), filepath.Join(dir, "hard.gguf")
	if err := errors.Join(os.Symlink(in, link), os.Link(in, hard)); err != nil {
		t.Fatal(err)
	}
	for _, out := range []string{in, link, hard, filepath.Join(dir, ".", "in.gguf")} {
		if _, err := l.Create(out, CreateOptions{Inputs: []string{in}}); err == nil || !strings.Contains(err.Error(), "is the input") {
			t.Errorf("%s: error %v, want a refusal", out, err)
		}
	}
	part := filepath.Join(dir, "odd.gguf.part")
	writeFile(t, part, []byte("precious"))
	if _, err := l.Create(filepath.Join(dir, "odd.gguf"), CreateOptions{Inputs: []string{part}}); err == nil {
		t.Error("an input that is the part file was accepted")
	}
	for out, want := range map[string]string{
		dir:                                   "is a folder",
		os.DevNull:                            "not a regular file",
		filepath.Join(dir, "none", "m.gguf"):  "no such file",
		filepath.Join(in, "below", "a", "b"):  "not a directory",
		filepath.Join(dir, "none") + "/x.ggu": "no such file",
	} {
		if _, err := l.Create(out, CreateOptions{}); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: error %v, want %q", out, err, want)
		}
	}
	for _, p := range []string{in, part} {
		if b, _ := os.ReadFile(p); string(b) != "precious" {
			t.Errorf("%s is %q", p, b)
		}
	}
	if left := listDir(t, dir); len(left) != 4 {
		t.Errorf("folder holds %q", left)
	}
}

func TestCreateInReadOnlyFolder(t *testing.T) {
	if os.Getuid() == 0 {
		t.Skip("root may write into read-only folders")
	}
	meta, tensors, _ := testModel(t)
	dir := t.TempDir()
	if err := os.Chmod(dir, 0o555); err != nil {
		t.Fatal(err)
	}
	if _, err := mustLayout(t, meta, tensors, LayoutOptions{}).Create(filepath.Join(dir, "m.gguf"), CreateOptions{}); !errors.Is(err, os.ErrPermission) {
		t.Errorf("error %v, want a permission error", err)
	}
}

func TestSameFile(t *testing.T) {
	dir := t.TempDir()
	a, b := filepath.Join(dir, "a"), filepath.Join(dir, "b")
	writeFile(t, a, nil)
	writeFile(t, b, nil)
	for _, c := range []struct {
		x, y string
		want bool
	}{{a, a, true}, {a, b, false}, {a, filepath.Join(dir, "none"), false}, {filepath.Join(dir, "none"), a, false}} {
		if same, err := SameFile(c.x, c.y); same != c.want || err != nil {
			t.Errorf("SameFile(%s, %s) = %v, %v, want %v", c.x, c.y, same, err, c.want)
		}
	}
	for _, c := range [][2]string{{filepath.Join(a, "x"), b}, {a, filepath.Join(b, "x")}} {
		if _, err := SameFile(c[0], c[1]); err == nil {
			t.Errorf("SameFile(%s): no error", c)
		}
	}
}

func TestTwoRunsIntoOneOutput(t *testing.T) {
	if runtime.GOOS == "windows" {
		t.Skip("no locks on this system")
	}
	meta, tensors, data := testModel(t)
	path := filepath.Join(t.TempDir(), "m.gguf")
	l := mustLayout(t, meta, tensors, LayoutOptions{MaxShardTensors: 2})
	w, err := l.Create(path, CreateOptions{})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := l.Create(path, CreateOptions{}); err == nil || !strings.Contains(err.Error(), "another run") {
		t.Fatalf("second run: error %v, want a refusal", err)
	}
	if err := errors.Join(fill(w, data), w.Commit()); err != nil {
		t.Fatal(err)
	}
	// A part file left by a killed run is taken over.
	writeFile(t, l.Paths(path)[0]+".part", bytes.Repeat([]byte("rest"), 10000))
	w, err = l.Create(path, CreateOptions{})
	if err != nil {
		t.Fatal(err)
	}
	if err := errors.Join(fill(w, data), w.Commit()); err != nil {
		t.Fatal(err)
	}
	checkModel(t, l.Paths(path)[0], meta, tensors, data)
}

// If one shard cannot get its name, none keeps it.
func TestCommitTakesBackNames(t *testing.T) {
	meta, tensors, data := testModel(t)
	dir := t.TempDir()
	path := filepath.Join(dir, "m.gguf")
	l := mustLayout(t, meta, tensors, LayoutOptions{MaxShardTensors: 2})
	w, err := l.Create(path, CreateOptions{})
	if err != nil {
		t.Fatal(err)
	}
	if err := fill(w, data); err != nil {
		t.Fatal(err)
	}
	blocked := l.Paths(path)[0]
	if err := os.Mkdir(blocked, 0o777); err != nil {
		t.Fatal(err)
	}
	if err := w.Commit(); err == nil {
		t.Fatal("a folder was replaced")
	}
	w.Abort()
	if left := listDir(t, dir); len(left) != 1 || left[0] != filepath.Base(blocked) {
		t.Errorf("left behind: %q", left)
	}
}

func TestFullDisk(t *testing.T) {
	meta := &Metadata{}
	huge := []TensorInfo{{"a", F32, []int64{1 << 30, 1 << 20}}}
	dir := t.TempDir()
	hl := mustLayout(t, meta, huge, LayoutOptions{})
	_, err := hl.Create(filepath.Join(dir, "m.gguf"), CreateOptions{})
	if !errors.Is(err, syscall.ENOSPC) || !strings.Contains(err.Error(), fmt.Sprintf("needs %d bytes", hl.Size())) || !strings.Contains(err.Error(), dir) {
		t.Errorf("error %v, want ENOSPC with path, needed and available bytes", err)
	}
	if left := listDir(t, dir); len(left) > 0 {
		t.Errorf("left behind: %q", left)
	}
	// What a write that meets a full disk reports.
	l := mustLayout(t, meta, nil, LayoutOptions{})
	w := &Writer{layout: l}
	p := &partFile{final: filepath.Join(dir, "m.gguf")}
	if err := w.describe(p, 12345, &os.PathError{Op: "write", Path: "x", Err: syscall.ENOSPC}); !errors.Is(err, syscall.ENOSPC) || !strings.Contains(err.Error(), "needs 12345 bytes") {
		t.Errorf("error %v", err)
	}
	if err := w.describe(p, 1, syscall.EIO); !errors.Is(err, syscall.EIO) || !strings.Contains(err.Error(), p.final) {
		t.Errorf("error %v", err)
	}
}

// llama.cpp's own tool reads a split set, and its split is read.
func TestSplitOracle(t *testing.T) {
	bin := os.Getenv("WINNOW_ORACLE")
	if bin == "" {
		t.Skip("extra test: WINNOW_ORACLE does not name a folder with llama-gguf-split")
	}
	run := func(args ...string) {
		cmd := exec.Command(filepath.Join(bin, "llama-gguf-split"), args...)
		cmd.Env = append(os.Environ(), "LD_LIBRARY_PATH="+bin)
		if out, err := cmd.CombinedOutput(); err != nil {
			t.Fatalf("%v: %s", err, out)
		}
	}
	ref := filepath.Join(fixtures.Family(t, "deepseek_v3"), "ref-bf16.gguf")
	want, err := Open(ref)
	if err != nil {
		t.Fatal(err)
	}
	defer want.Close()
	dir := t.TempDir()
	ours, merged, theirs := filepath.Join(dir, "ours.gguf"), filepath.Join(dir, "merged.gguf"), filepath.Join(dir, "theirs")
	l := mustLayout(t, want.Metadata(), want.Tensors(), LayoutOptions{MaxShardTensors: 10})
	for i, b := range inMemory(t, l, want) {
		writeFile(t, l.Paths(ours)[i], b)
	}
	run("--merge", l.Paths(ours)[0], merged)
	run("--split", "--split-max-tensors", "7", ref, theirs)
	theirSet, err := filepath.Glob(theirs + "-*")
	if err != nil || len(theirSet) < 2 {
		t.Fatalf("split set %q, error %v", theirSet, err)
	}
	for _, p := range []string{merged, l.Paths(ours)[1], theirSet[1]} {
		got, err := Open(p)
		if err != nil {
			t.Fatal(err)
		}
		compareModels(t, p, got, want)
		got.Close()
	}
}

func compareModels(t *testing.T, name string, got, want Model) {
	t.Helper()
	for _, k := range want.Metadata().Keys() {
		g, _ := got.Metadata().Get(k)
		if w, _ := want.Metadata().Get(k); !reflect.DeepEqual(g, w) {
			t.Errorf("%s: key %q differs", name, k)
		}
	}
	if !reflect.DeepEqual(got.Tensors(), want.Tensors()) {
		t.Errorf("%s: tensors differ", name)
	}
	for i, ti := range want.Tensors() {
		w, err1 := want.Rows(t.Context(), i, 0, ti.Rows(), nil)
		g, err2 := got.Rows(t.Context(), i, 0, ti.Rows(), nil)
		if err1 != nil || err2 != nil || !bytes.Equal(g, w) {
			t.Errorf("%s: data of %q differs (%v, %v)", name, ti.Name, err1, err2)
		}
	}
}

// Any division keeps order, limits and density.
func TestDivision(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		sizes := rapid.SliceOfN(rapid.Int64Range(0, 300), 0, 40).Draw(t, "sizes")
		opt := LayoutOptions{MaxShardBytes: rapid.Int64Range(0, 500).Draw(t, "bytes"), MaxShardTensors: rapid.IntRange(0, 10).Draw(t, "tensors")}
		tensors := make([]TensorInfo, len(sizes))
		for i, n := range sizes {
			tensors[i] = TensorInfo{fmt.Sprint("t", i), I8, []int64{n}}
		}
		l, err := NewLayout(&Metadata{}, tensors, opt)
		if err != nil {
			t.Fatal(err)
		}
		counts, bytes := make([]int, l.Shards()), make([]int64, l.Shards())
		prev := 0
		for i := range tensors {
			s, off := l.Place(i)
			if s < prev || s > prev+1 || off%32 != 0 || off+sizes[i] > l.ShardSize(s) {
				t.Fatalf("tensor %d: shard %d after %d, offset %d", i, s, prev, off)
			}
			prev = s
			counts[s]++
			bytes[s] += sizes[i]
		}
		for s := range counts {
			if opt.MaxShardTensors > 0 && counts[s] > opt.MaxShardTensors || opt.MaxShardBytes > 0 && counts[s] > 1 && bytes[s] > opt.MaxShardBytes {
				t.Fatalf("shard %d: %d tensors, %d bytes", s, counts[s], bytes[s])
			}
		}
	})
}
