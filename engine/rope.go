package engine

import (
	"context"
	"fmt"
	"math"

	"github.com/winnow-moe/winnow/formats/arch"
)

// rope rotates pairs of elements by angles that grow with the position
// (Su et al. 2021, "RoFormer"), with the frequencies of the model's scaling.
type rope struct {
	pairs arch.Rope
	freq  []float32 // [dim/2], radians per position
	scale float32   // factor on cos and sin
}

// newRope computes the frequencies: base^(-2i/dim), all divided by the factor
// for linear scaling, or YaRN's blend, or each by its own of factors, which may
// be nil.
func newRope(p *arch.Params, pairs arch.Rope, factors []float32) (rope, error) {
	r := rope{pairs: pairs, freq: make([]float32, p.RopeDim/2), scale: 1}
	if !(p.RopeBase > 1) {
		return r, fmt.Errorf("%s is %g, want more than 1", arch.KeyRopeBase, p.RopeBase)
	}
	blend := func(int) float64 { return 1 }
	factor := 1.0
	switch p.RopeScaling {
	case "", "none":
	case "longrope":
		r.scale = float32(orDefault(p.RopeAttnFactor, 1))
	case "linear":
		factor = float64(p.RopeFactor)
		blend = func(int) float64 { return 0 }
	case "yarn":
		factor = float64(p.RopeFactor)
		r.scale = yarnScale(p)
		var err error
		if blend, err = yarnBlend(p); err != nil {
			return r, err
		}
	default:
		return r, fmt.Errorf("%s %q is not supported by the engine", arch.KeyRopeScaling, p.RopeScaling)
	}
	for i := range r.freq {
		f := math.Pow(float64(p.RopeBase), -2*float64(i)/float64(p.RopeDim))
		b := blend(i)
		r.freq[i] = float32(float64(f*b) + float64(f/factor*(1-b)))
		if factors != nil {
			r.freq[i] /= factors[i]
		}
	}
	return r, nil
}

// ropeFactors are the factors on wavelengths that a model stores, nil for none.
type ropeFactors struct{ all, long, short []float32 }

func (m *Model) ropeFactors(ctx context.Context) (f ropeFactors, err error) {
	for _, t := range []struct {
		to   *[]float32
		from *tensor
	}{{&f.all, m.ropeFreqs}, {&f.long, m.ropeLong}, {&f.short, m.ropeShort}} {
		if *t.to, err = m.vector(ctx, t.from); err != nil {
			return f, err
		}
	}
	return f, nil
}

// ropeKey is what the rotations of a block and sequence depend on.
type ropeKey struct {
	sliding bool // those of sliding blocks, which have no factors
	long    bool // those beyond the original context
}

// setRope chooses the rotations of every sequence for a block.
func (p *pass) setRope(l *layer) error {
	p.layerRope = p.layerRope[:0]
	par := p.m.Params()
	for _, s := range p.seqs {
		key := ropeKey{sliding: par.IsSliding(l.number), long: p.factors.long != nil && s.n > par.RopeOrigContext}
		if p.ropes[key] == nil {
			factors := p.factors.all
			switch {
			case key.sliding && par.RopeBaseSWA != 0:
				factors = nil
			case key.long:
				factors = p.factors.long
			case p.factors.short != nil:
				factors = p.factors.short
			}
			r, err := newRope(l.par, p.m.arch.Family.Block.Rope, factors)
			if err != nil {
				return err
			}
			p.ropes[key] = r.table(p.longest)
		}
		p.layerRope = append(p.layerRope, p.ropes[key])
	}
	return nil
}

