package engine

import (
	"context"
	"fmt"
	"slices"

	"github.com/winnow-moe/winnow/engine/kernel"
)

// Greedy is an order in which the experts of a block can go, the one whose loss
// is felt least first, each time among those that are left.
type Greedy struct {
	// Order has the experts that went.
	Order []int
	// Errors[n] is what the block's output lacks without the first n of them,
	// Σ|y−y'|²/Σ|y|² over the sample.
	Errors []float64
}

// GreedyOptions bound the choice.
type GreedyOptions struct {
	// Keep is how many experts stay at the end, at least as many as a token uses.
	Keep int
	// Flatten gives groups up. Else the experts go in turns, one of every group.
	Flatten bool
	// Protected experts stay.
	Protected []int
}

// Greedy takes experts out of the block one after the other: each time that
// without which Σ|y−y'|² over the sample is smallest, where y' is what the block
// puts out when the router chooses among those that are left. It is the objective
// of NAEE (Lu et al. 2024, arXiv 2402.14800) without its search of all subsets, and
// gives choices of all sizes at once, each part of the larger ones. There is a
// result for each of the options.
//
// Of every token the products of all experts' outputs are held, 2·experts² bytes.
func (s *Sampled) Greedy(ctx context.Context, options ...GreedyOptions) ([]*Greedy, error) {
	for _, opt := range options {
		if opt.Keep < s.l.par.ExpertsUsed {
			return nil, fmt.Errorf("%d experts are to stay, less than the %d that a token uses", opt.Keep, s.l.par.ExpertsUsed)
		}
	}
	products, err := s.products(ctx)
	if err != nil {
		return nil, err
	}
	all, err := s.routes(ctx, false, nil)
	if err != nil {
		return nil, err
	}
	var out []*Greedy
	for _, opt := range options {
		g := &greedy{Sampled: s, opt: opt, products: products, all: all, left: make([]bool, s.l.par.Experts), lost: make([]float64, s.x.Rows)}
		for e := range g.left {
			g.left[e] = true
		}
		found, err := g.run(ctx)
		if err != nil {
			return nil, err
		}
		out = append(out, found)
	}
	return out, nil
}

// products are those of the experts' outputs for every token: the part of the
// symmetric matrix that is not right of the diagonal, row after row.
func (s *Sampled) products(ctx context.Context) ([][]float32, error) {
	out, experts := make([][]float32, s.x.Rows), s.l.par.Experts
	return out, s.portions(ctx, true, func(first, n int, outputs kernel.Matrix) error {
		return s.m.parallel(ctx, n, func(_ context.Context, w *worker, t int) error {
			rows := make([]int32, experts)
			for e := range rows {
				rows[e] = int32(e*n + t)
			}
			u := outputs.Gather(rows)
			all := kernel.NewMatrix(grow(&w.out, experts*experts), experts, experts)
			kernel.MatMul(all, u, u)
			half := make([]float32, 0, experts*(experts+1)/2)
			for e := range experts {
				half = append(half, all.Row(e)[:e+1]...)
			}
			out[first+t] = half
			return nil
		})
	})
}

// greedy is the state of a search.
type greedy struct {
	*Sampled
	opt      GreedyOptions
	products [][]float32
	all      *routes // with all experts
	now      *routes // with those that are left
	left     []bool
	barred   []int32
	lost     []float64 // |y−y'|² of every token
}

func (g *greedy) run(ctx context.Context) (*Greedy, error) {
	out, whole := &Greedy{Errors: []float64{0}}, 0.0
	d := g.difference()
	for t := range g.x.Rows {
		d.clear()
		d.add(g.all.of(t), g.all.gates(t), 1)
		whole += float64(g.weights[t] * d.square(g.products[t]))
	}
	if err := g.reroute(ctx); err != nil {
		return nil, err
	}
	for experts := len(g.left); experts > g.opt.Keep; experts-- {
		e, err := g.cheapest(ctx)
		if err != nil {
			return nil, err
		}
		if e < 0 {
			break
		}
		g.left[e], g.barred = false, append(g.barred, int32(e))
		out.Order = append(out.Order, e)
		if err := g.reroute(ctx); err != nil {
			return nil, err
		}
		total := 0.0
		for t, lost := range g.lost {
			total += float64(g.weights[t] * lost)
		}
		out.Errors = append(out.Errors, total/max(whole, 1e-300))
	}
	return out, nil
}

