package arch

import "slices"

// MiniMax M2. Reference: transformers modeling_minimax_m2.py; GGUF form:
// llama.cpp conversion/minimax.py and src/models/minimax-m2.cpp. Norms of queries
// and keys run over all heads; the router is that of DeepSeek V3 without groups
// and without a factor.
var minimaxm2 = Family{
	Arch:    "minimax-m2",
	Classes: []string{"MiniMaxM2ForCausalLM"},
	Settings: slices.Concat(
		baseSettings(kvHeads, gating(Setting{Value: int(GatingSigmoid)})), headSettings(),
		[]Setting{
			req(KeyExpertFF, "intermediate_size"),
			req(KeyRopeDim, "rotary_dim"),
			{Key: KeyExpertNorm, Value: true, Silent: true},
		}),
	Asserts: asserts(
		Assert{"qk_norm_type", []any{"per_layer"}, "norms of queries and keys run over all heads"},
		Assert{"use_qk_norm", []any{true}, "queries and keys are normed"},
		Assert{"shared_intermediate_size", []any{0.0}, "there are no shared experts"},
		Assert{"sliding_window", []any{}, "all blocks see all keys"}),
	Defaults: Params{RopeBase: 10000, Gating: GatingSigmoid, ExpertNorm: true},
	Block:    Block{Attn: GQA, Rope: RopeHalves, QKNorm: QKNormWhole},
	Rules: slices.Concat(globals("model.", "lm_head.weight"), preNorms(),
		[]Rule{routerBias("block_sparse_moe.e_score_correction_bias")},
		experts("block_sparse_moe.experts", "block_sparse_moe.gate.weight", "w1", "w2", "w3"),
		attention(), qkNorms(dimQWidth, dimKVWidth)),
	Drop: []Drop{rotaryBuffers},
	Pre:  []string{"minimax-m2"},
}
