package tokenizer

import (
	"encoding/json"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/dlclark/regexp2"
)

// Branches that several patterns share. The regular expressions are those of
// the tokenizer.json files, after normalizeRegex.
var (
	contraction      = alternative{`(?i:'s|'t|'re|'ve|'m|'ll|'d)`, contractions(true)}
	shortContraction = alternative{`'(?i:[sdmt]|ll|ve|re)`, contractions(true)}
	word             = alternative{`[^\r\n\p{L}\p{N}]?\p{L}+`, wordAfter(letter|number, letter)}
	markedWord       = alternative{`[^\r\n\p{L}\p{N}]?[\p{L}\p{M}]+`, wordAfter(letter|number, letter|mark)}
	digit            = alternative{`\p{N}`, upTo(1, number)}
	digits3          = alternative{`\p{N}{1,3}`, upTo(3, number)}
	marks            = alternative{` ?[^\s\p{L}\p{N}]+[\r\n]*`, spaced(notIn(space|letter|number), "\r\n")}
	marksSlash       = alternative{` ?[^\s\p{L}\p{N}]+[\r\n/]*`, spaced(notIn(space|letter|number), "\r\n/")}
	lines            = alternative{`\s*[\r\n]+`, lineEnds}
	line             = alternative{`\s*[\r\n]`, lineEnds}
	spaceRun         = alternative{`\s+(?!\S)`, spacesBefore}
	spaces           = alternative{`\s+`, in(space)}
	lineBreak        = alternative{`[\r\n]`, func(t text, i int) int {
		if i < len(t.s) && (t.s[i] == '\r' || t.s[i] == '\n') {
			return i + 1
		}
		return i
	}}
)

const (
	cased1  = `[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+`
	cased2  = `[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*`
	suffix  = `(?i:'s|'t|'re|'ve|'m|'ll|'d)?`
	noHanUp = `[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}&&[^\p{Han}]]`
	noHanLo = `[\p{Ll}\p{Lm}\p{Lo}\p{M}&&[^\p{Han}]]`
	cjk     = `[一-龥ࠀ-一가-퟿]+`
	// Letters of the Latin, Greek, Cyrillic, Armenian, Georgian, Cherokee …
	// scripts as DeepSeek LLM lists them. Escaped are those that editors compose.
	latin = "A-Za-zµÀ-ÖØ-öø-ƺƼ-ƿǄ-ʓʕ-ʯͰ-ͳͶͷͻ-ͽͿΆΈ-ΊΌΎ-ΡΣ-ϵϷ-ҁҊ-ԯԱ-ՖႠ-ჅᎠ-Ᏽᏸ-ᏽᲐ-ᲺᲽ-Ჿᴀ-ᴫᵫ-ᵷᵹ-ᶚḀ-ἕἘ-Ἕἠ-ὅὈ-Ὅὐ-ὗὙὛὝὟ-\u1F7Dᾀ-ᾴᾶ-ᾼ\u1FBEῂ-ῄῆ-ῌῐ-\u1FD3ῖ-\u1FDBῠ-Ῥῲ-ῴῶ-ῼℂℇℊ-ℓℕℙ-ℝℤ\u2126ℨ\u212A-ℭℯ-ℴℹℼ-ℿⅅ-ⅉⅎↃↄⰀ-ⱻⱾ-ⳤⳫ-ⳮⳲⳳꙀ-ꙭꚀ-ꚛꜢ-ꝯꝱ-ꞇꞋ-ꞎꭰ-ꮿﬀ-ﬆﬓ-ﬗＡ-Ｚａ-ｚ𐐀-𐑏𐒰-𐓓𐓘-𐓻𐲀-𐲲𐳀-𐳲𑢠-𑣟𞤀-𞥃"
	signs = `!-/:-~！-／：-～‘-‟　-。`
)

