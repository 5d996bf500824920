package engine

import (
	"math"
	"slices"
	"testing"

	"github.com/winnow-moe/winnow/engine/kernel"
	"github.com/winnow-moe/winnow/formats/arch"
	"github.com/winnow-moe/winnow/formats/calib"
	"github.com/winnow-moe/winnow/testdata/fixtures"
)

// statistics keeps what is told of experts, summed.
type statistics map[int]*calib.ExpertSums

func (statistics) Input([]string, int, int, int64, []float64) error { return nil }

func (s statistics) Experts(block int, sums *calib.ExpertSums) error {
	if s[block] == nil {
		s[block] = sums
		return nil
	}
	for i, v := range sums {
		addAll(s[block][i], v)
	}
	return nil
}

func addAll(dst, v []float64) {
	for i, f := range v {
		dst[i] += f
	}
}

// TestLeaveOneOut compares with the outputs of blocks whose routers cannot choose
// an expert: its logit is -∞ (its score for the choice, where that is another),
// and tokens are routed and experts run anew, for every expert of every family.
func TestLeaveOneOut(t *testing.T) {
	expertBlocks(t, func(t *testing.T, a *altered, seqs [][]int32) func(p *pass, l *layer) {
		got := statistics{}
		if _, err := a.load(t, Options{Observer: got, LeaveOneOut: true}).Forward(t.Context(), seqs); err != nil {
			t.Fatal(err)
		}
		return func(p *pass, l *layer) { maskExperts(t, p, l, got[l.number][calib.LeaveOut]) }
	})
}

// expertBlocks takes two sequences through a model of every family that has
// experts, and calls what prepare returns in front of every block with some.
func expertBlocks(t *testing.T, prepare func(t *testing.T, a *altered, seqs [][]int32) func(p *pass, l *layer)) {
	for _, family := range fixtures.Families(t) {
		t.Run(family, func(t *testing.T) {
			a := alter(t, family)
			m := a.load(t, Options{Nextn: true})
			if !slices.ContainsFunc(m.layers, func(l layer) bool { return l.router.w != nil }) {
				t.SkipNow()
			}
			seqs := someSeqs(m.Vocab(), 12, 21)
			do := prepare(t, a, seqs)
			p := &pass{m: m}
			h := &Hidden{rows: kernel.NewMatrix(make([]float32, 33*m.embd.cols), 33, m.embd.cols), seqs: []span{{0, 12}, {12, 21}}}
			p.start(h, seqs, h.seqs)
			var err error
			if p.factors, err = m.ropeFactors(t.Context()); err != nil {
				t.Fatal(err)
			}
			if err := p.embed(t.Context(), p.m.embd, p.x); err != nil {
				t.Fatal(err)
			}
			for i := range len(m.layers) + len(m.nextn) {
				l := m.block(i)
				reachBlock(t, p, l)
				if l.router.w != nil {
					before := slices.Clone(p.x.Data)
					do(p, l)
					copy(p.x.Data, before)
				}
				if err := p.block(t.Context(), l); err != nil {
					t.Fatal(err)
				}
			}
		})
	}
}

// maskExperts compares what is told of a block's experts.
func maskExperts(t *testing.T, p *pass, l *layer, got []float64) {
	t.Helper()
	reachExperts(t, p, l)
	whole := masked(t, p, l, -1)
	for e := range got {
		want := 0.0
		for i, v := range masked(t, p, l, int32(e)) {
			d := float64(whole[i]) - float64(v)
			want += d * d
		}
		if math.Abs(got[e]-want) > 1e-4*want+1e-12 {
			t.Errorf("block %d, expert %d: %.8g, want %.8g", l.number, e, got[e], want)
		}
	}
}

