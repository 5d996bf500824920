package quant

import (
	"encoding/binary"
	"sync"
)

// The codebook types are taken apart eight elements at a time, as the bytes of
// a word.

// words returns for each point of a codebook the values of its digits, of so
// many bits, a byte each.
func words(g *grid, bits int, values ...uint8) func() []uint64 {
	return sync.OnceValue(func() []uint64 {
		codes := g.codes()
		table := make([]uint64, len(codes))
		for i, c := range codes {
			for k := range 16 / bits / 4 * 4 {
				table[i] |= uint64(values[c>>(bits*k)&(1<<bits-1)]) << (8 * k)
			}
		}
		return table
	})
}

var (
	wordsIQ2XXS = words(gridIQ2XXS, 2, 8, 25, 43, 0)
	wordsIQ2XS  = words(gridIQ2XS, 2, 8, 25, 43, 0)
	wordsIQ2S   = words(gridIQ2S, 2, 8, 25, 43, 0)
	wordsIQ3XXS = words(gridIQ3XXS, 3, 4, 12, 20, 28, 36, 44, 52, 62)
	wordsIQ3S   = words(gridIQ3S, 3, 1, 3, 5, 7, 9, 11, 13, 15)
	// Eight times the point, plus eight.
	wordsIQ1 = words(gridIQ1, 2, 0, 8, 16, 0)
)

// signBytes has the bytes to be negated for eight signs.
var signBytes = func() (table [256]uint64) {
	for s := range table {
		for i := range 8 {
			table[s] |= uint64(s>>i&1) * 0xff << (8 * i)
		}
	}
	return table
}()

// putSigned stores eight magnitudes, none of them 0, with signs.
func putSigned(dst []byte, magnitudes uint64, signs uint8) {
	s := signBytes[signs]
	binary.LittleEndian.PutUint64(dst, (magnitudes^s)+s&eight)
}

// twice sets the scales of 32 elements.
func twice(scales *[pieceGroups]float32, g int, scale float32) {
	scales[2*g], scales[2*g+1] = scale, scale
}

func unpackIQ2XXS(codes *[pieceLen]byte, scales *[pieceGroups]float32, src []byte) {
	points, b := wordsIQ2XXS(), (*[sizeIQ2XXS]byte)(src)
	d := half(b[:])
	for g := range 8 {
		q := (*[8]byte)(b[2+8*g:])
		word := binary.LittleEndian.Uint32(q[4:])
		twice(scales, g, d*(0.5+float32(word>>28))*0.25)
		c := (*[32]byte)(codes[32*g:])
		for k, index := range q[:4] {
			putSigned(c[8*k:], points[index], evenSigns(uint8(word>>(7*k))))
		}
	}
}

func unpackIQ2XS(codes *[pieceLen]byte, scales *[pieceGroups]float32, src []byte) {
	points, b := wordsIQ2XS(), (*[sizeIQ2XS]byte)(src)
	d := half(b[:])
	for g := range scales {
		scales[g] = d * (0.5 + float32(b[66+g/2]>>(g%2*4)&15)) * 0.25
	}
	for c := range 32 {
		word := le16(b[2+2*c:])
		putSigned(codes[8*c:], points[word&511], evenSigns(uint8(word>>9)))
	}
}

func unpackIQ2S(codes *[pieceLen]byte, scales *[pieceGroups]float32, src []byte) {
	points, b := wordsIQ2S(), (*[sizeIQ2S]byte)(src)
	d := half(b[:])
	for g := range scales {
		scales[g] = d * (0.5 + float32(b[74+g/2]>>(g%2*4)&15)) * 0.25
	}
	for c := range 32 {
		index := uint(b[2+c]) | uint(b[66+c/4]>>(c%4*2)&3)<<8
		putSigned(codes[8*c:], points[index], b[34+c])
	}
}

func unpackIQ3XXS(codes *[pieceLen]byte, scales *[pieceGroups]float32, src []byte) {
	points, b := wordsIQ3XXS(), (*[sizeIQ3XXS]byte)(src)
	d := half(b[:])
	for g := range 8 {
		q, word := (*[8]byte)(b[2+8*g:]), binary.LittleEndian.Uint32(b[66+4*g:])
		twice(scales, g, d*(0.5+float32(word>>28))*0.5)
		c := (*[32]byte)(codes[32*g:])
		for k := range 4 {
			putSigned(c[8*k:], points[q[2*k]]|points[q[2*k+1]]<<32, evenSigns(uint8(word>>(7*k))))
		}
	}
}

func unpackIQ3S(codes *[pieceLen]byte, scales *[pieceGroups]float32, src []byte) {
	points, b := wordsIQ3S(), (*[sizeIQ3S]byte)(src)
	d := half(b[:])
	for g := range 8 {
		q, high := (*[8]byte)(b[2+8*g:]), uint(b[66+g])
		twice(scales, g, d*float32(1+2*(b[106+g/2]>>(g%2*4)&15)))
		c := (*[32]byte)(codes[32*g:])
		for k := range 4 {
			i0 := uint(q[2*k]) | high>>(2*k)&1<<8
			i1 := uint(q[2*k+1]) | high>>(2*k+1)&1<<8
			putSigned(c[8*k:], points[i0]|points[i1]<<32, b[74+4*g+k])
		}
	}
}

// putShifted stores eight times the values of a cell of IQ1: of its point,
// shifted by ⅛ up or down. No byte borrows from the next.
func putShifted(dst []byte, point uint64, down uint) {
	const top = 128 * eight
	binary.LittleEndian.PutUint64(dst, ((point|top)-(7+2*uint64(down&1))*eight)^top)
}

func unpackIQ1S(codes *[pieceLen]byte, scales *[pieceGroups]float32, src []byte) {
	points, b := wordsIQ1(), (*[sizeIQ1S]byte)(src)
	d := half(b[:])
	for g := range 8 {
		q, word := (*[4]byte)(b[2+4*g:]), uint(le16(b[34+2*g:]))
		twice(scales, g, d*float32(2*(word>>12&7)+1)*0.125)
		c := (*[32]byte)(codes[32*g:])
		for k, low := range q {
			putShifted(c[8*k:], points[uint(low)|word>>(3*k)&7<<8], word>>15)
		}
	}
}

func unpackIQ1M(codes *[pieceLen]byte, scales *[pieceGroups]float32, src []byte) {
	points, b := wordsIQ1(), (*[sizeIQ1M]byte)(src)
	d := scaleIQ1M(b[:])
	for g := range scales {
		scales[g] = d * float32(2*(le16(b[48+g/4*2:])>>(g%4*3)&7)+1) * 0.125
	}
	for c := range 32 {
		high := uint(b[32+c/2] >> (c % 2 * 4))
		putShifted(codes[8*c:], points[uint(b[c])|high&7<<8], high>>3)
	}
}
