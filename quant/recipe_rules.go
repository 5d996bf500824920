package quant

import (
	"slices"
	"strings"

	"github.com/winnow-moe/winnow/formats/arch"
	"github.com/winnow-moe/winnow/formats/gguf"
)

// class groups the roles that llama-quantize treats alike.
type class uint8

const (
	classOther class = iota // only the default type and rules for every class
	classOutput
	classEmbedding
	classAttnV // the sensitive ones: v, fused qkv, and the joint k/v decompression of MLA
	classAttnK
	classAttnQ
	classAttnOutput
	classDown
	classGate
	classUp
	numClasses
	classEvery = classOther // in rules: any tensor
)

// classOf knows every role that llama.cpp's naming puts in a class by its
// stem, apart from the output and the embeddings.
var classOf = map[arch.Role]class{
	arch.AttnV: classAttnV, "cross_attn_v": classAttnV, arch.AttnQKV: classAttnV, "vis_attn_qkv": classAttnV, arch.AttnKVB: classAttnV,
	arch.AttnK: classAttnK, "cross_attn_k": classAttnK,
	arch.AttnQ: classAttnQ, "cross_attn_q": classAttnQ,
	arch.AttnOutput: classAttnOutput, "vis_attn_output": classAttnOutput,

	arch.FFNDown: classDown, arch.ExpertDown: classDown, arch.SharedDown: classDown, "ffn_down_chexps": classDown, "hc_ffn_down": classDown,
	arch.FFNGate: classGate, arch.ExpertGate: classGate, arch.SharedGate: classGate, "ffn_gate_chexps": classGate,
	arch.ExpertGateUp: classGate, arch.RouterShared: classGate,
	arch.FFNUp: classUp, arch.ExpertUp: classUp, arch.SharedUp: classUp, "ffn_up_chexps": classUp, "hc_ffn_up": classUp,
}

// classify returns the class of a weight; other tensors have none.
func classify(n arch.Name) class {
	switch {
	case n.Suffix != "weight":
		return classOther
	case n.Layer < 0 && n.Role == arch.Output:
		return classOutput
	case n.Layer < 0 && (n.Role == arch.TokenEmbd || n.Role == arch.PerLayerTokenEmbd):
		return classEmbedding
	}
	return classOf[stem(n.Role)]
}

// stem takes from a role what places it ("enc.blk.3.attn_q",
// "indexer.attn_k") and the expert number of old files ("ffn_up.7").
func stem(r arch.Role) arch.Role {
	parts := strings.Split(string(r), ".")
	last := len(parts) - 1
	for last > 0 && strings.Trim(parts[last], "0123456789") == "" {
		last--
	}
	return arch.Role(parts[last])
}

// neverQuantized are matrices so small or so sensitive that they keep the type
// they come with. Norms are not listed: Name.IsNorm recognises them.
var neverQuantized = set(
	arch.Router, "ffn_gate_tid2eid", arch.PositionEmbd, arch.TokenTypes, arch.PerLayerModelProj,
	arch.AltupRouter, "altup_proj", "altup_unembd_proj", arch.AltupCorrect, "altup_correct_scale", arch.AltupPredict,
	arch.LaurelL, arch.LaurelR,
	arch.SSMConv1D, arch.SSMConv1DQ, arch.SSMConv1DK, arch.SSMConv1DV, arch.ShortConv,
	"indexer.k_proj", "indexer.q_proj", "attn_rel_b", "cross_attn_rel_b",
	"time_mix_first", "time_mix_w0", "time_mix_w1", "time_mix_w2", "time_mix_v0", "time_mix_v1", "time_mix_v2",
	"time_mix_a0", "time_mix_a1", "time_mix_a2", "time_mix_g1", "time_mix_g2",
	"time_mix_decay_w1", "time_mix_decay_w2", "time_mix_lerp_fused",
)

// neverQuantizedIn adds to neverQuantized for one architecture.
var neverQuantizedIn = map[string]map[arch.Role]bool{
	"glm5-next": set(
		"hc_attn_fn", "hc_attn_base", "hc_attn_scale", "hc_attn_up", "hc_attn_down", "hc_attn_inject",
		"hc_ffn_fn", "hc_ffn_base", "hc_ffn_scale", "hc_ffn_up", "hc_ffn_down", "hc_ffn_inject",
		"output_hc_fn", "output_hc_base", "output_hc_scale", "output_hc_up", "output_hc_down",
		arch.IndexerAttnQ, arch.IndexerAttnK, arch.IndexerProj, "indexer_compressor_gate", "indexer_compressor_ape",
		arch.SSMFA, arch.SSMFB, arch.SSMGA, arch.SSMGB, arch.SSMBeta, arch.AttnKVA, arch.AttnKB, arch.AttnVB,
	),
}

