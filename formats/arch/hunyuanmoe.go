package arch

import (
	"math"
	"slices"
)

// Hunyuan A13B. Reference: transformers modeling_hunyuan_v1_moe.py; GGUF form:
// llama.cpp conversion/hunyuan.py and src/models/hunyuan-moe.cpp. Queries and
// keys are normed after rope. The dynamic scaling of the rotary embedding is
// stored as a larger base and a context of 256k.
var hunyuanmoe = Family{
	Arch:    "hunyuan-moe",
	Classes: []string{"HunYuanMoEV1ForCausalLM"},
	Settings: slices.Concat(
		withoutScaling(without(with(baseSettings(kvHeads, softmaxRouter),
			Setting{Key: KeyContextLength, Value: hunyuanContext},
			Setting{Key: KeyRopeBase, Compute: hunyuanBase},
		), KeyExpertUsed)),
		headSettings(),
		[]Setting{
			req(KeySharedFF, "intermediate_size"),
			{Key: KeyExpertFF, Compute: uniform("moe_intermediate_size")},
			{Key: KeyExpertUsed, Compute: uniform("moe_topk")},
			{Key: KeyExpertShared, Compute: uniform("num_shared_expert")},
			{Key: KeyRopeScaling, Value: "none"},
			{Key: KeyRopeFactor, Value: 1.0},
			{Key: KeyRopeOrigContext, Value: hunyuanContext},
			{Key: KeyExpertNorm, Value: true, Silent: true},
			derivedRopeDim,
		}),
	Asserts: asserts(
		Assert{"rope.rope_type", []any{"dynamic"}, "the base of the rotary embedding is derived from alpha"},
		Assert{"use_qk_norm", []any{true}, "queries and keys are normed"},
		Assert{"use_cla", []any{false}, "every block has keys and values of its own"},
		Assert{"use_mixed_mlp_moe", []any{true}, "there are shared experts"}),
	Defaults: Params{RopeBase: 10000, Gating: GatingSoftmax, ExpertNorm: true},
	Block:    Block{Attn: GQA, Rope: RopeHalves, QKNorm: QKNormAfterRope},
	Rules: slices.Concat(globals("model.", "lm_head.weight"), preNorms(),
		experts("mlp.experts", "mlp.gate.wg.weight", "down_proj", "gate_proj", "up_proj"),
		sharedNetwork("mlp.shared_mlp"),
		attention(), []Rule{
			block(AttnKNorm, "self_attn.key_layernorm.weight", AllBlocks, dimHeadDim),
			block(AttnQNorm, "self_attn.query_layernorm.weight", AllBlocks, dimHeadDim),
		}),
	Drop: []Drop{rotaryBuffers},
	Pre:  []string{"hunyuan"},
}

// hunyuanContext is the context that the scaled rotary embedding is made for.
const hunyuanContext = 256 << 10

// hunyuanBase is base·alpha^(d/(d−2)), the base after NTK-aware scaling.
func hunyuanBase(cfg *Config, p *Params) (any, error) {
	base, ok, err := cfg.number("rope.rope_theta")
	if err != nil || !ok {
		base = 10000
	}
	alpha, ok, err2 := cfg.number("rope.alpha")
	if err == nil {
		err = err2
	}
	if !ok || err != nil {
		alpha = 1
	}
	d := float64(p.Embed / max(1, p.Heads))
	return base * math.Pow(alpha, d/(d-2)), err
}

// uniform reads a number, or a list with one for every block, all the same.
func uniform(path string) func(*Config, *Params) (any, error) {
	return func(cfg *Config, _ *Params) (any, error) {
		list, isList := cfg.list(path)
		if !isList {
			f, ok, err := cfg.number(path)
			if err == nil && !ok {
				err = configError("%s is missing", path)
			}
			return f, err
		}
		numbers, err := convertList(path, list)
		n, ok := numbers.([]int)
		if err != nil || !ok || len(n) == 0 || slices.Max(n) != slices.Min(n) {
			return nil, configError("%s is %s, wanted the same number for every block", path, show(list))
		}
		return n[0], nil
	}
}
