package report

import (
	"bytes"
	"encoding/json"
	"encoding/xml"
	"errors"
	"fmt"
	"io"
	"math"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

// element is an element of a page.
type element struct {
	name     string
	attrs    map[string]string
	children []*element
	text     string // of itself and its children
}

// void are elements without content.
var void = []string{"meta", "input"}

// parse reads a page as a tree. Elements must be closed in their order.
func parse(t *testing.T, page []byte) *element {
	t.Helper()
	d := xml.NewDecoder(bytes.NewReader(page))
	d.Strict, d.AutoClose, d.Entity = false, void, xml.HTMLEntity
	root := &element{}
	open := []*element{root}
	for {
		tok, err := d.RawToken()
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			t.Fatal(err)
		}
		top := open[len(open)-1]
		switch tok := tok.(type) {
		case xml.StartElement:
			e := &element{name: tok.Name.Local, attrs: map[string]string{}}
			for _, a := range tok.Attr {
				if _, twice := e.attrs[a.Name.Local]; twice {
					t.Errorf("<%s> has two attributes %s", e.name, a.Name.Local)
				}
				e.attrs[a.Name.Local] = a.Value
			}
			top.children = append(top.children, e)
			if !slices.Contains(void, e.name) {
				open = append(open, e)
			}
		case xml.EndElement:
			if top.name != tok.Name.Local {
				t.Fatalf("</%s> ends <%s>", tok.Name.Local, top.name)
			}
			open = open[:len(open)-1]
		case xml.CharData:
			for _, e := range open {
				e.text += string(tok)
			}
		}
	}
	if len(open) != 1 {
		t.Fatalf("<%s> is not closed", open[len(open)-1].name)
	}
	return root
}

// all returns the elements below of a name, in their order; all of them for "".
func (e *element) all(name string) (list []*element) {
	for _, c := range e.children {
		if name == "" || c.name == name {
			list = append(list, c)
		}
		list = append(list, c.all(name)...)
	}
	return list
}

// id returns the element of an id.
func (e *element) id(id string) *element {
	for _, c := range e.all("") {
		if c.attrs["id"] == id {
			return c
		}
	}
	return nil
}

// class returns the elements below of a name with a class.
func (e *element) class(name, class string) (list []*element) {
	for _, c := range e.all(name) {
		if slices.Contains(strings.Fields(c.attrs["class"]), class) {
			list = append(list, c)
		}
	}
	return list
}

// rows returns the text of a table's cells, the head first.
func (e *element) rows() (rows [][]string) {
	for _, r := range e.all("tr") {
		var cells []string
		for _, c := range r.children {
			cells = append(cells, strings.Join(strings.Fields(c.text), " "))
		}
		rows = append(rows, cells)
	}
	return rows
}

func write(t *testing.T, p *Prune) []byte {
	t.Helper()
	var b bytes.Buffer
	if err := p.WriteHTML(&b); err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}

func share(v float64) *float64 { return &v }

// least is what a page needs.
func least() *Prune {
	return &Prune{
		Model: "models/tiny.gguf", Arch: "mixtral", Tool: "winnow 1", Experts: 4, Keep: 3, Used: 2,
		Blocks: []Block{{Block: 1, Kept: []int{0, 1, 3}}, {Block: 2, Kept: []int{1, 2, 3}}},
	}
}

