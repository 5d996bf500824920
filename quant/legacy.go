package quant

import (
	"encoding/binary"
	"math"

	"github.com/winnow-moe/winnow/quant/kernel"
)

// The block types of 32 elements (ggml-common.h block_q4_0 … block_q8_0).
// Byte j of the 4-bit codes holds elements j (low) and j+16; bit j of the
// 32-bit word qh is the fifth bit of element j.
//
//	Q4_0  18 B  f16 d | 16 B codes                     value = d·(code−8)
//	Q4_1  20 B  f16 d | f16 m | 16 B codes             value = d·code + m
//	Q5_0  22 B  f16 d | u32 qh | 16 B low bits         value = d·(code−16)
//	Q5_1  24 B  f16 d | f16 m | u32 qh | 16 B low bits value = d·code + m
//	Q8_0  34 B  f16 d | 32 × int8                      value = d·code
const (
	blockLen = 32
	sizeQ4_0 = 18
	sizeQ4_1 = 20
	sizeQ5_0 = 22
	sizeQ5_1 = 24
	sizeQ8_0 = 34
)

func decodeQ4_0(dst []float32, src []byte) {
	for len(src) >= sizeQ4_0 {
		b, y := (*[sizeQ4_0]byte)(src), (*[blockLen]float32)(dst)
		d := half(b[0:])
		for j, c := range b[2:] {
			y[j] = d * float32(int(c&15)-8)
			y[j+16] = d * float32(int(c>>4)-8)
		}
		dst, src = dst[blockLen:], src[sizeQ4_0:]
	}
}

func decodeQ4_1(dst []float32, src []byte) {
	for len(src) >= sizeQ4_1 {
		b, y := (*[sizeQ4_1]byte)(src), (*[blockLen]float32)(dst)
		d, m := half(b[0:]), half(b[2:])
		for j, c := range b[4:] {
			y[j] = float32(d*float32(c&15)) + m
			y[j+16] = float32(d*float32(c>>4)) + m
		}
		dst, src = dst[blockLen:], src[sizeQ4_1:]
	}
}

func decodeQ5_0(dst []float32, src []byte) {
	for len(src) >= sizeQ5_0 {
		b, y := (*[sizeQ5_0]byte)(src), (*[blockLen]float32)(dst)
		d, qh := half(b[0:]), binary.LittleEndian.Uint32(b[2:])
		for j, c := range b[6:] {
			y[j] = d * float32(int32(uint32(c&15)|qh<<4&16)-16)
			y[j+16] = d * float32(int32(uint32(c>>4)|qh>>12&16)-16)
			qh >>= 1
		}
		dst, src = dst[blockLen:], src[sizeQ5_0:]
	}
}

func decodeQ5_1(dst []float32, src []byte) {
	for len(src) >= sizeQ5_1 {
		b, y := (*[sizeQ5_1]byte)(src), (*[blockLen]float32)(dst)
		d, m, qh := half(b[0:]), half(b[2:]), binary.LittleEndian.Uint32(b[4:])
		for j, c := range b[8:] {
			y[j] = float32(d*float32(int32(uint32(c&15)|qh<<4&16))) + m
			y[j+16] = float32(d*float32(int32(uint32(c>>4)|qh>>12&16))) + m
			qh >>= 1
		}
		dst, src = dst[blockLen:], src[sizeQ5_1:]
	}
}

func decodeQ8_0(dst []float32, src []byte) {
	if k := kernel.Active(); k != nil && len(src) >= sizeQ8_0 {
		n := len(src) / sizeQ8_0
		k.FromQ8_0(&dst[:n*blockLen][0], &src[0], n)
		return
	}
	for len(src) >= sizeQ8_0 {
		b, y := (*[sizeQ8_0]byte)(src), (*[blockLen]float32)(dst)
		d := half(b[0:])
		for j, c := range b[2:] {
			y[j] = d * float32(int8(c))
		}
		dst, src = dst[blockLen:], src[sizeQ8_0:]
	}
}

