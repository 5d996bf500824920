package gguf

import (
	"bytes"
	"fmt"
	"io"
	"math"
	"slices"
	"strings"
)

// The layout of a file, little-endian throughout (ggml docs/gguf.md):
//
//	magic "GGUF" | u32 version | u64 tensors | u64 keys
//	keys     × { string key | u32 type | value }
//	tensors  × { string name | u32 dimensions | u64 each | u32 type | u64 offset }
//	padding to the alignment: here the data section starts
//	tensor data, each tensor at its offset from there, padded to the alignment
//
// A string is a u64 length and that many bytes; an array is a u32 element
// type, a u64 length and the elements.

// Directory is everything that a GGUF file holds before its tensor data.
type Directory struct {
	Name       string // the file, as messages call it
	Size       int64  // bytes of the whole file
	Version    uint32 // 2 or 3
	Metadata   *Metadata
	Tensors    []TensorInfo // in file order
	Offsets    []int64      // Offsets[i] is where tensor i starts, from the start of the file
	Alignment  int64
	DataOffset int64 // start of the data section
	// Warnings are oddities that readers tolerate, one sentence each.
	Warnings []string
}

// Parse reads and checks the directory of a GGUF file of the given size. It
// reads nothing of the tensor data. name is used in messages only.
//
// The tensors must cover the data section without overlap or hole, as ggml
// demands; unlike ggml, Parse accepts directory entries in another order than
// the data, extra bytes at the end, and a last tensor without padding.
func Parse(r io.ReaderAt, size int64, name string) (*Directory, error) {
	d := &decoder{r: r, name: name, size: size}
	dir := &Directory{Name: name, Size: size, Metadata: &Metadata{}}
	tensors, keys, err := d.head(dir)
	if err != nil {
		return nil, err
	}
	for i := range keys {
		if err := d.pair(dir, i); err != nil {
			return nil, err
		}
	}
	d.field = ""
	if dir.Alignment, err = alignmentOf(dir.Metadata); err != nil {
		return nil, d.fail("%s", err)
	}
	seen := map[string]bool{}
	for i := range tensors {
		if err := d.tensor(dir, i, seen); err != nil {
			return nil, err
		}
	}
	if err := d.extents(dir); err != nil {
		return nil, err
	}
	return dir, nil
}

// head reads the fixed part at the start of the file.
func (d *decoder) head(dir *Directory) (tensors, keys uint64, err error) {
	if d.size < int64(len(magic)) {
		if d.size == 0 {
			return 0, 0, d.fail("file is empty")
		}
		return 0, 0, d.fail("file of %d bytes is too short for the magic %q", d.size, magic)
	}
	start := make([]byte, min(d.size, 512))
	if err := readFull(d.r, start, 0, d.name); err != nil {
		return 0, 0, err
	}
	if !bytes.HasPrefix(start, []byte(magic)) {
		return 0, 0, d.fail("magic is %q, want %q: %s", start[:len(magic)], magic, whatItIs(start))
	}
	d.pos = int64(len(magic))
	if dir.Version, err = d.u32("version"); err != nil {
		return 0, 0, err
	}
	if err := d.checkVersion(dir.Version); err != nil {
		return 0, 0, err
	}
	if tensors, err = d.count("tensor count", maxTensors, minTensorBytes); err != nil {
		return 0, 0, err
	}
	keys, err = d.count("metadata key count", maxKeys, minKeyBytes)
	return tensors, keys, err
}

func (d *decoder) checkVersion(v uint32) error {
	switch {
	case v == 2 || v == 3:
		return nil
	case v != 0 && v&0xffff == 0:
		return d.fail("version is %#x: the file is big-endian, only little-endian files are supported", v)
	case v == 1:
		return d.fail("version 1 is not supported, want 2 or 3; such files were written for a few days in August 2023")
	}
	return d.fail("version %d is not supported, want 2 or 3", v)
}

