package convert

import (
	"maps"
	"path/filepath"
	"slices"

	"github.com/winnow-moe/winnow/formats/gguf"
)

// PlanTower decides the conversion of the checkpoint's vision tower, which
// becomes a file of its own, as llama.cpp's converter makes it with --mmproj.
// Recipes are those of the converter: F32, F16, BF16, Q8_0. It reads no weights.
func (c *Checkpoint) PlanTower(req Request) (*Plan, error) {
	images, err := imageSettings(c.Dir)
	if err != nil {
		return nil, err
	}
	m, err := c.Model.Tower(images)
	if err != nil {
		return nil, err
	}
	tensors, dropped, err := modelTensors(m, c.inv)
	if err != nil {
		return nil, err
	}
	p := &Plan{Source: c.Dir, Arch: m.Family.Arch, Tensors: tensors, Dropped: dropped, inv: c.inv, Notes: slices.Clone(c.Warnings), preview: req.Preview}
	infos := make([]gguf.TensorInfo, len(tensors))
	for i := range infos {
		infos[i] = gguf.TensorInfo{Name: tensors[i].Name, Type: gguf.F32, Shape: tensors[i].Shape}
	}
	for _, o := range req.Outputs {
		choices, err := o.Recipe.AssignConverter(infos, req.Quant.NoFallback)
		if err != nil {
			return nil, err
		}
		md := c.general(m, "mmproj", c.identity(tensors), o.Recipe.FileType)
		if err := p.addOutput(o, md, choices, req.Layout); err != nil {
			return nil, err
		}
	}
	return p, nil
}

// imageSettings are those of the image processor, from the files and in the
// order of precedence of llama.cpp's converter (conversion/base.py, MmprojModel).
func imageSettings(dir string) (map[string]any, error) {
	all := map[string]any{}
	for _, f := range []struct{ file, nested string }{{"preprocessor_config.json", "media_proc_cfg"}, {"processor_config.json", "image_processor"}} {
		settings, err := readOptionalJSON(filepath.Join(dir, f.file))
		if err != nil {
			return nil, err
		}
		maps.Copy(all, settings)
		if nested, ok := settings[f.nested].(map[string]any); ok {
			maps.Copy(all, nested)
		}
	}
	return all, nil
}
