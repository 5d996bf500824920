package convert

import (
	"errors"

	"github.com/winnow-moe/winnow/formats/arch"
	"github.com/winnow-moe/winnow/formats/calib"
	"github.com/winnow-moe/winnow/formats/gguf"
	"github.com/winnow-moe/winnow/quant"
)

// Importance is an importance matrix in use.
type Importance struct {
	Matrix *calib.Matrix
	// File is the name that outputs record.
	File string
}

// Keys that record the importance matrix in an output (llama.cpp
// tools/quantize/quantize.cpp).
const (
	keyImatrixFile    = "quantize.imatrix.file"
	keyImatrixDataset = "quantize.imatrix.dataset"
	keyImatrixEntries = "quantize.imatrix.entries_count"
	keyImatrixChunks  = "quantize.imatrix.chunks_count"
)

// maxOverride is the most bytes of a string that llama.cpp's key overrides,
// which also carry the imatrix keys, have room for.
const maxOverride = 127

// recipeOptions are the options of recipes that follow from the request.
func (r *Request) recipeOptions() quant.Options {
	opt := r.Quant
	opt.Imatrix = r.Importance != nil && len(r.Importance.Matrix.Entries) > 0
	opt.FileOrder = r.KeepSplit
	return opt
}

// finish appends to an output's keys what the request adds, in
// llama-quantize's order.
func (r *Request) finish(md *gguf.Metadata) {
	for _, o := range r.Overrides {
		setLast(md, o.Key, o.Value)
	}
	if r.Importance == nil {
		return
	}
	m := r.Importance.Matrix
	setLast(md, keyImatrixFile, cut(r.Importance.File))
	if len(m.Datasets) > 0 {
		setLast(md, keyImatrixDataset, cut(m.Datasets[0]))
	}
	setLast(md, keyImatrixEntries, uint32(len(m.Entries)))
	if m.Chunks > 0 {
		setLast(md, keyImatrixChunks, uint32(m.Chunks))
	}
}

func cut(s string) string { return s[:min(len(s), maxOverride)] }

// checkImportance refuses a choice that cannot do without weights that are not
// there, and an entry whose size is not the tensor's.
func (p *Plan) checkImportance(r *quant.Recipe, c *quant.Choice, tensor int) error {
	t := &p.Tensors[tensor]
	var entry *calib.Entry
	if p.importance != nil {
		entry, _ = p.importance.Matrix.Find(t.measured)
	}
	switch {
	case entry == nil && c.NeedsWeights:
		return hinted("pass --imatrix with an entry for the tensor, or choose a type of three bits or more such as Q3_K_M",
			refused("%s makes tensor %q %s, which needs an importance matrix with an entry for it (missing)", r.Name, t.Name, c.Type))
	case entry == nil || c.Copied || !c.Type.Quantized() || isEmbedding(t.Name):
		return nil
	}
	info := gguf.TensorInfo{Shape: t.Shape}
	if want := info.Elements() / matrixRows(t.Shape); int64(entry.Size()) != want {
		return formatError("imatrix size %d is different from tensor size %d for %q", entry.Size(), want, t.Name)
	}
	return nil
}

// isEmbedding names the tensors whose unfitting importance llama-quantize
// ignores: token ids, not activations, select their rows.
func isEmbedding(name string) bool {
	role := arch.ParseName(name).Role
	return role == arch.TokenEmbd || role == arch.PerLayerTokenEmbd
}

// matrixRows returns the rows of one matrix of a stack.
func matrixRows(shape []int64) int64 {
	if len(shape) < 2 {
		return 1
	}
	return max(1, shape[1])
}

// tensorWeights are the importance weights of the tensor a worker is at.
type tensorWeights struct {
	tensor int
	loaded bool
	values []float32 // columns × matrices; nil: none
}

// load reads the weights of a tensor unless they are the ones at hand.
func (w *tensorWeights) load(p *Plan, tensor int) error {
	if w.loaded && w.tensor == tensor {
		return nil
	}
	t := &p.Tensors[tensor]
	info := gguf.TensorInfo{Shape: t.Shape}
	cols := info.RowLen()
	matrices := info.Rows() / matrixRows(t.Shape)
	values, err := p.importance.Matrix.Weights(t.measured, int(cols), int(matrices))
	if errors.Is(err, calib.ErrSize) && isEmbedding(t.Name) {
		values, err = nil, nil
	}
	if err != nil {
		return err
	}
	w.tensor, w.loaded, w.values = tensor, true, values
	return nil
}

// of returns the weights of one matrix, nil where there are none.
func (w *tensorWeights) of(matrix, cols int64) []float32 {
	if w.values == nil {
		return nil
	}
	return w.values[matrix*cols : (matrix+1)*cols]
}
