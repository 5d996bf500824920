package arch

import (
	"slices"
	"strings"
)

// Qwen3-Next: three of four blocks have a gated delta net (Yang et al. 2024)
// instead of attention. Reference: transformers modeling_qwen3_next.py; GGUF
// form: llama.cpp conversion/qwen.py and src/models/qwen3next.cpp.
//
// The input projection holds queries, keys, values and gates key head by key
// head; the file has all queries, all keys, all values, and apart all gates.
var qwen3next = Family{
	Arch:    "qwen3next",
	Classes: []string{"Qwen3NextForCausalLM"},
	// config.json does not say that an MTP block follows; released checkpoints have one.
	Settings: slices.Concat(baseSettings(kvHeads, softmaxRouter), headSettings(), deltaSettings(def(KeyNextnLayers, 1, "mtp_num_hidden_layers"))),
	Asserts:  deltaAsserts,
	Defaults: deltaDefaults,
	Complete: []func(*Params){recurrentUnlessEvery},
	Block:    deltaBlock(DeltaGrouped),
	Rules: slices.Concat(plusOne(globals("model.", "lm_head.weight")), withMTP(slices.Concat(
		gatedAttention(),
		experts("mlp.experts", "mlp.gate.weight", "down_proj", "gate_proj", "up_proj"),
		sharedNetwork("mlp.shared_expert"),
		[]Rule{sharedGateRow},
	)), mtpHead(), recurrent(deltaVectors(), []Rule{
		qkvz(AttnQKV, []Dim{dimConvWidth, dimEmbed}, dimZero, dimStateSize, dimStateSize, dimStateSize, dimTwoStates, dimValuesPerKey),
		qkvz(AttnGate, []Dim{dimInner, dimEmbed}, dimBeforeGates, dimValuesPerKey),
		block(SSMBA, "linear_attn.in_proj_ba.weight", AllBlocks, dimTwoValueHeads, dimEmbed),
		block(SSMOut, "linear_attn.out_proj.weight", AllBlocks, dimEmbed, dimInner),
	})),
	Drop: []Drop{rotaryBuffers},
	Pre:  []string{"qwen2"},
}

// qkvz takes rows of every key head of the input projection: pairs of the first
// row and their number.
func qkvz(role Role, shape []Dim, ranges ...Dim) Rule {
	r := block(role, "linear_attn.in_proj_qkvz.weight", AllBlocks, shape...)
	r.Source = []Dim{dimProjection, dimEmbed}
	for ; len(ranges) > 0; ranges = ranges[2:] {
		r.Cut = append(r.Cut, HeadCut{Heads: dimKeyHeads, Stride: dimProjectionHead, Offset: ranges[0], Count: ranges[1]})
	}
	return r
}

