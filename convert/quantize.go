package convert

import (
	"context"
	"fmt"
	"slices"

	"github.com/winnow-moe/winnow/formats/arch"
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
		tensors[i] = Source{Name: list[i].Name, Storage: Storage{GGUF: list[i].Type, IsGGUF: true}, Shape: shape}
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

// Prefetch implements Prefetcher.
func (s *GGUFSource) Prefetch(tensor int, off, n int64) { s.file.Prefetch(tensor, off, n) }

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
	keys := s.file.Metadata().Clone()
	for _, o := range req.Overrides {
		keys.Set(o.Key, o.Value) // overridden hyper-parameters change the rules
	}
	facts, err := quant.FactsFrom(keys)
	if err != nil {
		return nil, formatError("%q: %v", s.path, err)
	}
	sel, m, err := s.selection(keys, &req)
	if err != nil {
		return nil, err
	}
	p := &Plan{Source: s.path, Arch: facts.Arch, inv: s.inv, importance: req.Importance, preview: req.Preview}
	infos, blocks := p.addTensors(s, &req)
	if err := p.change(req.Changes, m); err != nil {
		return nil, err
	}
	choices := make([][]quant.Choice, len(req.Outputs))
	for i, o := range req.Outputs {
		if choices[i], err = o.Recipe.Assign(facts, infos, req.recipeOptions()); err != nil {
			return nil, err
		}
		if !req.AllowRequantize {
			if err := p.checkRequantize(infos, choices[i]); err != nil {
				return nil, err
			}
		}
		p.encodeChanged(choices[i], req.Quant.Search)
	}
	if err := p.prune(sel, choices, &req); err != nil {
		return nil, err
	}
	for i, o := range req.Outputs {
		md := s.metadata(o.Recipe, m != nil)
		sel.metadata(md, p.Tensors)
		req.finish(md)
		if len(req.PruneLayers) > 0 {
			setLast(md, facts.Arch+"."+arch.KeyBlockCount, uint32(blocks))
		}
		if err := p.addOutput(o, md, choices[i], req.Layout); err != nil {
			return nil, err
		}
	}
	p.noteChanged()
	p.noteSearch(req.Quant.Search)
	return p, p.noteOverrides(req.Quant.TensorTypes)
}

// Model returns the model that the file's keys describe.
func (s *GGUFSource) Model() (*arch.Model, error) {
	m, err := arch.FromMetadata(s.file.Metadata())
	if err != nil {
		return nil, formatError("%q: %v", s.path, err)
	}
	return m, nil
}

// selection returns the request's choice of experts, nil where there is none,
// and the model, nil where nothing of its experts changes.
func (s *GGUFSource) selection(keys *gguf.Metadata, req *Request) (*selection, *arch.Model, error) {
	if req.Experts == nil && req.Changes == nil {
		return nil, nil, nil
	}
	if len(req.PruneLayers) > 0 {
		return nil, nil, hinted("change experts first, then prune blocks", refused("blocks and experts are changed at the same time"))
	}
	m, err := arch.FromMetadata(keys)
	if err != nil {
		return nil, nil, formatError("%q: %v", s.path, err)
	}
	if req.Experts == nil {
		return nil, m, nil
	}
	sel, err := newSelection(m, req.Experts)
	if err != nil {
		return nil, nil, err
	}
	return sel, m, checkMerge(s.Merged(), req.Experts, req.Changes)
}

// addTensors fills the plan with the input's tensors in llama-quantize's order,
// blocks to be pruned left out and the others numbered anew. It returns their
// directory entries and the number of blocks that remain.
func (p *Plan) addTensors(s *GGUFSource, req *Request) (infos []gguf.TensorInfo, blocks int) {
	list := s.file.Tensors()
	order := quant.Order(list)
	if req.KeepSplit || req.onlyExperts() {
		slices.Sort(order) // the file's own order, part after part
	}
	if req.KeepSplit {
		req.Layout = gguf.LayoutOptions{}
	}
	numbers := map[int]int{} // old block number → new one
	lastPart := -1
	for _, i := range order {
		t := list[i]
		n := arch.ParseName(t.Name)
		if slices.Contains(req.PruneLayers, n.Layer) && n.Layer >= 0 {
			p.Dropped = append(p.Dropped, Dropped{t.Name, "in a block that --prune-layers names"})
			continue
		}
		if part, _ := s.file.Place(i); req.KeepSplit && part != lastPart {
			req.Layout.FirstTensors = append(req.Layout.FirstTensors, len(p.Tensors))
			lastPart = part
		}
		measured := t.Name
		if n.Layer >= 0 {
			if _, ok := numbers[n.Layer]; !ok {
				numbers[n.Layer] = len(numbers)
			}
			if len(req.PruneLayers) > 0 {
				n.Layer = numbers[n.Layer]
				t.Name = n.String()
			}
		}
		infos = append(infos, t)
		p.Tensors = append(p.Tensors, Tensor{
			Name: t.Name, measured: measured, Shape: t.Shape, From: t.Type.String(), stored: &t.Type,
			Pieces: []Piece{{Source: i, Count: s.inv.Tensors[i].Rows()}},
		})
	}
	return infos, len(numbers)
}

// checkRequantize refuses to decode quantized input.
func (p *Plan) checkRequantize(infos []gguf.TensorInfo, choices []quant.Choice) error {
	for i := range infos {
		if infos[i].Type.Quantized() && choices[i].Type != infos[i].Type {
			return p.refuse("start from an unquantized file, or pass --allow-requantize and accept the extra loss",
				fmt.Sprintf("tensor %q is already %s; quantizing it again to %s adds a second loss", infos[i].Name, infos[i].Type, choices[i].Type))
		}
	}
	return nil
}

// metadata keeps the input's keys in order; keys that are set move to the end,
// as in llama-quantize. A file of which only experts change keeps them all as they are.
func (s *GGUFSource) metadata(r *quant.Recipe, experts bool) *gguf.Metadata {
	md := s.file.Metadata().Clone()
	if experts && r.KeepsTypes {
		return md
	}
	fileType, _ := md.Get(gguf.KeyFileType)
	if !r.KeepsTypes {
		fileType = r.FileType
	}
	setLast(md, gguf.KeyQuantizationVersion, gguf.QuantizationVersion)
	if fileType != nil {
		setLast(md, gguf.KeyFileType, fileType)
	}
	return md
}

// setLast sets a key behind all others.
func setLast(md *gguf.Metadata, key string, v any) {
	md.Delete(key)
	md.Set(key, v)
}
