package main

import (
	"math"
	"slices"
	"sync"

	. "github.com/mmcloughlin/avo/build"
	. "github.com/mmcloughlin/avo/operand"
	"github.com/mmcloughlin/avo/reg"
)

// iq1 writes the searches of IQ1_S and IQ1_M.
func iq1() {
	for _, s := range sets {
		split{isa: s, cells: 4}.write("splitIQ1S", "sort and split32")
		split{isa: s, cells: 2}.write("splitIQ1M", "sort and split16")
		levels3(s).placeIQ1()
	}
	sumsIQ1()
}

// split is the state of the search for the best division of groups, one group
// per lane and one vector of lanes at a time, while it is written.
//
// Besides Lanes it works in a space of vectors. Keys stand for the elements
// while they are sorted: doubles, two vectors of them for each element, that
// hold the value and, in the five lowest bits, which a float leaves empty, the
// element's number. So keys are in the order of value and number, if negative
// ones, whose order is that of magnitudes turned round, hold the bits of the
// number inverted. No two are equal.
type split struct {
	isa
	cells       int // of eight elements
	base, space reg.GPVirtual
	odd         reg.GPVirtual // lanes left to the portable code, those of the last vector on top
}

// Vectors of the space.
const (
	spaceKeys   = 0
	spaceSorted = spaceKeys + 2*32      // and infinity behind them
	spaceEnds   = spaceSorted + 2*33    // the ends of parts, endLen vectors each
	spaceBest   = spaceEnds + 33*endLen // the best division, as i1 + 256·i2 + 65536·shifts
	spaceScale  = spaceBest + 1         // its scale
	spaceSizes  = spaceBest + 2         // Σ|w·x| and Σw
	spaceTop    = spaceBest + 4         // the largest |x|
	spaceTotals = spaceBest + 5         // of sumsM, four
	spaceLen    = spaceTotals + 4
	endLen      = 10
)

func (s split) elements() int { return 8 * s.cells }

// in addresses a vector of the space, from p, which points to its beginning.
func (s split) in(p reg.GPVirtual, vector int) Mem { return Mem{Base: p, Disp: vector * s.size()} }

func (s split) write(name, equal string) {
	if spaceLen*16 > 8192 {
		panic("the space is too small")
	}
	s.text(name, "func(l *[128][32]float32, space *[8192]float32, epsilon float32) uint32",
		"quant.groupIQ1."+equal+" in each lane, from X and W to Scale, Shift",
		"and the keys of the cells in Codes. Bit k of the result says that lane k met",
		"numbers it does not handle and holds nothing.")
	s.base, s.space, s.odd = GP64(), GP64(), GP32()
	Load(Param("l"), s.base)
	Load(Param("space"), s.space)
	XORL(s.odd, s.odd)
	n := GP64()
	MOVQ(U32(uint32(32/s.lanes)), n)
	var accept func()
	repeat("vector", n, func() {
		s.measure()
		s.keys()
		s.sort()
		if s.cells == 4 {
			s.prefixS()
		} else {
			s.prefixM()
		}
		score := s.seed()
		accept = s.search(score)
		s.digits()
		ADDQ(U32(uint32(s.size())), s.base)
	})
	Store(s.odd, ReturnIndex(0))
	s.ret()
	accept()
}

// rows runs body for each element; p and q walk along with the rows of Lanes
// and of keys, starting at vector first of the space.
func (s split) rows(label string, first int, body func(p, q reg.GPVirtual)) {
	p, q, n := GP64(), GP64(), GP64()
	MOVQ(s.base, p)
	LEAQ(s.in(s.space, first), q)
	MOVQ(U32(uint32(s.elements())), n)
	repeat(label, n, func() {
		body(p, q)
		ADDQ(U32(rowBytes), p)
		ADDQ(U32(uint32(2*s.size())), q)
	})
}

const (
	// largest bounds sums so that nothing derived from them but squares and
	// scores overflows, and those only where they do in the portable code.
	largest = 1 << 100
	// smallest bounds weights and products w·x other than 0 from below, so
	// that an eighth of their sums, and a 64th, is exact.
	smallest = 1.0 / (1 << 100)
)

// measure computes what tells odd lanes: those whose sums or weights are not
// within bounds. A group below epsilon, which counts as zeros, is never odd.
func (s split) measure() {
	sums, weights, top, signs, least := s.vec(), s.vec(), s.vec(), s.vec(), s.bits(signless)
	for _, v := range []reg.VecVirtual{sums, weights, top, signs} {
		s.zero(v)
	}
	positive, minus := s.bits(signless), s.bits(0xffffffff)
	s.rows(s.label("measure"), spaceKeys, func(p, _ reg.GPVirtual) {
		x, w := s.load(s.at(p, rowX, 0)), s.load(s.at(p, rowW, 0))
		wx := s.vec()
		VMULPS(x, w, wx)
		s.abs(x, positive)
		VPMAXUD(x, top, top)
		s.abs(wx, positive)
		VADDPS(wx, sums, sums)
		VADDPS(w, weights, weights)
		s.orBits(w, signs)
		if s.cells == 4 {
			VPADDD(minus, wx, wx)
			VPMINUD(wx, least, least)
			VPADDD(minus, w, w)
			VPMINUD(w, least, least)
		}
	})
	odd := s.cmp(notLess, sums, s.number(largest))
	s.or(odd, s.cmp(notLess, weights, s.number(largest)))
	s.or(odd, s.above(s.zero(s.vec()), signs))
	if s.cells == 4 {
		s.or(odd, s.above(s.bits(math.Float32bits(smallest)-1), least))
	} else {
		// Here nothing is scaled, but B could be off where all is subnormal.
		small := s.cmp(less, weights, s.number(smallest))
		s.and(small, s.cmp(greater, weights, s.zero(s.vec())))
		s.or(odd, small)
	}
	epsilon := s.param("epsilon")
	s.and(odd, s.cmp(notLess, top, epsilon))
	bits := s.lanesOf(odd)
	SHRL(U8(uint8(s.lanes)), s.odd)
	SHLL(U8(uint8(32-s.lanes)), bits)
	ORL(bits, s.odd)
	VMOVUPS(sums, s.in(s.space, spaceSizes))
	VMOVUPS(weights, s.in(s.space, spaceSizes+1))
	VMOVUPS(top, s.in(s.space, spaceTop))
}

