package quant

import (
	"encoding/binary"
	"math"

	"github.com/winnow-moe/winnow/quant/kernel"
)

// exponent finds floats with all exponent bits set, which are NaN or infinite,
// in words of 64 bits: adding step, the lowest bit of each exponent, to the
// masked exponents carries into the sign bit, which mask leaves free.
type exponent struct{ mask, step uint64 }

var (
	exponentF16  = exponent{0x7c007c007c007c00, 0x0400040004000400}
	exponentBF16 = exponent{0x7f807f807f807f80, 0x0080008000800080}
	exponentF32  = exponent{0x7f8000007f800000, 0x0080000000800000}
)

// full reports whether b, of whole floats, holds a full exponent.
func (e exponent) full(b []byte) bool {
	if k := kernel.Active(); k != nil && len(b) >= 128 {
		units := len(b) / 128
		if k.FullExponent(&b[0], units, e.mask, e.step) {
			return true
		}
		b = b[units*128:]
	}
	seen := uint64(0)
	for len(b) >= 8 {
		seen |= binary.LittleEndian.Uint64(b)&e.mask + e.step
		b = b[8:]
	}
	var last [8]byte
	copy(last[:], b)
	seen |= binary.LittleEndian.Uint64(last[:])&e.mask + e.step
	return seen&^e.mask != 0
}

// AllFinite reports whether no value is NaN or infinite.
func AllFinite(x []float32) bool {
	if k := kernel.Active(); k != nil && len(x) >= 32 {
		units := len(x) / 32
		if k.NotFinite(&x[0], units) {
			return false
		}
		x = x[units*32:]
	}
	seen := uint32(0)
	for _, v := range x {
		seen |= math.Float32bits(v)&uint32(exponentF32.mask) + uint32(exponentF32.step&math.MaxUint32)
	}
	return seen>>31 == 0
}
