package main

import (
	"fmt"
	"math"

	. "github.com/mmcloughlin/avo/build"
	. "github.com/mmcloughlin/avo/operand"
	"github.com/mmcloughlin/avo/reg"
)

// Rows of kernel.Candidates, of 48 numbers each.
const (
	candidateBytes = 4 * 48

	candA     = 0 * candidateBytes
	candB     = 1 * candidateBytes
	candCodes = 2 * candidateBytes  // 8 rows
	candInv   = 10 * candidateBytes // inverse scales
	candScale = 11 * candidateBytes
	candKeys  = 12 * candidateBytes // of the cell at hand
	candTerms = 13 * candidateBytes // terms for eight scales
)

// What lies between the rows of kernel.Magnitudes.
const (
	magW  = 1 * 1024
	magWX = 2 * 1024
	magU  = 3 * 1024
)

// offGrid marks codes that are not those of their key.
const offGrid = 1 << 16

// cells writes the searches of IQ2 and IQ3.
func cells() {
	magnitudes()
	for _, s := range sets {
		for _, d := range []digits{levels3(s), levels8(s)} {
			d.fitCells()
			d.roundCells()
		}
	}
}

// cellFit is the state of fitCells while it is written.
type cellFit struct {
	digits
	c, x, count, out reg.GPVirtual
}

// fitCells writes the measuring of all candidates for a group. Candidates lie
// side by side, one per lane. Few runs of candidates with the same key are
// longer than eight, so that lists are searched with short vectors in any case.
func (d digits) fitCells() {
	d.text(fmt.Sprintf("fitCells%d", d.levels),
		"func(c *[27][48]uint32, x *float32, entries, lists *uint32, cells int, top *float32, count int, base float32)",
		"what quant.gridGroup.search needs to know of every candidate: the",
		"codes of the cells and the sums over them.")
	f := cellFit{digits: d, c: GP64(), x: GP64(), count: GP64(), out: GP64()}
	short := f
	short.digits = levelsOf(sets[0], d.levels)
	Load(Param("c"), f.c)
	f.scales()
	Load(Param("x"), f.x)
	Load(Param("count"), f.count)
	LEAQ(Mem{Base: f.c, Disp: candCodes}, f.out)
	cells := GP64()
	Load(Param("cells"), cells)
	repeat("cell", cells, func() {
		f.keys()
		short.runs()
		ADDQ(U8(uint8(4*d.elements)), f.x)
		ADDQ(U32(candidateBytes), f.out)
	})
	f.sums()
	d.ret()
}

// vectors runs body for all candidates; p is c, advanced by the candidates
// that went before.
func (f *cellFit) vectors(label string, body func(p reg.GPVirtual)) {
	p, n := GP64(), GP64()
	MOVQ(f.c, p)
	Load(Param("count"), n)
	Label(label)
	body(p)
	ADDQ(U8(uint8(f.size())), p)
	SUBQ(U8(uint8(f.lanes)), n)
	JG(LabelRef(label))
}

// scales sets the inverse scales, top/base, and the scales.
func (f *cellFit) scales() {
	top := GP64()
	Load(Param("top"), top)
	base, one := f.param("base"), f.number(1)
	f.vectors("scale", func(p reg.GPVirtual) {
		v := f.load(Mem{Base: top})
		VDIVPS(base, v, v)
		VMOVUPS(v, Mem{Base: p, Disp: candInv})
		VDIVPS(v, one, v)
		VMOVUPS(v, Mem{Base: p, Disp: candScale})
		ADDQ(U8(uint8(f.size())), top)
	})
}

// keys sets the keys of the cell.
func (f *cellFit) keys() {
	if f.levels == 3 {
		f.keys3()
	} else {
		f.keys8()
	}
	none := f.bits(0xffffffff)
	VMOVUPS(none, Mem{Base: f.c, Index: f.count, Scale: 4, Disp: candKeys})
}

