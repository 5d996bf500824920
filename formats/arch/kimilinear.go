package arch

import "slices"

// Kimi Linear: three of four blocks have Kimi Delta Attention, the others
// latent attention without rotary positions. Reference: transformers
// modeling_kimi_linear.py; GGUF form: llama.cpp conversion/kimi_linear.py and
// src/models/kimi-linear.cpp, which takes blocks without key heads for the
// recurrent ones. Both kinds have as many heads.
var kimilinear = Family{
	Arch:    "kimi-linear",
	Classes: []string{"KimiLinearForCausalLM"},
	Settings: slices.Concat(
		with(without(baseSettings(Setting{Key: KeyHeadCountKV, Compute: kimiKeyHeads},
			Setting{Key: KeyExpertGating, From: []string{"moe_router_activation_func"}, Enum: map[string]any{"sigmoid": GatingSigmoid}}),
			KeyExpertGroups),
			req(KeyContextLength, "model_max_length", "max_position_embeddings"),
			opt(KeyExpertUsed, "num_experts_per_token")),
		[]Setting{
			{Key: KeyKeyLength, From: []string{"kv_lora_rank", "qk_rope_head_dim"}, Sum: true},
			req(KeyValueLength, "head_dim"), // of no meaning to readers
			{Key: keyFileType},
			req(KeyVocabSize, "vocab_size"),
			req(KeyConvKernel, "linear_attn_config.short_conv_kernel_size"),
			req(KeyKDAHeadDim, "linear_attn_config.head_dim"),
			req(KeyKVLora, "kv_lora_rank"),
			req(KeyRopeDim, "qk_rope_head_dim"),
			{Key: KeyKeyLengthMLA, From: []string{"qk_nope_head_dim", "qk_rope_head_dim"}, Sum: true},
			req(KeyValueLengthMLA, "v_head_dim"),
			req(KeyExpertFF, "moe_intermediate_size"),
			req(KeyExpertShared, "num_shared_experts"),
			req(KeyLeadingDense, "first_k_dense_replace"),
			req(KeyExpertScale, "routed_scaling_factor"),
			{Key: KeyExpertNorm, Value: true, Silent: true},
			{Key: KeyTimeStepRank, Compute: kimiHeads, Silent: true},
		}),
	Asserts: asserts(
		Assert{"moe_layer_freq", []any{1.0}, "every block after the dense ones has experts"},
		Assert{"moe_renormalize", []any{true}, "readers of the file divide the weights of experts by their sum"},
		Assert{"num_expert_group", []any{1.0}, "the file does not say that there are groups of experts"},
		Assert{"q_lora_rank", []any{nil}, "queries are not compressed"},
		Assert{"mla_use_nope", []any{true}, "nothing is rotated"},
		Assert{"num_nextn_predict_layers", []any{0.0}, "no MTP blocks follow"}),
	Defaults: Params{Gating: GatingSigmoid, RopeBase: 10000, ExpertNorm: true},
	Complete: []func(*Params){kimiBlocks},
	Block:    Block{Attn: MLA, Rope: RopeAdjacent, LatentNormEps: 1e-6, Delta: DeltaChannels},
	Rules: slices.Concat(globals("model.", "lm_head.weight"), preNorms(), denseNetwork(DenseBlocks),
		experts("block_sparse_moe.experts", "block_sparse_moe.gate.weight", "w1", "w2", "w3"),
		[]Rule{routerBias("block_sparse_moe.gate.e_score_correction_bias")},
		sharedNetwork("block_sparse_moe.shared_experts"),
		recurrent([]Rule{
			decayRates("self_attn.A_log", dimOne, dimOne, dimHeads, dimOne),
			block(SSMBeta, "self_attn.b_proj.weight", AllBlocks, dimHeads, dimEmbed),
			bias(SSMDt, "self_attn.dt_bias", AllBlocks, dimKDAWidth),
			block(SSMFA, "self_attn.f_a_proj.weight", AllBlocks, dimKDAHead, dimEmbed),
			block(SSMFB, "self_attn.f_b_proj.weight", AllBlocks, dimKDAWidth, dimKDAHead),
			block(SSMGA, "self_attn.g_a_proj.weight", AllBlocks, dimKDAHead, dimEmbed),
			block(SSMGB, "self_attn.g_b_proj.weight", AllBlocks, dimKDAWidth, dimKDAHead),
			kimiConv(SSMConv1DK, "self_attn.k_conv1d.weight"),
			block(AttnK, "self_attn.k_proj.weight", AllBlocks, dimKDAWidth, dimEmbed),
			block(SSMNorm, "self_attn.o_norm.weight", AllBlocks, dimKDAHead),
			block(AttnOutput, "self_attn.o_proj.weight", AllBlocks, dimEmbed, dimKDAWidth),
			kimiConv(SSMConv1DQ, "self_attn.q_conv1d.weight"),
			block(AttnQ, "self_attn.q_proj.weight", AllBlocks, dimKDAWidth, dimEmbed),
			kimiConv(SSMConv1DV, "self_attn.v_conv1d.weight"),
			block(AttnV, "self_attn.v_proj.weight", AllBlocks, dimKDAWidth, dimEmbed),
		}),
		notRecurrent([]Rule{
			block(AttnKVANorm, "self_attn.kv_a_layernorm.weight", AllBlocks, dimKVLora),
			block(AttnKVA, "self_attn.kv_a_proj_with_mqa.weight", AllBlocks, dimKVA, dimEmbed),
			kvB(AttnKB, []Dim{dimHeads, dimKVLora, dimNope}, dimZero, dimNope, CutTransposed),
			kvB(AttnVB, []Dim{dimHeads, dimVHead, dimKVLora}, dimNope, dimVHead, CutRows),
			block(AttnOutput, "self_attn.o_proj.weight", AllBlocks, dimEmbed, dimVWidth),
			block(AttnQ, "self_attn.q_proj.weight", AllBlocks, dimQWidthMLA, dimEmbed),
		})),
	Pre: []string{"kimi-k2", "deepseek-v3"},
}

