package report

import (
	"cmp"
	"fmt"
	"math"
	"slices"
	"strconv"
	"strings"
)

// heatMap is a row of cells for each block, with one for each expert.
type heatMap struct {
	Class, Caption, Summary string
	Columns, Gaps           int
	Views                   []view // what colours mean; none: one thing
	Legend                  []key
	Ticks                   []tick
	Rows                    []mapRow
}

type view struct{ Class, Name string }

// key explains cells of a class.
type key struct{ Class, Name string }

// tick stands above some columns, behind a gap or not.
type tick struct {
	Name string
	Span int
	Gap  bool
}

type mapRow struct {
	Name  string
	Cells []mapCell
}

type mapCell struct{ Class, Title string }

// The classes of cells, and of keys: the levels of scores and of tokens, experts
// that go, protected ones, those behind a gap; domains and how far an expert
// belongs to its own.
const (
	scoreClass  = "s"
	tokensClass = "t"
	goneClass   = "x"
	superClass  = "p"
	gapClass    = "g"
	emptyClass  = "z"
	plainClass  = "k"
	domainClass = "d"
	hueClass    = "h"
)

// levels are where the colours of values change, in medians of the block. One
// more level is for zero.
var levels = []float64{0.25, 0.5, 0.75, 1, 1.5, 2, 4}

const zeroLevel = 8

// level returns that of a value.
func level(v, median float64) int {
	if v == 0 {
		return zeroLevel
	}
	n := 0
	for n < len(levels) && v >= levels[n]*median {
		n++
	}
	return n
}

// levelLegend explains the levels.
func levelLegend() (list []key) {
	list = []key{{scoreClass + strconv.Itoa(zeroLevel), "0"}, {scoreClass + "0", "below ¼ of the median"}}
	for i, name := range []string{"¼", "½", "¾", "1", "1½", "2", "4 times and more"} {
		list = append(list, key{scoreClass + strconv.Itoa(i+1), name})
	}
	return list
}

// median returns that of the values above zero, 0 if there are none.
func median(values []float64) float64 {
	v := slices.DeleteFunc(slices.Clone(values), func(x float64) bool { return !(x > 0) })
	if len(v) == 0 {
		return 0
	}
	slices.Sort(v)
	return (v[(len(v)-1)/2] + v[len(v)/2]) / 2
}

// tokens returns how many tokens chose each expert, of all texts.
func (b *Block) tokens() (sum []float64) {
	for _, uses := range b.Uses {
		if sum == nil {
			sum = make([]float64, len(uses))
		}
		for e, n := range uses {
			sum[e] += n
		}
	}
	return sum
}

// heatMap starts a map: its columns with their groups.
func (p *Prune) heatMap() *heatMap {
	m := &heatMap{Columns: p.Experts}
	size := p.groupSize()
	if size < p.Experts {
		m.Gaps = p.Experts/size - 1
	}
	step := tickStep(p.Experts)
	if size < p.Experts {
		for step = size; step > tickStep(p.Experts) && step%2 == 0; {
			step /= 2
		}
	}
	for first := 0; first < p.Experts; {
		span := min(step, size-first%size)
		m.Ticks = append(m.Ticks, tick{strconv.Itoa(first), span, p.gap(first)})
		first += span
	}
	return m
}

// tickStep is how many experts lie between two numbers: less where cells are wide.
func tickStep(experts int) int {
	switch {
	case experts <= 32:
		return 4
	case experts <= 64:
		return 8
	}
	return 16
}

// groupSize is the number of experts between two gaps.
func (p *Prune) groupSize() int {
	if p.Groups > 1 && p.Experts%p.Groups == 0 {
		return p.Experts / p.Groups
	}
	return p.Experts
}

// gap reports whether an expert is the first of a group that is not the first.
func (p *Prune) gap(e int) bool { return e > 0 && e%p.groupSize() == 0 }

// rowLabels is how many blocks have their numbers beside them.
const rowLabels = 32

// addRow adds the row of a block. class and title describe its experts.
func (m *heatMap) addRow(p *Prune, i int, class, title func(e int) string) {
	b := &p.Blocks[i]
	r := mapRow{Name: strconv.Itoa(b.Block)}
	if len(p.Blocks) > rowLabels && b.Block%4 != 0 {
		r.Name = ""
	}
	for e := range p.Experts {
		c, text := []string{class(e)}, fmt.Sprintf("block %d, expert %d", b.Block, e)
		if t := title(e); t != "" {
			text += ": " + t
		}
		if !slices.Contains(b.Kept, e) {
			c, text = append(c, goneClass), text+", goes"
		}
		if slices.Contains(b.Super, e) {
			c, text = append(c, superClass), text+", super expert"
		}
		if p.gap(e) {
			c = append(c, gapClass)
		}
		r.Cells = append(r.Cells, mapCell{strings.Join(c, " "), text})
	}
	m.Rows = append(m.Rows, r)
}

