package kernel

//go:generate go -C _asm run . -codes -out ../codes_amd64.s -stubs ../codes_amd64.go -pkg kernel

const (
	// group is the number of elements of a row with one scale and minimum.
	group = 16
	// codeRows is the number of rows in a panel of codes, and halfRows that of
	// its halves.
	codeRows = 32
	halfRows = 16
)

// Codes are pieces of rows of a weight, of up to 256 elements, a multiple of
// 32. Element k of row r is
//
//	Scales[16·r+k/16]·Codes[256·r+k] − Mins[16·r+k/16]
//
// with codes being integers with sign and both operations rounded.
type Codes struct {
	Codes        [codeRows * span]byte
	Scales, Mins [codeRows * span / group]float32
}

// Reader sets elements [first, first+n) of rows [row, row+rows) of a weight, the
// first row of c being row. It leaves Mins alone if there are none.
type Reader func(c *Codes, row, rows, first, n int)

// codeKernels work on panels of codes, which _asm/codes.go describes, or on as
// many of their rows as a panel of numbers has.
type codeKernels struct {
	transpose func(dst, src *byte, blocks int)
	expand    func(dst *float32, codes *byte, scales, mins *float32, groups int)
	products  []codeProduct // by rows, ascending
	// both is the product of one row with both halves, whose sums are like
	// those of two rows; nil: none.
	both func(dst *float32, stride int, c *float64, x *float32, codes *byte, scales, mins *float32, groups int)
}

// codeProduct is a product that decodes a span of weights.
type codeProduct = micro[func(dst *float32, stride int, c *float64, x *float32, codes *byte, scales, mins *float32, groups int)]

// few is the number of rows of x up to which it takes less time to keep weights
// as codes than to pack them.
const few = 32

// Few returns the largest number of rows of x for which weights are best kept as
// codes; it is 0 where no weights can be taken as codes.
func (s *Set) Few() int {
	if s.codes == nil {
		return 0
	}
	return few
}

// coded are rows that a Reader reads.
type coded struct {
	read Reader
	mins bool
}

// PackCodes makes w rows that come as codes, cols elements each, and reuses its
// memory. The set in use must have a Few.
func (w *Weights) PackCodes(rows, cols int, mins bool, read Reader) {
	w.KeepCodes(rows, cols, mins, read)
	s := scratches.Get().(*scratch)
	defer scratches.Put(s)
	set, source := w.set, w.coded
	w.coded = coded{}
	w.data = grow(&w.data, set.padded(rows)*cols)
	s.panel.begin()
	for row := 0; row < rows; row += codeRows {
		for first := 0; first < cols; first += span {
			taken, n := min(codeRows, rows-row), min(span, cols-first)
			s.panel.load(set, &source, row, taken, first, n)
			for r := 0; r < taken; r += set.Lanes {
				s.panel.expand(set, w.data[(row+r)*cols+first*set.Lanes:], r, n)
			}
		}
	}
}

// KeepCodes is PackCodes for few rows of x: read is called when w is
// multiplied, and decoded weights are never written to memory.
func (w *Weights) KeepCodes(rows, cols int, mins bool, read Reader) {
	w.set, w.Rows, w.Cols = active.Load(), rows, cols
	w.coded = coded{read, mins}
}

// panelOfCodes is a span of a panel.
type panelOfCodes struct {
	in           Codes
	codes        [codeRows * span]byte
	scales, mins [codeRows * span / group]float32
	numbers      [codeRows * span]float32
}

// begin is called before weights are loaded, which may have no minimums.
func (p *panelOfCodes) begin() { clear(p.mins[:]) }

// load reads rows and transposes them. Rows that are missing hold anything.
func (p *panelOfCodes) load(set *Set, w *coded, row, rows, first, n int) {
	w.read(&p.in, row, rows, first, n)
	for r := 0; r < rows; r += halfRows {
		set.codes.transpose(&p.codes[r*span], &p.in.Codes[r*span], (n+31)/32)
	}
	const groups = span / group
	for r := 0; r < rows; r += 8 {
		set.transpose8(&p.scales[r], codeRows, &p.in.Scales[r*groups], groups, groups/8)
		if w.mins {
			set.transpose8(&p.mins[r], codeRows, &p.in.Mins[r*groups], groups, groups/8)
		}
	}
}

