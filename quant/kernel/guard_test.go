package kernel

import (
	"math"
	"strings"
	"testing"
)

// guarded is Lanes between words that no kernel may touch.
type guarded struct {
	before [64]float32
	lanes  Lanes
	after  [64]float32
}

// TestGuards runs every kernel on the largest and smallest groups and checks
// that rows it has no business with, and memory around its results, stay.
func TestGuards(t *testing.T) {
	top := make([]float32, 8)
	for i := range top {
		top[i] = 14.5 + float32(i)/8
	}
	for _, s := range Sets() {
		for _, group := range []int{16, 32} {
			for what, run := range map[string]func(l *Lanes){
				"PlainWeights":      func(l *Lanes) { s.PlainWeights(l, group) },
				"SquareWeights":     func(l *Lanes) { s.SquareWeights(l, group) },
				"FitSymmetric":      func(l *Lanes) { s.FitSymmetric(l, group, 16, &top[0], 2, len(top)-2) },
				"Importance":        func(l *Lanes) { s.Importance(l, group) },
				"FitAffine":         func(l *Lanes) { s.FitAffine(l, group, 15, &top[0], len(top)) },
				"FitAffineAbsolute": func(l *Lanes) { s.FitAffineAbsolute(l, group, 15, &top[0], len(top)) },
				"FitPositive":       func(l *Lanes) { s.FitPositive(l, group, 63, &top[0], len(top)) },
				"FitIQ4":            func(l *Lanes) { guardFitIQ4(t, s, l) },
				"FitThreeBit":       func(l *Lanes) { s.FitThreeBit(l) },
				"StartThreeBit":     func(l *Lanes) { s.StartThreeBit(l) },
			} {
				if only := onlyGroup[what]; only != 0 && group != only {
					continue
				}
				behind := 32 + group
				if strings.HasSuffix(what, "ThreeBit") {
					behind = 64 // both halves of W hold intermediate values
				}
				var g guarded
				fill(&g)
				want := g
				run(&g.lanes)
				if g.before != want.before || g.after != want.after || !same(g.lanes[:32], want.lanes[:32]) ||
					!same(g.lanes[behind:64], want.lanes[behind:64]) || !same(g.lanes[RowCodes+group:], want.lanes[RowCodes+group:]) {
					t.Errorf("%s %s, groups of %d: memory beyond its results changes", s.Name, what, group)
				}
			}
			guardCodes(t, s, group)
			guardTranspose(t, s, group)
			guardLosses(t, s, group)
			guardTableLosses(t, s, group)
			guardErrors(t, s, group)
			guardMagnitudes(t, s, group)
			guardIQ1(t, s, group)
			guardCells(t, s, group)
		}
		guardPackThreeBit(t, s)
		guardUnpack(t, s)
		guardExpand(t, s)
	}
}

// onlyGroup is the length of groups of kernels that take just one.
var onlyGroup = map[string]int{"FitIQ4": 32, "FitThreeBit": 16, "StartThreeBit": 16}

func fill(g *guarded) {
	for i := range g.before {
		g.before[i], g.after[i] = math.Pi, math.Pi
	}
	for i := range g.lanes {
		for k := range g.lanes[i] {
			g.lanes[i][k] = float32((i*37+k*11)%64) / 64
		}
	}
}

func same(a, b [][Groups]float32) bool {
	for i := range a {
		if a[i] != b[i] {
			return false
		}
	}
	return true
}

// guardCodes checks lengths from one group on, at odd offsets.
func guardCodes(t *testing.T, s *Set, group int) {
	for groups := 1; groups <= 3; groups++ {
		n := groups * group
		x, offset, scale := make([]float32, n+1), make([]float32, groups), make([]float32, groups)
		for g := range scale {
			scale[g] = 1
		}
		for i := range x {
			x[i] = float32(i % 7)
		}
		for what, f := range map[string]func(dst *uint8, x, offset, scale *float32, groups, group int, lo, hi int32){
			"DivideCodes": s.DivideCodes, "MultiplyCodes": s.MultiplyCodes,
		} {
			dst := make([]uint8, n+64)
			for i := range dst {
				dst[i] = 0xa5
			}
			f(&dst[3], &x[1], &offset[0], &scale[0], groups, group, -2, 4)
			for i, c := range dst {
				want := uint8(0xa5)
				if i >= 3 && i < 3+n {
					want = uint8(min(4, (i-3+1)%7) + 2)
				}
				if c != want {
					t.Fatalf("%s %s, %d groups of %d: byte %d is %d, want %d", s.Name, what, groups, group, i-3, c, want)
				}
			}
		}
	}
}

