package main

import (
	"fmt"
	"strings"
	"time"

	"github.com/winnow-moe/winnow/convert"
)

// document is what --json prints of plans: the first, with that of a vision
// tower that is written beside it.
type document struct {
	convert.Summary
	Mmproj  *convert.Summary `json:"mmproj,omitempty"`
	Seconds float64          `json:"seconds,omitempty"`
}

func documentOf(plans []*convert.Plan) document {
	d := document{Summary: plans[0].Summary()}
	if len(plans) > 1 {
		tower := plans[1].Summary()
		d.Mmproj = &tower
	}
	return d
}

// printPlans shows what a run would do, in the order it would do it.
func (a *app) printPlans(plans []*convert.Plan) error {
	if a.json {
		return a.printJSON(documentOf(plans))
	}
	for i, p := range plans {
		if i > 0 {
			a.printf("\n")
		}
		a.printPlan(p)
	}
	return nil
}

func (a *app) printPlan(p *convert.Plan) {
	doc := p.Summary()
	a.printf("%s\n", planTable(p))
	a.printDropped(p)
	for _, text := range fallbackTexts(p) {
		a.printf("* %s\n", wrap(text, "  "))
	}
	for i := range doc.Outputs {
		o := &doc.Outputs[i]
		a.printf("%s, %d tensors\n", outputText(o), len(p.Tensors))
	}
	a.printf("source: %s to read once from %s; temporary disk: %s\n", sizeText(doc.SourceBytes), printable(p.Source), sizeText(doc.TempDisk))
}

// outputText tells the size of an output.
func outputText(o *convert.OutputSummary) string {
	text := fmt.Sprintf("%s: %s, %.4f bits per weight", printable(o.Path), sizeText(o.FileBytes), o.BitsPerWeight)
	if o.Thorough > 0 {
		text += fmt.Sprintf(" (thorough search: %d %s)", o.Thorough, plural(o.Thorough, "tensor", "tensors"))
	}
	if o.Files > 1 {
		text += fmt.Sprintf(", %d files", o.Files)
	}
	return text
}

// planTable lists the tensors with their types, and with their sizes if there
// is room for them.
func planTable(p *convert.Plan) string {
	for _, sizes := range []bool{true, false} {
		columns := "l"
		if sizes {
			columns = "lr"
		}
		text := table("ll"+strings.Repeat(columns, len(p.Outputs)), planRows(p, sizes))
		if widest(text) <= lineWidth || !sizes {
			return text
		}
	}
	return ""
}

func planRows(p *convert.Plan, sizes bool) [][]string {
	head := []string{"tensor", "source"}
	for o := range p.Outputs {
		head = append(head, p.Outputs[o].Recipe.Name)
		if sizes {
			head = append(head, "size")
		}
	}
	rows := [][]string{head}
	for i := range p.Tensors {
		row := []string{printable(p.Tensors[i].Name), p.Tensors[i].From}
		for o := range p.Outputs {
			info, mark := p.Info(o, i), ""
			if p.Outputs[o].Choices[i].Fallback != "" {
				mark = "*"
			}
			row = append(row, info.Type.String()+mark)
			if sizes {
				row = append(row, sizeText(info.Size()))
			}
		}
		rows = append(rows, row)
	}
	return rows
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
		a.printf("left out: %s\n", wrap(fmt.Sprintf("%d %s: %s", counts[why], plural(counts[why], "tensor", "tensors"), why), "          "))
	}
}

// fallbackTexts says where a type did not fit and what that costs.
func fallbackTexts(p *convert.Plan) []string {
	var texts []string
	for _, f := range p.Fallbacks() {
		texts = append(texts, fmt.Sprintf("%s, %d %s: %s (%+.1f %% bytes)", f.Recipe, f.Tensors, plural(f.Tensors, "tensor", "tensors"),
			f.Why, 100*float64(f.Bytes-f.WantedBytes)/float64(f.WantedBytes)))
	}
	return texts
}

// printResult reports finished files.
func (a *app) printResult(plans []*convert.Plan, took time.Duration) error {
	if a.json {
		d := documentOf(plans)
		d.Seconds = took.Seconds()
		return a.printJSON(d)
	}
	read := int64(0)
	for _, p := range plans {
		doc := p.Summary()
		for i := range doc.Outputs {
			a.printf("%s\n", outputText(&doc.Outputs[i]))
		}
		read += doc.SourceBytes
	}
	a.note("read %s in %s (%s/s)", sizeText(read), took.Round(time.Millisecond), sizeText(int64(float64(read)/took.Seconds())))
	return nil
}
