package quant

import (
	"fmt"
	"strings"
	"time"

	"github.com/dlclark/regexp2"

	"github.com/winnow-moe/winnow/formats/gguf"
)

// Override gives the tensors whose names match a pattern a type.
type Override struct {
	Type gguf.Type
	// Label is what explanations and errors call the override. ParseOverride
	// sets it to what it read.
	Label   string
	pattern *regexp2.Regexp
}

// matchTimeout bounds one match: patterns that backtrack without end would
// hang the program on a name of sixty bytes.
const matchTimeout = time.Second

// ParseOverride reads "PATTERN=TYPE", such as "ffn_down_exps=q8_0" or
// "blk\.[0-3]\..*=q5_1". The pattern is a regular expression in ECMAScript's
// syntax, which is put in lower case and found anywhere in the name, as in
// llama-quantize --tensor-type. It contains no "=".
func ParseOverride(s string) (Override, error) {
	pattern, name, ok := strings.Cut(s, "=")
	if !ok || pattern == "" || name == "" {
		return Override{}, fmt.Errorf("tensor type %q is not of the form PATTERN=TYPE", s)
	}
	t, err := ParseType(name)
	if err != nil {
		return Override{}, fmt.Errorf("tensor type %q: %w", s, err)
	}
	// C++ reads [[:digit:]] as a class, ECMAScript as something useless.
	if strings.Contains(pattern, "[:") {
		return Override{}, fmt.Errorf("tensor type %q: classes such as [:digit:] are not supported, write [0-9]", s)
	}
	re, err := regexp2.Compile(lower(pattern), regexp2.ECMAScript)
	if err != nil {
		return Override{}, fmt.Errorf("tensor type %q: %w", s, err)
	}
	re.MatchTimeout = matchTimeout
	return Override{Type: t, pattern: re, Label: s}, nil
}

// lower is what C's tolower does to a text: letters beyond ASCII stay.
func lower(s string) string {
	return strings.Map(func(r rune) rune {
		if r >= 'A' && r <= 'Z' {
			r += 'a' - 'A'
		}
		return r
	}, s)
}

// ParseType finds a type that tensors can be given by name, ignoring case.
func ParseType(name string) (gguf.Type, error) {
	t, ok := gguf.ParseType(name)
	if codec, known := Lookup(t); ok && known && codec.Encode != nil {
		return t, nil
	}
	var known []string
	for i := range codecs {
		if codecs[i].Encode != nil {
			known = append(known, codecs[i].Type.String())
		}
	}
	return 0, fmt.Errorf("unknown type %q (known: %s)", name, strings.Join(known, ", "))
}

// Matches reports whether the pattern is found in a tensor's name. It fails
// when that takes too long.
func (o *Override) Matches(name string) (bool, error) {
	ok, err := o.pattern.MatchString(name)
	if err != nil {
		return false, fmt.Errorf("tensor type %q: %w", o.Label, err)
	}
	return ok, nil
}
