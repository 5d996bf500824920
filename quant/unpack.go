package quant

import (
	"fmt"
	"sync"

	"github.com/winnow-moe/winnow/formats/gguf"
	"github.com/winnow-moe/winnow/quant/kernel"
)

// Every quantized element is scale·code − minimum, with a code of eight bits
// and numbers that 16 neighbours have in common. Kernels take blocks apart into
// these, some types by plain code, and make numbers of them; products of few
// rows make numbers of their own.

const (
	// pieceLen is the number of elements of a row that Unpack takes, and
	// pieceGroups of those that have a scale and a minimum of their own.
	pieceLen    = 256
	pieceGroups = pieceLen / 16
	// pieceRows is the number of pieces that are decoded together.
	pieceRows = 16
)

// unpacking is how a type is taken apart.
type unpacking struct {
	kernel func(u *kernel.Unpackers) kernel.Unpacker
	// super is used if there is no kernel: it takes one super-block.
	super func(codes *[pieceLen]byte, scales *[pieceGroups]float32, src []byte)
	mins  bool
	// whole says that Decode itself has a kernel.
	whole bool
}

// unpackings has what can be taken apart, by type.
var unpackings = func() (table [64]*unpacking) {
	for t, u := range map[gguf.Type]unpacking{
		gguf.Q4_0:   {kernel: func(u *kernel.Unpackers) kernel.Unpacker { return u.Q4_0 }},
		gguf.Q4_1:   {kernel: func(u *kernel.Unpackers) kernel.Unpacker { return u.Q4_1 }, mins: true},
		gguf.Q5_0:   {kernel: func(u *kernel.Unpackers) kernel.Unpacker { return u.Q5_0 }},
		gguf.Q5_1:   {kernel: func(u *kernel.Unpackers) kernel.Unpacker { return u.Q5_1 }, mins: true},
		gguf.Q8_0:   {kernel: func(u *kernel.Unpackers) kernel.Unpacker { return u.Q8_0 }, whole: true},
		gguf.Q2_K:   {kernel: func(u *kernel.Unpackers) kernel.Unpacker { return u.Q2_K }, mins: true},
		gguf.Q3_K:   {kernel: func(u *kernel.Unpackers) kernel.Unpacker { return u.Q3_K }},
		gguf.Q4_K:   {kernel: func(u *kernel.Unpackers) kernel.Unpacker { return u.Q4_K }, mins: true},
		gguf.Q5_K:   {kernel: func(u *kernel.Unpackers) kernel.Unpacker { return u.Q5_K }, mins: true},
		gguf.Q6_K:   {kernel: func(u *kernel.Unpackers) kernel.Unpacker { return u.Q6_K }},
		gguf.IQ4NL:  {kernel: func(u *kernel.Unpackers) kernel.Unpacker { return u.IQ4_NL }},
		gguf.IQ4XS:  {kernel: func(u *kernel.Unpackers) kernel.Unpacker { return u.IQ4_XS }},
		gguf.MXFP4:  {kernel: func(u *kernel.Unpackers) kernel.Unpacker { return u.MXFP4 }},
		gguf.IQ1S:   {super: unpackIQ1S},
		gguf.IQ1M:   {super: unpackIQ1M},
		gguf.IQ2XXS: {super: unpackIQ2XXS},
		gguf.IQ2XS:  {super: unpackIQ2XS},
		gguf.IQ2S:   {super: unpackIQ2S},
		gguf.IQ3XXS: {super: unpackIQ3XXS},
		gguf.IQ3S:   {super: unpackIQ3S},
	} {
		table[t] = &u
	}
	return table
}()

// Unpacker takes rows of one type apart with the kernels that were in use when
// it was made.
type Unpacker struct {
	*unpacking
	set          *kernel.Set
	block, bytes int // elements and bytes of a block
}

// NewUnpacker returns nil where rows of a type cannot be taken apart quickly.
func NewUnpacker(t gguf.Type) *Unpacker {
	k := kernel.Active()
	if k == nil || uint64(t) >= uint64(len(unpackings)) || unpackings[t] == nil {
		return nil
	}
	return &Unpacker{unpackings[t], k, t.BlockLen(), t.BlockBytes()}
}

// Mins reports whether elements have minimums.
func (u *Unpacker) Mins() bool { return u.mins }

// Unpack takes elements [first, first+n) of some rows, stride bytes apart, apart:
// whole blocks, at most 256 elements. Element i of them is in row r
//
//	scales[16·r+i/16]·codes[256·r+i] − mins[16·r+i/16]
//
// with codes being integers with sign and both operations rounded, which gives
// what DecodeRows does, though not the same of several NaN. Types without
// minimums leave mins alone.
func (u *Unpacker) Unpack(codes []byte, scales, mins []float32, src []byte, stride, rows, first, n int) {
	at, bytes := first/u.block*u.bytes, n/u.block*u.bytes
	if rows < 1 || n < 1 || n > pieceLen || first%u.block != 0 || n%u.block != 0 || len(codes) < rows*pieceLen ||
		len(scales) < rows*pieceGroups || len(mins) < rows*pieceGroups || at < 0 || len(src) < at+(rows-1)*stride+bytes {
		panic(fmt.Sprintf("quant: elements %d+%d of %d rows in %d bytes cannot be taken apart", first, n, rows, len(src)))
	}
	u.unpack(codes, scales, mins, src[at:], stride, rows, n/u.block)
}

func (u *Unpacker) unpack(codes []byte, scales, mins []float32, src []byte, stride, rows, blocks int) {
	if u.kernel != nil {
		u.kernel(&u.set.Unpack)(&codes[0], &scales[0], &mins[0], &src[0], stride, rows, blocks)
		return
	}
	for r := range rows {
		u.super((*[pieceLen]byte)(codes[pieceLen*r:]), (*[pieceGroups]float32)(scales[pieceGroups*r:]), src[stride*r:])
	}
}

// pieces is memory for rows that are taken apart.
type pieces struct {
	codes        [pieceRows * pieceLen]byte
	scales, mins [pieceRows * pieceGroups]float32
}

var piecesPool = sync.Pool{New: func() any { return new(pieces) }}

// noMins are the minimums of types that have none.
var noMins [pieceRows * pieceGroups]float32

// decode is the type's Decode for whole blocks.
func (u *Unpacker) decode(dst []float32, src []byte) {
	p := piecesPool.Get().(*pieces)
	defer piecesPool.Put(p)
	mins := &noMins
	if u.mins {
		mins = &p.mins
	}
	stride := pieceLen / u.block * u.bytes
	for len(dst) > 0 {
		rows, cols := min(pieceRows, len(dst)/pieceLen), pieceLen
		if rows == 0 {
			rows, cols = 1, len(dst)
		}
		u.unpack(p.codes[:], p.scales[:], p.mins[:], src, stride, rows, cols/u.block)
		u.set.Expand(&dst[0], &p.codes[0], &p.scales[0], &mins[0], rows*cols/16)
		dst, src = dst[rows*cols:], src[rows*cols/u.block*u.bytes:]
	}
}
