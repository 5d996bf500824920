package convert

import (
	"fmt"
	"maps"
	"slices"

	"github.com/winnow-moe/winnow/formats/arch"
	"github.com/winnow-moe/winnow/formats/gguf"
	"github.com/winnow-moe/winnow/quant"
)

// keptTypes are the types in which weights of a checkpoint stay whatever type
// is asked for: models in them were trained to be in them, and llama.cpp's
// converter keeps them so (conversion/gpt_oss.py, conversion/base.py).
var keptTypes = map[gguf.Type]bool{gguf.MXFP4: true, gguf.NVFP4: true}

// keptFileTypes are the values of general.file_type for unquantized recipes
// that keep weights in such a type (llama.h, LLAMA_FTYPE_MOSTLY_…).
var keptFileTypes = map[gguf.Type]uint32{gguf.MXFP4: 38, gguf.NVFP4: 39}

// holds reports whether a type has the tensor's numbers as the input stores
// them, so that blocks can be copied.
func (t *Tensor) holds(typ gguf.Type) bool {
	return t.stored != nil && !t.changed() && *t.stored == typ
}

// addCheckpoint adds the tensors of a checkpoint and tells which stay in their
// type, with the factors that these need beside them.
func (p *Plan) addCheckpoint(tensors []Tensor, req *Request) (kept []bool, err error) {
	for i := range tensors {
		t := &tensors[i]
		keep, err := req.keeps(t)
		if err != nil {
			return nil, err
		}
		p.Tensors, kept = append(p.Tensors, *t), append(kept, keep)
		switch {
		case t.factor == nil:
		case keep:
			p.Tensors, kept = append(p.Tensors, *t.factor), append(kept, false)
		default: // without the factor the blocks are other numbers
			p.Tensors[len(p.Tensors)-1].stored = nil
		}
	}
	return kept, nil
}

// keeps reports whether a tensor stays in the type that the checkpoint has it
// in. A type demanded for this very tensor wins.
func (req *Request) keeps(t *Tensor) (bool, error) {
	if t.stored == nil || !keptTypes[*t.stored] || arch.ForceF32(arch.ParseName(t.Name), len(t.Shape)) {
		return false, nil
	}
	for i := range req.Quant.TensorTypes {
		o := &req.Quant.TensorTypes[i]
		if ok, err := o.Matches(t.Name); ok || err != nil {
			return o.Type == *t.stored, err
		}
	}
	return !req.AllowRequantize, nil
}

// chooseStored replaces the recipe's choices where blocks of the checkpoint are
// copied, and returns the output's file type.
func (p *Plan) chooseStored(r *quant.Recipe, choices []quant.Choice, kept []bool) (fileType uint32) {
	fileType = r.FileType
	counts, again := map[gguf.Type]int{}, map[gguf.Type]int{}
	for i := range choices {
		c, t := &choices[i], &p.Tensors[i]
		switch {
		case kept[i]:
			typ := *t.stored
			*c = quant.Choice{Type: typ, Wanted: typ, Rule: "kept: the checkpoint has it in " + typ.String(), Copied: true}
			counts[typ]++
			if !r.Default.Quantized() {
				fileType = keptFileTypes[typ]
			}
		case t.holds(c.Type):
			c.Rule, c.Copied = c.Rule+"; the blocks of the checkpoint as they are", true
		case t.stored != nil && !t.changed() && c.Type.Quantized():
			again[*t.stored]++
		}
	}
	p.noteStored(r, counts, again)
	return fileType
}

// noteStored tells how many tensors a recipe keeps in a type of the checkpoint,
// and how many it quantizes that such a type holds without loss.
func (p *Plan) noteStored(r *quant.Recipe, counts, again map[gguf.Type]int) {
	for _, typ := range slices.Sorted(maps.Keys(counts)) {
		if n := counts[typ]; r.Default.Quantized() && r.Default != typ {
			p.Notes = append(p.Notes, fmt.Sprintf("%s: %s %s as in the checkpoint (--allow-requantize quantizes them too)",
				r.Name, plural(n, "%d tensor stays", "%d tensors stay"), typ))
		}
	}
	for _, typ := range slices.Sorted(maps.Keys(again)) {
		p.Notes = append(p.Notes, fmt.Sprintf("%s: %s again; %s would hold the checkpoint's numbers without loss",
			r.Name, plural(again[typ], "%d tensor is quantized", "%d tensors are quantized"), typ))
	}
}
