package arch

import (
	"fmt"
	"slices"
	"strings"

	"github.com/winnow-moe/winnow/formats/gguf"
)

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
