package main

import (
	. "github.com/mmcloughlin/avo/build"
	. "github.com/mmcloughlin/avo/operand"
	"github.com/mmcloughlin/avo/reg"
)

// threeBits writes what Q3_K takes beside fitThreeBit: the scales of groups
// that need no sweeps, and the packing.
func threeBits() {
	for _, s := range sets {
		s.startThreeBit()
		s.packThreeBit()
	}
}

// settling is the state of startThreeBit while it is written.
type settling struct {
	isa
	base, rows reg.GPVirtual
	inv, a, b  []reg.VecVirtual
}

// startThreeBit writes the start of fitThreeBit and a test that, for most
// groups, shows that its sweeps change nothing.
//
// A sweep leaves code l of x as it is unless restA > 0 and x·restB/restA rounds
// to something else, where restA = A−p and restB = B−r without the terms
// p = (w·x)·l and r = (w·l)·l. But for rounding x·r = l·p, so
//
//	|x·B − l·A| < (A−p)/c with c > 2
//
// says that the code stays. If all codes of a group stay, so do the sums, and
// the test has held for the whole sweep.
//
// Rounding, with u = 2⁻²⁴: the test compares c·x·B − c·l·A, x·B as (inv·x)·(B/inv),
// with (1−2⁻⁸)·A − p. Where that is positive, A−p > 2⁻⁹·A, as p ≥ 0; and with
// |l| ≤ 4 the left side is known to 50u·c·A and x·r − l·p is within 28u·A of 0.
// Together that is less than 0.0025·(A−p), and with c = 2.03125 the quotient
// lies within 0.495 of l before its own four roundings. Products that underflow do not
// matter if A > 2⁻¹⁰⁰, sums that overflow fail the test. If l is 3 because
// inv·x is larger, 3 in its place tests the bound below, which is all that
// counts as the quotient is clamped.
//
// inv has the sign of A and of all terms of A. If it is negative, A ≤ p for
// each of them even as they are rounded, restA is never positive, and nothing
// changes.
func (s isa) startThreeBit() {
	s.text("startThreeBit", "func(l *[128][32]float32) (odd, open uint32)",
		"quant.fitThreeBit in the lanes that its sweeps do not change: from 16 rows of",
		"X to Scale. The bits of open are lanes that they may change. Those of odd met",
		"numbers too large or NaN. Both hold nothing.")
	f := settling{isa: s, base: GP64(), rows: GP64(), inv: s.vecs(pair), a: s.vecs(pair), b: s.vecs(pair)}
	Load(Param("l"), f.base)
	MOVQ(U32(16), f.rows)
	odd, open := GP32(), GP32()
	XORL(odd, odd)
	XORL(open, open)
	s.passes(f.base, func() {
		f.peak()
		f.sums()
		s.gather(odd, s.collect(func(v int) mask { return s.notFinite(f.a[v]) }))
		s.gather(open, s.collect(f.open()))
		s.ratio(f.base, f.a, f.b)
	})
	Store(odd, Return("odd"))
	Store(open, Return("open"))
	s.ret()
}

// peak is isa.peak, but looks at the order only where two elements have the
// largest magnitude with different signs. NaN is not passed over; it is no
// matter, as such lanes are odd.
func (f *settling) peak() {
	low, high, zero := f.vecs(pair), f.vecs(pair), f.zero(f.vec())
	for v := range pair {
		f.zero(low[v])
		f.zero(high[v])
	}
	f.elements("extremes", f.base, f.rows, func(p reg.GPVirtual, i int) {
		for v := range pair {
			x := f.load(f.at(p, rowX+i, v))
			VMINPS(x, low[v], low[v])
			VMAXPS(x, high[v], high[v])
		}
	})
	ties := f.collect(func(v int) mask {
		opposite := f.vec()
		VSUBPS(low[v], zero, opposite)
		tie := f.cmp(equal, opposite, high[v])
		f.and(tie, f.cmp(notEqual, opposite, zero))
		top := f.load(f.at(f.base, rowHi, v))
		VMOVAPS(high[v], top)
		f.choose(f.cmp(greater, opposite, high[v]), low[v], top)
		VMOVUPS(top, f.at(f.base, rowHi, v))
		return tie
	})
	TESTL(ties, ties)
	JZ(LabelRef("known"))
	f.isa.peak(f.base, f.rows)
	Label("known")
}

// sums computes the sums A and B. It leaves min(inv·x, 3), the codes, and the
// terms of A.
func (f *settling) sums() {
	four, rounding, high := f.number(-4), f.number(magic), f.number(3)
	for v := range pair {
		f.zero(f.a[v])
		f.zero(f.b[v])
		VDIVPS(f.at(f.base, rowHi, v), four, f.inv[v])
	}
	f.elements("start", f.base, f.rows, func(p reg.GPVirtual, i int) {
		for v := range pair {
			x, w, l := f.load(f.at(p, rowX+i, v)), f.vec(), f.vec()
			VMULPS(x, f.inv[v], l)
			VMINPS(high, l, l)
			VMOVUPS(l, f.at(p, rowW+i, v))
			VADDPS(rounding, l, l)
			VSUBPS(rounding, l, l)
			VMOVUPS(l, f.at(p, rowCodes+i, v))
			VMULPS(x, x, w)
			VMULPS(x, w, x)
			VMULPS(l, x, x)
			VMOVUPS(x, f.at(p, rowW+16+i, v))
			VADDPS(x, f.a[v], f.a[v])
			VMULPS(l, w, w)
			VMULPS(l, w, w)
			VADDPS(w, f.b[v], f.b[v])
		}
	})
}