// Integer operations whose names differ by width.

func (s isa) orBits(a Op, dst reg.VecVirtual) {
	if s.wide() {
		VPORQ(a, dst, dst)
	} else {
		VPOR(a, dst, dst)
	}
}

func (s isa) andBits(a Op, dst reg.VecVirtual) {
	if s.wide() {
		VPANDQ(a, dst, dst)
	} else {
		VPAND(a, dst, dst)
	}
}

func (s isa) xorBits(a Op, dst reg.VecVirtual) {
	if s.wide() {
		VPXORQ(a, dst, dst)
	} else {
		VPXOR(a, dst, dst)
	}
}

// negative64 sets dst to all ones where a 64-bit number is negative, else to 0.
func (s isa) negative64(v, dst reg.VecVirtual) {
	if s.wide() {
		VPSRAQ(U8(63), v, dst)
		return
	}
	VPCMPGTQ(v, s.zero(dst), dst)
}

// low returns the lower half of a vector.
func (s isa) low(v reg.VecVirtual) reg.Register {
	if s.wide() {
		return v.AsY()
	}
	return v.AsX()
}

// halfVec returns a vector of half the width.
func (s isa) halfVec() reg.VecVirtual {
	if s.wide() {
		return YMM()
	}
	return XMM()
}

// upper returns the upper half of v.
func (s isa) upper(v reg.VecVirtual) reg.VecVirtual {
	h := s.halfVec()
	if s.wide() {
		VEXTRACTI64X4(U8(1), v, h)
	} else {
		VEXTRACTI128(U8(1), v, h)
	}
	return h
}

// narrow returns the 64-bit integers of two vectors, cut to 32 bits, in one.
func (s isa) narrow(a, b reg.VecVirtual) reg.VecVirtual {
	v := s.vec()
	if s.wide() {
		h := YMM()
		s.zero(v) // avo does not know that writing the lower half clears the upper
		VPMOVQD(a, v.AsY())
		VPMOVQD(b, h)
		VINSERTI64X4(U8(1), h, v, v)
		return v
	}
	VSHUFPS(U8(0x88), b, a, v)
	VPERMQ(U8(0xd8), v, v)
	return v
}

// narrowFloats is narrow for doubles.
func (s isa) narrowFloats(a, b reg.VecVirtual) reg.VecVirtual {
	v, h := s.zero(s.vec()), s.halfVec()
	if s.wide() {
		VCVTPD2PS(a, v.AsY())
		VCVTPD2PS(b, h)
		VINSERTF64X4(U8(1), h, v, v)
		return v
	}
	VCVTPD2PSY(a, v.AsX())
	VCVTPD2PSY(b, h)
	VINSERTF128(U8(1), h, v, v)
	return v
}

// Constants of 64 bits.
var (
	lowBits64  = repeated("low64", 31, 0)
	highs64    = repeated("high64", 0xffffffe0, 0xffffffff)
	one64      = repeated("one64", 1, 0)
	infinity64 = repeated("infinity64", 0, 0x7ff00000)
)

// keys sets the keys, as they come and to be sorted.
func (s split) keys() {
	number, one, low, zero := s.zero(s.vec()), s.load(one64()), s.load(lowBits64()), s.zero(s.vec())
	s.rows(s.label("key"), spaceKeys, func(p, q reg.GPVirtual) {
		for h := range 2 {
			key, mask := s.vec(), s.vec()
			m := s.at(p, rowX, 0)
			m.Disp += h * s.size() / 2
			VCVTPS2PD(m, key)
			VADDPD(zero, key, key) // −0 is 0
			s.negative64(key, mask)
			s.andBits(low, mask)
			s.xorBits(number, mask)
			s.orBits(mask, key)
			VMOVUPS(key, s.in(q, h))
			VMOVUPS(key, s.in(q, spaceSorted-spaceKeys+h))
		}
		VPADDQ(one, number, number)
	})
	last := s.load(infinity64())
	for h := range 2 {
		VMOVUPS(last, s.in(s.space, spaceSorted+2*s.elements()+h))
	}
}

// exchange is a step of a sorting network: the rows are put in order.
type exchange struct{ a, b, depth int }

// network returns Batcher's odd-even merge sort of n rows, by depth.
func network(n int) []exchange {
	var steps []exchange
	depth := make([]int, n)
	swap := func(a, b int) {
		d := max(depth[a], depth[b])
		steps = append(steps, exchange{a, b, d})
		depth[a], depth[b] = d+1, d+1
	}
	var merge func(first, n, stride int)
	var sort func(first, n int)
	merge = func(first, n, stride int) {
		if 2*stride >= n {
			swap(first, first+stride)
			return
		}
		merge(first, n, 2*stride)
		merge(first+stride, n, 2*stride)
		for i := first + stride; i+stride < first+n; i += 2 * stride {
			swap(i, i+stride)
		}
	}
	sort = func(first, n int) {
		if n > 1 {
			sort(first, n/2)
			sort(first+n/2, n/2)
			merge(first, n, 1)
		}
	}
	sort(0, n)
	slices.SortStableFunc(steps, func(x, y exchange) int { return x.depth - y.depth })
	return steps
}

