//go:build !(linux || darwin || freebsd)

package gguf

import (
	"errors"
	"os"
)

func mmap(*os.File, int64) ([]byte, error) { return nil, errors.ErrUnsupported }

func munmap([]byte) error { return nil }

func adviseWillNeed([]byte, int64, int64) {}

func adviseDontNeed([]byte, int64, int64) {}
