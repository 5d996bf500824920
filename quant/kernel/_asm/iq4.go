package main

import (
	"math"

	. "github.com/mmcloughlin/avo/build"
	. "github.com/mmcloughlin/avo/operand"
	"github.com/mmcloughlin/avo/reg"
)

// iq4 writes the kernels of the types with sixteen uneven values.
func iq4() {
	for _, s := range sets {
		s.fitIQ4()
		s.codesIQ4()
		s.tableLosses()
	}
}

// valuesIQ4 are the values, as quant.tableIQ4.
var valuesIQ4 = [16]float32{-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113}

// Two neighbouring values meet at a limit: numbers from it on go to the upper
// one. There are fifteen limits, and the integer nearest to
//
//	v·(slope − bend·|v|) + shift
//
// numbers the one to compare v with, from −8 up, for |v| ≤ 134: the limits 7
// and 8 are the same. The curve passes from one limit to the next where v is
// so far from both that, for all inverse scales whose ratio is between 120/127
// and 134/127, the limit for v is right for their multiples of v too. No two
// limits are so near each other that this would not do; the rounding of the
// formula is a matter of a millionth, and its leeway 0.15.
const (
	slope = 0.0944
	bend  = 0.000276
	shift = -0.6364
)

// byLimit returns a table with the value of each limit: those from 0 to 7, and
// then those from −8 to −1.
func byLimit(name string, value func(limit int) float32) func() Mem {
	var bits [16]uint32
	for i := range bits {
		bits[i] = math.Float32bits(value((i + 8) % 16))
	}
	return repeated(name, bits[:]...)
}

var (
	lowerIQ4 = byLimit("lowerIQ4", func(i int) float32 { return valuesIQ4[min(i, 14)] })
	upperIQ4 = byLimit("upperIQ4", func(i int) float32 { return valuesIQ4[min(i, 14)+1] })
	// Nothing is beyond the second of the same limits.
	limitsIQ4 = byLimit("limitsIQ4", func(i int) float32 {
		if i == 15 {
			return float32(math.Inf(1))
		}
		return (valuesIQ4[i] + valuesIQ4[i+1]) / 2
	})
)

// limitIQ4 returns the number of the limit to compare v with.
func (s isa) limitIQ4(v reg.VecVirtual) reg.VecVirtual {
	number := s.vec()
	VMOVAPS(v, number)
	s.abs(number, s.bits(signless))
	VMULPS(s.number(bend), number, number)
	VSUBPS(number, s.number(slope), number)
	VMULPS(v, number, number)
	VADDPS(s.number(shift), number, number)
	VCVTPS2DQ(number, number)
	return number
}

// lookUp returns the entries of a table for limits of these numbers.
func (s isa) lookUp(table Mem, number reg.VecVirtual) reg.VecVirtual {
	entry := s.vec()
	VPERMPS(table, number, entry)
	if !s.wide() {
		negative := s.vec()
		VPERMPS(table.Offset(s.size()), number, negative)
		VBLENDVPS(number, negative, entry, entry)
	}
	return entry
}

// neighbours returns the two values that v is between and their limit.
func (s isa) neighbours(v reg.VecVirtual) (lower, upper, limit reg.VecVirtual) {
	number := s.limitIQ4(v)
	lower, upper, limit = s.lookUp(lowerIQ4(), number), s.lookUp(upperIQ4(), number), s.vec()
	VADDPS(upper, lower, limit)
	VMULPS(s.number(0.5), limit, limit)
	return lower, upper, limit
}

// pick returns a where m holds and otherwise b.
func (s isa) pick(m mask, a Op, b reg.VecVirtual) reg.VecVirtual {
	t := s.vec()
	if s.wide() {
		VMOVAPS(b, t)
		s.choose(m, a, t)
	} else {
		VBLENDVPS(m.v, a, b, t)
	}
	return t
}

// What fitIQ4 keeps for each of the 32 elements, a vector each, and behind it
// the inverse scales.
const (
	termLimit  = iota
	termLowerA // (w·y)·x and (w·y)·y for the value below the limit
	termLowerB
	termUpperA // and for that above
	termUpperB
	terms
)

