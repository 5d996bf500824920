// Package kernel holds vector forms of the loops that quantizing spends its
// time in, and chooses among them. Groups of elements lie side by side, one per
// lane, and each lane does what the portable code of package quant does with
// its group: the same float32 operations in the same order, nothing fused. The
// results are the same bits, so a kernel never changes what is written to a
// file.
//
// The portable code is the specification: the comment of each kernel names the
// function of package quant that it equals, and the tests there compare them.
package kernel

import (
	"slices"
	"sync/atomic"

	"github.com/winnow-moe/winnow/isa"
)

//go:generate go -C _asm run . -kernels iq4 -out ../iq4_amd64.s -stubs ../iq4_amd64.go -pkg kernel
//go:generate go -C _asm run . -kernels lanes -out ../lanes_amd64.s -stubs ../lanes_amd64.go -pkg kernel
//go:generate go -C _asm run . -kernels cells -out ../cells_amd64.s -stubs ../cells_amd64.go -pkg kernel
//go:generate go -C _asm run . -kernels iq1 -out ../iq1_amd64.s -stubs ../iq1_amd64.go -pkg kernel
//go:generate go -C _asm run . -kernels losses -out ../losses_amd64.s -stubs ../losses_amd64.go -pkg kernel
//go:generate go -C _asm run . -kernels plain -out ../plain_amd64.s -stubs ../plain_amd64.go -pkg kernel
//go:generate go -C _asm run . -kernels threebit -out ../threebit_amd64.s -stubs ../threebit_amd64.go -pkg kernel
//go:generate go -C _asm run . -kernels unpack -out ../unpack_amd64.s -stubs ../unpack_amd64.go -pkg kernel

// Groups is the number of groups in Lanes.
const Groups = 32

// Lanes is what the searches work on: rows of one number per group. Row
// RowX+i holds element i of each group, RowW+i its weight; groups have 16 or 32
// elements. The rest are parameters and results.
type Lanes = [128][Groups]float32

// CellIQ1 is a cell of each of eight super-blocks: the values of its point are
// Scale·(digit−1+Shift), its digits having two bits each in Code.
type CellIQ1 = struct {
	Code         [8]uint32
	Shift, Scale [8]float32
}

// Space is room for intermediate values that have none in Lanes.
type Space = [8192]float32

// Rows of Lanes that callers use. The others hold intermediate values.
const (
	RowX     = 0
	RowW     = 32
	RowSigma = 64 // variance for Importance
	RowSum   = 65 // Σw
	RowScale = 66 // the fit: value ≈ Scale·code − Min
	RowMin   = 67
	RowInv   = 68 // its codes: nearest(Inv·(x−Base)), clamped
	RowBase  = 69
	RowCodes = 94 // of FitPositive; of IQ1 types, as integers, in 4 rows
	RowShift = 98 // of IQ1 types, as an integer: a bit for each cell shifted down
)

// Scratch is memory for what FitIQ4 keeps: vectors of one number per lane.
type Scratch = [176][16]float32

// Encoder encodes blocks that lie side by side.
type Encoder = func(dst *byte, src *float32, blocks int)

// Unpacker takes pieces of rows apart, of up to 256 elements each, that lie
// stride bytes apart: blocks blocks of 32 elements, or one of 256. Codes are
// integers with sign. A row has 256 codes and 16 scales and minimums; numbers
// that belong to two groups are there twice.
type Unpacker = func(codes *byte, scales, mins *float32, src *byte, stride, rows, blocks int)

