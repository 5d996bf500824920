package tokenizer

import (
	"fmt"
	"strings"
	"sync"
	"unicode"
	"unicode/utf8"

	"github.com/dlclark/regexp2"
)

// The Unicode classes that split patterns ask for, one bit each.
const (
	letter = 1 << iota // \p{L}
	number             // \p{N}
	mark               // \p{M}
	punct              // \p{P}
	symbol             // \p{S}
	space              // \s: the property White_Space
	upper              // \p{Lu} and \p{Lt}
	lower              // \p{Ll}
)

// classes holds the classes of every code point, about 1 MiB.
var classes = sync.OnceValue(func() *[unicode.MaxRune + 1]uint8 {
	t := new([unicode.MaxRune + 1]uint8)
	for bit, tables := range map[uint8][]*unicode.RangeTable{
		letter: {unicode.L}, number: {unicode.N}, mark: {unicode.M}, punct: {unicode.P},
		symbol: {unicode.S}, space: {unicode.White_Space}, upper: {unicode.Lu, unicode.Lt}, lower: {unicode.Ll},
	} {
		for _, table := range tables {
			for _, r := range table.R16 {
				for c := rune(r.Lo); c <= rune(r.Hi); c += rune(r.Stride) {
					t[c] |= bit
				}
			}
			for _, r := range table.R32 {
				for c := rune(r.Lo); c <= rune(r.Hi); c += rune(r.Stride) {
					t[c] |= bit
				}
			}
		}
	}
	return t
})

// text is a piece of text together with the class table, so that matchers
// need no look-up of their own.
type text struct {
	s     string
	class *[unicode.MaxRune + 1]uint8
}

// at returns the rune at byte i, its classes and its width; the width is 0 at
// the end. A byte that is not UTF-8 counts as U+FFFD, as wide as itself.
func (t text) at(i int) (r rune, class uint8, width int) {
	if i >= len(t.s) {
		return 0, 0, 0
	}
	if b := t.s[i]; b < utf8.RuneSelf {
		return rune(b), t.class[b], 1
	}
	r, width = utf8.DecodeRuneInString(t.s[i:])
	return r, t.class[r], width
}

// run returns the end of the longest run of runes of class mask from i.
func (t text) run(i int, mask uint8) int {
	for {
		_, c, n := t.at(i)
		if n == 0 || c&mask == 0 {
			return i
		}
		i += n
	}
}

// runNot returns the end of the longest run of runes outside class mask from i.
func (t text) runNot(i int, mask uint8) int {
	for {
		_, c, n := t.at(i)
		if n == 0 || c&mask != 0 {
			return i
		}
		i += n
	}
}

// runOf returns the end of the longest run of runes that in accepts, from i.
func (t text) runOf(i int, in func(rune) bool) int {
	for {
		r, _, n := t.at(i)
		if n == 0 || !in(r) {
			return i
		}
		i += n
	}
}

// alternative is one branch of a split pattern: the regular expression as
// tokenizer.json files spell it, and the hand-written matcher for it. match
// returns the end of the match at byte i, or i when there is none; it is nil
// for patterns that only the regular expression engine handles.
type alternative struct {
	re    string
	match func(t text, i int) int
}

// contractions returns a matcher for 's 't 're 've 'm 'll 'd. With fold, case
// is ignored as Unicode folds it, so that ſ (U+017F) is an s.
func contractions(fold bool) func(text, int) int {
	return func(t text, i int) int { return t.contraction(i, fold) }
}

func (t text) contraction(i int, fold bool) int {
	if i+1 >= len(t.s) || t.s[i] != '\'' {
		return i
	}
	if fold && strings.HasPrefix(t.s[i+1:], "ſ") {
		return i + 1 + len("ſ")
	}
	low := func(j int) byte {
		if j >= len(t.s) {
			return 0
		}
		if b := t.s[j]; fold && b >= 'A' && b <= 'Z' {
			return b + 'a' - 'A'
		}
		return t.s[j]
	}
	switch a, b := low(i+1), low(i+2); {
	case a == 's' || a == 't' || a == 'm' || a == 'd':
		return i + 2
	case a == 'r' && b == 'e' || a == 'v' && b == 'e' || a == 'l' && b == 'l':
		return i + 3
	}
	return i
}

// wordAfter matches [^\r\n+not]?[body]+ for class masks not and body.
func wordAfter(not, body uint8) func(text, int) int {
	return func(t text, i int) int {
		if r, c, n := t.at(i); n > 0 && r != '\r' && r != '\n' && c&not == 0 {
			if e := t.run(i+n, body); e > i+n {
				return e
			}
		}
		return t.run(i, body)
	}
}

