package verify

import (
	"math"
	"slices"
)

// Estimate is a value with its standard error.
type Estimate struct {
	Value float64 `json:"value"`
	Error float64 `json:"error"`
}

// mean returns the mean of v and its error sqrt(var/(n-1)), var being the
// mean squared deviation, as llama-perplexity computes it.
func mean(v []float64) Estimate {
	return Estimate{average(v), math.Sqrt(covariance(v, v))}
}

func average(v []float64) float64 {
	sum := 0.0
	for _, x := range v {
		sum += x
	}
	return sum / float64(len(v))
}

// covariance returns the covariance of the means of a and b: that of their
// values divided by n-1. A single value has none.
func covariance(a, b []float64) float64 {
	n := float64(len(a))
	if n < 2 {
		return 0
	}
	ma, mb, sum := average(a), average(b), 0.0
	for i := range a {
		sum += (a[i] - ma) * (b[i] - mb)
	}
	return sum / n / (n - 1)
}

// exp carries an estimate through the exponential, its error to first order.
func (e Estimate) exp() Estimate {
	v := math.Exp(e.Value)
	return Estimate{v, v * e.Error}
}

// scale multiplies an estimate by a constant.
func (e Estimate) scale(f float64) Estimate { return Estimate{f * e.Value, f * e.Error} }

// Distribution describes values of single tokens. P999 is the 99.9th
// percentile, P1 the first, P01 the 0.1th; between two values percentiles are
// interpolated linearly.
type Distribution struct {
	Mean   Estimate `json:"mean"`
	Max    float64  `json:"max"`
	P999   float64  `json:"p99_9"`
	P99    float64  `json:"p99"`
	P95    float64  `json:"p95"`
	P90    float64  `json:"p90"`
	P75    float64  `json:"p75"`
	Median float64  `json:"median"`
	P25    float64  `json:"p25"`
	P10    float64  `json:"p10"`
	P5     float64  `json:"p5"`
	P1     float64  `json:"p1"`
	P01    float64  `json:"p0_1"`
	Min    float64  `json:"min"`
}

// distribution describes v.
func distribution(v []float64) Distribution {
	d := Distribution{Mean: mean(v)}
	v = slices.Clone(v)
	slices.Sort(v)
	for _, p := range []struct {
		to       *float64
		fraction float64
	}{
		{&d.Max, 1}, {&d.P999, 0.999}, {&d.P99, 0.99}, {&d.P95, 0.95}, {&d.P90, 0.9}, {&d.P75, 0.75}, {&d.Median, 0.5},
		{&d.P25, 0.25}, {&d.P10, 0.1}, {&d.P5, 0.05}, {&d.P1, 0.01}, {&d.P01, 0.001}, {&d.Min, 0},
	} {
		*p.to = percentile(v, p.fraction)
	}
	return d
}

// percentile returns the value below which a fraction of the sorted values lies.
func percentile(sorted []float64, fraction float64) float64 {
	at := fraction * float64(len(sorted)-1)
	i := int(at)
	if i+1 >= len(sorted) {
		return sorted[len(sorted)-1]
	}
	at -= float64(i)
	return (1-at)*sorted[i] + at*sorted[i+1]
}
