package main

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"strings"
	"syscall"

	"github.com/winnow-moe/winnow/convert"
	"github.com/winnow-moe/winnow/convert/experts"
	"github.com/winnow-moe/winnow/formats/arch"
	"github.com/winnow-moe/winnow/formats/calib"
	"github.com/winnow-moe/winnow/formats/gguf"
	"github.com/winnow-moe/winnow/formats/safetensors"
	"github.com/winnow-moe/winnow/formats/source"
	"github.com/winnow-moe/winnow/formats/tokenizer"
	"github.com/winnow-moe/winnow/quant/recipefile"
	"github.com/winnow-moe/winnow/verify"
)

// Exit statuses, the same for every command. They are listed in the help of
// the root command; scripts may rely on them.
const (
	exitOK          = 0
	exitFailure     = 1
	exitUsage       = 2
	exitCheckFailed = 3
	exitInput       = 4
	exitSpace       = 5
	exitNetwork     = 6
	exitInterrupted = 130
)

const exitHelp = `Exit status:
  0    success
  1    failure not listed here
  2    wrong usage: unknown flag or type, output exists or equals the input
  3    a check failed (verify, inspect --check, prune --verify)
  4    the input is missing, invalid or not supported
  5    not enough disk space or memory
  6    a server cannot be reached, or does not let in
  130  interrupted`

// usageError marks mistakes in the command line.
type usageError struct{ err error }

func (e *usageError) Error() string { return e.err.Error() }
func (e *usageError) Unwrap() error { return e.err }

func usagef(format string, args ...any) error {
	return &usageError{fmt.Errorf(format, args...)}
}

// inputError marks what is wrong with a text or with what a model computes,
// which the libraries below do not tell from their other errors.
type inputError struct{ err error }

func (e *inputError) Error() string { return e.err.Error() }
func (e *inputError) Unwrap() error { return e.err }

// checkError says that the input was read but did not pass a check.
type checkError struct{ problems int }

func (e *checkError) Error() string {
	if e.problems == 1 {
		return "1 problem found"
	}
	return fmt.Sprintf("%d problems found", e.problems)
}

// failedCheck says that what was written did not pass a check.
type failedCheck struct{ err error }

func (e *failedCheck) Error() string { return e.err.Error() }

// exitStatus maps an error to the status scripts see.
func exitStatus(err error) int {
	var usage *usageError
	var check *checkError
	var failed *failedCheck
	var input *inputError
	switch {
	case errors.Is(err, context.Canceled):
		return exitInterrupted
	case errors.As(err, &usage), errors.Is(err, convert.ErrRefused), errors.Is(err, experts.ErrRefused):
		return exitUsage
	case errors.As(err, &check), errors.As(err, &failed):
		return exitCheckFailed
	case errors.Is(err, syscall.ENOSPC), errors.Is(err, syscall.EDQUOT),
		errors.Is(err, syscall.EFBIG), errors.Is(err, syscall.ENOMEM):
		return exitSpace
	case errors.As(err, &input):
		return exitInput
	case errors.Is(err, source.ErrNetwork), errors.Is(err, source.ErrAccess), errors.Is(err, source.ErrCorrupt):
		return exitNetwork
	}
	for _, kind := range []error{
		convert.ErrInput, experts.ErrInvalid, arch.ErrUnsupported, gguf.ErrFormat, safetensors.ErrFormat, tokenizer.ErrInvalid, calib.ErrInvalid, recipefile.ErrInvalid, verify.ErrLogits, fs.ErrNotExist, syscall.ELOOP,
	} {
		if errors.Is(err, kind) {
			return exitInput
		}
	}
	return exitFailure
}

// hint returns what to do about an error, or "".
func hint(err error) string {
	var h *convert.HintError
	var hub interface{ Hint() string }
	switch {
	case errors.As(err, &h):
		return h.Hint
	case errors.As(err, &hub):
		return hub.Hint()
	case errors.Is(err, arch.ErrUnknownFamily):
		return "winnow families lists what is supported"
	case errors.Is(err, calib.ErrInvalid):
		return "measure it anew; quantize --exclude-weights leaves out single entries of an importance matrix"
	case errors.Is(err, syscall.ENOSPC):
		return "free space or choose another folder; what was there before is untouched"
	case errors.Is(err, context.Canceled):
		return "no unfinished file was left behind"
	}
	return ""
}

// fail reports an error on stderr, in one line, and returns the exit status.
func (a *app) fail(err error) int {
	status := exitStatus(err)
	msg := strings.ReplaceAll(strings.TrimSpace(err.Error()), "\n", "; ")
	if errors.Is(err, context.Canceled) {
		msg = "interrupted"
	}
	if a.json {
		writeJSON(a.stderr, struct {
			Error string `json:"error"`
			Hint  string `json:"hint,omitempty"`
			Exit  int    `json:"exit_status"`
		}{msg, hint(err), status})
		return status
	}
	fmt.Fprintf(a.stderr, "winnow: error: %s\n", visible(msg))
	if h := hint(err); h != "" {
		fmt.Fprintf(a.stderr, "winnow: hint: %s\n", visible(h))
	}
	return status
}
