package kernel

import (
	"math"
	"math/rand/v2"
	"testing"
)

// nearest3 is Nearest3 as its comment says it.
func nearest3(terms *[8][4]float32, codes []uint16) int {
	least, place := float32(math.MaxFloat32), -1
	for i, c := range codes {
		var sum float32
		for k := range terms {
			sum += terms[k][c>>(2*k)&3]
		}
		if sum < least {
			least, place = sum, i
		}
	}
	return place
}

// TestNearest3 compares lists of all lengths, with ties and without, with sums
// that overflow or are NaN. Better codes behind the list do not count.
func TestNearest3(t *testing.T) {
	r := rand.New(rand.NewPCG(3, 3))
	numbers := []func() float32{
		func() float32 { return float32(r.IntN(3)) },
		func() float32 { return r.Float32() },
		func() float32 { return float32(r.NormFloat64()) },
		func() float32 { return math.Float32frombits(r.Uint32()) },
		func() float32 { return float32(math.Inf(1)) },
		func() float32 { return float32(math.NaN()) },
		func() float32 { return math.MaxFloat32 * r.Float32() },
	}
	for n := 1; n <= 80; n++ {
		for round := range 40 {
			number := numbers[round%len(numbers)]
			var terms [8][4]float32
			for i := range terms {
				for k := range terms[i] {
					terms[i][k] = number()
				}
			}
			codes := make([]uint16, n+16)
			for i := range codes {
				codes[i] = uint16(r.Uint32())
			}
			want := nearest3(&terms, codes[:n])
			for _, s := range Sets() {
				if got := s.Nearest3(&terms, &codes[0], n); got != want {
					t.Fatalf("%s: place %d of %d, want %d", s.Name, got, n, want)
				}
			}
		}
	}
}
