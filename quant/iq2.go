package quant

import (
	"encoding/binary"
	"math"
)

// The 2-bit codebook types (ggml-common.h block_iq2_xxs, block_iq2_xs,
// block_iq2_s): 256 elements in cells of eight, each a point of a codebook
// with the magnitudes 8, 25 and 43, and signs.
//
//	IQ2_XXS  66 B   f16 d | per 32 elements 4 B indices and u32: 4 × 7 signs,
//	                scale of the 32 in the top four bits
//	IQ2_XS   74 B   f16 d | 32 × u16: 9 bits of index, 7 signs |
//	                8 B scales of 16 elements each, first in the low bits
//	IQ2_S    82 B   f16 d | 32 B low bits of the indices | 32 B signs |
//	                8 B upper two bits of four indices | 8 B scales as above
//
// Of seven signs the eighth makes the number of ones even.
// value = d·(ls+0.5)/4·magnitude.
const (
	sizeIQ2XXS = 66
	sizeIQ2XS  = 74
	sizeIQ2S   = 82
)

var (
	searchIQ2XXS = gridType{grid: gridIQ2XXS, size: sizeIQ2XXS, pack: packIQ2XXS, levels: 3, group: 32, steps: 6, delta: 0.1, epsilon: 1e-15,
		spread: 1, parity: true, ranged: true, again: againEvery}
	searchIQ2XS = gridType{grid: gridIQ2XS, size: sizeIQ2XS, pack: packIQ2XS, levels: 3, group: 16, steps: 9, delta: 0.1, epsilon: 1e-15,
		spread: 1, parity: true}
	searchIQ2S = gridType{grid: gridIQ2S, size: sizeIQ2S, pack: packIQ2S, levels: 3, group: 16, steps: 9, delta: 0.1, epsilon: 1e-8,
		spread: 2, flat: 0.25}
)

// magnitudesIQ2 returns the values of the digits for a scale.
func magnitudesIQ2(d float32, ls uint8) [4]float32 {
	d = d * (0.5 + float32(ls)) * 0.25
	return [4]float32{d * 8, d * 25, d * 43}
}

func decodeCellIQ2(y []float32, code uint16, signs uint8, values *[4]float32) {
	for i := range (*[8]float32)(y) {
		v := math.Float32bits(values[code>>(2*i)&3])
		y[i] = math.Float32frombits(v ^ uint32(signs)>>i<<31)
	}
}

func decodeIQ2XXS(dst []float32, src []byte) {
	codes := gridIQ2XXS.codes()
	for ; len(src) >= sizeIQ2XXS; src = src[sizeIQ2XXS:] {
		d := half(src)
		for g := range 8 {
			b := src[2+8*g:]
			word := binary.LittleEndian.Uint32(b[4:])
			values := magnitudesIQ2(d, uint8(word>>28))
			for k, index := range b[:4] {
				decodeCellIQ2(dst, codes[index], evenSigns(uint8(word>>(7*k))), &values)
				dst = dst[8:]
			}
		}
	}
}

func decodeIQ2XS(dst []float32, src []byte) {
	codes := gridIQ2XS.codes()
	for ; len(src) >= sizeIQ2XS; src = src[sizeIQ2XS:] {
		d := half(src)
		for g := range 16 {
			values := magnitudesIQ2(d, src[66+g/2]>>(g%2*4)&15)
			for k := range 2 {
				word := le16(src[2+4*g+2*k:])
				decodeCellIQ2(dst, codes[word&511], evenSigns(uint8(word>>9)), &values)
				dst = dst[8:]
			}
		}
	}
}

func decodeIQ2S(dst []float32, src []byte) {
	codes := gridIQ2S.codes()
	for ; len(src) >= sizeIQ2S; src = src[sizeIQ2S:] {
		d := half(src)
		for g := range 16 {
			values := magnitudesIQ2(d, src[74+g/2]>>(g%2*4)&15)
			for c := 2 * g; c < 2*g+2; c++ {
				index := uint16(src[2+c]) | uint16(src[66+c/4]>>(c%4*2)&3)<<8
				decodeCellIQ2(dst, codes[index], src[34+c], &values)
				dst = dst[8:]
			}
		}
	}
}

func encodeIQ2XXS(dst []byte, src, weights []float32) { searchIQ2XXS.encode(dst, src, weights) }

func packIQ2XXS(dst []byte, fits []gridFit, top float32) {
	if top == 0 {
		return
	}
	var scales [8]uint8
	putHalf(dst, roundScales(scales[:], fits, top))
	for g := range fits {
		f, b := &fits[g], dst[2+8*g:]
		word := uint32(scales[g]) << 28
		for k := range 4 {
			b[k] = uint8(f.index[k])
			word |= uint32(f.signs[k]&127) << (7 * k)
		}
		binary.LittleEndian.PutUint32(b[4:], word)
	}
}

func encodeIQ2XS(dst []byte, src, weights []float32) { searchIQ2XS.encode(dst, src, weights) }

func packIQ2XS(dst []byte, fits []gridFit, top float32) {
	if top == 0 {
		return
	}
	var scales [16]uint8
	putHalf(dst, roundScales(scales[:], fits, top))
	for g := range fits {
		f := &fits[g]
		for k := range 2 {
			binary.LittleEndian.PutUint16(dst[2+4*g+2*k:], f.index[k]|uint16(f.signs[k])<<9)
		}
		dst[66+g/2] |= scales[g] << (g % 2 * 4)
	}
}

func encodeIQ2S(dst []byte, src, weights []float32) { searchIQ2S.encode(dst, src, weights) }

func packIQ2S(dst []byte, fits []gridFit, top float32) {
	var scales [16]uint8
	putHalf(dst, roundScales(scales[:], fits, top)*0.9875)
	for g := range fits {
		f := &fits[g]
		for k := range 2 {
			c := 2*g + k
			dst[2+c] = uint8(f.index[k])
			dst[34+c] = f.signs[k]
			dst[66+c/4] |= uint8(f.index[k]>>8) << (c % 4 * 2)
		}
		dst[74+g/2] |= scales[g] << (g % 2 * 4)
	}
}
