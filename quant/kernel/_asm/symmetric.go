package main

import (
	. "github.com/mmcloughlin/avo/build"
	. "github.com/mmcloughlin/avo/operand"
	"github.com/mmcloughlin/avo/reg"
)

// symmetric is the state of fitSymmetric while it is written.
type symmetric struct {
	isa
	base, rows       reg.GPVirtual
	magic, low, high reg.VecVirtual
}

// fitSymmetric writes the search of grids with one scale.
func (s isa) fitSymmetric() {
	s.text("fitSymmetric", "func(l *[128][32]float32, group int, n float32, top *float32, unclamped, clamped int) uint32",
		"quant.fitSymmetric in each lane: from the first group rows of X",
		"and W to Scale and Inv. The candidates put the largest magnitude at top[i]; the first",
		"unclamped (at least one) send nothing below −n. Bit k of the result says that lane k",
		"met NaN or infinities and holds nothing.")
	f := symmetric{isa: s, base: GP64(), rows: GP64()}
	Load(Param("l"), f.base)
	Load(Param("group"), f.rows)
	f.magic, f.low, f.high = s.number(magic), s.vec(), s.param("n")
	VSUBPS(f.high, s.zero(f.low), f.low)
	VSUBPS(s.number(1), f.high, f.high)
	top, odd, count := GP64(), GP32(), GP64()
	XORL(odd, odd)
	s.passes(f.base, func() {
		s.peak(f.base, f.rows)
		f.products()
		Load(Param("top"), top)
		a, b := f.sums("first", top, false)
		s.gather(odd, s.collect(func(v int) mask { return s.notFinite(a[v]) }))
		f.take(a, b)
		Load(Param("unclamped"), count)
		DECQ(count)
		repeat("unclamped", count, func() {
			ADDQ(U8(4), top)
			a, b := f.sums("free", top, false)
			f.accept(a, b)
		})
		Load(Param("clamped"), count)
		repeat("clamped", count, func() {
			ADDQ(U8(4), top)
			a, b := f.sums("bound", top, true)
			f.accept(a, b)
		})
		s.clearTiny(f.base, rowScale, rowInv)
	})
	Store(odd, ReturnIndex(0))
	s.ret()
}

// notFinite returns the lanes that hold NaN or infinities.
func (s isa) notFinite(v reg.VecVirtual) mask {
	t := s.vec()
	VSUBPS(v, v, t)
	return s.cmp(unordered, t, t)
}

// gather adds the conditions of this pass to those of the lanes before.
func (s isa) gather(odd, pass reg.GPVirtual) {
	if !s.wide() {
		SHRL(U8(16), odd)
		SHLL(U8(16), pass)
	}
	ORL(pass, odd)
}

// peak stores the value of largest magnitude in Hi: quant.peak.
func (s isa) peak(base, rows reg.GPVirtual) {
	top, magnitude, positive := s.vecs(pair), s.vecs(pair), s.bits(signless)
	for v := range pair {
		s.zero(top[v])
		s.zero(magnitude[v])
	}
	s.elements("peak", base, rows, func(p reg.GPVirtual, i int) {
		for v := range pair {
			x, size := s.load(s.at(p, rowX+i, v)), s.vec()
			VMOVAPS(x, size)
			s.abs(size, positive)
			m := s.cmp(greater, size, magnitude[v])
			s.choose(m, x, top[v])
			VMAXPS(magnitude[v], size, magnitude[v])
		}
	})
	for v := range pair {
		VMOVUPS(top[v], s.at(base, rowHi, v))
	}
}

// clearTiny clears rows in the lanes whose peak counts as zero.
func (s isa) clearTiny(base reg.GPVirtual, rows ...int) {
	zero := s.zero(s.vec())
	for v := range pair {
		top := s.load(s.at(base, rowHi, v))
		s.abs(top, s.bits(signless))
		m := s.cmp(less, top, s.number(1e-15))
		for _, row := range rows {
			value := s.load(s.at(base, row, v))
			s.choose(m, zero, value)
			VMOVUPS(value, s.at(base, row, v))
		}
	}
}

// products stores w·x in the rows of codes.
func (f *symmetric) products() {
	f.elements("products", f.base, f.rows, func(p reg.GPVirtual, i int) {
		for v := range pair {
			t := f.load(f.at(p, rowX+i, v))
			VMULPS(f.at(p, rowW+i, v), t, t)
			VMOVUPS(t, f.at(p, rowCodes+i, v))
		}
	})
}

