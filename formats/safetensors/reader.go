// Package safetensors reads and writes HuggingFace checkpoints: one
// safetensors file, or many with an index, as one name space of tensors.
//
// It hides the file format and its traps. What Open returns has been checked
// in full (names, types, shapes, every byte of every file claimed exactly
// once), so that callers need no checks of their own before they read. Tensor
// data is never looked at; NaN and infinity pass.
//
//	c, err := safetensors.Open("DeepSeek-R1")
//	defer c.Close()
//	for i, t := range c.Tensors() {
//		buf := make([]byte, t.Size)
//		err := c.ReadAt(i, 0, buf)
//		…
//	}
package safetensors

import (
	"bytes"
	"cmp"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"math"
	"math/bits"
	"slices"
	"strings"

	"github.com/winnow-moe/winnow/formats/dtype"
	"github.com/winnow-moe/winnow/formats/strictjson"
)

// A safetensors file is
//
//	8 bytes   N, little endian
//	N bytes   the header: a JSON object, space padded
//	the rest  tensor data, end to end in some order
//
//	{"__metadata__": {"key": "text", …},
//	 "name": {"dtype": "BF16", "shape": [rows, columns], "data_offsets": [begin, end]}, …}
//
// where offsets count from the end of the header (huggingface/safetensors,
// README.md and safetensors/src/tensor.rs).

// MaxHeader is the largest header that is read or written, in bytes: the limit
// of the reference implementation.
const MaxHeader = 100_000_000

// Limits on one entry, so that no file decides how long an error message gets.
// The rank is that of NumPy; the longest names in use have about 100 bytes.
const (
	maxName = 4096
	maxRank = 64
)

// ErrFormat matches (errors.Is) every error about the content of a file or
// folder, as opposed to errors of the system.
var ErrFormat = errors.New("invalid safetensors")

// Tensor is one entry of a header or checkpoint.
type Tensor struct {
	Name   string
	DType  dtype.Type
	Shape  []int64 // slowest axis first; empty for a single value
	Shard  int     // index into Checkpoint.Files or Layout.Files
	Offset int64   // of the data, in bytes from the start of the file
	Size   int64   // of the data, in bytes
}

// Header is the directory of one file.
type Header struct {
	Tensors  []Tensor          // in the order of their data; Shard is 0
	Metadata map[string]string // of "__metadata__"; nil when there is none
}

// Parse reads and checks the header of a file of the given size. Nothing of
// the tensor data is read. name stands for the file in errors, which match
// ErrFormat unless r failed.
func Parse(r io.ReaderAt, size int64, name string) (*Header, error) {
	text, err := readHeader(r, size)
	if err != nil {
		return nil, fmt.Errorf("%q: %w", name, err)
	}
	p := parser{dataStart: 8 + int64(len(text))}
	if err := p.parse(text); err != nil {
		return nil, fmt.Errorf("%q: %w: header: %w", name, ErrFormat, err)
	}
	if err := p.checkCover(size); err != nil {
		return nil, fmt.Errorf("%q: %w: %w", name, ErrFormat, err)
	}
	return &Header{Tensors: p.tensors, Metadata: p.metadata}, nil
}

// readHeader returns the header's text.
func readHeader(r io.ReaderAt, size int64) (string, error) {
	head := make([]byte, min(max(size, 0), 64))
	if _, err := r.ReadAt(head, 0); err != nil && !errors.Is(err, io.EOF) {
		return "", err
	}
	if len(head) < 8 {
		what := "too short"
		if len(head) == 0 {
			what = "empty"
		}
		return "", fmt.Errorf("%w: the file is %s: %d bytes, at least 8 wanted", ErrFormat, what, size)
	}
	n := binary.LittleEndian.Uint64(head)
	var problem string
	switch {
	case head[0] == '{' && n > MaxHeader:
		problem = "the file starts with JSON, where the header length belongs"
	case n == 0:
		problem = "header length is 0"
	case n > MaxHeader:
		problem = fmt.Sprintf("header length %d is over the limit of %d", n, MaxHeader)
	case int64(n) > size-8:
		problem = fmt.Sprintf("header length %d is beyond the end of the file (%d bytes)", n, size)
	}
	if problem != "" {
		return "", fmt.Errorf("%w: %s%s", ErrFormat, problem, describe(head))
	}
	var text strings.Builder
	text.Grow(int(n))
	if _, err := io.CopyN(&text, io.NewSectionReader(r, 8, int64(n)), int64(n)); err != nil {
		return "", fmt.Errorf("reading the header: %w", noEOF(err))
	}
	return text.String(), nil
}

