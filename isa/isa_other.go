//go:build !amd64 || noasm

package isa

func available() []string { return nil }
