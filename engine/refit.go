package engine

import (
	"cmp"
	"context"
	"fmt"
	"math"
	"slices"
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
	// CacheBytes bounds the fits of blocks that are held, at least one; 0 means
	// DefaultCacheBytes.
	CacheBytes int64
}

// What a refit does when nothing else is said.
const (
	DefaultRidge      = 0.2
	DefaultSweeps     = 3
	DefaultCacheBytes = 256 << 20
)

// Refit is a model whose experts make up for others that it lost: the down
// projections of those that are left are fitted, so that the blocks put out again
// what they did. Blocks are fitted when rows of these weights are asked for, and
// again if they are asked for long after.
//
// A fit minimises, on a sample of what the whole model gives the experts,
//
//	Σ_t w_t·|y_t − y'_t − Σ_e ΔW_e·φ_te|² + λ·Σ_e |ΔW_e|²
//
// over the changes ΔW_e of the experts that are left, with y the output of the
// block in the whole model and y' without some experts in the one that is fitted,
// and φ_te = g'_te·a_e(x_t) of the hidden layer of an expert that token t chooses
// then. Experts are fitted one after the other, each to what the others leave of
// y − y' (block Gauss-Seidel), by the normal equations in the smaller of their two
// forms: of the hidden units or of the tokens.
type Refit struct {
	m      *Model
	opt    RefitOptions
	source RefitSource
	lock   sync.Mutex
	blocks map[int]*fitted
	recent []int // blocks, the one asked for last at the end
}

// RefitSource gives the sample of a block in the whole model and in the one that is
// fitted: the same tokens. The models are the same but where experts that are left
// were changed, too.
type RefitSource func(ctx context.Context, block int) (whole, changed *Sampled, err error)

// fitted is the fit of a block. It may be used when done is closed.
type fitted struct {
	done    chan struct{}
	err     error
	experts []correction
}

// correction is what is added to an expert's down projection [embed, width]:
// left·right, with left [embed, n] and right [n, width], or left alone.
type correction struct{ left, right kernel.Matrix }

// bytes is what a fit takes.
func (f *fitted) bytes() (n int64) {
	for i := range f.experts {
		n += 4 * int64(len(f.experts[i].left.Data)+len(f.experts[i].right.Data))
	}
	return n
}

// NewRefit prepares to fit the experts that a mask leaves.
func (m *Model) NewRefit(opt RefitOptions, source RefitSource) *Refit {
	opt.Ridge = cmp.Or(opt.Ridge, DefaultRidge)
	opt.Sweeps = cmp.Or(opt.Sweeps, DefaultSweeps)
	opt.CacheBytes = cmp.Or(opt.CacheBytes, DefaultCacheBytes)
	return &Refit{m: m, opt: opt, source: source, blocks: map[int]*fitted{}}
}

// block returns the fit of a block, which others may be waiting for or make.
func (r *Refit) block(ctx context.Context, l int) ([]correction, error) {
	r.lock.Lock()
	f, known := r.blocks[l]
	if !known {
		f = &fitted{done: make(chan struct{})}
		r.blocks[l] = f
	}
	r.recent = append(slices.DeleteFunc(r.recent, func(i int) bool { return i == l }), l)
	r.lock.Unlock()
	if known {
		select {
		case <-f.done:
			return f.experts, f.err
		case <-ctx.Done():
			return nil, ctx.Err()
		}
	}
	f.experts, f.err = r.fit(ctx, l)
	close(f.done)
	r.lock.Lock()
	defer r.lock.Unlock()
	if f.err != nil {
		delete(r.blocks, l) // another may try again
	}
	r.forget()
	return f.experts, f.err
}

