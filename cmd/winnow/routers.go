package main

import (
	"context"

	"github.com/winnow-moe/winnow/formats/arch"
	"github.com/winnow-moe/winnow/formats/calib"
	"github.com/winnow-moe/winnow/formats/gguf"
)

// routerDigests tells a model apart from others of its kind by the router of its
// first block with experts; nil if it has none.
func routerDigests(ctx context.Context, m gguf.Model) ([]string, error) {
	var first *gguf.TensorInfo
	layer := 0
	for i := range m.Tensors() {
		t := &m.Tensors()[i]
		if n := arch.ParseName(t.Name); n.Role == arch.Router && n.Suffix == "weight" && (first == nil || n.Layer < layer) {
			first, layer = t, n.Layer
		}
	}
	if first == nil {
		return nil, nil
	}
	rows := make([]float32, first.Elements())
	if err := weightRows(m)(ctx, first.Name, 0, first.Rows(), rows); err != nil {
		return nil, err
	}
	return calib.RouterDigests(rows, int(first.Rows())), nil
}
