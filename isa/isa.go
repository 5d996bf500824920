// Package isa says which instruction sets kernels may use. The packages of
// kernels, quant/kernel and engine/kernel, do not import each other, and both
// obey one environment variable:
//
//	WINNOW_ISA=avx2 winnow perplexity …
//
// No result depends on the choice.
package isa

import (
	"fmt"
	"os"
	"slices"
	"strings"
)

// Variable is the environment variable that names the best set to use.
const Variable = "WINNOW_ISA"

// The instruction sets that kernels are written for.
const (
	AVX512VNNI = "avx512-vnni" // with F, DQ, BW, VL and VNNI
	AVX512     = "avx512"      // with F, DQ, BW and VL
	AVX2       = "avx2"        // with FMA and F16C
	Portable   = "portable"    // no assembly
)

// all has every set, the best first.
var all = []string{AVX512VNNI, AVX512, AVX2, Portable}

// Available returns the sets that this machine and this build have, the best
// first. The last is Portable.
func Available() []string { return append(available(), Portable) }

// Best returns the best set for a package that has kernels for some, and code
// for Portable: of those available from the one that Variable names on. If that
// is none of them it is ignored; see Check.
func Best(has func(name string) bool) string {
	sets := Available()
	for _, name := range sets[max(0, slices.Index(sets, os.Getenv(Variable))):] {
		if has(name) {
			return name
		}
	}
	return Portable
}

// Check returns an error if Variable is set but names no set that is available.
func Check() error {
	name, set := os.LookupEnv(Variable)
	switch {
	case !set || slices.Contains(Available(), name):
		return nil
	case slices.Contains(all, name):
		return fmt.Errorf("environment variable %s is %q, which this machine or build does not have: want one of %s", Variable, name, strings.Join(Available(), ", "))
	}
	return fmt.Errorf("environment variable %s is %q, want one of %s", Variable, name, strings.Join(all, ", "))
}
