package kernel

import (
	"math"
	"unsafe"
)

// Record says how many units of 32 bits the parts of a block of weights have
// that are made of integers, in this order: codes without sign, four to a unit,
// or signed ones, two to a unit, if Wide; scales of 16 bits, twice in a unit,
// each for the same number of codes; what is subtracted per group of 16 codes,
// in integers; minimums per group of 16 codes; the factor and, where there are
// minimums, theirs.
type Record struct {
	Block                        int // elements
	Wide                         bool
	Codes, Scales, Offsets, Mins int
}

// Units returns the length of a record.
func (r *Record) Units() int {
	n := r.Codes + r.Scales + r.Offsets + r.Mins + 1
	if r.Mins > 0 {
		n++
	}
	return n
}

// counts are the turns of loops in an integerProduct.
type counts [5]int

const (
	countBlocks  = iota // records
	countSteps          // groups of codes with one scale; of wide codes, four units
	countOffsets        // units
	countMins
	countPairs // units of sums in a row of x for a record
)

// unrolled is the number of units of wide codes in a step.
const unrolled = 4

func (r *Record) counts(blocks int) counts {
	n := counts{blocks, r.Scales, r.Offsets, r.Mins, r.Block / 32}
	if r.Wide {
		n[countSteps] = r.Codes / unrolled
	}
	return n
}

// quads returns the units of codes with one scale.
func (r *Record) quads() int { return r.Codes / r.Scales }

// integerProduct adds the products of rows of rounded x and records of a panel
// to c, rows of the panel's width without gaps. For each record, with d the
// product of the two factors, c = c + d·n and then c = c − dmin·m, all rounded to
// float32 after each operation, where the integers n and m are exact.
type integerProduct = micro[func(c *float32, x, w *uint32, n *[5]int)]

// PackIntegers makes w rows of cols elements that records hold, and reuses its
// memory.
func (w *Weights) PackIntegers(records []uint32, rows, cols int, r Record) {
	w.Pack(NewMatrix(floatsOf(records), rows, cols/r.Block*r.Units()))
	w.Cols, w.record = cols, r
}

// MultiplyRounded is Multiply for weights of integers with records for x.
func MultiplyRounded(x *Rounded, outputs ...Output) {
	for i := range outputs {
		check(&outputs[i].Dst, &Matrix{Rows: x.Rows, Cols: x.Cols}, outputs[i].Weights.Rows, outputs[i].Weights.Cols)
	}
	s := scratches.Get().(*scratch)
	defer scratches.Put(s)
	set := outputs[0].Weights.set
	for i := 0; i < x.Rows; i += set.block {
		s.integerBlock(set, i, x.Slice(i, min(set.block, x.Rows-i)), outputs)
	}
}

// integerBlock is block for rounded rows.
func (s *scratch) integerBlock(set *Set, at int, x *Rounded, outputs []Output) {
	columns := 0
	for _, o := range outputs {
		columns += set.padded(o.Weights.Rows)
	}
	room := set.integerRoom()
	s.c = grow(&s.c, columns*room)
	clear(s.c)
	for i := range x.spans() {
		s.loadRounded(set, x, i)
		c := s.c
		for _, o := range outputs {
			s.integerSpan(set, c, x, i, o.Weights)
			c = c[set.padded(o.Weights.Rows)*room:]
		}
	}
	c := s.c
	for _, o := range outputs {
		for j := 0; j < o.Weights.Rows; j += set.Lanes {
			n := min(set.Lanes, o.Weights.Rows-j)
			for row := range x.Rows {
				copy(o.Dst.Row(at + row)[j:], c[row*set.Lanes:][:n])
			}
			c = c[set.Lanes*room:]
		}
	}
}

// integerSpan adds the products of span i of the loaded rows of x and of weights
// to c, panel by panel.
func (s *scratch) integerSpan(set *Set, c []float32, x *Rounded, i int, weights *Weights) {
	r := &weights.record
	n, products := r.counts(min(span, x.Cols-i*span)/r.Block), set.integerProducts(r)
	panel := set.Lanes * set.integerRoom()
	for j := 0; j < weights.Rows; j += set.Lanes {
		first := j*(x.Cols/r.Block) + i*(span/r.Block)*set.Lanes
		w := (*uint32)(unsafe.Pointer(&weights.data[first*r.Units()]))
		for row := 0; row < x.Rows; {
			p := forRows(products, x.Rows-row)
			p.run(&c[row*set.Lanes], &s.units[row*x.stride()], w, (*[5]int)(&n))
			row += p.rows
		}
		c = c[panel:]
	}
}

