//go:build !linux

package gguf

import "os"

func preallocate(*os.File, int64) error { return nil }

func onTmpfs(*os.File) bool { return false }
