package verify

import (
	"context"
	"fmt"
	"math"

	"github.com/winnow-moe/winnow/engine"
)

// Comparison says how far a model's predictions lie from those of a base
// model. The numbers and their order are those of llama-perplexity
// --kl-divergence, computed from both models' full logits instead of from a
// file of 16-bit log-probabilities.
type Comparison struct {
	// Definition says what the numbers are.
	Definition string `json:"definition"`
	// PPL and Base are the perplexities of the model and of the base.
	PPL  Estimate `json:"ppl"`
	Base Estimate `json:"ppl_base"`
	// Correlation is that of the two models' nll.
	Correlation float64 `json:"correlation"`
	// LogRatio is ln(PPL/Base), Ratio PPL/Base and Difference PPL-Base. Their
	// errors take the covariance of the two perplexities into account.
	LogRatio   Estimate `json:"ln_ppl_ratio"`
	Ratio      Estimate `json:"ppl_ratio"`
	Difference Estimate `json:"ppl_difference"`
	// KLD is the Kullback-Leibler divergence of the model's prediction from
	// the base's, Σ p_base·ln(p_base/p), in nats per token.
	KLD Distribution `json:"kld"`
	// DeltaP is the change of the probability of the text's token, p-p_base,
	// in percent; DeltaPRMS its root mean square.
	DeltaP    Distribution `json:"delta_p"`
	DeltaPRMS Estimate     `json:"delta_p_rms"`
	// SameTop is the share of positions where both models find the same token
	// most likely, in percent.
	SameTop Estimate `json:"same_top"`
	// Scored is the number of scored tokens.
	Scored int `json:"scored"`
}

// pairs are the statistics of single positions of two models.
type pairs struct {
	nll, base []float64 // negative log-likelihood of the text's token
	kld       []float64
	deltaP    []float64 // in percent
	same      []bool    // equal top token
}

// Compare runs a model beside a base model over a text tokenized for both.
// Their vocabularies must have the same size.
func Compare[H Hidden](ctx context.Context, base, model Scorer[H], text *Text, opt Options) (*Comparison, error) {
	all, err := CompareAll(ctx, base, []Scorer[H]{model}, text, opt)
	if err != nil {
		return nil, err
	}
	return all[0], nil
}

// CompareAll is Compare for several models, which share one run of the base.
// The perplexity reported on the way is that of the first model.
func CompareAll[H Hidden](ctx context.Context, base Scorer[H], models []Scorer[H], text *Text, opt Options) ([]*Comparison, error) {
	for _, m := range models {
		if base.Vocab() != m.Vocab() {
			return nil, fmt.Errorf("the base model has a vocabulary of %d tokens, the model one of %d: their predictions cannot be compared", base.Vocab(), m.Vocab())
		}
	}
	if err := checkText(text, base.Vocab()); err != nil {
		return nil, err
	}
	n := text.scored()
	all := make([]*pairs, len(models))
	for i := range all {
		all[i] = &pairs{make([]float64, n), make([]float64, n), make([]float64, n), make([]float64, n), make([]bool, n)}
	}
	visit := func(i int, next int32, logits [][]float32) error {
		for m, p := range all {
			if err := p.visit(i, next, logits[0], logits[m+1]); err != nil {
				return err
			}
		}
		return nil
	}
	if err := stream(ctx, append([]Scorer[H]{base}, models...), text, opt, all[0].nll, visit); err != nil {
		return nil, err
	}
	out := make([]*Comparison, len(all))
	for i, p := range all {
		out[i] = p.summary()
		out[i].Definition = text.Definition + "; KL divergence of the model's full prediction from the base model's"
	}
	return out, nil
}

// visit compares the predictions of base and model, b and m, at one position.
func (p *pairs) visit(i int, next int32, b, m []float32) error {
	topB, err := maximum(b)
	if err != nil {
		return fmt.Errorf("base model: %w", err)
	}
	topM, err := maximum(m)
	if err != nil {
		return err
	}
	maxB, maxM := float64(b[topB]), float64(m[topM])
	sumB, cross := engine.CrossExp(b, m, maxB)
	sumM := engine.SumExp(m, maxM)
	lseB, lseM := maxB+math.Log(sumB), maxM+math.Log(sumM)
	p.base[i] = lseB - float64(b[next])
	p.nll[i] = lseM - float64(m[next])
	// Σ p_base·((b-lseB) - (m-lseM)), which rounding may put just below 0.
	p.kld[i] = max(0, cross/sumB-lseB+lseM)
	p.deltaP[i] = 100 * (math.Exp(-p.nll[i]) - math.Exp(-p.base[i]))
	p.same[i] = topB == topM
	return nil
}

// summary makes the statistics; it reorders the values.
func (p *pairs) summary() *Comparison {
	nll, base, cov := mean(p.nll), mean(p.base), covariance(p.nll, p.base)
	c := &Comparison{PPL: nll.exp(), Base: base.exp(), SameTop: share(p.same), Scored: len(p.nll)}
	if product := nll.Error * base.Error; product > 0 {
		c.Correlation = cov / product
	}
	diff := make([]float64, len(p.nll))
	for i := range diff {
		diff[i] = p.nll[i] - p.base[i]
	}
	// The error of a mean of differences is sqrt(e² + e_base² - 2·cov).
	c.LogRatio = mean(diff)
	c.Ratio = c.LogRatio.exp()
	c.Difference = Estimate{c.PPL.Value - c.Base.Value, math.Sqrt(max(0,
		c.PPL.Error*c.PPL.Error+c.Base.Error*c.Base.Error-2*c.PPL.Value*c.Base.Value*cov))}
	c.DeltaPRMS = rms(p.deltaP)
	c.DeltaP = distribution(p.deltaP)
	c.KLD = distribution(p.kld)
	return c
}

// rms returns the root mean square of v, its error to first order.
func rms(v []float64) Estimate {
	squares := make([]float64, len(v))
	for i, x := range v {
		squares[i] = x * x
	}
	m := mean(squares)
	if m.Value == 0 {
		return Estimate{}
	}
	root := math.Sqrt(m.Value)
	return Estimate{root, 0.5 / root * m.Error}
}

// share returns the share of true values in percent, with the error of a
// binomial proportion.
func share(v []bool) Estimate {
	values := make([]float64, len(v))
	for i, yes := range v {
		if yes {
			values[i] = 1
		}
	}
	return mean(values).scale(100)
}
