package quant

import (
	"encoding/binary"
	"math"
	"math/rand/v2"
	"testing"

	"github.com/winnow-moe/winnow/quant/kernel"
)

// eachISA runs a test with all kernels and without.
func eachISA(t *testing.T, f func(t *testing.T)) {
	names := []string{"portable"}
	for _, k := range kernel.Sets() {
		names = append(names, k.Name)
	}
	for _, name := range names {
		t.Run(name, func(t *testing.T) {
			use(t, name)
			f(t)
		})
	}
}

// TestFullExponent plants every number of 16 bits, and numbers of 32 bits with
// every exponent, at all places of buffers of all lengths up to a few units;
// the others have all bits that a finite number may have.
func TestFullExponent(t *testing.T) {
	eachISA(t, func(t *testing.T) {
		for name, c := range map[string]struct {
			e      exponent
			bytes  int
			mask   uint32
			finite []uint32
		}{
			"F16":  {exponentF16, 2, 0x7c00, []uint32{0xfbff, 0x7bff, 0x8000, 0}},
			"BF16": {exponentBF16, 2, 0x7f80, []uint32{0xff7f, 0x7f7f, 0x8000, 0}},
			"F32":  {exponentF32, 4, 0x7f800000, []uint32{0xff7fffff, 0x7f7fffff, 0x80000000, 0}},
		} {
			r := rand.New(rand.NewPCG(1, 1))
			for n := range 200 {
				buf := make([]byte, n*c.bytes+1)[1:] // at odd addresses too
				put := func(i int, v uint32) {
					if c.bytes == 2 {
						binary.LittleEndian.PutUint16(buf[2*i:], uint16(v))
					} else {
						binary.LittleEndian.PutUint32(buf[4*i:], v)
					}
				}
				for i := range n {
					put(i, c.finite[r.IntN(len(c.finite))])
				}
				if c.e.full(buf) {
					t.Fatalf("%s: %d finite numbers are not", name, n)
				}
				for i := range n {
					v := uint32(r.Uint64())
					if c.bytes == 2 {
						v &= 0xffff
					}
					for _, v := range []uint32{v, v | c.mask, v&^c.mask | c.mask&(c.mask<<1), v&^c.mask | c.mask&(c.mask>>1)} {
						put(i, v)
						if got, want := c.e.full(buf), v&c.mask == c.mask; got != want {
							t.Fatalf("%s: %#x at %d of %d: %v, want %v", name, v, i, n, got, want)
						}
					}
					put(i, c.finite[r.IntN(len(c.finite))])
				}
			}
		}
	})
}

func TestAllFinite(t *testing.T) {
	eachISA(t, func(t *testing.T) {
		bad := []float32{float32(math.NaN()), float32(math.Inf(1)), float32(math.Inf(-1)), math.Float32frombits(0x7f800001), math.Float32frombits(0xffffffff)}
		for n := range 100 {
			x := make([]float32, n)
			for i := range x {
				x[i] = []float32{math.MaxFloat32, -math.MaxFloat32, math.SmallestNonzeroFloat32, float32(math.Copysign(0, -1)), 1}[i%5]
			}
			if !AllFinite(x) {
				t.Fatalf("%d finite numbers are not", n)
			}
			for i := range x {
				for _, v := range bad {
					old := x[i]
					x[i] = v
					if AllFinite(x) {
						t.Fatalf("%v at %d of %d is finite", v, i, n)
					}
					x[i] = old
				}
			}
		}
	})
}
