package arch

import (
	"fmt"

	"github.com/winnow-moe/winnow/formats/gguf"
)

// Gating says how router logits become expert scores. The numbers are those
// of the key expert_gating_func.
type Gating int

// The gating functions.
const (
	GatingSoftmax Gating = 1
	GatingSigmoid Gating = 2
)

// Params are the hyper-parameters of one model, in GGUF's terms. Zero means
// that the family has no such parameter. Lengths count elements.
type Params struct {
	Layers  int // transformer blocks in the file, MTP blocks included
	Context int // trained context length in tokens
	Embed   int // width of the residual stream
	FF      int // width of a dense feed-forward network
	Vocab   int // rows of the embedding
	Heads   int // query heads
	KVHeads int // key/value heads as cached (1 for MLA)

	KeyLen, ValueLen       int // per cached head
	KeyLenMLA, ValueLenMLA int // per head after decompression (MLA)
	QLora, KVLora          int // ranks of the MLA compressions; QLora 0: none
	RopeDim                int // rotated elements per head

	LeadingDense    int // first blocks that have a dense network instead of experts
	Experts         int // routed experts per MoE block
	ExpertsUsed     int // experts per token
	ExpertGroups    int // groups for group-limited routing
	GroupsUsed      int // groups a token may use
	ExpertFF        int // width of a routed expert
	SharedExperts   int // shared experts, stored as one network SharedExperts*ExpertFF wide
	Gating          Gating
	ExpertScale     float32 // factor on routed weights, 0 = none
	ExpertNorm      bool    // weights of the chosen experts are divided by their sum
	NextnLayers     int     // MTP blocks at the end of the file
	NormEps         float32 // epsilon of RMS norms
	RopeBase        float32 // theta
	RopeScaling     string  // "", "linear", "yarn"
	RopeFactor      float32
	RopeOrigContext int
	YarnExtFactor   float32
	YarnAttnFactor  float32
	YarnBetaFast    float32
	YarnBetaSlow    float32
	YarnLogMul      float32 // 0.1 · mscale_all_dim
}

// Hyper-parameter keys, without the "<architecture>." prefix.
const (
	KeyBlockCount      = "block_count"
	KeyContextLength   = "context_length"
	KeyEmbedding       = "embedding_length"
	KeyFeedForward     = "feed_forward_length"
	KeyHeadCount       = "attention.head_count"
	KeyHeadCountKV     = "attention.head_count_kv"
	KeyKeyLength       = "attention.key_length"
	KeyValueLength     = "attention.value_length"
	KeyKeyLengthMLA    = "attention.key_length_mla"
	KeyValueLengthMLA  = "attention.value_length_mla"
	KeyQLora           = "attention.q_lora_rank"
	KeyKVLora          = "attention.kv_lora_rank"
	KeyNormRMSEps      = "attention.layer_norm_rms_epsilon"
	KeyRopeDim         = "rope.dimension_count"
	KeyRopeBase        = "rope.freq_base"
	KeyRopeScaling     = "rope.scaling.type"
	KeyRopeFactor      = "rope.scaling.factor"
	KeyRopeOrigContext = "rope.scaling.original_context_length"
	KeyYarnExtFactor   = "rope.scaling.yarn_ext_factor"
	KeyYarnAttnFactor  = "rope.scaling.yarn_attn_factor"
	KeyYarnBetaFast    = "rope.scaling.yarn_beta_fast"
	KeyYarnBetaSlow    = "rope.scaling.yarn_beta_slow"
	KeyYarnLogMul      = "rope.scaling.yarn_log_multiplier"
	KeyLeadingDense    = "leading_dense_block_count"
	KeyExpertCount     = "expert_count"
	KeyExpertUsed      = "expert_used_count"
	KeyExpertGroups    = "expert_group_count"
	KeyGroupsUsed      = "expert_group_used_count"
	KeyExpertFF        = "expert_feed_forward_length"
	KeyExpertShared    = "expert_shared_count"
	KeyExpertGating    = "expert_gating_func"
	KeyExpertScale     = "expert_weights_scale"
	KeyExpertNorm      = "expert_weights_norm"
	KeyNextnLayers     = "nextn_predict_layers"
	KeyVocabSize       = "vocab_size"
)

