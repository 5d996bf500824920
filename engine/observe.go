package engine

import (
	"context"
	"math"
	"sort"
	"strings"

	"github.com/winnow-moe/winnow/engine/kernel"
	"github.com/winnow-moe/winnow/formats/calib"
)

// Observer is told what goes through a model. It changes no result. All sums are
// over one sequence, token by token in float64, so that they depend on nothing
// but the sequence; calls come from the goroutine that called Forward, in the
// same order whatever the number of threads. An error ends the pass.
type Observer interface {
	// Input is told Σ x² of every input column of a block's weight, or of one of
	// its matrices if it stacks those of several experts, over rows tokens. A
	// weight is told of once per sequence, and a stacked one once for each expert
	// that has tokens. Of the weights that decompress keys and values of latent
	// attention, x is what llama.cpp multiplies them with (src/models/deepseek2.cpp):
	// the queries and the attended latents, head after head.
	Input(weight string, matrix, matrices int, rows int64, squares []float64) error
	// Experts is told the statistics of a block's routed experts.
	Experts(block int, sums *calib.ExpertSums) error
}

// observed reports whether an observer wants to know of a weight.
func (m *Model) observed(w *tensor) bool {
	return m.opt.Observer != nil && w != nil && strings.HasPrefix(w.info.Name, "blk.")
}

// multiply computes products of the pass, observed.
func (p *pass) multiply(ctx context.Context, products ...product) error {
	if err := p.observeProducts(ctx, products...); err != nil {
		return err
	}
	return p.m.multiply(ctx, products...)
}

// observeProducts tells of the inputs of products, if there is an observer. Of a
// weight that is used in parts the first stands for all: they have the same
// input. Products with latents are left to watchLatents.
func (p *pass) observeProducts(ctx context.Context, products ...product) error {
	var weights []*tensor
	for i := range products {
		j := &products[i]
		if j.first == 0 && !j.transposed && p.m.observed(j.w) {
			weights = append(weights, j.w)
		}
		last := i+1 == len(products) || !sameMatrix(j.x, products[i+1].x)
		if len(weights) == 0 || !last {
			continue
		}
		if err := p.observe(ctx, observation{weights: weights, matrices: 1, x: j.x}); err != nil {
			return err
		}
		weights = nil
	}
	return nil
}

// sameMatrix reports whether two views are the same.
func sameMatrix(a, b kernel.Matrix) bool {
	return a.Rows == b.Rows && a.Cols == b.Cols && a.Rows > 0 && &a.Data[0] == &b.Data[0]
}

// observation is the input of weights: row i of x, times scale[i] if there is
// one, is that of token tokens[i], or of token i.
type observation struct {
	weights          []*tensor
	matrix, matrices int
	x                kernel.Matrix
	tokens           []int32
	scale            []float32
}

// observe tells the observer.
func (p *pass) observe(ctx context.Context, o observation) error {
	parts := p.bySequence(o.tokens)
	sums, err := p.squares(ctx, parts, o.x, o.scale)
	if err != nil {
		return err
	}
	for i, s := range parts {
		for _, w := range o.weights {
			if s.n == 0 {
				continue
			}
			if err := p.m.opt.Observer.Input(w.info.Name, o.matrix, o.matrices, int64(s.n), sums[i]); err != nil {
				return err
			}
		}
	}
	return nil
}

// bySequence cuts ascending tokens, or all, into those of every sequence.
func (p *pass) bySequence(tokens []int32) []span {
	if tokens == nil {
		return p.seqs
	}
	parts := make([]span, len(p.seqs))
	at := 0
	for i, s := range p.seqs {
		n := sort.Search(len(tokens)-at, func(k int) bool { return int(tokens[at+k]) >= s.first+s.n })
		parts[i] = span{at, n}
		at += n
	}
	return parts
}

// squares sums the squares of every column over ranges of rows.
func (p *pass) squares(ctx context.Context, parts []span, x kernel.Matrix, scale []float32) ([][]float64, error) {
	sums := make([][]float64, len(parts))
	return sums, p.m.parallel(ctx, len(parts), func(_ context.Context, w *worker, i int) error {
		sums[i] = make([]float64, x.Cols)
		for row := parts[i].first; row < parts[i].first+parts[i].n; row++ {
			values := x.Row(row)
			if scale != nil {
				scaled := grow(&w.out, len(values))
				copy(scaled, values)
				scaleBy(scaled, scale[row])
				values = scaled
			}
			kernel.AddSquares(sums[i], values)
		}
		return nil
	})
}