func guardTranspose(t *testing.T, s *Set, group int) {
	src := make([]float32, Groups*group)
	for i := range src {
		src[i] = float32(i)
	}
	var dst [64][Groups]float32
	s.Transpose((*[32][32]float32)(dst[16:]), &src[0], group)
	for i := range dst {
		for k, v := range dst[i] {
			want := float32(0)
			if e := i - 16; e >= 0 && e < group {
				want = float32(k*group + e)
			}
			if v != want {
				t.Fatalf("%s Transpose: row %d, lane %d holds %v, want %v", s.Name, i-16, k, v, want)
			}
		}
	}
	var sums [3][8]float32
	s.SumSquares(&sums[1], &src[0], group)
	for k := range sums[1] {
		var want float32
		for _, v := range src[k*group:][:group] {
			want += float32(v * v)
		}
		if sums[1][k] != want || sums[0][k] != 0 || sums[2][k] != 0 {
			t.Fatalf("%s SumSquares: %v, want %v at %d and zeros around", s.Name, sums, want, k)
		}
	}
}

// guardLosses checks the memory around the losses of up to 3 times 16 scales,
// and each loss of a group that lies on its grid.
func guardLosses(t *testing.T, s *Set, group int) {
	x, w := make([]float32, group+1), make([]float32, group+1)
	for i := range x {
		x[i], w[i] = float32(i%4)-1, 1
	}
	for units := 1; units <= 3; units++ {
		inv, square, offset := make([]float32, 16*units), make([]float32, 16*units), []float32{1, 2, 3}
		for i := range inv {
			inv[i], square[i] = 1, float32(i+1)
		}
		for offsets := 1; offsets <= len(offset); offsets++ {
			out := make([]float32, 16*units*offsets+32)
			for i := range out {
				out[i] = math.Pi
			}
			s.GridLosses(&out[16], &x[1], &w[1], group, &inv[0], &square[0], units, &offset[0], offsets, 0, 3)
			for i, v := range out {
				want := float32(math.Pi)
				if k := i - 16; k >= 0 && k < 16*units*offsets {
					// Offset 1 puts x on the codes, 2 and 3 put a quarter and
					// half of it 1, and 1 and 2, beyond them.
					beyond := [...]int{0, group / 4, group/4 + group}[k/16%offsets]
					want = float32(beyond) * square[k/16/offsets*16+k%16]
				}
				if v != want {
					t.Fatalf("%s GridLosses, %d units, %d offsets: number %d is %v, want %v", s.Name, units, offsets, i-16, v, want)
				}
			}
		}
	}
}

// guardFitIQ4 checks the memory around the scratch.
func guardFitIQ4(t *testing.T, s *Set, l *Lanes) {
	var m [3]Scratch
	s.FitIQ4(l, &m[1])
	if m[0] != (Scratch{}) || m[2] != (Scratch{}) {
		t.Errorf("%s FitIQ4: memory around its scratch changes", s.Name)
	}
}

// guardTableLosses checks the memory around the losses of up to 3 times 16
// scales, and each loss of a group whose elements are 1 or 2 from a value.
func guardTableLosses(t *testing.T, s *Set, group int) {
	x, w := make([]float32, group+1), make([]float32, group+1)
	var want float32
	for i := range x {
		x[i], w[i] = [...]float32{-128, -125, 2, 115}[i%4], 1
		if i > 0 {
			want += [...]float32{1, 4, 1, 4}[i%4]
		}
	}
	for units := 1; units <= 3; units++ {
		inv, square, out := make([]float32, 16*units), make([]float32, 16*units), make([]float32, 16*units+32)
		for i := range inv {
			inv[i], square[i] = 1, float32(i+1)
		}
		s.TableLosses(&out[16], &x[1], &w[1], group, &inv[0], &square[0], units)
		for i, v := range out {
			loss := float32(0)
			if k := i - 16; k >= 0 && k < 16*units {
				loss = want * square[k]
			}
			if v != loss {
				t.Fatalf("%s TableLosses, %d units: number %d is %v, want %v", s.Name, units, i-16, v, loss)
			}
		}
	}
}

