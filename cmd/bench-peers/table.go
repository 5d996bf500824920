//go:build unix

package main

import (
	"fmt"
	"strings"
)

// column is a heading of a table with the width of its text form, negative for
// cells to the left.
type column struct {
	name  string
	width int
}

// begin starts a table with its title and headings.
func (b *bench) begin(title string, columns []column) {
	b.columns = columns
	fmt.Printf("\n%s\n\n", title)
	names, rules := make([]string, len(columns)), make([]string, len(columns))
	for i, c := range columns {
		names[i], rules[i] = c.name, "---"
		if c.width > 0 {
			rules[i] = "---:"
		}
	}
	b.print(names)
	if b.markdown {
		b.print(rules)
	}
}

// print writes a line of the table.
func (b *bench) print(cells []string) {
	if b.markdown {
		fmt.Println("| " + strings.Join(cells, " | ") + " |")
		return
	}
	var line strings.Builder
	for i, c := range b.columns {
		fmt.Fprintf(&line, "%*s  ", c.width, cells[i])
	}
	fmt.Println(strings.TrimRight(line.String(), " "))
}
