package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"github.com/winnow-moe/winnow/convert"
	"github.com/winnow-moe/winnow/convert/experts"
	"github.com/winnow-moe/winnow/formats/arch"
	"github.com/winnow-moe/winnow/formats/calib"
)

// pruning is what writes a pruned model: files by a plan, or a folder.
type pruning struct {
	files  *conversion
	folder *convert.FolderPlan
}

// asFolder reports whether the output is a checkpoint folder in its own form: one
// is the input and no type is asked for.
func (c *choice) asFolder() bool { return c.folder != nil && len(c.recipes) == 0 }

// files are the outputs by the flags that name them.
func (f *pruneFlags) files() []struct{ flag, path string } {
	return []struct{ flag, path string }{{"output", f.out}, {"save-plan", f.save}, {"slice-imatrix", f.slice}, {"report", f.page}}
}

// checkFiles sees that outputs can be written, and over no other file. The names
// of models in a folder, or of several types, are checked when they are known.
func (f *pruneFlags) checkFiles(model string) error {
	if f.dryRun {
		return nil
	}
	f.inputs = []string{model, f.stats, f.imatrix, f.plan}
	for _, flag := range []struct {
		name   string
		values []string
	}{{"--text", f.texts}, {"--verify", f.proof}} {
		texts, err := parseTexts(flag.name, flag.values)
		if err != nil {
			return err
		}
		for _, t := range texts {
			f.inputs = append(f.inputs, t.path)
		}
	}
	seen := map[string]string{}
	for _, o := range f.files() {
		if o.path == "" {
			continue
		}
		if other := seen[filepath.Clean(o.path)]; other != "" {
			return usagef("--%s and --%s name the same file %q", o.flag, other, o.path)
		}
		seen[filepath.Clean(o.path)] = o.flag
		if o.flag == "output" && (strings.Contains(o.path, "{") || isDir(o.path)) {
			continue
		}
		if err := checkOutput(o.path, f.inputs, f.force); err != nil {
			return err
		}
	}
	return nil
}

// checkModels sees that models can be written, and over no other output.
func (f *pruneFlags) checkModels(p *conversion) error {
	for _, path := range p.outputs() {
		for _, o := range f.files() {
			if o.flag != "output" && o.path != "" && filepath.Clean(o.path) == filepath.Clean(path) {
				return usagef("--%s and --output name the same file %q", o.flag, path)
			}
		}
	}
	return checkOutputs([]*conversion{p}, f.force)
}

// checkOutput finds before the choice is made, which may take long, what keeps its
// outputs from being written.
func (c *choice) checkOutput() error {
	if c.flags.dryRun {
		return nil
	}
	if err := c.checkBeside(); err != nil {
		return err
	}
	switch {
	case c.flags.out == "":
		return nil
	case c.asFolder():
		if err := convert.CheckNewFolder(c.flags.out); err != nil {
			return err
		}
		return c.checkRewritten()
	}
	p, err := c.planFiles()
	if err != nil {
		return err
	}
	return c.flags.checkModels(p)
}

// anyChange stands for changes of weights of experts before they are known.
type anyChange struct{ merge bool }

// Has implements convert.Changes: a repair changes down projections, a merge all.
func (a anyChange) Has(name string) bool {
	n := arch.ParseName(name)
	switch n.Role {
	case arch.ExpertDown:
		return n.Suffix == "weight"
	case arch.ExpertGate, arch.ExpertUp, arch.ExpertGateUp:
		return n.Suffix == "weight" && a.merge
	}
	return false
}

// Rows implements convert.Changes.
func (a anyChange) Rows(context.Context, string, int64, int64, []float32) error {
	return errors.New("changes are not known yet")
}

// checkRewritten sees that a checkpoint has experts in a form in which changed ones
// can be written. It takes any choice of experts for that.
func (c *choice) checkRewritten() error {
	p := &c.model.Params
	opt := experts.Options{Keep: experts.Smallest(p, true), Flatten: true, MTP: experts.DropMTP}
	if c.flags.merge == "" && !c.flags.repair || opt.Keep == 0 {
		return nil
	}
	list, err := experts.Select(experts.Random(p, 0), p, opt)
	if err != nil {
		return err
	}
	if _, err = c.folder.PlanFolder(list, anyChange{c.flags.merge != ""}); err != nil {
		return planError(err)
	}
	return nil
}

