package engine

import (
	"context"
	"fmt"

	"github.com/winnow-moe/winnow/engine/kernel"
	"github.com/winnow-moe/winnow/formats/calib"
)

// Sampled is what a sample of tokens and the weights say of the routed experts of
// one block, away from a pass: what the block would put out with other experts.
//
// With u_e an expert's output as it counts, f_e(x), or f_e(g·x) where gates apply
// to inputs, and the coefficients w of a choice, which are 1 there and else the
// gates, the block puts out y = Σ w_e·u_e.
type Sampled struct {
	m       *Model
	l       *layer
	x       kernel.Matrix // [tokens, embed]
	logits  kernel.Matrix // [tokens, experts]
	weights []float64     // [tokens]
	bias    []float32     // of the choice
	scale   []float32     // of the experts
}

// Sampled takes a sample of a block. The model must not have an observer.
func (m *Model) Sampled(ctx context.Context, block int, s *calib.Sample) (*Sampled, error) {
	l := m.block(block)
	if l == nil || l.router.w == nil {
		return nil, fmt.Errorf("block %d has no routed experts", block)
	}
	if s.Tokens == 0 || len(s.Inputs) != s.Tokens*m.embd.cols || len(s.Logits) != s.Tokens*l.par.Experts || len(s.Weights) != s.Tokens {
		return nil, fmt.Errorf("block %d: a sample of %d tokens has %d inputs, %d logits and %d weights; the model has %d and %d of the first two for each",
			block, s.Tokens, len(s.Inputs), len(s.Logits), len(s.Weights), m.embd.cols, l.par.Experts)
	}
	out := &Sampled{
		m: m, l: l, weights: s.Weights,
		x: kernel.NewMatrix(s.Inputs, s.Tokens, m.embd.cols), logits: kernel.NewMatrix(s.Logits, s.Tokens, l.par.Experts),
	}
	var err error
	if out.bias, err = m.vector(ctx, l.routerChoice); err != nil {
		return nil, err
	}
	out.scale, err = m.vector(ctx, l.expScale)
	return out, err
}

// release lets the block's weights go.
func (s *Sampled) release() {
	for _, i := range s.l.indices {
		s.m.src.Release(i)
	}
}

// inputGates reports whether gates apply to inputs.
func (s *Sampled) inputGates() bool { return s.m.arch.Family.Block.WeightInput }

// router returns one that cannot choose some experts. Each goroutine needs its
// own.
func (s *Sampled) router(flatten bool, barred []int32) *sampleRouter {
	par := s.l.par
	if flatten {
		par = par.Flattened()
	}
	return &sampleRouter{newRouter(&s.m.arch.Family.Block, par, s.bias, barred), s, make([]float32, par.Experts)}
}

// sampleRouter routes tokens of a sample.
type sampleRouter struct {
	*router
	of     *Sampled
	logits []float32
}

// take sets chosen to the experts of a token and gate to their gates.
func (r *sampleRouter) take(t int, chosen []int32, gate []float32) {
	copy(r.logits, r.of.logits.Row(t))
	r.route(r.logits, chosen, gate)
	if r.of.scale != nil {
		for i, e := range chosen {
			gate[i] *= r.of.scale[e]
		}
	}
}

// routes are the choices of all tokens: the experts [tokens, used] and their
// gates.
type routes struct {
	used   int
	chosen []int32
	gate   []float32
}

// routes routes all tokens.
func (s *Sampled) routes(ctx context.Context, flatten bool, barred []int32) (*routes, error) {
	used := s.l.par.ExpertsUsed
	r := &routes{used, make([]int32, s.x.Rows*used), make([]float32, s.x.Rows*used)}
	return r, s.m.chunks(ctx, s.x.Rows, func(_ *worker, first, n int) error {
		router := s.router(flatten, barred)
		for t := first; t < first+n; t++ {
			router.take(t, r.of(t), r.gates(t))
		}
		return nil
	})
}

