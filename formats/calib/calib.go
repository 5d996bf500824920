// Package calib reads, writes, merges and applies importance matrices: what a
// run over calibration text learned about the inputs of each weight matrix.
//
// Two file forms exist, GGUF and an older one usually called .dat (see read.go
// and legacy.go). Both become a Matrix, in the units of the GGUF form. Reading
// checks all values but keeps none of them in memory: a large mixture of experts
// has a gigabyte of sums, of which quantization needs one tensor at a time.
//
// What the numbers mean, and every conversion between the forms, is as in
// llama.cpp (tools/imatrix/imatrix.cpp and tools/quantize/quantize.cpp), so
// that files made by either program give the same bytes in the other.
package calib

import (
	"cmp"
	"errors"
	"fmt"
	"io"
	"math"
	"slices"
	"strings"
	"unicode/utf8"
)

// ErrInvalid is in the chain of every error about the content of an importance
// matrix. Errors of the operating system do not have it.
var ErrInvalid = errors.New("invalid importance matrix")

// ErrSize is in the chain, with ErrInvalid, when an entry does not have the
// size of the tensor that it is asked for.
var ErrSize = errors.New("importance matrix size differs from the tensor")

// DefaultChunkSize is llama-imatrix's default for -c: the rows of a chunk where
// a file does not say.
const DefaultChunkSize = 512

// Caps on what a file may claim.
const (
	maxName   = 4096    // bytes; tensor names in GGUF have at most 63
	maxCount  = 1 << 53 // rows: more text than exists
	maxChunks = math.MaxInt32
	maxValues = math.MaxInt32 // sums of an entry: llama.cpp's type
	maxCounts = 1 << 20       // counts of an entry; models have hundreds of experts
)

// Matrix is what calibration learned about the inputs of all weight matrices.
type Matrix struct {
	// Datasets are the names of the calibration texts, in the order in which
	// they were added.
	Datasets []string
	// Chunks is the number of chunks of text; 0 when unknown.
	Chunks int
	// ChunkSize is the number of rows (tokens) of a chunk; 0 stands for
	// DefaultChunkSize.
	ChunkSize int
	// Entries are sorted by name.
	Entries []Entry
	// Warnings are oddities of the file that readers tolerate.
	Warnings []string

	name string // the file, for messages
	file io.Closer
}

// Entry is one weight tensor: a single matrix, or one for each expert.
type Entry struct {
	// Name is the weight's name in GGUF, such as "blk.3.ffn_down_exps.weight".
	Name string
	// Counts has the number of rows (tokens) that went through each matrix, or
	// one number that holds for all of them.
	Counts []int64

	size int // number of sums
	load func(dst []float32) error
}

// NewEntry describes measurements held in memory: sums has Σ x² of each input
// column over all rows, matrix after matrix, and counts the rows, for each
// matrix or once for all. Both are kept, not copied.
func NewEntry(name string, sums []float32, counts []int64) Entry {
	load := func(dst []float32) error { copy(dst, sums); return checkSums(sums, 0) }
	return Entry{Name: name, Counts: counts, size: len(sums), load: load}
}

// Size returns the number of sums: columns × matrices.
func (e *Entry) Size() int { return e.size }

// Columns returns the number of sums that share a count: the input columns of
// a matrix or, when one count holds for all matrices, Size.
func (e *Entry) Columns() int { return e.size / len(e.Counts) }

// Sums returns Σ x² of each input column over all rows, matrix after matrix,
// in a slice of its own. It reads the file, if the entry comes from one.
func (e *Entry) Sums() ([]float32, error) {
	s := make([]float32, e.size)
	if err := e.load(s); err != nil {
		return nil, fmt.Errorf("tensor %q: %w", e.Name, err)
	}
	return s, nil
}

// empty returns the number of counts that are zero.
func (e *Entry) empty() (n int) {
	for _, c := range e.Counts {
		if c == 0 {
			n++
		}
	}
	return n
}

