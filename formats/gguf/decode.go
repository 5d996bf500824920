package gguf

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"math"
	"unicode/utf8"
)

// Caps on what a file may claim. They are far above what published models
// hold and low enough that a hostile header cannot exhaust memory. Names and
// dimensions follow ggml (ggml.h GGML_MAX_NAME, GGML_MAX_DIMS), keys the GGUF
// specification, strings and arrays stay below the limits of ggml's own reader
// (gguf.cpp: 1 GiB and 2^30) because the largest known vocabularies have fewer
// than a million entries and the largest chat templates are below 2 MiB.
const (
	maxKeys        = 1 << 16
	maxTensors     = 1 << 20
	maxKeyBytes    = 1<<16 - 1 // gguf.md: "at most 2^16-1 bytes long"
	maxNameBytes   = 63        // GGML_MAX_NAME, which counts the final NUL
	maxDims        = 4         // GGML_MAX_DIMS
	maxStringBytes = 64 << 20
	maxStrings     = 16 << 20 // elements of an array of strings or arrays
	maxNumbers     = 64 << 20 // elements of an array of numbers
	maxNesting     = 4        // arrays within arrays; ggml reads none at all
	maxAlignment   = 1 << 20
	maxHeaderBytes = 1 << 30 // everything before the tensor data
	maxSplits      = math.MaxUint16
)

// Smallest encodings, which bound counts by the bytes that remain.
const (
	minKeyBytes    = 8 + 4 + 1     // length, type, one-byte value
	minTensorBytes = 8 + 4 + 4 + 8 // name length, dimensions, type, offset
	headBytes      = 4 + 4 + 8 + 8 // magic, version, tensors, keys
	chunkBytes     = 1 << 20       // read granularity: few requests over HTTP, little waste on disk
	magic          = "GGUF"
	writtenVersion = uint32(3)
)

// ErrFormat is in the chain of every error that says a file is not valid
// GGUF, or that the parts of a split set do not fit together. Errors of the
// operating system do not have it.
var ErrFormat = errors.New("invalid GGUF")

// formatError names the file and the place in it that is wrong.
type formatError struct{ file, field, text string }

func (e *formatError) Error() string {
	if e.field == "" {
		return e.file + ": " + e.text
	}
	return e.file + ": " + e.field + ": " + e.text
}

func (e *formatError) Is(target error) bool { return target == ErrFormat }

// decoder reads little-endian values from a ReaderAt in chunks.
type decoder struct {
	r     io.ReaderAt
	name  string
	field string // what is being read, for messages
	size  int64
	pos   int64  // file offset of the next byte
	buf   []byte // file bytes [at, at+len(buf))
	at    int64
	mem   []byte
}

func (d *decoder) fail(format string, args ...any) error {
	return &formatError{d.name, d.field, fmt.Sprintf(format, args...)}
}

func (d *decoder) remaining() int64 { return d.size - d.pos }

// need checks that n more bytes exist, n as found in the file.
func (d *decoder) need(n uint64, what string) error {
	if n > uint64(d.remaining()) {
		return d.fail("file is truncated: %s needs %d bytes at offset %d, %d remain of %d", what, n, d.pos, d.remaining(), d.size)
	}
	if n > uint64(maxHeaderBytes) || d.pos > maxHeaderBytes-int64(n) {
		return d.fail("header is larger than the limit of %d bytes", maxHeaderBytes)
	}
	return nil
}

// next returns the next n bytes, at most chunkBytes, valid until the next call.
func (d *decoder) next(n int64, what string) ([]byte, error) {
	if err := d.need(uint64(n), what); err != nil {
		return nil, err
	}
	if d.pos+n > d.at+int64(len(d.buf)) {
		k := min(chunkBytes, d.remaining())
		if int64(len(d.mem)) < k {
			d.mem = make([]byte, k)
		}
		d.buf, d.at = d.mem[:k], d.pos
		if err := readFull(d.r, d.buf, d.pos, d.name); err != nil {
			return nil, err
		}
	}
	b := d.buf[d.pos-d.at:][:n]
	d.pos += n
	return b, nil
}

// readFull fills b from offset off. A file that became shorter since its size
// was taken is an error, never a short result.
func readFull(r io.ReaderAt, b []byte, off int64, name string) error {
	n, err := r.ReadAt(b, off)
	if n == len(b) {
		return nil
	}
	if err == nil || errors.Is(err, io.EOF) {
		err = io.ErrUnexpectedEOF
	}
	return fmt.Errorf("%s: reading %d bytes at offset %d: %w", name, len(b), off, err)
}

func (d *decoder) u32(what string) (uint32, error) {
	b, err := d.next(4, what)
	if err != nil {
		return 0, err
	}
	return binary.LittleEndian.Uint32(b), nil
}

func (d *decoder) u64(what string) (uint64, error) {
	b, err := d.next(8, what)
	if err != nil {
		return 0, err
	}
	return binary.LittleEndian.Uint64(b), nil
}

// str reads a string of at most limit bytes.
func (d *decoder) str(limit uint64, what string) (string, error) {
	n, err := d.u64(what)
	if err != nil {
		return "", err
	}
	if n > limit {
		return "", d.fail("%s length %d is too large (limit %d)", what, n, limit)
	}
	if n <= chunkBytes {
		b, err := d.next(int64(n), what)
		return string(b), err
	}
	if err := d.need(n, what); err != nil {
		return "", err
	}
	b := make([]byte, n)
	if err := readFull(d.r, b, d.pos, d.name); err != nil {
		return "", err
	}
	d.pos += int64(n)
	return string(b), nil
}

