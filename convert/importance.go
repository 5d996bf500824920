package convert

import (
	"errors"
	"fmt"
	"slices"

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
	// Selected says that entries were left out on purpose, so that tensors
	// without one are nothing to remark on.
	Selected bool
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

// keySearch names the search in an output that differs from llama-quantize's
// for it.
const keySearch = "winnow.quantize.search"

// recordSearch sets keySearch if the search of any tensor is not the default
// one. What the input's key says holds only for copies.
func recordSearch(md *gguf.Metadata, r *quant.Recipe, choices []quant.Choice) {
	i := slices.IndexFunc(choices, func(c quant.Choice) bool { return c.Search != quant.DefaultSearch })
	switch {
	case i >= 0:
		setLast(md, keySearch, choices[i].Search.String())
	case !r.KeepsTypes:
		md.Delete(keySearch)
	}
}

func cut(s string) string { return s[:min(len(s), maxOverride)] }

// checkImportance refuses choices that cannot do without weights that are not
// there, and entries whose size is not the tensor's. It notes where weights
// are missing that would have been used.
func (p *Plan) checkImportance(r *quant.Recipe, choices []quant.Choice) error {
	var lacking, bare, unseen []int
	for i := range choices {
		c, t := &choices[i], &p.Tensors[i]
		codec, _ := quant.Lookup(c.Type)
		entry, fits := p.entry(t)
		switch {
		case c.Copied, !c.Type.Quantized():
		case entry != nil && !fits && !isEmbedding(t.Name):
			info := gguf.TensorInfo{Shape: t.Shape}
			return hinted("the importance matrix is of another model, or of another version of it",
				formatError("imatrix size %d is different from tensor size %d for %q", entry.Size(), info.Elements()/matrixRows(t.Shape), t.Name))
		case !codec.UsesWeights && !c.NeedsWeights:
		case fits && slices.Contains(entry.Counts, 0):
			unseen = append(unseen, i)
		case fits:
		case c.NeedsWeights || codec.NeedsWeights:
			lacking = append(lacking, i)
		case !isEmbedding(t.Name) && arch.ParseName(t.Name).Role != arch.Output: // those are not measured
			bare = append(bare, i)
		}
	}
	if p.importance != nil && !p.importance.Selected {
		p.noteTensors(bare, "the importance matrix has no entry for %s: quantized without")
	}
	p.noteTensors(unseen, "the importance matrix saw no token for matrices of %s: they are quantized with equal weights")
	if len(lacking) == 0 {
		return nil
	}
	first := &p.Tensors[lacking[0]]
	text := fmt.Sprintf("%s makes tensor %q %s, which needs an importance matrix", r.Name, first.Name, choices[lacking[0]].Type)
	if p.importance != nil {
		text += " that has an entry for it"
	}
	if n := len(lacking) - 1; n > 0 {
		text += fmt.Sprintf("; so do %d more", n)
	}
	return p.refuse(lackingHint(p.importance == nil, isEmbedding(first.Name)), text)
}

// entry finds the entry for a tensor and tells whether it has its size.
func (p *Plan) entry(t *Tensor) (e *calib.Entry, fits bool) {
	if p.importance == nil {
		return nil, false
	}
	e, ok := p.importance.Matrix.Find(t.measured)
	if !ok {
		return nil, false
	}
	info := gguf.TensorInfo{Shape: t.Shape}
	return e, int64(e.Size()) == info.Elements()/matrixRows(t.Shape)
}

// noteTensors adds a note about tensors unless it is there already, for
// another output. format has a place for how many there are.
func (p *Plan) noteTensors(tensors []int, format string) {
	if len(tensors) == 0 {
		return
	}
	what := fmt.Sprintf("tensor %q", p.Tensors[tensors[0]].Name)
	if n := len(tensors); n > 1 {
		what = fmt.Sprintf("%d tensors, such as %q", n, p.Tensors[tensors[0]].Name)
	}
	if note := fmt.Sprintf(format, what); !slices.Contains(p.Notes, note) {
		p.Notes = append(p.Notes, note)
	}
}

// lackingHint says what to do about a tensor without importance.
func lackingHint(noMatrix, embedding bool) string {
	switch {
	case embedding:
		return "token embeddings are never measured: choose another type for them, such as Q2_K or IQ2_S"
	case noMatrix:
		return "pass --imatrix, or choose a type of three bits or more such as Q3_K_M"
	}
	return "measure with a text that reaches the tensor, or give it a type of three bits or more with --tensor-type"
}

// refuse is an error about what was asked for, or a note in a preview.
func (p *Plan) refuse(hint, text string) error {
	if !p.preview {
		return hinted(hint, refused("%s", text))
	}
	p.Notes = append(p.Notes, "a real run is refused: "+text+" ("+hint+")")
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
