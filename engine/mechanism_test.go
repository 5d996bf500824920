package engine

import (
	"math"
	"slices"
	"testing"

	"github.com/winnow-moe/winnow/formats/arch"
)

// Frequencies computed by transformers 5.23 (ROPE_INIT_FUNCTIONS). They are
// float32 all the way there, hence the tolerance.
func TestRopeFrequencies(t *testing.T) {
	deepseekV3 := arch.Params{RopeDim: 64, RopeBase: 10000, RopeScaling: "yarn", RopeFactor: 40, RopeOrigContext: 4096, YarnBetaFast: 32, YarnBetaSlow: 1, YarnLogMul: 0.1}
	tests := []struct {
		name  string
		p     arch.Params
		want  []float32
		scale float32
	}{
		{"DeepSeek V3", deepseekV3, []float32{
			1, 0.749894202, 0.562341332, 0.421696514, 0.316227764, 0.237137362, 0.177827939, 0.133352146, 0.100000001, 0.0749894157, 0.0562341288,
			0.0390069261, 0.0268793609, 0.0183781441, 0.012447956, 0.0083345091, 0.00550000044, 0.00356199732, 0.00224936521, 0.00137051346, 0.000790569407,
			0.000414990413, 0.00017782794, 3.3338034e-05, 2.49999994e-05, 1.87473543e-05, 1.40585325e-05, 1.05424124e-05, 7.90569447e-06, 5.92843435e-06,
			4.44569832e-06, 3.33380353e-06}, 1},
		{"linear", arch.Params{RopeDim: 16, RopeBase: 500000, RopeScaling: "linear", RopeFactor: 4}, []float32{
			0.25, 0.0484806895, 0.00940150768, 0.00182316627, 0.000353553361, 6.85620471e-05, 1.32957393e-05, 2.57834631e-06}, 1},
		{"yarn with defaults", arch.Params{RopeDim: 16, RopeBase: 10000, RopeScaling: "yarn", RopeFactor: 8, RopeOrigContext: 256}, []float32{
			1, 0.247052938, 0.0562500022, 0.01087033, 0.00124999997, 0.000395284733, 0.000125000006, 3.95284733e-05}, 1.2079441541679836},
		{"yarn of the trained context", arch.Params{RopeDim: 16, RopeBase: 10000, RopeScaling: "yarn", RopeFactor: 8, Context: 256, YarnAttnFactor: 1.5}, []float32{
			1, 0.247052938, 0.0562500022, 0.01087033, 0.00124999997, 0.000395284733, 0.000125000006, 3.95284733e-05}, 1.5},
		{"Kimi K2: both betas 1", arch.Params{RopeDim: 16, RopeBase: 50000, RopeScaling: "yarn", RopeFactor: 32, RopeOrigContext: 4096, YarnBetaFast: 1, YarnBetaSlow: 1, YarnLogMul: 0.1}, []float32{
			1, 0.258600146, 0.0668740347, 0.0172936339, 0.00447213603, 3.61404673e-05, 9.34593027e-06, 2.41685871e-06}, 1},
	}
	for _, tc := range tests {
		r, err := newRope(&tc.p, arch.RopeAdjacent, nil)
		if err != nil {
			t.Errorf("%s: %v", tc.name, err)
			continue
		}
		if math.Abs(float64(r.scale-tc.scale)) > 1e-6 {
			t.Errorf("%s: scale of cos and sin %g, want %g", tc.name, r.scale, tc.scale)
		}
		if len(r.freq) != len(tc.want) {
			t.Errorf("%s: %d frequencies, want %d", tc.name, len(r.freq), len(tc.want))
			continue
		}
		for i, f := range r.freq {
			if math.Abs(float64(f/tc.want[i]-1)) > 1e-5 {
				t.Errorf("%s: frequency %d is %g, want %g", tc.name, i, f, tc.want[i])
			}
		}
	}
}

