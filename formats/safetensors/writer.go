package safetensors

import (
	"cmp"
	"encoding/binary"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync/atomic"
	"unicode/utf8"

	"github.com/winnow-moe/winnow/formats/durable"
)

// partial is appended to the name of a file until all of it is written.
const partial = durable.Suffix

// Layout is the plan of a checkpoint to write: which tensor goes where in
// which file. It is computed before the first byte is written.
type Layout struct {
	tensors []Tensor
	files   []FileInfo // Path is the name alone
	headers [][]byte   // of each file, with its length and padding
}

// NewLayout plans a checkpoint of these tensors, of which only Name, DType and
// Shape are looked at. Files are filled in the order given, up to maxShard
// bytes of tensor data each (0: one file; a larger tensor has a file of its
// own). Within a file the data are sorted by type, widest first, and then by
// name, as the reference library does: data are aligned that way, and its files
// equal ours. metadata goes to every file. Errors match ErrFormat.
func NewLayout(tensors []Tensor, metadata map[string]string, maxShard int64) (*Layout, error) {
	for key, text := range metadata {
		if !utf8.ValidString(key) || !utf8.ValidString(text) {
			return nil, fmt.Errorf("%w: metadata %.200q is not valid UTF-8", ErrFormat, key)
		}
	}
	l := &Layout{tensors: slices.Clone(tensors)}
	shards, err := l.distribute(maxShard)
	if err != nil {
		return nil, err
	}
	for shard, members := range shards {
		name := singleName
		if len(shards) > 1 {
			name = fmt.Sprintf("model-%05d-of-%05d%s", shard+1, len(shards), extension)
		}
		if err := l.addFile(name, members, metadata); err != nil {
			return nil, fmt.Errorf("%q: %w", name, err)
		}
	}
	return l, nil
}

// distribute checks the tensors and splits them into shards of indices.
func (l *Layout) distribute(maxShard int64) ([][]int, error) {
	shards := [][]int{nil}
	names := make(map[string]bool, len(l.tensors))
	var filled int64
	for i := range l.tensors {
		t := &l.tensors[i]
		if names[t.Name] {
			return nil, fmt.Errorf("%w: duplicate tensor %q", ErrFormat, t.Name)
		}
		names[t.Name] = true
		if err := checkNew(t); err != nil {
			return nil, fmt.Errorf("%w: tensor %.200q: %w", ErrFormat, t.Name, err)
		}
		if maxShard > 0 && filled > 0 && t.Size > maxShard-filled {
			shards, filled = append(shards, nil), 0
		}
		t.Shard = len(shards) - 1
		shards[t.Shard] = append(shards[t.Shard], i)
		filled += t.Size
	}
	return shards, nil
}

// checkNew checks what Parse would check, and computes the size.
func checkNew(t *Tensor) (err error) {
	switch {
	case t.Name == metadataKey || len(t.Name) > maxName || !utf8.ValidString(t.Name):
		return errors.New("not a name for a tensor")
	case t.DType.Bits() == 0:
		return fmt.Errorf("unknown dtype %v", t.DType)
	case len(t.Shape) > maxRank:
		return fmt.Errorf("shape has more than %d numbers", maxRank)
	case slices.ContainsFunc(t.Shape, func(n int64) bool { return n < 0 }):
		return fmt.Errorf("shape %v: negative", t.Shape)
	}
	t.Size, err = byteSize(t.DType, t.Shape)
	return err
}

// addFile lays out the tensors of one file.
func (l *Layout) addFile(name string, members []int, metadata map[string]string) error {
	slices.SortFunc(members, func(i, j int) int {
		a, b := &l.tensors[i], &l.tensors[j]
		return cmp.Or(cmp.Compare(b.DType, a.DType), strings.Compare(a.Name, b.Name))
	})
	header := l.appendHeader(make([]byte, 8), members, metadata)
	if len(header)-8 > MaxHeader {
		return fmt.Errorf("%w: a header of %d bytes is over the limit of %d: write smaller shards", ErrFormat, len(header)-8, MaxHeader)
	}
	binary.LittleEndian.PutUint64(header, uint64(len(header)-8))
	end := int64(len(header))
	for _, i := range members {
		l.tensors[i].Offset = end
		if end += l.tensors[i].Size; end < 0 {
			return fmt.Errorf("%w: the file is too large: its size overflows", ErrFormat)
		}
	}
	l.files = append(l.files, FileInfo{Path: name, Size: end})
	l.headers = append(l.headers, header)
	return nil
}

