// Command _asm writes the assembly of package kernel. Every kernel comes in an
// AVX2 and an AVX-512 form from one description: vectors of 8 or 16 lanes, a
// few of them side by side to hide latencies. No fused multiply-add anywhere.
package main

import . "github.com/mmcloughlin/avo/build"

func main() {
	ConstraintExpr("!noasm")
	transpose()
	sumSquares()
	for _, s := range []isa{{name: "AVX2", lanes: 8}, {name: "AVX512", lanes: 16}} {
		s.plainWeights()
		s.squareWeights()
		s.importance()
		s.fitAffine("fitAffine", false)
		s.fitAffine("fitAffineAbsolute", true)
		s.fitPositive()
		s.fitSymmetric()
		s.fitThreeBit()
		s.codes("divideCodes", true)
		s.codes("multiplyCodes", false)
	}
	Generate()
}
