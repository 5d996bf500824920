package report

import (
	"bufio"
	"embed"
	"fmt"
	"html/template"
	"io"
	"strconv"
	"strings"
)

//go:embed page.tmpl style.css
var files embed.FS

var pageTemplate = template.Must(template.ParseFS(files, "page.tmpl", "style.css"))

// WriteHTML writes the page. Names are taken for text whatever they contain.
func (p *Prune) WriteHTML(w io.Writer) error {
	if err := p.check(); err != nil {
		return err
	}
	b := bufio.NewWriter(w)
	if err := pageTemplate.Execute(b, p.page()); err != nil {
		return err
	}
	return b.Flush()
}

// page is what the template shows.
type page struct {
	Title    string
	Lead     string
	Tool     string
	Tiles    []tile
	Warnings []string
	Sections []*section
}

// tile is a fact worth a large number.
type tile struct{ Name, Value, Note string }

// section is a part of the page. Its parts come in this order.
type section struct {
	ID, Title string
	Text      []string
	Maps      []*heatMap
	Chart     *chart
	Tables    []*table
}

// table is a table whose first column names its rows.
type table struct {
	Caption string
	Columns []column
	Rows    []row
	Folded  bool // shown when it is asked for
}

type column struct {
	Name string
	Text bool // else of numbers
}

// row is a row; a marked one is the choice.
type row struct {
	Cells  []string
	Marked bool
}

// cell is a cell with its column.
type cell struct {
	column
	Value string
}

// Head is the first cell of a row.
func (r row) Head() string { return r.Cells[0] }

// Rest are the other cells of a row with their columns.
func (t *table) Rest(r row) (list []cell) {
	for i, v := range r.Cells[1:] {
		list = append(list, cell{t.Columns[i+1], v})
	}
	return list
}

func (t *table) add(cells ...string) { t.Rows = append(t.Rows, row{Cells: cells}) }

// mark marks the row added last.
func (t *table) mark(on bool) { t.Rows[len(t.Rows)-1].Marked = on }

// numbers makes columns of numbers behind a first one of text.
func numbers(first string, rest ...string) []column {
	list := []column{{first, true}}
	for _, name := range rest {
		list = append(list, column{Name: name})
	}
	return list
}

// unknown stands for what was not measured.
const unknown = "–"

// format writes an estimate with as many digits.
func (e Estimate) format(digits int) string {
	return strings.TrimSuffix(fmt.Sprintf("%.*f ", digits, e.Value)+e.margin(digits), " ")
}

// margin writes the error with a space behind it, if there is one.
func (e Estimate) margin(digits int) string {
	if e.Error > 0 {
		return fmt.Sprintf("± %.*f ", digits, e.Error)
	}
	return ""
}

func (e Estimate) percent() string { return e.format(2) + " %" }

// sharePercent writes a share of 1, or that there is none.
func sharePercent(share *float64) string {
	if share == nil {
		return unknown
	}
	return fmt.Sprintf("%.1f %%", 100**share)
}

// bytesText writes a size.
func bytesText(n int64) string {
	f := float64(n)
	for _, unit := range []struct {
		name   string
		size   float64
		digits int
	}{{"TB", 1e12, 2}, {"GB", 1e9, 2}, {"MB", 1e6, 1}, {"kB", 1e3, 1}} {
		if f >= unit.size {
			return fmt.Sprintf("%.*f %s", unit.digits, f/unit.size, unit.name)
		}
	}
	return fmt.Sprintf("%d B", n)
}

// change writes by how much a size grew.
func change(before, after int64) string {
	return strings.Replace(fmt.Sprintf("%+.1f %%", 100*(float64(after)/float64(before)-1)), "-", "−", 1)
}

// countText writes a whole number with separators.
func countText(n float64) string {
	s := strconv.FormatFloat(n, 'f', 0, 64)
	for i := len(s) - 3; i > 0; i -= 3 {
		s = s[:i] + "," + s[i:]
	}
	return s
}

// rangesText writes ascending numbers, those in a row as 3–7.
func rangesText(ids []int) string {
	var parts []string
	for i := 0; i < len(ids); {
		first := i
		for i++; i < len(ids) && ids[i] == ids[i-1]+1; {
			i++
		}
		part := strconv.Itoa(ids[first])
		if i > first+1 {
			part += "–" + strconv.Itoa(ids[i-1])
		}
		parts = append(parts, part)
	}
	return strings.Join(parts, " ")
}

func plural(n int, one, many string) string {
	if n == 1 {
		return fmt.Sprintf("%d %s", n, one)
	}
	return fmt.Sprintf("%d %s", n, many)
}
