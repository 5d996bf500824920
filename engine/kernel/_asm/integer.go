package main

import (
	. "github.com/mmcloughlin/avo/build"
	. "github.com/mmcloughlin/avo/operand"
	"github.com/mmcloughlin/avo/reg"
)

// Bytes of a row of x in the two forms, and where its sums and factors are, as
// in integers.go.
const (
	narrowStride = 320
	wideStride   = 576
	narrowSums   = 256
	factorsAfter = 32 // bytes of sums
	wideFactors  = 512
)

// Offsets in n, which is counts in integers.go.
const (
	countBlocks = 8 * iota
	countSteps
	countOffsets
	countMins
	countPairs
)

// integers is a product of integers on its way.
type integers struct {
	isa
	rows, stride     int
	c, x, sums, w, n reg.GPVirtual
	factors          reg.GPVirtual
	acc              []reg.VecVirtual // [rows][vectors], int32
}

// newIntegers starts a function.
func (s isa) newIntegers(name string, rows, stride, factors int, doc string) *integers {
	text(name, "func(c *float32, x, w *uint32, n *[5]int)", doc)
	p := &integers{isa: s, rows: rows, stride: stride, c: parameter("c"), x: parameter("x"), w: parameter("w"), n: parameter("n"), factors: GP64()}
	LEAQ(at(p.x, factors), p.factors)
	for range vectors * rows {
		p.acc = append(p.acc, s.vec())
	}
	return p
}

// count loads a field of n.
func (p *integers) count(field int) reg.GPVirtual {
	r := GP64()
	MOVQ(at(p.n, field), r)
	return r
}

func (p *integers) zero(v []reg.VecVirtual) {
	for _, r := range v {
		if p.wide() {
			VPXORD(r, r, r)
		} else {
			VPXOR(r, r, r)
		}
	}
}

// advance moves w by so many units.
func (p *integers) advance(units int) { ADDQ(U32(uint32(units*vectors*p.size())), p.w) }

// weights loads a unit of all columns, i units after w.
func (p *integers) weights(i int) (b [vectors]reg.VecVirtual) {
	for v := range b {
		b[v] = p.vec()
		p.move(at(p.w, (i*vectors+v)*p.size()), b[v])
	}
	return b
}

func (p *integers) move(from, to Op) {
	if p.wide() {
		VMOVDQU32(from, to)
	} else {
		VMOVDQU(from, to)
	}
}

// broadcast loads a unit of a row, disp bytes after base.
func (p *integers) broadcast(base reg.GPVirtual, row, disp int) reg.VecVirtual {
	b := p.vec()
	VPBROADCASTD(at(base, row*p.stride+disp), b)
	return b
}

// narrow writes the product of codes of 8 bits for so many rows and quads to a
// scale.
func (s isa) narrow(rows, quads int) {
	p := s.newIntegers("narrow"+itoa(rows)+"x"+itoa(quads)+s.name, rows, narrowStride, narrowSums+factorsAfter,
		"is an integerProduct of "+itoa(rows)+" rows of x and "+itoa(quads)+" quads to a scale.")
	p.sums = GP64()
	LEAQ(at(p.x, narrowSums), p.sums)
	blocks := p.count(countBlocks)
	repeat("block", blocks, func() {
		p.zero(p.acc)
		groups := p.count(countSteps)
		scales := GP64() // after all codes
		MOVQ(groups, scales)
		IMUL3Q(U32(uint32(quads*vectors*s.size())), scales, scales)
		ADDQ(p.w, scales)
		repeat("group", groups, func() { p.group(quads, scales) })
		MOVQ(scales, p.w)
		p.pairs("offsets", countOffsets, true)
		p.finish()
	})
	s.ret()
}

// group adds the products of codes with one scale.
func (p *integers) group(quads int, scales reg.GPVirtual) {
	sums := make([]reg.VecVirtual, len(p.acc))
	for i := range sums {
		sums[i] = p.vec()
	}
	if p.vnni {
		p.zero(sums)
	}
	for q := range quads {
		w := p.weights(q)
		for r := range p.rows {
			x := p.broadcast(p.x, r, 4*q)
			for v := range w {
				p.addBytes(x, w[v], sums[r*vectors+v], q == 0)
			}
		}
	}
	p.advance(quads)
	ADDQ(U8(4*quads), p.x)
	for v := range vectors {
		scale := p.vec()
		p.move(at(scales, v*p.size()), scale)
		if p.vnni {
			VPSRAD(U8(16), scale, scale)
		}
		for r := range p.rows {
			sum, acc := sums[r*vectors+v], p.acc[r*vectors+v]
			if p.vnni {
				VPMULLD(scale, sum, sum)
			} else {
				VPMADDWD(scale, sum, sum)
			}
			VPADDD(sum, acc, acc)
		}
	}
	ADDQ(U32(uint32(vectors*p.size())), scales)
}

// addBytes adds products of bytes, w without sign, to sums of 16 bits, or of 32
// with VNNI.
func (p *integers) addBytes(x, w, sum reg.VecVirtual, first bool) {
	switch {
	case p.vnni:
		VPDPBUSD(x, w, sum)
	case first:
		VPMADDUBSW(x, w, sum)
	default:
		t := p.vec()
		VPMADDUBSW(x, w, t)
		VPADDW(t, sum, sum)
	}
}

