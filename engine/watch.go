package engine

import (
	"cmp"
	"context"
	"math"
	"slices"

	"github.com/winnow-moe/winnow/engine/kernel"
	"github.com/winnow-moe/winnow/formats/calib"
)

// expertWatch collects what the routed experts of a block do to a batch. The
// outputs of all experts of a token are held until they are all there, which is
// what takes memory: embed · (used + 1) numbers a token, or used more where gates
// apply to inputs.
type expertWatch struct {
	layer  *layer
	used   int
	input  bool          // gates apply to inputs
	logits kernel.Matrix // [tokens, experts]
	chosen []int32       // [tokens, used]
	gate   []float32     // [tokens, used]
	leftOut
	// outputs [tokens·slots, embed] are those of the chosen experts of a token,
	// of the next one, and where gates apply to inputs those of the chosen ones
	// without.
	outputs kernel.Matrix
	slots   int
	rows    [][]int32   // of outputs, for every expert
	biases  [][]float32 // of every expert's output, if any

	norm     []float64 // of the output without gate, [tokens, used] as are the next
	weighted []float64 // of what is added
	peak     []float64 // the largest element of the output without gate
	lost     []float64 // |y−y'|² without the expert
	moved    []moved   // [tokens]
	shares   kernel.Matrix
	products []float64 // [tokens, experts]: what the Gram matrix is of
}

// watchExperts begins to watch a block's experts, if there is an observer.
func (p *pass) watchExperts(l *layer, logits kernel.Matrix, chosen []int32, gate []float32) {
	if p.m.opt.Observer == nil {
		return
	}
	w := &expertWatch{layer: l, used: l.par.ExpertsUsed, input: p.m.arch.Family.Block.WeightInput, chosen: chosen, gate: gate}
	var values []float32
	w.logits = copyOf(&values, logits)
	w.slots = w.used
	if p.m.opt.LeaveOneOut {
		w.leftOut = newLeftOut(p.x.Rows, w.used)
		w.mixer = p.m.arch.Family.Block.SparseMixer
		w.slots++
	}
	if w.input {
		w.slots += w.used
	}
	p.watch = w
}

// watched runs the routed experts, which come first, if they are watched; it
// returns the other networks.
func (p *pass) watched(ctx context.Context, nets []network) ([]network, error) {
	w := p.watch
	if w == nil {
		return nets, nil
	}
	p.watch = nil
	n := 0
	for n < len(nets) && nets[n].experts > 0 {
		n++
	}
	w.outputs = p.buffers.watched.matrix(p.x.Rows*w.slots, p.out.Cols)
	w.place()
	w.biases = make([][]float32, w.logits.Cols)
	for i := range nets[:n] {
		if w.biases[nets[i].expert] = nets[i].down.bias; w.input {
			nets[i].plain = len(nets[i].tokens) - nets[i].extra
		}
	}
	err := p.groups(ctx, nets[:n], func(ctx context.Context, nets []network, hidden []kernel.Matrix) error {
		var products []product
		for i := range nets {
			dst := w.outputs.Gather(w.rows[nets[i].expert])
			products = append(products, product{w: nets[i].down.w, first: nets[i].down.first, rows: dst.Cols, x: hidden[i], dst: dst})
		}
		return p.m.multiply(ctx, products...)
	})
	if err != nil {
		return nil, err
	}
	if err := p.addWatched(ctx, w); err != nil {
		return nil, err
	}
	return nets[n:], p.report(ctx, w)
}

// place lists the rows of outputs of every expert in the order of its hidden
// activations.
func (w *expertWatch) place() {
	w.rows = make([][]int32, w.logits.Cols)
	add := func(experts []int32, each, at int) {
		for i, e := range experts {
			if e >= 0 {
				w.rows[e] = append(w.rows[e], int32(i/each*w.slots+at+i%each))
			}
		}
	}
	add(w.chosen, w.used, 0)
	add(w.next, 1, w.used)
	if w.input {
		add(w.chosen, w.used, w.slots-w.used)
	}
}

