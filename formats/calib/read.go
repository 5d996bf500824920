package calib

import (
	"errors"
	"fmt"
	"io"
	"maps"
	"math"
	"os"
	"slices"
	"strings"

	"github.com/winnow-moe/winnow/formats/dtype"
	"github.com/winnow-moe/winnow/formats/gguf"
)

// The GGUF form has these keys, in this order, after general.type "imatrix":
//
//	imatrix.datasets     ARRAY of STRING
//	imatrix.chunk_count  UINT32
//	imatrix.chunk_size   UINT32
//
// and for each weight W two F32 tensors, W after W by name:
//
//	W.in_sum2 [columns, matrices]  Σ x² of each input column
//	W.counts  [1, matrices]        rows that were seen, a whole number
//
// Dimensions of 1 at the end are left out.
const (
	fileType      = "imatrix"
	keyDatasets   = "imatrix.datasets"
	keyChunkCount = "imatrix.chunk_count"
	keyChunkSize  = "imatrix.chunk_size"
	suffixSums    = ".in_sum2"
	suffixCounts  = ".counts"
	magic         = "GGUF"
)

// Options say what a legacy file leaves open.
type Options struct {
	// ChunkSize is the number of rows of a chunk, -c of the llama-imatrix run
	// that made the file; 0 stands for DefaultChunkSize. Weights do not depend
	// on it, merged and converted files do.
	ChunkSize int
}

// Read opens an importance matrix of either form and checks all of it. The
// file stays open until Close.
func Read(path string, opt Options) (*Matrix, error) {
	// Before opening: a named pipe would block until someone writes to it.
	st, err := os.Stat(path)
	if err != nil {
		return nil, err
	}
	if !st.Mode().IsRegular() {
		return nil, fmt.Errorf("%s is not a regular file (%s)", path, st.Mode().Type())
	}
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	if st, err = f.Stat(); err != nil {
		return nil, errors.Join(err, f.Close())
	}
	m, err := Parse(f, st.Size(), path, opt)
	if err != nil {
		return nil, errors.Join(err, f.Close())
	}
	m.file = f
	return m, nil
}

// Parse checks an importance matrix of either form. r is read again when sums
// are asked for. name is used in messages. A file that does not start as GGUF
// is tried as legacy, as llama-quantize does.
func Parse(r io.ReaderAt, size int64, name string, opt Options) (*Matrix, error) {
	m := &Matrix{name: name}
	if opt.ChunkSize < 0 || opt.ChunkSize > maxChunks {
		return nil, fmt.Errorf("chunk size is %d, want 1 to %d", opt.ChunkSize, maxChunks)
	}
	start := make([]byte, min(size, int64(len(magic))))
	if err := readFull(r, start, 0); err != nil {
		return nil, m.about("", err)
	}
	read := m.readLegacy
	if string(start) == magic {
		read = m.readGGUF
	}
	if err := read(r, size, opt); err != nil {
		return nil, err
	}
	slices.SortStableFunc(m.Entries, func(a, b Entry) int { return strings.Compare(a.Name, b.Name) })
	if err := m.check(); err != nil {
		return nil, err
	}
	return m, nil
}

// readFull fills b. A file that became shorter is an error.
func readFull(r io.ReaderAt, b []byte, off int64) error {
	n, err := r.ReadAt(b, off)
	if n == len(b) {
		return nil
	}
	if err == nil || errors.Is(err, io.EOF) {
		err = io.ErrUnexpectedEOF
	}
	return fmt.Errorf("reading %d bytes at offset %d: %w", len(b), off, err)
}

// values are float32 numbers in a file.
type values struct {
	r      io.ReaderAt
	offset int64
	n      int
	scale  float32 // what they are multiplied with to become sums
}

// chunkValues is how many are read at a time.
const chunkValues = 1 << 18

// each reads all values in turn, checks them as sums, and hands them to use in
// a slice that is only valid until use returns.
func (v *values) each(use func(first int, s []float32)) error {
	raw := make([]byte, 4*min(v.n, chunkValues))
	s := make([]float32, len(raw)/4)
	for first := 0; first < v.n; first += len(s) {
		s = s[:min(len(s), v.n-first)]
		raw = raw[:4*len(s)]
		if err := readFull(v.r, raw, v.offset+4*int64(first)); err != nil {
			return err
		}
		if err := dtype.Decode(dtype.F32, s, raw); err != nil {
			return err
		}
		if err := v.toSums(s, first); err != nil {
			return err
		}
		use(first, s)
	}
	return nil
}

// toSums scales and checks values from index first on.
func (v *values) toSums(s []float32, first int) error {
	if err := checkSums(s, first); err != nil || v.scale == 1 {
		return err
	}
	for i := range s {
		s[i] *= v.scale
	}
	return checkSums(s, first)
}

// add checks stored sums and appends their entry.
func (m *Matrix) add(name string, counts []int64, v values) error {
	if err := v.each(func(int, []float32) {}); err != nil {
		return err
	}
	load := func(dst []float32) error {
		return v.each(func(first int, s []float32) { copy(dst[first:], s) })
	}
	m.Entries = append(m.Entries, Entry{Name: name, Counts: counts, size: v.n, load: load})
	return nil
}

// readGGUF reads the GGUF form.
func (m *Matrix) readGGUF(r io.ReaderAt, size int64, _ Options) error {
	dir, err := gguf.Parse(r, size, m.name)
	if errors.Is(err, gguf.ErrFormat) {
		return contentError{err}
	}
	if err != nil {
		return err
	}
	if err := checkPadding(dir); err != nil {
		return m.about("", err)
	}
	m.Warnings = dir.Warnings
	if err := m.readKeys(dir.Metadata); err != nil {
		return m.about("", err)
	}
	pairs := m.pair(dir.Tensors)
	for _, name := range slices.Sorted(maps.Keys(pairs)) {
		if err := m.readPair(r, dir, name, pairs[name]); err != nil {
			return err
		}
	}
	return nil
}

