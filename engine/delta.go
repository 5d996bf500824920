package engine

import (
	"context"
	"fmt"
	"math"

	"github.com/winnow-moe/winnow/engine/kernel"
	"github.com/winnow-moe/winnow/formats/arch"
)

// recurrent holds the tensors of a block with a delta net, but for those that
// attention has too.
type recurrent struct {
	gate, out                 *tensor
	ba, alpha, beta           *tensor // what forgetting and learning rates are made from
	fA, fB, gA, gB            *tensor // forgetting rates and gates, by two matrices each
	conv, convQ, convK, convV *tensor
	a, dtBias, norm           *tensor
}

// slots are the fields of the roles.
func (r *recurrent) slots() map[arch.Role]affineSlots {
	weight := func(t **tensor) affineSlots { return affineSlots{weight: t} }
	return map[arch.Role]affineSlots{
		arch.AttnGate: weight(&r.gate), arch.SSMOut: weight(&r.out),
		arch.SSMBA: weight(&r.ba), arch.SSMAlpha: weight(&r.alpha), arch.SSMBeta: weight(&r.beta),
		arch.SSMConv1D: weight(&r.conv), arch.SSMA: weight(&r.a), arch.SSMDt: {bias: &r.dtBias}, arch.SSMNorm: weight(&r.norm),
		arch.SSMFA: weight(&r.fA), arch.SSMFB: weight(&r.fB), arch.SSMGA: weight(&r.gA), arch.SSMGB: weight(&r.gB),
		arch.SSMConv1DQ: weight(&r.convQ), arch.SSMConv1DK: weight(&r.convK), arch.SSMConv1DV: weight(&r.convV),
	}
}

// unitEps is added to the sum of squares of queries and keys.
const unitEps = 1e-6

// delta is a delta net with its small tensors decoded.
type delta struct {
	par             *arch.Params
	kind            arch.Delta
	dk, dv          int           // elements of a key head and of a value head
	perKey          int           // value heads of a key head
	conv            []float32     // [channels, taps]: queries', keys', values'
	a, dtBias, norm []float32     // a is negative
	rates           kernel.Matrix // [tokens, value heads, times 2 where α is a head's]: see columns
	low             kernel.Matrix // [tokens, 2·dk]: what α of every element and the gates are made from
	out             kernel.Matrix // [tokens, value heads·dv]
}

// deltaNet is the gated delta rule (Yang et al. 2024, "Gated Delta Networks",
// equation 10; HF modeling_qwen3_next.py, torch_recurrent_gated_delta_rule). Of
// every value head a matrix S goes from token to token: it forgets by α, and
// what it holds under the key moves towards the value by β:
//
//	S ← S·diag(α),  S ← S + β·(v − S·k)·kᵀ,  o = S·q/√d
//
// with q, k and v convolved over the last tokens, silu behind, q and k of
// length one, α = exp(a·softplus(alpha + dt)), β = sigmoid(beta). The output is
// normed and multiplied by silu of a gate. α is the same for all elements of a
// key, or in Kimi Delta Attention (Kimi Linear, 2025, section 3; HF
// modeling_kimi_linear.py) each has its own; there the gate's function is a
// sigmoid.
func (p *pass) deltaNet(ctx context.Context, l *layer) error {
	d, err := p.newDelta(ctx, l)
	if err != nil {
		return err
	}
	if err := p.deltaRates(ctx, l, d); err != nil {
		return err
	}
	d.out = p.buffers.att.matrix(p.x.Rows, l.par.InnerSize)
	step := p.headGroup(3*d.dk+2*d.perKey*d.dv, l.par.StateGroups)
	for h := 0; h < l.par.StateGroups; h += step {
		g, err := p.deltaGroup(ctx, l, d, h, min(step, l.par.StateGroups-h))
		if err != nil {
			return err
		}
		err = p.m.parallel(ctx, len(p.seqs)*g.n, func(_ context.Context, w *worker, i int) error {
			return g.run(w, p.seqs[i/g.n], i%g.n)
		})
		if err != nil {
			return err
		}
	}
	out := affine{w: l.recurrent.out}
	if out.w == nil {
		out = l.attnOutput
	}
	return p.attentionOutput(ctx, out, d.out)
}

func (p *pass) newDelta(ctx context.Context, l *layer) (*delta, error) {
	par, r := l.par, &l.recurrent
	d := &delta{
		par: par, kind: p.m.arch.Family.Block.Delta,
		dk: par.StateSize, dv: par.InnerSize / par.TimeStepRank, perKey: par.TimeStepRank / par.StateGroups,
	}
	for _, t := range []*tensor{r.conv, r.convQ, r.convK, r.convV} {
		v, err := p.m.vector(ctx, t)
		if err != nil {
			return nil, err
		}
		d.conv = append(d.conv, v...)
	}
	for _, v := range []struct {
		to   *[]float32
		from *tensor
	}{{&d.a, r.a}, {&d.dtBias, r.dtBias}, {&d.norm, r.norm}} {
		var err error
		if *v.to, err = p.m.vector(ctx, v.from); err != nil {
			return nil, err
		}
	}
	return d, nil
}

