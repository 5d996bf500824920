package quant

import (
	"math"

	"github.com/winnow-moe/winnow/quant/kernel"
)

// AllFinite reports whether no value is NaN or infinite.
func AllFinite(x []float32) bool {
	const exponent = 0x7f800000
	if k := kernel.Active(); k != nil {
		x = x[skip(k.Finite32, kernel.Bytes(x), exponent)/4:]
	}
	for _, v := range x {
		if math.Float32bits(v)&exponent == exponent {
			return false
		}
	}
	return true
}

// StoredF32 returns the memory of x if it holds the numbers as files do, in
// little endian order, and nil where that is not known.
func StoredF32(x []float32) []byte {
	if kernel.Active() == nil {
		return nil
	}
	return kernel.Bytes(x)
}
