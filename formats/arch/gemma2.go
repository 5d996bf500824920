package arch

import "slices"

// Gemma 2. Reference: transformers modeling_gemma2.py; GGUF form: llama.cpp
// conversion/gemma.py and src/models/gemma2.cpp. Norms are stored as offsets
// from one; even blocks see a window. The score factor is no key: readers take
// 1/√(head), in the 27B model with its 46 blocks 1/√(hidden/heads).
var gemma2 = Family{
	Arch:    "gemma2",
	Classes: []string{"Gemma2ForCausalLM"},
	Settings: []Setting{
		opt(KeyContextLength, "max_position_embeddings"),
		req(KeyEmbedding, "hidden_size"),
		req(KeyBlockCount, "num_hidden_layers"),
		req(KeyFeedForward, "intermediate_size"),
		req(KeyHeadCount, "num_attention_heads"),
		kvHeads,
		def(KeyNormRMSEps, 1e-6, "rms_norm_eps"),
		def(KeyKeyLength, 256, "head_dim"),
		def(KeyValueLength, 256, "head_dim"),
		{Key: keyFileType},
		def(KeyAttnSoftcap, 50.0, "attn_logit_softcapping"),
		def(KeyFinalSoftcap, 30.0, "final_logit_softcapping"),
		def(KeySlidingWindow, 4096, "sliding_window"),
		derivedRopeDim,
		gemmaScale(46),
		{Key: KeyRopeBase, Value: 10000.0, From: []string{"rope.rope_theta"}, Silent: true},
	},
	Asserts: asserts(geluAct("hidden_activation"), geluAct("hidden_act"),
		Assert{"rope.rope_theta", []any{10000.0}, "readers of the file take it for granted"}),
	Defaults: Params{RopeBase: 10000},
	Complete: []func(*Params){slidingUnlessEvery(2), gemmaScores(46)},
	Block:    Block{Attn: GQA, Rope: RopeHalves, Residual: Sandwich, Act: GEGLU, ScaleEmbedding: true},
	Rules:    plusOne(slices.Concat(globals("model.", "lm_head.weight"), sandwichNorms(), denseNetwork(AllBlocks), attention())),
	Drop:     []Drop{rotaryBuffers},
	Tied:     true, NoSpacePrefix: true,
}
