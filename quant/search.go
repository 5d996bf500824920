package quant

import "math"

// The scale searches that ggml's block types share. Each tries a few scales
// near the obvious one and keeps the best under a weighted squared error. The
// result is a float that comes out of long chains of float32 operations, so
// the order of every sum and the rounding of every product is part of the
// format in practice: another order gives other, equally good bytes.
//
// Codes are held as float32 while searching. They are small integers, so
// nothing is lost, and the conversions from and to int disappear.

// Groups whose largest magnitude is below this count as all zero.
const groupEpsilon = 1e-15

// roundMagic is 1.5·2^23: adding it to a float32 of magnitude up to 2^22
// leaves the value, rounded to nearest even, in the low mantissa bits.
const roundMagic = 12582912

// nearest is ggml's nearest_int. Beyond magnitude 2^22, and for NaN, the result
// is a meaningless number, but always the same one, and it does end up in
// files: blocks of subnormal numbers have infinite inverse scales.
func nearest(v float32) int32 {
	return int32(math.Float32bits(float32(v)+roundMagic)&0x7fffff) - 0x400000
}

// nearestIn is nearest limited to [lo, hi].
func nearestIn(v float32, lo, hi int32) int32 { return max(lo, min(hi, nearest(v))) }

func abs32(v float32) float32 {
	return math.Float32frombits(math.Float32bits(v) &^ (1 << 31))
}

func sqrt32(v float32) float32 { return float32(math.Sqrt(float64(v))) }

// extremes returns the smallest and the largest value; of equal ones (−0 and 0)
// the first, and NaN is passed over unless it is the first value.
func extremes(x []float32) (lo, hi float32) {
	// As integers with the order of floats the numbers need no branches,
	// which the machine could not predict.
	low, high := int32(math.MaxInt32), int32(math.MinInt32)
	for _, v := range x {
		key := ordered(v)
		low, high = min(low, key), max(high, key)
	}
	const infinity = 0x7f800000
	if low > ^infinity && high < infinity && low != 0 && high != 0 && low != -1 && high != -1 {
		return unordered(low), unordered(high)
	}
	lo, hi = x[0], x[0]
	for _, v := range x {
		if v < lo {
			lo = v
		}
		if v > hi {
			hi = v
		}
	}
	return lo, hi
}

// ordered maps floats to integers in the same order: 0 to 0 and −0 to −1.
func ordered(v float32) int32 {
	b := int32(math.Float32bits(v))
	return b ^ int32(uint32(b>>31)>>1)
}

func unordered(key int32) float32 {
	return math.Float32frombits(uint32(key ^ int32(uint32(key>>31)>>1)))
}

// peak returns the value of largest magnitude with its sign; the first wins a
// tie and NaN is passed over.
func peak(x []float32) float32 {
	lo, hi := extremes(x)
	if -lo > hi {
		return lo
	}
	if hi > -lo {
		return hi
	}
	var top, magnitude float32
	for _, v := range x {
		if a := abs32(v); a > magnitude {
			magnitude, top = a, v
		}
	}
	return top
}

// sumSquares returns Σx², in order.
func sumSquares(x []float32) float32 {
	var sum float32
	for _, v := range x {
		sum += float32(v * v)
	}
	return sum
}

// importance fills w with q·sqrt(σ²+x²): ggml's estimate of how much an error
// in x matters, given the mean squared activation q of its column and the
// variance of its neighbourhood.
func importance(w, q, x []float32, sigma2 float32) {
	q, w = q[:len(x)], w[:len(x)]
	for i, v := range x {
		w[i] = q[i] * sqrt32(float32(sigma2)+float32(v*v))
	}
}

// symmetricFit is a grid value ≈ scale·(code−offset) with codes
// clamp(nearest(inv·x), −n, n−1) + offset. A group of zeros has the zero fit.
type symmetricFit struct {
	scale, inv float32
	offset     int32
}

// fitSymmetric searches the grid with codes in [−n, n−1] (ggml's
// make_qx_quants): nineteen scales, the largest magnitude landing between
// −n−0.9 and −n+0.9; for each the least-squares scale A/B of its codes, and
// the largest A²/B wins, which is the smallest weighted error.
func fitSymmetric(x, w []float32, n float32) symmetricFit {
	top := peak(x)
	if abs32(top) < groupEpsilon {
		return symmetricFit{}
	}
	var c symmetricCandidates
	c.measure(x, w, top, n)
	fit := symmetricFit{inv: c.inv[0], offset: int32(n)}
	if c.b[0] != 0 {
		fit.scale = c.a[0] / c.b[0]
	}
	best := fit.scale * c.a[0]
	for i := 1; i < 19; i++ {
		if a, b := c.a[i], c.b[i]; b > 0 && a*a > best*b {
			fit.scale, fit.inv = a/b, c.inv[i]
			best = fit.scale * a
		}
	}
	return fit
}