// full has everything.
func full() *Prune {
	p := least()
	p.Rule, p.RuleMeaning, p.MTP, p.Groups, p.Flatten = "reap", "mean |c|", "drop", 2, true
	p.Facts = []Fact{{"scores from", "tiny.stats"}}
	p.Warnings = []string{"3 experts are an unusual number"}
	p.Domains = []Domain{{"code", 1000, share(.75)}, {"chat", 500, share(.25)}}
	p.Blocks[0] = Block{1, []int{0, 1, 3}, []int{3}, []float64{2, 1, 0.2, 8}, [][]float64{{750, 500, 0, 750}, {125, 250, 0, 625}}, share(0)}
	p.Blocks[1] = Block{2, []int{1, 2, 3}, nil, []float64{0, 1, 2, 3}, [][]float64{{300, 700, 600, 400}, {0, 400, 400, 200}}, share(.1)}
	p.Sizes = []Size{{"Q8_0", 4_000_000_000, 3_100_000_000}}
	m := Measured{PPL: Estimate{12.5, .25}, KLD: Estimate{.0625, .002}, SameTop: Estimate{81.25, .5}}
	p.Counts = []Count{{Keep: 4, Bytes: []int64{4_000_000_000}, Lost: share(0)}, {Keep: 3, Bytes: []int64{3_100_000_000}, Lost: share(.05), Measured: &m}, {Keep: 2}}
	p.Definition = "windows of 512 tokens"
	r := &Repetition{200, 12800, Estimate{40, 1}, Estimate{10, 2}}
	p.Texts = []Text{{"", Estimate{12, .25}, m, r, &Repetition{200, 12700, Estimate{45, 1}, Estimate{20, 3}}}, {"code", Estimate{10, .5}, m, nil, nil}, {"chat", Estimate{14, .5}, m, nil, nil}}
	p.Written = share(3e-7)
	worse := m
	worse.KLD.Value = .125
	p.Choice = &Choice{Text: "code and chat", Trials: []Trial{{"reap_sum", "equal", worse, p.Texts[1:]}, {"reap", "flatten", m, p.Texts[1:]}}, Best: 1, Next: 0, Lead: Estimate{.0625, .003}}
	p.Curves = &Curves{"greedy", []Curve{{1, []Point{{2, .4}, {3, .1}, {4, 0}}}, {2, []Point{{2, .2}, {3, .05}, {4, 0}}}}}
	p.Merge = &Merge{"ream", true, []MergedBlock{{1, []Group{{0, []int{0, 2}, []float64{.75, .25}}, {1, []int{1}, []float64{1}}}}}, []MergeTrial{{3, "ream", worse, m}, {2, "ream", m, worse}}}
	p.Repair = &Repair{true, worse, m, []Repaired{{1, true, .1, .06}, {2, false, .05, .055}}, []Fact{{"ridge", "0.2"}}}
	return p
}

// TestStructure checks what every page must be: whole, alone, and usable without
// seeing it.
func TestStructure(t *testing.T) {
	for name, p := range map[string]*Prune{"least": least(), "full": full(), "large": large()} {
		t.Run(name, func(t *testing.T) {
			root := parse(t, write(t, p))
			if html := root.all("html"); len(html) != 1 || html[0].attrs["lang"] != "en" {
				t.Error("no language")
			}
			if len(root.all("h1")) != 1 || len(root.all("head")[0].all("title")) != 1 || len(root.all("main")) != 1 {
				t.Error("want one heading, one title and one main part")
			}
			checkAlone(t, root)
			checkLinks(t, root)
			for _, table := range root.all("table") {
				checkTable(t, table)
			}
			for _, e := range root.all("") {
				if (e.attrs["role"] == "img" || e.attrs["role"] == "region") && e.attrs["aria-label"] == "" {
					t.Errorf("<%s class=%q> has no name", e.name, e.attrs["class"])
				}
			}
		})
	}
}

// checkAlone finds what would load or run something.
func checkAlone(t *testing.T, root *element) {
	t.Helper()
	for _, e := range root.all("") {
		for name, value := range e.attrs {
			if name == "src" || strings.HasPrefix(name, "on") || strings.Contains(value, "//") || name == "href" && !strings.HasPrefix(value, "#") {
				t.Errorf("<%s %s=%q>", e.name, name, value)
			}
			if name == "style" && strings.Contains(value, "Zgotmplz") || strings.Contains(value, "ZgotmplZ") {
				t.Errorf("<%s %s=%q>: the template could not fill it", e.name, name, value)
			}
		}
		if slices.Contains([]string{"script", "link", "img", "iframe", "object", "base"}, e.name) {
			t.Errorf("<%s>", e.name)
		}
	}
	style := root.all("style")
	if len(style) != 1 || strings.Contains(style[0].text, "url(") || strings.Contains(style[0].text, "@import") {
		t.Error("want one style sheet that loads nothing")
	}
	if !strings.Contains(style[0].text, "prefers-color-scheme:dark") {
		t.Error("no dark colours")
	}
}

