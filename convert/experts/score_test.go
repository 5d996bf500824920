package experts

import (
	"errors"
	"math"
	"slices"
	"strings"
	"testing"

	"github.com/winnow-moe/winnow/formats/arch"
	"github.com/winnow-moe/winnow/formats/calib"
)

// measured are statistics of blocks 1 and 2 with 4 experts, of which a token uses
// 2, over two domains: code has 3 windows of 10 tokens, chat has 1. Expert 3 of
// block 2 is not used by code.
func measured(t *testing.T, leaveOut bool) *calib.Statistics {
	t.Helper()
	s := &calib.Statistics{ChunkSize: 10}
	for i, name := range []string{"code", "chat"} {
		d := s.Domain(name)
		d.Chunks = int64(3 - 2*i)
		tokens := float64(10 * d.Chunks)
		for _, l := range []int{1, 2} {
			sums := calib.NewExpertSums(4, leaveOut)
			sums[calib.Tokens][0] = tokens
			uses := []float64{0.9, 0.6, 0.3, 0.2}
			if l == 2 && name == "code" {
				uses = []float64{0.9, 0.6, 0.5, 0}
			}
			for e, u := range uses {
				n := math.Round(u * tokens)
				sums[calib.Selected][e] = n
				for _, stat := range []calib.Stat{calib.Gate, calib.Norm, calib.NormSquares, calib.Weighted, calib.WeightedSquare, calib.Easy} {
					sums[stat][e] = n * float64((1+e)*(1+int(stat)+i))
				}
				if leaveOut {
					sums[calib.LeaveOut][e] = n * float64(7+e)
				}
				sums[calib.MaxAbs][e] = float64(1 + e + i)
			}
			if l == 1 {
				sums[calib.MaxAbs][2] = 100
			}
			if err := d.Experts(l, sums); err != nil {
				t.Fatal(err)
			}
		}
	}
	return s
}

// TestScoreWeights computes weighted means by hand: with weights a and b of
// domains with T_a and T_b tokens, sums of a count a/(a+b)·(T_a+T_b)/T_a times.
func TestScoreWeights(t *testing.T) {
	s := measured(t, true)
	gate := 1 + float64(calib.Weighted)
	for _, c := range []struct {
		weights calib.Weights
		code    float64 // factors on the sums
		chat    float64
	}{
		{nil, 1, 1},
		{calib.Weights{"code": 3, "chat": 1}, 1, 1},
		{calib.Weights{"code": .5, "chat": .5}, .5 * 40 / 30, .5 * 40 / 10},
		{calib.Weights{"chat": 2}, 0, 4},
	} {
		got, err := Score(s, "reap_sum", c.weights)
		if err != nil {
			t.Fatal(err)
		}
		for e, u := range []float64{0.9, 0.6, 0.3, 0.2} {
			want := (c.code*30*u*gate + c.chat*10*u*(gate+1)) * float64(1+e) / 40
			if v := got.Blocks[1][e]; math.Abs(v-want) > 1e-12*want {
				t.Errorf("weights %v, expert %d: %v, want %v", c.weights, e, v, want)
			}
		}
	}
	reap, err := Score(s, "reap", calib.Weights{"code": 1})
	if err != nil {
		t.Fatal(err)
	}
	if want := []float64{gate, 2 * gate, 3 * gate, 0}; !slices.Equal(reap.Blocks[2], want) {
		t.Errorf("reap %v, want %v: nothing for an expert without tokens", reap.Blocks[2], want)
	}
	for name, weights := range map[string]calib.Weights{"another domain": {"docs": 1}, "nothing": {"code": 0}} {
		if _, err := Score(s, "reap", weights); !errors.Is(err, calib.ErrInvalid) {
			t.Errorf("weights of %s: %v", name, err)
		}
	}
}

// TestScoreMax takes by hand the larger of an expert's shares in two kinds of
// text, of which code does not use expert 3 of block 2.
func TestScoreMax(t *testing.T) {
	s := measured(t, false)
	code, chat := []float64{1. / 6, 2. / 6, 3. / 6, 0}, []float64{.1, .2, .3, .4}
	for _, c := range []struct {
		weights calib.Weights
		want    func(e int) float64
	}{
		{nil, func(e int) float64 { return max(code[e], chat[e]) }},
		{calib.Weights{"code": .5, "chat": 2}, func(e int) float64 { return max(.5*code[e], 2*chat[e]) }},
		{calib.Weights{"chat": 1}, func(e int) float64 { return chat[e] }},
		{calib.Weights{"code": 3, "chat": 0}, func(e int) float64 { return 3 * code[e] }},
	} {
		got, err := ScoreMax(s, "reap", c.weights)
		if err != nil || got.Rule != "reap" || got.Experts != 4 || len(got.Blocks) != 2 {
			t.Fatalf("%+v, %v", got, err)
		}
		for e, v := range got.Blocks[2] {
			if want := c.want(e); math.Abs(v-want) > 1e-12 {
				t.Errorf("weights %v, expert %d: %v, want %v", c.weights, e, v, want)
			}
		}
		if !slices.Equal(got.Super, []Expert{{1, 2}}) {
			t.Errorf("super experts %v", got.Super)
		}
	}
	if _, err := ScoreMax(s, "reap", calib.Weights{"docs": 1}); !errors.Is(err, calib.ErrInvalid) {
		t.Errorf("weights of another domain: %v", err)
	}
}

