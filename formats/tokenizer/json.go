package tokenizer

import (
	"cmp"
	"slices"
	"strconv"
	"strings"

	"golang.org/x/text/unicode/norm"

	"github.com/winnow-moe/winnow/formats/strictjson"
)

// tokenizerJSON is what is used of a tokenizer.json file (the format of the
// Hugging Face tokenizers library). Parts that only some paths need stay as
// decoded JSON until then.
type tokenizerJSON struct {
	kind         string // model.type
	vocab        []entry
	merges       [][2]string
	unknown      string // model.unk_token
	byteFallback bool
	ignoreMerges bool
	added        []addedToken
	normalizer   any
	preTok       any
	post         any
	scored       []piece // model.vocab of a Unigram model
	unknownID    int64   // its model.unk_id, or -1
}

// entry is one token of model.vocab.
type entry struct {
	text string
	id   int64
}

// addedToken is a token that is found in the text before anything else.
type addedToken struct {
	id         int64
	text       string
	special    bool
	normalized bool // matched after normalising, else before
	singleWord bool
	lstrip     bool // swallows white space before it
	rstrip     bool // and behind it
}

// stored returns the text and the type under which a GGUF file keeps the
// token. What looks like a control token is one, even where the file does not
// say so; spaces that user-defined tokens write as U+2581 are spaces.
func (a *addedToken) stored() (string, int32) {
	if a.special || looksSpecial(a.text) {
		return a.text, TypeControl
	}
	return strings.ReplaceAll(a.text, "▁", " "), TypeUserDefined
}

func looksSpecial(s string) bool {
	wrapped := func(open, end string) bool { return strings.HasPrefix(s, open) && strings.HasSuffix(s, end) }
	return s == "<pad>" || s == "<mask>" || s == "<2mass>" || s == "[@BOS@]" ||
		wrapped("<|", "|>") || wrapped("<｜", "｜>") || wrapped("<unused", ">")
}

func parseTokenizerJSON(raw []byte) (*tokenizerJSON, error) {
	v, err := strictjson.Decode(raw)
	if err != nil {
		return nil, invalid("tokenizer.json: %w", err)
	}
	top, ok := v.(map[string]any)
	if !ok {
		return nil, invalid("tokenizer.json: the top level is not a JSON object")
	}
	model, ok := top["model"].(map[string]any)
	if !ok {
		return nil, invalid("tokenizer.json: model is missing or not an object")
	}
	t := &tokenizerJSON{normalizer: top["normalizer"], preTok: top["pre_tokenizer"], post: top["post_processor"]}
	if t.kind, ok = model["type"].(string); !ok {
		return nil, invalid("tokenizer.json: model type is missing or not a string")
	}
	t.unknown, _ = model["unk_token"].(string)
	t.byteFallback = model["byte_fallback"] == true
	t.ignoreMerges = model["ignore_merges"] == true
	if t.added, err = addedOf(top["added_tokens"]); err != nil {
		return nil, err
	}
	switch t.kind {
	case "BPE":
	case "Unigram":
		return t, t.readUnigram(model)
	default:
		return t, nil // refused by name later
	}
	if t.vocab, err = entriesOf(model["vocab"]); err != nil {
		return nil, err
	}
	t.merges, err = mergesOf(model["merges"])
	return t, err
}

// entriesOf reads model.vocab and sorts it by id.
func entriesOf(v any) ([]entry, error) {
	o, ok := v.(map[string]any)
	if !ok {
		return nil, invalid("tokenizer.json: model.vocab is missing or not an object")
	}
	if len(o) > maxTokens {
		return nil, invalid("tokenizer.json: model.vocab has %d tokens, the limit is %d", len(o), maxTokens)
	}
	list := make([]entry, 0, len(o))
	for _, text := range sortedKeys(o) {
		id, ok := integer(o[text])
		if !ok || id < 0 {
			return nil, invalid("tokenizer.json: token %.60q has id %v, which is not an integer of 0 or more", text, o[text])
		}
		list = append(list, entry{text, id})
	}
	slices.SortStableFunc(list, func(a, b entry) int { return cmp.Compare(a.id, b.id) })
	return list, nil
}

// addedOf reads added_tokens.
func addedOf(v any) ([]addedToken, error) {
	if v == nil {
		return nil, nil
	}
	list, ok := v.([]any)
	if !ok {
		return nil, invalid("tokenizer.json: added_tokens is not a list")
	}
	added := make([]addedToken, 0, len(list))
	for i, e := range list {
		o, _ := e.(map[string]any)
		id, ok := integer(o["id"])
		if !ok || id < 0 {
			return nil, invalid("tokenizer.json: added_tokens[%d] has no id of 0 or more", i)
		}
		a, err := addedTokenOf(o, id, "tokenizer.json")
		if err != nil {
			return nil, err
		}
		added = append(added, a)
	}
	return added, nil
}

func addedTokenOf(o map[string]any, id int64, file string) (addedToken, error) {
	text, ok := o["content"].(string)
	if !ok || text == "" {
		return addedToken{}, invalid("%s: added token with id %d has empty or missing content", file, id)
	}
	return addedToken{id: id, text: text, special: o["special"] == true, normalized: o["normalized"] == true,
		singleWord: o["single_word"] == true, lstrip: o["lstrip"] == true, rstrip: o["rstrip"] == true}, nil
}

