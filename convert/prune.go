package convert

import (
	"fmt"
	"regexp"
	"slices"

	"github.com/winnow-moe/winnow/convert/experts"
	"github.com/winnow-moe/winnow/formats/arch"
	"github.com/winnow-moe/winnow/formats/calib"
	"github.com/winnow-moe/winnow/formats/gguf"
	"github.com/winnow-moe/winnow/quant"
)

// selection is a keep-list applied to one model.
type selection struct {
	model   *arch.Model
	keep    *experts.KeepList
	how     arch.Pruning
	tensors map[string]arch.Tensor // by GGUF name
}

// newSelection checks a keep-list against the model that it is to be applied to.
func newSelection(m *arch.Model, keep *experts.KeepList) (*selection, error) {
	if err := keep.Check(&m.Params); err != nil {
		return nil, fmt.Errorf("keep-list: %w", err)
	}
	s := &selection{model: m, keep: keep, tensors: map[string]arch.Tensor{}}
	s.how = arch.Pruning{Experts: keep.Keep(), Flatten: keep.Flatten, DropMTP: keep.MTP == "drop" && m.Params.NextnLayers > 0}
	if keep.Merge != nil {
		s.how.Merged = keep.Merge.Method
	}
	for _, t := range m.Tensors() {
		s.tensors[t.Name.String()] = t
		if l := t.Name.Layer; t.Rule.ExpertAxis() >= 0 && !s.drops(l) && len(keep.Blocks[l]) == 0 {
			return nil, formatError("the keep-list says nothing about the experts of block %d", l)
		}
	}
	return s, nil
}

// drops reports whether a block is left out.
func (s *selection) drops(l int) bool { return s.how.DropMTP && l >= s.model.Params.Trunk() }

// axis finds the experts in the tensor of a name: the axis in GGUF order of
// those of block l, or -1 where every token uses the tensor.
func (s *selection) axis(name string) (axis, l int, err error) {
	t, ok := s.tensors[name]
	if !ok {
		weight, _, factors := arch.Factors(name)
		if t, ok = s.tensors[weight]; !ok || !factors {
			return 0, 0, formatError("tensor %q has no place in the description of %s models; whether it belongs to experts is not known", name, s.model.Family.Arch)
		}
		if t.Rule.ExpertAxis() < 0 {
			return -1, t.Name.Layer, nil
		}
		return 0, t.Name.Layer, nil
	}
	if a := t.Rule.ExpertAxis(); a >= 0 {
		return len(t.Rule.Shape) - 1 - a, t.Name.Layer, nil
	}
	return -1, t.Name.Layer, nil
}

// applied are the tensors of a pruned model.
type applied struct {
	tensors []Tensor
	from    []int // their numbers before
	dropped []Dropped
}

// apply prunes the tensors of a plan.
func (s *selection) apply(inv *Inventory, tensors []Tensor) (*applied, error) {
	out := &applied{}
	for i := range tensors {
		t := tensors[i]
		axis, l, err := s.axis(t.measured)
		if err != nil {
			return nil, err
		}
		if s.drops(l) {
			out.dropped = append(out.dropped, Dropped{t.Name, "multi-token prediction block, which the keep-list drops"})
			continue
		}
		if axis >= 0 {
			if err := s.cut(inv, &t, axis, s.keep.Blocks[l]); err != nil {
				return nil, err
			}
		}
		out.tensors, out.from = append(out.tensors, t), append(out.from, i)
	}
	return out, nil
}

// cut leaves of a tensor what belongs to some experts.
func (s *selection) cut(inv *Inventory, t *Tensor, axis int, ids []int) error {
	if axis >= len(t.Shape) || t.Shape[axis] != int64(s.model.Params.Experts) {
		return formatError("tensor %q has shape %v, wanted %d experts along axis %d", t.Name, t.Shape, s.model.Params.Experts, axis)
	}
	if axis == 0 {
		return t.cutRow(ids)
	}
	perExpert := int64(1)
	for _, n := range t.Shape[1:axis] {
		perExpert *= n
	}
	t.Shape = slices.Clone(t.Shape)
	t.Shape[axis] = int64(len(ids))
	var pieces []Piece
	for first := range runs(ids) {
		more, err := rowRange(inv, t, int64(first.id)*perExpert, int64(first.n)*perExpert)
		if err != nil {
			return err
		}
		pieces = append(pieces, more...)
	}
	t.Pieces = pieces
	return nil
}

