package convert

import (
	"github.com/winnow-moe/winnow/convert/experts"
	"github.com/winnow-moe/winnow/formats/arch"
	"github.com/winnow-moe/winnow/formats/gguf"
)

// expertTensors tells which tensors of a model belong to its experts.
type expertTensors map[string]*arch.Tensor

func newExpertTensors(m *arch.Model) expertTensors {
	list, byName := m.Tensors(), expertTensors{}
	for i := range list {
		byName[list[i].Name.String()] = &list[i]
	}
	return byName
}

// routed reports whether a tensor has an entry for every expert.
func (e expertTensors) routed(name string) bool {
	t := e[name]
	if weight, _, ok := arch.Factors(name); ok && t == nil {
		t = e[weight]
	}
	return t != nil && t.Rule.ExpertAxis() >= 0
}

// ExpertBytes says how the bytes of output o divide between experts and the
// rest. The rest has room for the gaps that parts of tensors may leave
// before the next one. m is the model of the input. Blocks from number blocks
// on do not count.
func (p *Plan) ExpertBytes(o int, m *arch.Model, blocks int) experts.Bytes {
	names := newExpertTensors(m)
	var b experts.Bytes
	all, count := int64(0), int64(max(1, m.Params.Experts))
	for i := range p.Tensors {
		info := p.Info(o, i)
		size := info.Size()
		all += size
		switch {
		case arch.ParseName(info.Name).Layer >= blocks:
		case names.routed(info.Name):
			b.Expert += size / count
			if size/count%gguf.DefaultAlignment != 0 {
				b.Rest += gguf.DefaultAlignment
			}
		default:
			b.Rest += size
		}
	}
	b.Rest += p.Outputs[o].Layout.Size() - all
	return b
}

// SourceExpertBytes is ExpertBytes of the input's tensors as they are stored.
func (p *Plan) SourceExpertBytes(m *arch.Model, blocks int) experts.Bytes {
	names := newExpertTensors(m)
	var of experts.Bytes
	all := int64(0)
	counted := make([]bool, len(p.inv.Tensors))
	for i := range p.Tensors {
		if arch.ParseName(p.Tensors[i].Name).Layer >= blocks {
			continue
		}
		size := int64(0)
		for _, pc := range p.Tensors[i].inputs() {
			size += p.bytesOf(pc.Source, counted)
		}
		if names.routed(p.Tensors[i].Name) {
			all += size
		} else {
			of.Rest += size
		}
	}
	of.Expert = all / int64(max(1, m.Params.Experts))
	return of
}

// bytesOf returns the bytes of an input tensor and of what belongs to it, as
// far as they are not counted yet.
func (p *Plan) bytesOf(source int, counted []bool) (n int64) {
	s := &p.inv.Tensors[source]
	list := []int{source}
	if s.packed != nil {
		list = append(list, s.packed.parts()...)
	}
	for _, i := range list {
		if t := &p.inv.Tensors[i]; !counted[i] && !t.computed() {
			n += t.bytes(t.Rows() * t.Cols())
		}
		counted[i] = true
	}
	return n
}
