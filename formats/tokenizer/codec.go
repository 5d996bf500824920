package tokenizer

import (
	"slices"
	"strings"
)

// Tokenizer turns text into token ids and back. It does not change after
// Encoder returns it and is safe for concurrent use.
type Tokenizer struct {
	vocab *Vocab
	words wordEncoder
	// raw and late find added tokens, before and after normalising.
	raw, late *matcher
	norm      normalizer
	once      bool     // only the beginning of the text counts as a beginning
	pieces    []string // by id: the bytes a token stands for
}

// wordEncoder is the part in which tokenizer models differ.
type wordEncoder interface {
	// cut calls word for the parts of s that are encoded on their own. first
	// says that s begins the text or follows an added token.
	cut(s string, first bool, word func(string))
	// encode appends the ids of one word.
	encode(ids []int32, word string, m *merger) []int32
}

// EncodeOptions say how text becomes ids.
type EncodeOptions struct {
	// AddSpecial adds BOS and EOS where the vocabulary says so.
	AddSpecial bool
	// ParseSpecial takes the texts of control tokens for the tokens; otherwise
	// they are text like any other. User-defined tokens are always found.
	ParseSpecial bool
}

// Encoder prepares the vocabulary for use. A loaded Vocab encodes exactly as
// its tokenizer.json does; one from a GGUF file encodes by its keys, which
// know no normalizer but the character map of unigram vocabularies.
func (v *Vocab) Encoder() (*Tokenizer, error) {
	t := &Tokenizer{vocab: v}
	var err error
	if t.words, err = v.wordEncoder(); err != nil {
		return nil, err
	}
	var raw, late []addedToken
	for _, a := range v.addedTokens() {
		// The matcher's special means: a control token, as GGUF types it.
		kind := v.typeOf(int(a.id))
		a.special = a.special || kind == TypeControl || kind == TypeUnknown
		if !a.normalized {
			raw = append(raw, a)
			continue
		}
		if a.text = v.source.norm.apply(a.text); a.text != "" {
			late = append(late, a)
		}
	}
	t.raw, t.late = newMatcher(raw), newMatcher(late)
	switch {
	case v.source != nil:
		t.norm, t.once = v.source.norm, v.source.spaces.once
	case v.CharsMap != nil:
		m, err := parseCharsMap(v.CharsMap)
		if err != nil {
			return nil, err
		}
		t.norm = normalizer{m.apply}
	}
	t.pieces = v.bytesOfTokens()
	return t, nil
}

func (v *Vocab) wordEncoder() (wordEncoder, error) {
	switch v.Model {
	case ModelSPM:
		return newSPM(v), nil
	case ModelUnigram:
		return newUnigram(v), nil
	case ModelCharBPE:
		return newCharBPE(v)
	}
	return newBPE(v)
}

// addedTokens returns the tokens that are found before the text is cut: what
// tokenizer.json says, or the tokens that GGUF types so.
func (v *Vocab) addedTokens() []addedToken {
	if v.source != nil {
		return v.source.added
	}
	var added []addedToken
	for id, text := range v.Tokens {
		switch v.typeOf(id) {
		case TypeControl, TypeUserDefined, TypeUnknown:
			if text != "" {
				added = append(added, addedToken{id: int64(id), text: text})
			}
		}
	}
	if v.Model == ModelCharBPE {
		added = append(added, v.unmergedSpaces()...)
	}
	return added
}

// cacheWords and cacheBytes bound the memory of the word cache of one Encode:
// so many words, each of at most so many bytes.
const (
	cacheWords = 1 << 16
	cacheBytes = 64
)

// Encode returns the ids of text.
func (t *Tokenizer) Encode(text string, opt EncodeOptions) []int32 {
	var ids []int32
	if bos, ok := t.vocab.BOS(); ok && opt.AddSpecial && t.vocab.AddBOS() {
		ids = append(ids, bos)
	}
	var m merger
	cache := map[string][]int32{}
	word := func(w string) {
		if known, ok := cache[w]; ok {
			ids = append(ids, known...)
			return
		}
		n := len(ids)
		ids = t.words.encode(ids, w, &m)
		if len(w) <= cacheBytes && len(cache) < cacheWords {
			cache[w] = append([]int32(nil), ids[n:]...)
		}
	}
	first := true
	token := func(id int32) { ids, first = append(ids, id), !t.once }
	plain := func(s string) {
		t.words.cut(s, first, word)
		first = false
	}
	t.raw.cut(text, opt.ParseSpecial, func(s string) {
		t.late.cut(t.norm.apply(s), opt.ParseSpecial, plain, token)
	}, token)
	if eos, ok := t.vocab.ID("eos"); ok && opt.AddSpecial && t.vocab.AddEOS() {
		ids = append(ids, eos)
	}
	return ids
}