// scoreMap shows scores and tokens.
func (p *Prune) scoreMap() *heatMap {
	m := p.heatMap()
	m.Class = "heat"
	m.Caption = "Blocks from top to bottom, experts from left to right. Full cells stay, short ones go."
	scored, counted := p.any(func(b *Block) bool { return b.Scores != nil }), p.any(func(b *Block) bool { return b.Uses != nil })
	if scored && counted {
		m.Views = []view{{"score", "score"}, {"tokens", "tokens that choose the expert"}}
	}
	m.Legend = append(m.Legend, key{plainClass, "stays"}, key{plainClass + " " + goneClass, "goes"})
	if p.any(func(b *Block) bool { return len(b.Super) > 0 }) {
		m.Legend = append(m.Legend, key{plainClass + " " + superClass, "super expert"})
	}
	if scored || counted {
		m.Legend = append(m.Legend, levelLegend()...)
	}
	m.Summary = fmt.Sprintf("Map of %d blocks with %d experts each, of which %d stay; the table of blocks names those that go.", len(p.Blocks), p.Experts, p.Keep)
	for i := range p.Blocks {
		scores, tokens := p.Blocks[i].Scores, p.Blocks[i].tokens()
		m.addRow(p, i, heatClass(scores, tokens), func(e int) string { return heatTitle(scores, tokens, e) })
	}
	return m
}

// heatClass returns the classes of a block's experts: those of the levels of what
// is known.
func heatClass(scores, tokens []float64) func(e int) string {
	median1, median2 := median(scores), median(tokens)
	return func(e int) string {
		switch {
		case scores != nil && tokens != nil:
			return fmt.Sprint(scoreClass, level(scores[e], median1), " ", tokensClass, level(tokens[e], median2))
		case scores != nil:
			return fmt.Sprint(scoreClass, level(scores[e], median1))
		case tokens != nil:
			return fmt.Sprint(scoreClass, level(tokens[e], median2))
		}
		return plainClass
	}
}

func heatTitle(scores, tokens []float64, e int) string {
	var parts []string
	if scores != nil {
		parts = append(parts, fmt.Sprintf("score %.4g", scores[e]))
	}
	if tokens != nil {
		parts = append(parts, fmt.Sprintf("%.0f tokens", tokens[e]))
	}
	return strings.Join(parts, ", ")
}

// any reports whether a block has something.
func (p *Prune) any(has func(b *Block) bool) bool {
	for i := range p.Blocks {
		if has(&p.Blocks[i]) {
			return true
		}
	}
	return false
}

// preference says which texts use an expert: the share of each in how often it is
// used by texts of equal length, the largest share's text, and how uneven shares
// are: 1 − H/log D with their entropy H over D texts, 0 if they are equal and 1
// if one text alone uses the expert. shares is nil if none does.
type preference struct {
	shares []float64
	best   int
	degree float64
}

// preference returns that of an expert.
func (p *Prune) preference(b *Block, e int) (f preference) {
	sum := 0.0
	shares := make([]float64, len(p.Domains))
	for d, uses := range b.Uses {
		if t := p.Domains[d].Tokens; t > 0 {
			shares[d] = uses[e] / t
		}
		sum += shares[d]
	}
	if sum == 0 {
		return f
	}
	entropy := 0.0
	for d := range shares {
		if shares[d] /= sum; shares[d] > 0 {
			entropy -= shares[d] * math.Log(shares[d])
		}
		if shares[d] > shares[f.best] {
			f.best = d
		}
	}
	f.shares, f.degree = shares, max(0, 1-entropy/math.Log(float64(len(shares))))
	return f
}

// From these degrees on an expert prefers a text, and strongly.
const (
	prefers  = 0.1
	strongly = 0.4
)

// domainColours is how many domains have one; the others share the last.
const domainColours = 7

func (f *preference) class() string {
	if f.shares == nil {
		return emptyClass
	}
	hue := 0
	for _, from := range []float64{prefers, strongly} {
		if f.degree >= from {
			hue++
		}
	}
	if hue == 0 {
		return hueClass + "0"
	}
	return fmt.Sprint(domainClass, min(f.best, domainColours-1), " ", hueClass, hue)
}

// shownShares is how many shares a cell's title lists.
const shownShares = 3

func (f *preference) title(names []string) string {
	if f.shares == nil {
		return "no tokens"
	}
	order := make([]int, len(f.shares))
	for d := range order {
		order[d] = d
	}
	slices.SortStableFunc(order, func(a, b int) int { return cmp.Compare(f.shares[b], f.shares[a]) })
	var parts []string
	for _, d := range order[:min(shownShares, len(order))] {
		parts = append(parts, fmt.Sprintf("%s %.0f %%", names[d], 100*f.shares[d]))
	}
	return strings.Join(parts, ", ")
}

// longestName is how much of a domain's name is in a cell's title.
const longestName = 16

func shorten(name string) string {
	if r := []rune(name); len(r) > longestName {
		return string(r[:longestName-1]) + "…"
	}
	return name
}

// domainMap shows which texts experts are for.
func (p *Prune) domainMap() *heatMap {
	m := p.heatMap()
	m.Class = "domains"
	m.Caption = "Blocks from top to bottom, experts from left to right; full cells stay, short ones go. The colour is that of the text which uses the expert most, texts counted as if they were equally long."
	m.Summary = "Map of the kind of text that uses each expert most; the table below counts them."
	m.Legend = []key{{hueClass + "0", "used alike"}, {emptyClass, "not used"}}
	var names []string
	for d := range p.Domains {
		names = append(names, shorten(p.Domains[d].Name))
		if class := fmt.Sprint(domainClass, min(d, domainColours-1), " "+hueClass); d < domainColours {
			m.Legend = append(m.Legend, key{class + "1", names[d]}, key{class + "2", names[d] + ", strongly"})
		}
	}
	for i := range p.Blocks {
		b := &p.Blocks[i]
		all := make([]preference, p.Experts)
		for e := range all {
			all[e] = p.preference(b, e)
		}
		m.addRow(p, i, func(e int) string { return all[e].class() }, func(e int) string { return all[e].title(names) })
	}
	return m
}