// keys3: quant.keyOf3.
func (f *cellFit) keys3() {
	two, four, one := f.number(2), f.number(4), f.bits(1)
	f.vectors("key", func(p reg.GPVirtual) {
		inv, key, t := f.load(Mem{Base: p, Disp: candInv}), f.zero(f.vec()), f.vec()
		for i := f.elements - 1; i >= 0; i-- {
			v := f.splat(Mem{Base: f.x, Disp: 4 * i})
			VMULPS(inv, v, v)
			VPADDD(key, key, t)
			VPADDD(t, key, key)
			f.increment(f.cmp(greater, v, two), one, key)
			f.increment(f.cmp(greaterEqual, v, four), one, key)
		}
		VMOVUPS(key, Mem{Base: p, Disp: candKeys})
	})
}

// increment adds one where m holds.
func (s isa) increment(m mask, one, v reg.VecVirtual) {
	if s.wide() {
		VPADDD(one, v, m.k, v)
	} else {
		VPSUBD(m.v, v, v)
	}
}

// keys8: quant.keyOf8. Half the inverse scale gives half of id·y exactly: the
// range is far from subnormal numbers, or the digit is 0.
func (f *cellFit) keys8() {
	half, low, high := f.number(0.5), f.number(magic), f.number(magic+7)
	f.vectors("key", func(p reg.GPVirtual) {
		inv, key := f.load(Mem{Base: p, Disp: candInv}), f.zero(f.vec())
		VMULPS(half, inv, inv)
		for i := f.elements - 1; i >= 0; i-- {
			v := f.splat(Mem{Base: f.x, Disp: 4 * i})
			VMULPS(inv, v, v)
			VSUBPS(half, v, v)
			VADDPS(low, v, v)
			VMAXPS(low, v, v)
			VMINPS(high, v, v)
			VPSLLD(U8(f.width), key, key)
			VPADDD(v, key, key)
		}
		f.abs(key, f.bits(4095)) // magic's bits are multiples of 4096
		VMOVUPS(key, Mem{Base: p, Disp: candKeys})
	})
}

// runs sets the codes of the cell. Keys do not fall as the inverse scale grows,
// so that candidates with the same key, and hence the same list of neighbours,
// are next to each other: they are searched together.
func (f *cellFit) runs() {
	i := GP64()
	XORQ(i, i)
	Label("run")
	at := func(row int) Mem { return Mem{Base: f.c, Index: i, Scale: 4, Disp: row} }
	key, length := GP32(), GP32()
	MOVL(at(candKeys), key)
	equal := f.splat(at(candKeys))
	VPCMPEQD(at(candKeys), equal, equal)
	same := f.lanesOf(mask{v: equal})
	NOTL(same)
	TZCNTL(same, length)
	entries, entry := GP64(), GP32()
	Load(Param("entries"), entries)
	MOVL(Mem{Base: entries, Index: key.As64(), Scale: 4}, entry)
	code := f.vec()
	TESTL(entry, entry)
	JS(LabelRef("onGrid"))
	f.terms(f.load(at(candScale)))
	f.search(entry, code)
	JMP(LabelRef("found"))
	Label("onGrid")
	ANDL(U32(0xffff), entry)
	VMOVD(entry, code.AsX())
	VPBROADCASTD(code.AsX(), code)
	Label("found")
	VMOVUPS(code, Mem{Base: f.out, Index: i, Scale: 4})
	ADDQ(length.As64(), i)
	CMPQ(i, f.count)
	JLT(LabelRef("run"))
}

// term returns (u·e)·e for e = value−x.
func (s isa) term(value, x, u reg.VecVirtual) reg.VecVirtual {
	e, t := s.vec(), s.vec()
	VSUBPS(x, value, e)
	VMULPS(u, e, t)
	VMULPS(e, t, t)
	return t
}

// element returns the magnitude of an element and the weight of its error.
func (f *cellFit) element(i int) (x, u reg.VecVirtual) {
	return f.splat(Mem{Base: f.x, Disp: 4 * i}), f.splat(Mem{Base: f.x, Disp: magU + 4*i})
}

// termRow addresses a row of terms.
func (f *cellFit) termRow(row int) Mem { return Mem{Base: f.c, Disp: candTerms + row*f.size()} }

// sharedRows is the number of rows for the sums of the first three elements,
// by the six bits of their digits.
const sharedRows = 64

