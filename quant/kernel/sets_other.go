//go:build !amd64 || noasm

package kernel

// Without assembly everything is left to the portable code.
var sets []*Set