// Dimensions of the delta net, named as in config.json.
var (
	dimKeyHeads      = Dim{"linear_num_key_heads", func(p *Params) int { return p.StateGroups }}
	dimValueHeads    = Dim{"linear_num_value_heads", func(p *Params) int { return p.TimeStepRank }}
	dimTwoValueHeads = Dim{"2*linear_num_value_heads", func(p *Params) int { return 2 * p.TimeStepRank }}
	dimStateSize     = Dim{"linear_key_head_dim", func(p *Params) int { return p.StateSize }}
	dimTwoStates     = Dim{"2*linear_key_head_dim", func(p *Params) int { return 2 * p.StateSize }}
	dimValueHead     = Dim{"linear_value_head_dim", func(p *Params) int { return p.InnerSize / p.TimeStepRank }}
	dimInner         = Dim{"linear_num_value_heads*linear_value_head_dim", func(p *Params) int { return p.InnerSize }}
	dimConvKernel    = Dim{"linear_conv_kernel_dim", func(p *Params) int { return p.ConvKernel }}
	dimQueriesKeys   = Dim{"2*linear_num_key_heads*linear_key_head_dim", func(p *Params) int { return 2 * p.StateGroups * p.StateSize }}
	dimConvWidth     = Dim{"2*linear_num_key_heads*linear_key_head_dim+linear_num_value_heads*linear_value_head_dim", func(p *Params) int {
		return 2*p.StateGroups*p.StateSize + p.InnerSize
	}}
	dimValuesPerKey   = Dim{"linear_num_value_heads/linear_num_key_heads*linear_value_head_dim", func(p *Params) int { return p.InnerSize / p.StateGroups }}
	dimBeforeGates    = Dim{"2*linear_key_head_dim+values", func(p *Params) int { return 2*p.StateSize + p.InnerSize/p.StateGroups }}
	dimProjectionHead = Dim{"2*linear_key_head_dim+values+gates", func(p *Params) int { return 2 * (p.StateSize + p.InnerSize/p.StateGroups) }}
	dimProjection     = Dim{"2*linear_num_key_heads*linear_key_head_dim+2*linear_num_value_heads*linear_value_head_dim", func(p *Params) int {
		return 2 * (p.StateGroups*p.StateSize + p.InnerSize)
	}}
	dimTwoQWidth = Dim{"2*num_attention_heads*head_dim", func(p *Params) int { return 2 * p.Heads * p.HeadDim() }}
)

// deltaSettings follow head_dim's keys; mtp is the number of MTP blocks.
func deltaSettings(mtp Setting) []Setting {
	mtp.OmitZero = true
	return []Setting{
		req(KeyExpertFF, "moe_intermediate_size"),
		req(KeySharedFF, "shared_expert_intermediate_size"),
		{Key: KeyExpertNorm, Value: true, Silent: true},
		mtp,
		req(KeyConvKernel, "linear_conv_kernel_dim"),
		req(KeyStateSize, "linear_key_head_dim"),
		req(KeyStateGroups, "linear_num_key_heads"),
		req(KeyTimeStepRank, "linear_num_value_heads"),
		{Key: KeyInnerSize, Compute: deltaInnerSize},
		{Key: KeyRecurrent, Compute: recurrentLayers},
		def(KeyFullInterval, defaultInterval, "full_attention_interval"),
		partialRopeDim(0.25),
	}
}

func deltaInnerSize(cfg *Config, p *Params) (any, error) {
	n, ok, err := cfg.number("linear_value_head_dim")
	if err == nil && !ok {
		err = configError("linear_value_head_dim is missing")
	}
	return n * float64(p.TimeStepRank), err
}

// defaultInterval is full_attention_interval where nothing says it.
const defaultInterval = 4

// recurrentLayers says of every block, MTP blocks included, whether it is
// recurrent: by layer_types, or all but every full_attention_interval-th.
func recurrentLayers(cfg *Config, p *Params) (any, error) {
	out := make([]bool, p.Layers)
	list, ok := cfg.list("layer_types")
	if ok && len(list) != p.Trunk() {
		return nil, configError("layer_types has %d entries, num_hidden_layers is %d", len(list), p.Trunk())
	}
	for l, v := range list {
		out[l] = v == "linear_attention"
	}
	if ok {
		return out, nil
	}
	every, ok, err := cfg.number("full_attention_interval")
	if err != nil || !ok {
		every = defaultInterval
	}
	q := Params{Layers: p.Layers, NextnLayers: p.NextnLayers, FullInterval: int(every)}
	recurrentUnlessEvery(&q)
	return q.Recurrent, err
}

// recurrentUnlessEvery is what readers do where no list says which blocks are
// recurrent.
func recurrentUnlessEvery(p *Params) {
	if p.Recurrent != nil || p.FullInterval < 1 {
		return
	}
	p.Recurrent = make([]bool, p.Layers)
	for l := range p.Trunk() {
		p.Recurrent[l] = (l+1)%p.FullInterval != 0
	}
}

