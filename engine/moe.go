package engine

import (
	"context"
	"math"
	"slices"

	"github.com/winnow-moe/winnow/engine/kernel"
	"github.com/winnow-moe/winnow/formats/arch"
)

// network is a feed-forward network to be run on some tokens: a dense one, a
// routed expert, or the shared experts.
type network struct {
	gate, up, down rows // gate.w is nil where the activation has none
	width          int  // of the hidden layer
	// tokens it runs on and their factors, on its input if weightInput is set
	// and else on its output; nil: all, and one
	tokens      []int32
	scale       []float32
	weightInput bool
	// which of how many experts it is; none: a network of its own
	expert, experts int
	// extra of the tokens, the last, did not choose the expert and are run for an
	// observer only; plain tokens, the first, are for it also run without their
	// factors, in hidden rows behind those of the tokens
	extra, plain int
}

// rows is a range of a weight's rows, from first on, with their biases, if any.
type rows struct {
	w     *tensor
	first int
	bias  []float32
}

// feedForward adds the block's feed-forward network, or its chosen experts
// weighted by the router and the shared ones, to out.
func (p *pass) feedForward(ctx context.Context, l *layer) error {
	if l.router.w == nil {
		dense, err := p.dense(ctx, l)
		if err != nil {
			return err
		}
		return p.networks(ctx, []network{dense})
	}
	if p.m.arch.Family.Block.BesideDense {
		return p.besideDense(ctx, l)
	}
	nets, err := p.experts(ctx, l)
	if err != nil {
		return err
	}
	return p.networks(ctx, nets)
}

// dense returns the block's dense network. Where gate and up are one tensor,
// the gate comes first.
func (p *pass) dense(ctx context.Context, l *layer) (n network, err error) {
	n = network{gate: rows{w: l.gate.w}, up: rows{w: l.up.w}, down: rows{w: l.down.w}, width: l.par.FF}
	if l.gate.w == nil && l.up.w.rows == 2*n.width {
		n.gate, n.up.first = rows{w: l.up.w}, n.width
	}
	for _, b := range []struct {
		to   *[]float32
		from *tensor
	}{{&n.gate.bias, l.gate.b}, {&n.up.bias, l.up.b}, {&n.down.bias, l.down.b}} {
		if *b.to, err = p.m.vector(ctx, b.from); err != nil {
			return n, err
		}
	}
	return n, nil
}

// experts returns the routed experts that have tokens and the shared ones.
func (p *pass) experts(ctx context.Context, l *layer) ([]network, error) {
	nets, err := p.route(ctx, l)
	if err != nil || l.sharedUp == nil {
		return nets, err
	}
	shared := network{gate: rows{w: l.sharedGate}, up: rows{w: l.sharedUp}, down: rows{w: l.sharedDown}, width: l.sharedUp.rows}
	if l.routeShared != nil {
		// One logit per token, whose sigmoid is the factor on the output.
		logits := kernel.NewMatrix(make([]float32, p.x.Rows), p.x.Rows, 1)
		if err := p.multiply(ctx, product{w: l.routeShared, rows: 1, x: p.in, dst: logits}); err != nil {
			return nil, err
		}
		shared.scale = logits.Data
		for i, v := range shared.scale {
			shared.scale[i] = kernel.Sigmoid(v)
		}
	}
	return append(nets, shared), nil
}

// besideDense adds the dense network and the experts, each normed on its own
// (Gemma 4; HF modeling_gemma4.py, Gemma4TextDecoderLayer).
func (p *pass) besideDense(ctx context.Context, l *layer) error {
	sum := p.out
	defer func() { p.out = sum }()
	run := func(nets []network, post *tensor) error {
		p.out = p.buffers.beside.matrix(p.x.Rows, p.x.Cols)
		clear(p.out.Data)
		if err := p.networks(ctx, nets); err != nil {
			return err
		}
		return p.addNormed(ctx, sum, p.out, affine{w: post}, 1)
	}
	dense, err := p.dense(ctx, l)
	if err != nil {
		return err
	}
	if err := run([]network{dense}, l.postFFN1); err != nil {
		return err
	}
	if err := p.input(ctx, affine{w: l.preFFN2}); err != nil {
		return err
	}
	nets, err := p.experts(ctx, l)
	if err != nil {
		return err
	}
	return run(nets, l.postFFN2)
}

