package arch

import (
	"cmp"
	"math"
	"slices"
	"strings"
)

// Settings, dimensions and rules that most decoder-only families share.

// Dimensions, named after the config.json settings that determine them.
var (
	dimVocab    = Dim{"vocab_size", func(p *Params) int { return p.Vocab }}
	dimEmbed    = Dim{"hidden_size", func(p *Params) int { return p.Embed }}
	dimFF       = Dim{"intermediate_size", func(p *Params) int { return p.FF }}
	dimHeads    = Dim{"num_attention_heads", func(p *Params) int { return p.Heads }}
	dimKVHeads  = Dim{"num_key_value_heads", func(p *Params) int { return p.KVHeads }}
	dimHeadDim  = Dim{"head_dim", (*Params).HeadDim}
	dimZero     = Dim{"0", func(*Params) int { return 0 }}
	dimQWidth   = Dim{"num_attention_heads*head_dim", func(p *Params) int { return p.Heads * p.HeadDim() }}
	dimKVWidth  = Dim{"num_key_value_heads*head_dim", func(p *Params) int { return p.KVHeads * p.HeadDim() }}
	dimExperts  = Dim{"n_routed_experts", func(p *Params) int { return p.Experts }}
	dimExpertFF = Dim{"moe_intermediate_size", func(p *Params) int { return p.ExpertFF }}
	dimSharedFF = Dim{"n_shared_experts*moe_intermediate_size", (*Params).SharedWidth}
)

// baseSettings are the keys that conversion/base.py (TextModel.set_gguf_parameters)
// writes for every text model, in its order, with kv as the source of
// attention.head_count_kv. gating settings make it a family with experts. Rope
// scaling other than yarn and linear is not covered here.
func baseSettings(kv Setting, gating ...Setting) []Setting {
	s := []Setting{
		req(KeyBlockCount, "num_hidden_layers"),
		opt(KeyContextLength, "max_position_embeddings"),
		req(KeyEmbedding, "hidden_size"),
		req(KeyFeedForward, "intermediate_size"),
		req(KeyHeadCount, "num_attention_heads"),
		kv,
		{Key: KeyRopeScaling, From: []string{"rope.rope_type"}, Optional: true, OmitZero: true,
			Enum: map[string]any{"yarn": "yarn", "linear": "linear", "default": "", "": ""}},
		req(KeyRopeFactor, "rope.factor").when("rope.rope_type", "yarn", "linear"),
		req(KeyRopeOrigContext, "rope.original_max_position_embeddings").when("rope.rope_type", "yarn"),
		opt(KeyYarnExtFactor, "rope.extrapolation_factor").when("rope.rope_type", "yarn"),
		opt(KeyYarnAttnFactor, "rope.attention_factor", "rope.attn_factor").when("rope.rope_type", "yarn"),
		opt(KeyYarnBetaFast, "rope.beta_fast").when("rope.rope_type", "yarn"),
		opt(KeyYarnBetaSlow, "rope.beta_slow").when("rope.rope_type", "yarn"),
		def(KeyRopeBase, 10000.0, "rope.rope_theta"),
		def(KeyNormRMSEps, 1e-6, "rms_norm_eps"),
	}
	if len(gating) > 0 {
		s = append(s,
			opt(KeyExpertCount, "n_routed_experts", "num_local_experts", "num_experts"),
			opt(KeyExpertUsed, "num_experts_per_tok"),
			opt(KeyExpertGroups, "n_group"),
			opt(KeyGroupsUsed, "topk_group"),
		)
	}
	return append(s, gating...)
}

// headSettings are head_dim's keys and the place of general.file_type, which
// follow the base settings in most families.
func headSettings() []Setting {
	return []Setting{opt(KeyKeyLength, "head_dim"), opt(KeyValueLength, "head_dim"), {Key: keyFileType}}
}

// headSettingsOf are headSettings of families whose configuration class has a
// head_dim in any case.
func headSettingsOf(size int) []Setting {
	return []Setting{def(KeyKeyLength, size, "head_dim"), def(KeyValueLength, size, "head_dim"), {Key: keyFileType}}
}

