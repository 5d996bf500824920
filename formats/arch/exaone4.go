package arch

import "slices"

// EXAONE 4.0: norms behind the branches only, norms of queries and keys per
// head. Reference: transformers modeling_exaone4.py; GGUF form: llama.cpp
// conversion/exaone.py and src/models/exaone4.cpp. Where there is a sliding
// window, only the blocks that it applies to have a rotary embedding; llama.cpp
// heeds it in the model of 64 blocks only.
var exaone4 = Family{
	Arch:    "exaone4",
	Classes: []string{"Exaone4ForCausalLM"},
	Settings: slices.Concat(with(baseSettings(kvHeads), llama3Scaling, def(KeyNormRMSEps, 1e-5, "rms_norm_eps")), headSettings(), []Setting{
		req(KeyVocabSize, "vocab_size"),
		opt(KeySlidingWindow, "sliding_window"),
		{Key: KeySlidingPattern, Optional: true, Compute: func(cfg *Config, p *Params) (any, error) {
			if p.SlidingWindow == 0 {
				return nil, nil
			}
			return slidingPattern(cfg, p)
		}},
		derivedRopeDim,
	}),
	Asserts:  baseAsserts,
	Defaults: Params{RopeBase: 10000},
	Complete: []func(*Params){func(p *Params) {
		for _, sliding := range p.Sliding {
			p.NoRope = append(p.NoRope, !sliding)
		}
	}},
	Block: Block{Attn: GQA, Rope: RopeHalves, QKNorm: QKNormHeads, Residual: PostNorm},
	Rules: slices.Concat([]Rule{llama3Factors}, globals("model.", "lm_head.weight"), denseNetwork(AllBlocks),
		postNorms(), attention(), qkNorms(dimHeadDim, dimHeadDim)),
	Drop: []Drop{rotaryBuffers},
	Pre:  []string{"exaone4"},
}