// networks adds the outputs of nets to out, in their order for every element.
func (p *pass) networks(ctx context.Context, nets []network) error {
	nets, err := p.watched(ctx, nets)
	if err != nil {
		return err
	}
	return p.groups(ctx, nets, p.down)
}

// groups runs the first half of networks, and with what it gives the second, for
// as many at a time as have hidden activations that fit the budget: at least one.
func (p *pass) groups(ctx context.Context, nets []network, second func(ctx context.Context, nets []network, hidden []kernel.Matrix) error) error {
	for len(nets) > 0 {
		n, floats := 0, 0
		for n < len(nets) && (n == 0 || floats+nets[n].floats(p.in.Rows) <= p.m.budget) {
			floats += nets[n].floats(p.in.Rows)
			n++
		}
		hidden, err := p.hidden(ctx, nets[:n], floats)
		if err != nil {
			return err
		}
		if err := second(ctx, nets[:n], hidden); err != nil {
			return err
		}
		nets = nets[n:]
	}
	return nil
}

// floats returns the size of the hidden activations in a batch of all tokens.
func (n *network) floats(all int) int {
	if n.tokens != nil {
		all = len(n.tokens)
	}
	return (all + n.plain) * n.width
}

// of views the rows of a batch that the network runs on.
func (n *network) of(x kernel.Matrix) kernel.Matrix {
	if n.tokens == nil {
		return x
	}
	return x.Gather(n.tokens)
}

// hidden returns act(gate(in), up(in)) of networks, each [tokens, width].
func (p *pass) hidden(ctx context.Context, nets []network, floats int) ([]kernel.Matrix, error) {
	buf := grow(&p.buffers.hidden.data, floats)
	hidden := make([]kernel.Matrix, len(nets))
	left := p.m.operands()
	defer left.release()
	ups, gates := make([]*making, len(nets)), make([]*making, len(nets))
	type task struct {
		net int
		tile
	}
	var tasks []task
	for i := range nets {
		size := nets[i].floats(p.in.Rows)
		hidden[i] = kernel.NewMatrix(buf, size/nets[i].width, nets[i].width)
		buf = buf[size:]
		ups[i], gates[i] = left.of(p.in, nets[i].up.w), left.of(p.in, nets[i].gate.w)
		for _, t := range p.m.tiles(nets[i].up.w, nets[i].width, len(nets)) {
			tasks = append(tasks, task{i, t})
		}
	}
	if err := left.make(ctx); err != nil {
		return nil, err
	}
	err := p.m.parallel(ctx, len(tasks), func(ctx context.Context, w *worker, i int) error {
		net := tasks[i].net
		return p.m.gateUp(ctx, w, &nets[net], tasks[i].tile, ups[net], gates[net], hidden[net])
	})
	if err != nil {
		return nil, err
	}
	return hidden, p.observeNetworks(ctx, nets, hidden)
}

// down adds the outputs of networks: out += scale · down(hidden).
func (p *pass) down(ctx context.Context, nets []network, hidden []kernel.Matrix) error {
	left, sides := p.m.operands(), make([]*making, len(nets))
	defer left.release()
	for i := range nets {
		sides[i] = left.of(hidden[i], nets[i].down.w)
	}
	if err := left.make(ctx); err != nil {
		return err
	}
	out := p.m.tiles(nets[0].down.w, p.out.Cols, 1)
	return p.m.parallel(ctx, len(out), func(ctx context.Context, w *worker, i int) error {
		for j := range nets {
			n := &nets[j]
			weights, err := p.m.weights(ctx, w, 0, n.down.w, n.down.first+out[i].first, out[i].n, hidden[j].Rows)
			if err != nil {
				return err
			}
			scale := n.scale
			if n.weightInput {
				scale = nil
			}
			dst := n.of(p.out).Columns(out[i].first, out[i].n)
			if err := w.addProduct(n.down.w, dst, sides[j].operand, weights, scale); err != nil {
				return err
			}
			if n.down.bias != nil {
				addBias(dst, n.down.bias[out[i].first:], scale)
			}
		}
		return nil
	})
}

