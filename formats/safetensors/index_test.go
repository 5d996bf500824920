package safetensors

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"runtime"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"
	"unicode/utf8"

	"github.com/google/go-cmp/cmp"
	"github.com/winnow-moe/winnow/formats/dtype"
	"github.com/winnow-moe/winnow/testdata/fixtures"
)

// linkText matches the content of files of the corpus that stand for links:
// the archive holds the target in place of the link.
var linkText = regexp.MustCompile(`^(\.\./\.\./blobs/[0-9a-f]{64}|/etc/hostname|model\.safetensors)$`)

// withLinks copies a folder of the corpus and makes its links real.
func withLinks(t *testing.T, src string) string {
	dst := filepath.Join(t.TempDir(), "c")
	if err := os.CopyFS(dst, os.DirFS(src)); err != nil {
		t.Fatal(err)
	}
	err := filepath.WalkDir(dst, func(path string, d fs.DirEntry, err error) error {
		if err != nil || !d.Type().IsRegular() {
			return err
		}
		text, err := os.ReadFile(path)
		if err != nil || !linkText.Match(text) {
			return err
		}
		if err := os.Remove(path); err != nil {
			return err
		}
		return os.Symlink(filepath.FromSlash(string(text)), path)
	})
	if err != nil {
		t.Skipf("no symbolic links here: %v", err)
	}
	return dst
}

func TestBadIndexes(t *testing.T) {
	dir, cases := badCases(t, "index")
	for _, c := range cases {
		t.Run(c.ID, func(t *testing.T) {
			ckpt, err := Open(filepath.Join(withLinks(t, filepath.Join(dir, c.Path)), c.Entry))
			c.check(t, err)
			if err == nil {
				defer ckpt.Close()
				wantWarning := strings.Contains(c.ID, "total-size") // all of them are wrong
				if (len(ckpt.Warnings()) > 0) != wantWarning {
					t.Errorf("warnings: %q", ckpt.Warnings())
				}
			} else if !errors.Is(err, ErrFormat) && !errors.Is(err, fs.ErrNotExist) {
				t.Errorf("%v is not ErrFormat", err)
			}
		})
	}
}

// TestBadCheckpoints runs the cases whose fault is one of files; the others
// have faults that only a reader of the model can see, and must open.
func TestBadCheckpoints(t *testing.T) {
	own := []string{
		"pickle-only", "pickle-zip", "no-weights", "lfs-pointer", "truncated", "lora-only", "path-is-file", "link-loop",
	}
	dir, cases := badCases(t, "checkpoint")
	for _, c := range cases {
		t.Run(c.ID, func(t *testing.T) {
			path := filepath.Join(dir, c.Path)
			if st, err := os.Stat(path); err == nil && st.IsDir() {
				path = withLinks(t, path)
			}
			ckpt, err := Open(path)
			if !slices.Contains(own, strings.TrimPrefix(c.ID, "g-ckpt-")) {
				c.Expect = "ok"
			}
			c.check(t, err)
			if err == nil {
				ckpt.Close()
			}
		})
	}
}

func TestErrorsDoNotQuoteForeignFiles(t *testing.T) {
	dir := t.TempDir()
	write(t, dir, "secret", "root:x:0:0:topsecret passphrase and more of it")
	if err := os.Symlink(filepath.Join(dir, "secret"), filepath.Join(dir, singleName)); err != nil {
		t.Skip(err)
	}
	if _, err := Open(dir); err == nil || strings.Contains(err.Error(), "topsecret") || strings.Contains(err.Error(), "root") {
		t.Errorf("got %v", err)
	}
}

func write(t *testing.T, dir, name, text string) {
	t.Helper()
	if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
}