const (
	stepsIQ4 = 7 // steps to either side
	triesIQ4 = 2*stepsIQ4 + 1
	together = 3 // tries summed at once
)

// tableSearch is the state of fitIQ4 while it is written.
type tableSearch struct {
	isa
	base, scratch, rows reg.GPVirtual
}

// fitIQ4 writes the search of scales for the uneven values.
func (s isa) fitIQ4() {
	s.text("fitIQ4", "func(l *[128][32]float32, scratch *[176][16]float32) uint32",
		"quant.fitIQ4 in each lane: from 32 rows of X and W to Scale. Bit k of the",
		"result says that lane k met NaN or infinities and holds nothing.")
	f := tableSearch{isa: s, base: GP64(), scratch: GP64(), rows: GP64()}
	Load(Param("l"), f.base)
	MOVQ(U32(32), f.rows)
	s.passes(f.base, func() { s.peak(f.base, f.rows) })
	Load(Param("l"), f.base)
	Load(Param("scratch"), f.scratch)
	odd, vectors := GP32(), GP64()
	XORL(odd, odd)
	MOVQ(U32(uint32(32/s.lanes)), vectors)
	repeat("vector", vectors, func() {
		a, b := f.first()
		met := s.lanesOf(s.notFinite(a))
		SHRL(U8(uint8(s.lanes)), odd)
		SHLL(U8(uint8(32-s.lanes)), met)
		ORL(met, odd)
		f.take(a, b)
		inv, rounds := GP64(), GP64()
		LEAQ(f.inverse(0), inv)
		MOVQ(U32(triesIQ4/together), rounds)
		repeat("round", rounds, func() {
			f.accept(f.tries(inv))
			ADDQ(U32(uint32(together*s.size())), inv)
		})
		f.clearTiny()
		ADDQ(U32(uint32(s.size())), f.base)
	})
	Store(odd, ReturnIndex(0))
	s.ret()
}

// term addresses a term of element i behind p.
func (f *tableSearch) term(p reg.GPVirtual, i, term int) Mem {
	return Mem{Base: p, Disp: (i*terms + term) * f.size()}
}

// inverse addresses inverse scale i.
func (f *tableSearch) inverse(i int) Mem {
	return Mem{Base: f.scratch, Disp: (32*terms + i) * f.size()}
}

// walk runs body for all elements; p walks along with the lanes and q with the
// terms.
func (f *tableSearch) walk(label string, body func(p, q reg.GPVirtual, i int)) {
	q := GP64()
	MOVQ(f.scratch, q)
	f.elements(label, f.base, f.rows, func(p reg.GPVirtual, i int) {
		body(p, q, i)
		if i == unroll-1 {
			ADDQ(U32(uint32(unroll*terms*f.size())), q)
		}
	})
}

// first returns the sums of the first candidate, which sends the largest
// magnitude to 127, and prepares the others, which send it to −127 and around.
func (f *tableSearch) first() (a, b reg.VecVirtual) {
	top, inv, middle := f.load(f.at(f.base, rowHi, 0)), f.vec(), f.vec()
	for i := range triesIQ4 {
		VDIVPS(top, f.number(valuesIQ4[0]+float32(i-stepsIQ4)), middle)
		VMOVUPS(middle, f.inverse(i))
	}
	VMOVUPS(f.inverse(stepsIQ4), middle)
	VDIVPS(f.number(-valuesIQ4[0]), top, inv)
	VDIVPS(inv, f.number(1), inv)
	a, b = f.zero(f.vec()), f.zero(f.vec())
	f.walk("terms", func(p, q reg.GPVirtual, i int) {
		x, w, v := f.load(f.at(p, rowX+i, 0)), f.load(f.at(p, rowW+i, 0)), f.vec()
		VMULPS(x, inv, v)
		lower, upper, limit := f.neighbours(v)
		y := f.pick(f.cmp(notLess, v, limit), upper, lower)
		t := f.products(x, w, y)
		VADDPS(t, a, a)
		VADDPS(y, b, b)
		VMULPS(x, middle, v)
		lower, upper, limit = f.neighbours(v)
		VMOVUPS(limit, f.term(q, i, termLimit))
		VMOVUPS(f.products(x, w, lower), f.term(q, i, termLowerA))
		VMOVUPS(lower, f.term(q, i, termLowerB))
		VMOVUPS(f.products(x, w, upper), f.term(q, i, termUpperA))
		VMOVUPS(upper, f.term(q, i, termUpperB))
	})
	return a, b
}

