package tokenizer

import (
	"slices"
	"strings"
)

// visible are Gemma 4's tokens that a reader of a chat has to see, which
// llama.cpp's converter therefore does not make control tokens.
var visible = []string{"<|channel>", "<channel|>", "<|tool_call>", "<tool_call|>", "<|tool_response>", "<tool_response|>", `<|"|>`}

// fromCharBPE builds the vocabulary of Gemma 4: BPE over characters with its
// merges, as many tokens as the tokenizer has, and types after the roles that
// tokenizer_config.json names. Scores mean nothing.
func (f *folder) fromCharBPE(opt Options) (*Vocab, error) {
	t := f.tokenizer
	form, err := t.pieceForm(opt)
	if err != nil {
		return nil, err
	}
	if form.squeeze || form.charsMap != nil || form.prefix {
		return nil, invalid("tokenizer.json: the normalizer changes more than spaces to U+2581, which tokenizer model %q cannot say", ModelCharBPE)
	}
	if err := t.checkUnknown(); err != nil {
		return nil, err
	}
	added, err := f.allAdded()
	if err != nil {
		return nil, err
	}
	s, err := fill(t.vocab, added, 0)
	if err != nil {
		return nil, err
	}
	if opt.VocabSize > 0 && s.size > opt.VocabSize {
		return nil, invalid("tokenizer.json: %d tokens are more than vocab_size %d", s.size, opt.VocabSize)
	}
	v := &Vocab{Model: ModelCharBPE, Tokens: s.texts, Scores: make([]float32, s.size), Types: make([]int32, s.size)}
	v.source = &source{norm: form.norm, spaces: form.spaces, added: added}
	v.SpacePrefix, v.prefixLast = new(bool), true
	named := f.namedTokens()
	for i, text := range v.Tokens {
		v.Scores[i] = addedScore
		switch {
		case slices.Contains(visible, text):
			v.Types[i] = TypeUserDefined
		case named[text]:
			v.Types[i] = TypeControl
		case i >= len(t.vocab):
			v.Types[i] = TypeUserDefined
		case isByteToken(text):
			v.Types[i] = TypeByte
		default:
			v.Types[i] = TypeNormal
		}
	}
	v.Merges, err = t.mergeLines()
	return v, err
}

// namedTokens are the texts to which tokenizer_config.json gives a name: what
// transformers calls all_special_tokens.
func (f *folder) namedTokens() map[string]bool {
	named := map[string]bool{}
	add := func(v any) {
		if o, ok := v.(map[string]any); ok {
			v = o["content"]
		}
		if text, ok := v.(string); ok {
			named[text] = true
		}
	}
	for key, v := range f.config {
		if strings.HasSuffix(key, "_token") {
			add(v)
		}
	}
	for _, key := range [...]string{"extra_special_tokens", "additional_special_tokens", "model_specific_special_tokens"} {
		switch list := f.config[key].(type) {
		case []any:
			for _, v := range list {
				add(v)
			}
		case map[string]any:
			for _, v := range list {
				add(v)
			}
		}
	}
	// The defaults of the class (transformers tokenization_gemma.py).
	if class, _ := f.config["tokenizer_class"].(string); strings.HasPrefix(class, "GemmaTokenizer") {
		for kind, text := range map[string]string{"unk": "<unk>", "bos": "<bos>", "eos": "<eos>", "pad": "<pad>", "mask": "<mask>"} {
			if f.config[kind+"_token"] == nil {
				named[text] = true
			}
		}
	}
	return named
}
