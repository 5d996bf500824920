package recipefile

import (
	"errors"
	"fmt"
	"slices"
	"strconv"
	"strings"

	"github.com/winnow-moe/winnow/formats/gguf"
	"github.com/winnow-moe/winnow/quant"
)

// Rule gives some tensors a type. Exactly one of Match, Name and Roles says
// which tensors.
type Rule struct {
	// Match is a regular expression, found anywhere in a name, as
	// quant.ParseOverride reads it.
	Match string
	// Name is a whole name.
	Name string
	// Roles are stems of names, such as "ffn_down_exps" (arch.Role), of
	// weights in any block or outside the blocks.
	Roles []string
	// Layers, with Roles, are the blocks meant; nil: all.
	Layers Layers
	Type   gguf.Type

	line int // in the file
}

// String returns the rule as PATTERN=TYPE.
func (r *Rule) String() string { return r.Pattern() + "=" + r.Type.String() }

// label is the rule in the words of a recipe file.
func (r *Rule) label() string {
	who := r.Match + r.Name
	if len(r.Roles) > 0 {
		who = strings.Join(r.Roles, ", ")
	}
	if r.Layers != nil {
		who += " in blocks " + r.Layers.String()
	}
	return who + ": " + r.Type.String()
}

// Pattern returns the regular expression that finds exactly the rule's
// tensors, in a form that means the same to llama-quantize: it survives being
// put in lower case and holds neither "=" nor white space.
func (r *Rule) Pattern() string {
	switch {
	case r.Match != "":
		return r.Match
	case r.Name != "":
		return "^" + quote(r.Name) + "$"
	}
	block := `(blk\.[0-9]+\.)?`
	if r.Layers != nil {
		block = `blk\.` + alternatives(r.Layers.patterns()) + `\.`
	}
	roles := make([]string, len(r.Roles))
	for i := range roles {
		roles[i] = quote(r.Roles[i])
	}
	return "^" + block + alternatives(roles) + `\.weight$`
}

// quote makes a pattern that matches a text alone. Capital letters are written
// by number, since patterns are put in lower case before they are used.
func quote(s string) string {
	var b strings.Builder
	for _, c := range []byte(s) {
		switch {
		case c >= 'A' && c <= 'Z' || c <= ' ' || c == '=' || c == 0x7f:
			fmt.Fprintf(&b, `\x%02x`, c)
		case strings.IndexByte(`\.^$|?*+()[]{}/`, c) >= 0:
			b.WriteByte('\\')
			b.WriteByte(c)
		default:
			b.WriteByte(c)
		}
	}
	return b.String()
}

func alternatives(list []string) string {
	if len(list) == 1 {
		return list[0]
	}
	return "(" + strings.Join(list, "|") + ")"
}

func (r *Rule) compile() (quant.Override, error) { return quant.ParseOverride(r.String()) }

// parseRule reads PATTERN=TYPE.
func parseRule(s string) (Rule, error) {
	o, err := quant.ParseOverride(s)
	if err != nil {
		return Rule{}, err
	}
	pattern, _, _ := strings.Cut(s, "=")
	r := Rule{Match: pattern, Type: o.Type}
	return r, r.check()
}

// check tells what is wrong with a rule.
func (r *Rule) check() error {
	given := 0
	for _, is := range []bool{r.Match != "", r.Name != "", len(r.Roles) > 0} {
		if is {
			given++
		}
	}
	switch {
	case given != 1:
		return errors.New("a rule needs one of match, name and role")
	case r.Layers != nil && len(r.Roles) == 0:
		return errors.New("layers belong to a role")
	case strings.ContainsAny(r.Match, "= \t\r\n"):
		return fmt.Errorf("the pattern %q has white space or %q in it; write \\x20 or \\x3d", r.Match, "=")
	}
	_, err := r.compile()
	return err
}

// Layers are block numbers, ascending, each once.
type Layers []int

// maxLayer bounds block numbers, so that a range is of modest size.
const maxLayer = 9999

// ParseLayers reads block numbers and ranges separated by commas: "0-3,7".
func ParseLayers(s string) (Layers, error) {
	var out Layers
	for part := range strings.SplitSeq(s, ",") {
		first, last, isRange := strings.Cut(strings.TrimSpace(part), "-")
		if !isRange {
			last = first
		}
		lo, err := strconv.ParseUint(first, 10, 31)
		hi, err2 := strconv.ParseUint(last, 10, 31)
		if err != nil || err2 != nil || lo > hi || hi > maxLayer {
			return nil, fmt.Errorf("%q is not a block number or a range such as 0-3", part)
		}
		for l := int(lo); l <= int(hi); l++ {
			out = append(out, l)
		}
	}
	slices.Sort(out)
	return slices.Compact(out), nil
}

// ranges calls f for every run of consecutive numbers.
func (l Layers) ranges(f func(lo, hi int)) {
	for i := 0; i < len(l); {
		j := i
		for j+1 < len(l) && l[j+1] == l[j]+1 {
			j++
		}
		f(l[i], l[j])
		i = j + 1
	}
}

// String writes the numbers as ParseLayers reads them.
func (l Layers) String() string {
	var parts []string
	l.ranges(func(lo, hi int) {
		s := strconv.Itoa(lo)
		if hi > lo {
			s += "-" + strconv.Itoa(hi)
		}
		parts = append(parts, s)
	})
	return strings.Join(parts, ",")
}

// patterns returns regular expressions that together match exactly the
// numbers, written without leading zeros.
func (l Layers) patterns() []string {
	var out []string
	l.ranges(func(lo, hi int) { out = append(out, decimals(lo, hi)...) })
	return out
}

// decimals covers lo to hi by blocks of numbers that differ in one digit and
// are free in those behind it, such as 1[2-9], [2-9][0-9], 10[0-7].
func decimals(lo, hi int) []string {
	var out []string
	for lo <= hi {
		size, free := 1, ""
		for lo >= 10*size && lo%(10*size) == 0 && lo+10*size-1 <= hi {
			size, free = 10*size, free+"[0-9]"
		}
		first := lo / size % 10
		last := min(9, first+(hi-lo+1)/size-1)
		digit := strconv.Itoa(first)
		if last > first {
			digit = fmt.Sprintf("[%d-%d]", first, last)
		}
		if front := lo / size / 10; front > 0 {
			digit = strconv.Itoa(front) + digit
		}
		out = append(out, digit+free)
		lo += (last - first + 1) * size
	}
	return out
}