// kvHeads is attention.head_count_kv as most families have it.
var kvHeads = Setting{Key: KeyHeadCountKV, From: []string{"num_key_value_heads", "num_attention_heads"}}

// with returns settings with others put in place of those with their keys, or
// at the end.
func with(settings []Setting, others ...Setting) []Setting {
	settings = slices.Clone(settings)
	for _, o := range others {
		if i := slices.IndexFunc(settings, func(s Setting) bool { return s.Key == o.Key }); i >= 0 {
			settings[i] = o
		} else {
			settings = append(settings, o)
		}
	}
	return settings
}

// after returns settings with others inserted behind the one with a key.
func after(settings []Setting, key string, others ...Setting) []Setting {
	i := slices.IndexFunc(settings, func(s Setting) bool { return s.Key == key })
	return slices.Insert(slices.Clone(settings), i+1, others...)
}

// without returns settings without those of the keys.
func without(settings []Setting, keys ...string) []Setting {
	return slices.DeleteFunc(slices.Clone(settings), func(s Setting) bool { return slices.Contains(keys, s.Key) })
}

// derivedRopeDim is the number of rotated elements that readers take for
// granted: the whole head. Its key is not written.
var derivedRopeDim = Setting{Key: KeyRopeDim, Derive: (*Params).HeadDim, Silent: true}

// gating completes a setting for the router's scoring function.
func gating(s Setting) Setting {
	s.Key, s.From = KeyExpertGating, []string{"scoring_func"}
	s.Enum = map[string]any{"sigmoid": GatingSigmoid, "softmax": GatingSoftmax}
	return s
}

// asserts that hold for every family described so far.
var baseAsserts = []Assert{
	{"hidden_act", []any{"silu"}, "the feed-forward network is SwiGLU"},
	{"attention_bias", []any{false}, "projections have no bias"},
	{"mlp_bias", []any{false}, "the feed-forward network has no bias"},
	{"tie_word_embeddings", []any{true, false}, "it decides where the output matrix comes from"},
	{"torch_dtype", dtypes, "a floating point type"},
	{"dtype", dtypes, "a floating point type"},
}

// asserts are the base asserts, some of them replaced.
func asserts(others ...Assert) []Assert {
	list := slices.Clone(baseAsserts)
	for _, o := range others {
		list = slices.DeleteFunc(list, func(a Assert) bool { return a.Path == o.Path })
		if o.In != nil {
			list = append(list, o)
		}
	}
	return list
}

// anyValue removes an assert: every value is covered.
func anyValue(path string) Assert { return Assert{Path: path} }

// dtypes are the values of torch_dtype seen in released checkpoints. The
// files' own types decide; this only catches a broken config.json.
var dtypes = []any{"bfloat16", "float16", "float32", "float64", "float8_e4m3fn", "auto"}

// globals are the tensors outside the blocks.
func globals(model, head string) []Rule {
	return []Rule{
		{Role: TokenEmbd, HF: []string{model + "embed_tokens.weight"}, Shape: []Dim{dimVocab, dimEmbed}},
		{Role: OutputNorm, HF: []string{model + "norm.weight"}, Shape: []Dim{dimEmbed}},
		{Role: Output, HF: []string{head}, Shape: []Dim{dimVocab, dimEmbed}, Optional: true},
	}
}

// trimmed leaves out rows of the embedding that no token has.
func trimmed(rules []Rule) []Rule {
	for i := range rules {
		rules[i].Trim = rules[i].Role == TokenEmbd || rules[i].Role == Output
	}
	return rules
}

// block makes a rule for a weight of every block.
func block(role Role, hf string, where Where, shape ...Dim) Rule {
	return Rule{Role: role, HF: []string{"model.layers.{l}." + hf}, Where: where, Shape: shape}
}