func TestOpenRefuses(t *testing.T) {
	tiny := string(file(`{"a":{"dtype":"U8","shape":[1],"data_offsets":[0,1]}}`, 1))
	pair := string(file(`{"a":{"dtype":"U8","shape":[1],"data_offsets":[0,1]},"b":{"dtype":"U8","shape":[1],"data_offsets":[1,2]}}`, 2))
	shards := func(n int) string {
		list := make([]string, n)
		for i := range list {
			list[i] = fmt.Sprintf(`"t%d":"%02d.safetensors"`, i, i)
		}
		return `{"weight_map":{` + strings.Join(list, ",") + "}}"
	}
	for _, c := range []struct {
		name  string
		files map[string]string
		hint  string
	}{
		{"empty map", map[string]string{indexName: `{"weight_map":{}}`}, "empty"},
		{"map in wrong case", map[string]string{indexName: `{"Weight_Map":{}}`}, "only in case"},
		{"trailing text", map[string]string{indexName: `{"weight_map":{}} x`}, "trailing data after the value"},
		{"empty index", map[string]string{indexName: ""}, "text ends where an object is wanted"},
		{"HTML as index", map[string]string{indexName: "<html>"}, "HTML"},
		{"LFS pointer as index", map[string]string{indexName: "version https://git-lfs.github.com/spec/v1\n"}, "git lfs pull"},
		{"two shards missing", map[string]string{indexName: `{"weight_map":{"a":"1.safetensors","b":"2.safetensors"}}`}, `2 of 2 shards are missing: "1.safetensors", "2.safetensors"`},
		{"twelve shards missing", map[string]string{indexName: shards(12)}, `12 of 12 shards are missing: "00.safetensors", "01.safetensors"`},
		{"list cut", map[string]string{indexName: shards(12)}, `"09.safetensors" and 2 more`},
		{"one shard missing", map[string]string{indexName: shards(3), "00.safetensors": tiny, "02.safetensors": tiny}, `shard 2 of 3, "01.safetensors", is missing`},
		{"unlisted", map[string]string{indexName: `{"weight_map":{"x":"1.safetensors"}}`, "1.safetensors": pair}, `2 tensors of the shards are not listed in weight_map: "a", "b"`},
		{"ghosts", map[string]string{indexName: `{"weight_map":{"a":"1.safetensors","y":"1.safetensors","z":"1.safetensors"}}`, "1.safetensors": tiny},
			`weight_map lists 2 tensors that are missing in their shards: "y", "z"`},
		{"subfolder", map[string]string{indexName: `{"weight_map":{"a":"x/1.safetensors"}}`}, "outside"},
		{"NUL", map[string]string{indexName: `{"weight_map":{"a":"1\u0000.safetensors"}}`}, "outside"},
		{"dots", map[string]string{indexName: `{"weight_map":{"a":".."}}`}, "outside"},
		{"ambiguous", map[string]string{indexName: `{"weight_map":{"a":"1.safetensors"}}`, "1.safetensors": tiny, singleName: tiny}, "ambiguous"},
		{"odd name", map[string]string{"weights.safetensors": tiny}, "neither"},
	} {
		dir := t.TempDir()
		for name, text := range c.files {
			write(t, dir, name, text)
		}
		if _, err := Open(dir); !errors.Is(err, ErrFormat) || !strings.Contains(err.Error(), c.hint) {
			t.Errorf("%s: got %v, want ErrFormat with %q", c.name, err, c.hint)
		}
	}
	if _, err := Open(filepath.Join(t.TempDir(), "none")); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("missing folder: %v", err)
	}
	dir := t.TempDir()
	if err := os.Mkdir(filepath.Join(dir, indexName), 0o700); err != nil {
		t.Fatal(err)
	}
	if _, err := Open(dir); err == nil || !strings.Contains(err.Error(), "regular") {
		t.Errorf("folder as index: %v", err)
	}
}

func TestOpenLinks(t *testing.T) {
	dir := t.TempDir()
	if err := os.Symlink("../blobs/none", filepath.Join(dir, singleName)); err != nil {
		t.Skip(err)
	}
	if _, err := Open(dir); !errors.Is(err, ErrFormat) || !strings.Contains(err.Error(), "incomplete") {
		t.Errorf("dangling link: %v", err)
	}
	if runtime.GOOS != "linux" {
		return
	}
	dir = t.TempDir()
	if err := os.Symlink(os.DevNull, filepath.Join(dir, singleName)); err != nil {
		t.Fatal(err)
	}
	if _, err := Open(dir); !errors.Is(err, ErrFormat) || !strings.Contains(err.Error(), "not a regular file") {
		t.Errorf("device: %v", err)
	}
}

