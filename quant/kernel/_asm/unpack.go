package main

import (
	. "github.com/mmcloughlin/avo/build"
	. "github.com/mmcloughlin/avo/operand"
	"github.com/mmcloughlin/avo/reg"
)

// unpack writes the kernels that take blocks apart into integers and factors,
// and the one that makes numbers of both. Shuffling across wider vectors gains
// nothing.
func unpack() {
	s := sets[0]
	s.unpackQ2K()
	s.unpackQ3K()
	s.unpackQ4K("unpackQ4_K", 16, nil)
	s.unpackQ5K()
	s.unpackQ6K()
	s.unpackIQ4XS()
	s.unpackNibbles("unpackQ4_0", 18, 2, 8)
	s.unpackNibbles("unpackQ4_1", 20, 4, 0)
	s.unpackFive("unpackQ5_0", 22, 2, 16)
	s.unpackFive("unpackQ5_1", 24, 4, 0)
	s.unpackQ8_0()
	s.unpackTable("unpackIQ4_NL", 18, 2, tableIQ4, unpacker.halfFactor)
	s.unpackTable("unpackMXFP4", 17, 1, tableFP4, unpacker.factorE8M0)
	for _, s := range sets {
		s.expand()
	}
}

// Distances of rows in what is unpacked, as in unpack.go.
const (
	codeBytes  = 256
	scaleBytes = 64
)

// unpacker is a kernel that takes blocks apart.
type unpacker struct {
	isa
	codes, scales, mins, src reg.GPVirtual
}

// begin starts a function.
func (s isa) begin(name, equal string) (u unpacker, stride, rows, blocks reg.GPVirtual) {
	s.text(name, "func(codes *byte, scales, mins *float32, src *byte, stride, rows, blocks int)",
		"a Set.Unpack: "+equal+".")
	u = unpacker{isa: s, codes: GP64(), scales: GP64(), mins: GP64(), src: GP64()}
	stride, rows, blocks = GP64(), GP64(), GP64()
	Load(Param("codes"), u.codes)
	Load(Param("scales"), u.scales)
	Load(Param("mins"), u.mins)
	Load(Param("src"), u.src)
	Load(Param("stride"), stride)
	Load(Param("rows"), rows)
	Load(Param("blocks"), blocks)
	return u, stride, rows, blocks
}

// supers writes a kernel for types of 256 elements to a block: a row has one.
func (s isa) supers(name, equal string, size int, body func(u unpacker)) {
	u, stride, rows, _ := s.begin(name, equal)
	ahead := rowsAhead(stride)
	repeat("row", rows, func() {
		for at := 0; at < size; at += cacheLine {
			PREFETCHT0(Mem{Base: u.src, Index: ahead, Scale: 1, Disp: at})
		}
		body(u)
		ADDQ(stride, u.src)
		ADDQ(U32(codeBytes), u.codes)
		ADDQ(U8(scaleBytes), u.scales)
		ADDQ(U8(scaleBytes), u.mins)
	})
	s.ret()
}

// cacheLine is its length in bytes.
const cacheLine = 64

// rowsAhead returns the distance of what is fetched before it is needed: the
// same pieces of rows that products will ask for next.
func rowsAhead(stride reg.GPVirtual) reg.GPVirtual {
	ahead := GP64()
	MOVQ(stride, ahead)
	SHLQ(U8(4), ahead)
	return ahead
}

