package arch

import "slices"

// Qwen3-MoE. Reference: transformers modeling_qwen3_moe.py; GGUF form: llama.cpp
// conversion/qwen.py and src/models/qwen3moe.cpp, which always divide the
// weights of the chosen experts by their sum.
var qwen3moe = Family{
	Arch:    "qwen3moe",
	Classes: []string{"Qwen3MoeForCausalLM"},
	Settings: slices.Concat(baseSettings(kvHeads, softmaxRouter), headSettings(), []Setting{
		req(KeyExpertFF, "moe_intermediate_size"),
		{Key: KeyExpertNorm, Value: true, Silent: true},
		derivedRopeDim,
	}),
	Asserts: asserts(noSlidingWindow, everyBlockMoE, noDenseBlocks,
		Assert{"norm_topk_prob", []any{true}, "readers of the file divide the weights of experts by their sum"}),
	Defaults: Params{RopeBase: 10000, Gating: GatingSoftmax, ExpertNorm: true},
	Block:    Block{Attn: GQA, Rope: RopeHalves, QKNorm: QKNormHeads},
	Rules: slices.Concat(globals("model.", "lm_head.weight"), preNorms(),
		experts("mlp.experts", "mlp.gate.weight", "down_proj", "gate_proj", "up_proj"),
		attention(), qkNorms(dimHeadDim, dimHeadDim)),
	Drop: []Drop{rotaryBuffers},
	Pre:  []string{"qwen2"},
}
