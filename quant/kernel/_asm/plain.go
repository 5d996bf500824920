package main

import (
	. "github.com/mmcloughlin/avo/build"
	. "github.com/mmcloughlin/avo/operand"
	"github.com/mmcloughlin/avo/reg"
)

// plain writes the encoders that search nothing, the decoders of what is
// quantized most, and the search for numbers that are not finite.
func plain() {
	for _, s := range sets {
		s.encodeQ8_0()
		s.encodeSymmetric("encodeQ4_0", 18, 8)
		s.encodeSymmetric("encodeQ5_0", 22, 16)
		s.encodeAffine("encodeQ4_1", 20, 15)
		s.encodeAffine("encodeQ5_1", 24, 31)
		s.encodeTQ1_0()
		s.encodeTQ2_0()
		s.encodeQ2_0()
		s.encodeMXFP4()
		s.encodeNVFP4()
		s.encodeF16()
		s.encodeBF16()
		s.decodeF16()
		s.decodeBF16()
		s.decodeQ8_0()
		s.finiteNumbers("finite32", 4)
		s.finiteNumbers("finite16", 2)
	}
	encodeQ1_0()
	finiteScales()
}

const (
	// belowHalf is the largest float32 below one half.
	belowHalf = 0x3effffff
	sign      = 1 << 31
	infinity  = 0x7f800000
	// Halves without their sign, twice, and what those of NaN are above.
	signlessHalves = 0x7fff7fff
	infiniteHalves = 0x7c007c00
)

// encoder is a kernel that encodes block after block.
type encoder struct {
	isa
	src, dst, blocks reg.GPVirtual
	size, length     int // bytes and elements of a block
	slots            Mem // of turns
	at               reg.GPVirtual
}

// encoder starts the function of an encoder.
func (s isa) encoder(name, result string, size, length int, doc ...string) *encoder {
	s.text(name, "func(dst *byte, src *float32, blocks int)"+result, doc...)
	e := &encoder{isa: s, src: GP64(), dst: GP64(), blocks: GP64(), size: size, length: length}
	Load(Param("dst"), e.dst)
	Load(Param("src"), e.src)
	Load(Param("blocks"), e.blocks)
	return e
}

// each runs body for all blocks.
func (e *encoder) each(body func()) {
	repeat("block", e.blocks, func() {
		body()
		ADDQ(U32(uint32(4*e.length)), e.src)
		ADDQ(U32(uint32(e.size)), e.dst)
	})
}

// out addresses bytes of the block, in a vector of its elements.
func (e *encoder) out(at int) Mem { return Mem{Base: e.dst, Disp: at} }
func (e *encoder) in(v int) Mem   { return Mem{Base: e.src, Disp: v * e.isa.size()} }

// inputs loads n elements from element first on.
func (e *encoder) inputs(first, n int) []reg.VecVirtual {
	x := make([]reg.VecVirtual, n/e.lanes)
	for v := range x {
		x[v] = e.load(e.in(first/e.lanes + v))
	}
	return x
}

// toFour folds a vector to four numbers with an operation of two vectors.
func (s isa) toFour(v reg.VecVirtual, op func(a, b, dst Op)) reg.VecVirtual {
	y := v
	if s.wide() {
		low, high := YMM(), YMM()
		VEXTRACTF64X4(U8(1), v, high)
		op(high, v.AsY(), low)
		y = low
	}
	x := XMM()
	VEXTRACTF128(U8(1), y, x)
	op(x, y.AsX(), x)
	return x
}

// fold folds a vector to one number, which it leaves in four lanes.
func (s isa) fold(v reg.VecVirtual, op func(a, b, dst Op)) reg.VecVirtual {
	x := s.toFour(v, op)
	for _, swap := range []uint8{0x4e, 0xb1} {
		t := XMM()
		VPSHUFD(U8(swap), x, t)
		op(t, x, x)
	}
	return x
}

// largest returns the largest of the elements' bits without their signs: that
// of NaN if there is one.
func (e *encoder) largest(first, n int, positive reg.VecVirtual) reg.VecVirtual {
	top := e.vec()
	for v := range n / e.lanes {
		t := top
		if v > 0 {
			t = e.vec()
		}
		VANDPS(e.in(first/e.lanes+v), positive, t)
		if v > 0 {
			VPMAXUD(t, top, top)
		}
	}
	return top
}

