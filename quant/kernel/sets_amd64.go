//go:build !noasm

package kernel

import (
	"slices"

	"github.com/winnow-moe/winnow/isa"
)

var sets = available()

// unpackers is the same for all sets.
var unpackers = Unpackers{
	Q4_0: unpackQ4_0AVX2, Q4_1: unpackQ4_1AVX2, Q5_0: unpackQ5_0AVX2, Q5_1: unpackQ5_1AVX2, Q8_0: unpackQ8_0AVX2,
	Q2_K: unpackQ2_KAVX2, Q3_K: unpackQ3_KAVX2, Q4_K: unpackQ4_KAVX2, Q5_K: unpackQ5_KAVX2, Q6_K: unpackQ6_KAVX2,
	IQ4_NL: unpackIQ4_NLAVX2, IQ4_XS: unpackIQ4_XSAVX2, MXFP4: unpackMXFP4AVX2,
}

func available() []*Set {
	var s []*Set
	if !slices.Contains(isa.Available(), isa.AVX2) {
		return nil
	}
	if slices.Contains(isa.Available(), isa.AVX512) {
		s = append(s, &Set{
			Name: isa.AVX512,
			// Shuffling across wider vectors gains nothing.
			Transpose: transposeAVX2, SumSquares: sumSquaresAVX2,
			PlainWeights: plainWeightsAVX512, SquareWeights: squareWeightsAVX512, Importance: importanceAVX512,
			FitAffine: fitAffineAVX512, FitAffineAbsolute: fitAffineAbsoluteAVX512,
			FitSymmetric: fitSymmetricAVX512, FitThreeBit: fitThreeBitAVX512,
			StartThreeBit: startThreeBitAVX512, PackThreeBit: packThreeBitAVX512,
			FitPositive: fitPositiveAVX512,
			DivideCodes: divideCodesAVX512, MultiplyCodes: multiplyCodesAVX512,
			FitIQ4: fitIQ4AVX512, CodesIQ4: codesIQ4AVX512,
			GridLosses: gridLossesAVX512, TableLosses: tableLossesAVX512, SquaredErrors: squaredErrorsAVX512,
			Magnitudes: magnitudesAVX2,
			FitCells3:  fitCells3AVX512, FitCells8: fitCells8AVX512,
			RoundCells3: roundCells3AVX512, RoundCells8: roundCells8AVX512,
			SplitIQ1S: splitIQ1SAVX512, SplitIQ1M: splitIQ1MAVX512, PlaceIQ1: placeIQ1AVX512,
			SumsIQ1: sumsIQ1AVX2,
			Q4_0:    encodeQ4_0AVX512, Q4_1: encodeQ4_1AVX512, Q5_0: encodeQ5_0AVX512, Q5_1: encodeQ5_1AVX512, Q8_0: encodeQ8_0AVX512,
			TQ1_0: encodeTQ1_0AVX512, TQ2_0: encodeTQ2_0AVX512, Q1_0: encodeQ1_0AVX2, Q2_0: encodeQ2_0AVX512,
			MXFP4: encodeMXFP4AVX512, NVFP4: encodeNVFP4AVX512, F16: encodeF16AVX512, BF16: encodeBF16AVX512,
			FromF16: decodeF16AVX512, FromBF16: decodeBF16AVX512, FromQ8_0: decodeQ8_0AVX512,
			Unpack: unpackers, Expand: expandAVX512,
			Finite16: finite16AVX512, Finite32: finite32AVX512, FiniteScales: finiteScales,
		})
	}
	return append(s, &Set{
		Name:      isa.AVX2,
		Transpose: transposeAVX2, SumSquares: sumSquaresAVX2,
		PlainWeights: plainWeightsAVX2, SquareWeights: squareWeightsAVX2, Importance: importanceAVX2,
		FitAffine: fitAffineAVX2, FitAffineAbsolute: fitAffineAbsoluteAVX2,
		FitSymmetric: fitSymmetricAVX2, FitThreeBit: fitThreeBitAVX2,
		StartThreeBit: startThreeBitAVX2, PackThreeBit: packThreeBitAVX2,
		FitPositive: fitPositiveAVX2,
		DivideCodes: divideCodesAVX2, MultiplyCodes: multiplyCodesAVX2,
		FitIQ4: fitIQ4AVX2, CodesIQ4: codesIQ4AVX2,
		GridLosses: gridLossesAVX2, TableLosses: tableLossesAVX2, SquaredErrors: squaredErrorsAVX2,
		Magnitudes: magnitudesAVX2,
		FitCells3:  fitCells3AVX2, FitCells8: fitCells8AVX2,
		RoundCells3: roundCells3AVX2, RoundCells8: roundCells8AVX2,
		SplitIQ1S: splitIQ1SAVX2, SplitIQ1M: splitIQ1MAVX2, PlaceIQ1: placeIQ1AVX2,
		SumsIQ1: sumsIQ1AVX2,
		Q4_0:    encodeQ4_0AVX2, Q4_1: encodeQ4_1AVX2, Q5_0: encodeQ5_0AVX2, Q5_1: encodeQ5_1AVX2, Q8_0: encodeQ8_0AVX2,
		TQ1_0: encodeTQ1_0AVX2, TQ2_0: encodeTQ2_0AVX2, Q1_0: encodeQ1_0AVX2, Q2_0: encodeQ2_0AVX2,
		MXFP4: encodeMXFP4AVX2, NVFP4: encodeNVFP4AVX2, F16: encodeF16AVX2, BF16: encodeBF16AVX2,
		FromF16: decodeF16AVX2, FromBF16: decodeBF16AVX2, FromQ8_0: decodeQ8_0AVX2,
		Unpack: unpackers, Expand: expandAVX2,
		Finite16: finite16AVX2, Finite32: finite32AVX2, FiniteScales: finiteScales,
	})
}
