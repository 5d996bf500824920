package arch

import "slices"

// MaxLayers and the limits below bound what a file may claim (facts of
// released models times ten; llama.cpp stops at 512 layers).
const (
	MaxLayers  = 512
	maxVocab   = 16 << 20
	maxExperts = 1 << 14
	maxWidth   = 1 << 24
)

// boundLayers bounds the number of blocks before lists of that length are made.
func (m *Model) boundLayers(errf func(string, ...any) error) error {
	if n := m.Params.Layers; n > MaxLayers {
		return errf("num_hidden_layers (block_count) is %d, wanted 1 to %d", n, MaxLayers)
	}
	return nil
}

// check refuses contradictory hyper-parameters. errf makes the error: the
// same facts come from config.json or from metadata keys.
func (m *Model) check(errf func(string, ...any) error) error {
	p := &m.Params
	positive := []struct {
		name string
		v    int
		max  int
	}{
		{"num_hidden_layers (block_count)", p.Layers, MaxLayers},
		{"hidden_size (embedding_length)", p.Embed, maxWidth},
		{"num_attention_heads (attention.head_count)", p.Heads, maxWidth},
		{"num_key_value_heads (attention.head_count_kv)", p.KVHeads, maxWidth},
		{"vocab_size", p.Vocab, maxVocab},
	}
	for _, c := range positive {
		if c.v < 1 || c.v > c.max {
			return errf("%s is %d, wanted 1 to %d", c.name, c.v, c.max)
		}
	}
	if err := m.checkBlocks(errf); err != nil {
		return err
	}
	if !(p.NormEps > 0) {
		return errf("rms_norm_eps (attention.layer_norm_rms_epsilon) is %g, wanted a positive number", p.NormEps)
	}
	if p.NextnLayers >= p.Layers {
		return errf("num_nextn_predict_layers (%s) is %d, more than the model's %d blocks", KeyNextnLayers, p.NextnLayers, p.Layers)
	}
	if err := m.checkRope(errf); err != nil {
		return err
	}
	if err := m.checkDelta(errf); err != nil {
		return err
	}
	return m.checkExperts(errf)
}

// checkDelta looks at recurrent blocks and at the choice of keys.
func (m *Model) checkDelta(errf func(string, ...any) error) error {
	p := &m.Params
	switch {
	case m.Family.Block.Delta == NoDelta:
	case p.ConvKernel < 1 || p.StateSize < 1 || p.InnerSize > maxWidth || p.StateSize > maxWidth || p.ConvKernel > maxWidth:
		return errf("linear_conv_kernel_dim (ssm.conv_kernel) is %d and linear_key_head_dim (ssm.state_size) %d, wanted 1 to %d", p.ConvKernel, p.StateSize, maxWidth)
	case p.StateGroups < 1 || p.TimeStepRank < 1 || p.TimeStepRank%p.StateGroups != 0 || p.InnerSize < 1 || p.InnerSize%p.TimeStepRank != 0:
		return errf("%d key heads (linear_num_key_heads, ssm.group_count), %d value heads (linear_num_value_heads, ssm.time_step_rank) and %d elements of values (ssm.inner_size) do not divide each other",
			p.StateGroups, p.TimeStepRank, p.InnerSize)
	}
	if m.Family.has(KeyIndexerTopK) && (p.IndexerTopK < 1 || p.IndexerHeads < 1 || p.QLora < 1 || p.IndexerKeyLen < p.RopeDim || p.IndexerHeads*p.IndexerKeyLen > maxWidth) {
		return errf("index_topk (attention.indexer.top_k) %d, index_n_heads (attention.indexer.head_count) %d, index_head_dim (attention.indexer.key_length) %d and q_lora_rank %d do not fit each other",
			p.IndexerTopK, p.IndexerHeads, p.IndexerKeyLen, p.QLora)
	}
	return nil
}