// reachExperts runs a block up to its experts.
func reachExperts(t *testing.T, p *pass, l *layer) {
	t.Helper()
	kind := &p.m.arch.Family.Block
	ffnNorm, postAttn := l.ffnNorm, l.postAttn
	if kind.FFNNorm == arch.PostAttnNorm {
		ffnNorm, postAttn = l.postAttn, affine{}
	}
	if err := p.input(t.Context(), l.attnNorm); err != nil {
		t.Fatal(err)
	}
	if err := p.branch(t.Context(), postAttn, func() error { return p.attention(t.Context(), l) }); err != nil {
		t.Fatal(err)
	}
	if kind.BesideDense {
		ffnNorm = affine{w: l.preFFN2}
	}
	if !p.m.Params().Parallel && kind.Residual != arch.ParallelNorm {
		if err := p.input(t.Context(), ffnNorm); err != nil {
			t.Fatal(err)
		}
	}
}

// masked returns what the routed experts of a block add, without expert e.
func masked(t *testing.T, p *pass, l *layer, e int32) []float32 {
	t.Helper()
	ctx, used := t.Context(), l.par.ExpertsUsed
	in, err := p.routerInput(ctx, l)
	if err != nil {
		t.Fatal(err)
	}
	logits := kernel.NewMatrix(make([]float32, p.x.Rows*l.par.Experts), p.x.Rows, l.par.Experts)
	if err := p.m.multiply(ctx, whole(l.router.w, in, logits)); err != nil {
		t.Fatal(err)
	}
	if err := p.addBias(ctx, logits, l.router.b, 0); err != nil {
		t.Fatal(err)
	}
	bias, err := p.m.vector(ctx, l.routerChoice)
	if err != nil {
		t.Fatal(err)
	}
	factors, err := p.m.vector(ctx, l.expScale)
	if err != nil {
		t.Fatal(err)
	}
	chosen, weight := make([]int32, p.x.Rows*used), make([]float32, p.x.Rows*used)
	for i := range p.x.Rows {
		maskedChoice(p, l, logits.Row(i), bias, e, chosen[i*used:][:used], weight[i*used:][:used])
	}
	for i, e := range chosen {
		if factors != nil {
			weight[i] *= factors[e]
		}
	}
	nets, err := p.byExpert(ctx, l, chosen, weight)
	if err != nil {
		t.Fatal(err)
	}
	defer func(out kernel.Matrix) { p.out = out }(p.out)
	p.out = kernel.NewMatrix(make([]float32, p.x.Rows*p.x.Cols), p.x.Rows, p.x.Cols)
	if err := p.networks(ctx, nets); err != nil {
		t.Fatal(err)
	}
	return p.out.Data
}

// maskedChoice routes a token that chose expert e without it. The groups stay
// those of the whole model, and what a bias does to the choice; a token without
// another expert in its groups is routed to one fewer.
func maskedChoice(p *pass, l *layer, logits, bias []float32, e int32, chosen []int32, weight []float32) {
	none := float32(math.Inf(-1))
	if p.m.arch.Family.Block.SparseMixer {
		sparseMixer(slices.Clone(logits), chosen, weight)
		if slices.Contains(chosen, e) {
			logits[e] = none
			sparseMixer(logits, chosen, weight)
		}
		return
	}
	kind := &p.m.arch.Family.Block
	r := newRouter(kind, l.par, bias, nil)
	r.choose(slices.Clone(logits), chosen, weight)
	if e < 0 || !slices.Contains(chosen, e) {
		return
	}
	choice := make([]float32, len(logits))
	copy(choice, bias)
	if r.choice[e] = none; bias != nil && l.par.Gating == arch.GatingSoftmax {
		copy(choice, r.choice) // which a softmax over the others would change
		best := make([]int32, len(chosen))
		top(best, choice)
		for _, i := range best {
			choice[i] = 1000
		}
	}
	left := 0
	for i, v := range r.choice {
		if math.IsInf(float64(v), -1) {
			choice[i] = none
		} else {
			left++
		}
	}
	if logits[e] = none; l.par.Gating == arch.GatingSigmoid {
		logits[e] = 0 // the bias makes it last
	}
	par := *l.par
	par.ExpertGroups = 0
	masked := newRouter(kind, &par, choice, nil)
	if n := min(left, len(chosen)); n < len(chosen) {
		clear(weight[n:])
		chosen, weight = chosen[:n], weight[:n]
	}
	masked.choose(logits, chosen, weight)
}
