package arch

// Settings, dimensions and rules that most decoder-only families share.

// Dimensions, named after the config.json settings that determine them.
var (
	dimVocab    = Dim{"vocab_size", func(p *Params) int { return p.Vocab }}
	dimEmbed    = Dim{"hidden_size", func(p *Params) int { return p.Embed }}
	dimFF       = Dim{"intermediate_size", func(p *Params) int { return p.FF }}
	dimHeads    = Dim{"num_attention_heads", func(p *Params) int { return p.Heads }}
	dimKVHeads  = Dim{"num_key_value_heads", func(p *Params) int { return p.KVHeads }}
	dimHeadDim  = Dim{"head_dim", (*Params).HeadDim}
	dimZero     = Dim{"0", func(*Params) int { return 0 }}
	dimQWidth   = Dim{"num_attention_heads*head_dim", func(p *Params) int { return p.Heads * p.HeadDim() }}
	dimKVWidth  = Dim{"num_key_value_heads*head_dim", func(p *Params) int { return p.KVHeads * p.HeadDim() }}
	dimExperts  = Dim{"n_routed_experts", func(p *Params) int { return p.Experts }}
	dimExpertFF = Dim{"moe_intermediate_size", func(p *Params) int { return p.ExpertFF }}
	dimSharedFF = Dim{"n_shared_experts*moe_intermediate_size", (*Params).SharedWidth}
)

// baseSettings are the keys that conversion/base.py (TextModel.set_gguf_parameters)
// writes for every text model, in its order, with kv as the source of
// attention.head_count_kv. gating settings make it a family with experts. Rope
// scaling other than yarn and linear is not covered here.
func baseSettings(kv Setting, gating ...Setting) []Setting {
	s := []Setting{
		req(KeyBlockCount, "num_hidden_layers"),
		opt(KeyContextLength, "max_position_embeddings"),
		req(KeyEmbedding, "hidden_size"),
		req(KeyFeedForward, "intermediate_size"),
		req(KeyHeadCount, "num_attention_heads"),
		kv,
		{Key: KeyRopeScaling, From: []string{"rope.rope_type"}, Optional: true, OmitZero: true,
			Enum: map[string]any{"yarn": "yarn", "linear": "linear", "default": "", "": ""}},
		req(KeyRopeFactor, "rope.factor").when("rope.rope_type", "yarn", "linear"),
		req(KeyRopeOrigContext, "rope.original_max_position_embeddings").when("rope.rope_type", "yarn"),
		opt(KeyYarnExtFactor, "rope.extrapolation_factor").when("rope.rope_type", "yarn"),
		opt(KeyYarnAttnFactor, "rope.attention_factor", "rope.attn_factor").when("rope.rope_type", "yarn"),
		opt(KeyYarnBetaFast, "rope.beta_fast").when("rope.rope_type", "yarn"),
		opt(KeyYarnBetaSlow, "rope.beta_slow").when("rope.rope_type", "yarn"),
		def(KeyRopeBase, 10000.0, "rope.rope_theta"),
		def(KeyNormRMSEps, 1e-6, "rms_norm_eps"),
	}
	if len(gating) > 0 {
		s = append(s,
			opt(KeyExpertCount, "n_routed_experts", "num_local_experts", "num_experts"),
			opt(KeyExpertUsed, "num_experts_per_tok"),
			opt(KeyExpertGroups, "n_group"),
			opt(KeyGroupsUsed, "topk_group"),
		)
	}
	return append(s, gating...)
}

// gating completes a setting for the router's scoring function.
func gating(s Setting) Setting {
	s.Key, s.From = KeyExpertGating, []string{"scoring_func"}
	s.Enum = map[string]any{"sigmoid": GatingSigmoid, "softmax": GatingSoftmax}
	return s
}

// asserts that hold for every family described so far.
var baseAsserts = []Assert{
	{"hidden_act", []any{"silu"}, "the feed-forward network is SwiGLU"},
	{"attention_bias", []any{false}, "projections have no bias"},
	{"mlp_bias", []any{false}, "the feed-forward network has no bias"},
	{"tie_word_embeddings", []any{true, false}, "it decides where the output matrix comes from"},
	{"torch_dtype", dtypes, "a floating point type"},
	{"dtype", dtypes, "a floating point type"},
}

// dtypes are the values of torch_dtype seen in released checkpoints. The
// files' own types decide; this only catches a broken config.json.
var dtypes = []any{"bfloat16", "float16", "float32", "float64", "float8_e4m3fn", "auto"}

// globals are the tensors outside the blocks.
func globals(model, head string) []Rule {
	return []Rule{
		{Role: TokenEmbd, HF: []string{model + "embed_tokens.weight"}, Shape: []Dim{dimVocab, dimEmbed}},
		{Role: OutputNorm, HF: []string{model + "norm.weight"}, Shape: []Dim{dimEmbed}},
		{Role: Output, HF: []string{head}, Shape: []Dim{dimVocab, dimEmbed}, Optional: true},
	}
}

// block makes a rule for a weight of every block.
func block(role Role, hf string, where Where, shape ...Dim) Rule {
	return Rule{Role: role, HF: []string{"model.layers.{l}." + hf}, Where: where, Shape: shape}
}

// rotaryBuffers are computed tables that old checkpoints stored as tensors.
var rotaryBuffers = Drop{"model.layers.{l}.self_attn.rotary_emb.inv_freq", "a table computed from rope_theta"}