// symmetricCandidates are the inverse scales that fitSymmetric compares and
// their sums A = Σ(w·x)·l and B = Σ(w·l)·l over the codes l. The first sends
// the largest magnitude to −n, the others to −(n+step/10) with the steps
// −9…−1 and 1…9; the twentieth is not used and makes the number even.
type symmetricCandidates struct{ inv, a, b [20]float32 }

// firstBeyond is the candidate of step 5, from which on the largest magnitude
// rounds to −n−1 and needs the clamp.
const firstBeyond = 14

func (c *symmetricCandidates) set(top, n float32) {
	c.inv[0] = -n / top
	for i := 1; i < 10; i++ {
		step := float32(0.1 * float32(10-i))
		c.inv[i] = -(n - step) / top
		c.inv[19-i] = -(n + step) / top
	}
	c.inv[19] = c.inv[18]
}

// measure computes the sums of all candidates, two at a time: the loop has so
// few operations that sharing the loads counts.
func (c *symmetricCandidates) measure(x, w []float32, top, n float32) {
	c.set(top, n)
	var capped, products [32]float32
	y, wx := capped[:len(x)], products[:len(x)]
	// What any candidate sends beyond −n, all from firstBeyond on send to −n
	// or beyond. A value that lands nearest to −n replaces the clamp there.
	limit := float32(top * (n / (n + 0.7)))
	var other, most float32 // the value of the other sign with largest code
	for i, v := range x {
		wx[i] = w[i] * v
		y[i] = v
		if code := c.inv[0] * v; code > most {
			most, other = code, v
		} else if code < c.inv[0]*limit {
			y[i] = limit
		}
	}
	if limit-limit != 0 {
		other = limit // infinite or NaN: nothing but clampedSums will do
	}
	for i := 0; i < len(c.inv); i += 2 {
		inv0, inv1 := c.inv[i], c.inv[i+1]
		if !(inv0*other < n-0.5 && inv1*other < n-0.5) {
			c.a[i], c.b[i] = clampedSums(x, w, wx, inv0, n)
			c.a[i+1], c.b[i+1] = clampedSums(x, w, wx, inv1, n)
			continue
		}
		z := x
		if i >= firstBeyond {
			z = y
		}
		c.a[i], c.b[i], c.a[i+1], c.b[i+1] = symmetricSums(z, w, wx, inv0, inv1)
	}
}

// symmetricSums returns A and B of two candidates that need no clamp.
func symmetricSums(x, w, wx []float32, inv0, inv1 float32) (a0, b0, a1, b1 float32) {
	w, wx = w[:len(x)], wx[:len(x)]
	for i, v := range x {
		l := float32(inv0*v) + roundMagic - roundMagic
		a0 += float32(wx[i] * l)
		b0 += float32(float32(w[i]*l) * l)
		l = float32(inv1*v) + roundMagic - roundMagic
		a1 += float32(wx[i] * l)
		b1 += float32(float32(w[i]*l) * l)
	}
	return a0, b0, a1, b1
}

// clampedSums returns A and B of any candidate.
func clampedSums(x, w, wx []float32, inv, n float32) (a, b float32) {
	w, wx = w[:len(x)], wx[:len(x)]
	for i, v := range x {
		l := float32(nearestIn(inv*v, -int32(n), int32(n)-1))
		a += float32(wx[i] * l)
		b += float32(float32(w[i]*l) * l)
	}
	return a, b
}

// codes writes the codes of x, shifted to start at 0.
func (f symmetricFit) codes(dst []uint8, x []float32, n int32) {
	for i, v := range x {
		dst[i] = uint8(nearestIn(f.inv*v, -n, n-1) + f.offset)
	}
}

// affineGrid describes a search for grids with a minimum.
type affineGrid struct {
	n            float32 // largest code
	first, delta float32 // the candidates put the range at n+first+i·delta
	steps        int     // i runs from 0 to steps
	absolute     bool    // minimise Σw|e| instead of Σw·e²
}

// affineFit is a grid value ≈ scale·code − min with codes
// clamp(nearest(inv·(x−base)), 0, n).
type affineFit struct{ scale, min, inv, base float32 }