// addBias adds bias, times scale[i] when there is one, to every row of dst.
func addBias(dst kernel.Matrix, bias, scale []float32) {
	for i := range dst.Rows {
		row := dst.Row(i)
		if scale == nil {
			addTo(row, bias[:len(row)])
		} else {
			kernel.AddScaled(row, bias[:len(row)], scale[i])
		}
	}
}

// gateUp computes columns t of hidden = act(x·gateᵀ, x·upᵀ).
func (m *Model) gateUp(ctx context.Context, w *worker, n *network, t tile, forUp, forGate *making, hidden kernel.Matrix) error {
	up, err := m.weights(ctx, w, 1, n.up.w, n.up.first+t.first, t.n, hidden.Rows)
	if err != nil {
		return err
	}
	var gate *kernel.Weights
	if n.gate.w != nil {
		if gate, err = m.weights(ctx, w, 0, n.gate.w, n.gate.first+t.first, t.n, hidden.Rows); err != nil {
			return err
		}
	}
	hidden = hidden.Columns(t.first, t.n)
	x := forUp.of(n.tokens)
	total := hidden.Rows - n.plain
	for i := 0; i < total; i += chunk {
		rows := min(chunk, total-i)
		h, out := hidden.Slice(i, rows), kernel.NewMatrix(grow(&w.out, rows*t.n), rows, t.n)
		outputs := []kernel.Output{{Dst: out, Weights: up}}
		switch {
		case gate == nil:
		case forGate == forUp:
			outputs = append(outputs, kernel.Output{Dst: h, Weights: gate})
		default:
			forGate.operand.of(n.tokens).slice(i, rows).multiply(kernel.Output{Dst: h, Weights: gate})
		}
		x.slice(i, rows).multiply(outputs...)
		if i < n.plain {
			first := min(rows, n.plain-i)
			plain := copyOf(&w.plain, out.Slice(0, first))
			h, to := h.Slice(0, first), hidden.Slice(total+i, first)
			for j := range first {
				copy(to.Row(j), h.Row(j))
			}
			if err := m.combine(n, to, plain, t.first, nil); err != nil {
				return err
			}
		}
		var scale []float32
		if n.weightInput {
			scale = n.scale[i:]
		}
		if err := m.combine(n, h, out, t.first, scale); err != nil {
			return err
		}
	}
	return nil
}

// copyOf copies m to a buffer.
func copyOf(buf *[]float32, m kernel.Matrix) kernel.Matrix {
	c := kernel.NewMatrix(grow(buf, m.Rows*m.Cols), m.Rows, m.Cols)
	for i := range m.Rows {
		copy(c.Row(i), m.Row(i))
	}
	return c
}

// combine completes products with gate and up, columns from first on, and
// replaces gate by hidden activations.
func (m *Model) combine(n *network, gate, up kernel.Matrix, first int, scale []float32) error {
	if err := n.up.complete(up, first, scale); err != nil {
		return err
	}
	if n.gate.w != nil {
		if err := n.gate.complete(gate, first, scale); err != nil {
			return err
		}
	}
	for j := range up.Rows {
		activate(m.arch.Family.Block.Act, gate.Row(j), up.Row(j))
	}
	return nil
}

// complete checks a product, multiplies row i by scale[i], which is the same
// as scaling the input, and adds the bias of columns from first on.
func (r *rows) complete(x kernel.Matrix, first int, scale []float32) error {
	if err := checkFinite(r.w, x); err != nil {
		return err
	}
	for i := range x.Rows {
		row := x.Row(i)
		if scale != nil {
			scaleBy(row, scale[i])
		}
		if r.bias != nil {
			addTo(row, r.bias[first:][:len(row)])
		}
	}
	return nil
}

