// Package strictjson reads JSON from files nobody vouches for: RFC 8259 with
// the doors closed that parsers disagree about. Text that is not UTF-8, a byte
// order mark, escapes of lone surrogates, keys that occur twice in one object,
// nesting deeper than MaxDepth and anything after the value are refused, so
// that two programs cannot read two meanings from one file.
//
// Decode builds a tree. Scanner walks the text without building anything, in
// file order, for large inputs such as safetensors headers:
//
//	err := s.Object(func(key string) error {
//		n, err := s.Int()
//		…
//	})
package strictjson

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
)

// MaxDepth is the deepest nesting of arrays and objects that is read, the
// limit of Rust's serde_json.
const MaxDepth = 128

// ErrSyntax matches (errors.Is) every error about the text itself.
var ErrSyntax = errors.New("invalid JSON")

// Error says what is wrong with the text and at which byte.
type Error struct {
	Offset int // bytes from the start of the text
	Msg    string
}

// Error returns the message with its offset.
func (e *Error) Error() string {
	return fmt.Sprintf("invalid JSON at byte %d: %s", e.Offset, e.Msg)
}

// Is reports whether target is ErrSyntax.
func (e *Error) Is(target error) bool { return target == ErrSyntax }

// Decode returns the one value that data holds: map[string]any, []any, string,
// json.Number, bool or nil. Strings may share one copy of data's text.
func Decode(data []byte) (any, error) {
	s, err := NewScanner(string(data))
	if err != nil {
		return nil, err
	}
	v, err := s.Value()
	if err != nil {
		return nil, err
	}
	return v, s.End()
}

// ReadFile reads a file of at most limit bytes. Anything but a regular file
// (after following links) is refused before it is opened, because opening a
// pipe may block for ever. Errors name the file.
func ReadFile(path string, limit int64) ([]byte, error) {
	st, err := os.Stat(path)
	if err != nil {
		return nil, err
	}
	if !st.Mode().IsRegular() {
		return nil, fmt.Errorf("%q is not a regular file", path)
	}
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	data, err := io.ReadAll(io.LimitReader(f, limit+1))
	if err != nil {
		return nil, err
	}
	if int64(len(data)) > limit {
		return nil, fmt.Errorf("%q is larger than %d bytes, the most that is read of such a file", path, limit)
	}
	return data, nil
}

// Value reads the next value as Decode does.
func (s *Scanner) Value() (any, error) {
	switch s.Kind() {
	case Object:
		m := map[string]any{}
		err := s.Object(func(key string) (err error) {
			m[key], err = s.Value()
			return err
		})
		return m, err
	case Array:
		a := []any{}
		err := s.Array(func() error {
			v, err := s.Value()
			a = append(a, v)
			return err
		})
		return a, err
	case String:
		return s.Text()
	case Number:
		n, err := s.Number()
		return json.Number(n), err
	case Bool:
		return s.Bool()
	case Null:
		return nil, s.literal("null")
	}
	return nil, s.unexpected("a value")
}