func set(roles ...arch.Role) map[arch.Role]bool {
	m := make(map[arch.Role]bool, len(roles))
	for _, r := range roles {
		m[r] = true
	}
	return m
}

// site is one tensor with everything a condition may ask about.
type site struct {
	facts   *ModelFacts
	imatrix bool
	name    arch.Name
	class   class
	row     int64 // row length
	mats    int64 // matrices of a 3-D tensor, else 1
	block   int64 // block length of the recipe's default type
	// pos of span is the layer position: for attention values the running
	// number among the file's value tensors, for feed-forward tensors the
	// block of a MoE model, the running number in a dense one.
	pos, span int
	seen      int // quantized tensors of the class before this one
}

// cond is a condition of a rule, with the words that explain it.
type cond struct {
	text  string
	holds func(*site) bool
}

var (
	first2       = cond{"among the first 2", func(s *site) bool { return s.pos < 2 }}
	first4       = cond{"among the first 4", func(s *site) bool { return s.pos < 4 }}
	firstEighth  = cond{"in the first eighth of the layers", func(s *site) bool { return s.pos < s.span/8 }}
	first16th    = cond{"in the first sixteenth of the layers", func(s *site) bool { return s.pos < s.span/16 }}
	seenEighth   = cond{"among the first ones (one per eight layers)", func(s *site) bool { return s.seen < s.facts.Layers/8 }}
	middleLayers = cond{"outside the first and last eighth of the layers", func(s *site) bool { return s.pos >= s.span/8 && s.pos < 7*s.span/8 }}
	endsAndThird = cond{"in the first or last eighth of the layers, or every third between", func(s *site) bool {
		return s.pos < s.span/8 || s.pos >= 7*s.span/8 || (s.pos-s.span/8)%3 == 2
	}}

	shared4      = cond{"whose key/value heads serve 4 or more query heads each", func(s *site) bool { return s.facts.GQA >= 4 }}
	shared4orMoE = cond{"whose key/value heads serve 4 or more query heads each, or of a model with 4 or more experts", func(s *site) bool {
		return s.facts.GQA >= 4 || s.facts.Experts >= 4
	}}
	eightExperts = cond{"of a model with 8 experts", func(s *site) bool { return s.facts.Experts == 8 }}
	falcon       = cond{"of falcon", func(s *site) bool { return s.facts.Arch == "falcon" }}
	notFalcon    = cond{"", func(s *site) bool { return s.facts.Arch != "falcon" }}
	size70B      = cond{"of a 70B model", func(s *site) bool { return is70B(s.facts) }}
	hasImatrix   = cond{"with an importance matrix", func(s *site) bool { return s.imatrix }}
	noImatrix    = cond{"without an importance matrix", func(s *site) bool { return !s.imatrix }}
	raggedRows   = cond{"with rows that are not whole blocks", func(s *site) bool { return s.row%s.block != 0 }}
	stacked      = cond{"with one matrix per expert or head", func(s *site) bool { return s.mats > 1 }}

	bailingmoe3Dense = cond{"of bailingmoe3 that is not an expert", func(s *site) bool {
		return s.facts.Arch == "bailingmoe3" && s.class != classDown && s.class != classGate && s.class != classUp
	}}
	glm5NextLatent = cond{"of glm5-next", func(s *site) bool {
		return s.facts.Arch == "glm5-next" && (s.name.Role == arch.AttnQA || s.name.Role == arch.AttnQB || s.name.Role == arch.NextnEHProj)
	}}
)

// is70B recognises the models that llama.cpp calls 70B. Their value matrices
// are small beside the rest, so more bits for them cost little.
func is70B(f *ModelFacts) bool {
	switch f.Arch {
	case "llama", "llama-embed":
		return f.Layers == 80 && f.Experts != 8 && f.GQA != 1
	case "qwen2", "deci", "olmo":
		return f.Layers == 80
	case "jais2":
		return f.Layers == 68
	}
	return false
}

// rule gives tensors of one class a type when all conditions hold.
type rule struct {
	class class
	when  []cond
	typ   gguf.Type
}

func when(c ...cond) []cond { return c }

func (r *rule) matches(s *site) bool {
	if r.class != classEvery && r.class != s.class {
		return false
	}
	return !slices.ContainsFunc(r.when, func(c cond) bool { return !c.holds(s) })
}

