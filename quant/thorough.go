package quant

import (
	"fmt"
	"math"
	"strings"
	"sync"

	"github.com/winnow-moe/winnow/formats/gguf"
	"github.com/winnow-moe/winnow/quant/kernel"
)

// The thorough search lowers what ggml's searches leave of the error
// Σw·(x−y)², where y is what a reader sees and w the importance of the column,
// or 1 without importance. (ggml's searches weigh by heuristics that also
// depend on x and know nothing of the rounding of the scales.)
//
// Given the factors d and dmin of a super-block, its groups are independent,
// and each is solved by trying the integers for its scale and minimum. Given
// the integers and the codes, the best factors are a least-squares problem.
// The search alternates between the two, from the factors of the default
// search and from some a little larger and smaller, which shift the rounding
// of all scales. A super-block that does not end up better stays as it was.

// Search says how an encoder looks for good codes.
type Search uint8

const (
	// DefaultSearch gives ggml's bytes.
	DefaultSearch Search = iota
	// ThoroughSearch lowers the weighted squared error further, for types that
	// have such a search.
	ThoroughSearch
)

var searchNames = [...]string{DefaultSearch: "default", ThoroughSearch: "thorough"}

// ParseSearch finds a search by name.
func ParseSearch(name string) (Search, error) {
	for s, n := range searchNames {
		if n == name {
			return Search(s), nil
		}
	}
	return 0, fmt.Errorf("unknown search %q (known: %s)", name, strings.Join(searchNames[:], ", "))
}

func (s Search) String() string { return searchNames[s] }

// For returns the search that s means for a type: the default one if the type
// has no other.
func (s Search) For(t gguf.Type) Search {
	if c, ok := Lookup(t); !ok || c.thorough == nil {
		return DefaultSearch
	}
	return s
}

// refinement describes a super-block type for the thorough search: values are
// d·ls·level − dmin·lm with half precision factors d and dmin, integers ls and
// lm per group, and a level per element.
type refinement struct {
	size, group int
	lo, hi      float32 // levels are the integers from lo to hi; both 0: tableIQ4
	first       int     // the smallest ls
	scales      int     // how many values ls has, a multiple of unitLen
	mins        int     // how many values lm has, from 0 up; 1 if there are no minimums
	// wide and wideMins say how many scales, a multiple of unitLen, and minimums
	// around those of the default search are tried first.
	wide, wideMins int
	mirrored       bool // and as many scales of the other sign
	// starts says how many larger and how many smaller factors d are tried with
	// importance, plainStarts without.
	starts, plainStarts int
	passes              int // how often groups are solved for each
	// read and write convert all but the codes, and all.
	read   func(s *superBlock, b []byte)
	write  func(b []byte, s *superBlock)
	decode func(dst []float32, src []byte)
}

// superBlock is a super-block in numbers. Scales are stored as ls−first.
type superBlock struct {
	d, dmin float32
	ls, lm  [16]uint8
	codes   [superLen]uint8
}

const (
	// unitLen is the number of scales that are tried at once.
	unitLen = 16
	// narrowMins is the number of minimums tried when those at hand are good.
	narrowMins = 4
)

// refiner is the state of a thorough search.
type refiner struct {
	*refinement
	kernel *kernel.Set
	x, w   []float32
	solved superBlock // with the factors of the default search
	trial  superBlock
	best   superBlock
	least  float64 // its loss

	// The grids under the factors at hand: 1/scale and scale² by ls−first, and
	// offsets by lm.
	inv, square [256]float32
	offset      [64]float32
	losses      [256]float32
	sums        [8]float64
	values      [superLen]float32
	packed      [sizeQ6K]byte // the largest
}

var refiners = sync.Pool{New: func() any { return new(refiner) }}

// row lowers the error of an encoded row.
func (t *refinement) row(dst []byte, src, weights []float32) {
	r := refiners.Get().(*refiner)
	defer refiners.Put(r)
	r.refinement, r.kernel = t, kernel.Active()
	encodeSuper(dst, src, weights, t.size, r.block)
}

// flat are the weights without importance.
var flat = func() (w [superLen]float32) {
	for i := range w {
		w[i] = 1
	}
	return w
}()

// block lowers the error of a super-block, or leaves it alone.
func (r *refiner) block(dst []byte, x, q []float32) {
	r.x, r.w = x, q
	starts := r.starts
	if q == nil {
		r.w, starts = flat[:], r.plainStarts
	}
	before := r.error(dst)
	if !(before > 0 && before <= math.MaxFloat32) {
		return
	}
	r.least = math.Inf(1)
	r.read(&r.trial, dst)
	loss := r.solve(r.wide, r.wideMins, r.mirrored)
	r.solved = r.trial
	r.descend(loss)
	for k := 1; k <= starts; k++ {
		for _, step := range [...]int{-k, k} {
			if r.trial = r.solved; r.rescale(&r.trial, step) {
				r.descend(r.solve(unitLen, min(r.mins, narrowMins), false))
			}
		}
	}
	if r.least < before {
		r.store(dst, before)
	}
}

