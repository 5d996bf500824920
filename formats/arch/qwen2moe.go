package arch

import "slices"

// Qwen1.5-MoE and Qwen2-MoE: experts beside a shared one with a gate.
// Reference: transformers modeling_qwen2_moe.py; GGUF form: llama.cpp
// conversion/qwen.py and src/models/qwen2moe.cpp, which never divide the weights
// of the chosen experts by their sum.
var qwen2moe = Family{
	Arch:    "qwen2moe",
	Classes: []string{"Qwen2MoeForCausalLM"},
	Settings: slices.Concat(baseSettings(kvHeads, softmaxRouter), headSettings(), []Setting{
		req(KeyExpertFF, "moe_intermediate_size"),
		req(KeySharedFF, "shared_expert_intermediate_size"),
		derivedRopeDim,
	}),
	Asserts: asserts(noSlidingWindow, everyBlockMoE, noDenseBlocks, anyValue("attention_bias"),
		Assert{"norm_topk_prob", []any{false}, "readers of the file do not divide the weights of experts by their sum"}),
	Defaults: Params{RopeBase: 10000, Gating: GatingSoftmax},
	Block:    Block{Attn: GQA, Rope: RopeHalves},
	Rules: slices.Concat(globals("model.", "lm_head.weight"), preNorms(),
		experts("mlp.experts", "mlp.gate.weight", "down_proj", "gate_proj", "up_proj"),
		sharedNetwork("mlp.shared_expert"),
		[]Rule{sharedGateRow},
		attention(), biases(queryKeyValue()...)),
	Drop: []Drop{rotaryBuffers},
	Pre:  []string{"qwen2"},
}
