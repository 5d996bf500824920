package main

import (
	. "github.com/mmcloughlin/avo/build"
	. "github.com/mmcloughlin/avo/operand"
	"github.com/mmcloughlin/avo/reg"
)

// unroll is the number of elements per turn of the inner loops.
const unroll = 4

// elements runs body for the rows of a group; p walks along with them.
func (s isa) elements(label string, base, rows reg.GPVirtual, body func(p reg.GPVirtual, i int)) {
	p, n := GP64(), GP64()
	MOVQ(base, p)
	MOVQ(rows, n)
	SHRQ(U8(2), n)
	repeat(label, n, func() {
		for i := range unroll {
			body(p, i)
		}
		ADDQ(U32(unroll*rowBytes), p)
	})
}

// importance writes the weights that importance gives.
func (s isa) importance() {
	s.text("importance", "func(l *[128][32]float32, group int)", "quant.importance and quant.sum in each lane:",
		"W[i] = W[i]·sqrt(Sigma + X[i]·X[i]), Sum = Σ W[i].")
	base, rows := s.lanesAndGroup()
	s.passes(base, func() {
		sum, sigma := s.vecs(pair), s.vecs(pair)
		for v := range pair {
			s.zero(sum[v])
			VMOVUPS(s.at(base, rowSigma, v), sigma[v])
		}
		s.elements("weigh", base, rows, func(p reg.GPVirtual, i int) {
			for v := range pair {
				w := s.load(s.at(p, rowX+i, v))
				VMULPS(w, w, w)
				VADDPS(w, sigma[v], w)
				VSQRTPS(w, w)
				VMULPS(s.at(p, rowW+i, v), w, w)
				VMOVUPS(w, s.at(p, rowW+i, v))
				VADDPS(w, sum[v], sum[v])
			}
		})
		for v := range pair {
			VMOVUPS(sum[v], s.at(base, rowSum, v))
		}
	})
	s.ret()
}

func (s isa) lanesAndGroup() (base, rows reg.GPVirtual) {
	base, rows = GP64(), GP64()
	Load(Param("l"), base)
	Load(Param("group"), rows)
	return base, rows
}

// squareWeights writes the weights of Q6_K without importance.
func (s isa) squareWeights() {
	s.text("squareWeights", "func(l *[128][32]float32, group int)", "W[i] = X[i]·X[i] in each lane.")
	base, rows := s.lanesAndGroup()
	s.passes(base, func() {
		s.elements("square", base, rows, func(p reg.GPVirtual, i int) {
			for v := range pair {
				x := s.load(s.at(p, rowX+i, v))
				VMULPS(x, x, x)
				VMOVUPS(x, s.at(p, rowW+i, v))
			}
		})
	})
	s.ret()
}

// plainWeights writes the weights of the affine types without importance.
func (s isa) plainWeights() {
	s.text("plainWeights", "func(l *[128][32]float32, group int)", "quant.plainWeights in each lane: W[i] = |X[i]|,",
		"plus sqrt(ΣX[i]²/32) in groups of 32.")
	base, rows := s.lanesAndGroup()
	positive := s.bits(signless)
	s.passes(base, func() {
		level := s.vecs(pair)
		for v := range pair {
			s.zero(level[v])
		}
		CMPQ(rows, U8(32))
		JNE(LabelRef("level"))
		s.elements("squares", base, rows, func(p reg.GPVirtual, i int) {
			for v := range pair {
				x := s.load(s.at(p, rowX+i, v))
				VMULPS(x, x, x)
				VADDPS(x, level[v], level[v])
			}
		})
		share := s.number(1.0 / 32)
		for v := range pair {
			VMULPS(share, level[v], level[v])
			VSQRTPS(level[v], level[v])
		}
		Label("level")
		s.elements("weigh", base, rows, func(p reg.GPVirtual, i int) {
			for v := range pair {
				x := s.load(s.at(p, rowX+i, v))
				s.abs(x, positive)
				VADDPS(level[v], x, x)
				VMOVUPS(x, s.at(p, rowW+i, v))
			}
		})
	})
	s.ret()
}

