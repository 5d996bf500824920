package recipefile

import (
	"bytes"
	"encoding/json"
	"fmt"
	"strconv"
	"strings"

	"go.yaml.in/yaml/v3"
)

// Formats are the forms in which Encode writes a recipe.
var Formats = []string{"yaml", "json", "tensor-types"}

// Encode writes the recipe in one of Formats. "tensor-types" is the list that
// llama-quantize reads with --tensor-type-file: it holds the rules alone, for
// which BesideList says what has to go with them.
func (f *File) Encode(format string) ([]byte, error) {
	switch format {
	case "tensor-types":
		var b strings.Builder
		for i := range f.Rules {
			b.WriteString(f.Rules[i].String() + "\n")
		}
		return []byte(b.String()), nil
	case "yaml":
		return f.yaml()
	case "json":
		return f.json()
	}
	return nil, fmt.Errorf("unknown recipe format %q (known: %s)", format, strings.Join(Formats, ", "))
}

// BesideList returns what a list of PATTERN=TYPE does not hold: the arguments
// that llama-quantize needs beside it, and the fields that it has no argument
// for.
func (f *File) BesideList() (args, lost []string) {
	names, values := f.given()
	for i, name := range names {
		switch v := values[i].(type) {
		case bool:
			if name == "no-fallback" {
				lost = append(lost, name)
				continue
			}
			args = append(args, "--"+name)
		case []string:
			for _, s := range v {
				args = append(args, "--"+name, s)
			}
		case Layers:
			args = append(args, "--"+name, strings.ReplaceAll(strings.Trim(fmt.Sprint([]int(v)), "[]"), " ", ","))
		case string:
			if name != "type" {
				args = append(args, "--"+name, v)
			}
		}
	}
	return args, lost
}

// members are fields of a document in order.
type members []member

type member struct {
	name  string
	value any // string, int, bool, []string, members, []any of these
}

func (f *File) document() members {
	names, values := f.given()
	out := make(members, len(names))
	for i := range out {
		out[i] = member{names[i], values[i]}
		switch v := values[i].(type) {
		case Layers:
			out[i].value = v.document()
		case []Rule:
			list := make([]any, len(v))
			for j := range v {
				list[j] = v[j].document()
			}
			out[i].value = list
		}
	}
	return out
}

// document lists numbers and ranges, a single one without a list around it.
func (l Layers) document() any {
	var list []any
	l.ranges(func(lo, hi int) {
		if lo == hi {
			list = append(list, lo)
		} else {
			list = append(list, fmt.Sprintf("%d-%d", lo, hi))
		}
	})
	if len(list) == 1 {
		return list[0]
	}
	return list
}

func (r *Rule) document() any {
	var m members
	switch {
	case r.Match != "":
		return r.String()
	case r.Name != "":
		m = members{{"name", r.Name}}
	case len(r.Roles) == 1:
		m = members{{"role", r.Roles[0]}}
	default:
		m = members{{"role", r.Roles}}
	}
	if r.Layers != nil {
		m = append(m, member{"layers", r.Layers.document()})
	}
	return append(m, member{"type", r.Type.String()})
}

// MarshalJSON implements json.Marshaler.
func (m members) MarshalJSON() ([]byte, error) {
	b := []byte{'{'}
	for i := range m {
		if i > 0 {
			b = append(b, ',')
		}
		value, err := json.Marshal(m[i].value)
		if err != nil {
			return nil, err
		}
		b = append(append(strconv.AppendQuote(b, m[i].name), ':'), value...)
	}
	return append(b, '}'), nil
}

// json writes one field or one element of a list per line.
func (f *File) json() ([]byte, error) {
	b := []byte{'{'}
	for i, m := range f.document() {
		if i > 0 {
			b = append(b, ',')
		}
		b = append(strconv.AppendQuote(append(b, "\n  "...), m.name), ": "...)
		items, isList := m.value.([]any)
		if !isList {
			items = []any{m.value}
		}
		for j, v := range items {
			value, err := json.Marshal(v)
			switch {
			case err != nil:
				return nil, err
			case isList && j == 0:
				b = append(b, "[\n    "...)
			case isList:
				b = append(b, ",\n    "...)
			}
			b = append(b, value...)
		}
		if isList {
			b = append(b, "\n  ]"...)
		}
	}
	return append(b, "\n}\n"...), nil
}

// MarshalYAML implements yaml.Marshaler. A rule takes one line if it fits.
func (m members) MarshalYAML() (any, error) {
	n := &yaml.Node{Kind: yaml.MappingNode}
	for i := range m {
		var name, value yaml.Node
		name.SetString(m[i].name)
		if err := value.Encode(m[i].value); err != nil {
			return nil, err
		}
		n.Content = append(n.Content, &name, &value)
	}
	return n, nil
}

// lineWidth is how long a rule on one line may be.
const lineWidth = 72

func (f *File) yaml() ([]byte, error) {
	var b bytes.Buffer
	for _, s := range f.Remarks {
		b.WriteString("# " + strings.ReplaceAll(s, "\n", " ") + "\n")
	}
	var root yaml.Node
	if err := root.Encode(f.document()); err != nil {
		return nil, err
	}
	for i := 1; i < len(root.Content); i += 2 {
		for _, rule := range root.Content[i].Content {
			rule.Style |= yaml.FlowStyle
			if line, err := yaml.Marshal(rule); err != nil || len(line) > lineWidth {
				rule.Style &^= yaml.FlowStyle
			}
		}
	}
	enc := yaml.NewEncoder(&b)
	enc.SetIndent(2)
	if err := enc.Encode(&root); err != nil {
		return nil, err
	}
	return b.Bytes(), enc.Close()
}
