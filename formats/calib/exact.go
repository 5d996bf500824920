package calib

import "math"

// exactBits is the resolution of an exact sum: 2⁻⁴⁷.
const exactBits = 47

// exactLimit bounds exact sums, so that every one is the sum of two float64.
const exactLimit = 1 << 58

// exact is a sum of float64 numbers that does not depend on their order, and
// so not on how a run was divided: a whole number and a fraction in units of
// 2⁻⁴⁷, to which every number is rounded once, before it is added.
type exact struct{ whole, part int64 }

// add adds v. A number or sum out of range is an error.
func (s *exact) add(v float64) error {
	if !(math.Abs(v) < exactLimit) { // NaN too
		return invalid("sum of %v is out of range (limit 2⁵⁸)", v)
	}
	floor := math.Floor(v)
	return s.merge(exact{int64(floor), int64(math.RoundToEven(math.Ldexp(v-floor, exactBits)))})
}

// merge adds another sum.
func (s *exact) merge(o exact) error {
	s.part += o.part
	s.whole += o.whole + s.part>>exactBits
	s.part &= 1<<exactBits - 1
	if s.whole >= exactLimit || s.whole < -exactLimit {
		return invalid("sum of %v is out of range (limit 2⁵⁸)", float64(s.whole))
	}
	return nil
}

// value is the nearest float64.
func (s exact) value() float64 { v, _ := s.split(); return v }

// split returns the nearest float64 and what it lacks: their sum is the exact
// one. Of a whole number of up to 58 bits float64 keeps 53; the 5 bits left and
// the fraction fit another, and rounding the sum of two leaves a float64
// (Knuth, The Art of Computer Programming 2, section 4.2.2, theorem B).
func (s exact) split() (value, rest float64) {
	a := float64(s.whole)
	b := float64(s.whole-int64(a)) + math.Ldexp(float64(s.part), -exactBits)
	value = a + b
	t := value - a
	return value, (a - (value - t)) + (b - t)
}
