// Package arch holds the one description of every model family that winnow
// knows: how config.json becomes hyper-parameters and metadata, which tensors
// a model has, what they are called in the checkpoint and in GGUF, how they
// are cut, and which mechanisms the forward pass is made of.
//
// convert walks the description to plan, quant keys recipes on its roles,
// engine binds tensors by role and switches on the mechanisms, verify checks
// files against it. A family is one file of values; see deepseek2.go.
package arch

import (
	"cmp"
	"fmt"
	"slices"
	"strings"

	"github.com/winnow-moe/winnow/formats/gguf"
)

// All lists the families. The order is that of listings.
var All = []*Family{
	&deepseek2, &llama, &qwen2, &qwen2moe, &qwen3, &qwen3moe, &gemma2, &gemma3, &gemma4, &olmo2, &starcoder2,
	&glm4moe, &granite, &granitemoe, &minimaxm2, &hunyuanmoe, &gptoss, &llama4,
	&qwen3next, &qwen35moe, &deepseek32, &kimilinear,
	&phi3, &phimoe, &smollm3, &glm4, &stablelm, &cohere2, &olmoe, &ernie45, &ernie45moe, &dots1, &exaone4,
}

// Family describes one model family.
type Family struct {
	// Arch is the value of general.architecture.
	Arch string
	// Classes are the class names of config.json's architectures list.
	Classes []string
	// Settings make hyper-parameters from config.json, in the order in which
	// llama.cpp's converter writes the keys.
	Settings []Setting
	// Asserts are config values that the description depends on.
	Asserts []Assert
	// Defaults are hyper-parameters of GGUF files that lack the key.
	Defaults Params
	// Complete sets the parameters that files leave to the reader: which
	// blocks are sliding, have rope and so on.
	Complete []func(*Params)
	// Block names the mechanisms of the forward pass.
	Block Block
	// Rules are the tensors. Among tensors completed by the same checkpoint
	// tensor the order of the rules is the order in the file.
	Rules []Rule
	// Drop lists checkpoint tensors that the GGUF form has no place for.
	Drop []Drop
	// Tower is the vision tower of the family's checkpoints, which becomes a
	// file of its own.
	Tower *Family
	// Within, of a tower, lists the beginnings of the names of its tensors.
	Within []string
	// Tied is what the absence of tie_word_embeddings means.
	Tied bool
	// AnyLayerTypes: layer_types says nothing that a reader has to know.
	AnyLayerTypes bool
	// DropMTP: llama.cpp's converter leaves the MTP blocks out by default.
	DropMTP bool
	// NoSpacePrefix: the tokenizer puts no space before a text, which the file says.
	NoSpacePrefix bool
	// Tokenizer is the family's tokenizer model (tokenizer.ggml.model) where the
	// files of a checkpoint allow several.
	Tokenizer string
	// TrimVocab: the vocabulary is what the tokenizer has, and rows of the
	// embedding behind it are left out. Elsewhere the tokens are filled up.
	TrimVocab bool
	// Special gives roles to tokens by their text where a checkpoint does not.
	Special []SpecialToken
	// Pre lists the pre-tokenizer names the family uses where the structure
	// of tokenizer.json allows several.
	Pre []string
}

// SpecialToken names the token that plays a role: "bos", "eos", "eot", "unk", "eom".
type SpecialToken struct{ Kind, Text string }

// Assert refuses a config whose setting is present and has another value.
type Assert struct {
	Path string
	In   []any // accepted values: string, bool, float64
	Why  string
}

// Drop names checkpoint tensors that are left out, with the reason shown in
// plans. A pattern may contain {l} and end in "*".
type Drop struct {
	Pattern, Why string
}

// Attention is the kind of attention of a block.
type Attention int

// The kinds of attention.
const (
	// GQA is grouped-query attention with separate q, k, v projections.
	GQA Attention = iota + 1
	// MLA is DeepSeek's multi-head latent attention, stored absorbed: k_b
	// and v_b decompress the cached latent.
	MLA
)

// Rope is the pairing of rotated elements.
type Rope int

// The pairings.
const (
	// RopeAdjacent rotates elements 2i and 2i+1 (llama.cpp NORM).
	RopeAdjacent Rope = iota + 1
	// RopeHalves rotates elements i and i+d/2 (llama.cpp NEOX, HF rotate_half).
	RopeHalves
)

// GroupScore says how group-limited routing scores a group of experts.
type GroupScore int

// The group scores.
const (
	// GroupTop2 sums the two best experts of the group (DeepSeek V3).
	GroupTop2 GroupScore = iota + 1
	// GroupMax takes the best expert of the group (DeepSeek V2).
	GroupMax
)

// Norm is the kind of a family's norms.
type Norm int

// The norms.
const (
	RMSNorm   Norm = iota // x/√(mean x² + ε) · weight
	LayerNorm             // (x − mean)/√(variance + ε) · weight + bias
)

// QKNorm says how queries and keys are normed.
type QKNorm int

