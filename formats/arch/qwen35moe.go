package arch

import "slices"

// Qwen3.5 with experts, texts. Reference: transformers modeling_qwen3_5_moe.py;
// GGUF form: llama.cpp conversion/qwen.py and src/models/qwen35moe.cpp.
//
// The delta net's value heads follow each other by key head in the checkpoint
// and go round the key heads in the file, because ggml repeats key heads as a
// whole.
var qwen35moe = Family{
	Arch:    "qwen35moe",
	Classes: []string{"Qwen3_5MoeForConditionalGeneration", "Qwen3_5MoeForCausalLM"},
	Settings: slices.Concat(
		with(after(baseSettings(kvHeads, softmaxRouter), KeyHeadCountKV, Setting{Key: KeyRopeSections, Compute: ropeSections}),
			opt(KeyFeedForward, "intermediate_size")),
		headSettings(), deltaSettings(def(KeyNextnLayers, 1, "mtp_num_hidden_layers"))),
	Asserts:  deltaAsserts,
	Defaults: deltaDefaults,
	Complete: []func(*Params){recurrentUnlessEvery},
	Block:    deltaBlock(DeltaTiled),
	Rules: slices.Concat(plusOne(globals("model.", "lm_head.weight")), withMTP(slices.Concat(
		gatedAttention(),
		[]Rule{
			block(ExpertDown, "mlp.experts.down_proj", MoEBlocks, dimExperts, dimEmbed, dimExpertFF),
			fusedHalf(ExpertGate, "mlp.experts.gate_up_proj", dimZero),
			fusedHalf(ExpertUp, "mlp.experts.gate_up_proj", dimExpertFF),
			block(Router, "mlp.gate.weight", MoEBlocks, dimExperts, dimEmbed),
		},
		sharedNetwork("mlp.shared_expert"),
		[]Rule{sharedGateRow},
	)), mtpHead(), recurrent(tiled(append(deltaVectors(),
		block(AttnQKV, "linear_attn.in_proj_qkv.weight", AllBlocks, dimConvWidth, dimEmbed),
		block(AttnGate, "linear_attn.in_proj_z.weight", AllBlocks, dimInner, dimEmbed),
		block(SSMAlpha, "linear_attn.in_proj_a.weight", AllBlocks, dimValueHeads, dimEmbed),
		block(SSMBeta, "linear_attn.in_proj_b.weight", AllBlocks, dimValueHeads, dimEmbed),
		block(SSMOut, "linear_attn.out_proj.weight", AllBlocks, dimEmbed, dimInner),
	)))),
	Drop: []Drop{rotaryBuffers, {"model.visual.*", visionTower}},
	Pre:  []string{"qwen35"},
}

// tiled puts the value heads of a delta net into the file's order: in rows of
// projections, in the convolution behind queries and keys, in columns of the
// output projection, in vectors.
func tiled(rules []Rule) []Rule {
	values := HeadCut{Heads: dimValueHeads, Stride: dimValueHead, Offset: dimZero, Count: dimValueHead, Groups: dimKeyHeads}
	for i := range rules {
		r := &rules[i]
		switch r.Role {
		case AttnQKV, SSMConv1D:
			tail := values
			tail.Base = dimQueriesKeys
			r.Cut = []HeadCut{{Heads: dimOne, Stride: dimQueriesKeys, Offset: dimZero, Count: dimQueriesKeys}, tail}
			if r.Source == nil {
				r.Source = r.Shape
			}
		case AttnGate:
			r.Source, r.Cut = r.Shape, []HeadCut{values}
		case SSMAlpha, SSMBeta:
			row := values
			row.Stride, row.Count = dimOne, dimOne
			r.Source, r.Cut = r.Shape, []HeadCut{row}
		case SSMA, SSMDt:
			r.Order = &HeadOrder{Heads: dimValueHeads, Size: dimOne, Groups: dimKeyHeads}
		case SSMOut:
			r.Order = &HeadOrder{Heads: dimValueHeads, Size: dimValueHead, Groups: dimKeyHeads}
		}
	}
	return rules
}

// ropeSections are the pairs per position axis, of which the file has four.
func ropeSections(cfg *Config, _ *Params) (any, error) {
	list, ok := cfg.list("rope.mrope_section")
	if !ok || len(list) > 4 {
		return nil, configError("rope_parameters.mrope_section is missing or has more than 4 entries")
	}
	v, err := convertList("rope.mrope_section", list)
	sections, ok := v.([]int)
	if err == nil && !ok {
		err = configError("rope_parameters.mrope_section is %s, wanted numbers", show(list))
	}
	if err != nil {
		return nil, err
	}
	return append(sections, make([]int, 4-len(sections))...), nil
}
