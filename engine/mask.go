package engine

import (
	"fmt"
	"math"
	"slices"

	"github.com/winnow-moe/winnow/formats/arch"
)

// Mask says which experts the routers of a model may choose.
type Mask struct {
	// Keep has, by number of a block, the numbers of the experts that may be
	// chosen, ascending. In blocks that it does not name all may; those of
	// multi-token prediction do not matter where they are not run.
	Keep map[int][]int
	// Flatten has routers choose among all experts, whatever groups they are in.
	Flatten bool
}

// Masked returns the model as it is without the experts that a mask does not
// keep: it predicts what a model predicts that never had them, nor their rows of
// the router. Their logits are -∞, and so are, where a bias decides about the
// choice, their scores for it. The mask takes the place of one that m has; the
// tensors are shared with m, and nothing is read.
//
// A mask that leaves a token without the experts that it needs is an error. So is
// one that keeps more experts of one group than of another, unless groups are
// given up, since no model without experts is like it. An observer is told of
// the logits of all experts as they were before.
func (m *Model) Masked(mask Mask) (*Model, error) {
	for l := range mask.Keep {
		b, idle := m.block(l), l >= len(m.layers)+len(m.nextn) && l < m.Params().Layers
		if !idle && (b == nil || b.router.w == nil) {
			return nil, fmt.Errorf("block %d has no routed experts", l)
		}
	}
	out := &Model{
		src: m.src, arch: m.arch, opt: m.opt, embd: m.embd, outNorm: m.outNorm, output: m.output,
		ropeFreqs: m.ropeFreqs, ropeLong: m.ropeLong, ropeShort: m.ropeShort, perLayer: m.perLayer,
		layers: slices.Clone(m.layers), nextn: slices.Clone(m.nextn), budget: m.budget,
	}
	out.makeWorkers()
	for i := range len(m.layers) + len(m.nextn) {
		l := out.block(i)
		if l.par, l.barred = m.arch.Params.At(i), nil; mask.Flatten {
			l.par = l.par.Flattened()
		}
		keep, ok := mask.Keep[i]
		if !ok {
			continue
		}
		if err := checkKept(l.par, keep); err != nil {
			return nil, fmt.Errorf("block %d: %w", i, err)
		}
		l.barred = others(keep, l.par.Experts)
	}
	return out, nil
}

// checkKept makes sure that a router with so many experts left chooses as that
// of a model that never had others.
func checkKept(par *arch.Params, keep []int) error {
	last := -1
	for _, e := range keep {
		if e <= last || e >= par.Experts {
			return fmt.Errorf("expert %d follows %d: want numbers of the %d experts, ascending", e, last, par.Experts)
		}
		last = e
	}
	if len(keep) < par.ExpertsUsed {
		return fmt.Errorf("%d experts are kept, less than the %d that a token uses", len(keep), par.ExpertsUsed)
	}
	if par.ExpertGroups < 2 {
		return nil
	}
	size, each := par.Experts/par.ExpertGroups, len(keep)/par.ExpertGroups
	counts := make([]int, par.ExpertGroups)
	for _, e := range keep {
		counts[e/size]++
	}
	for g, n := range counts {
		if n != each || len(keep)%par.ExpertGroups != 0 {
			return fmt.Errorf("group %d keeps %d of its %d experts, where %d are kept in %d groups: want as many in each, or groups given up", g, n, size, len(keep), par.ExpertGroups)
		}
	}
	if least := min(size, 2); par.GroupScore() == arch.GroupTop2 && each < least {
		return fmt.Errorf("every group keeps %d experts, want at least the %d that a group is judged by", each, least)
	}
	if par.Reach(len(keep), par.ExpertGroups) < par.ExpertsUsed {
		return fmt.Errorf("the %d groups that a token may use keep %d experts each, less than the %d that it uses", par.GroupsUsed, each, par.ExpertsUsed)
	}
	return nil
}

// others are the numbers below n that are not among ascending ones.
func others(keep []int, n int) []int32 {
	var out []int32
	for e := range n {
		if len(keep) > 0 && keep[0] == e {
			keep = keep[1:]
			continue
		}
		out = append(out, int32(e))
	}
	return out
}

// bar takes barred experts out of the question.
func (r *router) bar(scores []float32) {
	for _, e := range r.barred {
		scores[e] = float32(math.Inf(-1))
	}
}
