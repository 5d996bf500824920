package arch

import "slices"

// Llama 1 to 3, Mistral and Mixtral. Reference: transformers modeling_llama.py,
// modeling_mistral.py, modeling_mixtral.py; GGUF form: llama.cpp
// conversion/llama.py and src/models/llama.cpp. llama.cpp rotates adjacent
// elements, so the rows of q and k are reordered from HF's half-split layout.
//
// HF's Mistral code applies sliding_window to all blocks; llama.cpp neither
// writes nor heeds it, so the key is one that only winnow reads.
var llama = Family{
	Arch:    "llama",
	Classes: []string{"LlamaForCausalLM", "MistralForCausalLM", "MixtralForCausalLM"},
	Settings: slices.Concat(
		with(baseSettings(kvHeads, Setting{Key: KeyExpertGating, Value: int(GatingSoftmax), Silent: true}), llama3Scaling,
			opt(KeyExpertCount, "num_local_experts"), Setting{Key: KeyExpertNorm, Value: true, Silent: true}),
		[]Setting{
			// The class of Mistral's configuration has a head_dim in any case.
			Setting{Key: KeyKeyLength, From: []string{"head_dim"}, Derive: (*Params).HeadDim}.when("class", "MistralForCausalLM"),
			opt(KeyKeyLength, "head_dim").when("class", "LlamaForCausalLM", "MixtralForCausalLM"),
			Setting{Key: KeyValueLength, From: []string{"head_dim"}, Derive: (*Params).HeadDim}.when("class", "MistralForCausalLM"),
			opt(KeyValueLength, "head_dim").when("class", "LlamaForCausalLM", "MixtralForCausalLM"),
			{Key: keyFileType},
			req(KeyVocabSize, "vocab_size"),
			{Key: KeyRopeDim, From: []string{"head_dim"}, Derive: (*Params).HeadDim},
			opt(KeySlidingWindow, "sliding_window").when("class", "MistralForCausalLM", "MixtralForCausalLM"),
		}),
	Asserts:  baseAsserts,
	Defaults: Params{RopeBase: 10000, Gating: GatingSoftmax, ExpertNorm: true},
	Complete: []func(*Params){expertsAsWideAsFF, func(p *Params) {
		if p.SlidingWindow > 0 {
			p.Sliding = slices.Repeat([]bool{true}, p.Layers)
		}
	}},
	Block: Block{Attn: GQA, Rope: RopeAdjacent},
	Rules: slices.Concat(
		[]Rule{llama3Factors}, globals("model.", "lm_head.weight"),
		[]Rule{block(AttnNorm, "input_layernorm.weight", AllBlocks, dimEmbed)},
		denseNetwork(DenseBlocks),
		experts("block_sparse_moe.experts", "block_sparse_moe.gate.weight", "w1", "w2", "w3"),
		[]Rule{block(FFNNorm, "post_attention_layernorm.weight", AllBlocks, dimEmbed)},
		permutedAttention()),
	Drop: []Drop{rotaryBuffers},
	Pre:  []string{"llama-bpe"},
}