// sort sorts the keys, following a table of pairs of rows.
func (s split) sort() {
	steps := network(s.elements())
	table := s.pairs("network", len(steps), func(i int) (a, b int) {
		return steps[i].a * 2 * s.size(), steps[i].b * 2 * s.size()
	})
	sorted := GP64()
	LEAQ(s.in(s.space, spaceSorted), sorted)
	s.eachPair(table, len(steps), func(a, b reg.GPVirtual) {
		for h := range 2 {
			at := func(row reg.GPVirtual) Mem {
				return Mem{Base: sorted, Index: row, Scale: 1, Disp: h * s.size()}
			}
			x, lower := s.load(at(a)), s.vec()
			y := s.load(at(b))
			VMINPD(y, x, lower)
			VMAXPD(y, x, y)
			VMOVUPS(lower, at(a))
			VMOVUPS(y, at(b))
		}
	})
}

// pairs writes a table of pairs of numbers of 16 bits.
func (s split) pairs(name string, n int, pair func(i int) (a, b int)) Mem {
	table := GLOBL(s.named(name), RODATA|NOPTR)
	for i := range n {
		a, b := pair(i)
		DATA(4*i, U16(a))
		DATA(4*i+2, U16(b))
	}
	return table
}

func (s split) named(name string) string {
	if s.cells == 4 {
		return name + "S" + s.name
	}
	return name + "M" + s.name
}

// eachPair runs body for the pairs of a table.
func (s split) eachPair(table Mem, n int, body func(a, b reg.GPVirtual)) {
	p, a, b, count := GP64(), GP64(), GP64(), GP64()
	LEAQ(table, p)
	MOVQ(U32(uint32(n)), count)
	repeat(s.label("pair"), count, func() {
		MOVWQZX(Mem{Base: p}, a)
		MOVWQZX(Mem{Base: p, Disp: 2}, b)
		body(a, b)
		ADDQ(U8(4), p)
	})
}

// inOrder runs body for the elements in order, with their number, weight and
// product w·x; end walks along with the ends behind the elements.
func (s split) inOrder(body func(number, w, wx reg.VecVirtual, end reg.GPVirtual)) {
	end := GP64()
	LEAQ(s.in(s.space, spaceEnds+endLen), end)
	lane, low, high := s.load(laneNumbers()), s.load(lowBits64()), s.load(highs64())
	s.rows(s.label("order"), spaceSorted, func(_, q reg.GPVirtual) {
		var numbers, values [2]reg.VecVirtual
		for h := range 2 {
			key := s.load(s.in(q, h))
			numbers[h], values[h] = s.vec(), key
			s.negative64(key, numbers[h])
			s.xorBits(key, numbers[h])
			s.andBits(low, numbers[h])
			s.andBits(high, key)
		}
		number, x := s.narrow(numbers[0], numbers[1]), s.narrowFloats(values[0], values[1])
		at, w := s.vec(), s.vec()
		VPSLLD(U8(5), number, at)
		VPADDD(lane, at, at)
		s.gatherFloats(Mem{Base: s.base, Disp: rowW * rowBytes, Index: at, Scale: 4}, w)
		VMULPS(w, x, x)
		body(number, w, x, end)
		ADDQ(U32(uint32(endLen*s.size())), end)
	})
}

// gatherFloats loads numbers from 32-bit indices.
func (s isa) gatherFloats(m Mem, dst reg.VecVirtual) {
	s.zero(dst) // lanes outside a mask stay, so avo takes it for an input
	if s.wide() {
		VGATHERDPS(m, s.allLanes(), dst)
	} else {
		mask := YMM()
		VBROADCASTSS(word(0xffffffff), mask)
		VGATHERDPS(mask, m, dst)
	}
}

// gatherDoubles loads doubles from 32-bit indices, half a vector of them.
func (s isa) gatherDoubles(m Mem, dst reg.VecVirtual) {
	s.zero(dst) // lanes outside a mask stay, so avo takes it for an input
	if s.wide() {
		VGATHERDPD(m, s.allLanes(), dst)
	} else {
		mask := YMM()
		VBROADCASTSS(word(0xffffffff), mask)
		VGATHERDPD(mask, m, dst)
	}
}

// allLanes returns the mask of all lanes, which gathering uses up.
func (s isa) allLanes() reg.OpmaskVirtual {
	k, g := K(), GP32()
	MOVL(U32(0xffff), g)
	KMOVW(g, k)
	return k
}

// ends runs body for all ends.
func (s split) ends(label string, body func(end reg.GPVirtual)) {
	end, n := GP64(), GP64()
	LEAQ(s.in(s.space, spaceEnds), end)
	MOVQ(U32(uint32(s.elements()+1)), n)
	repeat(s.label(label), n, func() {
		body(end)
		ADDQ(U32(uint32(endLen*s.size())), end)
	})
}

// Vectors of an end of IQ1_S: an eighth of the sum of w·x before it, a 64th of
// that of w, and what the digits 0 before it and 2 behind it add to A and B,
// with the shift up and down.
const (
	endX = iota
	endW
	endLastUpA
	endLastUpB
	endLastDownA
	endLastDownB
	endFirstUpA
	endFirstUpB
	endFirstDownA
	endFirstDownB
)

