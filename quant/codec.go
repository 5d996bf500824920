// Package quant turns rows of float32 numbers into the blocks of ggml's tensor
// types and back. The bytes are those of ggml's own quantizers as compiled for
// baseline x86-64 (no fused multiply-add), on every machine and with every Go
// build setting: each product that feeds a sum is rounded on its own, and sums
// run in ggml's order.
//
//	c, _ := quant.Lookup(gguf.Q4_K)
//	c.Encode(dst, row, nil)
//
// Inputs are expected to be finite. NaN and infinities neither panic nor touch
// other blocks; what they encode to is ggml's business, and Validate tells
// whether a file may hold it.
package quant

import (
	"fmt"

	"github.com/winnow-moe/winnow/formats/gguf"
	"github.com/winnow-moe/winnow/quant/kernel"
)

// Codec encodes and decodes rows of one type. A row is a whole number of
// blocks; rows are independent of each other.
type Codec struct {
	Type gguf.Type
	// Encode packs one row. len(src) is a multiple of the block length,
	// dst has room for the encoded row, and weights is nil or holds one
	// importance (mean squared activation) per column. It is nil for types
	// that are only copied or read. Blocks for which ggml aborts, because
	// sums overflow, get a scale of NaN, which Validate reports.
	Encode func(dst []byte, src, weights []float32)
	// Decode is the inverse: len(src) is a multiple of the block bytes.
	Decode func(dst []float32, src []byte)
	// UsesWeights says that weights change the encoding, NeedsWeights that
	// there is none without them.
	UsesWeights, NeedsWeights bool
	// Partner is the form of activations that ggml multiplies with.
	Partner Partner
	// integers is the form for products of integers; nil: none.
	integers *integerForm
	// thorough lowers the error of an encoded row; nil where ThoroughSearch is
	// the default search.
	thorough *refinement
	// noNegative says that a negative weight makes ggml abort.
	noNegative bool

	// scales lists the offsets of the half precision scales in a block;
	// values checks types that have none. Both serve Validate.
	scales []int
	values func(encoded []byte) (block int, what string)
}

