package arch

import "slices"

// GLM-4.5, 4.6 and 4.7. Reference: transformers modeling_glm4_moe.py; GGUF form:
// llama.cpp conversion/glm.py and src/models/glm4-moe.cpp. The router is that of
// DeepSeek V3; post_attention_norm is the norm of the feed-forward network's
// input. GLM-4.5 norms queries and keys, GLM-4.5-Air does not.
var glm4moe = Family{
	Arch:    "glm4moe",
	Classes: []string{"Glm4MoeForCausalLM"},
	Settings: slices.Concat(
		without(baseSettings(kvHeads, softmaxRouter), KeyExpertGating),
		headSettings(),
		[]Setting{
			partialRopeDim(0.5),
			req(KeyExpertFF, "moe_intermediate_size"),
			def(KeyExpertShared, 0, "n_shared_experts"),
			def(KeyLeadingDense, 0, "first_k_dense_replace"),
			{Key: KeyExpertGating, Value: int(GatingSigmoid)},
			opt(KeyExpertScale, "routed_scaling_factor"),
			opt(KeyExpertNorm, "norm_topk_prob"),
		}),
	Asserts:  asserts(anyValue("attention_bias"), anyValue("use_qk_norm")),
	Defaults: Params{RopeBase: 10000, Gating: GatingSigmoid},
	Block:    Block{Attn: GQA, Rope: RopeHalves, QKNorm: QKNormHeads, FFNNorm: PostAttnNorm},
	Rules: slices.Concat(globals("model.", "lm_head.weight"),
		[]Rule{
			block(AttnNorm, "input_layernorm.weight", AllBlocks, dimEmbed),
			block(PostAttnNorm, "post_attention_layernorm.weight", AllBlocks, dimEmbed),
		},
		denseNetwork(DenseBlocks),
		experts("mlp.experts", "mlp.gate.weight", "down_proj", "gate_proj", "up_proj"),
		[]Rule{routerBias("mlp.gate.e_score_correction_bias")},
		sharedNetwork("mlp.shared_experts"),
		attention(), biases(queryKeyValue()...), optional(qkNorms(dimHeadDim, dimHeadDim)),
		nextn("model.layers.{l}.")),
	Drop:    []Drop{rotaryBuffers},
	Special: []SpecialToken{{"bos", "[gMASK]"}, {"eot", "<|user|>"}, {"unk", "<|endoftext|>"}, {"eom", "<|observation|>"}},
	Pre:     []string{"glm4"},
}