var (
	integersQ4_0 = integerForm{Integers: Integers{Block: blockLen, Quads: 8, Offsets: true}, record: func(r *record, b []byte) {
		r.nibbles(b[2:], 0)
		r.single(half(b), 8)
	}}
	integersQ4_1 = integerForm{Integers: Integers{Block: blockLen, Quads: 8, Mins: true}, record: func(r *record, b []byte) {
		r.nibbles(b[4:], 0)
		r.raised(half(b), half(b[2:]))
	}}
	integersQ5_0 = integerForm{Integers: Integers{Block: blockLen, Quads: 4, Offsets: true}, record: func(r *record, b []byte) {
		r.nibbles(b[6:], binary.LittleEndian.Uint32(b[2:]))
		r.single(half(b), 16)
	}}
	integersQ5_1 = integerForm{Integers: Integers{Block: blockLen, Quads: 4, Mins: true}, record: func(r *record, b []byte) {
		r.nibbles(b[8:], binary.LittleEndian.Uint32(b[4:]))
		r.raised(half(b), half(b[2:]))
	}}
	integersQ8_0 = integerForm{Integers: Integers{Block: blockLen, Wide: true}, record: func(r *record, b []byte) {
		r.d = half(b)
		for i := range r.codes {
			r.codes[i] = pair(int32(int8(b[2+2*i])), int32(int8(b[3+2*i])))
		}
	}}
)

// nibbles sets 32 codes: low halves of bytes first, with a bit each on top.
func (r *record) nibbles(b []byte, high uint32) {
	for i := range 2 {
		v := word(b[8*i:])
		putCodes(r.codes[2*i:], v&(15*eight)|spreadBits(high>>(8*i))<<4)
		putCodes(r.codes[4+2*i:], v>>4&(15*eight)|spreadBits(high>>(16+8*i))<<4)
	}
}

// spreadBits makes bytes of the lowest eight bits.
func spreadBits(v uint32) uint64 {
	return (uint64(v&255)*eight&0x8040201008040201 + 127*eight) >> 7 & eight
}

// single sets scales of one and an offset.
func (r *record) single(d float32, offset int32) {
	r.d = d
	fillPairs(r.scales, 1)
	fillPairs(r.offsets, offset)
}

// raised sets scales of one and a minimum.
func (r *record) raised(d, low float32) {
	r.d, r.dmin = d, -low
	fillPairs(r.scales, 1)
	fillPairs(r.mins, 1)
}

func encodeQ4_0(dst []byte, src, weights []float32) {
	if k := kernel.Active(); k != nil && weights == nil {
		encodeBlocks(k.Q4_0, dst, src, sizeQ4_0, blockLen)
		return
	}
	encodeSymmetric(dst, src, weights, sizeQ4_0, 8)
}

func encodeQ5_0(dst []byte, src, weights []float32) {
	if k := kernel.Active(); k != nil && weights == nil {
		encodeBlocks(k.Q5_0, dst, src, sizeQ5_0, blockLen)
		return
	}
	encodeSymmetric(dst, src, weights, sizeQ5_0, 16)
}

func encodeQ4_1(dst []byte, src, weights []float32) {
	if k := kernel.Active(); k != nil && weights == nil {
		encodeBlocks(k.Q4_1, dst, src, sizeQ4_1, blockLen)
		return
	}
	encodeAffine(dst, src, weights, sizeQ4_1, 15)
}

func encodeQ5_1(dst []byte, src, weights []float32) {
	if k := kernel.Active(); k != nil && weights == nil {
		encodeBlocks(k.Q5_1, dst, src, sizeQ5_1, blockLen)
		return
	}
	encodeAffine(dst, src, weights, sizeQ5_1, 31)
}

// encodeSymmetric encodes Q4_0 (n 8) and Q5_0 (n 16).
func encodeSymmetric(dst []byte, src, weights []float32, size int, n int32) {
	if weights != nil {
		symmetricByWeight(dst, src, weights, size, n)
		return
	}
	var codes [blockLen]uint8
	for ; len(src) >= blockLen; dst, src = dst[size:], src[blockLen:] {
		putHalf(dst, roundSymmetric(&codes, (*[blockLen]float32)(src), n))
		packLegacy(dst[2:size], &codes)
	}
}

