package arch

import "slices"

// dots.llm1: the experts of DeepSeek V3 behind the attention of Qwen3.
// Reference: transformers modeling_dots1.py; GGUF form: llama.cpp
// conversion/dots1.py and src/models/dots1.cpp.
var dots1 = Family{
	Arch:    "dots1",
	Classes: []string{"Dots1ForCausalLM"},
	Settings: slices.Concat(
		baseSettings(kvHeads, Setting{Key: KeyExpertGating, From: []string{"scoring_func"}, Enum: map[string]any{"sigmoid": GatingSigmoid}}),
		headSettings(),
		[]Setting{
			req(KeyExpertFF, "moe_intermediate_size"),
			def(KeyLeadingDense, 0, "first_k_dense_replace"),
			req(KeyExpertShared, "n_shared_experts"),
			def(KeyExpertScale, 1.0, "routed_scaling_factor"),
			def(KeyExpertNorm, false, "norm_topk_prob"),
			derivedRopeDim,
		}),
	Asserts: asserts(noSlidingWindow,
		Assert{"sliding_window", []any{}, "all blocks see all keys"},
		Assert{"moe_layer_freq", []any{1.0}, "all blocks behind the leading dense ones have experts"},
		Assert{"topk_method", []any{"noaux_tc"}, "a bias decides about the choice of experts"}),
	Defaults: Params{RopeBase: 10000, Gating: GatingSigmoid},
	Block:    Block{Attn: GQA, Rope: RopeHalves, QKNorm: QKNormHeads},
	Rules: slices.Concat(globals("model.", "lm_head.weight"), preNorms(), denseNetwork(DenseBlocks),
		experts("mlp.experts", "mlp.gate.weight", "down_proj", "gate_proj", "up_proj"),
		[]Rule{routerBias("mlp.gate.e_score_correction_bias")},
		sharedNetwork("mlp.shared_experts"), attention(), qkNorms(dimHeadDim, dimHeadDim)),
	Drop: []Drop{rotaryBuffers},
	Pre:  []string{"qwen2"},
}