// The norms of queries and keys. All but QKNormUnit have weights.
const (
	QKNormNone      QKNorm = iota
	QKNormHeads            // every head, before rope
	QKNormAfterRope        // every head, after rope
	QKNormWhole            // all heads as one vector, before rope
	QKNormUnit             // every head, after rope, without weight, in blocks with rope (Params.NoQKNorm: nowhere)
)

// Residual says how the branches of a block join the residual stream.
type Residual int

// The ways.
const (
	// PreNorm: x += attn(norm(x)); x += ffn(norm(x)).
	PreNorm Residual = iota
	// Sandwich: the outputs are normed as well (Gemma, GLM-4).
	Sandwich
	// PostNorm: only the outputs are normed (OLMo 2).
	PostNorm
	// ParallelNorm: x += attn(norm(x)) + ffn(norm(x)) with one norm (Cohere).
	// Families of another kind may do so too where Params.Parallel is set,
	// their networks having a norm of their own or sharing that of attention.
	ParallelNorm
)

// Act is the activation of the feed-forward networks.
type Act int

// The activations.
const (
	SwiGLU        Act = iota // silu(gate) · up
	GEGLU                    // gelu(gate) · up, gelu by tanh
	GELU                     // gelu(up), gelu by tanh; there is no gate
	SwiGLUClamped            // (up + 1) · gate · sigmoid(1.702·gate), both clamped at 7 (gpt-oss)
)

// ExpertSum says how the weights of the chosen experts are divided by their
// sum where they are.
type ExpertSum int

// The sums.
const (
	SumPlusTiny ExpertSum = iota // sum + 1e-20 (DeepSeek V3)
	SumAtLeast                   // max(sum, 1e-12) (ERNIE)
)

// Delta is the form of the recurrent blocks (gated delta net, Yang et al. 2024).
type Delta int

// The forms.
const (
	NoDelta Delta = iota
	// DeltaGrouped stores beta and alpha in one tensor by key head, and value
	// heads of a key head follow each other (Qwen3-Next).
	DeltaGrouped
	// DeltaTiled stores them apart, and value head v belongs to key head
	// v mod StateGroups (Qwen3.5 as llama.cpp stores it).
	DeltaTiled
	// DeltaChannels is Kimi Delta Attention: every element of a key forgets at
	// its own rate, queries, keys and values are projected apart, and the output
	// is gated by a sigmoid.
	DeltaChannels
)

// Block names the mechanisms a family's blocks are made of. The engine
// switches on these and refuses what it does not know. Biases, sinks and
// shared experts are there when their tensors are.
type Block struct {
	Attn     Attention
	Rope     Rope
	Norm     Norm
	QKNorm   QKNorm
	Residual Residual
	Act      Act
	Delta    Delta
	// LatentNormEps, when not 0, replaces NormEps for the norms of the MLA
	// compressions: HF's modules use 1e-6 whatever rms_norm_eps says.
	LatentNormEps float32
	// FFNNorm is the role of the norm before the feed-forward network where it
	// is not ffn_norm.
	FFNNorm Role
	// ScaleEmbedding multiplies the embedding by √Embed.
	ScaleEmbedding bool
	// PlainScores: query-key products have no factor.
	PlainScores bool
	// ValueNorm norms every value head without weight; where there is no
	// value projection the values are the keys before their norm.
	ValueNorm bool
	// QueryGate: every query head is followed by a gate, whose sigmoid
	// multiplies the head's output.
	QueryGate bool
	// WeightInput applies the experts' weights to their input.
	WeightInput bool
	// RouteResidual: the router reads the residual stream, normed without
	// weight and scaled by ffn_gate_inp.scale/√Embed, and the experts' weights
	// are multiplied by ffn_down_exps.scale.
	RouteResidual bool
	// BesideDense: blocks with experts have the dense network too, with norms
	// of their own for both.
	BesideDense bool
	ExpertSum   ExpertSum
	// LogitMultiplier: LogitScale multiplies the logits instead of dividing.
	LogitMultiplier bool
	// SparseMixer chooses two experts by masked softmaxes (Phi-3.5-MoE).
	SparseMixer bool
}

// Dim is a symbolic length: its value for a model and the config settings
// that determine it, for error messages.
type Dim struct {
	Name string
	Of   func(*Params) int
}

// Where says which blocks have a tensor.
type Where int

// The block ranges.
const (
	Global      Where = iota // outside the blocks
	AllBlocks                // every block, MTP blocks included
	DenseBlocks              // the leading dense blocks
	MoEBlocks                // blocks with routed experts, MTP blocks included
	MTPBlocks                // only MTP blocks
)

