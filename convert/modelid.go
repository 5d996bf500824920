package convert

import (
	"math"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"unicode"
	"unicode/utf8"
)

// modelID is what the name of a model says about it by the naming convention
// of GGUF files (ggml docs/gguf.md): BaseName-SizeLabel-FineTune-Version. Which
// word is which is guessed as gguf-py's metadata.py guesses it.
type modelID struct {
	org, name                          string // of "org/name"; org may be empty
	base, finetune, version, sizeLabel string // "" when the name does not tell
}

// nameWord is a word of a name, between hyphens.
type nameWord struct {
	text string
	kind wordKind
	base bool // part of the base name; a version may be both
}

type wordKind int

const (
	plainWord wordKind = iota
	sizeWord
	tuneWord
	versionWord
	typeWord // a quantization type
)

// What words look like. RE2's classes are ASCII.
var (
	versionForm = regexp.MustCompile(`(?i)^(v|iter)?\d+(\.\d+)*$`)
	typeForm    = regexp.MustCompile(`(?i)^(i?q\d(_\w)*|b?fp?(16|32))$`)
	// Sizes as in "7B", "A4B" (active parameters), "8x22B", "0.5B", "7b1", "xl".
	sizeForm = regexp.MustCompile(`(?i)^((A|\d+x)?\d+([._]\d+)?[KMBT]\d?|small|mini|medium|large|x?xl)$`)
	tuneForm = regexp.MustCompile(`(?i)^(chat|instruct|vision|lora)$`)
)

// parseModelID takes the name of a model or of a repository apart. params is the
// number of weights, 0 if unknown: what looks like a size but is far from that
// is a context length, which belongs to the fine-tune.
func parseModelID(id string, params int64) modelID {
	if strings.Contains(id, " ") {
		return modelID{name: id} // a title for people
	}
	m := modelID{name: id}
	if org, name, ok := strings.Cut(id, "/"); ok {
		m.name = name
		if !strings.HasPrefix(org, ".") { // "./name" is a path
			m.org = org
		}
	}
	var words []nameWord
	for text := range strings.SplitSeq(m.name, "-") {
		if text != "" {
			words = append(words, classify(text, len(words) == 0, params))
		}
	}
	dropWordySizes(words)
	markBase(words)
	m.base = joinWords(words, func(w nameWord) bool { return w.base })
	m.finetune = joinWords(words, func(w nameWord) bool { return w.kind == tuneWord })
	m.version = joinWords(words, func(w nameWord) bool { return w.kind == versionWord && !w.base })
	var sizes []string
	for _, w := range words {
		if w.kind == sizeWord && !slices.Contains(sizes, w.text) {
			sizes = append(sizes, w.text)
		}
	}
	m.sizeLabel = strings.Join(sizes, "-")
	if m.finetune == "" && m.version == "" && m.sizeLabel == "" {
		m.base = "" // it is the whole name, which says nothing
	}
	return m
}

func joinWords(words []nameWord, take func(nameWord) bool) string {
	var out []string
	for _, w := range words {
		if take(w) {
			out = append(out, w.text)
		}
	}
	return strings.Join(out, "-")
}

// classify says what kind of word text is by its looks. A name does not begin
// with a size or a fine-tune.
func classify(text string, first bool, params int64) nameWord {
	switch {
	case versionForm.MatchString(text):
		return nameWord{text: text, kind: versionWord}
	case typeForm.MatchString(text):
		return nameWord{text: strings.ToUpper(text), kind: typeWord}
	case !first && sizeForm.MatchString(text):
		return sizeOrContext(text, params)
	case !first && tuneForm.MatchString(text):
		return nameWord{text: text, kind: tuneWord}
	}
	return nameWord{text: text}
}

// sizeOrContext brings a size to one spelling, "7b1" to "7.1B", and tells sizes
// from context lengths such as "32k".
func sizeOrContext(text string, params int64) nameWord {
	text = strings.ReplaceAll(text, "_", ".")
	if n := len(text); isDigit(text[n-1]) {
		text = text[:n-2] + "." + text[n-1:] + text[n-2:n-1]
	}
	number, unit := text[:len(text)-1], text[len(text)-1:]
	if number != "" && isDigit(number[len(number)-1]) {
		unit = strings.ToUpper(unit)
	}
	f, err := strconv.ParseFloat(number, 64)
	f *= math.Pow(1000, float64(strings.Index(" KMBT", unit)))
	if err == nil && params > 0 && math.Abs(f-float64(params)) > float64(7*params/8) {
		return nameWord{text: number + strings.ToLower(unit), kind: tuneWord}
	}
	return nameWord{text: number + unit, kind: sizeWord}
}

func isDigit(c byte) bool { return c >= '0' && c <= '9' }

// dropWordySizes makes plain words of sizes such as "mini" where another size
// has digits.
func dropWordySizes(words []nameWord) {
	hasDigit := func(w nameWord) bool { return w.kind == sizeWord && strings.ContainsAny(w.text, "0123456789") }
	if !slices.ContainsFunc(words, hasDigit) {
		return
	}
	for i := range words {
		if words[i].kind == sizeWord && !hasDigit(words[i]) {
			words[i].kind = plainWord
		}
	}
}

// markBase finds the base name: the words up to the first that is something
// else, without the versions at its end. Plain words behind it are the fine-tune.
func markBase(words []nameWord) {
	end := 0
	for ; end < len(words); end++ {
		first, _ := utf8.DecodeRuneInString(words[end].text)
		if w := &words[end]; w.kind != versionWord && (w.kind != plainWord || !unicode.IsLetter(first)) {
			break
		}
		words[end].base = true
	}
	for i := end; i < len(words); i++ {
		if words[i].kind == plainWord {
			words[i].kind = tuneWord
		}
	}
	if end < len(words) {
		return
	}
	// Only a version that ends the whole name is the model's own.
	for i := len(words) - 1; i >= 0 && words[i].kind == versionWord; i-- {
		words[i].base = false
	}
}
