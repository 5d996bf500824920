package verify

import (
	"math"
	"reflect"
	"slices"
	"testing"
)

func TestCompareWithItself(t *testing.T) {
	text := someText(t, 400, 32, 17)
	c, err := Compare(t.Context(), wavy(17, 3), wavy(17, 3), text, Options{BatchTokens: 64})
	if err != nil {
		t.Fatal(err)
	}
	if c.KLD != (Distribution{}) || c.DeltaP != (Distribution{}) || c.DeltaPRMS != (Estimate{}) {
		t.Errorf("a model differs from itself: %+v", c)
	}
	if c.SameTop != (Estimate{100, 0}) || c.LogRatio != (Estimate{}) || c.Ratio != (Estimate{1, 0}) || c.PPL != c.Base {
		t.Errorf("a model differs from itself: %+v", c)
	}
	near(t, "correlation", c.Correlation, 1, 1e-12)
	near(t, "error of the difference", c.Difference.Error, 0, 1e-6)
	p, err := Perplexity(t.Context(), wavy(17, 3), text, Options{})
	if err != nil {
		t.Fatal(err)
	}
	near(t, "ppl of Compare and Perplexity", c.PPL.Value, p.PPL.Value, 1e-12)
}

// TestCompare takes every number the long way: probabilities by the textbook
// softmax, Σ p·ln(p/q), and errors from running sums as llama-perplexity
// writes them.
func TestCompare(t *testing.T) {
	const vocab = 19
	text, base, model := someText(t, 900, 64, vocab), wavy(vocab, 2), wavy(vocab, 2)
	model.logit = func(token int32, pos, id int) float64 {
		return float64(float32(base.logit(token, pos, id) + 0.3*base.logit(token, 3*pos, id)))
	}
	got, err := Compare(t.Context(), base, model, text, Options{})
	if err != nil {
		t.Fatal(err)
	}
	var n, a, a2, b, b2, ab, k, k2, d2, d4, same float64
	var klds []float64
	for _, tokens := range text.Windows {
		for pos := 32; pos <= 62; pos++ {
			nll := -math.Log(model.probability(tokens[pos], pos, int(tokens[pos+1])))
			nllBase := -math.Log(base.probability(tokens[pos], pos, int(tokens[pos+1])))
			kld, top, topBase := 0.0, 0, 0
			for id := range vocab {
				p, q := base.probability(tokens[pos], pos, id), model.probability(tokens[pos], pos, id)
				kld += p * math.Log(p/q)
				if p > base.probability(tokens[pos], pos, topBase) {
					topBase = id
				}
				if q > model.probability(tokens[pos], pos, top) {
					top = id
				}
			}
			if top == topBase {
				same++
			}
			d := math.Exp(-nll) - math.Exp(-nllBase)
			n, a, a2, b, b2, ab = n+1, a+nll, a2+nll*nll, b+nllBase, b2+nllBase*nllBase, ab+nll*nllBase
			k, k2, d2, d4, klds = k+kld, k2+kld*kld, d2+d*d, d4+d*d*d*d, append(klds, kld)
		}
	}
	slices.Sort(klds)
	stderr := func(sum, sum2 float64) float64 { return math.Sqrt((sum2/n - sum/n*sum/n) / (n - 1)) }
	cov := (ab/n - a/n*b/n) / (n - 1)
	ea, eb := stderr(a, a2), stderr(b, b2)
	ppl, pplBase := math.Exp(a/n), math.Exp(b/n)
	ratioError := math.Sqrt(ea*ea + eb*eb - 2*cov)
	for _, c := range []struct {
		what      string
		got, want float64
	}{
		{"ppl", got.PPL.Value, ppl}, {"ppl error", got.PPL.Error, ppl * ea},
		{"base ppl", got.Base.Value, pplBase}, {"base ppl error", got.Base.Error, pplBase * eb},
		{"correlation", got.Correlation, cov / (ea * eb)},
		{"log ratio", got.LogRatio.Value, a/n - b/n}, {"log ratio error", got.LogRatio.Error, ratioError},
		{"ratio", got.Ratio.Value, ppl / pplBase}, {"ratio error", got.Ratio.Error, ppl / pplBase * ratioError},
		{"difference", got.Difference.Value, ppl - pplBase},
		{"difference error", got.Difference.Error, math.Sqrt(ppl*ea*ppl*ea + pplBase*eb*pplBase*eb - 2*ppl*pplBase*cov)},
		{"kld", got.KLD.Mean.Value, k / n}, {"kld error", got.KLD.Mean.Error, stderr(k, k2)},
		{"kld max", got.KLD.Max, klds[len(klds)-1]}, {"kld min", got.KLD.Min, klds[0]},
		{"Δp rms", got.DeltaPRMS.Value, 100 * math.Sqrt(d2/n)},
		{"Δp rms error", got.DeltaPRMS.Error, 100 * 0.5 / math.Sqrt(d2/n) * stderr(d2, d4)},
		{"same top", got.SameTop.Value, 100 * same / n},
		{"same top error", got.SameTop.Error, 100 * math.Sqrt(same/n*(1-same/n)/(n-1))},
	} {
		near(t, c.what, c.got, c.want, 1e-9)
	}
	if got.Scored != int(n) || same == 0 || same == n {
		t.Errorf("%d scored, %g of %g with the same top: the test shows little", got.Scored, same, n)
	}
}