// Rule maps one logical weight between its checkpoint names, its GGUF name and
// its shape. {l} in a name runs over the blocks in Where, {e} over experts: a
// rule with {e} stacks its sources along a new slowest axis.
type Rule struct {
	Role   Role
	Suffix string // "" means "weight", NoSuffix none
	// HF lists accepted checkpoint names; the first present wins.
	HF    []string
	Where Where
	// Shape is the tensor as GGUF users see it, slowest axis first.
	Shape []Dim
	// Source is the shape of each checkpoint tensor where it is not simply
	// Shape (or Shape without the expert axis).
	Source []Dim
	// Cut, when set, takes a slice of every head of the source; the slices of
	// several cuts follow each other.
	Cut []HeadCut
	// Blocks, when set, replaces Source and Cut for checkpoints that hold the
	// tensor in blocks of MXFP4, which lie along what a GGUF file has as rows.
	Blocks *Blocks
	// Order, when set, rearranges the elements of every row.
	Order *HeadOrder
	// Op is applied to every element.
	Op Op
	// Trim: the source may have more rows than the tensor; the rest is left out.
	Trim bool
	// Generate, when set, computes a vector that no checkpoint has; nil without
	// error means that the model has none.
	Generate func(*Model) ([]float32, error)
	// Optional tensors may be missing.
	Optional bool
	// If limits the rule to models for which it holds.
	If func(*Params) bool
	// In limits the rule to blocks for which it holds.
	In func(p *Params, l int) bool
}

// Blocks is the form of a tensor in blocks of MXFP4.
type Blocks struct {
	Source []Dim
	Cut    []HeadCut
}

// InBlocks is the rule for a checkpoint that holds the tensor in MXFP4.
func (r *Rule) InBlocks() *Rule {
	if r.Blocks == nil {
		return r
	}
	b := *r
	b.Source, b.Cut = r.Blocks.Source, r.Blocks.Cut
	return &b
}

// NoSuffix is the suffix of a rule whose tensor's name has none.
const NoSuffix = "-"

// Op is an operation on every element of a tensor.
type Op int

// The operations.
const (
	OpNone   Op = iota
	OpAddOne    // x + 1: norms whose weight is stored as an offset
	OpNegExp    // −exp(x): decay rates stored as logarithms
	OpExp       // exp(x)
)

// HeadCut views the source's rows from Base on as heads of Stride rows and
// takes rows Offset, Offset+Step, …, Count of them, of each, in the given
// arrangement.
type HeadCut struct {
	Heads, Stride, Offset, Count Dim
	Base                         Dim // nil function: 0
	Step                         int // 0 means 1
	Mode                         CutMode
	// Groups, when set, takes the heads of one group after the other to one
	// head of each group, then the next of each: head j is head
	// (j%Groups)·(Heads/Groups) + j/Groups of the source.
	Groups Dim
	// Columns, when set, takes only some columns.
	Columns *Columns
}

// Columns takes columns From, From+Step, …, Count of them.
type Columns struct {
	From, Count Dim
	Step        int // 0 means 1
}

// HeadOrder rearranges the elements of a row, which form heads of Size.
type HeadOrder struct {
	Heads, Size Dim
	Interleave  bool // as CutInterleaved, within each head
	Groups      Dim  // as HeadCut.Groups, among the heads
}

// CutMode is the arrangement of the rows cut from a head.
type CutMode int

// The arrangements.
const (
	// CutRows keeps the rows as they are.
	CutRows CutMode = iota
	// CutTransposed swaps rows and columns of each head's slice.
	CutTransposed
	// CutInterleaved reorders rows i and i+n/2 to 2i and 2i+1, which turns a
	// half-split rotary layout into an adjacent one.
	CutInterleaved
	// CutPlanes takes rows that hold a square of pixels, each with Columns.Step
	// colours, apart into a row per colour and line of Columns.Count pixels.
	CutPlanes
)

// At returns the row of the source with which head j's slice starts.
func (c *HeadCut) At(p *Params, j int) int {
	return c.Base.value(p) + regrouped(j, c.Heads.Of(p), c.Groups.value(p))*c.Stride.Of(p) + c.Offset.Of(p)
}

// regrouped returns the source's number of head j.
func regrouped(j, heads, groups int) int {
	if groups < 2 {
		return j
	}
	return j%groups*(heads/groups) + j/groups
}

// Permutation returns for every element of a row its place in the source's row.
func (o *HeadOrder) Permutation(p *Params) []int32 {
	heads, size := o.Heads.Of(p), o.Size.Of(p)
	out := make([]int32, 0, heads*size)
	for j := range heads {
		first := regrouped(j, heads, o.Groups.value(p)) * size
		for i := range size {
			if o.Interleave {
				i = i%2*(size/2) + i/2
			}
			out = append(out, int32(first+i))
		}
	}
	return out
}

// value is Of, or 0 where there is none.
func (d Dim) value(p *Params) int {
	if d.Of == nil {
		return 0
	}
	return d.Of(p)
}

// Stacked reports whether the rule stacks one source per expert.
func (r *Rule) Stacked() bool { return len(r.HF) > 0 && strings.Contains(r.HF[0], "{e}") }

// Name returns the rule's GGUF name in block l (-1 outside the blocks).
func (r *Rule) Name(l int) Name {
	s := cmp.Or(r.Suffix, "weight")
	if s == NoSuffix {
		s = ""
	}
	return Name{Layer: l, Role: r.Role, Suffix: s}
}

