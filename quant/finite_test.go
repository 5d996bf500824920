package quant

import (
	"bytes"
	"math"
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

func TestStoredF32(t *testing.T) {
	eachISA(t, func(t *testing.T) {
		x := []float32{1, -2, 3e38}
		got := StoredF32(x)
		if kernel.Active() == nil {
			if got != nil {
				t.Error("without kernels the order of bytes is not known")
			}
			return
		}
		want := make([]byte, 12)
		encodeF32(want, x, nil)
		if !bytes.Equal(got, want) {
			t.Errorf("got % x, want % x", got, want)
		}
	})
}
