//go:build !noasm

package kernel

import (
	"math"
	"slices"

	"github.com/winnow-moe/winnow/quant/isa"
)

var sets = available()

func available() []*Set {
	if !slices.Contains(isa.Available(), isa.AVX2) {
		return nil
	}
	avx2 := &Set{
		Name: isa.AVX2, Lanes: 16, block: 96, transpose8: transpose8AVX2, vectors: true,
		products: []product{{1, product1AVX2}, {2, product2AVX2}, {4, product4AVX2}, {6, product6AVX2}},
		narrow: map[int][]integerProduct{
			2: {{1, narrow1x2AVX2}, {3, narrow3x2AVX2}},
			4: {{1, narrow1x4AVX2}, {3, narrow3x4AVX2}},
			8: {{1, narrow1x8AVX2}, {3, narrow3x8AVX2}},
		},
		wide:  []integerProduct{{1, wide1AVX2}, {3, wide3AVX2}, {6, wide6AVX2}},
		codes: &codeKernels{transposeCodesAVX2, expandAVX2, []codeProduct{{1, codes1AVX2}, {2, codes2AVX2}, {4, codes4AVX2}}, codesBothAVX2},
	}
	if !slices.Contains(isa.Available(), isa.AVX512) {
		return []*Set{avx2}
	}
	avx512 := &Set{
		Name: isa.AVX512, Lanes: 32, block: 112, transpose8: transpose8AVX2, vectors: true,
		products: []product{{1, product1AVX512}, {2, product2AVX512}, {4, product4AVX512}, {8, product8AVX512}, {14, product14AVX512}},
		narrow: map[int][]integerProduct{
			2: {{1, narrow1x2AVX512}, {3, narrow3x2AVX512}, {6, narrow6x2AVX512}},
			4: {{1, narrow1x4AVX512}, {3, narrow3x4AVX512}, {6, narrow6x4AVX512}},
			8: {{1, narrow1x8AVX512}, {3, narrow3x8AVX512}, {6, narrow6x8AVX512}},
		},
		wide:  []integerProduct{{1, wide1AVX512}, {4, wide4AVX512}, {14, wide14AVX512}},
		codes: &codeKernels{transposeCodesAVX2, expandAVX512, []codeProduct{{1, codes1AVX512}, {2, codes2AVX512}, {4, codes4AVX512}, {8, codes8AVX512}}, nil},
	}
	if !slices.Contains(isa.Available(), isa.AVX512VNNI) {
		return []*Set{avx512, avx2}
	}
	vnni := *avx512
	vnni.Name = isa.AVX512VNNI
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

// first returns the address of the first number, nil where there is none.
func first[T any](x []T) *T {
	if len(x) == 0 {
		return nil
	}
	return &x[0]
}

// gates is Gate for the first numbers; it returns how many.
func gates(g, up []float32, scale float32) int {
	n := eights(len(g))
	if n > 0 {
		gateAVX2(&g[0], first(up), scale, n)
	}
	return 8 * n
}

// gelus is GELUs for the first numbers; it returns how many.
func gelus(g, up []float32) int {
	n := eights(len(g))
	if n > 0 {
		geluAVX2(&g[0], first(up), n)
	}
	return 8 * n
}

// softcaps is Softcap for the first numbers; it returns how many.
func softcaps(x []float32, scale, limit float32) int {
	n := eights(len(x))
	if n > 0 {
		softcapAVX2(&x[0], scale, limit, n)
	}
	return 8 * n
}

// scaledTop multiplies the first numbers of x by scale. It returns how many, and
// the largest of them and top.
func scaledTop(x []float32, scale, top float32) (int, float32) {
	n := eights(len(x))
	if n > 0 {
		top = scaledTopAVX2(&x[0], scale, top, n)
	}
	return 8 * n, top
}

// expsBelow replaces the first numbers of x by Exp of what they are above top,
// adds every fourth to a sum, and returns how many.
func expsBelow(sums *[4]float64, x []float32, top float32) int {
	n := eights(len(x))
	if n > 0 {
		expsBelowAVX2(sums, &x[0], top, n)
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

// extremes is largest with the largest number itself, −∞ if there is none.
func extremes(x []float32) (done int, top float32, bits uint32) {
	n := eights(len(x))
	if n == 0 {
		return 0, float32(math.Inf(-1)), 0
	}
	top, bits = extremesAVX2(&x[0], n)
	return 8 * n, top, bits
}

// sumSquares adds the terms of SumSquares of the first numbers to sums and
// returns how many.
func sumSquares(sums *[8]float64, x []float32) int {
	n := eights(len(x))
	if n > 0 {
		sumSquaresAVX2(sums, &x[0], n)
	}
	return 8 * n
}

// addSquares is AddSquares for the first numbers; it returns how many.
func addSquares(sums []float64, x []float32) int {
	n := eights(len(x))
	if n > 0 {
		addSquaresAVX2(&sums[0], &x[0], n)
	}
	return 8 * n
}

// addScaled is AddScaled for the first numbers; it returns how many.
func addScaled(dst, x []float32, scale float32) int {
	n := eights(len(x))
	if n > 0 {
		addScaledAVX2(&dst[0], &x[0], scale, n)
	}
	return 8 * n
}

// addScaled64 is AddScaled64 for the first numbers; it returns how many.
func addScaled64(dst, x []float64, scale float64) int {
	n := eights(len(x))
	if n > 0 {
		addScaled64AVX2(&dst[0], &x[0], scale, n)
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

// scaled is Scaled for the first numbers; it returns how many.
func scaled(dst, x, w []float32, scale float32) int {
	n := eights(len(x))
	if n > 0 {
		scaledAVX2(&dst[0], &x[0], first(w), scale, n)
	}
	return 8 * n
}
