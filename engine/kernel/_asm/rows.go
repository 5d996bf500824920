package main

import (
	. "github.com/mmcloughlin/avo/build"
	. "github.com/mmcloughlin/avo/operand"
	"github.com/mmcloughlin/avo/reg"
)

// halves converts eight float32 to two vectors of float64.
func halves(v reg.VecVirtual) []reg.VecVirtual {
	low, high, upper := YMM(), YMM(), XMM()
	VEXTRACTF128(U8(1), v, upper)
	VCVTPS2PD(v.AsX(), low)
	VCVTPS2PD(upper, high)
	return []reg.VecVirtual{low, high}
}

// whole rounds two vectors of float64 to eight float32.
func whole(x []reg.VecVirtual) reg.VecVirtual {
	low, high, v := XMM(), XMM(), YMM()
	VCVTPD2PSY(x[0], low)
	VCVTPD2PSY(x[1], high)
	VINSERTF128(U8(1), high, low.AsY(), v)
	return v
}

// single returns the address of eight times a float32.
func single(bits uint32) Mem { return quad(uint64(bits)<<32 | uint64(bits)) }

// spread returns a vector of a float32 parameter.
func spread(name string, offset int) reg.VecVirtual {
	v := YMM()
	VBROADCASTSS(NewParamAddr(name, offset), v)
	return v
}

// Float32 constants, as exp.go has them.
const (
	one       = 0x3f800000
	half      = 0x3f000000
	geluCube  = 0x3d372713 // 0.044715
	geluScale = 0x3f4c422a // √(2/π)
	signs     = 0x80000000
)

// timesUp multiplies v by the numbers of up, if there are some.
func timesUp(v reg.VecVirtual, up reg.GPVirtual) {
	TESTQ(up, up)
	JZ(LabelRef("alone"))
	VMULPS(at(up, 0), v, v)
	ADDQ(U8(32), up)
	Label("alone")
}

// gate multiplies by the sigmoid.
func gate() {
	text("gateAVX2", "func(x, up *float32, scale float32, eights int)", "is Gate for eights times eight numbers. up may be nil.")
	g, up, n := parameter("x"), parameter("up"), parameter("eights")
	scale := spread("scale", 16)
	repeat("eight", n, func() {
		t, v := YMM(), YMM()
		VMOVUPS(at(g, 0), v)
		VMULPS(scale, v, t)
		VXORPS(single(signs), t, t)
		x := halves(t)
		bounded(x)
		s := whole(x)
		VADDPS(single(one), s, s)
		VMOVUPS(single(one), t)
		VDIVPS(s, t, t)
		VMULPS(t, v, v)
		timesUp(v, up)
		VMOVUPS(v, at(g, 0))
		ADDQ(U8(32), g)
	})
	VZEROUPPER()
	RET()
}

// gelu is the activation of the same name.
func gelu() {
	text("geluAVX2", "func(x, up *float32, eights int)", "is GELUs for eights times eight numbers. up may be nil.")
	g, up, n := parameter("x"), parameter("up"), parameter("eights")
	repeat("eight", n, func() {
		t, v := YMM(), YMM()
		VMOVUPS(at(g, 0), v)
		VMULPS(v, v, t)
		VMULPS(v, t, t)
		VMULPS(single(geluCube), t, t)
		VADDPS(v, t, t)
		VMULPS(single(geluScale), t, t)
		x := halves(t)
		tanh(x)
		s := whole(x)
		VADDPS(single(one), s, s)
		VMULPS(single(half), v, v)
		VMULPS(s, v, v)
		timesUp(v, up)
		VMOVUPS(v, at(g, 0))
		ADDQ(U8(32), g)
	})
	VZEROUPPER()
	RET()
}

// softcap bounds numbers.
func softcap() {
	text("softcapAVX2", "func(x *float32, scale, limit float32, eights int)", "is Softcap for eights times eight numbers.")
	x, n := parameter("x"), parameter("eights")
	scale, limit := spread("scale", 8), spread("limit", 12)
	repeat("eight", n, func() {
		v := YMM()
		VMULPS(at(x, 0), scale, v)
		VDIVPS(limit, v, v)
		y := halves(v)
		tanh(y)
		v = whole(y)
		VMULPS(limit, v, v)
		VMOVUPS(v, at(x, 0))
		ADDQ(U8(32), x)
	})
	VZEROUPPER()
	RET()
}

// folded returns a vector whose first lane is the largest of v.
func folded(v reg.VecVirtual, max func(a, b, dst Op)) reg.VecVirtual {
	x := XMM()
	VEXTRACTF128(U8(1), v, x)
	max(v.AsX(), x, x)
	for _, swap := range []uint8{0x4e, 0xb1} {
		t := XMM()
		VPSHUFD(U8(swap), x, t)
		max(t, x, x)
	}
	return x
}

// largestFloat writes the largest lane to a result, largestWord that of
// unsigned integers.
func largestFloat(v reg.VecVirtual, result int) {
	Store(folded(v, func(a, b, dst Op) { VMAXPS(a, b, dst) }), ReturnIndex(result))
}

func largestWord(v reg.VecVirtual, result int) {
	r := GP32()
	VMOVD(folded(v, func(a, b, dst Op) { VPMAXUD(a, b, dst) }), r)
	Store(r, ReturnIndex(result))
}

