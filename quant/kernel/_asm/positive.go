package main

import (
	. "github.com/mmcloughlin/avo/build"
	. "github.com/mmcloughlin/avo/operand"
	"github.com/mmcloughlin/avo/reg"
)

// positive is the state of fitPositive while it is written.
type positive struct {
	isa
	base, rows               reg.GPVirtual
	magic, mantissa, half, n reg.VecVirtual
}

// fitPositive writes the search for the common scale of scales.
func (s isa) fitPositive() {
	s.text("fitPositive", "func(l *[128][32]float32, rows int, n int32, top *float32, candidates int)",
		"quant.fitPositive in each lane: from the first rows of X and W to",
		"Scale and Codes. rows is a multiple of 4. Candidate i puts the largest value at top[i].")
	f := positive{isa: s, base: GP64(), rows: GP64()}
	Load(Param("l"), f.base)
	Load(Param("rows"), f.rows)
	f.magic, f.mantissa, f.half = s.number(magic), s.bits(0x7fffff), s.bits(0x400000)
	f.n = s.param("n")
	top, candidates := GP64(), GP64()
	s.passes(f.base, func() {
		f.first()
		Load(Param("top"), top)
		Load(Param("candidates"), candidates)
		repeat("candidate", candidates, func() {
			f.candidate(top)
			ADDQ(U8(4), top)
		})
		a, b := f.start()
		sweeps, changed := GP64(), GP32()
		MOVQ(U32(5), sweeps)
		Label("sweep")
		XORL(changed, changed)
		f.elements("move", f.base, f.rows, func(p reg.GPVirtual, i int) {
			for v := range pair {
				f.move(s.at(p, rowX+i, v), s.at(p, rowW+i, v), s.at(p, rowCodes+i, v), a[v], b[v], changed)
			}
		})
		TESTL(changed, changed)
		JZ(LabelRef("settled"))
		DECQ(sweeps)
		JNZ(LabelRef("sweep"))
		Label("settled")
		f.finish(a, b)
	})
	s.ret()
}

// nearest rounds v in place to integers, unclamped.
func (f *positive) nearest(v reg.VecVirtual) {
	VADDPS(f.magic, v, v)
	f.abs(v, f.mantissa)
	VPSUBD(f.half, v, v)
}

// wrap keeps the low byte of integers.
func (f *positive) wrap(v reg.VecVirtual) { f.abs(v, f.bits(0xff)) }

// first measures the grid that puts the largest value at n.
func (f *positive) first() {
	top := f.vecs(pair)
	for v := range pair {
		f.zero(top[v])
	}
	f.elements("top", f.base, f.rows, func(p reg.GPVirtual, i int) {
		for v := range pair {
			VMAXPS(f.at(p, rowX+i, v), top[v], top[v])
		}
	})
	inv, n := f.vecs(pair), f.vec()
	VCVTDQ2PS(f.n, n)
	for v := range pair {
		VMOVUPS(top[v], f.at(f.base, rowHi, v))
		VDIVPS(top[v], n, inv[v])
		VMOVUPS(inv[v], f.at(f.base, rowInv, v))
	}
	loss := f.loss("first", inv, f.wrap)
	for v := range pair {
		VMOVUPS(loss[v], f.at(f.base, rowBest, v))
	}
}

// loss returns the errors of the scales 1/inv.
func (f *positive) loss(label string, inv []reg.VecVirtual, limit func(c reg.VecVirtual)) []reg.VecVirtual {
	scale, sum, one := f.vecs(pair), f.vecs(pair), f.number(1)
	for v := range pair {
		VDIVPS(inv[v], one, scale[v])
		f.zero(sum[v])
	}
	f.elements(label, f.base, f.rows, func(p reg.GPVirtual, i int) {
		for v := range pair {
			c, e := f.vec(), f.load(f.at(p, rowX+i, v))
			VMULPS(inv[v], e, c)
			f.nearest(c)
			limit(c)
			VCVTDQ2PS(c, c)
			VMULPS(scale[v], c, c)
			VSUBPS(c, e, e)
			VMULPS(f.at(p, rowW+i, v), e, c)
			VMULPS(e, c, c)
			VADDPS(c, sum[v], sum[v])
		}
	})
	return sum
}

