package kernel

import (
	"math"
	"unsafe"

	"github.com/winnow-moe/winnow/formats/dtype"
)

// Rounding is how activations are rounded to integers of 8 bits: in blocks of
// 256 with a factor in float32 (ggml's Q8_K) or of 32 with a factor in half
// precision (Q8_0), kept in bytes or, for Wide weights, in 16-bit words.
type Rounding struct {
	Block int
	Wide  bool
}

// Units of a row of Rounded for a span of x: codes, in narrow rows the sums of
// groups of 16 of them in 16 bits each, and factors. The whole is no power of
// two, for which rows would share few lines of the cache.
const (
	narrowStride  = 80
	wideStride    = 144
	narrowSums    = span / 4
	narrowFactors = narrowSums + span/32
	wideFactors   = span / 2
)

func (r Rounding) stride() int {
	if r.Wide {
		return wideStride
	}
	return narrowStride
}

func (r Rounding) factors() int {
	if r.Wide {
		return wideFactors
	}
	return narrowFactors
}

// Rounded holds rows of rounded activations.
type Rounded struct {
	Rounding
	Rows, Cols int
	data       []uint32 // [rows, spans, stride]
	index      []int32  // as in Matrix
}

// NewRounded makes room for rows, in *buf where it is large enough.
func NewRounded(r Rounding, rows, cols int, buf *[]uint32) *Rounded {
	x := &Rounded{Rounding: r, Rows: rows, Cols: cols}
	x.data = grow(buf, rows*x.rowUnits())
	return x
}

func (x *Rounded) spans() int    { return (x.Cols + span - 1) / span }
func (x *Rounded) rowUnits() int { return x.spans() * x.stride() }

// Slice views n rows from first on.
func (x Rounded) Slice(first, n int) *Rounded {
	if x.index != nil {
		x.index = x.index[first : first+n]
	} else {
		x.data = x.data[first*x.rowUnits():]
	}
	x.Rows = n
	return &x
}

// Gather views the rows named by index.
func (x Rounded) Gather(index []int32) *Rounded {
	x.index, x.Rows = index, len(index)
	return &x
}

// of returns a span of row i.
func (x *Rounded) of(i, s int) []uint32 {
	if x.index != nil {
		i = int(x.index[i])
	}
	return x.data[(i*x.spans()+s)*x.stride():][:x.stride()]
}

// Round sets rows [first, first+m.Rows) to those of m. Cols must be a multiple
// of Block. A block with a value that is not finite gets such a factor.
func (x *Rounded) Round(first int, m Matrix) {
	for i := range m.Rows {
		row := m.Row(i)
		for s := range x.spans() {
			x.round(x.of(first+i, s), row[s*span:min((s+1)*span, len(row))])
		}
	}
}

// round rounds a span.
func (x *Rounded) round(dst []uint32, src []float32) {
	for at := 0; at < len(src); at += x.Block {
		top := math.Float32frombits(largestBits(src[at:][:x.Block]))
		var scale, d float32
		if top != 0 {
			scale = 127 / top
			d = 1 / scale
			if x.Block == 32 {
				d = dtype.FromF16(dtype.ToF16(top / 127))
			}
		}
		x.codes(dst, src[at:][:x.Block], at, scale)
		dst[x.factors()+at/x.Block] = math.Float32bits(d)
	}
}

// codes rounds a block that starts at element at.
func (x *Rounded) codes(dst []uint32, src []float32, at int, scale float32) {
	var sums []uint32
	if x.Wide {
		dst = dst[at/2:][:len(src)/2]
	} else {
		dst, sums = dst[at/4:][:len(src)/4], dst[narrowSums+at/32:][:len(src)/32]
	}
	if roundCodes(dst, sums, src, scale) {
		return
	}
	if x.Wide {
		for i := range dst {
			dst[i] = pair(code(src[2*i], scale), code(src[2*i+1], scale))
		}
		return
	}
	for i := range dst {
		q := src[4*i:]
		dst[i] = pair(code(q[0], scale)&255|code(q[1], scale)<<8, code(q[2], scale)&255|code(q[3], scale)<<8)
	}
	for i := range sums {
		q := dst[8*i:]
		sums[i] = pair(sumBytes(q[:4]), sumBytes(q[4:8]))
	}
}

func pair(a, b int32) uint32 { return uint32(uint16(a)) | uint32(b)<<16 }

// code rounds x·scale, at most 127 in size, to an integer, ties to even.
func code(x, scale float32) int32 {
	const shift = 3 << 22
	return int32(math.Float32bits(float32(x*scale)+shift)) - int32(math.Float32bits(shift))
}

// sumBytes adds signed bytes.
func sumBytes(units []uint32) (sum int32) {
	for _, u := range units {
		sum += int32(int8(u)) + int32(int8(u>>8)) + int32(int8(u>>16)) + int32(int8(u>>24))
	}
	return sum
}

// Float writes the numbers that rows [first, first+dst.Rows) stand for to dst.
func (x *Rounded) Float(dst Matrix, first int) {
	for i := range dst.Rows {
		row := dst.Row(i)
		for j := range row {
			s, k := j/span, j%span
			u := x.of(first+i, s)
			c := int32(int8(u[k/4] >> (k % 4 * 8)))
			if x.Wide {
				c = int32(int16(u[k/2] >> (k % 2 * 16)))
			}
			row[j] = math.Float32frombits(u[x.factors()+k/x.Block]) * float32(c)
		}
	}
}

// floatsOf views units as numbers, for kernels that only move them.
func floatsOf(u []uint32) []float32 {
	return unsafe.Slice((*float32)(unsafe.Pointer(unsafe.SliceData(u))), len(u))
}
