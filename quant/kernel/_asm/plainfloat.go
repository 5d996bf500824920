package main

import (
	"math"
	"strconv"

	. "github.com/mmcloughlin/avo/build"
	. "github.com/mmcloughlin/avo/operand"
	"github.com/mmcloughlin/avo/reg"
)

// everywhere holds constant vectors of one number each.
var everywhere = map[uint32]func() Mem{}

// vector returns the address of a whole vector of one number.
func vector(bits uint32) Mem {
	if everywhere[bits] == nil {
		everywhere[bits] = repeated("vector"+hex(bits), bits)
	}
	return everywhere[bits]()
}

// midpointsFP4 are halfway between the magnitudes of quant.tableFP4.
var midpointsFP4 = [...]float32{0.5, 1.5, 2.5, 3.5, 5, 7, 10}

// limitsFP4 returns quant.limitsFP4 for the scale in all lanes of d.
func (s isa) limitsFP4(d reg.VecVirtual) []reg.VecVirtual {
	limits := s.vecs(len(midpointsFP4))
	for i, m := range midpointsFP4 {
		VMULPS(vector(math.Float32bits(m)), d, limits[i])
	}
	return limits
}

// codesFP4 returns quant.limitsFP4.code of the elements of vector v.
func (e *encoder) codesFP4(v int, limits []reg.VecVirtual) reg.VecVirtual {
	m, c, t := e.load(e.in(v)), e.zero(e.vec()), e.vec()
	VANDPS(vector(signless), m, m)
	for _, l := range limits {
		e.count(e.above(m, l), c)
	}
	// The sign moves to bit 3, where code+7 has a one for all codes but 0.
	VMOVUPS(e.in(v), m)
	VPSRLD(U8(28), m, m)
	VPADDD(vector(7), c, t)
	VANDPS(m, t, t)
	VANDPS(vector(8), t, t)
	VORPS(t, c, c)
	return c
}

// count adds one to the lanes of c where m holds.
func (s isa) count(m mask, c reg.VecVirtual) {
	if s.wide() {
		VPADDD(vector(1), c, m.k, c)
	} else {
		VPSUBD(m.v, c, c)
	}
}

// encodeMXFP4 writes the encoder of MXFP4.
func (s isa) encodeMXFP4() {
	e := s.encoder("encodeMXFP4", " int", 17, 32, "quant.encodeMXFP4 for whole blocks up to the first whose",
		"exponent takes a logarithm; it returns their number.")
	total, positive := GP64(), s.bits(signless)
	MOVQ(e.blocks, total)
	e.turns(func() {
		VMOVD(e.magnitude(positive), e.slot(slotTop))
	}, e.scaleMXFP4, func() {
		CMPL(e.slot(slotKeep), U8(0))
		JEQ(LabelRef("odd"))
		exponent := GP32()
		MOVL(e.slot(slotTop), exponent)
		MOVB(exponent.As8(), e.out(0))
		limits := s.limitsFP4(s.splat(e.slot(slotLow)))
		bytes, n := s.vecs(16/s.lanes), 16/s.lanes
		for v := range n {
			c := e.codesFP4(v, limits)
			high := e.codesFP4(v+n, limits)
			VPSLLD(U8(4), high, high)
			VORPS(high, c, bytes[v])
		}
		s.storeBytes(bytes, e.out(1))
	})
	XORQ(e.at, e.at)
	Label("odd")
	SUBQ(e.at, e.blocks)
	SUBQ(e.blocks, total)
	Store(total, ReturnIndex(0))
	s.ret()
}

// scaleMXFP4 computes quant.exponentMXFP4 and, in slotLow, quant.halfE8M0 of
// it. Magnitudes whose exponent takes a logarithm are not kept.
func (e *encoder) scaleMXFP4() {
	s := sets[0]
	bits, zero := s.load(e.slot(slotTop)), s.zero(s.vec())
	mantissa, exponent, d, small := s.vec(), s.vec(), s.vec(), s.vec()
	VPAND(vector(0x7fffff), bits, mantissa)
	odd := s.above(mantissa, s.load(vector(0x7fff00)))
	subnormal := s.above(s.load(vector(1<<23)), bits)
	s.and(subnormal, s.above(bits, zero))
	s.or(odd, subnormal)
	VPCMPEQD(odd.v, zero, odd.v)
	VMOVUPS(odd.v, e.slot(slotKeep))

	VPSRLD(U8(23), bits, exponent)
	VPSUBD(s.load(vector(2)), exponent, exponent)
	VPAND(vector(0xff), exponent, exponent)
	VPAND(s.above(bits, zero).v, exponent, exponent)
	VMOVUPS(exponent, e.slot(slotTop))

	one := s.load(vector(1))
	VPADDD(one, exponent, small)
	VPSLLD(U8(21), small, small)
	VPSUBD(one, exponent, d)
	VPSLLD(U8(23), d, d)
	s.choose(s.above(s.load(vector(2)), exponent), small, d)
	VMOVUPS(d, e.slot(slotLow))
}