// count reads a count of entries that take at least width bytes each.
func (d *decoder) count(what string, limit uint64, width int64) (uint64, error) {
	n, err := d.u64(what)
	if err != nil {
		return 0, err
	}
	if n > limit {
		return 0, d.fail("%s %d is too large (limit %d)", what, n, limit)
	}
	if int64(n) > d.remaining()/width {
		return 0, d.fail("%s %d does not fit the remaining %d bytes: the file is truncated", what, n, d.remaining())
	}
	return n, nil
}

// whatItIs names the kind of file that starts with these bytes, as far as
// they are kinds that end up under a .gguf name.
func whatItIs(start []byte) string {
	text := strings.ToLower(string(bytes.TrimLeft(start, " \t\r\n\xef\xbb\xbf")))
	for _, k := range []struct {
		is   bool
		what string
	}{
		{len(bytes.Trim(start, "\x00")) == 0, "the file starts with zeros, its writer did not finish"},
		{strings.HasPrefix(text, "version https://git-lfs"), "this is a git-lfs pointer, not the file it stands for"},
		{strings.HasPrefix(text, "<!doctype") || strings.HasPrefix(text, "<html") || strings.HasPrefix(text, "<?xml"), "this is a web page or an error message of a server"},
		{bytes.HasPrefix(start, []byte("tjgg")), "this is an old ggjt file from before GGUF"},
		{bytes.HasPrefix(start, []byte("lmgg")), "this is an old ggml file from before GGUF"},
		{bytes.HasPrefix(start, []byte("fmgg")), "this is an old ggmf file from before GGUF"},
		{bytes.HasPrefix(start, []byte("algg")), "this is an old ggla adapter from before GGUF"},
		{bytes.HasPrefix(start, []byte("PK\x03\x04")), "this is a zip archive, perhaps a PyTorch checkpoint"},
		{bytes.HasPrefix(start, []byte("\x1f\x8b")), "this is gzip-compressed"},
		{len(start) > 9 && start[8] == '{' && bytes.Equal(start[5:8], []byte{0, 0, 0}), "this is a safetensors file"},
	} {
		if k.is {
			return k.what
		}
	}
	return "not a GGUF file"
}

// pair reads key and value number i.
func (d *decoder) pair(dir *Directory, i uint64) error {
	d.field = fmt.Sprintf("metadata pair %d", i)
	key, err := d.ident(maxKeyBytes, "key")
	if err != nil {
		return err
	}
	d.field = fmt.Sprintf("key %.200q", key)
	if _, ok := dir.Metadata.Get(key); ok {
		return d.fail("duplicate key")
	}
	t, err := d.u32("value type")
	if err != nil {
		return err
	}
	v, err := d.value(ValueType(t))
	if err != nil {
		return err
	}
	if _, ok := v.([]Nested); ok {
		dir.warn("key %q is an array of arrays, which ggml does not read", key)
	}
	dir.Metadata.Set(key, v)
	return nil
}

func (dir *Directory) warn(format string, args ...any) {
	dir.Warnings = append(dir.Warnings, fmt.Sprintf(format, args...))
}

// alignmentOf returns the alignment of the data section.
func alignmentOf(m *Metadata) (int64, error) {
	v, ok := m.Get(KeyAlignment)
	if !ok {
		return DefaultAlignment, nil
	}
	a, ok := v.(uint32)
	if !ok {
		t, _, _ := TypeOf(v)
		return 0, fmt.Errorf("%s has type %s, want UINT32", KeyAlignment, t)
	}
	if a == 0 || a&(a-1) != 0 || a > maxAlignment {
		return 0, fmt.Errorf("%s is %d, want a power of two up to %d", KeyAlignment, a, maxAlignment)
	}
	return int64(a), nil
}

// align rounds n up to a multiple of a, a power of two. n is at most a file
// size or a checked sum, so that the result fits.
func align(n, a int64) int64 { return (n + a - 1) &^ (a - 1) }

