package arch

import (
	"cmp"
	"math"
	"slices"
)

// StableLM 2 1.6B and StableLM 3B. Reference: transformers modeling_stablelm.py;
// GGUF form: llama.cpp conversion/stablelm.py and src/models/stablelm.cpp. Norms
// are layer norms with biases, a quarter of every head is rotated. With
// use_parallel_residual both branches work on the norm of attention. Norms of
// queries and keys (StableLM 2 12B) are not covered.
var stablelm = Family{
	Arch:    "stablelm",
	Classes: []string{"StableLmForCausalLM", "StableLMEpochForCausalLM"},
	Settings: []Setting{
		req(KeyContextLength, "max_position_embeddings"),
		req(KeyEmbedding, "hidden_size"),
		req(KeyBlockCount, "num_hidden_layers"),
		req(KeyFeedForward, "intermediate_size"),
		{Key: KeyRopeDim, Compute: stablelmRopeDim},
		req(KeyHeadCount, "num_attention_heads"),
		kvHeads,
		def(KeyParallel, false, "use_parallel_residual"),
		def(KeyNormEps, 1e-5, "layer_norm_eps", "norm_eps"),
		{Key: keyFileType},
		{Key: KeyRopeBase, Value: 10000.0, From: []string{"rope.rope_theta"}, Silent: true},
	},
	Asserts: asserts(
		Assert{"qk_layernorm", []any{false}, "queries and keys are not normed"},
		Assert{"rope.rope_theta", []any{10000.0}, "readers of the file take it for granted"},
		Assert{"rope.rope_type", []any{"default"}, "readers of the file take it for granted"}),
	Defaults: Params{RopeBase: 10000},
	Block:    Block{Attn: GQA, Rope: RopeHalves, Norm: LayerNorm},
	Rules: func() []Rule {
		global, norms := globals("model.", "lm_head.weight"), preNorms()
		norms[1].If = func(p *Params) bool { return !p.Parallel }
		return slices.Concat(global, norms, denseNetwork(AllBlocks), attention(),
			biases(append(norms, global[1])...), optional(biases(queryKeyValue()...)))
	}(),
	Drop: []Drop{rotaryBuffers},
	Pre:  []string{"stablelm2"},
}

// stablelmRopeDim is partialRopeDim where the number of heads is not known yet:
// its key comes later.
func stablelmRopeDim(cfg *Config, p *Params) (any, error) {
	heads, _, err := cfg.number("num_attention_heads")
	if err != nil || !(heads >= 1) {
		return nil, cmp.Or(err, configError("num_attention_heads is %g, wanted 1 or more", heads))
	}
	part, ok, err := cfg.number("rope.partial_rotary_factor")
	if !ok {
		part = 0.25
	}
	return math.Trunc(part * math.Floor(float64(p.Embed)/heads)), err
}