// Model is a family with the hyper-parameters of one model.
type Model struct {
	Family *Family
	Params Params
	// AnnouncedMTP is the number of MTP blocks that config.json says follow
	// the others, whether or not they are kept (see Params.NextnLayers).
	AnnouncedMTP int
	// Tied: the output matrix is the embedding; there is no lm_head.
	Tied   bool
	config *Config // that it was made from, nil for GGUF files
	// keys are the metadata keys the model carries, in writing order.
	keys []string
}

// FromConfig recognises the family of a checkpoint and reads its settings.
// withMTP keeps MTP blocks that the checkpoint announces.
func FromConfig(cfg *Config, withMTP bool) (*Model, error) {
	class, err := cfg.Architecture()
	if err != nil {
		return nil, err
	}
	f := byClass(class)
	if f == nil {
		return nil, fmt.Errorf("%w: architectures names %q, which is not supported%s", ErrUnknownFamily, class, nearestText(class, cfg.Text("model_type")))
	}
	cfg.values["class"] = class // for conditions on the class
	m := &Model{Family: f, Params: f.Defaults, config: cfg}
	for i := range f.Asserts {
		if err := f.Asserts[i].check(cfg); err != nil {
			return nil, err
		}
	}
	for _, s := range f.settings() {
		var err error
		if s.Key == KeyNextnLayers {
			err = m.applyMTP(cfg, &s, withMTP)
		} else {
			err = m.apply(cfg, &s)
		}
		if err != nil {
			return nil, err
		}
	}
	if m.Params.Vocab == 0 { // not a key of all families
		vocab := Setting{Key: KeyVocabSize, From: []string{"vocab_size"}}
		v, _, err := vocab.resolve(cfg, &m.Params)
		if err != nil {
			return nil, err
		}
		if err := vocab.store(&m.Params, v); err != nil {
			return nil, err
		}
	}
	m.Tied = m.Family.Tied
	if tied, ok := cfg.Bool("tie_word_embeddings"); ok {
		m.Tied = tied
	}
	m.complete()
	if err := m.checkLayerTypes(cfg); err != nil {
		return nil, err
	}
	return m, m.check(configError)
}

// complete sets what files leave to the reader.
func (m *Model) complete() {
	if m.Params.Layers > MaxLayers {
		return // check refuses it
	}
	for _, f := range m.Family.Complete {
		f(&m.Params)
	}
}

// layerTypes says what the words of layer_types mean for the block.
var layerTypes = map[string]func(p *Params, l int) bool{
	"sliding_attention": (*Params).IsSliding,
	"chunked_attention": func(p *Params, l int) bool { return p.ChunkSize > 0 && p.HasRope(l) },
	"linear_attention":  (*Params).IsRecurrent,
	"full_attention": func(p *Params, l int) bool {
		return !p.IsSliding(l) && !p.IsRecurrent(l) && (p.ChunkSize == 0 || !p.HasRope(l))
	},
}

// checkLayerTypes compares layer_types, where config.json has it, with what
// readers of a GGUF file will take for granted.
func (m *Model) checkLayerTypes(cfg *Config) error {
	list, _ := cfg.list("layer_types")
	if m.Family.AnyLayerTypes || len(list) == 0 {
		return nil
	}
	if len(list) != m.Params.Trunk() {
		return configError("layer_types has %d entries, num_hidden_layers is %d", len(list), m.Params.Trunk())
	}
	for l, v := range list {
		name, _ := v.(string)
		if is, known := layerTypes[name]; !known || !is(&m.Params, l) {
			return configError("layer_types makes block %d %s; readers of %s files do not expect that", l, show(v), m.Family.Arch)
		}
	}
	return nil
}

func byClass(class string) *Family {
	for _, f := range All {
		for _, c := range f.Classes {
			if c == class {
				return f
			}
		}
	}
	return nil
}

// ByArch finds a family by the value of general.architecture.
func ByArch(name string) (*Family, bool) {
	for _, f := range All {
		if f.Arch == name {
			return f, true
		}
	}
	return nil, false
}

func (a *Assert) check(cfg *Config) error {
	v, ok := cfg.lookup(a.Path)
	if !ok {
		return nil
	}
	if f, isNum, _ := cfg.number(a.Path); isNum {
		v = f
	}
	if list, isList := v.([]any); isList && len(list) == 0 {
		v = noEntries
	}
	for _, want := range a.In {
		if v == want {
			return nil
		}
	}
	return configError("%s is %s; this family's description covers only %s (%s)", userName(a.Path), show(v), show(a.In), a.Why)
}

// apply resolves one setting and records its key in writing order.
func (m *Model) apply(cfg *Config, s *Setting) error {
	if s.Key == keyFileType {
		m.keys = append(m.keys, keyFileType)
		return nil
	}
	v, ok, err := s.resolve(cfg, &m.Params)
	if err != nil || !ok {
		return err
	}
	if err := s.store(&m.Params, v); err != nil {
		return err
	}
	if err := m.boundLayers(configError); err != nil {
		return err
	}
	if !s.Silent && !s.omits(v) && !slices.Contains(m.keys, s.Key) {
		m.keys = append(m.keys, s.Key)
	}
	return nil
}

