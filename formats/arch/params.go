package arch

import (
	"cmp"
	"fmt"

	"github.com/winnow-moe/winnow/formats/gguf"
)

// Gating says how router logits become expert scores. The numbers are those
// of the key expert_gating_func.
type Gating int

// The gating functions.
const (
	GatingSoftmax Gating = 1 // over all experts
	GatingSigmoid Gating = 2
	// GatingSelected is a softmax over the logits of the chosen experts only.
	GatingSelected Gating = 3
)

// Params are the hyper-parameters of one model, in GGUF's terms. Zero means
// that the family has no such parameter. Lengths count elements. Where blocks
// differ, At gives those of one block.
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
	MoEStep         int // of the others every MoEStep-th has experts; 0 means 1
	Experts         int // routed experts per MoE block
	ExpertsUsed     int // experts per token
	ExpertGroups    int // groups for group-limited routing
	GroupsUsed      int // groups a token may use
	ExpertFF        int // width of a routed expert
	SharedExperts   int // shared experts, stored as one network
	SharedFF        int // its width; 0 means SharedExperts*ExpertFF
	Gating          Gating
	ExpertScale     float32 // factor on routed weights, 0 = none
	ExpertNorm      bool    // weights of the chosen experts are divided by their sum
	NextnLayers     int     // MTP blocks at the end of the file
	NormEps         float32 // epsilon of the norms
	RopeBase        float32 // theta
	RopeScaling     string  // "", "linear", "yarn", "longrope"
	RopeFactor      float32
	RopeAttnFactor  float32 // factor on cos and sin of longrope
	RopeOrigContext int
	RopeSections    []int // pairs per position axis of a multi-axis rotary embedding; texts have one axis
	YarnExtFactor   float32
	YarnAttnFactor  float32
	YarnBetaFast    float32
	YarnBetaSlow    float32
	YarnLogMul      float32 // 0.1 · mscale_all_dim
	YarnExact       bool    // the ramp's ends are not rounded to whole pairs

	SlidingWindow          int     // keys a sliding block's query sees, its own included
	KeyLenSWA, ValueLenSWA int     // per head in sliding blocks; 0: as elsewhere
	RopeDimSWA             int     // rotated elements in sliding blocks; 0: as elsewhere
	RopeBaseSWA            float32 // theta of sliding blocks; 0: as elsewhere
	SharedKV               int     // last blocks, which use the keys and values of an earlier one
	ChunkSize              int     // blocks with rope see only the chunk of this many tokens they are in
	TempLength             int     // blocks without rope: queries grow by TempScale·ln(1+⌊(pos+1)/TempLength⌋)
	TempScale              float32
	NoQKNorm               bool // the family's norms of queries and keys are left out

	PerLayerEmbed  int     // width of the embedding that every block gets of its own
	AttnScale      float32 // factor on query-key products; 0: 1/√(head)
	AttnSoftcap    float32 // cap·tanh(score/cap); 0: none
	FinalSoftcap   float32 // the same of the logits
	LogitScale     float32 // logits are divided (granite) or multiplied (cohere2) by it
	ResidualScale  float32 // factor on the output of every branch; 0: 1
	EmbeddingScale float32 // factor on the embedding; 0: 1
	Parallel       bool    // attention and feed-forward network work on the same input

	ConvKernel   int // taps of the convolution in recurrent blocks
	StateSize    int // elements of a key head there
	StateGroups  int // key heads there
	TimeStepRank int // value heads there
	InnerSize    int // elements of all value heads there
	FullInterval int // every FullInterval-th block is not recurrent

	IndexerHeads, IndexerKeyLen, IndexerTopK int // sparse attention: heads, head size, keys chosen

	Vision Vision // of vision towers

	// Per block; nil where all are alike or the mechanism is absent.
	KVHeadsAt []int
	FFAt      []int
	Sliding   []bool // sees a window of SlidingWindow keys
	NoRope    []bool // has no rotary embedding
	Recurrent []bool // has a recurrent state instead of attention
}

