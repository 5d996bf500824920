package convert

import (
	"cmp"
	"fmt"
	"maps"
	"math"
	"slices"
	"strings"

	"github.com/winnow-moe/winnow/formats/arch"
	"github.com/winnow-moe/winnow/formats/dtype"
	"github.com/winnow-moe/winnow/formats/gguf"
	"github.com/winnow-moe/winnow/quant"
)

// Plan says everything about a conversion before a byte is written. It is a
// pure function of headers and options; Run executes this very value and
// decides nothing. Plans are read-only once made.
type Plan struct {
	// Source is the input as the user named it.
	Source string
	// Arch is general.architecture of the outputs.
	Arch string
	// Tensors in file order, common to all outputs.
	Tensors []Tensor
	// Outputs are the files; all are made from one read of the input.
	Outputs []Output
	// Dropped lists input tensors that the outputs have no place for.
	Dropped []Dropped
	// Notes are remarks for the user about decisions.
	Notes []string

	inv        *Inventory
	importance *Importance
	preview    bool
}

// Tensor is one tensor of the outputs and the pieces of input it consists of.
type Tensor struct {
	Name   string
	Shape  []int64 // GGUF order: row length first
	Pieces []Piece
	// From is the storage of the input, such as "F8_E4M3".
	From string
	// Order says where each element of a row comes from in the row that the
	// pieces give; nil means that they stay. Op is applied to every element.
	Order []int32
	Op    arch.Op
	// wide is the length of the rows that the pieces give where the tensor has
	// only some of their elements, else 0.
	wide int64
	// replaced are the pieces that computed ones stand for, nil where nothing is
	// changed.
	replaced []Piece
	// stored is the GGUF type whose blocks hold the input's numbers as they are,
	// nil where there is none. factor is a tensor that such blocks need beside them.
	stored *gguf.Type
	factor *Tensor
	// measured is the name under which an importance matrix knows the tensor.
	measured string
}

// Piece contributes consecutive rows to a tensor: Count rows of an input
// tensor, Start, Start+Step and so on, arranged by Mode, and of these the
// columns Column, Column+ColumnStep and so on, Columns of them. CutTransposed
// contributes one row per column taken, CutPlanes as many per row taken as
// it holds rows of Columns, the other modes one per row taken.
type Piece struct {
	Source       int
	Start, Count int64
	Step         int64 // 0 means 1
	Mode         arch.CutMode
	Column       int64
	Columns      int64 // 0 means all
	ColumnStep   int64 // 0 means 1
}

// Dropped is an input tensor that is left out, and why.
type Dropped struct {
	Name string `json:"name"`
	Why  string `json:"why"`
}

// Output is one file to write.
type Output struct {
	Path     string
	Recipe   *quant.Recipe
	Metadata *gguf.Metadata
	// Choices holds the type of every tensor, parallel to Plan.Tensors.
	Choices []quant.Choice
	// Layout holds every offset of the file or, when it is split, files.
	Layout *gguf.Layout
}

// rows returns the number of output rows a piece contributes.
func (p *Piece) rows(inv *Inventory) int64 {
	switch p.Mode {
	case arch.CutTransposed:
		return p.cols(inv)
	case arch.CutPlanes:
		return p.Count * p.planes(inv)
	}
	return p.Count
}

// planes returns the number of output rows that CutPlanes makes of an input row.
func (p *Piece) planes(inv *Inventory) int64 { return inv.Tensors[p.Source].Cols() / p.Columns }

// cols returns the number of columns taken.
func (p *Piece) cols(inv *Inventory) int64 { return cmp.Or(p.Columns, inv.Tensors[p.Source].Cols()) }

// span returns the number of input columns from the first of n to the last.
func (p *Piece) span(n int64) int64 { return (n-1)*max(1, p.ColumnStep) + 1 }

// Info returns the directory entry of tensor i in output o.
func (p *Plan) Info(o, i int) gguf.TensorInfo {
	return gguf.TensorInfo{Name: p.Tensors[i].Name, Type: p.Outputs[o].Choices[i].Type, Shape: p.Tensors[i].Shape}
}

// infos returns the whole directory of output o.
func (p *Plan) infos(o int) []gguf.TensorInfo {
	out := make([]gguf.TensorInfo, len(p.Tensors))
	for i := range out {
		out[i] = p.Info(o, i)
	}
	return out
}

