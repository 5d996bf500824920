package main

import (
	"fmt"
	"io"
	"time"

	"github.com/winnow-moe/winnow/convert"
)

// printPlan shows what a run would do, in the order it would do it.
func (a *app) printPlan(p *convert.Plan) error {
	doc := p.Summary()
	if a.json {
		return a.printJSON(doc)
	}
	a.printf("%-34s %-8s", "tensor", "source")
	for range p.Outputs {
		a.printf("  %-6s %9s", "type", "bytes")
	}
	a.printf("\n")
	for i := range p.Tensors {
		a.printf("%-34s %-8s", p.Tensors[i].Name, p.Tensors[i].From)
		for o := range p.Outputs {
			info := p.Info(o, i)
			mark := ""
			if p.Outputs[o].Choices[i].Fallback != "" {
				mark = "*"
			}
			a.printf("  %-6s %9s", info.Type.String()+mark, sizeText(info.Size()))
		}
		a.printf("\n")
	}
	a.printf("\n")
	a.printDropped(p)
	a.printFallbacks(a.stdout, p)
	for i := range doc.Outputs {
		o := &doc.Outputs[i]
		a.printf("%s: %s, %d tensors, %.4f bits per weight", o.Path, sizeText(o.FileBytes), len(p.Tensors), o.BitsPerWeight)
		if o.Files > 1 {
			a.printf(", %d files", o.Files)
		}
		a.printf("\n")
	}
	a.printf("source: %s to read once (%s); temporary disk: 0 B\n", sizeText(doc.SourceBytes), p.Source)
	return nil
}

func (a *app) printDropped(p *convert.Plan) {
	var reasons []string
	counts := map[string]int{}
	for _, d := range p.Dropped {
		if counts[d.Why] == 0 {
			reasons = append(reasons, d.Why)
		}
		counts[d.Why]++
	}
	for _, why := range reasons {
		a.printf("left out: %d %s: %s\n", counts[why], plural(counts[why], "tensor", "tensors"), why)
	}
}

// printFallbacks says where a type did not fit and what that costs.
func (a *app) printFallbacks(w io.Writer, p *convert.Plan) {
	if a.quiet {
		return
	}
	for _, f := range p.Fallbacks() {
		fmt.Fprintf(w, "* %s: %d %s: %s (%+.1f %%)\n", f.Recipe, f.Tensors, plural(f.Tensors, "tensor", "tensors"), f.Why, 100*float64(f.Bytes-f.WantedBytes)/float64(f.WantedBytes))
	}
}

func plural(n int, one, many string) string {
	if n == 1 {
		return one
	}
	return many
}

// printResult reports finished files.
func (a *app) printResult(p *convert.Plan, took time.Duration) error {
	doc := p.Summary()
	if a.json {
		return a.printJSON(struct {
			convert.Summary
			Seconds float64 `json:"seconds"`
		}{doc, took.Seconds()})
	}
	for i := range doc.Outputs {
		o := &doc.Outputs[i]
		a.printf("%s: %s, %.4f bits per weight\n", o.Path, sizeText(o.FileBytes), o.BitsPerWeight)
	}
	a.note("read %s in %s (%s/s)", sizeText(doc.SourceBytes), took.Round(10*time.Millisecond), sizeText(int64(float64(doc.SourceBytes)/took.Seconds())))
	return nil
}