// forget lets the fits go that were asked for longest ago, down to what may be
// held.
func (r *Refit) forget() {
	total := int64(0)
	for i, l := range slices.Backward(r.recent) {
		f := r.blocks[l]
		if f == nil {
			r.recent = slices.Delete(r.recent, i, i+1)
			continue
		}
		select {
		case <-f.done:
		default:
			continue // it is being made
		}
		if total += f.bytes(); total > r.opt.CacheBytes && i < len(r.recent)-1 {
			delete(r.blocks, l)
			r.recent = slices.Delete(r.recent, i, i+1)
		}
	}
}

// fit fits a block.
func (r *Refit) fit(ctx context.Context, l int) ([]correction, error) {
	whole, changed, err := r.source(ctx, l)
	if err != nil {
		return nil, err
	}
	if changed.m != r.m || whole.l.number != l || changed.l.number != l || whole.x.Rows != changed.x.Rows {
		return nil, fmt.Errorf("block %d: not a sample for the model and the block that are fitted", l)
	}
	f := &fit{Sampled: changed, opt: &r.opt}
	if err := f.collect(ctx, whole); err != nil {
		return nil, err
	}
	if err := f.solve(ctx); err != nil {
		return nil, fmt.Errorf("block %d: %w", l, err)
	}
	return f.corrections(), nil
}

// fit is the refit of a block.
type fit struct {
	*Sampled
	opt     *RefitOptions
	lacks   kernel.Matrix // [tokens, embed]: √w·(y − y')
	experts []*expertFit  // of those that tokens choose
}

// expertFit is that of an expert. Its equations are those of the tokens (dual), or
// those of the hidden units where these are fewer. They are solved by their
// inverse, for all elements of the output alike.
type expertFit struct {
	expert  int
	tokens  []int32       // that choose it
	phi     kernel.Matrix // [tokens, width]: √w·φ
	dual    bool
	ridge   float32        // λ
	inverse kernel.Weights // of φ·φᵀ + λ or φᵀ·φ + λ
	// φ and its transpose, where the equations are of the hidden units.
	down, up kernel.Weights
	// change is what ΔW is made of: ΔW = change·φ with [embed, tokens], or change
	// itself [embed, width].
	change kernel.Matrix
}

// collect computes what the block lacks and what its experts can make up for it.
func (f *fit) collect(ctx context.Context, whole *Sampled) error {
	keep, ok := f.opt.Keep[f.l.number]
	if !ok {
		return fmt.Errorf("block %d: nothing is said of its experts", f.l.number)
	}
	all, err := whole.routes(ctx, false, nil)
	if err != nil {
		return err
	}
	left, err := f.routes(ctx, f.opt.Flatten, others(keep, f.l.par.Experts))
	if err != nil {
		return err
	}
	f.lacks = kernel.NewMatrix(make([]float32, f.x.Rows*f.x.Cols), f.x.Rows, f.x.Cols)
	err = whole.chosen(ctx, all, func(net *chosenNetwork, _, outputs kernel.Matrix) {
		f.add(net, outputs, 1)
	})
	if err != nil {
		return err
	}
	return f.chosen(ctx, left, func(net *chosenNetwork, hidden, outputs kernel.Matrix) {
		f.add(net, outputs, -1)
		phi := kernel.NewMatrix(make([]float32, len(hidden.Data)), hidden.Rows, hidden.Cols)
		for i, t := range net.tokens {
			kernel.Scaled(phi.Row(i), hidden.Row(i), nil, f.root(t)*net.gates[i])
		}
		f.experts = append(f.experts, &expertFit{expert: net.expert, tokens: net.tokens, phi: phi})
	})
}

// root is the root of a token's weight.
func (f *fit) root(t int32) float32 { return float32(math.Sqrt(f.weights[t])) }

// add adds an expert's outputs to what the block lacks.
func (f *fit) add(net *chosenNetwork, outputs kernel.Matrix, sign float32) {
	for i, t := range net.tokens {
		kernel.AddScaled(f.lacks.Row(int(t)), outputs.Row(i), sign*f.root(t)*net.gates[i])
	}
}