// attention are the four projections of grouped-query attention.
func attention() []Rule {
	return []Rule{
		block(AttnK, "self_attn.k_proj.weight", AllBlocks, dimKVWidth, dimEmbed),
		block(AttnOutput, "self_attn.o_proj.weight", AllBlocks, dimEmbed, dimQWidth),
		block(AttnQ, "self_attn.q_proj.weight", AllBlocks, dimQWidth, dimEmbed),
		block(AttnV, "self_attn.v_proj.weight", AllBlocks, dimKVWidth, dimEmbed),
	}
}

// permutedAttention is attention for families that rotate adjacent elements
// and whose checkpoints are laid out in halves.
func permutedAttention() []Rule {
	rules := attention()
	rules[0], rules[2] = ropePermuted(rules[0], dimKVHeads), ropePermuted(rules[2], dimHeads)
	return rules
}

// ropePermuted reorders each head's rows from half-split to adjacent pairs.
func ropePermuted(r Rule, heads Dim) Rule {
	r.Cut = []HeadCut{{Heads: heads, Stride: dimHeadDim, Offset: dimZero, Count: dimHeadDim, Mode: CutInterleaved}}
	return r
}

// biases are the biases of the rules' weights.
func biases(rules ...Rule) []Rule {
	var out []Rule
	for _, r := range rules {
		b := Rule{Role: r.Role, Suffix: "bias", Where: r.Where, Shape: r.Shape[:1], If: r.If, In: r.In}
		for _, h := range r.HF {
			b.HF = append(b.HF, strings.TrimSuffix(h, "weight")+"bias")
		}
		if r.Cut != nil && r.Cut[0].Mode == CutInterleaved {
			b.Order = &HeadOrder{Heads: r.Cut[0].Heads, Size: r.Cut[0].Count, Interleave: true}
		}
		out = append(out, b)
	}
	return out
}

// qkNorms are norms of queries and keys, of a head or of so many elements.
func qkNorms(q, k Dim) []Rule {
	return []Rule{
		block(AttnKNorm, "self_attn.k_norm.weight", AllBlocks, k),
		block(AttnQNorm, "self_attn.q_norm.weight", AllBlocks, q),
	}
}

// denseNetwork is a gated feed-forward network.
func denseNetwork(where Where) []Rule {
	return []Rule{
		block(FFNDown, "mlp.down_proj.weight", where, dimEmbed, dimFF),
		block(FFNGate, "mlp.gate_proj.weight", where, dimFF, dimEmbed),
		block(FFNUp, "mlp.up_proj.weight", where, dimFF, dimEmbed),
	}
}

// fusedGateUp is a network's gate and up projection in one tensor, which stays one.
var fusedGateUp = block(FFNUp, "mlp.gate_up_proj.weight", AllBlocks, Dim{"2*intermediate_size", func(p *Params) int { return 2 * p.FF }}, dimEmbed)

// experts are routed experts stored one by one, with a router. names are those
// of down, gate and up in the order in which they are written.
func experts(prefix, router string, names ...string) []Rule {
	roles := map[string]Rule{
		"down_proj": {Role: ExpertDown, Shape: []Dim{dimExperts, dimEmbed, dimExpertFF}},
		"gate_proj": {Role: ExpertGate, Shape: []Dim{dimExperts, dimExpertFF, dimEmbed}},
		"up_proj":   {Role: ExpertUp, Shape: []Dim{dimExperts, dimExpertFF, dimEmbed}},
	}
	roles["w2"], roles["w1"], roles["w3"] = roles["down_proj"], roles["gate_proj"], roles["up_proj"]
	var out []Rule
	for _, n := range names {
		r := roles[n]
		out = append(out, block(r.Role, prefix+".{e}."+n+".weight", MoEBlocks, r.Shape...))
	}
	return append(out, block(Router, router, MoEBlocks, dimExperts, dimEmbed))
}

// sharedNetwork is the network of the shared experts.
func sharedNetwork(prefix string) []Rule {
	return []Rule{
		shared(block(SharedDown, prefix+".down_proj.weight", MoEBlocks, dimEmbed, dimSharedFF)),
		shared(block(SharedGate, prefix+".gate_proj.weight", MoEBlocks, dimSharedFF, dimEmbed)),
		shared(block(SharedUp, prefix+".up_proj.weight", MoEBlocks, dimSharedFF, dimEmbed)),
	}
}