// valueHead returns the i-th value head of a key head.
func (d *delta) valueHead(key, i int) int {
	if d.kind == arch.DeltaTiled {
		return i*d.par.StateGroups + key
	}
	return key*d.perKey + i
}

// columns returns the columns of rates with β and α of a key head's i-th value
// head.
func (d *delta) columns(key, i int) (beta, alpha int) {
	if d.kind == arch.DeltaGrouped { // of every key head β, then α
		beta = 2*key*d.perKey + i
		return beta, beta + d.perKey
	}
	v := d.valueHead(key, i)
	return v, d.par.TimeStepRank + v
}

// deltaRates computes β of every token and value head, and α or, where every
// element of a key has its own, what it and the gates are made from.
func (p *pass) deltaRates(ctx context.Context, l *layer, d *delta) error {
	r, n := &l.recurrent, d.par.TimeStepRank
	d.rates = p.buffers.logits.matrix(p.x.Rows, 2*n)
	var products []product
	switch d.kind {
	case arch.DeltaGrouped:
		products = []product{whole(r.ba, p.in, d.rates)}
	case arch.DeltaTiled:
		products = []product{whole(r.beta, p.in, d.rates.Columns(0, n)), whole(r.alpha, p.in, d.rates.Columns(n, n))}
	case arch.DeltaChannels:
		d.rates = p.buffers.logits.matrix(p.x.Rows, n)
		d.low = p.buffers.latent.matrix(p.x.Rows, 2*d.dk)
		products = []product{whole(r.beta, p.in, d.rates), whole(r.fA, p.in, d.low.Columns(0, d.dk)), whole(r.gA, p.in, d.low.Columns(d.dk, d.dk))}
	}
	if err := p.multiply(ctx, products...); err != nil {
		return err
	}
	return p.m.chunks(ctx, p.x.Rows, func(_ *worker, first, rows int) error {
		for t := first; t < first+rows; t++ {
			row := d.rates.Row(t)
			for key := range d.par.StateGroups {
				for i := range d.perKey {
					beta, alpha := d.columns(key, i)
					row[beta] = kernel.Sigmoid(row[beta])
					if d.kind != arch.DeltaChannels {
						v := d.valueHead(key, i)
						row[alpha] = forgetting(d.a[v], row[alpha]+d.dtBias[v])
					}
				}
			}
		}
		return nil
	})
}

// forgetting is what a token leaves of the state, from 0 to 1.
func forgetting(a, x float32) float32 { return kernel.Exp(a * kernel.Softplus(x)) }

// deltaGroup is the input of key heads [first, first+n) and their value heads.
type deltaGroup struct {
	*delta
	first, n int
	q, k     kernel.Matrix // [tokens, n·dk]
	v, z     kernel.Matrix // [tokens, n·perKey·dv]: values and gates; see slot
	alpha    kernel.Matrix // [tokens, n·dk], where every element of a key has its own
}

// slot returns the place in v and z of the i-th value head of the group's key
// head j: the order of the weights' rows, so that few products make a group.
func (g *deltaGroup) slot(j, i int) int {
	if g.kind == arch.DeltaTiled {
		return i*g.n + j
	}
	return j*g.perKey + i
}

// deltaGroup projects the block's input for key heads [first, first+n).
func (p *pass) deltaGroup(ctx context.Context, l *layer, d *delta, first, n int) (*deltaGroup, error) {
	tokens, values, keys := p.x.Rows, n*d.perKey*d.dv, d.par.StateGroups*d.dk
	g := &deltaGroup{
		delta: d, first: first, n: n,
		q: p.buffers.q.matrix(tokens, n*d.dk), k: p.buffers.k.matrix(tokens, n*d.dk),
		v: p.buffers.v.matrix(tokens, values), z: p.buffers.z.matrix(tokens, values),
	}
	if d.kind == arch.DeltaChannels {
		g.alpha = p.buffers.alpha.matrix(tokens, n*d.dk)
		r, at, rows := &l.recurrent, first*d.dk, n*d.dk
		return g, p.multiply(ctx,
			product{w: l.q.w, first: at, rows: rows, x: p.in, dst: g.q},
			product{w: l.k.w, first: at, rows: rows, x: p.in, dst: g.k},
			product{w: l.v.w, first: at, rows: rows, x: p.in, dst: g.v},
			product{w: r.fB, first: at, rows: rows, x: d.low.Columns(0, d.dk), dst: g.alpha},
			product{w: r.gB, first: at, rows: rows, x: d.low.Columns(d.dk, d.dk), dst: g.z})
	}
	products := []product{
		{w: l.qkv.w, first: first * d.dk, rows: n * d.dk, x: p.in, dst: g.q},
		{w: l.qkv.w, first: keys + first*d.dk, rows: n * d.dk, x: p.in, dst: g.k},
	}
	runs, heads := 1, n*d.perKey // runs of value heads that follow each other
	if d.kind == arch.DeltaTiled {
		runs, heads = d.perKey, n
	}
	for i := range runs {
		from, size := d.valueHead(first, i)*d.dv, heads*d.dv
		products = append(products,
			product{w: l.qkv.w, first: 2*keys + from, rows: size, x: p.in, dst: g.v.Columns(i*size, size)},
			product{w: l.recurrent.gate, first: from, rows: size, x: p.in, dst: g.z.Columns(i*size, size)})
	}
	return g, p.multiply(ctx, products...)
}

