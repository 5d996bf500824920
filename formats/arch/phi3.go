package arch

import (
	"math"
	"slices"
)

// Phi-3, Phi-3.5, Phi-4 and Phi-3.5-MoE. Reference: transformers
// modeling_phi3.py, modeling_phimoe.py and modeling_rope_utils.py; GGUF form:
// llama.cpp conversion/phi.py, src/models/phi3.cpp and phimoe.cpp. Queries, keys
// and values are one tensor in Phi-3, and so are gate and up, the gate first.
//
// Where there is a sliding window, HF's code applies it to all blocks; llama.cpp
// writes it and does not heed it. Phi-3.5-MoE has layer norms and chooses experts
// by the sparse mixer, where llama.cpp takes RMS norms with a bias and a softmax.
var (
	phi3 = Family{
		Arch:     "phi3",
		Classes:  []string{"Phi3ForCausalLM"},
		Settings: phiSettings(longropeFactor),
		Asserts:  asserts(phiScaling...),
		Defaults: Params{RopeBase: 10000},
		Complete: []func(*Params){phiWindow, phiLongrope},
		Block:    Block{Attn: GQA, Rope: RopeHalves},
		Rules: slices.Concat(longropeFactors, globals("model.", "lm_head.weight"), preNorms(), []Rule{
			block(FFNDown, "mlp.down_proj.weight", AllBlocks, dimEmbed, dimFF),
			fusedGateUp,
			block(AttnOutput, "self_attn.o_proj.weight", AllBlocks, dimEmbed, dimQWidth),
			block(AttnQKV, "self_attn.qkv_proj.weight", AllBlocks, dimQKVWidth, dimEmbed),
		}),
		Drop: []Drop{rotaryBuffers},
		Pre:  []string{"dbrx"},
	}
	phimoe = Family{
		Arch:    "phimoe",
		Classes: []string{"PhiMoEForCausalLM", "PhimoeForCausalLM"},
		Settings: slices.Concat(phiSettings(phimoeFactor), []Setting{
			req(KeyExpertUsed, "num_experts_per_tok"),
			req(KeyExpertCount, "num_local_experts"),
			softmaxRouter,
		}),
		Asserts: asserts(append(slices.Clone(phiScaling),
			Assert{"attention_bias", []any{true}, "projections have biases"},
			Assert{"lm_head_bias", []any{true}, "the output has a bias"},
			Assert{"num_experts_per_tok", []any{2.0}, "the sparse mixer chooses two experts"},
			Assert{"router_jitter_noise", []any{0.01}, "readers of the file take it for granted"})...),
		Defaults: Params{RopeBase: 10000, Gating: GatingSoftmax},
		Complete: []func(*Params){phiWindow, phiLongrope, expertsAsWideAsFF},
		Block:    Block{Attn: GQA, Rope: RopeHalves, Norm: LayerNorm, SparseMixer: true},
		Rules: func() []Rule {
			global := globals("model.", "lm_head.weight")
			global[2].Optional = false
			normed := append(append(attention(), preNorms()...), global[1:]...)
			return slices.Concat(longropeFactors, global,
				experts("block_sparse_moe.experts", "block_sparse_moe.gate.weight", "w1", "w2", "w3"),
				preNorms(), attention(), biases(normed...))
		}(),
		Drop: []Drop{rotaryBuffers},
	}
)

// phiSettings are the keys of both; factor computes the one on cos and sin.
func phiSettings(factor func(*Config, *Params) (any, error)) []Setting {
	return []Setting{
		{Key: KeyRopeAttnFactor, Early: true, Compute: factor},
		{Key: KeyRopeScaling, From: []string{"rope.rope_type"}, Optional: true, Silent: true,
			Enum: map[string]any{"longrope": "longrope", "su": "longrope", "default": "", "": ""}},
		req(KeyContextLength, "max_position_embeddings"),
		def(KeyRopeOrigContext, phiOriginalContext, "rope.original_max_position_embeddings"),
		req(KeyEmbedding, "hidden_size"),
		req(KeyFeedForward, "intermediate_size"),
		req(KeyBlockCount, "num_hidden_layers"),
		req(KeyHeadCount, "num_attention_heads"),
		kvHeads,
		def(KeyNormRMSEps, 1e-5, "rms_norm_eps"),
		partialRopeDim(1),
		def(KeyRopeBase, 10000.0, "rope.rope_theta"),
		{Key: keyFileType},
		def(KeySlidingWindow, 0, "sliding_window"),
	}
}

