package main

import (
	"math"

	. "github.com/mmcloughlin/avo/build"
	. "github.com/mmcloughlin/avo/operand"
	"github.com/mmcloughlin/avo/reg"
)

// digits says how the codes of a cell are packed.
type digits struct {
	isa
	levels, elements int
	width            uint8 // bits per digit
}

func levels3(s isa) digits { return digits{isa: s, levels: 3, elements: 8, width: 2} }
func levels8(s isa) digits { return digits{isa: s, levels: 8, elements: 4, width: 3} }

// choice sets dst in each lane to the number of table that the lowest digit of
// code names. The table is repeated in the vector: every 4 numbers for three
// levels, every 8 for eight.
func (d digits) choice(code, table, dst reg.VecVirtual) {
	if d.levels == 3 {
		VPERMILPS(code, table, dst)
	} else {
		VPERMPS(table, code, dst)
	}
}

// repeated returns a constant vector of these numbers, over and over.
func repeated(name string, numbers ...uint32) func() Mem {
	var m *Mem
	return func() Mem {
		if m == nil {
			g := GLOBL(name, RODATA|NOPTR)
			for i := range 16 {
				DATA(4*i, U32(numbers[i%len(numbers)]))
			}
			m = &g
		}
		return *m
	}
}

var laneNumbers = repeated("lanes", 0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15)

// nearest finds the first of n codes with the smallest ordered sum of the
// numbers that its digits choose from the tables. It returns the place in the
// list and, in all lanes, the sum; that is the largest float if no sum is less.
// list and n are destroyed; up to a vector of codes is read behind the list.
func (d digits) nearest(list, n reg.GPVirtual, tables []reg.VecVirtual) (place reg.GPVirtual, least reg.VecVirtual) {
	best, at, lane := d.number(math.MaxFloat32), d.zero(d.vec()), d.load(laneNumbers())
	limit, step := d.vec(), d.splat(word(uint32(d.lanes)))
	VMOVD(n.As32(), limit.AsX())
	VPBROADCASTD(limit.AsX(), limit)
	loop := d.label("codes")
	Label(loop)
	code, sum, t := d.vec(), d.vec(), d.vec()
	VPMOVZXWD(Mem{Base: list}, code)
	d.choice(code, tables[0], sum)
	for _, table := range tables[1:] {
		VPSRLD(U8(d.width), code, code)
		d.choice(code, table, t)
		VADDPS(t, sum, sum)
	}
	m := d.cmp(less, sum, best)
	d.and(m, d.above(limit, lane))
	d.choose(m, sum, best)
	d.choose(m, lane, at)
	VPADDD(step, lane, lane)
	ADDQ(U8(uint8(2*d.lanes)), list)
	SUBQ(U8(uint8(d.lanes)), n)
	JG(LabelRef(loop))
	least = d.least(best)
	d.choose(d.cmp(notEqual, best, least), d.bits(0xffffffff), at)
	return d.leastInteger(at), least
}

// above returns a > b for integers.
func (s isa) above(a, b reg.VecVirtual) mask {
	if s.wide() {
		m := mask{k: K()}
		VPCMPGTD(b, a, m.k)
		return m
	}
	m := mask{v: s.vec()}
	VPCMPGTD(b, a, m.v)
	return m
}

// least returns the smallest lane in all lanes.
func (s isa) least(v reg.VecVirtual) reg.VecVirtual {
	least, t := v, s.vec()
	narrow := func(swap func(v reg.VecVirtual)) {
		swap(least)
		next := s.vec()
		VMINPS(t, least, next)
		least = next
	}
	if s.wide() {
		narrow(func(v reg.VecVirtual) { VSHUFF32X4(U8(0x4e), v, v, t) })
		narrow(func(v reg.VecVirtual) { VSHUFF32X4(U8(0xb1), v, v, t) })
	} else {
		narrow(func(v reg.VecVirtual) { VPERM2F128(U8(1), v, v, t) })
	}
	narrow(func(v reg.VecVirtual) { VPERMILPS(U8(0x4e), v, t) })
	narrow(func(v reg.VecVirtual) { VPERMILPS(U8(0xb1), v, t) })
	return least
}

// leastInteger returns the smallest lane of v, which is destroyed.
func (s isa) leastInteger(v reg.VecVirtual) reg.GPVirtual {
	if s.wide() {
		high := YMM()
		VEXTRACTI64X4(U8(1), v, high)
		VPMINUD(high, v.AsY(), v.AsY())
	}
	t := XMM()
	VEXTRACTI128(U8(1), v.AsY(), t)
	VPMINUD(t, v.AsX(), v.AsX())
	for _, swap := range []uint8{0x4e, 0xb1} {
		VPSHUFD(U8(swap), v.AsX(), t)
		VPMINUD(t, v.AsX(), v.AsX())
	}
	least := GP64()
	VMOVD(v.AsX(), least.As32())
	return least
}