func maxBits(a, b, dst Op) { VPMAXUD(a, b, dst) }

// magnitude returns the largest magnitude of the block in four lanes:
// quant.magnitude.
func (e *encoder) magnitude(positive reg.VecVirtual) reg.VecVirtual {
	return e.fold(e.largest(0, e.length, positive), maxBits)
}

// inverse returns quant.inverse of each number.
func (s isa) inverse(d, one reg.VecVirtual) reg.VecVirtual {
	inv := s.vec()
	VDIVPS(d, one, inv)
	m := s.cmp(notEqual, d, s.zero(s.vec()))
	VANDPS(m.v, inv, inv)
	return inv
}

// finite is true in the lanes where all of the numbers v are finite.
func (s isa) finite(v ...reg.VecVirtual) reg.VecVirtual {
	sum := s.vec()
	VSUBPS(v[0], v[0], sum)
	for _, x := range v[1:] {
		t := s.vec()
		VSUBPS(x, x, t)
		VADDPS(t, sum, sum)
	}
	return s.cmp(equal, sum, s.zero(s.vec())).v
}

// halves are the constants of dtype.ToF16.
type halves struct{ magnitude, infinite reg.VecVirtual }

// newHalves prepares the constants, in vectors like v.
func newHalves(v isa) halves { return halves{v.bits(signlessHalves), v.bits(infiniteHalves)} }

// of converts the numbers of x to the halves in dst.
func (h halves) of(x, dst Op) {
	VCVTPS2PH(U8(0), x, dst)
}

// clean removes the payload of NaN, whose quiet bit is set already.
func (h halves) clean(v reg.VecVirtual) {
	t := h.like(v)
	VPAND(h.magnitude, v, t)
	VPCMPGTW(h.infinite, t, t)
	VPSRLW(U8(7), t, t) // the mantissa without the quiet bit
	VPANDN(v, t, v)
}

func (h halves) like(v reg.VecVirtual) reg.VecVirtual {
	if v.Size() == 16 {
		return XMM()
	}
	return YMM()
}

// put stores the first of four numbers.
func (h halves) put(x reg.VecVirtual, m Mem) {
	t := XMM()
	h.of(x, t)
	h.clean(t)
	VPEXTRW(U8(0), t, m)
}

// round returns the integers that quant.awayFromZero and a conversion give.
func (s isa) round(v, signs, below reg.VecVirtual) {
	t := s.vec()
	VANDPS(signs, v, t)
	VORPS(below, t, t)
	VADDPS(t, v, v)
	VCVTTPS2DQ(v, v)
}

// scaled returns n elements times inv, rounded.
func (e *encoder) scaled(first, n int, inv, signs, below reg.VecVirtual) []reg.VecVirtual {
	c := e.vecs(n / e.lanes)
	for v := range c {
		VMULPS(e.in(first/e.lanes+v), inv, c[v])
		e.round(c[v], signs, below)
	}
	return c
}

// bytes packs 32 integers to bytes, which inOrder puts in order. Integers
// beyond the range of a byte, signed or not, do not matter but for 0x80000000:
// it becomes 0, or, of signed bytes, 0 or −128.
func (s isa) bytes(c []reg.VecVirtual, signed bool) reg.VecVirtual {
	b := YMM()
	if s.wide() {
		high := XMM()
		VPMOVDB(c[0], b.AsX())
		VPMOVDB(c[1], high)
		VINSERTI128(U8(1), high, b, b)
		return b
	}
	t := YMM()
	VPACKSSDW(c[1], c[0], b)
	VPACKSSDW(c[3], c[2], t)
	if signed {
		VPACKSSWB(t, b, b)
	} else {
		VPACKUSWB(t, b, b)
	}
	return b
}

var packed = table("packed", 0, 4, 1, 5, 2, 6, 3, 7)

// order returns what inOrder needs.
func (s isa) order() reg.VecVirtual {
	if s.wide() {
		return nil
	}
	return s.load(packed())
}

func (s isa) inOrder(b, order reg.VecVirtual) {
	if !s.wide() {
		VPERMD(b, order, b)
	}
}

