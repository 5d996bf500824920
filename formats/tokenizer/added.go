package tokenizer

import (
	"sort"
	"strings"
	"unicode"
	"unicode/utf8"
)

// matcher finds tokens that are taken out of the text before it is cut into
// words: at every position the longest one, as the tokenizers library does.
type matcher struct {
	tokens []addedToken // sorted by text
	texts  *prefixes
}

func newMatcher(tokens []addedToken) *matcher {
	sort.SliceStable(tokens, func(i, j int) bool { return tokens[i].text < tokens[j].text })
	texts := make([]string, len(tokens))
	for i := range tokens {
		texts[i] = tokens[i].text
	}
	return &matcher{tokens, newPrefixes(texts)}
}

// longest returns the longest token that s begins with at byte i; nil when
// there is none. Without control, control tokens are left alone.
func (m *matcher) longest(s string, i int, control bool) (best *addedToken) {
	m.texts.walk(s[i:], func(k int) {
		if t := &m.tokens[k]; (control || !t.special) && (!t.singleWord || alone(s, i, i+len(t.text))) {
			best = t
		}
	})
	return best
}

// alone reports whether s[i:j] is not part of a longer word.
func alone(s string, i, j int) bool {
	before, _ := utf8.DecodeLastRuneInString(s[:i])
	after, _ := utf8.DecodeRuneInString(s[j:])
	return (i == 0 || !wordRune(before)) && (j == len(s) || !wordRune(after))
}

func wordRune(r rune) bool { return r == '_' || classes()[r]&(letter|number|mark) != 0 }

// cut calls text for what lies between tokens and token for every token.
func (m *matcher) cut(s string, control bool, text func(string), token func(id int32)) {
	from := 0
	for i := 0; i < len(s); {
		t := m.longest(s, i, control)
		if t == nil {
			i++
			continue
		}
		end := i + len(t.text)
		before := s[from:i]
		if t.lstrip {
			before = strings.TrimRightFunc(before, unicode.IsSpace)
		}
		if before != "" {
			text(before)
		}
		token(int32(t.id))
		if t.rstrip {
			end = len(s) - len(strings.TrimLeftFunc(s[end:], unicode.IsSpace))
		}
		i, from = end, end
	}
	if from < len(s) {
		text(s[from:])
	}
}