// codecs has one entry per type.
var codecs = [...]Codec{
	{Type: gguf.F32, Encode: encodeF32, Decode: decodeF32, values: checkF32},
	{Type: gguf.F16, Partner: PartnerF16, Encode: encodeF16, Decode: decodeF16, values: checkF16},
	{Type: gguf.BF16, Partner: PartnerBF16, Encode: encodeBF16, Decode: decodeBF16, values: checkBF16},
	{Type: gguf.F64, Decode: decodeF64, values: checkF64},
	{Type: gguf.I8, Decode: decodeI8},
	{Type: gguf.I16, Decode: decodeI16},
	{Type: gguf.I32, Decode: decodeI32},
	{Type: gguf.I64, Decode: decodeI64},
	{Type: gguf.Q4_0, Partner: PartnerQ8_0, integers: &integersQ4_0, Encode: encodeQ4_0, Decode: decodeQ4_0, UsesWeights: true, scales: []int{0}},
	{Type: gguf.Q4_1, Partner: PartnerQ8_0, integers: &integersQ4_1, Encode: encodeQ4_1, Decode: decodeQ4_1, UsesWeights: true, scales: []int{0, 2}},
	{Type: gguf.Q5_0, Partner: PartnerQ8_0, integers: &integersQ5_0, Encode: encodeQ5_0, Decode: decodeQ5_0, UsesWeights: true, scales: []int{0}},
	{Type: gguf.Q5_1, Partner: PartnerQ8_0, integers: &integersQ5_1, Encode: encodeQ5_1, Decode: decodeQ5_1, UsesWeights: true, scales: []int{0, 2}},
	{Type: gguf.Q8_0, Partner: PartnerQ8_0, integers: &integersQ8_0, Encode: encodeQ8_0, Decode: decodeQ8_0, scales: []int{0}},
	{Type: gguf.Q2_K, Partner: PartnerQ8_K, integers: &integersQ2K, Encode: encodeQ2K, Decode: decodeQ2K, UsesWeights: true, thorough: &refineQ2K, scales: []int{80, 82}},
	{Type: gguf.Q3_K, Partner: PartnerQ8_K, integers: &integersQ3K, Encode: encodeQ3K, Decode: decodeQ3K, UsesWeights: true, thorough: &refineQ3K, scales: []int{108}},
	{Type: gguf.Q4_K, Partner: PartnerQ8_K, integers: &integersQ4K, Encode: encodeQ4K, Decode: decodeQ4K, UsesWeights: true, thorough: &refineQ4K, scales: []int{0, 2}},
	{Type: gguf.Q5_K, Partner: PartnerQ8_K, integers: &integersQ5K, Encode: encodeQ5K, Decode: decodeQ5K, UsesWeights: true, thorough: &refineQ5K, scales: []int{0, 2}},
	{Type: gguf.Q6_K, Partner: PartnerQ8_K, integers: &integersQ6K, Encode: encodeQ6K, Decode: decodeQ6K, UsesWeights: true, thorough: &refineQ6K, scales: []int{208}},
	{Type: gguf.IQ1S, Partner: PartnerQ8_K, integers: multiples(superLen, eighth), Encode: encodeIQ1S, Decode: decodeIQ1S, UsesWeights: true, NeedsWeights: true, scales: []int{0}},
	{Type: gguf.IQ1M, Partner: PartnerQ8_K, integers: multiples(superLen, func(b []byte) float32 { return scaleIQ1M(b) / 8 }), Encode: encodeIQ1M, Decode: decodeIQ1M, UsesWeights: true, values: checkIQ1M},
	{Type: gguf.IQ2XXS, Partner: PartnerQ8_K, integers: multiples(superLen, eighth), Encode: encodeIQ2XXS, Decode: decodeIQ2XXS, UsesWeights: true, NeedsWeights: true, noNegative: true, scales: []int{0}},
	{Type: gguf.IQ2XS, Partner: PartnerQ8_K, integers: multiples(superLen, eighth), Encode: encodeIQ2XS, Decode: decodeIQ2XS, UsesWeights: true, NeedsWeights: true, noNegative: true, scales: []int{0}},
	{Type: gguf.IQ2S, Partner: PartnerQ8_K, integers: multiples(superLen, eighth), Encode: encodeIQ2S, Decode: decodeIQ2S, UsesWeights: true, noNegative: true, scales: []int{0}},
	{Type: gguf.IQ3XXS, Partner: PartnerQ8_K, integers: multiples(superLen, quarter), Encode: encodeIQ3XXS, Decode: decodeIQ3XXS, UsesWeights: true, noNegative: true, scales: []int{0}},
	{Type: gguf.IQ3S, Partner: PartnerQ8_K, integers: multiples(superLen, half), Encode: encodeIQ3S, Decode: decodeIQ3S, UsesWeights: true, noNegative: true, scales: []int{0}},
	{Type: gguf.IQ4NL, Partner: PartnerQ8_0, integers: multiples(blockLen, half), Encode: encodeIQ4NL, Decode: decodeIQ4NL, UsesWeights: true, scales: []int{0}},
	{Type: gguf.IQ4XS, Partner: PartnerQ8_K, integers: multiples(superLen, half), Encode: encodeIQ4XS, Decode: decodeIQ4XS, UsesWeights: true, thorough: &refineIQ4XS, scales: []int{0}},
	{Type: gguf.MXFP4, Partner: PartnerQ8_0, integers: &integersMXFP4, Encode: encodeMXFP4, Decode: decodeMXFP4, values: checkMXFP4},
	{Type: gguf.NVFP4, Partner: PartnerQ8_0, Encode: encodeNVFP4, Decode: decodeNVFP4}, // every scale is finite
	{Type: gguf.TQ1_0, Partner: PartnerQ8_K, integers: multiples(superLen, func(b []byte) float32 { return half(b[52:]) }), Encode: encodeTQ1_0, Decode: decodeTQ1_0, scales: []int{52}},
	{Type: gguf.TQ2_0, Partner: PartnerQ8_K, integers: multiples(superLen, func(b []byte) float32 { return half(b[64:]) }), Encode: encodeTQ2_0, Decode: decodeTQ2_0, scales: []int{64}},
	{Type: gguf.Q1_0, Partner: PartnerQ8_0, Encode: encodeQ1_0, Decode: decodeQ1_0, scales: []int{0}},
	{Type: gguf.Q2_0, Partner: PartnerQ8_0, Encode: encodeQ2_0, Decode: decodeQ2_0, scales: []int{0}},
}

// byType holds the codecs by the numbers of their types.
var byType = func() (table []*Codec) {
	for i := range codecs {
		t := int(codecs[i].Type)
		table = append(table, make([]*Codec, max(0, t+1-len(table)))...)
		table[t] = &codecs[i]
	}
	return table
}()

// Lookup returns the codec of a type.
func Lookup(t gguf.Type) (*Codec, bool) {
	if uint64(t) >= uint64(len(byType)) || byType[t] == nil {
		return nil, false
	}
	return byType[t], true
}

// EncodeRows packs rows of cols values each, with the default search; every row
// gets the same weights (nil, or one per column). dst must have exactly the
// encoded size. Weights that are used must be finite, and not negative for IQ2
// and IQ3 types.
func EncodeRows(t gguf.Type, dst []byte, src []float32, cols int, weights []float32) error {
	return DefaultSearch.EncodeRows(t, dst, src, cols, weights)
}