// Bytes returns the text of ids as bytes; a token may hold part of a
// character. Unused ids and ids outside the vocabulary stand for nothing.
func (t *Tokenizer) Bytes(ids []int32) []byte {
	var out []byte
	for _, id := range ids {
		if id >= 0 && int(id) < len(t.pieces) {
			out = append(out, t.pieces[id]...)
		}
	}
	if !t.vocab.bytewise() && t.vocab.spacePrefix() && len(out) > 0 && out[0] == ' ' {
		out = out[1:]
	}
	return out
}

// Decode returns the text of ids, special tokens included. It is not valid
// UTF-8 where ids break a character apart.
func (t *Tokenizer) Decode(ids []int32) string { return string(t.Bytes(ids)) }

// bytesOfTokens returns what every token stands for.
func (v *Vocab) bytesOfTokens() []string {
	pieces := make([]string, len(v.Tokens))
	for id, text := range v.Tokens {
		switch kind := v.typeOf(id); {
		case kind == TypeUnused:
		case kind == TypeControl || kind == TypeUnknown:
			pieces[id] = text
		case !v.bytewise():
			pieces[id] = strings.ReplaceAll(text, "▁", " ")
			if b, ok := byteOfToken(text); ok && kind == TypeByte {
				pieces[id] = string([]byte{b})
			}
		case kind == TypeUserDefined:
			pieces[id] = text
		default:
			pieces[id] = text
			if raw, ok := fromAlphabet(text); ok {
				pieces[id] = string(raw)
			}
		}
	}
	if v.source != nil && v.bytewise() {
		for _, a := range v.source.added {
			pieces[a.id] = a.text
		}
	}
	return pieces
}

// bpe encodes words by merging bytes in the order of the merges.
type bpe struct {
	steps splitter
	bytes [256]int32        // token of every byte, -1 where there is none
	pairs map[uint64]merged // by the ids of both parts
	whole map[string]int32  // tokens by their bytes, when words may be taken whole
}

type merged struct{ rank, id int32 }

// pairsOf is the look-up table of merges.
func pairsOf(merges []string, ids map[string]int32) map[uint64]merged {
	pairs := make(map[uint64]merged, len(merges))
	for rank, m := range merges {
		left, right, _ := splitMerge(m)
		key := pairKey(ids[left], ids[right])
		if _, twice := pairs[key]; !twice {
			pairs[key] = merged{int32(rank), ids[left+right]}
		}
	}
	return pairs
}

func pairKey(a, b int32) uint64 { return uint64(uint32(a))<<32 | uint64(uint32(b)) }

func newBPE(v *Vocab) (*bpe, error) {
	row := preByName(v.Pre)
	if row == nil {
		return nil, invalid("pre-tokenizer %q: encoding text with it is not supported", v.Pre)
	}
	merges := v.Merges
	if merges == nil {
		merges = v.mergesOfIDs()
	}
	b := &bpe{steps: row.steps}
	takeWhole := slices.Contains(wholeWords, v.Pre)
	if v.source != nil {
		b.steps, takeWhole = v.source.steps, v.source.ignoreMerges
	}
	ids, err := v.index()
	if err != nil {
		return nil, err
	}
	for i, r := range byteRunes {
		b.bytes[i] = -1
		if id, ok := ids[string(r)]; ok {
			b.bytes[i] = id
		}
	}
	b.pairs = pairsOf(merges, ids)
	if takeWhole {
		b.whole = make(map[string]int32, len(v.Tokens))
		for id, text := range v.Tokens {
			if raw, ok := fromAlphabet(text); ok && v.typeOf(id) == TypeNormal {
				b.whole[string(raw)] = int32(id)
			}
		}
	}
	return b, nil
}

func (b *bpe) cut(s string, _ bool, word func(string)) { b.steps.cut(s, word) }

// encode drops bytes for which there is no token, as the tokenizers library
// and llama.cpp do; vocabularies of real models have all 256.
func (b *bpe) encode(ids []int32, word string, m *merger) []int32 {
	if id, ok := b.whole[word]; ok {
		return append(ids, id)
	}
	m.reset()
	for i := range len(word) {
		if id := b.bytes[word[i]]; id >= 0 {
			m.add(i, i+1, id)
		}
	}
	m.runPairs(b.pairs)
	for i := range m.nodes {
		if m.nodes[i].next != gone {
			ids = append(ids, m.nodes[i].id)
		}
	}
	return ids
}
