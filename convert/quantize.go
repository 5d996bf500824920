package convert

import (
	"context"
	"slices"

	"github.com/winnow-moe/winnow/formats/gguf"
	"github.com/winnow-moe/winnow/quant"
)

// GGUFSource is a GGUF file as the input of a conversion.
type GGUFSource struct {
	path string
	file *gguf.File
	inv  *Inventory
}

// NewGGUFSource makes an input of an open GGUF file, which it does not close.
func NewGGUFSource(path string, f *gguf.File) *GGUFSource {
	list := f.Tensors()
	tensors := make([]Source, len(list))
	for i := range list {
		shape := slices.Clone(list[i].Shape)
		slices.Reverse(shape)
		tensors[i] = Source{Name: list[i].Name, Storage: Storage{GGUF: list[i].Type, IsGGUF: true}, Shape: shape, Scale: -1}
	}
	return &GGUFSource{path: path, file: f, inv: NewInventory(tensors)}
}

// ReadAt implements Data for whole rows: off and len(p) are multiples of the
// row size.
func (s *GGUFSource) ReadAt(ctx context.Context, tensor int, off int64, p []byte) error {
	info := &s.file.Tensors()[tensor]
	row := info.RowBytes()
	got, err := s.file.Rows(ctx, tensor, off/row, int64(len(p))/row, p)
	if err != nil {
		return err
	}
	if len(got) > 0 && &got[0] != &p[0] {
		copy(p, got)
	}
	return nil
}

// Inputs returns the paths of the file's parts.
func (s *GGUFSource) Inputs() []string {
	var paths []string
	for _, p := range s.file.Parts() {
		paths = append(paths, p.Path)
	}
	return paths
}

// Plan decides a quantization as llama-quantize would: its order of tensors,
// its keys, its types. It reads no weights.
func (s *GGUFSource) Plan(req Request) (*Plan, error) {
	facts, err := quant.FactsFrom(s.file.Metadata())
	if err != nil {
		return nil, formatError("%q: %v", s.path, err)
	}
	p := &Plan{Source: s.path, Arch: facts.Arch, inv: s.inv}
	infos := make([]gguf.TensorInfo, 0, len(s.inv.Tensors))
	for _, i := range quant.Order(s.file.Tensors()) {
		t := s.file.Tensors()[i]
		infos = append(infos, t)
		p.Tensors = append(p.Tensors, Tensor{
			Name: t.Name, Shape: t.Shape, From: t.Type.String(),
			Pieces: []Piece{{Source: i, Count: s.inv.Tensors[i].Rows()}},
		})
	}
	for _, o := range req.Outputs {
		choices, err := o.Recipe.Assign(facts, infos, req.Quant)
		if err != nil {
			return nil, err
		}
		if err := checkRequantize(infos, choices, req.AllowRequantize); err != nil {
			return nil, err
		}
		if err := p.addOutput(o, s.metadata(o.Recipe), choices, req.Layout); err != nil {
			return nil, err
		}
	}
	return p, nil
}

// checkRequantize refuses to decode quantized input unless that was asked for.
func checkRequantize(infos []gguf.TensorInfo, choices []quant.Choice, allow bool) error {
	for i := range infos {
		if infos[i].Type.Quantized() && choices[i].Type != infos[i].Type && !allow {
			return hinted("start from an unquantized file, or pass --allow-requantize and accept the extra loss",
				refused("tensor %q is already %s; quantizing it again to %s adds a second loss", infos[i].Name, infos[i].Type, choices[i].Type))
		}
	}
	return nil
}

// metadata keeps the input's keys in order; keys that are set move to the end,
// as in llama-quantize.
func (s *GGUFSource) metadata(r *quant.Recipe) *gguf.Metadata {
	md := s.file.Metadata().Clone()
	fileType, _ := md.Get(gguf.KeyFileType)
	if !r.KeepsTypes {
		fileType = r.FileType
	}
	md.Delete(gguf.KeyQuantizationVersion)
	md.Delete(gguf.KeyFileType)
	md.Set(gguf.KeyQuantizationVersion, gguf.QuantizationVersion)
	if fileType != nil {
		md.Set(gguf.KeyFileType, fileType)
	}
	return md
}