// EncodeRows is the function EncodeRows with another search.
func (s Search) EncodeRows(t gguf.Type, dst []byte, src []float32, cols int, weights []float32) error {
	c, ok := Lookup(t)
	switch {
	case !ok || c.Encode == nil:
		return fmt.Errorf("no encoder for type %s", t)
	case cols <= 0 || cols%t.BlockLen() != 0:
		return fmt.Errorf("row length %d is not a positive multiple of the %s block size %d", cols, t, t.BlockLen())
	case len(src)%cols != 0:
		return fmt.Errorf("%d values are not whole rows of %d", len(src), cols)
	case weights != nil && len(weights) != cols:
		return fmt.Errorf("%d weights for rows of %d values", len(weights), cols)
	case weights == nil && c.NeedsWeights:
		return fmt.Errorf("type %s needs importance weights", t)
	}
	rowBytes := int(t.RowBytes(int64(cols)))
	if want := len(src) / cols * rowBytes; len(dst) != want {
		return fmt.Errorf("destination has %d bytes, %d rows of %s need %d", len(dst), len(src)/cols, t, want)
	}
	if err := c.checkWeights(weights); err != nil {
		return err
	}
	s = s.For(t)
	if s == DefaultSearch && (weights == nil || !c.UsesWeights) {
		// Without importance blocks know nothing of their row.
		if len(src) > 0 {
			c.Encode(dst, src, nil)
		}
		return nil
	}
	for len(src) > 0 {
		c.Encode(dst[:rowBytes], src[:cols], weights)
		if s == ThoroughSearch {
			c.thorough.row(dst[:rowBytes], src[:cols], weights)
		}
		dst, src = dst[rowBytes:], src[cols:]
	}
	return nil
}

func (c *Codec) checkWeights(weights []float32) error {
	if !c.UsesWeights {
		return nil
	}
	for i, w := range weights {
		if w-w != 0 || w < 0 && c.noNegative {
			return fmt.Errorf("importance of column %d is %v, which type %s cannot use", i, w, c.Type)
		}
	}
	return nil
}

// DecodeRows unpacks whole blocks. dst must have exactly the decoded length. The
// result is that of the type's Decode, which of several NaN a block with a scale
// of NaN holds left aside.
func DecodeRows(t gguf.Type, dst []float32, src []byte) error {
	c, ok := Lookup(t)
	if !ok {
		return fmt.Errorf("no decoder for type %s", t)
	}
	size := t.BlockBytes()
	if len(src)%size != 0 {
		return fmt.Errorf("%d bytes are not whole %s blocks of %d bytes", len(src), t, size)
	}
	if want := len(src) / size * t.BlockLen(); len(dst) != want {
		return fmt.Errorf("destination has %d values, %d bytes of %s hold %d", len(dst), len(src), t, want)
	}
	if u := NewUnpacker(t); u != nil && !u.whole {
		u.decode(dst, src)
	} else {
		c.Decode(dst, src)
	}
	return nil
}

// Validate reports the first block whose scales, or for unpacked types whose
// values, are NaN or infinite: the rule of ggml_validate_row_data, without
// which llama.cpp neither reads nor writes a tensor. Such a block is a
// *BlockError; rowBytes, the encoded size of a row, only serves to name it.
func Validate(t gguf.Type, encoded []byte, rowBytes int) error {
	c, ok := Lookup(t)
	if !ok {
		return fmt.Errorf("no codec for type %s", t)
	}
	size := t.BlockBytes()
	if rowBytes <= 0 || rowBytes%size != 0 || len(encoded)%rowBytes != 0 {
		return fmt.Errorf("%d bytes are not whole %s rows of %d bytes", len(encoded), t, rowBytes)
	}
	var block int
	var what string
	if c.values != nil {
		block, what = c.values(encoded)
	} else {
		block, what = checkScales(encoded, size, c.scales)
	}
	if block < 0 {
		return nil
	}
	perRow := rowBytes / size
	return &BlockError{t, int64(block / perRow), block % perRow, what}
}

// BlockError names a block that no file may hold.
type BlockError struct {
	Type  gguf.Type
	Row   int64 // counted from the first of the rows checked
	Block int   // of the row
	What  string
}

func (e *BlockError) Error() string {
	return fmt.Sprintf("%s row %d, block %d: %s", e.Type, e.Row, e.Block, e.What)
}

// checkScales finds the first block with a non-finite half precision scale.
// Blocks have up to two of them.
func checkScales(encoded []byte, size int, offsets []int) (int, string) {
	const exponent = 0x7c00
	if len(offsets) == 0 {
		return -1, ""
	}
	first, last, at := offsets[0], offsets[len(offsets)-1], 0
	if k, n := kernel.Active(), len(encoded)/size; k != nil && n > 0 {
		at = size * k.FiniteScales(&encoded[0], n, size, first, last)
	}
	for ; at+size <= len(encoded); at += size {
		a, b := le16(encoded[at+first:]), le16(encoded[at+last:])
		if a&exponent == exponent {
			return at / size, nonFinite("scale", a&0x3ff != 0)
		}
		if b&exponent == exponent {
			return at / size, nonFinite("scale", b&0x3ff != 0)
		}
	}
	return -1, ""
}

func nonFinite(what string, nan bool) string {
	if nan {
		return what + " is NaN"
	}
	return what + " is infinite"
}
