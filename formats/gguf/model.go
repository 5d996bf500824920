package gguf

import "context"

// Model is what the rest of winnow needs of a model in GGUF terms: typed
// metadata, a tensor directory, and rows on demand. A GGUF file implements it
// (reader.go), and so does a conversion plan over a checkpoint, whose rows are
// computed when asked for, so that a checkpoint can be scored with no file
// written.
type Model interface {
	// Metadata returns the key/value pairs. Callers must not change them.
	Metadata() *Metadata
	// Tensors returns the directory in file order. Callers must not change it.
	Tensors() []TensorInfo
	// Rows returns the encoded bytes of rows [first, first+n) of tensor i
	// (index into Tensors). The result may alias the model's own read-only
	// memory or buf, which is grown when too small; it is valid until buf is
	// used again. Safe for concurrent use with distinct bufs.
	Rows(ctx context.Context, i int, first, n int64, buf []byte) ([]byte, error)
	// Release says that tensor i will not be read again soon, so that pages
	// or caches holding it can go. It never invalidates anything.
	Release(i int)
	// Close frees files and mappings.
	Close() error
}
