package engine

import (
	"context"
	"fmt"
	"math"
	"sync"

	"github.com/winnow-moe/winnow/engine/kernel"
	"github.com/winnow-moe/winnow/formats/arch"
)

// RefitOptions adjust a refit.
type RefitOptions struct {
	Mask
	// Ridge is the weight of the penalty on changes, relative to the mean square
	// of the inputs of an expert's down projection; 0 means DefaultRidge.
	Ridge float64
	// Sweeps is how often every expert is fitted to what the others leave; 0
	// means DefaultSweeps.
	Sweeps int
}

// What a refit does when nothing else is said.
const (
	DefaultRidge  = 0.2
	DefaultSweeps = 3
)

// Refit is a model whose experts make up for others that it lost: the down
// projections of those that are left are fitted, so that the blocks put out again
// what they did. Rows of these weights are computed when they are asked for.
type Refit struct {
	m      *Model
	opt    RefitOptions
	lock   sync.RWMutex
	blocks map[int][]correction // of every expert
}

// correction is what is added to an expert's down projection [embed, width]:
// leftᵀ·right, with left [n, embed] and right [n, width], or leftᵀ alone.
type correction struct{ left, right kernel.Matrix }

// NewRefit prepares to fit the experts that a mask leaves.
func (m *Model) NewRefit(opt RefitOptions) *Refit {
	if opt.Ridge == 0 {
		opt.Ridge = DefaultRidge
	}
	if opt.Sweeps == 0 {
		opt.Sweeps = DefaultSweeps
	}
	return &Refit{m: m, opt: opt, blocks: map[int][]correction{}}
}

// Add fits the down projections of a block by a sample of what the whole model
// gives its experts: it minimises
//
//	Σ_t w_t·|y_t − y'_t − Σ_e ΔW_e·φ_te|² + λ·Σ_e |ΔW_e|²
//
// over the changes ΔW_e of the experts that are left, with y the block's output
// with all experts and y' without some, and φ_te = g'_te·a_e(x_t) of the hidden
// layer of an expert that token t chooses then. Experts are fitted one after the
// other, each to what the others leave of y − y' (block Gauss-Seidel), by the
// normal equations in the smaller of their two forms: of the hidden units or of the
// tokens.
func (r *Refit) Add(ctx context.Context, s *Sampled) error {
	if s.l.expDown.w.factors != nil {
		return fmt.Errorf("tensor %q has factors beside it, which a fitted weight would not have", s.l.expDown.w.info.Name)
	}
	f := &fit{Sampled: s, opt: &r.opt}
	if err := f.collect(ctx); err != nil {
		return err
	}
	if err := f.solve(ctx); err != nil {
		return fmt.Errorf("block %d: %w", s.l.number, err)
	}
	r.lock.Lock()
	defer r.lock.Unlock()
	r.blocks[s.l.number] = f.corrections()
	return nil
}

// fit is the refit of a block.
type fit struct {
	*Sampled
	opt     *RefitOptions
	rest    kernel.Matrix // [tokens, embed]: √w·(y − y'), less what experts make up for
	experts []*expertFit  // of those that tokens choose
}

// expertFit is that of an expert.
type expertFit struct {
	expert int
	tokens []int32       // that choose it
	phi    kernel.Matrix // [tokens, width]: √w·φ
	gram   kernel.Matrix // φ·φᵀ or φᵀ·φ
	solve  *cholesky     // of the normal equations
	dual   bool          // they are of the tokens, and
	change kernel.Matrix // is [tokens, embed]; else of hidden units, [width, embed]: ΔWᵀ
}

// collect computes what the block lacks and what its experts can make up for it.
func (f *fit) collect(ctx context.Context) error {
	defer f.release()
	all, err := f.routes(ctx, false, nil)
	if err != nil {
		return err
	}
	keep, ok := f.opt.Keep[f.l.number]
	if !ok {
		return fmt.Errorf("block %d: nothing is said of its experts", f.l.number)
	}
	left, err := f.routes(ctx, f.opt.Flatten, others(keep, f.l.par.Experts))
	if err != nil {
		return err
	}
	f.rest = kernel.NewMatrix(make([]float32, len(f.x.Data)), f.x.Rows, f.x.Cols)
	var nets []network
	for e := range f.l.par.Experts {
		net, err := f.network(ctx, all, left, e)
		if err != nil {
			return err
		}
		if len(net.tokens) > 0 {
			nets = append(nets, net)
		}
	}
	return f.run(ctx, f.x, nets, func(nets []network, hidden, outputs []kernel.Matrix) error {
		for i := range nets {
			f.take(all, left, &nets[i], hidden[i], outputs[i])
		}
		return nil
	})
}

// network is an expert with the tokens that choose it, with all experts or with
// those that are left.
func (f *fit) network(ctx context.Context, all, left *routes, e int) (network, error) {
	net, err := (&pass{m: f.m, x: f.x, in: f.x}).network(ctx, f.l, e)
	if err != nil {
		return net, err
	}
	net.weightInput = f.inputGates()
	for t := range f.x.Rows {
		before, was := all.gateOf(t, e)
		after, is := left.gateOf(t, e)
		if !was && !is {
			continue
		}
		net.tokens = append(net.tokens, int32(t))
		if net.weightInput {
			net.scale = append(net.scale, max(before, after)) // the same, or nothing
		}
	}
	return net, nil
}

// gateOf returns the gate of an expert that a token chooses.
func (r *routes) gateOf(t, e int) (float32, bool) {
	for i, c := range r.of(t) {
		if int(c) == e {
			return r.gates(t)[i], true
		}
	}
	return 0, false
}