// prefixS sets the ends for IQ1_S.
func (s split) prefixS() {
	sx, sw := s.zero(s.vec()), s.zero(s.vec())
	VMOVUPS(sx, s.in(s.space, spaceEnds+endX))
	VMOVUPS(sw, s.in(s.space, spaceEnds+endW))
	s.inOrder(func(_, w, wx reg.VecVirtual, end reg.GPVirtual) {
		VADDPS(wx, sx, sx)
		VADDPS(w, sw, sw)
		VMOVUPS(sx, s.in(end, endX))
		VMOVUPS(sw, s.in(end, endW))
	})
	seven, nine := s.number(0.875), s.number(1.125)
	minusSeven, minusNine := s.number(-0.875), s.number(-1.125)
	eighth := s.number(0.125)
	s.ends("end", func(end reg.GPVirtual) {
		x, w, restX, restW, t := s.load(s.in(end, endX)), s.load(s.in(end, endW)), s.vec(), s.vec(), s.vec()
		VSUBPS(x, sx, restX)
		VSUBPS(w, sw, restW)
		for _, part := range []struct {
			at            int
			x, w, v0, abs reg.VecVirtual
		}{
			{endFirstUpA, x, w, minusSeven, seven},
			{endFirstDownA, x, w, minusNine, nine},
			{endLastUpA, restX, restW, nine, nine},
			{endLastDownA, restX, restW, seven, seven},
		} {
			VMULPS(part.v0, part.x, t)
			VMOVUPS(t, s.in(end, part.at))
			VMULPS(part.abs, part.w, t)
			VMULPS(part.abs, t, t)
			VMOVUPS(t, s.in(end, part.at+1))
		}
		VMULPS(eighth, x, x)
		VMULPS(eighth, w, w)
		VMULPS(eighth, w, w)
		VMOVUPS(x, s.in(end, endX))
		VMOVUPS(w, s.in(end, endW))
	})
}

// sumsS returns A and B of a division with the shift up and down; one says
// where the vectors of the first end are, at which digit 1 begins.
func (s split) sumsS(first func(vector int) Op, last func(vector int) Mem) (a, b []reg.VecVirtual) {
	x, w, upB, downA, upA := s.load(last(endX)), s.load(last(endW)), s.vec(), s.vec(), s.vec()
	VSUBPS(first(endX), x, x)
	VSUBPS(first(endW), w, w)
	VADDPS(first(endFirstUpA), x, upA)
	VADDPS(last(endLastUpA), upA, upA)
	VADDPS(first(endFirstUpB), w, upB)
	VADDPS(last(endLastUpB), upB, upB)
	if m, ok := first(endFirstDownA).(Mem); ok {
		VMOVUPS(m, downA)
		VSUBPS(x, downA, downA)
	} else {
		VSUBPS(x, first(endFirstDownA), downA)
	}
	VADDPS(last(endLastDownA), downA, downA)
	VADDPS(first(endFirstDownB), w, w)
	VADDPS(last(endLastDownB), w, w)
	return []reg.VecVirtual{upA, downA}, []reg.VecVirtual{upB, w}
}

// Vectors of an end of IQ1_M: the sums of w·x before it, of both cells, and the
// terms of B, with the shift up and down: those of i2, the beginning of digit
// 2, and those of i1. Those of w are needed only to compute these.
const (
	endP      = 0
	endSecond = 2
	endFirst  = 6
	endPW     = endFirst
)

// prefixM sets the ends for IQ1_M.
func (s split) prefixM() {
	p, pw, zero := s.vecs(2), s.vecs(2), s.zero(s.vec())
	for k := range p {
		s.zero(p[k])
		s.zero(pw[k])
		VMOVUPS(zero, s.in(s.space, spaceEnds+endP+k))
		VMOVUPS(zero, s.in(s.space, spaceEnds+endPW+k))
	}
	eight := s.bits(8)
	s.inOrder(func(number, w, wx reg.VecVirtual, end reg.GPVirtual) {
		first := s.above(eight, number)
		for k, sum := range []struct{ v, p, pw reg.VecVirtual }{{wx, p[0], p[1]}, {w, pw[0], pw[1]}} {
			t, at := s.zero(s.vec()), [2]int{endP, endPW}[k]
			s.choose(first, sum.v, t)
			VADDPS(t, sum.p, sum.p)
			VMOVUPS(sum.p, s.in(end, at))
			s.choose(first, zero, sum.v)
			VADDPS(sum.v, sum.pw, sum.pw)
			VMOVUPS(sum.pw, s.in(end, at+1))
		}
	})
	var first, second [2]reg.VecVirtual
	var whole [2][2]reg.VecVirtual
	for shift, v := range shiftsIQ1 {
		last := s.number(v[2])
		first[shift], second[shift] = s.number(v[0]*v[0]-v[1]*v[1]), s.number(v[1]*v[1]-v[2]*v[2])
		for k := range p {
			t := s.vec()
			VMULPS(last, p[k], t)
			VMOVUPS(t, s.in(s.space, spaceTotals+2*k+shift))
			whole[k][shift] = s.vec()
			VMULPS(last, pw[k], whole[k][shift])
			VMULPS(last, whole[k][shift], whole[k][shift])
		}
	}
	s.ends("end", func(end reg.GPVirtual) {
		sums := []reg.VecVirtual{s.load(s.in(end, endPW)), s.load(s.in(end, endPW+1))}
		for k, sum := range sums {
			for shift := range shiftsIQ1 {
				t := s.vec()
				VMULPS(first[shift], sum, t)
				VADDPS(t, whole[k][shift], t)
				VMOVUPS(t, s.in(end, endFirst+2*k+shift))
				VMULPS(second[shift], sum, t)
				VMOVUPS(t, s.in(end, endSecond+2*k+shift))
			}
		}
	})
}

// shiftsIQ1 are the values of the digits with the shift up and down.
var shiftsIQ1 = [2][3]float32{{-0.875, 0.125, 1.125}, {-1.125, -0.125, 0.875}}

