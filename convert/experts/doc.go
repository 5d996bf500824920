// Package experts decides which experts of a mixture stay when a model is
// pruned. It computes scores from what a calibration measured (score.go), picks
// the experts with the largest ones (select.go), or forms groups that become one
// (group.go), and reads and writes the decision as a keep-list (keeplist.go). It
// touches no files: weights of merged experts are computed from what a function
// reads (merge.go), convert applies keep-lists, engine measures what they cost.
package experts

import (
	"errors"
	"fmt"
)

// ErrInvalid is in the chain of errors about the content of a keep-list or of
// statistics, or where they do not belong to the model.
var ErrInvalid = errors.New("invalid choice of experts")

// ErrRefused is in the chain of errors about what was asked for: a number of
// experts that the model cannot have.
var ErrRefused = errors.New("refused choice of experts")

// kindError matches its kind without repeating the kind's text.
type kindError struct {
	error
	kind error
}

func (e *kindError) Is(target error) bool { return target == e.kind }
func (e *kindError) Unwrap() error        { return e.error }

func invalid(format string, args ...any) error {
	return &kindError{fmt.Errorf(format, args...), ErrInvalid}
}

func refused(format string, args ...any) error {
	return &kindError{fmt.Errorf(format, args...), ErrRefused}
}