// chosenNetwork is an expert with the tokens that choose it, and what its outputs
// for them are multiplied with: the gates, or 1 where those apply to inputs.
type chosenNetwork struct {
	network
	gates []float32
}

// chosen runs experts on the tokens that choose them.
func (s *Sampled) chosen(ctx context.Context, r *routes, take func(net *chosenNetwork, hidden, outputs kernel.Matrix)) error {
	defer s.release()
	all := make([]chosenNetwork, s.l.par.Experts)
	for t := range s.x.Rows {
		for i, e := range r.of(t) {
			n := &all[e]
			n.tokens, n.gates = append(n.tokens, int32(t)), append(n.gates, r.gates(t)[i])
		}
	}
	var nets []network
	for e := range all {
		n := &all[e]
		if len(n.tokens) == 0 {
			continue
		}
		net, err := s.expertNetwork(ctx, e)
		if err != nil {
			return err
		}
		net.tokens = n.tokens
		if s.inputGates() {
			net.weightInput, net.scale = true, n.gates
			n.gates = slices.Repeat([]float32{1}, len(n.tokens))
		}
		n.network = net
		nets = append(nets, net)
	}
	return s.run(ctx, s.x, nets, func(nets []network, hidden, outputs []kernel.Matrix) error {
		for i := range nets {
			take(&all[nets[i].expert], hidden[i], outputs[i])
		}
		return nil
	})
}

// fitColumns is how many elements of the output are fitted at a time.
const fitColumns = 64

// solve fits the experts in turn, for elements of the output apart from each other.
func (f *fit) solve(ctx context.Context) error {
	err := f.m.parallel(ctx, len(f.experts), func(_ context.Context, _ *worker, i int) error {
		return f.experts[i].prepare(f.opt.Ridge, f.x.Cols)
	})
	if err != nil {
		return err
	}
	return f.m.parallel(ctx, (f.x.Cols+fitColumns-1)/fitColumns, func(ctx context.Context, _ *worker, i int) error {
		first := i * fitColumns
		return f.sweep(ctx, first, min(fitColumns, f.x.Cols-first))
	})
}

// sweep fits n elements of the output from first on.
func (f *fit) sweep(ctx context.Context, first, n int) error {
	rest := transposed(f.lacks.Columns(first, n)) // [n, tokens]: what experts do not make up for
	made := make([]kernel.Matrix, len(f.experts)) // what each does
	for range f.opt.Sweeps {
		for i, x := range f.experts {
			if err := ctx.Err(); err != nil {
				return err
			}
			made[i] = x.refit(rest, made[i], x.change.Slice(first, n))
		}
	}
	return nil
}

// prepare makes the equations.
func (x *expertFit) prepare(ridge float64, embed int) error {
	tokens, width := x.phi.Rows, x.phi.Cols
	a := x.phi
	if x.dual = tokens < width; !x.dual {
		a = transposed(x.phi)
		x.down.Pack(x.phi)
		x.up.Pack(a)
	}
	gram := newMatrix(a.Rows, a.Rows)
	kernel.MatMul(gram, a, a)
	sum := 0.0
	for i := range gram.Rows {
		sum += float64(gram.Row(i)[i])
	}
	lambda := max(ridge*sum/float64(width), 1e-30)
	c, err := newCholesky(gram, lambda)
	if err != nil {
		return err
	}
	c.invert(gram)
	x.inverse.Pack(gram)
	x.ridge, x.change = float32(lambda), newMatrix(embed, gram.Rows)
	return nil
}

