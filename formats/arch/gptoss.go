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
				gptossExperts(ExpertDown, "mlp.experts.down_proj", dimEmbed, dimExpertFF, dimEmbed, dimZero, 1),
				bias(ExpertDown, "mlp.experts.down_proj_bias", MoEBlocks, dimExperts, dimEmbed),
				gptossExperts(ExpertGate, "mlp.experts.gate_up_proj", dimExpertFF, dimEmbed, dimTwoExpertFF, dimZero, 2),
				gptossExperts(ExpertUp, "mlp.experts.gate_up_proj", dimExpertFF, dimEmbed, dimTwoExpertFF, dimOne, 2),
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

// gptossExperts are stacked matrices of out rows and in columns: in MXFP4 as
// [experts, stored, in], otherwise [experts, in, stored], which the file has
// transposed. Of the stored outputs every expert takes from, from+step and so on.
func gptossExperts(role Role, hf string, out, in, stored, from Dim, step int) Rule {
	r := block(role, hf, MoEBlocks, dimExperts, out, in)
	r.Source = []Dim{dimExperts, in, stored}
	r.Cut = []HeadCut{{Heads: dimExperts, Stride: in, Offset: dimZero, Count: in, Mode: CutTransposed,
		Columns: &Columns{From: from, Count: out, Step: step}}}
	r.Blocks = &Blocks{
		Source: []Dim{dimExperts, stored, in},
		Cut:    []HeadCut{{Heads: dimExperts, Stride: stored, Offset: from, Count: out, Step: step}},
	}
	return r
}

// everyOther takes every other column of a tensor with twice as many.
func everyOther(r Rule, from Dim) Rule {
	r.Source = []Dim{dimExperts, dimTwoExpertFF}
	r.Cut = []HeadCut{{Heads: dimOne, Stride: dimExperts, Offset: dimZero, Count: dimExperts,
		Columns: &Columns{From: from, Count: dimExpertFF, Step: 2}}}
	return r
}
