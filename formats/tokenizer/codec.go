package tokenizer

import (
	"slices"
	"strings"
	"unicode/utf8"
)

// Tokenizer turns text into token ids and back. It does not change after
// Encoder returns it and is safe for concurrent use.
type Tokenizer struct {
	vocab *Vocab
	words wordEncoder
	// raw and late find added tokens, before and after normalising.
	raw, late *matcher
	norm      normalizer
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
// know no normalizer.
func (v *Vocab) Encoder() (*Tokenizer, error) {
	t := &Tokenizer{vocab: v}
	var err error
	if v.Model == ModelSPM {
		t.words = newSPM(v)
	} else if t.words, err = newBPE(v); err != nil {
		return nil, err
	}
	var raw, late []addedToken
	for _, a := range v.addedTokens() {
		// The matcher's special means: a control token, as GGUF types it.
		kind := v.typeOf(int(a.id))
		a.special = kind == TypeControl || kind == TypeUnknown
		if !a.normalized {
			raw = append(raw, a)
			continue
		}
		if a.text = v.source.norm.apply(a.text); a.text != "" {
			late = append(late, a)
		}
	}
	t.raw, t.late = newMatcher(raw), newMatcher(late)
	if v.source != nil {
		t.norm = v.source.norm
	}
	t.pieces = v.bytesOfTokens()
	return t, nil
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
	token := func(id int32) { ids, first = append(ids, id), true }
	plain := func(s string) {
		t.words.cut(s, first, word)
		first = false
	}
	t.raw.cut(text, opt.ParseSpecial, func(s string) {
		t.late.cut(t.norm.apply(s), opt.ParseSpecial, plain, token)
	}, token)
	if eos, ok := t.vocab.ID("eos"); ok && opt.AddSpecial && t.vocab.adds("eos", false) {
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
	if t.vocab.Model == ModelSPM && t.vocab.spacePrefix() && len(out) > 0 && out[0] == ' ' {
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
		case v.Model == ModelSPM:
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
	if v.source != nil {
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

func pairKey(a, b int32) uint64 { return uint64(uint32(a))<<32 | uint64(uint32(b)) }

func newBPE(v *Vocab) (*bpe, error) {
	row := preByName(v.Pre)
	if row == nil {
		return nil, invalid("pre-tokenizer %q: encoding text with it is not supported", v.Pre)
	}
	if v.Merges == nil {
		return nil, invalid("merges are missing: encoding by token rank (pre-tokenizer %q) is not supported", v.Pre)
	}
	b := &bpe{steps: row.steps, pairs: make(map[uint64]merged, len(v.Merges))}
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
	for rank, m := range v.Merges {
		left, right, _ := splitMerge(m)
		key := pairKey(ids[left], ids[right])
		if _, twice := b.pairs[key]; !twice {
			b.pairs[key] = merged{int32(rank), ids[left+right]}
		}
	}
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
	m.run(func(l, r *node) (float64, int32, bool) {
		p, ok := b.pairs[pairKey(l.id, r.id)]
		return float64(p.rank), p.id, ok
	})
	for i := range m.nodes {
		if m.nodes[i].next != gone {
			ids = append(ids, m.nodes[i].id)
		}
	}
	return ids
}

// spm encodes words by merging characters in the order of token scores, with
// bytes for characters that are no token.
type spm struct {
	ids     map[string]int32
	scores  []float32
	bytes   [256]int32
	unknown int32
	prefix  bool
	// split says that no token has a space behind other text, so that words
	// that begin with spaces can be encoded on their own.
	split bool
}

func newSPM(v *Vocab) *spm {
	s := &spm{ids: make(map[string]int32, len(v.Tokens)), scores: v.Scores, unknown: -1, prefix: v.spacePrefix(), split: true}
	if id, ok := v.ID("unk"); ok {
		s.unknown = id
	}
	for i := range s.bytes {
		s.bytes[i] = s.unknown
	}
	for id, text := range v.Tokens {
		switch v.typeOf(id) {
		case TypeNormal, TypeUserDefined:
			s.ids[text] = int32(id)
			inner := strings.TrimLeft(text, "▁")
			s.split = s.split && !strings.Contains(inner, "▁")
		case TypeByte:
			if b, ok := byteOfToken(text); ok {
				s.bytes[b] = int32(id)
			}
		}
	}
	return s
}

func (s *spm) cut(text string, first bool, word func(string)) {
	if first && s.prefix {
		text = " " + text
	}
	text = strings.ReplaceAll(text, " ", "▁")
	for s.split {
		// A word is a run of spaces and what follows up to the next space.
		spaces := len(text) - len(strings.TrimLeft(text, "▁"))
		next := strings.Index(text[spaces:], "▁")
		if next < 0 {
			break
		}
		word(text[:spaces+next])
		text = text[spaces+next:]
	}
	if text != "" {
		word(text)
	}
}

func (s *spm) encode(ids []int32, word string, m *merger) []int32 {
	m.reset()
	for i := 0; i < len(word); {
		_, n := utf8.DecodeRuneInString(word[i:])
		m.add(i, i+n, s.id(word[i:i+n]))
		i += n
	}
	m.run(func(l, r *node) (float64, int32, bool) {
		id, ok := s.ids[word[l.from:r.to]]
		if !ok {
			return 0, 0, false
		}
		return -float64(s.scores[id]), id, true
	})
	for _, n := range m.nodes {
		switch {
		case n.next == gone:
		case n.id >= 0:
			ids = append(ids, n.id)
		default:
			ids = s.fallback(ids, word[n.from:n.to])
		}
	}
	return ids
}

func (s *spm) id(text string) int32 {
	if id, ok := s.ids[text]; ok {
		return id
	}
	return -1
}

// fallback appends the byte tokens of text, or unk where they are missing.
func (s *spm) fallback(ids []int32, text string) []int32 {
	for i := range len(text) {
		if id := s.bytes[text[i]]; id >= 0 {
			ids = append(ids, id)
		}
	}
	return ids
}