// explain renders the rule for one tensor.
func (r *rule) explain(s *site) string {
	words := []string{string(s.name.Role)}
	if s.class == classOutput && s.name.Role != arch.Output {
		words = append(words, "(also the output)")
	}
	for _, c := range r.when {
		if c.text != "" {
			words = append(words, c.text)
		}
	}
	return strings.Join(words, " ")
}

// rules joins groups of rules. The first rule that matches decides.
func rules(groups ...[]rule) []rule { return slices.Concat(groups...) }

// Groups of rules that several recipes share.
var (
	glm5 = rule{classEvery, when(glm5NextLatent), gguf.Q8_0}

	// outputQ6 and outputQ5 are for output.weight, or for the embedding that
	// stands in for it.
	outputQ6 = []rule{
		glm5,
		{classOutput, when(falcon), gguf.Q8_0},
		{classOutput, when(raggedRows), gguf.Q8_0},
		{classOutput, nil, gguf.Q6_K},
	}
	outputQ5 = []rule{
		glm5,
		{classOutput, when(falcon), gguf.Q8_0},
		{classOutput, when(raggedRows), gguf.Q8_0},
		{classOutput, nil, gguf.Q5_K},
	}

	// mixtral: keys and values of models with 8 experts are a vanishing part
	// of the file.
	mixtral = []rule{
		{classAttnV, when(eightExperts), gguf.Q8_0},
		{classAttnK, when(eightExperts), gguf.Q8_0},
	}

	// mixtralOutput raises the attention output as well.
	mixtralOutput = []rule{{classAttnOutput, when(eightExperts, notFalcon), gguf.Q5_K}}
)

// plain is a recipe without exceptions of its own.
var plain = rules(outputQ6, mixtral)

// lowBits are the rules of the recipes below 3 bits. better is the type for
// what deserves more; extra rules come last.
func lowBits(better gguf.Type, extra ...rule) []rule {
	return rules(outputQ5, []rule{
		{classEmbedding, nil, better},
		{classAttnV, when(shared4orMoE), gguf.Q4_K},
		{classAttnV, nil, better},
		{classAttnK, when(eightExperts), gguf.Q4_K},
		{classDown, when(seenEighth), better},
		{classAttnOutput, when(eightExperts), gguf.Q5_K},
	}, extra)
}