// products returns (w·y)·x and sets y to (w·y)·y.
func (f *tableSearch) products(x, w, y reg.VecVirtual) reg.VecVirtual {
	t := f.vec()
	VMULPS(y, w, t)
	VMULPS(y, t, y)
	VMULPS(x, t, t)
	return t
}

// take makes the first candidate the best.
func (f *tableSearch) take(a, b reg.VecVirtual) {
	zero, scale := f.zero(f.vec()), f.vec()
	VDIVPS(b, a, scale)
	f.choose(f.cmp(notGreater, b, zero), zero, scale)
	VMOVUPS(scale, f.at(f.base, rowScale, 0))
	VMULPS(a, scale, scale)
	VMOVUPS(scale, f.at(f.base, rowBest, 0))
}

// tries returns the sums of the candidates whose inverse scales inv points at.
func (f *tableSearch) tries(inv reg.GPVirtual) (a, b []reg.VecVirtual) {
	a, b = f.vecs(together), f.vecs(together)
	for k := range together {
		f.zero(a[k])
		f.zero(b[k])
	}
	f.walk("try", func(p, q reg.GPVirtual, i int) {
		x := f.load(f.at(p, rowX+i, 0))
		limit := f.load(f.term(q, i, termLimit))
		lowerA, lowerB := f.load(f.term(q, i, termLowerA)), f.load(f.term(q, i, termLowerB))
		upperA, upperB := f.load(f.term(q, i, termUpperA)), f.load(f.term(q, i, termUpperB))
		for k := range together {
			v := f.vec()
			VMULPS(Mem{Base: inv, Disp: k * f.size()}, x, v)
			m := f.cmp(notLess, v, limit)
			VADDPS(f.pick(m, upperA, lowerA), a[k], a[k])
			VADDPS(f.pick(m, upperB, lowerB), b[k], b[k])
		}
	})
	return a, b
}

// accept keeps, in order, the candidates that are better.
func (f *tableSearch) accept(a, b []reg.VecVirtual) {
	scale, best := f.load(f.at(f.base, rowScale, 0)), f.load(f.at(f.base, rowBest, 0))
	zero, t, u := f.zero(f.vec()), f.vec(), f.vec()
	for k := range together {
		m := f.cmp(greater, b[k], zero)
		VMULPS(b[k], best, u)
		VMULPS(a[k], a[k], t)
		f.and(m, f.cmp(greater, t, u))
		VDIVPS(b[k], a[k], u)
		VMULPS(a[k], u, t)
		f.choose(m, u, scale)
		f.choose(m, t, best)
	}
	VMOVUPS(scale, f.at(f.base, rowScale, 0))
	VMOVUPS(best, f.at(f.base, rowBest, 0))
}

// clearTiny clears the scale where the peak counts as zero.
func (f *tableSearch) clearTiny() {
	top, scale := f.load(f.at(f.base, rowHi, 0)), f.load(f.at(f.base, rowScale, 0))
	f.abs(top, f.bits(signless))
	f.choose(f.cmp(less, top, f.number(1e-15)), f.zero(f.vec()), scale)
	VMOVUPS(scale, f.at(f.base, rowScale, 0))
}

