package arch

// Llama 1 to 3 without rope scaling by llama3's rule, which needs a generated
// tensor. Reference: transformers modeling_llama.py; GGUF form: llama.cpp
// conversion/llama.py and src/models/llama.cpp. llama.cpp rotates adjacent
// elements, so the rows of q and k are reordered from HF's half-split layout.
var llama = Family{
	Arch:    "llama",
	Classes: []string{"LlamaForCausalLM"},
	Settings: append(baseSettings(Setting{Key: KeyHeadCountKV, From: []string{"num_key_value_heads", "num_attention_heads"}}),
		opt(KeyKeyLength, "head_dim"),
		opt(KeyValueLength, "head_dim"),
		Setting{Key: keyFileType},
		req(KeyVocabSize, "vocab_size"),
		Setting{Key: KeyRopeDim, From: []string{"head_dim"}, Derive: (*Params).HeadDim},
	),
	Asserts:  baseAsserts,
	Defaults: Params{RopeBase: 10000},
	Block:    Block{Attn: GQA, Rope: RopeAdjacent},
	Rules: append(globals("model.", "lm_head.weight"),
		block(AttnNorm, "input_layernorm.weight", AllBlocks, dimEmbed),
		block(FFNDown, "mlp.down_proj.weight", AllBlocks, dimEmbed, dimFF),
		block(FFNGate, "mlp.gate_proj.weight", AllBlocks, dimFF, dimEmbed),
		block(FFNUp, "mlp.up_proj.weight", AllBlocks, dimFF, dimEmbed),
		block(FFNNorm, "post_attention_layernorm.weight", AllBlocks, dimEmbed),
		ropePermuted(block(AttnK, "self_attn.k_proj.weight", AllBlocks, dimKVWidth, dimEmbed), dimKVHeads),
		block(AttnOutput, "self_attn.o_proj.weight", AllBlocks, dimEmbed, dimQWidth),
		ropePermuted(block(AttnQ, "self_attn.q_proj.weight", AllBlocks, dimQWidth, dimEmbed), dimHeads),
		block(AttnV, "self_attn.v_proj.weight", AllBlocks, dimKVWidth, dimEmbed),
	),
	Drop: []Drop{rotaryBuffers},
	Pre:  []string{"llama-bpe"},
}

// ropePermuted reorders each head's rows from half-split to adjacent pairs.
func ropePermuted(r Rule, heads Dim) Rule {
	r.Cut = []HeadCut{{Heads: heads, Stride: dimHeadDim, Offset: dimZero, Count: dimHeadDim, Mode: CutInterleaved}}
	return r
}