// cutRow leaves some elements of every row. Rows are decoded for it, which
// changes none of the numbers of a floating point type.
func (t *Tensor) cutRow(ids []int) error {
	if t.Order != nil || t.stored != nil && !t.changed() && t.stored.BlockLen() != 1 {
		return formatError("tensor %q: a row of %s cannot be divided among experts", t.Name, t.From)
	}
	t.wide, t.stored = t.Shape[0], nil
	t.Shape = slices.Clone(t.Shape)
	t.Shape[0] = int64(len(ids))
	for _, id := range ids {
		t.Order = append(t.Order, int32(id))
	}
	return nil
}

// idRun is n experts in a row.
type idRun struct{ id, n int }

// runs gathers ascending ids that follow each other.
func runs(ids []int) func(yield func(idRun) bool) {
	return func(yield func(idRun) bool) {
		for i := 0; i < len(ids); {
			n := 1
			for i+n < len(ids) && ids[i+n] == ids[i]+n {
				n++
			}
			if !yield(idRun{ids[i], n}) {
				return
			}
			i += n
		}
	}
}

// rowRange returns pieces for n rows of a tensor from row first on.
func rowRange(inv *Inventory, t *Tensor, first, n int64) ([]Piece, error) {
	var out []Piece
	start := int64(0)
	for i := range t.Pieces {
		p := t.Pieces[i]
		rows := p.rows(inv)
		a, b := max(first, start)-start, min(first+n, start+rows)-start
		start += rows
		switch {
		case a >= b:
			continue
		case b-a == rows:
		case p.Mode == arch.CutRows:
			p.Start += a * max(1, p.Step)
			p.Count = b - a
		default:
			return nil, formatError("tensor %q: its experts are not stored one after the other", t.Name)
		}
		out = append(out, p)
	}
	return out, nil
}

// choices are those of the tensors that are left.
func (a *applied) choices(all []quant.Choice) []quant.Choice {
	out := make([]quant.Choice, len(a.from))
	for i, from := range a.from {
		out[i] = all[from]
	}
	return out
}

// prunedName matches what prunedTitle adds.
var prunedName = regexp.MustCompile(` \([0-9]+ of [0-9]+ experts\)$`)

// metadata changes the keys of an output, which are those of the whole model,
// into those of the pruned one.
func (s *selection) metadata(md *gguf.Metadata, tensors []Tensor) {
	if s == nil {
		return
	}
	s.model.PruneMetadata(md, s.how)
	if _, ok := md.Get(keySizeLabel); ok {
		md.Set(keySizeLabel, sizeLabel(tensors))
	}
	if name, ok := md.String(gguf.KeyName); ok {
		before, _ := md.Int(arch.KeyExpertsBefore)
		md.Set(gguf.KeyName, fmt.Sprintf("%s (%d of %d experts)", prunedName.ReplaceAllString(name, ""), s.how.Experts, before))
	}
}

const keySizeLabel = "general.size_label"

// arch.KeyExpertsBefore and arch.KeyMerged in a config.json.
const (
	configExpertsBefore = "winnow_experts_before"
	configMerged        = "winnow_merged"
)

// Merged returns the method by which the model's experts were merged, "" if they
// were not.
func (c *Checkpoint) Merged() string { return c.merged }

// Merged returns the method by which the model's experts were merged, "" if they
// were not.
func (s *GGUFSource) Merged() string {
	method, _ := s.file.Metadata().String(arch.KeyMerged)
	return method
}

// NotMerged is the error about a model whose experts were merged by some method
// already; nil where that is "".
func NotMerged(method string) error {
	if method == "" {
		return nil
	}
	return hinted("start from the model as it was before", formatError("the model's experts were merged already (%s)", method))
}

// checkMerge refuses a merge of merged experts, and one whose weights nobody
// computes.
func checkMerge(before string, keep *experts.KeepList, changes Changes) error {
	switch {
	case keep.Merge == nil:
		return nil
	case changes == nil:
		return refused("the keep-list merges experts, whose weights must be computed")
	}
	return NotMerged(before)
}