// checkBeside sees that what is written beside models replaces no file of the input.
func (c *choice) checkBeside() error {
	var inputs []string
	if c.folder != nil {
		entries, err := os.ReadDir(c.path)
		if err != nil {
			return err
		}
		for _, e := range entries {
			inputs = append(inputs, filepath.Join(c.path, e.Name()))
		}
	} else {
		inputs = c.file.Inputs()
	}
	for _, o := range c.flags.files() {
		if o.path == "" || o.flag == "output" {
			continue
		}
		if err := checkOutput(o.path, inputs, c.flags.force); err != nil {
			return err
		}
	}
	return nil
}

// planPruning decides the outputs: GGUF files, or the checkpoint folder.
func (c *choice) planPruning() (*pruning, error) {
	if c.asFolder() {
		plan, err := c.folder.PlanFolder(c.list, c.changes)
		if err != nil {
			return nil, planError(err)
		}
		return &pruning{folder: plan}, nil
	}
	p, err := c.planFiles()
	if err != nil {
		return nil, err
	}
	return &pruning{files: p}, c.flags.checkModels(p)
}

// planFiles plans GGUF files, of the whole model as long as nothing is chosen.
func (c *choice) planFiles() (*conversion, error) {
	outputs, err := outputNames(c.flags.out, c.defaultName(), c.recipes)
	if err != nil {
		return nil, err
	}
	req, p := convert.Request{Outputs: outputs, Experts: c.list, Changes: c.changes}, &conversion{}
	if c.folder != nil {
		p.plan, err = c.folder.Plan(req)
		p.data, p.inputs = c.folder, c.folder.Inputs()
	} else {
		p.plan, err = c.file.Plan(req)
		p.data, p.inputs = c.file, c.file.Inputs()
	}
	if err != nil {
		return nil, planError(err)
	}
	p.inputs = append(p.inputs, c.flags.inputs...)
	return p, nil
}

// defaultName is the stem of the names of models in a folder.
func (c *choice) defaultName() string {
	if c.folder != nil {
		return c.folder.DefaultName() + "-pruned"
	}
	return c.file.DefaultName() + "-pruned"
}

// output is a model that was written: output index of the plan, or the folder.
type output struct {
	path       string
	index      int
	keepsTypes bool // of what it was made from
}

// outputs lists what is written.
func (p *pruning) outputs(c *choice) (list []output) {
	if p.folder != nil {
		return []output{{path: c.flags.out, keepsTypes: true}}
	}
	for i := range p.files.plan.Outputs {
		o := &p.files.plan.Outputs[i]
		list = append(list, output{o.Path, i, o.Recipe.KeepsTypes})
	}
	return list
}

// apply writes what the flags ask for: the pruned model, and the statistics or
// the matrix of its experts.
func (a *app) apply(ctx context.Context, c *choice) (written []output, err error) {
	slice, err := c.sliceMeasured() // before models are written: it may be refused
	if err != nil {
		return nil, err
	}
	if c.flags.out != "" {
		p, err := c.planPruning()
		if err != nil {
			return nil, err
		}
		if p.folder != nil {
			err = a.writeFolder(ctx, c, p.folder)
		} else {
			a.warn(p.files.plan.Notes)
			err = a.execute(ctx, p.files, convert.DefaultMaxMemory, "pruning")
		}
		if err != nil {
			return nil, err
		}
		written = p.outputs(c)
	}
	return written, slice()
}

// writeFolder writes a pruned checkpoint folder.
func (a *app) writeFolder(ctx context.Context, c *choice, p *convert.FolderPlan) error {
	a.warn(p.Notes)
	bar := a.newProgress("pruning", true)
	defer bar.finish()
	return convert.RunFolder(ctx, p, c.folder, c.flags.out, convert.RunOptions{
		Threads: a.threads, Events: convert.Events{Progress: func(done, total int64) { bar.update(done, total, "") }},
	})
}

// sliceMeasured returns what writes the statistics or the importance matrix of the
// experts that stay, numbered as in the pruned model, if that is asked for.
func (c *choice) sliceMeasured() (write func() error, err error) {
	switch {
	case c.flags.slice == "":
		return func() error { return nil }, nil
	case c.stats != nil:
		s, err := convert.PruneStatistics(c.model, c.list, c.stats)
		if err != nil {
			return nil, fmt.Errorf("%s: %w", c.flags.stats, err)
		}
		return func() error { return s.WriteGGUF(c.flags.slice, nil) }, nil
	}
	matrix, err := calib.Read(c.flags.imatrix, calib.Options{})
	if err != nil {
		return nil, err
	}
	pruned, err := convert.PruneMatrix(c.model, c.list, matrix)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", c.flags.imatrix, errors.Join(err, matrix.Close()))
	}
	return func() error { return errors.Join(pruned.WriteGGUF(c.flags.slice), matrix.Close()) }, nil
}
