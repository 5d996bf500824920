package engine

import (
	"context"
	"slices"
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
	// Input is told Σ x² of every input column of weights that have the same
	// input, or of one of their matrices if they stack those of several experts,
	// over rows tokens. A weight is told of once per sequence, always with the
	// same others, and a stacked one once for each expert that has tokens. Of the
	// weights that decompress keys and values of latent attention, x is what
	// llama.cpp multiplies them with (src/models/deepseek2.cpp): the queries and
	// the attended latents, head after head. squares is valid during the call.
	Input(weights []string, matrix, matrices int, rows int64, squares []float64) error
	// Experts is told the statistics of a block's routed experts.
	Experts(block int, sums *calib.ExpertSums) error
}

// observed adds a weight's name to a list, once, if an observer wants to know of
// it: if it is a block's.
func (m *Model) observed(names []string, w *tensor) []string {
	if m.opt.Observer == nil || w == nil || !strings.HasPrefix(w.info.Name, "blk.") || slices.Contains(names, w.info.Name) {
		return names
	}
	return append(names, w.info.Name)
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
	var list []observation
	var names []string
	for i := range products {
		j := &products[i]
		if j.first == 0 && !j.transposed {
			names = p.m.observed(names, j.w)
		}
		if i+1 == len(products) || !sameMatrix(j.x, products[i+1].x) {
			list = append(list, observation{weights: names, matrices: 1, x: j.x, parts: p.seqs})
			names = nil
		}
	}
	return p.observe(ctx, list...)
}

// observeHead tells of the input of an output weight, if it is asked for.
func (p *pass) observeHead(ctx context.Context, w *tensor) error {
	if p.m.opt.Observer != nil && p.m.opt.ObserveOutput {
		return p.observe(ctx, observation{weights: []string{w.info.Name}, matrices: 1, x: p.x, parts: p.seqs})
	}
	return nil
}

// sameMatrix reports whether two views are the same.
func sameMatrix(a, b kernel.Matrix) bool {
	return a.Rows == b.Rows && a.Cols == b.Cols && a.Rows > 0 && &a.Data[0] == &b.Data[0]
}

// observation is the input of weights: of every sequence some rows of x, row i
// times scale[i] if there is one.
type observation struct {
	weights          []string
	matrix, matrices int
	x                kernel.Matrix
	parts            []span
	scale            []float32
}

// observedSums is how many sums of squares are held at a time, 16 MiB.
const observedSums = 2 << 20

// observe tells the observer of inputs.
func (p *pass) observe(ctx context.Context, list ...observation) error {
	for len(list) > 0 {
		n, size := 0, 0
		for n < len(list) && (n == 0 || size+list[n].size() <= observedSums) {
			size += list[n].size()
			n++
		}
		if err := p.observeTogether(ctx, list[:n], size); err != nil {
			return err
		}
		list = list[n:]
	}
	return nil
}

// size returns how many sums there are.
func (o *observation) size() int {
	if len(o.weights) == 0 {
		return 0
	}
	return len(o.parts) * o.x.Cols
}

func (p *pass) observeTogether(ctx context.Context, list []observation, size int) error {
	sums := grow(&p.squares, size)
	clear(sums)
	var squares []squared
	each := func(visit func(o *observation, s span, sums []float64) error) error {
		rest := sums
		for i := range list {
			for _, s := range list[i].parts {
				if s.n == 0 || len(list[i].weights) == 0 {
					continue
				}
				if err := visit(&list[i], s, rest[:list[i].x.Cols]); err != nil {
					return err
				}
				rest = rest[list[i].x.Cols:]
			}
		}
		return nil
	}
	each(func(o *observation, s span, sums []float64) error {
		in := squared{x: o.x.Slice(s.first, s.n), sums: sums}
		if o.scale != nil {
			in.scale = o.scale[s.first:]
		}
		squares = append(squares, in)
		return nil
	})
	if err := p.addSquares(ctx, squares); err != nil {
		return err
	}
	return each(func(o *observation, s span, sums []float64) error {
		return p.m.opt.Observer.Input(o.weights, o.matrix, o.matrices, int64(s.n), sums)
	})
}