// check says what is wrong with an entry, its sums aside.
func (e *Entry) check() error {
	if err := checkName(e.Name); err != nil {
		return err
	}
	switch {
	case len(e.Counts) == 0 || len(e.Counts) > maxCounts:
		return invalid("counts are empty or too many: %d, want 1 to %d", len(e.Counts), maxCounts)
	case e.size == 0 || e.size > maxValues:
		return invalid("no values or too many: %d, want 1 to %d", e.size, maxValues)
	case e.size%len(e.Counts) != 0:
		return invalid("%d sums cannot be divided among %d counts: sizes mismatch", e.size, len(e.Counts))
	}
	for i, c := range e.Counts {
		if c < 0 || c > maxCount {
			return invalid("count %d is %d, want 0 to %d", i, c, int64(maxCount))
		}
	}
	return nil
}

func checkName(name string) error {
	switch {
	case name == "":
		return invalid("name is empty")
	case len(name) > maxName:
		return invalid("name of %d bytes is too long (limit %d)", len(name), maxName)
	case !utf8.ValidString(name) || strings.IndexByte(name, 0) >= 0:
		return invalid("name is not text in UTF-8")
	}
	return nil
}

// checkSums refuses what no sum of squares can be. first is the index of s[0]
// in the entry.
func checkSums(s []float32, first int) error {
	for i, v := range s {
		if v >= 0 && v <= math.MaxFloat32 {
			continue
		}
		if v < 0 && v >= -math.MaxFloat32 {
			return invalid("value %d is %v: a sum of squares cannot be negative", first+i, v)
		}
		return invalid("value %d is %v, which is not finite", first+i, v)
	}
	return nil
}

// contentError matches ErrInvalid without repeating its text.
type contentError struct{ error }

func (e contentError) Is(target error) bool { return target == ErrInvalid }
func (e contentError) Unwrap() error        { return e.error }

// invalid makes an error about content.
func invalid(format string, args ...any) error { return contentError{fmt.Errorf(format, args...)} }

// about says which tensor of which file an error is about. Either name may be
// empty.
func (m *Matrix) about(tensor string, err error) error {
	if tensor != "" {
		err = fmt.Errorf("tensor %.200q: %w", tensor, err)
	}
	if m.name != "" {
		err = fmt.Errorf("%s: %w", m.name, err)
	}
	return err
}

// check says what is wrong with a matrix, its sums aside.
func (m *Matrix) check() error {
	if len(m.Entries) == 0 {
		return m.about("", invalid("no entries: there is no data"))
	}
	for _, n := range []int{m.Chunks, m.ChunkSize} {
		if n < 0 || n > maxChunks {
			return m.about("", invalid("number or size of chunks is %d, want 0 to %d", n, maxChunks))
		}
	}
	for i := range m.Entries {
		e := &m.Entries[i]
		if err := e.check(); err != nil {
			return m.about(e.Name, err)
		}
		if i > 0 && m.Entries[i-1].Name >= e.Name {
			if m.Entries[i-1].Name == e.Name {
				return m.about(e.Name, invalid("duplicate entry"))
			}
			return m.about(e.Name, invalid("entries are not sorted by name"))
		}
	}
	return nil
}

// chunkSize returns the rows of a chunk, never 0.
func (m *Matrix) chunkSize() int64 { return int64(cmp.Or(m.ChunkSize, DefaultChunkSize)) }

// Close closes the file that the matrix was read from. Entries read from it
// cannot be used afterwards.
func (m *Matrix) Close() error {
	if m.file == nil {
		return nil
	}
	err := m.file.Close()
	m.file = nil
	return err
}

// Find returns the entry of a weight tensor.
func (m *Matrix) Find(name string) (*Entry, bool) {
	i, ok := slices.BinarySearchFunc(m.Entries, name, func(e Entry, name string) int { return strings.Compare(e.Name, name) })
	if !ok {
		return nil, false
	}
	return &m.Entries[i], true
}

