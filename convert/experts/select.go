package experts

import (
	"cmp"
	"slices"

	"github.com/winnow-moe/winnow/formats/arch"
)

// Options say how experts are selected.
type Options struct {
	Keep    int    // experts of every block that stay
	Flatten bool   // give up groups; else each keeps as many
	MTP     string // see KeepList
}

// Select keeps the experts of the largest scores, as many in every block, and in
// every group unless groups are given up. Super experts come first; of equal
// scores the lower number stays. Errors match ErrRefused, or ErrInvalid where the
// scores do not belong to the model.
func Select(s *Scores, p *arch.Params, opt Options) (*KeepList, error) {
	k, err := newKeepList(p, opt)
	if err != nil {
		return nil, err
	}
	for _, l := range Blocks(p, k.MTP) {
		scores := s.Blocks[l]
		if scores == nil {
			return nil, unknownBlock(p, l)
		}
		if len(scores) != p.Experts {
			return nil, invalid("block %d: scores of %d experts, the model has %d", l, len(scores), p.Experts)
		}
		k.Blocks[l] = s.pick(l, opt.Keep, groups(p, k.Flatten))
	}
	return k, k.Check(p)
}

// newKeepList starts a keep-list for a model that can have as many experts.
func newKeepList(p *arch.Params, opt Options) (*KeepList, error) {
	if err := checkRouted(p); err != nil {
		return nil, err
	}
	if err := CheckCount(p, opt.Keep, opt.Flatten); err != nil {
		return nil, err
	}
	if p.NextnLayers == 0 && opt.MTP == PruneMTP {
		opt.MTP = ""
	}
	return &KeepList{Experts: p.Experts, Flatten: opt.Flatten && p.ExpertGroups > 1, MTP: opt.MTP, Blocks: map[int][]int{}}, nil
}

// unknownBlock is the error for a block that was not measured.
func unknownBlock(p *arch.Params, l int) error {
	if l >= p.Trunk() {
		return invalid("nothing is known of the experts of block %d, a multi-token prediction block; it can be left out (%s)", l, DropMTP)
	}
	return invalid("nothing is known of the experts of block %d", l)
}

// pick returns the experts of a block that stay.
func (s *Scores) pick(l, keep, groups int) (ids []int) {
	size := s.Experts / groups
	for g := range groups {
		ids = append(ids, s.best(l, g*size, size, keep/groups)...)
	}
	slices.Sort(ids)
	return ids
}

// best returns the n experts to keep of those from first on.
func (s *Scores) best(l, first, of, n int) []int {
	super := func(e int) int {
		if slices.Contains(s.Super, Expert{l, e}) {
			return 1
		}
		return 0
	}
	ids := make([]int, of)
	for i := range ids {
		ids[i] = first + i
	}
	slices.SortStableFunc(ids, func(a, b int) int {
		return cmp.Or(super(b)-super(a), cmp.Compare(s.Blocks[l][b], s.Blocks[l][a]))
	})
	return ids[:n]
}