// blocks writes a kernel for types of 32 elements to a block: a row has up to
// eight.
func (s isa) blocks(name, equal string, size int, body func(u unpacker)) {
	u, stride, rows, blocks := s.begin(name, equal)
	ahead := rowsAhead(stride)
	// What is left of a row behind its blocks.
	codesLeft, scalesLeft, t := GP64(), GP64(), GP64()
	MOVQ(U32(8), scalesLeft)
	SUBQ(blocks, scalesLeft)
	SHLQ(U8(3), scalesLeft)
	LEAQ(Mem{Base: scalesLeft, Index: scalesLeft, Scale: 1}, codesLeft)
	SHLQ(U8(1), codesLeft)
	IMUL3Q(U32(uint32(size)), blocks, t)
	SUBQ(t, stride)
	repeat("row", rows, func() {
		n := GP64()
		MOVQ(blocks, n)
		repeat("block", n, func() {
			PREFETCHT0(Mem{Base: u.src, Index: ahead, Scale: 1})
			body(u)
			ADDQ(U8(uint8(size)), u.src)
			ADDQ(U8(32), u.codes)
			ADDQ(U8(8), u.scales)
			ADDQ(U8(8), u.mins)
		})
		ADDQ(stride, u.src)
		ADDQ(codesLeft, u.codes)
		ADDQ(scalesLeft, u.scales)
		ADDQ(scalesLeft, u.mins)
	})
	s.ret()
}

func (u unpacker) in(disp int) Mem   { return Mem{Base: u.src, Disp: disp} }
func (u unpacker) code(disp int) Mem { return Mem{Base: u.codes, Disp: disp} }

// half returns a half of the block in all lanes.
func (u unpacker) half(disp int) reg.VecVirtual {
	x, y := XMM(), u.vec()
	VPBROADCASTW(u.in(disp), x)
	VCVTPH2PS(x, y)
	return y
}

// bytes returns a vector of integers of one byte each, the same.
func bytes(b uint8) Mem { return vector(uint32(b) * 0x01010101) }

// shifted returns codes moved by bits, to the right or, if negative, to the
// left, and masked.
func (u unpacker) shifted(codes reg.VecVirtual, right int, mask uint8) reg.VecVirtual {
	v := u.vec()
	switch {
	case right > 0:
		VPSRLW(U8(uint8(right)), codes, v)
	case right < 0:
		VPSLLW(U8(uint8(-right)), codes, v)
	default:
		VPAND(bytes(mask), codes, v)
		return v
	}
	VPAND(bytes(mask), v, v)
	return v
}

// factors stores 16 products of d and integers of a byte each, with sign.
func (u unpacker) factors(dst, integers reg.Register, d reg.VecVirtual) {
	x := integers.(reg.VecVirtual).AsX()
	for i := range 2 {
		v := u.vec()
		if i > 0 {
			t := XMM()
			VPSRLDQ(U8(8), x, t)
			x = t
		}
		VPMOVSXBD(x, v)
		VCVTDQ2PS(v, v)
		VMULPS(v, d, v)
		VMOVUPS(v, Mem{Base: dst, Disp: 32 * i})
	}
}

// unpackQ2K: 16 B scale and minimum | 64 B codes | d, dmin.
func (s isa) unpackQ2K() {
	s.supers("unpackQ2_K", "quant.decodeQ2K", 84, func(u unpacker) {
		b, scale, low := XMM(), XMM(), XMM()
		VMOVDQU(u.in(0), b)
		VPAND(bytes(15), b, scale)
		VPSRLW(U8(4), b, low)
		VPAND(bytes(15), low, low)
		u.factors(u.scales, scale, u.half(80))
		u.factors(u.mins, low, u.half(82))
		u.pairs(16, func(_ int, c reg.VecVirtual) {})
	})
}

// pairs stores codes of two bits, 64 bytes from at on, after finish has seen
// the 32 from element 32·k on.
func (u unpacker) pairs(at int, finish func(k int, c reg.VecVirtual)) {
	for h := range 2 {
		q := u.load(u.in(at + 32*h))
		for j := range 4 {
			c := u.shifted(q, 2*j, 3)
			finish(4*h+j, c)
			VMOVDQU(c, u.code(128*h+32*j))
		}
	}
}