// Constants of the clamped SwiGLU (HF modeling_gpt_oss.py).
const (
	clampedLimit = 7
	clampedAlpha = 1.702
)

// activate replaces gate by the activation of gate and up; without gates by that of up.
func activate(kind arch.Act, gate, up []float32) {
	switch kind {
	case arch.SwiGLU:
		kernel.Gate(gate, up, 1)
	case arch.GEGLU:
		kernel.GELUs(gate, up)
	case arch.GELU:
		copy(gate, up)
		kernel.GELUs(gate, nil)
	case arch.SwiGLUClamped:
		for k, g := range gate {
			gate[k] = min(g, clampedLimit)
			up[k] = max(-clampedLimit, min(clampedLimit, up[k])) + 1
		}
		kernel.Gate(gate, up, clampedAlpha)
	}
}

// route chooses experts for every token and returns those that have tokens,
// in ascending order, with their tokens and weights.
func (p *pass) route(ctx context.Context, l *layer) ([]network, error) {
	par := l.par
	bias, err := p.m.vector(ctx, l.routerChoice)
	if err != nil {
		return nil, err
	}
	in, err := p.routerInput(ctx, l)
	if err != nil {
		return nil, err
	}
	// logits [tokens, experts]
	logits := p.buffers.logits.matrix(p.x.Rows, par.Experts)
	if err := p.multiply(ctx, whole(l.router.w, in, logits)); err != nil {
		return nil, err
	}
	if err := p.addBias(ctx, logits, l.router.b, 0); err != nil {
		return nil, err
	}
	used := par.ExpertsUsed
	chosen := make([]int32, p.x.Rows*used)
	weight := make([]float32, p.x.Rows*used)
	p.watchExperts(l, logits, chosen, weight)
	if err := p.sample(l, logits); err != nil {
		return nil, err
	}
	err = p.m.chunks(ctx, p.x.Rows, func(_ *worker, first, n int) error {
		r := newRouter(&p.m.arch.Family.Block, par, bias, l.barred)
		for i := first; i < first+n; i++ {
			r.route(logits.Row(i), chosen[i*used:][:used], weight[i*used:][:used])
			p.watch.leaveOut(r, logits.Row(i), i)
		}
		return nil
	})
	if err != nil {
		return nil, err
	}
	scale, err := p.m.vector(ctx, l.expScale)
	if err != nil {
		return nil, err
	}
	if scale != nil {
		for i, e := range chosen {
			weight[i] *= scale[e]
		}
		p.watch.scaleGates(scale)
	}
	return p.byExpert(ctx, l, chosen, weight)
}

// routerInput returns what the router works on: the branch's input, or the
// residual stream normed and scaled.
func (p *pass) routerInput(ctx context.Context, l *layer) (kernel.Matrix, error) {
	if !p.m.arch.Family.Block.RouteResidual {
		return p.in, nil
	}
	scale, err := p.m.vector(ctx, l.routerScale)
	if err != nil {
		return p.in, err
	}
	in := p.buffers.latent.matrix(p.x.Rows, p.x.Cols)
	root := float32(1 / math.Sqrt(float64(p.x.Cols)))
	return in, p.m.chunks(ctx, p.x.Rows, func(_ *worker, first, n int) error {
		for i := first; i < first+n; i++ {
			row := in.Row(i)
			rmsNorm(row, p.x.Row(i), scale, p.m.Params().NormEps)
			scaleBy(row, root)
		}
		return nil
	})
}

// byExpert turns the choice of each token into the tokens of each expert.
func (p *pass) byExpert(ctx context.Context, l *layer, chosen []int32, weight []float32) ([]network, error) {
	par := l.par
	all := make([]network, par.Experts)
	for i, e := range chosen {
		all[e].tokens = append(all[e].tokens, int32(i/par.ExpertsUsed))
		all[e].scale = append(all[e].scale, weight[i])
	}
	p.watch.addNext(all)
	var nets []network
	for e, n := range all {
		if len(n.tokens) == 0 {
			continue
		}
		net, err := p.network(ctx, l, e)
		if err != nil {
			return nil, err
		}
		net.tokens, net.scale, net.extra, net.weightInput = n.tokens, n.scale, n.extra, p.m.arch.Family.Block.WeightInput
		nets = append(nets, net)
	}
	return nets, nil
}