// refit fits an expert, for some elements of the output, to what is left and what
// it made up for before, which it may not have yet, and sets their rows of its
// change. It updates what is left and returns what it makes up for.
func (x *expertFit) refit(rest, made, change kernel.Matrix) kernel.Matrix {
	wanted := newMatrix(rest.Rows, len(x.tokens))
	for i := range wanted.Rows {
		from, to := rest.Row(i), wanted.Row(i)
		for j, t := range x.tokens {
			to[j] = from[t]
		}
		if made.Rows > 0 {
			kernel.AddScaled(to, made.Row(i), 1)
		}
	}
	now := newMatrix(wanted.Rows, wanted.Cols)
	if x.dual {
		// φ·φᵀ·a = wanted − λ·a for the solution a.
		kernel.Multiply(wanted, kernel.Output{Dst: change, Weights: &x.inverse})
		for i := range now.Rows {
			copy(now.Row(i), wanted.Row(i))
			kernel.AddScaled(now.Row(i), change.Row(i), -x.ridge)
		}
	} else {
		right := newMatrix(wanted.Rows, x.phi.Cols)
		kernel.Multiply(wanted, kernel.Output{Dst: right, Weights: &x.up})
		kernel.Multiply(right, kernel.Output{Dst: change, Weights: &x.inverse})
		kernel.Multiply(change, kernel.Output{Dst: now, Weights: &x.down})
	}
	for i := range wanted.Rows {
		to, before, after := rest.Row(i), wanted.Row(i), now.Row(i)
		for j, t := range x.tokens {
			to[t] = before[j] - after[j]
		}
	}
	return now
}

func newMatrix(rows, cols int) kernel.Matrix {
	return kernel.NewMatrix(make([]float32, rows*cols), rows, cols)
}

func transposed(m kernel.Matrix) kernel.Matrix {
	out := newMatrix(m.Cols, m.Rows)
	for i := range m.Rows {
		for j, v := range m.Row(i) {
			out.Row(j)[i] = v
		}
	}
	return out
}

// corrections are those of all experts, in the form that takes less memory.
func (f *fit) corrections() []correction {
	list := make([]correction, f.l.par.Experts)
	for _, x := range f.experts {
		c := &list[x.expert]
		switch c.left = x.change; {
		case !x.dual:
		case x.phi.Rows*(x.phi.Cols+f.x.Cols) < x.phi.Cols*f.x.Cols:
			c.right = x.phi
		default:
			c.left = newMatrix(f.x.Cols, x.phi.Cols)
			kernel.MatMul(c.left, x.change, transposed(x.phi))
		}
	}
	return list
}

// Has reports whether a tensor is computed.
func (r *Refit) Has(name string) bool {
	n := arch.ParseName(name)
	return n.Role == arch.ExpertDown && n.Suffix == "weight" && r.opt.Keep[n.Layer] != nil && r.m.block(n.Layer) != nil
}

// Rows fills dst with rows of a down projection that is computed: of all experts,
// those that are left out as they were.
func (r *Refit) Rows(ctx context.Context, name string, first, n int64, dst []float32) error {
	if !r.Has(name) {
		return fmt.Errorf("tensor %q is not fitted", name)
	}
	layer := arch.ParseName(name).Layer
	t := r.m.block(layer).expDown.w
	if t.factors != nil {
		return fmt.Errorf("tensor %q has factors beside it, which a fitted weight would not have", name)
	}
	experts, err := r.block(ctx, layer)
	if err != nil {
		return err
	}
	w := r.m.workers.Get().(*worker)
	defer r.m.workers.Put(w)
	rows, err := r.m.read(ctx, w, 0, t, int(first), int(n))
	if err != nil {
		return err
	}
	copy(dst, rows.Data)
	embed := r.m.embd.cols
	for i := range int(n) {
		e, row := (int(first)+i)/embed, (int(first)+i)%embed
		experts[e].add(dst[i*t.cols:][:t.cols], row)
	}
	return nil
}

// add adds a row of the correction.
func (c *correction) add(dst []float32, row int) {
	switch {
	case c.left.Rows == 0:
	case c.right.Rows == 0:
		addTo(dst, c.left.Row(row))
	default:
		for i, v := range c.left.Row(row) {
			kernel.AddScaled(dst, c.right.Row(i), v)
		}
	}
}