// latentWatch collects the inputs of the weights that decompress latents.
type latentWatch struct {
	p      *pass
	latent kernel.Matrix // [r, tokens]: transposed, to be attended to
	keys   [][]float64   // of every sequence [heads·nope]
	values [][]float64   // [heads·r]
}

// watchLatents returns nil when there is no observer.
func (p *pass) watchLatents(heads, nope int, latent kernel.Matrix) *latentWatch {
	if p.m.opt.Observer == nil {
		return nil
	}
	w := &latentWatch{p: p, latent: kernel.NewMatrix(make([]float32, len(p.ids)*latent.Cols), latent.Cols, len(p.ids))}
	transpose(w.latent, latent)
	for range p.seqs {
		w.keys = append(w.keys, make([]float64, heads*nope))
		w.values = append(w.values, make([]float64, heads*latent.Cols))
	}
	return w
}

// heads adds a group of heads from h on. k_b is multiplied with the part of the
// query that is not rotated, v_b with what the head attends to among latents
// instead of values.
func (w *latentWatch) heads(ctx context.Context, a *heads, h int) error {
	if w == nil {
		return nil
	}
	p, r := w.p, w.latent.Rows
	nope := len(w.keys[0]) / (len(w.values[0]) / r)
	attended := p.buffers.watched.matrix(len(p.ids), r)
	for i := range a.n {
		one := &heads{
			q: a.q.Columns(i*a.wide, a.dk), wide: a.dk, dk: a.dk, k: a.k.Columns(i*a.dk, a.dk), vt: w.latent,
			out: attended, n: 1, per: 1, mask: a.mask, chosen: a.chosen,
		}
		if err := p.attend(ctx, one); err != nil {
			return err
		}
		for _, in := range []struct {
			to [][]float64
			x  kernel.Matrix
		}{{w.keys, one.q.Columns(0, nope)}, {w.values, attended}} {
			sums, err := p.squares(ctx, p.seqs, in.x, nil)
			if err != nil {
				return err
			}
			for s := range sums {
				copy(in.to[s][(h+i)*in.x.Cols:], sums[s])
			}
		}
	}
	return nil
}

// report tells the observer, with one count for all heads as llama-imatrix has it.
func (w *latentWatch) report(l *layer) error {
	if w == nil {
		return nil
	}
	for i, s := range w.p.seqs {
		if err := w.p.m.opt.Observer.Input(l.kB.info.Name, 0, 1, int64(s.n), w.keys[i]); err != nil {
			return err
		}
		if err := w.p.m.opt.Observer.Input(l.vB.info.Name, 0, 1, int64(s.n), w.values[i]); err != nil {
			return err
		}
	}
	return nil
}

// observedDown is the second half of group with an observer: the same sums in
// the same order, network by network, so that each output is whole for a moment.
func (p *pass) observedDown(ctx context.Context, nets []network, hidden []kernel.Matrix) error {
	for i := range nets {
		n := &nets[i]
		if err := p.observeNetwork(ctx, n, hidden[i]); err != nil {
			return err
		}
		out := p.buffers.watched.matrix(hidden[i].Rows, p.out.Cols)
		if err := p.m.multiply(ctx, product{w: n.down.w, first: n.down.first, rows: out.Cols, x: hidden[i], dst: out}); err != nil {
			return err
		}
		scale := n.scale
		if n.weightInput {
			scale = nil
		}
		dst := n.of(p.out)
		err := p.m.chunks(ctx, out.Rows, func(_ *worker, first, rows int) error {
			for j := first; j < first+rows; j++ {
				if scale == nil {
					addTo(dst.Row(j), out.Row(j))
				} else {
					kernel.AddScaled(dst.Row(j), out.Row(j), scale[j])
				}
			}
			return nil
		})
		if err != nil {
			return err
		}
		if n.down.bias != nil {
			addBias(dst, n.down.bias, scale)
			addBias(out, n.down.bias, nil)
		}
		if n.experts > 0 {
			if err := p.watchOutput(ctx, n, out); err != nil {
				return err
			}
		}
	}
	return nil
}

