package arch

import "slices"

// Qwen2, Qwen2.5 and QwQ. Reference: transformers modeling_qwen2.py; GGUF form:
// llama.cpp conversion/qwen.py and src/models/qwen2.cpp.
var qwen2 = Family{
	Arch:     "qwen2",
	Classes:  []string{"Qwen2ForCausalLM"},
	Settings: slices.Concat(baseSettings(kvHeads), headSettings(), []Setting{derivedRopeDim}),
	Asserts:  asserts(noSlidingWindow, anyValue("attention_bias")),
	Defaults: Params{RopeBase: 10000},
	Block:    Block{Attn: GQA, Rope: RopeHalves},
	Rules: slices.Concat(globals("model.", "lm_head.weight"), preNorms(), denseNetwork(AllBlocks),
		attention(), biases(queryKeyValue()...)),
	Drop: []Drop{rotaryBuffers},
	Pre:  []string{"qwen2"},
}