// At returns the hyper-parameters as block l has them; outside the blocks (-1)
// they are the model's.
func (p *Params) At(l int) *Params {
	if l < 0 || len(p.KVHeadsAt)+len(p.FFAt)+len(p.Sliding) == 0 {
		return p
	}
	q := *p
	if l < len(p.KVHeadsAt) {
		q.KVHeads = p.KVHeadsAt[l]
	}
	if l < len(p.FFAt) {
		q.FF = p.FFAt[l]
	}
	if p.IsSliding(l) {
		q.KeyLen, q.ValueLen = cmp.Or(p.KeyLenSWA, p.KeyLen), cmp.Or(p.ValueLenSWA, p.ValueLen)
		q.RopeDim, q.RopeBase = cmp.Or(p.RopeDimSWA, p.RopeDim), cmp.Or(p.RopeBaseSWA, p.RopeBase)
	}
	return &q
}

// QueriesPerKey returns the query heads that share a key head in block l, 0 if it
// has no attention.
func (p *Params) QueriesPerKey(l int) int {
	q := p.At(l)
	if q.KVHeads == 0 {
		return 0
	}
	return q.Heads / q.KVHeads
}

// IsSliding reports whether block l sees a window of SlidingWindow keys.
func (p *Params) IsSliding(l int) bool { return l >= 0 && l < len(p.Sliding) && p.Sliding[l] }

// IsRecurrent reports whether block l has a recurrent state instead of attention.
func (p *Params) IsRecurrent(l int) bool { return l >= 0 && l < len(p.Recurrent) && p.Recurrent[l] }

// HasRope reports whether block l rotates queries and keys.
func (p *Params) HasRope(l int) bool { return l >= len(p.NoRope) || !p.NoRope[l] }

// SharesKV returns the block whose keys and values block l uses: itself, or for
// the last SharedKV blocks the last one before them of the same kind.
func (p *Params) SharesKV(l int) int {
	first := p.Trunk() - p.SharedKV
	if l < first || l >= p.Trunk() {
		return l
	}
	for o := first - 1; o >= 0; o-- {
		if p.IsSliding(o) == p.IsSliding(l) {
			return o
		}
	}
	return l
}

// LendsKV reports whether later blocks use the keys and values of block l.
func (p *Params) LendsKV(l int) bool {
	for o := p.Trunk() - p.SharedKV; o < p.Trunk(); o++ {
		if o > l && p.SharesKV(o) == l {
			return true
		}
	}
	return false
}

// lendersExist reports whether all blocks that share have one to share with.
func (p *Params) lendersExist() bool {
	for l := p.Trunk() - p.SharedKV; l < p.Trunk(); l++ {
		if l < 1 || p.SharesKV(l) == l {
			return false
		}
	}
	return true
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

	KeyNormEps        = "attention.layer_norm_epsilon"
	KeyRopeAttnFactor = "rope.scaling.attn_factor"
	KeyRopeSections   = "rope.dimension_sections"
	KeyRopeDimSWA     = "rope.dimension_count_swa"
	KeyRopeBaseSWA    = "rope.freq_base_swa"
	KeySlidingWindow  = "attention.sliding_window"
	KeySlidingPattern = "attention.sliding_window_pattern"
	KeyKeyLengthSWA   = "attention.key_length_swa"
	KeyValueLengthSWA = "attention.value_length_swa"
	KeySharedKV       = "attention.shared_kv_layers"
	KeyTempLength     = "attention.temperature_length"
	KeyTempScale      = "attention.temperature_scale"
	KeyAttnScale      = "attention.scale"
	KeyAttnSoftcap    = "attn_logit_softcapping"
	KeyFinalSoftcap   = "final_logit_softcapping"
	KeyLogitScale     = "logit_scale"
	KeyResidualScale  = "residual_scale"
	KeyEmbeddingScale = "embedding_scale"
	KeyParallel       = "use_parallel_residual"
	KeyPerLayerEmbed  = "embedding_length_per_layer_input"
	KeyMoEStep        = "interleave_moe_layer_step"
	KeySharedFF       = "expert_shared_feed_forward_length"
	KeyConvKernel     = "ssm.conv_kernel"
	KeyStateSize      = "ssm.state_size"
	KeyStateGroups    = "ssm.group_count"
	KeyTimeStepRank   = "ssm.time_step_rank"
	KeyInnerSize      = "ssm.inner_size"
	KeyRecurrent      = "attention.recurrent_layers"
	KeyFullInterval   = "full_attention_interval"
	KeyKDAHeadDim     = "kda.head_dim"
	KeyIndexerHeads   = "attention.indexer.head_count"
	KeyIndexerKeyLen  = "attention.indexer.key_length"
	KeyIndexerTopK    = "attention.indexer.top_k"

	// Keys that llama.cpp does not know. They are written only where a model
	// differs from what llama.cpp takes for granted.
	KeyChunkSize = "attention.chunk_size" // as ollama calls it
	KeyNoQKNorm  = "attention.no_qk_norm"
	KeyYarnExact = "rope.scaling.yarn_exact"
)

