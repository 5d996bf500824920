package arch

import (
	"fmt"
	"slices"
	"strings"
)

// has reports whether block l (-1: outside) carries the rule's tensor.
func (r *Rule) has(p *Params, l int) bool {
	if r.If != nil && !r.If(p) || r.In != nil && !r.In(p, l) {
		return false
	}
	switch r.Where {
	case Global:
		return l < 0
	case AllBlocks:
		return l >= 0
	case DenseBlocks:
		return l >= 0 && !p.MoE(l)
	case MoEBlocks:
		return l >= 0 && p.MoE(l)
	case MTPBlocks:
		return l >= p.Trunk()
	}
	return false
}

// Tensor is one tensor of a model: a rule applied to a block.
type Tensor struct {
	Name  Name
	Rule  *Rule
	Shape []int64 // GGUF order: row length first
}

// Tensors lists the tensors the model has in GGUF form, globals first, then
// block by block in the order of the rules.
func (m *Model) Tensors() []Tensor {
	var out []Tensor
	for l := -1; l < m.Params.Layers; l++ {
		for i := range m.Family.Rules {
			r := &m.Family.Rules[i]
			if r.has(&m.Params, l) {
				name := r.Name(l)
				if len(m.Family.Within) > 0 && l >= 0 {
					name.Prefix = towerPrefix
				}
				out = append(out, Tensor{Name: name, Rule: r, Shape: m.shape(r.Shape, l)})
			}
		}
	}
	return out
}

// shape evaluates dims for block l and reverses them into GGUF order.
func (m *Model) shape(dims []Dim, l int) []int64 {
	s, p := make([]int64, len(dims)), m.Params.At(l)
	for i, d := range dims {
		s[len(dims)-1-i] = int64(d.Of(p))
	}
	return s
}

// SourceShape returns the shape (slowest axis first) that every checkpoint
// tensor of the rule must have in block l, and the settings it comes from.
func (m *Model) SourceShape(r *Rule, l int) (shape []int64, why string) {
	dims, p := r.Source, m.Params.At(l)
	if dims == nil {
		dims = r.Shape
		if r.Stacked() {
			dims = dims[1:]
		}
	}
	names := make([]string, len(dims))
	for i, d := range dims {
		shape = append(shape, int64(d.Of(p)))
		names[i] = d.Name
	}
	return shape, "[" + strings.Join(names, ", ") + "]"
}

// Source returns the checkpoint name of a rule's template for block l and
// expert e (ignored where the template does not mention them). In a template
// {m} is the number of the block among the MTP blocks, which follow the trunk.
func (m *Model) Source(template string, l, e int) string {
	if strings.Contains(template, "{m}") {
		template = strings.ReplaceAll(template, "{m}", fmt.Sprint(l-m.Params.Trunk()))
	}
	if strings.Contains(template, "{l}") {
		template = strings.ReplaceAll(template, "{l}", fmt.Sprint(l))
	}
	if strings.Contains(template, "{e}") {
		template = strings.ReplaceAll(template, "{e}", fmt.Sprint(e))
	}
	return template
}

// Dropped returns the reason why a checkpoint tensor has no place in the GGUF
// form of the model.
func (m *Model) Dropped(name string) (why string, ok bool) {
	name = Canonical(name)
	for _, d := range m.Family.Drop {
		if matchPattern(d.Pattern, name) {
			return d.Why, true
		}
	}
	return "", false
}

// Has reports whether a checkpoint tensor belongs to the model: to a tower if it
// is within it, to texts always.
func (m *Model) Has(name string) bool {
	return len(m.Family.Within) == 0 || slices.ContainsFunc(m.Family.Within, func(w string) bool { return strings.HasPrefix(name, w) })
}

// Canonical returns a checkpoint tensor's name as text models have it: those of
// the language model within a multimodal one lose that part, in either place
// where it occurs ("model.language_model.layers", "language_model.model.layers").
func Canonical(name string) string { return strings.Replace(name, "language_model.", "", 1) }

// matchPattern matches a name with a pattern in which {l} stands for digits
// and a final "*" for anything.
func matchPattern(pattern, name string) bool {
	for {
		i := strings.Index(pattern, "{l}")
		if i < 0 {
			if prefix, ok := strings.CutSuffix(pattern, "*"); ok {
				return strings.HasPrefix(name, prefix)
			}
			return pattern == name
		}
		if !strings.HasPrefix(name, pattern[:i]) {
			return false
		}
		name, pattern = name[i:], pattern[i+3:]
		n := 0
		for n < len(name) && name[n] >= '0' && name[n] <= '9' {
			n++
		}
		if n == 0 {
			return false
		}
		name = name[n:]
	}
}

// OfMTP reports whether a checkpoint tensor belongs to the MTP blocks that the
// checkpoint announces: by the number of its block, or by a name of its own.
func (m *Model) OfMTP(name string) bool {
	if m.AnnouncedMTP > 0 && strings.HasPrefix(name, "mtp.") {
		return true
	}
	l, ok := Layer(name)
	return ok && l >= m.Params.Trunk() && l < m.Params.Trunk()+m.AnnouncedMTP
}

// Layer returns the block number in a checkpoint tensor's name.
func Layer(name string) (int, bool) {
	i := strings.Index(name, "layers.")
	if i < 0 {
		return 0, false
	}
	n, digits := 0, 0
	for _, c := range name[i+len("layers."):] {
		if c < '0' || c > '9' || digits > 9 {
			break
		}
		n, digits = n*10+int(c-'0'), digits+1
	}
	return n, digits > 0
}