// ident reads a key or a tensor name: text that must be printable as UTF-8.
func (d *decoder) ident(limit uint64, what string) (string, error) {
	s, err := d.str(limit, what)
	if err != nil {
		return "", err
	}
	if err := checkIdent(s, limit, what); err != nil {
		return "", d.fail("%s", err)
	}
	return s, nil
}

// checkIdent holds for keys and tensor names, read or written.
func checkIdent(s string, limit uint64, what string) error {
	switch {
	case s == "":
		return fmt.Errorf("%s is empty", what)
	case uint64(len(s)) > limit:
		return fmt.Errorf("%s %.40q… of %d bytes is too long (limit %d)", what, s, len(s), limit)
	case !utf8.ValidString(s):
		return fmt.Errorf("%s %q is not valid UTF-8", what, s)
	}
	for i := range len(s) {
		if s[i] == 0 {
			return fmt.Errorf("%s %q contains a NUL byte", what, s)
		}
	}
	return nil
}

// fixed reads values of one type that has a fixed width.
type fixed struct {
	width int64
	one   func(*decoder) (any, error)
	many  func(d *decoder, n int64) (any, error)
}

var fixedTypes = map[ValueType]fixed{
	TypeUint8: fixedType[uint8](), TypeInt8: fixedType[int8](), TypeBool: fixedType[bool](),
	TypeUint16: fixedType[uint16](), TypeInt16: fixedType[int16](),
	TypeUint32: fixedType[uint32](), TypeInt32: fixedType[int32](), TypeFloat32: fixedType[float32](),
	TypeUint64: fixedType[uint64](), TypeInt64: fixedType[int64](), TypeFloat64: fixedType[float64](),
}

func fixedType[T any]() fixed {
	var zero T
	width := int64(binary.Size(zero))
	many := func(d *decoder, n int64) ([]T, error) {
		out := make([]T, n)
		for rest := out; len(rest) > 0; {
			k := min(len(rest), int(chunkBytes/width))
			b, err := d.next(int64(k)*width, "value")
			if err != nil {
				return nil, err
			}
			if err := d.checkBools(zero, b); err != nil {
				return nil, err
			}
			if _, err := binary.Decode(b, binary.LittleEndian, rest[:k]); err != nil {
				return nil, err
			}
			rest = rest[k:]
		}
		return out, nil
	}
	return fixed{
		width: width,
		one: func(d *decoder) (any, error) {
			v, err := many(d, 1)
			if err != nil {
				return nil, err
			}
			return v[0], nil
		},
		many: func(d *decoder, n int64) (any, error) {
			v, err := many(d, n)
			return v, err
		},
	}
}

// checkBools refuses a boolean other than 0 and 1: by gguf.md the file is then
// invalid or its reader has lost its place.
func (d *decoder) checkBools(kind any, b []byte) error {
	if _, ok := kind.(bool); !ok {
		return nil
	}
	for _, c := range b {
		if c > 1 {
			return d.fail("bool has value %d, want 0 or 1", c)
		}
	}
	return nil
}

// value reads a value of type t.
func (d *decoder) value(t ValueType) (any, error) {
	switch t {
	case TypeString:
		return d.str(maxStringBytes, "string")
	case TypeArray:
		return d.array(1)
	}
	f, ok := fixedTypes[t]
	if !ok {
		return nil, d.fail("unknown value type %d", uint32(t))
	}
	return f.one(d)
}

// array reads an array: element type, length, elements.
func (d *decoder) array(depth int) (any, error) {
	if depth > maxNesting {
		return nil, d.fail("array is nested deeper than %d levels", maxNesting)
	}
	et, err := d.u32("array element type")
	if err != nil {
		return nil, err
	}
	n, err := d.u64("array length")
	if err != nil {
		return nil, err
	}
	switch t := ValueType(et); t {
	case TypeString:
		return d.strings(n)
	case TypeArray:
		return d.nested(n, depth)
	default:
		f, ok := fixedTypes[t]
		if !ok {
			return nil, d.fail("unknown array element type %d", et)
		}
		if err := d.checkLength(n, maxNumbers, f.width); err != nil {
			return nil, err
		}
		return f.many(d, int64(n))
	}
}

// checkLength bounds an array length before memory is taken for it.
func (d *decoder) checkLength(n, limit uint64, width int64) error {
	if n > limit {
		return d.fail("array length %d is too large (limit %d)", n, limit)
	}
	return d.need(n*uint64(width), fmt.Sprintf("array of length %d", n))
}

func (d *decoder) strings(n uint64) (any, error) {
	if err := d.checkLength(n, maxStrings, 8); err != nil {
		return nil, err
	}
	out := make([]string, n)
	for i := range out {
		var err error
		if out[i], err = d.str(maxStringBytes, "string"); err != nil {
			return nil, err
		}
	}
	return out, nil
}

func (d *decoder) nested(n uint64, depth int) (any, error) {
	if err := d.checkLength(n, maxStrings, 12); err != nil {
		return nil, err
	}
	out := make([]Nested, n)
	for i := range out {
		var err error
		if out[i].Value, err = d.array(depth + 1); err != nil {
			return nil, err
		}
	}
	return out, nil
}
