package quant

import (
	"math"
	"math/rand/v2"
	"slices"
	"testing"

	"github.com/winnow-moe/winnow/quant/kernel"
)

var gridTypes = map[string]*gridType{
	"IQ2_XXS": &searchIQ2XXS, "IQ2_XS": &searchIQ2XS, "IQ2_S": &searchIQ2S,
	"IQ3_XXS": &searchIQ3XXS, "IQ3_S": &searchIQ3S,
}

func sameBits(a, b []float32) bool {
	return slices.EqualFunc(a, b, func(a, b float32) bool { return math.Float32bits(a) == math.Float32bits(b) })
}

// TestGridKernels compares the kernels of IQ2 and IQ3, one by one, with the
// portable code on groups of all sizes of numbers.
func TestGridKernels(t *testing.T) {
	r := rand.New(rand.NewPCG(7, 7))
	x, q := make([]float32, superLen), make([]float32, superLen)
	for _, k := range kernel.Sets() {
		for name, typ := range gridTypes {
			for what, make1 := range rowMakers {
				if what == "bits" || what == "oddities" || what == "sizes" {
					continue // beyond the range of the kernels
				}
				make1(r, x)
				for i := range q {
					q[i] = float32(r.ExpFloat64())
				}
				var w gridWorkspace
				weights := q
				if r.IntN(2) == 0 {
					weights = nil
				}
				w.variances(k, x, typ.spread)
				typ.weighSuper(&w, k, 0, x, weights, 0)
				for g := range superLen / typ.group {
					compareGroup(t, k.Name+" "+name+" "+what, k, typ, &w, x, weights, g)
				}
			}
		}
	}
}

// compareGroup compares what kernels find for a group of super-block 0.
func compareGroup(t *testing.T, what string, k *kernel.Set, typ *gridType, w *gridWorkspace, x, q []float32, n int) {
	t.Helper()
	start := n * typ.group
	x = x[start:][:typ.group]
	if q != nil {
		q = q[start:][:typ.group]
	}
	g := gridGroup{t: typ, cells: typ.grid.cells()}
	g.weigh(x, q, w.sigma[0])
	signs, top := g.split(x)
	m, tops := &w.magnitudes[0], &w.groupTops[0]
	for row, want := range [][]float32{g.x[:], g.w[:], g.wx[:], g.u[:]} {
		if !sameBits(m[row][start:][:typ.group], want[:typ.group]) {
			t.Fatalf("%s, group %d: row %d is %v, want %v", what, n, row, m[row][start:][:typ.group], want)
		}
	}
	if got := w.signs[0][start/8:][:typ.group/8]; !slices.Equal(got, signs[:typ.group/8]) {
		t.Fatalf("%s, group %d: signs %x, want %x", what, n, got, signs)
	}
	heaviest := slices.Max(g.u[:typ.group])
	for i, want := range []float32{top, g.reach, heaviest} {
		if got := math.Float32frombits(tops[i][n]); got != want {
			t.Fatalf("%s, group %d: top %d is %v, want %v", what, n, i, got, want)
		}
	}
	// Bases down to where small magnitudes have large digits.
	for _, part := range []float32{1, 0.7, 0.1, 0.001} {
		if base := top * part; base > 1.0/gridRange {
			compareCandidates(t, what, k, w, &g, &m[kernel.MagX][start], base)
		}
	}
}

// compareCandidates compares all candidates about a base.
func compareCandidates(t *testing.T, what string, k *kernel.Set, w *gridWorkspace, g *gridGroup, x *float32, base float32) {
	t.Helper()
	fit, round := k.FitCells3, k.RoundCells3
	if g.t.levels == 8 {
		fit, round = k.FitCells8, k.RoundCells8
	}
	count := 2*g.t.steps + 1
	for i := range count {
		w.steps[i] = g.t.candidate(i - g.t.steps)
	}
	p := g.t.grid.packed()
	fit(&w.candidates, x, &p.entries[0], &p.records[0], g.t.count(), &w.steps[0], count, base)
	for i := range count {
		id := w.steps[i] / base
		var codes [8]uint16
		off, ok := g.round(&codes, id, 1/id, 0xff)
		sums := g.t.sums(&codes, g.w[:], g.wx[:])
		a, b := math.Float32frombits(w.candidates[kernel.CandA][i]), math.Float32frombits(w.candidates[kernel.CandB][i])
		if !ok || a != sums.a || b != sums.b {
			t.Fatalf("%s, candidate %d: sums %v and %v, want %v (%v)", what, i, a, b, sums, ok)
		}
		which := uint8(1<<g.t.count()-1) >> (i % 3)
		var again, want [8]uint16
		g.round(&want, id, 1/id, which)
		round(&again[0], x, &p.entries[0], &p.lists[0], int(which), id, 1/id)
		if again != want {
			t.Fatalf("%s, candidate %d: rounded again to %x, want %x", what, i, again, want)
		}
		for c := range g.t.count() {
			want := uint32(codes[c]) | uint32(off)>>c&1*kernel.OffGrid
			if got := w.candidates[kernel.CandCodes+c][i]; got != want {
				t.Fatalf("%s, candidate %d: code %x of cell %d, want %x", what, i, got, c, want)
			}
		}
	}
}

// TestGridKernelsDoTheWork makes sure that ordinary rows, and rows with groups
// of zeros, do not end up with the portable code.
func TestGridKernelsDoTheWork(t *testing.T) {
	x, q := gauss(gridChunk * superLen)
	clear(x[100:300])
	for _, k := range kernel.Sets() {
		for name, typ := range gridTypes {
			var w gridWorkspace
			typ.searchBatch(&w, k, x, q) // leaves the one chunk loaded
			for b := range gridChunk {
				for g := range superLen / typ.group {
					if ok, done := typ.fitOrdinary(&w, k, &w.fits[b][g], b, g); !ok || !done {
						t.Errorf("%s, %s: group %d of super-block %d left to the portable code", k.Name, name, g, b)
					}
				}
			}
		}
	}
}