// terms sets the terms of all digits for the scales in s.
func (f *cellFit) terms(s reg.VecVirtual) {
	values := f.vecs(f.levels)
	for l := range values {
		VMULPS(f.number(float32(2*l+1)), s, values[l])
	}
	if f.levels == 8 {
		for i := range f.elements {
			x, u := f.element(i)
			for l, v := range values {
				VMOVUPS(f.term(v, x, u), f.termRow(8*i+l))
			}
		}
		return
	}
	for i := 3; i < f.elements; i++ {
		x, u := f.element(i)
		for l, v := range values {
			VMOVUPS(f.term(v, x, u), f.termRow(sharedRows+4*(i-3)+l))
		}
	}
	var first [3][3]reg.VecVirtual
	for i := range first {
		x, u := f.element(i)
		for l, v := range values {
			first[i][l] = f.term(v, x, u)
		}
	}
	for a := range 3 {
		for b := range 3 {
			two := f.vec()
			VADDPS(first[1][b], first[0][a], two)
			for c := range 3 {
				three := f.vec()
				VADDPS(first[2][c], two, three)
				VMOVUPS(three, f.termRow(c<<4|b<<2|a))
			}
		}
	}
}

// records describes the records of a list: their size, the place of four bytes
// that identify the code, and for each byte with digits the row of the first of
// its terms. Those bytes hold 4·digit; for three levels the first has three
// digits of two bits each.
func (d digits) records() (size, identity int, rows []int) {
	if d.levels == 3 {
		return 8, 4, []int{0, sharedRows, sharedRows + 4, sharedRows + 8, sharedRows + 12, sharedRows + 16}
	}
	return 4, 0, []int{0, 8, 16, 24}
}

// search sets code to the codes with the smallest sum in each lane, of several
// the first.
func (f *cellFit) search(entry reg.GPVirtual, code reg.VecVirtual) {
	size, identity, _ := f.records()
	list, n := GP64(), GP64()
	Load(Param("lists"), list)
	MOVL(entry, n.As32())
	ANDL(U32(511), n.As32())
	SHRL(U8(9), entry)
	LEAQ(Mem{Base: list, Index: entry.As64(), Scale: uint8(size)}, list)
	best := f.number(math.MaxFloat32)
	f.zero(code)
	SHRL(U8(1), n.As32())
	repeat("codes", n, func() {
		first, second := f.sum(list, 0), f.sum(list, size)
		code0, code1 := f.splat(Mem{Base: list, Disp: identity}), f.splat(Mem{Base: list, Disp: size + identity})
		m := f.cmp(less, second, first)
		VMINPS(first, second, first)
		f.choose(m, code1, code0)
		m = f.cmp(less, first, best)
		VMINPS(best, first, best)
		f.choose(m, code0, code)
		ADDQ(U8(uint8(2*size)), list)
	})
	f.unpack(code)
}

// sum returns the sums of the terms that the record at a place of list chooses.
func (f *cellFit) sum(list reg.GPVirtual, place int) reg.VecVirtual {
	size, _, rows := f.records()
	record, sum := GP64(), f.vec()
	if size == 8 {
		MOVQ(Mem{Base: list, Disp: place}, record)
	} else {
		MOVL(Mem{Base: list, Disp: place}, record.As32())
	}
	for i, row := range rows {
		term, digit := f.termRow(row), GP64()
		MOVBLZX(record.As8(), digit.As32())
		term.Index, term.Scale = digit, 8
		if i == 0 {
			VMOVUPS(term, sum)
		} else {
			VADDPS(term, sum, sum)
		}
		if i+1 < len(rows) {
			SHRQ(U8(8), record)
		}
	}
	return sum
}

// unpack turns what identifies codes into codes off the grid.
func (f *cellFit) unpack(code reg.VecVirtual) {
	if f.levels == 3 {
		VPSRLD(U8(16), code, code)
	} else {
		VPMADDUBSW(f.bits(0x08010801), code, code)
		VPMADDWD(f.bits(0x00400001), code, code)
		VPSRLD(U8(2), code, code)
	}
	VPOR(f.bits(offGrid), code, code)
}