func shared(r Rule) Rule {
	r.If = func(p *Params) bool { return p.SharedWidth() > 0 }
	return r
}

// routerBias is the bias on the choice of experts.
func routerBias(hf string) Rule {
	return Rule{Role: RouterBias, Suffix: "bias", HF: []string{"model.layers.{l}." + hf}, Where: MoEBlocks, Shape: []Dim{dimExperts}, Optional: true}
}

// plusOne are norms whose weights are stored as offsets from one.
func plusOne(rules []Rule) []Rule {
	for i := range rules {
		if s := string(rules[i].Role); strings.HasSuffix(s, "norm") {
			rules[i].Op = OpAddOne
		}
	}
	return rules
}

// llama3Factors is the vector of factors of llama3's rotary scaling (HF
// modeling_rope_utils.py): wavelengths up to original/high_freq_factor stay,
// those beyond original/low_freq_factor are stretched by factor, between them
// the frequencies are blended.
var llama3Factors = Rule{
	Role: RopeFreqs, Shape: []Dim{dimRopePairs}, Optional: true,
	Generate: func(m *Model) ([]float32, error) {
		if m.config.Text("rope.rope_type") != "llama3" {
			return nil, nil
		}
		var v [4]float64
		for i, name := range []string{"factor", "low_freq_factor", "high_freq_factor", "original_max_position_embeddings"} {
			f, ok, err := m.config.number("rope." + name)
			if err != nil || !ok || !(f > 0) {
				return nil, cmp.Or(err, configError("rope_scaling of type llama3 needs a positive %s", name))
			}
			v[i] = f
		}
		// In float32, as the converter computes it: torch divides a number by a
		// tensor by multiplying it with the reciprocal.
		factor, low, high, original := float32(v[0]), float32(v[1]), float32(v[2]), float32(v[3])
		out := make([]float32, m.Params.RopeDim/2)
		for i := range out {
			freq := 1 / float32(math.Pow(float64(m.Params.RopeBase), float64(float32(2*i)/float32(m.Params.RopeDim))))
			wave := float32(1/freq) * float32(2*math.Pi)
			switch {
			case wave < original/high:
				out[i] = 1
			case wave > original/low:
				out[i] = factor
			default:
				s := (float32(float32(1/wave)*original) - low) / (high - low)
				out[i] = 1 / (float32((1-s)/factor) + s)
			}
		}
		return out, nil
	},
}

// llama3Scaling is the rope scaling of families that have llama3Factors.
var llama3Scaling = Setting{Key: KeyRopeScaling, From: []string{"rope.rope_type"}, Optional: true, OmitZero: true,
	Enum: map[string]any{"yarn": "yarn", "linear": "linear", "default": "", "": "", "llama3": ""}}

var dimRopePairs = Dim{"head_dim/2", func(p *Params) int { return p.RopeDim / 2 }}

// slidingUnlessEvery makes all blocks but every n-th sliding.
func slidingUnlessEvery(n int) func(*Params) {
	return func(p *Params) {
		p.Sliding = make([]bool, p.Layers)
		for l := range p.Sliding {
			p.Sliding[l] = (l+1)%n != 0
		}
	}
}

// noRopeEvery takes the rotary embedding from every n-th block.
func noRopeEvery(n int) func(*Params) {
	return func(p *Params) {
		p.NoRope = make([]bool, p.Layers)
		for l := n - 1; l < p.Layers; l += n {
			p.NoRope[l] = true
		}
	}
}

// noRopeLayers refuses a no_rope_layers that takes the rotary embedding from
// other blocks than every n-th. It has a 0 for blocks without.
func noRopeLayers(n int) Setting {
	return Setting{Key: KeyRopeDim, Silent: true, Optional: true, Compute: func(cfg *Config, _ *Params) (any, error) {
		list, _ := cfg.list("no_rope_layers")
		numbers, err := convertList("no_rope_layers", list)
		rotated, _ := numbers.([]int)
		for l, r := range rotated {
			if (r == 0) != ((l+1)%n == 0) {
				return nil, configError("no_rope_layers is %s; readers of the file expect 0 for every block number %d and no other", show(list), n)
			}
		}
		return nil, err
	}}
}

