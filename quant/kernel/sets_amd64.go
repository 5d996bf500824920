//go:build !noasm

package kernel

import "golang.org/x/sys/cpu"

var sets = available()

func available() []*Set {
	var s []*Set
	if !cpu.X86.HasAVX2 {
		return nil
	}
	if cpu.X86.HasAVX512F && cpu.X86.HasAVX512DQ && cpu.X86.HasAVX512BW && cpu.X86.HasAVX512VL {
		s = append(s, &Set{
			Name: "avx512",
			// Shuffling across wider vectors gains nothing.
			Transpose: transposeAVX2, SumSquares: sumSquaresAVX2,
			PlainWeights: plainWeightsAVX512, SquareWeights: squareWeightsAVX512, Importance: importanceAVX512,
			FitAffine: fitAffineAVX512, FitAffineAbsolute: fitAffineAbsoluteAVX512,
			FitSymmetric: fitSymmetricAVX512, FitThreeBit: fitThreeBitAVX512,
			FitPositive: fitPositiveAVX512,
			DivideCodes: divideCodesAVX512, MultiplyCodes: multiplyCodesAVX512,
			Nearest3:   nearest3AVX512,
			GridLosses: gridLossesAVX512,
			// It waits for memory.
			FullExponent: fullExponentAVX2, NotFinite: notFiniteAVX2,
		})
	}
	return append(s, &Set{
		Name:      "avx2",
		Transpose: transposeAVX2, SumSquares: sumSquaresAVX2,
		PlainWeights: plainWeightsAVX2, SquareWeights: squareWeightsAVX2, Importance: importanceAVX2,
		FitAffine: fitAffineAVX2, FitAffineAbsolute: fitAffineAbsoluteAVX2,
		FitSymmetric: fitSymmetricAVX2, FitThreeBit: fitThreeBitAVX2,
		FitPositive: fitPositiveAVX2,
		DivideCodes: divideCodesAVX2, MultiplyCodes: multiplyCodesAVX2,
		Nearest3:     nearest3AVX2,
		GridLosses:   gridLossesAVX2,
		FullExponent: fullExponentAVX2, NotFinite: notFiniteAVX2,
	})
}