// TestSuper: an expert far above all others in the first three quarters of the
// blocks is protected.
func TestSuper(t *testing.T) {
	s := measured(t, false)
	scores, err := Score(s, "frequency", nil)
	if err != nil {
		t.Fatal(err)
	}
	if want := []Expert{{1, 2}}; !slices.Equal(scores.Super, want) {
		t.Errorf("%v, want %v", scores.Super, want)
	}
	k, err := Select(scores, model(0), Options{Keep: 2})
	if err != nil {
		t.Fatal(err)
	}
	if !slices.Equal(k.Blocks[1], []int{0, 2}) || !slices.Equal(k.Blocks[2], []int{0, 1}) {
		t.Errorf("%v, want the super expert 2 of block 1 and else the most frequent", k.Blocks)
	}
	for _, q := range []struct{ at, want float64 }{{0, 1}, {0.5, 2.5}, {1, 4}, {0.9, 3.7}} {
		if v := quantile([]float64{1, 2, 3, 4}, q.at); math.Abs(v-q.want) > 1e-12 {
			t.Errorf("quantile %v: %v, want %v", q.at, v, q.want)
		}
	}
}

func TestScoreRefused(t *testing.T) {
	if _, err := Score(measured(t, false), "loo", nil); !errors.Is(err, ErrInvalid) || !strings.Contains(err.Error(), "leave_out") {
		t.Errorf("statistic that was not measured: %v", err)
	}
	if s, err := Score(measured(t, true), "loo", nil); err != nil || s.Blocks[1][1] <= 0 {
		t.Errorf("%v, %v", s, err)
	}
	if _, err := Score(measured(t, true), "best", nil); !errors.Is(err, ErrRefused) {
		t.Errorf("unknown rule: %v", err)
	}
	if _, err := Score(&calib.Statistics{}, "reap", nil); !errors.Is(err, ErrInvalid) {
		t.Errorf("no statistics: %v", err)
	}
	if list := Rules(); len(list) != len(rules)+2 || list[len(rules)].Name != GreedyRule || list[len(rules)+1].Name != RandomRule {
		t.Errorf("%v", Rules())
	}
}

func TestRandom(t *testing.T) {
	a, b, c := Random(model(0), 1), Random(model(0), 1), Random(model(0), 2)
	if !slices.Equal(a.Blocks[1], b.Blocks[1]) || slices.Equal(a.Blocks[1], c.Blocks[1]) || slices.Equal(a.Blocks[1], a.Blocks[2]) || len(a.Blocks[2]) != 4 {
		t.Errorf("%v, %v, %v", a.Blocks, b.Blocks, c.Blocks)
	}
}

func TestCheckStatistics(t *testing.T) {
	if err := CheckStatistics(&calib.Statistics{}, &arch.Params{Layers: 3}, 0); !errors.Is(err, ErrInvalid) || !strings.Contains(err.Error(), "no routed experts") {
		t.Errorf("dense model: %v", err)
	}
	for name, change := range map[string]func(*arch.Params){
		"of 4 experts per block, the model has 8": func(p *arch.Params) { p.Experts = 8 },
		"lack block 3":                      func(p *arch.Params) { p.Layers = 4 },
		"block 1, where the model has none": func(p *arch.Params) { p.LeadingDense = 2 },
		"choose 1 experts":                  func(p *arch.Params) { p.ExpertsUsed = 1 },
	} {
		p := model(0)
		change(p)
		if err := CheckStatistics(measured(t, false), p, 0); !errors.Is(err, ErrInvalid) || !strings.Contains(err.Error(), name) {
			t.Errorf("got %v, want %q", err, name)
		}
	}
	p, s := model(0), measured(t, false)
	if err := s.Domains[0].Input([]string{downName(1)}, 0, 4, 1, make([]float64, p.ExpertFF)); err != nil {
		t.Fatal(err)
	}
	p.Layers--
	if err := CheckStatistics(s, p, 1); err != nil {
		t.Errorf("a block that the model was opened without: %v", err)
	}
}

// TestScoreCommonBlocks: a block that some of the texts were not measured on has no
// score.
func TestScoreCommonBlocks(t *testing.T) {
	s := measured(t, false)
	s.Domain("none")
	if err := s.Domains[0].Experts(3, calib.NewExpertSums(4, false)); err != nil {
		t.Fatal(err)
	}
	for _, weights := range []calib.Weights{nil, {"code": 1, "chat": 1}} {
		scores, err := Score(s, "reap", weights)
		if err != nil || len(scores.Blocks) != 2 || scores.Blocks[3] != nil {
			t.Errorf("weights %v: blocks %v, %v", weights, scores, err)
		}
	}
	if scores, err := Score(s, "reap", calib.Weights{"code": 1}); err != nil || len(scores.Blocks[3]) != 4 {
		t.Errorf("blocks %v, %v", scores, err)
	}
}