// headDimDerived refuses a head_dim that is not hidden/heads, where neither
// HF's code nor the converter heeds it.
var headDimDerived = Setting{Key: KeyRopeDim, Silent: true, Optional: true, Compute: func(cfg *Config, p *Params) (any, error) {
	f, ok, err := cfg.number("head_dim")
	if err == nil && ok && f*float64(p.Heads) != float64(p.Embed) {
		err = configError("head_dim is %g, not hidden_size/num_attention_heads (%d/%d)", f, p.Embed, p.Heads)
	}
	return nil, err
}}

// withoutScaling leaves out the settings of a scaled rotary embedding.
func withoutScaling(settings []Setting) []Setting {
	return without(settings, KeyRopeScaling, KeyRopeFactor, KeyRopeOrigContext, KeyYarnExtFactor, KeyYarnAttnFactor, KeyYarnBetaFast, KeyYarnBetaSlow)
}

// rotaryBuffers are computed tables that old checkpoints stored as tensors.
var rotaryBuffers = Drop{"model.layers.{l}.self_attn.rotary_emb.inv_freq", "a table computed from rope_theta"}

// expertsAsWideAsFF is for families that have one key for the width of dense
// networks and of experts.
func expertsAsWideAsFF(p *Params) {
	if p.Experts > 0 && p.ExpertFF == 0 {
		p.ExpertFF = p.FF
	}
}

// preNorms are the norms before attention and the feed-forward network.
func preNorms() []Rule {
	return []Rule{
		block(AttnNorm, "input_layernorm.weight", AllBlocks, dimEmbed),
		block(FFNNorm, "post_attention_layernorm.weight", AllBlocks, dimEmbed),
	}
}

// postNorms are the norms behind attention and the feed-forward network.
func postNorms() []Rule {
	return []Rule{
		block(PostAttnNorm, "post_attention_layernorm.weight", AllBlocks, dimEmbed),
		block(PostFFNNorm, "post_feedforward_layernorm.weight", AllBlocks, dimEmbed),
	}
}

// sandwichNorms are Gemma's norms before and behind both.
func sandwichNorms() []Rule {
	return append(postNorms(),
		block(AttnNorm, "input_layernorm.weight", AllBlocks, dimEmbed),
		block(FFNNorm, "pre_feedforward_layernorm.weight", AllBlocks, dimEmbed))
}

// queryKeyValue are the projections that make queries, keys and values.
func queryKeyValue() []Rule {
	a := attention()
	return []Rule{a[0], a[2], a[3]}
}

// replaceNormEps puts a setting in place of the epsilon of RMS norms.
func replaceNormEps(settings []Setting, eps Setting) []Setting {
	return without(after(settings, KeyNormRMSEps, eps), KeyNormRMSEps)
}

// sharedGateRow is the gate of the shared experts' network: one row.
var sharedGateRow = Rule{
	Role: RouterShared, HF: []string{"model.layers.{l}.mlp.shared_expert_gate.weight"}, Where: MoEBlocks,
	Shape: []Dim{dimOne, dimEmbed},
}

var dimOne = Dim{"1", func(*Params) int { return 1 }}

// softmaxRouter is the gating of families whose files do not say it.
var softmaxRouter = Setting{Key: KeyExpertGating, Value: int(GatingSoftmax), Silent: true}

// Asserts that several families share.
var (
	noSlidingWindow = Assert{"use_sliding_window", []any{false}, "all blocks see all keys"}
	everyBlockMoE   = Assert{"decoder_sparse_step", []any{1.0}, "every block has experts"}
	noDenseBlocks   = Assert{"mlp_only_layers", []any{noEntries}, "every block has experts"}
)

// noEntries is the value of an assert for an empty list.
const noEntries = "[]"

