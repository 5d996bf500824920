package arch

import "slices"

// OLMoE: experts in every block, norms of queries and keys over all heads.
// Reference: transformers modeling_olmoe.py; GGUF form: llama.cpp
// conversion/olmo.py, which writes 1e-5 as epsilon whatever the configuration
// says, and src/models/olmoe.cpp, which never divides the weights of the chosen
// experts by their sum.
var olmoe = Family{
	Arch:    "olmoe",
	Classes: []string{"OlmoeForCausalLM"},
	Settings: slices.Concat(
		with(baseSettings(kvHeads, softmaxRouter), def(KeyNormRMSEps, 1e-5, "rms_norm_eps")),
		headSettings(), []Setting{derivedRopeDim}),
	Asserts: asserts(
		Assert{"rms_norm_eps", []any{1e-5}, "the file has no other"},
		Assert{"clip_qkv", []any{}, "queries, keys and values are not clipped"},
		Assert{"norm_topk_prob", []any{false}, "readers of the file do not divide the weights of experts by their sum"}),
	Defaults: Params{RopeBase: 10000, Gating: GatingSoftmax},
	Complete: []func(*Params){expertsAsWideAsFF},
	Block:    Block{Attn: GQA, Rope: RopeHalves, QKNorm: QKNormWhole},
	Rules: slices.Concat(globals("model.", "lm_head.weight"), preNorms(),
		experts("mlp.experts", "mlp.gate.weight", "down_proj", "gate_proj", "up_proj"),
		attention(), qkNorms(dimQWidth, dimKVWidth)),
	Drop: []Drop{rotaryBuffers},
	Pre:  []string{"olmo"},
}
