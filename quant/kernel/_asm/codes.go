package main

import (
	. "github.com/mmcloughlin/avo/build"
	. "github.com/mmcloughlin/avo/operand"
	"github.com/mmcloughlin/avo/reg"
)

// tile reads 8 elements of 8 rows and hands on columns of 8 lanes, in order.
// lower and upper point at rows 0 and 4; the rows are stride bytes apart.
func (s isa) tile(lower, upper, stride, stride3 reg.GPVirtual, column func(i int, v reg.VecVirtual)) {
	for half := range 2 {
		row := func(base reg.GPVirtual, i int) Mem {
			m := Mem{Base: base, Disp: 16 * half}
			switch i {
			case 1:
				m.Index, m.Scale = stride, 1
			case 2:
				m.Index, m.Scale = stride, 2
			case 3:
				m.Index, m.Scale = stride3, 1
			}
			return m
		}
		r, t, out := s.vecs(4), s.vecs(4), s.vecs(4)
		for i := range r {
			VBROADCASTF128(row(lower, i), r[i])
			VINSERTF128(U8(1), row(upper, i), r[i], r[i])
		}
		VUNPCKLPS(r[1], r[0], t[0])
		VUNPCKHPS(r[1], r[0], t[1])
		VUNPCKLPS(r[3], r[2], t[2])
		VUNPCKHPS(r[3], r[2], t[3])
		VUNPCKLPD(t[2], t[0], out[0])
		VUNPCKHPD(t[2], t[0], out[1])
		VUNPCKLPD(t[3], t[1], out[2])
		VUNPCKHPD(t[3], t[1], out[3])
		for i, v := range out {
			column(4*half+i, v)
		}
	}
	ADDQ(U8(32), lower)
	ADDQ(U8(32), upper)
}

// transpose writes the kernel that lays groups out side by side.
func transpose() {
	s := isa{name: "AVX2", lanes: 8}
	s.text("transpose", "func(dst *[32][32]float32, src *float32, group int)",
		"dst[i][k] = src[k·group+i] for 32 groups: one group per lane.")
	dst, src, group := GP64(), GP64(), GP64()
	Load(Param("dst"), dst)
	Load(Param("src"), src)
	Load(Param("group"), group)
	stride, stride3, lanes := GP64(), GP64(), GP64()
	MOVQ(group, stride)
	SHLQ(U8(2), stride)
	LEAQ(Mem{Base: stride, Index: stride, Scale: 2}, stride3)
	MOVQ(U32(4), lanes)
	repeat("lanes", lanes, func() {
		upper, d, n := GP64(), GP64(), GP64()
		LEAQ(Mem{Base: src, Index: stride, Scale: 4}, upper)
		MOVQ(dst, d)
		MOVQ(group, n)
		SHRQ(U8(3), n)
		repeat("tile", n, func() {
			s.tile(src, upper, stride, stride3, func(i int, v reg.VecVirtual) {
				VMOVUPS(v, Mem{Base: d, Disp: i * rowBytes})
			})
			ADDQ(U32(8*rowBytes), d)
		})
		// src moved by one group; eight are done.
		LEAQ(Mem{Base: src, Index: stride, Scale: 4}, src)
		ADDQ(stride3, src)
		ADDQ(U8(32), dst)
	})
	s.ret()
}

// sumSquares writes the sums that the variance of super-blocks needs.
func sumSquares() {
	s := isa{name: "AVX2", lanes: 8}
	s.text("sumSquares", "func(dst *[8]float32, src *float32, length int)",
		"dst[k] = quant.sumSquares(src[k·length:][:length]).")
	src, upper, n := GP64(), GP64(), GP64()
	Load(Param("src"), src)
	Load(Param("length"), n)
	stride, stride3 := GP64(), GP64()
	MOVQ(n, stride)
	SHLQ(U8(2), stride)
	LEAQ(Mem{Base: stride, Index: stride, Scale: 2}, stride3)
	LEAQ(Mem{Base: src, Index: stride, Scale: 4}, upper)
	SHRQ(U8(3), n)
	sum := s.zero(s.vec())
	repeat("tile", n, func() {
		s.tile(src, upper, stride, stride3, func(i int, v reg.VecVirtual) {
			VMULPS(v, v, v)
			VADDPS(v, sum, sum)
		})
	})
	dst := GP64()
	Load(Param("dst"), dst)
	VMOVUPS(sum, Mem{Base: dst})
	s.ret()
}

// codes writes the kernels that turn numbers into codes once the grid is known.
func (s isa) codes(name string, divide bool) {
	formula := "scale[g]·(x−offset[g])"
	if divide {
		formula = "(x+offset[g])/scale[g]"
	}
	s.text(name, "func(dst *uint8, x, offset, scale *float32, groups, group int, lo, hi int32)",
		"the rounding of whole groups: with v = "+formula+" each code is",
		"max(lo, min(hi, nearest(v))) − lo, where nearest is quant.nearest with all its oddities.")
	dst, x, offset, scale := GP64(), GP64(), GP64(), GP64()
	groups, units := GP64(), GP64()
	Load(Param("dst"), dst)
	Load(Param("x"), x)
	Load(Param("offset"), offset)
	Load(Param("scale"), scale)
	Load(Param("groups"), groups)
	lo, hi := s.param("lo"), s.param("hi")
	rounding, mantissa, half := s.number(magic), s.bits(0x7fffff), s.bits(0x400000)
	repeat("group", groups, func() {
		off, sc := s.splat(Mem{Base: offset}), s.splat(Mem{Base: scale})
		Load(Param("group"), units)
		SHRQ(U8(4), units)
		repeat("unit", units, func() {
			var c []reg.VecVirtual
			for v := range 16 / s.lanes {
				t := s.load(Mem{Base: x, Disp: v * s.size()})
				if divide {
					VADDPS(off, t, t)
					VDIVPS(sc, t, t)
				} else {
					VSUBPS(off, t, t)
					VMULPS(sc, t, t)
				}
				VADDPS(rounding, t, t)
				s.abs(t, mantissa)
				VPSUBD(half, t, t)
				VPMINSD(hi, t, t)
				VPMAXSD(lo, t, t)
				VPSUBD(lo, t, t)
				c = append(c, t)
			}
			s.storeBytes(c, Mem{Base: dst})
			ADDQ(U8(64), x)
			ADDQ(U8(16), dst)
		})
		ADDQ(U8(4), offset)
		ADDQ(U8(4), scale)
	})
	s.ret()
}

// param returns a vector of a 32-bit parameter.
func (s isa) param(name string) reg.VecVirtual {
	p, err := Param(name).Resolve()
	if err != nil {
		panic(err)
	}
	return s.splat(p.Addr)
}

// storeBytes stores 16 integers from 0 to 255 as bytes.
func (s isa) storeBytes(c []reg.VecVirtual, dst Mem) {
	if s.wide() {
		VPMOVDB(c[0], dst)
		return
	}
	words, high := YMM(), XMM()
	VPACKUSDW(c[1], c[0], words)
	VPERMQ(U8(0xd8), words, words)
	VEXTRACTI128(U8(1), words, high)
	VPACKUSWB(high, words.AsX(), high)
	VMOVDQU(high, dst)
}
