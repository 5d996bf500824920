// Command _asm writes the assembly of package kernel. The products come in an
// AVX2 and an AVX-512 form from one description. Only products fuse the
// multiplication and the addition: everything else rounds after each.
package main

import (
	"flag"
	"strconv"

	. "github.com/mmcloughlin/avo/build"
	. "github.com/mmcloughlin/avo/operand"
	"github.com/mmcloughlin/avo/reg"
)

func main() {
	codes := flag.Bool("codes", false, "write the kernels for rows of codes")
	flag.Parse()
	ConstraintExpr("!noasm")
	if *codes {
		rowsOfCodes()
		Generate()
		return
	}
	for _, s := range []isa{
		{name: "AVX2", lanes: 8, rows: []int{1, 2, 4, 6}, narrowRows: []int{1, 3}, wideRows: []int{1, 3, 6}},
		{name: "AVX512", lanes: 16, rows: []int{1, 2, 4, 8, 14}, narrowRows: []int{1, 3, 6}, wideRows: []int{1, 4, 14}},
		{name: "VNNI", lanes: 16, vnni: true, narrowRows: []int{1, 3, 6}, wideRows: []int{1, 4, 14}},
	} {
		for _, rows := range s.rows {
			s.product(rows)
		}
		for _, rows := range s.narrowRows {
			for _, quads := range []int{2, 4, 8} {
				s.narrow(rows, quads)
			}
		}
		for _, rows := range s.wideRows {
			s.words(rows)
		}
	}
	roundBytes(false)
	roundBytes(true)
	transpose()
	gate()
	gelu()
	softcap()
	scaledTop()
	expsBelow()
	sumExp(false)
	sumExp(true)
	largest()
	extremes()
	sumSquares()
	addSquares()
	addScaled()
	inner()
	addScaled64()
	scaled()
	Generate()
}

// isa is a vector width and the numbers of rows that products take.
type isa struct {
	name                       string
	lanes                      int
	rows, narrowRows, wideRows []int
	vnni                       bool
}

func (s isa) wide() bool { return s.lanes == 16 }
func (s isa) size() int  { return 4 * s.lanes }

func (s isa) vec() reg.VecVirtual {
	if s.wide() {
		return ZMM()
	}
	return YMM()
}

// repeat runs body n times, at least once.
func repeat(label string, n reg.GPVirtual, body func()) {
	Label(label)
	body()
	DECQ(n)
	JNZ(LabelRef(label))
}

// text starts a function.
func text(name, signature string, doc ...string) {
	TEXT(name, NOSPLIT, signature)
	Pragma("noescape")
	Doc(append([]string{name + " " + doc[0]}, doc[1:]...)...)
}

func parameter(name string) reg.GPVirtual {
	r := GP64()
	Load(Param(name), r)
	return r
}

func itoa(n int) string { return strconv.Itoa(n) }

// at addresses a byte from base on.
func at(base reg.Register, disp int) Mem { return Mem{Base: base, Disp: disp} }