// affine is the state of fitAffine while it is written.
type affine struct {
	isa
	base, rows reg.GPVirtual
	absolute   bool
	n, magic   reg.VecVirtual
	odd        reg.GPVirtual
}

// fitAffine writes the search of grids with a minimum.
func (s isa) fitAffine(name string, absolute bool) {
	loss := "w·e²"
	if absolute {
		loss = "w·|e|"
	}
	s.text(name, "func(l *[128][32]float32, group int, n float32, top *float32, candidates int) uint32",
		"quant.affineGrid.fit in each lane, with the loss "+loss+": from the first group rows",
		"of X and W to Scale, Min, Inv and Base. Candidate i puts the range at top[i]. Bit k of",
		"the result says that lane k met numbers beyond the range of the rounding, or none at",
		"all, and holds nothing.")
	a := affine{isa: s, base: GP64(), rows: GP64(), absolute: absolute, odd: GP32()}
	Load(Param("l"), a.base)
	Load(Param("group"), a.rows)
	top, candidates := GP64(), GP64()
	a.n, a.magic = s.param("n"), s.number(magic)
	odd := GP32()
	XORL(odd, odd)
	s.passes(a.base, func() {
		nan := a.measure()
		a.first()
		Load(Param("top"), top)
		Load(Param("candidates"), candidates)
		repeat("candidate", candidates, func() {
			a.candidate(top)
			ADDQ(U8(4), top)
		})
		a.finish(nan)
		s.gather(odd, a.odd)
	})
	Store(odd, ReturnIndex(0))
	s.ret()
}

// collect gathers one condition of all vectors in a general register.
func (s isa) collect(condition func(v int) mask) reg.GPVirtual {
	all := GP32()
	for v := range pair {
		bits := s.lanesOf(condition(v))
		if v == 0 {
			MOVL(bits, all)
			continue
		}
		SHLL(U8(uint8(v*s.lanes)), bits)
		ORL(bits, all)
	}
	return all
}

// measure computes extremes and sums and returns the lanes that hold NaN or
// infinities.
func (a *affine) measure() reg.GPVirtual {
	lo, hi, sumW, sumX := a.vecs(pair), a.vecs(pair), a.vecs(pair), a.vecs(pair)
	for v := range pair {
		VMOVUPS(a.at(a.base, rowX, v), lo[v])
		VMOVAPS(lo[v], hi[v])
		// −0 added to the first number leaves it as it is.
		VMOVAPS(a.bits(1<<31), sumW[v])
		VMOVAPS(sumW[v], sumX[v])
	}
	a.elements("measure", a.base, a.rows, func(p reg.GPVirtual, i int) {
		for v := range pair {
			x, w := a.load(a.at(p, rowX+i, v)), a.load(a.at(p, rowW+i, v))
			VMINPS(lo[v], x, lo[v])
			VMAXPS(hi[v], x, hi[v])
			VADDPS(w, sumW[v], sumW[v])
			VMULPS(x, w, w)
			VADDPS(w, sumX[v], sumX[v])
		}
	})
	zero := a.zero(a.vec())
	for v := range pair {
		VMOVUPS(lo[v], a.at(a.base, rowLo, v))
		VMOVUPS(hi[v], a.at(a.base, rowHi, v))
		VMOVUPS(sumW[v], a.at(a.base, rowSum, v))
		VMOVUPS(sumX[v], a.at(a.base, rowSumX, v))
		VMINPS(lo[v], zero, lo[v]) // keeps −0, as lo > 0 does
		VMOVUPS(lo[v], a.at(a.base, rowLow, v))
		VMOVUPS(lo[v], a.at(a.base, rowOrigin, v))
	}
	return a.collect(func(v int) mask { return a.notFinite(sumX[v]) })
}