// mtpSetting is where most checkpoints announce multi-token prediction blocks,
// and the place of the key at the end. A family of another kind has a setting
// with the key.
var mtpSetting = Setting{Key: KeyNextnLayers, From: []string{"num_nextn_predict_layers"}, Optional: true, OmitZero: true}

// settings are the family's, that of the MTP blocks among them.
func (f *Family) settings() []Setting {
	if f.has(KeyNextnLayers) {
		return f.Settings
	}
	return append(slices.Clip(f.Settings), mtpSetting)
}

// applyMTP resolves the number of MTP blocks and keeps them if asked to.
func (m *Model) applyMTP(cfg *Config, s *Setting, keep bool) error {
	v, ok, err := s.resolve(cfg, &m.Params)
	if err != nil || !ok {
		return err
	}
	n, ok := asInt(v)
	if !ok || n < 0 || n > MaxLayers {
		return configError("%s is %v, wanted a whole number up to %d", s.From[0], v, MaxLayers)
	}
	if m.AnnouncedMTP = n; !keep {
		return nil
	}
	m.Params.NextnLayers = n
	m.Params.Layers += n
	if !s.omits(n) {
		m.keys = append(m.keys, KeyNextnLayers)
	}
	return nil
}

// WriteEarlyMetadata appends the hyper-parameters that come right behind
// general.architecture.
func (m *Model) WriteEarlyMetadata(md *gguf.Metadata) {
	for _, k := range m.keys {
		if m.Family.early(k) {
			md.Set(m.Family.Arch+"."+k, m.Params.value(k))
		}
	}
}

// WriteMetadata appends the model's other hyper-parameters to md in the order of
// llama.cpp's converter, with fileType as general.file_type.
func (m *Model) WriteMetadata(md *gguf.Metadata, fileType uint32) {
	for _, k := range m.keys {
		switch {
		case k == keyFileType:
			md.Set(gguf.KeyFileType, fileType)
		case !m.Family.early(k):
			md.Set(m.Family.Arch+"."+k, m.Params.value(k))
		}
	}
}

// early reports whether a setting of the family has the key and is Early.
func (f *Family) early(key string) bool {
	return slices.ContainsFunc(f.Settings, func(s Setting) bool { return s.Key == key && s.Early })
}

// FromMetadata reads the model that GGUF metadata describes.
func FromMetadata(md *gguf.Metadata) (*Model, error) {
	name, ok := md.String(gguf.KeyArchitecture)
	if !ok {
		return nil, formatError("key %q is missing or not a string", gguf.KeyArchitecture)
	}
	f, ok := ByArch(name)
	if !ok {
		return nil, formatError("unknown architecture %q (known: %s)", name, knownArchs())
	}
	m := &Model{Family: f, Params: f.Defaults}
	for _, s := range f.settings() {
		if err := m.readKey(md, &s); err != nil {
			return nil, err
		}
	}
	if err := m.refuseMechanisms(md); err != nil {
		return nil, err
	}
	if m.Params.Vocab == 0 {
		// Only some families write vocab_size; the token list always tells.
		if tokens, ok := md.Strings("tokenizer.ggml.tokens"); ok {
			m.Params.Vocab = len(tokens)
		}
	}
	m.complete()
	return m, m.check(formatError)
}

// mechanisms are keys that change what a forward pass computes (llama.cpp
// src/llama-arch.cpp LLM_KV_NAMES). A family that has the mechanism owns the
// key in its settings; for any other, a value would be silently ignored.
var mechanisms = []string{
	"attention.sliding_window", "attention.scale", "attention.temperature_scale", "attention.clamp_kqv",
	"attn_logit_softcapping", "final_logit_softcapping", "logit_scale", "residual_scale", "embedding_scale",
	"rope.scaling.attn_factor", "expert_group_scale", "router_logit_softcapping",
}

// refuseMechanisms refuses a model with a mechanism that its family's
// description does not cover. Zero means that the mechanism is off.
func (m *Model) refuseMechanisms(md *gguf.Metadata) error {
	for _, key := range mechanisms {
		if m.Family.has(key) {
			continue
		}
		full := m.Family.Arch + "." + key
		f, isFloat := md.Float(full)
		n, isInt := md.Int(full)
		if isFloat && f != 0 || isInt && n != 0 {
			return formatError("key %q turns on a mechanism that the description of %s does not cover", full, m.Family.Arch)
		}
	}
	return nil
}

// has reports whether a setting of the family has the key.
func (f *Family) has(key string) bool {
	return slices.ContainsFunc(f.Settings, func(s Setting) bool { return s.Key == key })
}