// guardErrors checks the memory around sums of few and many elements.
func guardErrors(t *testing.T, s *Set, length int) {
	x, y, w := make([]float32, length+1), make([]float32, length+1), make([]float32, length+1)
	for i := range x {
		x[i], y[i], w[i] = float32(i), 1, 2
	}
	var sums [3][8]float64
	s.SquaredErrors(&sums[1], &x[1], &y[1], &w[1], length)
	var want [3][8]float64
	for i := range length {
		want[1][i%8] += float64(2 * i * i)
	}
	if sums != want {
		t.Fatalf("%s SquaredErrors of %d: %v, want %v", s.Name, length, sums, want)
	}
}

// guardMagnitudes checks the memory around the results, and the groups that a
// super-block does not have.
func guardMagnitudes(t *testing.T, s *Set, group int) {
	type results struct {
		before [16]float32
		m      Magnitudes
		middle [16]uint8
		signs  [32]uint8
		after  [16]uint8
		tops   [3][16]uint32
		end    [16]uint32
	}
	x, q := make([]float32, 256), make([]float32, 256)
	for i := range x {
		x[i], q[i] = float32(i%7)-3, 1
	}
	for _, importance := range []*float32{nil, &q[0]} {
		for _, parity := range []bool{false, true} {
			var r results
			s.Magnitudes(&r.m, &r.signs, &r.tops, &x[0], importance, 1, group, parity)
			for _, tops := range r.tops {
				for g, v := range tops {
					if (v != 0) != (g < 256/group) {
						t.Errorf("%s Magnitudes, groups of %d: %x for group %d", s.Name, group, v, g)
					}
				}
			}
			if r.before != [16]float32{} || r.middle != [16]uint8{} || r.after != [16]uint8{} || r.end != [16]uint32{} {
				t.Errorf("%s Magnitudes, groups of %d: memory around the results changes", s.Name, group)
			}
		}
	}
}

// guardPackThreeBit checks the memory around the codes of a super-block, and
// codes of elements that lie on the grid.
func guardPackThreeBit(t *testing.T, s *Set) {
	x, scales := make([]float32, 257), [16]float32{}
	for g := range scales {
		scales[g] = float32(g - 20)
	}
	for i := range 256 {
		x[1+i] = scales[i/16] * float32(i*7%11-5) // one beyond both ends
	}
	dst := make([]byte, 96+64)
	for i := range dst {
		dst[i] = 0xa5
	}
	s.PackThreeBit(&dst[3], &x[1], &scales)
	for i, b := range dst {
		if (i < 3 || i >= 3+96) && b != 0xa5 {
			t.Fatalf("%s PackThreeBit: byte %d changes", s.Name, i-3)
		}
	}
	for i := range 256 {
		want := byte(max(-4, min(3, i*7%11-5)) + 4)
		got := dst[3+32+i/128*32+i%32]>>(i%128/32*2)&3 | dst[3+i%32]>>(i/32)&1<<2
		if got != want {
			t.Fatalf("%s PackThreeBit: code %d is %d, want %d", s.Name, i, got, want)
		}
	}
}