// inverse returns top/peak.
func (f *symmetric) inverse(top reg.GPVirtual) []reg.VecVirtual {
	inv, t := f.vecs(pair), f.splat(Mem{Base: top})
	for v := range pair {
		VDIVPS(f.at(f.base, rowHi, v), t, inv[v])
	}
	return inv
}

// sums returns Σ(w·x)·l and Σ(w·l)·l over the codes l of a candidate.
func (f *symmetric) sums(label string, top reg.GPVirtual, clamp bool) (a, b []reg.VecVirtual) {
	inv := f.inverse(top)
	a, b = f.vecs(pair), f.vecs(pair)
	for v := range pair {
		f.zero(a[v])
		f.zero(b[v])
		VMOVUPS(inv[v], f.at(f.base, rowTry, v))
	}
	f.elements(label, f.base, f.rows, func(p reg.GPVirtual, i int) {
		for v := range pair {
			c, t := f.vec(), f.vec()
			VMULPS(f.at(p, rowX+i, v), inv[v], c)
			VADDPS(f.magic, c, c)
			VSUBPS(f.magic, c, c)
			if clamp {
				VMAXPS(f.low, c, c)
			}
			VMINPS(f.high, c, c)
			VMULPS(f.at(p, rowCodes+i, v), c, t)
			VADDPS(t, a[v], a[v])
			VMULPS(f.at(p, rowW+i, v), c, t)
			VMULPS(c, t, t)
			VADDPS(t, b[v], b[v])
		}
	})
	return a, b
}

// take makes the first candidate the best.
func (f *symmetric) take(a, b []reg.VecVirtual) {
	zero := f.zero(f.vec())
	for v := range pair {
		scale := f.vec()
		VDIVPS(b[v], a[v], scale)
		f.choose(f.cmp(equal, b[v], zero), zero, scale)
		VMOVUPS(scale, f.at(f.base, rowScale, v))
		VMULPS(a[v], scale, scale)
		VMOVUPS(scale, f.at(f.base, rowBest, v))
		inv := f.load(f.at(f.base, rowTry, v))
		VMOVUPS(inv, f.at(f.base, rowInv, v))
	}
}

// accept keeps a candidate where it is better.
func (f *symmetric) accept(a, b []reg.VecVirtual) {
	zero := f.zero(f.vec())
	for v := range pair {
		best, t, scale := f.load(f.at(f.base, rowBest, v)), f.vec(), f.vec()
		m := f.cmp(greater, b[v], zero)
		VMULPS(b[v], best, scale)
		VMULPS(a[v], a[v], t)
		f.and(m, f.cmp(greater, t, scale))
		VDIVPS(b[v], a[v], scale)
		VMULPS(a[v], scale, t)
		keep := func(row int, with Op) {
			kept := f.load(f.at(f.base, row, v))
			f.choose(m, with, kept)
			VMOVUPS(kept, f.at(f.base, row, v))
		}
		keep(rowBest, t)
		keep(rowScale, scale)
		keep(rowInv, f.at(f.base, rowTry, v))
	}
}

// threeBit is the state of fitThreeBit while it is written.
type threeBit struct {
	isa
	base, rows                       reg.GPVirtual
	magic, mantissa, half, low, high reg.VecVirtual
}

// fitThreeBit writes the search of Q3_K without importance.
func (s isa) fitThreeBit() {
	s.text("fitThreeBit", "func(l *[128][32]float32) uint32",
		"quant.fitThreeBit in each lane: from 16 rows of X to Scale. Bit k of the",
		"result says that lane k met numbers too large or NaN and holds nothing.")
	f := threeBit{isa: s, base: GP64(), rows: GP64()}
	Load(Param("l"), f.base)
	MOVQ(U32(16), f.rows)
	odd := GP32()
	XORL(odd, odd)
	s.passes(f.base, func() {
		s.peak(f.base, f.rows)
		a, b := f.start()
		s.gather(odd, s.collect(func(v int) mask { return s.notFinite(a[v]) }))
		f.magic, f.mantissa, f.half = s.number(magic), s.bits(0x7fffff), s.bits(0x400000)
		f.low, f.high = s.bits(0xfffffffc), s.bits(3)
		sweeps, changed := GP64(), GP32()
		MOVQ(U32(5), sweeps)
		Label("sweep")
		XORL(changed, changed)
		f.elements("move", f.base, f.rows, func(p reg.GPVirtual, i int) { f.move(p, i, a, b, changed) })
		TESTL(changed, changed)
		JZ(LabelRef("settled"))
		DECQ(sweeps)
		JNZ(LabelRef("sweep"))
		Label("settled")
		s.ratio(f.base, a, b)
	})
	Store(odd, ReturnIndex(0))
	s.ret()
}

