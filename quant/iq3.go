package quant

import (
	"encoding/binary"
	"math"
)

// The 3-bit codebook types (ggml-common.h block_iq3_xxs, block_iq3_s): 256
// elements in cells of four, each a point of a codebook with eight
// magnitudes, and signs; groups of 32 elements have a scale ls.
//
//	IQ3_XXS  98 B    f16 d | 64 B indices | per group u32: 4 × 7 signs (the
//	                 eighth makes the number of ones even), scale on top
//	                 value = d·(ls+0.5)/2·magnitude, from 4 to 62
//	IQ3_S    110 B   f16 d | 64 B low bits of the indices | 8 B their ninth
//	                 bits | 32 B signs | 4 B scales, first in the low bits
//	                 value = d·(2·ls+1)·magnitude, from 1 to 15
const (
	sizeIQ3XXS = 98
	sizeIQ3S   = 110
)

var (
	searchIQ3XXS = gridType{grid: gridIQ3XXS, size: sizeIQ3XXS, pack: packIQ3XXS, levels: 8, group: 32, steps: 15, delta: 0.2, epsilon: 1e-8,
		spread: 2, parity: true}
	searchIQ3S = gridType{grid: gridIQ3S, size: sizeIQ3S, pack: packIQ3S, levels: 8, group: 32, steps: 9, delta: 0.2,
		spread: 2, again: againAny}
)

// scaled returns the values of the digits for a scale.
func scaled(magnitudes *[8]float32, d float32) (values [8]float32) {
	for i, m := range magnitudes {
		values[i] = d * m
	}
	return values
}

// decodeCellsIQ3 decodes two cells.
func decodeCellsIQ3(y []float32, code0, code1 uint16, signs uint8, values *[8]float32) {
	codes := uint32(code0) | uint32(code1)<<12
	for i := range (*[8]float32)(y) {
		v := math.Float32bits(values[codes>>(3*i)&7])
		y[i] = math.Float32frombits(v ^ uint32(signs)>>i<<31)
	}
}

func decodeIQ3XXS(dst []float32, src []byte) {
	codes := gridIQ3XXS.codes()
	magnitudes := [8]float32{4, 12, 20, 28, 36, 44, 52, 62}
	for ; len(src) >= sizeIQ3XXS; src = src[sizeIQ3XXS:] {
		d := half(src)
		for g := range 8 {
			q, word := src[2+8*g:], binary.LittleEndian.Uint32(src[66+4*g:])
			values := scaled(&magnitudes, d*(0.5+float32(word>>28))*0.5)
			for k := range 4 {
				decodeCellsIQ3(dst, codes[q[2*k]], codes[q[2*k+1]], evenSigns(uint8(word>>(7*k))), &values)
				dst = dst[8:]
			}
		}
	}
}

func decodeIQ3S(dst []float32, src []byte) {
	codes := gridIQ3S.codes()
	for ; len(src) >= sizeIQ3S; src = src[sizeIQ3S:] {
		d := half(src)
		for g := range 8 {
			q, high, signs := src[2+8*g:], uint16(src[66+g]), src[74+4*g:]
			ls := src[106+g/2] >> (g % 2 * 4) & 15
			values := scaled(&oddIQ, d*float32(1+2*ls))
			for k := range 4 {
				i0 := uint16(q[2*k]) | high>>(2*k)&1<<8
				i1 := uint16(q[2*k+1]) | high>>(2*k+1)&1<<8
				decodeCellsIQ3(dst, codes[i0], codes[i1], signs[k], &values)
				dst = dst[8:]
			}
		}
	}
}

func encodeIQ3XXS(dst []byte, src, weights []float32) { searchIQ3XXS.encode(dst, src, weights) }

func packIQ3XXS(dst []byte, fits []gridFit, top float32) {
	if top == 0 {
		return
	}
	var scales [8]uint8
	putHalf(dst, roundScales(scales[:], fits, top)*1.0125)
	for g := range fits {
		f := &fits[g]
		for k, index := range f.index {
			dst[2+8*g+k] = uint8(index)
		}
		word := uint32(scales[g]) << 28
		for k, signs := range f.signs {
			word |= uint32(signs&127) << (7 * k)
		}
		binary.LittleEndian.PutUint32(dst[66+4*g:], word)
	}
}

func encodeIQ3S(dst []byte, src, weights []float32) { searchIQ3S.encode(dst, src, weights) }

func packIQ3S(dst []byte, fits []gridFit, top float32) {
	var scales [8]uint8
	putHalf(dst, roundScales(scales[:], fits, top)*1.033)
	// ggml does not leave room for a group of zeros: what follows it moves up
	// and is read with the wrong scale, ninth bits and place.
	slot := 0
	for g := range fits {
		f := &fits[g]
		dst[106+g/2] |= scales[g] << (g % 2 * 4)
		if f.zero {
			continue
		}
		for k, index := range f.index {
			dst[2+8*slot+k] = uint8(index)
			dst[66+g] |= uint8(index>>8) << k
		}
		copy(dst[74+4*slot:], f.signs[:])
		slot++
	}
}