// integerRoom is the rows of a block and those that products may take besides.
func (s *Set) integerRoom() int {
	most := s.wide[len(s.wide)-1].rows
	for _, list := range s.narrow {
		most = max(most, list[len(list)-1].rows)
	}
	return s.block + most
}

// loadRounded copies a span of rows to where products find it.
func (s *scratch) loadRounded(set *Set, x *Rounded, i int) {
	s.units = grow(&s.units, set.integerRoom()*x.stride())
	for row := range x.Rows {
		copy(s.units[row*x.stride():], x.of(row, i))
	}
}

// integerProducts returns those for a form.
func (s *Set) integerProducts(r *Record) []integerProduct {
	if r.Wide {
		return s.wide
	}
	return s.narrow[r.quads()]
}

func init() {
	portable.narrow = map[int][]integerProduct{2: {narrowPortable(2)}, 4: {narrowPortable(4)}, 8: {narrowPortable(8)}}
	portable.wide = []integerProduct{widePortable}
}

// narrowPortable is the portable product of codes of 8 bits.
func narrowPortable(quads int) integerProduct {
	return integerProduct{1, func(c *float32, x, w *uint32, n *[5]int) {
		const lanes = portableLanes
		row := unsafe.Slice(x, narrowStride)
		codes, sums, factors := row, row[narrowSums:], row[narrowFactors:]
		steps, pairs := n[countSteps], n[countPairs]
		units := steps*quads + steps + n[countOffsets] + n[countMins] + 1 + min(1, n[countMins])
		panel := unsafe.Slice(w, n[countBlocks]*units*lanes)
		for lane, out := range unsafe.Slice(c, lanes) {
			sum := out
			for b := range n[countBlocks] {
				at := lanePart{panel[b*units*lanes+lane:], lanes}
				total := int32(0)
				for g := range steps {
					part := int32(0)
					for q := g * quads; q < (g+1)*quads; q++ {
						part += bytesProduct(codes[b*steps*quads+q], at.unit(q))
					}
					total += part * int32(int16(at.unit(steps*quads+g)))
				}
				at = at.after(steps * (quads + 1))
				total -= at.pairs(sums[b*pairs:], n[countOffsets])
				at = at.after(n[countOffsets])
				mins := at.pairs(sums[b*pairs:], n[countMins])
				at = at.after(n[countMins])
				factor := math.Float32frombits(factors[b])
				sum += float32(float32(at.float(0)*factor) * float32(total))
				if n[countMins] > 0 {
					sum -= float32(float32(at.float(1)*factor) * float32(mins))
				}
			}
			unsafe.Slice(c, lanes)[lane] = sum
		}
	}}
}

// lanePart is a lane of a panel from a unit on.
type lanePart struct {
	units []uint32
	lanes int
}

func (p lanePart) unit(i int) uint32        { return p.units[i*p.lanes] }
func (p lanePart) float(i int) float32      { return math.Float32frombits(p.unit(i)) }
func (p lanePart) after(units int) lanePart { return lanePart{p.units[units*p.lanes:], p.lanes} }

// pairs returns the product of n units of two integers with those of x.
func (p lanePart) pairs(x []uint32, n int) (sum int32) {
	for i := range n {
		sum += wordsProduct(x[i], p.unit(i))
	}
	return sum
}

// bytesProduct multiplies signed bytes x and unsigned ones w.
func bytesProduct(x, w uint32) int32 {
	return int32(int8(x))*int32(w&255) + int32(int8(x>>8))*int32(w>>8&255) +
		int32(int8(x>>16))*int32(w>>16&255) + int32(int8(x>>24))*int32(w>>24)
}

// wordsProduct multiplies signed words.
func wordsProduct(x, w uint32) int32 {
	return int32(int16(x))*int32(int16(w)) + int32(int16(x>>16))*int32(int16(w>>16))
}

// widePortable is the portable product of wide codes.
var widePortable = integerProduct{1, func(c *float32, x, w *uint32, n *[5]int) {
	const lanes = portableLanes
	row, steps := unsafe.Slice(x, wideStride), n[countSteps]
	panel := unsafe.Slice(w, n[countBlocks]*(unrolled*steps+1)*lanes)
	sums := unsafe.Slice(c, lanes)
	for lane := range sums {
		for b := range n[countBlocks] {
			at := lanePart{panel[b*(unrolled*steps+1)*lanes+lane:], lanes}
			total := at.pairs(row[b*unrolled*steps:], unrolled*steps)
			d := float32(at.float(unrolled*steps) * math.Float32frombits(row[wideFactors+b]))
			sums[lane] += float32(d * float32(total))
		}
	}
}}
