package quant

import (
	"math"
	"math/rand/v2"
	"testing"

	"github.com/winnow-moe/winnow/quant/kernel"
)

// TestSplitIQ1 compares the best divisions that the kernels find with those of
// the portable code where many are equally good or nearly so, and at all sizes
// of elements and weights, at some of which the kernels give up or do not skip
// what cannot win.
func TestSplitIQ1(t *testing.T) {
	if len(kernel.Sets()) == 0 {
		t.Skip("this build or machine has no kernels")
	}
	r := rand.New(rand.NewPCG(11, 11))
	elements := map[string]func() float32{
		"few values": func() float32 { return float32(r.IntN(5) - 2) },
		"two values": func() float32 { return float32(1 - 2*r.IntN(2)) },
		"one value":  func() float32 { return 1 },
		"neighbours": func() float32 { return math.Float32frombits(0x3f800000+r.Uint32N(3)) * float32(1-2*r.IntN(2)) },
		"zeros":      func() float32 { return float32(math.Copysign(float64(r.IntN(2)), float64(r.IntN(2)*2-1))) },
		"gauss":      func() float32 { return float32(r.NormFloat64()) },
	}
	weights := map[string]func() float32{
		"one":        func() float32 { return 1 },
		"zeros":      func() float32 { return float32(r.IntN(3) / 2) },
		"neighbours": func() float32 { return math.Float32frombits(0x3f800000 + r.Uint32N(3)) },
		"uneven":     func() float32 { return float32(math.Exp(4 * r.NormFloat64())) },
	}
	for what, element := range elements {
		for how, weight := range weights {
			for _, size := range []float64{0, -20, -38, -60, -98, -110, 24, 50} {
				for _, weightSize := range []float64{0, -24, -59, -90, -104, 12, 40} {
					for _, c := range []struct {
						t     *typeIQ1
						split func(g *groupIQ1) splitIQ1
					}{{&searchIQ1S, (*groupIQ1).split32}, {&searchIQ1M, (*groupIQ1).split16}} {
						var l kernel.Lanes
						for i := range c.t.group {
							for lane := range kernel.Groups {
								l[kernel.RowX+i][lane] = element() * float32(math.Exp2(size))
								l[kernel.RowW+i][lane] = weight() * float32(math.Exp2(weightSize))
							}
						}
						for _, k := range kernel.Sets() {
							compareSplits(t, what+" weighed by "+how, k, c.t, &l, c.split)
						}
					}
				}
			}
		}
	}
}

// compareSplits compares the kernel's best divisions of l with others.
func compareSplits(t *testing.T, what string, k *kernel.Set, typ *typeIQ1, l *kernel.Lanes, split func(g *groupIQ1) splitIQ1) {
	t.Helper()
	got, space := *l, new(kernel.Space)
	odd := typ.split(k)(&got, space, 0)
	for lane := range kernel.Groups {
		if odd>>lane&1 != 0 {
			continue
		}
		x, w := make([]float32, typ.group), make([]float32, typ.group)
		for i := range x {
			x[i], w[i] = l[kernel.RowX+i][lane], l[kernel.RowW+i][lane]
		}
		g := groupIQ1{x: x, w: w}
		g.sort()
		best := split(&g)
		integer := func(row int) int32 { return int32(math.Float32bits(got[row][lane])) }
		if best.i1 < 0 {
			if integer(kernel.RowCodes) != -1 {
				t.Fatalf("%s, %s, groups of %d: a division of %v, weights %v", k.Name, what, typ.group, x, w)
			}
			continue
		}
		g.setDigits(best.i1, best.i2, best.scale < 0)
		var shifts int32
		for c := range typ.group / 8 {
			down := best.down >> (typ.group/8 - 1 - c) & 1
			if best.scale < 0 {
				down ^= 1
			}
			shifts |= int32(down) << c
			if key := g.key(c); integer(kernel.RowCodes+c) != int32(key) {
				t.Fatalf("%s, %s, groups of %d: cell %d of %v, weights %v has key %d, want %d",
					k.Name, what, typ.group, c, x, w, integer(kernel.RowCodes+c), key)
			}
		}
		if scale := got[kernel.RowScale][lane]; scale != abs32(best.scale) || integer(kernel.RowShift) != shifts {
			t.Fatalf("%s, %s, groups of %d: %v, weights %v has scale %v and shifts %b, want %v and %b",
				k.Name, what, typ.group, x, w, scale, integer(kernel.RowShift), abs32(best.scale), shifts)
		}
	}
}
