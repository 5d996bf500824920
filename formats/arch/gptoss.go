package arch

import "slices"

// gpt-oss: sinks, alternating windows, biases everywhere, clamped activations
// and experts in MXFP4. Reference: transformers modeling_gpt_oss.py; GGUF form:
// llama.cpp conversion/gpt_oss.py and src/models/openai-moe.cpp.
// post_attention_norm is the norm of the experts' input.
//
// The released models do not round the ends of YaRN's ramp to whole pairs;
// llama.cpp does, and has no key that says otherwise, so KeyYarnExact is one
// that only winnow reads.
var gptoss = Family{
	Arch:    "gpt-oss",
	Classes: []string{"GptOssForCausalLM"},
	Settings: slices.Concat(
		baseSettings(kvHeads, Setting{Key: KeyExpertGating, Value: int(GatingSelected), Silent: true}), headSettings(),
		[]Setting{
			req(KeySlidingWindow, "sliding_window"),
			req(KeyExpertFF, "intermediate_size"),
			derivedRopeDim,
			{Key: KeyYarnExact, OmitZero: true, Compute: func(cfg *Config, _ *Params) (any, error) {
				truncate, ok := cfg.Bool("rope.truncate")
				return ok && !truncate, nil
			}},
		}),
	Asserts: asserts(
		Assert{"attention_bias", []any{true}, "projections have biases"},
		Assert{"swiglu_limit", []any{7.0}, "readers of the file take it for granted"}),
	Defaults: Params{RopeBase: 10000, Gating: GatingSelected},
	Complete: []func(*Params){func(p *Params) {
		p.Sliding = make([]bool, p.Layers)
		for l := 0; l < p.Layers; l += 2 {
			p.Sliding[l] = true
		}
	}},
	Block: Block{Attn: GQA, Rope: RopeHalves, Act: SwiGLUClamped, FFNNorm: PostAttnNorm},
	Rules: func() []Rule {
		router := block(Router, "mlp.router.weight", MoEBlocks, dimExperts, dimEmbed)
		return slices.Concat(globals("model.", "lm_head.weight"),
			[]Rule{
				block(AttnNorm, "input_layernorm.weight", AllBlocks, dimEmbed),
				gptossExperts(ExpertDown, "mlp.experts.down_proj", []Dim{dimExperts, dimEmbed, dimExpertFF}, []Dim{dimExperts, dimExpertFF, dimEmbed}, dimExpertFF, dimEmbed, dimZero, 1),
				bias(ExpertDown, "mlp.experts.down_proj_bias", MoEBlocks, dimExperts, dimEmbed),
				gptossExperts(ExpertGate, "mlp.experts.gate_up_proj", []Dim{dimExperts, dimExpertFF, dimEmbed}, []Dim{dimExperts, dimEmbed, dimTwoExpertFF}, dimEmbed, dimExpertFF, dimZero, 2),
				gptossExperts(ExpertUp, "mlp.experts.gate_up_proj", []Dim{dimExperts, dimExpertFF, dimEmbed}, []Dim{dimExperts, dimEmbed, dimTwoExpertFF}, dimEmbed, dimExpertFF, dimOne, 2),
				everyOther(bias(ExpertGate, "mlp.experts.gate_up_proj_bias", MoEBlocks, dimExperts, dimExpertFF), dimZero),
				everyOther(bias(ExpertUp, "mlp.experts.gate_up_proj_bias", MoEBlocks, dimExperts, dimExpertFF), dimOne),
				router,
				block(PostAttnNorm, "post_attention_layernorm.weight", AllBlocks, dimEmbed),
				block(AttnSinks, "self_attn.sinks", AllBlocks, dimHeads),
			},
			attention(), biases(append(attention(), router)...))
	}(),
	Drop: []Drop{rotaryBuffers},
	Pre:  []string{"gpt-4o"},
}

// gptossExperts are stacked matrices [experts, in, out], which the file has
// transposed: of every expert columns from, from+step and so on, count of them.
func gptossExperts(role Role, hf string, shape, source []Dim, rows, count, from Dim, step int) Rule {
	r := block(role, hf, MoEBlocks, shape...)
	r.Source = source
	r.Cut = []HeadCut{{Heads: dimExperts, Stride: rows, Offset: dimZero, Count: rows, Mode: CutTransposed,
		Columns: &Columns{From: from, Count: count, Step: step}}}
	return r
}

// everyOther takes every other column of a tensor with twice as many.
func everyOther(r Rule, from Dim) Rule {
	r.Source = []Dim{dimExperts, dimTwoExpertFF}
	r.Cut = []HeadCut{{Heads: dimOne, Stride: dimExperts, Offset: dimZero, Count: dimExperts,
		Columns: &Columns{From: from, Count: dimExpertFF, Step: 2}}}
	return r
}
