package main

import (
	"fmt"
	"slices"

	"github.com/winnow-moe/winnow/convert"
	"github.com/winnow-moe/winnow/convert/experts"
	"github.com/winnow-moe/winnow/formats/arch"
	"github.com/winnow-moe/winnow/formats/calib"
	"github.com/winnow-moe/winnow/formats/gguf"
	"github.com/winnow-moe/winnow/quant"
)

// prunable is a model whose experts can be chosen, with the plan of writing it
// whole.
type prunable struct {
	path  string
	model *arch.Model
	plan  *convert.Plan
	types []string // of the plan's outputs; none: sizes are those of the input
	// recipes are those of outputs; what they are made from is one of the two
	recipes []*quant.Recipe
	folder  *convert.Checkpoint
	file    *convert.GGUFSource
	ck      convert.CheckpointOptions
	close   func() error
}

// openPrunable opens a GGUF file or a checkpoint folder.
func openPrunable(path string, flags *pruneFlags) (*prunable, error) {
	m := &prunable{path: path, ck: convert.CheckpointOptions{Pre: flags.pre}}
	recipes, err := flags.recipes()
	if err != nil {
		return nil, err
	}
	open := m.openGGUF
	if isDir(path) {
		open = func(r []*quant.Recipe) error { return m.openCheckpoint(r, flags) }
	}
	for _, r := range recipes {
		m.types = append(m.types, r.Name)
	}
	if err := open(recipes); err != nil {
		return nil, err
	}
	if m.model.Params.Experts == 0 {
		m.close()
		return nil, &inputError{fmt.Errorf("%q has no routed experts (it is no mixture of experts)", path)}
	}
	return m, nil
}

// recipes are the types that sizes are asked for.
func (f *pruneFlags) recipes() ([]*quant.Recipe, error) {
	if f.types == "" {
		return nil, nil
	}
	recipes, err := parseTypes(f.types)
	if err == nil && f.size > 0 && len(recipes) > 1 {
		err = usagef("--size is the size of one type, got --type %s", f.types)
	}
	return recipes, err
}

// preview plans the whole model, with changes, to look at.
func (m *prunable) preview(changes convert.Changes) (*convert.Plan, error) {
	req := convert.Request{Preview: true, Changes: changes}
	for _, r := range m.recipes {
		req.Outputs = append(req.Outputs, convert.OutputRequest{Path: r.Name, Recipe: r})
	}
	if m.folder != nil {
		return m.folder.Plan(req)
	}
	return m.file.Plan(req)
}

func (m *prunable) openGGUF(recipes []*quant.Recipe) error {
	f, err := gguf.OpenUnmapped(m.path)
	if err != nil {
		return err
	}
	m.close = f.Close
	if len(recipes) == 0 {
		keep, err := quant.LookupRecipe("COPY")
		if err != nil {
			return err
		}
		recipes, m.types = []*quant.Recipe{keep}, []string{"as it is"}
	}
	m.recipes, m.file = recipes, convert.NewGGUFSource(m.path, f)
	if m.model, err = arch.FromMetadata(f.Metadata()); err == nil {
		m.plan, err = m.preview(nil)
	}
	if err != nil {
		f.Close()
		return planError(err)
	}
	return nil
}

func (m *prunable) openCheckpoint(recipes []*quant.Recipe, flags *pruneFlags) error {
	for _, r := range recipes {
		if r.KeepsTypes {
			return usagef("%s keeps the types of a GGUF file; name a type to convert a checkpoint to", r.Name)
		}
	}
	ck, err := m.openFolder(flags)
	if err != nil {
		return err
	}
	m.close, m.model, m.folder, m.recipes = ck.Close, ck.Model, ck, recipes
	if m.plan, err = m.preview(nil); err != nil {
		ck.Close()
		return planError(err)
	}
	return nil
}

// openFolder opens a checkpoint with its multi-token prediction blocks if they are
// to be pruned: as asked for, as a keep-list says, or since they were measured.
func (m *prunable) openFolder(flags *pruneFlags) (*convert.Checkpoint, error) {
	m.ck.MTP = map[string]string{experts.DropMTP: "drop", experts.PruneMTP: "keep"}[flags.mtp]
	ck, err := convert.OpenCheckpoint(m.path, m.ck)
	if err != nil || flags.mtp != "" || ck.Model.AnnouncedMTP == ck.Model.Params.NextnLayers {
		return ck, err
	}
	prunes, err := flags.prunesMTP(ck.Model.Params.Layers)
	if err == nil && !prunes {
		return ck, nil
	}
	ck.Close()
	if err != nil {
		return nil, err
	}
	m.ck.MTP = "keep"
	return convert.OpenCheckpoint(m.path, m.ck)
}

// prunesMTP reports whether the keep-list that is read prunes multi-token prediction
// blocks, or whether statistics have them, behind so many others.
func (f *pruneFlags) prunesMTP(blocks int) (bool, error) {
	switch {
	case f.plan != "":
		k, err := parseKeepList(f.plan)
		return err == nil && k.MTP == experts.PruneMTP, err
	case f.stats == "" || f.merge != "":
		return false, nil
	}
	s, err := calib.ReadStatistics(f.stats)
	if err != nil {
		return false, err
	}
	defer s.Close()
	return slices.ContainsFunc(s.Domains, func(d *calib.Domain) bool { return d.Layer(blocks) != nil }), nil
}

// without is how many multi-token prediction blocks the model may have been opened
// or written without.
func (m *prunable) without() int {
	p := &m.model.Params
	switch {
	case m.folder != nil:
		return m.model.AnnouncedMTP - p.NextnLayers
	case p.NextnLayers == 0 && m.model.Family.HasMTP():
		return 1
	}
	return 0
}

// bytes says how the bytes of an output divide, or those of the input if there
// are no outputs.
func (m *prunable) bytes(output int, mtp string) experts.Bytes {
	blocks := m.model.Params.Layers
	if mtp == experts.DropMTP {
		blocks = m.model.Params.Trunk()
	}
	if len(m.types) == 0 {
		return m.plan.SourceExpertBytes(m.model, blocks)
	}
	return m.plan.ExpertBytes(output, m.model, blocks)
}

// sizes compares the sizes of the whole and the pruned model.
func (m *prunable) sizes(k *experts.KeepList) (list []pruneSize) {
	for i := range max(1, len(m.types)) {
		name := "as it is"
		if len(m.types) > 0 {
			name = m.types[i]
		}
		list = append(list, pruneSize{name, m.bytes(i, "").Total(k.Experts), m.bytes(i, k.MTP).Total(k.Keep())})
	}
	return list
}
