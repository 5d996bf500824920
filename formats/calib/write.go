package calib

import (
	"bufio"
	"encoding/binary"
	"fmt"
	"slices"

	"github.com/winnow-moe/winnow/formats/dtype"
	"github.com/winnow-moe/winnow/formats/durable"
	"github.com/winnow-moe/winnow/formats/gguf"
)

// WriteGGUF writes the GGUF form, byte for byte as llama-imatrix does. The file
// has its name only when it is complete and on disk.
func (m *Matrix) WriteGGUF(path string) error {
	if err := m.check(); err != nil {
		return fmt.Errorf("writing %s: %w", path, err)
	}
	meta, tensors := m.header()
	layout, err := gguf.NewLayout(meta, tensors, gguf.LayoutOptions{})
	if err != nil {
		return invalid("writing %s: %w", path, err)
	}
	w, err := layout.Create(path, gguf.CreateOptions{})
	if err != nil {
		return err
	}
	defer w.Abort()
	if err := m.writeEntries(w); err != nil {
		return err
	}
	return w.Commit()
}

// header returns metadata and tensors of the GGUF form.
func (m *Matrix) header() (*gguf.Metadata, []gguf.TensorInfo) {
	meta := &gguf.Metadata{}
	meta.Set(gguf.KeyGeneralType, fileType)
	meta.Set(keyDatasets, m.Datasets)
	meta.Set(keyChunkCount, uint32(m.Chunks))
	meta.Set(keyChunkSize, uint32(m.chunkSize()))
	var tensors []gguf.TensorInfo
	for i := range m.Entries {
		e := &m.Entries[i]
		n := int64(len(e.Counts))
		tensors = append(tensors,
			gguf.TensorInfo{Name: e.Name + suffixSums, Type: gguf.F32, Shape: shape(int64(e.Columns()), n)},
			gguf.TensorInfo{Name: e.Name + suffixCounts, Type: gguf.F32, Shape: shape(1, n)})
	}
	return meta, tensors
}

// writeEntries writes the tensors of header.
func (m *Matrix) writeEntries(w *gguf.Writer) error {
	for i := range m.Entries {
		if err := m.Entries[i].writeGGUF(w, 2*i); err != nil {
			return m.about("", err)
		}
	}
	return nil
}

// shape drops a last dimension of 1, as ggml does.
func shape(columns, rows int64) []int64 {
	if rows == 1 {
		return []int64{columns}
	}
	return []int64{columns, rows}
}

// writeGGUF writes sums and counts as tensors t and t+1.
func (e *Entry) writeGGUF(w *gguf.Writer, t int) error {
	sums, err := e.Sums()
	if err != nil {
		return err
	}
	if err := w.WriteAt(t, 0, encode(sums)); err != nil {
		return err
	}
	counts := make([]float32, len(e.Counts))
	for i, n := range e.Counts {
		counts[i] = float32(n)
	}
	return w.WriteAt(t+1, 0, encode(counts))
}

func encode(f []float32) []byte {
	b := make([]byte, 4*len(f))
	dtype.EncodeF32(b, f)
	return b
}

// WriteDat writes the legacy form, byte for byte as llama-imatrix does with
// --output-format dat. It has room for less: of the datasets the last, one
// number of calls for all experts of an entry, and nothing of entries without
// any data. The file has its name only when it is complete and on disk.
func (m *Matrix) WriteDat(path string) error {
	if err := m.checkLegacy(); err != nil {
		return fmt.Errorf("writing %s: %w", path, err)
	}
	return durable.WriteFile(path, func(w *bufio.Writer) error {
		var stored []*Entry
		for i := range m.Entries {
			if e := &m.Entries[i]; e.empty() < len(e.Counts) {
				stored = append(stored, e)
			}
		}
		put(w, len(stored), "")
		for _, e := range stored {
			if err := m.writeEntry(w, e); err != nil {
				return m.about("", err)
			}
		}
		dataset := ""
		if n := len(m.Datasets); n > 0 {
			dataset = m.Datasets[n-1]
		}
		put(w, m.Chunks, "")
		put(w, len(dataset), dataset)
		return nil
	})
}

// put writes an i32 and text. A bufio.Writer keeps its first error until Flush.
func put(w *bufio.Writer, n int, text string) {
	var b [4]byte
	binary.LittleEndian.PutUint32(b[:], uint32(n))
	w.Write(b[:])
	w.WriteString(text)
}

// checkLegacy says what the legacy form cannot hold.
func (m *Matrix) checkLegacy() error {
	if err := m.check(); err != nil {
		return err
	}
	data := false
	for i := range m.Entries {
		e := &m.Entries[i]
		data = data || e.empty() < len(e.Counts)
		if m.calls(e) > maxChunks {
			return m.about(e.Name, invalid("%d calls are too many for a legacy file (limit %d)", m.calls(e), maxChunks))
		}
	}
	if n := len(m.Datasets); n > 0 && len(m.Datasets[n-1]) > maxDataset {
		return m.about("", invalid("name of the last dataset has %d bytes (limit %d)", len(m.Datasets[n-1]), maxDataset))
	}
	if !data {
		return m.about("", invalid("no entry has data, and a legacy file has no room for such entries"))
	}
	return nil
}

// calls returns the number of chunks of an entry, rounded up so that some data
// is never none.
func (m *Matrix) calls(e *Entry) int64 {
	return (slices.Max(e.Counts) + m.chunkSize() - 1) / m.chunkSize()
}

// writeEntry writes mean × calls for each sum. The order of the operations
// matters: each is rounded to float32.
func (m *Matrix) writeEntry(w *bufio.Writer, e *Entry) error {
	sums, err := e.Sums()
	if err != nil {
		return err
	}
	calls := m.calls(e)
	for i, n := range e.Counts {
		means := sums[i*e.Columns():][:e.Columns()]
		mean(means, n)
		for j := range means {
			means[j] *= float32(calls)
		}
	}
	put(w, len(e.Name), e.Name)
	put(w, int(calls), "")
	put(w, len(sums), "")
	w.Write(encode(sums))
	return nil
}