const (
	// settledFactor is c of startThreeBit.
	settledFactor = 2.03125
	// settledShare is its 1−2⁻⁸.
	settledShare = 1 - 1.0/256
)

// open tests all codes and returns a function for the lanes that may change.
func (f *settling) open() func(v int) mask {
	unsure, scaledA, scaledB, share := make([]mask, pair), f.vecs(pair), f.vecs(pair), f.vecs(pair)
	positive, zero := f.bits(signless), f.zero(f.vec())
	for v := range pair {
		factor := f.number(settledFactor)
		VMULPS(f.a[v], factor, scaledA[v])
		VDIVPS(f.inv[v], f.b[v], scaledB[v])
		VMULPS(factor, scaledB[v], scaledB[v])
		VMULPS(f.number(settledShare), f.a[v], share[v])
		unsure[v] = f.cmp(notGreater, f.a[v], f.number(1.0/(1<<50)/(1<<50)))
	}
	f.elements("settled", f.base, f.rows, func(p reg.GPVirtual, i int) {
		for v := range pair {
			q, t, limit := f.vec(), f.vec(), f.vec()
			VMULPS(f.at(p, rowW+i, v), scaledB[v], q)
			VMULPS(f.at(p, rowCodes+i, v), scaledA[v], t)
			VSUBPS(t, q, q)
			f.abs(q, positive)
			VSUBPS(f.at(p, rowW+16+i, v), share[v], limit)
			f.or(unsure[v], f.cmp(notLess, q, limit))
		}
	})
	return func(v int) mask {
		f.and(unsure[v], f.cmp(greater, f.a[v], zero))
		return unsure[v]
	}
}

// packThreeBit writes the last rounding of Q3_K.
func (s isa) packThreeBit() {
	s.text("packThreeBit", "func(dst *byte, x *float32, scales *[16]float32)",
		"quant.symmetricSuper.requantize and quant.packCodesQ3K for a super-block, where",
		"a scale of 0 is no exception: the first 96 bytes.")
	dst, x, scales := GP64(), GP64(), GP64()
	Load(Param("dst"), dst)
	Load(Param("x"), x)
	Load(Param("scales"), scales)
	rounding, mantissa, half := s.number(magic), s.bits(0x7fffff), s.bits(0x400000)
	least, most, pairs, third := s.byteSplat(0xfc), s.byteSplat(3), s.byteSplat(3), s.byteSplat(4)
	order, high, low := s.order(), YMM(), YMM()
	for k := range 8 {
		c := s.vecs(32 / s.lanes)
		for v, t := range c {
			first := 32*k + v*s.lanes
			VMOVUPS(Mem{Base: x, Disp: 4 * first}, t)
			VDIVPS(s.splat(Mem{Base: scales, Disp: 4 * (first / 16)}), t, t)
			VADDPS(rounding, t, t)
			s.abs(t, mantissa)
			VPSUBD(half, t, t)
		}
		b, t := s.saturated(c), YMM()
		VPMINSB(most, b, b)
		VPMAXSB(least, b, b)
		VPADDB(third, b, b)
		VPAND(third, b, t)
		if k < 2 {
			VPSRLW(U8(uint8(2-k)), t, t)
		} else {
			VPSLLW(U8(uint8(k-2)), t, t)
		}
		collectBits(t, high, k == 0)
		VPAND(pairs, b, b)
		VPSLLW(U8(uint8(2*(k%4))), b, b)
		collectBits(b, low, k%4 == 0)
		if k%4 == 3 {
			s.inOrder(low, order)
			VMOVDQU(low, Mem{Base: dst, Disp: 32 + 32*(k/4)})
		}
	}
	s.inOrder(high, order)
	VMOVDQU(high, Mem{Base: dst})
	s.ret()
}

// collectBits adds bits to all, which they start if first.
func collectBits(bits, all reg.VecVirtual, first bool) {
	if first {
		VMOVDQA(bits, all)
	} else {
		VPOR(bits, all, all)
	}
}

// byteSplat returns 32 times the same byte.
func (s isa) byteSplat(b uint32) reg.VecVirtual {
	v := YMM()
	VPBROADCASTD(word(b*0x01010101), v)
	return v
}

// saturated is bytes, signed, of integers that may be beyond their range.
func (s isa) saturated(c []reg.VecVirtual) reg.VecVirtual {
	if !s.wide() {
		return s.bytes(c, true)
	}
	b, high := sets[0].zero(YMM()), XMM()
	VPMOVSDB(c[0], b.AsX())
	VPMOVSDB(c[1], high)
	VINSERTI128(U8(1), high, b, b)
	return b
}
