//go:build !amd64 || noasm

package kernel

var sets []*Set

// exps and tanhs leave all numbers to the portable code.
func exps([]float32) int  { return 0 }
func tanhs([]float32) int { return 0 }