// checkBlocks looks at what may differ from block to block.
func (m *Model) checkBlocks(errf func(string, ...any) error) error {
	p := &m.Params
	for name, n := range map[string]int{
		KeyHeadCountKV: len(p.KVHeadsAt), KeyFeedForward: len(p.FFAt), KeySlidingPattern: len(p.Sliding), KeyRecurrent: len(p.Recurrent),
	} {
		if n != 0 && n != p.Layers {
			return errf("%s has %d entries, the model has %d blocks", name, n, p.Layers)
		}
	}
	if p.SharedKV > 0 && !p.lendersExist() {
		return errf("num_kv_shared_layers (attention.shared_kv_layers) is %d of %d blocks; every kind of attention needs a block before them to share with", p.SharedKV, p.Trunk())
	}
	if p.PerLayerEmbed > maxWidth {
		return errf("hidden_size_per_layer_input (embedding_length_per_layer_input) is %d, wanted 0 to %d", p.PerLayerEmbed, maxWidth)
	}
	for l := range p.Layers {
		b := p.At(l)
		if !p.IsRecurrent(l) && b.KVHeads < 1 || b.KVHeads > p.Heads || p.Heads%max(1, b.KVHeads) != 0 {
			return errf("num_key_value_heads (attention.head_count_kv) is %d, which does not divide num_attention_heads (attention.head_count) %d", b.KVHeads, p.Heads)
		}
		if dense := !p.MoE(l) || m.Family.Block.BesideDense; dense && b.FF < 1 || b.FF > maxWidth {
			return errf("intermediate_size (feed_forward_length) is %d, wanted 1 to %d", b.FF, maxWidth)
		}
		if b.RopeDim < 2 || b.RopeDim%2 != 0 || b.RopeDim > b.HeadDim() {
			return errf("%d of %d elements per head are rotated (rope.dimension_count), wanted an even number", b.RopeDim, b.HeadDim())
		}
		if p.IsSliding(l) && p.SlidingWindow < 1 {
			return errf("sliding_window (attention.sliding_window) is %d, wanted a positive number", p.SlidingWindow)
		}
	}
	return nil
}

func (m *Model) checkRope(errf func(string, ...any) error) error {
	p := &m.Params
	if !(p.RopeBase > 0) {
		return errf("rope_theta (rope.freq_base) is %g, wanted a positive number", p.RopeBase)
	}
	switch p.RopeScaling {
	case "", "none":
	case "longrope":
		if !slices.ContainsFunc(m.Family.Rules, func(r Rule) bool { return r.Role == RopeFactorsLong }) {
			return errf("rope_scaling type %q is not supported for %s models", p.RopeScaling, m.Family.Arch)
		}
	case "linear", "yarn":
		if !(p.RopeFactor > 0) {
			return errf("rope_scaling has no positive factor (rope.scaling.factor %g)", p.RopeFactor)
		}
	default:
		return errf("rope_scaling type %q is not supported", p.RopeScaling)
	}
	if m.Family.Block.Attn == MLA {
		if p.KeyLenMLA <= p.RopeDim || p.ValueLenMLA < 1 || p.KVLora < 1 {
			return errf("qk_nope_head_dim, v_head_dim and kv_lora_rank must be positive (key_length_mla %d, rope.dimension_count %d, value_length_mla %d, kv_lora_rank %d)", p.KeyLenMLA, p.RopeDim, p.ValueLenMLA, p.KVLora)
		}
	} else if p.KeyLen == 0 && p.Embed%p.Heads != 0 {
		return errf("num_attention_heads (attention.head_count) %d does not divide hidden_size (embedding_length) %d", p.Heads, p.Embed)
	}
	return nil
}

func (m *Model) checkExperts(errf func(string, ...any) error) error {
	p := &m.Params
	if p.Experts == 0 {
		return nil
	}
	switch {
	case p.Experts > maxExperts:
		return errf("%d experts (expert_count), more than the limit of %d", p.Experts, maxExperts)
	case p.ExpertsUsed < 1 || p.ExpertsUsed > p.Experts:
		return errf("num_experts_per_tok (expert_used_count) is %d, wanted 1 to %d", p.ExpertsUsed, p.Experts)
	case p.ExpertFF < 1 || p.ExpertFF > maxWidth:
		return errf("moe_intermediate_size (expert_feed_forward_length) is %d, wanted 1 to %d", p.ExpertFF, maxWidth)
	case p.Gating < GatingSoftmax || p.Gating > GatingSelected:
		return errf("expert_gating_func is %d, which is not supported", p.Gating)
	case p.ExpertGroups > 1 && (p.Experts%p.ExpertGroups != 0 || p.GroupsUsed < 1 || p.GroupsUsed > p.ExpertGroups):
		return errf("n_group (expert_group_count) %d and topk_group (expert_group_used_count) %d do not fit %d experts", p.ExpertGroups, p.GroupsUsed, p.Experts)
	case p.LeadingDense > p.Trunk():
		return errf("first_k_dense_replace (leading_dense_block_count) is %d, more than the %d blocks", p.LeadingDense, p.Trunk())
	}
	return nil
}
