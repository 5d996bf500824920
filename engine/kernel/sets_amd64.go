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
		narrow: map[int][]integerProduct{
			2: {{1, narrow1x2AVX2}, {3, narrow3x2AVX2}},
			4: {{1, narrow1x4AVX2}, {3, narrow3x4AVX2}},
			8: {{1, narrow1x8AVX2}, {3, narrow3x8AVX2}},
		},
		wide: []integerProduct{{1, wide1AVX2}, {3, wide3AVX2}, {6, wide6AVX2}},
	}
	if !cpu.X86.HasAVX512F || !cpu.X86.HasAVX512DQ || !cpu.X86.HasAVX512VL || !cpu.X86.HasAVX512BW {
		return []*Set{avx2}
	}
	avx512 := &Set{
		Name: "avx512", Lanes: 32, block: 112, transpose8: transpose8AVX2, vectors: true,
		products: []product{{1, product1AVX512}, {2, product2AVX512}, {4, product4AVX512}, {8, product8AVX512}, {14, product14AVX512}},
		narrow: map[int][]integerProduct{
			2: {{1, narrow1x2AVX512}, {3, narrow3x2AVX512}, {6, narrow6x2AVX512}},
			4: {{1, narrow1x4AVX512}, {3, narrow3x4AVX512}, {6, narrow6x4AVX512}},
			8: {{1, narrow1x8AVX512}, {3, narrow3x8AVX512}, {6, narrow6x8AVX512}},
		},
		wide: []integerProduct{{1, wide1AVX512}, {4, wide4AVX512}, {14, wide14AVX512}},
	}
	if !cpu.X86.HasAVX512VNNI {
		return []*Set{avx512, avx2}
	}
	vnni := *avx512
	vnni.Name = "avx512-vnni"
	vnni.narrow = map[int][]integerProduct{
		2: {{1, narrow1x2VNNI}, {3, narrow3x2VNNI}, {6, narrow6x2VNNI}},
		4: {{1, narrow1x4VNNI}, {3, narrow3x4VNNI}, {6, narrow6x4VNNI}},
		8: {{1, narrow1x8VNNI}, {3, narrow3x8VNNI}, {6, narrow6x8VNNI}},
	}
	vnni.wide = []integerProduct{{1, wide1VNNI}, {4, wide4VNNI}, {14, wide14VNNI}}
	return []*Set{&vnni, avx512, avx2}
}

// roundCodes rounds a block for Rounded.codes: to words if sums is nil. It
// reports whether it did.
func roundCodes(dst, sums []uint32, src []float32, scale float32) bool {
	if eights(len(src)) == 0 {
		return false
	}
	if sums == nil {
		roundWordsAVX2(&dst[0], nil, &src[0], scale, len(src)/32)
	} else {
		roundBytesAVX2(&dst[0], &sums[0], &src[0], scale, len(src)/32)
	}
	return true
}

// eights returns how many times eight of n numbers go to kernels of functions.
func eights(n int) int {
	if !active.Load().vectors {
		return 0
	}
	return n / 8
}

// exps replaces the first numbers of x by their exponentials and returns how
// many.
func exps(x []float32) int {
	n := eights(len(x))
	if n > 0 {
		expAVX2(&x[0], &x[0], n)
	}
	return 8 * n
}

// tanhs is exps for Tanh.
func tanhs(x []float32) int {
	n := eights(len(x))
	if n > 0 {
		tanhAVX2(&x[0], &x[0], n)
	}
	return 8 * n
}

// sumExps adds the terms of SumExp of the first numbers to sums and returns
// how many.
func sumExps(sums *[8]float64, x []float32, top float64) int {
	n := eights(len(x))
	if n > 0 {
		sumExpAVX2(sums, &x[0], top, n)
	}
	return 8 * n
}

// crossExps is sumExps for CrossExp.
func crossExps(sums *[16]float64, x, y []float32, top float64) int {
	n := eights(min(len(x), len(y)))
	if n > 0 {
		crossExpAVX2(sums, &x[0], &y[0], top, n)
	}
	return 8 * n
}

// largest returns the bits, without sign, of the largest of the first numbers
// of x, a NaN if there is one, and how many numbers they are.
func largest(x []float32) (done int, bits uint32) {
	n := eights(len(x))
	if n > 0 {
		bits = largestAVX2(&x[0], n)
	}
	return 8 * n, bits
}

// addScaled is AddScaled for the first numbers; it returns how many.
func addScaled(dst, x []float32, scale float32) int {
	n := eights(min(len(x), len(dst)))
	if n > 0 {
		addScaledAVX2(&dst[0], &x[0], scale, n)
	}
	return 8 * n
}

// addSquares is AddSquares for the first numbers; it returns how many.
func addSquares(sums []float64, x []float32) int {
	n := eights(min(len(x), len(sums)))
	if n > 0 {
		addSquaresAVX2(&sums[0], &x[0], n)
	}
	return 8 * n
}

// addProducts is AddProducts for the first numbers; it returns how many.
func addProducts(sums, x []float64, a float64) int {
	n := eights(min(len(x), len(sums)))
	if n > 0 {
		addProductsAVX2(&sums[0], &x[0], a, n)
	}
	return 8 * n
}

// inners adds the products of Inner of the first numbers to sums and returns
// how many.
func inners(sums *[8]float64, x, y []float32) int {
	n := eights(min(len(x), len(y)))
	if n > 0 {
		innerAVX2(sums, &x[0], &y[0], n)
	}
	return 8 * n
}