// sumsM returns A and B of a division and of each cell: with the shift up and
// down of cell 0, and then of cell 1.
func (s split) sumsM(first, last func(vector int) Mem) (a, b []reg.VecVirtual) {
	for k := range 2 {
		p := s.load(last(endP + k))
		VADDPS(first(endP+k), p, p)
		for shift := range 2 {
			t, u := s.load(s.in(s.space, spaceTotals+2*k+shift)), s.load(first(endFirst+2*k+shift))
			VSUBPS(p, t, t)
			VADDPS(last(endSecond+2*k+shift), u, u)
			a, b = append(a, t), append(b, u)
		}
	}
	return a, b
}

// shifted is a choice of shifts, a bit for each cell that is shifted down, with
// the sums A and B that it has.
type shifted struct {
	shifts uint32
	sums   func() (a, b reg.VecVirtual)
}

// choices returns the choices of shifts for a division, in the order in which
// they are tried.
func (s split) choices(first func(vector int) Op, last func(vector int) Mem) []shifted {
	if s.cells == 4 {
		a, b := s.sumsS(first, last)
		return []shifted{
			{0, func() (x, y reg.VecVirtual) { return a[0], b[0] }},
			{15, func() (x, y reg.VecVirtual) { return a[1], b[1] }},
		}
	}
	a, b := s.sumsM(func(vector int) Mem { return first(vector).(Mem) }, last)
	both := func(shift0, shift1 int) shifted {
		return shifted{uint32(shift0 + 2*shift1), func() (x, y reg.VecVirtual) {
			x, y = s.vec(), s.vec()
			VADDPS(a[2+shift1], a[shift0], x)
			VADDPS(b[2+shift1], b[shift0], y)
			return x, y
		}}
	}
	return []shifted{both(0, 0), both(0, 1), both(1, 0), both(1, 1)}
}

// sample returns the divisions, as i1 and i2, that the search tries first: those
// of the kind that mostly wins.
func (s split) sample() (divisions [][2]int) {
	for _, i1 := range []int{1, 2, 3} {
		for _, i2 := range []int{5, 6, 7} {
			divisions = append(divisions, [2]int{s.elements() / 8 * i1, s.elements() / 8 * i2})
		}
	}
	return divisions
}

// seed returns the score to start the search with. It is the largest float
// with a minus, or, where this is sure to find the same division, a little
// below the best score of a few divisions: most of the others then never look
// like the best so far.
//
// Why the same: let r = A²/B be the exact score of a division, L the computed
// score of the best of the sample, and ε = 2^−24. If nothing overflows or is too
// small for ε to bound its error, which is made sure of, then a division is
// accepted if r > (1+3ε)·score, refused if r < (1−3ε)·score, and the score it
// leaves is within (1±3ε)·r. There are at most 1122 divisions, so that between
// (1−2^−9)·L and (1−3ε)·L, about 2^15·ε apart, there is a T with no r within
// (1±6ε)·T. Take the first division with an r above; the best of the sample is
// such a one. All scores before it, also that at the start, are below (1−2ε)·T,
// so that it is accepted whatever came before. From there on all is the same.
//
// The largest A is below 4·Σ|w·x|, and B is above Σw/100.
func (s split) seed() reg.VecVirtual {
	divisions := s.sample()
	bytes := endLen * s.size()
	table := s.pairs("sample", len(divisions), func(i int) (a, b int) { return divisions[i][0] * bytes, divisions[i][1] * bytes })
	best := s.zero(s.vec())
	s.eachPair(table, len(divisions), func(i1, i2 reg.GPVirtual) {
		at := func(end reg.GPVirtual) func(vector int) Mem {
			return func(vector int) Mem {
				m := s.in(s.space, spaceEnds+vector)
				m.Index, m.Scale = end, 1
				return m
			}
		}
		first := at(i1)
		for _, c := range s.choices(func(vector int) Op { return first(vector) }, at(i2)) {
			a, b := c.sums()
			VDIVPS(b, a, b)
			VMULPS(a, b, b)
			VMAXPS(best, b, best) // not NaN
		}
	})
	score, t, sums, weights := s.number(-math.MaxFloat32), s.vec(), s.load(s.in(s.space, spaceSizes)), s.load(s.in(s.space, spaceSizes+1))
	sure := s.cmp(greater, best, s.number(0x1p-90))
	VMULPS(weights, best, t)
	s.and(sure, s.cmp(greater, t, s.number(0x1p-110)))
	s.and(sure, s.cmp(greater, weights, s.number(0x1p-60)))
	s.and(sure, s.cmp(less, weights, s.number(0x1p60)))
	s.and(sure, s.cmp(less, sums, s.number(0x1p27)))
	VMULPS(s.number(1-0x1p-9), best, best)
	s.choose(sure, best, score)
	VMOVUPS(s.bits(0xffffffff), s.in(s.space, spaceBest))
	VMOVUPS(s.zero(t), s.in(s.space, spaceScale))
	return score
}

// search tries all divisions. It returns what writes the code that accepts,
// which is out of the way because it is seldom needed.
func (s split) search(score reg.VecVirtual) (accept func()) {
	bytes := uint32(endLen * s.size())
	i1, i2, end, code, start := GP64(), GP64(), GP64(), GP32(), GP32()
	LEAQ(s.in(s.space, spaceEnds), i1)
	LEAQ(s.in(s.space, spaceEnds+endLen*(s.elements()+1)), end)
	XORL(start, start)
	outer, inner, next, better := s.label("first"), s.label("second"), s.label("next"), s.label("better")
	Label(outer)
	first := func(vector int) Op { return s.in(i1, vector) }
	if s.cells == 4 {
		kept := map[int]reg.VecVirtual{}
		for _, v := range []int{endX, endW, endFirstUpA, endFirstUpB, endFirstDownA, endFirstDownB} {
			kept[v] = s.load(s.in(i1, v))
		}
		first = func(vector int) Op { return kept[vector] }
	}
	MOVQ(i1, i2)
	MOVL(start, code)
	Label(inner)
	choices := s.choices(first, func(vector int) Mem { return s.in(i2, vector) })
	var some mask
	for i, c := range choices {
		a, b := c.sums()
		x, y := s.vec(), s.vec()
		VMULPS(a, a, x)
		VMULPS(b, score, y)
		m := s.cmp(greater, x, y)
		if i == 0 {
			some = m
		} else {
			s.or(some, m)
		}
	}
	found := s.lanesOf(some)
	TESTL(found, found)
	JNZ(LabelRef(better))
	Label(next)
	ADDL(U32(1<<8), code)
	ADDQ(U32(bytes), i2)
	CMPQ(i2, end)
	JB(LabelRef(inner))
	ADDL(U32(1<<8+1), start)
	ADDQ(U32(bytes), i1)
	CMPQ(i1, end)
	JB(LabelRef(outer))
	return func() {
		Label(better)
		for _, c := range choices {
			a, b := c.sums()
			s.accept(a, b, score, code, c.shifts)
		}
		JMP(LabelRef(next))
	}
}