// pairs adds, or subtracts, products of the sums of x and what stands at w.
func (p *integers) pairs(label string, field int, subtract bool) {
	n := p.count(field)
	TESTQ(n, n)
	JZ(LabelRef(label + "Done"))
	sums := GP64()
	MOVQ(p.sums, sums)
	repeat(label, n, func() {
		w := p.weights(0)
		for r := range p.rows {
			x := p.broadcast(sums, r, 0)
			for v := range w {
				t, acc := p.vec(), p.acc[r*vectors+v]
				VPMADDWD(x, w[v], t)
				if subtract {
					VPSUBD(t, acc, acc)
				} else {
					VPADDD(t, acc, acc)
				}
			}
		}
		p.advance(1)
		ADDQ(U8(4), sums)
	})
	Label(label + "Done")
}

// finish adds a narrow block to c: the factors of its weights stand after the
// minimums.
func (p *integers) finish() {
	d := GP64()
	MOVQ(p.count(countMins), d)
	IMUL3Q(U32(uint32(vectors*p.size())), d, d)
	ADDQ(p.w, d)
	p.scaled(d, false)
	mins := p.count(countMins)
	TESTQ(mins, mins)
	JZ(LabelRef("advance"))
	p.zero(p.acc)
	p.pairs("mins", countMins, false)
	ADDQ(U32(uint32(vectors*p.size())), d)
	p.scaled(d, true)
	Label("advance")
	LEAQ(at(d, vectors*p.size()), p.w)
	pairs := p.count(countPairs)
	SHLQ(U8(2), pairs)
	ADDQ(pairs, p.sums)
	ADDQ(U8(4), p.factors)
}

// scaled adds acc, or subtracts it, times factors of weights and rows to c.
func (p *integers) scaled(d reg.GPVirtual, subtract bool) {
	for r := range p.rows {
		f := p.vec()
		VBROADCASTSS(at(p.factors, r*p.stride), f)
		for v := range vectors {
			t, u, c := p.vec(), p.vec(), at(p.c, (r*vectors+v)*p.size())
			VMULPS(at(d, v*p.size()), f, u)
			VCVTDQ2PS(p.acc[r*vectors+v], t)
			VMULPS(u, t, t)
			if subtract {
				VMOVUPS(c, u)
				VSUBPS(t, u, t)
			} else {
				VADDPS(c, t, t)
			}
			VMOVUPS(t, c)
		}
	}
}

// words writes the product of codes of 16 bits for so many rows.
func (s isa) words(rows int) {
	p := s.newIntegers("wide"+itoa(rows)+s.name, rows, wideStride, wideFactors,
		"is an integerProduct of "+itoa(rows)+" rows of x and wide codes.")
	blocks := p.count(countBlocks)
	repeat("block", blocks, func() {
		p.zero(p.acc)
		repeat("turn", p.count(countSteps), func() {
			for q := range unrolled {
				w := p.weights(q)
				for r := range rows {
					x := p.broadcast(p.x, r, 4*q)
					for v := range w {
						p.addWords(x, w[v], p.acc[r*vectors+v])
					}
				}
			}
			p.advance(unrolled)
			ADDQ(U8(4*unrolled), p.x)
		})
		p.scaled(p.w, false)
		p.advance(1)
		ADDQ(U8(4), p.factors)
	})
	s.ret()
}

// addWords adds products of 16-bit integers.
func (p *integers) addWords(x, w, acc reg.VecVirtual) {
	if p.vnni {
		VPDPWSSD(x, w, acc)
		return
	}
	t := p.vec()
	VPMADDWD(x, w, t)
	VPADDD(t, acc, acc)
}

// roundBytes rounds numbers to integers.
func roundBytes(wide bool) {
	name, result := "roundBytesAVX2", "bytes, and sums groups of 16 of them,"
	if wide {
		name, result = "roundWordsAVX2", "words"
	}
	text(name, "func(dst, sums *uint32, src *float32, scale float32, blocks int)",
		"rounds blocks times 32 numbers times scale to "+result+" ties to even.")
	dst, sums, src, n := parameter("dst"), parameter("sums"), parameter("src"), parameter("blocks")
	scale, one, ones := YMM(), YMM(), YMM()
	VBROADCASTSS(NewParamAddr("scale", 24), scale)
	VMOVDQU(quad(0x0101010101010101), one)
	VMOVDQU(quad(0x0001000100010001), ones)
	repeat("block", n, func() {
		x := make([]reg.VecVirtual, 4)
		for i := range x {
			x[i] = YMM()
			VMULPS(at(src, 32*i), scale, x[i])
			VCVTPS2DQ(x[i], x[i])
		}
		for i := 0; i < 4; i += 2 {
			VPACKSSDW(x[i+1], x[i], x[i])
			VPERMQ(U8(0xd8), x[i], x[i])
		}
		ADDQ(U8(128), src)
		if wide {
			VMOVDQU(x[0], at(dst, 0))
			VMOVDQU(x[2], at(dst, 32))
			ADDQ(U8(64), dst)
			return
		}
		VPACKSSWB(x[2], x[0], x[0])
		VPERMQ(U8(0xd8), x[0], x[0])
		VMOVDQU(x[0], at(dst, 0))
		ADDQ(U8(32), dst)
		s, high := YMM(), XMM()
		VPMADDUBSW(x[0], one, s)
		VPMADDWD(ones, s, s)
		VPHADDD(s, s, s)
		VPHADDD(s, s, s)
		VEXTRACTI128(U8(1), s, high)
		VPUNPCKLWD(high, s.AsX(), high)
		VMOVD(high, at(sums, 0))
		ADDQ(U8(4), sums)
	})
	VZEROUPPER()
	RET()
}