// spaced matches " ?" followed by at least one rune of run, then any number
// of bytes of tail.
func spaced(run func(t text, i int) int, tail string) func(text, int) int {
	return func(t text, i int) int {
		j := i
		if j < len(t.s) && t.s[j] == ' ' {
			j++
		}
		e := run(t, j)
		if e == j {
			return i
		}
		for e < len(t.s) && strings.IndexByte(tail, t.s[e]) >= 0 {
			e++
		}
		return e
	}
}

func in(mask uint8) func(text, int) int { return func(t text, i int) int { return t.run(i, mask) } }
func notIn(mask uint8) func(text, int) int {
	return func(t text, i int) int { return t.runNot(i, mask) }
}

// upTo matches between one and limit runes of class mask.
func upTo(limit int, mask uint8) func(text, int) int {
	return func(t text, i int) int {
		for k := 0; k < limit; k++ {
			_, c, n := t.at(i)
			if n == 0 || c&mask == 0 {
				break
			}
			i += n
		}
		return i
	}
}

// lineEnds matches \s*[\r\n]+ and \s*[\r\n], which are the same: white space
// up to and including its last line break.
func lineEnds(t text, i int) int {
	last := i
	for {
		r, c, n := t.at(i)
		if n == 0 || c&space == 0 {
			return last
		}
		i += n
		if r == '\r' || r == '\n' {
			last = i
		}
	}
}

// spacesBefore matches \s+(?!\S): a run of white space without its last rune,
// unless the text ends with it.
func spacesBefore(t text, i int) int {
	last := i
	for {
		_, c, n := t.at(i)
		if n == 0 {
			return i
		}
		if c&space == 0 {
			return last
		}
		last = i
		i += n
	}
}

// spacesAtEnd matches \s+$.
func spacesAtEnd(t text, i int) int {
	if e := t.run(i, space); e == len(t.s) {
		return e
	}
	return i
}

// spaceThen matches \s?[set]+, where the set itself may hold white space.
func spaceThen(set func(rune) bool) func(text, int) int {
	return func(t text, i int) int {
		if _, c, n := t.at(i); n > 0 && c&space != 0 {
			if e := t.runOf(i+n, set); e > i+n {
				return e
			}
		}
		return t.runOf(i, set)
	}
}

// ofClass is the set of the runes of class mask.
func ofClass(mask uint8) func(rune) bool {
	return func(r rune) bool { return classes()[r]&mask != 0 }
}

// rangesOf parses what stands between the brackets of a plain character
// class, such as "A-Zµ": no escapes and no negation.
func rangesOf(class string) func(rune) bool {
	type span struct{ lo, hi rune }
	var spans []span
	for rs := []rune(class); len(rs) > 0; {
		if len(rs) >= 3 && rs[1] == '-' {
			spans = append(spans, span{rs[0], rs[2]})
			rs = rs[3:]
			continue
		}
		spans = append(spans, span{rs[0], rs[0]})
		rs = rs[1:]
	}
	return func(r rune) bool {
		for _, s := range spans {
			if s.lo <= r && r <= s.hi {
				return true
			}
		}
		return false
	}
}

// asciiWord matches an ASCII punctuation mark followed by ASCII letters.
func asciiWord(t text, i int) int {
	if r, c, n := t.at(i); n != 1 || r >= utf8.RuneSelf || c&(punct|symbol) == 0 {
		return i
	}
	e := i + 1
	for e < len(t.s) && (t.s[e] >= 'a' && t.s[e] <= 'z' || t.s[e] >= 'A' && t.s[e] <= 'Z') {
		e++
	}
	if e == i+1 {
		return i
	}
	return e
}

// casedWord matches the two word branches of OpenAI's o200k pattern: with U =
// Lu Lt Lm Lo M and V = Ll Lm Lo M, [^\r\n\p{L}\p{N}]?U*V+ and else
// [^\r\n\p{L}\p{N}]?U+V*. With suffix, a contraction may follow; with noHan,
// U and V leave Chinese characters out.
func casedWord(suffix, noHan bool) func(text, int) int {
	return func(t text, i int) int {
		for _, upperFirst := range [...]bool{false, true} {
			e := i
			if r, c, n := t.at(i); n > 0 && r != '\r' && r != '\n' && c&(letter|number) == 0 {
				e = t.cased(i+n, upperFirst, noHan)
				if e == i+n {
					e = i
				}
			}
			if e == i {
				e = t.cased(i, upperFirst, noHan)
			}
			if e > i && suffix {
				return t.contraction(e, true)
			}
			if e > i {
				return e
			}
		}
		return i
	}
}