// accept makes a division with these sums the best where it is better: quant's
// splitIQ1.better. B is positive unless all is zero.
func (s split) accept(a, b, score reg.VecVirtual, code reg.GPVirtual, shifts uint32) {
	x, y := s.vec(), s.vec()
	VMULPS(a, a, x)
	VMULPS(b, score, y)
	m := s.cmp(greater, x, y)
	keep := func(vector int, with Op) {
		kept := s.load(s.in(s.space, vector))
		s.choose(m, with, kept)
		VMOVUPS(kept, s.in(s.space, vector))
	}
	VDIVPS(b, a, y)
	keep(spaceScale, y)
	VMULPS(a, y, y)
	s.choose(m, y, score)
	c, v := GP32(), s.vec()
	LEAL(Mem{Base: code.As64(), Disp: int(shifts << 16)}, c)
	VMOVD(c, v.AsX())
	VPBROADCASTD(v.AsX(), v)
	keep(spaceBest, v)
}

// digits writes the results: quant.groupIQ1.setDigits, as keys of the cells.
func (s split) digits() {
	best, scale, top, zero := s.load(s.in(s.space, spaceBest)), s.load(s.in(s.space, spaceScale)), s.load(s.in(s.space, spaceTop)), s.zero(s.vec())
	none := s.above(zero, best)
	epsilon := s.param("epsilon")
	s.or(none, s.cmp(less, top, epsilon))
	s.choose(none, zero, best)
	s.choose(none, zero, scale)
	negative := s.cmp(less, scale, zero)
	s.abs(scale, s.bits(signless))
	VMOVUPS(scale, s.at(s.base, rowScale, 0))
	shifts, t := s.vec(), s.vec()
	VPSRLD(U8(16), best, shifts)
	VPSUBD(shifts, s.bits(1<<s.cells-1), t)
	s.choose(negative, t, shifts)
	VMOVUPS(shifts, s.at(s.base, rowShift, 0))
	var begin [2][2]reg.VecVirtual // keys of the first elements with digits 1 and 2
	for i := range begin {
		at := s.vec()
		VPSRLD(U8(uint8(8*i)), best, at)
		s.andBits(s.bits(0xff), at)
		begin[i] = s.sorted(at)
	}
	q, p, n, one := GP64(), GP64(), GP64(), s.load(one64())
	MOVQ(s.base, p)
	LEAQ(s.in(s.space, spaceKeys), q)
	MOVQ(U32(uint32(s.cells)), n)
	repeat(s.label("cell"), n, func() {
		keys := s.vecs(2)
		for h, key := range keys {
			s.zero(key)
			for i := 7; i >= 0; i-- {
				if i < 7 {
					t := s.vec()
					VPADDQ(key, key, t)
					VPADDQ(t, key, key)
				}
				element := s.load(s.in(q, 2*i+h))
				s.countNotLess(element, begin[0][h], one, key)
				s.countNotLess(element, begin[1][h], one, key)
			}
		}
		key, t := s.narrow(keys[0], keys[1]), s.vec()
		VPSUBD(key, s.bits(6560), t) // 2 in all digits
		s.choose(negative, t, key)
		s.choose(none, s.bits(0xffffffff), key)
		VMOVUPS(key, s.at(p, rowCodes, 0))
		ADDQ(U32(rowBytes), p)
		ADDQ(U32(uint32(8*2*s.size())), q)
	})
}

// sorted returns the keys at these places in order.
func (s split) sorted(places reg.VecVirtual) (keys [2]reg.VecVirtual) {
	shift := uint8(3)
	if s.wide() {
		shift = 4
	}
	VPSLLD(U8(shift), places, places)
	VPADDD(s.load(laneNumbers()), places, places)
	high := s.upper(places)
	for h, at := range []reg.Register{s.low(places), high} {
		keys[h] = s.vec()
		m := s.in(s.space, spaceSorted)
		m.Index, m.Scale = at, 8
		s.gatherDoubles(m, keys[h])
	}
	return keys
}

// countNotLess adds one where a ≥ b, as doubles.
func (s split) countNotLess(a, b, one, count reg.VecVirtual) {
	if s.wide() {
		k := K()
		VCMPPD(U8(notLess), b, a, k)
		VPADDQ(one, count, k, count)
		return
	}
	m := YMM()
	VCMPPD(U8(notLess), b, a, m)
	VPSUBQ(m, count, count)
}

// valuesIQ1 writes the values of the digits, with the shift up and then down.
func valuesIQ1() Mem {
	m := GLOBL("valuesIQ1", RODATA|NOPTR)
	for shift, values := range shiftsIQ1 {
		for l, v := range values {
			DATA(12*shift+4*l, F32(v))
		}
	}
	return m
}

var (
	valuesMem = sync.OnceValue(valuesIQ1)
	strides   = repeated("strides", 0, 32, 64, 96, 128, 160, 192, 224)
)