// checkLinks sees that ids are unique and links lead somewhere.
func checkLinks(t *testing.T, root *element) {
	t.Helper()
	seen := map[string]bool{}
	for _, e := range root.all("") {
		if id := e.attrs["id"]; id != "" {
			if seen[id] {
				t.Errorf("two elements have the id %q", id)
			}
			seen[id] = true
		}
	}
	for _, a := range root.all("a") {
		if !seen[strings.TrimPrefix(a.attrs["href"], "#")] {
			t.Errorf("link to %q", a.attrs["href"])
		}
	}
	for _, in := range root.all("input") {
		if !slices.ContainsFunc(root.all("label"), func(l *element) bool { return l.attrs["for"] == in.attrs["id"] }) {
			t.Errorf("input %q has no label", in.attrs["id"])
		}
	}
}

func checkTable(t *testing.T, table *element) {
	t.Helper()
	rows := table.rows()
	if c := table.all("caption"); len(c) != 1 || c[0].text == "" || len(rows) < 2 {
		t.Fatalf("table without caption or rows: %q", table.text)
	}
	for i, r := range rows {
		if len(r) != len(rows[0]) {
			t.Errorf("row %d has %d cells, the head %d: %q", i, len(r), len(rows[0]), r)
		}
	}
	for i, tr := range table.all("tr") {
		for j, c := range tr.children {
			if want := map[bool]string{true: "col", false: "row"}[i == 0]; (i == 0 || j == 0) && (c.name != "th" || c.attrs["scope"] != want) {
				t.Errorf("cell %q is no head of a %s", c.text, want)
			}
		}
	}
}

// TestSections: what is not known is left out.
func TestSections(t *testing.T) {
	ids := func(p *Prune) (list []string) {
		for _, s := range parse(t, write(t, p)).all("section") {
			if s.attrs["id"] != "" {
				list = append(list, s.attrs["id"])
			}
		}
		return list
	}
	base := []string{"experts", "blocks", "origin"}
	if got := ids(least()); !slices.Equal(got, base) {
		t.Errorf("%v, want %v", got, base)
	}
	for want, keep := range map[string]func(p, f *Prune){
		"cost":   func(p, f *Prune) { p.Texts = f.Texts },
		"counts": func(p, f *Prune) { p.Sizes, p.Counts = f.Sizes, f.Counts },
		"choice": func(p, f *Prune) { p.Choice = f.Choice },
		"texts":  func(p, f *Prune) { p.Domains, p.Blocks = f.Domains, f.Blocks },
		"curves": func(p, f *Prune) { p.Curves = f.Curves },
		"merge":  func(p, f *Prune) { p.Merge = f.Merge },
		"repair": func(p, f *Prune) { p.Repair = f.Repair },
	} {
		p := least()
		keep(p, full())
		got := ids(p)
		if len(got) != len(base)+1 || !slices.Contains(got, want) {
			t.Errorf("%v, want %v and %s", got, base, want)
		}
	}
	if got := ids(full()); len(got) != 10 {
		t.Errorf("%v, want ten sections", got)
	}
	if root := parse(t, write(t, least())); len(root.class("section", "warnings")) != 0 || strings.Contains(root.text, unknown) && len(root.all("input")) != 0 {
		t.Error("warnings, or views, of nothing")
	}
}