// sums sets A and B of all candidates: quant.gridGroup.sums.
func (f *cellFit) sums() {
	odd := f.odd()
	f.vectors("sum", func(p reg.GPVirtual) {
		a, b := f.zero(f.vec()), f.zero(f.vec())
		codes, cells := GP64(), GP64()
		LEAQ(Mem{Base: p, Disp: candCodes}, codes)
		Load(Param("x"), f.x)
		Load(Param("cells"), cells)
		repeat("add", cells, func() {
			code, q := f.load(Mem{Base: codes}), f.vec()
			for i := range f.elements {
				if i > 0 {
					VPSRLD(U8(f.width), code, code)
				}
				f.choice(code, odd, q)
				t, w := f.splat(Mem{Base: f.x, Disp: magWX + 4*i}), f.splat(Mem{Base: f.x, Disp: magW + 4*i})
				VMULPS(q, t, t)
				VADDPS(t, a, a)
				VMULPS(q, w, w)
				VMULPS(q, w, w)
				VADDPS(w, b, b)
			}
			ADDQ(U8(uint8(4*f.elements)), f.x)
			ADDQ(U32(candidateBytes), codes)
		})
		VMOVUPS(a, Mem{Base: p, Disp: candA})
		VMOVUPS(b, Mem{Base: p, Disp: candB})
	})
}

// odd returns the magnitudes that digits stand for.
func (d digits) odd() reg.VecVirtual {
	if d.levels == 3 {
		return d.load(oddOf3())
	}
	return d.load(oddOf8())
}

func oddNumbers(n int) (bits []uint32) {
	for l := range n {
		bits = append(bits, math.Float32bits(float32(2*l+1)))
	}
	return bits
}

var (
	oddOf3 = repeated("odd4", oddNumbers(4)...)
	oddOf8 = repeated("odd8", oddNumbers(8)...)
)

// roundCells writes the rounding of one group with one scale.
func (d digits) roundCells() {
	d.text(fmt.Sprintf("roundCells%d", d.levels),
		"func(codes *uint16, x *float32, entries *uint32, lists *uint16, which int, inv, scale float32)",
		"quant.gridGroup.round.")
	c := cellRound{digits: d, narrow: levelsOf(sets[0], d.levels), x: GP64()}
	codes, which := GP64(), GP64()
	Load(Param("codes"), codes)
	Load(Param("x"), c.x)
	Load(Param("which"), which)
	Label("cell")
	SHRQ(U8(1), which)
	JCC(LabelRef("next"))
	entries, entry := GP64(), GP32()
	Load(Param("entries"), entries)
	MOVL(Mem{Base: entries, Index: c.key(), Scale: 4}, entry)
	TESTL(entry, entry)
	JS(LabelRef("store"))
	c.search(entry)
	Label("store")
	MOVW(entry.As16(), Mem{Base: codes})
	Label("next")
	ADDQ(U8(2), codes)
	ADDQ(U8(uint8(4*d.elements)), c.x)
	TESTQ(which, which)
	JNZ(LabelRef("cell"))
	d.ret()
}

func levelsOf(s isa, levels int) digits {
	if levels == 3 {
		return levels3(s)
	}
	return levels8(s)
}

// cellRound is the state of roundCells while it is written.
type cellRound struct {
	digits
	narrow digits // for vectors of the elements of a cell
	x      reg.GPVirtual
}

// key returns the key of the cell: quant.keyOf3 and quant.keyOf8.
func (c *cellRound) key() reg.GPVirtual {
	n, v := c.narrow, c.narrow.load(Mem{Base: c.x})
	VMULPS(n.param("inv"), v, v)
	sum, t := n.vec(), n.vec()
	if n.levels == 3 {
		weights := n.load(powersOf3())
		VANDPS(weights, n.cmp(greater, v, n.number(2)).v, sum)
		VANDPS(weights, n.cmp(greaterEqual, v, n.number(4)).v, t)
		VPADDD(t, sum, sum)
		VEXTRACTI128(U8(1), sum, t.AsX())
		VPADDD(t.AsX(), sum.AsX(), sum.AsX())
	} else {
		low := n.number(magic)
		VSUBPS(n.number(1), v, v)
		VMULPS(n.number(0.5), v, v)
		VADDPS(low, v, v)
		VMAXPS(low, v, v)
		VMINPS(n.number(magic+7), v, v)
		VPSLLVD(shiftsOf8(), v, sum)
	}
	for _, swap := range []uint8{0x4e, 0xb1} {
		VPSHUFD(U8(swap), sum.AsX(), t.AsX())
		VPADDD(t.AsX(), sum.AsX(), sum.AsX())
	}
	key := GP64()
	VMOVD(sum.AsX(), key.As32())
	if n.levels == 8 {
		ANDL(U32(4095), key.As32())
	}
	return key
}