// kimiConv is the convolution of queries, keys or values, with axes of length
// one that the converter keeps.
func kimiConv(role Role, hf string) Rule {
	r := block(role, hf, AllBlocks, dimOne, dimKDAWidth, dimOne, dimConvKernel)
	r.Source = []Dim{dimKDAWidth, dimOne, dimConvKernel}
	return r
}

// kimiKeyHeads is the number of cached key heads of every block, 0 where it is
// recurrent. The config counts blocks from 1.
func kimiKeyHeads(cfg *Config, p *Params) (any, error) {
	list, ok := cfg.list("linear_attn_config.full_attn_layers")
	if !ok {
		return nil, configError("linear_attn_config.full_attn_layers is missing")
	}
	v, err := convertList("linear_attn_config.full_attn_layers", list)
	if err != nil {
		return nil, err
	}
	full, _ := v.([]int)
	out := make([]int, p.Layers)
	for l := range out {
		if slices.Contains(full, l+1) {
			out[l] = 1
		}
	}
	return out, nil
}

// kimiHeads refuses recurrent blocks with another number of heads than those
// with attention.
func kimiHeads(cfg *Config, p *Params) (any, error) {
	n, ok, err := cfg.number("linear_attn_config.num_heads")
	if err == nil && (!ok || int(n) != p.Heads) {
		err = configError("linear_attn_config.num_heads is %g, num_attention_heads is %d; readers of the file expect the same", n, p.Heads)
	}
	return n, err
}

// kimiBlocks sets what the file leaves to its readers.
func kimiBlocks(p *Params) {
	p.StateGroups, p.TimeStepRank, p.InnerSize = p.Heads, p.Heads, p.Heads*p.StateSize
	p.Recurrent, p.NoRope = make([]bool, p.Layers), make([]bool, p.Layers)
	for l := range p.Layers {
		p.Recurrent[l], p.NoRope[l] = p.At(l).KVHeads == 0, true
	}
}

// Dimensions of Kimi Delta Attention.
var (
	dimKDAHead  = Dim{"linear_attn_config.head_dim", func(p *Params) int { return p.StateSize }}
	dimKDAWidth = Dim{"linear_attn_config.num_heads*linear_attn_config.head_dim", func(p *Params) int { return p.InnerSize }}
)