// recipes is llama-quantize's set of file types, largest first. The rules say
// what llama.cpp's src/llama-quant.cpp decides, in another form: one row per
// exception, first match wins, and what no row matches gets the default.
var recipes = []Recipe{
	{Name: "F32", FileType: 0, Default: gguf.F32},
	{Name: "F16", FileType: 1, Default: gguf.F16},
	{Name: "BF16", FileType: 32, Default: gguf.BF16},
	{Name: "Q8_0", FileType: 7, Default: gguf.Q8_0, rules: rules([]rule{
		{classOutput, nil, gguf.Q8_0},
	}, plain)},
	{Name: "Q6_K", FileType: 18, Default: gguf.Q6_K, rules: plain},
	{Name: "Q5_K_M", FileType: 17, Default: gguf.Q5_K, rules: rules(plain, []rule{
		{classAttnV, when(endsAndThird), gguf.Q6_K},
		{classDown, when(endsAndThird), gguf.Q6_K},
	})},
	{Name: "Q5_K_S", FileType: 16, Default: gguf.Q5_K, rules: plain},
	{Name: "Q5_1", FileType: 9, Default: gguf.Q5_1, rules: plain},
	{Name: "Q5_0", FileType: 8, Default: gguf.Q5_0, rules: rules(plain, []rule{
		{classDown, when(firstEighth, hasImatrix), gguf.Q5_1},
	})},
	{Name: "Q4_K_M", FileType: 15, Default: gguf.Q4_K, rules: rules(plain, mixtralOutput, []rule{
		{classAttnV, when(endsAndThird), gguf.Q6_K},
		{classAttnV, when(size70B), gguf.Q5_K},
		{classDown, when(falcon, first16th), gguf.Q6_K},
		{classDown, when(falcon, endsAndThird), gguf.Q5_K},
		{classDown, when(notFalcon, endsAndThird), gguf.Q6_K},
	})},
	{Name: "Q4_K_S", FileType: 14, Default: gguf.Q4_K, rules: rules(plain, mixtralOutput, []rule{
		{classAttnV, when(first4), gguf.Q5_K},
		{classAttnV, when(size70B), gguf.Q5_K},
		{classDown, when(notFalcon, firstEighth), gguf.Q5_K},
	})},
	{Name: "Q4_1", FileType: 3, Default: gguf.Q4_1, rules: plain},
	{Name: "Q4_0", FileType: 2, Default: gguf.Q4_0, rules: rules(plain, []rule{
		{classDown, when(firstEighth, hasImatrix), gguf.Q4_1},
	})},
	{Name: "IQ4_NL", FileType: 25, Default: gguf.IQ4NL, rules: rules(plain, mixtralOutput, []rule{
		{classAttnV, when(shared4), gguf.Q5_K},
		{classDown, when(firstEighth, noImatrix), gguf.Q5_K},
	})},
	{Name: "IQ4_XS", FileType: 30, Default: gguf.IQ4XS, rules: rules(plain, mixtralOutput, []rule{
		{classAttnV, when(shared4), gguf.Q5_K},
		{classDown, when(firstEighth, noImatrix), gguf.Q5_K},
	})},
	{Name: "MXFP4_MOE", FileType: 38, Default: gguf.MXFP4, rules: []rule{
		{classOutput, nil, gguf.Q8_0},
		{classEvery, when(bailingmoe3Dense), gguf.Q8_0},
		{classEvery, when(stacked), gguf.MXFP4},
		{classEvery, nil, gguf.Q8_0},
	}},
	{Name: "Q3_K_L", FileType: 13, Default: gguf.Q3_K, rules: rules(plain, []rule{
		{classAttnV, nil, gguf.Q5_K},
		{classDown, when(falcon), gguf.Q4_K},
		{classDown, nil, gguf.Q5_K},
		{classAttnOutput, when(falcon), gguf.Q4_K},
		{classAttnOutput, when(eightExperts), gguf.Q3_K},
		{classAttnOutput, nil, gguf.Q5_K},
	})},
	{Name: "Q3_K_M", FileType: 12, Default: gguf.Q3_K, rules: rules(plain, mixtralOutput, []rule{
		{classAttnV, when(first2), gguf.Q5_K},
		{classAttnV, when(size70B), gguf.Q5_K},
		{classAttnV, nil, gguf.Q4_K},
		{classDown, when(first16th), gguf.Q5_K},
		{classDown, when(falcon, endsAndThird), gguf.Q4_K},
		{classDown, when(notFalcon), gguf.Q4_K},
		{classAttnOutput, when(notFalcon), gguf.Q4_K},
	})},
	{Name: "Q3_K_S", FileType: 11, Default: gguf.Q3_K, rules: rules(plain, mixtralOutput, []rule{
		{classAttnV, when(size70B), gguf.Q5_K},
	})},
	{Name: "IQ3_M", FileType: 27, Default: gguf.IQ3S, rules: rules(plain, mixtralOutput, []rule{
		{classAttnV, when(size70B), gguf.Q5_K},
		{classAttnV, nil, gguf.Q4_K},
		{classDown, when(firstEighth), gguf.Q4_K},
		{classDown, when(eightExperts, endsAndThird), gguf.Q4_K},
		{classAttnOutput, when(notFalcon), gguf.Q4_K},
	})},
	{Name: "IQ3_S", FileType: 26, Default: gguf.IQ3S, rules: rules(plain, mixtralOutput, []rule{
		{classAttnV, when(shared4, size70B), gguf.Q5_K},
		{classAttnV, when(shared4), gguf.Q4_K},
	})},
	{Name: "IQ3_XS", FileType: 22, Default: gguf.IQ3S, rules: rules(plain, mixtralOutput, []rule{
		{classAttnV, when(shared4, size70B), gguf.Q5_K},
		{classAttnV, when(shared4), gguf.Q4_K},
		{classAttnK, nil, gguf.IQ3XXS},
		{classAttnQ, nil, gguf.IQ3XXS},
		{classGate, when(middleLayers), gguf.IQ3XXS},
		{classUp, when(middleLayers), gguf.IQ3XXS},
	})},
	{Name: "IQ3_XXS", FileType: 23, Default: gguf.IQ3XXS, rules: rules(outputQ5, mixtral, mixtralOutput, []rule{
		{classEmbedding, nil, gguf.IQ3S},
		{classAttnV, when(shared4, size70B), gguf.Q5_K},
		{classAttnV, when(shared4), gguf.Q4_K},
		{classAttnV, when(noImatrix), gguf.IQ3S},
		{classAttnK, nil, gguf.IQ2S},
		{classAttnQ, nil, gguf.IQ2S},
		{classDown, when(firstEighth, noImatrix), gguf.Q4_K},
		{classDown, when(noImatrix), gguf.Q3_K},
		{classAttnOutput, when(notFalcon), gguf.IQ3S},
	})},
	{Name: "Q2_K", FileType: 10, Default: gguf.Q2_K, rules: rules(plain, mixtralOutput, []rule{
		{classAttnV, when(size70B), gguf.Q5_K},
		{classAttnV, when(shared4), gguf.Q4_K},
		{classAttnV, nil, gguf.Q3_K},
		{classDown, nil, gguf.Q3_K},
		{classAttnOutput, when(notFalcon), gguf.Q3_K},
	})},
	{Name: "Q2_K_S", FileType: 21, Default: gguf.Q2_K, rules: rules(plain, []rule{
		{classAttnV, when(shared4, size70B), gguf.Q5_K},
		{classAttnV, when(shared4), gguf.Q4_K},
		{classDown, when(firstEighth), gguf.Q4_K},
	})},
	{Name: "IQ2_M", FileType: 29, Default: gguf.IQ2S, rules: lowBits(gguf.IQ3S, rule{classAttnOutput, nil, gguf.IQ3S})},
	{Name: "IQ2_S", FileType: 28, Default: gguf.IQ2XS, rules: lowBits(gguf.IQ3S, rule{classAttnOutput, nil, gguf.IQ3S})},
	{Name: "IQ2_XS", FileType: 20, Default: gguf.IQ2XS, rules: lowBits(gguf.Q2_K)},
	{Name: "IQ2_XXS", FileType: 19, Default: gguf.IQ2XXS, rules: lowBits(gguf.Q2_K)},
	{Name: "IQ1_M", FileType: 31, Default: gguf.IQ1M, rules: lowBits(gguf.Q2_K, rule{classAttnOutput, nil, gguf.IQ2XXS})},
	{Name: "IQ1_S", FileType: 24, Default: gguf.IQ1S, rules: lowBits(gguf.Q2_K, rule{classAttnOutput, nil, gguf.IQ2XXS})},
	{Name: "Q2_0", FileType: 41, Default: gguf.Q2_0, rules: rules(plain, []rule{{classEmbedding, nil, gguf.Q4_K}})},
	{Name: "TQ2_0", FileType: 37, Default: gguf.TQ2_0, rules: rules(plain, []rule{{classEmbedding, nil, gguf.Q4_K}})},
	{Name: "TQ1_0", FileType: 36, Default: gguf.TQ1_0, rules: rules(plain, []rule{{classEmbedding, nil, gguf.Q4_K}})},
	{Name: "Q1_0", FileType: 40, Default: gguf.Q1_0, rules: plain},
	{Name: "COPY", KeepsTypes: true},
}