func (m *Model) readKey(md *gguf.Metadata, s *Setting) error {
	if s.Key == keyFileType {
		m.keys = append(m.keys, keyFileType)
		return nil
	}
	has, err := m.Params.read(md, m.Family.Arch+".", s.Key)
	if err != nil {
		return err
	}
	if err := m.boundLayers(formatError); err != nil {
		return err
	}
	if has {
		if !slices.Contains(m.keys, s.Key) {
			m.keys = append(m.keys, s.Key)
		}
		return nil
	}
	if s.Derive != nil && s.When == nil {
		return s.store(&m.Params, s.Derive(&m.Params))
	}
	// vocab_size may be absent: FromMetadata counts the tokens.
	if s.Key != KeyVocabSize && !s.Optional && !s.Silent && !s.OmitZero && s.Omit == nil && s.When == nil && s.Value == nil && s.Compute == nil {
		return formatError("key %q is missing", m.Family.Arch+"."+s.Key)
	}
	return nil
}

func knownArchs() string {
	var names []string
	for _, f := range All {
		names = append(names, f.Arch)
	}
	return strings.Join(names, ", ")
}

// MaxLayers and the limits below bound what a file may claim (facts of
// released models times ten; llama.cpp stops at 512 layers).
const (
	MaxLayers  = 512
	maxVocab   = 16 << 20
	maxExperts = 1 << 14
	maxWidth   = 1 << 24
)

// boundLayers bounds the number of blocks before lists of that length are made.
func (m *Model) boundLayers(errf func(string, ...any) error) error {
	if n := m.Params.Layers; n > MaxLayers {
		return errf("num_hidden_layers (block_count) is %d, wanted 1 to %d", n, MaxLayers)
	}
	return nil
}

// check refuses contradictory hyper-parameters. errf makes the error: the
// same facts come from config.json or from metadata keys.
func (m *Model) check(errf func(string, ...any) error) error {
	p := &m.Params
	positive := []struct {
		name string
		v    int
		max  int
	}{
		{"num_hidden_layers (block_count)", p.Layers, MaxLayers},
		{"hidden_size (embedding_length)", p.Embed, maxWidth},
		{"num_attention_heads (attention.head_count)", p.Heads, maxWidth},
		{"num_key_value_heads (attention.head_count_kv)", p.KVHeads, maxWidth},
		{"vocab_size", p.Vocab, maxVocab},
	}
	for _, c := range positive {
		if c.v < 1 || c.v > c.max {
			return errf("%s is %d, wanted 1 to %d", c.name, c.v, c.max)
		}
	}
	if err := m.checkBlocks(errf); err != nil {
		return err
	}
	if !(p.NormEps > 0) {
		return errf("rms_norm_eps (attention.layer_norm_rms_epsilon) is %g, wanted a positive number", p.NormEps)
	}
	if p.NextnLayers >= p.Layers {
		return errf("num_nextn_predict_layers (%s) is %d, more than the model's %d blocks", KeyNextnLayers, p.NextnLayers, p.Layers)
	}
	if err := m.checkRope(errf); err != nil {
		return err
	}
	if err := m.checkDelta(errf); err != nil {
		return err
	}
	return m.checkExperts(errf)
}

// checkDelta looks at recurrent blocks and at the choice of keys.
func (m *Model) checkDelta(errf func(string, ...any) error) error {
	p := &m.Params
	switch {
	case m.Family.Block.Delta == NoDelta:
	case p.ConvKernel < 1 || p.StateSize < 1 || p.InnerSize > maxWidth || p.StateSize > maxWidth || p.ConvKernel > maxWidth:
		return errf("linear_conv_kernel_dim (ssm.conv_kernel) is %d and linear_key_head_dim (ssm.state_size) %d, wanted 1 to %d", p.ConvKernel, p.StateSize, maxWidth)
	case p.StateGroups < 1 || p.TimeStepRank < 1 || p.TimeStepRank%p.StateGroups != 0 || p.InnerSize < 1 || p.InnerSize%p.TimeStepRank != 0:
		return errf("%d key heads (linear_num_key_heads, ssm.group_count), %d value heads (linear_num_value_heads, ssm.time_step_rank) and %d elements of values (ssm.inner_size) do not divide each other",
			p.StateGroups, p.TimeStepRank, p.InnerSize)
	}
	if m.Family.has(KeyIndexerTopK) && (p.IndexerTopK < 1 || p.IndexerHeads < 1 || p.QLora < 1 || p.IndexerKeyLen < p.RopeDim || p.IndexerHeads*p.IndexerKeyLen > maxWidth) {
		return errf("index_topk (attention.indexer.top_k) %d, index_n_heads (attention.indexer.head_count) %d, index_head_dim (attention.indexer.key_length) %d and q_lora_rank %d do not fit each other",
			p.IndexerTopK, p.IndexerHeads, p.IndexerKeyLen, p.QLora)
	}
	return nil
}

