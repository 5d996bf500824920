package quant

import (
	"bytes"
	"fmt"
	"math"
	"math/rand/v2"
	"testing"

	"github.com/winnow-moe/winnow/formats/gguf"
	"github.com/winnow-moe/winnow/quant/kernel"
)

// nearestValue returns the code of the value nearest to v, of two the upper
// one, as its definition says.
func nearestValue(v float32) uint8 {
	for code := uint8(15); code > 0; code-- {
		if !(v < tableIQ4[code]) || !(v-tableIQ4[code-1] < tableIQ4[code]-v) {
			return code
		}
	}
	return 0
}

// edgesIQ4 are numbers around those where codes change, and others.
func edgesIQ4() (numbers []float32) {
	for i := -300 * 16; i <= 300*16; i++ {
		v := float32(i) / 16
		numbers = append(numbers, math.Nextafter32(v, -1000), v, math.Nextafter32(v, 1000))
	}
	inf := float32(math.Inf(1))
	numbers = append(numbers, inf, -inf, float32(math.NaN()), math.MaxFloat32, -math.MaxFloat32, float32(math.Copysign(0, -1)))
	for len(numbers)%blockLen != 0 {
		numbers = append(numbers, 0)
	}
	return numbers
}

// TestCodesIQ4 compares codes with the definition, by the portable code and by
// kernels, and checks that kernels write what they should and no more.
func TestCodesIQ4(t *testing.T) {
	x := edgesIQ4()
	groups := len(x) / blockLen
	inv := make([]float32, groups)
	for g := range inv {
		inv[g] = 1
	}
	for _, v := range x {
		if got, want := codeIQ4(v), nearestValue(v); got != want {
			t.Fatalf("%v has code %d, want %d", v, got, want)
		}
	}
	for _, k := range kernel.Sets() {
		for _, stride := range []int{16, 18} {
			dst := make([]byte, stride*groups+16)
			k.CodesIQ4(&dst[0], stride, &x[0], &inv[0], groups)
			for at, got := range dst {
				g, j, want := at/stride, at%stride, uint8(0)
				if g < groups && j < 16 {
					want = nearestValue(x[32*g+j]) | nearestValue(x[32*g+j+16])<<4
				}
				if got != want {
					t.Fatalf("%s, stride %d: byte %d is %#x, want %#x", k.Name, stride, at, got, want)
				}
			}
		}
	}
}

// TestFitIQ4 compares the scales that kernels find with those of the portable
// code. Many elements lie where some candidate changes its code.
func TestFitIQ4(t *testing.T) {
	r := rand.New(rand.NewPCG(4, 4))
	var w workspace
	for round := range 400 {
		x, q := make([]float32, kernel.Groups*blockLen), make([]float32, kernel.Groups*blockLen)
		for i := range x {
			x[i], q[i] = float32(r.NormFloat64()*40), float32(r.ExpFloat64())
			if round%2 == 0 {
				code := r.IntN(15)
				limit := (tableIQ4[code] + tableIQ4[code+1]) / 2
				x[i] = 127 * limit / float32(120+r.IntN(15))
			}
			if round%3 == 0 && r.IntN(4) > 0 {
				q[i] = 0
			}
			if i%blockLen == round%blockLen {
				x[i] = float32(127 - 254*r.IntN(2))
			}
		}
		for _, k := range kernel.Sets() {
			w.load(k, x, q, blockLen)
			for lane := range kernel.Groups {
				w.lanes[kernel.RowSigma][lane] = 50
			}
			k.Importance(&w.lanes, blockLen)
			if odd := k.FitIQ4(&w.lanes, &w.scratch); odd != 0 {
				t.Fatalf("%s: left to the portable code: %b", k.Name, odd)
			}
			for g, got := range w.lanes[kernel.RowScale] {
				want := fitIQ4((*[blockLen]float32)(x[blockLen*g:]), q[blockLen*g:], 50)
				if math.Float32bits(got) != math.Float32bits(want) {
					t.Fatalf("%s, round %d, group %d: scale %v, want %v", k.Name, round, g, got, want)
				}
			}
		}
	}
}

// TestKernelsBlocksOf32 compares kernels with the portable code on rows that
// are not whole super-blocks.
func TestKernelsBlocksOf32(t *testing.T) {
	r := rand.New(rand.NewPCG(6, 6))
	for _, blocks := range []int{1, 2, 7, 9, 31, 33, 41, 65} {
		x, w := gauss(blocks * blockLen)
		clear(x[:r.IntN(blockLen)+1])
		x[r.IntN(len(x))] = bitsFloat(r, false)
		for _, typ := range []gguf.Type{gguf.Q4_0, gguf.Q4_1, gguf.Q5_0, gguf.Q5_1, gguf.IQ4NL} {
			for _, weights := range [][]float32{nil, w} {
				use(t, "portable")
				want := encodeBy(t, DefaultSearch, typ, x, weights)
				for _, k := range kernel.Sets() {
					use(t, k.Name)
					if got := encodeBy(t, DefaultSearch, typ, x, weights); !bytes.Equal(got, want) {
						compareBlocks(t, fmt.Sprintf("%s %s, %d blocks", typ, k.Name, blocks), typ, got, want)
					}
				}
			}
		}
	}
}