// Whole patterns that several rows use.
var (
	llama3Alts = []alternative{contraction, word, digits3, marks, lines, spaceRun, spaces}
	qwen2Alts  = []alternative{contraction, word, digit, marks, lines, spaceRun, spaces}
	o200kAlts  = []alternative{{cased1 + suffix + `|` + cased2 + suffix, casedWord(true, false)}, digits3, marksSlash, lines, spaceRun, spaces}
	gpt2Alts   = []alternative{
		{`'s|'t|'re|'ve|'m|'ll|'d`, contractions(false)},
		{` ?\p{L}+`, spaced(in(letter), "")},
		{` ?\p{N}+`, spaced(in(number), "")},
		{` ?[^\s\p{L}\p{N}]+`, spaced(notIn(space|letter|number), "")},
		spaceRun, spaces,
	}
	llama3 = splitStep(llama3Alts...)
	qwen2  = splitStep(qwen2Alts...)
	o200k  = splitStep(o200kAlts...)
	triple = splitStep(digits3)
	han    = splitStep(alternative{cjk, func(t text, i int) int { return t.runOf(i, cjkRunes) }})
	kana   = splitStep(alternative{`[一-龥぀-ゟ゠-ヿ]+`, func(t text, i int) int { return t.runOf(i, kanaRunes) }})

	cjkRunes  = rangesOf("一-龥ࠀ-一가-퟿")
	kanaRunes = rangesOf("一-龥぀-ゟ゠-ヿ")

	deepseek3 = splitStep(
		alternative{"[!\"#$%&'()*+,\\-./:;<=>?@\\[\\\\\\]^_`{|}~][A-Za-z]+", asciiWord},
		alternative{`[^\r\n\p{L}\p{P}\p{S}]?[\p{L}\p{M}]+`, wordAfter(letter|punct|symbol, letter|mark)},
		alternative{` ?[\p{P}\p{S}]+[\r\n]*`, spaced(in(punct|symbol), "\r\n")},
		lines, spaceRun, spaces)

	bloom     = splitStep(alternative{` ?[^(\s|.,!?…。，、।۔،)]+`, bloomWord})
	bloomWord = spaced(func(t text, i int) int {
		return t.runOf(i, func(r rune) bool { return classes()[r]&space == 0 && !bloomStops(r) })
	}, "")
	bloomStops = rangesOf("(|.,!?…。，、।۔،)")

	// The steps that are not patterns in tokenizer.json. Every structure ends
	// with ByteLevel; with use_regex it cuts as GPT-2 does.
	byteLevel   = step{form: "ByteLevel"}
	byteLevelRe = step{form: "ByteLevel(use_regex)", alts: gpt2Alts}
	digitsOne   = step{form: "Digits(individual)", alts: []alternative{digit}}
	punctuation = step{form: "Punctuation(contiguous)", alts: []alternative{{`[\p{P}\$\+<=>\^~\|` + "`]+", func(t text, i int) int { return t.runOf(i, punctRunes) }}}}
	// Falcon puts Digits after ByteLevel, where it sees the byte alphabet:
	// bytes that stand for ² ³ ¹ ¼ ½ ¾ there are numbers.
	byteDigits = step{form: "Digits", bytewise: true, alts: []alternative{{`[0-9²³¹¼½¾]+`, func(t text, i int) int {
		for i < len(t.s) && (t.s[i] >= '0' && t.s[i] <= '9' || strings.IndexByte("\xb2\xb3\xb9\xbc\xbd\xbe", t.s[i]) >= 0) {
			i++
		}
		return i
	}}}}
	asciiTriple = alternative{`[0-9][0-9][0-9]`, func(t text, i int) int {
		for k := range 3 {
			if i+k >= len(t.s) || t.s[i+k] < '0' || t.s[i+k] > '9' {
				return i
			}
		}
		return i + 3
	}}

	asciiSymbols = rangesOf("$+<=>^~|`")
	punctRunes   = func(r rune) bool { return classes()[r]&punct != 0 || asciiSymbols(r) }
)

// preTokenizer is one way of cutting text and the names that
// tokenizer.ggml.pre has for it. The first name is taken unless the caller
// prefers another.
type preTokenizer struct {
	names []string
	steps splitter
}

