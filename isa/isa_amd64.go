//go:build !noasm

package isa

import "golang.org/x/sys/cpu"

// available returns the sets with assembly.
func available() []string {
	x := &cpu.X86
	switch {
	case !x.HasAVX2 || !x.HasFMA || !x.HasF16C:
		return nil
	case !x.HasAVX512F || !x.HasAVX512DQ || !x.HasAVX512BW || !x.HasAVX512VL:
		return []string{AVX2}
	case !x.HasAVX512VNNI:
		return []string{AVX512, AVX2}
	}
	return []string{AVX512VNNI, AVX512, AVX2}
}
