package quant

// Q6_K: 256 elements in 210 bytes, 16 groups of 16 (ggml-common.h block_q6_K).
//
//	  0  128 B       low four bits: of each 128 elements, byte l (l < 64)
//	                 holds elements l (low) and l+64
//	128  64 B        upper two bits: of each 128 elements, byte l (l < 32)
//	                 holds elements l, l+32, l+64, l+96, lowest bits first
//	192  16 × int8   group scales
//	208  f16  d      factor of the group scales
//
// value = d·scale·(code−32).
const sizeQ6K = 210

func decodeQ6K(dst []float32, src []byte) {
	for len(src) >= sizeQ6K {
		b, y := (*[sizeQ6K]byte)(src), (*[superLen]float32)(dst)
		d := half(b[208:])
		for g := range 16 {
			scale := d * float32(int8(b[192+g]))
			// Group g covers quarter g%8/2 of half g/8.
			low := (*[16]byte)(b[g/8*64+g%4*16:])
			high := (*[16]byte)(b[128+g/8*32+g%2*16:])
			shift, pair := g%8/4*4, g%8/2*2
			out := (*[16]float32)(y[16*g:])
			for l := range out {
				c := low[l]>>shift&15 | high[l]>>pair&3<<4
				out[l] = scale * float32(int8(c)-32)
			}
		}
		dst, src = dst[superLen:], src[sizeQ6K:]
	}
}

func encodeQ6K(dst []byte, src, weights []float32) {
	encodeSuper(dst, src, weights, sizeQ6K, encodeBlockQ6K)
}

func encodeBlockQ6K(dst []byte, x, weights []float32) {
	var fits [16]symmetricFit
	var squares [16]float32
	var top float32
	for g := range fits {
		xg, w := x[16*g:][:16], squares[:]
		if weights != nil {
			w = weights[16*g:][:16]
		} else {
			for i, v := range xg {
				w[i] = v * v
			}
		}
		fits[g] = fitSymmetric(xg, w, 32)
		if abs32(fits[g].scale) > abs32(top) {
			top = fits[g].scale
		}
	}
	if abs32(top) < groupEpsilon {
		clear(dst)
		return
	}
	inv := -128 / top
	d := putHalf(dst[208:], 1/inv)
	var codes [superLen]uint8
	for g := range fits {
		scale := int8(min(127, nearest(inv*fits[g].scale)))
		dst[192+g] = uint8(scale)
		xg := x[16*g:][:16]
		if rounded := d * float32(scale); rounded != 0 {
			requantizeSymmetric(codes[16*g:], xg, rounded, 32)
		} else {
			fits[g].codes(codes[16*g:], xg, 32)
		}
	}
	packQ6K(dst, &codes)
}

func packQ6K(dst []byte, codes *[superLen]uint8) {
	for h := range 2 {
		c := (*[128]uint8)(codes[128*h:])
		low, high := (*[64]byte)(dst[64*h:]), (*[32]byte)(dst[128+32*h:])
		for l := range low {
			low[l] = c[l]&15 | c[l+64]<<4
		}
		for l := range high {
			high[l] = c[l]>>4 | c[l+32]>>4<<2 | c[l+64]>>4<<4 | c[l+96]>>4<<6
		}
	}
}
