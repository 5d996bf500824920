package recipefile

import (
	"math/rand/v2"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"

	"github.com/winnow-moe/winnow/formats/gguf"
)

const everything = `# A comment.
type: Q4_K_M
pure: true
output-tensor-type: Q8_0
token-embedding-type: q6_k
leave-output-tensor: false
tensor-type:
  - {role: attn_v, layers: 0-3, type: Q6_K}
  - role: [attn_q, attn_k]
    layers: [1, 4-5, '7,9']
    type: Q5_K
  - {name: blk.7.Odd=name.weight, type: Q8_0}
  - {match: 'ffn_(up|gate)', type: q4_0}
  - 'ffn_down=q5_1'
imatrix: i.gguf
include-weights: [attn, ffn]
prune-layers: 3
override-kv:
  - general.name=str:small
  - a.b=int:-7
allow-requantize: true
keep-split: true
no-fallback: true
`

func wanted() *File {
	return &File{
		Path: "r", Type: "Q4_K_M", Pure: true, OutputType: "Q8_0", TokenEmbdType: "q6_k",
		Rules: []Rule{
			{Roles: []string{"attn_v"}, Layers: Layers{0, 1, 2, 3}, Type: gguf.Q6_K},
			{Roles: []string{"attn_q", "attn_k"}, Layers: Layers{1, 4, 5, 7, 9}, Type: gguf.Q5_K},
			{Name: "blk.7.Odd=name.weight", Type: gguf.Q8_0},
			{Match: "ffn_(up|gate)", Type: gguf.Q4_0},
			{Match: "ffn_down", Type: gguf.Q5_1},
		},
		Imatrix: "i.gguf", Include: []string{"attn", "ffn"}, PruneLayers: Layers{3},
		Overrides:       []string{"general.name=str:small", "a.b=int:-7"},
		AllowRequantize: true, KeepSplit: true, NoFallback: true,
	}
}

var ignoreLines = cmpopts.IgnoreUnexported(Rule{})

// TestForms: every field, read and written in every form that holds it.
func TestForms(t *testing.T) {
	f, err := Parse("r", []byte(everything))
	if err != nil {
		t.Fatal(err)
	}
	if d := cmp.Diff(wanted(), f, ignoreLines); d != "" {
		t.Errorf("(-want +got):\n%s", d)
	}
	for _, format := range Formats {
		text, err := f.Encode(format)
		if err != nil {
			t.Fatal(err)
		}
		back, err := Parse("r", text)
		if err != nil {
			t.Fatalf("%v\n%s", err, text)
		}
		want := wanted()
		if format == "tensor-types" {
			want = &File{Path: "r"}
			for _, r := range wanted().Rules {
				want.Rules = append(want.Rules, Rule{Match: r.Pattern(), Type: r.Type})
			}
		}
		if d := cmp.Diff(want, back, ignoreLines); d != "" {
			t.Errorf("%s (-want +got):\n%s\n%s", format, d, text)
		}
	}
	if _, err := f.Encode("xml"); err == nil {
		t.Error("xml: no error")
	}
}

func TestSettings(t *testing.T) {
	var got []string
	for _, s := range wanted().Settings() {
		got = append(got, s.Name+" "+strings.Join(s.Values, " "))
	}
	want := []string{
		"type Q4_K_M", "pure true", "output-tensor-type Q8_0", "token-embedding-type q6_k",
		`tensor-type ^blk\.[0-3]\.attn_v\.weight$=Q6_K ^blk\.(1|[4-5]|7|9)\.(attn_q|attn_k)\.weight$=Q5_K ` +
			`^blk\.7\.\x4fdd\x3dname\.weight$=Q8_0 ffn_(up|gate)=Q4_0 ffn_down=Q5_1`,
		"imatrix i.gguf", "include-weights attn ffn", "prune-layers 3", "override-kv general.name=str:small a.b=int:-7",
		"allow-requantize true", "keep-split true", "no-fallback true",
	}
	if d := cmp.Diff(want, got); d != "" {
		t.Errorf("(-want +got):\n%s", d)
	}
	args, lost := wanted().BesideList()
	if got, want := strings.Join(args, " "), "--pure --output-tensor-type Q8_0 --token-embedding-type q6_k --imatrix i.gguf "+
		"--include-weights attn --include-weights ffn --prune-layers 3 --override-kv general.name=str:small --override-kv a.b=int:-7 "+
		"--allow-requantize --keep-split"; got != want {
		t.Errorf("arguments %s", got)
	}
	if !slices.Equal(lost, []string{"no-fallback"}) {
		t.Errorf("lost %q", lost)
	}
}

