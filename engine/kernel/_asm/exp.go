package main

import (
	"math"

	. "github.com/mmcloughlin/avo/build"
	. "github.com/mmcloughlin/avo/operand"
	"github.com/mmcloughlin/avo/reg"
)

// As in exp.go.
const (
	ln2High = 6.93147180369123816490e-01
	ln2Low  = 1.90821492927058770002e-10
)

var taylor = [...]float64{1. / 3628800, 1. / 362880, 1. / 40320, 1. / 5040, 1. / 720, 1. / 120, 1. / 24, 1. / 6, 1. / 2, 1, 1}

// numbers are the float64 constants already written.
var numbers = map[uint64]Mem{}

// number returns the address of a constant.
func number(v float64) Mem { return quad(math.Float64bits(v)) }

// quad returns the address of four times eight bytes.
func quad(bits uint64) Mem {
	if m, ok := numbers[bits]; ok {
		return m
	}
	m := GLOBL("number"+itoa(len(numbers)), RODATA|NOPTR)
	for i := range 4 {
		DATA(8*i, U64(bits))
	}
	numbers[bits] = m
	return m
}

// side is how many vectors of four are worked on side by side.
const side = 2

// exp64 replaces x by its exponential, as exp.go has it.
func exp64(x []reg.VecVirtual) {
	n, s := make([]reg.VecVirtual, side), make([]reg.VecVirtual, side)
	for v := range x {
		n[v], s[v] = YMM(), YMM()
		VMULPD(number(math.Log2E), x[v], n[v])
		VADDPD(number(0.5), n[v], n[v])
		VROUNDPD(U8(1), n[v], n[v]) // down
		t := YMM()
		VMULPD(number(ln2High), n[v], t)
		VSUBPD(t, x[v], x[v])
		VMULPD(number(ln2Low), n[v], t)
		VSUBPD(t, x[v], x[v])
		VMOVUPD(number(taylor[0]), s[v])
	}
	for _, c := range taylor[1:] {
		for v := range x {
			VMULPD(x[v], s[v], s[v])
			VADDPD(number(c), s[v], s[v])
		}
	}
	for v := range x {
		VCVTPD2DQY(n[v], n[v].AsX())
		VPMOVSXDQ(n[v].AsX(), n[v])
		VPADDQ(quad(1023), n[v], n[v])
		VPSLLQ(U8(52), n[v], n[v])
		VMULPD(n[v], s[v], x[v])
	}
}

// Comparisons, false for NaN but for the last.
const (
	below    = 0x11
	beyond   = 0x1e
	unsorted = 0x03
)

// replace sets v to value where x compares so with limit.
func replace(v, x reg.VecVirtual, predicate uint8, limit, value Op) {
	m := YMM()
	VCMPPD(U8(predicate), limit, x, m)
	VBLENDVPD(m, value, v, v)
}

// copies returns copies of vectors.
func copies(x []reg.VecVirtual) []reg.VecVirtual {
	c := make([]reg.VecVirtual, len(x))
	for v := range x {
		c[v] = YMM()
		VMOVAPD(x[v], c[v])
	}
	return c
}

// bounded is exp64 for all numbers, as Exp.
func bounded(x []reg.VecVirtual) {
	was := copies(x)
	exp64(x)
	for v := range x {
		replace(x[v], was[v], beyond, number(89), number(math.Inf(1)))
		zero := YMM()
		VXORPD(zero, zero, zero)
		replace(x[v], was[v], below, number(-104), zero)
		replace(x[v], was[v], unsorted, was[v], was[v])
	}
}

// tanh replaces x by its hyperbolic tangent, as Tanh.
func tanh(x []reg.VecVirtual) {
	was := copies(x)
	for v := range x {
		VADDPD(x[v], x[v], x[v])
	}
	exp64(x)
	for v := range x {
		above := YMM()
		VADDPD(number(1), x[v], above)
		VSUBPD(number(1), x[v], x[v])
		VDIVPD(above, x[v], x[v])
		replace(x[v], was[v], beyond, number(20), number(1))
		replace(x[v], was[v], below, number(-20), number(-1))
		small, size := YMM(), YMM()
		VMULPD(was[v], was[v], small)
		VMULPD(was[v], small, small)
		VDIVPD(number(3), small, small)
		VSUBPD(small, was[v], small)
		VANDPD(quad(1<<63-1), was[v], size)
		replace(x[v], size, below, number(1e-3), small)
	}
}

// sumExp adds exponentials, and what crossExp has besides.
func sumExp(cross bool) {
	name, signature, topAt := "sumExp", "func(sums *[8]float64, x *float32, top float64, eights int)", 16
	if cross {
		name, signature, topAt = "crossExp", "func(sums *[16]float64, x, y *float32, top float64, eights int)", 24
	}
	text(name+"AVX2", signature, "is "+name+" for eights times eight numbers, none of them NaN.")
	sums, src, n := parameter("sums"), parameter("x"), parameter("eights")
	var other reg.GPVirtual
	top, s := YMM(), make([]reg.VecVirtual, side)
	VBROADCASTSD(NewParamAddr("top", topAt), top)
	if cross {
		other = parameter("y")
		s = make([]reg.VecVirtual, 2*side)
	}
	for v := range s {
		s[v] = YMM()
		VMOVUPD(at(sums, 32*v), s[v])
	}
	repeat("eight", n, func() {
		x := make([]reg.VecVirtual, side)
		for v := range x {
			x[v] = YMM()
			VCVTPS2PD(at(src, 16*v), x[v])
			VSUBPD(top, x[v], x[v])
			VMAXPD(number(lowest), x[v], x[v])
		}
		exp64(x)
		for v := range x {
			VADDPD(x[v], s[v], s[v])
			if cross {
				a, b := YMM(), YMM()
				VCVTPS2PD(at(src, 16*v), a)
				VCVTPS2PD(at(other, 16*v), b)
				VSUBPD(b, a, a)
				VMULPD(x[v], a, a)
				VADDPD(a, s[side+v], s[side+v])
			}
		}
		ADDQ(U8(32), src)
		if cross {
			ADDQ(U8(32), other)
		}
	})
	for v := range s {
		VMOVUPD(s[v], at(sums, 32*v))
	}
	VZEROUPPER()
	RET()
}

// lowest is the least argument of exp64, as in exp.go.
const lowest = -700

// largest finds numbers that are not finite.
func largest() {
	text("largestAVX2", "func(x *float32, eights int) uint32", "is largest for eights times eight numbers.")
	src, n := parameter("x"), parameter("eights")
	top, signless := YMM(), YMM()
	VXORPS(top, top, top)
	VMOVUPS(single(signs-1), signless)
	repeat("eight", n, func() {
		v := YMM()
		VANDPS(at(src, 0), signless, v)
		VPMAXUD(v, top, top)
		ADDQ(U8(32), src)
	})
	largestWord(top, 0)
	VZEROUPPER()
	RET()
}

// addScaled adds products that are rounded.
func addScaled() {
	text("addScaledAVX2", "func(dst, x *float32, scale float32, eights int)", "is AddScaled for eights times eight numbers.")
	dst, src, n := parameter("dst"), parameter("x"), parameter("eights")
	scale := YMM()
	VBROADCASTSS(NewParamAddr("scale", 16), scale)
	repeat("eight", n, func() {
		v := YMM()
		VMULPS(at(src, 0), scale, v)
		VADDPS(at(dst, 0), v, v)
		VMOVUPS(v, at(dst, 0))
		ADDQ(U8(32), src)
		ADDQ(U8(32), dst)
	})
	VZEROUPPER()
	RET()
}
