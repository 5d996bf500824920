package tokenizer

import (
	"encoding/json"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/dlclark/regexp2"

	"github.com/winnow-moe/winnow/testdata/fixtures"
)

// cuts are texts and how the tokenizers library cuts them; see testdata/pretok.py.
type cuts struct {
	Texts []string
	Rows  []struct {
		Pre          string
		PreTokenizer any `json:"pre_tokenizer"`
		Pieces       [][]int
	}
}

func readCuts(t testing.TB) cuts {
	var c cuts
	readJSON(t, filepath.Join("testdata", "pretok.json"), &c)
	return c
}

// TestStructures recognises the pre_tokenizer sections of released models and
// compares every cut with the tokenizers library.
func TestStructures(t *testing.T) {
	c := readCuts(t)
	for _, row := range c.Rows {
		sp, err := splitterOf(row.PreTokenizer)
		if err != nil {
			t.Fatalf("%s: %v", row.Pre, err)
		}
		name, err := recognize(sp, nil)
		if err != nil || name != row.Pre {
			t.Errorf("recognised %q as %q: %v", row.Pre, name, err)
			continue
		}
		steps := preByForm(sp.form())
		for i, text := range c.Texts {
			var got []int
			steps.cut(text, func(w string) { got = append(got, len(w)) })
			if !slices.Equal(got, row.Pieces[i]) {
				t.Errorf("%s cuts %q:\ngot  %v\nwant %v", row.Pre, text, got, row.Pieces[i])
			}
		}
	}
}

// engineStep is the same step with the regular expression engine, the test's
// oracle. It cannot read one pattern, which nests classes.
func engineStep(t testing.TB, st step) step {
	if len(st.alts) == 0 || st.bytewise || strings.Contains(st.form, "|[.,") {
		return st
	}
	re, err := regexp2.Compile(engineRegex(pattern(st.alts)), regexp2.None)
	if err != nil {
		t.Fatal(err)
	}
	return step{form: st.form, alts: st.alts, re: re}
}

// TestMatchers compares the hand-written matchers with the engine on random
// texts of what patterns tell apart.
func TestMatchers(t *testing.T) {
	parts := []string{" ", " ", "  ", "\n", "\r\n", "\t", "'", "s", "S", "LL", "ll", "re", "vE", "d", "ſ", "a", "Bc", "É", "ǅ", "ʰ", "中", "の", "ア", "한", "\u0301", "ก", "1", "22",
		"333", "½", "٣", "²", ".", ",!", "/", "(", "_", "$", "😀", "\u200d", "\u3000", "\u00a0", "\u0085", "|", "。", "«", "\x01", "\xff", "\u2028", "🙂", "𝐀", "𠀀", "\u1e9e"}
	rng := rand.New(rand.NewPCG(1, 2))
	for _, row := range preTokenizers {
		engine := make(splitter, len(row.steps))
		for i, st := range row.steps {
			engine[i] = engineStep(t, st)
		}
		for range 600 {
			var b strings.Builder
			for range 1 + rng.IntN(14) {
				b.WriteString(parts[rng.IntN(len(parts))])
			}
			compareCuts(t, row, engine, b.String())
		}
	}
}

func compareCuts(t *testing.T, row preTokenizer, engine splitter, s string) {
	t.Helper()
	got, want := row.steps.words(s), engine.words(s)
	if !slices.Equal(got, want) {
		t.Fatalf("%s cuts %q:\ngot  %q\nwant %q", row.names[0], s, got, want)
	}
	if strings.Join(got, "") != s {
		t.Fatalf("%s loses text of %q: %q", row.names[0], s, got)
	}
}

// TestMatchersOnText compares on whole texts.
func TestMatchersOnText(t *testing.T) {
	raw, err := os.ReadFile(filepath.Join(fixtures.Dir(t, "packs/corpus"), "corpus", "eval-code.txt"))
	if err != nil {
		t.Fatal(err)
	}
	text := string(raw[:min(len(raw), 20000)])
	for _, row := range preTokenizers {
		engine := make(splitter, len(row.steps))
		for i, st := range row.steps {
			engine[i] = engineStep(t, st)
		}
		compareCuts(t, row, engine, text)
	}
}