// SourceBytes returns the bytes of input that a run reads: every stored byte
// of the tensors used, scales included, once. Of tensors of which only some
// experts are read all bytes count, and so they do of tensors that are changed.
func (p *Plan) SourceBytes() int64 {
	used := make([]bool, len(p.inv.Tensors))
	for i := range p.Tensors {
		for _, pc := range p.Tensors[i].inputs() {
			used[pc.Source] = true
			if packed := p.inv.Tensors[pc.Source].packed; packed != nil {
				for _, part := range packed.parts() {
					used[part] = true
				}
			}
		}
	}
	total := int64(0)
	for i, u := range used {
		if s := &p.inv.Tensors[i]; u && !s.computed() {
			total += s.bytes(s.Rows() * s.Cols())
		}
	}
	return total
}

// noteSearch remarks on types that do not have the search asked for.
func (p *Plan) noteSearch(search quant.Search) {
	for o := range p.Outputs {
		counts := map[gguf.Type]int{}
		for _, c := range p.Outputs[o].Choices {
			if !c.Copied && c.Type.Quantized() && c.Search != search {
				counts[c.Type]++
			}
		}
		for _, t := range slices.Sorted(maps.Keys(counts)) {
			p.Notes = append(p.Notes, fmt.Sprintf("%s: %s has no %s search; the default is used for %s",
				p.Outputs[o].Recipe.Name, t, search, plural(counts[t], "%d tensor", "%d tensors")))
		}
	}
}

// noteOverrides remarks on types demanded for tensors that have no effect.
func (p *Plan) noteOverrides(list []quant.Override) error {
	for i := range list {
		fits := false
		for t := range p.Tensors {
			ok, err := list[i].Matches(p.Tensors[t].Name)
			if err != nil {
				return err
			}
			fits = fits || ok
		}
		if !fits {
			p.Notes = append(p.Notes, list[i].Label+" fits no tensor")
		}
	}
	for o := range p.Outputs {
		if r := p.Outputs[o].Recipe; len(list) > 0 && (r.KeepsTypes || !r.Default.Quantized()) {
			p.Notes = append(p.Notes, r.Name+" heeds no types of single tensors, as in llama-quantize")
		}
	}
	return nil
}

// checkpointPlan collects the tensors of a model from a checkpoint.
type checkpointPlan struct {
	model  *arch.Model
	inv    *Inventory
	inputs int // tensors of the files, computed ones not counted
	used   []bool
	planed []placed
	faults faults
}

// placed is a tensor with its place in the file: after the input tensor that
// completes it, then in the order of the family's rules.
type placed struct {
	Tensor
	after, rule int
}

// modelTensors resolves every tensor of the model to pieces of the checkpoint,
// in the order in which llama.cpp's converter writes them: it walks the input
// tensors in order and writes a tensor when its last part has been seen; the
// expert stacks of a block all wait for the block's last expert tensor. Weights
// that it moves to their GGUF type come before all others, and those whose
// integers it unpacks after them.
func modelTensors(m *arch.Model, inv *Inventory) ([]Tensor, []Dropped, error) {
	cp := &checkpointPlan{model: m, inv: inv, inputs: len(inv.Tensors), used: make([]bool, len(inv.Tensors))}
	stackEnd := map[int]int{} // block → completing input tensor of its stacks
	list := m.Tensors()
	for i := range list {
		p, err := cp.resolve(&list[i])
		if err != nil {
			return nil, nil, err
		}
		if p == nil {
			continue
		}
		if l := list[i].Name.Layer; list[i].Rule.Stacked() && p.after >= 0 {
			stackEnd[l] = max(stackEnd[l], p.after)
		}
		p.rule = i
		cp.planed = append(cp.planed, *p)
	}
	for i := range cp.planed {
		if t := &list[cp.planed[i].rule]; t.Rule.Stacked() && cp.planed[i].after >= 0 {
			cp.planed[i].after = stackEnd[t.Name.Layer]
		}
	}
	slices.SortStableFunc(cp.planed, func(a, b placed) int {
		if a.after != b.after {
			return a.after - b.after
		}
		return a.rule - b.rule
	})
	dropped := cp.unclaimed()
	if err := cp.verdict(); err != nil {
		return nil, nil, err
	}
	tensors := make([]Tensor, len(cp.planed))
	for i := range tensors {
		tensors[i] = cp.planed[i].Tensor
	}
	return tensors, dropped, nil
}