// encodeNVFP4 writes the encoder of NVFP4.
func (s isa) encodeNVFP4() {
	e := s.encoder("encodeNVFP4", " int", 36, 64, "quant.encodeNVFP4 for whole blocks up to the first with",
		"values far beyond the largest code; it returns their number.")
	total := GP64()
	MOVQ(e.blocks, total)
	narrow := sets[0]
	e.each(func() {
		tops, positive := make([]reg.VecVirtual, 4), s.bits(signless)
		for g := range tops {
			tops[g] = s.toFour(e.largest(16*g, 16, positive), maxBits)
		}
		top := foldFour(tops)
		v, scale := XMM(), XMM()
		VDIVPS(four.number(6), top, v)
		d := toUE4M3(v, scale)
		odd, far := GP32(), XMM()
		VMULPS(four.number(16), d, far)
		isFar, zero := four.cmp(greater, top, far), four.zero(XMM())
		four.and(isFar, four.cmp(greater, d, zero))
		four.or(isFar, four.cmp(unordered, top, top))
		VMOVMSKPS(isFar.v, odd)
		TESTL(odd, odd)
		JNZ(LabelRef("odd"))
		VPACKUSDW(scale, scale, scale)
		VPACKUSWB(scale, scale, scale)
		VMOVD(scale, e.out(0))
		// With the scale 0 no code but 0 is nearest.
		four.choose(four.cmp(equal, d, zero), four.bits(infinity), d)
		words := make([]reg.VecVirtual, 2)
		for g := range 4 {
			c := e.groupNVFP4(g, d)
			if g%2 == 0 {
				words[g/2] = c
			} else {
				VPACKUSDW(c, words[g/2], words[g/2])
			}
		}
		VPACKUSWB(words[1], words[0], words[0])
		narrow.inOrder(words[0], narrow.order())
		VMOVDQU(words[0], e.out(4))
	})
	Label("odd")
	SUBQ(e.blocks, total)
	Store(total, ReturnIndex(0))
	s.ret()
}

// groupNVFP4 returns the 8 bytes of a group as integers.
func (e *encoder) groupNVFP4(g int, d reg.VecVirtual) reg.VecVirtual {
	scale := XMM()
	VPSHUFD(U8(uint8(0x55*g)), d, scale)
	limits, v := e.limitsFP4(e.wideOf(scale)), 16*g/e.lanes
	c := e.codesFP4(v, limits)
	low, high := c, YMM()
	if e.wide() {
		low = YMM()
		VEXTRACTI64X4(U8(1), c, high)
		VMOVDQA(c.AsY(), low)
	} else {
		high = e.codesFP4(v+1, limits)
	}
	VPSLLD(U8(4), high, high)
	VPOR(high, low, low)
	return low
}

// foldFour returns the largest of each of four vectors of four.
func foldFour(v []reg.VecVirtual) reg.VecVirtual {
	pair := func(a, b reg.VecVirtual) reg.VecVirtual {
		low, high := XMM(), XMM()
		VUNPCKLPS(b, a, low)
		VUNPCKHPS(b, a, high)
		VPMAXUD(high, low, low)
		return low
	}
	a, b := pair(v[0], v[1]), pair(v[2], v[3])
	low, high := XMM(), XMM()
	VUNPCKLPD(b, a, low)
	VUNPCKHPD(b, a, high)
	VPMAXUD(high, low, low)
	return low
}

// toUE4M3 sets code to quant.toUE4M3 of four numbers that are not negative,
// and returns quant.halfUE4M3 of that.
func toUE4M3(v, code reg.VecVirtual) reg.VecVirtual {
	small, t := XMM(), XMM()
	VMULPS(four.number(512), v, small)
	VADDPS(four.number(0.5), small, small)
	VCVTTPS2DQ(small, small)
	VPMINSD(four.bits(7), small, small)

	// Exponent and mantissa are one number: of the mantissa three bits, and
	// the next rounds. From exponent 15 on everything is the largest number.
	const bias = 127 - 7
	VPSRLD(U8(19), v, t)
	VPAND(four.bits(1), t, t)
	VPSRLD(U8(20), v, code)
	VPADDD(t, code, code)
	VPSUBD(four.bits(bias<<3), code, code)
	four.choose(four.above(code, four.bits(15<<3-1)), four.bits(0x7e), code)
	four.choose(four.above(four.bits((bias+1)<<23), v), small, code)

	d := XMM()
	VPSLLD(U8(20), code, d)
	VPADDD(four.bits((bias-1)<<23), d, d)
	VCVTDQ2PS(code, t)
	VMULPS(four.number(1.0/(1<<10)), t, t)
	four.choose(four.above(four.bits(1<<3), code), t, d)
	return d
}

