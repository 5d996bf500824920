package gguf

import (
	"bytes"
	"encoding/binary"
	"errors"
	"io"
	"math"
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"testing"
	"testing/iotest"
)

// raw builds file bytes by hand, independently of the writer under test.
type raw struct{ bytes.Buffer }

func (r *raw) le(vs ...any) *raw {
	for _, v := range vs {
		if err := binary.Write(&r.Buffer, binary.LittleEndian, v); err != nil {
			panic(err)
		}
	}
	return r
}

func (r *raw) str(s string) *raw { r.le(uint64(len(s))); r.WriteString(s); return r }

func (r *raw) head(version uint32, tensors, keys uint64) *raw {
	r.WriteString("GGUF")
	return r.le(version, tensors, keys)
}

func (r *raw) key(name string, t uint32) *raw { return r.str(name).le(t) }

func (r *raw) tensor(name string, typ uint32, off uint64, shape ...uint64) *raw {
	r.str(name).le(uint32(len(shape)))
	for _, n := range shape {
		r.le(n)
	}
	return r.le(typ, off)
}

// pad pads to 32 bytes and appends n bytes of data.
func (r *raw) pad(n int) *raw {
	for r.Len()%32 != 0 {
		r.WriteByte(0)
	}
	for i := range n {
		r.WriteByte(byte(i))
	}
	return r
}

func (r *raw) parse() (*Directory, error) {
	return Parse(bytes.NewReader(r.Bytes()), int64(r.Len()), "test.gguf")
}

func TestParseValues(t *testing.T) {
	r := new(raw).head(3, 0, 20)
	r.key("u8", 0).le(uint8(200)).key("i8", 1).le(int8(-5))
	r.key("u16", 2).le(uint16(65535)).key("i16", 3).le(int16(-300))
	r.key("u32", 4).le(uint32(1<<31)).key("i32", 5).le(int32(-1 << 31))
	r.key("f32", 6).le(float32(1.5)).key("bool", 7).le(uint8(1)).key("str", 8).str("héllo")
	r.key("u64", 10).le(uint64(math.MaxUint64)).key("i64", 11).le(int64(math.MinInt64)).key("f64", 12).le(math.Pi)
	r.key("a.u8", 9).le(uint32(0), uint64(3), []uint8{1, 2, 3})
	r.key("a.i16", 9).le(uint32(3), uint64(2), []int16{-1, 2})
	r.key("a.bool", 9).le(uint32(7), uint64(2), []uint8{0, 1})
	r.key("a.str", 9).le(uint32(8), uint64(2)).str("").str("x")
	r.key("a.f64", 9).le(uint32(12), uint64(1), 2.5)
	r.key("a.empty", 9).le(uint32(5), uint64(0))
	r.key("a.a", 9).le(uint32(9), uint64(2)).le(uint32(5), uint64(1), int32(7)).le(uint32(8), uint64(1)).str("in")
	r.key("invalid.utf8.value", 8).str("\xff")
	d, err := r.parse()
	if err != nil {
		t.Fatal(err)
	}
	want := map[string]any{
		"u8": uint8(200), "i8": int8(-5), "u16": uint16(65535), "i16": int16(-300), "u32": uint32(1 << 31), "i32": int32(-1 << 31),
		"f32": float32(1.5), "bool": true, "str": "héllo", "u64": uint64(math.MaxUint64), "i64": int64(math.MinInt64), "f64": math.Pi,
		"a.u8": []uint8{1, 2, 3}, "a.i16": []int16{-1, 2}, "a.bool": []bool{false, true}, "a.str": []string{"", "x"}, "a.f64": []float64{2.5},
		"a.empty": []int32{}, "a.a": []Nested{{[]int32{7}}, {[]string{"in"}}}, "invalid.utf8.value": "\xff",
	}
	if d.Metadata.Len() != len(want) {
		t.Errorf("%d keys, want %d", d.Metadata.Len(), len(want))
	}
	for k, w := range want {
		if v, _ := d.Metadata.Get(k); !reflect.DeepEqual(v, w) {
			t.Errorf("%s = %#v, want %#v", k, v, w)
		}
	}
	if len(d.Warnings) != 1 || !strings.Contains(d.Warnings[0], "a.a") {
		t.Errorf("warnings %q, want one about a.a", d.Warnings)
	}
}

