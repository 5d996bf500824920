package quant

import (
	"math/rand/v2"
	"testing"

	"github.com/winnow-moe/winnow/quant/kernel"
)

// TestScalesQ3K compares the scales, codes beyond six bits among them, with the
// layout element by element.
func TestScalesQ3K(t *testing.T) {
	r := rand.New(rand.NewPCG(3, 3))
	for n := range 2000 {
		var ls, back, want [16]uint8
		for g := range ls {
			ls[g] = uint8(r.UintN(64))
			if n%2 == 1 {
				ls[g] = uint8(r.UintN(256))
			}
		}
		var dst, bytes [12]byte
		packScalesQ3K(dst[:], &ls)
		for g, c := range ls {
			bytes[g%8] |= c & 15 << (g / 8 * 4)
			bytes[8+g%4] |= c >> 4 << (g / 4 * 2)
		}
		if dst != bytes {
			t.Fatalf("scales %v are %x, want %x", ls, dst, bytes)
		}
		unpackScalesQ3K(&back, dst[:])
		for g := range want {
			want[g] = bytes[g%8]>>(g/8*4)&15 | bytes[8+g%4]>>(g/4*2)&3<<4
		}
		if back != want {
			t.Fatalf("%x gives scales %v, want %v", dst, back, want)
		}
	}
}

// TestStartThreeBit makes sure that most groups need no sweeps, and compares
// the scales of those that do not, of elements near the edges of codes too,
// with those of the portable code.
func TestStartThreeBit(t *testing.T) {
	r := rand.New(rand.NewPCG(4, 4))
	for _, k := range kernel.Sets() {
		var w workspace
		open, total := 0, 0
		for n := range 4000 {
			x := make([]float32, kernel.Groups*16)
			for i := range x {
				x[i] = float32(r.NormFloat64())
				if n%4 == 1 {
					x[i] = (float32(r.IntN(15)) - 7.5) * (0.5 + float32(r.NormFloat64())*1e-4)
				}
				if n%4 == 2 && i%16 != 5 {
					x[i] *= float32(r.Float64()) * 1e-3
				}
				if n%4 == 3 {
					x[i] = float32(r.IntN(17) - 8)
				}
			}
			w.load(k, x, nil, 16)
			odd, some := k.StartThreeBit(&w.lanes)
			if odd != 0 {
				t.Fatalf("%s: odd lanes %b", k.Name, odd)
			}
			for lane := range kernel.Groups {
				if n%4 == 0 {
					total++
					open += int(some >> lane & 1)
				}
				if some>>lane&1 != 0 {
					continue
				}
				var codes [16]uint8
				xg := x[16*lane:][:16]
				if got, want := w.lanes[kernel.RowScale][lane], fitThreeBit(codes[:], xg); got != want {
					t.Fatalf("%s: scale of %v is %v, want %v", k.Name, xg, got, want)
				}
			}
		}
		t.Logf("%s: %d of %d groups open", k.Name, open, total)
		if open*3 > total {
			t.Errorf("%s: %d of %d groups need sweeps", k.Name, open, total)
		}
	}
}
