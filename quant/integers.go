package quant

import (
	"encoding/binary"
	"fmt"
	"math"
	"sync"

	"github.com/winnow-moe/winnow/formats/gguf"
)

// Partner is the form to which ggml's CPU code rounds the activations that rows
// of a type are multiplied with (vec_dot_type in ggml-cpu.c).
type Partner int

const (
	// PartnerF32 leaves them as they are.
	PartnerF32 Partner = iota
	// PartnerF16 and PartnerBF16 round each to the 16-bit type.
	PartnerF16
	PartnerBF16
	// PartnerQ8_0 rounds blocks of 32 to 8 bits, with a factor in half precision.
	PartnerQ8_0
	// PartnerQ8_K rounds blocks of 256 to 8 bits, with a factor in float32.
	PartnerQ8_K
)

// Type is the unpacked type that activations are rounded to; ok is false where
// that is blocks of 8 bits, or they stay as they are.
func (p Partner) Type() (t gguf.Type, ok bool) {
	switch p {
	case PartnerF16:
		return gguf.F16, true
	case PartnerBF16:
		return gguf.BF16, true
	}
	return 0, false
}

// Block is the length of a block of 8 bits, 0 where there is none.
func (p Partner) Block() int {
	switch p {
	case PartnerQ8_0:
		return blockLen
	case PartnerQ8_K:
		return superLen
	}
	return 0
}

// Integers describes how the rows of a type are made of integers: an element of
// a block is
//
//	d·scale·(code − offset) − dmin·min
//
// with float32 factors d and dmin of the block, 16-bit scales and offset
// products of groups, and codes of 8 bits without sign; or, if Wide is set,
// d·code with 16-bit codes.
//
// A block is a record of 32-bit units: the codes in ascending order, four (or
// two wide eight) in a unit, the first in the lowest bits; for each group of
// 4·Quads codes its scale, twice; for each pair of groups of 16 codes their
// scale·offset, if there are Offsets; for each such pair their minimums, if
// there are Mins; the bits of d, and of dmin if there are Mins.
type Integers struct {
	Block         int // elements
	Wide          bool
	Quads         int // units of codes with one scale
	Offsets, Mins bool
}

// Codes returns the units of a block's codes, and Scales and Pairs those of its
// scales and of its offsets or minimums.
func (f *Integers) Codes() int {
	if f.Wide {
		return f.Block / 2
	}
	return f.Block / 4
}

// Scales is described at Codes.
func (f *Integers) Scales() int {
	if f.Wide {
		return 0
	}
	return f.Codes() / f.Quads
}

// Pairs is described at Codes.
func (f *Integers) Pairs() int { return f.Block / 32 }

// Units returns the length of a record.
func (f *Integers) Units() int {
	n := f.Codes() + f.Scales() + 1
	if f.Offsets {
		n += f.Pairs()
	}
	if f.Mins {
		n += f.Pairs() + 1
	}
	return n
}

// integerForm makes records of blocks: by a function for the type or, where
// elements are multiples of a unit, by at most 2¹⁵ in size, by that unit.
type integerForm struct {
	Integers
	// record fills r from an encoded block.
	record func(r *record, block []byte)
	unit   func(block []byte) float32
}

// multiples is the form of a type whose blocks have a unit.
func multiples(block int, unit func(block []byte) float32) *integerForm {
	return &integerForm{Integers: Integers{Block: block, Wide: true}, unit: unit}
}

// record is a block's record in its parts.
type record struct {
	codes, scales, offsets, mins []uint32
	d, dmin                      float32
}

// integerScratch is memory of IntegerRows.
type integerScratch struct {
	record
	values [16 * superLen]float32
}

var integerScratches = sync.Pool{New: func() any { return new(integerScratch) }}

// IntegerRows makes records of whole blocks. dst has exactly the units that
// they need. Types without a form of integers are an error.
func IntegerRows(t gguf.Type, dst []uint32, src []byte) error {
	c, ok := Lookup(t)
	if !ok || c.integers == nil {
		return fmt.Errorf("no integer form of type %s", t)
	}
	f, size, units := c.integers, t.BlockBytes(), c.integers.Units()
	if len(src)%size != 0 || len(dst) != len(src)/size*units {
		return fmt.Errorf("%d units for %d bytes of %s: blocks have %d units and %d bytes", len(dst), len(src), t, units, size)
	}
	s := integerScratches.Get().(*integerScratch)
	defer integerScratches.Put(s)
	if f.unit != nil {
		return f.divide(s, t, dst, src)
	}
	for ; len(src) > 0; dst, src = dst[units:], src[size:] {
		f.fill(&s.record, dst[:units], src[:size])
	}
	return nil
}

// divide makes records of multiples of a unit by dividing decoded elements, which
// is exact, because their relative error is a few units of 2⁻²⁴.
func (f *integerForm) divide(s *integerScratch, t gguf.Type, dst []uint32, src []byte) error {
	size, units := t.BlockBytes(), f.Units()
	for len(src) > 0 {
		n := min(len(src)/size, len(s.values)/f.Block)
		values := s.values[:n*f.Block]
		if err := DecodeRows(t, values, src[:n*size]); err != nil {
			return err
		}
		for ; len(values) > 0; values, dst, src = values[f.Block:], dst[units:], src[size:] {
			d := f.unit(src)
			dst[units-1] = math.Float32bits(d)
			inverse := 1 / d
			if d == 0 {
				inverse = 0
			}
			for i := range dst[:units-1] {
				dst[i] = pair(nearestInteger(float32(values[2*i]*inverse)), nearestInteger(float32(values[2*i+1]*inverse)))
			}
		}
	}
	return nil
}

// fill makes one record.
func (f *integerForm) fill(r *record, dst []uint32, block []byte) {
	codes, scales, pairs := f.Codes(), f.Scales(), f.Pairs()
	r.codes, r.scales, dst = dst[:codes], dst[codes:codes+scales], dst[codes+scales:]
	if f.Offsets {
		r.offsets, dst = dst[:pairs], dst[pairs:]
	}
	if f.Mins {
		r.mins, dst = dst[:pairs], dst[pairs:]
	}
	f.record(r, block)
	dst[0] = math.Float32bits(r.d)
	if f.Mins {
		dst[1] = math.Float32bits(r.dmin)
	}
}

// Integers returns the integer form of a type's rows, nil if there is none.
func (c *Codec) Integers() *Integers {
	if c.integers == nil {
		return nil
	}
	return &c.integers.Integers
}

// pair puts two 16-bit integers in a unit.
func pair(a, b int32) uint32 { return uint32(uint16(a)) | uint32(b)<<16 }

// fillPairs sets all of dst to twice v.
func fillPairs(dst []uint32, v int32) {
	for i := range dst {
		dst[i] = pair(v, v)
	}
}

// word reads eight codes.
func word(b []byte) uint64 { return binary.LittleEndian.Uint64(b) }

// putCodes stores eight codes.
func putCodes(dst []uint32, v uint64) {
	_ = dst[1]
	dst[0], dst[1] = uint32(v), uint32(v>>32)
}

// nearestInteger rounds a number below 2²² in size to an integer.
func nearestInteger(x float32) int32 {
	const shift = 3 << 22
	return int32(math.Float32bits(x+shift)) - int32(math.Float32bits(shift))
}
