package convert

import (
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"path/filepath"
	"strings"
	"unicode/utf8"

	"github.com/winnow-moe/winnow/formats/strictjson"
	"go.yaml.in/yaml/v3"
)

// modelCard is the front matter of a checkpoint's README.md (hub-docs
// modelcard.md): YAML between lines of three hyphens. All its methods take
// texts as they stand, so that "1.0" is no number and "no" is Norwegian.
type modelCard struct{ fields map[string]*yaml.Node }

const cardLimit = 16 << 20 // bytes; cards with evaluation results take half a megabyte

// readCard reads the model card of a folder. A card is not needed for a
// conversion: what is wrong with one is a warning.
func readCard(dir string) (card modelCard, warning string) {
	data, err := strictjson.ReadFile(filepath.Join(dir, "README.md"), cardLimit)
	if errors.Is(err, fs.ErrNotExist) {
		return modelCard{}, ""
	}
	if err == nil {
		card, err = parseCard(data)
	}
	if err != nil {
		return modelCard{}, fmt.Sprintf("README.md: the model card is not used: %v", err)
	}
	return card, ""
}

func parseCard(data []byte) (modelCard, error) {
	text, ok := frontMatter(data)
	if !ok {
		return modelCard{}, nil
	}
	if !utf8.ValidString(text) {
		return modelCard{}, errors.New("it is not UTF-8")
	}
	var doc yaml.Node
	// Released cards indent by tabs, which YAML does not allow.
	if err := yaml.Unmarshal([]byte(strings.ReplaceAll(text, "\t", "  ")), &doc); err != nil {
		return modelCard{}, errors.New(strings.TrimPrefix(err.Error(), "yaml: "))
	}
	if len(doc.Content) == 0 {
		return modelCard{}, nil
	}
	fields, ok := mapping(doc.Content[0])
	if !ok {
		return modelCard{}, errors.New("its front matter is not a mapping")
	}
	return modelCard{fields}, nil
}

// frontMatter returns the text between the first line, if it is "---", and the
// next such line or the end.
func frontMatter(data []byte) (string, bool) {
	data = bytes.ReplaceAll(data, []byte("\r\n"), []byte("\n"))
	rest, ok := bytes.CutPrefix(data, []byte("---\n"))
	if !ok {
		return "", false
	}
	var text strings.Builder
	for line := range bytes.Lines(rest) {
		if string(bytes.TrimSuffix(line, []byte("\n"))) == "---" {
			break
		}
		text.Write(line)
	}
	return text.String(), true
}

// mapping returns the fields of a YAML mapping; of equal keys the last counts.
func mapping(n *yaml.Node) (map[string]*yaml.Node, bool) {
	if n = resolved(n); n.Kind != yaml.MappingNode {
		return nil, false
	}
	fields := map[string]*yaml.Node{}
	for i := 0; i+1 < len(n.Content); i += 2 {
		fields[n.Content[i].Value] = resolved(n.Content[i+1])
	}
	return fields, true
}

// resolved follows an alias.
func resolved(n *yaml.Node) *yaml.Node {
	if n.Kind == yaml.AliasNode {
		return n.Alias
	}
	return n
}

// scalar returns the text of a scalar; null and other kinds have none.
func scalar(n *yaml.Node) (string, bool) {
	if n == nil || n.Kind != yaml.ScalarNode || n.Tag == "!!null" {
		return "", false
	}
	return n.Value, true
}

// text returns the first of the fields that is a text, or "".
func (c modelCard) text(keys ...string) string {
	for _, k := range keys {
		if s, ok := scalar(c.fields[k]); ok {
			return s
		}
	}
	return ""
}

// texts returns the texts of all the fields, each one text or a list of them.
func (c modelCard) texts(keys ...string) []string {
	var out []string
	for _, k := range keys {
		for _, n := range items(c.fields[k]) {
			if s, ok := scalar(n); ok {
				out = append(out, s)
			}
		}
	}
	return out
}

// items returns the elements of a list; a scalar is a list of one.
func items(n *yaml.Node) []*yaml.Node {
	switch {
	case n == nil:
		return nil
	case n.Kind == yaml.SequenceNode:
		list := make([]*yaml.Node, len(n.Content))
		for i := range list {
			list[i] = resolved(n.Content[i])
		}
		return list
	}
	if _, ok := scalar(n); ok {
		return []*yaml.Node{n}
	}
	return nil
}

// first returns the first of the fields that is there, whatever its value.
func (c modelCard) first(keys ...string) (*yaml.Node, bool) {
	for _, k := range keys {
		if n, ok := c.fields[k]; ok {
			return n, true
		}
	}
	return nil, false
}