// unpackQ3K: 32 B high bits | 64 B low bits | 12 B scales | d.
func (s isa) unpackQ3K() {
	shifts := repeated("shiftsQ3K", 0, 2, 4, 6)
	nibbles := repeated("nibblesQ3K", 0, 0, 4, 0)
	s.supers("unpackQ3_K", "quant.decodeQ3K", 110, func(u unpacker) {
		low, high := XMM(), XMM()
		VPBROADCASTQ(u.in(96), low)
		VPSRLVQ(nibbles(), low, low)
		VPAND(bytes(15), low, low)
		VPBROADCASTD(u.in(104), high)
		VPSRLVD(shifts(), high, high)
		VPAND(bytes(3), high, high)
		VPSLLD(U8(4), high, high)
		VPOR(high, low, low)
		VPSUBB(bytes(32), low, low)
		u.factors(u.scales, low, u.half(108))
		bits := u.load(u.in(0))
		u.pairs(32, func(k int, c reg.VecVirtual) {
			VPOR(u.shifted(bits, k-2, 4), c, c)
			VPSUBB(bytes(4), c, c)
		})
	})
}

// unpackQ4K: d, dmin | 12 B scales and minimums | codes at a place, of which
// finish sees each 32 from element 32·k on.
func (s isa) unpackQ4K(name string, at int, finish func(u unpacker) func(k int, c reg.VecVirtual)) {
	equal := "quant.decodeQ4K"
	if finish != nil {
		equal = "quant.decodeQ5K"
	}
	s.supers(name, equal, at+128, func(u unpacker) {
		scale, low := u.scalesQ4K()
		u.factors(u.scales, scale, u.half(0))
		u.factors(u.mins, low, u.half(2))
		complete := func(int, reg.VecVirtual) {}
		if finish != nil {
			complete = finish(u)
		}
		for g := range 4 {
			q := u.load(u.in(at + 32*g))
			for j := range 2 {
				c := u.shifted(q, 4*j, 15)
				complete(2*g+j, c)
				VMOVDQU(c, u.code(64*g+32*j))
			}
		}
	})
}

// scalesQ4K returns the codes of scales and minimums, as quant.packScales has
// them, each twice.
func (u unpacker) scalesQ4K() (scale, low reg.VecVirtual) {
	first, last, t, mask := GP64(), GP64(), GP64(), GP64()
	MOVQ(u.in(4), first)
	MOVLQZX(u.in(12), last)
	MOVQ(last, t)
	SHLQ(U8(28), t)
	ORQ(t, last) // low nibbles of scales, and 32 bits up the high ones of minimums
	MOVQ(U64(0x0f0f0f0f0f0f0f0f), mask)
	ANDQ(mask, last)
	MOVQ(first, t)
	SHRQ(U8(2), t)
	MOVQ(U64(0x3030303030303030), mask)
	ANDQ(mask, t)
	ORQ(t, last)
	MOVQ(U64(0x3f3f3f3f3f3f3f3f), mask)
	ANDQ(mask, first)
	x := XMM()
	VMOVQ(first, x)
	VPINSRQ(U8(1), last, x, x)
	VPSHUFD(U8(0xd8), x, x)
	scale, low = XMM(), XMM()
	VPUNPCKLBW(x, x, scale)
	VPUNPCKHBW(x, x, low)
	return scale, low
}

// unpackQ5K is Q4_K with 32 B of fifth bits before the codes.
func (s isa) unpackQ5K() {
	s.unpackQ4K("unpackQ5_K", 48, func(u unpacker) func(int, reg.VecVirtual) {
		bits := u.load(u.in(16))
		return func(k int, c reg.VecVirtual) { VPOR(u.shifted(bits, k-4, 16), c, c) }
	})
}