// run computes the output of the value heads of the group's key head j for a
// sequence. It works in place on q, k and v.
func (g *deltaGroup) run(w *worker, seq span, j int) error {
	head := func(x kernel.Matrix, i, size int) kernel.Matrix {
		return x.Columns(i*size, size).Slice(seq.first, seq.n)
	}
	key := g.first + j
	q, k := head(g.q, j, g.dk), head(g.k, j, g.dk)
	g.convolve(q, key*g.dk)
	g.convolve(k, (g.par.StateGroups+key)*g.dk)
	for t := range seq.n {
		unit(q.Row(t), 1/math.Sqrt(float64(g.dk)))
		unit(k.Row(t), 1)
	}
	rates := g.rates.Slice(seq.first, seq.n)
	for i := range g.perKey {
		v, z := head(g.v, g.slot(j, i), g.dv), head(g.z, g.slot(j, i), g.dv)
		number := g.valueHead(key, i)
		g.convolve(v, 2*g.par.StateGroups*g.dk+number*g.dv)
		beta, column := g.columns(key, i)
		var alpha kernel.Matrix
		if g.kind == arch.DeltaChannels {
			alpha = head(g.alpha, j, g.dk)
			g.forget(alpha, key)
		} else {
			alpha = rates.Columns(column, 1)
		}
		out := head(g.out, number, g.dv)
		recur(w, out, q, k, v, rates.Columns(beta, 1), alpha)
		g.finish(out, z)
		if !finite(out) {
			return fmt.Errorf("the delta net of value head %d is not finite: values overflow float32", number)
		}
	}
	return nil
}

// forget turns the projections of a key head's forgetting rates into α.
func (d *delta) forget(x kernel.Matrix, key int) {
	bias := d.dtBias[key*d.dk:][:d.dk]
	for t := range x.Rows {
		row := x.Row(t)
		for i, f := range row {
			row[i] = forgetting(d.a[key], f+bias[i])
		}
	}
}

// finish norms a head's output and applies the gates.
func (d *delta) finish(out, gates kernel.Matrix) {
	for t := range out.Rows {
		row := out.Row(t)
		rmsNorm(row, row, d.norm, d.par.NormEps)
		for i, f := range gates.Row(t) {
			gate := kernel.Sigmoid(f)
			if d.kind != arch.DeltaChannels {
				gate *= f
			}
			row[i] *= gate
		}
	}
}

// convolve replaces every column of x, the channels from first on of one
// sequence, by silu of its convolution with the channel's taps, of which the
// last falls on the token itself.
func (d *delta) convolve(x kernel.Matrix, first int) {
	taps := d.par.ConvKernel
	weights := d.conv[first*taps:][:x.Cols*taps]
	for t := x.Rows - 1; t >= 0; t-- { // backwards: earlier tokens are still as they were
		row := x.Row(t)
		for c := range row {
			row[c] *= weights[c*taps+taps-1]
		}
		for back := 1; back < taps && back <= t; back++ {
			for c, f := range x.Row(t - back) {
				row[c] += float32(f * weights[c*taps+taps-1-back])
			}
		}
		for c, f := range row {
			row[c] = f * kernel.Sigmoid(f)
		}
	}
}

// unit brings x to the given length.
func unit(x []float32, length float64) {
	sum := 0.0
	for _, v := range x {
		sum += float64(v) * float64(v)
	}
	scaleBy(x, float32(length/math.Sqrt(sum+unitEps)))
}

// recur runs the delta rule over the tokens of a sequence: out [n, dv] from q
// and k [n, dk], v [n, dv], β [n, 1] and α [n, 1] or [n, dk].
func recur(w *worker, out, q, k, v, beta, alpha kernel.Matrix) {
	dk, dv := q.Cols, v.Cols
	// state is S, [dv, dk]; held is what it holds under the key, [1, dv].
	state := kernel.NewMatrix(grow(&w.tiles[0], dk*dv), dv, dk)
	held := kernel.NewMatrix(grow(&w.out, dv), 1, dv)
	clear(state.Data)
	for t := range q.Rows {
		if a := alpha.Row(t); len(a) == 1 {
			scaleBy(state.Data, a[0])
		} else {
			for i := range dv {
				multiplyBy(state.Row(i), a)
			}
		}
		key := k.Slice(t, 1)
		kernel.MatMul(held, key, state)
		b := beta.Row(t)[0]
		for i, f := range v.Row(t) {
			kernel.AddScaled(state.Row(i), key.Row(0), b*(f-held.Data[i]))
		}
		kernel.MatMul(out.Slice(t, 1), q.Slice(t, 1), state)
	}
}

func multiplyBy(x, factors []float32) {
	for i, f := range factors {
		x[i] *= f
	}
}
