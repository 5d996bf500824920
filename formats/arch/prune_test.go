package arch

import (
	"fmt"
	"regexp"
	"testing"

	"github.com/winnow-moe/winnow/formats/gguf"
	"github.com/winnow-moe/winnow/testdata/fixtures"
)

// ofExperts matches the names of tensors with an entry for every expert.
var ofExperts = regexp.MustCompile(`^blk\.\d+\.(ffn_(gate|up|down|gate_up)_exps\.(weight|bias|scale)|ffn_gate_inp\.(weight|bias)|exp_probs_b\.bias)$`)

// TestExpertAxis: the tensors with an axis of experts are those of their names,
// and the axis has as many entries as there are experts.
func TestExpertAxis(t *testing.T) {
	for _, name := range fixtures.Families(t) {
		cfg, err := ParseConfig(readConfig(t, fixtures.Family(t, name)))
		if err != nil {
			t.Fatal(err)
		}
		m, err := FromConfig(cfg, true)
		if err != nil {
			t.Fatal(err)
		}
		for _, x := range m.Tensors() {
			axis := x.Rule.ExpertAxis()
			if got, want := axis >= 0, ofExperts.MatchString(x.Name.String()); got != want {
				t.Errorf("%s: %s has an axis of experts: %v, want %v", name, x.Name, got, want)
			}
			if axis >= 0 && x.Shape[len(x.Shape)-1-axis] != int64(m.Params.Experts) {
				t.Errorf("%s: axis %d of %s %v is not that of %d experts", name, axis, x.Name, x.Shape, m.Params.Experts)
			}
			source, _ := m.SourceShape(x.Rule, x.Name.Layer)
			if a := x.Rule.SourceExpertAxis(); a >= 0 && source[a] != int64(m.Params.Experts) || (a < 0) != (axis < 0 || x.Rule.Stacked()) {
				t.Errorf("%s: axis %d of the checkpoint's %s %v", name, a, x.Name, source)
			}
		}
	}
}

// TestPruneMetadata changes keys in their places and lists with them.
func TestPruneMetadata(t *testing.T) {
	m := &Model{Family: &gemma4, Params: Params{Layers: 4, NextnLayers: 1, Experts: 16, ExpertGroups: 4, GroupsUsed: 2}}
	md := &gguf.Metadata{}
	for _, kv := range []struct {
		key string
		v   any
	}{
		{"gemma4.block_count", uint32(4)}, {"gemma4.expert_count", uint32(16)}, {"gemma4.expert_group_count", uint32(4)},
		{"gemma4.feed_forward_length", []int32{1, 2, 3, 4}}, {"gemma4.attention.head_count_kv", []uint32{1, 2, 3, 4}},
		{"gemma4.attention.sliding_window_pattern", []bool{true, false, true, false}}, {"gemma4.nextn_predict_layers", uint32(1)},
	} {
		md.Set(kv.key, kv.v)
	}
	m.PruneMetadata(md, Pruning{Experts: 9, Flatten: true, DropMTP: true, Merged: "ream"})
	var got []string
	for _, key := range md.Keys() {
		v, _ := md.Get(key)
		got = append(got, fmt.Sprintf("%s %T %v", key, v, v))
	}
	want := []string{
		"gemma4.block_count uint32 3", "gemma4.expert_count uint32 9", "winnow.prune.experts_before uint32 16", "winnow.prune.merged string ream", "gemma4.expert_group_count uint32 1",
		"gemma4.feed_forward_length []int32 [1 2 3]", "gemma4.attention.head_count_kv []uint32 [1 2 3]", "gemma4.attention.sliding_window_pattern []bool [true false true]",
	}
	if fmt.Sprint(got) != fmt.Sprint(want) {
		t.Errorf("got  %q\nwant %q", got, want)
	}
}
