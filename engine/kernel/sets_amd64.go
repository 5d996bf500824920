//go:build !noasm

package kernel

import "golang.org/x/sys/cpu"

var sets = available()

func available() []*Set {
	if !cpu.X86.HasAVX2 || !cpu.X86.HasFMA {
		return nil
	}
	avx2 := &Set{
		Name: "avx2", Lanes: 16, block: 96, transpose8: transpose8AVX2, vectors: true,
		products: []product{{1, product1AVX2}, {2, product2AVX2}, {4, product4AVX2}, {6, product6AVX2}},
	}
	if !cpu.X86.HasAVX512F {
		return []*Set{avx2}
	}
	return []*Set{{
		Name: "avx512", Lanes: 32, block: 112, transpose8: transpose8AVX2, vectors: true,
		products: []product{{1, product1AVX512}, {2, product2AVX512}, {4, product4AVX512}, {8, product8AVX512}, {14, product14AVX512}},
	}, avx2}
}

// exps replaces the first numbers of x by their exponentials and returns how
// many.
func exps(x []float32) int {
	n := len(x) / 8
	if n == 0 || !active.Load().vectors {
		return 0
	}
	expAVX2(&x[0], &x[0], n)
	return 8 * n
}

// tanhs is exps for Tanh.
func tanhs(x []float32) int {
	n := len(x) / 8
	if n == 0 || !active.Load().vectors {
		return 0
	}
	tanhAVX2(&x[0], &x[0], n)
	return 8 * n
}