// TestTables compares the tables with their contents written by hand.
func TestTables(t *testing.T) {
	root := parse(t, write(t, full()))
	if got := strings.Join(strings.Fields(root.all("header")[0].text), " "); !strings.Contains(got, "tiny.gguf: 3 of 4 experts Of the 4 experts in each of 2 blocks 3 stay, of which a token uses 2; their 2 groups become one; multi-token prediction blocks go.") ||
		!strings.Contains(got, "experts of a block4 → 3 25 % go") || !strings.Contains(got, "3.10 GB before 4.00 GB, −22.5 %") || !strings.Contains(got, "0.0625 ± 0.0020 nats per token") || !strings.Contains(got, "choices lost5.0 %") {
		t.Errorf("header: %s", got)
	}
	kld, ppl, top := "0.062500 ± 0.002000", "12.5000 ± 0.2500", "81.25 ± 0.50 %"
	for id, want := range map[string][][][]string{
		"cost": {{{"text", "PPL before", "PPL after", "KLD", "same top token"}, {"all", "12.0000 ± 0.2500", ppl, kld, top}, {"code", "10.0000 ± 0.5000", ppl, kld, top}, {"chat", "14.0000 ± 0.5000", ppl, kld, top}},
			{{"text", "prompts", "tokens", "repeated before", "repeated after", "loops before", "loops after"}, {"all", "200", "12,700", "40.00 ± 1.00 %", "45.00 ± 1.00 %", "10.00 ± 2.00 %", "20.00 ± 3.00 %"}}},
		"counts": {{{"experts", "size, Q8_0", "change", "choices lost", "KLD", "PPL", "same top token"}, {"4", "4.00 GB", "+0.0 %", "0.0 %", "–", "–", "–"}, {"3 chosen", "3.10 GB", "−22.5 %", "5.0 %", kld, ppl, top}, {"2", "–", "–", "–", "–", "–", "–"}}},
		"choice": {{{"rule", "KLD", "PPL", "same top token"}, {"reap_sum, groups equal", "0.125000 ± 0.002000", ppl, top}, {"reap, groups flatten chosen", kld, ppl, top}},
			{{"rule", "code", "chat"}, {"reap_sum, groups equal", kld, kld}, {"reap, groups flatten chosen", kld, kld}}},
		"texts": {{{"text", "tokens", "weight", "experts that prefer it", "of them stay", "choices lost"}, {"code", "1,000", "75.0 %", "2", "1", "7.5 %"}, {"chat", "500", "25.0 %", "0", "0", "0.0 %"}}},
		"merge": {{{"experts", "method", "KLD merged", "KLD pruned", "better"}, {"3", "ream", "0.125000 ± 0.002000", kld, "pruning, by 50.0 %"}, {"2", "ream", kld, "0.125000 ± 0.002000", "merging, by 50.0 %"}},
			{{"block", "center: members (weights)"}, {"1", "0: 0 (0.75), 2 (0.25)"}}},
		"repair": {{{"model", "KLD", "PPL", "same top token"}, {"as chosen", "0.125000 ± 0.002000", ppl, top}, {"repaired chosen", kld, ppl, top}},
			{{"what", "value"}, {"ridge", "0.2"}}, {{"block", "before", "after", "repair kept"}, {"1", "10 %", "6 %", "yes"}, {"2", "5 %", "5.5 %", "no"}}},
		"blocks": {{{"block", "stay", "choices lost", "error", "super experts", "experts that go"}, {"1", "3", "0.0 %", "10 %", "3", "2"}, {"2", "3", "10.0 %", "5 %", "", "0"}}},
		"origin": {{{"what", "value"}, {"model", "models/tiny.gguf"}, {"architecture", "mixtral"}, {"scores from", "tiny.stats"}, {"made by", "winnow 1"}}},
	} {
		var got [][][]string
		for _, table := range root.id(id).all("table") {
			got = append(got, table.rows())
		}
		if d := cmp.Diff(want, got); d != "" {
			t.Errorf("%s (-want +got):\n%s", id, d)
		}
	}
	for _, want := range []string{"by 0.062500 ± 0.003000 before reap_sum, groups equal", "Measured with code and chat", "ln p differs by 3e-07 at most", "block 1: 3.", "With 3 experts block 1 loses most, 10 %, and block 2 least, 5 %."} {
		if !strings.Contains(root.text, want) {
			t.Errorf("no %q", want)
		}
	}
}

