package main

import (
	. "github.com/mmcloughlin/avo/build"
	. "github.com/mmcloughlin/avo/operand"
	"github.com/mmcloughlin/avo/reg"
)

// addSquares fuses multiplication and addition, which changes nothing: the
// square of a float32 is exact.
func addSquares() {
	text("addSquaresAVX2", "func(sums *float64, x *float32, eights int)", "is AddSquares for eights times eight numbers.")
	sums, src, n := parameter("sums"), parameter("x"), parameter("eights")
	repeat("eight", n, func() {
		for v := range side {
			x, s := YMM(), YMM()
			VCVTPS2PD(at(src, 16*v), x)
			VMOVUPD(at(sums, 32*v), s)
			VFMADD231PD(x, x, s)
			VMOVUPD(s, at(sums, 32*v))
		}
		ADDQ(U8(32), src)
		ADDQ(U8(64), sums)
	})
	VZEROUPPER()
	RET()
}

// addProducts adds products that are rounded.
func addProducts() {
	text("addProductsAVX2", "func(sums, x *float64, a float64, eights int)", "is AddProducts for eights times eight numbers.")
	sums, src, n := parameter("sums"), parameter("x"), parameter("eights")
	a := YMM()
	VBROADCASTSD(NewParamAddr("a", 16), a)
	repeat("eight", n, func() {
		for v := range side {
			x := YMM()
			VMULPD(at(src, 32*v), a, x)
			VADDPD(at(sums, 32*v), x, x)
			VMOVUPD(x, at(sums, 32*v))
		}
		ADDQ(U8(64), src)
		ADDQ(U8(64), sums)
	})
	VZEROUPPER()
	RET()
}

// inner fuses as addSquares does.
func inner() {
	text("innerAVX2", "func(sums *[8]float64, x, y *float32, eights int)", "is Inner for eights times eight numbers, without the addition of sums.")
	sums, x, y, n := parameter("sums"), parameter("x"), parameter("y"), parameter("eights")
	s := make([]reg.VecVirtual, side)
	for v := range s {
		s[v] = YMM()
		VMOVUPD(at(sums, 32*v), s[v])
	}
	repeat("eight", n, func() {
		for v := range s {
			a, b := YMM(), YMM()
			VCVTPS2PD(at(x, 16*v), a)
			VCVTPS2PD(at(y, 16*v), b)
			VFMADD231PD(a, b, s[v])
		}
		ADDQ(U8(32), x)
		ADDQ(U8(32), y)
	})
	for v := range s {
		VMOVUPD(s[v], at(sums, 32*v))
	}
	VZEROUPPER()
	RET()
}
