// Command _asm writes the assembly of package kernel. Every kernel comes in an
// AVX2 and an AVX-512 form from one description: vectors of 8 or 16 lanes, a
// few of them side by side to hide latencies. No fused multiply-add anywhere.
package main

import (
	"flag"
	"log"

	. "github.com/mmcloughlin/avo/build"
)

// files are the kernels of each file, by its name.
var files = map[string]func(){
	"cells":    cells,
	"iq4":      iq4,
	"iq1":      iq1,
	"lanes":    lanes,
	"losses":   losses,
	"plain":    plain,
	"threebit": threeBits,
	"unpack":   unpack,
}

func main() {
	name := flag.String("kernels", "", "file to write")
	flag.Parse()
	write, ok := files[*name]
	if !ok {
		log.Fatalf("no kernels %q", *name)
	}
	ConstraintExpr("!noasm")
	write()
	Generate()
}

// sets are the instruction sets to write for.
var sets = []isa{{name: "AVX2", lanes: 8}, {name: "AVX512", lanes: 16}}

// lanes writes the searches with one group per lane.
func lanes() {
	transpose()
	sumSquares()
	for _, s := range sets {
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
}