// table returns a constant vector of these numbers, once.
func table(name string, numbers ...uint32) func() Mem {
	var m *Mem
	return func() Mem {
		if m == nil {
			g := GLOBL(name, RODATA|NOPTR)
			for i, n := range numbers {
				DATA(4*i, U32(n))
			}
			m = &g
		}
		return *m
	}
}

// wideOf repeats the first of four numbers in a vector.
func (s isa) wideOf(x reg.VecVirtual) reg.VecVirtual {
	v := s.vec()
	VBROADCASTSS(x, v)
	return v
}

// turn is the number of blocks of 32 elements that are measured before their
// scales are computed together. So the long waits for divisions are shared.
const turn = 32

// turns is each in turns: measure leaves numbers of each block in slots, which
// scale turns into others, eight blocks at a time, for finish.
func (e *encoder) turns(measure, scale, finish func()) {
	e.slots, e.at = AllocLocal(slotCount*4*turn), GP64()
	n, start := GP64(), GP64()
	Label("turn")
	MOVQ(U32(turn), n)
	CMPQ(e.blocks, n)
	CMOVQCS(e.blocks, n)
	MOVQ(e.src, start)
	XORQ(e.at, e.at)
	Label("measure")
	measure()
	ADDQ(U32(uint32(4*e.length)), e.src)
	INCQ(e.at)
	CMPQ(e.at, n)
	JNE(LabelRef("measure"))

	XORQ(e.at, e.at)
	Label("scale")
	scale()
	ADDQ(U8(8), e.at)
	CMPQ(e.at, n)
	JCS(LabelRef("scale"))

	MOVQ(start, e.src)
	XORQ(e.at, e.at)
	Label("finish")
	finish()
	ADDQ(U32(uint32(4*e.length)), e.src)
	ADDQ(U32(uint32(e.size)), e.dst)
	INCQ(e.at)
	CMPQ(e.at, n)
	JNE(LabelRef("finish"))
	SUBQ(n, e.blocks)
	JNZ(LabelRef("turn"))
}

// The slots: two measures, their halves (that of the scale in place of the
// first), and what the codes need.
const (
	slotTop = iota
	slotLow
	slotHalf
	slotInverse
	slotKeep
	slotCount
)

// slot addresses what belongs to the block, or to it and the seven after it.
func (e *encoder) slot(i int) Mem {
	return e.slots.Offset(i*4*turn).Idx(e.at, 4)
}

// putSlot stores a half from a slot.
func (e *encoder) putSlot(i, at int) {
	half := GP32()
	MOVL(e.slot(i), half)
	MOVW(half.As16(), e.out(at))
}

// halfSlot stores the halves of eight numbers in a slot.
func (e *encoder) halfSlot(x reg.VecVirtual, i int) {
	t, words, h := XMM(), YMM(), newHalves(four)
	h.of(x, t)
	h.clean(t)
	VPMOVZXWD(t, words)
	VMOVDQU(words, e.slot(i))
}

// mask clears the codes b where the block's are not to be kept.
func (e *encoder) mask(b reg.VecVirtual) {
	keep := YMM()
	VBROADCASTSS(e.slot(slotKeep), keep)
	VPAND(keep, b, b)
}

// encodeQ8_0 writes the encoder of Q8_0.
func (s isa) encodeQ8_0() {
	e := s.encoder("encodeQ8_0", "", 34, 32, "quant.encodeQ8_0 for whole blocks.")
	positive, signs, below, order := s.bits(signless), s.bits(sign), s.bits(belowHalf), s.order()
	e.turns(func() {
		VMOVSS(e.magnitude(positive), e.slot(slotTop))
	}, func() {
		d, eight := YMM(), sets[0]
		VMOVUPS(e.slot(slotTop), d)
		VDIVPS(eight.number(127), d, d)
		inv := eight.inverse(d, eight.number(1))
		VMOVUPS(inv, e.slot(slotInverse))
		VMOVUPS(eight.finite(d, inv), e.slot(slotKeep))
		e.halfSlot(d, slotTop)
	}, func() {
		e.putSlot(slotTop, 0)
		b := s.bytes(e.scaled(0, 32, s.splat(e.slot(slotInverse)), signs, below), true)
		e.mask(b)
		s.inOrder(b, order)
		VMOVDQU(b, e.out(2))
	})
	s.ret()
}

