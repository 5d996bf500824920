package main

import (
	"context"
	"fmt"

	"github.com/winnow-moe/winnow/convert"
	"github.com/winnow-moe/winnow/formats/calib"
)

// pruning is what writes a pruned model: files by a plan, or a folder.
type pruning struct {
	files  *conversion
	folder *convert.FolderPlan
}

// planPruning decides the outputs: GGUF files, or the checkpoint folder in its
// own form if no type is asked for.
func (c *choice) planPruning() (*pruning, error) {
	if c.folder != nil && len(c.recipes) == 0 {
		plan, err := c.folder.PlanFolder(c.list, nil, "")
		if err != nil {
			return nil, planError(err)
		}
		return &pruning{folder: plan}, nil
	}
	outputs, err := outputNames(c.flags.out, "", c.recipes)
	if err != nil {
		return nil, err
	}
	req := convert.Request{Outputs: outputs, Experts: c.list}
	p := &conversion{}
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
	return &pruning{files: p}, checkOutputs([]*conversion{p}, c.flags.force)
}

// apply writes what the flags ask for: the pruned model, and the statistics or
// the matrix of its experts.
func (a *app) apply(ctx context.Context, c *choice) error {
	if c.flags.out != "" {
		p, err := c.planPruning()
		if err != nil {
			return err
		}
		if p.folder != nil {
			err = a.writeFolder(ctx, c, p.folder)
		} else {
			a.warn(p.files.plan.Notes)
			err = a.execute(ctx, p.files, convert.DefaultMaxMemory, "pruning")
		}
		if err != nil {
			return err
		}
	}
	if c.flags.slice == "" {
		return nil
	}
	return c.sliceMeasured()
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

// sliceMeasured writes the statistics or the importance matrix of the experts
// that stay, numbered as in the pruned model.
func (c *choice) sliceMeasured() error {
	if c.stats != nil {
		s, err := convert.PruneStatistics(c.model, c.list, c.stats)
		if err != nil {
			return fmt.Errorf("%s: %w", c.flags.stats, err)
		}
		return s.WriteGGUF(c.flags.slice, nil)
	}
	matrix, err := calib.Read(c.flags.imatrix, calib.Options{})
	if err != nil {
		return err
	}
	defer matrix.Close()
	pruned, err := convert.PruneMatrix(c.model, c.list, matrix)
	if err != nil {
		return fmt.Errorf("%s: %w", c.flags.imatrix, err)
	}
	return pruned.WriteGGUF(c.flags.slice)
}