// TestMaps checks the cells. In block 1 the scores 2, 1, 0.2 and 8 have the
// median 1.5; 875, 750 and 1375 tokens have 875. In block 2 they are 2 and 800.
func TestMaps(t *testing.T) {
	root := parse(t, write(t, full()))
	cells := func(id string) (list []string) {
		for _, c := range root.id(id).class("div", "cells")[0].all("i") {
			list = append(list, c.attrs["class"]+"|"+c.attrs["title"])
		}
		return list
	}
	want := []string{
		"s4 t4|block 1, expert 0: score 2, 875 tokens", "s2 t3|block 1, expert 1: score 1, 750 tokens",
		"s0 t8 x g|block 1, expert 2: score 0.2, 0 tokens, goes", "s7 t5 p|block 1, expert 3: score 8, 1375 tokens, super expert",
		"s8 t1 x|block 2, expert 0: score 0, 300 tokens, goes", "s2 t4|block 2, expert 1: score 1, 1100 tokens",
		"s4 t4 g|block 2, expert 2: score 2, 1000 tokens", "s5 t3|block 2, expert 3: score 3, 600 tokens",
	}
	if d := cmp.Diff(want, cells("experts")); d != "" {
		t.Errorf("scores (-want +got):\n%s", d)
	}
	// Of expert 0 of block 1, shares of .75 and .25: their entropy is .8113 bits.
	want = []string{
		"d0 h1|block 1, expert 0: code 75 %, chat 25 %", "h0|block 1, expert 1: code 50 %, chat 50 %",
		"z x g|block 1, expert 2: no tokens, goes", "h0 p|block 1, expert 3: chat 62 %, code 38 %, super expert",
		"d0 h2 x|block 2, expert 0: code 100 %, chat 0 %, goes", "h0|block 2, expert 1: chat 53 %, code 47 %",
		"h0 g|block 2, expert 2: chat 57 %, code 43 %", "h0|block 2, expert 3: code 50 %, chat 50 %",
	}
	if d := cmp.Diff(want, cells("texts")); d != "" {
		t.Errorf("texts (-want +got):\n%s", d)
	}
	p := full()
	if f := p.preference(&p.Blocks[0], 0); math.Abs(f.degree-(1-0.8112781)) > 1e-6 {
		t.Errorf("preference %v, want 0.1887", f.degree)
	}
	// Without texts there are no two views, without scores neither.
	for name, change := range map[string]func(b *Block){"scores": func(b *Block) { b.Uses = nil }, "tokens": func(b *Block) { b.Scores = nil }} {
		p := full()
		for i := range p.Blocks {
			change(&p.Blocks[i])
		}
		if root := parse(t, write(t, p)); len(root.all("input")) != 0 || len(root.class("i", "t4")) != 0 || len(root.class("div", "cells")[0].class("i", "s4")) == 0 {
			t.Errorf("%s alone: two views, or none", name)
		}
	}
}

// TestCurves places lines by hand: 2 to 4 experts, errors up to 40 %.
func TestCurves(t *testing.T) {
	plot := parse(t, write(t, full())).class("div", "plot")[0]
	var lines, ticks []string
	for _, l := range plot.all("polyline") {
		lines = append(lines, l.attrs["class"]+"|"+l.attrs["points"]+"|"+l.text)
	}
	for _, s := range plot.all("span") {
		ticks = append(ticks, s.attrs["style"]+" "+s.text)
	}
	if d := cmp.Diff([]string{"s2|0,0 50,75 100,100|block 1: 10 % with 3 experts", "s7|0,50 50,87.5 100,100|block 2: 5 % with 3 experts"}, lines); d != "" {
		t.Errorf("lines (-want +got):\n%s", d)
	}
	want := []string{"bottom:0% 0 %", "bottom:25% 10 %", "bottom:50% 20 %", "bottom:75% 30 %", "bottom:100% 40 %", "left:0% 2", "left:50% 3", "left:100% 4", "left:50% 3 stay"}
	if d := cmp.Diff(want, ticks); d != "" {
		t.Errorf("ticks (-want +got):\n%s", d)
	}
	flat := full()
	flat.Curves.Blocks = []Curve{{1, []Point{{3, 0}}}}
	parse(t, write(t, flat)) // one point without error
}