// observeNetwork tells of the inputs of a network's weights.
func (p *pass) observeNetwork(ctx context.Context, n *network, hidden kernel.Matrix) error {
	o := observation{matrix: n.expert, matrices: max(1, n.experts), x: n.of(p.in), tokens: n.tokens}
	for _, w := range []*tensor{n.gate.w, n.up.w} {
		if p.m.observed(w) && (len(o.weights) == 0 || o.weights[0] != w) {
			o.weights = append(o.weights, w)
		}
	}
	if n.weightInput {
		o.scale = n.scale
	}
	if err := p.observe(ctx, o); err != nil {
		return err
	}
	o.x, o.scale, o.weights = hidden, nil, []*tensor{n.down.w}
	return p.observe(ctx, o)
}

// expertWatch collects what the routed experts of a block do to a batch.
type expertWatch struct {
	block     int
	logits    kernel.Matrix // [tokens, experts]
	chosen    []int32       // [tokens, used]
	gate      []float32     // [tokens, used], as are the next
	norm      []float64     // of the output without gate
	weighted  []float64     // of what is added
	peak      []float64     // the largest element of the output without gate
	residual  kernel.Matrix // [tokens, embed], before the block adds to it
	output    kernel.Matrix // [tokens, embed]: what the routed experts add
	logShares bool          // the router's scores are those of HF's code, which has log p
}

// watchExperts begins to watch a block's experts, if there is an observer.
func (p *pass) watchExperts(l *layer, logits kernel.Matrix) {
	if p.m.opt.Observer == nil {
		return
	}
	clone := func(m kernel.Matrix) kernel.Matrix {
		return kernel.NewMatrix(append([]float32(nil), m.Data[:m.Rows*m.Cols]...), m.Rows, m.Cols)
	}
	n := p.x.Rows * l.par.ExpertsUsed
	p.watch = &expertWatch{
		block: l.number, logits: clone(logits), residual: clone(p.x),
		output: kernel.NewMatrix(make([]float32, p.x.Rows*p.x.Cols), p.x.Rows, p.x.Cols),
		norm:   make([]float64, n), weighted: make([]float64, n), peak: make([]float64, n),
		logShares: p.m.arch.Family.Block.RouteResidual,
	}
}

// watchOutput notes an expert's outputs for its tokens: without gate, or with it
// where gates apply to inputs.
func (p *pass) watchOutput(ctx context.Context, n *network, out kernel.Matrix) error {
	plain := out
	if n.weightInput {
		var err error
		if plain, err = p.unweighted(ctx, n); err != nil {
			return err
		}
	}
	w, used := p.watch, len(p.watch.chosen)/p.x.Rows
	return p.m.chunks(ctx, out.Rows, func(_ *worker, first, rows int) error {
		for i := first; i < first+rows; i++ {
			t := int(n.tokens[i])
			slot := t * used
			for int(w.chosen[slot]) != n.expert {
				slot++
			}
			w.norm[slot], w.peak[slot] = normPeak(plain.Row(i))
			if n.weightInput {
				w.weighted[slot], _ = normPeak(out.Row(i))
				addTo(w.output.Row(t), out.Row(i))
			} else {
				w.weighted[slot] = math.Abs(float64(n.scale[i])) * w.norm[slot]
				kernel.AddScaled(w.output.Row(t), out.Row(i), n.scale[i])
			}
		}
		return nil
	})
}

// unweighted runs an expert whose gates apply to its input without them.
func (p *pass) unweighted(ctx context.Context, n *network) (kernel.Matrix, error) {
	free := *n
	free.weightInput = false
	rows := len(n.tokens)
	hidden := kernel.NewMatrix(make([]float32, rows*n.width), rows, n.width)
	tiles := p.m.tiles(n.up.w, n.width, 1)
	left := p.m.operands()
	defer left.release()
	up, gate := left.of(p.in, n.up.w), left.of(p.in, n.gate.w)
	if err := left.make(ctx); err != nil {
		return hidden, err
	}
	err := p.m.parallel(ctx, len(tiles), func(ctx context.Context, w *worker, i int) error {
		return p.m.gateUp(ctx, w, &free, tiles[i], up, gate, hidden)
	})
	if err != nil {
		return hidden, err
	}
	out := kernel.NewMatrix(make([]float32, rows*p.out.Cols), rows, p.out.Cols)
	if err := p.m.multiply(ctx, product{w: n.down.w, first: n.down.first, rows: out.Cols, x: hidden, dst: out}); err != nil {
		return out, err
	}
	if n.down.bias != nil {
		addBias(out, n.down.bias, nil)
	}
	return out, nil
}

// normPeak returns the length of x and its largest element by magnitude.
func normPeak(x []float32) (norm, peak float64) {
	return math.Sqrt(kernel.SumSquares(x)), float64(kernel.Peak(x))
}