// phiOriginalContext is what HF's configuration class takes for granted.
const phiOriginalContext = 4096

// phiScaling are settings of longrope that neither converter nor file knows.
var phiScaling = []Assert{
	{"rope.factor", []any{}, "the scale is max_position_embeddings / original_max_position_embeddings"},
	{"rope.attention_factor", []any{}, "the factor follows from the scale"},
}

// phiWindow makes all blocks sliding where there is a window.
func phiWindow(p *Params) {
	if p.SlidingWindow > 0 {
		p.Sliding = slices.Repeat([]bool{true}, p.Layers)
	}
}

// phiLongrope: files have the factor of longrope and not its name.
func phiLongrope(p *Params) {
	if p.RopeAttnFactor != 0 {
		p.RopeScaling = "longrope"
	}
}

// longropeFactor is the factor on cos and sin (HF modeling_rope_utils.py):
// √(1 + ln s / ln c), s the scale from the original context c to the new one.
func longropeFactor(cfg *Config, _ *Params) (any, error) {
	if _, ok := cfg.list("rope.long_factor"); !ok {
		return nil, nil
	}
	context, _, err := cfg.number("max_position_embeddings")
	if err != nil {
		return nil, err
	}
	original, ok, err := cfg.number("rope.original_max_position_embeddings")
	if !ok {
		original = phiOriginalContext
	}
	if err == nil && original < 2 {
		err = configError("original_max_position_embeddings is %g, wanted 2 or more", original)
	}
	if context <= original {
		return 1.0, err
	}
	return math.Sqrt(1 + math.Log(context/original)/math.Log(original)), err
}

// phimoeFactor is the factor on cos and sin that HF's PhimoeRotaryEmbedding
// takes from the configuration.
func phimoeFactor(cfg *Config, _ *Params) (any, error) {
	if _, ok := cfg.list("rope.long_factor"); !ok {
		return nil, nil
	}
	var f [2]float64
	for i, name := range []string{"rope.short_mscale", "rope.long_mscale"} {
		v, ok, err := cfg.number(name)
		if err == nil && !ok {
			err = configError("%s is missing", userName(name))
		}
		if err != nil {
			return nil, err
		}
		f[i] = v
	}
	if f[0] != f[1] {
		return nil, configError("rope_scaling.short_mscale is %g and long_mscale %g; the file holds one factor", f[0], f[1])
	}
	return f[0], nil
}

// longropeFactors are the factors on wavelengths beyond the original context
// and within it.
var longropeFactors = []Rule{
	longropeList(RopeFactorsLong, "rope.long_factor"),
	longropeList(RopeFactorsShort, "rope.short_factor"),
}

func longropeList(role Role, path string) Rule {
	return Rule{Role: role, Shape: []Dim{dimRopePairs}, Optional: true, Generate: func(m *Model) ([]float32, error) {
		if m.Params.RopeScaling != "longrope" {
			return nil, nil
		}
		list, err := m.config.numbers(path)
		if want := m.Params.RopeDim / 2; err == nil && len(list) != want {
			err = configError("%s has %d numbers, wanted %d: one per rotated pair", userName(path), len(list), want)
		}
		return list, err
	}}
}

var dimQKVWidth = Dim{"(num_attention_heads+2*num_key_value_heads)*head_dim", func(p *Params) int { return (p.Heads + 2*p.KVHeads) * p.HeadDim() }}
