package arch

import "slices"

// DeepSeek V2, V2-Lite, V3, R1, V3.1 and Kimi K2.
//
// References: transformers modeling_deepseek_v2.py and modeling_deepseek_v3.py,
// deepseek-ai/DeepSeek-V3 inference/model.py; GGUF form: llama.cpp
// conversion/deepseek.py and src/models/deepseek2.cpp. The latent attention is
// stored absorbed, as multi-query attention over the latent: one cached head
// of kv_lora_rank + qk_rope_head_dim elements.
var deepseek2 = Family{
	Arch:    "deepseek2",
	Classes: []string{"DeepseekV2ForCausalLM", "DeepseekV3ForCausalLM"},
	Settings: latentSettings(
		// HF's V3 code knows only the sigmoid, whatever the setting says or omits.
		gating(Setting{Value: GatingSigmoid}).when("class", "DeepseekV3ForCausalLM"),
		gating(Setting{Optional: true}).when("class", "DeepseekV2ForCausalLM")),
	Asserts:  latentAsserts,
	Defaults: Params{Gating: GatingSoftmax, RopeBase: 10000},
	Block:    Block{Attn: MLA, Rope: RopeAdjacent, LatentNormEps: 1e-6},
	Rules: slices.Concat(latentRules(), []Rule{
		plainQ(block(AttnQ, "self_attn.q_proj.weight", AllBlocks, dimQWidthMLA, dimEmbed)),
	}, nextn("model.layers.{l}.")),
	Drop:    []Drop{rotaryBuffers},
	DropMTP: true,
	Pre:     []string{"deepseek-v3", "deepseek-llm", "kimi-k2"},
}

var latentAsserts = slices.Concat(baseAsserts, []Assert{
	{"moe_layer_freq", []any{1.0}, "every block after the dense ones has experts"},
	{"topk_method", []any{"noaux_tc", "group_limited_greedy", "greedy"}, "known ways of routing"},
})

// latentSettings are those of DeepSeek's models.
func latentSettings(gating ...Setting) []Setting {
	return append(baseSettings(Setting{Key: KeyHeadCountKV, Value: 1}, gating...),
		Setting{Key: KeyKeyLength, From: []string{"kv_lora_rank", "qk_rope_head_dim"}, Sum: true},
		req(KeyValueLength, "kv_lora_rank"),
		Setting{Key: keyFileType},
		def(KeyLeadingDense, 0, "first_k_dense_replace"),
		req(KeyVocabSize, "vocab_size"),
		opt(KeyQLora, "q_lora_rank"),
		req(KeyKVLora, "kv_lora_rank"),
		Setting{Key: KeyKeyLengthMLA, From: []string{"qk_nope_head_dim", "qk_rope_head_dim"}, Sum: true},
		req(KeyValueLengthMLA, "v_head_dim"),
		req(KeyExpertFF, "moe_intermediate_size"),
		def(KeyExpertShared, 0, "n_shared_experts"),
		opt(KeyExpertScale, "routed_scaling_factor"),
		Setting{Key: KeyExpertNorm, From: []string{"norm_topk_prob"}, Optional: true, OmitZero: true},
		req(KeyRopeDim, "qk_rope_head_dim"),
		// The factor 0.1 is a legacy that llama.cpp's loader takes out again.
		Setting{Key: KeyYarnLogMul, From: []string{"rope.mscale_all_dim"}, Times: 0.1, Optional: true},
	)
}