// scales returns the inverse scales that put the range at top, and notes the
// lanes in which a code can be out of the rounding's range.
func (a *affine) scales(top reg.VecVirtual) []reg.VecVirtual {
	inv, limit, positive := a.vecs(pair), a.number(1<<22), a.bits(signless)
	a.noteOdd(func(v int) mask {
		low, high := a.load(a.at(a.base, rowLo, v)), a.load(a.at(a.base, rowHi, v))
		base := a.load(a.at(a.base, rowLow, v))
		VSUBPS(base, high, high)
		VSUBPS(base, low, low)
		VDIVPS(high, top, inv[v])
		VMULPS(inv[v], high, high)
		VMULPS(inv[v], low, low)
		a.abs(high, positive)
		a.abs(low, positive)
		m := a.cmp(notLess, high, limit)
		a.or(m, a.cmp(notLess, low, limit))
		return m
	})
	return inv
}

func (a *affine) noteOdd(condition func(v int) mask) {
	ORL(a.collect(condition), a.odd)
}

// code sets c to the code of x: x−base times inv, rounded and clamped.
func (a *affine) code(c, x reg.VecVirtual, base Op, inv, zero reg.VecVirtual) {
	VSUBPS(base, x, c)
	VMULPS(c, inv, c)
	VADDPS(a.magic, c, c)
	VSUBPS(a.magic, c, c)
	VMAXPS(zero, c, c)
	VMINPS(a.n, c, c)
}

// addLoss adds the loss of code c (which is overwritten) at element i.
func (a *affine) addLoss(sum, c, scale, low reg.VecVirtual, x, w Op, positive reg.VecVirtual) {
	VMULPS(scale, c, c)
	VADDPS(low, c, c)
	VSUBPS(x, c, c)
	if a.absolute {
		a.abs(c, positive)
	} else {
		VMULPS(c, c, c)
	}
	VMULPS(w, c, c)
	VADDPS(c, sum, sum)
}

// positive returns the mask that addLoss needs, if it does.
func (a *affine) positive() reg.VecVirtual {
	if !a.absolute {
		return nil
	}
	return a.bits(signless)
}

// first measures the grid from the smallest to the largest value.
func (a *affine) first() {
	XORL(a.odd, a.odd)
	inv := a.scales(a.n)
	scale, sum, one := a.vecs(pair), a.vecs(pair), a.number(1)
	for v := range pair {
		VDIVPS(inv[v], one, scale[v])
		VMOVUPS(inv[v], a.at(a.base, rowInv, v))
		VMOVUPS(scale[v], a.at(a.base, rowScale, v))
		base := a.load(a.at(a.base, rowLow, v))
		VMOVUPS(base, a.at(a.base, rowBase, v))
		a.zero(sum[v])
	}
	zero, positive := a.zero(a.vec()), a.positive()
	a.elements("first", a.base, a.rows, func(p reg.GPVirtual, i int) {
		for v := range pair {
			x, c := a.load(a.at(p, rowX+i, v)), a.vec()
			a.code(c, x, a.at(a.base, rowLow, v), inv[v], zero)
			low := a.load(a.at(a.base, rowLow, v))
			a.addLoss(sum[v], c, scale[v], low, x, a.at(p, rowW+i, v), positive)
		}
	})
	for v := range pair {
		VMOVUPS(sum[v], a.at(a.base, rowBest, v))
	}
}

// candidate tries one more grid.
func (a *affine) candidate(top reg.GPVirtual) {
	inv := a.scales(a.splat(Mem{Base: top}))
	s1, s2, sx := a.vecs(pair), a.vecs(pair), a.vecs(pair)
	for v := range pair {
		a.zero(s1[v])
		a.zero(s2[v])
		a.zero(sx[v])
		VMOVUPS(inv[v], a.at(a.base, rowTry, v))
	}
	zero := a.zero(a.vec())
	a.elements("sums", a.base, a.rows, func(p reg.GPVirtual, i int) {
		for v := range pair {
			x, c := a.load(a.at(p, rowX+i, v)), a.vec()
			a.code(c, x, a.at(a.base, rowLow, v), inv[v], zero)
			VMOVUPS(c, a.at(p, rowCodes+i, v))
			w := a.vec()
			VMULPS(a.at(p, rowW+i, v), c, w)
			VADDPS(w, s1[v], s1[v])
			VMULPS(c, w, c)
			VADDPS(c, s2[v], s2[v])
			VMULPS(x, w, w)
			VADDPS(w, sx[v], sx[v])
		}
	})
	scale, low := a.solve(s1, s2, sx)
	sum, positive := a.vecs(pair), a.positive()
	for v := range pair {
		a.zero(sum[v])
	}
	a.elements("loss", a.base, a.rows, func(p reg.GPVirtual, i int) {
		for v := range pair {
			c := a.load(a.at(p, rowCodes+i, v))
			a.addLoss(sum[v], c, scale[v], low[v], a.at(p, rowX+i, v), a.at(p, rowW+i, v), positive)
		}
	})
	a.accept(sum, scale, low)
}

