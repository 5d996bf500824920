package arch

import "slices"

// Command R7B and its kin (Cohere 2). Reference: transformers
// modeling_cohere2.py; GGUF form: llama.cpp conversion/command_r.py and
// src/models/cohere2.cpp. Attention and network work on one layer norm without
// bias; every fourth block sees all keys and has no rotary embedding, the others
// see a window; logits are multiplied by logit_scale.
var cohere2 = Family{
	Arch:    "cohere2",
	Classes: []string{"Cohere2ForCausalLM"},
	Settings: slices.Concat(
		withoutScaling(replaceNormEps(baseSettings(kvHeads), def(KeyNormEps, 1e-5, "layer_norm_eps"))),
		[]Setting{
			// HF's configuration class has a head_dim in any case.
			{Key: KeyKeyLength, Derive: (*Params).HeadDim},
			{Key: KeyValueLength, Derive: (*Params).HeadDim},
			{Key: keyFileType},
			def(KeyLogitScale, 0.0625, "logit_scale"),
			req(KeySlidingWindow, "sliding_window"),
			req(KeyVocabSize, "vocab_size"),
			{Key: KeyRopeDim, Derive: (*Params).HeadDim},
			{Key: KeyRopeScaling, Value: "none"},
			headDimDerived,
		}),
	Asserts: asserts(
		Assert{"rope.rope_type", []any{"default"}, "the file says that there is no scaling"},
		Assert{"rotary_pct", []any{1.0}, "all elements of a head are rotated"},
		Assert{"sliding_window_pattern", []any{4.0}, "readers of the file take it for granted"},
		Assert{"layer_switch", []any{4.0}, "readers of the file take it for granted"},
		Assert{"order_of_interleaved_layers", []any{"local_attn_first"}, "the fourth block sees all keys"},
		Assert{"position_embedding_type", []any{"rope_gptj"}, "adjacent elements are rotated together"},
		Assert{"use_embedding_sharing", []any{true}, "the output matrix is the embedding"},
		Assert{"tie_word_embeddings", []any{true}, "the output matrix is the embedding"},
		Assert{"use_gated_activation", []any{true}, "the feed-forward network is SwiGLU"},
		Assert{"use_parallel_block", []any{true}, "attention and network work on one norm"},
		Assert{"use_qk_norm", []any{false}, "queries and keys are not normed"}),
	Defaults: Params{RopeBase: 10000},
	Complete: []func(*Params){slidingUnlessEvery(4), noRopeEvery(4)},
	Block:    Block{Attn: GQA, Rope: RopeAdjacent, Norm: LayerNorm, Residual: ParallelNorm, LogitMultiplier: true},
	Rules: slices.Concat(globals("model.", "lm_head.weight")[:2],
		[]Rule{block(AttnNorm, "input_layernorm.weight", AllBlocks, dimEmbed)}, denseNetwork(AllBlocks), attention()),
	Drop: []Drop{rotaryBuffers},
	Tied: true,
	Pre:  []string{"command-r"},
}