var (
	deltaAsserts = asserts(everyBlockMoE, noDenseBlocks,
		Assert{"norm_topk_prob", []any{true}, "readers of the file divide the weights of experts by their sum"},
		Assert{"attn_output_gate", []any{true}, "the outputs of attention heads are gated"},
		Assert{"mtp_num_hidden_layers", []any{0.0, 1.0}, "at most one MTP block follows"},
		Assert{"mtp_use_dedicated_embeddings", []any{false}, "MTP blocks use the embedding of the model"})
	deltaDefaults = Params{RopeBase: 10000, Gating: GatingSoftmax, ExpertNorm: true, FullInterval: defaultInterval}
)

func deltaBlock(kind Delta) Block {
	return Block{Attn: GQA, Rope: RopeHalves, QKNorm: QKNormHeads, QueryGate: true, Delta: kind, FFNNorm: PostAttnNorm}
}

// gatedAttention are the norms of a block and the tensors of those with
// attention, in which every query head is followed by its gate.
func gatedAttention() []Rule {
	attn := attention()
	for i := range attn {
		if attn[i].Role == AttnQ {
			attn[i].Shape = []Dim{dimTwoQWidth, dimEmbed}
		}
	}
	return append(notRecurrent(append(attn, qkNorms(dimHeadDim, dimHeadDim)...)),
		block(AttnNorm, "input_layernorm.weight", AllBlocks, dimEmbed),
		block(PostAttnNorm, "post_attention_layernorm.weight", AllBlocks, dimEmbed))
}

// recurrent limits rules to recurrent blocks, notRecurrent to the others.
func recurrent(lists ...[]Rule) []Rule {
	rules := slices.Concat(lists...)
	for i := range rules {
		rules[i].In = (*Params).IsRecurrent
	}
	return rules
}

func notRecurrent(rules []Rule) []Rule {
	for i := range rules {
		rules[i].In = func(p *Params, l int) bool { return !p.IsRecurrent(l) }
	}
	return rules
}

// decayRates are how fast heads forget, stored as logarithms and without suffix.
func decayRates(hf string, shape ...Dim) Rule {
	r := suffixed(NoSuffix, block(SSMA, hf, AllBlocks, shape...))
	r.Op = OpNegExp
	return r
}

// deltaVectors are the small tensors of a delta net.
func deltaVectors() []Rule {
	conv := block(SSMConv1D, "linear_attn.conv1d.weight", AllBlocks, dimConvWidth, dimConvKernel)
	conv.Source = []Dim{dimConvWidth, dimOne, dimConvKernel}
	return []Rule{
		decayRates("linear_attn.A_log", dimValueHeads),
		conv,
		bias(SSMDt, "linear_attn.dt_bias", AllBlocks, dimValueHeads),
		block(SSMNorm, "linear_attn.norm.weight", AllBlocks, dimValueHead),
	}
}

// withMTP are rules whose tensors have other names in MTP blocks. Norms are
// stored as offsets from one.
func withMTP(rules []Rule) []Rule {
	for i := range rules {
		for _, hf := range rules[i].HF {
			if rest, ok := strings.CutPrefix(hf, "model.layers.{l}."); ok {
				rules[i].HF = append(rules[i].HF, "mtp.layers.{m}."+rest)
			}
		}
	}
	return plusOne(rules)
}

// mtpHead are the tensors that a model of this kind has once, for its MTP block.
func mtpHead() []Rule {
	rule := func(role Role, hf string, shape ...Dim) Rule {
		return Rule{Role: role, HF: []string{"mtp." + hf + ".weight"}, Where: MTPBlocks, Shape: shape}
	}
	return plusOne([]Rule{
		rule(NextnEHProj, "fc", dimEmbed, dimTwoEmbed),
		rule(NextnENorm, "pre_fc_norm_embedding", dimEmbed),
		rule(NextnHNorm, "pre_fc_norm_hidden", dimEmbed),
		rule(NextnSharedNorm, "norm", dimEmbed),
	})
}
