package engine

import (
	"context"
	"errors"
	"fmt"
	"math"
	"math/rand/v2"
	"slices"
	"strings"
	"sync/atomic"
	"testing"

	"golang.org/x/sync/errgroup"

	"github.com/winnow-moe/winnow/engine/kernel"
	"github.com/winnow-moe/winnow/formats/calib"
	"github.com/winnow-moe/winnow/formats/gguf"
	"github.com/winnow-moe/winnow/quant"
)

// sampledBlock is a block of a fixture with the sample of all tokens of a pass,
// which stands before its experts.
type sampledBlock struct {
	*Sampled
	p     *pass
	l     *layer
	whole []float32 // what the experts put out
}

// sampledBlocks calls do for every block with experts of every family.
func sampledBlocks(t *testing.T, do func(t *testing.T, b *sampledBlock)) {
	expertBlocks(t, func(t *testing.T, a *altered, seqs [][]int32) func(p *pass, l *layer) {
		stats := &calib.Statistics{ChunkSize: 1}
		d := stats.Domain("test")
		d.Chunks = 33
		if _, err := a.load(t, Options{Sampler: d, SampleTokens: 100}).Forward(t.Context(), seqs); err != nil {
			t.Fatal(err)
		}
		return func(p *pass, l *layer) {
			reachExperts(t, p, l)
			sample, err := stats.Sample(l.number, nil)
			if err != nil {
				t.Fatal(err)
			}
			for t := range sample.Weights {
				sample.Weights[t] = 0.5 + float64(t%3) // they are not all alike
			}
			s, err := p.m.Sampled(t.Context(), l.number, sample)
			if err != nil {
				t.Fatal(err)
			}
			do(t, &sampledBlock{s, p, l, routedOutput(t, p, l, nil, false)})
		}
	})
}

// routedOutput returns what the routed experts of a block add where some cannot be
// chosen.
func routedOutput(t *testing.T, p *pass, l *layer, barred []int32, flatten bool) []float32 {
	t.Helper()
	masked, par := *l, *l.par
	if masked.barred, masked.par = barred, &par; flatten && par.ExpertGroups > 1 {
		par.ExpertGroups, par.GroupsUsed = 1, 1
	}
	nets, err := p.route(t.Context(), &masked)
	if err != nil {
		t.Fatal(err)
	}
	defer func(out kernel.Matrix) { p.out = out }(p.out)
	p.out = kernel.NewMatrix(make([]float32, p.x.Rows*p.x.Cols), p.x.Rows, p.x.Cols)
	if err := p.networks(t.Context(), nets); err != nil {
		t.Fatal(err)
	}
	return p.out.Data
}

// lacks returns the weighted square of what a block's output lacks.
func (b *sampledBlock) lacks(out []float32) float64 {
	sum, cols := 0.0, b.p.x.Cols
	for i, v := range out {
		d := float64(b.whole[i]) - float64(v)
		sum += b.weights[i/cols] * d * d
	}
	return sum
}

// TestGreedy takes out, one after the other, the experts without which blocks whose
// routers cannot choose them put out least different things, trying all of them.
func TestGreedy(t *testing.T) {
	sampledBlocks(t, func(t *testing.T, b *sampledBlock) {
		for _, flatten := range []bool{false, true} {
			par := b.l.par
			if flatten && par.ExpertGroups < 2 {
				continue
			}
			keep := par.ExpertsUsed
			if par.ExpertGroups > 1 && !flatten {
				for keep = par.ExpertGroups * 2; par.Reach(keep, par.ExpertGroups) < par.ExpertsUsed; {
					keep += par.ExpertGroups
				}
			}
			keep = max(keep, par.Experts-6)
			protected := []int{1}
			got, err := b.Greedy(t.Context(), GreedyOptions{Keep: keep, Flatten: flatten, Protected: protected})
			if err != nil {
				t.Fatal(err)
			}
			b.checkGreedy(t, got[0], flatten, protected, par.Experts-keep)
		}
	})
}

