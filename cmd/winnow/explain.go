package main

import (
	"fmt"
	"strconv"
	"strings"
	"unicode/utf8"

	"github.com/winnow-moe/winnow/convert"
	"github.com/winnow-moe/winnow/formats/arch"
	"github.com/winnow-moe/winnow/formats/gguf"
)

// explain prints which tensors of a model a recipe gives which type, and why.
// A model is a GGUF file or a checkpoint folder.
func (a *app) explain(types, path string, flags *quantizeFlags) error {
	recipes, err := parseTypes(types)
	if err != nil {
		return err
	}
	outputs, err := outputNames("{type}.gguf", "", recipes)
	if err != nil {
		return err
	}
	defer flags.recipe.close()
	req, err := flags.request(outputs)
	if err != nil {
		return err
	}
	req.Preview = true
	plan, err := planFor(path, req)
	if err != nil {
		return planError(err)
	}
	a.warn(plan.Notes)
	if a.json {
		return a.printJSON(plan.Summary())
	}
	for o := range plan.Outputs {
		a.printExplanation(plan, o)
	}
	for _, text := range fallbackTexts(plan) {
		a.printf("* %s\n", wrap(text, "  "))
	}
	return nil
}

// planFor plans from headers, whatever kind of model path is.
func planFor(path string, req convert.Request) (*convert.Plan, error) {
	if isDir(path) {
		ck, err := convert.OpenCheckpoint(path, convert.CheckpointOptions{})
		if err != nil {
			return nil, err
		}
		defer ck.Close()
		return ck.Plan(req)
	}
	f, err := gguf.OpenUnmapped(path)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	return convert.NewGGUFSource(path, f).Plan(req)
}

// typeGroup are the tensors of one role that get one type for one reason.
type typeGroup struct {
	name   arch.Name // of the first
	typ    gguf.Type
	why    string
	layers []int
}

func (a *app) printExplanation(p *convert.Plan, o int) {
	const widest = 40 // longer names get a line of their own
	head, groups := p.Outputs[o].Recipe.Name, typeGroups(p, o)
	names, types := len("tensors"), len(head)
	for _, g := range groups {
		if n := utf8.RuneCountInString(g.pattern()); n <= widest {
			names = max(names, n)
		}
		types = max(types, len(g.typ.String()))
	}
	line := func(name, typ, why string) {
		if utf8.RuneCountInString(name) > names {
			a.printf("%s\n", wrap(strings.ReplaceAll(name, ",", ", "), "    "))
			name = ""
		}
		a.printf("%-*s  %-*s  %s\n", names, name, types, typ, wrap(why, strings.Repeat(" ", names+types+4)))
	}
	line("tensors", head, "why")
	for _, g := range groups {
		line(printable(g.pattern()), g.typ.String(), g.why)
	}
	doc := p.Summary().Outputs[o]
	a.printf("\n%s: %s, %.4f bits per weight\n", doc.Type, sizeText(doc.FileBytes), doc.BitsPerWeight)
}

func typeGroups(p *convert.Plan, o int) []*typeGroup {
	var groups []*typeGroup
	index := map[string]*typeGroup{}
	for i := range p.Tensors {
		n, c := arch.ParseName(p.Tensors[i].Name), &p.Outputs[o].Choices[i]
		why := c.Rule
		if c.Fallback != "" {
			why = c.Fallback
		}
		key := fmt.Sprint(n.Role, n.Suffix, c.Type, why)
		g := index[key]
		if g == nil {
			g = &typeGroup{name: n, typ: c.Type, why: why}
			index[key] = g
			groups = append(groups, g)
		}
		g.layers = append(g.layers, n.Layer)
	}
	return groups
}

// pattern names the tensors of the group, such as "blk.{0-2,5}.attn_v.weight".
func (g *typeGroup) pattern() string {
	if len(g.layers) == 1 {
		return g.name.String()
	}
	var parts []string
	for i := 0; i < len(g.layers); {
		j := i
		for j+1 < len(g.layers) && g.layers[j+1] == g.layers[j]+1 {
			j++
		}
		s := strconv.Itoa(g.layers[i])
		if j > i {
			s += "-" + strconv.Itoa(g.layers[j])
		}
		parts = append(parts, s)
		i = j + 1
	}
	n := g.name
	n.Layer = -1
	return "blk.{" + strings.Join(parts, ",") + "}." + n.String()
}