// onlyExperts reports whether nothing but experts changes.
func (r *Request) onlyExperts() bool {
	return (r.Experts != nil || r.Changes != nil) && !slices.ContainsFunc(r.Outputs, func(o OutputRequest) bool { return !o.Recipe.KeepsTypes })
}

// prune applies a selection, if there is one, to a plan of a model's tensors,
// each of which has a choice for every output. Recipes chose for the whole model.
func (p *Plan) prune(s *selection, choices [][]quant.Choice, req *Request) error {
	if s == nil {
		return nil
	}
	a, err := s.apply(p.inv, p.Tensors)
	if err != nil {
		return err
	}
	p.Tensors, p.Dropped = a.tensors, append(slices.Clip(p.Dropped), a.dropped...)
	for o := range choices {
		choices[o] = a.choices(choices[o])
	}
	var firsts []int
	for _, old := range req.Layout.FirstTensors {
		i, _ := slices.BinarySearch(a.from, old)
		if i < len(a.from) && !slices.Contains(firsts, i) {
			firsts = append(firsts, i)
		}
	}
	req.Layout.FirstTensors = firsts
	if p.importance == nil {
		return nil
	}
	sliced := *p.importance
	if sliced.Matrix, err = s.matrix(p.importance.Matrix); err != nil {
		return err
	}
	p.importance = &sliced
	return nil
}

// matrix is the part of an importance matrix that belongs to what is left.
func (s *selection) matrix(m *calib.Matrix) (*calib.Matrix, error) { return m.Select(s.measured()) }

// measured is what is left of what a calibration measured on the whole model.
func (s *selection) measured() calib.Selection {
	return calib.Selection{
		Experts: s.model.Params.Experts,
		Weight: func(name string) (ids []int, has bool) {
			t, ok := s.tensors[name]
			switch {
			case ok && s.drops(t.Name.Layer):
				return nil, false
			case ok && t.Rule.ExpertAxis() >= 0 && len(t.Rule.Shape) == 3: // a matrix for each expert
				return s.keep.Blocks[t.Name.Layer], true
			}
			return nil, true
		},
		Block: func(l int) []int { return s.keep.Blocks[l] },
	}
}

// measuredSelection is a selection for what was measured, which says nothing about
// merged experts.
func measuredSelection(m *arch.Model, keep *experts.KeepList) (*selection, error) {
	if keep.Merge != nil {
		return nil, hinted("calibrate the model that is written", refused("what was measured of experts says nothing about those that they are merged to"))
	}
	return newSelection(m, keep)
}

// PruneMatrix returns the importance matrix of the model that a keep-list
// leaves of m: of weights that belong to experts the sums of those that stay.
// They are still sums over the routing of the whole model.
func PruneMatrix(m *arch.Model, keep *experts.KeepList, matrix *calib.Matrix) (*calib.Matrix, error) {
	s, err := measuredSelection(m, keep)
	if err != nil {
		return nil, err
	}
	for i := range matrix.Entries {
		e := &matrix.Entries[i]
		if t, ok := s.tensors[e.Name]; ok && !isEmbedding(t.Name.String()) && !fits(e, t.Shape) {
			return nil, formatError("tensor %q: %w: it has %d sums, and the model's tensor the shape %v", e.Name, calib.ErrSize, e.Size(), t.Shape)
		}
	}
	return s.matrix(matrix)
}

// fits reports whether an entry has a sum for every column of a tensor, or of every
// matrix of it.
func fits(e *calib.Entry, shape []int64) bool {
	size, all := int64(e.Size()), shape[0]
	for _, n := range shape[min(2, len(shape)):] {
		all *= n
	}
	return size == shape[0] || size == all
}

// PruneStatistics returns what PruneMatrix does of a calibration's statistics.
func PruneStatistics(m *arch.Model, keep *experts.KeepList, stats *calib.Statistics) (*calib.Statistics, error) {
	s, err := measuredSelection(m, keep)
	if err != nil {
		return nil, err
	}
	return stats.Select(s.measured())
}