// checkPadding refuses a file that ends in the padding of its last tensor. Some
// writers of models leave it out, llama-imatrix never does, and llama-quantize
// does not read such a matrix: it was cut off.
func checkPadding(dir *gguf.Directory) error {
	for i := range dir.Tensors {
		end := dir.Offsets[i] + dir.Tensors[i].Size()
		if padding := -end & (dir.Alignment - 1); padding > dir.Size-end {
			return invalid("file is truncated: tensor %q ends at %d and is padded with %d bytes, the file has %d", dir.Tensors[i].Name, end, padding, dir.Size)
		}
	}
	return nil
}

// readKeys takes the metadata. llama-quantize refuses a file that lacks one of
// the three keys, and ignores datasets of another type.
func (m *Matrix) readKeys(meta *gguf.Metadata) error {
	if t, ok := meta.String(gguf.KeyGeneralType); !ok || t != fileType {
		m.warn("%s is %q, want %q", gguf.KeyGeneralType, t, fileType)
	}
	v, ok := meta.Get(keyDatasets)
	if !ok {
		return invalid("metadata key %s is missing", keyDatasets)
	}
	if m.Datasets, ok = v.([]string); !ok {
		t, _, _ := gguf.TypeOf(v)
		m.warn("%s is ignored: its type is %s, want ARRAY of STRING", keyDatasets, t)
	}
	var err error
	if m.Chunks, err = chunks(meta, keyChunkCount); err != nil {
		return err
	}
	m.ChunkSize, err = chunks(meta, keyChunkSize)
	return err
}

func chunks(meta *gguf.Metadata, key string) (int, error) {
	v, ok := meta.Get(key)
	if !ok {
		return 0, invalid("metadata key %s is missing", key)
	}
	n, ok := v.(uint32)
	if !ok {
		t, _, _ := gguf.TypeOf(v)
		return 0, invalid("metadata key %s has type %s, want UINT32", key, t)
	}
	if n > maxChunks {
		return 0, invalid("metadata key %s is %d, at most %d is possible", key, n, maxChunks)
	}
	return int(n), nil
}

func (m *Matrix) warn(format string, args ...any) {
	m.Warnings = append(m.Warnings, fmt.Sprintf(format, args...))
}

// tensorPair holds indices into a directory, -1 for a tensor that is missing.
type tensorPair struct{ sums, counts int }

// pair finds the two tensors of each weight.
func (m *Matrix) pair(tensors []gguf.TensorInfo) map[string]tensorPair {
	pairs := map[string]tensorPair{}
	of := func(name string) tensorPair {
		if p, ok := pairs[name]; ok {
			return p
		}
		return tensorPair{-1, -1}
	}
	var others []string
	for i := range tensors {
		full := tensors[i].Name
		if name, ok := strings.CutSuffix(full, suffixSums); ok {
			pairs[name] = tensorPair{i, of(name).counts}
		} else if name, ok := strings.CutSuffix(full, suffixCounts); ok {
			pairs[name] = tensorPair{of(name).sums, i}
		} else if !strings.HasPrefix(full, prefixStatistics) {
			others = append(others, full)
		}
	}
	if len(others) > 0 {
		m.warn("%d tensors are ignored, their names end neither in %s nor in %s: %q is the first", len(others), suffixSums, suffixCounts, others[0])
	}
	return pairs
}

// readPair reads the counts of one weight and checks its sums.
func (m *Matrix) readPair(r io.ReaderAt, dir *gguf.Directory, name string, p tensorPair) error {
	switch {
	case p.sums < 0:
		return m.about(name, invalid("mismatched sums and counts: %s is there, %s is missing", suffixCounts, suffixSums))
	case p.counts < 0:
		return m.about(name, invalid("mismatched sums and counts: %s is there, %s is missing", suffixSums, suffixCounts))
	}
	for _, i := range []int{p.sums, p.counts} {
		if t := &dir.Tensors[i]; t.Type != gguf.F32 {
			return m.about(name, invalid("%q has type %s, sums and counts must be F32", t.Name, t.Type))
		}
	}
	n := dir.Tensors[p.sums].Elements()
	if n > maxValues {
		return m.about(name, invalid("%d values are too many (limit %d)", n, maxValues))
	}
	counts, err := readCounts(r, dir.Offsets[p.counts], dir.Tensors[p.counts].Elements())
	if err == nil {
		err = m.add(name, counts, values{r, dir.Offsets[p.sums], int(n), 1})
	}
	if err != nil {
		return m.about(name, err)
	}
	return nil
}

// readCounts rounds to whole numbers as llama-quantize does (C's lround). A
// tensor's extent is known to lie within its file.
func readCounts(r io.ReaderAt, offset, n int64) ([]int64, error) {
	if n > maxCounts {
		return nil, invalid("%d counts are too many (limit %d)", n, maxCounts)
	}
	raw := make([]byte, 4*n)
	if err := readFull(r, raw, offset); err != nil {
		return nil, err
	}
	f := make([]float32, n)
	if err := dtype.Decode(dtype.F32, f, raw); err != nil {
		return nil, err
	}
	counts := make([]int64, n)
	for i, v := range f {
		if !(v >= 0 && v <= maxCount) {
			return nil, invalid("%s: count %d is %v, want a finite number that is not negative, at most %d", suffixCounts, i, v, int64(maxCount))
		}
		counts[i] = int64(math.Round(float64(v)))
	}
	return counts, nil
}
