package arch

import "slices"

// Qwen3. Reference: transformers modeling_qwen3.py; GGUF form: llama.cpp
// conversion/qwen.py and src/models/qwen3.cpp.
var qwen3 = Family{
	Arch:     "qwen3",
	Classes:  []string{"Qwen3ForCausalLM"},
	Settings: slices.Concat(baseSettings(kvHeads), headSettings(), []Setting{derivedRopeDim}),
	Asserts:  asserts(noSlidingWindow),
	Defaults: Params{RopeBase: 10000},
	Block:    Block{Attn: GQA, Rope: RopeHalves, QKNorm: QKNormHeads},
	Rules: slices.Concat(globals("model.", "lm_head.weight"), preNorms(), denseNetwork(AllBlocks),
		attention(), qkNorms(dimHeadDim, dimHeadDim)),
	Drop: []Drop{rotaryBuffers},
	Pre:  []string{"qwen2"},
}