// Filter keeps the entries whose name contains one of the strings in include
// (when there are any) and none of those in exclude: --include-weights and
// --exclude-weights of llama-quantize.
func (m *Matrix) Filter(include, exclude []string) {
	m.Entries = slices.DeleteFunc(m.Entries, func(e Entry) bool {
		within := func(part string) bool { return strings.Contains(e.Name, part) }
		return len(include) > 0 && !slices.ContainsFunc(include, within) || slices.ContainsFunc(exclude, within)
	})
}

// Weights returns the importance of every column of a tensor, columns × experts
// values, expert after expert: the mean of x², as llama-quantize derives it. An
// expert without data has 1 everywhere. An entry with a single count may stand
// for all experts. A tensor without entry has no weights: nil, and no error.
// Errors about the size match ErrSize.
func (m *Matrix) Weights(tensor string, columns, experts int) ([]float32, error) {
	e, ok := m.Find(tensor)
	if !ok {
		return nil, nil
	}
	if err := e.check(); err != nil {
		return nil, m.about(tensor, err)
	}
	if n := len(e.Counts); e.size != columns*experts || n != 1 && n != experts {
		return nil, m.about(tensor, invalid("%w: it has %d values (%d × %d), the tensor needs %d (%d × %d)",
			ErrSize, e.size, e.Columns(), n, columns*experts, columns, experts))
	}
	w, err := e.Sums()
	if err != nil {
		return nil, m.about("", err)
	}
	for i, count := range e.Counts {
		mean(w[i*e.Columns():][:e.Columns()], count)
	}
	return w, nil
}

// mean divides sums by the number of rows they were taken over, in float32.
func mean(sums []float32, count int64) {
	n := float32(count)
	for i := range sums {
		if count == 0 {
			sums[i] = 1
		} else {
			sums[i] /= n
		}
	}
}

// Stats describes one entry.
type Stats struct {
	Name    string `json:"name"`
	Columns int    `json:"columns"` // values per count, see Entry.Columns
	Counts  int    `json:"counts"`  // 1, or the number of experts
	Empty   int    `json:"empty"`   // counts that are zero: experts that no token reached
	// Rows is the sum of all counts, MinRows and MaxRows the smallest and the
	// largest of them.
	Rows    int64 `json:"rows"`
	MinRows int64 `json:"min_rows"`
	MaxRows int64 `json:"max_rows"`
	// Sum, Min and Max are taken over the means of x² of all columns with data.
	Sum float64 `json:"sum"`
	Min float64 `json:"min"`
	Max float64 `json:"max"`
}

// Statistics describes all entries, in their order.
func (m *Matrix) Statistics() ([]Stats, error) {
	if err := m.check(); err != nil {
		return nil, err
	}
	all := make([]Stats, len(m.Entries))
	for i := range m.Entries {
		s, err := m.Entries[i].statistics()
		if err != nil {
			return nil, m.about("", err)
		}
		all[i] = s
	}
	return all, nil
}

func (e *Entry) statistics() (Stats, error) {
	s := Stats{Name: e.Name, Columns: e.Columns(), Counts: len(e.Counts), Empty: e.empty(),
		MinRows: slices.Min(e.Counts), MaxRows: slices.Max(e.Counts)}
	sums, err := e.Sums()
	if err != nil {
		return s, err
	}
	first := true
	for i, count := range e.Counts {
		s.Rows += count
		if count == 0 {
			continue
		}
		means := sums[i*s.Columns:][:s.Columns]
		mean(means, count)
		for _, v := range means {
			s.Sum += float64(v)
		}
		low, high := float64(slices.Min(means)), float64(slices.Max(means))
		if first || low < s.Min {
			s.Min = low
		}
		s.Max = max(s.Max, high)
		first = false
	}
	return s, nil
}
