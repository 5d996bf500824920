//go:build unix

package main

import (
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/winnow-moe/winnow/formats/calib"
	"github.com/winnow-moe/winnow/formats/gguf"
	"github.com/winnow-moe/winnow/quant"
)

// model is an input for both programs.
type model struct {
	typeName      string
	matrices      int
	path, imatrix string
	bytes         int64 // of weights
}

func (m *model) remove() {
	os.Remove(m.path)
	os.Remove(m.imatrix)
}

// The matrices are as wide as those of an 8B model and have 4.2 million weights.
const (
	width  = 4096
	height = 1024
	vocab  = 64
)

var names = []string{"attn_output", "attn_q", "ffn_gate", "ffn_up"}

// writeModel writes a Llama of so many matrices, four in a block, with random
// weights, and an importance matrix for it. Weights are normal with a few heavier columns.
func writeModel(dir, typeName string, matrices int) (*model, error) {
	t, _ := gguf.ParseType(typeName)
	m := &model{typeName: typeName, matrices: matrices, path: filepath.Join(dir, "model.gguf"), imatrix: filepath.Join(dir, "imatrix.gguf")}
	meta := &gguf.Metadata{}
	meta.Set("general.architecture", "llama")
	for key, v := range map[string]uint32{
		"block_count": uint32((matrices + len(names) - 1) / len(names)), "embedding_length": width, "feed_forward_length": height, "context_length": 512,
		"attention.head_count": 32, "attention.head_count_kv": 32, "vocab_size": vocab,
	} {
		meta.Set("llama."+key, v)
	}
	meta.Set("llama.attention.layer_norm_rms_epsilon", float32(1e-5))
	tensors := []gguf.TensorInfo{
		{Name: "token_embd.weight", Type: t, Shape: []int64{width, vocab}},
		{Name: "output_norm.weight", Type: gguf.F32, Shape: []int64{width}},
	}
	calibration := &calib.Matrix{Chunks: 1}
	r := rand.New(rand.NewPCG(1, 2))
	for i := range matrices {
		name := fmt.Sprintf("blk.%d.%s.weight", i/len(names), names[i%len(names)])
		tensors = append(tensors, gguf.TensorInfo{Name: name, Type: t, Shape: []int64{width, height}})
		sums := make([]float32, width)
		for c := range sums {
			sums[c] = float32(r.ExpFloat64())
		}
		calibration.Entries = append(calibration.Entries, calib.NewEntry(name, sums, []int64{1}))
	}
	slices.SortFunc(calibration.Entries, func(a, b calib.Entry) int { return strings.Compare(a.Name, b.Name) })
	if err := calibration.WriteGGUF(m.imatrix); err != nil {
		return nil, err
	}
	for i := range tensors {
		m.bytes += tensors[i].Size()
	}
	return m, writeRandom(m.path, meta, tensors, r)
}

// writeRandom writes a model whose weights are normal with a few heavier
// columns, and of vectors around 1.
func writeRandom(path string, meta *gguf.Metadata, tensors []gguf.TensorInfo, r *rand.Rand) error {
	layout, err := gguf.NewLayout(meta, tensors, gguf.LayoutOptions{})
	if err != nil {
		return err
	}
	w, err := layout.Create(path, gguf.CreateOptions{})
	if err != nil {
		return err
	}
	defer w.Abort()
	// Rows are written one by one: the most memory that this program ever held
	// counts as held by those it starts, too.
	var row []float32
	var data []byte
	for i := range tensors {
		t := &tensors[i]
		data = slices.Grow(data[:0], int(t.RowBytes()))[:t.RowBytes()]
		for n := range t.Rows() {
			row = slices.Grow(row[:0], int(t.Shape[0]))[:t.Shape[0]]
			fill(row, len(t.Shape) == 1, r)
			if err := quant.EncodeRows(t.Type, data, row, len(row), nil); err != nil {
				return err
			}
			if err := w.WriteAt(i, n*t.RowBytes(), data); err != nil {
				return err
			}
		}
	}
	return w.Commit()
}

func fill(row []float32, vector bool, r *rand.Rand) {
	for c := range row {
		v := float32(r.NormFloat64())
		switch {
		case vector:
			v = 1 + v/10
		case c%512 == 7:
			v *= 0.16
		default:
			v *= 0.02
		}
		row[c] = v
	}
}
