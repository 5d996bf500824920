package engine

import (
	"context"
	"math"

	"github.com/winnow-moe/winnow/engine/kernel"
	"github.com/winnow-moe/winnow/formats/arch"
)

// network is a SwiGLU network (Shazeer 2020) to be run on some tokens: a dense
// one, a routed expert, or the shared experts.
type network struct {
	gate, up, down *tensor
	// number of the network in the stacked tensors; width of its hidden layer
	number, width int
	// tokens it runs on and the factors on its output; nil: all, and one
	tokens []int32
	scale  []float32
}

// feedForward adds the block's feed-forward network, or its chosen experts
// weighted by the router and the shared ones, to the residual stream.
func (p *pass) feedForward(ctx context.Context, l *layer) error {
	par := p.m.Params()
	if l.router == nil {
		return p.networks(ctx, []network{{gate: l.gate, up: l.up, down: l.down, width: par.FF}})
	}
	nets, err := p.route(ctx, l)
	if err != nil {
		return err
	}
	if l.sharedGate != nil {
		nets = append(nets, network{gate: l.sharedGate, up: l.sharedUp, down: l.sharedDown, width: l.sharedGate.rows})
	}
	return p.networks(ctx, nets)
}

// networks adds the outputs of nets to the residual stream, in their order for
// every element, in groups whose hidden activations fit the budget: at least one.
func (p *pass) networks(ctx context.Context, nets []network) error {
	for len(nets) > 0 {
		n, floats := 0, 0
		for n < len(nets) && (n == 0 || floats+nets[n].floats(p.norm.Rows) <= p.m.budget) {
			floats += nets[n].floats(p.norm.Rows)
			n++
		}
		if err := p.group(ctx, nets[:n], floats); err != nil {
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
	return all * n.width
}

// of views the rows of a batch that the network runs on.
func (n *network) of(x kernel.Matrix) kernel.Matrix {
	if n.tokens == nil {
		return x
	}
	return x.Gather(n.tokens)
}

// group runs networks together: x += scale · down(silu(gate(norm)) · up(norm)).
func (p *pass) group(ctx context.Context, nets []network, floats int) error {
	// hidden[i] is [tokens of network i, width]
	buf := grow(&p.buffers.hidden.data, floats)
	hidden := make([]kernel.Matrix, len(nets))
	type task struct {
		net int
		tile
	}
	var tasks []task
	for i := range nets {
		size := nets[i].floats(p.norm.Rows)
		hidden[i] = kernel.NewMatrix(buf, size/nets[i].width, nets[i].width)
		buf = buf[size:]
		for _, t := range p.m.tiles(nets[i].width, p.norm.Cols) {
			tasks = append(tasks, task{i, t})
		}
	}
	err := p.m.parallel(ctx, len(tasks), func(ctx context.Context, w *worker, i int) error {
		n := &nets[tasks[i].net]
		return p.m.gateUp(ctx, w, n, tasks[i].tile, n.of(p.norm), hidden[tasks[i].net])
	})
	if err != nil {
		return err
	}
	out := p.m.tiles(p.x.Cols, nets[0].width)
	return p.m.parallel(ctx, len(out), func(ctx context.Context, w *worker, i int) error {
		for j := range nets {
			n := &nets[j]
			weights, err := p.m.read(ctx, w, 0, n.down, n.number*p.x.Cols+out[i].first, out[i].n)
			if err != nil {
				return err
			}
			dst := n.of(p.x).Columns(out[i].first, out[i].n)
			if err := w.addProduct(n.down, dst, hidden[j], weights, n.scale); err != nil {
				return err
			}
		}
		return nil
	})
}

// gateUp computes columns t of hidden = silu(x·gateᵀ) · (x·upᵀ).
func (m *Model) gateUp(ctx context.Context, w *worker, n *network, t tile, x, hidden kernel.Matrix) error {
	first := n.number*n.width + t.first
	gate, err := m.read(ctx, w, 0, n.gate, first, t.n)
	if err != nil {
		return err
	}
	up, err := m.read(ctx, w, 1, n.up, first, t.n)
	if err != nil {
		return err
	}
	hidden = hidden.Columns(t.first, t.n)
	for i := 0; i < x.Rows; i += chunk {
		rows := min(chunk, x.Rows-i)
		h, xs := hidden.Slice(i, rows), x.Slice(i, rows)
		out := kernel.NewMatrix(grow(&w.out, rows*t.n), rows, t.n)
		if err := checked(n.gate, h, xs, gate); err != nil {
			return err
		}
		if err := checked(n.up, out, xs, up); err != nil {
			return err
		}
		for j := range rows {
			row, u := h.Row(j), out.Row(j)
			for k, g := range row {
				row[k] = g * kernel.Sigmoid(g) * u[k]
			}
		}
	}
	return nil
}

// route chooses experts for every token and returns those that have tokens,
// in ascending order, with their tokens and weights.
func (p *pass) route(ctx context.Context, l *layer) ([]network, error) {
	par := p.m.Params()
	bias, err := p.m.vector(ctx, l.routerBias)
	if err != nil {
		return nil, err
	}
	// logits [tokens, experts]
	logits := p.buffers.logits.matrix(p.x.Rows, par.Experts)
	if err := p.m.multiply(ctx, whole(l.router, p.norm, logits)); err != nil {
		return nil, err
	}
	used := par.ExpertsUsed
	chosen := make([]int32, p.x.Rows*used)
	weight := make([]float32, p.x.Rows*used)
	err = p.m.chunks(ctx, p.x.Rows, func(_ *worker, first, n int) error {
		r := newRouter(par, bias)
		for i := first; i < first+n; i++ {
			r.choose(logits.Row(i), chosen[i*used:][:used], weight[i*used:][:used])
		}
		return nil
	})
	if err != nil {
		return nil, err
	}
	return byExpert(l, par, chosen, weight), nil
}

// byExpert turns the choice of each token into the tokens of each expert.
func byExpert(l *layer, par *arch.Params, chosen []int32, weight []float32) []network {
	all := make([]network, par.Experts)
	for i, e := range chosen {
		all[e].tokens = append(all[e].tokens, int32(i/par.ExpertsUsed))
		all[e].scale = append(all[e].scale, weight[i])
	}
	var nets []network
	for e, n := range all {
		if len(n.tokens) > 0 {
			n.gate, n.up, n.down = l.expGate, l.expUp, l.expDown
			n.number, n.width = e, par.ExpertFF
			nets = append(nets, n)
		}
	}
	return nets
}

// router chooses the experts of tokens, one after the other.
type router struct {
	par    *arch.Params
	bias   []float32
	choice []float32 // score of every expert for the choice
	groups []float32 // score of every group
	picked []int32   // chosen groups
}

func newRouter(par *arch.Params, bias []float32) *router {
	return &router{par: par, bias: bias, choice: make([]float32, par.Experts), groups: make([]float32, par.ExpertGroups), picked: make([]int32, par.GroupsUsed)}
}

// choose picks the experts of a token from its router logits, which it turns
// into scores, and their weights (DeepSeek-V3 inference/model.py, class Gate;
// HF modeling_deepseek_v2.py and _v3.py). The bias decides about the choice
// and never enters the weights. Of equal scores the lower number wins.
func (r *router) choose(scores []float32, chosen []int32, weight []float32) {
	if r.par.Gating == arch.GatingSigmoid {
		for i, v := range scores {
			scores[i] = kernel.Sigmoid(v)
		}
	} else {
		sum := kernel.Softmax(scores, 1)
		for i, v := range scores {
			scores[i] = float32(float64(v) / sum)
		}
	}
	copy(r.choice, scores)
	if r.bias != nil {
		addTo(r.choice, r.bias)
	}
	if r.par.ExpertGroups > 1 {
		r.limit()
	}
	top(chosen, r.choice)
	sum := 0.0
	for i, e := range chosen {
		weight[i] = scores[e]
		sum += float64(scores[e])
	}
	factor := float64(1)
	if r.par.ExpertNorm {
		factor = 1 / (sum + 1e-20)
	}
	if r.par.ExpertScale != 0 {
		factor *= float64(r.par.ExpertScale)
	}
	for i := range weight {
		weight[i] = float32(float64(weight[i]) * factor)
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
		r.groups[g] = float32(math.Inf(1)) // a mark: scores are finite
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
	best := make([]int32, 1, 2)
	if kind == arch.GroupTop2 && len(scores) > 1 {
		best = best[:2]
	}
	top(best, scores)
	sum := float32(0)
	for _, i := range best {
		sum += scores[i]
	}
	return sum
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