// encodeAffine encodes Q4_1 (n 15) and Q5_1 (n 31).
func encodeAffine(dst []byte, src, weights []float32, size int, n int32) {
	if weights != nil {
		affineByWeight(dst, src, weights, size, n)
		return
	}
	var codes [blockLen]uint8
	for ; len(src) >= blockLen; dst, src = dst[size:], src[blockLen:] {
		d, m := roundAffine(&codes, (*[blockLen]float32)(src), n)
		putHalf(dst, d)
		putHalf(dst[2:], m)
		packLegacy(dst[4:size], &codes)
	}
}

// roundSymmetric rounds to the grid that puts the largest magnitude at code 0
// (it gets the sign of −n) and returns its scale.
func roundSymmetric(codes *[blockLen]uint8, x *[blockLen]float32, n int32) float32 {
	d := peak(x[:]) / -float32(n)
	inv, half := inverse(d), float32(n)+0.5
	if inv-inv != 0 {
		clear(codes[:])
		return d
	}
	for i, v := range x {
		codes[i] = uint8(min(2*n-1, int32(float32(v*inv)+half)))
	}
	return d
}

// roundAffine rounds to the grid from the smallest to the largest value and
// returns its scale and minimum.
func roundAffine(codes *[blockLen]uint8, x *[blockLen]float32, n int32) (d, m float32) {
	lo, hi := extremes(x[:])
	d = (hi - lo) / float32(n)
	inv := inverse(d)
	if inv-inv != 0 || d-d != 0 {
		clear(codes[:])
		return d, lo
	}
	for i, v := range x {
		codes[i] = uint8(min(n, int32(float32((v-lo)*inv)+0.5)))
	}
	return d, lo
}

// inverse returns 1/d, and 0 for 0. It is infinite for a subnormal d: ggml
// then converts infinity or NaN to an integer, which on x86-64 comes out as
// 0x80000000, of whose low bits the code 0 remains. An infinite d ends alike.
func inverse(d float32) float32 {
	if d == 0 {
		return 0
	}
	return 1 / d
}

// packLegacy stores 4-bit codes in 16 bytes, or 5-bit codes in 20, the fifth
// bits first.
func packLegacy(dst []byte, codes *[blockLen]uint8) {
	if len(dst) == 20 {
		var qh uint32
		for j, c := range codes {
			qh |= uint32(c>>4&1) << j
		}
		binary.LittleEndian.PutUint32(dst, qh)
		dst = dst[4:]
	}
	nibbles(dst[:16], codes[:16], codes[16:])
}

func encodeQ8_0(dst []byte, src, _ []float32) {
	if k := kernel.Active(); k != nil {
		encodeBlocks(k.Q8_0, dst, src, sizeQ8_0, blockLen)
		return
	}
	for ; len(src) >= blockLen; dst, src = dst[sizeQ8_0:], src[blockLen:] {
		x, b := (*[blockLen]float32)(src), (*[sizeQ8_0]byte)(dst)
		var magnitude uint32
		for _, v := range x {
			magnitude = max(magnitude, math.Float32bits(v)&^(1<<31))
		}
		d := math.Float32frombits(magnitude) / 127
		putHalf(b[:], d)
		inv, q := inverse(d), (*[blockLen]byte)(b[2:])
		if inv-inv != 0 {
			clear(q[:])
			continue
		}
		for j, v := range x {
			q[j] = uint8(int32(awayFromZero(v * inv)))
		}
	}
}

// awayFromZero adds so much that truncating rounds to nearest, halves away
// from zero (C's roundf): the largest number below one half, with v's sign.
func awayFromZero(v float32) float32 {
	const belowHalf = 0x3effffff
	return float32(v) + math.Float32frombits(belowHalf|math.Float32bits(v)&(1<<31))
}