func (r *routes) of(t int) []int32      { return r.chosen[t*r.used:][:r.used] }
func (r *routes) gates(t int) []float32 { return r.gate[t*r.used:][:r.used] }

// alone returns the gate that a token has for an expert whatever others it
// chooses, which is so where gates apply to inputs.
func (s *Sampled) alone(r *sampleRouter, t int, e int32) float32 {
	gate := [1]float32{}
	copy(r.logits, s.logits.Row(t))
	r.score(r.logits)
	r.weigh(r.logits, []int32{e}, gate[:])
	return gate[0]
}

// expertNetwork is expert e as a network.
func (s *Sampled) expertNetwork(ctx context.Context, e int) (network, error) {
	p := &pass{m: s.m, x: s.x, in: s.x}
	return p.network(ctx, s.l, e)
}

// run gives the outputs of experts for the tokens that each is run on, and what
// their hidden layers hold: of nets, as many at a time as fit the memory of a group.
func (s *Sampled) run(ctx context.Context, x kernel.Matrix, nets []network, take func(nets []network, hidden, outputs []kernel.Matrix) error) error {
	p := &pass{m: s.m, x: x, in: x}
	return p.groups(ctx, nets, func(ctx context.Context, nets []network, hidden []kernel.Matrix) error {
		outputs := make([]kernel.Matrix, len(nets))
		var products []product
		for i := range nets {
			n := hidden[i].Rows
			outputs[i] = kernel.NewMatrix(make([]float32, n*x.Cols), n, x.Cols)
			products = append(products, product{w: nets[i].down.w, first: nets[i].down.first, rows: x.Cols, x: hidden[i], dst: outputs[i]})
		}
		if err := s.m.multiply(ctx, products...); err != nil {
			return err
		}
		for i := range nets {
			if b := nets[i].down.bias; b != nil {
				addBias(outputs[i], b, nil)
			}
		}
		return take(nets, hidden, outputs)
	})
}

// all runs every expert on n tokens from first on: outputs [experts·n, embed],
// expert after expert. gated says whether gates that apply to inputs do.
func (s *Sampled) all(ctx context.Context, first, n int, gated bool, outputs kernel.Matrix) error {
	x := s.x.Slice(first, n)
	var nets []network
	router := s.router(false, nil)
	for e := range s.l.par.Experts {
		net, err := s.expertNetwork(ctx, e)
		if err != nil {
			return err
		}
		if net.weightInput = gated && s.inputGates(); net.weightInput {
			for t := first; t < first+n; t++ {
				net.scale = append(net.scale, s.alone(router, t, int32(e)))
			}
		}
		nets = append(nets, net)
	}
	return s.run(ctx, x, nets, func(nets []network, _, out []kernel.Matrix) error {
		for i := range nets {
			dst := outputs.Slice(nets[i].expert*n, n)
			for t := range n {
				copy(dst.Row(t), out[i].Row(t))
			}
		}
		return nil
	})
}

// DefaultSampleBytes bounds the outputs of all experts that are held at a time.
const DefaultSampleBytes = 256 << 20

// portions calls do for the outputs of all experts for some tokens after others:
// output e·n+t is that of expert e for token first+t.
func (s *Sampled) portions(ctx context.Context, gated bool, do func(first, n int, outputs kernel.Matrix) error) error {
	defer s.release()
	each := s.l.par.Experts * s.x.Cols
	step := min(s.x.Rows, max(1, int(s.m.opt.SampleBytes/4)/each))
	buf := make([]float32, step*each)
	for first := 0; first < s.x.Rows; first += step {
		n := min(step, s.x.Rows-first)
		outputs := kernel.NewMatrix(buf, n*s.l.par.Experts, s.x.Cols)
		if err := s.all(ctx, first, n, gated, outputs); err != nil {
			return err
		}
		if err := do(first, n, outputs); err != nil {
			return err
		}
	}
	return nil
}