func (f *positive) candidate(top reg.GPVirtual) {
	inv, t := f.vecs(pair), f.splat(Mem{Base: top})
	for v := range pair {
		VDIVPS(f.at(f.base, rowHi, v), t, inv[v])
	}
	loss := f.loss("loss", inv, func(c reg.VecVirtual) { VPMINSD(f.n, c, c) })
	for v := range pair {
		best, kept := f.load(f.at(f.base, rowBest, v)), f.load(f.at(f.base, rowInv, v))
		m := f.cmp(less, loss[v], best)
		f.choose(m, loss[v], best)
		f.choose(m, inv[v], kept)
		VMOVUPS(best, f.at(f.base, rowBest, v))
		VMOVUPS(kept, f.at(f.base, rowInv, v))
	}
}

// start sets the codes of the best scale and returns their sums.
func (f *positive) start() (a, b []reg.VecVirtual) {
	a, b = f.vecs(pair), f.vecs(pair)
	for v := range pair {
		f.zero(a[v])
		f.zero(b[v])
	}
	f.elements("start", f.base, f.rows, func(p reg.GPVirtual, i int) {
		for v := range pair {
			x, w, c := f.load(f.at(p, rowX+i, v)), f.load(f.at(p, rowW+i, v)), f.vec()
			VMULPS(f.at(f.base, rowInv, v), x, c)
			f.nearest(c)
			VPMINSD(f.n, c, c)
			f.storeCode(c, f.at(p, rowCodes+i, v))
			VCVTDQ2PS(c, c)
			f.add(x, w, c, a[v], b[v])
		}
	})
	return a, b
}

// storeCode stores the low byte of an integer, as a float.
func (f *positive) storeCode(c reg.VecVirtual, to Mem) {
	t := f.vec()
	VMOVAPS(c, t)
	f.wrap(t)
	VCVTDQ2PS(t, t)
	VMOVUPS(t, to)
}

// add adds (w·x)·l to a and (w·l)·l to b; x and w are overwritten.
func (f *positive) add(x, w, l, a, b reg.VecVirtual) {
	VMULPS(w, x, x)
	VMULPS(l, x, x)
	VADDPS(x, a, a)
	VMULPS(l, w, w)
	VMULPS(l, w, w)
	VADDPS(w, b, b)
}

// move is one step of quant.movePositive.
func (f *positive) move(x, w, code Mem, a, b reg.VecVirtual, changed reg.GPVirtual) {
	l, wx, t := f.load(code), f.load(w), f.vec()
	restA, restB := f.vec(), f.vec()
	VMULPS(l, wx, t)
	VMULPS(l, t, t)
	VSUBPS(t, b, restB)
	VMULPS(x, wx, wx)
	VMULPS(l, wx, t)
	VSUBPS(t, a, restA)
	c := f.vec()
	VMULPS(x, restB, c)
	VDIVPS(restA, c, c)
	f.nearest(c)
	VPMINSD(f.n, c, c)
	m := f.cmp(greater, restA, f.zero(t))
	f.and(m, f.cmp(greater, restB, t))
	VCVTDQ2PS(c, t)
	f.and(m, f.cmp(notEqual, t, l))
	some, skip := f.lanesOf(m), f.label("same")
	TESTL(some, some)
	JZ(LabelRef(skip))
	VMULPS(t, wx, wx)
	VADDPS(wx, restA, restA)
	VMULPS(w, t, wx)
	VMULPS(t, wx, wx)
	VADDPS(wx, restB, restB)
	VMULPS(restA, restA, t)
	VMULPS(b, t, t)
	VMULPS(a, a, wx)
	VMULPS(restB, wx, wx)
	f.and(m, f.cmp(greater, t, wx))
	f.choose(m, restA, a)
	f.choose(m, restB, b)
	f.wrap(c)
	VCVTDQ2PS(c, c)
	f.choose(m, c, l)
	VMOVUPS(l, code)
	ORL(f.lanesOf(m), changed)
	Label(skip)
}

// finish writes the scale, and zeros for lanes without a value worth coding.
func (f *positive) finish(a, b []reg.VecVirtual) {
	zero := f.zero(f.vec())
	for v := range pair {
		fit := f.vec()
		VDIVPS(b[v], a[v], fit)
		f.choose(f.cmp(notGreater, b[v], zero), zero, fit)
		f.choose(f.tiny(v), zero, fit)
		VMOVUPS(fit, f.at(f.base, rowScale, v))
	}
	f.elements("clear", f.base, f.rows, func(p reg.GPVirtual, i int) {
		for v := range pair {
			c := f.load(f.at(p, rowCodes+i, v))
			f.choose(f.tiny(v), zero, c)
			VMOVUPS(c, f.at(p, rowCodes+i, v))
		}
	})
}

// tiny says which lanes count as all zero.
func (f *positive) tiny(v int) mask {
	top := f.load(f.at(f.base, rowHi, v))
	return f.cmp(less, top, f.number(1e-15))
}
