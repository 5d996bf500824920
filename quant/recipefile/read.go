package recipefile

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"os"
	"slices"
	"strconv"
	"strings"
	"unicode/utf8"

	"go.yaml.in/yaml/v3"

	"github.com/winnow-moe/winnow/quant"
)

// maxSize bounds recipe files. Rules for every tensor of the largest models
// take a tenth of it.
const maxSize = 1 << 20

// Read reads a recipe file.
func Read(path string) (*File, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	data, err := io.ReadAll(io.LimitReader(f, maxSize+1))
	if err != nil {
		return nil, err
	}
	return Parse(path, data)
}

// Parse reads the content of a recipe file: YAML, JSON (which is YAML too), or
// a list of PATTERN=TYPE separated by white space. path is for messages.
//
// Of YAML it takes one document without anchors, aliases and tags, so that a
// file never means more than it shows. Unknown and repeated fields are errors.
func Parse(path string, data []byte) (*File, error) {
	if len(data) > maxSize {
		return nil, fmt.Errorf("%w: %q is larger than %d bytes", ErrInvalid, path, maxSize)
	}
	if !utf8.Valid(data) {
		return nil, fmt.Errorf("%w: %q is not a text in UTF-8", ErrInvalid, path)
	}
	f := &File{Path: path}
	if rules := parseList(string(data)); rules != nil {
		f.Rules = rules
		return f, nil
	}
	root, err := document(data)
	if err != nil {
		return nil, fmt.Errorf("%w: %q: %w", ErrInvalid, path, err)
	}
	if err := f.set(root); err != nil {
		var at *lineError
		if errors.As(err, &at) {
			path += ":" + strconv.Itoa(at.line)
		}
		return nil, fmt.Errorf("%w: %s: %w", ErrInvalid, path, err)
	}
	return f, nil
}

// parseList reads PATTERN=TYPE words. It returns nil for any other text.
func parseList(text string) []Rule {
	var rules []Rule
	line := 0
	for s := range strings.Lines(text) {
		line++
		for word := range strings.FieldsSeq(s) {
			r, err := parseRule(word)
			if err != nil {
				return nil
			}
			r.line = line
			rules = append(rules, r)
		}
	}
	return rules
}

// document parses a text with one YAML document.
func document(data []byte) (*yaml.Node, error) {
	dec := yaml.NewDecoder(bytes.NewReader(data))
	var doc, more yaml.Node
	switch err := dec.Decode(&doc); {
	case errors.Is(err, io.EOF):
		return nil, errors.New("the file is empty; fields such as \"type: Q4_K_M\" are expected")
	case err != nil:
		return nil, errors.New(strings.TrimPrefix(err.Error(), "yaml: "))
	}
	if err := dec.Decode(&more); !errors.Is(err, io.EOF) {
		return nil, errors.New("there is more than one document")
	}
	return doc.Content[0], nil
}

// lineError is an error with its place in the file.
type lineError struct {
	line int
	text string
}

func (e *lineError) Error() string { return e.text }

func errorAt(n *yaml.Node, format string, args ...any) error {
	return &lineError{n.Line, fmt.Sprintf(format, args...)}
}

// found describes what stands in the file.
func found(n *yaml.Node) string {
	switch {
	case n.Kind == yaml.AliasNode:
		return "an alias"
	case n.Anchor != "":
		return "marked with an anchor"
	case n.Style&yaml.TaggedStyle != 0:
		return "marked with the tag " + strconv.Quote(n.Tag)
	case n.Kind == yaml.MappingNode:
		return "a group of fields"
	case n.Kind == yaml.SequenceNode:
		return "a list"
	case n.ShortTag() == "!!null":
		return "empty"
	}
	const most = 60
	if len(n.Value) > most {
		return strconv.Quote(n.Value[:most]) + "…"
	}
	return strconv.Quote(n.Value)
}

// isPlain reports whether a node is of a kind and no more than it shows.
func isPlain(n *yaml.Node, kind yaml.Kind) bool {
	return n.Kind == kind && n.Anchor == "" && n.Style&yaml.TaggedStyle == 0
}

// eachField calls f for the fields of a mapping, whose names must be known.
func eachField(n *yaml.Node, where string, names []string, f func(name string, v *yaml.Node) error) error {
	if !isPlain(n, yaml.MappingNode) {
		return errorAt(n, "%s is %s, want the fields %s", where, found(n), strings.Join(names, ", "))
	}
	lines := map[string]int{}
	for i := 0; i < len(n.Content); i += 2 {
		key := n.Content[i]
		if !isPlain(key, yaml.ScalarNode) || !slices.Contains(names, key.Value) {
			return errorAt(key, "unknown field %s (known: %s)", found(key), strings.Join(names, ", "))
		}
		if first := lines[key.Value]; first > 0 {
			return errorAt(key, "field %q is given twice, first in line %d", key.Value, first)
		}
		lines[key.Value] = key.Line
		if err := f(key.Value, n.Content[i+1]); err != nil {
			return err
		}
	}
	return nil
}

