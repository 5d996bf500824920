package tokenizer

import (
	"slices"
	"strings"

	"github.com/winnow-moe/winnow/formats/gguf"
)

// The tokenizer's keys of a GGUF file (llama.cpp gguf-py constants.py).
const (
	KeyModel        = "tokenizer.ggml.model"
	KeyPre          = "tokenizer.ggml.pre"
	KeyTokens       = "tokenizer.ggml.tokens"
	KeyTypes        = "tokenizer.ggml.token_type"
	KeyScores       = "tokenizer.ggml.scores"
	KeyMerges       = "tokenizer.ggml.merges"
	KeySpacePrefix  = "tokenizer.ggml.add_space_prefix"
	KeySqueeze      = "tokenizer.ggml.remove_extra_whitespaces"
	KeyCharsMap     = "tokenizer.ggml.precompiled_charsmap"
	KeyChatTemplate = "tokenizer.chat_template"
	// KeyChatTemplates lists the names of templates under KeyChatTemplate.NAME.
	KeyChatTemplates = "tokenizer.chat_templates"
)

// specialKeys are the keys of the special ids by kind. One is misspelled in
// the format.
var specialKeys = []struct{ kind, key string }{
	{"bos", "tokenizer.ggml.bos_token_id"},
	{"eos", "tokenizer.ggml.eos_token_id"},
	{"unk", "tokenizer.ggml.unknown_token_id"},
	{"sep", "tokenizer.ggml.seperator_token_id"},
	{"pad", "tokenizer.ggml.padding_token_id"},
	{"cls", "tokenizer.ggml.cls_token_id"},
	{"mask", "tokenizer.ggml.mask_token_id"},
	{"eot", "tokenizer.ggml.eot_token_id"},
	{"eom", "tokenizer.ggml.eom_token_id"},
}

// addKeys are the keys that say whether a token is added.
var addKeys = []struct{ kind, key string }{
	{"bos", "tokenizer.ggml.add_bos_token"},
	{"eos", "tokenizer.ggml.add_eos_token"},
	{"sep", "tokenizer.ggml.add_sep_token"},
}

// WriteTo sets the keys in the order in which llama.cpp's converter writes them.
func (v *Vocab) WriteTo(m *gguf.Metadata) {
	if v.SpacePrefix != nil && !v.prefixLast && v.Model != ModelUnigram {
		m.Set(KeySpacePrefix, *v.SpacePrefix)
	}
	m.Set(KeyModel, v.Model)
	if v.Pre != "" {
		m.Set(KeyPre, v.Pre)
	}
	m.Set(KeyTokens, v.Tokens)
	if v.Scores != nil {
		m.Set(KeyScores, v.Scores)
	}
	if v.Types != nil {
		m.Set(KeyTypes, v.Types)
	}
	if v.Merges != nil {
		m.Set(KeyMerges, v.Merges)
	}
	if v.Model == ModelUnigram {
		v.writeSpaces(m)
	}
	for _, s := range v.Special {
		m.Set(keyOf(specialKeys, s.Kind), uint32(s.ID))
	}
	for _, a := range v.Add {
		m.Set(keyOf(addKeys, a.Kind), a.Value)
	}
	v.writeTemplates(m)
	if v.SpacePrefix != nil && v.prefixLast {
		m.Set(KeySpacePrefix, *v.SpacePrefix)
	}
}

// writeSpaces writes how a unigram vocabulary normalizes text.
func (v *Vocab) writeSpaces(m *gguf.Metadata) {
	if v.SpacePrefix != nil {
		m.Set(KeySpacePrefix, *v.SpacePrefix)
	}
	if v.Squeeze != nil {
		m.Set(KeySqueeze, *v.Squeeze)
	}
	if v.CharsMap != nil {
		m.Set(KeyCharsMap, v.CharsMap)
	}
}

func keyOf(keys []struct{ kind, key string }, kind string) string {
	i := slices.IndexFunc(keys, func(k struct{ kind, key string }) bool { return k.kind == kind })
	return keys[i].key
}

// writeTemplates writes the named templates, their names, then the main one.
func (v *Vocab) writeTemplates(m *gguf.Metadata) {
	var names []string
	main := -1
	for i, t := range v.Templates {
		if t.Name == "" {
			main = i
			continue
		}
		m.Set(KeyChatTemplate+"."+t.Name, t.Text)
		names = append(names, t.Name)
	}
	if names != nil {
		m.Set(KeyChatTemplates, names)
	}
	if main >= 0 {
		m.Set(KeyChatTemplate, v.Templates[main].Text)
	}
}

// FromMetadata reads and checks the tokenizer keys of a GGUF file. GGUF has
// no key for a normalizer: a vocabulary whose tokenizer.json composes text to
// NFC encodes text as it is when it comes from a file, as llama.cpp does.
func FromMetadata(m *gguf.Metadata) (*Vocab, error) {
	v := &Vocab{}
	if err := v.readCharsMap(m); err != nil {
		return nil, err
	}
	if err := v.readModel(m); err != nil {
		return nil, err
	}
	if err := v.readLists(m); err != nil {
		return nil, err
	}
	if err := v.readSpecial(m); err != nil {
		return nil, err
	}
	if err := v.readTemplates(m); err != nil {
		return nil, err
	}
	if err := v.check(); err != nil {
		return nil, err
	}
	for _, kind := range [...]string{"eos", "eot", "eom"} {
		if id, ok := v.ID(kind); ok {
			v.addEOG(id)
		}
	}
	return v, nil
}