// TestKnownDivergence: one prediction of (1/2, 1/4, 1/4) beside (1/4, 1/2, 1/4)
// diverges by 1/2·ln 2 - 1/4·ln 2 = ln(2)/4.
func TestKnownDivergence(t *testing.T) {
	table := func(p ...float64) *fakeModel {
		return &fakeModel{vocab: 3, logit: func(_ int32, _, id int) float64 { return 5 + math.Log(p[id]) }}
	}
	text := &Text{Windows: [][]int32{{0, 0, 1}, {0, 0, 2}}}
	c, err := Compare(t.Context(), table(0.5, 0.25, 0.25), table(0.25, 0.5, 0.25), text, Options{})
	if err != nil {
		t.Fatal(err)
	}
	near(t, "kld", c.KLD.Mean.Value, math.Ln2/4, 1e-6)
	near(t, "Δp of token 1", c.DeltaP.Max, 25, 1e-5)
	near(t, "Δp of token 2", c.DeltaP.Min, 0, 1e-5)
	near(t, "Δp mean", c.DeltaP.Mean.Value, 12.5, 1e-5)
	near(t, "Δp rms", c.DeltaPRMS.Value, 25/math.Sqrt2, 1e-5)
	near(t, "base ppl", c.Base.Value, 4, 1e-5)
	near(t, "ppl", c.PPL.Value, math.Sqrt(8), 1e-5)
	near(t, "same top", c.SameTop.Value, 0, 0)
}

// TestDistribution: values 0…1000 in disorder are their own percentiles.
func TestDistribution(t *testing.T) {
	v := make([]float64, 1001)
	for i := range v {
		v[i] = float64((i * 17) % 1001)
	}
	want := Distribution{Mean: Estimate{500, math.Sqrt(1001*1001-1) / math.Sqrt(12) / math.Sqrt(1000)},
		Max: 1000, P999: 999, P99: 990, P95: 950, P90: 900, P75: 750, Median: 500, P25: 250, P10: 100, P5: 50, P1: 10, P01: 1}
	got := distribution(v)
	near(t, "error", got.Mean.Error, want.Mean.Error, 1e-9)
	got.Mean.Error = want.Mean.Error
	for _, c := range []struct{ got, want float64 }{{got.P999, want.P999}, {got.P99, want.P99}, {got.P95, want.P95}, {got.P01, want.P01}, {got.P1, want.P1}} {
		near(t, "percentile", c.got, c.want, 1e-9)
	}
	if got.Median != 500 || got.Max != 1000 || got.Min != 0 || got.P75 != 750 || got.P25 != 250 || got.Mean.Value != 500 {
		t.Errorf("got %+v", got)
	}
	if m := percentile([]float64{1, 2, 4, 8}, 0.5); m != 3 {
		t.Errorf("median of an even number of values: %g, want the mean of the middle two", m)
	}
	if one := distribution([]float64{7}); one.Mean != (Estimate{7, 0}) || one.Median != 7 || one.P01 != 7 {
		t.Errorf("one value: %+v", one)
	}
}

// TestCompareAll: models that share a base get what each gets alone.
func TestCompareAll(t *testing.T) {
	text := &Text{Windows: [][]int32{{1, 2, 3, 4, 5, 6, 7, 8}, {8, 7, 6, 5, 4, 3, 2, 1}}}
	base, models := wavy(17, 3), []Scorer[*fakeHidden]{wavy(17, 5), wavy(17, 9)}
	all, err := CompareAll(t.Context(), base, models, text, Options{})
	if err != nil {
		t.Fatal(err)
	}
	for i, m := range models {
		alone, err := Compare(t.Context(), base, m, text, Options{})
		if err != nil {
			t.Fatal(err)
		}
		if !reflect.DeepEqual(alone, all[i]) {
			t.Errorf("model %d: %+v beside others, %+v alone", i, all[i], alone)
		}
	}
	if all[0].KLD.Mean == all[1].KLD.Mean {
		t.Error("two different models have the same divergence")
	}
}