// TestEscaping: names are text wherever they stand.
func TestEscaping(t *testing.T) {
	const bad = `"><script>alert(1)</script><img src=x onerror='alert(2)'>&amp;{{.}}</style>` + "\x00"
	p := full()
	p.Model, p.Arch, p.Tool, p.Rule, p.RuleMeaning, p.MTP, p.Definition = bad, bad, bad, bad, bad, bad, bad
	p.Facts, p.Warnings = []Fact{{bad, bad}}, []string{bad}
	p.Choice.Text, p.Choice.Trials[0].Rule, p.Choice.Trials[1].Groups = bad, bad, bad
	p.Sizes[0].Type, p.Curves.Rule, p.Merge.Method, p.Merge.Trials[0].Method = bad, bad, bad, bad
	p.Repair.Facts = []Fact{{bad, bad}}
	for i := range p.Domains {
		p.Domains[i].Name = bad
	}
	for i := range p.Texts {
		p.Texts[i].Name = bad
	}
	page := write(t, p)
	if bytes.Contains(page, []byte("<script")) || bytes.Contains(page, []byte("<img")) || bytes.Count(page, []byte("</style>")) != 1 {
		t.Error("a name became markup")
	}
	root := parse(t, bytes.ReplaceAll(page, []byte{0}, nil))
	checkAlone(t, root)
	if got, want := root.id("origin").all("table")[0].rows()[1][1], strings.Trim(bad, "\x00"); strings.TrimRight(got, "\uFFFD") != want {
		t.Errorf("model %q, want %q", got, want)
	}
}

// large is a model of 58 blocks with 256 experts in 8 groups.
func large() *Prune {
	p := &Prune{Model: "DeepSeek-R1", Arch: "deepseek2", Tool: "winnow", Experts: 256, Keep: 192, Used: 8, Groups: 8, Rule: "reap"}
	for _, name := range []string{"code", "english", "mathematics", "chinese"} {
		p.Domains = append(p.Domains, Domain{Name: name, Tokens: 131072})
	}
	for l := range 58 {
		b := Block{Block: l + 3, Lost: share(.08), Uses: make([][]float64, len(p.Domains))}
		for e := range p.Experts {
			if (e+l)%4 > 0 {
				b.Kept = append(b.Kept, e)
			}
			b.Scores = append(b.Scores, 1e-3*math.Abs(math.Sin(float64(1+e*l))))
			for d := range b.Uses {
				b.Uses[d] = append(b.Uses[d], float64((e*7919+l*104729+d*1299709)%10007))
			}
		}
		p.Blocks = append(p.Blocks, b)
	}
	return p
}

// TestLarge: a page of DeepSeek R1 has a cell for each expert in both maps and is
// not larger than 3 MB.
func TestLarge(t *testing.T) {
	p := large()
	page := write(t, p)
	if len(page) > 3_000_000 {
		t.Errorf("%d bytes, want 3 MB at most", len(page))
	}
	for _, id := range []string{"experts", "texts"} {
		cells := parse(t, page).id(id).class("div", "cells")[0]
		if n, gone := len(cells.all("i")), len(cells.class("i", "x")); n != 58*256 || gone != 58*64 {
			t.Errorf("%s: %d cells, %d of experts that go", id, n, gone)
		}
		if n := len(cells.class("i", "g")); n != 58*7 {
			t.Errorf("%s: %d gaps between groups, want %d", id, n, 58*7)
		}
	}
}