// peak returns quant.peak in four lanes: the number of largest magnitude, the
// first of two with different signs, and 0 if there are only zeros and NaN.
func (e *encoder) peak(x []reg.VecVirtual, signs reg.VecVirtual) reg.VecVirtual {
	low, high, zero := e.vec(), e.vec(), e.zero(e.vec())
	// NaN as the middle operand leaves the last.
	VMINPS(zero, x[0], low)
	VMAXPS(zero, x[0], high)
	for _, v := range x[1:] {
		VMINPS(low, v, low)
		VMAXPS(high, v, high)
	}
	least, top, opposite := e.fold(low, minimum), e.fold(high, maximum), XMM()
	VXORPS(signs.AsX(), least, opposite)
	// Which sign wins is anybody's guess, a tie seldom.
	magnitude, known := XMM(), e.label("known")
	VMOVAPS(top, magnitude)
	four.choose(four.cmp(greater, opposite, top), least, top)
	VUCOMISS(opposite, magnitude)
	JNE(LabelRef(known))
	VUCOMISS(zero.AsX(), magnitude)
	JEQ(LabelRef(known))
	wide := e.wideOf(magnitude)
	VBROADCASTSS(e.first(func(v int) mask {
		t := e.vec()
		VANDNPS(x[v], signs, t)
		return e.cmp(equal, t, wide)
	}), top)
	Label(known)
	return top
}

func minimum(a, b, dst Op) { VMINPS(a, b, dst) }
func maximum(a, b, dst Op) { VMAXPS(a, b, dst) }

// first addresses the first of 32 elements with a condition, which one has.
func (e *encoder) first(condition func(v int) mask) Mem {
	all := GP32()
	for v := range 32 / e.lanes {
		bits := e.lanesOf(condition(v))
		if v == 0 {
			MOVL(bits, all)
			continue
		}
		SHLL(U8(uint8(v*e.lanes)), bits)
		ORL(bits, all)
	}
	BSFL(all, all)
	return Mem{Base: e.src, Index: all.As64(), Scale: 4}
}

// codes writes 32 codes: four bits, or four and, before them, the fifth.
func (e *encoder) codes(b reg.VecVirtual, at int, five bool) {
	if five {
		t, bits := YMM(), GP32()
		VPSLLW(U8(3), b, t)
		VPMOVMSKB(t, bits)
		MOVL(bits, e.out(at))
		at += 4
		low := YMM()
		VPBROADCASTD(word(0x0f0f0f0f), low)
		VPAND(low, b, b)
	}
	high := XMM()
	VEXTRACTI128(U8(1), b, high)
	VPSLLW(U8(4), high, high)
	VPOR(b.AsX(), high, high)
	VMOVDQU(high, e.out(at))
}

// encodeSymmetric writes the encoders of Q4_0 and Q5_0 without importance.
func (s isa) encodeSymmetric(name string, size, n int) {
	e := s.encoder(name, "", size, 32, "quant."+name+" for whole blocks, without importance.")
	signs, half, order := s.bits(sign), s.number(float32(n)+0.5), s.order()
	limit := YMM()
	VPBROADCASTD(word(uint32(2*n-1)*0x01010101), limit)
	e.turns(func() {
		VMOVSS(e.peak(e.inputs(0, 32), signs), e.slot(slotTop))
	}, func() {
		d, eight := YMM(), sets[0]
		VMOVUPS(e.slot(slotTop), d)
		VMULPS(eight.number(-1/float32(n)), d, d) // exactly the quotient
		inv := eight.inverse(d, eight.number(1))
		VMOVUPS(inv, e.slot(slotInverse))
		VMOVUPS(eight.finite(inv), e.slot(slotKeep))
		e.halfSlot(d, slotTop)
	}, func() {
		e.putSlot(slotTop, 0)
		inv, x := s.splat(e.slot(slotInverse)), s.vecs(32/s.lanes)
		for v, c := range x {
			VMULPS(e.in(v), inv, c)
			VADDPS(half, c, c)
			VCVTTPS2DQ(c, c)
		}
		e.finish(x, limit, order, 2, n == 16)
	})
	s.ret()
}

// finish writes the codes x, limited, if the block's are to be kept, else zeros.
func (e *encoder) finish(x []reg.VecVirtual, limit, order reg.VecVirtual, at int, five bool) {
	b := e.bytes(x, false)
	VPMINUB(limit, b, b)
	e.mask(b)
	e.inOrder(b, order)
	e.codes(b, at, five)
}

