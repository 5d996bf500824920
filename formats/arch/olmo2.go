package arch

import "slices"

// OLMo 2: norms behind the branches only. Reference: transformers
// modeling_olmo2.py; GGUF form: llama.cpp conversion/olmo.py and
// src/models/olmo2.cpp.
var olmo2 = Family{
	Arch:     "olmo2",
	Classes:  []string{"Olmo2ForCausalLM"},
	Settings: slices.Concat(baseSettings(kvHeads), headSettings(), []Setting{derivedRopeDim}),
	Asserts:  baseAsserts,
	Defaults: Params{RopeBase: 10000},
	Block:    Block{Attn: GQA, Rope: RopeHalves, QKNorm: QKNormWhole, Residual: PostNorm},
	Rules: slices.Concat(globals("model.", "lm_head.weight"), denseNetwork(AllBlocks),
		postNorms(), attention(), qkNorms(dimQWidth, dimKVWidth)),
	Drop: []Drop{rotaryBuffers},
	Pre:  []string{"dbrx"},
}