// reportExperts tells the observer of the experts that are watched, if any.
func (p *pass) reportExperts(ctx context.Context) error {
	w := p.watch
	if w == nil {
		return nil
	}
	p.watch = nil
	sums := make([]*calib.ExpertSums, len(p.seqs))
	err := p.m.parallel(ctx, len(p.seqs), func(_ context.Context, _ *worker, i int) error {
		sums[i] = calib.NewExpertSums(w.logits.Cols)
		for t := p.seqs[i].first; t < p.seqs[i].first+p.seqs[i].n; t++ {
			w.add(sums[i], t)
		}
		w.addRouter(sums[i], p.seqs[i])
		return nil
	})
	if err != nil {
		return err
	}
	for _, s := range sums {
		if err := p.m.opt.Observer.Experts(w.block, s); err != nil {
			return err
		}
	}
	return nil
}

// add adds a token.
func (w *expertWatch) add(s *calib.ExpertSums, t int) {
	used := len(w.chosen) / w.logits.Rows
	chosen := w.chosen[t*used:][:used]
	length, residual, turn := movement(w.residual.Row(t), w.output.Row(t))
	s[calib.Tokens][0]++
	s[calib.OutputNorm][0] += length
	s[calib.OutputSquares][0] += float64(length * length)
	s[calib.ResidualNorm][0] += residual
	for i, e := range chosen {
		slot := t*used + i
		norm, weighted := w.norm[slot], w.weighted[slot]
		s[calib.Selected][e]++
		s[calib.Gate][e] += float64(w.gate[slot])
		s[calib.Norm][e] += norm
		s[calib.NormSquares][e] += float64(norm * norm)
		s[calib.Weighted][e] += weighted
		s[calib.WeightedSquare][e] += float64(weighted * weighted)
		s[calib.Easy][e] += float64(turn * weighted)
		s[calib.MaxAbs][e] = max(s[calib.MaxAbs][e], w.peak[slot])
		s[calib.MaxWeighted][e] = max(s[calib.MaxWeighted][e], weighted)
		for _, o := range chosen {
			s[calib.Together][int(e)*w.logits.Cols+int(o)]++
		}
	}
}

// together is the number of tokens whose products of router scores are added
// to a row of their sums while that is in the first-level cache.
const together = 32

// addRouter adds what the router says about all experts to tokens of a sequence.
func (w *expertWatch) addRouter(s *calib.ExpertSums, seq span) {
	n := w.logits.Cols
	scores, gram := make([]float64, together*n), s[calib.RouterGram]
	for first := seq.first; first < seq.first+seq.n; first += together {
		tokens := min(together, seq.first+seq.n-first)
		for t := range tokens {
			w.routerScores(scores[t*n:][:n], s[calib.Mass], w.logits.Row(first+t))
		}
		// Products are the same both ways: those below the diagonal are copied.
		for i := range n {
			for t := range tokens {
				l := scores[t*n:][:n]
				kernel.AddScaled64(gram[i*n+i:(i+1)*n], l[i:], l[i])
			}
		}
	}
	for i := range n {
		for j := range i {
			gram[i*n+j] = gram[j*n+i]
		}
	}
}

// routerScores writes the router's scores of a token to l, and adds the experts'
// shares in a softmax over all to mass.
func (w *expertWatch) routerScores(l, mass []float64, logits []float32) {
	sum, top := 0.0, math.Inf(-1)
	for _, v := range logits {
		top = max(top, float64(v))
	}
	for i, v := range logits {
		l[i] = math.Exp(float64(v) - top)
		sum += l[i]
	}
	lse := top + math.Log(sum)
	for i, v := range logits {
		mass[i] += l[i] / sum
		l[i] = float64(v)
		if w.logShares {
			l[i] -= lse
		}
	}
}

// movement returns the lengths of y and h and how far y turns h: 1 − cos(h, h+y),
// at least 0.
func movement(h, y []float32) (length, residual, turn float64) {
	var hh, yy, ss, hs float64
	for i, v := range h {
		a, b := float64(v), float64(y[i])
		c := a + b
		hh += float64(a * a)
		yy += float64(b * b)
		ss += float64(c * c)
		hs += float64(a * c)
	}
	turn = 1
	if d := math.Sqrt(hh) * math.Sqrt(ss); d > 0 {
		turn = max(0, 1-hs/d)
	}
	return math.Sqrt(yy), math.Sqrt(hh), turn
}
