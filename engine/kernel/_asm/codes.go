package main

import (
	. "github.com/mmcloughlin/avo/build"
	. "github.com/mmcloughlin/avo/operand"
	"github.com/mmcloughlin/avo/reg"
)

// A panel of codes has 32 rows, the upper 16 behind all of the lower ones, and
// of each half, for each 32 elements, first elements 0 and 16 of its rows, then
// 1 and 17, and so on: 16 bytes each. Scales and minimums of a group of elements
// are 32 numbers.
const (
	group      = 16          // elements with one scale
	pairBytes  = 2 * group   // of two elements
	halfBytes  = group * 256 // of the codes of 16 rows
	halfScales = 4 * 16      // of the scales of 16 rows
)

// rowsOfCodes writes what works on weights as integers. AVX2 takes half a panel,
// but for one row of x both halves at once: the sums of one would wait for each
// other.
func rowsOfCodes() {
	for _, s := range []isa{
		{name: "AVX2", lanes: 8, rows: []int{1, 2, 4}},
		{name: "AVX512", lanes: 16, rows: []int{1, 2, 4, 8}},
	} {
		s.expand()
		for _, rows := range s.rows {
			s.productOfCodes(rows, 1)
		}
		if !s.wide() {
			s.productOfCodes(1, 2)
		}
	}
	transposeCodes()
}

// coded is where a kernel is in a panel of codes, or in a half.
type coded struct {
	isa
	codes, scales, mins, step reg.GPVirtual
}

// coded loads the parameters of a panel.
func (s isa) coded() *coded {
	c := &coded{isa: s, codes: parameter("codes"), scales: parameter("scales"), mins: parameter("mins"), step: GP64()}
	MOVQ(U32(group), c.step)
	return c
}

// scale is what a group of elements of some rows has in common.
type scale struct{ d, low [vectors]reg.VecVirtual }

// begin loads the scales and minimums of a group.
func (c *coded) begin(half int) (f scale) {
	for v := range vectors {
		disp := half*halfScales + v*c.size()
		f.d[v], f.low[v] = c.vec(), c.vec()
		VMOVUPS(at(c.scales, disp), f.d[v])
		VMOVUPS(at(c.mins, disp), f.low[v])
	}
	return f
}

// weights returns element k of the group of all rows.
func (c *coded) weights(f *scale, k, half int) [vectors]reg.VecVirtual {
	var w [vectors]reg.VecVirtual
	for v := range w {
		row := half*16 + v*c.lanes
		w[v] = c.vec()
		VPMOVSXBD(at(c.codes, k*pairBytes+row/16*halfBytes+row%16), w[v])
		VCVTDQ2PS(w[v], w[v])
		VMULPS(f.d[v], w[v], w[v])
		VSUBPS(f.low[v], w[v], w[v])
	}
	return w
}

// next goes on to the next group: behind the first elements of the pairs, or
// behind the pairs.
func (c *coded) next() {
	ADDQ(c.step, c.codes)
	NEGQ(c.step)
	ADDQ(U32(group*pairBytes), c.step)
	ADDQ(U32(2*halfScales), c.scales)
	ADDQ(U32(2*halfScales), c.mins)
}

// expand writes the kernel that decodes a panel.
func (s isa) expand() {
	text("expand"+s.name, "func(dst *float32, codes *byte, scales, mins *float32, groups int)",
		"decodes groups of 16 elements of a panel of codes, or of half of one: scale·code −", "minimum, both rounded.")
	dst, groups := parameter("dst"), parameter("groups")
	c := s.coded()
	repeat("group", groups, func() {
		f := c.begin(0)
		for k := range group {
			for v, w := range c.weights(&f, k, 0) {
				VMOVUPS(w, at(dst, (k*vectors+v)*s.size()))
			}
		}
		ADDQ(U32(uint32(group*vectors*s.size())), dst)
		c.next()
	})
	s.ret()
}

// productOfCodes writes the micro-kernel of so many rows that decodes what it
// multiplies with. The sums of two halves are stored as those of two rows.
func (s isa) productOfCodes(rows, halves int) {
	name, as := "codes"+itoa(rows)+s.name, "product"+itoa(rows)+s.name
	if halves == 2 {
		name, as = "codesBoth"+s.name, "product1"+s.name+" for each half"
	}
	text(name, "func(dst *float32, stride int, c *float64, x *float32, codes *byte, scales, mins *float32, groups int)",
		"is "+as+" with what expand"+s.name+" makes of the panel.")
	x, groups := parameter("x"), parameter("groups")
	sums := make([]reg.VecVirtual, halves*vectors*rows)
	for i := range sums {
		sums[i] = s.vec()
		VXORPS(sums[i].AsX(), sums[i].AsX(), sums[i].AsX())
	}
	c := s.coded()
	repeat("group", groups, func() {
		f := make([]scale, halves)
		for half := range f {
			f[half] = c.begin(half)
		}
		for k := range group {
			for half := range f {
				b := c.weights(&f[half], k, half)
				for i := range rows {
					a := s.vec()
					VBROADCASTSS(at(x, i*xStride+4*k), a)
					for v := range b {
						VFMADD231PS(b[v], a, sums[(half*rows+i)*vectors+v])
					}
				}
			}
		}
		ADDQ(U8(4*group), x)
		c.next()
	})
	s.store(sums)
}

// transposeCodes writes 16 rows of codes, 256 apart, as half a panel.
func transposeCodes() {
	text("transposeCodesAVX2", "func(dst, src *byte, blocks int)",
		"makes half a panel of 16 rows of codes, 256 apart, by 32 elements.")
	dst, src, blocks := parameter("dst"), parameter("src"), parameter("blocks")
	repeat("block", blocks, func() {
		for half := 1; half >= 0; half-- {
			for j, v := range eightCodes(src, half*8*256) {
				if half == 1 { // until the other half is there
					VMOVDQU(v, at(dst, 2*j*pairBytes))
					continue
				}
				low, high := YMM(), YMM()
				VPUNPCKLQDQ(at(dst, 2*j*pairBytes), v, low)
				VPUNPCKHQDQ(at(dst, 2*j*pairBytes), v, high)
				VMOVDQU(low, at(dst, 2*j*pairBytes))
				VMOVDQU(high, at(dst, (2*j+1)*pairBytes))
			}
		}
		ADDQ(U8(32), src)
		ADDQ(U32(group*pairBytes), dst)
	})
	VZEROUPPER()
	RET()
}

// eightCodes returns, in vector j, elements 2j and 2j+1 of eight rows, in its
// upper half those 16 further on.
func eightCodes(src reg.GPVirtual, disp int) []reg.VecVirtual {
	// After a step of these, vectors hold elements of twice as many rows: of
	// rows 0 and 4, 0, 2, 4 and 6, 0 to 7.
	rows := make([][]reg.VecVirtual, 8)
	for i := range rows {
		v := YMM()
		VMOVDQU(at(src, disp+256*i), v)
		rows[i] = []reg.VecVirtual{v}
	}
	for len(rows) > 1 {
		n := len(rows) / 2
		merged := make([][]reg.VecVirtual, n)
		for i := range merged {
			for k, a := range rows[i] {
				low, high := YMM(), YMM()
				VPUNPCKLBW(rows[i+n][k], a, low)
				VPUNPCKHBW(rows[i+n][k], a, high)
				merged[i] = append(merged[i], low, high)
			}
		}
		rows = merged
	}
	return rows[0]
}