// encodeF16 writes the conversion to half precision.
func (s isa) encodeF16() {
	e := s.encoder("encodeF16", "", 64, 32, "dtype.EncodeF16 for blocks of 32 numbers.")
	h := newHalves(sets[0])
	e.each(func() {
		for i := range 2 {
			x, y := e.inputs(16*i, 16), YMM()
			if s.wide() {
				h.of(x[0], y)
			} else {
				high := XMM()
				h.of(x[0], y.AsX())
				h.of(x[1], high)
				VINSERTI128(U8(1), high, y, y)
			}
			h.clean(y)
			VMOVDQU(y, e.out(32*i))
		}
	})
	s.ret()
}

// encodeBF16 writes the conversion to bfloat16.
func (s isa) encodeBF16() {
	e := s.encoder("encodeBF16", "", 64, 32, "dtype.EncodeBF16 for blocks of 32 numbers.")
	half, odd, quiet := s.bits(0x7fff), s.bits(1), s.bits(64)
	e.each(func() {
		for i := range 2 {
			x := e.inputs(16*i, 16)
			for _, v := range x {
				nan, upper, t := s.cmp(unordered, v, v), s.vec(), s.vec()
				VPSRLD(U8(16), v, upper)
				VANDPS(odd, upper, t)
				VPADDD(half, v, v)
				VPADDD(t, v, v)
				VPSRLD(U8(16), v, v)
				VORPS(quiet, upper, upper)
				s.choose(nan, upper, v)
			}
			if s.wide() {
				VPMOVDW(x[0], e.out(32*i))
				continue
			}
			VPACKUSDW(x[1], x[0], x[0])
			VPERMQ(U8(0xd8), x[0], x[0])
			VMOVDQU(x[0], e.out(32*i))
		}
	})
	s.ret()
}

// decoder writes a decoder of blocks of 32 numbers: body returns those of a
// vector.
func (s isa) decoder(name string, size int, doc string, block func(src reg.GPVirtual), body func(src reg.GPVirtual, v int, x reg.VecVirtual)) {
	s.text(name, "func(dst *float32, src *byte, blocks int)", doc)
	dst, src, blocks := GP64(), GP64(), GP64()
	Load(Param("dst"), dst)
	Load(Param("src"), src)
	Load(Param("blocks"), blocks)
	repeat("block", blocks, func() {
		block(src)
		for v := range 32 / s.lanes {
			x := s.vec()
			body(src, v, x)
			VMOVUPS(x, Mem{Base: dst, Disp: v * s.size()})
		}
		ADDQ(U32(uint32(size)), src)
		ADDQ(U32(128), dst)
	})
	s.ret()
}

func (s isa) decodeF16() {
	s.decoder("decodeF16", 64, "dtype.Decode of F16 for blocks of 32 numbers.", func(reg.GPVirtual) {},
		func(src reg.GPVirtual, v int, x reg.VecVirtual) {
			VCVTPH2PS(Mem{Base: src, Disp: 2 * s.lanes * v}, x)
		})
}

func (s isa) decodeBF16() {
	s.decoder("decodeBF16", 64, "dtype.Decode of BF16 for blocks of 32 numbers.", func(reg.GPVirtual) {},
		func(src reg.GPVirtual, v int, x reg.VecVirtual) {
			VPMOVZXWD(Mem{Base: src, Disp: 2 * s.lanes * v}, x)
			VPSLLD(U8(16), x, x)
		})
}

func (s isa) decodeQ8_0() {
	var d reg.VecVirtual
	s.decoder("decodeQ8_0", 34, "quant.decodeQ8_0 for whole blocks.", func(src reg.GPVirtual) {
		scale := XMM()
		VPBROADCASTW(Mem{Base: src}, scale)
		VCVTPH2PS(scale, scale)
		d = s.wideOf(scale)
	}, func(src reg.GPVirtual, v int, x reg.VecVirtual) {
		VPMOVSXBD(Mem{Base: src, Disp: 2 + s.lanes*v}, x)
		VCVTDQ2PS(x, x)
		VMULPS(x, d, x)
	})
}