// fit searches scale and minimum of one group (ggml's make_qkx2_quants and
// make_qkx3_quants). The minimum is never above zero. Each candidate's codes
// get the least-squares line through (code, x); when that line is better than
// the best so far, its minimum becomes the base of the candidates after it.
func (g *affineGrid) fit(x, w []float32) affineFit {
	s := affineSearch{x: x, w: w[:len(x)], n: g.n}
	s.measure()
	if s.hi <= s.base {
		return affineFit{min: -s.base}
	}
	if g.absolute {
		s.boundable = false
	}
	fit := affineFit{inv: g.n / (s.hi - s.base), base: s.base}
	fit.scale = 1 / fit.inv
	s.sums(fit.inv)
	best := s.loss(fit.scale, fit.base, g.absolute)
	for i := 0; i <= g.steps; i++ {
		inv := (g.first + float32(g.delta*float32(i)) + g.n) / (s.hi - s.base)
		s1, s2, sx := s.sums(inv)
		det := float32(s.sumW*s2) - float32(s1*s1)
		if !(det > 0) {
			continue
		}
		scale := (float32(s.sumW*sx) - float32(s.sumX*s1)) / det
		low := (float32(s2*s.sumX) - float32(s1*sx)) / det
		if low > 0 {
			low, scale = 0, sx/s2
		}
		if s.boundable && s.bound(scale, low, s1, s2, sx) > float64(best) {
			continue
		}
		if loss := s.loss(scale, low, g.absolute); loss < best {
			best = loss
			fit = affineFit{scale: scale, inv: inv, base: s.base}
			s.base, s.shifted = low, false
		}
	}
	fit.min = -s.base
	return fit
}

// affineSearch is the state of affineGrid.fit.
type affineSearch struct {
	x, w             []float32
	n                float32
	lo, hi           float32 // extremes of x
	base             float32 // the lowest value a code stands for
	sumW, sumX, sumQ float32 // Σw, Σw·x, Σ(w·x)·x
	finite           bool    // all of x is
	boundable        bool    // bound may be used
	shifted, capped  bool    // y is up to date, and how
	y                [32]float32
	l                [32]float32 // codes of the last candidate
}

func (s *affineSearch) measure() {
	s.lo, s.hi = extremes(s.x)
	sign := math.Float32bits(s.w[0])
	s.sumW = s.w[0]
	s.sumX = s.w[0] * s.x[0]
	s.sumQ = s.sumX * s.x[0]
	for i := 1; i < len(s.x); i++ {
		v, w := s.x[i], s.w[i]
		wx := float32(w * v)
		s.sumW += w
		s.sumX += wx
		s.sumQ += float32(wx * v)
		sign |= math.Float32bits(w)
	}
	s.base = s.lo
	if s.lo > 0 {
		s.base = 0
	}
	s.finite = s.sumX-s.sumX == 0
	s.boundable = sign>>31 == 0 && s.sumQ > boundTiny && s.sumQ > s.sumW*boundTiny
}

// sums sets l to the codes of inv, clamp(nearest(inv·(x−base)), 0, n), and
// returns Σw·l, Σ(w·l)·l and Σ(w·l)·x.
func (s *affineSearch) sums(inv float32) (s1, s2, sx float32) {
	l := s.l[:len(s.x)]
	low, high := inv*(s.lo-s.base), inv*(s.hi-s.base)
	if !(s.finite && inv > 0 && low >= -0.5 && high < s.n+1) {
		for i, v := range s.x {
			l[i] = float32(nearestIn(inv*(v-s.base), 0, int32(s.n)))
		}
		return lineSums(l, s.x, s.w)
	}
	if capped := high >= s.n+0.5; !s.shifted || capped != s.capped {
		s.shift(capped)
	}
	return roundedSums(l, s.y[:len(s.x)], s.x, s.w, inv)
}

// shift sets y to x−base. If capped, what would round to n+1 is replaced by a
// value that rounds to n for every inverse scale that sends the largest value
// to between n+0.5 and n+1: the clamp of sums.
func (s *affineSearch) shift(capped bool) {
	s.shifted, s.capped = true, capped
	y := s.y[:len(s.x)]
	for i, v := range s.x {
		y[i] = v - s.base
	}
	if !capped {
		return
	}
	limit := (s.hi - s.base) * (s.n / (s.n + 0.75))
	for i, v := range y {
		if v > limit {
			y[i] = limit
		}
	}
}

// roundedSums sets l to the codes inv·y that need no clamp and returns the
// sums over them: the innermost loop of the affine types.
func roundedSums(l, y, x, w []float32, inv float32) (s1, s2, sx float32) {
	l, x, w = l[:len(y)], x[:len(y)], w[:len(y)]
	for i, v := range y {
		c := float32(inv*v) + roundMagic - roundMagic
		l[i] = c
		wl := float32(w[i] * c)
		s1 += wl
		s2 += float32(wl * c)
		sx += float32(wl * x[i])
	}
	return s1, s2, sx
}

// lineSums returns the same sums over given codes.
func lineSums(l, x, w []float32) (s1, s2, sx float32) {
	l, w = l[:len(x)], w[:len(x)]
	for i, v := range x {
		wl := float32(w[i] * l[i])
		s1 += wl
		s2 += float32(wl * l[i])
		sx += float32(wl * v)
	}
	return s1, s2, sx
}