func TestParseTensors(t *testing.T) {
	r := new(raw).head(2, 3, 0)
	r.tensor("second", 0, 32, 2, 3).tensor("empty", 2, 0, 32, 0).tensor("first", 2, 0, 32).pad(32 + 24 + 8 + 5)
	d, err := r.parse()
	if err != nil {
		t.Fatal(err)
	}
	if d.Version != 2 || d.Alignment != 32 || d.DataOffset%32 != 0 {
		t.Errorf("version %d, alignment %d, data at %d", d.Version, d.Alignment, d.DataOffset)
	}
	wantOffsets := []int64{d.DataOffset + 32, d.DataOffset, d.DataOffset}
	if !reflect.DeepEqual(d.Offsets, wantOffsets) {
		t.Errorf("offsets %d, want %d", d.Offsets, wantOffsets)
	}
	if d.Tensors[0].Size() != 24 || d.Tensors[1].Size() != 0 || d.Tensors[2].Size() != 18 {
		t.Errorf("sizes of %v are wrong", d.Tensors)
	}
	if len(d.Warnings) != 1 || !strings.Contains(d.Warnings[0], "5 extra bytes") {
		t.Errorf("warnings %q, want one about 5 extra bytes", d.Warnings)
	}
}

// The corpus of bad files covers most refusals; these are those it lacks.
func TestParseRefuses(t *testing.T) {
	long := new(raw).head(3, 0, 1).key("k", 9)
	for range maxNesting {
		long.le(uint32(9), uint64(1))
	}
	long.le(uint32(0), uint64(0)).pad(64)
	cases := []struct {
		name string
		r    *raw
		want string
	}{
		{"html", text("\n<!DOCTYPE html><html>"), "web page"},
		{"zip", text("PK\x03\x04rest of it"), "zip archive"},
		{"gzip", text("\x1f\x8b\x08 rest"), "gzip"},
		{"ggml", text("lmgg rest"), "old ggml"},
		{"ggmf", text("fmgg rest"), "old ggmf"},
		{"ggla", text("algg rest"), "old ggla"},
		{"safetensors", text("\x40\x00\x00\x00\x00\x00\x00\x00{\"a\""), "safetensors"},
		{"control characters", text("\x1b[2J garbage"), `"\x1b[2J"`},
		{"nul in tensor name", new(raw).head(3, 1, 0).tensor("a\x00b", 0, 0, 1).pad(32), "NUL"},
		{"utf-8 in key", new(raw).head(3, 0, 1).key("\xff\xfe", 0).le(uint8(1)).pad(8), "UTF-8"},
		{"nesting", long, "deeper than 4"},
		{"too many strings", new(raw).head(3, 0, 1).key("k", 9).le(uint32(8), uint64(maxStrings+1)).pad(64), "limit"},
		{"too many numbers", new(raw).head(3, 0, 1).key("k", 9).le(uint32(0), uint64(maxNumbers+1)).pad(64), "limit"},
		{"too many nested", new(raw).head(3, 0, 1).key("k", 9).le(uint32(9), uint64(maxStrings+1)).pad(64), "limit"},
		{"offset of 2^63", new(raw).head(3, 1, 0).tensor("a", 0, 1<<63, 1).pad(32), "beyond"},
		{"nested truncated", new(raw).head(3, 0, 1).key("k", 9).le(uint32(9), uint64(1), uint32(8)), "truncated"},
		{"bool array", new(raw).head(3, 0, 1).key("k", 9).le(uint32(7), uint64(2), uint8(1), uint8(9)), "0 or 1"},
	}
	for _, c := range cases {
		_, err := c.r.parse()
		if err == nil || !errors.Is(err, ErrFormat) || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%s: error %v, want ErrFormat with %q", c.name, err, c.want)
		}
	}
}

func text(s string) *raw {
	r := new(raw)
	r.WriteString(s)
	return r
}

// Every prefix of a good file is an error, and never a panic.
func TestParsePrefixes(t *testing.T) {
	r := new(raw).head(3, 2, 2).key("general.name", 8).str("x").key("a", 9).le(uint32(8), uint64(1)).str("t")
	r.tensor("a", 0, 0, 8).tensor("b", 8, 32, 32, 2).pad(32 + 68)
	if _, err := r.parse(); err != nil {
		t.Fatal(err)
	}
	for n := range r.Len() {
		if _, err := Parse(bytes.NewReader(r.Bytes()[:n]), int64(n), "x"); !errors.Is(err, ErrFormat) {
			t.Fatalf("prefix of %d bytes: error %v, want ErrFormat", n, err)
		}
	}
}

// sparse is a file of the given size with zeros after the bytes.
type sparse struct {
	bytes []byte
	size  int64
}

func (s sparse) ReadAt(p []byte, off int64) (int, error) {
	n := int(min(int64(len(p)), s.size-off))
	clear(p[:n])
	if off < int64(len(s.bytes)) {
		copy(p[:n], s.bytes[off:])
	}
	if n < len(p) {
		return n, io.EOF
	}
	return n, nil
}