// fields ties every key to its member of Params; the member's Go type decides
// the value type in the file (int → UINT32, float32 → FLOAT32, bool → BOOL).
var fields = map[string]func(*Params) any{
	KeyBlockCount:      func(p *Params) any { return &p.Layers },
	KeyContextLength:   func(p *Params) any { return &p.Context },
	KeyEmbedding:       func(p *Params) any { return &p.Embed },
	KeyFeedForward:     func(p *Params) any { return &p.FF },
	KeyHeadCount:       func(p *Params) any { return &p.Heads },
	KeyHeadCountKV:     func(p *Params) any { return &p.KVHeads },
	KeyKeyLength:       func(p *Params) any { return &p.KeyLen },
	KeyValueLength:     func(p *Params) any { return &p.ValueLen },
	KeyKeyLengthMLA:    func(p *Params) any { return &p.KeyLenMLA },
	KeyValueLengthMLA:  func(p *Params) any { return &p.ValueLenMLA },
	KeyQLora:           func(p *Params) any { return &p.QLora },
	KeyKVLora:          func(p *Params) any { return &p.KVLora },
	KeyNormRMSEps:      func(p *Params) any { return &p.NormEps },
	KeyRopeDim:         func(p *Params) any { return &p.RopeDim },
	KeyRopeBase:        func(p *Params) any { return &p.RopeBase },
	KeyRopeScaling:     func(p *Params) any { return &p.RopeScaling },
	KeyRopeFactor:      func(p *Params) any { return &p.RopeFactor },
	KeyRopeOrigContext: func(p *Params) any { return &p.RopeOrigContext },
	KeyYarnExtFactor:   func(p *Params) any { return &p.YarnExtFactor },
	KeyYarnAttnFactor:  func(p *Params) any { return &p.YarnAttnFactor },
	KeyYarnBetaFast:    func(p *Params) any { return &p.YarnBetaFast },
	KeyYarnBetaSlow:    func(p *Params) any { return &p.YarnBetaSlow },
	KeyYarnLogMul:      func(p *Params) any { return &p.YarnLogMul },
	KeyLeadingDense:    func(p *Params) any { return &p.LeadingDense },
	KeyExpertCount:     func(p *Params) any { return &p.Experts },
	KeyExpertUsed:      func(p *Params) any { return &p.ExpertsUsed },
	KeyExpertGroups:    func(p *Params) any { return &p.ExpertGroups },
	KeyGroupsUsed:      func(p *Params) any { return &p.GroupsUsed },
	KeyExpertFF:        func(p *Params) any { return &p.ExpertFF },
	KeyExpertShared:    func(p *Params) any { return &p.SharedExperts },
	KeyExpertGating:    func(p *Params) any { return &p.Gating },
	KeyExpertScale:     func(p *Params) any { return &p.ExpertScale },
	KeyExpertNorm:      func(p *Params) any { return &p.ExpertNorm },
	KeyNextnLayers:     func(p *Params) any { return &p.NextnLayers },
	KeyVocabSize:       func(p *Params) any { return &p.Vocab },
}

// value returns the metadata value that p holds under key.
func (p *Params) value(key string) any {
	switch v := fields[key](p).(type) {
	case *int:
		return uint32(*v)
	case *Gating:
		return uint32(*v)
	case *float32:
		return *v
	case *bool:
		return *v
	case *string:
		return *v
	}
	panic("arch: field " + key + " has no metadata type")
}

// read takes the value of prefix+key from m. It reports whether the key is
// there; a value of another type is an error.
func (p *Params) read(m *gguf.Metadata, prefix, key string) (bool, error) {
	raw, ok := m.Get(prefix + key)
	if !ok {
		return false, nil
	}
	ok = false
	switch v := fields[key](p).(type) {
	case *int:
		var n int64
		if n, ok = m.Int(prefix + key); ok {
			*v, ok = int(n), n >= 0 && n <= maxCount
		}
	case *Gating:
		var n int64
		if n, ok = m.Int(prefix + key); ok {
			*v = Gating(n)
		}
	case *float32:
		var f float64
		if f, ok = m.Float(prefix + key); ok {
			*v = float32(f)
		}
	case *bool:
		*v, ok = m.Bool(prefix + key)
	case *string:
		*v, ok = m.String(prefix + key)
	}
	if !ok {
		return true, formatError("key %q has the value %.40v (%T), which is not usable there", prefix+key, raw, raw)
	}
	return true, nil
}

// maxCount bounds every length and count taken from a file; products of three
// of them stay far from overflow checks done later in int64.
const maxCount = 1 << 31

func formatError(format string, args ...any) error {
	return fmt.Errorf("%w: "+format, append([]any{ErrUnsupported}, args...)...)
}