// fields ties every key to its member of Params; the member's Go type decides
// the value type in the file (int → UINT32, float32 → FLOAT32, bool → BOOL).
var fields = map[string]func(*Params) any{
	KeyBlockCount:      func(p *Params) any { return &p.Layers },
	KeyContextLength:   func(p *Params) any { return &p.Context },
	KeyEmbedding:       func(p *Params) any { return &p.Embed },
	KeyFeedForward:     func(p *Params) any { return perBlock{&p.FF, &p.FFAt} },
	KeyHeadCount:       func(p *Params) any { return &p.Heads },
	KeyHeadCountKV:     func(p *Params) any { return perBlock{&p.KVHeads, &p.KVHeadsAt} },
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

	KeyNormEps:        func(p *Params) any { return &p.NormEps },
	KeyRopeAttnFactor: func(p *Params) any { return &p.RopeAttnFactor },
	KeyRopeSections:   func(p *Params) any { return &p.RopeSections },
	KeyRopeDimSWA:     func(p *Params) any { return &p.RopeDimSWA },
	KeyRopeBaseSWA:    func(p *Params) any { return &p.RopeBaseSWA },
	KeySlidingWindow:  func(p *Params) any { return &p.SlidingWindow },
	KeySlidingPattern: func(p *Params) any { return &p.Sliding },
	KeyKeyLengthSWA:   func(p *Params) any { return &p.KeyLenSWA },
	KeyValueLengthSWA: func(p *Params) any { return &p.ValueLenSWA },
	KeySharedKV:       func(p *Params) any { return &p.SharedKV },
	KeyTempLength:     func(p *Params) any { return &p.TempLength },
	KeyTempScale:      func(p *Params) any { return &p.TempScale },
	KeyAttnScale:      func(p *Params) any { return &p.AttnScale },
	KeyAttnSoftcap:    func(p *Params) any { return &p.AttnSoftcap },
	KeyFinalSoftcap:   func(p *Params) any { return &p.FinalSoftcap },
	KeyLogitScale:     func(p *Params) any { return &p.LogitScale },
	KeyResidualScale:  func(p *Params) any { return &p.ResidualScale },
	KeyEmbeddingScale: func(p *Params) any { return &p.EmbeddingScale },
	KeyParallel:       func(p *Params) any { return &p.Parallel },
	KeyPerLayerEmbed:  func(p *Params) any { return &p.PerLayerEmbed },
	KeyMoEStep:        func(p *Params) any { return &p.MoEStep },
	KeySharedFF:       func(p *Params) any { return &p.SharedFF },
	KeyConvKernel:     func(p *Params) any { return &p.ConvKernel },
	KeyStateSize:      func(p *Params) any { return &p.StateSize },
	KeyStateGroups:    func(p *Params) any { return &p.StateGroups },
	KeyTimeStepRank:   func(p *Params) any { return &p.TimeStepRank },
	KeyInnerSize:      func(p *Params) any { return &p.InnerSize },
	KeyRecurrent:      func(p *Params) any { return &p.Recurrent },
	KeyFullInterval:   func(p *Params) any { return &p.FullInterval },
	KeyKDAHeadDim:     func(p *Params) any { return &p.StateSize },
	KeyIndexerHeads:   func(p *Params) any { return &p.IndexerHeads },
	KeyIndexerKeyLen:  func(p *Params) any { return &p.IndexerKeyLen },
	KeyIndexerTopK:    func(p *Params) any { return &p.IndexerTopK },
	KeyChunkSize:      func(p *Params) any { return &p.ChunkSize },
	KeyNoQKNorm:       func(p *Params) any { return &p.NoQKNorm },
	KeyYarnExact:      func(p *Params) any { return &p.YarnExact },
}