// place is the state of placeIQ1 while it is written.
type place struct {
	digits
	lane, odd reg.GPVirtual
}

// placeIQ1 writes the search for the points of the cells.
func (d digits) placeIQ1() {
	d.text("placeIQ1", "func(l *[128][32]float32, cells int, entries *uint32, lists, codes *uint16) uint32",
		"quant.groupIQ1.place in each lane: it makes the keys in Codes codes of",
		"points, and Scale that which is best for them. entries, lists and codes are those of",
		"quant.gridCells. Bit k of the result says that lane k holds nothing: all distances",
		"were NaN or overflowed. Lanes with keys below 0 are left alone.")
	f := place{digits: d, lane: GP64(), odd: GP32()}
	XORL(f.odd, f.odd)
	base, n := GP64(), GP64()
	Load(Param("l"), base)
	MOVQ(base, f.lane)
	MOVQ(U32(32), n)
	repeat("lane", n, func() {
		f.points()
		ADDQ(U8(4), f.lane)
	})
	Load(Param("l"), base)
	MOVQ(U32(uint32(32/d.lanes)), n)
	repeat("vector", n, func() {
		f.rescale(base)
		ADDQ(U32(uint32(d.size())), base)
	})
	Store(f.odd, ReturnIndex(0))
	d.ret()
}

// points finds the points of a lane and says in Off whether one was not where
// its key says: with all ones, or zeros.
func (f *place) points() {
	elements, row, n := GP64(), GP64(), GP64()
	key, shifts, off, table := GP64(), GP32(), GP32(), GP64()
	XORL(off, off)
	RORL(U8(1), f.odd) // the bit of this lane is on top
	MOVLQSX(Mem{Base: f.lane, Disp: rowCodes * rowBytes}, key)
	TESTQ(key, key)
	JS(LabelRef("none"))
	MOVQ(f.lane, elements)
	MOVQ(f.lane, row)
	MOVL(Mem{Base: f.lane, Disp: rowShift * rowBytes}, shifts)
	Load(Param("cells"), n)
	Label("cell")
	code, entry := GP32(), GP32()
	MOVL(Mem{Base: row, Disp: rowCodes * rowBytes}, key.As32())
	Load(Param("entries"), table)
	MOVL(Mem{Base: table, Index: key, Scale: 4}, entry)
	TESTL(entry, entry)
	JS(LabelRef("grid"))
	MOVL(I32(-1), off)
	f.near(elements, shifts, entry, code)
	JMP(LabelRef("placed"))
	Label("grid")
	MOVWLZX(entry.As16(), entry)
	Load(Param("codes"), table)
	MOVWLZX(Mem{Base: table, Index: entry.As64(), Scale: 2}, code)
	Label("placed")
	MOVL(code, Mem{Base: row, Disp: rowCodes * rowBytes})
	SHRL(U8(1), shifts)
	ADDQ(U32(rowBytes), row)
	ADDQ(U32(8*rowBytes), elements)
	DECQ(n)
	JNZ(LabelRef("cell"))
	Label("none")
	MOVL(off, Mem{Base: f.lane, Disp: rowOff * rowBytes})
}

// near sets code to the neighbour that entry lists which is nearest.
func (f *place) near(elements, shifts, entry, code reg.GPVirtual) {
	lists, list, next, n, value := GP64(), GP64(), GP64(), GP64(), GP64()
	Load(Param("lists"), lists)
	MOVL(entry, list.As32())
	SHRL(U8(listBits), list.As32())
	LEAQ(Mem{Base: lists, Index: list, Scale: 2}, list)
	MOVQ(list, next)
	MOVL(entry, n.As32())
	ANDL(U32(1<<listBits-1), n.As32())
	MOVL(shifts, value.As32())
	ANDL(U8(1), value.As32())
	LEAQ(Mem{Base: value, Index: value, Scale: 2}, value)
	values := GP64()
	LEAQ(valuesMem(), values)
	LEAQ(Mem{Base: values, Index: value, Scale: 4}, values)
	at, least := f.nearest(next, n, f.tables(elements, values))
	VUCOMISS(word(math.Float32bits(math.MaxFloat32)), least.AsX())
	JCS(LabelRef("found"))
	XORQ(at, at)
	ORL(U32(1<<31), f.odd)
	Label("found")
	MOVWLZX(Mem{Base: list, Index: at, Scale: 2}, code)
}

// tables returns (w·e)·e for the elements of a cell, e being the difference of
// Scale times a value from x, each repeated over a vector: quant.cellTerms.
func (f *place) tables(elements, values reg.GPVirtual) []reg.VecVirtual {
	x, w, scale, stride := YMM(), YMM(), YMM(), YMM()
	VMOVUPS(strides(), stride)
	f.gatherFloats(Mem{Base: elements, Index: stride, Scale: 4}, x)
	f.gatherFloats(Mem{Base: elements, Disp: rowW * rowBytes, Index: stride, Scale: 4}, w)
	VBROADCASTSS(Mem{Base: f.lane, Disp: rowScale * rowBytes}, scale)
	var terms [3]reg.VecVirtual
	for l := range terms {
		e, t := YMM(), YMM()
		VBROADCASTSS(Mem{Base: values, Disp: 4 * l}, e)
		VMULPS(e, scale, e)
		VSUBPS(x, e, e)
		VMULPS(e, w, t)
		VMULPS(e, t, t)
		terms[l] = t
	}
	low01, high01, low2, high2 := YMM(), YMM(), YMM(), YMM()
	VUNPCKLPS(terms[1], terms[0], low01)
	VUNPCKHPS(terms[1], terms[0], high01)
	VUNPCKLPS(terms[2], terms[2], low2)
	VUNPCKHPS(terms[2], terms[2], high2)
	tables := make([]reg.VecVirtual, 8)
	for i := range 4 {
		t := f.zero(f.vec())
		from01, from2 := low01, low2
		if i >= 2 {
			from01, from2 = high01, high2
		}
		if i%2 == 0 {
			VUNPCKLPD(from2, from01, t.AsY())
		} else {
			VUNPCKHPD(from2, from01, t.AsY())
		}
		tables[i], tables[4+i] = f.vec(), f.vec()
		if f.wide() {
			VSHUFF32X4(U8(0x00), t, t, tables[i])
			VSHUFF32X4(U8(0x55), t, t, tables[4+i])
		} else {
			VPERM2F128(U8(0x00), t, t, tables[i])
			VPERM2F128(U8(0x11), t, t, tables[4+i])
		}
	}
	return tables
}