// tokenWatch is a worker's memory for the outputs of a token.
type tokenWatch struct {
	*expertWatch
	order  []int // of the chosen experts, ascending
	h, y   []float32
	gram   []float64 // of the outputs that leave compares
	change []float64 // of every output's gate
}

// addWatched adds the outputs of the experts, as down does, and measures them.
func (p *pass) addWatched(ctx context.Context, w *expertWatch) error {
	n := p.x.Rows * w.used
	w.norm, w.weighted, w.peak = make([]float64, n), make([]float64, n), make([]float64, n)
	w.moved = make([]moved, p.x.Rows)
	var shares []float32
	w.shares = copyOf(&shares, w.logits)
	w.products = make([]float64, w.logits.Rows*w.logits.Cols)
	if w.next != nil {
		w.lost = make([]float64, n)
	}
	// The scores in HF's code of Gemma 4, whose Gram matrix this is, are log p.
	log := p.m.arch.Family.Block.RouteResidual
	return p.m.chunks(ctx, p.x.Rows, func(_ *worker, first, n int) error {
		s := &tokenWatch{
			expertWatch: w, order: make([]int, w.used), h: make([]float32, p.x.Cols), y: make([]float32, p.x.Cols),
			gram: make([]float64, (w.used+1)*(w.used+1)), change: make([]float64, w.used+1),
		}
		for t := first; t < first+n; t++ {
			copy(s.h, p.x.Row(t))
			s.add(t, p.out.Row(t))
			s.measure(t)
			w.router(t, log)
		}
		return nil
	})
}

// output returns an output of a token.
func (w *expertWatch) output(t, slot int) []float32 { return w.outputs.Row(t*w.slots + slot) }

// add adds the outputs of a token to dst and to y, expert after expert.
func (w *tokenWatch) add(t int, dst []float32) {
	chosen, gate := w.chosen[t*w.used:][:w.used], w.gate[t*w.used:][:w.used]
	for i := range w.order {
		w.order[i] = i
	}
	slices.SortFunc(w.order, func(a, b int) int { return cmp.Compare(chosen[a], chosen[b]) })
	clear(w.y)
	for _, i := range w.order {
		f, g, bias := w.output(t, i), gate[i], w.biases[chosen[i]]
		if w.input {
			g = 1
		}
		kernel.AddScaled(dst, f, g)
		if bias != nil {
			kernel.AddScaled(dst, bias, g)
			addTo(f, bias)
			if w.input {
				addTo(w.output(t, w.slots-w.used+i), bias)
			}
		}
		kernel.AddScaled(w.y, f, g)
	}
	if w.next != nil && w.next[t] >= 0 && w.biases[w.next[t]] != nil {
		addTo(w.output(t, w.used), w.biases[w.next[t]])
	}
}

// measure takes the numbers of a token.
func (w *tokenWatch) measure(t int) {
	w.moved[t] = movement(w.h, w.y)
	for i := range w.used {
		slot, f := t*w.used+i, w.output(t, i)
		size := math.Sqrt(kernel.SumSquares(f))
		w.weighted[slot] = math.Abs(float64(w.gate[slot])) * size
		if w.input {
			w.weighted[slot] = size
			f = w.output(t, w.slots-w.used+i)
			size = math.Sqrt(kernel.SumSquares(f))
		}
		w.norm[slot], w.peak[slot] = size, float64(kernel.Peak(f))
	}
	if w.next != nil {
		w.leave(t)
	}
}

// router takes what the router says of a token: the softmax of its logits, and
// the logits or its logarithm.
func (w *expertWatch) router(t int, log bool) {
	logits, shift := w.logits.Row(t), 0.0
	share(w.shares.Row(t))
	if log {
		top := float64(slices.Max(logits))
		shift = top + math.Log(kernel.SumExp(logits, top))
	}
	products := w.products[t*len(logits):]
	for i, v := range logits {
		products[i] = float64(v) - shift
	}
}