// recipeAliases are the other names llama-quantize accepts.
var recipeAliases = map[string]string{"Q3_K": "Q3_K_M", "Q4_K": "Q4_K_M", "Q5_K": "Q5_K_M"}

// shapeFallback is the type with smaller blocks that takes the place of one
// whose blocks do not fit a tensor's rows.
var shapeFallback = map[gguf.Type]gguf.Type{
	gguf.IQ1S: gguf.IQ4NL, gguf.IQ1M: gguf.IQ4NL, gguf.IQ2XXS: gguf.IQ4NL, gguf.IQ2XS: gguf.IQ4NL, gguf.IQ2S: gguf.IQ4NL,
	gguf.IQ3XXS: gguf.IQ4NL, gguf.IQ3S: gguf.IQ4NL, gguf.IQ4XS: gguf.IQ4NL,
	gguf.Q2_0: gguf.Q4_0, gguf.Q2_K: gguf.Q4_0, gguf.Q3_K: gguf.Q4_0, gguf.TQ1_0: gguf.Q4_0, gguf.TQ2_0: gguf.Q4_0,
	gguf.Q4_K: gguf.Q5_0, gguf.Q5_K: gguf.Q5_1, gguf.Q6_K: gguf.Q8_0,
}

// wantsImatrix are the types that llama-quantize refuses to make without an
// importance matrix; Q2_K joins them in the recipe Q2_K_S.
var wantsImatrix = map[gguf.Type]bool{
	gguf.IQ1S: true, gguf.IQ1M: true, gguf.IQ2XXS: true, gguf.IQ2XS: true, gguf.IQ2S: true, gguf.IQ3XXS: true,
}

// WantsWeights reports whether llama-quantize refuses to make tensors of a type
// without importance weights.
func WantsWeights(t gguf.Type) bool { return wantsImatrix[t] }