// HF's yarn_apply_mscale for DeepSeek V3, and without mscale_all_dim.
func TestScoreScale(t *testing.T) {
	m := &arch.Model{Family: &arch.Family{Block: arch.Block{Attn: arch.MLA}}, Params: arch.Params{KeyLenMLA: 192, RopeScaling: "yarn", RopeFactor: 40, YarnLogMul: 0.1}}
	if got := scoreScale(m, m.Params.HeadDim()); math.Abs(float64(got)-0.1352337788608801) > 1e-8 {
		t.Errorf("scale %.9g, want 0.135233779", got)
	}
	m.Params.YarnLogMul = 0
	if got := scoreScale(m, m.Params.HeadDim()); math.Abs(float64(got)-0.07216878364870322) > 1e-8 {
		t.Errorf("scale without mscale_all_dim %.9g, want 0.0721687836", got)
	}
	m.Params.YarnLogMul, m.Params.RopeFactor = 0.1, 1
	if got := scoreScale(m, m.Params.HeadDim()); math.Abs(float64(got)-0.07216878364870322) > 1e-8 {
		t.Errorf("scale at factor 1 %.9g, want 0.0721687836", got)
	}
}

// TestRotate compares with complex multiplication, in both layouts.
func TestRotate(t *testing.T) {
	r := rope{freq: []float32{1, 0.25, 0.01}, scale: 2, pairs: arch.RopeAdjacent}
	x := []float32{1, 2, 3, 4, 5, 6}
	adjacent, halves := slices.Clone(x), []float32{1, 3, 5, 2, 4, 6}
	r.table(8).rotate(adjacent, 7)
	r.pairs = arch.RopeHalves
	r.table(8).rotate(halves, 7)
	for i, f := range r.freq {
		sin, cos := math.Sincos(7 * float64(f))
		want := complex(float64(x[2*i]), float64(x[2*i+1])) * complex(2*cos, 2*sin)
		if d := math.Hypot(float64(adjacent[2*i])-real(want), float64(adjacent[2*i+1])-imag(want)); d > 1e-5 {
			t.Errorf("pair %d: %v, want %v", i, adjacent[2*i:2*i+2], want)
		}
		if halves[i] != adjacent[2*i] || halves[i+3] != adjacent[2*i+1] {
			t.Errorf("pair %d: halves %v, adjacent %v", i, halves, adjacent)
		}
	}
}

// routerLogits of three tokens for twelve experts.
var routerLogits = [][]float32{
	{-0.08, 0.36, -0.78, 0.07, 0.66, -0.29, 1.62, -1.6, -0.05, -0.31, 0.25, -0.22},
	{0.91, 0.2, 0.57, 0.42, 0.26, 0.93, -0.51, -1.65, 0.04, -0.07, 0.43, -0.87},
	{-1.2, 1.03, 0.07, -0.18, -0.96, 0.06, 0.66, 0.82, 0.56, -0.25, -1.08, 0.59},
}

// Choices and weights computed by transformers 5.23 (DeepseekV2TopkRouter with
// group_limited_greedy, DeepseekV3TopkRouter with a bias). By weight and by
// biased score.
func TestRouter(t *testing.T) {
	bias := []float32{0.3, -0.9, 0.1, 0.2, -0.4, 0.5, -1.2, 0.05, 0.6, -0.1, 0.25, -0.7}
	p := arch.Params{Experts: 12, ExpertsUsed: 4, ExpertGroups: 4, GroupsUsed: 2}
	v2, v3 := p, p
	v2.Gating, v2.ExpertScale = arch.GatingSoftmax, 16
	v3.Gating, v3.ExpertScale, v3.ExpertNorm = arch.GatingSigmoid, 2.5, true
	tests := []struct {
		name    string
		p       *arch.Params
		bias    []float32
		token   int
		experts []int32
		weights []float32
	}{
		{"V2", &v2, nil, 0, []int32{6, 4, 3, 8}, []float32{5.18377829, 1.98483193, 1.10024643, 0.975831091}},
		{"V2", &v2, nil, 1, []int32{5, 0, 2, 3}, []float32{2.60796356, 2.55632234, 1.81951439, 1.56607056}},
		{"V2", &v2, nil, 2, []int32{1, 7, 6, 8}, []float32{2.92289257, 2.36925077, 2.01894236, 1.82681453}},
		{"V3", &v3, bias, 0, []int32{8, 5, 3, 4}, []float32{0.582507253, 0.511413336, 0.618342042, 0.78773725}},
		{"V3", &v3, bias, 1, []int32{5, 0, 3, 2}, []float32{0.670835435, 0.667023122, 0.564568281, 0.597573221}},
		{"V3", &v3, bias, 2, []int32{8, 5, 7, 3}, []float32{0.69155401, 0.559581757, 0.754340589, 0.494523644}},
	}
	for _, tc := range tests {
		experts, weights := make([]int32, 4), make([]float32, 4)
		newRouter(&arch.Block{}, tc.p, tc.bias, nil).choose(slices.Clone(routerLogits[tc.token]), experts, weights)
		if !slices.Equal(experts, tc.experts) {
			t.Errorf("%s, token %d: experts %v, want %v", tc.name, tc.token, experts, tc.experts)
		}
		if d := maxDiff(t, weights, tc.weights); d > 2e-6 {
			t.Errorf("%s, token %d: weights %v, want %v", tc.name, tc.token, weights, tc.weights)
		}
	}
}

