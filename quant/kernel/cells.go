package kernel

// Magnitudes are the numbers of a super-block that the searches of IQ2 and IQ3
// work on: magnitudes, weights w, w·magnitude and the square roots of w.
type Magnitudes = [4][256]float32

// Rows of Magnitudes.
const (
	MagX = iota
	MagW
	MagWX
	MagU
)

// Candidates has a column for each of up to 32 candidates of a group: in rows
// CandA and CandB the sums A and B, as bits, and in the eight rows from
// CandCodes the codes of the cells, plus OffGrid where the key of the cell is
// not on the grid. The other rows hold intermediate values, and columns beyond
// the candidates nothing of use.
type Candidates = [27][48]uint32

// Rows of Candidates.
const (
	CandA     = 0
	CandB     = 1
	CandCodes = 2
)

const (
	// OffGrid marks codes in Candidates.
	OffGrid = 1 << 16
	// OnGrid marks codes in the entries of FitCells3 and its kin.
	OnGrid = 1 << 31
)

// AppendRecord appends the record of a code to lists for FitCells3 or FitCells8:
// bytes with four times a digit, which address the terms, except that for three
// levels the first byte is four times the first six bits of the code and the
// last two are the code.
func AppendRecord(lists []uint32, code uint16, levels int) []uint32 {
	c := uint32(code)
	if levels == 8 {
		return append(lists, c&7<<2|c>>3&7<<10|c>>6&7<<18|c>>9&7<<26)
	}
	return append(lists, c&63<<2|c>>6&3<<10|c>>8&3<<18|c>>10&3<<26, c>>12&3<<2|c>>14&3<<10|c<<16)
}
