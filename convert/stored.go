package convert

import (
	"fmt"

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
func (t *Tensor) holds(typ gguf.Type) bool { return t.stored != nil && *t.stored == typ }

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
		if keep && t.factor != nil {
			p.Tensors, kept = append(p.Tensors, *t.factor), append(kept, false)
		}
	}
	return kept, nil
}

// keeps reports whether a tensor stays in the type that the checkpoint has it
// in. A type demanded for this very tensor wins.
func (req *Request) keeps(t *Tensor) (bool, error) {
	if t.stored == nil || !keptTypes[*t.stored] || req.AllowRequantize || arch.ForceF32(arch.ParseName(t.Name), len(t.Shape)) {
		return false, nil
	}
	for i := range req.Quant.TensorTypes {
		if ok, err := req.Quant.TensorTypes[i].Matches(t.Name); ok || err != nil {
			return false, err
		}
	}
	return true, nil
}

// chooseStored replaces the recipe's choices where blocks of the checkpoint are
// copied, and returns the output's file type.
func (p *Plan) chooseStored(r *quant.Recipe, choices []quant.Choice, kept []bool) (fileType uint32) {
	fileType = r.FileType
	counts, exact := map[gguf.Type]int{}, 0
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
		case t.stored != nil && c.Type.Quantized():
			exact++
		}
	}
	for _, typ := range []gguf.Type{gguf.MXFP4, gguf.NVFP4} {
		if n := counts[typ]; n > 0 && r.Default.Quantized() && r.Default != typ {
			p.Notes = append(p.Notes, fmt.Sprintf("%s: %s in %s as the checkpoint has them; --allow-requantize quantizes them too",
				r.Name, plural(n, "%d tensor stays", "%d tensors stay"), typ))
		}
	}
	if exact > 0 {
		p.Notes = append(p.Notes, fmt.Sprintf("%s: %s again; %s would hold the checkpoint's own 4-bit blocks without loss",
			r.Name, plural(exact, "%d tensor is quantized", "%d tensors are quantized"), p.storedNames()))
	}
	return fileType
}

// storedNames lists the types that hold weights of the checkpoint as they are.
func (p *Plan) storedNames() string {
	text := ""
	for _, typ := range []gguf.Type{gguf.MXFP4, gguf.NVFP4, gguf.Q4_0} {
		for i := range p.Tensors {
			if p.Tensors[i].holds(typ) {
				if text != "" {
					text += " or "
				}
				text += typ.String()
				break
			}
		}
	}
	return text
}
