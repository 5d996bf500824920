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
	Type    gguf.Type
	pattern *regexp2.Regexp
	text    string
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
	t, ok := gguf.ParseType(name)
	if !ok {
		return Override{}, fmt.Errorf("tensor type %q: unknown type %q", s, name)
	}
	// C++ reads [[:digit:]] as a class, ECMAScript as something useless.
	if strings.Contains(pattern, "[:") {
		return Override{}, fmt.Errorf("tensor type %q: classes such as [:digit:] are not supported, write [0-9]", s)
	}
	re, err := regexp2.Compile(strings.ToLower(pattern), regexp2.ECMAScript)
	if err != nil {
		return Override{}, fmt.Errorf("tensor type %q: %w", s, err)
	}
	re.MatchTimeout = matchTimeout
	return Override{Type: t, pattern: re, text: s}, nil
}

func (o *Override) matches(name string) (bool, error) {
	ok, err := o.pattern.MatchString(name)
	if err != nil {
		return false, fmt.Errorf("tensor type %q: %w", o.text, err)
	}
	return ok, nil
}
