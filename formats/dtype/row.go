package dtype

import (
	"encoding/binary"
	"fmt"
	"math"
)

// Decode converts len(dst) elements of type t. src must hold exactly these.
// F64 rounds to the nearest float32. Integers and BOOL (0 or 1) are read too;
// an integer that float32 cannot hold exactly is an error, and so are the
// types that Float does not know.
func Decode(t Type, dst []float32, src []byte) error {
	if want := int64(len(dst)) * int64(t.Bits()); want != int64(len(src))*8 {
		return fmt.Errorf("%d elements of %v take %d bits, got %d bytes", len(dst), t, want, len(src))
	}
	switch t {
	case F8E4M3:
		decode8(dst, src, f8e4m3)
	case F8E5M2:
		decode8(dst, src, f8e5m2)
	case F8E8M0:
		decode8(dst, src, f8e8m0)
	case U8:
		decode8(dst, src, uint8s)
	case I8:
		decode8(dst, src, int8s)
	case F16:
		decodeF16(dst, src)
	case BF16:
		decodeBF16(dst, src)
	case F32:
		decodeF32(dst, src)
	case F64:
		decodeF64(dst, src)
	case Bool, I16, U16, I32, U32, I64, U64:
		return decodeInts(t, dst, src)
	default:
		return fmt.Errorf("elements of type %v cannot be read as numbers", t)
	}
	return nil
}

// The loops below shorten both slices as they go, and index constants below
// the length the loop condition proves: the compiler then drops every bounds
// check. A table of 256 indexed by a byte needs none.

func decode8(dst []float32, src []byte, t *[256]float32) {
	for len(src) >= 8 && len(dst) >= 8 {
		v := binary.LittleEndian.Uint64(src)
		dst[0] = t[byte(v)]
		dst[1] = t[byte(v>>8)]
		dst[2] = t[byte(v>>16)]
		dst[3] = t[byte(v>>24)]
		dst[4] = t[byte(v>>32)]
		dst[5] = t[byte(v>>40)]
		dst[6] = t[byte(v>>48)]
		dst[7] = t[byte(v>>56)]
		src, dst = src[8:], dst[8:]
	}
	for i, b := range src {
		dst[i] = t[b]
	}
}

func decodeF16(dst []float32, src []byte) {
	t := F16Table()
	for len(src) >= 8 && len(dst) >= 4 {
		v := binary.LittleEndian.Uint64(src)
		dst[0] = t[uint16(v)]
		dst[1] = t[uint16(v>>16)]
		dst[2] = t[uint16(v>>32)]
		dst[3] = t[uint16(v>>48)]
		src, dst = src[8:], dst[4:]
	}
	for i := range dst {
		dst[i] = t[binary.LittleEndian.Uint16(src[2*i:])]
	}
}

func decodeBF16(dst []float32, src []byte) {
	for len(src) >= 8 && len(dst) >= 4 {
		v := binary.LittleEndian.Uint64(src)
		dst[0] = math.Float32frombits(uint32(v) << 16)
		dst[1] = math.Float32frombits(uint32(v) & 0xffff0000)
		dst[2] = math.Float32frombits(uint32(v>>32) << 16)
		dst[3] = math.Float32frombits(uint32(v>>32) & 0xffff0000)
		src, dst = src[8:], dst[4:]
	}
	for i := range dst {
		dst[i] = FromBF16(binary.LittleEndian.Uint16(src[2*i:]))
	}
}

func decodeF32(dst []float32, src []byte) {
	for len(src) >= 8 && len(dst) >= 2 {
		v := binary.LittleEndian.Uint64(src)
		dst[0] = math.Float32frombits(uint32(v))
		dst[1] = math.Float32frombits(uint32(v >> 32))
		src, dst = src[8:], dst[2:]
	}
	if len(dst) > 0 {
		dst[0] = math.Float32frombits(binary.LittleEndian.Uint32(src))
	}
}

func decodeF64(dst []float32, src []byte) {
	for i := range dst {
		dst[i] = float32(math.Float64frombits(binary.LittleEndian.Uint64(src[8*i:])))
	}
}

func decodeInts(t Type, dst []float32, src []byte) error {
	size := t.Bits() / 8
	for i := range dst {
		f, exact := intValue(t, src[i*size:])
		if !exact {
			return fmt.Errorf("element %d of type %v has a value that float32 cannot hold exactly", i, t)
		}
		dst[i] = f
	}
	return nil
}

// intValue converts the first element of b.
func intValue(t Type, b []byte) (f float32, exact bool) {
	var v int64
	switch t {
	case Bool:
		return float32(b[0]), b[0] <= 1
	case I16:
		v = int64(int16(binary.LittleEndian.Uint16(b)))
	case U16:
		v = int64(binary.LittleEndian.Uint16(b))
	case I32:
		v = int64(int32(binary.LittleEndian.Uint32(b)))
	case U32:
		v = int64(binary.LittleEndian.Uint32(b))
	case I64:
		v = int64(binary.LittleEndian.Uint64(b))
	case U64:
		u := binary.LittleEndian.Uint64(b)
		f = float32(u)
		return f, f < 1<<64 && uint64(f) == u
	}
	f = float32(v)
	return f, f < 1<<63 && int64(f) == v
}

// EncodeF32 writes src as F32. dst must have room for 4·len(src) bytes.
func EncodeF32(dst []byte, src []float32) {
	dst = dst[:4*len(src)]
	for len(src) >= 2 && len(dst) >= 8 {
		v := uint64(math.Float32bits(src[0])) | uint64(math.Float32bits(src[1]))<<32
		binary.LittleEndian.PutUint64(dst, v)
		src, dst = src[2:], dst[8:]
	}
	if len(src) > 0 {
		binary.LittleEndian.PutUint32(dst, math.Float32bits(src[0]))
	}
}

// EncodeF16 writes src as F16, rounded as ToF16 does. dst must have room for
// 2·len(src) bytes.
func EncodeF16(dst []byte, src []float32) {
	dst = dst[:2*len(src)]
	for i, f := range src {
		binary.LittleEndian.PutUint16(dst[2*i:], ToF16(f))
	}
}

// EncodeBF16 writes src as BF16, rounded as ToBF16 does. dst must have room
// for 2·len(src) bytes.
func EncodeBF16(dst []byte, src []float32) {
	dst = dst[:2*len(src)]
	for len(src) >= 4 && len(dst) >= 8 {
		v := uint64(ToBF16(src[0])) | uint64(ToBF16(src[1]))<<16 |
			uint64(ToBF16(src[2]))<<32 | uint64(ToBF16(src[3]))<<48
		binary.LittleEndian.PutUint64(dst, v)
		src, dst = src[4:], dst[8:]
	}
	for i, f := range src {
		binary.LittleEndian.PutUint16(dst[2*i:], ToBF16(f))
	}
}