// yarnBlend returns the share of the unscaled frequency of pair i (Peng et al.
// 2023, "YaRN", section 3.2; HF modeling_rope_utils.py): 1 for pairs that turn
// more than beta_fast times over the original context, 0 below beta_slow
// turns, a ramp over the pair numbers between.
func yarnBlend(p *arch.Params) (func(i int) float64, error) {
	context := float64(p.RopeOrigContext)
	if context == 0 {
		context = float64(p.Context)
	}
	fast, slow, ext := orDefault(p.YarnBetaFast, 32), orDefault(p.YarnBetaSlow, 1), orDefault(p.YarnExtFactor, 1)
	if !(context > 0 && fast > 0 && slow > 0) {
		return nil, fmt.Errorf("yarn scaling needs positive %s (%g), %s (%g) and %s (%g)", arch.KeyRopeOrigContext, context, arch.KeyYarnBetaFast, fast, arch.KeyYarnBetaSlow, slow)
	}
	// pair is the number of the pair that turns the given times.
	pair := func(turns float64) float64 {
		return float64(p.RopeDim) * math.Log(context/(turns*2*math.Pi)) / (2 * math.Log(float64(p.RopeBase)))
	}
	low, high := pair(fast), pair(slow)
	if !p.YarnExact {
		low, high = math.Floor(low), math.Ceil(high)
	}
	low, high = max(low, 0), min(high, float64(p.RopeDim-1))
	if low == high {
		high += 0.001
	}
	return func(i int) float64 {
		return ext * (1 - min(max((float64(i)-low)/(high-low), 0), 1))
	}, nil
}

func orDefault(v, def float32) float64 {
	if v == 0 {
		v = def
	}
	return float64(v)
}

// yarnScale is the factor on cos and sin: the explicit attention factor; else
// the quotient of mscale and mscale_all_dim, which GGUF stores only for models
// where the two are equal; else the default 0.1·ln(factor) + 1.
func yarnScale(p *arch.Params) float32 {
	switch {
	case p.YarnAttnFactor != 0:
		return p.YarnAttnFactor
	case p.YarnLogMul != 0:
		return 1
	}
	return float32(yarnMagnitude(p, 0.1))
}

// yarnMagnitude is mul·ln(factor) + 1 for factors above 1.
func yarnMagnitude(p *arch.Params, mul float32) float64 {
	if p.RopeFactor <= 1 {
		return 1
	}
	return float64(float64(mul)*math.Log(float64(p.RopeFactor))) + 1
}

// scoreScale is the factor on query-key products: the model's own, or
// 1/sqrt(head), for latent
// attention under YaRN times the square of mscale_all_dim's magnitude
// (HF modeling_deepseek_v3.py, yarn_apply_mscale).
func scoreScale(m *arch.Model, head int) float32 {
	p := &m.Params
	switch {
	case m.Family.Block.PlainScores:
		return 1
	case p.AttnScale != 0:
		return p.AttnScale
	}
	s := 1 / math.Sqrt(float64(head))
	if m.Family.Block.Attn == arch.MLA && p.RopeScaling == "yarn" && p.YarnLogMul != 0 {
		mag := yarnMagnitude(p, p.YarnLogMul)
		s *= mag * mag
	}
	return float32(s)
}

// ropeTable holds cos and sin of every position and pair.
type ropeTable struct {
	pairs    arch.Rope
	half     int
	cos, sin []float32 // [positions, half]
}

// table computes the rotations of positions 0 to n-1. Angles are float32
// products, as in HF's code.
func (r *rope) table(n int) *ropeTable {
	t := &ropeTable{pairs: r.pairs, half: len(r.freq), cos: make([]float32, n*len(r.freq)), sin: make([]float32, n*len(r.freq))}
	for pos := range n {
		for i, f := range r.freq {
			sin, cos := math.Sincos(float64(float32(pos) * f))
			t.sin[pos*t.half+i] = float32(sin) * r.scale
			t.cos[pos*t.half+i] = float32(cos) * r.scale
		}
	}
	return t
}

// rotate turns x, the rotated elements of one head, to a position.
func (t *ropeTable) rotate(x []float32, pos int) {
	cos, sin := t.cos[pos*t.half:][:t.half], t.sin[pos*t.half:][:t.half]
	step, other := 2, 1 // pair i is 2i and 2i+1
	if t.pairs == arch.RopeHalves {
		step, other = 1, t.half // i and i+half
	}
	for i, c := range cos {
		s := sin[i]
		a, b := x[step*i], x[step*i+other]
		x[step*i] = float32(a*c) - float32(b*s)
		x[step*i+other] = float32(a*s) + float32(b*c)
	}
}