// store writes the best super-block found, with its factors fitted once more
// or, if that does not help, as it is, if its error is below the given one.
func (r *refiner) store(dst []byte, below float64) {
	r.setCodes(&r.best)
	r.trial = r.best
	r.refit(&r.trial)
	r.setCodes(&r.trial)
	loss := r.replace(dst, &r.trial, below)
	if loss < below {
		below = loss
	}
	if !(loss < r.least) {
		r.replace(dst, &r.best, below)
	}
}

// replace writes s to dst if its error, which it returns, is below the given one.
func (r *refiner) replace(dst []byte, s *superBlock, below float64) float64 {
	b := r.packed[:r.size]
	r.write(b, s)
	loss := r.error(b)
	if loss < below {
		copy(dst, b)
	}
	return loss
}

// error returns Σw·(x−y)² of an encoded super-block.
func (r *refiner) error(b []byte) float64 {
	r.decode(r.values[:], b)
	if r.kernel != nil {
		r.kernel.SquaredErrors(&r.sums, &r.x[0], &r.values[0], &r.w[0], superLen)
	} else {
		squaredErrors(&r.sums, r.x, r.values[:], r.w)
	}
	var sum float64
	for _, v := range r.sums {
		sum += v
	}
	return sum
}

// squaredErrors sets the sums to those of w·(x−y)² over every eighth element,
// from each of the first eight on.
func squaredErrors(sums *[8]float64, x, y, w []float32) {
	clear(sums[:])
	y, w = y[:len(x)], w[:len(x)]
	for i, v := range x {
		e := float64(v) - float64(y[i])
		sums[i%8] += float64(float64(w[i]) * float64(e*e))
	}
}

// rescale changes the factor d so that the scale of largest magnitude grows by
// step, and all scales accordingly. It reports whether that makes sense.
func (r *refiner) rescale(s *superBlock, step int) bool {
	top := 0
	for g := range superLen / r.group {
		ls := int(s.ls[g]) + r.first
		top = max(top, ls, -ls)
	}
	if top == 0 || top+step <= 0 {
		return false
	}
	f := float32(top+step) / float32(top)
	s.d = roundHalf(s.d / f)
	for g := range superLen / r.group {
		ls := int(nearest(float32(int(s.ls[g])+r.first) * f))
		s.ls[g] = uint8(max(0, min(r.scales-1, ls-r.first)))
	}
	return true
}

// descend improves a solved trial of the given loss while that helps.
func (r *refiner) descend(loss float64) {
	for pass := 1; ; pass++ {
		if loss < r.least {
			r.best, r.least = r.trial, loss
		} else if pass > 1 {
			return
		}
		if pass == r.passes {
			return
		}
		r.setCodes(&r.trial)
		r.refit(&r.trial)
		loss = r.solve(unitLen, min(r.mins, narrowMins), false)
	}
}

// smallestNormal is the least magnitude whose inverse is finite for sure.
const smallestNormal = 1.0 / (1 << 63) / (1 << 63)

// setGrids computes all grids under the factors of s. A scale of zero has an
// infinite loss: the next one has the level 0 as well and does no worse.
func (r *refiner) setGrids(s *superBlock) {
	for i := range r.scales {
		r.inv[i], r.square[i] = 0, float32(math.Inf(1))
		if v := s.d * float32(r.first+i); abs32(v) >= smallestNormal {
			r.inv[i], r.square[i] = 1/v, v*v
		}
	}
	for i := range r.mins {
		r.offset[i] = s.dmin * float32(i)
	}
}

// solve sets the scale and minimum of every group of the trial to the best of
// the given numbers around those at hand, and returns the loss. If mirrored, as
// many scales around that of the other sign are tried, too.
func (r *refiner) solve(scales, mins int, mirrored bool) (sum float64) {
	s := &r.trial
	r.setGrids(s)
	windows := 1
	if mirrored {
		windows = 2
	}
	losses := r.losses[:windows*scales*mins]
	var first [2]int
	for g := range superLen / r.group {
		x, w := r.x[g*r.group:][:r.group], r.w[g*r.group:][:r.group]
		low := max(0, min(r.mins-mins, int(s.lm[g])-mins/2))
		around := int(s.ls[g])
		for i := range windows {
			first[i] = max(0, min(r.scales-scales, around-scales/2))
			r.measure(losses[i*scales*mins:][:scales*mins], x, w, r.inv[first[i]:][:scales], r.square[first[i]:][:scales], r.offset[low:][:mins])
			around = -2*r.first - around
		}
		at, loss := least(losses)
		start := first[at/(scales*mins)]
		at %= scales * mins
		s.ls[g] = uint8(start + at/(unitLen*mins)*unitLen + at%unitLen)
		s.lm[g] = uint8(low + at/unitLen%mins)
		sum += float64(loss)
	}
	return sum
}