// read stores the value of an optional key in dst.
func read[T any](m *gguf.Metadata, key string, dst *T) (found bool, err error) {
	v, ok := m.Get(key)
	if !ok {
		return false, nil
	}
	t, ok := v.(T)
	if !ok {
		var want any = *dst
		have, elem, _ := gguf.TypeOf(v)
		wantType, wantElem, _ := gguf.TypeOf(want)
		if have == gguf.TypeArray {
			return false, invalid("%s: type is an array of %s, want %s", key, elem, describe(wantType, wantElem))
		}
		return false, invalid("%s: type is %s, want %s", key, have, describe(wantType, wantElem))
	}
	*dst = t
	return true, nil
}

func describe(t, elem gguf.ValueType) string {
	if t == gguf.TypeArray {
		return "an array of " + elem.String()
	}
	return t.String()
}

func (v *Vocab) readModel(m *gguf.Metadata) error {
	found, err := read(m, KeyModel, &v.Model)
	switch {
	case err != nil:
		return err
	case !found:
		return invalid("%s is missing", KeyModel)
	case !slices.Contains(models, v.Model):
		return invalid("%s: tokenizer model %q is unknown or not supported (known: %q)", KeyModel, v.Model, models)
	}
	if v.Model != ModelCharBPE {
		v.Pre = "default"
	}
	if _, err := read(m, KeyPre, &v.Pre); err != nil {
		return err
	}
	if v.Model == ModelBPE && !knownPre(v.Pre) {
		return invalid("%s: pre-tokenizer %q is unknown", KeyPre, v.Pre)
	}
	return nil
}

func (v *Vocab) readLists(m *gguf.Metadata) error {
	found, err := read(m, KeyTokens, &v.Tokens)
	if err == nil && !found {
		err = invalid("%s is missing", KeyTokens)
	}
	if err == nil {
		_, err = read(m, KeyScores, &v.Scores)
	}
	if err == nil {
		_, err = read(m, KeyTypes, &v.Types)
	}
	if err == nil && (v.Model == ModelBPE || v.Model == ModelCharBPE) {
		_, err = read(m, KeyMerges, &v.Merges)
	}
	return err
}

// readSpecial reads ids and flags in the order the file has them.
func (v *Vocab) readSpecial(m *gguf.Metadata) error {
	for _, key := range m.Keys() {
		for _, k := range specialKeys {
			if k.key != key {
				continue
			}
			var id uint32
			if _, err := read(m, key, &id); err != nil {
				return err
			}
			if int64(id) >= int64(len(v.Tokens)) {
				return invalid("%s: token id %d is out of range: the vocabulary has %d tokens", key, id, len(v.Tokens))
			}
			v.Special = append(v.Special, SpecialID{k.kind, int32(id)})
		}
		for _, k := range addKeys {
			if k.key != key {
				continue
			}
			var on bool
			if _, err := read(m, key, &on); err != nil {
				return err
			}
			v.Add = append(v.Add, AddFlag{k.kind, on})
		}
		if key == KeySpacePrefix {
			v.SpacePrefix, v.prefixLast = new(bool), v.Tokens != nil && slices.Index(m.Keys(), KeyTokens) < slices.Index(m.Keys(), key)
			if _, err := read(m, key, v.SpacePrefix); err != nil {
				return err
			}
		}
		if key == KeySqueeze {
			v.Squeeze = new(bool)
			if _, err := read(m, key, v.Squeeze); err != nil {
				return err
			}
		}
	}
	return nil
}

func (v *Vocab) readTemplates(m *gguf.Metadata) error {
	for _, key := range m.Keys() {
		name, ok := strings.CutPrefix(key, KeyChatTemplate)
		if !ok || name != "" && name[0] != '.' || name == "." {
			continue
		}
		t := Template{Name: strings.TrimPrefix(name, ".")}
		if _, err := read(m, key, &t.Text); err != nil {
			return err
		}
		v.Templates = append(v.Templates, t)
	}
	return nil
}

// readCharsMap reads a precompiled character map and checks its header.
func (v *Vocab) readCharsMap(m *gguf.Metadata) error {
	switch a, _ := m.Get(KeyCharsMap); a := a.(type) {
	case nil:
		return nil
	case []uint8:
		v.CharsMap = a
	case []int8:
		for _, b := range a {
			v.CharsMap = append(v.CharsMap, byte(b))
		}
	default:
		return invalid("%s: type is not an array of bytes", KeyCharsMap)
	}
	_, err := parseCharsMap(v.CharsMap)
	return err
}

func (v *Vocab) addEOG(id int32) {
	if !slices.Contains(v.EOG, id) {
		v.EOG = append(v.EOG, id)
	}
}