// TestGreedyGroups takes experts out of large groups of which a token uses some,
// trying all: the choice hangs on more experts than it has.
func TestGreedyGroups(t *testing.T) {
	a := alter(t, "deepseek_v3")
	m := a.load(t, Options{})
	l := slices.IndexFunc(m.layers, func(l layer) bool { return l.router.w != nil })
	par := *m.layers[l].par
	par.ExpertGroups, par.GroupsUsed, par.ExpertsUsed = 2, 1, 1
	m.layers[l].par = &par
	s, err := m.Sampled(t.Context(), l, randomSample(300, m.embd.cols, par.Experts))
	if err != nil {
		t.Fatal(err)
	}
	u := s.outputs(t)
	got, err := s.Greedy(t.Context(), GreedyOptions{Keep: 4})
	if err != nil {
		t.Fatal(err)
	}
	var barred []int32
	for step, e := range got[0].Order {
		least, lost := math.Inf(1), math.NaN()
		for c := range par.Experts {
			// the experts go in turns, one of each of the groups of 4
			if slices.Contains(barred, int32(c)) || step%2 == 1 && int(barred[step-1])/4 == c/4 {
				continue
			}
			d := s.lack(t, u, append(slices.Clip(barred), int32(c)))
			if least = min(least, d); c == e {
				lost = d
			}
		}
		if !(lost <= least*(1+1e-4)) {
			t.Errorf("step %d: expert %d is taken out, without which %.8g is lost; the least is %.8g", step, e, lost, least)
		}
		barred = append(barred, int32(e))
	}
}

// randomSample is a sample of random inputs and logits.
func randomSample(tokens, cols, experts int) *calib.Sample {
	rng := rand.New(rand.NewPCG(3, 4))
	s := &calib.Sample{Tokens: tokens, Inputs: make([]float32, tokens*cols), Logits: make([]float32, tokens*experts)}
	for _, list := range [][]float32{s.Inputs, s.Logits} {
		for i := range list {
			list[i] = float32(rng.NormFloat64())
		}
	}
	for range tokens {
		s.Weights = append(s.Weights, 0.5+rng.Float64())
	}
	return s
}

// outputs are those of every expert for every token: output e·tokens+t.
func (s *Sampled) outputs(t *testing.T) kernel.Matrix {
	t.Helper()
	n := s.l.par.Experts * s.x.Rows
	u := kernel.NewMatrix(make([]float32, n*s.x.Cols), n, s.x.Cols)
	if err := s.all(t.Context(), 0, s.x.Rows, true, u); err != nil {
		t.Fatal(err)
	}
	return u
}

// lack is what the block's output lacks where some experts cannot be chosen.
func (s *Sampled) lack(t *testing.T, u kernel.Matrix, barred []int32) float64 {
	t.Helper()
	sum := 0.0
	add := func(y []float64, r *routes, token int, sign float64) {
		for i, e := range r.of(token) {
			for k, v := range u.Row(int(e)*s.x.Rows + token) {
				y[k] += sign * float64(r.gates(token)[i]) * float64(v)
			}
		}
	}
	whole, err := s.routes(t.Context(), false, nil)
	if err != nil {
		t.Fatal(err)
	}
	left, err := s.routes(t.Context(), false, barred)
	if err != nil {
		t.Fatal(err)
	}
	for token := range s.x.Rows {
		y := make([]float64, s.x.Cols)
		add(y, whole, token, 1)
		add(y, left, token, -1)
		for _, v := range y {
			sum += s.weights[token] * v * v
		}
	}
	return sum
}

// TestGreedyInterrupted: an interrupted step ends with the context's error.
func TestGreedyInterrupted(t *testing.T) {
	sampledBlocks(t, func(t *testing.T, b *sampledBlock) {
		ctx, cancel := context.WithCancel(t.Context())
		cancel()
		g := &greedy{Sampled: b.Sampled, left: make([]bool, b.l.par.Experts)}
		for e := range g.left {
			g.left[e] = true
		}
		if _, err := g.cheapest(ctx); !errors.Is(err, context.Canceled) {
			t.Errorf("block %d: error %v", b.l.number, err)
		}
	})
}

func (b *sampledBlock) checkGreedy(t *testing.T, got *Greedy, flatten bool, protected []int, steps int) {
	t.Helper()
	par := b.l.par
	if len(got.Order) != steps || len(got.Errors) != steps+1 || got.Errors[0] != 0 {
		t.Fatalf("block %d: %d experts are taken out, with %d errors, want %d", b.l.number, len(got.Order), len(got.Errors), steps)
	}
	all := 0.0
	for i, v := range b.whole {
		all += b.weights[i/b.p.x.Cols] * float64(v) * float64(v)
	}
	groups := 1
	if par.ExpertGroups > 1 && !flatten {
		groups = par.ExpertGroups
	}
	var barred []int32
	for step, e := range got.Order {
		least, lost := math.Inf(1), math.NaN()
		counts := make([]int, groups)
		for _, x := range barred {
			counts[int(x)*groups/par.Experts]++
		}
		for c := range par.Experts {
			if slices.Contains(barred, int32(c)) || slices.Contains(protected, c) || counts[c*groups/par.Experts] != slices.Min(counts) {
				continue
			}
			d := b.lacks(routedOutput(t, b.p, b.l, append(slices.Clip(barred), int32(c)), flatten))
			if least = min(least, d); c == e {
				lost = d
			}
		}
		if !(lost <= least*(1+1e-4)+1e-12*all) {
			t.Errorf("block %d, step %d: expert %d is taken out, without which %.8g is lost; the least is %.8g", b.l.number, step, e, lost, least)
		}
		if want := lost / all; math.Abs(got.Errors[step+1]-want) > 1e-4*want+1e-10 {
			t.Errorf("block %d, step %d: error %.8g, want %.8g", b.l.number, step, got.Errors[step+1], want)
		}
		barred = append(barred, int32(e))
	}
}