// perBlock is a count that files give once, or in a list with one per block.
type perBlock struct {
	all *int
	at  *[]int
}

// set takes a list; all is then that of the first block that has one.
func (c perBlock) set(list []int) {
	*c.at, *c.all = list, 0
	for i := len(list) - 1; i >= 0; i-- {
		if list[i] != 0 {
			*c.all = list[i]
		}
	}
}

// value returns the metadata value that p holds under key.
func (p *Params) value(key string) any {
	switch v := fields[key](p).(type) {
	case *int:
		return uint32(*v)
	case perBlock:
		if len(*v.at) == 0 {
			return uint32(*v.all)
		}
		return int32s(*v.at)
	case *[]int:
		return int32s(*v)
	case *[]bool:
		return *v
	case *[]float32:
		return *v
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

func int32s(list []int) []int32 {
	out := make([]int32, len(list))
	for i, n := range list {
		out[i] = int32(n)
	}
	return out
}

// read takes the value of prefix+key from m. It reports whether the key is
// there; a value of another type is an error.
func (p *Params) read(m *gguf.Metadata, prefix, key string) (bool, error) {
	full := prefix + key
	raw, ok := m.Get(full)
	if !ok {
		return false, nil
	}
	ok = false
	switch v := fields[key](p).(type) {
	case *int:
		var n int64
		if n, ok = m.Int(full); ok {
			*v, ok = int(n), n >= 0 && n <= maxCount
		}
	case perBlock:
		if n, single := m.Int(full); single {
			*v.all, ok = int(n), n >= 0 && n <= maxCount
			break
		}
		var list []int
		if list, ok = counts(m, full); ok {
			v.set(list)
		}
	case *[]int:
		*v, ok = counts(m, full)
	case *[]bool:
		*v, ok = raw.([]bool)
	case *Gating:
		var n int64
		if n, ok = m.Int(full); ok {
			*v = Gating(n)
		}
	case *float32:
		var f float64
		if f, ok = m.Float(full); ok {
			*v = float32(f)
		}
	case *bool:
		*v, ok = m.Bool(full)
	case *string:
		*v, ok = m.String(full)
	}
	if !ok {
		return true, formatError("key %q has the value %.40v (%T), which is not usable there", full, raw, raw)
	}
	return true, nil
}

// counts reads a list of numbers from 0 to maxCount.
func counts(m *gguf.Metadata, key string) ([]int, bool) {
	list, ok := m.Ints(key)
	out := make([]int, len(list))
	for i, n := range list {
		if n < 0 || n > maxCount {
			return nil, false
		}
		out[i] = int(n)
	}
	return out, ok
}

// maxCount bounds every length and count taken from a file; products of three
// of them stay far from overflow checks done later in int64.
const maxCount = 1 << 31

func formatError(format string, args ...any) error {
	return fmt.Errorf("%w: "+format, append([]any{ErrUnsupported}, args...)...)
}

// HeadDim returns the elements per query head.
func (p *Params) HeadDim() int {
	switch {
	case p.KeyLenMLA > 0:
		return p.KeyLenMLA
	case p.KeyLen > 0:
		return p.KeyLen
	case p.Heads > 0:
		return p.Embed / p.Heads
	}
	return 0
}

// GroupScore says how groups of experts compare in group-limited routing. GGUF
// has no key for it: in HF's code it goes with the gating function.
func (p *Params) GroupScore() GroupScore {
	if p.Gating == GatingSigmoid {
		return GroupTop2
	}
	return GroupMax
}

// MoE reports whether block l has routed experts.
func (p *Params) MoE(l int) bool {
	return p.Experts > 0 && l >= p.LeadingDense && (p.MoEStep < 2 || (l+1)%p.MoEStep == 0)
}

// SharedWidth returns the width of the shared experts' network.
func (p *Params) SharedWidth() int { return cmp.Or(p.SharedFF, p.SharedExperts*p.ExpertFF) }

// Trunk returns the number of blocks without the MTP blocks.
func (p *Params) Trunk() int { return p.Layers - p.NextnLayers }