// reroute routes all tokens among the experts that are left and measures what
// they lack.
func (g *greedy) reroute(ctx context.Context) (err error) {
	if g.now, err = g.routes(ctx, g.opt.Flatten, g.barred); err != nil {
		return err
	}
	return g.m.chunks(ctx, g.x.Rows, func(_ *worker, first, n int) error {
		d := g.difference()
		for t := first; t < first+n; t++ {
			g.lost[t] = d.between(g.all.of(t), g.all.gates(t), g.now.of(t), g.now.gates(t), g.products[t])
		}
		return nil
	})
}

// cheapest returns the expert whose loss adds least, the first of equals; -1 if
// none may go.
func (g *greedy) cheapest(ctx context.Context) (int, error) {
	parts := make([][]float64, (g.x.Rows+chunk-1)/chunk)
	err := g.m.chunks(ctx, g.x.Rows, func(_ *worker, first, n int) error {
		parts[first/chunk] = g.costs(first, n)
		return nil
	})
	if err != nil {
		return 0, err
	}
	best, least := -1, 0.0
	for e := range g.left {
		if !g.may(e) {
			continue
		}
		cost := 0.0
		for _, p := range parts {
			cost += p[e]
		}
		if best < 0 || cost < least {
			best, least = e, cost
		}
	}
	return best, nil
}

// costs returns what tokens lack more without each of the experts that decide what
// they choose now. Without others they lack what they do now, or all but that where
// gates are shares of all experts that are left.
func (g *greedy) costs(first, n int) []float64 {
	cost, d := make([]float64, len(g.left)), g.difference()
	now, router := g.router(g.opt.Flatten, g.barred), g.router(g.opt.Flatten, append(slices.Clip(g.barred), 0))
	chosen, gate := make([]int32, g.now.used), make([]float32, g.now.used)
	for t := first; t < first+n; t++ {
		now.take(t, chosen, gate)
		for _, e := range now.deciding(chosen) {
			router.barred[len(g.barred)] = e
			router.take(t, chosen, gate)
			lost := d.between(g.all.of(t), g.all.gates(t), chosen, gate, g.products[t])
			cost[e] += float64(g.weights[t] * (lost - g.lost[t]))
		}
	}
	return cost
}

// may reports whether an expert may be the next to go: of groups those that have
// lost fewest are next.
func (g *greedy) may(e int) bool {
	if !g.left[e] || slices.Contains(g.opt.Protected, e) {
		return false
	}
	groups := g.l.par.ExpertGroups
	if groups < 2 || g.opt.Flatten {
		return true
	}
	size := len(g.left) / groups
	counts := make([]int, groups)
	for i, left := range g.left {
		if left {
			counts[i/size]++
		}
	}
	return counts[e/size] == slices.Max(counts)
}

// difference returns an empty sum of outputs.
func (s *Sampled) difference() *difference { return &difference{input: s.inputGates()} }

// difference is a sum of experts' outputs times factors.
type difference struct {
	input   bool // gates apply to inputs: the factors are one
	experts []int32
	factors []float64
}

func (d *difference) clear() { d.experts, d.factors = d.experts[:0], d.factors[:0] }

// add adds the outputs of chosen experts, times sign.
func (d *difference) add(chosen []int32, gate []float32, sign float64) {
	for i, e := range chosen {
		f := sign * float64(gate[i])
		if d.input {
			f = sign
		}
		if at := slices.Index(d.experts, e); at >= 0 {
			d.factors[at] += f
		} else {
			d.experts, d.factors = append(d.experts, e), append(d.factors, f)
		}
	}
}

// square returns the squared length of the sum.
func (d *difference) square(products []float32) float64 {
	sum := 0.0
	for i, a := range d.experts {
		for j, b := range d.experts {
			p := products[max(a, b)*(max(a, b)+1)/2+min(a, b)]
			sum += float64(float64(d.factors[i]*d.factors[j]) * float64(p))
		}
	}
	return max(0, sum)
}

// between returns the squared length of the difference of two choices' outputs.
func (d *difference) between(a []int32, gatesA []float32, b []int32, gatesB []float32, products []float32) float64 {
	d.clear()
	d.add(a, gatesA, 1)
	d.add(b, gatesB, -1)
	return d.square(products)
}
