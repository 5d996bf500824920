package arch

import (
	"slices"
	"strconv"
)

// Gemma 4, texts: 26B-A4B with experts beside the dense network, the dense 31B,
// and the E models with an embedding per block. Reference: transformers
// modeling_gemma4.py; GGUF form: llama.cpp conversion/gemma.py and
// src/models/gemma4.cpp.
//
// Full blocks have heads of another size and number than sliding ones, and may
// take their values from the key projection. Of their pairs only the first
// quarter rotates, which the file says by infinite wavelengths. The last blocks
// of E models use keys and values of earlier ones.
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
			{Key: KeyKeyLength, Compute: gemma4FullHead},
			{Key: KeyValueLength, Compute: gemma4FullHead},
			{Key: keyFileType},
			opt(KeyFinalSoftcap, "final_logit_softcapping"),
			req(KeySlidingWindow, "sliding_window"),
			def(KeySharedKV, 0, "num_kv_shared_layers"),
			def(KeyPerLayerEmbed, 0, "hidden_size_per_layer_input"),
			{Key: KeySlidingPattern, Compute: slidingPattern},
			req(KeyKeyLengthSWA, "head_dim"),
			req(KeyValueLengthSWA, "head_dim"),
			opt(KeyExpertFF, "moe_intermediate_size"),
			{Key: KeyRopeDim, Compute: gemma4FullHead},
			req(KeyRopeDimSWA, "head_dim"),
			{Key: KeyExpertNorm, Value: true, Silent: true},
		}),
	Asserts: asserts(geluAct("hidden_activation"), geluAct("hidden_act"),
		Assert{"rope.full_attention.rope_type", []any{"proportional"}, "only the first pairs of full blocks rotate"},
		Assert{"rope.sliding_attention.rope_type", []any{"default"}, "the rotary embedding of sliding blocks is not scaled"},
		Assert{"use_bidirectional_attention", []any{"vision"}, "tokens of texts see only those before them"}),
	Defaults: Params{RopeBase: 10000, RopeBaseSWA: 10000, Gating: GatingSoftmax, ExpertNorm: true},
	Block: Block{Attn: GQA, Rope: RopeHalves, QKNorm: QKNormHeads, Residual: Sandwich, Act: GEGLU, ScaleEmbedding: true,
		PlainScores: true, ValueNorm: true, RouteResidual: true, BesideDense: true},
	Rules: slices.Concat(
		[]Rule{proportionalFactors}, trimmed(globals("model.", "lm_head.weight")), gemma4PerLayer(),
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
	Drop: []Drop{rotaryBuffers, {"model.vision_tower.*", mmprojTower}, {"model.embed_vision.*", mmprojTower},
		{"model.audio_tower.*", audioTower}, {"model.embed_audio.*", audioTower}},
	Tower: &gemma4Vision,
	Tied:  true, NoSpacePrefix: true, Tokenizer: "gemma4", TrimVocab: true,
}

// gemma4Attention: in full blocks the values may come from the key projection.
// Blocks that share the keys and values of another need no projections;
// released checkpoints have them nevertheless, and so do their GGUF files.
func gemma4Attention() []Rule {
	rules := append(attention(), qkNorms(dimHeadDim, dimHeadDim)...)
	for i := range rules {
		switch rules[i].Role {
		case AttnK, AttnKNorm:
			unused := rules[i]
			rules[i].In = func(p *Params, l int) bool { return p.SharesKV(l) == l }
			unused.In, unused.Optional = func(p *Params, l int) bool { return p.SharesKV(l) != l }, true
			rules = append(rules, unused)
		case AttnV:
			rules[i].Optional = true
		}
	}
	return rules
}

// gemma4PerLayer are the tensors of the embedding that every block gets of its own.
func gemma4PerLayer() []Rule {
	rules := []Rule{
		{Role: PerLayerTokenEmbd, HF: []string{"model.embed_tokens_per_layer.weight"}, Shape: []Dim{dimVocab, dimPerLayers}},
		{Role: PerLayerModelProj, HF: []string{"model.per_layer_model_projection.weight"}, Shape: []Dim{dimPerLayers, dimEmbed}},
		{Role: PerLayerProjNorm, HF: []string{"model.per_layer_projection_norm.weight"}, Shape: []Dim{dimPerLayer}},
		block(PerLayerGate, "per_layer_input_gate.weight", AllBlocks, dimPerLayer, dimEmbed),
		block(PerLayerProj, "per_layer_projection.weight", AllBlocks, dimEmbed, dimPerLayer),
		block(PerLayerPostNorm, "post_per_layer_input_norm.weight", AllBlocks, dimEmbed),
	}
	for i := range rules {
		rules[i].If = func(p *Params) bool { return p.PerLayerEmbed > 0 }
	}
	return rules
}

