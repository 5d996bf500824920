package arch

import "slices"

// DeepSeek V3.2: V3 with a lightning indexer, which chooses the keys that every
// query sees. References: transformers modeling_deepseek_v32.py, DeepSeek-V3.2
// inference/model.py (class Indexer); GGUF form: llama.cpp conversion/deepseek.py
// and src/models/deepseek32.cpp. Queries are always compressed, and the
// converter keeps the MTP block.
var deepseek32 = Family{
	Arch:    "deepseek32",
	Classes: []string{"DeepseekV32ForCausalLM"},
	Settings: append(latentSettings(gating(Setting{Value: GatingSigmoid})),
		opt(KeyNextnLayers, "num_nextn_predict_layers"),
		req(KeyIndexerHeads, "index_n_heads"),
		req(KeyIndexerKeyLen, "index_head_dim"),
		req(KeyIndexerTopK, "index_topk"),
	),
	Asserts:  latentAsserts,
	Defaults: Params{Gating: GatingSigmoid, RopeBase: 10000},
	Block:    Block{Attn: MLA, Rope: RopeAdjacent, LatentNormEps: 1e-6},
	Rules: slices.Concat(latentRules(), []Rule{
		bias(IndexerKNorm, "self_attn.indexer.k_norm.bias", AllBlocks, dimIndexerKey),
		block(IndexerKNorm, "self_attn.indexer.k_norm.weight", AllBlocks, dimIndexerKey),
		block(IndexerProj, "self_attn.indexer.weights_proj.weight", AllBlocks, dimIndexerHeads, dimEmbed),
		block(IndexerAttnK, "self_attn.indexer.wk.weight", AllBlocks, dimIndexerKey, dimEmbed),
		block(IndexerAttnQ, "self_attn.indexer.wq_b.weight", AllBlocks, dimIndexerQ, dimQLora),
	}, nextn("model.layers.{l}.")),
	Drop: []Drop{rotaryBuffers},
	Pre:  []string{"deepseek-v3"},
}

// Dimensions of the indexer.
var (
	dimIndexerHeads = Dim{"index_n_heads", func(p *Params) int { return p.IndexerHeads }}
	dimIndexerKey   = Dim{"index_head_dim", func(p *Params) int { return p.IndexerKeyLen }}
	dimIndexerQ     = Dim{"index_n_heads*index_head_dim", func(p *Params) int { return p.IndexerHeads * p.IndexerKeyLen }}
)
