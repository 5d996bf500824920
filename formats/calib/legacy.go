package calib

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"

	"github.com/winnow-moe/winnow/formats/gguf"
)

// The legacy form, little-endian:
//
//	i32 entries
//	entries × { i32 length, name | i32 calls | i32 values | values × f32 }
//	optional: i32 chunks | i32 length, dataset
//
// A value is the mean of x² times the number of calls, which is the number of
// chunks; experts are not counted one by one. There is no size of a chunk: it
// takes one to get back to sums and rows.

// minEntry is the smallest entry: name length, one byte, calls, values, one value.
const minEntry = 4 + 1 + 4 + 4 + 4

// maxDataset bounds the name of a text, a path as a rule.
const maxDataset = 1 << 20

// legacy is a position in a legacy file.
type legacy struct {
	r         io.ReaderAt
	pos, size int64
	// recognized is true once a name was found: then the file is of this form.
	recognized bool
}

// remaining returns the bytes that follow.
func (l *legacy) remaining() int64 { return l.size - l.pos }

// next returns the next n bytes.
func (l *legacy) next(n int64, what string) ([]byte, error) {
	if n > l.remaining() {
		return nil, invalid("file is truncated: %s needs %d bytes at offset %d, %d remain", what, n, l.pos, l.remaining())
	}
	b := make([]byte, n)
	if err := readFull(l.r, b, l.pos); err != nil {
		return nil, err
	}
	l.pos += n
	return b, nil
}

// number reads an i32 between low and high.
func (l *legacy) number(what string, low, high int64) (int64, error) {
	b, err := l.next(4, what)
	if err != nil {
		return 0, err
	}
	n := int64(int32(binary.LittleEndian.Uint32(b)))
	if n < low || n > high {
		return 0, invalid("%s is %d, want %d to %d", what, n, low, high)
	}
	return n, nil
}

// text reads a string of at most high bytes.
func (l *legacy) text(what string, low, high int64) (string, error) {
	n, err := l.number("length of the "+what, low, high)
	if err != nil {
		return "", err
	}
	b, err := l.next(n, what)
	return string(b), err
}

// readLegacy reads the legacy form.
func (m *Matrix) readLegacy(r io.ReaderAt, size int64, opt Options) error {
	m.ChunkSize = opt.ChunkSize
	l := &legacy{r: r, size: size}
	n, err := l.number("number of entries", 1, max(size/minEntry, 1))
	for i := int64(0); i < n && err == nil; i++ {
		if err = m.readEntry(l); err != nil {
			err = fmt.Errorf("entry %d of %d: %w", i+1, n, err)
		}
	}
	if err == nil {
		err = m.readTrailer(l)
	}
	if errors.Is(err, ErrInvalid) && !l.recognized {
		return m.notAMatrix(r, size, err)
	}
	if err != nil {
		return m.about("", err)
	}
	return nil
}

// notAMatrix adds what the GGUF reader says: it knows web pages, git-lfs
// pointers and others by their first bytes.
func (m *Matrix) notAMatrix(r io.ReaderAt, size int64, err error) error {
	_, other := gguf.Parse(r, size, m.name)
	return fmt.Errorf("%w; as a legacy imatrix file: %w", other, err)
}

func (m *Matrix) readEntry(l *legacy) error {
	name, err := l.text("name", 1, maxName)
	if err != nil {
		return err
	}
	if err := checkName(name); err != nil {
		return err
	}
	l.recognized = true
	within := func(err error) error { return fmt.Errorf("tensor %q: %w", name, err) }
	calls, err := l.number("number of calls", 1, maxChunks)
	if err != nil {
		return within(err)
	}
	n, err := l.number("number of values", 1, maxValues)
	if err != nil {
		return within(err)
	}
	if n > l.remaining()/4 {
		return within(invalid("file is truncated: %d values need %d bytes, %d remain", n, 4*n, l.remaining()))
	}
	v := values{l.r, l.pos, int(n), float32(m.chunkSize())}
	l.pos += 4 * n
	if err := m.add(name, []int64{calls * m.chunkSize()}, v); err != nil {
		return within(err)
	}
	return nil
}

// readTrailer reads what llama-imatrix appends since 2024.
func (m *Matrix) readTrailer(l *legacy) error {
	if l.remaining() == 0 {
		return nil
	}
	n, err := l.number("number of chunks", 0, maxChunks)
	if err != nil || l.remaining() == 0 {
		m.Chunks = int(n)
		return err
	}
	m.Chunks = int(n)
	dataset, err := l.text("dataset name", 0, maxDataset)
	if err != nil {
		return err
	}
	if dataset != "" {
		m.Datasets = []string{dataset}
	}
	if l.remaining() > 0 {
		m.warn("%d extra bytes at the end", l.remaining())
	}
	return nil
}
