package strictjson

import (
	"fmt"
	"strconv"
	"strings"
	"unicode/utf16"
	"unicode/utf8"
)

// Kind is what the next value is, judged by its first byte.
type Kind uint8

// The kinds of a JSON value. Invalid stands for the end of the text and for
// bytes that start no value.
const (
	Invalid Kind = iota
	Null
	Bool
	Number
	String
	Array
	Object
)

// String returns the kind's name with its article, for messages.
func (k Kind) String() string {
	return [...]string{"no value", "null", "a boolean", "a number", "a string", "an array", "an object"}[k]
}

// Scanner reads one JSON text from front to back. Every method that reads a
// value fails when the next value is of another kind. Strings without escapes
// are parts of the text and cost no allocation. After an error the scanner is
// of no more use.
type Scanner struct {
	src   string
	pos   int
	depth int
	keys  []string // keys of the open objects, those of the innermost last
}

// NewScanner returns a scanner for src, which must be UTF-8 with no byte order mark.
func NewScanner(src string) (*Scanner, error) {
	s := &Scanner{src: src}
	if strings.HasPrefix(src, "\ufeff") {
		return nil, s.errorf("starts with a byte order mark (BOM)")
	}
	if !utf8.ValidString(src) {
		s.pos = validPrefix(src)
		return nil, s.errorf("not valid UTF-8")
	}
	return s, nil
}

// validPrefix returns the length of the part of s before its first invalid byte.
func validPrefix(s string) int {
	for i, r := range s {
		if r == utf8.RuneError {
			if _, n := utf8.DecodeRuneInString(s[i:]); n == 1 {
				return i
			}
		}
	}
	return len(s)
}

// Kind returns the kind of the next value.
func (s *Scanner) Kind() Kind {
	switch c := s.peek(); {
	case c == '{':
		return Object
	case c == '[':
		return Array
	case c == '"':
		return String
	case c == '-' || c >= '0' && c <= '9':
		return Number
	case c == 't' || c == 'f':
		return Bool
	case c == 'n':
		return Null
	}
	return Invalid
}

// Object reads an object and calls member for every key, in file order.
// member must read exactly one value. A key that occurs twice is an error.
func (s *Scanner) Object(member func(key string) error) error {
	if err := s.enter('{', Object); err != nil {
		return err
	}
	base := len(s.keys)
	var seen map[string]struct{}
	for n := 0; ; n++ {
		done, err := s.next(n, '}')
		if err != nil || done {
			s.keys = s.keys[:base]
			return err
		}
		at := s.pos
		key, err := s.key()
		if err != nil {
			return err
		}
		if s.repeated(base, key, &seen) {
			s.pos = at
			return s.errorf("duplicate key %.200q", key)
		}
		if err := member(key); err != nil {
			return err
		}
	}
}

// fewKeys is up to how many keys a linear search beats a map.
const fewKeys = 16

// repeated notes key for the innermost object, whose keys start at base, and
// reports whether it was there before.
func (s *Scanner) repeated(base int, key string, seen *map[string]struct{}) bool {
	if *seen == nil {
		own := s.keys[base:]
		for _, k := range own {
			if k == key {
				return true
			}
		}
		if len(own) < fewKeys {
			s.keys = append(s.keys, key)
			return false
		}
		*seen = make(map[string]struct{}, 4*fewKeys)
		for _, k := range own {
			(*seen)[k] = struct{}{}
		}
	}
	n := len(*seen)
	(*seen)[key] = struct{}{}
	return len(*seen) == n
}

func (s *Scanner) key() (string, error) {
	if s.peek() != '"' {
		return "", s.unexpected("a key in double quotes")
	}
	key, err := s.Text()
	if err != nil {
		return "", err
	}
	if s.peek() != ':' {
		return "", s.unexpected("':'")
	}
	s.pos++
	return key, nil
}

// Array reads an array and calls elem for every element; elem must read
// exactly one value.
func (s *Scanner) Array(elem func() error) error {
	if err := s.enter('[', Array); err != nil {
		return err
	}
	for n := 0; ; n++ {
		done, err := s.next(n, ']')
		if err != nil || done {
			return err
		}
		if err := elem(); err != nil {
			return err
		}
	}
}

func (s *Scanner) enter(open byte, k Kind) error {
	if s.peek() != open {
		return s.unexpected(k.String())
	}
	if s.depth++; s.depth > MaxDepth {
		return s.errorf("nested deeper than %d levels", MaxDepth)
	}
	s.pos++
	return nil
}

// next moves to element n of an array or object, past the comma, or past the
// closing bracket.
func (s *Scanner) next(n int, closing byte) (done bool, err error) {
	c := s.peek()
	if c == closing {
		s.pos++
		s.depth--
		return true, nil
	}
	if n == 0 {
		return false, nil
	}
	if c != ',' {
		return false, s.unexpected(fmt.Sprintf("',' or '%c'", closing))
	}
	s.pos++
	return false, nil
}

// Text reads a string.
func (s *Scanner) Text() (string, error) {
	if s.peek() != '"' {
		return "", s.unexpected(String.String())
	}
	start := s.pos + 1
	for i := start; i < len(s.src); i++ {
		switch c := s.src[i]; {
		case c == '"':
			s.pos = i + 1
			return s.src[start:i], nil
		case c == '\\':
			s.pos = i
			return s.escaped(s.src[start:i])
		case c < ' ':
			s.pos = i
			return "", s.errorf("control character %#02x in a string", c)
		}
	}
	s.pos = len(s.src)
	return "", s.errorf("the text ends inside a string")
}

