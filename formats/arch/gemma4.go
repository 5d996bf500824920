package arch

import "slices"

// Gemma 4, texts: 26B-A4B with experts beside the dense network, and the dense
// models. Reference: transformers modeling_gemma4.py; GGUF form: llama.cpp
// conversion/gemma.py and src/models/gemma4.cpp.
//
// Full blocks have heads of another size and number than sliding ones, and may
// take their values from the key projection. Of their pairs only the first
// quarter rotates, which the file says by infinite wavelengths.
var gemma4 = Family{
	Arch:    "gemma4",
	Classes: []string{"Gemma4ForConditionalGeneration", "Gemma4ForCausalLM"},
	Settings: slices.Concat(
		after(with(baseSettings(Setting{Key: KeyHeadCountKV, Compute: gemma4KVHeads}, softmaxRouter),
			Setting{Key: KeyFeedForward, Compute: gemma4FF},
			opt(KeyExpertUsed, "top_k_experts"),
			def(KeyRopeBase, 1e6, "rope.full_attention.rope_theta")),
			KeyRopeBase, def(KeyRopeBaseSWA, 10000.0, "rope.sliding_attention.rope_theta")),
		[]Setting{
			req(KeyKeyLength, "global_head_dim", "head_dim"),
			req(KeyValueLength, "global_head_dim", "head_dim"),
			{Key: keyFileType},
			opt(KeyFinalSoftcap, "final_logit_softcapping"),
			req(KeySlidingWindow, "sliding_window"),
			def(KeySharedKV, 0, "num_kv_shared_layers"),
			def(KeyPerLayerEmbed, 0, "hidden_size_per_layer_input"),
			{Key: KeySlidingPattern, Compute: slidingPattern},
			req(KeyKeyLengthSWA, "head_dim"),
			req(KeyValueLengthSWA, "head_dim"),
			opt(KeyExpertFF, "moe_intermediate_size"),
			req(KeyRopeDim, "global_head_dim", "head_dim"),
			req(KeyRopeDimSWA, "head_dim"),
			{Key: KeyExpertNorm, Value: true, Silent: true},
		}),
	Asserts: asserts(geluAct("hidden_activation"), geluAct("hidden_act"),
		Assert{"rope.full_attention.rope_type", []any{"proportional"}, "only the first pairs of full blocks rotate"},
		Assert{"rope.sliding_attention.rope_type", []any{"default"}, "the rotary embedding of sliding blocks is not scaled"}),
	Defaults: Params{RopeBase: 10000, Gating: GatingSoftmax, ExpertNorm: true},
	Block: Block{Attn: GQA, Rope: RopeHalves, QKNorm: QKNormHeads, Residual: Sandwich, Act: GEGLU, ScaleEmbedding: true,
		PlainScores: true, ValueNorm: true, RouteResidual: true, BesideDense: true},
	Rules: slices.Concat(
		[]Rule{proportionalFactors}, trimmed(globals("model.", "lm_head.weight")),
		[]Rule{
			block(ExpertDown, "experts.down_proj", MoEBlocks, dimExperts, dimEmbed, dimExpertFF),
			block(ExpertGateUp, "experts.gate_up_proj", MoEBlocks, dimExperts, dimTwoExpertFF, dimEmbed),
			block(Router, "router.proj.weight", MoEBlocks, dimExperts, dimEmbed),
			suffixed("scale", block(Router, "router.scale", MoEBlocks, dimEmbed)),
			suffixed("scale", block(ExpertDown, "router.per_expert_scale", MoEBlocks, dimExperts)),
			block(PreFFNNorm2, "pre_feedforward_layernorm_2.weight", MoEBlocks, dimEmbed),
			block(PostFFNNorm1, "post_feedforward_layernorm_1.weight", MoEBlocks, dimEmbed),
			block(PostFFNNorm2, "post_feedforward_layernorm_2.weight", MoEBlocks, dimEmbed),
			block(LayerOutputScale, "layer_scalar", AllBlocks, dimOne),
		},
		sandwichNorms(), denseNetwork(AllBlocks), gemma4Attention()),
	Drop: []Drop{rotaryBuffers, {"model.vision_tower.*", visionTower}, {"model.embed_vision.*", visionTower},
		{"model.audio_tower.*", "audio tower"}, {"model.embed_audio.*", "audio tower"}},
	Tied: true, NoSpacePrefix: true, Tokenizer: "gemma4", TrimVocab: true,
}

// gemma4Attention: blocks that share the keys and values of another have
// neither, and in full blocks the values may come from the key projection.
func gemma4Attention() []Rule {
	rules := append(attention(), qkNorms(dimHeadDim, dimHeadDim)...)
	for i := range rules {
		switch rules[i].Role {
		case AttnK, AttnKNorm:
			rules[i].In = ownKeys
		case AttnV:
			rules[i].In = ownKeys
			rules[i].Optional = true
		}
	}
	return rules
}

func ownKeys(p *Params, l int) bool { return p.SharesKV(l) == l }

// proportionalFactors are 1 for pairs of full blocks that rotate and infinite,
// for float32, for the others.
var proportionalFactors = Rule{
	Role: RopeFreqs, Shape: []Dim{dimRopePairs},
	Generate: func(m *Model) ([]float32, error) {
		part, ok, err := m.config.number("rope.full_attention.partial_rotary_factor")
		if err != nil || !ok {
			part = 1
		}
		out := make([]float32, m.Params.RopeDim/2)
		for i := range out {
			out[i] = 1
			if i >= int(float64(m.Params.RopeDim)*part/2) {
				out[i] = 1e30
			}
		}
		return out, err
	},
}

// slidingPattern says of every block whether layer_types makes it sliding.
func slidingPattern(cfg *Config, _ *Params) (any, error) {
	list, ok := cfg.list("layer_types")
	if !ok {
		return nil, configError("layer_types is missing")
	}
	out := make([]bool, len(list))
	for i, v := range list {
		out[i] = v == "sliding_attention"
	}
	return out, nil
}

// gemma4KVHeads is the number of key heads, per block where full blocks have
// another.
func gemma4KVHeads(cfg *Config, p *Params) (any, error) {
	n, ok, err := cfg.number("num_key_value_heads")
	if err != nil || !ok {
		return nil, configError("num_key_value_heads is missing")
	}
	global, ok, err := cfg.number("num_global_key_value_heads")
	if err != nil || !ok {
		return n, err
	}
	sliding, err := slidingPattern(cfg, p)
	if err != nil {
		return nil, err
	}
	var out []int
	for _, s := range sliding.([]bool) {
		if s {
			out = append(out, int(n))
		} else {
			out = append(out, int(global))
		}
	}
	return out, nil
}

// gemma4FF is the width of the dense network; blocks that share keys and values
// may have it twice as wide.
func gemma4FF(cfg *Config, p *Params) (any, error) {
	n, ok, err := cfg.number("intermediate_size")
	if err != nil || !ok {
		return nil, configError("intermediate_size is missing")
	}
	if wide, _ := cfg.Bool("use_double_wide_mlp"); !wide {
		return n, nil
	}
	shared, _, err := cfg.number("num_kv_shared_layers")
	out := slices.Repeat([]int{int(n)}, p.Layers)
	for l := max(0, p.Layers-int(shared)); l < p.Layers; l++ {
		out[l] *= 2
	}
	return out, err
}