var (
	dimPerLayer  = Dim{"hidden_size_per_layer_input", func(p *Params) int { return p.PerLayerEmbed }}
	dimPerLayers = Dim{"num_hidden_layers*hidden_size_per_layer_input", func(p *Params) int { return p.Layers * p.PerLayerEmbed }}
)

// proportionalFactors are 1 for pairs of full blocks that rotate and infinite,
// for float32, for the others.
var proportionalFactors = Rule{
	Role: RopeFreqs, Shape: []Dim{dimRopePairs},
	Generate: func(m *Model) ([]float32, error) {
		part := 1.0
		if m.config.Object("rope.full_attention") == nil {
			part = 0.25
		}
		part, err := m.config.numberOr("rope.full_attention.partial_rotary_factor", part)
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

// slidingPattern says of every block whether layer_types makes it sliding; where
// the setting is absent, all but every sixth and the last are.
func slidingPattern(cfg *Config, p *Params) (any, error) {
	list, ok := cfg.list("layer_types")
	if ok && len(list) != p.Layers {
		return nil, configError("layer_types has %d entries, num_hidden_layers is %d", len(list), p.Layers)
	}
	out := make([]bool, p.Layers)
	for l := range out {
		out[l] = (l+1)%6 != 0 && l+1 < p.Layers
		if ok {
			out[l] = list[l] == "sliding_attention"
		}
	}
	return out, nil
}

// gemma4FullHead is the size of a head in full blocks: 512 in configs that do
// not say (HF configuration_gemma4.py).
func gemma4FullHead(cfg *Config, p *Params) (any, error) {
	n, found, err := gemma4Full(cfg, p, "head_dim")
	if err != nil || found {
		return n, err
	}
	return cfg.numberOr("global_head_dim", 512)
}

// gemma4KVHeads is the number of key heads, per block where full blocks have
// another. HF heeds num_global_key_value_heads only beside attention_k_eq_v.
func gemma4KVHeads(cfg *Config, p *Params) (any, error) {
	n, ok, err := cfg.number("num_key_value_heads")
	if err != nil || !ok {
		return nil, configError("num_key_value_heads is missing")
	}
	full, found, err := gemma4Full(cfg, p, "num_key_value_heads")
	if err == nil && !found {
		full, found, err = cfg.number("num_global_key_value_heads")
		if equal, _ := cfg.Bool("attention_k_eq_v"); !found || !equal {
			full = n
		}
	}
	if err != nil || full == n {
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
			out = append(out, int(full))
		}
	}
	return out, nil
}

// gemma4Full is a setting of the full blocks where per_layer_config says how
// blocks differ, in configs that transformers 5.23 saves. What does not differ
// in full blocks alone, and there in the same way, is refused.
func gemma4Full(cfg *Config, p *Params, name string) (value float64, found bool, err error) {
	if _, found = cfg.lookup("per_layer_config"); !found {
		return 0, false, nil
	}
	sliding, err := slidingPattern(cfg, p)
	if err != nil {
		return 0, false, err
	}
	others := map[int]map[string]any{}
	for key, v := range cfg.Object("per_layer_config") {
		l, err := strconv.Atoi(key)
		if others[l], found = v.(map[string]any); err != nil || !found {
			return 0, false, configError("per_layer_config has %q: %s, wanted a block's number and its settings", key, show(v))
		}
		for setting := range others[l] {
			if setting != "head_dim" && setting != "num_key_value_heads" {
				return 0, false, configError("per_layer_config sets %s of block %s; this family's description covers only head_dim and num_key_value_heads", setting, key)
			}
		}
	}
	base, found, err := cfg.number(name)
	if err != nil || !found {
		return 0, false, err
	}
	value, first := base, true
	for l, s := range sliding.([]bool) {
		v, err := (&Config{others[l]}).numberOr(name, base)
		switch {
		case err != nil:
			return 0, false, err
		case s && v != base, !s && !first && v != value:
			return 0, false, configError("per_layer_config makes %s of block %d %g; readers of the file expect one number for sliding blocks and one for the others", name, l, v)
		case !s:
			value, first = v, false
		}
	}
	return value, true, nil
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