// noEOF turns the end of a file into the error that it is here.
func noEOF(err error) error {
	if errors.Is(err, io.EOF) {
		return io.ErrUnexpectedEOF
	}
	return err
}

// describe tells what a file that is no safetensors file is instead, judging
// by its first bytes: a clause to append to an error, or nothing.
func describe(head []byte) string {
	lower := bytes.ToLower(bytes.TrimSpace(head))
	switch {
	case bytes.HasPrefix(head, []byte("version https://git-lfs")):
		return "; this is a Git LFS pointer, not the file itself: fetch it with `git lfs pull`"
	case bytes.HasPrefix(head, []byte("GGUF")):
		return "; this is a GGUF file"
	case bytes.HasPrefix(lower, []byte("<!doctype")), bytes.HasPrefix(lower, []byte("<html")):
		return "; this is an HTML page: the download saved an error page"
	case bytes.HasPrefix(head, []byte("PK\x03\x04")), len(head) > 1 && head[0] == 0x80 && head[1] <= 5:
		return "; this looks like a PyTorch pickle, which is never loaded: save the model as safetensors"
	case len(head) > 0 && len(bytes.Trim(head, "\x00")) == 0:
		return "; the file starts with zeros: it was allocated but never written"
	}
	return ""
}

// parser reads one header. Its callbacks are bound once and its scratch space
// is reused: large checkpoints have a hundred thousand entries.
type parser struct {
	scan      *strictjson.Scanner
	dataStart int64
	tensors   []Tensor
	metadata  map[string]string

	shapes []int64 // where shapes of coming tensors are taken from
	field  func(string) error
	elem   func() error

	// The entry being read.
	cur  Tensor
	ints []int64 // shape, then data_offsets
	seen struct{ dtype, shape, offsets bool }
	ends [2]int64
}

const metadataKey = "__metadata__"

func (p *parser) parse(text string) (err error) {
	if p.scan, err = strictjson.NewScanner(text); err != nil {
		return err
	}
	p.field, p.elem = p.readField, p.readInt
	err = p.scan.Object(func(key string) error {
		if key == metadataKey {
			return p.readMetadata()
		}
		if len(key) > maxName {
			return fmt.Errorf("a tensor name of %d bytes is over the limit of %d", len(key), maxName)
		}
		if err := p.readTensor(key); err != nil {
			return fmt.Errorf("tensor %q: %w", key, err)
		}
		return nil
	})
	if err != nil {
		return err
	}
	return p.scan.End()
}

func (p *parser) readMetadata() error {
	p.metadata = map[string]string{}
	err := p.scan.Object(func(key string) error {
		text, err := p.scan.Text()
		if err != nil {
			return fmt.Errorf("value of %.200q: %w", key, err)
		}
		p.metadata[strings.Clone(key)] = strings.Clone(text)
		return nil
	})
	if err != nil {
		return fmt.Errorf("%s: %w", metadataKey, err)
	}
	return nil
}

// readTensor reads one entry and checks what can be checked without the others.
func (p *parser) readTensor(name string) error {
	p.cur = Tensor{Name: strings.Clone(name)} // the header's text can go
	p.seen.dtype, p.seen.shape, p.seen.offsets = false, false, false
	if err := p.scan.Object(p.field); err != nil {
		return err
	}
	switch {
	case !p.seen.dtype:
		return errors.New("field dtype is missing")
	case !p.seen.shape:
		return errors.New("field shape is missing")
	case !p.seen.offsets:
		return errors.New("field data_offsets is missing")
	}
	begin, end := p.ends[0], p.ends[1]
	if begin > end {
		return fmt.Errorf("data_offsets [%d, %d] are reversed", begin, end)
	}
	size, err := byteSize(p.cur.DType, p.cur.Shape)
	if err != nil {
		return err
	}
	if size != end-begin {
		return fmt.Errorf("shape %v of %v takes %d bytes, but data_offsets [%d, %d] give it %d", p.cur.Shape, p.cur.DType, size, begin, end, end-begin)
	}
	if end > math.MaxInt64-p.dataStart {
		return fmt.Errorf("data_offsets [%d, %d] overflow", begin, end)
	}
	p.cur.Offset, p.cur.Size = p.dataStart+begin, size
	p.tensors = append(p.tensors, p.cur)
	return nil
}