// guardCells checks the memory around Candidates, rows of cells that a group
// does not have, and codes that are not to be rounded.
func guardCells(t *testing.T, s *Set, group int) {
	for _, levels := range []int{3, 8} {
		fit, round, cells, keys := s.FitCells3, s.RoundCells3, group/8, 6561
		if levels == 8 {
			fit, round, cells, keys = s.FitCells8, s.RoundCells8, group/4, 4096
		}
		lists := make([]uint16, 6+16)
		var records []uint32
		for i := range lists {
			lists[i] = uint16(0x421 * i & 0xaa)
			records = AppendRecord(records, lists[i], levels)
		}
		entries := make([]uint32, keys)
		for key := range entries {
			entries[key] = OnGrid
			if key%2 == 1 {
				entries[key] = 6
			}
		}
		var m Magnitudes
		for i := range m[MagX] {
			m[MagX][i], m[MagW][i], m[MagWX][i], m[MagU][i] = float32(i%11), 1, 1, 1
		}
		top := make([]float32, 48)
		for i := range top {
			top[i] = 1 + float32(i)/16
		}
		for _, count := range []int{1, 8, 13, 31, 32} {
			var c struct {
				before     [16]float32
				candidates Candidates
				after      [16]float32
			}
			fit(&c.candidates, &m[MagX][0], &entries[0], &records[0], cells, &top[0], count, 2)
			for k, row := range c.candidates[CandCodes+cells : CandCodes+8] {
				if row != [48]uint32{} {
					t.Errorf("%s, %d levels, groups of %d: codes of cell %d", s.Name, levels, group, cells+k)
				}
			}
			c.candidates = Candidates{}
			if c.before != [16]float32{} || c.after != [16]float32{} {
				t.Errorf("%s, %d levels, %d candidates: memory around the results changes", s.Name, levels, count)
			}
		}
		for which := range 1 << cells {
			var codes [12]uint16
			for i := range codes {
				codes[i] = 0xffff
			}
			round(&codes[2], &m[MagX][0], &entries[0], &lists[0], which, 1, 1)
			for k, c := range codes {
				if done := k >= 2 && which>>(k-2)&1 != 0; done != (c != 0xffff) {
					t.Fatalf("%s, %d levels, cells %b: code %#x of cell %d", s.Name, levels, which, c, k-2)
				}
			}
		}
	}
}

// guardIQ1 checks that the searches of IQ1 types leave elements, weights and
// the rows behind their own alone, and what is around their space and results.
func guardIQ1(t *testing.T, s *Set, group int) {
	split := s.SplitIQ1S
	if group == 16 {
		split = s.SplitIQ1M
	}
	var g guarded
	var space struct {
		before [16]float32
		space  Space
		after  [16]float32
	}
	fill(&g)
	want := g
	// Every key is on a list of two codes behind which there are others.
	entries, lists, codes := make([]uint32, 6561), make([]uint16, 18), []uint16{0}
	for i := range entries {
		entries[i] = 2
	}
	for i := range lists {
		lists[i] = 0xaaaa >> i
	}
	odd := split(&g.lanes, &space.space, 1e-7) | s.PlaceIQ1(&g.lanes, group/8, &entries[0], &lists[0], &codes[0])
	if odd != 0 || g.before != want.before || g.after != want.after || space.before != [16]float32{} || space.after != space.before ||
		!same(g.lanes[:RowSigma], want.lanes[:RowSigma]) || !same(g.lanes[rowBehindIQ1:], want.lanes[rowBehindIQ1:]) {
		t.Errorf("%s, IQ1 groups of %d: odd lanes %b, or memory beyond the results changes", s.Name, group, odd)
	}
	for lane := range Groups {
		for c := range group / 8 {
			if code := uint16(math.Float32bits(g.lanes[RowCodes+c][lane])); code != lists[0] && code != lists[1] {
				t.Fatalf("%s, IQ1 groups of %d: lane %d has code %#x, which is not on the list", s.Name, group, lane, code)
			}
		}
	}
	guardSumsIQ1(t, s)
}

// rowBehindIQ1 is behind the rows that the searches of IQ1 types use.
const rowBehindIQ1 = RowShift + 2

// guardSumsIQ1 checks the sums of points that are x themselves, one element of
// which weighs more.
func guardSumsIQ1(t *testing.T, s *Set) {
	x, q := make([]float32, 8*256), make([]float32, 8*256)
	for i := range x {
		x[i], q[i] = float32(i%3-1), 1
	}
	var cells [32]CellIQ1
	var sigma [8]float32
	for c := range cells {
		for b := range 8 {
			for i := range 8 {
				cells[c].Code[b] |= uint32((256*b+8*c+i)%3) << (2 * i)
			}
			cells[c].Scale[b] = 1
		}
	}
	for b := range sigma {
		sigma[b] = 3 // with x² = 1 a weight of 2
		q[256*b] = 2
	}
	var space Space
	for _, importance := range []*float32{nil, &q[0]} {
		var sums [4][8]float32
		s.SumsIQ1(&sums[1], &sums[2], &x[0], importance, &sigma, &cells, &space)
		for b := range 8 {
			var want float32
			for i, v := range x[256*b:][:256] {
				w := v * v
				if importance != nil {
					w *= 2 * q[256*b+i]
				}
				want += w
			}
			if sums[1][b] != want || sums[2][b] != want || sums[0][b] != 0 || sums[3][b] != 0 {
				t.Fatalf("%s SumsIQ1: %v at %d, want %v between zeros", s.Name, sums, b, want)
			}
		}
	}
}