// decoder reads tokenizer_config.json's added_tokens_decoder, ordered by id.
func (f *folder) decoder() ([]addedToken, error) {
	const file = "tokenizer_config.json"
	v := f.config["added_tokens_decoder"]
	if v == nil {
		return nil, nil
	}
	o, ok := v.(map[string]any)
	if !ok {
		return nil, invalid("%s: added_tokens_decoder is not an object", file)
	}
	var list []addedToken
	for _, key := range sortedKeys(o) {
		id, err := strconv.ParseInt(key, 10, 64)
		if err != nil || id < 0 {
			return nil, invalid("%s: added_tokens_decoder has the key %.40q, which is not a token id", file, key)
		}
		e, _ := o[key].(map[string]any)
		a, err := addedTokenOf(e, id, file)
		if err != nil {
			return nil, err
		}
		list = append(list, a)
	}
	slices.SortStableFunc(list, func(a, b addedToken) int { return cmp.Compare(a.id, b.id) })
	return list, nil
}

// allAdded returns the added tokens of tokenizer.json and those that only
// tokenizer_config.json or added_tokens.json know.
func (f *folder) allAdded() ([]addedToken, error) {
	all := slices.Clone(f.tokenizer.added)
	texts := make(map[int64]string, len(f.tokenizer.vocab))
	for _, e := range f.tokenizer.vocab {
		texts[e.id] = e.text
	}
	for _, a := range all {
		texts[a.id] = a.text
	}
	more, err := f.decoder()
	if err != nil {
		return nil, err
	}
	for _, text := range sortedKeys(f.added) {
		id, ok := integer(f.added[text])
		if !ok || id < 0 || text == "" {
			return nil, invalid("added_tokens.json: added token %.60q has id %v, want an integer of 0 or more and a text", text, f.added[text])
		}
		more = append(more, addedToken{id: id, text: text, normalized: true})
	}
	for _, a := range more {
		have, known := texts[a.id]
		if known && have != a.text {
			return nil, invalid("added token %.60q has the id %d of token %.60q of tokenizer.json (conflict)", a.text, a.id, have)
		}
		if !known {
			texts[a.id] = a.text
			all = append(all, a)
		}
	}
	return all, nil
}

// mergesOf reads model.merges: "left right" strings, or pairs.
func mergesOf(v any) ([][2]string, error) {
	list, ok := v.([]any)
	if !ok {
		return nil, invalid("tokenizer.json: model.merges is missing or not a list")
	}
	merges := make([][2]string, 0, len(list))
	for i, e := range list {
		var m [2]string
		switch e := e.(type) {
		case string:
			left, right, ok := strings.Cut(e, " ")
			if !ok || left == "" || right == "" || strings.Contains(right, " ") {
				return nil, invalid("tokenizer.json: merge %d (%.60q) is not two tokens with a space between", i, e)
			}
			m = [2]string{left, right}
		case []any:
			left, ok1 := textAt(e, 0)
			right, ok2 := textAt(e, 1)
			if !ok1 || !ok2 || len(e) != 2 {
				return nil, invalid("tokenizer.json: merge %d is not a pair of tokens", i)
			}
			m = [2]string{left, right}
		default:
			return nil, invalid("tokenizer.json: merge %d is neither a string nor a pair", i)
		}
		merges = append(merges, m)
	}
	return merges, nil
}

func textAt(list []any, i int) (string, bool) {
	if i >= len(list) {
		return "", false
	}
	s, ok := list[i].(string)
	return s, ok && s != ""
}

// mergeLines writes the merges as GGUF keeps them. A space inside a part is
// written as Ġ, which is how the byte alphabet writes it.
func (t *tokenizerJSON) mergeLines() ([]string, error) {
	known := make(map[string]bool, len(t.vocab))
	for _, e := range t.vocab {
		known[e.text] = true
	}
	lines := make([]string, len(t.merges))
	for i, m := range t.merges {
		for _, text := range [...]string{m[0], m[1], m[0] + m[1]} {
			if !known[text] {
				return nil, invalid("tokenizer.json: merge %d needs token %.60q, which is not in the vocabulary", i, text)
			}
		}
		lines[i] = strings.ReplaceAll(m[0], " ", "Ġ") + " " + strings.ReplaceAll(m[1], " ", "Ġ")
	}
	return lines, nil
}

func (t *tokenizerJSON) checkUnknown() error {
	has := func(e entry) bool { return e.text == t.unknown }
	if t.unknown != "" && !slices.ContainsFunc(t.vocab, has) {
		return invalid("tokenizer.json: unk_token %.60q is not in the vocabulary", t.unknown)
	}
	return nil
}

// normalizer is the chain of functions that text goes through.
type normalizer []func(string) string

func (n normalizer) apply(s string) string {
	for _, f := range n {
		s = f(s)
	}
	return s
}

// unicodeForm returns the normalizer of a type such as "NFC".
func unicodeForm(kind any) (f func(string) string, ok bool) {
	switch kind {
	case "NFC":
		return norm.NFC.String, true
	case "NFD":
		return norm.NFD.String, true
	case "NFKC":
		return norm.NFKC.String, true
	case "NFKD":
		return norm.NFKD.String, true
	}
	return nil, false
}

// normalizerOf reads the normalizer of a byte-level tokenizer.json.
func normalizerOf(v any) (normalizer, error) {
	var all normalizer
	err := eachPart(v, "normalizers", func(o map[string]any) error {
		f, ok := unicodeForm(o["type"])
		if !ok {
			return invalid("tokenizer.json: normalizer type %q is not supported for byte-level BPE", o["type"])
		}
		all = append(all, f)
		return nil
	})
	return all, err
}

// eachPart calls fn for an object, or for the parts of a Sequence in order.
// Sequences hold their parts under the name list.
func eachPart(v any, list string, fn func(o map[string]any) error) error {
	o, ok := v.(map[string]any)
	if !ok {
		return nil
	}
	if o["type"] != "Sequence" {
		return fn(o)
	}
	parts, _ := o[list].([]any)
	for _, p := range parts {
		if err := eachPart(p, list, fn); err != nil {
			return err
		}
	}
	return nil
}
