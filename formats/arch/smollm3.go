package arch

import "slices"

// SmolLM3: Llama with every fourth block without rotary embedding. Reference:
// transformers modeling_smollm3.py; GGUF form: llama.cpp conversion/llama.py and
// src/models/smollm3.cpp, which takes the fourth blocks for granted.
var smollm3 = Family{
	Arch:    "smollm3",
	Classes: []string{"SmolLM3ForCausalLM"},
	Settings: slices.Concat(with(baseSettings(kvHeads), def(KeyRopeBase, 2e6, "rope.rope_theta")), headSettings(), []Setting{
		req(KeyVocabSize, "vocab_size"),
		{Key: KeyRopeDim, From: []string{"head_dim"}, Derive: (*Params).HeadDim},
		noRopeLayers(4),
	}),
	Asserts:  asserts(noSlidingWindow),
	Defaults: Params{RopeBase: 10000},
	Complete: []func(*Params){noRopeEvery(4)},
	Block:    Block{Attn: GQA, Rope: RopeAdjacent},
	Rules: slices.Concat(globals("model.", "lm_head.weight"), preNorms(), denseNetwork(AllBlocks),
		permutedAttention()),
	Drop: []Drop{rotaryBuffers},
	Tied: true,
	Pre:  []string{"smaug-bpe"},
}
