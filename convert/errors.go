package convert

import (
	"errors"
	"fmt"
)

// ErrInput is wrapped by errors about the content of the input: files that
// are invalid, incomplete, contradictory or of an unsupported kind.
var ErrInput = errors.New("cannot convert")

// ErrRefused is wrapped by errors about what was asked for: an output that
// would overwrite its input, an unknown type, requantizing without consent.
var ErrRefused = errors.New("refused")

// HintError adds what to do next to an error.
type HintError struct {
	Err  error
	Hint string
}

// Error returns the error's text without the hint.
func (e *HintError) Error() string { return e.Err.Error() }

// Unwrap returns the error itself.
func (e *HintError) Unwrap() error { return e.Err }

func hinted(hint string, err error) error { return &HintError{err, hint} }

func refused(format string, args ...any) error {
	return fmt.Errorf("%w: "+format, append([]any{ErrRefused}, args...)...)
}

func plural(n int, one, many string) string {
	if n == 1 {
		return fmt.Sprintf(one, n)
	}
	return fmt.Sprintf(many, n)
}