// Choices and weights computed by transformers 5.23 (sparsemixer outside
// training, jitter 0.01): logits near the best, below zero, and around it.
func TestSparseMixer(t *testing.T) {
	tests := []struct {
		logits  []float32
		experts []int32
		weights []float32
	}{
		{[]float32{1, 0.99, 0.985, -1, 0.5}, []int32{0, 1}, []float32{0.336116165, 0.501249969}},
		{[]float32{-0.505, -0.5, -0.6, -2, -0.509}, []int32{1, 0}, []float32{0.334890246, 0.500999987}},
		{[]float32{0.02, 0, -0.01, 0.0199, -3}, []int32{0, 3}, []float32{0.500025034, 1}},
	}
	for _, tc := range tests {
		experts, weights := make([]int32, 2), make([]float32, 2)
		sparseMixer(slices.Clone(tc.logits), experts, weights)
		if !slices.Equal(experts, tc.experts) || maxDiff(t, weights, tc.weights) > 1e-6 {
			t.Errorf("%v: experts %v with %v, want %v with %v", tc.logits, experts, weights, tc.experts, tc.weights)
		}
	}
}

func TestTop(t *testing.T) {
	tests := []struct {
		values []float32
		want   []int32
	}{
		{[]float32{3, 1, 2}, []int32{0, 2}},
		{[]float32{1, 1, 1}, []int32{0, 1}},
		{[]float32{1, 2, 3, 3}, []int32{2, 3}},
		{[]float32{float32(math.Inf(-1)), -1, float32(math.Inf(-1))}, []int32{1, 0}},
	}
	for _, tc := range tests {
		best := make([]int32, 2)
		if top(best, tc.values); !slices.Equal(best, tc.want) {
			t.Errorf("top of %v: %v, want %v", tc.values, best, tc.want)
		}
	}
}

// TestLargest: chosen indices ascend, the first of equal values wins, and what
// is gathered by them is scattered back.
func TestLargest(t *testing.T) {
	tests := []struct {
		values []float32
		want   []int32
	}{
		{[]float32{3, 1, 2}, []int32{0, 2}},
		{[]float32{0, 0, 1, 0}, []int32{0, 2}},
		{[]float32{-1, 5, 5, 5}, []int32{1, 2}},
		{[]float32{-2, -1}, []int32{0, 1}},
	}
	for _, tc := range tests {
		best := make([]int32, 2)
		if largest(best, tc.values, make([]float32, len(tc.values))); !slices.Equal(best, tc.want) {
			t.Errorf("largest of %v: %v, want %v", tc.values, best, tc.want)
		}
		x, want := slices.Clone(tc.values), make([]float32, len(tc.values))
		for i, v := range gather(x, best) {
			want[best[i]] = v
			if v != tc.values[best[i]] {
				t.Errorf("gathered from %v: %v", tc.values, x)
			}
		}
		if scatter(x, best); !slices.Equal(x, want) {
			t.Errorf("scattered %v, want %v", x, want)
		}
	}
}
