package main

import (
	. "github.com/mmcloughlin/avo/build"
	. "github.com/mmcloughlin/avo/operand"
	"github.com/mmcloughlin/avo/reg"
)

// inner fuses multiplication and addition, which changes nothing: the product of
// two float32 is exact.
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