// loss returns the weighted error of x ≈ scale·l + low.
func (s *affineSearch) loss(scale, low float32, absolute bool) (sum float32) {
	l, w := s.l[:len(s.x)], s.w[:len(s.x)]
	if absolute {
		for i, v := range s.x {
			e := float32(scale*l[i]) + low - v
			sum += float32(w[i] * abs32(e))
		}
		return sum
	}
	for i, v := range s.x {
		e := float32(scale*l[i]) + low - v
		sum += float32(w[i] * float32(e*e))
	}
	return sum
}

// boundTiny keeps bound away from sums that underflow.
const boundTiny = 1.0 / (1 << 50) / (1 << 50)

// bound returns a number that loss (the squared one) cannot be below, in a
// fraction of its time: most candidates are discarded by it. Expanding the
// square gives the loss E in terms of the sums, which are rounded, as is loss
// itself. With u = 2⁻²⁴, at most 32 terms and M = Σw·(|scale|·l+|low|+|x|)²,
// rounding moves E's expansion by at most 36u·M and loss by 42u·M (each error
// by 3u, each square and product by u, the sum by 32u), and
// M ≤ 3·(scale²·Σwl² + low²·Σw + Σwx²). That makes 234u = 1.4e-5. It needs
// w ≥ 0 and sums that did not underflow; overflow gives NaN, which is not
// above any loss. Fused operations only make it more exact.
func (s *affineSearch) bound(scale, low, s1, s2, sx float32) float64 {
	if s2 < boundTiny {
		return 0
	}
	a, b := float64(scale), float64(low)
	squares := a*a*float64(s2) + b*b*float64(s.sumW) + float64(s.sumQ)
	mixed := a*b*float64(s1) - a*float64(sx) - b*float64(s.sumX)
	return squares + 2*mixed - 2e-5*squares
}

// codes writes the codes of x.
func (f affineFit) codes(dst []uint8, x []float32, n int32) {
	for i, v := range x {
		dst[i] = uint8(nearestIn(f.inv*(v-f.base), 0, n))
	}
}

// fitPositive quantizes the scales (or minimums) x of a super-block's groups
// to codes in [0, n] and returns their common scale (ggml's make_qp_quants):
// nine candidate scales by weighted squared error, then up to five sweeps that
// move single codes. x may hold negative values after all; their codes wrap
// around in a byte, as they do in ggml.
func fitPositive(codes []uint8, x, w []float32, n int32) float32 {
	var top float32
	for _, v := range x {
		if !(top > v) {
			top = v
		}
	}
	if top < groupEpsilon {
		clear(codes)
		return 0
	}
	inv := bestPositive(x, w, n, top)
	var a, b float32
	for i, v := range x {
		c := min(n, nearest(inv*v))
		codes[i] = uint8(c)
		l := float32(c)
		a += float32(float32(w[i]*v) * l)
		b += float32(float32(w[i]*l) * l)
	}
	for range 5 {
		if !movePositive(codes, x, w, n, &a, &b) {
			break
		}
	}
	if b > 0 {
		return a / b
	}
	return 0
}

// bestPositive returns the inverse scale of the smallest error.
func bestPositive(x, w []float32, n int32, top float32) float32 {
	best := float32(n) / top
	scale := 1 / best
	var least float32
	for i, v := range x {
		e := v - float32(scale*float32(uint8(nearest(best*v))))
		least += float32(float32(w[i]*e) * e)
	}
	for step := -4; step <= 4; step++ {
		if step == 0 {
			continue
		}
		inv := (float32(0.1*float32(step)) + float32(n)) / top
		scale := 1 / inv
		var loss float32
		for i, v := range x {
			e := v - float32(scale*float32(min(n, nearest(inv*v))))
			loss += float32(float32(w[i]*e) * e)
		}
		if loss < least {
			least, best = loss, inv
		}
	}
	return best
}

// movePositive tries for each code the value that fits best while the others
// stay, and reports whether any changed. a and b are the sums of fitPositive.
func movePositive(codes []uint8, x, w []float32, n int32, a, b *float32) bool {
	changed := false
	for i, v := range x {
		wx, l := float32(w[i]*v), float32(codes[i])
		restA := *a - float32(wx*l)
		restB := *b - float32(float32(w[i]*l)*l)
		if !(restA > 0 && restB > 0) {
			continue
		}
		c := min(n, nearest(float32(v*restB)/restA))
		if c == int32(codes[i]) {
			continue
		}
		l = float32(c)
		restA += float32(wx * l)
		restB += float32(float32(w[i]*l) * l)
		if float32(restA*restA)**b > float32(*a**a)*restB {
			codes[i], *a, *b, changed = uint8(c), restA, restB, true
		}
	}
	return changed
}