// cased matches U*V+, or U+V* when upperFirst is set, as in casedWord.
func (t text) cased(i int, upperFirst, noHan bool) int {
	start, both := i, i // both: the end of the last rune that is in U and in V
	for {
		r, c, n := t.at(i)
		if n == 0 || c&(letter|mark) == 0 || c&lower != 0 || noHan && unicode.Is(unicode.Han, r) {
			break
		}
		i += n
		if c&upper == 0 {
			both = i
		}
	}
	end := i
	for {
		r, c, n := t.at(end)
		if n == 0 || c&(letter|mark) == 0 || c&upper != 0 || noHan && unicode.Is(unicode.Han, r) {
			break
		}
		end += n
	}
	switch {
	case upperFirst && i > start:
		return end
	case !upperFirst && end > i:
		return end
	case !upperFirst:
		return both // U* gives runes back until V+ has one
	}
	return start
}

// hanRun matches \p{Han}+.
func hanRun(t text, i int) int {
	return t.runOf(i, func(r rune) bool { return r >= 0x2E80 && unicode.Is(unicode.Han, r) })
}

// splitter cuts text into words: every step cuts the pieces of the one before.
type splitter []step

// step is one stage of a pre-tokenizer. form names it as the structure of a
// tokenizer.json does, alts are the branches of its pattern in order; a step
// without branches cuts nothing.
type step struct {
	form     string
	alts     []alternative
	re       *regexp2.Regexp // used when a branch has no matcher
	bytewise bool            // matches may begin inside a rune
}

// pattern joins the branches to the regular expression of the step.
func pattern(alts []alternative) string {
	res := make([]string, len(alts))
	for i, a := range alts {
		res[i] = a.re
	}
	return strings.Join(res, "|")
}

// splitStep returns the step for a "Split" pre-tokenizer with behaviour
// "Isolated": matches and what lies between them become pieces.
func splitStep(alts ...alternative) step {
	st := step{form: splitForm(pattern(alts)), alts: alts}
	for _, a := range alts {
		if a.match == nil {
			st.re = regexp2.MustCompile(engineRegex(pattern(alts)), regexp2.None)
		}
	}
	return st
}

func splitForm(re string) string { return fmt.Sprintf("Split %s", normalizeRegex(re)) }

// cut calls emit for every word of s, in order. Words are parts of s and
// together make up s.
func (sp splitter) cut(s string, emit func(word string)) {
	for len(sp) > 0 && len(sp[0].alts) == 0 {
		sp = sp[1:]
	}
	if s == "" {
		return
	}
	if len(sp) == 0 {
		emit(s)
		return
	}
	rest := sp[1:]
	piece := func(p string) { rest.cut(p, emit) }
	if sp[0].re != nil {
		cutRegexp(sp[0].re, s, piece)
		return
	}
	sp[0].scan(s, piece)
}

// scan tries the branches at every byte position, which is what a leftmost
// search with ordered alternatives does.
func (st *step) scan(s string, emit func(string)) {
	t := text{s, classes()}
	from := 0 // start of what no branch has matched yet
	for i := 0; i < len(s); {
		end := i
		for _, a := range st.alts {
			if end = a.match(t, i); end > i {
				break
			}
		}
		if end == i {
			if _, _, n := t.at(i); !st.bytewise {
				i += n - 1
			}
			i++
			continue
		}
		if from < i {
			emit(s[from:i])
		}
		emit(s[i:end])
		i, from = end, end
	}
	if from < len(s) {
		emit(s[from:])
	}
}

// cutRegexp cuts with a regular expression. Matching errors (a pattern that
// runs into its time limit) leave the rest of s in one piece.
func cutRegexp(re *regexp2.Regexp, s string, emit func(string)) {
	offsets := make([]int, 0, len(s)+1) // byte offset of every rune
	for i := 0; i < len(s); {
		offsets = append(offsets, i)
		_, n := utf8.DecodeRuneInString(s[i:])
		i += n
	}
	offsets = append(offsets, len(s))
	from := 0
	m, err := re.FindRunesMatch([]rune(s))
	for err == nil && m != nil {
		i, end := offsets[m.Index], offsets[m.Index+m.Length]
		if from < i {
			emit(s[from:i])
		}
		if i < end {
			emit(s[i:end])
		}
		from = end
		m, err = re.FindNextMatch(m)
	}
	if from < len(s) {
		emit(s[from:])
	}
}