// network is a routed expert as a network, without tokens.
func (p *pass) network(ctx context.Context, l *layer, e int) (n network, err error) {
	par := l.par
	gate, up, down := stack{l.expGate, par.ExpertFF, 0}, stack{l.expUp, par.ExpertFF, 0}, stack{l.expDown, p.x.Cols, 0}
	if l.expGateUp != nil { // of every expert the gate comes first
		gate = stack{affine{w: l.expGateUp}, 2 * par.ExpertFF, 0}
		up = stack{affine{w: l.expGateUp}, 2 * par.ExpertFF, par.ExpertFF}
	}
	n = network{width: par.ExpertFF, expert: e, experts: par.Experts}
	for _, r := range []struct {
		to *rows
		of stack
	}{{&n.gate, gate}, {&n.up, up}, {&n.down, down}} {
		if *r.to, err = p.m.expert(ctx, r.of, e); err != nil {
			return n, err
		}
	}
	return n, nil
}

// stack is a weight of all experts, each with so many rows, of which those from
// offset on are meant.
type stack struct {
	affine
	rows, offset int
}

// expert returns the rows of expert e.
func (m *Model) expert(ctx context.Context, s stack, e int) (rows, error) {
	r := rows{w: s.w, first: e*s.rows + s.offset}
	if s.b == nil {
		return r, nil
	}
	var w worker
	bias, err := m.read(ctx, &w, 0, s.b, e, 1)
	r.bias = bias.Data
	return r, err
}

// router chooses the experts of tokens, one after the other.
type router struct {
	par    *arch.Params
	sum    arch.ExpertSum
	mixer  bool // sparseMixer chooses
	bias   []float32
	choice []float32 // score of every expert for the choice
	groups []float32 // score of every group
	picked []int32   // chosen groups
	barred []int32   // experts that are never chosen
}

func newRouter(kind *arch.Block, par *arch.Params, bias []float32, barred []int32) *router {
	return &router{
		par: par, sum: kind.ExpertSum, mixer: kind.SparseMixer, bias: bias, barred: barred,
		choice: make([]float32, par.Experts), groups: make([]float32, par.ExpertGroups), picked: make([]int32, par.GroupsUsed),
	}
}

// route picks the experts of a token by its router logits, which it overwrites,
// and their weights. Barred ones are out of the question.
func (r *router) route(logits []float32, chosen []int32, weight []float32) {
	r.bar(logits)
	if r.mixer {
		sparseMixer(logits, chosen, weight)
		return
	}
	r.choose(logits, chosen, weight)
}

// choose picks the experts of a token from its router logits, which it turns
// into scores, and their weights (DeepSeek-V3 inference/model.py, class Gate;
// HF modeling_deepseek_v2.py and _v3.py). The bias decides about the choice
// and never enters the weights. Of equal scores the lower number wins.
func (r *router) choose(scores []float32, chosen []int32, weight []float32) {
	r.score(scores)
	copy(r.choice, scores)
	if r.bias != nil {
		addTo(r.choice, r.bias)
	}
	r.bar(r.choice)
	if r.par.ExpertGroups > 1 {
		r.limit()
	}
	top(chosen, r.choice)
	r.weigh(scores, chosen, weight)
}

// score turns the logits of all experts into scores; those of which only the
// chosen ones get shares stay as they are.
func (r *router) score(logits []float32) {
	switch r.par.Gating {
	case arch.GatingSigmoid:
		for i, v := range logits {
			logits[i] = kernel.Sigmoid(v)
		}
	case arch.GatingSoftmax:
		share(logits)
	}
}

