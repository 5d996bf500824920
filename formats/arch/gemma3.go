package arch

import "slices"

// Gemma 3, texts. Reference: transformers modeling_gemma3.py; GGUF form:
// llama.cpp conversion/gemma.py and src/models/gemma3.cpp. Norms are stored as
// offsets from one; every sixth block sees all keys and has another rotary base.
var gemma3 = Family{
	Arch:    "gemma3",
	Classes: []string{"Gemma3ForCausalLM", "Gemma3ForConditionalGeneration"},
	Settings: slices.Concat(
		after(with(baseSettings(def(KeyHeadCountKV, 4, "num_key_value_heads")), // files leave out what the class defaults to
			def(KeyHeadCount, 8, "num_attention_heads"),
			def(KeyRopeBase, 1e6, "rope.full_attention.rope_theta", "rope.rope_theta"),
			def(KeyContextLength, 131072, "max_position_embeddings")),
			KeyRopeBase, def(KeyRopeBaseSWA, 10000.0, "rope.sliding_attention.rope_theta", "rope_local_base_freq")),
		[]Setting{
			def(KeyKeyLength, 256, "head_dim"),
			def(KeyValueLength, 256, "head_dim"),
			{Key: keyFileType},
			{Key: KeyFinalSoftcap, From: []string{"final_logit_softcapping"}, Optional: true},
			def(KeySlidingWindow, 4096, "sliding_window"),
			derivedRopeDim,
			gemmaScale(62),
			{Key: KeyVocabSize, Value: 262208.0, From: []string{"vocab_size"}, Silent: true},
		}),
	Asserts: asserts(geluAct("hidden_activation"), geluAct("hidden_act"),
		Assert{"sliding_window_pattern", []any{6.0}, "readers of the file take it for granted"},
		Assert{"use_bidirectional_attention", []any{false}, "tokens see only those before them"}),
	Defaults: Params{RopeBase: 10000, RopeBaseSWA: 10000},
	Complete: []func(*Params){slidingUnlessEvery(6), gemmaScores(62)},
	Block:    Block{Attn: GQA, Rope: RopeHalves, QKNorm: QKNormHeads, Residual: Sandwich, Act: GEGLU, ScaleEmbedding: true},
	Rules: plusOne(slices.Concat(globals("model.", "lm_head.weight"), sandwichNorms(), denseNetwork(AllBlocks),
		attention(), qkNorms(dimHeadDim, dimHeadDim))),
	Drop: []Drop{rotaryBuffers, {"model.vision_tower.*", visionTower}, {"vision_tower.*", visionTower},
		{"model.multi_modal_projector.*", visionTower}, {"multi_modal_projector.*", visionTower}},
	Tied: true, NoSpacePrefix: true,
}
