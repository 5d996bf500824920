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

// roundLimit bounds the values that roundMagic rounds properly.
const roundLimit = 1 << 22

// nearest is ggml's nearest_int. Beyond roundLimit, and for NaN, the result is
// a meaningless number, but always the same one, and it does end up in files:
// blocks of subnormal numbers have infinite inverse scales.
func nearest(v float32) int32 {
	return int32(math.Float32bits(float32(v)+roundMagic)&0x7fffff) - 0x400000
}

// nearestIn is nearest limited to [lo, hi].
func nearestIn(v float32, lo, hi int32) int32 { return max(lo, min(hi, nearest(v))) }

func abs32(v float32) float32 {
	return math.Float32frombits(math.Float32bits(v) &^ (1 << 31))
}

func sqrt32(v float32) float32 { return float32(math.Sqrt(float64(v))) }

// peak returns the value of largest magnitude with its sign; the first wins a
// tie and NaN is passed over.
func peak(x []float32) float32 {
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
		w[i] = q[i] * sqrt32(sigma2+float32(v*v))
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
	var products [32]float32
	wx := products[:len(x)]
	for i, v := range x {
		wx[i] = w[i] * v
	}
	fit := symmetricFit{inv: -n / top, offset: int32(n)}
	a, b := symmetricSums(x, w, wx, fit.inv, n)
	if b != 0 {
		fit.scale = a / b
	}
	best := fit.scale * a
	for step := -9; step <= 9; step++ {
		if step == 0 {
			continue
		}
		inv := -(n + float32(0.1*float32(step))) / top
		a, b := symmetricSums(x, w, wx, inv, n)
		if b > 0 && a*a > best*b {
			fit.scale, fit.inv = a/b, inv
			best = fit.scale * a
		}
	}
	return fit
}

// symmetricSums returns A = Σ(w·x)·l and B = Σ(w·l)·l for the codes l of inv.
func symmetricSums(x, w, wx []float32, inv, n float32) (a, b float32) {
	w, wx = w[:len(x)], wx[:len(x)]
	for i, v := range x {
		l := float32(inv*v) + roundMagic - roundMagic
		if l > n-1 {
			l = n - 1
		}
		if l < -n {
			l = -n
		}
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
	w = w[:len(x)]
	lo, hi := x[0], x[0]
	sumW, sumX := w[0], w[0]*x[0]
	for i := 1; i < len(x); i++ {
		v := x[i]
		if v < lo {
			lo = v
		}
		if v > hi {
			hi = v
		}
		sumW += w[i]
		sumX += float32(w[i] * v)
	}
	xlo := lo
	if sumX-sumX != 0 {
		xlo = float32(math.NaN()) // there may be NaN between lo and hi
	}
	if lo > 0 {
		lo = 0
	}
	if hi <= lo {
		return affineFit{min: -lo}
	}
	var buf [32]float32
	l := buf[:len(x)]
	fit := affineFit{inv: g.n / (hi - lo), base: lo}
	fit.scale = 1 / fit.inv
	affineCodes(l, x, fit.inv, lo, g.n, xlo, hi)
	best := g.loss(l, x, w, fit.scale, lo)
	for i := 0; i <= g.steps; i++ {
		inv := (g.first + float32(g.delta*float32(i)) + g.n) / (hi - lo)
		affineCodes(l, x, inv, lo, g.n, xlo, hi)
		s1, s2, sx := affineSums(l, x, w)
		det := float32(sumW*s2) - float32(s1*s1)
		if !(det > 0) {
			continue
		}
		scale := (float32(sumW*sx) - float32(sumX*s1)) / det
		low := (float32(s2*sumX) - float32(s1*sx)) / det
		if low > 0 {
			low, scale = 0, sx/s2
		}
		if loss := g.loss(l, x, w, scale, low); loss < best {
			best = loss
			fit = affineFit{scale: scale, inv: inv, base: lo}
			lo = low
		}
	}
	fit.min = -lo
	return fit
}

// affineCodes sets l to clamp(nearest(inv·(x−base)), 0, n). xlo and xhi are
// the extremes of x: the codes grow with x, so these two tell whether any code
// needs the clamp, or nearest's odd results.
func affineCodes(l, x []float32, inv, base, n, xlo, xhi float32) {
	l = l[:len(x)]
	low, high := inv*(xlo-base), inv*(xhi-base)
	switch {
	case inv > 0 && low >= -0.5 && high < n+0.5:
		for i, v := range x {
			l[i] = float32(inv*(v-base)) + roundMagic - roundMagic
		}
	case inv > 0 && low > -roundLimit && high < roundLimit:
		for i, v := range x {
			c := float32(inv*(v-base)) + roundMagic - roundMagic
			if c > n {
				c = n
			}
			if c < 0 {
				c = 0
			}
			l[i] = c
		}
	default:
		for i, v := range x {
			l[i] = float32(nearestIn(inv*(v-base), 0, int32(n)))
		}
	}
}

// affineSums returns Σw·l, Σ(w·l)·l and Σ(w·l)·x.
func affineSums(l, x, w []float32) (s1, s2, sx float32) {
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
func (g *affineGrid) loss(l, x, w []float32, scale, low float32) (sum float32) {
	l, w = l[:len(x)], w[:len(x)]
	if g.absolute {
		for i, v := range x {
			e := float32(scale*l[i]) + low - v
			sum += float32(w[i] * abs32(e))
		}
		return sum
	}
	for i, v := range x {
		e := float32(scale*l[i]) + low - v
		sum += float32(w[i] * float32(e*e))
	}
	return sum
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
