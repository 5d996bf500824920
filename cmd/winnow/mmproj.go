package main

import (
	"github.com/spf13/cobra"
	"github.com/winnow-moe/winnow/convert"
)

// towerFlags ask for the vision tower as a file of its own.
type towerFlags struct{ path, kind string }

func (f *towerFlags) add(c *cobra.Command) {
	c.Flags().StringVar(&f.path, "mmproj", "", "write the vision tower to `FILE`; without OUTPUT and --type only it")
	c.Flags().StringVar(&f.kind, "mmproj-type", "F16", "`TYPE` of that file: F32, F16, BF16 or Q8_0")
}

// plan decides the tower's file; nil without error means that none is wanted.
func (f *towerFlags) plan(ck *convert.Checkpoint, flags *writeFlags) (*convert.Plan, error) {
	if f.path == "" {
		return nil, nil
	}
	recipes, err := parseTypes(f.kind)
	if err != nil {
		return nil, err
	}
	if len(recipes) != 1 {
		return nil, usagef("--mmproj-type is %q, wanted one type", f.kind)
	}
	req := flags.request([]convert.OutputRequest{{Path: f.path, Recipe: recipes[0]}})
	req.Layout.MaxShardBytes, req.Layout.MaxShardTensors = 0, 0 // readers want one file
	plan, err := ck.PlanTower(req)
	if err != nil {
		return nil, planError(err)
	}
	return plan, nil
}