func TestParseBeyond4GiB(t *testing.T) {
	const rows = 3 << 20
	r := new(raw).head(3, 2, 0).tensor("big", 0, 0, 1024, rows).tensor("after", 24, rows*4096, 7).pad(0)
	size := int64(r.Len()) + rows*4096 + 32
	d, err := Parse(sparse{r.Bytes(), size}, size, "big.gguf")
	if err != nil {
		t.Fatal(err)
	}
	if want := int64(r.Len()) + rows*4096; d.Offsets[1] != want {
		t.Errorf("offset %d, want %d", d.Offsets[1], want)
	}
}

// A long string crosses chunks and is read on its own.
func TestParseLongValues(t *testing.T) {
	s := strings.Repeat("winnow ", 2*chunkBytes/7)
	numbers := make([]uint32, chunkBytes)
	for i := range numbers {
		numbers[i] = uint32(i) * 2654435761
	}
	r := new(raw).head(3, 0, 3).key("s", 8).str(s).key("n", 9).le(uint32(4), uint64(len(numbers)), numbers).key("last", 0).le(uint8(7))
	d, err := r.parse()
	if err != nil {
		t.Fatal(err)
	}
	if v, _ := d.Metadata.String("s"); v != s {
		t.Error("long string differs")
	}
	if v, _ := d.Metadata.Get("n"); !reflect.DeepEqual(v, numbers) {
		t.Error("long array differs")
	}
	if v, _ := d.Metadata.Int("last"); v != 7 {
		t.Errorf("last = %d, want 7", v)
	}
}

func TestParseReadErrors(t *testing.T) {
	r := new(raw).head(3, 0, 1).key("k", 8).str("value")
	broken := readerAtFunc(func([]byte, int64) (int, error) { return 0, iotest.ErrTimeout })
	if _, err := Parse(broken, int64(r.Len()), "x"); !errors.Is(err, iotest.ErrTimeout) || errors.Is(err, ErrFormat) {
		t.Errorf("error %v, want the reader's own", err)
	}
	// The file became shorter after its size was taken.
	if _, err := Parse(bytes.NewReader(r.Bytes()), int64(r.Len())+100, "x"); !errors.Is(err, io.ErrUnexpectedEOF) {
		t.Errorf("error %v, want unexpected EOF", err)
	}
}

type readerAtFunc func([]byte, int64) (int, error)

func (f readerAtFunc) ReadAt(p []byte, off int64) (int, error) { return f(p, off) }

func TestOpenRefuses(t *testing.T) {
	dir := t.TempDir()
	unsplit := filepath.Join(dir, "a-00001-of-00002.gguf")
	writeFile(t, unsplit, new(raw).head(3, 0, 0).Bytes())
	for path, want := range map[string]string{
		dir:                               "is a folder",
		filepath.Join(dir, "absent.gguf"): "no such file",
		unsplit:                           "split.count is missing",
		os.DevNull:                        "not a regular file",
	} {
		if _, err := Open(path); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%q: error %v, want %q", path, err, want)
		}
	}
}

func writeFile(t *testing.T, path string, b []byte) {
	t.Helper()
	if err := os.WriteFile(path, b, 0o666); err != nil {
		t.Fatal(err)
	}
}

func TestSplitKeysMissing(t *testing.T) {
	for name, part := range map[string]*raw{
		"split.no is missing":            new(raw).head(3, 0, 2).key("split.count", 2).le(uint16(2)).key("split.tensors.count", 5).le(int32(0)),
		"split.tensors.count is missing": new(raw).head(3, 0, 2).key("split.count", 2).le(uint16(2)).key("split.no", 2).le(uint16(0)),
		"split.no has type":              new(raw).head(3, 0, 1).key("split.no", 5).le(int32(0)),
		"split.tensors.count has type":   new(raw).head(3, 0, 1).key("split.tensors.count", 2).le(uint16(0)),
	} {
		path := filepath.Join(t.TempDir(), "m-00001-of-00002.gguf")
		writeFile(t, path, part.Bytes())
		if _, err := Open(path); !errors.Is(err, ErrFormat) || !strings.Contains(err.Error(), name) {
			t.Errorf("error %v, want %q", err, name)
		}
	}
}