var minusOneToOne = repeated("minusOneToOne", math.Float32bits(-1), 0, math.Float32bits(1), 0)

// rescale sets the scales of lanes with points that were not where their keys
// say to A/B, if both are positive.
func (f *place) rescale(base reg.GPVirtual) {
	a, b, zero := f.zero(f.vec()), f.zero(f.vec()), f.zero(f.vec())
	shifts, values, one := f.load(f.at(base, rowShift, 0)), f.load(minusOneToOne()), f.bits(1)
	up, down := f.number(0.125), f.number(-0.125)
	p, row, n := GP64(), GP64(), GP64()
	MOVQ(base, p)
	MOVQ(base, row)
	Load(Param("cells"), n)
	repeat("sums", n, func() {
		code, shift, t := f.load(f.at(row, rowCodes, 0)), f.vec(), f.vec()
		VMOVAPS(shifts, t)
		f.andBits(one, t)
		VMOVAPS(up, shift)
		f.choose(f.above(t, zero), down, shift)
		for i := range 8 {
			q, w := f.vec(), f.vec()
			f.choice(code, values, q)
			VADDPS(shift, q, q)
			VMULPS(f.at(p, rowW+i, 0), q, w)
			VMULPS(f.at(p, rowX+i, 0), w, t)
			VADDPS(t, a, a)
			VMULPS(q, w, w)
			VADDPS(w, b, b)
			VPSRLD(U8(2), code, code)
		}
		VPSRLD(U8(1), shifts, shifts)
		ADDQ(U32(8*rowBytes), p)
		ADDQ(U32(rowBytes), row)
	})
	scale, fit := f.load(f.at(base, rowScale, 0)), f.vec()
	m := f.above(zero, f.load(f.at(base, rowOff, 0)))
	f.and(m, f.cmp(greater, a, zero))
	f.and(m, f.cmp(greater, b, zero))
	VDIVPS(b, a, fit)
	f.choose(m, fit, scale)
	VMOVUPS(scale, f.at(base, rowScale, 0))
}

// sumsIQ1 writes the sums over whole super-blocks, one per lane.
func sumsIQ1() {
	d := levels3(isa{name: "AVX2", lanes: 8})
	d.text("sumsIQ1", "func(a, b *[8]float32, x, q *float32, sigma *[8]float32, cells *[32]struct{Code [8]uint32; Shift, Scale [8]float32}, space *[8192]float32)",
		"quant.superIQ1.refit for eight super-blocks one after another.")
	q := GP64()
	Load(Param("q"), q)
	TESTQ(q, q)
	JZ(LabelRef("plain"))
	d.addCells(q)
	Label("plain")
	d.addCells(nil)
}

// addCells adds up the cells and returns; q is nil or the importance.
func (d digits) addCells(q reg.GPVirtual) {
	const super = 4 * 256
	x, upper, upperQ, stride, stride3 := GP64(), GP64(), GP64(), GP64(), GP64()
	cell, space, sigma, n := GP64(), GP64(), GP64(), GP64()
	Load(Param("x"), x)
	Load(Param("cells"), cell)
	Load(Param("space"), space)
	Load(Param("sigma"), sigma)
	LEAQ(Mem{Base: x, Disp: 4 * super}, upper)
	MOVQ(U32(super), stride)
	MOVQ(U32(3*super), stride3)
	if q != nil {
		LEAQ(Mem{Base: q, Disp: 4 * super}, upperQ)
	}
	MOVQ(U32(32), n)
	a, b, values := d.zero(d.vec()), d.zero(d.vec()), d.load(minusOneToOne())
	repeat(d.label("cell"), n, func() {
		if q != nil {
			d.tile(q, upperQ, stride, stride3, func(i int, v reg.VecVirtual) { VMOVUPS(v, Mem{Base: space, Disp: 32 * i}) })
		}
		code := d.load(Mem{Base: cell})
		d.tile(x, upper, stride, stride3, func(i int, v reg.VecVirtual) {
			w, point, t := d.vec(), d.vec(), d.vec()
			VMULPS(v, v, w)
			if q != nil {
				VADDPS(Mem{Base: sigma}, w, w)
				VSQRTPS(w, w)
				VMULPS(Mem{Base: space, Disp: 32 * i}, w, w)
			}
			d.choice(code, values, point)
			VPSRLD(U8(2), code, code)
			VADDPS(Mem{Base: cell, Disp: 32}, point, point)
			VMULPS(Mem{Base: cell, Disp: 64}, point, point)
			VMULPS(point, w, w)
			VMULPS(v, w, t)
			VADDPS(t, a, a)
			VMULPS(point, w, w)
			VADDPS(w, b, b)
		})
		ADDQ(U8(96), cell)
	})
	for i, sum := range []reg.VecVirtual{a, b} {
		to := GP64()
		Load(Param([]string{"a", "b"}[i]), to)
		VMOVUPS(sum, Mem{Base: to})
	}
	d.ret()
}
