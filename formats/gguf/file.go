package gguf

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"strconv"

	"github.com/winnow-moe/winnow/formats/prefetch"
)

// File is an open model: one file, or a split set presented as one. It
// implements Model.
type File struct {
	// Warnings are the oddities of all parts that readers tolerate.
	Warnings []string

	parts   []part
	meta    *Metadata
	tensors []TensorInfo
	places  []place
}

// Part is one file of a model.
type Part struct {
	Path string
	*Directory
}

type part struct {
	Part
	file *os.File // nil when mapped
	data []byte   // the mapped file, nil when read with ReadAt
}

// place says in which part or shard a tensor lies and where it starts there.
type place struct {
	part   int
	offset int64
}

var _ Model = (*File)(nil)

// Open opens a GGUF file. A name that ends in -00001-of-00003.gguf, with any
// part number, stands for the whole set. Everything is checked before Open
// returns; tensor data is mapped into memory, not read.
//
// A mapped file that another program truncates faults when it is touched.
// Programs that stream through a file once should use OpenUnmapped.
func Open(path string) (*File, error) { return open(path, true) }

// OpenUnmapped is Open without a memory map: Rows reads into its buffer, and a
// file that shrinks or a disk that fails gives an error.
func OpenUnmapped(path string) (*File, error) { return open(path, false) }

func open(path string, mapped bool) (*File, error) {
	f := &File{}
	if err := f.open(path, mapped); err != nil {
		return nil, errors.Join(err, f.Close())
	}
	return f, nil
}

func (f *File) open(path string, mapped bool) error {
	paths, named := partPaths(path)
	for i, p := range paths {
		part, err := openPart(p, mapped)
		if err != nil && len(paths) > 1 {
			return fmt.Errorf("part %d of %d: %w", i+1, len(paths), err)
		}
		if err != nil {
			return err
		}
		f.parts = append(f.parts, part)
		if err := f.checkSplit(i, len(paths), named); err != nil {
			return err
		}
	}
	return f.merge()
}

// partName is the naming of split sets (llama.h llama_split_path).
var partName = regexp.MustCompile(`^(.*)-([0-9]{5})-of-([0-9]{5})\.gguf$`)

// partPaths returns the files of the set that path belongs to. named is false
// when the name does not follow the naming of split sets.
func partPaths(path string) (paths []string, named bool) {
	dir, base := filepath.Split(path)
	m := partName.FindStringSubmatch(base)
	if m == nil {
		return []string{path}, false
	}
	no, _ := strconv.Atoi(m[2])
	n, _ := strconv.Atoi(m[3])
	if no < 1 || no > n || n > maxSplits {
		return []string{path}, false
	}
	return splitPaths(dir+m[1], n), true
}

// splitPaths names the n files of a split set.
func splitPaths(prefix string, n int) []string {
	paths := make([]string, n)
	for i := range paths {
		paths[i] = fmt.Sprintf("%s-%05d-of-%05d.gguf", prefix, i+1, n)
	}
	return paths
}

// openPart opens and checks one file.
func openPart(path string, mapped bool) (part, error) {
	// Before opening: a named pipe would block until someone writes to it.
	st, err := os.Stat(path)
	if err != nil {
		return part{}, err
	}
	if !st.Mode().IsRegular() {
		return part{}, notRegular(path, st.Mode())
	}
	file, err := os.Open(path)
	if err != nil {
		return part{}, err
	}
	p := part{Part: Part{Path: path}, file: file}
	if err := p.read(mapped); err != nil {
		return part{}, errors.Join(err, file.Close())
	}
	return p, nil
}

func notRegular(path string, mode os.FileMode) error {
	if mode.IsDir() {
		return fmt.Errorf("%s is a folder, not a file", path)
	}
	return fmt.Errorf("%s is not a regular file (%s)", path, mode.Type())
}

func (p *part) read(mapped bool) error {
	st, err := p.file.Stat()
	if err != nil {
		return err
	}
	if p.Directory, err = Parse(p.file, st.Size(), p.Path); err != nil {
		return err
	}
	if !mapped {
		return nil
	}
	// A system or file system without maps falls back to reading.
	if data, err := mmap(p.file, st.Size()); err == nil {
		p.data = data
		err := p.file.Close()
		p.file = nil
		return err
	}
	return nil
}

// checkSplit compares part i with its place in the set of n.
func (f *File) checkSplit(i, n int, named bool) error {
	p := &f.parts[i]
	fail := func(format string, args ...any) error {
		return &formatError{file: p.Path, text: fmt.Sprintf(format, args...)}
	}
	count, err := splitValue[uint16](p.Metadata, KeySplitCount)
	if err != nil {
		return fail("%s", err)
	}
	no, err := splitValue[uint16](p.Metadata, KeySplitNo)
	if err != nil {
		return fail("%s", err)
	}
	total, err := splitValue[int32](p.Metadata, KeySplitTensorsCount)
	if err != nil {
		return fail("%s", err)
	}
	switch {
	case n == 1 && (count == nil || *count <= 1):
		// llama-gguf-split --merge leaves split.count 0 behind.
	case !named:
		return fail("%s is %d, but the file name does not end in -00001-of-%05d.gguf, so the other parts cannot be found", KeySplitCount, *count, *count)
	case count == nil:
		return fail("%s is missing, but the file name says part %d of %d", KeySplitCount, i+1, n)
	case int(*count) != n:
		return fail("%s is %d, but the file name says %d parts", KeySplitCount, *count, n)
	case no == nil || int(*no) != i:
		return fail("%s is %s, want %d, as the file name says", KeySplitNo, shown(no), i)
	case total == nil:
		return fail("%s is missing", KeySplitTensorsCount)
	}
	return nil
}

