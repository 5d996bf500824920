package arch

import "slices"

// ERNIE 4.5, dense and with experts, texts. Reference: transformers
// modeling_ernie4_5.py, modeling_ernie4_5_moe.py; GGUF form: llama.cpp
// conversion/ernie.py, src/models/ernie4-5.cpp and ernie4-5-moe.cpp. Adjacent
// elements are rotated together, in the checkpoint too. A bias decides about the
// choice of experts only; their weights are divided by at least 1e-12.
//
// The converter writes intermediate_size / num_key_value_heads as the width of
// the shared experts, which is right for the released models; here it is
// moe_num_shared_experts · moe_intermediate_size, as in HF's code.
var (
	ernie45 = Family{
		Arch:     "ernie4_5",
		Classes:  []string{"Ernie4_5ForCausalLM", "Ernie4_5_ForCausalLM"},
		Settings: slices.Concat(ernieSettings(), headSettingsOf(128), []Setting{derivedRopeDim}),
		Asserts:  ernieAsserts,
		Defaults: Params{RopeBase: 10000},
		Block:    Block{Attn: GQA, Rope: RopeAdjacent},
		Rules:    slices.Concat(globals("model.", "lm_head.weight"), preNorms(), denseNetwork(AllBlocks), attention()),
		Drop:     []Drop{rotaryBuffers},
		Tied:     true,
	}
	ernie45moe = Family{
		Arch:    "ernie4_5-moe",
		Classes: []string{"Ernie4_5_MoeForCausalLM"},
		Settings: slices.Concat(ernieSettings(), headSettings(), []Setting{
			req(KeyExpertCount, "moe_num_experts"),
			req(KeyExpertUsed, "moe_k"),
			def(KeyMoEStep, 1, "moe_layer_interval"),
			def(KeyLeadingDense, 1, "moe_layer_start_index"),
			req(KeyExpertFF, "moe_intermediate_size"),
			req(KeyExpertShared, "moe_num_shared_experts"),
			{Key: KeySharedFF, Derive: (*Params).SharedWidth, OmitZero: true},
			softmaxRouter,
			{Key: KeyExpertNorm, Value: true, Silent: true},
			derivedRopeDim,
			ernieLastExperts,
		}),
		Asserts: slices.Concat(ernieAsserts, []Assert{
			{"moe_norm_min", []any{1e-12}, "readers of the file take it for granted"},
			{"moe_gate", []any{"topk"}, "the best experts are chosen"},
		}),
		Defaults: Params{RopeBase: 10000, Gating: GatingSoftmax, ExpertNorm: true},
		Block:    Block{Attn: GQA, Rope: RopeAdjacent, ExpertSum: SumAtLeast},
		Rules: slices.Concat(globals("model.", "lm_head.weight"), preNorms(), denseNetwork(DenseBlocks),
			experts("mlp.experts", "mlp.gate.weight", "gate_proj", "up_proj", "down_proj"),
			[]Rule{bias(RouterBias, "mlp.moe_statics.e_score_correction_bias", MoEBlocks, dimOne, dimExperts)},
			sharedNetwork("mlp.shared_experts"), attention()),
		Drop:    []Drop{rotaryBuffers, {"model.mtp_*", "multi-token prediction, which readers of the file do not know"}},
		Tied:    true,
		DropMTP: true,
	}
)

func ernieSettings() []Setting {
	return with(baseSettings(kvHeads), def(KeyRopeBase, 500000.0, "rope.rope_theta"), def(KeyNormRMSEps, 1e-5, "rms_norm_eps"))
}

var ernieAsserts = asserts(Assert{"use_bias", []any{false}, "projections have no bias"})

// ernieLastExperts refuses dense blocks behind those with experts.
var ernieLastExperts = Setting{Key: KeyLeadingDense, Silent: true, Optional: true, Compute: func(cfg *Config, p *Params) (any, error) {
	f, ok, err := cfg.number("moe_layer_end_index")
	if err == nil && ok && f >= 0 && f < float64(p.Layers-1) {
		err = configError("moe_layer_end_index is %g; readers of the file expect experts up to the last of %d blocks", f, p.Layers)
	}
	return nil, err
}}
