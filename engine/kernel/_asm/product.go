package main

import (
	. "github.com/mmcloughlin/avo/build"
	. "github.com/mmcloughlin/avo/operand"
	"github.com/mmcloughlin/avo/reg"
)

// xStride is the distance of the rows of x in bytes, as in matmul.go.
const xStride = 4 * (256 + 16)

// vectors is the width of a panel.
const vectors = 2

// product writes the micro-kernel of so many rows.
func (s isa) product(rows int) {
	text("product"+itoa(rows)+s.name, "func(dst *float32, stride int, c *float64, x, w *float32, k int)",
		"is product for "+itoa(rows)+" rows of x and a panel of "+itoa(vectors*s.lanes)+" columns.")
	x, w, k := parameter("x"), parameter("w"), parameter("k")
	sums := make([]reg.VecVirtual, vectors*rows)
	for i := range sums {
		sums[i] = s.vec()
		VXORPS(sums[i].AsX(), sums[i].AsX(), sums[i].AsX())
	}
	s.sumProducts(sums, x, w, k)
	s.store(sums)
}

// unrolled is the number of products per element in a turn of the loop.
const unrolled = 4

func (s isa) sumProducts(sums []reg.VecVirtual, x, w, k reg.GPVirtual) {
	turns := GP64()
	MOVQ(k, turns)
	SHRQ(U8(2), turns)
	JZ(LabelRef("rest"))
	repeat("turn", turns, func() { s.steps(sums, x, w, unrolled) })
	Label("rest")
	ANDQ(U8(unrolled-1), k)
	JZ(LabelRef("summed"))
	repeat("step", k, func() { s.steps(sums, x, w, 1) })
	Label("summed")
}

// steps adds n products to every sum.
func (s isa) steps(sums []reg.VecVirtual, x, w reg.GPVirtual, n int) {
	for u := range n {
		var b [vectors]reg.VecVirtual
		for v := range b {
			b[v] = s.vec()
			VMOVUPS(at(w, (u*vectors+v)*s.size()), b[v])
		}
		for i := range len(sums) / vectors {
			a := s.vec()
			VBROADCASTSS(at(x, i*xStride+4*u), a)
			for v := range b {
				VFMADD231PS(b[v], a, sums[i*vectors+v])
			}
		}
	}
	ADDQ(U8(4*n), x)
	ADDQ(U32(uint32(n*vectors*s.size())), w)
}

// store adds the sums to c, or rounds their sum with c to dst, or without c
// writes them to dst.
func (s isa) store(sums []reg.VecVirtual) {
	dst, stride, c := parameter("dst"), parameter("stride"), parameter("c")
	SHLQ(U8(2), stride)
	TESTQ(c, c)
	JZ(LabelRef("direct"))
	TESTQ(dst, dst)
	JZ(LabelRef("keep"))
	for i, sum := range sums {
		low, high := s.added(sum, c, i)
		VMOVUPS(s.joined(low, high), at(dst, i%vectors*s.size()))
		nextRow(i, dst, stride)
	}
	s.ret()
	Label("keep")
	for i, sum := range sums {
		low, high := s.added(sum, c, i)
		VMOVUPD(low, at(c, 2*i*s.size()))
		VMOVUPD(high, at(c, (2*i+1)*s.size()))
	}
	s.ret()
	Label("direct")
	zero := s.vec()
	VXORPS(zero.AsX(), zero.AsX(), zero.AsX())
	for i, sum := range sums {
		VADDPS(sum, zero, sum) // -0 becomes 0, as in float64
		VMOVUPS(sum, at(dst, i%vectors*s.size()))
		nextRow(i, dst, stride)
	}
	s.ret()
}

func (s isa) ret() { VZEROUPPER(); RET() }

// nextRow advances dst behind the last vector of a row.
func nextRow(i int, dst, stride reg.GPVirtual) {
	if i%vectors == vectors-1 {
		ADDQ(stride, dst)
	}
}

// added returns both halves of a vector, in float64, plus those in c.
func (s isa) added(sum reg.VecVirtual, c reg.GPVirtual, i int) (low, high reg.VecVirtual) {
	low, high = s.vec(), s.vec()
	if s.wide() {
		y := YMM()
		VEXTRACTF64X4(U8(1), sum, y)
		VCVTPS2PD(sum.AsY(), low)
		VCVTPS2PD(y, high)
	} else {
		x := XMM()
		VEXTRACTF128(U8(1), sum, x)
		VCVTPS2PD(sum.AsX(), low)
		VCVTPS2PD(x, high)
	}
	VADDPD(at(c, 2*i*s.size()), low, low)
	VADDPD(at(c, (2*i+1)*s.size()), high, high)
	return low, high
}

// joined rounds two halves to a vector of float32.
func (s isa) joined(low, high reg.VecVirtual) reg.VecVirtual {
	if s.wide() {
		VCVTPD2PS(low, low.AsY())
		VCVTPD2PS(high, high.AsY())
		VINSERTF64X4(U8(1), high.AsY(), low, low)
		return low
	}
	VCVTPD2PSY(low, low.AsX())
	VCVTPD2PSY(high, high.AsX())
	VINSERTF128(U8(1), high.AsX(), low, low)
	return low
}

// transpose writes eight rows as columns.
func transpose() {
	text("transpose8AVX2", "func(dst *float32, dstStride int, src *float32, srcStride int, blocks int)",
		"writes element k of eight rows, srcStride apart, side by side to dst from", "k·dstStride on, for 8·blocks elements. Strides are in elements.")
	dst, ds, src, ss, n := parameter("dst"), parameter("dstStride"), parameter("src"), parameter("srcStride"), parameter("blocks")
	SHLQ(U8(2), ds)
	SHLQ(U8(2), ss)
	repeat("block", n, func() {
		r := make([]reg.VecVirtual, 8)
		row := GP64()
		MOVQ(src, row)
		for i := range r {
			r[i] = YMM()
			VMOVUPS(at(row, 0), r[i])
			ADDQ(ss, row)
		}
		for _, v := range turned(r) {
			VMOVUPS(v, at(dst, 0))
			ADDQ(ds, dst)
		}
		ADDQ(U8(32), src)
	})
	VZEROUPPER()
	RET()
}

// turned transposes 8×8 numbers.
func turned(r []reg.VecVirtual) []reg.VecVirtual {
	pairs := make([]reg.VecVirtual, 8) // pairs[2i], pairs[2i+1]: rows 2i and 2i+1 interleaved
	for i := range 4 {
		pairs[2*i], pairs[2*i+1] = YMM(), YMM()
		VUNPCKLPS(r[2*i+1], r[2*i], pairs[2*i])
		VUNPCKHPS(r[2*i+1], r[2*i], pairs[2*i+1])
	}
	fours := make([]reg.VecVirtual, 8) // fours[4h+j]: column j (and j+4) of rows 4h to 4h+3
	for h := range 2 {
		for j := range 4 {
			v := YMM()
			VSHUFPS(U8([]uint8{0x44, 0xee}[j%2]), pairs[4*h+2+j/2], pairs[4*h+j/2], v)
			fours[4*h+j] = v
		}
	}
	out := make([]reg.VecVirtual, 8)
	for j := range 4 {
		out[j], out[j+4] = YMM(), YMM()
		VPERM2F128(U8(0x20), fours[4+j], fours[j], out[j])
		VPERM2F128(U8(0x31), fours[4+j], fours[j], out[j+4])
	}
	return out
}