// tensor reads directory entry i. Offsets stay relative to the data section
// until extents knows where that is.
func (d *decoder) tensor(dir *Directory, i uint64, seen map[string]bool) error {
	d.field = fmt.Sprintf("tensor %d", i)
	name, err := d.ident(maxNameBytes, "tensor name")
	if err != nil {
		return err
	}
	d.field = fmt.Sprintf("tensor %q", name)
	if seen[name] {
		return d.fail("duplicate tensor name")
	}
	seen[name] = true
	t := TensorInfo{Name: name}
	if t.Shape, err = d.shape(); err != nil {
		return err
	}
	id, err := d.u32("tensor type")
	if err != nil {
		return err
	}
	t.Type = Type(id)
	off, err := d.u64("tensor offset")
	if err != nil {
		return err
	}
	if off > math.MaxInt64 {
		return d.fail("offset %d is beyond the end of the file (%d bytes)", off, d.size)
	}
	if err := t.CheckShape(); err != nil {
		d.field = ""
		return d.fail("%s", err)
	}
	dir.Tensors = append(dir.Tensors, t)
	dir.Offsets = append(dir.Offsets, int64(off))
	return nil
}

func (d *decoder) shape() ([]int64, error) {
	n, err := d.u32("dimension count")
	if err != nil {
		return nil, err
	}
	if n > maxDims {
		return nil, d.fail("%d dimensions, at most %d are allowed", n, maxDims)
	}
	shape := make([]int64, n)
	for i := range shape {
		v, err := d.u64("dimension")
		if err != nil {
			return nil, err
		}
		if v > math.MaxInt64 {
			return nil, d.fail("dimension %d is too large or negative", v)
		}
		shape[i] = int64(v)
	}
	return shape, nil
}

// extents checks where the tensors lie and makes the offsets absolute.
func (d *decoder) extents(dir *Directory) error {
	dir.DataOffset = align(d.pos, dir.Alignment)
	for i := range dir.Tensors {
		d.field = fmt.Sprintf("tensor %q", dir.Tensors[i].Name)
		off, size := dir.Offsets[i], dir.Tensors[i].Size()
		if off%dir.Alignment != 0 {
			return d.fail("offset %d is not a multiple of the alignment %d", off, dir.Alignment)
		}
		// Sizes and offsets fit an int64 each; their sum may not.
		room := d.size - dir.DataOffset
		if size > 0 && (off > room || size > room-off) {
			return d.fail("data at offset %d, size %d, reaches beyond the file: the data section has %d bytes", off, size, max(room, 0))
		}
	}
	if err := d.cover(dir); err != nil {
		return err
	}
	for i := range dir.Offsets {
		dir.Offsets[i] += dir.DataOffset
	}
	return nil
}

// cover checks that the tensors, sorted by offset, follow each other exactly.
func (d *decoder) cover(dir *Directory) error {
	order := make([]int, len(dir.Tensors))
	for i := range order {
		order[i] = i
	}
	// Empty tensors share their offset with the tensor that follows them.
	slices.SortStableFunc(order, func(a, b int) int {
		if c := dir.Offsets[a] - dir.Offsets[b]; c != 0 {
			return int(max(-1, min(1, c)))
		}
		return int(max(-1, min(1, dir.Tensors[a].Size()-dir.Tensors[b].Size())))
	})
	var want, end int64
	for _, i := range order {
		d.field = fmt.Sprintf("tensor %q", dir.Tensors[i].Name)
		switch off := dir.Offsets[i]; {
		case off < want:
			return d.fail("data at offset %d overlaps another tensor, which ends at %d", off, want)
		case off > want:
			return d.fail("offset is %d, want %d: there is a hole before the data", off, want)
		default:
			end = off + dir.Tensors[i].Size()
			want = align(end, dir.Alignment)
		}
	}
	switch have := d.size - dir.DataOffset; {
	case have > want:
		dir.warn("%d extra bytes after the last tensor", have-want)
	case want > 0 && have < want:
		dir.warn("the last tensor is not padded to the alignment %d", dir.Alignment)
	}
	return nil
}
