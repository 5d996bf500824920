package quant

import (
	_ "embed" // the codebooks
	"math/bits"
	"slices"
	"sync"
)

// Codebooks of the IQ1, IQ2 and IQ3 types. A point of a codebook (a grid in
// ggml's words) gives the digits of a cell: of eight elements with three
// levels each, or of four elements with eight. Digit l stands for the
// magnitude 2l+1 while a cell is searched; decoders use tables of their own.
//
// Three numbers name a point: its index, which is stored in files; its code,
// the digits packed in two or three bits each, first element lowest; and the
// key, which is the number the digits form. Points are in ascending order.

// gridBits is a bit for every key of the six grids: four times 3^8 bits in
// 821 bytes, then twice 8^4 bits in 512, lowest bits first. The grids are
// those of ggml (iq2xxs_grid and so on in ggml-common.h).
//
//go:embed grids.bin
var gridBits []byte

const (
	keys3    = 6561 // 3^8
	keys8    = 4096 // 8^4
	bitmap3  = (keys3 + 7) / 8
	bitmap8  = keys8 / 8
	bitmaps3 = 4 * bitmap3
)

// grid is a codebook and the tables that searching it takes.
type grid struct {
	// codes returns the codes of the points.
	codes func() []uint16
	// cells returns the tables of the search, which are made in the first
	// call; it takes milliseconds.
	cells func() *gridCells
	// packed returns the same tables for kernels.
	packed func() *packedCells
}

var (
	gridIQ2XXS = newGrid(gridBits[:bitmap3], 3, 2)
	gridIQ2XS  = newGrid(gridBits[bitmap3:][:bitmap3], 3, 2)
	gridIQ2S   = newGrid(gridBits[2*bitmap3:][:bitmap3], 3, 1)
	gridIQ1    = newGrid(gridBits[3*bitmap3:][:bitmap3], 3, 3)
	gridIQ3XXS = newGrid(gridBits[bitmaps3:][:bitmap8], 8, 2)
	gridIQ3S   = newGrid(gridBits[bitmaps3+bitmap8:], 8, 3)
)

func newGrid(bitmap []byte, levels, distances int) *grid {
	g := &grid{codes: sync.OnceValue(func() []uint16 {
		var codes []uint16
		for _, key := range gridKeys(bitmap) {
			codes = append(codes, packKey(key, levels))
		}
		return codes
	})}
	g.cells = sync.OnceValue(func() *gridCells {
		return newGridCells(g.codes(), gridKeys(bitmap), levels, distances)
	})
	g.packed = sync.OnceValue(func() *packedCells { return newPackedCells(g.cells(), levels) })
	return g
}

// gridKeys lists the bits that are set.
func gridKeys(bitmap []byte) []uint16 {
	var keys []uint16
	for i, b := range bitmap {
		for ; b != 0; b &= b - 1 {
			keys = append(keys, uint16(8*i+bits.TrailingZeros8(b)))
		}
	}
	return keys
}

// packKey returns the code of a key.
func packKey(key uint16, levels int) uint16 {
	if levels == 8 {
		return key
	}
	var code uint16
	for i := range 8 {
		code |= key % 3 << (2 * i)
		key /= 3
	}
	return code
}

// key3 returns the key of a code with three levels.
func key3(code uint16) uint16 {
	return uint16(keysOfByte[code&255]) + 81*uint16(keysOfByte[code>>8])
}

// keysOfByte gives the keys of four digits.
var keysOfByte = func() (keys [256]uint8) {
	for c := range keys {
		keys[c] = uint8(c&3 + 3*(c>>2&3) + 9*(c>>4&3) + 27*(c>>6))
	}
	return keys
}()

// gridCells says for every key which points are near: the point itself, or
// the neighbours, which are all points whose squared distance is among the
// few smallest distances that occur, in the order of distance and index.
type gridCells struct {
	// entries has onGrid and the index of the point, or the place of the
	// neighbours in lists: the first one times 1<<listBits, and their number.
	entries []uint32
	lists   []uint16 // codes
	codes   []uint16 // of the points
}