// bySequence cuts ascending tokens into those of every sequence.
func (p *pass) bySequence(tokens []int32) []span {
	parts := make([]span, len(p.seqs))
	at := 0
	for i, s := range p.seqs {
		n := sort.Search(len(tokens)-at, func(k int) bool { return int(tokens[at+k]) >= s.first+s.n })
		parts[i] = span{at, n}
		at += n
	}
	return parts
}

// squared is rows, row i times scale[i] if there is one, and the sums that the
// squares of their columns are added to.
type squared struct {
	x     kernel.Matrix
	scale []float32
	sums  []float64
}

// squaredColumns is how many columns are summed at a time, so that their sums
// stay in the first-level cache.
const squaredColumns = 512

// addSquares adds squares up, row after row.
func (p *pass) addSquares(ctx context.Context, list []squared) error {
	type task struct{ of, first int }
	var tasks []task
	for i := range list {
		for first := 0; first < len(list[i].sums); first += squaredColumns {
			tasks = append(tasks, task{i, first})
		}
	}
	return p.m.parallel(ctx, len(tasks), func(_ context.Context, w *worker, i int) error {
		s, first := &list[tasks[i].of], tasks[i].first
		sums := s.sums[first:min(first+squaredColumns, len(s.sums))]
		for row := range s.x.Rows {
			values := s.x.Row(row)[first:][:len(sums)]
			if s.scale != nil {
				scaled := grow(&w.out, len(values))
				copy(scaled, values)
				scaleBy(scaled, s.scale[row])
				values = scaled
			}
			kernel.AddSquares(sums, values)
		}
		return nil
	})
}

// observeNetworks tells of the inputs of networks' weights, if there is an
// observer.
func (p *pass) observeNetworks(ctx context.Context, nets []network, hidden []kernel.Matrix) error {
	if p.m.opt.Observer == nil {
		return nil
	}
	var list []observation
	for i := range nets {
		n := &nets[i]
		o := observation{matrix: n.expert, matrices: max(1, n.experts), x: p.in, parts: p.seqs}
		rows := hidden[i].Rows
		if n.tokens != nil {
			rows = len(n.tokens) - n.extra
			o.x, o.parts = p.in.Gather(n.tokens[:rows]), p.bySequence(n.tokens[:rows])
		}
		in := o
		in.weights = p.m.observed(p.m.observed(nil, n.gate.w), n.up.w)
		if n.weightInput {
			in.scale = n.scale
		}
		o.weights, o.x = p.m.observed(nil, n.down.w), hidden[i].Slice(0, rows)
		list = append(list, in, o)
	}
	return p.observe(ctx, list...)
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
		var list []squared
		for s, part := range p.seqs {
			list = append(list,
				squared{one.q.Columns(0, nope).Slice(part.first, part.n), nil, w.keys[s][(h+i)*nope:][:nope]},
				squared{attended.Slice(part.first, part.n), nil, w.values[s][(h+i)*r:][:r]})
		}
		if err := p.addSquares(ctx, list); err != nil {
			return err
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
		if err := w.p.m.opt.Observer.Input([]string{l.kB.info.Name}, 0, 1, int64(s.n), w.keys[i]); err != nil {
			return err
		}
		if err := w.p.m.opt.Observer.Input([]string{l.vB.info.Name}, 0, 1, int64(s.n), w.values[i]); err != nil {
			return err
		}
	}
	return nil
}

// Sampler is told what some tokens bring to the routed experts of blocks: the
// input of the experts [tokens, embed] and the router's logits [tokens, experts].
// It is told of every sequence in its turn, block by block. *calib.Domain is one.
type Sampler interface {
	Sample(block, tokens int, inputs, logits []float32) error
}

// sample tells the sampler of a block, if there is one: of tokens in the middle of
// as many equal parts of every sequence. The logits are those of all experts.
func (p *pass) sample(l *layer, logits kernel.Matrix) error {
	if p.m.opt.Sampler == nil {
		return nil
	}
	for _, s := range p.seqs {
		n := min(s.n, p.m.opt.SampleTokens)
		var inputs, outputs []float32
		for i := range n {
			t := s.first + (2*i+1)*s.n/(2*n)
			inputs, outputs = append(inputs, p.in.Row(t)...), append(outputs, logits.Row(t)...)
		}
		if err := p.m.opt.Sampler.Sample(l.number, n, inputs, outputs); err != nil {
			return err
		}
	}
	return nil
}
