package tokenizer

import (
	"encoding/base64"
	"math"
	"strings"
	"unicode"
)

// pieceForm is how a tokenizer.json whose vocabulary writes spaces as U+2581
// treats text before its model does.
type pieceForm struct {
	norm     normalizer
	spaces   spacing // what the pre_tokenizer does
	prefix   bool    // a space is put before the text, by either
	squeeze  bool    // norm makes runs of spaces one
	charsMap []byte  // norm's character map, as a file keeps it
}

// pieceForm recognises normalizer and pre_tokenizer by structure:
//
//	Prepend "▁", Replace " " by "▁"; no pre_tokenizer          Llama 2, Mistral
//	Replace " " by "▁"; Split " " MergedWithPrevious, idle     Gemma
//	Metaspace                                                  the same vocabularies in newer files
//
// with Unicode forms, a character map and the collapsing of spaces before.
// With --pre the structure is that of Gemma.
func (t *tokenizerJSON) pieceForm(opt Options) (*pieceForm, error) {
	f := &pieceForm{}
	if opt.Pre == ModelCharBPE {
		return f, nil
	}
	if err := eachPart(t.normalizer, "normalizers", f.readNormalizer); err != nil {
		return nil, err
	}
	return f, eachPart(t.preTok, "pretokenizers", f.readPreTokenizer)
}

func (f *pieceForm) readNormalizer(o map[string]any) error {
	if form, ok := unicodeForm(o["type"]); ok {
		f.norm = append(f.norm, form)
		return nil
	}
	pattern, _ := o["pattern"].(map[string]any)
	switch {
	case o["type"] == "Prepend" && o["prepend"] == "▁":
		f.prefix = true
		f.norm = append(f.norm, prepended)
	case o["type"] == "Replace" && pattern["String"] == " " && o["content"] == "▁":
		f.norm = append(f.norm, lined)
	case o["type"] == "Replace" && pattern["Regex"] == " {2,}" && (o["content"] == " " || o["content"] == "▁"):
		f.squeeze = true
		f.norm = append(f.norm, collapsed)
	case o["type"] == "Strip":
		f.norm = append(f.norm, strip(o["strip_left"] == true, o["strip_right"] == true))
	case o["type"] == "Precompiled":
		return f.readCharsMap(o["precompiled_charsmap"])
	default:
		return invalid("tokenizer.json: normalizer %.200q is unknown for a vocabulary of pieces", o)
	}
	return nil
}

func prepended(s string) string {
	if s == "" {
		return s
	}
	return "▁" + s
}

func lined(s string) string { return strings.ReplaceAll(s, " ", "▁") }

// collapsed makes every run of spaces one.
func collapsed(s string) string {
	for strings.Contains(s, "  ") {
		s = strings.ReplaceAll(s, "  ", " ")
	}
	return s
}

func strip(left, right bool) func(string) string {
	return func(s string) string {
		if left {
			s = strings.TrimLeftFunc(s, unicode.IsSpace)
		}
		if right {
			s = strings.TrimRightFunc(s, unicode.IsSpace)
		}
		return s
	}
}

func (f *pieceForm) readCharsMap(v any) error {
	text, _ := v.(string)
	raw, err := base64.StdEncoding.DecodeString(text)
	if err != nil {
		return invalid("tokenizer.json: precompiled_charsmap is not base64: %w", err)
	}
	if len(raw) == 0 {
		return nil
	}
	m, err := parseCharsMap(raw)
	if err != nil {
		return err
	}
	f.charsMap = raw
	f.norm = append(f.norm, m.apply)
	return nil
}

func (f *pieceForm) readPreTokenizer(o map[string]any) error {
	pattern, _ := o["pattern"].(map[string]any)
	switch {
	case o["type"] == "Split" && pattern["String"] == " " && o["behavior"] == "MergedWithPrevious":
		// The normalizer has left no spaces to split at.
	case o["type"] == "Metaspace" && (o["replacement"] == "▁" || o["replacement"] == nil):
		scheme := o["prepend_scheme"]
		f.spaces.prefix = scheme != "never" && (scheme != nil || o["add_prefix_space"] != false)
		f.prefix = f.prefix || f.spaces.prefix
		f.spaces.once = scheme == "first"
		f.spaces.single = true
		f.spaces.each = o["split"] != false
	default:
		return invalid("tokenizer.json: pre_tokenizer %.200q is unknown for a vocabulary of pieces (known: Split at spaces as Gemma has it, which --pre gemma4 takes for granted, and Metaspace)", o)
	}
	return nil
}

// readUnigram reads the vocabulary of a Unigram model: pairs of text and score.
func (t *tokenizerJSON) readUnigram(model map[string]any) error {
	list, ok := model["vocab"].([]any)
	if !ok || len(list) == 0 || len(list) > maxTokens {
		return invalid("tokenizer.json: model.vocab is not a list of 1 to %d tokens", maxTokens)
	}
	t.scored = make([]piece, len(list))
	for i, e := range list {
		pair, _ := e.([]any)
		text, ok := textAt(pair, 0)
		if !ok || len(pair) != 2 {
			return invalid("tokenizer.json: model.vocab[%d] is not a pair of a text and a score", i)
		}
		n, _ := pair[1].(interface{ Float64() (float64, error) })
		if n == nil {
			return invalid("tokenizer.json: token %d (%.40q) has score %v, which is not a number", i, text, pair[1])
		}
		score, err := n.Float64()
		if err != nil || math.Abs(score) > math.MaxFloat32 {
			return invalid("tokenizer.json: token %d (%.40q) has score %v, which is not finite", i, text, pair[1])
		}
		t.scored[i] = piece{text, float32(score), TypeNormal}
	}
	t.unknownID = -1
	if id := model["unk_id"]; id != nil {
		if t.unknownID, ok = integer(id); !ok || t.unknownID < 0 || t.unknownID >= int64(len(list)) {
			return invalid("tokenizer.json: unk_id %v is not the id of one of %d tokens", id, len(list))
		}
	}
	return nil
}