// preTokenizers is the table of all of them. Several rows may list the same
// names: tokenizer.json spells the same cut in several ways. Sources:
// tokenizer.json of the released models; names: llama.cpp's llama-vocab.cpp.
var preTokenizers = []preTokenizer{
	{llama3Names, splitter{llama3, byteLevel}},
	{llama3Names, splitter{splitStep(shortContraction, word, digits3, marks, line, spaceRun, spaces), byteLevel}},
	{[]string{"qwen2", "deepseek-r1-qwen", "megrez", "kormo", "f2llmv2", "stablelm2", "hunyuan", "solar-open", "grok-2"}, splitter{qwen2, byteLevel}},
	{[]string{"qwen35"}, splitter{splitStep(contraction, markedWord, digit,
		alternative{` ?[^\s\p{L}\p{M}\p{N}]+[\r\n]*`, spaced(notIn(space|letter|mark|number), "\r\n")},
		lines, spaceRun, spaces), byteLevel}},
	{[]string{"deepseek-v3", "hunyuan-dense", "joyai-llm", "hy_v4"}, splitter{triple, kana, deepseek3, byteLevel}},
	{[]string{"deepseek-llm"}, splitter{splitStep(lineBreak),
		splitStep(alternative{`\s?[` + latin + `]+`, spaceThen(rangesOf(latin))}),
		splitStep(alternative{`\s?[` + signs + `]+`, spaceThen(rangesOf(signs))}),
		splitStep(alternative{`\s+$`, spacesAtEnd}), han, digitsOne, byteLevel}},
	{[]string{"deepseek-coder"}, splitter{splitStep(lineBreak),
		splitStep(alternative{`\s?\p{L}+`, spaceThen(ofClass(letter))}),
		splitStep(alternative{`\s?\p{P}+`, spaceThen(ofClass(punct))}), han, digitsOne, byteLevel}},
	{[]string{"gpt-4o", "llama4", "kanana2", "talkie", "minimax-m2", "granite-embed-multi-97m"}, splitter{o200k, byteLevel}},
	{[]string{"tekken"}, splitter{splitStep(alternative{cased1 + `|` + cased2, casedWord(false, false)}, digit, marksSlash, lines, spaceRun, spaces), byteLevel}},
	{gpt2Names, splitter{byteLevelRe}},
	{gpt2Names, splitter{splitStep(gpt2Alts...), byteLevel}},
	{[]string{"starcoder", "refact", "command-r", "smollm", "codeshell", "exaone", "minerva-7b", "mellum2"}, splitter{digitsOne, byteLevelRe}},
	{[]string{"falcon"}, splitter{punctuation, byteLevelRe, byteDigits, splitStep(asciiTriple)}},
	{[]string{"bailingmoe", "bailingmoe2", "llada-moe"}, splitter{splitStep(shortContraction, word, digit, marks, line, spaceRun, spaces), byteLevel}},
	{[]string{"kimi-k2"}, splitter{splitStep(alternative{`[\p{Han}]+`, hanRun},
		alternative{`[^\r\n\p{L}\p{N}]?` + noHanUp + `*` + noHanLo + `+` + suffix + `|[^\r\n\p{L}\p{N}]?` + noHanUp + `+` + noHanLo + `*` + suffix, casedWord(true, true)},
		digits3, marks, lines, spaceRun, spaces), byteLevel}},
	{bloomNames, splitter{bloom, byteLevel}},
	{bloomNames, splitter{splitStep(alternative{` ?[^(\s|[.,!?…。，、।۔،])]+`, bloomWord}), byteLevel}},
	{[]string{"viking"}, splitter{bloom, digitsOne, byteLevel}},
	{[]string{"seed-coder"}, splitter{splitStep(contraction, word, alternative{`\p{N}{1}`, upTo(1, number)},
		alternative{` ?[^\s\p{L}\p{N}\r\n]+`, spaced(notIn(space|letter|number), "")}, lines, spaceRun, spaces), byteLevel}},
	{[]string{"tiny_aya", "cohere2moe"}, splitter{splitStep(alternative{`\d{1,3}(?=(?:\d{3})*\b)`, nil}), o200k, byteLevel}},
	{[]string{"laguna"}, splitter{splitStep(alternative{`[^\n]+|[\n]+`, nil}), qwen2, byteLevel}},
	{[]string{"exaone-moe"}, splitter{splitStep(contraction, alternative{`[^\r\n\p{L}\p{N}]?(?:\p{L}\p{M}*(?: \p{L}\p{M}*)*)+`, nil},
		digit, alternative{` ?[^\s\p{L}\p{N}]+[\r\n/]?`, nil}, line, spaceRun, spaces), byteLevel}},
	{[]string{"minicpm5"}, splitter{triple, splitStep(contraction, word, alternative{`\p{N}+`, in(number)}, marks, lines, spaceRun, spaces), byteLevel}},
	{[]string{"jais-2"}, splitter{splitStep(contraction, word, digits3, marks, lines, alternative{
		`\s{512}(?!\S)|\s{256}(?!\S)|\s{128}(?!\S)|\s{64}(?!\S)|\s{32}(?!\S)|\s{16}(?!\S)|\s{8}(?!\S)|\s{4}(?!\S)|\s{1,2}(?!\S)|\s{1}`, nil}), byteLevel}},
	{[]string{"ufakzeka"}, splitter{splitStep(word, digit, marks, lines, spaceRun, spaces), byteLevel}},
	// llama.cpp's cut for files without tokenizer.ggml.pre; no tokenizer.json has this structure.
	{[]string{"default"}, splitter{splitStep(alternative{`[\p{P}\$\+<=>\^~\|]+`, nil}), byteLevelRe, splitStep(alternative{`\p{N}+`, in(number)}), splitStep(asciiTriple)}},
}

