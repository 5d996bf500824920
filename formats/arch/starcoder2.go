package arch

import "slices"

// StarCoder2: layer norms, biases everywhere and a network without gate.
// Reference: transformers modeling_starcoder2.py; GGUF form: llama.cpp
// conversion/starcoder.py and src/models/starcoder2.cpp.
var starcoder2 = Family{
	Arch:    "starcoder2",
	Classes: []string{"Starcoder2ForCausalLM"},
	Settings: slices.Concat(replaceNormEps(baseSettings(kvHeads), def(KeyNormEps, 1e-5, "norm_epsilon")),
		headSettings(), []Setting{derivedRopeDim}),
	Asserts: asserts(
		Assert{"hidden_act", []any{"gelu_pytorch_tanh"}, "the activation is GELU by tanh"},
		Assert{"use_bias", []any{true}, "projections have biases"},
		Assert{"norm_type", []any{"layer_norm"}, "norms are layer norms"},
		Assert{"mlp_type", []any{"default"}, "the feed-forward network has no gate"}),
	Defaults: Params{RopeBase: 10000},
	Block:    Block{Attn: GQA, Rope: RopeHalves, Norm: LayerNorm, Act: GELU},
	Rules: func() []Rule {
		rules := slices.Concat(preNorms(), attention(), []Rule{
			block(FFNUp, "mlp.c_fc.weight", AllBlocks, dimFF, dimEmbed),
			block(FFNDown, "mlp.c_proj.weight", AllBlocks, dimEmbed, dimFF),
		})
		global := globals("model.", "lm_head.weight")
		return slices.Concat(global, rules, biases(append(rules, global[1])...))
	}(),
	Drop: []Drop{rotaryBuffers},
	Tied: true,
	Pre:  []string{"starcoder"},
}