var (
	powersOf3 = repeated("powers3", 1, 3, 9, 27, 81, 243, 729, 2187)
	shiftsOf8 = repeated("shifts8", 0, 3, 6, 9)
)

// search turns the entry of a key off the grid into the nearest code.
func (c *cellRound) search(entry reg.GPVirtual) {
	tables := c.terms()
	list, n := GP64(), GP64()
	Load(Param("lists"), list)
	MOVL(entry, n.As32())
	ANDL(U32(511), n.As32())
	SHRL(U8(9), entry)
	LEAQ(Mem{Base: list, Index: entry.As64(), Scale: 2}, list)
	first := GP64()
	MOVQ(list, first)
	place, _ := c.nearest(list, n, tables)
	MOVWLZX(Mem{Base: first, Index: place, Scale: 2}, entry)
}

// terms returns the tables of terms, as choice takes them.
func (c *cellRound) terms() []reg.VecVirtual {
	if c.levels == 3 {
		return c.terms3()
	}
	scale, tables := c.load(oddOf8()), c.vecs(c.elements)
	VMULPS(c.param("scale"), scale, scale)
	for i := range tables {
		tables[i] = c.term(scale, c.splat(Mem{Base: c.x, Disp: 4 * i}), c.splat(Mem{Base: c.x, Disp: magU + 4*i}))
	}
	return tables
}

// terms3 computes the terms of all elements for each digit and sorts them by
// elements.
func (c *cellRound) terms3() []reg.VecVirtual {
	n := c.narrow
	x, u, scale := n.load(Mem{Base: c.x}), n.load(Mem{Base: c.x, Disp: magU}), n.param("scale")
	var t [3]reg.VecVirtual
	for l := range t {
		v := n.number(float32(2*l + 1))
		VMULPS(scale, v, v)
		t[l] = n.term(v, x, u)
	}
	rows := AllocLocal(8 * 16)
	for half, unpack := range []func(a, b, dst Op){
		func(a, b, dst Op) { VUNPCKLPS(a, b, dst) },
		func(a, b, dst Op) { VUNPCKHPS(a, b, dst) },
	} {
		low, high, row := n.vec(), n.vec(), n.vec()
		unpack(t[1], t[0], low)
		unpack(t[2], t[2], high)
		VUNPCKLPD(high, low, row)
		c.spread(rows, 2*half, row)
		VUNPCKHPD(high, low, row)
		c.spread(rows, 2*half+1, row)
	}
	tables := c.vecs(c.elements)
	for i, table := range tables {
		if c.wide() {
			VBROADCASTF32X4(rows.Offset(16*i), table)
		} else {
			VBROADCASTF128(rows.Offset(16*i), table)
		}
	}
	return tables
}

// spread stores the terms of elements i and i+4.
func (c *cellRound) spread(rows Mem, i int, both reg.VecVirtual) {
	VMOVUPS(both.AsX(), rows.Offset(16*i))
	VEXTRACTF128(U8(1), both, rows.Offset(16*(i+4)))
}

// magnitudes writes what a super-block's searches have in common.
func magnitudes() {
	s := sets[0]
	s.text("magnitudes", "func(m *[4][256]float32, signs *[32]uint8, tops *[3][16]uint32, x, q *float32, sigma2 float32, group int, parity bool)",
		"quant.gridGroup.weigh and split for a super-block x in groups of 16 or 32.")
	f := magnitude{isa: s, m: GP64(), x: GP64(), q: GP64(), signs: GP64(), tops: GP64()}
	Load(Param("m"), f.m)
	Load(Param("x"), f.x)
	Load(Param("q"), f.q)
	Load(Param("signs"), f.signs)
	Load(Param("tops"), f.tops)
	groups, cells, group := GP64(), GP64(), GP64()
	MOVQ(U32(256), groups)
	Label("group")
	f.top, f.reach, f.weight = s.zero(s.vec()), s.zero(s.vec()), s.zero(s.vec())
	Load(Param("group"), cells)
	SHRQ(U8(3), cells)
	repeat("cell", cells, f.cell)
	f.finish()
	Load(Param("group"), group)
	SUBQ(group, groups)
	JNZ(LabelRef("group"))
	s.ret()
}