// resolve finds the input of one tensor; nil without error means that an
// optional tensor is not there.
func (cp *checkpointPlan) resolve(t *arch.Tensor) (*placed, error) {
	r := t.Rule
	if r.Role == arch.Output && cp.model.Tied {
		return nil, nil
	}
	if r.Generate != nil {
		return cp.generate(t)
	}
	template, ok := cp.template(t)
	if !ok {
		cp.lacks(t)
		return nil, nil
	}
	experts := 1
	if r.Stacked() {
		experts = cp.model.Params.Experts
	}
	name := t.Name.String()
	p := &placed{Tensor: Tensor{Name: name, measured: name, Shape: t.Shape, Op: r.Op}}
	if r.Order != nil {
		p.Order = r.Order.Permutation(cp.model.Params.At(t.Name.Layer))
	}
	for e := range experts {
		name := cp.model.Source(template, t.Name.Layer, e)
		i, ok := cp.inv.Lookup(name)
		if !ok {
			cp.lacksExpert(t, name, e)
			continue
		}
		source := &cp.inv.Tensors[i]
		if _, ok := source.packed.(*mxfp4); ok {
			r = r.InBlocks()
		}
		if err := cp.checkSource(r, t.Name.Layer, i); err != nil {
			cp.misshapen(t, i, err)
			continue
		}
		cp.used[i] = true
		p.after = max(p.after, cp.turn(i))
		p.From = source.format()
		p.Pieces = append(p.Pieces, cp.pieces(t, r, i)...)
	}
	if p.stored = storedType(&p.Tensor, cp.inv); p.stored != nil && keptTypes[*p.stored] {
		p.after -= cp.inputs + 1
		p.factor = cp.factor(&p.Tensor)
	}
	return p, nil
}

// turn is when the converter comes to input tensor i: tensors that it makes of
// packed integers are new to it, and follow all others.
func (cp *checkpointPlan) turn(i int) int {
	switch cp.inv.Tensors[i].packed.(type) {
	case *int4, *qweight:
		return cp.inputs + i
	}
	return i
}

// storedType returns the GGUF type that holds all of a tensor as it is stored.
func storedType(t *Tensor, inv *Inventory) *gguf.Type {
	if t.Order != nil || t.Op != arch.OpNone {
		return nil
	}
	var all *gguf.Type
	for i := range t.Pieces {
		pc := &t.Pieces[i]
		source, ok := inv.Tensors[pc.Source].packed.(lossless)
		if !ok || pc.Mode == arch.CutTransposed || pc.Columns != 0 {
			return nil
		}
		typ, ok := source.exact()
		if !ok || all != nil && *all != typ {
			return nil
		}
		all = &typ
	}
	return all
}

// factor makes the tensor of the float32 factors of NVFP4 weights, one for each
// matrix, nil where all are 1 (conversion/base.py, _write_scales_tensor).
func (cp *checkpointPlan) factor(t *Tensor) *Tensor {
	var values []float32
	trivial, last := true, -1
	for i := range t.Pieces {
		v, ok := cp.inv.Tensors[t.Pieces[i].Source].packed.(*nvfp4)
		if !ok || t.Pieces[i].Source == last {
			continue
		}
		last = t.Pieces[i].Source
		values = append(values, v.factor)
		trivial = trivial && math.Abs(float64(v.factor)-1) < 1e-6
	}
	if trivial {
		return nil
	}
	return cp.computed(strings.TrimSuffix(t.Name, "weight")+"scale", values)
}

// computed adds a vector to the input and makes a tensor of it.
func (cp *checkpointPlan) computed(name string, values []float32) *Tensor {
	n := int64(len(values))
	cp.inv.Tensors = append(cp.inv.Tensors, Source{
		Name: name, Storage: Storage{DType: dtype.F32}, Shape: []int64{n}, Values: values,
	})
	cp.used = append(cp.used, true)
	return &Tensor{
		Name: name, measured: name, Shape: []int64{n}, From: "computed", Pieces: []Piece{{Source: len(cp.inv.Tensors) - 1, Count: 1}},
	}
}