// guardUnpack checks what is around the results of blocks of 32 and of 256, at
// odd addresses: behind the rows, behind short ones, and minimums of types that
// have none.
func guardUnpack(t *testing.T, s *Set) {
	u := &s.Unpack
	for _, c := range []struct {
		name        string
		unpack      Unpacker
		size, block int
		mins        bool
	}{
		{"Q4_0", u.Q4_0, 18, 32, false}, {"Q4_1", u.Q4_1, 20, 32, true}, {"Q5_0", u.Q5_0, 22, 32, false},
		{"Q5_1", u.Q5_1, 24, 32, true}, {"Q8_0", u.Q8_0, 34, 32, false}, {"IQ4_NL", u.IQ4_NL, 18, 32, false},
		{"MXFP4", u.MXFP4, 17, 32, false}, {"Q2_K", u.Q2_K, 84, 256, true}, {"Q3_K", u.Q3_K, 110, 256, false},
		{"Q4_K", u.Q4_K, 144, 256, true}, {"Q5_K", u.Q5_K, 176, 256, true}, {"Q6_K", u.Q6_K, 210, 256, false},
		{"IQ4_XS", u.IQ4_XS, 136, 256, false},
	} {
		for blocks := 1; blocks <= 256/c.block; blocks++ {
			const rows, guard, mark = 3, 16, 0xa5
			stride := blocks*c.size + 5
			src := make([]byte, rows*stride+1)
			codes, scales, mins := make([]byte, rows*256+2*guard), make([]float32, rows*16+2*guard), make([]float32, rows*16+2*guard)
			for i := range codes {
				codes[i] = mark
			}
			for i := range scales {
				scales[i], mins[i] = math.Pi, math.Pi
			}
			c.unpack(&codes[guard], &scales[guard], &mins[guard], &src[1], stride, rows, blocks)
			within := func(i, row, length int) bool {
				i -= guard
				return i >= 0 && i < rows*row && i%row < length
			}
			for i, v := range codes {
				if (v != mark) != within(i, 256, blocks*c.block) {
					t.Fatalf("%s %s, %d blocks: code %d is %d", s.Name, c.name, blocks, i-guard, v)
				}
			}
			for i := range scales {
				inside := within(i, 16, blocks*c.block/16)
				if (scales[i] != math.Pi) != inside || (mins[i] != math.Pi) != (inside && c.mins) {
					t.Fatalf("%s %s, %d blocks: scale %d is %v, minimum %v", s.Name, c.name, blocks, i-guard, scales[i], mins[i])
				}
			}
		}
	}
}

// guardExpand checks all numbers of up to three groups, and those around.
func guardExpand(t *testing.T, s *Set) {
	for groups := 1; groups <= 3; groups++ {
		codes, scales, mins := make([]byte, 16*groups+1), make([]float32, groups), make([]float32, groups)
		for g := range scales {
			scales[g], mins[g] = float32(g+2), float32(g)
		}
		for i := range codes {
			codes[i] = byte(37 * i)
		}
		dst := make([]float32, 16*groups+32)
		s.Expand(&dst[16], &codes[1], &scales[0], &mins[0], groups)
		for i, v := range dst {
			want := float32(0)
			if k := i - 16; k >= 0 && k < 16*groups {
				want = float32(scales[k/16]*float32(int8(codes[1+k]))) - mins[k/16]
			}
			if v != want {
				t.Fatalf("%s Expand, %d groups: number %d is %v, want %v", s.Name, groups, i-16, v, want)
			}
		}
	}
}