// escaped reads the rest of a string whose first escape is next.
func (s *Scanner) escaped(head string) (string, error) {
	b := append(make([]byte, 0, 2*len(head)+16), head...)
	for s.pos < len(s.src) {
		c := s.src[s.pos]
		switch {
		case c == '"':
			s.pos++
			return string(b), nil
		case c == '\\':
			r, err := s.escape()
			if err != nil {
				return "", err
			}
			b = utf8.AppendRune(b, r)
		case c < ' ':
			return "", s.errorf("control character %#02x in a string", c)
		default:
			b = append(b, c)
			s.pos++
		}
	}
	return "", s.errorf("the text ends inside a string")
}

const (
	escapeNames  = `"\/bfnrt`
	escapeValues = "\"\\/\b\f\n\r\t"
)

// escape reads one escape sequence, or two that make a surrogate pair.
func (s *Scanner) escape() (rune, error) {
	if s.pos+1 >= len(s.src) {
		return 0, s.errorf("the text ends inside a string")
	}
	c := s.src[s.pos+1]
	if i := strings.IndexByte(escapeNames, c); i >= 0 {
		s.pos += 2
		return rune(escapeValues[i]), nil
	}
	r, ok := s.hex()
	if !ok {
		return 0, s.errorf("unknown escape in a string")
	}
	if !utf16.IsSurrogate(r) {
		s.pos += 6
		return r, nil
	}
	at := s.pos
	s.pos += 6
	low, ok := s.hex()
	pair := utf16.DecodeRune(r, low)
	if !ok || pair == utf8.RuneError {
		s.pos = at
		return 0, s.errorf("escape of a lone surrogate in a string")
	}
	s.pos += 6
	return pair, nil
}

// hex returns the value of the \uXXXX at the present position.
func (s *Scanner) hex() (rune, bool) {
	t := s.src[s.pos:]
	if len(t) < 6 || t[0] != '\\' || t[1] != 'u' {
		return 0, false
	}
	var r rune
	for _, c := range []byte(t[2:6]) {
		switch {
		case c >= '0' && c <= '9':
			r = r<<4 | rune(c-'0')
		case c|0x20 >= 'a' && c|0x20 <= 'f':
			r = r<<4 | rune(c|0x20-'a'+10)
		default:
			return 0, false
		}
	}
	return r, true
}

// Number reads a number and returns it as it is written.
func (s *Scanner) Number() (string, error) {
	if s.Kind() != Number {
		return "", s.unexpected(Number.String())
	}
	start := s.pos
	if s.at('-') {
		s.pos++
	}
	// A leading zero stands alone: 01 is the number 0 followed by garbage.
	ok := s.at('0')
	if ok {
		s.pos++
	} else {
		ok = s.digits()
	}
	if ok && s.at('.') {
		s.pos++
		ok = s.digits()
	}
	if ok && (s.at('e') || s.at('E')) {
		s.pos++
		if s.at('+') || s.at('-') {
			s.pos++
		}
		ok = s.digits()
	}
	if !ok {
		return "", s.unexpected("a digit")
	}
	return s.src[start:s.pos], nil
}

func (s *Scanner) at(c byte) bool { return s.pos < len(s.src) && s.src[s.pos] == c }

// digits skips digits and reports whether there was one.
func (s *Scanner) digits() bool {
	start := s.pos
	for s.pos < len(s.src) && s.src[s.pos] >= '0' && s.src[s.pos] <= '9' {
		s.pos++
	}
	return s.pos > start
}

// Int reads a number that must be written as an integer (2.0 and 2e0 are not)
// and fit 64 bits.
func (s *Scanner) Int() (int64, error) {
	text, err := s.Number()
	if err != nil {
		return 0, err
	}
	n, err := strconv.ParseInt(text, 10, 64)
	if err == nil {
		return n, nil
	}
	s.pos -= len(text)
	if strings.ContainsAny(text, ".eE") {
		return 0, s.errorf("the number is not an integer")
	}
	return 0, s.errorf("the integer is out of range: it does not fit 64 bits")
}

// Bool reads true or false.
func (s *Scanner) Bool() (bool, error) {
	if s.peek() == 't' {
		return true, s.literal("true")
	}
	return false, s.literal("false")
}

func (s *Scanner) literal(word string) error {
	s.peek()
	if !strings.HasPrefix(s.src[s.pos:], word) {
		return s.unexpected(word)
	}
	s.pos += len(word)
	return nil
}

// Skip reads a value of any kind and checks it like all others.
func (s *Scanner) Skip() error {
	var err error
	switch s.Kind() {
	case Object:
		return s.Object(func(string) error { return s.Skip() })
	case Array:
		return s.Array(s.Skip)
	case String:
		_, err = s.Text()
	case Number:
		_, err = s.Number()
	case Bool:
		_, err = s.Bool()
	default:
		err = s.literal("null")
	}
	return err
}

// End fails unless only white space is left.
func (s *Scanner) End() error {
	if s.peek(); s.pos < len(s.src) {
		return s.errorf("trailing data after the value")
	}
	return nil
}

// peek skips white space and returns the next byte, 0 at the end. A NUL in the
// text is refused like the end, by whoever looks at the byte.
func (s *Scanner) peek() byte {
	for ; s.pos < len(s.src); s.pos++ {
		switch c := s.src[s.pos]; c {
		case ' ', '\t', '\n', '\r':
		default:
			return c
		}
	}
	return 0
}

func (s *Scanner) unexpected(want string) error {
	if s.pos >= len(s.src) {
		return s.errorf("the text ends where %s is wanted", want)
	}
	r, _ := utf8.DecodeRuneInString(s.src[s.pos:])
	return s.errorf("found %q where %s is wanted", r, want)
}

func (s *Scanner) errorf(format string, args ...any) error {
	return &Error{Offset: s.pos, Msg: fmt.Sprintf(format, args...)}
}