var (
	llama3Names = []string{"llama-bpe", "llama3", "llama-v3", "falcon3", "falcon-h1", "pixtral", "midm-2.0", "lfm2", "jina-v5-nano", "glm4", "glm5", "chatglm-bpe", "dbrx", "smaug-bpe"}
	gpt2Names   = []string{"gpt-2", "olmo", "mpt", "phi-2", "jais", "gigachat", "exaone4", "a.x-4.0", "mellum", "modern-bert", "trillion", "granite-docling",
		"roberta-bpe", "jina-es", "jina-de", "jina-v1-en", "jina-v2-es", "jina-v2-de", "jina-v2-code"}
	bloomNames = []string{"bloom", "poro-chat", "gpt3-finnish"}
)

// unsupportedPre are names of llama.cpp whose cut is not implemented here:
// vocabularies with them can be copied but not used for encoding.
var unsupportedPre = []string{"afmoe", "chameleon", "gemma4", "granite-embed-multi-311m", "sarvam-moe", "spark2_5", "superbpe", "whitespace", "youtu"}

// wholeWords are the names under which a word that is a token is taken whole,
// without merging (tokenizer.json's ignore_merges).
var wholeWords = []string{"llama-bpe", "llama3", "llama-v3", "falcon3", "falcon-h1", "pixtral", "midm-2.0", "lfm2", "jina-v5-nano",
	"glm4", "glm5", "tekken", "youtu", "minicpm5", "granite-embed-multi-97m", "llama4"}

// bosByDefault are the names for which a file that has no add_bos_token key
// means true.
var bosByDefault = []string{"llama-bpe", "llama3", "llama-v3", "falcon3", "falcon-h1", "pixtral", "midm-2.0", "lfm2", "jina-v5-nano", "tekken", "chameleon"}

// preByName finds the row of a name; nil when there is none.
func preByName(name string) *preTokenizer {
	for i := range preTokenizers {
		if slices.Contains(preTokenizers[i].names, name) {
			return &preTokenizers[i]
		}
	}
	return nil
}

func knownPre(name string) bool {
	return preByName(name) != nil || slices.Contains(unsupportedPre, name)
}