// set takes over the fields of a document.
func (f *File) set(root *yaml.Node) error {
	fields := f.fields()
	names := make([]string, len(fields))
	for i := range fields {
		names[i] = fields[i].name
	}
	err := eachField(root, "the file", names, func(name string, v *yaml.Node) error {
		return fields[slices.Index(names, name)].set(v)
	})
	if err == nil && len(f.Include) > 0 && len(f.Exclude) > 0 {
		err = errorAt(root, `the fields "include-weights" and "exclude-weights" exclude each other`)
	}
	return err
}

func (fd *field) set(n *yaml.Node) (err error) {
	switch to := fd.to.(type) {
	case *string:
		*to, err = text(fd.name, n, fd.check)
	case *bool:
		*to, err = boolean(fd.name, n)
	case *[]string:
		*to, err = texts(fd.name, n, fd.check)
	case *Layers:
		*to, err = layers(fd.name, n)
	case *[]Rule:
		*to, err = rules(fd.name, n)
	}
	return err
}

func boolean(name string, n *yaml.Node) (bool, error) {
	if !isPlain(n, yaml.ScalarNode) || n.ShortTag() != "!!bool" || n.Value != "true" && n.Value != "false" {
		return false, errorAt(n, "field %q is %s, want true or false", name, found(n))
	}
	return n.Value == "true", nil
}

// text reads a string that passes check. Numbers are their digits.
func text(name string, n *yaml.Node, check func(string) error) (string, error) {
	if tag := n.ShortTag(); !isPlain(n, yaml.ScalarNode) || tag == "!!null" || n.Value == "" {
		return "", errorAt(n, "field %q is %s, want a text", name, found(n))
	}
	if check != nil {
		if err := check(n.Value); err != nil {
			return "", errorAt(n, "field %q: %v", name, err)
		}
	}
	return n.Value, nil
}

// texts reads a list of texts, or a single one.
func texts(name string, n *yaml.Node, check func(string) error) ([]string, error) {
	list := []*yaml.Node{n}
	if isPlain(n, yaml.SequenceNode) {
		list = n.Content
	}
	var out []string
	for _, item := range list {
		s, err := text(name, item, check)
		if err != nil {
			return nil, err
		}
		out = append(out, s)
	}
	return out, nil
}

// layers reads "0-3,7", a number, or a list of such.
func layers(name string, n *yaml.Node) (Layers, error) {
	list, err := texts(name, n, nil)
	if err != nil {
		return nil, err
	}
	if len(list) == 0 {
		return nil, errorAt(n, "field %q is an empty list, want block numbers or ranges such as 0-3", name)
	}
	l, err := ParseLayers(strings.Join(list, ","))
	if err != nil {
		return nil, errorAt(n, "field %q: %v", name, err)
	}
	return l, nil
}

func rules(name string, n *yaml.Node) ([]Rule, error) {
	if !isPlain(n, yaml.SequenceNode) {
		return nil, errorAt(n, "field %q is %s, want a list of rules such as {role: attn_v, layers: 0-3, type: Q8_0} or \"attn_v=Q8_0\"", name, found(n))
	}
	var out []Rule
	for _, item := range n.Content {
		r, err := rule(name, item)
		if err != nil {
			return nil, err
		}
		r.line = item.Line
		out = append(out, r)
	}
	return out, nil
}

// rule reads one rule: PATTERN=TYPE or fields.
func rule(name string, n *yaml.Node) (r Rule, err error) {
	if isPlain(n, yaml.ScalarNode) {
		if r, err = parseRule(n.Value); err != nil {
			return r, errorAt(n, "field %q: %v", name, err)
		}
		return r, nil
	}
	err = eachField(n, "a rule of "+strconv.Quote(name), []string{"match", "name", "role", "layers", "type"}, func(name string, v *yaml.Node) (err error) {
		switch name {
		case "match":
			r.Match, err = text(name, v, nil)
		case "name":
			r.Name, err = text(name, v, nil)
		case "role":
			r.Roles, err = texts(name, v, nil)
		case "layers":
			r.Layers, err = layers(name, v)
		case "type":
			var s string
			if s, err = text(name, v, checkType); err == nil {
				r.Type, err = quant.ParseType(s)
			}
		}
		return err
	})
	if err != nil {
		return r, err
	}
	if !slices.ContainsFunc(n.Content, func(c *yaml.Node) bool { return c.Value == "type" }) {
		return r, errorAt(n, "a rule of %q has no type", name)
	}
	if err := r.check(); err != nil {
		return r, errorAt(n, "field %q: %v", name, err)
	}
	return r, nil
}
