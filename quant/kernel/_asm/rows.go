package main

import (
	. "github.com/mmcloughlin/avo/operand"
	"github.com/mmcloughlin/avo/reg"
)

// The rows of kernel.Lanes, 32 float32 each, as in lanes.go.
const (
	rowBytes = 128

	rowX      = 0
	rowW      = 32
	rowSigma  = 64
	rowSum    = 65
	rowScale  = 66
	rowMin    = 67
	rowInv    = 68
	rowBase   = 69
	rowLo     = 70
	rowHi     = 71
	rowSumX   = 72
	rowBest   = 73
	rowLow    = 74
	rowTry    = 75
	rowOrigin = 76
	rowCodes  = 94
	rowShift  = 98 // of IQ1 types, whose rows of codes are four
	rowOff    = 99
)

// listBits is quant's: the bits of a list's length.
const listBits = 9

// at addresses vector v of a row, from base, which points into row 0.
func (s isa) at(base reg.GPVirtual, row, v int) Mem {
	return Mem{Base: base, Disp: row*rowBytes + v*s.size()}
}