// changedDown is a model with a down projection in float32.
type changedDown struct {
	gguf.Model
	infos []gguf.TensorInfo
	index int
	data  []float32
}

func (c *changedDown) Tensors() []gguf.TensorInfo { return c.infos }

func (c *changedDown) Rows(ctx context.Context, i int, first, n int64, buf []byte) ([]byte, error) {
	if i != c.index {
		return c.Model.Rows(ctx, i, first, n, buf)
	}
	cols := c.infos[i].RowLen()
	out := make([]byte, 4*n*cols)
	return out, quant.EncodeRows(gguf.F32, out, c.data[first*cols:(first+n)*cols], int(cols), nil)
}

// TestRefit: a block with fitted experts lacks less, and the fit is at the minimum
// of what it minimises: a step away from it in any direction makes that larger.
func TestRefit(t *testing.T) {
	sampledBlocks(t, func(t *testing.T, b *sampledBlock) {
		keep := b.someExperts()
		if keep == nil {
			return
		}
		opt := RefitOptions{Mask: Mask{Keep: map[int][]int{b.l.number: keep}, Flatten: true}, Ridge: 0.1, Sweeps: 60}
		r := b.m.NewRefit(opt, func(context.Context, int) (*Sampled, *Sampled, error) { return b.Sampled, b.Sampled, nil })
		info := *b.l.expDown.w.info
		if !r.Has(info.Name) || r.Has("blk.99.ffn_down_exps.weight") || r.Has("output.weight") {
			t.Fatal("not the tensor that is fitted")
		}
		f := &fittedBlock{sampledBlock: b, keep: keep, model: &changedDown{Model: b.m.src, infos: slices.Clone(b.m.src.Tensors()), index: b.l.expDown.w.index}}
		f.model.infos[f.model.index].Type = gguf.F32
		f.before, f.after = make([]float32, info.Elements()), make([]float32, info.Elements())
		w := new(worker)
		rows, err := b.m.read(t.Context(), w, 0, b.l.expDown.w, 0, b.l.expDown.w.rows)
		if err != nil {
			t.Fatal(err)
		}
		copy(f.before, rows.Data)
		if err := r.Rows(t.Context(), info.Name, 0, info.Rows(), f.after); err != nil {
			t.Fatal(err)
		}
		f.check(t, 0.1)
	})
}

// someExperts keeps three quarters, nil if too few would be left.
func (b *sampledBlock) someExperts() (keep []int) {
	for e := range b.l.par.Experts {
		if e%4 != 2 {
			keep = append(keep, e)
		}
	}
	if len(keep) < b.l.par.ExpertsUsed || len(keep) == b.l.par.Experts {
		return nil
	}
	return keep
}

type fittedBlock struct {
	*sampledBlock
	keep          []int
	model         *changedDown
	before, after []float32
}

// lost is what the block lacks with a down projection.
func (f *fittedBlock) lost(t *testing.T, down []float32) float64 {
	f.model.data = down
	m, err := Load(f.model, Options{Nextn: true})
	if err != nil {
		t.Fatal(err)
	}
	p := *f.p
	p.m = m
	return f.lacks(routedOutput(t, &p, m.block(f.l.number), others(f.keep, f.l.par.Experts), true))
}

