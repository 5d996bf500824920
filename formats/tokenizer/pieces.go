package tokenizer

import (
	"strings"
	"unicode/utf8"
)

// spacing says what happens to the spaces of a text, besides being written as
// U+2581, before vocabularies other than byte-level ones cut it.
type spacing struct {
	prefix  bool // one is put before the text
	once    bool // … but not behind added tokens
	single  bool // … nor where there is one
	squeeze bool // runs become one, those at the ends go
	each    bool // every one begins a word, also within a run
}

// pieceCutter cuts text into words for such vocabularies. Words begin with
// their spaces, and give the same tokens as the text in one go.
type pieceCutter struct {
	spacing
	// glued are the characters behind which a space does not begin a word,
	// because a token holds them with the space: Gemma 3 has one, ">▁</".
	glued map[rune]bool
}

func newPieceCutter(v *Vocab) pieceCutter {
	c := pieceCutter{spacing{prefix: v.spacePrefix(), squeeze: v.squeezes()}, map[rune]bool{}}
	if v.source != nil {
		c.spacing = v.source.spaces
	}
	for id, text := range v.Tokens {
		if kind := v.typeOf(id); kind != TypeUnused && kind != TypeByte {
			cutSpaces(text, func(_ int, before rune) { c.glued[before] = true })
		}
	}
	return c
}

// cutSpaces calls begin with the place of every run of spaces behind other
// text, and the character before it.
func cutSpaces(text string, begin func(i int, before rune)) {
	for i := 0; ; {
		i += len(text[i:]) - len(strings.TrimLeft(text[i:], "▁"))
		next := strings.Index(text[i:], "▁")
		if next < 0 {
			return
		}
		i += next
		before, _ := utf8.DecodeLastRuneInString(text[:i])
		begin(i, before)
	}
}

func (c *pieceCutter) cut(text string, first bool, word func(string)) {
	if c.squeeze {
		text = squeezed(text)
	}
	if first && c.prefix && text != "" && (!c.single || (text[0] != ' ' && !strings.HasPrefix(text, "▁"))) {
		text = " " + text
	}
	text = strings.ReplaceAll(text, " ", "▁")
	start := 0
	emit := func(end int) {
		if end > start {
			word(text[start:end])
			start = end
		}
	}
	if c.each {
		for i, r := range text {
			if r == '▁' {
				emit(i)
			}
		}
	} else {
		cutSpaces(text, func(i int, before rune) {
			if !c.glued[before] {
				emit(i)
			}
		})
	}
	emit(len(text))
}

// squeezed leaves one space of every run and none at the ends.
func squeezed(s string) string {
	return strings.Join(strings.FieldsFunc(s, func(r rune) bool { return r == ' ' }), " ")
}

// byteTokens are the tokens <0xHH> for text that is no token.
type byteTokens struct {
	ids      [256]int32 // -1 where there is none
	complete bool
	unknown  int32 // -1 where there is none
}

func newByteTokens(v *Vocab) byteTokens {
	b := byteTokens{unknown: -1}
	if id, ok := v.ID("unk"); ok {
		b.unknown = id
	}
	n := 0
	for i := range b.ids {
		b.ids[i] = -1
	}
	for id, text := range v.Tokens {
		if v.typeOf(id) != TypeByte {
			continue
		}
		if c, ok := byteOfToken(text); ok && b.ids[c] < 0 {
			b.ids[c] = int32(id)
			n++
		}
	}
	b.complete = n == len(b.ids)
	return b
}

// each appends a token for every byte of text, unk where it is missing.
func (b *byteTokens) each(ids []int32, text string) []int32 {
	for i := range len(text) {
		id := b.ids[text[i]]
		if id < 0 {
			id = b.unknown
		}
		if id >= 0 {
			ids = append(ids, id)
		}
	}
	return ids
}

// run appends the tokens of the bytes of text, or else one unk for all of it.
func (b *byteTokens) run(ids []int32, text string) []int32 {
	switch {
	case b.complete:
		return b.each(ids, text)
	case b.unknown >= 0:
		return append(ids, b.unknown)
	}
	return ids
}

// pieceIDs maps texts to the tokens that stand for them.
func (v *Vocab) pieceIDs() map[string]int32 {
	ids := make(map[string]int32, len(v.Tokens))
	for id, text := range v.Tokens {
		if kind := v.typeOf(id); kind == TypeNormal || kind == TypeUserDefined {
			ids[text] = int32(id)
		}
	}
	return ids
}

// addRunes makes a node of every character of word.
func (m *merger) addRunes(word string, ids map[string]int32) {
	for i := 0; i < len(word); {
		_, n := utf8.DecodeRuneInString(word[i:])
		id, ok := ids[word[i:i+n]]
		if !ok {
			id = -1
		}
		m.add(i, i+n, id)
		i += n
	}
}

// spm encodes words by merging characters in the order of token scores, with
// bytes for characters that are no token.
type spm struct {
	pieceCutter
	ids    map[string]int32
	scores []float32
	bytes  byteTokens
}

func newSPM(v *Vocab) *spm {
	return &spm{newPieceCutter(v), v.pieceIDs(), v.Scores, newByteTokens(v)}
}

func (s *spm) encode(ids []int32, word string, m *merger) []int32 {
	m.reset()
	m.addRunes(word, s.ids)
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
			ids = s.bytes.each(ids, word[n.from:n.to])
		}
	}
	return ids
}