func TestLeftOutWarning(t *testing.T) {
	dir := t.TempDir()
	write(t, dir, singleName, string(file(`{}`, 0)))
	write(t, dir, "model-00001-of-00002.safetensors", "left over")
	write(t, dir, "logits.safetensors", "something else")
	c, err := Open(dir)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	if w := c.Warnings(); len(w) != 1 || !strings.Contains(w[0], "00001-of-00002") {
		t.Errorf("warnings %q", w)
	}
}

// TestIndexOfSingleFile: an index that only names model.safetensors is not ambiguous.
func TestIndexOfSingleFile(t *testing.T) {
	dir := t.TempDir()
	write(t, dir, singleName, string(file(`{"a":{"dtype":"U8","shape":[1],"data_offsets":[0,1]}}`, 1)))
	write(t, dir, "model-00001-of-00002.safetensors", "left over")
	write(t, dir, indexName, `{"metadata":{"total_size":1.0,"x":{}},"weight_map":{"a":"model.safetensors"},"more":[1]}`)
	c, err := Open(dir)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	if w := c.Warnings(); len(w) != 1 || !strings.Contains(w[0], "00001-of-00002") {
		t.Errorf("warnings %q", w)
	}
	if diff := cmp.Diff([]FileInfo{{filepath.Join(dir, singleName), 8 + 53 + 1}}, c.Files()); diff != "" {
		t.Error(diff)
	}
}

func TestMetadataOddities(t *testing.T) {
	for text, warn := range map[string]bool{
		`null`: false, `{}`: false, `{"total_size":"x"}`: true, `{"total_size":2}`: true, `{"total_size":1}`: false,
		`{"total_size":1e999}`: true,
	} {
		dir := t.TempDir()
		write(t, dir, singleName, string(file(`{"a":{"dtype":"U8","shape":[1],"data_offsets":[0,1]}}`, 1)))
		write(t, dir, indexName, `{"metadata":`+text+`,"weight_map":{"a":"model.safetensors"}}`)
		c, err := Open(dir)
		if err != nil {
			t.Fatal(err)
		}
		if (len(c.Warnings()) == 1) != warn {
			t.Errorf("%s: warnings %q", text, c.Warnings())
		}
		c.Close()
	}
}

// TestFamilies opens checkpoints that the reference library wrote. It also
// writes each header anew: the layout must be the library's, byte for byte.
func TestFamilies(t *testing.T) {
	for _, name := range []string{"deepseek_v3", "deepseek_v3_fp8", "gpt_oss", "qwen3_next", "llama"} {
		dir := fixtures.Family(t, name)
		c, err := Open(dir)
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
		if !slices.IsSortedFunc(c.Tensors(), func(a, b Tensor) int { return strings.Compare(a.Name, b.Name) }) {
			t.Errorf("%s: tensors are not sorted", name)
		}
		l, err := NewLayout(c.Tensors(), c.Metadata(), 0)
		if err != nil {
			t.Fatal(err)
		}
		data, err := os.ReadFile(c.Files()[0].Path)
		if err != nil {
			t.Fatal(err)
		}
		if want := data[:len(l.headers[0])]; string(l.headers[0]) != string(want) {
			t.Errorf("%s: header differs:\n%.300q\n%.300q", name, l.headers[0], want)
		}
	}
}