func TestParseErrors(t *testing.T) {
	for text, want := range map[string]string{
		"":                                       "the file is empty",
		"just words":                             `r:1: the file is "just words", want the fields type, pure`,
		"- a":                                    "r:1: the file is a list, want the fields",
		"type: Q4_K_M\n---\ntype: Q8_0":          "more than one document",
		"type: [":                                `"r": line 1: `,
		"type: Q4_K_M\ntypo: 1":                  `r:2: unknown field "typo" (known: type, pure, `,
		"pure: true\n\npure: true":               `r:3: field "pure" is given twice, first in line 1`,
		"type: Q9":                               `r:1: field "type": unknown recipe "Q9" (known: F32, F16, `,
		"type: [Q8_0]":                           `field "type" is a list, want a text`,
		"type:":                                  `field "type" is empty, want a text`,
		"pure: yes":                              `r:1: field "pure" is "yes", want true or false`,
		"pure: {a: b}":                           `field "pure" is a group of fields, want true or false`,
		"pure: &x true":                          `field "pure" is marked with an anchor`,
		"imatrix: &x a\ninclude-weights: *x":     `is marked with an anchor`,
		"imatrix: !!binary YQ==":                 `field "imatrix" is marked with the tag "!!binary"`,
		"output-tensor-type: Q4_K_M":             `field "output-tensor-type": unknown type "Q4_K_M" (known: F32, `,
		"override-kv: [a=b]":                     `field "override-kv": "a=b" is not KEY=TYPE:VALUE`,
		"prune-layers: 3-1":                      `field "prune-layers": "3-1" is not a block number or a range such as 0-3`,
		"prune-layers: 0-99999":                  `is not a block number`,
		"prune-layers: []":                       `field "prune-layers" is an empty list`,
		"include-weights: a\nexclude-weights: b": "exclude each other",
		"tensor-type: attn_v=Q8_0":               `field "tensor-type" is "attn_v=Q8_0", want a list of rules such as`,
		"tensor-type: [attn_v]":                  `"attn_v" is not of the form PATTERN=TYPE`,
		"tensor-type:\n- attn_v=Q8_0\n- [x]":     `r:3: a rule of "tensor-type" is a list, want the fields match, name, role, layers, type`,
		"tensor-type: [{role: a}]":               `a rule of "tensor-type" has no type`,
		"tensor-type: [{type: F16}]":             "a rule needs one of match, name and role",
		"tensor-type: [{role: a, name: b, type: F16}]":   "a rule needs one of match, name and role",
		"tensor-type: [{name: a, layers: 1, type: F16}]": "layers belong to a role",
		"tensor-type: [{match: a b, type: F16}]":         `has white space or "=" in it`,
		"tensor-type: [{match: (, type: F16}]":           "error parsing regexp",
		"tensor-type: [{role: a, type: Q8_K}]":           `field "type": unknown type "Q8_K"`,
		"tensor-type: [{roles: a, type: F16}]":           `unknown field "roles" (known: match, name, role, layers, type)`,
		"type: \xff":                                     `"r" is not a text in UTF-8`,
		strings.Repeat("#", maxSize+1):                   "is larger than 1048576 bytes",
		strings.Repeat("[", 20000):                       "exceeded max depth",
	} {
		_, err := Parse("r", []byte(text))
		if err == nil || !strings.Contains(err.Error(), want) || !strings.HasPrefix(err.Error(), "invalid recipe: ") {
			t.Errorf("%.40q: error %v, want %q", text, err, want)
		}
	}
}