// weigh computes the weights of chosen experts from the scores of all.
func (r *router) weigh(scores []float32, chosen []int32, weight []float32) {
	for i, e := range chosen {
		weight[i] = scores[e]
	}
	if r.par.Gating == arch.GatingSelected {
		share(weight)
	}
	sum := 0.0
	for _, w := range weight {
		sum += float64(w)
	}
	factor := float64(1)
	switch {
	case !r.par.ExpertNorm:
	case r.sum == arch.SumAtLeast:
		factor = 1 / max(sum, 1e-12)
	default:
		factor = 1 / (sum + 1e-20)
	}
	if r.par.ExpertScale != 0 {
		factor *= float64(r.par.ExpertScale)
	}
	for i := range weight {
		weight[i] = float32(float64(weight[i]) * factor)
	}
}

// mixerThreshold is twice the jitter of the sparse mixer.
const mixerThreshold = 2 * 0.01

// sparseMixer picks experts by their router logits, which it overwrites: the
// best, then the best of the others, each weighted by its share in a softmax
// over those left whose logits are near its own, relative to the larger
// magnitude (Liu et al. 2024, "GRIN"; HF modeling_phimoe.py, sparsemixer,
// outside training).
func sparseMixer(logits []float32, chosen []int32, weight []float32) {
	near := make([]float32, len(logits))
	for i := range chosen {
		top(chosen[i:i+1], logits)
		best := logits[chosen[i]]
		for e, v := range logits {
			near[e] = v
			if (best-v)/max(best, v, -v) > mixerThreshold {
				near[e] = float32(math.Inf(-1))
			}
		}
		weight[i] = float32(float64(1) / kernel.Softmax(near, 1, kernel.NoSink))
		logits[chosen[i]] = float32(math.Inf(-1))
	}
}

// share replaces scores by their softmax.
func share(scores []float32) {
	sum := kernel.Softmax(scores, 1, kernel.NoSink)
	for i, v := range scores {
		scores[i] = float32(float64(v) / sum)
	}
}

// limit takes experts outside the best groups out of the choice.
func (r *router) limit() {
	size := len(r.choice) / len(r.groups)
	for g := range r.groups {
		r.groups[g] = groupScore(r.choice[g*size:][:size], r.par.GroupScore())
	}
	top(r.picked, r.groups)
	for _, g := range r.picked {
		r.groups[g] = float32(math.Inf(1)) // a mark: no score is that
	}
	for g, s := range r.groups {
		if !math.IsInf(float64(s), 1) {
			for i := range size {
				r.choice[g*size+i] = float32(math.Inf(-1))
			}
		}
	}
}

func groupScore(scores []float32, kind arch.GroupScore) float32 {
	sum := float32(0)
	for _, i := range groupBest(scores, kind) {
		sum += scores[i]
	}
	return sum
}

// groupBest returns the experts of a group that its score is of.
func groupBest(scores []float32, kind arch.GroupScore) []int32 {
	best := make([]int32, 1, 2)
	if kind == arch.GroupTop2 && len(scores) > 1 {
		best = best[:2]
	}
	top(best, scores)
	return best
}

// deciding returns the experts that the choice for the last token hangs on: without
// any other it is the same. Those are the ones that were chosen and, of groups that
// were, the ones that their scores are of.
func (r *router) deciding(chosen []int32) []int32 {
	list := slices.Clone(chosen)
	if r.par.ExpertGroups < 2 {
		return list
	}
	size := len(r.choice) / len(r.groups)
	for _, g := range r.picked {
		for _, i := range groupBest(r.choice[int(g)*size:][:size], r.par.GroupScore()) {
			if e := g*int32(size) + i; !slices.Contains(list, e) {
				list = append(list, e)
			}
		}
	}
	return list
}

// top fills best with the indices of the largest values, largest first, the
// lower index first among equals.
func top(best []int32, values []float32) {
	n := 0
	for i, v := range values {
		j := n
		for j > 0 && v > values[best[j-1]] {
			j--
		}
		if j == len(best) {
			continue
		}
		n = min(n+1, len(best))
		copy(best[j+1:n], best[j:])
		best[j] = int32(i)
	}
}