// checkBlocks looks at what may differ from block to block.
func (m *Model) checkBlocks(errf func(string, ...any) error) error {
	p := &m.Params
	for name, n := range map[string]int{
		KeyHeadCountKV: len(p.KVHeadsAt), KeyFeedForward: len(p.FFAt), KeySlidingPattern: len(p.Sliding), KeyRecurrent: len(p.Recurrent),
	} {
		if n != 0 && n != p.Layers {
			return errf("%s has %d entries, the model has %d blocks", name, n, p.Layers)
		}
	}
	if p.SharedKV > 0 && !p.lendersExist() {
		return errf("num_kv_shared_layers (attention.shared_kv_layers) is %d of %d blocks; every kind of attention needs a block before them to share with", p.SharedKV, p.Trunk())
	}
	if p.PerLayerEmbed > maxWidth {
		return errf("hidden_size_per_layer_input (embedding_length_per_layer_input) is %d, wanted 0 to %d", p.PerLayerEmbed, maxWidth)
	}
	for l := range p.Layers {
		b := p.At(l)
		if !p.IsRecurrent(l) && b.KVHeads < 1 || b.KVHeads > p.Heads || p.Heads%max(1, b.KVHeads) != 0 {
			return errf("num_key_value_heads (attention.head_count_kv) is %d, which does not divide num_attention_heads (attention.head_count) %d", b.KVHeads, p.Heads)
		}
		if dense := !p.MoE(l) || m.Family.Block.BesideDense; dense && b.FF < 1 || b.FF > maxWidth {
			return errf("intermediate_size (feed_forward_length) is %d, wanted 1 to %d", b.FF, maxWidth)
		}
		if b.RopeDim < 2 || b.RopeDim%2 != 0 || b.RopeDim > b.HeadDim() {
			return errf("%d of %d elements per head are rotated (rope.dimension_count), wanted an even number", b.RopeDim, b.HeadDim())
		}
		if p.IsSliding(l) && p.SlidingWindow < 1 {
			return errf("sliding_window (attention.sliding_window) is %d, wanted a positive number", p.SlidingWindow)
		}
	}
	return nil
}

func (m *Model) checkRope(errf func(string, ...any) error) error {
	p := &m.Params
	if !(p.RopeBase > 0) {
		return errf("rope_theta (rope.freq_base) is %g, wanted a positive number", p.RopeBase)
	}
	switch p.RopeScaling {
	case "", "none":
	case "longrope":
		if !slices.ContainsFunc(m.Family.Rules, func(r Rule) bool { return r.Role == RopeFactorsLong }) {
			return errf("rope_scaling type %q is not supported for %s models", p.RopeScaling, m.Family.Arch)
		}
	case "linear", "yarn":
		if !(p.RopeFactor > 0) {
			return errf("rope_scaling has no positive factor (rope.scaling.factor %g)", p.RopeFactor)
		}
	default:
		return errf("rope_scaling type %q is not supported", p.RopeScaling)
	}
	if m.Family.Block.Attn == MLA {
		if p.KeyLenMLA <= p.RopeDim || p.ValueLenMLA < 1 || p.KVLora < 1 {
			return errf("qk_nope_head_dim, v_head_dim and kv_lora_rank must be positive (key_length_mla %d, rope.dimension_count %d, value_length_mla %d, kv_lora_rank %d)", p.KeyLenMLA, p.RopeDim, p.ValueLenMLA, p.KVLora)
		}
	} else if p.KeyLen == 0 && p.Embed%p.Heads != 0 {
		return errf("num_attention_heads (attention.head_count) %d does not divide hidden_size (embedding_length) %d", p.Heads, p.Embed)
	}
	return nil
}