func TestRead(t *testing.T) {
	path := filepath.Join(t.TempDir(), "types.txt")
	if _, err := Read(path); !os.IsNotExist(err) {
		t.Errorf("error %v", err)
	}
	if err := os.WriteFile(path, []byte("attn_q=q6_K\nblk\\.[12]\\.attn_v=q5_1 x=f16"), 0o666); err != nil {
		t.Fatal(err)
	}
	f, err := Read(path)
	if err != nil {
		t.Fatal(err)
	}
	list, err := f.TensorTypes()
	if err != nil {
		t.Fatal(err)
	}
	if got, want := list[2].Label, "x: F16 ("+path+":2)"; got != want {
		t.Errorf("label %q, want %q", got, want)
	}
	if ok, err := list[1].Matches("blk.2.attn_v.weight"); !ok || err != nil {
		t.Errorf("no match, error %v", err)
	}
}

// TestLayers: patterns of sets of numbers match them and nothing else.
func TestLayers(t *testing.T) {
	r := rand.New(rand.NewPCG(1, 2))
	sets := []string{"0", "0-9", "0-1500", "5-1234", "99-100", "1,3,5", "10-99", "0-7,9,11-19", "9999"}
	for range 50 {
		lo := r.IntN(300)
		sets = append(sets, strconv.Itoa(lo)+"-"+strconv.Itoa(lo+r.IntN(900)))
	}
	for _, s := range sets {
		l, err := ParseLayers(s)
		if err != nil {
			t.Fatal(err)
		}
		if l.String() != s {
			t.Errorf("%s is written %s", s, l)
		}
		re := regexp.MustCompile("^" + alternatives(l.patterns()) + "$")
		for n := range 1600 {
			if _, in := slices.BinarySearch(l, n); in != re.MatchString(strconv.Itoa(n)) || re.MatchString("0"+strconv.Itoa(n)) {
				t.Fatalf("%s: %s is wrong about %d", s, re, n)
			}
		}
	}
	if l, err := ParseLayers(" 5, 1-2,2"); err != nil || l.String() != "1-2,5" {
		t.Errorf("%s, %v", l, err)
	}
}

// TestNames: a pattern for a name matches that name alone, whatever is in it.
func TestNames(t *testing.T) {
	for _, name := range []string{"blk.0.attn_q.weight", "A=b c\t(x)[y]{z}*+?^$|/\\.weight", "größe.Ä.weight"} {
		r := Rule{Name: name, Type: gguf.Q8_0}
		o, err := r.compile()
		if err != nil {
			t.Fatal(err)
		}
		for other, want := range map[string]bool{name: true, name + "x": false, "x" + name: false, strings.Replace(name, ".", "_", 1): false} {
			if ok, err := o.Matches(other); ok != want || err != nil {
				t.Errorf("%s: matches %q: %v, %v", &r, other, ok, err)
			}
		}
		if len(strings.Fields(r.String())) != 1 || strings.Count(r.String(), "=") != 1 {
			t.Errorf("%s is no single word", &r)
		}
	}
}

func FuzzParse(f *testing.F) {
	f.Add([]byte(everything))
	f.Add([]byte(`{"type": "Q4_K_M", "tensor-type": [{"role": "attn_v", "layers": "0-3", "type": "F16"}]}`))
	f.Add([]byte("attn_v=q8_0 x=f16"))
	f.Add([]byte("a: &a [*a]"))
	f.Fuzz(func(t *testing.T, data []byte) {
		r, err := Parse("r", data)
		if err != nil {
			return
		}
		for _, format := range []string{"yaml", "json"} {
			text, err := r.Encode(format)
			if err != nil {
				t.Fatal(err)
			}
			back, err := Parse("r", text)
			if err != nil {
				t.Fatalf("%v\n%s", err, text)
			}
			if d := cmp.Diff(r, back, ignoreLines); d != "" {
				t.Errorf("%s: %s", format, d)
			}
		}
	})
}