// extremes returns quant.extremes of 32 elements in four lanes.
func (e *encoder) extremes(x []reg.VecVirtual) (low, high reg.VecVirtual) {
	// NaN stays if it is the first number, and is passed over else.
	least, most := e.splat(e.in(0)), e.splat(e.in(0))
	for _, v := range x {
		VMINPS(least, v, least)
		VMAXPS(most, v, most)
	}
	low, high = e.fold(least, minimum), e.fold(most, maximum)
	// Of 0 and −0 the first counts.
	known, zero := e.label("known"), e.zero(e.vec())
	VUCOMISS(zero.AsX(), low)
	JNE(LabelRef(known))
	JPS(LabelRef(known))
	VBROADCASTSS(e.first(func(v int) mask { return e.cmp(equal, x[v], zero) }), low)
	Label(known)
	return low, high
}

// encodeAffine writes the encoders of Q4_1 and Q5_1 without importance.
func (s isa) encodeAffine(name string, size, n int) {
	e := s.encoder(name, "", size, 32, "quant."+name+" for whole blocks, without importance.")
	half, order, limit := s.number(0.5), s.order(), YMM()
	VPBROADCASTD(word(uint32(n)*0x01010101), limit)
	e.turns(func() {
		low, high := e.extremes(e.inputs(0, 32))
		VMOVSS(low, e.slot(slotLow))
		VMOVSS(high, e.slot(slotTop))
	}, func() {
		low, d, eight := YMM(), YMM(), sets[0]
		VMOVUPS(e.slot(slotTop), d)
		VMOVUPS(e.slot(slotLow), low)
		VSUBPS(low, d, d)
		VDIVPS(eight.number(float32(n)), d, d)
		inv := eight.inverse(d, eight.number(1))
		VMOVUPS(inv, e.slot(slotInverse))
		VMOVUPS(eight.finite(d, inv), e.slot(slotKeep))
		e.halfSlot(d, slotTop)
		e.halfSlot(low, slotHalf)
	}, func() {
		e.putSlot(slotTop, 0)
		e.putSlot(slotHalf, 2)
		inv, low, x := s.splat(e.slot(slotInverse)), s.splat(e.slot(slotLow)), s.vecs(32/s.lanes)
		for v, c := range x {
			VMOVUPS(e.in(v), c)
			VSUBPS(low, c, c)
			VMULPS(inv, c, c)
			VADDPS(half, c, c)
			VCVTTPS2DQ(c, c)
		}
		e.finish(x, limit, order, 4, n == 31)
	})
	s.ret()
}

// ternary is the rounding of x/d to the codes 0, 1 and 2.
type ternary struct {
	*encoder
	inv, signs, below, one, low reg.VecVirtual
}

// scaleTernary writes the scale and prepares the rounding of a block.
func (e *encoder) scaleTernary(at int) ternary {
	d := e.magnitude(e.bits(signless))
	newHalves(four).put(d, e.out(at))
	inv := four.inverse(d, four.number(1))
	VANDPS(four.finite(inv), inv, inv)
	t := ternary{encoder: e, inv: e.wideOf(inv), signs: e.bits(sign), below: e.bits(belowHalf), one: YMM(), low: YMM()}
	VPBROADCASTD(word(0x01010101), t.one)
	VPBROADCASTD(word(0x03030303), t.low)
	return t
}

// codes returns 32 codes as bytes, not in order. What is no number becomes 0
// or −128 and then 1.
func (t ternary) codes(first int) reg.VecVirtual {
	b := t.bytes(t.scaled(first, 32, t.inv, t.signs, t.below), true)
	VPADDB(t.one, b, b)
	VPAND(t.low, b, b)
	return b
}

// encodeTQ2_0 writes the encoder of TQ2_0.
func (s isa) encodeTQ2_0() {
	e := s.encoder("encodeTQ2_0", "", 66, 256, "quant.encodeTQ2_0 for whole blocks.")
	order := s.order()
	e.each(func() {
		t := e.scaleTernary(64)
		for half := range 2 {
			all := t.codes(128 * half)
			for k := 1; k < 4; k++ {
				b := t.codes(128*half + 32*k)
				VPSLLW(U8(uint8(2*k)), b, b)
				VPOR(b, all, all)
			}
			s.inOrder(all, order)
			VMOVDQU(all, e.out(32*half))
		}
	})
	s.ret()
}

