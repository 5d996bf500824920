package arch

import "slices"

// Granite 3 and Granite MoE (with and without shared experts), which scale the
// embedding, the scores, the output of every branch and the logits. Reference:
// transformers modeling_granite.py, modeling_granitemoe.py,
// modeling_granitemoeshared.py; GGUF form: llama.cpp conversion/granite.py and
// src/models/granite.cpp.
var (
	granite = Family{
		Arch:     "granite",
		Classes:  []string{"GraniteForCausalLM"},
		Settings: slices.Concat(baseSettings(kvHeads), graniteSettings()),
		Asserts:  baseAsserts,
		Defaults: Params{RopeBase: 10000},
		Block:    Block{Attn: GQA, Rope: RopeAdjacent},
		Rules: slices.Concat(globals("model.", "lm_head.weight"), preNorms(), denseNetwork(AllBlocks),
			permutedAttention()),
		Drop: []Drop{rotaryBuffers},
		Tied: true,
		Pre:  []string{"refact"},
	}
	granitemoe = Family{
		Arch:    "granitemoe",
		Classes: []string{"GraniteMoeForCausalLM", "GraniteMoeSharedForCausalLM"},
		Settings: slices.Concat(baseSettings(kvHeads, Setting{Key: KeyExpertGating, Value: int(GatingSelected), Silent: true}),
			graniteSettings(), []Setting{
				{Key: KeySharedFF, From: []string{"shared_intermediate_size"}, Optional: true, OmitZero: true},
			}),
		Asserts:  baseAsserts,
		Defaults: Params{RopeBase: 10000, Gating: GatingSelected},
		Complete: []func(*Params){expertsAsWideAsFF},
		Block:    Block{Attn: GQA, Rope: RopeAdjacent},
		Rules: slices.Concat(globals("model.", "lm_head.weight"), preNorms(), []Rule{
			fusedHalf(ExpertGate, "block_sparse_moe.input_linear.weight", dimZero),
			fusedHalf(ExpertUp, "block_sparse_moe.input_linear.weight", dimExpertFF),
			block(ExpertDown, "block_sparse_moe.output_linear.weight", MoEBlocks, dimExperts, dimEmbed, dimExpertFF),
			block(Router, "block_sparse_moe.router.layer.weight", MoEBlocks, dimExperts, dimEmbed),
			sharedHalf(SharedGate, "shared_mlp.input_linear.weight", dimZero),
			sharedHalf(SharedUp, "shared_mlp.input_linear.weight", dimSharedFF),
			shared(block(SharedDown, "shared_mlp.output_linear.weight", MoEBlocks, dimEmbed, dimSharedFF)),
		}, permutedAttention()),
		Drop: []Drop{rotaryBuffers},
		Tied: true,
		Pre:  []string{"refact"},
	}
)

func graniteSettings() []Setting {
	return []Setting{
		{Key: keyFileType},
		req(KeyVocabSize, "vocab_size"),
		{Key: KeyRopeDim, Derive: (*Params).HeadDim},
		headDimDerived,
		{Key: KeyAttnScale, From: []string{"attention_multiplier"}, Optional: true, OmitZero: true},
		{Key: KeyEmbeddingScale, From: []string{"embedding_multiplier"}, Optional: true, OmitZero: true},
		{Key: KeyResidualScale, From: []string{"residual_multiplier"}, Optional: true, OmitZero: true},
		{Key: KeyLogitScale, From: []string{"logits_scaling"}, Optional: true, OmitZero: true},
	}
}

// sharedHalf is one half of the shared network's fused input projection.
func sharedHalf(role Role, hf string, offset Dim) Rule {
	r := shared(block(role, hf, MoEBlocks, dimSharedFF, dimEmbed))
	r.Source = []Dim{dimTwoSharedFF, dimEmbed}
	r.Cut = []HeadCut{{Heads: dimOne, Stride: dimTwoSharedFF, Offset: offset, Count: dimSharedFF}}
	return r
}

var dimTwoSharedFF = Dim{"2*shared_intermediate_size", func(p *Params) int { return 2 * p.SharedWidth() }}