// moved is what the routed experts do to a token: the lengths of what they add,
// y, and of what they add it to, h, and how far they turn it, 1 − cos(h, h+y), at
// least 0.
type moved struct{ length, residual, turn float64 }

func movement(h, y []float32) moved {
	hh, hy, yy := kernel.SumSquares(h), kernel.Inner(h, y), kernel.SumSquares(y)
	m := moved{math.Sqrt(yy), math.Sqrt(hh), 1}
	if d := math.Sqrt(hh) * math.Sqrt(max(0, hh+2*hy+yy)); d > 0 {
		m.turn = max(0, 1-(hh+hy)/d)
	}
	return m
}

// gramRows is how many rows of a Gram matrix are summed at a time.
const gramRows = 32

// report tells the observer of the experts.
func (p *pass) report(ctx context.Context, w *expertWatch) error {
	sums := make([]*calib.ExpertSums, len(p.seqs))
	for i := range sums {
		sums[i] = calib.NewExpertSums(w.logits.Cols, w.next != nil)
	}
	// Of every sequence one task sums all but the Gram matrix, some sum that.
	each := 1 + (w.logits.Cols+gramRows-1)/gramRows
	err := p.m.parallel(ctx, len(sums)*each, func(_ context.Context, _ *worker, i int) error {
		s, part := sums[i/each], p.seqs[i/each]
		for t := part.first; t < part.first+part.n; t++ {
			if i%each == 0 {
				w.sum(s, t)
			} else {
				w.sumGram(s[calib.RouterGram], t, (i%each-1)*gramRows)
			}
		}
		return nil
	})
	if err != nil {
		return err
	}
	for _, s := range sums {
		mirror(s[calib.RouterGram], w.logits.Cols)
		if err := p.m.opt.Observer.Experts(w.layer.number, s); err != nil {
			return err
		}
	}
	return nil
}

// sum adds a token.
func (w *expertWatch) sum(s *calib.ExpertSums, t int) {
	m, chosen := w.moved[t], w.chosen[t*w.used:][:w.used]
	s[calib.Tokens][0]++
	s[calib.OutputNorm][0] += m.length
	s[calib.OutputSquares][0] += float64(m.length * m.length)
	s[calib.ResidualNorm][0] += m.residual
	for i, e := range chosen {
		slot := t*w.used + i
		norm, weighted := w.norm[slot], w.weighted[slot]
		s[calib.Selected][e]++
		s[calib.Gate][e] += float64(w.gate[slot])
		s[calib.Norm][e] += norm
		s[calib.NormSquares][e] += float64(norm * norm)
		s[calib.Weighted][e] += weighted
		s[calib.WeightedSquare][e] += float64(weighted * weighted)
		s[calib.Easy][e] += float64(m.turn * weighted)
		s[calib.MaxAbs][e] = max(s[calib.MaxAbs][e], w.peak[slot])
		s[calib.MaxWeighted][e] = max(s[calib.MaxWeighted][e], weighted)
		if w.lost != nil {
			s[calib.LeaveOut][e] += w.lost[slot]
		}
		for _, o := range chosen {
			s[calib.Together][int(e)*w.logits.Cols+int(o)]++
		}
	}
	for i, v := range w.shares.Row(t) {
		s[calib.Mass][i] += float64(v)
	}
}

// sumGram adds a token to rows of a Gram matrix, from the given one on: to what
// is not left of its diagonal.
func (w *expertWatch) sumGram(gram []float64, t, first int) {
	n := w.logits.Cols
	l := w.products[t*n:][:n]
	for i := first; i < min(first+gramRows, n); i++ {
		kernel.AddScaled64(gram[i*n+i:(i+1)*n], l[i:], l[i])
	}
}

// mirror completes a symmetric matrix of n rows, of which the part right of the
// diagonal is there.
func mirror(m []float64, n int) {
	for i := range n {
		for j := range i {
			m[i*n+j] = m[j*n+i]
		}
	}
}