// finiteNumbers writes the search for numbers with all exponent bits set, of width
// bytes each.
func (s isa) finiteNumbers(name string, width int) {
	const stretch = 128
	s.text(name, "func(src *byte, stretches int, exponent uint32) int",
		"the number of stretches of 128 bytes before the first that holds a number, of "+strconv.Itoa(width),
		"bytes, with all bits of exponent set. The bits are repeated to fill 4 bytes.")
	src, n, total := GP64(), GP64(), GP64()
	Load(Param("src"), src)
	Load(Param("stretches"), n)
	MOVQ(n, total)
	exponent := s.param("exponent")
	repeat("stretch", n, func() {
		var all mask
		for v := range stretch / s.size() {
			t := s.vec()
			VANDPS(Mem{Base: src, Disp: v * s.size()}, exponent, t)
			m := s.same(t, exponent, width)
			if v == 0 {
				all = m
				continue
			}
			if s.wide() {
				KORD(m.k, all.k, all.k)
			} else {
				VORPS(m.v, all.v, all.v)
			}
		}
		if s.wide() {
			KORTESTD(all.k, all.k)
		} else {
			VPTEST(all.v, all.v)
		}
		JNZ(LabelRef("found"))
		ADDQ(U32(stretch), src)
	})
	Label("found")
	SUBQ(n, total)
	Store(total, ReturnIndex(0))
	s.ret()
}

// same compares integers of 2 or 4 bytes.
func (s isa) same(a, b reg.VecVirtual, width int) mask {
	compare := func(a, b, dst Op) { VPCMPEQW(a, b, dst) }
	if width == 4 {
		compare = func(a, b, dst Op) { VPCMPEQD(a, b, dst) }
	}
	m := mask{k: K()}
	if s.wide() {
		compare(a, b, m.k)
		return m
	}
	m.v = s.vec()
	compare(a, b, m.v)
	return m
}

// encodeQ1_0 writes the encoder of Q1_0, whose sums go on in order in one lane
// each. Shuffling across wider vectors gains nothing.
func encodeQ1_0() {
	const together, size, length = 8, 18, 128
	s := isa{name: "AVX2", lanes: 8}
	s.text("encodeQ1_0", "func(dst *byte, src *float32, eights int)",
		"quant.encodeQ1_0 for whole blocks, eights times eight.")
	src, dst, eights := GP64(), GP64(), GP64()
	Load(Param("dst"), dst)
	Load(Param("src"), src)
	Load(Param("eights"), eights)
	stride, stride3 := GP64(), GP64()
	MOVQ(U32(4*length), stride)
	LEAQ(Mem{Base: stride, Index: stride, Scale: 2}, stride3)
	positive, zero := s.bits(signless), s.zero(s.vec())
	repeat("eight", eights, func() {
		sum, lower, upper, n := s.zero(s.vec()), GP64(), GP64(), GP64()
		MOVQ(src, lower)
		LEAQ(Mem{Base: src, Index: stride, Scale: 4}, upper)
		MOVQ(U32(length/8), n)
		repeat("tile", n, func() {
			s.tile(lower, upper, stride, stride3, func(_ int, v reg.VecVirtual) {
				s.abs(v, positive)
				VADDPS(v, sum, sum)
			})
		})
		VMULPS(s.number(1.0/length), sum, sum) // exactly the quotient
		h, d := newHalves(four), XMM()
		h.of(sum, d)
		h.clean(d)
		for b := range together {
			VPEXTRW(U8(uint8(b)), d, Mem{Base: dst, Disp: size * b})
		}
		MOVQ(U32(together), n)
		repeat("signs", n, func() {
			for v := range length / s.lanes {
				x, bits := s.load(Mem{Base: src, Disp: v * s.size()}), GP32()
				VMOVMSKPS(s.cmp(atLeast, x, zero).v, bits)
				MOVB(bits.As8(), Mem{Base: dst, Disp: 2 + v})
			}
			ADDQ(U32(4*length), src)
			ADDQ(U32(size), dst)
		})
	})
	s.ret()
}

// finiteScales writes the search for scales that are not finite.
func finiteScales() {
	s := isa{}
	s.text("finiteScales", "func(src *byte, blocks, size, first, last int) int",
		"the number of blocks, of size bytes, before the first that has, at one of two offsets, a",
		"half with all exponent bits set.")
	src, blocks, size, first, last, total := GP64(), GP64(), GP64(), GP64(), GP64(), GP64()
	Load(Param("src"), src)
	Load(Param("blocks"), blocks)
	Load(Param("size"), size)
	Load(Param("first"), first)
	Load(Param("last"), last)
	MOVQ(blocks, total)
	ADDQ(src, first)
	ADDQ(src, last)
	repeat("block", blocks, func() {
		for _, p := range []reg.GPVirtual{first, last} {
			half := GP32()
			MOVWLZX(Mem{Base: p}, half)
			ANDL(U32(0x7c00), half)
			CMPL(half, U32(0x7c00))
			JEQ(LabelRef("found"))
			ADDQ(size, p)
		}
	})
	Label("found")
	SUBQ(blocks, total)
	Store(total, ReturnIndex(0))
	RET()
}
