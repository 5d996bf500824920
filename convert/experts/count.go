package experts

import (
	"fmt"

	"github.com/winnow-moe/winnow/formats/arch"
)

// groups returns the number of groups of experts of the result.
func groups(p *arch.Params, flatten bool) int {
	if flatten {
		return 1
	}
	return max(1, p.ExpertGroups)
}

// groupMin is the fewest experts of a group: its score may be the sum of the two
// best, and llama.cpp refuses as many groups as experts.
const groupMin = 2

// CheckCount finds what keeps a model from having keep experts per block, with
// its groups or, flattened, without. Errors match ErrRefused.
func CheckCount(p *arch.Params, keep int, flatten bool) error {
	g := groups(p, flatten)
	switch {
	case keep > p.Experts:
		return refused("%d experts are to stay of %d", keep, p.Experts)
	case keep < p.ExpertsUsed:
		return refused("%d of %d experts are to stay: every token uses %d", keep, p.Experts, p.ExpertsUsed)
	case keep > runtimeExperts:
		return refused("%d experts are to stay; llama.cpp loads at most %d (LLAMA_MAX_EXPERTS)", keep, runtimeExperts)
	case p.NoQKNorm && keep != p.Experts:
		return refused("the model has %d experts, by which llama.cpp knows that queries and keys have no norm; with %d it would norm them and compute something else", p.Experts, keep)
	case g > 1 && keep%g != 0:
		return refused("%d experts do not divide into the model's %d groups; flattened they are one", keep, g)
	case g > 1 && keep/g < groupMin:
		return refused("%d experts in %d groups are fewer than %d in each, which routing by groups needs", keep, g, groupMin)
	case p.Reach(keep, g) < p.ExpertsUsed:
		return refused("%d experts in %d groups: a token may use %d of the groups, with %d experts, and needs %d", keep, g, p.GroupsUsed, p.Reach(keep, g), p.ExpertsUsed)
	}
	return nil
}

// Smallest returns the least number of experts per block that the model can have,
// 0 if no smaller number than its own.
func Smallest(p *arch.Params, flatten bool) int {
	for keep := max(1, p.ExpertsUsed); keep < p.Experts; keep++ {
		if CheckCount(p, keep, flatten) == nil {
			return keep
		}
	}
	return 0
}

// Target says how many experts stay; one of its members is set.
type Target struct {
	Keep  int     // experts per block
	Ratio float64 // share of the experts that goes, 0 to 1
	Size  int64   // bytes that the result may have
}

// Bytes is how the bytes of a model divide.
type Bytes struct {
	Expert int64 // one expert of every block together
	Rest   int64 // all that does not depend on the number of experts
}

// Total returns the bytes of the model with so many experts per block.
func (b Bytes) Total(keep int) int64 { return b.Rest + int64(keep)*b.Expert }

// Count returns the number of experts per block that stay. Of a share as many
// experts go as make it up at most; of a size as many stay as fit. Both keep the
// groups even. Errors match ErrRefused.
func (t Target) Count(p *arch.Params, flatten bool, b Bytes) (int, error) {
	if err := checkRouted(p); err != nil {
		return 0, err
	}
	keep, g := t.Keep, groups(p, flatten)
	switch {
	case t.Ratio != 0:
		if !(t.Ratio > 0 && t.Ratio < 1) {
			return 0, refused("a share of %g of the experts is to go, want more than 0 and less than all", t.Ratio)
		}
		drop := int(float64(p.Experts)*t.Ratio + 1e-9)
		drop -= drop % g
		if keep = p.Experts - drop; drop == 0 {
			return 0, refused("%.4g %% of %d experts in %s is not one of each", 100*t.Ratio, p.Experts, groupText(g))
		}
	case t.Size != 0:
		if keep = t.fit(p, g, b); keep < 0 {
			return 0, refused("all %d experts fit: the model has %d bytes", p.Experts, b.Total(p.Experts))
		}
		if least := Smallest(p, flatten); least > 0 && keep < least {
			return 0, refused("%d bytes have room for %d experts per block; the model needs %d, which is %d bytes", t.Size, keep, least, b.Total(least))
		}
	}
	return keep, CheckCount(p, keep, flatten)
}

// fit returns how many experts the size has room for, -1 if for all.
func (t Target) fit(p *arch.Params, g int, b Bytes) int {
	if t.Size >= b.Total(p.Experts) {
		return -1
	}
	keep := int(max(0, t.Size-b.Rest) / max(1, b.Expert))
	return keep - keep%g
}

func groupText(g int) string {
	if g == 1 {
		return "one group"
	}
	return fmt.Sprintf("%d groups", g)
}

// Warnings says what is unusual about a model with keep experts per block.
func Warnings(p *arch.Params, keep int, flatten bool) (list []string) {
	if keep == p.Experts {
		return nil
	}
	if keep == p.ExpertsUsed {
		list = append(list, fmt.Sprintf("every token uses all %d experts that stay: nothing is left to choose", keep))
	}
	if keep%8 != 0 && p.Experts%8 == 0 {
		list = append(list, fmt.Sprintf("%d experts are an unusual number: programs that divide experts among devices want a multiple of their number", keep))
	}
	if keep == 8 {
		list = append(list, "llama-quantize takes other types for the attention of models of 8 experts; quantize with winnow, or before pruning")
	}
	if flatten && p.ExpertGroups > 1 {
		list = append(list, fmt.Sprintf("the %d groups of experts are given up: tokens may choose any %d experts, which the model is not trained for", p.ExpertGroups, p.ExpertsUsed))
	}
	return list
}