// expand decodes n elements of a panel of numbers, from row r on.
func (p *panelOfCodes) expand(set *Set, dst []float32, r, n int) {
	set.codes.expand(&dst[:n*set.Lanes][0], &p.codes[r*span], &p.scales[r], &p.mins[r], n/group)
}

// fewRows is a product of few rows of x with weights that are kept as codes.
type fewRows struct {
	*scratch
	w     *Weights
	fused *codeProduct // for all rows; nil: weights are decoded first
	rows  int          // of x, with those that products take besides
}

// few multiplies by weights that are kept as codes, panel by panel and of each
// span by span.
func (s *scratch) few(x Matrix, o Output) {
	w := o.Weights
	f := fewRows{scratch: s, w: w, rows: w.set.taken(x.Rows)}
	for i, p := range w.set.codes.products {
		if p.rows >= x.Rows {
			f.fused, f.rows = &w.set.codes.products[i], p.rows
			break
		}
	}
	s.loadSpans(x, f.rows)
	s.sums, s.tile = grow(&s.sums, f.rows*codeRows), grow(&s.tile, f.rows*codeRows)
	s.panel.begin()
	for j := 0; j < w.Rows; j += codeRows {
		columns := min(codeRows, w.Rows-j)
		clear(s.sums)
		for first := 0; first < w.Cols; first += span {
			n := min(span, w.Cols-first)
			s.panel.load(w.set, &w.coded, j, columns, first, n)
			f.multiply(columns, first, n)
		}
		for i := range o.Dst.Rows {
			for r := 0; r < columns; r += w.set.Lanes {
				copy(o.Dst.Row(i)[j+r:j+columns], s.tile[r*f.rows+i*w.set.Lanes:][:w.set.Lanes])
			}
		}
	}
}

// multiply adds the products of the n elements of a span of a panel, from first
// on, to the sums, or with them makes the last span's results: in tile, of as
// many columns as products have row after row.
func (f *fewRows) multiply(columns, first, n int) {
	set, p := f.w.set, &f.panel
	at := func(r, i int) (dst *float32, c *float64, x *float32) {
		if first+n == f.w.Cols {
			dst = &f.tile[r*f.rows+i*set.Lanes]
		}
		if f.w.Cols > span {
			c = &f.sums[r*f.rows+i*set.Lanes]
		}
		return dst, c, &f.x[(first/span*f.rows+i)*xStride]
	}
	if both := set.codes.both; both != nil && f.rows == 1 && columns > halfRows {
		dst, c, x := at(0, 0)
		both(dst, halfRows, c, x, &p.codes[0], &p.scales[0], &p.mins[0], n/group)
		return
	}
	for r := 0; r < columns; r += set.Lanes {
		if f.fused != nil {
			dst, c, x := at(r, 0)
			f.fused.run(dst, set.Lanes, c, x, &p.codes[r*span], &p.scales[r], &p.mins[r], n/group)
			continue
		}
		p.expand(set, p.numbers[:], r, n)
		for i := 0; i < f.rows; {
			product := forRows(set.products, f.rows-i)
			dst, c, x := at(r, i)
			product.run(dst, set.Lanes, c, x, &p.numbers[0], n)
			i += product.rows
		}
	}
}

// loadSpans copies the rows of x to where products find them, span after span;
// rows that are missing are zeros.
func (s *scratch) loadSpans(x Matrix, rows int) {
	s.x = grow(&s.x, (x.Cols+span-1)/span*rows*xStride)
	at := s.x
	for first := 0; first < x.Cols; first += span {
		n := min(span, x.Cols-first)
		for i := range rows {
			if i < x.Rows {
				copy(at[:n], x.Row(i)[first:])
			} else {
				clear(at[:n])
			}
			at = at[xStride:]
		}
	}
}