const (
	onGrid   = 1 << 31
	listBits = 9 // the longest list has 292 points
	// listSlack is the number of codes behind the lists that kernels read,
	// without any effect.
	listSlack = 16
)

// index returns the index of the point with this key.
func (c *gridCells) index(key uint16) uint16 { return uint16(c.entries[key]) }

// neighbours returns the codes near a key that is not on the grid.
func (c *gridCells) neighbours(entry uint32) []uint16 {
	first := entry >> listBits
	return c.lists[first:][:entry&(1<<listBits-1)]
}

func newGridCells(codes, keys []uint16, levels, distances int) *gridCells {
	// Distances are sums over the two halves of the digits; a key is
	// high·half + low.
	half := 64
	if levels == 3 {
		half = 81
	}
	table := halfDistances(levels, half)
	rows, sorted := newGridRows(codes, keys, half, table)
	c := &gridCells{entries: make([]uint32, half*half), codes: codes}
	next := 0
	for key := range c.entries {
		if next < len(keys) && int(keys[next]) == key {
			c.entries[key] = onGrid | uint32(next)
			next++
			continue
		}
		first, high, near := len(c.lists), table[key/half*half:][:half], rows[key%half*half:][:half]
		var seen uint64 // a bit for every distance
		for h, d := range high {
			seen |= near[h].seen << d
		}
		for range distances {
			d := uint8(bits.TrailingZeros64(seen))
			seen &= seen - 1
			for h := range near {
				if row := &near[h]; row.seen<<high[h]>>d&1 != 0 {
					c.lists = append(c.lists, row.at(sorted, d-high[h])...)
				}
			}
		}
		c.entries[key] = uint32(first)<<listBits | uint32(len(c.lists)-first)
	}
	c.lists = slices.Grow(c.lists, listSlack)
	return c
}

// gridRow holds the points with some high half of the digits, in the order of
// the distance of their low halves from some other, and of index.
type gridRow struct {
	seen   uint64    // a bit for every distance; larger ones do not matter
	first  int32     // where its points start
	starts [65]uint8 // and those of each distance, from there
}

// at returns the points at a distance.
func (r *gridRow) at(sorted []uint16, d uint8) []uint16 {
	return sorted[r.first:][r.starts[d]:r.starts[d+1]]
}

// newGridRows returns the row of high half h, seen from low half l, at
// l·half + h, and the points of all rows.
func newGridRows(codes, keys []uint16, half int, table []uint8) (rows []gridRow, sorted []uint16) {
	rows, sorted = make([]gridRow, half*half), make([]uint16, half*len(codes))
	next := 0
	for first := 0; first < len(keys); {
		h, n := int(keys[first])/half, 1
		for first+n < len(keys) && int(keys[first+n])/half == h {
			n++
		}
		for l := range half {
			r := &rows[l*half+h]
			r.first = int32(next)
			r.sort(sorted[next:], codes[first:][:n], keys[first:][:n], table[l*half:][:half])
			next += n
		}
		first += n
	}
	return rows, sorted
}

// sort sorts the points of a row, given the distances of all low halves.
func (r *gridRow) sort(sorted, codes, keys []uint16, distances []uint8) {
	var next [64]uint8
	for _, k := range keys {
		d := min(63, distances[int(k)%len(distances)])
		r.seen |= 1 << d
		r.starts[d+1]++
	}
	for d := range next {
		next[d] = r.starts[d]
		r.starts[d+1] += r.starts[d]
	}
	for i, k := range keys {
		d := min(63, distances[int(k)%len(distances)])
		sorted[next[d]] = codes[i]
		next[d]++
	}
}

// halfDistances returns the squared distances between all pairs of half keys.
func halfDistances(levels, half int) []uint8 {
	table := make([]uint8, half*half)
	for i := range table {
		sum := 0
		for a, b := i/half, i%half; a > 0 || b > 0; a, b = a/levels, b/levels {
			d := a%levels - b%levels
			sum += d * d
		}
		table[i] = uint8(sum)
	}
	return table
}
