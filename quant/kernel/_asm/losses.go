package main

import (
	. "github.com/mmcloughlin/avo/build"
	. "github.com/mmcloughlin/avo/operand"
	"github.com/mmcloughlin/avo/reg"
)

// unit is the number of scales that losses are computed for at once.
const unit = 16

// losses writes the kernels of quant's thorough search.
func losses() {
	for _, s := range sets {
		s.gridLosses()
		s.squaredErrors()
	}
}

// gridLosses writes the errors of a group under many grids, one grid per lane.
func (s isa) gridLosses() {
	s.text("gridLosses", "func(out, x, w *float32, length int, inv, square *float32, units int, offset *float32, offsets int, lo, hi float32)",
		"quant.gridLosses: for each 16 scales and each offset the 16 errors of the group x.")
	out, x, w, length := GP64(), GP64(), GP64(), GP64()
	inv, square, units := GP64(), GP64(), GP64()
	Load(Param("out"), out)
	Load(Param("x"), x)
	Load(Param("w"), w)
	Load(Param("length"), length)
	Load(Param("inv"), inv)
	Load(Param("square"), square)
	Load(Param("units"), units)
	lo, hi := s.param("lo"), s.param("hi")
	repeat("unit", units, func() {
		inverses := s.vecs(unit / s.lanes)
		for v := range inverses {
			VMOVUPS(Mem{Base: inv, Disp: v * s.size()}, inverses[v])
		}
		offset, offsets := GP64(), GP64()
		Load(Param("offset"), offset)
		Load(Param("offsets"), offsets)
		repeat("offset", offsets, func() {
			off, sums := s.splat(Mem{Base: offset}), s.vecs(unit/s.lanes)
			for _, v := range sums {
				s.zero(v)
			}
			i := GP64()
			XORQ(i, i)
			Label("element")
			xi, wi := s.splat(Mem{Base: x, Index: i, Scale: 4}), s.splat(Mem{Base: w, Index: i, Scale: 4})
			VADDPS(off, xi, xi)
			for v := range sums {
				value, t := s.vec(), s.vec()
				VMULPS(inverses[v], xi, value)
				s.level(value, lo, hi, t)
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
			ADDQ(U8(4), offset)
		})
		ADDQ(U8(4*unit), inv)
		ADDQ(U8(4*unit), square)
	})
	s.ret()
}

// level sets t to the integer from lo to hi nearest to v, of two the even one.
func (s isa) level(v, lo, hi, t reg.VecVirtual) {
	VMINPS(hi, v, t)
	VMAXPS(lo, t, t)
	if s.wide() {
		VRNDSCALEPS(U8(8), t, t)
	} else {
		VROUNDPS(U8(8), t, t)
	}
}

// squaredErrors writes the error of encoded numbers.
func (s isa) squaredErrors() {
	s.text("squaredErrors", "func(sums *[8]float64, x, y, w *float32, length int)",
		"quant.squaredErrors: the sums of w·(x−y)² over every eighth element, from each of the",
		"first eight on. length is a multiple of 8.")
	x, y, w, n := GP64(), GP64(), GP64(), GP64()
	Load(Param("x"), x)
	Load(Param("y"), y)
	Load(Param("w"), w)
	Load(Param("length"), n)
	SHRQ(U8(3), n)
	sums := s.vecs(16 / s.lanes)
	for _, v := range sums {
		s.zero(v)
	}
	repeat("eight", n, func() {
		for v := range sums {
			doubles := func(from reg.GPVirtual) reg.VecVirtual {
				d := s.vec()
				VCVTPS2PD(Mem{Base: from, Disp: v * s.size() / 2}, d)
				return d
			}
			e := doubles(x)
			VSUBPD(doubles(y), e, e)
			VMULPD(e, e, e)
			VMULPD(doubles(w), e, e)
			VADDPD(e, sums[v], sums[v])
		}
		for _, p := range []reg.GPVirtual{x, y, w} {
			ADDQ(U8(32), p)
		}
	})
	out := GP64()
	Load(Param("sums"), out)
	for v := range sums {
		VMOVUPD(sums[v], Mem{Base: out, Disp: v * s.size()})
	}
	s.ret()
}