// take adds an expert's part of what the block lacks, and keeps what its hidden
// layer holds for the tokens that choose it among those that are left.
func (f *fit) take(all, left *routes, net *network, hidden, outputs kernel.Matrix) {
	x := &expertFit{expert: net.expert}
	var phi []float32
	for i, t := range net.tokens {
		before, was := all.gateOf(int(t), net.expert)
		after, is := left.gateOf(int(t), net.expert)
		root := float32(math.Sqrt(f.weights[t]))
		if net.weightInput {
			before, after = one(was), one(is)
		}
		kernel.AddScaled(f.rest.Row(int(t)), outputs.Row(i), root*(before-after))
		if !is {
			continue
		}
		x.tokens = append(x.tokens, t)
		for _, v := range hidden.Row(i) {
			phi = append(phi, root*after*v)
		}
	}
	if len(x.tokens) > 0 {
		x.phi = kernel.NewMatrix(phi, len(x.tokens), hidden.Cols)
		f.experts = append(f.experts, x)
	}
}

func one(b bool) float32 {
	if b {
		return 1
	}
	return 0
}

// solve fits the experts in turn. Those of a turn follow each other; within one
// all threads work.
func (f *fit) solve(ctx context.Context) error {
	if err := f.m.parallel(ctx, len(f.experts), func(_ context.Context, _ *worker, i int) error {
		return f.experts[i].prepare(f.opt.Ridge, f.x.Cols)
	}); err != nil {
		return err
	}
	for range f.opt.Sweeps {
		for _, x := range f.experts {
			if err := ctx.Err(); err != nil {
				return err
			}
			x.refit(f.rest.Gather(x.tokens))
		}
	}
	return nil
}

// prepare factors the normal equations.
func (x *expertFit) prepare(ridge float64, embed int) (err error) {
	tokens, width := x.phi.Rows, x.phi.Cols
	x.dual = tokens < width
	a, n := x.phi, tokens
	if !x.dual {
		a, n = transposed(x.phi), width
	}
	x.gram = kernel.NewMatrix(make([]float32, n*n), n, n)
	kernel.MatMul(x.gram, a, a)
	mean := 0.0
	for i := range n {
		mean += float64(x.gram.Row(i)[i])
	}
	mean /= float64(width)
	x.solve, err = newCholesky(x.gram, max(ridge*mean, 1e-30))
	x.change = kernel.NewMatrix(make([]float32, n*embed), n, embed)
	return err
}

// refit fits an expert to what is left of the output for its tokens, which it
// updates.
func (x *expertFit) refit(rest kernel.Matrix) {
	// What is left, with what the expert made up for so far.
	made := x.made()
	for i := range rest.Rows {
		kernel.AddScaled(rest.Row(i), made.Row(i), 1)
	}
	right := rest
	if !x.dual {
		right = product2(transposed(x.phi), rest)
	}
	x.solve.times(x.change, right)
	made = x.made()
	for i := range rest.Rows {
		kernel.AddScaled(rest.Row(i), made.Row(i), -1)
	}
}

// made is what the change of the expert gives for its tokens.
func (x *expertFit) made() kernel.Matrix {
	if x.dual {
		return product2(x.gram, x.change)
	}
	return product2(x.phi, x.change)
}

// product2 is the product of matrices a [n, k] and b [k, m].
func product2(a, b kernel.Matrix) kernel.Matrix {
	out := kernel.NewMatrix(make([]float32, a.Rows*b.Cols), a.Rows, b.Cols)
	kernel.MatMul(out, a, transposed(b))
	return out
}

func transposed(m kernel.Matrix) kernel.Matrix {
	out := kernel.NewMatrix(make([]float32, m.Rows*m.Cols), m.Cols, m.Rows)
	for i := range m.Rows {
		for j, v := range m.Row(i) {
			out.Row(j)[i] = v
		}
	}
	return out
}

// corrections are those of all experts.
func (f *fit) corrections() []correction {
	list := make([]correction, f.l.par.Experts)
	for _, x := range f.experts {
		c := &list[x.expert]
		switch c.left = x.change; {
		case !x.dual:
		case x.phi.Rows*(x.phi.Cols+f.x.Cols) < x.phi.Cols*f.x.Cols:
			c.right = x.phi
		default:
			c.left = product2(transposed(x.phi), x.change)
		}
	}
	return list
}

// Has reports whether a tensor is computed.
func (r *Refit) Has(name string) bool {
	n := arch.ParseName(name)
	r.lock.RLock()
	defer r.lock.RUnlock()
	return n.Role == arch.ExpertDown && n.Suffix == "weight" && r.blocks[n.Layer] != nil
}

// Rows fills dst with rows of a down projection that is computed: of all experts,
// those that are left out as they were.
func (r *Refit) Rows(ctx context.Context, name string, first, n int64, dst []float32) error {
	layer := arch.ParseName(name).Layer
	r.lock.RLock()
	list := r.blocks[layer]
	r.lock.RUnlock()
	if list == nil {
		return fmt.Errorf("tensor %q is not fitted", name)
	}
	w := r.m.workers.Get().(*worker)
	defer r.m.workers.Put(w)
	t := r.m.layers[layer].expDown.w
	rows, err := r.m.read(ctx, w, 0, t, int(first), int(n))
	if err != nil {
		return err
	}
	copy(dst, rows.Data)
	embed := r.m.embd.cols
	for i := range int(n) {
		e, row := (int(first)+i)/embed, (int(first)+i)%embed
		list[e].add(dst[i*t.cols:][:t.cols], row)
	}
	return nil
}

// add adds a row of the correction.
func (c *correction) add(dst []float32, row int) {
	for i := range c.left.Rows {
		v := c.left.Row(i)[row]
		if c.right.Rows == 0 {
			dst[i] += v
		} else {
			kernel.AddScaled(dst, c.right.Row(i), v)
		}
	}
}