// unpackQ6K: 128 B low bits | 64 B high bits | 16 B scales | d.
func (s isa) unpackQ6K() {
	s.supers("unpackQ6_K", "quant.decodeQ6K", 210, func(u unpacker) {
		scale := XMM()
		VMOVDQU(u.in(192), scale)
		u.factors(u.scales, scale, u.half(208))
		for h := range 2 {
			low := []reg.VecVirtual{u.load(u.in(64 * h)), u.load(u.in(64*h + 32))}
			high := u.load(u.in(128 + 32*h))
			for j := range 4 {
				c := u.shifted(low[j%2], j/2*4, 15)
				VPOR(u.shifted(high, 2*j-4, 0x30), c, c)
				VPSUBB(bytes(32), c, c)
				VMOVDQU(c, u.code(128*h+32*j))
			}
		}
	})
}

// Values of codes, as quant.tableIQ4 and quant.tableFP4.
var (
	tableIQ4 = valueTable("tableIQ4", -127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113)
	tableFP4 = valueTable("tableFP4", 0, 1, 2, 3, 4, 6, 8, 12, 0, -1, -2, -3, -4, -6, -8, -12)
)

// valueTable holds 16 values of a byte each.
func valueTable(name string, values ...int8) func() Mem {
	var words [4]uint32
	for i, v := range values {
		words[i/4] |= uint32(uint8(v)) << (i % 4 * 8)
	}
	return repeated(name, words[:]...)
}

// nibbles returns the codes of 16 bytes: the low ones, then the high ones.
func (u unpacker) nibbles(disp int) reg.VecVirtual {
	low, high, y := XMM(), XMM(), YMM()
	VMOVDQU(u.in(disp), low)
	VPSRLW(U8(4), low, high)
	VINSERTI128(U8(1), high, low.AsY(), y)
	VPAND(bytes(15), y, y)
	return y
}

// values replaces codes by their values.
func (u unpacker) values(table func() Mem, c reg.VecVirtual) {
	t := u.load(table())
	VPSHUFB(c, t, c)
}

// unpackIQ4XS: d | 2 B high bits of scales | 4 B low ones | 128 B codes.
func (s isa) unpackIQ4XS() {
	shifts := repeated("shiftsIQ4XS", 1<<14|1<<12<<16, 1<<10|1<<8<<16, 1<<6|1<<4<<16, 1<<2|1<<0<<16)
	s.supers("unpackIQ4_XS", "quant.decodeIQ4XS", 136, func(u unpacker) {
		low, next, high := XMM(), XMM(), XMM()
		VMOVD(u.in(4), low)
		VPSRLW(U8(4), low, next)
		VPUNPCKLBW(next, low, low)
		VPAND(bytes(15), low, low)
		VPMOVZXBW(low, low)
		VPBROADCASTW(u.in(2), high)
		VPMULLW(shifts(), high, high)
		VPSRLW(U8(14), high, high)
		VPSLLW(U8(4), high, high)
		VPOR(high, low, low)
		VPSUBW(vector(32|32<<16), low, low)
		VPACKSSWB(low, low, low)
		VPUNPCKLBW(low, low, low)
		u.factors(u.scales, low, u.half(0))
		for g := range 8 {
			c := u.nibbles(8 + 16*g)
			u.values(tableIQ4, c)
			VMOVDQU(c, u.code(32*g))
		}
	})
}

// halfFactor stores the factor of a block of 32 and, behind it, its minimum,
// which is added, if the codes are that far behind.
func (u unpacker) halfFactor(at int) {
	for i, dst := range []reg.GPVirtual{u.scales, u.mins}[:at/2] {
		x := XMM()
		VPBROADCASTW(u.in(2*i), x)
		VCVTPH2PS(x, x)
		if i > 0 {
			VPXOR(vector(sign), x, x)
		}
		VMOVQ(x, Mem{Base: dst})
	}
}