// form is the structure as one string: the key of the table.
func (sp splitter) form() string {
	forms := make([]string, len(sp))
	for i, st := range sp {
		forms[i] = st.form
	}
	return strings.Join(forms, "; ")
}

// recognize returns the name for a pre_tokenizer structure: the first of
// prefer among the names of the structure's row, or the row's first name.
func recognize(sp splitter, prefer []string) (string, error) {
	form := sp.form()
	for _, row := range preTokenizers {
		if row.steps.form() != form {
			continue
		}
		for _, p := range prefer {
			if slices.Contains(row.names, p) {
				return p, nil
			}
		}
		return row.names[0], nil
	}
	msg := "no known pre-tokenizer cuts a probe text in the same way"
	if same := cutsAlike(sp); same != "" {
		msg = fmt.Sprintf("it cuts a probe text exactly as %q does, so --pre %s may be right", same, same)
	}
	return "", fmt.Errorf("pre_tokenizer structure %q is unknown (%s); name one with --pre NAME", form, msg)
}

// probe holds what pre-tokenizers treat differently: runs of spaces and line
// breaks, digits of several lengths and scripts, contractions in both cases,
// camel case, combining marks, punctuation before letters and line breaks,
// CJK, symbols and joined emoji.
const probe = "Hello world  it's IT'S we'LL x\n\n \n\t\ty = 3.14;\r\n  if(a_b){camelCaseHTTPServer()} 1 22 333 4444 55555 1234567 " +
	"$100 ½ Ⅷ ١٢٣ naïve e\u0301a\u0308 हिन्दी ไทย 我在apple工作1314天～「はい」カタカナ 한국어 Ünïcode ǅ ʰ //path/to.txt!!!\n/x ...\n\n 🙂🙂\u200d👩 <tag> \"q\" 'Tis   \n end  "

// cutsAlike names the first pre-tokenizer that cuts the probe text as sp
// does, or "" when none does.
func cutsAlike(sp splitter) string {
	want := sp.words(probe)
	for _, row := range preTokenizers {
		if slices.Equal(row.steps.words(probe), want) {
			return row.names[0]
		}
	}
	return ""
}

func (sp splitter) words(s string) []string {
	var words []string
	sp.cut(s, func(w string) { words = append(words, w) })
	return words
}

// normalizeRegex brings the spellings of one pattern together: control
// characters escaped, possessive quantifiers made greedy (every pattern of
// the table means the same with both), and the contractions spelled out in
// both cases folded.
func normalizeRegex(re string) string {
	var b strings.Builder
	var prev rune // the last rune outside classes and escapes, else 0
	class, escaped := 0, false
	for _, r := range re {
		switch {
		case r == '\n':
			b.WriteString(`\n`)
			prev = 0
		case r == '\r':
			b.WriteString(`\r`)
			prev = 0
		case r == '\t':
			b.WriteString(`\t`)
			prev = 0
		case escaped:
			escaped, prev = false, 0
			b.WriteRune(r)
		case r == '\\':
			escaped = true
			b.WriteRune(r)
		case r == '[':
			class, prev = class+1, 0
			b.WriteRune(r)
		case r == ']' && class > 0:
			class, prev = class-1, 0
			b.WriteRune(r)
		case class == 0 && r == '+' && (prev == '?' || prev == '+' || prev == '*'):
			prev = 0
		default:
			if prev = r; class > 0 {
				prev = 0
			}
			b.WriteRune(r)
		}
	}
	return strings.ReplaceAll(b.String(), `(?:'[sS]|'[tT]|'[rR][eE]|'[vV][eE]|'[mM]|'[lL][lL]|'[dD])`, contraction.re)
}

// engineRegex translates a pattern for the regular expression engine, which
// knows no possessive quantifiers, subtracts classes in its own way and does
// not fold ſ to s.
func engineRegex(re string) string { return engineSpelling.Replace(normalizeRegex(re)) }