func (m *Model) checkExperts(errf func(string, ...any) error) error {
	p := &m.Params
	if p.Experts == 0 {
		return nil
	}
	switch {
	case p.Experts > maxExperts:
		return errf("%d experts (expert_count), more than the limit of %d", p.Experts, maxExperts)
	case p.ExpertsUsed < 1 || p.ExpertsUsed > p.Experts:
		return errf("num_experts_per_tok (expert_used_count) is %d, wanted 1 to %d", p.ExpertsUsed, p.Experts)
	case p.ExpertFF < 1 || p.ExpertFF > maxWidth:
		return errf("moe_intermediate_size (expert_feed_forward_length) is %d, wanted 1 to %d", p.ExpertFF, maxWidth)
	case p.Gating < GatingSoftmax || p.Gating > GatingSelected:
		return errf("expert_gating_func is %d, which is not supported", p.Gating)
	case p.ExpertGroups > 1 && (p.Experts%p.ExpertGroups != 0 || p.GroupsUsed < 1 || p.GroupsUsed > p.ExpertGroups):
		return errf("n_group (expert_group_count) %d and topk_group (expert_group_used_count) %d do not fit %d experts", p.ExpertGroups, p.GroupsUsed, p.Experts)
	case p.LeadingDense > p.Trunk():
		return errf("first_k_dense_replace (leading_dense_block_count) is %d, more than the %d blocks", p.LeadingDense, p.Trunk())
	}
	return nil
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

// has reports whether block l (-1: outside) carries the rule's tensor.
func (r *Rule) has(p *Params, l int) bool {
	if r.If != nil && !r.If(p) || r.In != nil && !r.In(p, l) {
		return false
	}
	switch r.Where {
	case Global:
		return l < 0
	case AllBlocks:
		return l >= 0
	case DenseBlocks:
		return l >= 0 && !p.MoE(l)
	case MoEBlocks:
		return l >= 0 && p.MoE(l)
	case MTPBlocks:
		return l >= p.Trunk()
	}
	return false
}

// Tensor is one tensor of a model: a rule applied to a block.
type Tensor struct {
	Name  Name
	Rule  *Rule
	Shape []int64 // GGUF order: row length first
}

// Tensors lists the tensors the model has in GGUF form, globals first, then
// block by block in the order of the rules.
func (m *Model) Tensors() []Tensor {
	var out []Tensor
	for l := -1; l < m.Params.Layers; l++ {
		for i := range m.Family.Rules {
			r := &m.Family.Rules[i]
			if r.has(&m.Params, l) {
				name := r.Name(l)
				if len(m.Family.Within) > 0 && l >= 0 {
					name.Prefix = towerPrefix
				}
				out = append(out, Tensor{Name: name, Rule: r, Shape: m.shape(r.Shape, l)})
			}
		}
	}
	return out
}

// shape evaluates dims for block l and reverses them into GGUF order.
func (m *Model) shape(dims []Dim, l int) []int64 {
	s, p := make([]int64, len(dims)), m.Params.At(l)
	for i, d := range dims {
		s[len(dims)-1-i] = int64(d.Of(p))
	}
	return s
}

// SourceShape returns the shape (slowest axis first) that every checkpoint
// tensor of the rule must have in block l, and the settings it comes from.
func (m *Model) SourceShape(r *Rule, l int) (shape []int64, why string) {
	dims, p := r.Source, m.Params.At(l)
	if dims == nil {
		dims = r.Shape
		if r.Stacked() {
			dims = dims[1:]
		}
	}
	names := make([]string, len(dims))
	for i, d := range dims {
		shape = append(shape, int64(d.Of(p)))
		names[i] = d.Name
	}
	return shape, "[" + strings.Join(names, ", ") + "]"
}

// Source returns the checkpoint name of a rule's template for block l and
// expert e (ignored where the template does not mention them). In a template
// {m} is the number of the block among the MTP blocks, which follow the trunk.
func (m *Model) Source(template string, l, e int) string {
	if strings.Contains(template, "{m}") {
		template = strings.ReplaceAll(template, "{m}", fmt.Sprint(l-m.Params.Trunk()))
	}
	if strings.Contains(template, "{l}") {
		template = strings.ReplaceAll(template, "{l}", fmt.Sprint(l))
	}
	if strings.Contains(template, "{e}") {
		template = strings.ReplaceAll(template, "{e}", fmt.Sprint(e))
	}
	return template
}

// Dropped returns the reason why a checkpoint tensor has no place in the GGUF
// form of the model.
func (m *Model) Dropped(name string) (why string, ok bool) {
	name = Canonical(name)
	for _, d := range m.Family.Drop {
		if matchPattern(d.Pattern, name) {
			return d.Why, true
		}
	}
	return "", false
}

// Has reports whether a checkpoint tensor belongs to the model: to a tower if it
// is within it, to texts always.
func (m *Model) Has(name string) bool {
	return len(m.Family.Within) == 0 || slices.ContainsFunc(m.Family.Within, func(w string) bool { return strings.HasPrefix(name, w) })
}

// Canonical returns a checkpoint tensor's name as text models have it: those of
// the language model within a multimodal one lose that part, in either place
// where it occurs ("model.language_model.layers", "language_model.model.layers").
func Canonical(name string) string { return strings.Replace(name, "language_model.", "", 1) }

// matchPattern matches a name with a pattern in which {l} stands for digits
// and a final "*" for anything.
func matchPattern(pattern, name string) bool {
	for {
		i := strings.Index(pattern, "{l}")
		if i < 0 {
			if prefix, ok := strings.CutSuffix(pattern, "*"); ok {
				return strings.HasPrefix(name, prefix)
			}
			return pattern == name
		}
		if !strings.HasPrefix(name, pattern[:i]) {
			return false
		}
		name, pattern = name[i:], pattern[i+3:]
		n := 0
		for n < len(name) && name[n] >= '0' && name[n] <= '9' {
			n++
		}
		if n == 0 {
			return false
		}
		name = name[n:]
	}
}

// OfMTP reports whether a checkpoint tensor belongs to the MTP blocks that the
// checkpoint announces: by the number of its block, or by a name of its own.
func (m *Model) OfMTP(name string) bool {
	if m.AnnouncedMTP > 0 && strings.HasPrefix(name, "mtp.") {
		return true
	}
	l, ok := Layer(name)
	return ok && l >= m.Params.Trunk() && l < m.Params.Trunk()+m.AnnouncedMTP
}

// Layer returns the block number in a checkpoint tensor's name.
func Layer(name string) (int, bool) {
	i := strings.Index(name, "layers.")
	if i < 0 {
		return 0, false
	}
	n, digits := 0, 0
	for _, c := range name[i+len("layers."):] {
		if c < '0' || c > '9' || digits > 9 {
			break
		}
		n, digits = n*10+int(c-'0'), digits+1
	}
	return n, digits > 0
}