// generate adds a computed tensor to the input; it comes before all others.
func (cp *checkpointPlan) generate(t *arch.Tensor) (*placed, error) {
	name := t.Name.String()
	values, err := t.Rule.Generate(cp.model)
	if err != nil || values == nil {
		return nil, err
	}
	return &placed{after: -1, Tensor: *cp.computed(name, values)}, nil
}

// template picks the accepted name that the checkpoint uses for t, be it only
// for some experts.
func (cp *checkpointPlan) template(t *arch.Tensor) (string, bool) {
	experts := 1
	if t.Rule.Stacked() {
		experts = cp.model.Params.Experts
	}
	for e := range experts {
		for _, h := range t.Rule.HF {
			if _, ok := cp.inv.Lookup(cp.model.Source(h, t.Name.Layer, e)); ok {
				return h, true
			}
		}
	}
	return "", false
}

// checkSource compares shape and storage of an input tensor with the rule.
func (cp *checkpointPlan) checkSource(r *arch.Rule, l, i int) error {
	s := &cp.inv.Tensors[i]
	want, why := cp.model.SourceShape(r, l)
	if r.Trim && len(s.Shape) == len(want) && s.Shape[0] > want[0] {
		want[0] = s.Shape[0]
	}
	if !slices.Equal(s.Shape, want) {
		return formatError("tensor %q has shape %v, but config.json makes it %v = %s", s.Name, s.Shape, want, cp.model.SettingName(why))
	}
	if s.packed == nil && !s.Storage.IsGGUF && !s.Storage.DType.Float() {
		return formatError("tensor %q has dtype %s, wanted a floating point type", s.Name, s.Storage)
	}
	return nil
}

// pieces cuts input tensor i as rule r of t says.
func (cp *checkpointPlan) pieces(t *arch.Tensor, r *arch.Rule, i int) []Piece {
	p := cp.model.Params.At(t.Name.Layer)
	if r.Cut == nil {
		rows := cp.inv.Tensors[i].Rows()
		if r.Trim {
			rows = t.Shape[len(t.Shape)-1]
		}
		return []Piece{{Source: i, Count: rows}}
	}
	var out []Piece
	for k := range r.Cut {
		c := &r.Cut[k]
		for h := range c.Heads.Of(p) {
			pc := Piece{Source: i, Start: int64(c.At(p, h)), Count: int64(c.Count.Of(p)), Step: int64(c.Step), Mode: c.Mode}
			if col := c.Columns; col != nil {
				pc.Column, pc.Columns, pc.ColumnStep = int64(col.From.Of(p)), int64(col.Count.Of(p)), int64(col.Step)
			}
			out = append(out, pc)
		}
	}
	return out
}

// unclaimed lists the input tensors that no rule owns: with a reason they are
// dropped, without one they are faults.
func (cp *checkpointPlan) unclaimed() []Dropped {
	parts := make(map[int]bool)
	for i := range cp.inv.Tensors {
		if packed := cp.inv.Tensors[i].packed; packed != nil {
			for _, part := range packed.parts() {
				parts[part] = true
			}
		}
	}
	var dropped []Dropped
	for i := range cp.inv.Tensors {
		name := cp.inv.Tensors[i].Name
		if cp.used[i] || parts[i] || !cp.model.Has(name) {
			continue
		}
		why, ok := cp.dropReason(name)
		if !ok && len(parts) > 0 && isActivationScale(name) {
			why, ok = "scale of activations or of the key/value cache; weights do not depend on it", true
		}
		if ok {
			dropped = append(dropped, Dropped{name, why})
		} else {
			cp.faults.leftOver = append(cp.faults.leftOver, name)
		}
	}
	return dropped
}

func (cp *checkpointPlan) dropReason(name string) (string, bool) {
	if why, ok := cp.model.Dropped(name); ok {
		return why, true
	}
	if cp.model.Tied && arch.Canonical(name) == "lm_head.weight" {
		return "config.json ties the output matrix to the embedding", true
	}
	if cp.model.Params.NextnLayers == 0 && cp.model.OfMTP(name) {
		return "multi-token prediction block (--mtp keep keeps it)", true
	}
	return "", false
}
