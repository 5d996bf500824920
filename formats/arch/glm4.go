package arch

import "slices"

// GLM-4 0414, dense. Reference: transformers modeling_glm4.py; GGUF form:
// llama.cpp conversion/glm.py and src/models/glm4.cpp. The first half of every
// head is rotated, adjacent elements together; the outputs of both branches are
// normed; gate and up are one tensor, the gate first.
var glm4 = Family{
	Arch:     "glm4",
	Classes:  []string{"Glm4ForCausalLM"},
	Settings: slices.Concat(baseSettings(kvHeads), headSettingsOf(128), []Setting{partialRopeDim(0.5)}),
	Asserts:  asserts(Assert{"attention_bias", []any{true}, "queries, keys and values have biases"}),
	Defaults: Params{RopeBase: 10000},
	Block:    Block{Attn: GQA, Rope: RopeAdjacent, Residual: Sandwich},
	Rules: slices.Concat(globals("model.", "lm_head.weight"), preNorms(), []Rule{
		block(FFNDown, "mlp.down_proj.weight", AllBlocks, dimEmbed, dimFF),
		fusedGateUp,
		block(PostFFNNorm, "post_mlp_layernorm.weight", AllBlocks, dimEmbed),
		block(PostAttnNorm, "post_self_attn_layernorm.weight", AllBlocks, dimEmbed),
	}, attention(), biases(queryKeyValue()...)),
	Drop:    []Drop{rotaryBuffers},
	Special: []SpecialToken{{"eos", "<|endoftext|>"}, {"eot", "<|user|>"}, {"unk", "<|endoftext|>"}, {"bos", "<|endoftext|>"}},
	Pre:     []string{"glm4"},
}
