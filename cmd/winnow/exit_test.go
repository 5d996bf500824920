package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"strings"
	"syscall"
	"testing"

	"github.com/winnow-moe/winnow/convert"
	"github.com/winnow-moe/winnow/formats/arch"
	"github.com/winnow-moe/winnow/formats/gguf"
	"github.com/winnow-moe/winnow/formats/safetensors"
	"github.com/winnow-moe/winnow/formats/tokenizer"
)

func TestExitStatus(t *testing.T) {
	for _, c := range []struct {
		err  error
		want int
	}{
		{errors.New("other"), exitFailure},
		{fs.ErrPermission, exitFailure},
		{usagef("wrong"), exitUsage},
		{convert.ErrRefused, exitUsage},
		{&checkError{2}, exitCheckFailed},
		{&inputError{errors.New("bad text")}, exitInput},
		{convert.ErrInput, exitInput},
		{arch.ErrUnsupported, exitInput},
		{gguf.ErrFormat, exitInput},
		{safetensors.ErrFormat, exitInput},
		{tokenizer.ErrInvalid, exitInput},
		{fs.ErrNotExist, exitInput},
		{&os.PathError{Op: "write", Path: "x", Err: syscall.ENOSPC}, exitSpace},
		{&inputError{syscall.ENOMEM}, exitSpace},
		{syscall.EDQUOT, exitSpace},
		{syscall.EFBIG, exitSpace},
		{&inputError{context.Canceled}, exitInterrupted},
	} {
		if got := exitStatus(fmt.Errorf("wrapped: %w", c.err)); got != c.want {
			t.Errorf("%v: exit status %d, want %d", c.err, got, c.want)
		}
	}
}

func TestFail(t *testing.T) {
	err := errors.Join(errors.New("first\x1b[31m"), &convert.HintError{Err: errors.New("second"), Hint: "do this"})
	var out bytes.Buffer
	a := &app{stderr: &out}
	if status := a.fail(err); status != exitFailure {
		t.Errorf("exit status %d", status)
	}
	if got, want := out.String(), "winnow: error: first\\x1b[31m; second\nwinnow: hint: do this\n"; got != want {
		t.Errorf("got %q, want %q", got, want)
	}

	out.Reset()
	a.json = true
	a.fail(fmt.Errorf("writing: %w", context.Canceled))
	var doc struct {
		Error, Hint string
		Exit        int `json:"exit_status"`
	}
	if err := json.Unmarshal(out.Bytes(), &doc); err != nil {
		t.Fatal(err)
	}
	if doc.Error != "interrupted" || doc.Hint == "" || doc.Exit != exitInterrupted {
		t.Errorf("got %+v", doc)
	}

	out.Reset()
	a.json = false
	if a.fail(syscall.ENOSPC); !strings.Contains(out.String(), "hint: free space") {
		t.Errorf("got %q", out.String())
	}
	if got := (&checkError{1}).Error(); got != "1 problem found" {
		t.Errorf("got %q", got)
	}
}