// charBPE encodes words by merging characters in the order of the merges, with
// bytes for characters that are no token (the tokenizers library's BPE with
// byte_fallback and fuse_unk).
type charBPE struct {
	pieceCutter
	ids   map[string]int32
	pairs map[uint64]merged
	bytes byteTokens
}

func newCharBPE(v *Vocab) (*charBPE, error) {
	ids, err := v.index()
	if err != nil {
		return nil, err
	}
	return &charBPE{newPieceCutter(v), v.pieceIDs(), pairsOf(v.Merges, ids), newByteTokens(v)}, nil
}

func (b *charBPE) encode(ids []int32, word string, m *merger) []int32 {
	m.reset()
	m.addRunes(word, b.ids)
	m.runPairs(b.pairs)
	unknown := int32(-1) // where text without a token begins
	for _, n := range m.nodes {
		switch {
		case n.next == gone:
			continue
		case n.id < 0 && unknown < 0:
			unknown = n.from
		}
		if n.id < 0 {
			if n.next < 0 {
				ids = b.bytes.run(ids, word[unknown:n.to])
			}
			continue
		}
		if unknown >= 0 {
			ids = b.bytes.run(ids, word[unknown:n.from])
			unknown = -1
		}
		ids = append(ids, n.id)
	}
	return ids
}

// unmergedSpaces returns the tokens of white space that no merge leads to.
// They must be added tokens of the tokenizer.json, such as Gemma's line
// breaks; the GGUF form gives them the type of any other token.
func (v *Vocab) unmergedSpaces() []addedToken {
	made := make(map[string]bool, len(v.Merges))
	for _, m := range v.Merges {
		if left, right, ok := splitMerge(m); ok {
			made[left+right] = true
		}
	}
	var added []addedToken
	for id, text := range v.Tokens {
		plain := strings.ReplaceAll(text, "▁", " ")
		if v.typeOf(id) == TypeNormal && utf8.RuneCountInString(text) > 1 && !made[text] && strings.TrimSpace(plain) == "" {
			added = append(added, addedToken{id: int64(id), text: plain})
		}
	}
	return added
}

// unigram finds the tokens of a word whose scores add up to most (Viterbi);
// they are logarithms of probabilities. Text that no token covers costs
// unknownPenalty more than the rarest token and becomes bytes or unk.
type unigram struct {
	pieceCutter
	texts  *prefixes
	ids    []int32   // by index in texts
	scores []float64 // likewise
	rarest float64
	bytes  byteTokens
}

// unknownPenalty is kUnkPenalty of SentencePiece's unigram_model.cc.
const unknownPenalty = 10

func newUnigram(v *Vocab) *unigram {
	u := &unigram{pieceCutter: newPieceCutter(v), bytes: newByteTokens(v)}
	pieces := v.pieceIDs()
	delete(pieces, "")
	sorted := sortedKeys(pieces)
	u.texts = newPrefixes(sorted)
	for _, text := range sorted {
		id := pieces[text]
		score := float64(v.Scores[id])
		if v.typeOf(int(id)) == TypeUserDefined {
			score = 0 // as in llama.cpp; normal tokens have less
		} else {
			u.rarest = min(u.rarest, score)
		}
		u.ids, u.scores = append(u.ids, id), append(u.scores, score)
	}
	return u
}

// lattice is the best way to every byte of a word.
type lattice struct {
	score []float64
	from  []int32
	index []int32 // in unigram.texts; -1 for text without a token, -2 for no way
}

func (l *lattice) offer(at int, score float64, from, index int32) {
	if l.index[at] == -2 || score > l.score[at] {
		l.score[at], l.from[at], l.index[at] = score, from, index
	}
}

func (u *unigram) encode(ids []int32, word string, _ *merger) []int32 {
	n := len(word)
	l := lattice{make([]float64, n+1), make([]int32, n+1), make([]int32, n+1)}
	for i := 1; i <= n; i++ {
		l.index[i] = -2
	}
	for i := 0; i < n; {
		_, width := utf8.DecodeRuneInString(word[i:])
		known := false
		u.texts.walk(word[i:], func(k int) {
			size := len(u.texts.texts[k])
			known = known || size == width
			l.offer(i+size, l.score[i]+u.scores[k], int32(i), int32(k))
		})
		if !known {
			l.offer(i+width, l.score[i]+u.rarest-unknownPenalty, int32(i), -1)
		}
		i += width
	}
	return u.collect(ids, word, &l)
}

// collect appends the tokens of the best way, neighbours without a token as one.
func (u *unigram) collect(ids []int32, word string, l *lattice) []int32 {
	var ends []int
	for i := len(word); i > 0; i = int(l.from[i]) {
		ends = append(ends, i)
	}
	unknown := -1
	for k := len(ends) - 1; k >= 0; k-- {
		end := ends[k]
		from, index := int(l.from[end]), l.index[end]
		if index < 0 && unknown < 0 {
			unknown = from
		}
		if index >= 0 {
			if unknown >= 0 {
				ids = u.bytes.run(ids, word[unknown:from])
				unknown = -1
			}
			ids = append(ids, u.ids[index])
		}
	}
	if unknown >= 0 {
		ids = u.bytes.run(ids, word[unknown:])
	}
	return ids
}