func TestCheckpoint(t *testing.T) {
	dir := fixtures.Family(t, "deepseek_v3_fp8")
	c, err := Open(dir)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	const name = "model.layers.0.self_attn.kv_a_proj_with_mqa.weight"
	i, ok := c.Lookup(name)
	if !ok || c.Tensors()[i].Name != name || c.Tensors()[i].DType != dtype.F8E4M3 {
		t.Fatalf("Lookup: %d, %v, %v", i, ok, c.Tensors()[i])
	}
	if _, ok := c.Lookup(name + "x"); ok {
		t.Error("found what is not there")
	}
	tensor := c.Tensors()[i]
	whole, err := os.ReadFile(c.Files()[tensor.Shard].Path)
	if err != nil {
		t.Fatal(err)
	}
	want := whole[tensor.Offset:][:tensor.Size]
	var wg sync.WaitGroup
	for k := range int64(8) {
		wg.Go(func() {
			off := tensor.Size / 8 * k
			p := make([]byte, tensor.Size/8)
			if err := c.ReadAt(i, off, p); err != nil || string(p) != string(want[off:][:len(p)]) {
				t.Errorf("ReadAt %d: %v", off, err)
			}
		})
	}
	wg.Wait()
	for _, c2 := range [][2]int64{{-1, 1}, {0, tensor.Size + 1}, {tensor.Size, 1}, {1 << 62, 1}} {
		if err := c.ReadAt(i, c2[0], make([]byte, c2[1])); err == nil || !strings.Contains(err.Error(), name) {
			t.Errorf("ReadAt%v: %v", c2, err)
		}
	}
}

func TestShortRead(t *testing.T) {
	path := filepath.Join(t.TempDir(), "x.safetensors")
	data := file(`{"a":{"dtype":"U8","shape":[9],"data_offsets":[0,9]}}`, 9)
	if err := os.WriteFile(path, data, 0o600); err != nil {
		t.Fatal(err)
	}
	c, err := OpenFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.Truncate(path, int64(len(data)-4)); err != nil {
		t.Fatal(err)
	}
	err = c.ReadAt(0, 0, make([]byte, 9))
	if err == nil || !strings.Contains(err.Error(), `"a"`) || !strings.Contains(err.Error(), path) || !strings.Contains(err.Error(), "unexpected EOF") {
		t.Errorf("got %v", err)
	}
	if err := errors.Join(c.Close(), c.Close()); err != nil {
		t.Error(err)
	}
	if err := c.ReadAt(0, 0, make([]byte, 1)); !errors.Is(err, os.ErrClosed) {
		t.Errorf("after Close: %v", err)
	}
}

// FuzzIndex: no panic; what parses is what encoding/json reads, with safe names.
func FuzzIndex(f *testing.F) {
	f.Add([]byte(`{"metadata":{"total_size":3},"weight_map":{"a":"model-1.safetensors","b":"model-2.safetensors"}}`))
	f.Add([]byte(`{"weight_map":{"a":"../x.safetensors"}}`))
	f.Add([]byte(`{"weight_map":{"a":"x.safetensors","a":"y.safetensors"}}`))
	f.Fuzz(func(t *testing.T, data []byte) {
		ix, err := parseIndex(data)
		if err != nil {
			return
		}
		var want struct {
			Map map[string]string `json:"weight_map"`
		}
		if err := json.Unmarshal(data, &want); err != nil {
			t.Fatalf("encoding/json refuses it: %v", err)
		}
		got := map[string]string{}
		for tensor, i := range ix.shard {
			got[tensor] = ix.files[i]
		}
		if diff := cmp.Diff(want.Map, got); diff != "" {
			t.Fatal(diff)
		}
		for _, name := range ix.files {
			if !filepath.IsLocal(name) || filepath.Base(name) != name || !utf8.ValidString(name) {
				t.Fatalf("name %q", name)
			}
		}
	})
}

// TestRealLayout opens a large checkpoint, such as one of true size with holes
// for data, and reports what it takes.
func TestRealLayout(t *testing.T) {
	dir := os.Getenv("WINNOW_REAL_CHECKPOINT")
	if dir == "" {
		t.Skip("extra test: WINNOW_REAL_CHECKPOINT names no checkpoint folder")
	}
	var before, after runtime.MemStats
	runtime.ReadMemStats(&before)
	start := time.Now()
	c, err := Open(dir)
	took := time.Since(start)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	runtime.ReadMemStats(&after)
	t.Logf("%d tensors in %d files in %v; %d MB from the system, %d MB allocated in all; warnings %q", len(c.Tensors()), len(c.Files()),
		took, after.Sys>>20, (after.TotalAlloc-before.TotalAlloc)>>20, c.Warnings())
}
