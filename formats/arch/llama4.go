package arch

import "slices"

// Llama 4 Scout and Maverick, texts. Reference: transformers modeling_llama4.py;
// GGUF form: llama.cpp conversion/llama.py and src/models/llama4.cpp. Experts are
// stacked [experts, in, out] and stored transposed. Every fourth block has no
// rotary embedding and sees all keys, the others see their chunk.
//
// llama.cpp takes chunks of 8192 tokens, the temperature's constants, and norms
// of queries and keys unless there are 128 experts for granted. Keys for other
// values are ones that only winnow reads.
var llama4 = Family{
	Arch:    "llama4",
	Classes: []string{"Llama4ForConditionalGeneration", "Llama4ForCausalLM"},
	Settings: slices.Concat(
		with(baseSettings(kvHeads, Setting{Key: KeyExpertGating, Value: int(GatingSigmoid), Silent: true}), llama3Scaling,
			req(KeyFeedForward, "intermediate_size_mlp"), opt(KeyExpertCount, "num_local_experts")),
		headSettings(),
		[]Setting{
			req(KeyVocabSize, "vocab_size"),
			{Key: KeyRopeDim, From: []string{"head_dim"}, Derive: (*Params).HeadDim},
			req(KeyMoEStep, "interleave_moe_layer_step"),
			req(KeyExpertFF, "intermediate_size"),
			{Key: KeySharedFF, From: []string{"intermediate_size"}, Silent: true},
			{Key: KeyChunkSize, From: []string{"attention_chunk_size"}, Value: llama4Length, Omit: llama4Length},
			{Key: KeyTempLength, Compute: llama4Temperature, Omit: llama4Length},
			{Key: KeyTempScale, From: []string{"attn_scale"}, Value: llama4Scale, Omit: llama4Scale},
			{Key: KeyNoQKNorm, Compute: llama4NoQKNorm},
			noRopeLayers(4),
		}),
	Asserts:  baseAsserts,
	Defaults: Params{RopeBase: 10000, Gating: GatingSigmoid, ChunkSize: llama4Length, TempLength: llama4Length, TempScale: llama4Scale},
	Complete: []func(*Params){noRopeEvery(4), func(p *Params) {
		p.SharedFF = p.ExpertFF
		p.NoQKNorm = p.NoQKNorm || p.Experts == llama4Unnormed
	}},
	Block: Block{Attn: GQA, Rope: RopeAdjacent, QKNorm: QKNormUnit, WeightInput: true},
	Rules: slices.Concat(
		[]Rule{llama3Factors}, globals("model.", "lm_head.weight"),
		[]Rule{
			llama4Experts(ExpertDown, "feed_forward.experts.down_proj", []Dim{dimExperts, dimEmbed, dimExpertFF}, []Dim{dimExperts, dimExpertFF, dimEmbed}, dimZero),
			llama4Experts(ExpertGate, "feed_forward.experts.gate_up_proj", []Dim{dimExperts, dimExpertFF, dimEmbed}, []Dim{dimExperts, dimEmbed, dimTwoExpertFF}, dimZero),
			llama4Experts(ExpertUp, "feed_forward.experts.gate_up_proj", []Dim{dimExperts, dimExpertFF, dimEmbed}, []Dim{dimExperts, dimEmbed, dimTwoExpertFF}, dimExpertFF),
			block(Router, "feed_forward.router.weight", MoEBlocks, dimExperts, dimEmbed),
			block(FFNDown, "feed_forward.down_proj.weight", DenseBlocks, dimEmbed, dimFF),
			block(FFNGate, "feed_forward.gate_proj.weight", DenseBlocks, dimFF, dimEmbed),
			block(FFNUp, "feed_forward.up_proj.weight", DenseBlocks, dimFF, dimEmbed),
		},
		sharedNetwork("feed_forward.shared_expert"), preNorms(), attention()),
	Drop:  []Drop{rotaryBuffers, {"vision_model.*", mmprojTower}, {"multi_modal_projector.*", mmprojTower}},
	Tower: &llama4Vision,
	Pre:   []string{"llama4"},
}

// What llama.cpp takes for granted.
const (
	llama4Length   = 8192
	llama4Scale    = 0.1
	llama4Unnormed = 128 // experts of the model without norms of queries and keys
)

// llama4Experts are one half, from column from on, or all of stacked matrices.
func llama4Experts(role Role, hf string, shape, source []Dim, from Dim) Rule {
	r := block(role, hf, MoEBlocks, shape...)
	r.Source = source
	r.Cut = []HeadCut{{Heads: dimExperts, Stride: source[1], Offset: dimZero, Count: source[1], Mode: CutTransposed,
		Columns: &Columns{From: from, Count: shape[1]}}}
	return r
}

// llama4Temperature is floor_scale, or 0 where the temperature is off.
func llama4Temperature(cfg *Config, _ *Params) (any, error) {
	if on, ok := cfg.Bool("attn_temperature_tuning"); ok && !on {
		return 0, nil
	}
	f, ok, err := cfg.number("floor_scale")
	if !ok {
		f = llama4Length
	}
	return f, err
}

// llama4NoQKNorm is set where use_qk_norm contradicts what readers expect of
// the number of experts.
func llama4NoQKNorm(cfg *Config, p *Params) (any, error) {
	use, ok := cfg.Bool("use_qk_norm")
	switch {
	case !ok || use == (p.Experts != llama4Unnormed):
		return nil, nil
	case use:
		return nil, configError("use_qk_norm is true in a model of %d experts; readers of the file expect none", p.Experts)
	}
	return true, nil
}