var fields = [...]string{"dtype", "shape", "data_offsets"}

func (p *parser) readField(key string) error {
	switch key {
	case "dtype":
		p.seen.dtype = true
		return p.readDType()
	case "shape":
		p.seen.shape = true
		if err := p.readInts("shape"); err != nil {
			return err
		}
		p.cur.Shape = p.keepShape()
		return nil
	case "data_offsets":
		p.seen.offsets = true
		if err := p.readInts("data_offsets"); err != nil {
			return err
		}
		if len(p.ints) != 2 {
			return fmt.Errorf("data_offsets has %d numbers, want 2", len(p.ints))
		}
		p.ends = [2]int64(p.ints)
		return nil
	}
	for _, want := range fields {
		if strings.EqualFold(key, want) {
			return fmt.Errorf("unknown field %q, which differs from %q only in case", key, want)
		}
	}
	return p.scan.Skip()
}

func (p *parser) readDType() (err error) {
	name, err := p.scan.Text()
	if err != nil {
		return fmt.Errorf("dtype: %w", err)
	}
	var ok bool
	if p.cur.DType, ok = dtype.Parse(name); !ok {
		return fmt.Errorf("unknown dtype %.200q", name)
	}
	return nil
}

// readInts reads an array of non-negative integers to p.ints.
func (p *parser) readInts(field string) error {
	p.ints = p.ints[:0]
	if err := p.scan.Array(p.elem); err != nil {
		return fmt.Errorf("%s: %w", field, err)
	}
	return nil
}

func (p *parser) readInt() error {
	n, err := p.scan.Int()
	switch {
	case err != nil:
		return err
	case n < 0:
		return fmt.Errorf("%d is negative", n)
	case len(p.ints) == maxRank:
		return fmt.Errorf("more than %d numbers", maxRank)
	}
	p.ints = append(p.ints, n)
	return nil
}

// keepShape copies p.ints to memory of its own, many shapes per allocation.
func (p *parser) keepShape() []int64 {
	n := len(p.ints)
	if len(p.shapes) < n {
		p.shapes = make([]int64, max(n, 512))
	}
	shape := p.shapes[:n:n]
	p.shapes = p.shapes[n:]
	copy(shape, p.ints)
	return shape
}

// byteSize returns the bytes of a tensor.
func byteSize(t dtype.Type, shape []int64) (int64, error) {
	n := uint64(t.Bits())
	for _, dim := range shape {
		hi, lo := bits.Mul64(n, uint64(dim))
		if hi != 0 || lo > math.MaxInt64 {
			return 0, fmt.Errorf("shape %v of %v is too large: its size overflows", shape, t)
		}
		n = lo
	}
	if n%8 != 0 {
		return 0, fmt.Errorf("shape %v of %v does not fill whole bytes: its size is %d bits", shape, t, n)
	}
	return int64(n / 8), nil
}

// checkCover sorts the tensors by their data and proves that they cover all
// that follows the header: no hole, no overlap, nothing left over.
func (p *parser) checkCover(size int64) error {
	slices.SortStableFunc(p.tensors, func(a, b Tensor) int {
		return cmp.Or(cmp.Compare(a.Offset, b.Offset), cmp.Compare(a.Size, b.Size))
	})
	end := p.dataStart
	for i, t := range p.tensors {
		if t.Offset != end {
			return p.misplaced(i, end)
		}
		if end += t.Size; end > size {
			return fmt.Errorf("the file is truncated: tensor %q ends at byte %d, but the file size is %d", t.Name, end, size)
		}
	}
	if end < size {
		return fmt.Errorf("%d trailing bytes after the last tensor, which no tensor covers", size-end)
	}
	return nil
}

// misplaced says why tensor i, whose data should start at byte end, is wrong.
func (p *parser) misplaced(i int, end int64) error {
	t := p.tensors[i]
	begin := t.Offset - p.dataStart
	switch {
	case i == 0:
		return fmt.Errorf("tensor %q: hole of %d bytes before the first data, which start at offset %d", t.Name, t.Offset-end, begin)
	case t.Offset > end:
		return fmt.Errorf("tensor %q: hole of %d bytes between two tensors: %q ends at offset %d, the next starts at offset %d",
			t.Name, t.Offset-end, p.tensors[i-1].Name, end-p.dataStart, begin)
	}
	return fmt.Errorf("tensor %q: its data, from offset %d on, overlap those of tensor %q", t.Name, begin, p.tensors[i-1].Name)
}