// solve returns the least-squares lines; where there is none, low is NaN, and
// so is the loss, which is below no other.
func (a *affine) solve(s1, s2, sx []reg.VecVirtual) (scale, low []reg.VecVirtual) {
	scale, low = a.vecs(pair), a.vecs(pair)
	for v := range pair {
		w, x := a.load(a.at(a.base, rowSum, v)), a.load(a.at(a.base, rowSumX, v))
		det, t := a.vec(), a.vec()
		VMULPS(w, s2[v], det)
		VMULPS(s1[v], s1[v], t)
		VSUBPS(t, det, det)
		VMULPS(w, sx[v], scale[v])
		VMULPS(x, s1[v], t)
		VSUBPS(t, scale[v], scale[v])
		VDIVPS(det, scale[v], scale[v])
		VMULPS(x, s2[v], low[v])
		VMULPS(s1[v], sx[v], t)
		VSUBPS(t, low[v], low[v])
		VDIVPS(det, low[v], low[v])
		zero := a.zero(a.vec())
		a.choose(a.cmp(lessEqual, det, zero), a.bits(0x7fc00000), low[v])
	}
	positive := a.collect(func(v int) mask { return a.cmp(greater, low[v], a.zero(a.vec())) })
	TESTL(positive, positive)
	JZ(LabelRef("solved"))
	for v := range pair {
		zero, t := a.zero(a.vec()), a.vec()
		m := a.cmp(greater, low[v], zero)
		VDIVPS(s2[v], sx[v], t)
		a.choose(m, t, scale[v])
		a.choose(m, zero, low[v])
	}
	Label("solved")
	return scale, low
}

// accept keeps the grids that are better than the best so far.
func (a *affine) accept(sum, scale, low []reg.VecVirtual) {
	for v := range pair {
		best := a.load(a.at(a.base, rowBest, v))
		m := a.cmp(less, sum[v], best)
		keep := func(row int, with Op) {
			kept := a.load(a.at(a.base, row, v))
			a.choose(m, with, kept)
			VMOVUPS(kept, a.at(a.base, row, v))
		}
		keep(rowBest, sum[v])
		keep(rowScale, scale[v])
		keep(rowInv, a.at(a.base, rowTry, v))
		keep(rowBase, a.at(a.base, rowLow, v))
		keep(rowLow, low[v])
	}
}

// finish writes the minimum, clears flat lanes and completes a.odd.
func (a *affine) finish(nan reg.GPVirtual) {
	zero := a.zero(a.vec())
	flat := a.collect(func(v int) mask {
		hi, origin := a.load(a.at(a.base, rowHi, v)), a.at(a.base, rowOrigin, v)
		m := a.cmp(lessEqual, hi, origin)
		for _, row := range []int{rowScale, rowInv, rowBase} {
			value := a.load(a.at(a.base, row, v))
			a.choose(m, zero, value)
			VMOVUPS(value, a.at(a.base, row, v))
		}
		low := a.load(a.at(a.base, rowLow, v))
		a.choose(m, origin, low)
		negate := a.bits(1 << 31)
		VXORPS(negate, low, low)
		VMOVUPS(low, a.at(a.base, rowMin, v))
		return m
	})
	NOTL(flat)
	ANDL(flat, a.odd)
	ORL(nan, a.odd)
}