// measure sets out to the losses of a group.
func (r *refiner) measure(out, x, w, inv, square, offset []float32) {
	switch {
	case r.uneven() && r.kernel != nil:
		r.kernel.TableLosses(&out[0], &x[0], &w[0], len(x), &inv[0], &square[0], len(inv)/unitLen)
	case r.uneven():
		tableLosses(out, x, w, inv, square)
	case r.kernel != nil:
		r.kernel.GridLosses(&out[0], &x[0], &w[0], len(x), &inv[0], &square[0], len(inv)/unitLen, &offset[0], len(offset), r.lo, r.hi)
	default:
		gridLosses(out, x, w, inv, square, offset, r.lo, r.hi)
	}
}

// least returns the first position of the smallest loss, of an even number of
// losses that are not negative. NaN is larger than any number.
func least(losses []float32) (int, float32) {
	even, odd := uint64(math.MaxUint64), uint64(math.MaxUint64)
	for i := 0; i+1 < len(losses); i += 2 {
		even = min(even, uint64(math.Float32bits(losses[i]))<<32|uint64(i))
		odd = min(odd, uint64(math.Float32bits(losses[i+1]))<<32|uint64(i+1))
	}
	best := min(even, odd)
	return int(uint32(best)), math.Float32frombits(uint32(best >> 32))
}

// gridLosses sets out to the errors Σw·e² of one group for every scale, given
// by its inverse and its square, and offset: 16 numbers for each 16 scales and
// offset, offsets running faster.
func gridLosses(out, x, w, inv, square, offset []float32, lo, hi float32) {
	w = w[:len(x)]
	for u := 0; u < len(inv); u += unitLen {
		for _, off := range offset {
			for k := u; k < u+unitLen; k++ {
				t := inv[k]
				var loss float32
				for i, x := range x {
					v := float32(t * (x + off))
					e := max(lo, min(hi, v)) + roundMagic - roundMagic - v
					loss += float32(w[i] * float32(e*e))
				}
				out[k-u] = loss * square[k]
			}
			out = out[unitLen:]
		}
	}
}

// tableLosses is gridLosses for the levels of tableIQ4, without offsets.
func tableLosses(out, x, w, inv, square []float32) {
	w = w[:len(x)]
	for k, t := range inv {
		var loss float32
		for i, x := range x {
			v := float32(t * x)
			e := tableIQ4[codeIQ4(v)] - v
			loss += float32(w[i] * float32(e*e))
		}
		out[k] = loss * square[k]
	}
}

// setCodes sets all codes to those of the grids.
func (r *refiner) setCodes(s *superBlock) {
	groups := superLen / r.group
	inv, base := r.inv[:groups], r.offset[:groups]
	for g := range inv {
		inv[g], base[g] = 0, -(s.dmin * float32(s.lm[g]))
		if v := s.d * float32(r.first+int(s.ls[g])); abs32(v) >= smallestNormal {
			inv[g] = 1 / v
		}
	}
	if r.kernel != nil && !r.uneven() {
		r.kernel.MultiplyCodes(&s.codes[0], &r.x[0], &base[0], &inv[0], groups, r.group, int32(r.lo), int32(r.hi))
		return
	}
	for g := range inv {
		x, codes := r.x[g*r.group:][:r.group], s.codes[g*r.group:][:r.group]
		for i, v := range x {
			if v = inv[g] * (v - base[g]); r.uneven() {
				codes[i] = codeIQ4(v)
			} else {
				codes[i] = uint8(nearestIn(v, int32(r.lo), int32(r.hi)) - int32(r.lo))
			}
		}
	}
}

// uneven says that levels are those of tableIQ4.
func (t *refinement) uneven() bool { return t.lo == t.hi }

// level returns what a code stands for.
func (t *refinement) level(code uint8) float32 {
	if t.uneven() {
		return tableIQ4[code]
	}
	return t.lo + float32(code)
}

// refit sets the factors to the best ones for codes, scales and minimums: the
// least-squares solution of x ≈ d·(ls·level) − dmin·lm, rounded.
func (r *refiner) refit(s *superBlock) {
	var dd, dm, mm, dx, mx float64
	for g := range superLen / r.group {
		var w1, wl, wll, wx, wlx float64
		xg, wg := r.x[g*r.group:][:r.group], r.w[g*r.group:][:r.group]
		for i, code := range s.codes[g*r.group:][:r.group] {
			w, x, l := float64(wg[i]), float64(xg[i]), float64(r.level(code))
			wl1 := float64(w * l)
			w1 += w
			wl += wl1
			wll += float64(wl1 * l)
			wx += float64(w * x)
			wlx += float64(wl1 * x)
		}
		ls, lm := float64(int(s.ls[g])+r.first), float64(s.lm[g])
		dd += float64(float64(ls*ls) * wll)
		dm -= float64(float64(ls*lm) * wl)
		mm += float64(float64(lm*lm) * w1)
		dx += float64(ls * wlx)
		mx -= float64(lm * wx)
	}
	det := float64(dd*mm) - float64(dm*dm)
	switch {
	case det > 1e-9*float64(dd*mm):
		s.d = roundHalf(float32((float64(dx*mm) - float64(mx*dm)) / det))
		s.dmin = roundHalf(float32((float64(mx*dd) - float64(dx*dm)) / det))
	case dd > 0:
		s.d = roundHalf(float32((dx - float64(dm*float64(s.dmin))) / dd))
	}
}