// ratio sets Scale to A/B, to 0 where B or the peak counts as zero.
func (s isa) ratio(base reg.GPVirtual, a, b []reg.VecVirtual) {
	zero := s.zero(s.vec())
	for v := range pair {
		scale := s.vec()
		VDIVPS(b[v], a[v], scale)
		s.choose(s.cmp(notGreater, b[v], zero), zero, scale)
		VMOVUPS(scale, s.at(base, rowScale, v))
	}
	s.clearTiny(base, rowScale)
}

// start sets weights x², codes with the largest magnitude at −4, and sums.
func (f *threeBit) start() (a, b []reg.VecVirtual) {
	a, b = f.vecs(pair), f.vecs(pair)
	inv, four, rounding := f.vecs(pair), f.number(-4), f.number(magic)
	for v := range pair {
		f.zero(a[v])
		f.zero(b[v])
		VDIVPS(f.at(f.base, rowHi, v), four, inv[v])
	}
	high := f.number(3)
	f.elements("start", f.base, f.rows, func(p reg.GPVirtual, i int) {
		for v := range pair {
			x, w, l := f.load(f.at(p, rowX+i, v)), f.vec(), f.vec()
			VMULPS(x, inv[v], l)
			VADDPS(rounding, l, l)
			VSUBPS(rounding, l, l)
			VMINPS(high, l, l)
			VMOVUPS(l, f.at(p, rowCodes+i, v))
			VMULPS(x, x, w)
			VMOVUPS(w, f.at(p, rowW+i, v))
			VMULPS(x, w, x)
			VMOVUPS(x, f.at(p, rowW+16+i, v))
			VMULPS(l, x, x)
			VADDPS(x, a[v], a[v])
			VMULPS(l, w, w)
			VMULPS(l, w, w)
			VADDPS(w, b[v], b[v])
		}
	})
	return a, b
}

// move is one step of quant.sweepQ3K.move.
func (f *threeBit) move(p reg.GPVirtual, i int, a, b []reg.VecVirtual, changed reg.GPVirtual) {
	for v := range pair {
		w, wx, code := f.at(p, rowW+i, v), f.at(p, rowW+16+i, v), f.at(p, rowCodes+i, v)
		l, t, restA, restB, c := f.load(code), f.vec(), f.vec(), f.vec(), f.vec()
		VMULPS(wx, l, t)
		VSUBPS(t, a[v], restA)
		VMULPS(w, l, t)
		VMULPS(l, t, t)
		VSUBPS(t, b[v], restB)
		VMULPS(f.at(p, rowX+i, v), restB, c)
		VDIVPS(restA, c, c)
		VADDPS(f.magic, c, c)
		f.abs(c, f.mantissa)
		VPSUBD(f.half, c, c)
		VPMINSD(f.high, c, c)
		VPMAXSD(f.low, c, c)
		VCVTDQ2PS(c, c)
		m := f.cmp(greater, restA, f.zero(t))
		f.and(m, f.cmp(notEqual, c, l))
		some := f.lanesOf(m)
		TESTL(some, some)
		skip := f.label("same")
		JZ(LabelRef(skip))
		VMULPS(wx, c, t)
		VADDPS(t, restA, restA)
		VMULPS(w, c, t)
		VMULPS(c, t, t)
		VADDPS(t, restB, restB)
		f.and(m, f.cmp(greater, restB, f.zero(t)))
		u := f.vec()
		VMULPS(restA, restA, t)
		VMULPS(b[v], t, t)
		VMULPS(a[v], a[v], u)
		VMULPS(restB, u, u)
		f.and(m, f.cmp(greater, t, u))
		f.choose(m, restA, a[v])
		f.choose(m, restB, b[v])
		l = f.load(code)
		f.choose(m, c, l)
		VMOVUPS(l, code)
		ORL(f.lanesOf(m), changed)
		Label(skip)
	}
}
