package arch

import (
	"slices"

	"github.com/winnow-moe/winnow/formats/gguf"
)

// KeyExpertsBefore is a metadata key with the number of experts per block that
// the model had before experts were taken out of it (uint32). Recipes decide
// from it, because the number that is left says nothing about the other weights.
const KeyExpertsBefore = "winnow.prune.experts_before"

// KeyMerged is a metadata key with the method by which experts were merged
// (string). What was measured on the model before says nothing about them.
const KeyMerged = "winnow.prune.merged"

// ExpertAxis returns the axis of the tensor, counted as Shape is, along which
// there is one entry for each routed expert; -1: there is none.
func (r *Rule) ExpertAxis() int { return expertAxis(r.Shape) }

// SourceExpertAxis is ExpertAxis of the checkpoint's tensors of the rule. Those
// of a stacked rule have none: each belongs to one expert.
func (r *Rule) SourceExpertAxis() int {
	switch {
	case r.Stacked():
		return -1
	case r.Source != nil:
		return expertAxis(r.Source)
	}
	return expertAxis(r.Shape)
}

func expertAxis(dims []Dim) int {
	return slices.IndexFunc(dims, func(d Dim) bool { return d.Name == dimExperts.Name })
}

// Reach returns how many experts a token can choose among if so many are left,
// evenly in so many groups: all, or those of the groups that it may use.
func (p *Params) Reach(experts, groups int) int {
	if groups < 2 {
		return experts
	}
	return experts / groups * p.GroupsUsed
}

// Pruning says what becomes of the routed experts of a model.
type Pruning struct {
	Experts int    // that are left in each block
	Flatten bool   // they form one group
	DropMTP bool   // the blocks of multi-token prediction are left out
	Merged  string // the method by which others were merged into them, "" if none were
}

// Flattened returns the hyper-parameters with all routed experts in one group: p
// itself where they are.
func (p *Params) Flattened() *Params {
	if p.ExpertGroups < 2 {
		return p
	}
	q := *p
	q.ExpertGroups, q.GroupsUsed = 1, 1
	return &q
}

// Pruned returns the hyper-parameters of the pruned model.
func (p *Params) Pruned(how Pruning) Params {
	q := *p
	if how.Flatten {
		q = *p.Flattened()
	}
	q.Experts = how.Experts
	if how.DropMTP {
		q.Layers, q.NextnLayers = p.Trunk(), 0
		q.KVHeadsAt, q.FFAt = upTo(q.KVHeadsAt, q.Layers), upTo(q.FFAt, q.Layers)
		q.Sliding, q.NoRope, q.Recurrent = upTo(q.Sliding, q.Layers), upTo(q.NoRope, q.Layers), upTo(q.Recurrent, q.Layers)
	}
	return q
}

func upTo[T any](list []T, n int) []T { return slices.Clip(list[:min(n, len(list))]) }

// PruneMetadata changes the keys of a file with the model into those of the
// pruned one. They stay in their places, with the types that they have.
func (m *Model) PruneMetadata(md *gguf.Metadata, how Pruning) {
	prefix, pruned := m.Family.Arch+".", m.Params.Pruned(how)
	if _, again := md.Get(KeyExpertsBefore); !again {
		md.SetAfter(prefix+KeyExpertCount, KeyExpertsBefore, uint32(m.Params.Experts))
	}
	if how.Merged != "" {
		md.SetAfter(KeyExpertsBefore, KeyMerged, how.Merged)
	}
	md.Set(prefix+KeyExpertCount, pruned.value(KeyExpertCount))
	for _, key := range []string{KeyExpertGroups, KeyGroupsUsed, KeyBlockCount} {
		if _, ok := md.Get(prefix + key); ok {
			md.Set(prefix+key, pruned.value(key))
		}
	}
	if !how.DropMTP {
		return
	}
	md.Delete(prefix + KeyNextnLayers)
	for _, key := range []string{KeyHeadCountKV, KeyFeedForward, KeySlidingPattern, KeyRecurrent} {
		if v, ok := md.Get(prefix + key); ok {
			md.Set(prefix+key, firstOf(v, pruned.Layers))
		}
	}
}

// firstOf returns the first n entries of a list, any other value as it is.
func firstOf(v any, n int) any {
	switch list := v.(type) {
	case []int32:
		return upTo(list, n)
	case []uint32:
		return upTo(list, n)
	case []bool:
		return upTo(list, n)
	}
	return v
}

// ConfigNames lists the settings of config.json that a metadata key comes from.
// Several may be there at once.
func (m *Model) ConfigNames(key string) []string {
	for _, s := range m.Family.settings() {
		if s.Key == key {
			return s.From
		}
	}
	return nil
}