// splitValue returns a split key, nil when absent. The types are those that
// llama.cpp's loader insists on.
func splitValue[T any](m *Metadata, key string) (*T, error) {
	v, ok := m.Get(key)
	if !ok {
		return nil, nil
	}
	n, ok := v.(T)
	if !ok {
		have, _, _ := TypeOf(v)
		want, _, _ := TypeOf(n)
		return nil, fmt.Errorf("%s has type %s, want %s", key, have, want)
	}
	return &n, nil
}

func shown(v *uint16) string {
	if v == nil {
		return "missing"
	}
	return strconv.Itoa(int(*v))
}

// splitKeys describe a set, not the model.
var splitKeys = []string{KeySplitNo, KeySplitCount, KeySplitTensorsCount}

// merge presents the parts as one model and checks what concerns all of them.
func (f *File) merge() error {
	owner := map[string]int{}
	for i := range f.parts {
		p := &f.parts[i]
		for j, t := range p.Tensors {
			if first, ok := owner[t.Name]; ok {
				return &formatError{p.Path, fmt.Sprintf("tensor %q", t.Name), fmt.Sprintf("duplicate tensor, it is in %q too", f.parts[first].Path)}
			}
			owner[t.Name] = i
			f.tensors = append(f.tensors, t)
			f.places = append(f.places, place{i, p.Offsets[j]})
		}
		f.collectWarnings(i)
	}
	for i := range f.parts {
		if err := f.checkTotal(i); err != nil {
			return err
		}
	}
	f.meta = f.parts[0].Metadata.Clone()
	for _, k := range splitKeys {
		f.meta.Delete(k)
	}
	return nil
}

// checkTotal compares the number of tensors that part i expects in the set.
func (f *File) checkTotal(i int) error {
	p := &f.parts[i]
	count, _ := splitValue[uint16](p.Metadata, KeySplitCount)
	total, _ := splitValue[int32](p.Metadata, KeySplitTensorsCount)
	if count == nil || *count == 0 || total == nil || int64(*total) == int64(len(f.tensors)) {
		return nil
	}
	return &formatError{p.Path, KeySplitTensorsCount, fmt.Sprintf("is %d, but %d tensors were found in %d parts", *total, len(f.tensors), len(f.parts))}
}

func (f *File) collectWarnings(i int) {
	p := &f.parts[i]
	for _, w := range p.Warnings {
		f.Warnings = append(f.Warnings, p.Path+": "+w)
	}
	for _, k := range p.Metadata.Keys() {
		if _, ok := f.parts[0].Metadata.Get(k); !ok && k != KeyAlignment {
			f.Warnings = append(f.Warnings, fmt.Sprintf("%s: key %.200q is ignored, the first part does not have it", p.Path, k))
		}
	}
}

// Metadata returns the keys of the first part, without those that describe
// the split.
func (f *File) Metadata() *Metadata { return f.meta }

// Tensors returns the tensors of all parts, part after part.
func (f *File) Tensors() []TensorInfo { return f.tensors }

// Parts returns the files of the model with their own directories, in order.
func (f *File) Parts() []Part {
	parts := make([]Part, len(f.parts))
	for i := range f.parts {
		parts[i] = f.parts[i].Part
	}
	return parts
}

// Place returns the index into Parts of the file that holds tensor i, and the
// offset of its data from the start of that file.
func (f *File) Place(i int) (part int, offset int64) { return f.places[i].part, f.places[i].offset }

// Rows implements Model. With a memory map the result is a view of it.
func (f *File) Rows(ctx context.Context, i int, first, n int64, buf []byte) ([]byte, error) {
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	t := &f.tensors[i]
	if first < 0 || n < 0 || n > t.Rows()-first {
		return nil, fmt.Errorf("tensor %q: rows %d+%d are outside its %d rows", t.Name, first, n, t.Rows())
	}
	p := &f.parts[f.places[i].part]
	off, size := f.places[i].offset+first*t.RowBytes(), n*t.RowBytes()
	if p.data != nil {
		return p.view(off, size), nil
	}
	if int64(cap(buf)) < size {
		buf = make([]byte, size)
	}
	buf = buf[:size]
	if err := readFull(p.file, buf, off, p.Path); err != nil {
		return nil, fmt.Errorf("tensor %q: %w", t.Name, err)
	}
	return buf, nil
}

// adviseBytes is the request size from which asking for read-ahead pays for
// the system call.
const adviseBytes = 1 << 20

// view returns a part of the map. Empty tensors may lie beyond its end.
func (p *part) view(off, size int64) []byte {
	if size == 0 {
		return nil
	}
	if size >= adviseBytes {
		adviseWillNeed(p.data, off, size)
	}
	return p.data[off : off+size : off+size]
}

// Prefetch asks the system to read n bytes of tensor i, from byte off of it on,
// and does not wait for them. It is advice that may come to nothing.
func (f *File) Prefetch(i int, off, n int64) {
	p := &f.parts[f.places[i].part]
	off += f.places[i].offset
	if p.data != nil {
		adviseWillNeed(p.data, off, n)
		return
	}
	prefetch.File(p.file, off, n)
}

// Release implements Model: the pages of tensor i leave this process.
func (f *File) Release(i int) {
	if p := &f.parts[f.places[i].part]; p.data != nil {
		adviseDontNeed(p.data, f.places[i].offset, f.tensors[i].Size())
	}
}

// Close unmaps and closes all parts. Views that Rows returned must not be
// touched afterwards.
func (f *File) Close() error {
	var errs []error
	for i := range f.parts {
		p := &f.parts[i]
		if p.data != nil {
			errs = append(errs, munmap(p.data))
			p.data = nil
		}
		if p.file != nil {
			errs = append(errs, p.file.Close())
			p.file = nil
		}
	}
	return errors.Join(errs...)
}