// scaledTop begins a softmax.
func scaledTop() {
	text("scaledTopAVX2", "func(x *float32, scale, top float32, eights int) float32",
		"multiplies eights times eight numbers by scale and returns the largest", "of them and top.")
	x, n := parameter("x"), parameter("eights")
	scale, top := spread("scale", 8), spread("top", 12)
	repeat("eight", n, func() {
		v := YMM()
		VMULPS(at(x, 0), scale, v)
		VMOVUPS(v, at(x, 0))
		VMAXPS(top, v, top) // top, where v is NaN
		ADDQ(U8(32), x)
	})
	largestFloat(top, 0)
	VZEROUPPER()
	RET()
}

// expsBelow goes on with it.
func expsBelow() {
	text("expsBelowAVX2", "func(sums *[4]float64, x *float32, top float32, eights int)",
		"replaces eights times eight numbers by the exponential of what they are", "above top, and adds every fourth to a sum.")
	sums, x, n := parameter("sums"), parameter("x"), parameter("eights")
	top, s := spread("top", 16), YMM()
	VMOVUPD(at(sums, 0), s)
	repeat("eight", n, func() {
		v := YMM()
		VMOVUPS(at(x, 0), v)
		VSUBPS(top, v, v)
		y := halves(v)
		bounded(y)
		v = whole(y)
		VMOVUPS(v, at(x, 0))
		for _, part := range halves(v) {
			VADDPD(part, s, s)
		}
		ADDQ(U8(32), x)
	})
	VMOVUPD(s, at(sums, 0))
	VZEROUPPER()
	RET()
}

// extremes finds the largest number and numbers that are not finite.
func extremes() {
	text("extremesAVX2", "func(x *float32, eights int) (top float32, bits uint32)", "is extremes for eights times eight numbers.")
	x, n := parameter("x"), parameter("eights")
	top, bits, signless := YMM(), YMM(), YMM()
	VXORPS(bits, bits, bits)
	VBROADCASTSS(at(x, 0), top)
	VMOVUPS(single(signs-1), signless)
	repeat("eight", n, func() {
		v := YMM()
		VMOVUPS(at(x, 0), v)
		VMAXPS(top, v, top)
		VANDPS(signless, v, v)
		VPMAXUD(v, bits, bits)
		ADDQ(U8(32), x)
	})
	largestFloat(top, 0)
	largestWord(bits, 1)
	VZEROUPPER()
	RET()
}

// sumSquares sums in eight lanes.
func sumSquares() {
	text("sumSquaresAVX2", "func(sums *[8]float64, x *float32, eights int)", "is sumSquares for eights times eight numbers.")
	sums, x, n := parameter("sums"), parameter("x"), parameter("eights")
	s := []reg.VecVirtual{YMM(), YMM()}
	for v := range s {
		VMOVUPD(at(sums, 32*v), s[v])
	}
	repeat("eight", n, func() {
		for v := range s {
			a := YMM()
			VCVTPS2PD(at(x, 16*v), a)
			VMULPD(a, a, a)
			VADDPD(a, s[v], s[v])
		}
		ADDQ(U8(32), x)
	})
	for v := range s {
		VMOVUPD(s[v], at(sums, 32*v))
	}
	VZEROUPPER()
	RET()
}

// addSquares adds to a sum per number.
func addSquares() {
	text("addSquaresAVX2", "func(sums *float64, x *float32, eights int)", "is AddSquares for eights times eight numbers.")
	sums, x, n := parameter("sums"), parameter("x"), parameter("eights")
	repeat("eight", n, func() {
		for v := range 2 {
			a := YMM()
			VCVTPS2PD(at(x, 16*v), a)
			VMULPD(a, a, a)
			VADDPD(at(sums, 32*v), a, a)
			VMOVUPD(a, at(sums, 32*v))
		}
		ADDQ(U8(32), x)
		ADDQ(U8(64), sums)
	})
	VZEROUPPER()
	RET()
}

// addScaled64 is addScaled in float64.
func addScaled64() {
	text("addScaled64AVX2", "func(dst, x *float64, scale float64, eights int)", "is AddScaled64 for eights times eight numbers.")
	dst, x, n := parameter("dst"), parameter("x"), parameter("eights")
	scale := YMM()
	VBROADCASTSD(NewParamAddr("scale", 16), scale)
	repeat("eight", n, func() {
		for v := range 2 {
			a := YMM()
			VMULPD(at(x, 32*v), scale, a)
			VADDPD(at(dst, 32*v), a, a)
			VMOVUPD(a, at(dst, 32*v))
		}
		ADDQ(U8(64), x)
		ADDQ(U8(64), dst)
	})
	VZEROUPPER()
	RET()
}

// scaled multiplies twice.
func scaled() {
	text("scaledAVX2", "func(dst, x, w *float32, scale float32, eights int)", "is Scaled for eights times eight numbers. w may be nil.")
	dst, x, w, n := parameter("dst"), parameter("x"), parameter("w"), parameter("eights")
	scale := spread("scale", 24)
	repeat("eight", n, func() {
		v := YMM()
		VMULPS(at(x, 0), scale, v)
		timesUp(v, w)
		VMOVUPS(v, at(dst, 0))
		ADDQ(U8(32), x)
		ADDQ(U8(32), dst)
	})
	VZEROUPPER()
	RET()
}