var engineSpelling = strings.NewReplacer(`&&[^\p{Han}]`, `-[\p{Han}]`, `(?i:'s|`, `(?i:'s|'ſ|`, `(?i:[sdmt]`, `(?i:[sſdmt]`)

// Bounds for patterns that come from a file: they are only compared and tried
// on the probe text.
const (
	maxRegexBytes = 16 << 10
	maxRegexTime  = 20 * time.Millisecond // per match
	maxSteps      = 64
)

// splitterOf reads a pre_tokenizer object of tokenizer.json.
func splitterOf(v any) (splitter, error) {
	o, ok := v.(map[string]any)
	if !ok {
		return nil, fmt.Errorf("pre_tokenizer is missing or not an object, so its type is unknown")
	}
	if kind, _ := o["type"].(string); kind != "Sequence" {
		st, err := stepOf(o, true)
		return splitter{st}, err
	}
	list, ok := o["pretokenizers"].([]any)
	if !ok || len(list) > maxSteps {
		return nil, fmt.Errorf("pre_tokenizer: Sequence without a list of at most %d pretokenizers", maxSteps)
	}
	splits := 0
	for _, e := range list {
		if o, _ := e.(map[string]any); o["type"] == "Split" {
			splits++
		}
	}
	var sp splitter
	for _, e := range list {
		o, _ := e.(map[string]any)
		if o["type"] == "Sequence" {
			return nil, fmt.Errorf("pre_tokenizer: a Sequence inside a Sequence (nested) is not supported")
		}
		st, err := stepOf(o, splits == 1)
		if err != nil {
			return nil, err
		}
		sp = append(sp, st)
	}
	return sp, nil
}

// stepOf reads one pre-tokenizer. alone says that it is the only Split of its
// sequence: then dropping what no match covers (behaviour "Removed",
// inverted) is the same as isolating, because such patterns cover everything.
func stepOf(o map[string]any, alone bool) (step, error) {
	kind, _ := o["type"].(string)
	switch kind {
	case "ByteLevel":
		return byteLevelOf(o)
	case "Digits":
		if o["individual_digits"] == true {
			return digitsOne, nil
		}
		return byteDigits, nil
	case "Punctuation":
		if b, ok := o["behavior"].(string); ok && b != "Contiguous" {
			return step{}, fmt.Errorf("pre_tokenizer: Punctuation with behavior %q is not supported", b)
		}
		return punctuation, nil
	case "Split":
		return splitOf(o, alone)
	}
	return step{}, fmt.Errorf("pre_tokenizer type %q is unknown; name a known cut with --pre NAME", kind)
}

func byteLevelOf(o map[string]any) (step, error) {
	if o["add_prefix_space"] == true {
		return step{}, fmt.Errorf("pre_tokenizer: ByteLevel with add_prefix_space is not supported; name a known cut with --pre NAME")
	}
	// The tokenizers library reads an absent use_regex as true.
	if o["use_regex"] == false {
		return byteLevel, nil
	}
	return byteLevelRe, nil
}

func splitOf(o map[string]any, alone bool) (step, error) {
	p, _ := o["pattern"].(map[string]any)
	re, isRegex := p["Regex"].(string)
	behavior, _ := o["behavior"].(string)
	isolated := behavior == "Isolated" || behavior == "Removed" && o["invert"] == true && alone
	if !isRegex || !isolated {
		desc, _ := json.Marshal(o)
		return step{}, fmt.Errorf("pre_tokenizer: a Split that does not isolate the matches of a Regex is not supported: %.200q", desc)
	}
	if len(re) > maxRegexBytes {
		return step{}, fmt.Errorf("pre_tokenizer: a Regex of %d bytes, the limit is %d", len(re), maxRegexBytes)
	}
	// A pattern that the engine cannot read still has a form; it then cuts nothing.
	st := step{form: splitForm(re)}
	if c, err := regexp2.Compile(engineRegex(re), regexp2.None); err == nil {
		c.MatchTimeout = maxRegexTime
		st.re, st.alts = c, []alternative{{re: re}}
	}
	return st, nil
}
