// Package experts decides which experts of a model stay.
package experts

import (
	"fmt"

	"github.com/winnow-moe/winnow/formats/arch"
)

// KeepList says which experts of each MoE block stay.
type KeepList struct {
	Experts int           // per block, of the model it is for
	Flatten bool          // groups are given up: one group in the result
	Blocks  map[int][]int // by block number: ids that stay, ascending
	MTP     string        // "", "drop" or "prune": what becomes of multi-token prediction blocks
}

// Keep returns the number of experts that stay in every block.
func (k *KeepList) Keep() int {
	for _, ids := range k.Blocks {
		return len(ids)
	}
	return 0
}

// Check compares the list with a model.
func (k *KeepList) Check(p *arch.Params) error {
	if k.Experts != p.Experts {
		return fmt.Errorf("keep-list for %d experts, the model has %d", k.Experts, p.Experts)
	}
	return nil
}