func (l *Layout) appendHeader(b []byte, members []int, metadata map[string]string) []byte {
	b = append(b, '{')
	if metadata != nil {
		b = append(appendQuoted(b, metadataKey), ":{"...)
		for n, key := range slices.Sorted(maps.Keys(metadata)) {
			b = append(appendQuoted(appendComma(b, n), key), ':')
			b = appendQuoted(b, metadata[key])
		}
		b = append(b, '}')
	}
	var begin int64
	for n, i := range members {
		t := &l.tensors[i]
		if metadata != nil {
			n++
		}
		b = appendQuoted(appendComma(b, n), t.Name)
		b = append(b, `:{"dtype":"`+t.DType.String()+`","shape":[`...)
		for n, dim := range t.Shape {
			b = strconv.AppendInt(appendComma(b, n), dim, 10)
		}
		b = strconv.AppendInt(append(b, `],"data_offsets":[`...), begin, 10)
		begin += t.Size
		b = append(strconv.AppendInt(append(b, ','), begin, 10), "]}"...)
	}
	b = append(b, '}')
	for len(b)%8 != 0 {
		b = append(b, ' ')
	}
	return b
}

// appendComma separates element n of a list from the one before it.
func appendComma(b []byte, n int) []byte {
	if n > 0 {
		b = append(b, ',')
	}
	return b
}

// appendQuoted appends a JSON string with the escapes that RFC 8259 requires
// and no others. (encoding/json also escapes some valid characters.)
func appendQuoted(b []byte, s string) []byte {
	b = append(b, '"')
	for _, c := range []byte(s) {
		switch short := strings.IndexByte("\"\\\b\f\n\r\t", c); {
		case short >= 0:
			b = append(b, '\\', `"\bfnrt`[short])
		case c < ' ':
			b = fmt.Appendf(b, `\u%04x`, c)
		default:
			b = append(b, c)
		}
	}
	return append(b, '"')
}

// Tensors returns the tensors in the order they were given, with their places.
// Callers must not change it.
func (l *Layout) Tensors() []Tensor { return l.tensors }

// Files returns the names and sizes of the files with tensors. When there are
// several, an index is written beside them.
func (l *Layout) Files() []FileInfo { return l.files }

// Writer fills the files of a layout. It must end with Commit or Abort.
type Writer struct {
	layout  *Layout
	dir     string
	handles []*os.File
	written []atomic.Int64 // bytes per tensor
	cleanup []string       // what Abort removes
}

// Create starts to write a checkpoint to an existing folder. All files have
// ".part" names until Commit; remains of a former try under these names are
// overwritten. A folder that already has one of the final names, or another
// checkpoint, is refused.
func (l *Layout) Create(dir string) (*Writer, error) {
	taken := []string{singleName, indexName}
	for _, f := range l.files {
		taken = append(taken, f.Path)
	}
	for _, name := range taken {
		path := filepath.Join(dir, name)
		if _, err := os.Lstat(path); err == nil {
			return nil, fmt.Errorf("%q exists: %w", path, fs.ErrExist)
		}
	}
	w := &Writer{layout: l, dir: dir, written: make([]atomic.Int64, len(l.tensors))}
	for i := range l.files {
		if err := w.start(i); err != nil {
			return nil, errors.Join(err, w.Abort())
		}
	}
	return w, nil
}

// CreateFile starts to write a layout of one file under a name of its own. An
// existing file stays as it is until Commit replaces it.
func (l *Layout) CreateFile(path string) (*Writer, error) {
	if len(l.files) != 1 {
		return nil, fmt.Errorf("%q: the layout has %d files", path, len(l.files))
	}
	named := *l
	named.files = []FileInfo{{Path: filepath.Base(path), Size: l.files[0].Size}}
	w := &Writer{layout: &named, dir: filepath.Dir(path), written: make([]atomic.Int64, len(l.tensors))}
	if err := w.start(0); err != nil {
		return nil, errors.Join(err, w.Abort())
	}
	return w, nil
}

