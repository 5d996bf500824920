package calib

import (
	"fmt"
	"math"
)

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
	return s.merge(exact{int64(floor), int64(math.RoundToEven((v - floor) * (1 << exactBits)))})
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
	b := float64(s.whole-int64(a)) + float64(float64(s.part)/(1<<exactBits))
	value = a + b
	t := value - a
	return value, (a - (value - t)) + (b - t)
}

// series is a row of exact sums: those added here and those of other series,
// which are read when they are asked for. It has no numbers if it is not known.
type series struct {
	n      int
	here   []exact // nil: none were added
	others []func() ([]exact, error)
}

// add adds numbers.
func (s *series) add(values []float64) error { return s.addAt(0, values) }

// addAt adds numbers from element first on.
func (s *series) addAt(first int, values []float64) error {
	if s.here == nil {
		s.here = make([]exact, s.n)
	}
	here := s.here[first:][:len(values)]
	for i, v := range values {
		if err := here[i].add(v); err != nil {
			return fmt.Errorf("number %d: %w", first+i, err)
		}
	}
	return nil
}

// plus returns the sum of both, which reads them when it is asked for.
func (s *series) plus(o *series) (series, error) {
	if s.n != o.n {
		return series{}, invalid("%d numbers, and %d in the statistics before", o.n, s.n)
	}
	return series{n: s.n, others: []func() ([]exact, error){s.load, o.load}}, nil
}

// view returns the same sums, which are read when they are asked for.
func (s *series) view() series {
	if s.n == 0 {
		return series{}
	}
	return series{n: s.n, others: []func() ([]exact, error){s.load}}
}

// load returns the sums.
func (s *series) load() ([]exact, error) {
	sums := make([]exact, s.n)
	copy(sums, s.here)
	for _, other := range s.others {
		more, err := other()
		if err != nil {
			return nil, err
		}
		for i, v := range more {
			if err := sums[i].merge(v); err != nil {
				return nil, fmt.Errorf("number %d: %w", i, err)
			}
		}
	}
	return sums, nil
}

// values returns the nearest float64 to each sum.
func (s *series) values() ([]float64, error) {
	sums, err := s.load()
	out := make([]float64, len(sums))
	for i, v := range sums {
		out[i] = v.value()
	}
	return out, err
}
