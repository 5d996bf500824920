package convert

import (
	"context"
	"fmt"

	"github.com/winnow-moe/winnow/formats/dtype"
	"github.com/winnow-moe/winnow/formats/gguf"
)

// Storage says how the bytes of a source tensor become numbers: a checkpoint
// element type, or a GGUF type when the source is a GGUF file.
type Storage struct {
	DType  dtype.Type
	GGUF   gguf.Type
	IsGGUF bool
}

// String names the storage as its file does.
func (s Storage) String() string {
	if s.IsGGUF {
		return s.GGUF.String()
	}
	return s.DType.String()
}

// blocks returns the GGUF type whose codec reads the storage. Other types of
// checkpoints have none, or one that does not insist on exact integers.
func (s Storage) blocks() (t gguf.Type, ok bool) {
	if s.IsGGUF {
		return s.GGUF, true
	}
	switch s.DType {
	case dtype.F16:
		return gguf.F16, true
	case dtype.BF16:
		return gguf.BF16, true
	case dtype.F32:
		return gguf.F32, true
	}
	return 0, false
}

// Source is one tensor of the input, known from its header alone.
type Source struct {
	Name    string
	Storage Storage
	// Shape lists the dimensions, slowest axis first.
	Shape []int64
	// Scale is the index of the tensor of block scales, or -1. Element (r, c)
	// is the stored value times scale (r / BlockRows, c / BlockCols).
	Scale                int
	BlockRows, BlockCols int64
}

// Cols returns the row length, Rows the number of rows; a vector is one row.
func (s *Source) Cols() int64 {
	if len(s.Shape) == 0 {
		return 1
	}
	return s.Shape[len(s.Shape)-1]
}

// Rows returns the product of all axes but the fastest.
func (s *Source) Rows() int64 {
	n := int64(1)
	for i := 0; i < len(s.Shape)-1; i++ {
		n *= s.Shape[i]
	}
	return n
}

// bytes returns the stored size of n elements.
func (s *Source) bytes(n int64) int64 {
	if s.Storage.IsGGUF {
		return s.Storage.GGUF.RowBytes(n)
	}
	return n * int64(s.Storage.DType.Bits()) / 8
}

// Inventory lists the tensors of the input in its order, without data.
type Inventory struct {
	Tensors []Source
	index   map[string]int
}

// NewInventory indexes tensors by name.
func NewInventory(tensors []Source) *Inventory {
	inv := &Inventory{Tensors: tensors, index: make(map[string]int, len(tensors))}
	for i := range tensors {
		inv.index[tensors[i].Name] = i
	}
	return inv
}

// Lookup finds a tensor by name.
func (inv *Inventory) Lookup(name string) (int, bool) { i, ok := inv.index[name]; return i, ok }

// Data reads stored bytes of an inventory's tensors. It is safe for concurrent
// use, and a short read is an error.
type Data interface {
	ReadAt(ctx context.Context, tensor int, off int64, p []byte) error
}

// Prefetcher is Data that can begin to fetch bytes before they are read.
// Prefetch does not wait for them and may do nothing.
type Prefetcher interface {
	Prefetch(tensor int, off, n int64)
}

// scaleSuffix marks the block scales of FP8 checkpoints (DeepSeek's form).
const scaleSuffix = "_scale_inv"

// attachScales ties every FP8 weight to its block scales. block is the size of
// a scale block from config.json, rows then columns. The grid is counted from
// the top left; blocks at the edges are partial.
func attachScales(inv *Inventory, block [2]int64) error {
	for i := range inv.Tensors {
		t := &inv.Tensors[i]
		t.Scale = -1
		if t.Storage.IsGGUF || !isFP8(t.Storage.DType) {
			continue
		}
		j, ok := inv.Lookup(t.Name + scaleSuffix)
		if !ok {
			return formatError("tensor %q is %s but has no scales (%q is missing)", t.Name, t.Storage, t.Name+scaleSuffix)
		}
		if block[0] < 1 || block[1] < 1 {
			return formatError("config.json: quantization_config has no weight_block_size, which the FP8 tensor %q needs", t.Name)
		}
		s := &inv.Tensors[j]
		if s.Storage.DType != dtype.F32 && s.Storage.DType != dtype.BF16 && s.Storage.DType != dtype.F16 {
			return formatError("tensor %q: scales are %s, wanted F32", s.Name, s.Storage)
		}
		rows, cols := ceilDiv(t.Rows(), block[0]), ceilDiv(t.Cols(), block[1])
		if len(s.Shape) != 2 || s.Shape[0] != rows || s.Shape[1] != cols {
			return formatError("tensor %q has shape %v; %q %v in blocks of %v needs [%d %d]", s.Name, s.Shape, t.Name, t.Shape, block, rows, cols)
		}
		t.Scale, t.BlockRows, t.BlockCols = j, block[0], block[1]
	}
	return nil
}

func isFP8(t dtype.Type) bool { return t == dtype.F8E4M3 || t == dtype.F8E5M2 }

func ceilDiv(a, b int64) int64 { return (a + b - 1) / b }

func formatError(format string, args ...any) error {
	return fmt.Errorf("%w: "+format, append([]any{ErrInput}, args...)...)
}