// latentRules are the tensors of DeepSeek's models, but for queries that are
// made without compression and MTP blocks.
func latentRules() []Rule {
	return slices.Concat(globals("model.", "lm_head.weight"), []Rule{
		block(AttnNorm, "input_layernorm.weight", AllBlocks, dimEmbed),
		block(FFNDown, "mlp.down_proj.weight", DenseBlocks, dimEmbed, dimFF),
		block(FFNGate, "mlp.gate_proj.weight", DenseBlocks, dimFF, dimEmbed),
		block(FFNUp, "mlp.up_proj.weight", DenseBlocks, dimFF, dimEmbed),
		block(ExpertDown, "mlp.experts.{e}.down_proj.weight", MoEBlocks, dimExperts, dimEmbed, dimExpertFF),
		block(ExpertGate, "mlp.experts.{e}.gate_proj.weight", MoEBlocks, dimExperts, dimExpertFF, dimEmbed),
		block(ExpertUp, "mlp.experts.{e}.up_proj.weight", MoEBlocks, dimExperts, dimExpertFF, dimEmbed),
		routerBias("mlp.gate.e_score_correction_bias"),
		block(Router, "mlp.gate.weight", MoEBlocks, dimExperts, dimEmbed),
		shared(block(SharedDown, "mlp.shared_experts.down_proj.weight", MoEBlocks, dimEmbed, dimSharedFF)),
		shared(block(SharedGate, "mlp.shared_experts.gate_proj.weight", MoEBlocks, dimSharedFF, dimEmbed)),
		shared(block(SharedUp, "mlp.shared_experts.up_proj.weight", MoEBlocks, dimSharedFF, dimEmbed)),
		block(FFNNorm, "post_attention_layernorm.weight", AllBlocks, dimEmbed),
		block(AttnKVANorm, "self_attn.kv_a_layernorm.weight", AllBlocks, dimKVLora),
		block(AttnKVA, "self_attn.kv_a_proj_with_mqa.weight", AllBlocks, dimKVA, dimEmbed),
		kvB(AttnKB, []Dim{dimHeads, dimKVLora, dimNope}, dimZero, dimNope, CutTransposed),
		kvB(AttnVB, []Dim{dimHeads, dimVHead, dimKVLora}, dimNope, dimVHead, CutRows),
		block(AttnOutput, "self_attn.o_proj.weight", AllBlocks, dimEmbed, dimVWidth),
		loraQ(block(AttnQANorm, "self_attn.q_a_layernorm.weight", AllBlocks, dimQLora)),
		loraQ(block(AttnQA, "self_attn.q_a_proj.weight", AllBlocks, dimQLora, dimEmbed)),
		loraQ(block(AttnQB, "self_attn.q_b_proj.weight", AllBlocks, dimQWidthMLA, dimQLora)),
	})
}

// Dimensions of the latent attention, named as in config.json.
var (
	dimKVLora    = Dim{"kv_lora_rank", func(p *Params) int { return p.KVLora }}
	dimQLora     = Dim{"q_lora_rank", func(p *Params) int { return p.QLora }}
	dimKVA       = Dim{"kv_lora_rank+qk_rope_head_dim", func(p *Params) int { return p.KVLora + p.RopeDim }}
	dimNope      = Dim{"qk_nope_head_dim", func(p *Params) int { return p.KeyLenMLA - p.RopeDim }}
	dimVHead     = Dim{"v_head_dim", func(p *Params) int { return p.ValueLenMLA }}
	dimVWidth    = Dim{"num_attention_heads*v_head_dim", func(p *Params) int { return p.Heads * p.ValueLenMLA }}
	dimQWidthMLA = Dim{"num_attention_heads*(qk_nope_head_dim+qk_rope_head_dim)", func(p *Params) int { return p.Heads * p.KeyLenMLA }}
	dimKVBHead   = Dim{"qk_nope_head_dim+v_head_dim", func(p *Params) int { return p.KeyLenMLA - p.RopeDim + p.ValueLenMLA }}
	dimKVBWidth  = Dim{"num_attention_heads*(qk_nope_head_dim+v_head_dim)", func(p *Params) int {
		return p.Heads * (p.KeyLenMLA - p.RopeDim + p.ValueLenMLA)
	}}
)

// kvB cuts kv_b_proj [heads*(nope+v), kv_lora_rank] into the decompression of
// keys or of values.
func kvB(role Role, shape []Dim, offset, count Dim, mode CutMode) Rule {
	r := block(role, "self_attn.kv_b_proj.weight", AllBlocks, shape...)
	r.Source = []Dim{dimKVBWidth, dimKVLora}
	r.Cut = []HeadCut{{Heads: dimHeads, Stride: dimKVBHead, Offset: offset, Count: count, Mode: mode}}
	return r
}

func loraQ(r Rule) Rule  { r.If = func(p *Params) bool { return p.QLora > 0 }; return r }
func plainQ(r Rule) Rule { r.If = func(p *Params) bool { return p.QLora == 0 }; return r }