func (f *fittedBlock) check(t *testing.T, ridge float64) {
	t.Helper()
	penalty := f.penalties(t, ridge)
	objective := func(down []float32) float64 {
		sum := f.lost(t, down)
		each := len(down) / f.l.par.Experts
		for e, lambda := range penalty {
			for i := e * each; i < (e+1)*each; i++ {
				d := float64(down[i]) - float64(f.before[i])
				sum += lambda * d * d
			}
		}
		return sum
	}
	whole, least := f.lost(t, f.before), objective(f.after)
	if whole == 0 {
		return // nobody chooses those that are left out
	}
	if !(least < whole) || !(f.lost(t, f.after) < whole) {
		t.Errorf("block %d: %.6g with fitted experts, %.6g without", f.l.number, least, whole)
	}
	rng := rand.New(rand.NewPCG(1, 2))
	step, each, size := make([]float32, len(f.after)), len(f.after)/f.l.par.Experts, f.sizes()
	for range 2 {
		for sign := float32(-1); sign < 2; sign += 2 {
			for i := range step {
				if sign < 0 {
					step[i] = 0.02 * float32(rng.NormFloat64()) * size[i/each]
				}
			}
			moved := slices.Clone(f.after)
			for i, d := range step {
				moved[i] += sign * d
			}
			if got := objective(moved); got < least*(1-1e-6) {
				t.Errorf("block %d: %.9g beside the fit, %.9g in it", f.l.number, got, least)
			}
		}
	}
}

// sizes are the largest changes of the experts' down projections.
func (f *fittedBlock) sizes() []float32 {
	each, most := len(f.after)/f.l.par.Experts, make([]float32, f.l.par.Experts)
	for i, v := range f.after {
		most[i/each] = max(most[i/each], v-f.before[i], f.before[i]-v)
	}
	return most
}

// penalties are the factors on the squares of changes, of every expert.
func (f *fittedBlock) penalties(t *testing.T, ridge float64) []float64 {
	t.Helper()
	x := &fit{Sampled: f.Sampled, opt: &RefitOptions{Mask: Mask{Keep: map[int][]int{f.l.number: f.keep}, Flatten: true}}}
	if err := x.collect(t.Context(), f.Sampled); err != nil {
		t.Fatal(err)
	}
	out := make([]float64, f.l.par.Experts)
	for _, e := range x.experts {
		sum := 0.0
		for _, v := range e.phi.Data {
			sum += float64(v) * float64(v)
		}
		out[e.expert] = ridge * sum / float64(e.phi.Cols)
	}
	return out
}

// TestRefitCache: rows are the same whether the fits of blocks are held or made
// anew, and for many that ask at once; what fails may be asked for again.
func TestRefitCache(t *testing.T) {
	a := alter(t, "qwen3_moe")
	m, stats := a.load(t, Options{}), &calib.Statistics{ChunkSize: 33}
	d := stats.Domain("test")
	d.Chunks = 1
	if _, err := a.load(t, Options{Sampler: d, SampleTokens: 100}).Forward(t.Context(), someSeqs(m.Vocab(), 12, 21)); err != nil {
		t.Fatal(err)
	}
	mask := Mask{Keep: map[int][]int{0: {0, 1, 3, 5, 6}, 1: {0, 2, 4, 5, 7}}}
	var failing atomic.Bool
	source := func(ctx context.Context, l int) (*Sampled, *Sampled, error) {
		if failing.Load() {
			return nil, nil, errors.New("no sample")
		}
		sample, err := stats.Sample(l, nil)
		if err != nil {
			return nil, nil, err
		}
		s, err := m.Sampled(ctx, l, sample)
		return s, s, err
	}
	held, anew := m.NewRefit(RefitOptions{Mask: mask}, source), m.NewRefit(RefitOptions{Mask: mask, CacheBytes: 1}, source)
	names := []string{"blk.0.ffn_down_exps.weight", "blk.1.ffn_down_exps.weight"}
	rows, cols := m.layers[0].expDown.w.rows, m.layers[0].expDown.w.cols
	failing.Store(true)
	if err := anew.Rows(t.Context(), names[0], 0, 1, make([]float32, cols)); err == nil || !strings.Contains(err.Error(), "no sample") {
		t.Errorf("error %v", err)
	}
	failing.Store(false)
	var g errgroup.Group
	for i := range 16 {
		g.Go(func() error {
			got, want := make([]float32, 4*cols), make([]float32, 4*cols)
			first := int64(i * 37 % (rows - 4))
			err := errors.Join(anew.Rows(t.Context(), names[i%2], first, 4, got), held.Rows(t.Context(), names[i%2], first, 4, want))
			if err == nil && !slices.Equal(got, want) {
				err = fmt.Errorf("rows from %d of %s differ", first, names[i%2])
			}
			return err
		})
	}
	if err := g.Wait(); err != nil {
		t.Fatal(err)
	}
	if len(held.blocks) != 2 || len(anew.blocks) != 1 || len(anew.recent) != 1 {
		t.Errorf("%d and %d fits are held, want 2 and 1", len(held.blocks), len(anew.blocks))
	}
}