// Set is the kernels of one instruction set. All arrays are read and written in
// full as stated; pointers to single numbers are those of slices long enough.
type Set struct {
	Name string
	// Transpose sets dst[i][k] to src[k·group+i], for 32 groups.
	Transpose func(dst *[32][32]float32, src *float32, group int)
	// SumSquares sets dst[k] to the ordered sum of squares of the k-th of 8
	// stretches of src. length is a multiple of 8.
	SumSquares func(dst *[8]float32, src *float32, length int)
	// PlainWeights sets the weights that quant.plainWeights describes.
	PlainWeights func(l *Lanes, group int)
	// SquareWeights sets weights x².
	SquareWeights func(l *Lanes, group int)
	// Importance turns the importance q in the rows of weights into
	// q·sqrt(Sigma+x²) and sets Sum.
	Importance func(l *Lanes, group int)
	// FitAffine and FitAffineAbsolute search grids with a minimum and codes
	// from 0 to n under the losses Σw·e² and Σw·|e|: Scale, Min, Inv and Base.
	// Candidate i puts the largest value at code top[i]. The bits of the result
	// are lanes to be left to the portable code.
	FitAffine, FitAffineAbsolute func(l *Lanes, group int, n float32, top *float32, candidates int) uint32
	// FitSymmetric searches grids without a minimum, with codes from −n to n−1:
	// Scale and Inv, both 0 in groups of zeros. Candidate i puts the largest
	// magnitude at top[i]; the first of them, as many as unclamped, at −n−0.4
	// or above, the others, as many as clamped, anywhere. The bits of the
	// result are lanes to be left to the portable code.
	FitSymmetric func(l *Lanes, group int, n float32, top *float32, unclamped, clamped int) uint32
	// FitThreeBit is the search of Q3_K without importance, of groups of 16 and
	// with weights of its own: Scale. Its result is like that of FitSymmetric.
	FitThreeBit func(l *Lanes) uint32
	// StartThreeBit is FitThreeBit without the sweeps: the bits of open are lanes
	// that those may change and that hold nothing yet.
	StartThreeBit func(l *Lanes) (odd, open uint32)
	// PackThreeBit rounds a super-block of Q3_K to its final scales and writes
	// the codes: quant.symmetricSuper.requantize for scales that are not 0, and
	// quant.packCodesQ3K, into 96 bytes.
	PackThreeBit func(dst *byte, x *float32, scales *[16]float32)
	// FitPositive quantizes the first rows of X, at most 32 and a multiple of
	// 4, to codes from 0 to n with one Scale per lane.
	FitPositive func(l *Lanes, rows int, n int32, top *float32, candidates int)
	// DivideCodes writes max(lo, min(hi, nearest((x+offset[g])/scale[g]))) − lo
	// for the elements of each group g; MultiplyCodes rounds
	// scale[g]·(x−offset[g]). Groups have a multiple of 16 elements.
	DivideCodes, MultiplyCodes func(dst *uint8, x, offset, scale *float32, groups, group int, lo, hi int32)
	// FitIQ4 is quant.fitIQ4 for groups of 32: from X and W to Scale. Its result
	// is like that of FitSymmetric.
	FitIQ4 func(l *Lanes, s *Scratch) uint32
	// CodesIQ4 is quant.packIQ4 for groups of 32: the codes of the values nearest
	// to inv[g]·x of group g, in 16 bytes at dst[g·stride].
	CodesIQ4 func(dst *uint8, stride int, x, inv *float32, groups int)
	// Magnitudes sets the numbers of a super-block x that the searches of IQ2
	// and IQ3 take, in groups of 16 or 32: quant.gridGroup.weigh and split. q is
	// the importance; if it is nil, sigma2 is flat·σ². signs has a byte for each
	// eight elements, tops the largest magnitude of each group, then the largest
	// absolute value and the largest square root of a weight, both as bits: for
	// NaN and negative weights they are above those of any finite number, and
	// the rest is worth nothing.
	Magnitudes func(m *Magnitudes, signs *[32]uint8, tops *[3][16]uint32, x, q *float32, sigma2 float32, group int, parity bool)
	// FitCells3 and FitCells8 round the cells of a group with each of count
	// inverse scales top[i]/base and set the codes and sums of the Candidates:
	// quant.gridGroup.round and sums. They are for cells of eight elements with
	// three levels and for cells of four with eight. x is the first element of
	// the group in Magnitudes. All inverse scales are positive and ascend, the
	// digits do not exceed 2^20, and no distance overflows. entries has for each
	// key OnGrid and the code, or the number of records before its list times
	// 512 and the length of the list, which is even; lists is made by
	// AppendRecord. Up to 15 numbers of top are read behind the last.
	FitCells3, FitCells8 func(c *Candidates, x *float32, entries, lists *uint32, cells int, top *float32, count int, base float32)
	// RoundCells3 and RoundCells8 set the codes of the cells in the bit set
	// which: quant.gridGroup.round, for numbers as FitCells3 takes them. lists
	// has codes; up to 16 are read behind a list.
	RoundCells3, RoundCells8 func(codes *uint16, x *float32, entries *uint32, lists *uint16, which int, inv, scale float32)
	// SplitIQ1S and SplitIQ1M are the sort, split32 or split16 and setDigits of
	// quant's groupIQ1, of 32 or 16 elements: Scale, without its sign, Shift,
	// and the keys of the cells in Codes, the first of which is −1 in groups
	// whose |x| are all below epsilon or that have no best division. The bits of
	// the result are lanes to be left to the portable code.
	SplitIQ1S, SplitIQ1M func(l *Lanes, space *Space, epsilon float32) uint32
	// PlaceIQ1 is the place of quant's groupIQ1 with what these two found, for
	// groups of that many cells: it makes keys codes and improves Scale. The
	// tables are those of quant.gridCells. Its result is like theirs.
	PlaceIQ1 func(l *Lanes, cells int, entries *uint32, lists, codes *uint16) uint32
	// SumsIQ1 is the refit of quant's superIQ1 for eight super-blocks of 256
	// that lie one after another: it sets A and B. q is nil or the importance,
	// and sigma its variances.
	SumsIQ1 func(a, b *[8]float32, x, q *float32, sigma *[8]float32, cells *[32]CellIQ1, space *Space)
	// The encoders that search nothing, those of legacy types without
	// importance, for whole blocks, at least one: Q4_0 is quant.encodeQ4_0 and so
	// on. Any bits give what the portable code gives.
	Q4_0, Q4_1, Q5_0, Q5_1, Q8_0, TQ1_0, TQ2_0, Q2_0 Encoder
	// F16 and BF16 are dtype.EncodeF16 and dtype.EncodeBF16 for blocks of 32.
	F16, BF16 Encoder
	// Q1_0 is quant.encodeQ1_0 for eight times as many blocks as it is told.
	Q1_0 Encoder
	// MXFP4 and NVFP4 are quant.encodeMXFP4 and quant.encodeNVFP4. They stop at
	// a block that needs the portable code and return how many are before it.
	MXFP4, NVFP4 func(dst *byte, src *float32, blocks int) int
	// FromF16 and FromBF16 are dtype.Decode for blocks of 32 numbers, FromQ8_0
	// is quant.decodeQ8_0.
	FromF16, FromBF16, FromQ8_0 func(dst *float32, src *byte, blocks int)
	// Unpack are the Unpackers, which leave mins alone where a type has none.
	Unpack Unpackers
	// Expand sets element i of groups times 16 to scales[i/16]·codes[i] −
	// mins[i/16], both operations rounded.
	Expand func(dst *float32, codes *byte, scales, mins *float32, groups int)
	// Finite16 and Finite32 return how many stretches of 128 bytes there are
	// before one that holds a number, of 2 or 4 bytes, with all bits of exponent
	// set. Finite16 wants them twice, side by side.
	Finite16, Finite32 func(src *byte, stretches int, exponent uint32) int
	// FiniteScales returns how many blocks of size bytes there are before one
	// that has, at one of two offsets, a half that is NaN or infinite.
	FiniteScales func(src *byte, blocks, size, first, last int) int
	// GridLosses is quant.gridLosses: the errors Σw·e² of one group of length
	// elements for 16·units scales, given by inverse and square, and all offsets.
	// out gets 16 numbers for each 16 scales and offset, offsets running faster.
	GridLosses func(out, x, w *float32, length int, inv, square *float32, units int, offset *float32, offsets int, lo, hi float32)
	// TableLosses is quant.tableLosses, the same for the values of IQ4 types and
	// without offsets.
	TableLosses func(out, x, w *float32, length int, inv, square *float32, units int)
	// SquaredErrors is quant.squaredErrors for a multiple of 8 elements.
	SquaredErrors func(sums *[8]float64, x, y, w *float32, length int)
}

// Unpackers has an Unpacker for each type that its field is named for. The
// results give what the type's portable decoder gives, though not the same of
// several NaN.
type Unpackers struct {
	Q4_0, Q4_1, Q5_0, Q5_1, Q8_0, Q2_K, Q3_K, Q4_K, Q5_K, Q6_K, IQ4_NL, IQ4_XS, MXFP4 Unpacker
}

var active atomic.Pointer[Set]

func init() {
	Use(isa.Best(func(name string) bool {
		return slices.ContainsFunc(sets, func(s *Set) bool { return s.Name == name })
	}))
}

// Active returns the kernels to use, nil if there are none: the portable code
// does everything.
func Active() *Set { return active.Load() }

// Sets returns the kernels this machine can run, the best first.
func Sets() []*Set { return sets }

// Use makes the named set active, or none for isa.Portable, and reports whether
// the machine has it. It serves comparisons and measurements.
func Use(name string) bool {
	if name == isa.Portable {
		active.Store(nil)
		return true
	}
	i := slices.IndexFunc(Sets(), func(s *Set) bool { return s.Name == name })
	if i < 0 {
		return false
	}
	active.Store(Sets()[i])
	return true
}
