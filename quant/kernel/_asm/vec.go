package main

import (
	"math"
	"strconv"

	. "github.com/mmcloughlin/avo/build"
	. "github.com/mmcloughlin/avo/operand"
	"github.com/mmcloughlin/avo/reg"
)

// isa is a vector width with its way of comparing and choosing.
type isa struct {
	name  string
	lanes int
}

func (s isa) wide() bool { return s.lanes == 16 }
func (s isa) size() int  { return 4 * s.lanes }

// text starts a function; its name gets the ISA's suffix.
func (s isa) text(name, signature string, doc ...string) {
	TEXT(name+s.name, NOSPLIT, signature)
	Pragma("noescape")
	Doc(append([]string{name + s.name + " is " + doc[0]}, doc[1:]...)...)
}

func (s isa) ret() { VZEROUPPER(); RET() }

// four is the width of a few numbers that whole vectors were folded into.
var four = isa{lanes: 4}

func (s isa) vec() reg.VecVirtual {
	switch s.lanes {
	case 16:
		return ZMM()
	case 4:
		return XMM()
	}
	return YMM()
}

func (s isa) vecs(n int) []reg.VecVirtual {
	v := make([]reg.VecVirtual, n)
	for i := range v {
		v[i] = s.vec()
	}
	return v
}

func (s isa) zero(v reg.VecVirtual) reg.VecVirtual {
	VXORPS(v, v, v) // avo knows of few other instructions that they need no input
	return v
}

func (s isa) load(m Op) reg.VecVirtual {
	v := s.vec()
	VMOVUPS(m, v)
	return v
}

// splat returns a vector of one number from memory.
func (s isa) splat(m Op) reg.VecVirtual {
	v := s.vec()
	VBROADCASTSS(m, v)
	return v
}

// constants already written, by bits.
var constants = map[uint32]Mem{}

// word returns the address of a 32-bit constant.
func word(bits uint32) Mem {
	if m, ok := constants[bits]; ok {
		return m
	}
	m := GLOBL("word"+hex(bits), RODATA|NOPTR)
	DATA(0, U32(bits))
	constants[bits] = m
	return m
}

func hex(bits uint32) string {
	const digits = "0123456789abcdef"
	s := ""
	for shift := 28; shift >= 0; shift -= 4 {
		s += string(digits[bits>>shift&15])
	}
	return s
}

func (s isa) bits(b uint32) reg.VecVirtual    { return s.splat(word(b)) }
func (s isa) number(v float32) reg.VecVirtual { return s.splat(word(math.Float32bits(v))) }

const (
	// magic is 1.5·2^23 and rounds what is added to it.
	magic = 12582912
	// signless masks the sign off.
	signless = 0x7fffffff
)

// Comparison predicates; those called not are true for NaN.
const (
	less       = 0x11
	atLeast    = 0x1d
	notLess    = 0x15
	lessEqual  = 0x12
	greater    = 0x1e
	notGreater = 0x1a
	equal      = 0x00
	notEqual   = 0x04
	unordered  = 0x03

	greaterEqual    = 0x1d
	notGreaterEqual = 0x19
)

// mask is a condition per lane: a mask register, or a vector of all ones and zeros.
type mask struct {
	k reg.OpmaskVirtual
	v reg.VecVirtual
}

// cmp returns a <predicate> b.
func (s isa) cmp(predicate uint8, a reg.VecVirtual, b Op) mask {
	if s.wide() {
		m := mask{k: K()}
		VCMPPS(U8(predicate), b, a, m.k)
		return m
	}
	m := mask{v: s.vec()}
	VCMPPS(U8(predicate), b, a, m.v)
	return m
}

// and narrows m, or widens it.
func (s isa) and(m, other mask) {
	if s.wide() {
		KANDW(m.k, other.k, m.k)
	} else {
		VANDPS(m.v, other.v, m.v)
	}
}

func (s isa) or(m, other mask) {
	if s.wide() {
		KORW(m.k, other.k, m.k)
	} else {
		VORPS(m.v, other.v, m.v)
	}
}

// choose sets dst to a where m holds.
func (s isa) choose(m mask, a Op, dst reg.VecVirtual) {
	if s.wide() {
		VMOVUPS(a, m.k, dst)
	} else {
		VBLENDVPS(m.v, a, dst, dst)
	}
}

// label returns a name that no other label of the file has.
func (s isa) label(name string) string {
	labels++
	return name + strconv.Itoa(labels)
}

var labels int

// lanesOf returns m as bits of a general register.
func (s isa) lanesOf(m mask) reg.GPVirtual {
	g := GP32()
	if s.wide() {
		KMOVW(m.k, g)
	} else {
		VMOVMSKPS(m.v, g)
	}
	return g
}

// abs clears the sign in place.
func (s isa) abs(v reg.VecVirtual, signless Op) {
	if s.wide() {
		VPANDD(signless, v, v)
	} else {
		VANDPS(signless, v, v)
	}
}

// pair is how many vectors the kernels work on at once.
const pair = 2

// passes runs body over the 32 lanes of the rows at base, pair vectors at a
// time. base is advanced; before the next pass it points behind the last lanes.
func (s isa) passes(base reg.GPVirtual, body func()) {
	count := 32 / (pair * s.lanes)
	if count == 1 {
		body()
		return
	}
	n := GP64()
	MOVQ(U32(uint32(count)), n)
	Label("pass")
	body()
	ADDQ(U32(uint32(pair*s.size())), base)
	DECQ(n)
	JNZ(LabelRef("pass"))
}

// repeat runs body n times.
func repeat(label string, n reg.GPVirtual, body func()) {
	Label(label)
	body()
	DECQ(n)
	JNZ(LabelRef(label))
}