// A merged file of llama-gguf-split keeps split keys with a count of 0.
func TestOpenMerged(t *testing.T) {
	r := new(raw).head(3, 1, 3).key("split.no", 2).le(uint16(0)).key("split.count", 2).le(uint16(0)).key("split.tensors.count", 5).le(int32(9))
	r.tensor("t", 0, 0, 8).pad(32)
	path := filepath.Join(t.TempDir(), "merged.gguf")
	writeFile(t, path, r.Bytes())
	f, err := Open(path)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if f.Metadata().Len() != 0 {
		t.Errorf("metadata keeps %q", f.Metadata().Keys())
	}
}

func TestOpenWarnings(t *testing.T) {
	dir := t.TempDir()
	for i := range 2 {
		r := new(raw).head(3, 1, 4).key("split.no", 2).le(uint16(i)).key("split.count", 2).le(uint16(2)).key("split.tensors.count", 5).le(int32(2))
		r.key([]string{"a", "b"}[i], 0).le(uint8(1)).tensor([]string{"t", "u"}[i], 0, 0, 1).pad(4)
		writeFile(t, filepath.Join(dir, []string{"m-00001-of-00002.gguf", "m-00002-of-00002.gguf"}[i]), r.Bytes())
	}
	f, err := Open(filepath.Join(dir, "m-00002-of-00002.gguf"))
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	all := strings.Join(f.Warnings, "\n")
	if len(f.Warnings) != 3 || !strings.Contains(all, `key "b" is ignored`) || !strings.Contains(all, "not padded") {
		t.Errorf("warnings:\n%s", all)
	}
}

func TestRows(t *testing.T) {
	r := new(raw).head(3, 2, 0).tensor("a", 24, 0, 4, 8).tensor("none", 0, 32, 0).pad(32)
	data := r.Bytes()[r.Len()-32:]
	path := filepath.Join(t.TempDir(), "m.gguf")
	writeFile(t, path, r.Bytes())
	for name, open := range map[string]func(string) (*File, error){"mapped": Open, "unmapped": OpenUnmapped} {
		f, err := open(path)
		if err != nil {
			t.Fatal(err)
		}
		buf := make([]byte, 0, 64)
		b, err := f.Rows(t.Context(), 0, 2, 3, buf)
		if err != nil || !bytes.Equal(b, data[8:20]) {
			t.Errorf("%s: rows are %v, error %v, want %v", name, b, err, data[8:20])
		}
		if cap(b) != len(b) && name == "mapped" {
			t.Errorf("%s: a view can be extended beyond the rows", name)
		}
		f.Release(0)
		if b, err := f.Rows(t.Context(), 0, 0, 8, nil); err != nil || !bytes.Equal(b, data) {
			t.Errorf("%s: after Release: %v, error %v", name, b, err)
		}
		for _, at := range [][2]int64{{-1, 1}, {0, 9}, {8, 1}, {1, -1}, {1, math.MaxInt64}} {
			if _, err := f.Rows(t.Context(), 0, at[0], at[1], buf); err == nil {
				t.Errorf("%s: rows %d: no error", name, at)
			}
		}
		if b, err := f.Rows(t.Context(), 1, 0, 1, buf); err != nil || len(b) != 0 {
			t.Errorf("%s: empty tensor: %v, error %v", name, b, err)
		}
		if err := f.Close(); err != nil {
			t.Errorf("%s: close: %v", name, err)
		}
		if _, err := f.Rows(t.Context(), 0, 0, 1, buf); err == nil {
			t.Errorf("%s: rows after Close: no error", name)
		}
	}
}

// A file that shrinks under a streaming reader is an error.
func TestRowsOfShrunkFile(t *testing.T) {
	r := new(raw).head(3, 1, 0).tensor("a", 24, 0, 4, 8).pad(32)
	path := filepath.Join(t.TempDir(), "m.gguf")
	writeFile(t, path, r.Bytes())
	f, err := OpenUnmapped(path)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if err := os.Truncate(path, int64(r.Len())-4); err != nil {
		t.Fatal(err)
	}
	if _, err := f.Rows(t.Context(), 0, 0, 8, nil); !errors.Is(err, io.ErrUnexpectedEOF) || !strings.Contains(err.Error(), `"a"`) {
		t.Errorf("error %v, want unexpected EOF with the tensor's name", err)
	}
}

func TestLargeViewsAreAdvised(t *testing.T) {
	n := uint64(2 * adviseBytes)
	r := new(raw).head(3, 1, 0).tensor("a", 24, 0, n).pad(int(n))
	path := filepath.Join(t.TempDir(), "m.gguf")
	writeFile(t, path, r.Bytes())
	f, err := Open(path)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	b, err := f.Rows(t.Context(), 0, 0, 1, nil)
	if err != nil || !bytes.Equal(b, r.Bytes()[r.Len()-int(n):]) {
		t.Errorf("%d bytes, error %v", len(b), err)
	}
}