// factorE8M0 stores quant.halfE8M0 of a byte.
func (u unpacker) factorE8M0(int) {
	e, small, d := GP32(), GP32(), GP64()
	MOVBLZX(u.in(0), e)
	LEAL(Mem{Base: e, Disp: 1}, small)
	SHLL(U8(21), small)
	MOVL(e, d.As32())
	DECL(d.As32())
	SHLL(U8(23), d.As32())
	CMPL(e, U8(2))
	CMOVLCS(small, d.As32())
	for i := range 2 {
		MOVL(d.As32(), Mem{Base: u.scales, Disp: 4 * i})
	}
}

// unpackNibbles writes the kernels of Q4_0 and Q4_1, with the codes at a place.
func (s isa) unpackNibbles(name string, size, at int, offset uint8) {
	s.blocks(name, "quant.decode"+name[len("unpack"):], size, func(u unpacker) {
		u.halfFactor(at)
		c := u.nibbles(at)
		if offset != 0 {
			VPSUBB(bytes(offset), c, c)
		}
		VMOVDQU(c, u.code(0))
	})
}

// byteOf names the byte that each of 32 bits is in, and bitOf its place there.
var (
	byteOf = repeated("byteOf", 0, 0, 0x01010101, 0x01010101, 0x02020202, 0x02020202, 0x03030303, 0x03030303)
	bitOf  = repeated("bitOf", 0x08040201, 0x80402010)
)

// unpackFive writes the kernels of Q5_0 and Q5_1, with 4 B of fifth bits at a
// place, before the codes.
func (s isa) unpackFive(name string, size, at int, offset uint8) {
	s.blocks(name, "quant.decode"+name[len("unpack"):], size, func(u unpacker) {
		u.halfFactor(at)
		c, fifth := u.nibbles(at+4), u.vec()
		VPBROADCASTD(u.in(at), fifth)
		VPSHUFB(byteOf(), fifth, fifth)
		VPAND(bitOf(), fifth, fifth)
		VPCMPEQB(bitOf(), fifth, fifth)
		VPAND(bytes(16), fifth, fifth)
		VPOR(fifth, c, c)
		if offset != 0 {
			VPSUBB(bytes(offset), c, c)
		}
		VMOVDQU(c, u.code(0))
	})
}

// unpackQ8_0: d | 32 codes.
func (s isa) unpackQ8_0() {
	s.blocks("unpackQ8_0", "quant.decodeQ8_0", 34, func(u unpacker) {
		u.halfFactor(2)
		VMOVDQU(u.load(u.in(2)), u.code(0))
	})
}

// unpackTable writes the kernels of types of 32 whose codes stand for values.
func (s isa) unpackTable(name string, size, at int, table func() Mem, factor func(u unpacker, at int)) {
	s.blocks(name, "quant.decode"+name[len("unpack"):], size, func(u unpacker) {
		factor(u, at)
		c := u.nibbles(at)
		u.values(table, c)
		VMOVDQU(c, u.code(0))
	})
}

// expand makes numbers of codes, scales and minimums.
func (s isa) expand() {
	s.text("expand", "func(dst *float32, codes *byte, scales, mins *float32, groups int)",
		"Set.Expand.")
	dst, codes, scales, mins, groups := GP64(), GP64(), GP64(), GP64(), GP64()
	Load(Param("dst"), dst)
	Load(Param("codes"), codes)
	Load(Param("scales"), scales)
	Load(Param("mins"), mins)
	Load(Param("groups"), groups)
	repeat("group", groups, func() {
		d, low := s.splat(Mem{Base: scales}), s.splat(Mem{Base: mins})
		for v := range 16 / s.lanes {
			x := s.vec()
			VPMOVSXBD(Mem{Base: codes, Disp: v * s.lanes}, x)
			VCVTDQ2PS(x, x)
			VMULPS(x, d, x)
			VSUBPS(low, x, x)
			VMOVUPS(x, Mem{Base: dst, Disp: v * s.size()})
		}
		ADDQ(U8(16), codes)
		ADDQ(U8(4), scales)
		ADDQ(U8(4), mins)
		ADDQ(U8(64), dst)
	})
	s.ret()
}