// start creates one file with its header and its full size.
func (w *Writer) start(i int) error {
	path := filepath.Join(w.dir, w.layout.files[i].Path) + partial
	f, err := os.Create(path)
	if err != nil {
		return err
	}
	w.handles = append(w.handles, f)
	w.cleanup = append(w.cleanup, path)
	if _, err := f.Write(w.layout.headers[i]); err != nil {
		return err
	}
	return f.Truncate(w.layout.files[i].Size)
}

// WriteAt writes p to the data of tensor i (index into Layout.Tensors) from
// byte off of the tensor on. It may be called concurrently. Every byte must be
// written exactly once.
func (w *Writer) WriteAt(i int, off int64, p []byte) error {
	t := &w.layout.tensors[i]
	if off < 0 || off > t.Size-int64(len(p)) {
		return fmt.Errorf("tensor %q: bytes %d to %d are not within its %d bytes", t.Name, off, off+int64(len(p)), t.Size)
	}
	n, err := w.handles[t.Shard].WriteAt(p, t.Offset+off)
	w.written[i].Add(int64(n))
	return err
}

// Commit makes the checkpoint durable under its final names, the index last.
// When it fails, nothing is left.
func (w *Writer) Commit() error {
	if err := w.commit(); err != nil {
		return errors.Join(err, w.Abort())
	}
	w.cleanup = nil
	return nil
}

func (w *Writer) commit() error {
	for i := range w.written {
		if t := &w.layout.tensors[i]; w.written[i].Load() != t.Size {
			return fmt.Errorf("tensor %q: %d of %d bytes were written", t.Name, w.written[i].Load(), t.Size)
		}
	}
	handles := w.handles
	w.handles = nil
	var errs []error
	for _, f := range handles {
		errs = append(errs, f.Sync(), f.Close())
	}
	if err := errors.Join(errs...); err != nil {
		return err
	}
	for _, f := range w.layout.files {
		if err := w.publish(f.Path); err != nil {
			return err
		}
	}
	if err := durable.SyncDir(w.dir); err != nil || len(w.layout.files) == 1 {
		return err
	}
	if err := w.writeIndex(); err != nil {
		return err
	}
	return durable.SyncDir(w.dir)
}

// publish gives a finished file its final name.
func (w *Writer) publish(name string) error {
	path := filepath.Join(w.dir, name)
	if err := os.Rename(path+partial, path); err != nil {
		return err
	}
	w.cleanup = append(w.cleanup, path)
	return nil
}

func (w *Writer) writeIndex() error {
	path := filepath.Join(w.dir, indexName) + partial
	f, err := os.Create(path)
	if err != nil {
		return err
	}
	w.cleanup = append(w.cleanup, path)
	_, err = f.Write(w.layout.index())
	if err := errors.Join(err, f.Sync(), f.Close()); err != nil {
		return err
	}
	return w.publish(indexName)
}

// index returns the text of the index file, in the form transformers gives it.
func (l *Layout) index() []byte {
	var total int64
	order := make([]int, len(l.tensors))
	for i, t := range l.tensors {
		total += t.Size
		order[i] = i
	}
	slices.SortFunc(order, func(i, j int) int { return strings.Compare(l.tensors[i].Name, l.tensors[j].Name) })
	b := fmt.Appendf(nil, "{\n  \"metadata\": {\n    \"total_size\": %d\n  },\n  \"weight_map\": {", total)
	for n, i := range order {
		t := &l.tensors[i]
		b = append(appendQuoted(append(appendComma(b, n), "\n    "...), t.Name), ": "...)
		b = appendQuoted(b, l.files[t.Shard].Path)
	}
	return append(b, "\n  }\n}\n"...)
}

// Abort closes and removes everything that was written. After Commit it does
// nothing.
func (w *Writer) Abort() error {
	var errs []error
	for _, f := range w.handles {
		errs = append(errs, f.Close())
	}
	w.handles = nil
	for _, path := range w.cleanup {
		if err := os.Remove(path); err != nil && !errors.Is(err, fs.ErrNotExist) {
			errs = append(errs, err)
		}
	}
	w.cleanup = nil
	return errors.Join(errs...)
}
