package convert

import (
	"context"
	"fmt"

	"github.com/winnow-moe/winnow/formats/arch"
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

// Source is one tensor of the input, known from its header alone. A weight that
// is stored in several tensors takes the place of the one that holds its codes,
// with the name and shape of the weight.
type Source struct {
	Name    string
	Storage Storage
	// Shape lists the dimensions, slowest axis first.
	Shape []int64
	// Values are those of a computed tensor, which no file has. Compute does the
	// same for a tensor of any size, a few whole rows at a time.
	Values  []float32
	Compute func(ctx context.Context, first, n int64, dst []float32) error

	packed packing // nil: elements of the type that Storage names
}

// format names the way in which the source is stored.
func (s *Source) format() string {
	if s.packed != nil {
		return s.packed.String()
	}
	return s.Storage.String()
}

// computed reports whether no file has the tensor.
func (s *Source) computed() bool { return s.Values != nil || s.Compute != nil }

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

// bytes returns the stored size of n elements, scales not counted.
func (s *Source) bytes(n int64) int64 {
	switch {
	case s.Storage.IsGGUF:
		return s.Storage.GGUF.RowBytes(n)
	case s.packed != nil:
		return n * s.packed.bits() / 8
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
		inv.index[arch.Canonical(tensors[i].Name)] = i
	}
	for i := range tensors {
		inv.index[tensors[i].Name] = i
	}
	return inv
}

// Lookup finds a tensor by its name, or by that in a model of texts alone.
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

// rename gives tensor i the name and shape of the weight that it holds codes of.
func (inv *Inventory) rename(i int, name string, shape []int64) error {
	if j, ok := inv.index[name]; ok && j != i && inv.Tensors[j].Name == name {
		return formatError("tensors %q and %q hold the same weight", inv.Tensors[i].Name, name)
	}
	inv.Tensors[i].Name, inv.Tensors[i].Shape = name, shape
	inv.index[arch.Canonical(name)] = i
	inv.index[name] = i
	return nil
}

func ceilDiv(a, b int64) int64 { return (a + b - 1) / b }

func formatError(format string, args ...any) error {
	return fmt.Errorf("%w: "+format, append([]any{ErrInput}, args...)...)
}