// TestSame: a page follows from its contents alone, and they survive JSON.
func TestSame(t *testing.T) {
	b, err := json.Marshal(full())
	if err != nil {
		t.Fatal(err)
	}
	again := &Prune{}
	if err := json.Unmarshal(b, again); err != nil {
		t.Fatal(err)
	}
	if d := cmp.Diff(full(), again); d != "" {
		t.Errorf("after JSON:\n%s", d)
	}
	if !bytes.Equal(write(t, full()), write(t, again)) {
		t.Error("two pages of the same contents differ")
	}
}

func TestCheck(t *testing.T) {
	for want, change := range map[string]func(*Prune){
		"3 of 0 experts":                     func(p *Prune) { p.Experts = 0 },
		"in 0 blocks":                        func(p *Prune) { p.Blocks = nil },
		"block 1: 2 scores, want 4":          func(p *Prune) { p.Blocks[0].Scores = []float64{1, 2} },
		"block 2: uses by 1 kinds of text":   func(p *Prune) { p.Blocks[1].Uses = p.Blocks[1].Uses[:1] },
		"block 1: uses of 1 experts, want 4": func(p *Prune) { p.Blocks[0].Uses[1] = []float64{1} },
		"block 1: expert 4 of 4":             func(p *Prune) { p.Blocks[0].Kept = []int{0, 1, 4} },
		"0 sizes of 4 experts, want 1":       func(p *Prune) { p.Counts[0].Bytes = []int64{} },
		"the best of 2 choices are 2 and 0":  func(p *Prune) { p.Choice.Best = 2 },
		"curve of block 2: no points":        func(p *Prune) { p.Curves.Blocks[1].Points = nil },
		"an error of NaN with 3 experts":     func(p *Prune) { p.Curves.Blocks[0].Points[1].Error = math.NaN() },
	} {
		p := full()
		change(p)
		if err := p.WriteHTML(io.Discard); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%v, want %q", err, want)
		}
	}
	if err := full().WriteHTML(failing{}); !errors.Is(err, errFull) {
		t.Errorf("%v, want that of the writer", err)
	}
}

var errFull = errors.New("full")

type failing struct{}

func (failing) Write([]byte) (int, error) { return 0, errFull }

func TestTexts(t *testing.T) {
	for want, got := range map[string]string{
		"999 B": bytesText(999), "1.0 kB": bytesText(1000), "12.3 MB": bytesText(12_345_678), "671.03 GB": bytesText(671_026_419_200), "1.03 TB": bytesText(1_026_000_000_000),
		"0": countText(0), "999": countText(999), "1,000": countText(1000), "12,345,678": countText(12345678),
		"0–2 4 7–8": rangesText([]int{0, 1, 2, 4, 7, 8}), "3": rangesText([]int{3}), "": rangesText(nil),
		"+0.0 %": change(5, 5), "−50.0 %": change(4, 2), "0.1250": Estimate{Value: .125}.format(4), "1 block": plural(1, "block", "blocks"),
		"fifteen letters": shorten("fifteen letters"), "more than sixte…": shorten("more than sixteen"),
	} {
		if got != want {
			t.Errorf("%q, want %q", got, want)
		}
	}
	for _, c := range []struct {
		length float64
		parts  int
		want   float64
	}{{40, 5, 10}, {254, 6, 50}, {2, 6, .5}, {0.7, 5, .2}, {0, 5, 1}, {100, 5, 20}} {
		if got := niceStep(c.length, c.parts); math.Abs(got-c.want) > 1e-12 {
			t.Errorf("step for %v in %d: %v, want %v", c.length, c.parts, got, c.want)
		}
	}
	var names []string
	for _, k := range large().heatMap().Ticks {
		names = append(names, fmt.Sprint(k.Name, " ", k.Span, " ", k.Gap))
	}
	if len(names) != 16 || names[0] != "0 16 false" || names[1] != "16 16 false" || names[2] != "32 16 true" {
		t.Errorf("ticks %v", names)
	}
}