// geluAct is the assert of Gemma's activation.
func geluAct(path string) Assert {
	return Assert{path, []any{"gelu_pytorch_tanh"}, "the activation is GELU by tanh"}
}

// gemmaScale refuses a score factor that readers do not expect: see gemmaScores.
func gemmaScale(blocks int) Setting {
	return Setting{Key: KeyAttnScale, Silent: true, Optional: true, Compute: func(cfg *Config, p *Params) (any, error) {
		f, ok, err := cfg.number("query_pre_attn_scalar")
		if want := gemmaScoreScale(p, blocks); err == nil && ok && math.Abs(1/math.Sqrt(f)/want-1) > 1e-6 {
			err = configError("query_pre_attn_scalar is %g; readers of the file scale scores by %g", f, want)
		}
		return nil, err
	}}
}

// gemmaScores sets the score factor that no key holds: 1/√(head), but in the
// model with so many blocks 1/√(hidden/heads).
func gemmaScores(blocks int) func(*Params) {
	return func(p *Params) { p.AttnScale = float32(gemmaScoreScale(p, blocks)) }
}

func gemmaScoreScale(p *Params, blocks int) float64 {
	if p.Layers == blocks {
		return 1 / math.Sqrt(float64(p.Embed)/float64(p.Heads))
	}
	return 1 / math.Sqrt(float64(p.HeadDim()))
}

// Why a text model leaves tensors out.
const (
	visionTower = "vision tower and its projector, which are not supported"
	mmprojTower = "vision tower and its projector (--mmproj writes them)"
)

// partialRopeDim is the number of rotated elements where it is a part of the
// head; part is that of configs that do not say.
func partialRopeDim(part float64) Setting {
	return Setting{Key: KeyRopeDim, Compute: func(cfg *Config, p *Params) (any, error) {
		f, ok, err := cfg.number("rope.partial_rotary_factor")
		if !ok {
			f = part
		}
		return math.Trunc(float64(p.HeadDim()) * f), err
	}}
}

// optional marks rules whose tensors may be missing.
func optional(rules []Rule) []Rule {
	for i := range rules {
		rules[i].Optional = true
	}
	return rules
}

// suffixed gives a rule's tensor another suffix than weight.
func suffixed(suffix string, r Rule) Rule { r.Suffix = suffix; return r }

// bias makes a rule for a bias.
func bias(role Role, hf string, where Where, shape ...Dim) Rule {
	return suffixed("bias", block(role, hf, where, shape...))
}

// fusedHalf is one half of the experts' fused input projection
// [experts, 2·width, hidden], from row offset of every expert on.
func fusedHalf(role Role, hf string, offset Dim) Rule {
	r := block(role, hf, MoEBlocks, dimExperts, dimExpertFF, dimEmbed)
	r.Source = []Dim{dimExperts, dimTwoExpertFF, dimEmbed}
	r.Cut = []HeadCut{{Heads: dimExperts, Stride: dimTwoExpertFF, Offset: offset, Count: dimExpertFF}}
	return r
}

var (
	dimTwoExpertFF = Dim{"2*moe_intermediate_size", func(p *Params) int { return 2 * p.ExpertFF }}
	dimTwoEmbed    = Dim{"2*hidden_size", func(p *Params) int { return 2 * p.Embed }}
)

// nextn are the tensors of a multi-token prediction block beside those of the
// other blocks.
func nextn(prefix string) []Rule {
	rule := func(role Role, hf string, shape ...Dim) Rule {
		return Rule{Role: role, HF: []string{prefix + hf}, Where: MTPBlocks, Shape: shape}
	}
	return []Rule{
		rule(NextnEHProj, "eh_proj.weight", dimEmbed, dimTwoEmbed),
		rule(NextnEmbd, "embed_tokens.weight", dimVocab, dimEmbed),
		rule(NextnENorm, "enorm.weight", dimEmbed),
		rule(NextnHNorm, "hnorm.weight", dimEmbed),
		rule(NextnSharedHead, "shared_head.head.weight", dimVocab, dimEmbed),
		rule(NextnSharedNorm, "shared_head.norm.weight", dimEmbed),
	}
}