// codesIQ4 writes the rounding to the uneven values.
func (s isa) codesIQ4() {
	s.text("codesIQ4", "func(dst *uint8, stride int, x, inv *float32, groups int)",
		"quant.packIQ4 for groups of 32 elements: the codes nearest to inv[g]·x, 16 bytes for",
		"each group g, stride bytes apart.")
	dst, stride, x, inv, groups := GP64(), GP64(), GP64(), GP64(), GP64()
	Load(Param("dst"), dst)
	Load(Param("stride"), stride)
	Load(Param("x"), x)
	Load(Param("inv"), inv)
	Load(Param("groups"), groups)
	repeat("group", groups, func() {
		scale := s.splat(Mem{Base: inv})
		half := 16 / s.lanes
		var codes []reg.VecVirtual
		for v := range half {
			low, high := s.codeIQ4(Mem{Base: x, Disp: v * s.size()}, scale), s.codeIQ4(Mem{Base: x, Disp: 64 + v*s.size()}, scale)
			VPSLLD(U8(4), high, high)
			s.bitwiseOr(high, low)
			codes = append(codes, low)
		}
		s.storeBytes(codes, Mem{Base: dst})
		ADDQ(stride, dst)
		ADDQ(U32(128), x)
		ADDQ(U8(4), inv)
	})
	s.ret()
}

// codeIQ4 returns the codes of the numbers at x.
func (s isa) codeIQ4(x Mem, inv reg.VecVirtual) reg.VecVirtual {
	v := s.vec()
	VMULPS(x, inv, v)
	s.clampIQ4(v)
	code := s.limitIQ4(v)
	m := s.cmp(notLess, v, s.lookUp(limitsIQ4(), code))
	VPADDD(s.bits(8), code, code)
	s.increment(m, s.bits(1), code)
	return code
}

// clampIQ4 limits v to the values there are; NaN becomes the largest.
func (s isa) clampIQ4(v reg.VecVirtual) {
	VMINPS(s.number(valuesIQ4[15]), v, v)
	VMAXPS(s.number(valuesIQ4[0]), v, v)
}

// bitwiseOr sets b to a|b.
func (s isa) bitwiseOr(a, b reg.VecVirtual) {
	if s.wide() {
		VPORD(a, b, b)
	} else {
		VPOR(a, b, b)
	}
}

// tableLosses writes the errors of a group under many scales, one per lane.
func (s isa) tableLosses() {
	s.text("tableLosses", "func(out, x, w *float32, length int, inv, square *float32, units int)",
		"quant.tableLosses: the errors of the group x for 16·units scales.")
	out, x, w, length := GP64(), GP64(), GP64(), GP64()
	inv, square, units := GP64(), GP64(), GP64()
	Load(Param("out"), out)
	Load(Param("x"), x)
	Load(Param("w"), w)
	Load(Param("length"), length)
	Load(Param("inv"), inv)
	Load(Param("square"), square)
	Load(Param("units"), units)
	repeat("unit", units, func() {
		inverses, sums := s.vecs(unit/s.lanes), s.vecs(unit/s.lanes)
		for v := range sums {
			VMOVUPS(Mem{Base: inv, Disp: v * s.size()}, inverses[v])
			s.zero(sums[v])
		}
		i := GP64()
		XORQ(i, i)
		Label("element")
		xi, wi := s.splat(Mem{Base: x, Index: i, Scale: 4}), s.splat(Mem{Base: w, Index: i, Scale: 4})
		for v := range sums {
			value, near := s.vec(), s.vec()
			VMULPS(inverses[v], xi, value)
			VMOVAPS(value, near)
			s.clampIQ4(near)
			lower, upper, limit := s.neighbours(near)
			t := s.pick(s.cmp(notLess, near, limit), upper, lower)
			VSUBPS(value, t, t)
			VMULPS(t, t, t)
			VMULPS(wi, t, t)
			VADDPS(t, sums[v], sums[v])
		}
		INCQ(i)
		CMPQ(i, length)
		JNE(LabelRef("element"))
		for v := range sums {
			VMULPS(Mem{Base: square, Disp: v * s.size()}, sums[v], sums[v])
			VMOVUPS(sums[v], Mem{Base: out, Disp: v * s.size()})
		}
		ADDQ(U8(4*unit), out)
		ADDQ(U8(4*unit), inv)
		ADDQ(U8(4*unit), square)
	})
	s.ret()
}
