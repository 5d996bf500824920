package tokenizer

import (
	"bytes"
	"encoding/binary"
	"strings"
	"unicode/utf8"
)

// charsMap is SentencePiece's precompiled character map: it replaces
// characters and sequences of them, the longest that fits at every place
// (github.com/google/sentencepiece, src/normalizer.cc).
type charsMap struct {
	trie  []uint32 // a double array in the form of github.com/s-yata/darts-clone
	texts []byte   // the replacements, each with a zero byte behind it
}

// parseCharsMap reads the form in which files keep it: four bytes with the
// size of the trie, the trie, the replacements.
func parseCharsMap(raw []byte) (*charsMap, error) {
	if len(raw) < 4 {
		return nil, invalid("precompiled_charsmap of the tokenizer: %d bytes are too short for its header", len(raw))
	}
	n := uint64(binary.LittleEndian.Uint32(raw))
	if n+4 >= uint64(len(raw)) || n%4 != 0 || n == 0 {
		return nil, invalid("precompiled_charsmap of the tokenizer: its trie of %d bytes does not fit into %d bytes", n, len(raw))
	}
	m := &charsMap{trie: make([]uint32, n/4), texts: raw[4+n:]}
	for i := range m.trie {
		m.trie[i] = binary.LittleEndian.Uint32(raw[4+4*i:])
	}
	return m, nil
}

// unit returns one unit of the trie, zero outside.
func (m *charsMap) unit(i uint32) uint32 {
	if uint64(i) >= uint64(len(m.trie)) {
		return 0
	}
	return m.trie[i]
}

// offset is where the children of a unit lie, relative to it.
func offset(unit uint32) uint32 { return unit >> 10 << (unit & (1 << 9) >> 6) }

// longest returns the replacement of the longest known sequence that s begins
// with, and the length of the sequence; zero when there is none.
func (m *charsMap) longest(s string) (text []byte, n int) {
	const label, leaf, value = 1<<31 | 0xFF, 1 << 8, 1<<31 - 1
	node := offset(m.unit(0))
	for i := 0; i < len(s) && s[i] != 0; i++ {
		node ^= uint32(s[i])
		u := m.unit(node)
		if u&label != uint32(s[i]) {
			break
		}
		node ^= offset(u)
		if at := uint64(m.unit(node) & value); u&leaf != 0 && at < uint64(len(m.texts)) {
			text, n = m.texts[at:], i+1
		}
	}
	text, _, _ = bytes.Cut(text, []byte{0})
	return text, n
}

func (m *charsMap) apply(s string) string {
	var b strings.Builder
	for i := 0; i < len(s); {
		if text, n := m.longest(s[i:]); n > 0 {
			b.Write(text)
			i += n
			continue
		}
		r, n := utf8.DecodeRuneInString(s[i:])
		b.WriteRune(r) // bytes that are not UTF-8 become U+FFFD
		i += n
	}
	return b.String()
}