// magnitude is the state of magnitudes while it is written.
type magnitude struct {
	isa
	m, x, q, signs, tops reg.GPVirtual
	top, reach, weight   reg.VecVirtual // largest of the group in each lane
}

// cell does eight elements.
func (f *magnitude) cell() {
	x, w, u := f.load(Mem{Base: f.x}), f.vec(), f.vec()
	f.weigh(x, w)
	VSQRTPS(w, u)
	VMOVUPS(w, Mem{Base: f.m, Disp: magW})
	VMOVUPS(u, Mem{Base: f.m, Disp: magU})
	size, sign := f.vec(), f.bits(1<<31)
	VANDNPS(x, sign, size)
	VPMAXUD(size, f.reach, f.reach)
	VPMAXUD(u, f.weight, f.weight)
	negative := f.cmp(notGreaterEqual, x, f.zero(f.vec()))
	signs, parity := f.lanesOf(negative), GP32()
	VANDPS(sign, negative.v, negative.v)
	VXORPS(negative.v, x, size)
	Load(Param("parity"), parity.As8())
	TESTB(parity.As8(), parity.As8())
	JZ(LabelRef("even"))
	POPCNTL(signs, parity)
	TESTL(U32(1), parity)
	JZ(LabelRef("even"))
	f.flip(size, f.leastSquare(x, w), signs)
	Label("even")
	MOVB(signs.As8(), Mem{Base: f.signs})
	VMOVUPS(size, Mem{Base: f.m})
	VMULPS(size, w, w)
	VMOVUPS(w, Mem{Base: f.m, Disp: magWX})
	VMAXPS(size, f.top, f.top)
	ADDQ(U8(32), f.x)
	ADDQ(U8(32), f.m)
	INCQ(f.signs)
}

// weigh sets w to the weights of x.
func (f *magnitude) weigh(x, w reg.VecVirtual) {
	VMULPS(x, x, w)
	VADDPS(f.param("sigma2"), w, w)
	TESTQ(f.q, f.q)
	JZ(LabelRef("weighed"))
	VSQRTPS(w, w)
	VMULPS(Mem{Base: f.q}, w, w)
	ADDQ(U8(32), f.q)
	Label("weighed")
}

// leastSquare returns quant.leastSquare as a bit.
func (f *magnitude) leastSquare(x, w reg.VecVirtual) reg.GPVirtual {
	square := f.vec()
	VMULPS(x, w, square)
	VMULPS(x, square, square)
	bit, rest := f.lanesOf(f.cmp(equal, square, f.least(square))), GP32()
	MOVL(bit, rest)
	NEGL(rest)
	ANDL(rest, bit)
	return bit
}

// flip changes the sign of one element.
func (f *magnitude) flip(size reg.VecVirtual, bit, signs reg.GPVirtual) {
	XORL(bit, signs)
	v := f.vec()
	VMOVD(bit, v.AsX())
	VPBROADCASTD(v.AsX(), v)
	VPSLLVD(signShifts(), v, v)
	VANDPS(f.bits(1<<31), v, v)
	VXORPS(v, size, size)
}

// signShifts move bit i to the sign of lane i.
var signShifts = repeated("signShifts", 31, 30, 29, 28, 27, 26, 25, 24)

// finish stores the largest numbers of the group.
func (f *magnitude) finish() {
	for i, v := range []reg.VecVirtual{f.top, f.reach, f.weight} {
		largest := VMAXPS
		if i > 0 {
			largest = VPMAXUD
		}
		t := XMM()
		VEXTRACTF128(U8(1), v, t)
		largest(t, v.AsX(), v.AsX())
		for _, swap := range []uint8{0x4e, 0xb1} {
			VPSHUFD(U8(swap), v.AsX(), t)
			largest(t, v.AsX(), v.AsX())
		}
		VMOVSS(v.AsX(), Mem{Base: f.tops, Disp: 64 * i})
	}
	ADDQ(U8(4), f.tops)
}