// encodeTQ1_0 writes the encoder of TQ1_0.
func (s isa) encodeTQ1_0() {
	e := s.encoder("encodeTQ1_0", "", 54, 256, "quant.encodeTQ1_0 for whole blocks.")
	e.each(func() {
		t := e.scaleTernary(52)
		n := t.codes(0)
		for k := 1; k < 5; k++ {
			digit(n, t.codes(32*k))
		}
		s.inOrder(n, s.order())
		fraction(n)
		VMOVDQU(n, e.out(0))

		// Three times 32 codes: five digits of 16 bytes, and 16 single digits.
		rest := make([]reg.VecVirtual, 3)
		for k := range rest {
			rest[k] = t.codes(160 + 32*k)
			s.inOrder(rest[k], s.order())
		}
		sixteen, last := XMM(), XMM()
		VMOVDQA(rest[0].AsX(), sixteen)
		for k := 1; k < 5; k++ {
			part := XMM()
			VEXTRACTI128(U8(uint8(k%2)), rest[k/2], part)
			digit(sixteen, part)
		}
		singles := XMM()
		VEXTRACTI128(U8(1), rest[2], singles)
		VMOVDQA(singles, last)
		for k := 1; k < 4; k++ {
			part := XMM()
			VPSHUFD(U8(uint8(k)), singles, part)
			digit(last, part)
		}
		digit(last, four.zero(XMM()))
		both := YMM()
		VINSERTI128(U8(1), last, sixteen.AsY(), both)
		fraction(both)
		VMOVDQU(both.AsX(), e.out(32))
		VEXTRACTI128(U8(1), both, last)
		VMOVD(last, e.out(48))
	})
	s.ret()
}

// digit appends a digit to base three to the bytes of n.
func digit(n, d Op) {
	VPADDB(n, d, d)
	VPADDB(n, n, n)
	VPADDB(d, n, n)
}

// fraction turns the bytes n, up to 242, into (256·n+242)/243.
func fraction(n reg.VecVirtual) {
	zero, round, inverse := YMM(), YMM(), YMM()
	VPXOR(zero, zero, zero)
	VPBROADCASTD(word(242*0x10001), round)
	// 2^23/243: the quotients of these numbers are exact.
	VPBROADCASTD(word(34522*0x10001), inverse)
	words := func(unpack func(a, b, dst Op)) reg.VecVirtual {
		t := YMM()
		unpack(n, zero, t)
		VPADDW(round, t, t)
		VPMULHUW(inverse, t, t)
		VPSRLW(U8(7), t, t)
		return t
	}
	low := words(func(a, b, dst Op) { VPUNPCKLBW(a, b, dst) })
	high := words(func(a, b, dst Op) { VPUNPCKHBW(a, b, dst) })
	VPACKUSWB(high, low, n)
}

// encodeQ2_0 writes the encoder of Q2_0.
func (s isa) encodeQ2_0() {
	e := s.encoder("encodeQ2_0", "", 18, 64, "quant.encodeQ2_0 for whole blocks.")
	e.each(func() {
		d := e.magnitude(s.bits(signless))
		newHalves(four).put(d, e.out(0))
		inv := four.inverse(d, four.number(1))
		keep, mask := four.finite(inv), YMM()
		VBROADCASTSS(keep, mask)
		t := ternary{encoder: e, inv: s.wideOf(inv), signs: s.bits(sign), below: s.bits(belowHalf), one: YMM(), low: YMM()}
		VPBROADCASTD(word(0x01010101), t.one)
		VPBROADCASTD(word(0x03030303), t.low)
		quads := make([]reg.VecVirtual, 2)
		for k := range quads {
			quads[k] = t.codes(32 * k)
			s.inOrder(quads[k], s.order())
			pairs, fours := YMM(), YMM()
			VPBROADCASTD(word(0x04010401), pairs)
			VPBROADCASTD(word(0x00100001), fours)
			VPMADDUBSW(pairs, quads[k], quads[k])
			VPMADDWD(fours, quads[k], quads[k])
			VPAND(mask, quads[k], quads[k])
		}
		sets[0].storeBytes(quads, e.out(2))
	})
	s.ret()
}