// FuzzMatchers compares every row with the engine.
func FuzzMatchers(f *testing.F) {
	for _, s := range readCuts(f).Texts {
		f.Add(s)
	}
	engines := make([]splitter, len(preTokenizers))
	for i, row := range preTokenizers {
		for _, st := range row.steps {
			engines[i] = append(engines[i], engineStep(f, st))
		}
	}
	f.Fuzz(func(t *testing.T, s string) {
		if len(s) > 1000 {
			return
		}
		for i, row := range preTokenizers {
			compareCuts(t, row, engines[i], s)
		}
	})
}

// TestTable checks that the table is consistent: every name leads to a row,
// every structure stands once, and names that take whole words are known.
func TestTable(t *testing.T) {
	forms := map[string]bool{}
	for _, row := range preTokenizers {
		if form := row.steps.form(); forms[form] {
			t.Errorf("structure %q stands twice", form)
		} else {
			forms[form] = true
		}
	}
	for _, list := range [][]string{wholeWords, bosByDefault, unsupportedPre} {
		for _, name := range list {
			if !knownPre(name) {
				t.Errorf("%q is in a list but not in the table", name)
			}
		}
	}
}

func TestUnknownStructures(t *testing.T) {
	split := func(re string) string {
		return `{"type":"Split","pattern":{"Regex":` + re + `},"behavior":"Isolated"}`
	}
	level := `{"type":"ByteLevel","use_regex":false}`
	sequence := func(parts ...string) string {
		return `{"type":"Sequence","pretokenizers":[` + strings.Join(parts, ",") + `]}`
	}
	for _, c := range []struct{ name, json, want string }{
		{"null", `null`, "missing"},
		{"type", `{"type":"Metaspace"}`, `"Metaspace" is unknown`},
		{"merged", `{"type":"Split","pattern":{"String":" "},"behavior":"MergedWithPrevious"}`, "does not isolate"},
		{"prefix", `{"type":"ByteLevel","add_prefix_space":true}`, "add_prefix_space"},
		{"punctuation", `{"type":"Punctuation","behavior":"Removed"}`, "Removed"},
		{"nested", sequence(sequence(level), level), "nested"},
		{"no list", `{"type":"Sequence"}`, "without a list"},
		{"other regex", sequence(split(`"\\p{Lu}+|\\s+"`), level), "cuts a probe text in the same way"},
		{"bad regex", sequence(split(`"([a-"`), level), "--pre NAME"},
		{"like qwen2", sequence(split(`"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\\r\\n\\p{L}\\p{N}]?\\p{L}+|[\\p{N}]|[ ]?[^\\s\\p{L}\\p{N}]+[\\r\\n]*|\\s*[\\r\\n]+|\\s+(?!\\S)|\\s+"`), level), `as "qwen2" does`},
		{"long regex", split(`"` + strings.Repeat("a", maxRegexBytes+1) + `"`), "limit"},
		{"slow regex", sequence(split(`"(\\s|\\S|[^x])*?\\x01"`), level), "--pre NAME"},
	} {
		t.Run(c.name, func(t *testing.T) {
			var v any
			if err := json.Unmarshal([]byte(c.json), &v); err != nil {
				t.Fatal(err)
			}
			sp, err := splitterOf(v)
			if err == nil {
				_, err = recognize(sp, nil)
			}
			if err == nil || !strings.Contains(err.Error(), c.want) {
				t.Errorf("error %v, want %q in it", err, c.want)
			}
		})
	}
}

func TestPreferredNames(t *testing.T) {
	qwen := splitter{qwen2, byteLevel}
	for _, c := range []struct {
		prefer []string
		want   string
	}{
		{nil, "qwen2"}, {[]string{"llama-bpe", "hunyuan"}, "hunyuan"}, {[]string{"gpt-2"}, "qwen2"},
	} {
		if got, err := recognize(qwen, c.prefer); got != c.want || err != nil {
			t.Errorf("with %q: %q, %v; want %q", c.prefer, got, err, c.want)
		}
	}
}

func TestNormalizeRegex(t *testing.T) {
	for in, want := range map[string]string{
		"[^\r\n]?+\\p{L}++": `[^\r\n]?\p{L}+`,
		`[+?*+]+\++`:        `[+?*+]+\++`,
		`(?:'[sS]|'[tT]|'[rR][eE]|'[vV][eE]|'[mM]|'[lL][lL]|'[dD])|x`: contraction.re + `|x`,
		`\s*+[\r\n]`: `\s*[\r\n]`,
		"a\tb":       `a\tb`,
	} {
		if got := normalizeRegex(in); got != want {
			t.Errorf("%q: got %q, want %q", in, got, want)
		}
	}
}
