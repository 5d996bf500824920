package main

import (
	. "github.com/mmcloughlin/avo/build"
	. "github.com/mmcloughlin/avo/operand"
	"github.com/mmcloughlin/avo/reg"
)

// finite writes the searches for NaN and infinities. They wait for memory, so
// wider vectors gain nothing.
func finite() {
	s := isa{name: "AVX2", lanes: 8}
	s.text("fullExponent", "func(src *byte, units int, mask, step uint64) bool",
		"quant.exponent.full for units of 128 bytes: whether (word&mask)+step has",
		"a bit beyond mask for any word of 64 bits.")
	s.exponents(splat64("mask"), splat64("step"))

	s.text("notFinite", "func(src *float32, units int) bool",
		"fullExponent for units of 32 float32.")
	s.exponents(s.bits(0x7f800000), s.bits(0x00800000))
}

// splat64 returns a vector of a 64-bit parameter.
func splat64(name string) reg.VecVirtual {
	p, err := Param(name).Resolve()
	if err != nil {
		panic(err)
	}
	v := YMM()
	VPBROADCASTQ(p.Addr, v)
	return v
}

// exponents writes the body of a search.
func (s isa) exponents(mask, step reg.VecVirtual) {
	src, units := GP64(), GP64()
	Load(Param("src"), src)
	Load(Param("units"), units)
	seen := s.vecs(4)
	for _, v := range seen {
		s.zero(v)
	}
	repeat(s.label("unit"), units, func() {
		for i, v := range seen {
			x := s.vec()
			VPAND(Mem{Base: src, Disp: i * s.size()}, mask, x)
			VPADDD(step, x, x)
			VPOR(x, v, v)
		}
		ADDQ(U32(128), src)
	})
	VPOR(seen[1], seen[0], seen[0])
	VPOR(seen[3], seen[2], seen[2])
	VPOR(seen[2], seen[0], seen[0])
	// The carry flag is clear if there are bits outside mask.
	found := GP8()
	VPTEST(seen[0], mask)
	SETCC(found)
	ret, err := ReturnIndex(0).Resolve()
	if err != nil {
		panic(err)
	}
	MOVB(found, ret.Addr)
	s.ret()
}
