package verify

import (
	"context"
	"fmt"
	"math"
	"slices"

	"github.com/winnow-moe/winnow/engine"
)

// Comparison says how far a model's predictions lie from those of a base
// model. The numbers and their order are those of llama-perplexity
// --kl-divergence, computed from both models' full logits, or by CompareFile
// from a file of 16-bit log-probabilities as there.
type Comparison struct {
	// Name is that of the text, if it is one of several.
	Name string `json:"name,omitempty"`
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
	// SameTop5 is the share of the base's five most likely tokens that are among
	// the model's five, in percent.
	SameTop5 Estimate `json:"same_top5"`
	// Scored is the number of scored tokens.
	Scored int `json:"scored"`
	// The means and numbers of scored tokens of every window.
	WindowNLL    []float64 `json:"window_nll"`
	WindowBase   []float64 `json:"window_nll_base"`
	WindowKLD    []float64 `json:"window_kld"`
	WindowScored []int     `json:"window_scored"`
	// Domains are the results of the single texts, if there are several.
	Domains []*Comparison `json:"domains,omitempty"`
}

// pairs are the statistics of single positions of two models.
type pairs struct {
	nll, base []float64 // negative log-likelihood of the text's token
	kld       []float64
	deltaP    []float64 // in percent
	same      []float64 // 1 for an equal top token
	same5     []float64 // share of the base's five most likely among the model's
}

func newPairs(n int) *pairs {
	return &pairs{make([]float64, n), make([]float64, n), make([]float64, n), make([]float64, n), make([]float64, n), make([]float64, n)}
}

// numbers are all of them.
func (p *pairs) numbers() [][]float64 {
	return [][]float64{p.nll, p.base, p.kld, p.deltaP, p.same, p.same5}
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
	return compareAll(ctx, base, models, text, opt, func(int, [][]float32) error { return nil })
}

// compareAll is CompareAll with a look at the logits of base and models at every
// scored position, under the conditions of a visitor.
func compareAll[H Hidden](ctx context.Context, base Scorer[H], models []Scorer[H], text *Text, opt Options, look func(i int, logits [][]float32) error) ([]*Comparison, error) {
	for _, m := range models {
		if base.Vocab() != m.Vocab() {
			return nil, fmt.Errorf("the base model has a vocabulary of %d tokens, the model one of %d: their predictions cannot be compared", base.Vocab(), m.Vocab())
		}
	}
	if err := checkText(text, base.Vocab()); err != nil {
		return nil, err
	}
	all, sources := make([]*pairs, len(models)), []source{&running[H]{model: base}}
	for i, m := range models {
		all[i] = newPairs(text.Scored())
		sources = append(sources, &running[H]{model: m})
	}
	visit := func(i int, next int32, logits [][]float32) error {
		for m, p := range all {
			if err := p.visit(i, next, logits[0], logits[m+1]); err != nil {
				return err
			}
		}
		if err := look(i, logits); err != nil {
			return err
		}
		return opt.row(i, logits[1])
	}
	sum := &tally{nll: all[0].nll, kld: all[0].kld}
	for _, p := range all {
		sum.all = append(sum.all, p.numbers()...)
	}
	if err := stream(ctx, sources, text, opt, sum, visit); err != nil {
		return nil, err
	}
	out := make([]*Comparison, len(all))
	for i, p := range all {
		out[i] = p.compared(text, "; KL divergence of the model's full prediction from the base model's")
	}
	return out, nil
}

// CompareFile is Compare with a base whose predictions were saved in a file.
// text must be what the file was made of; see LogitsFile.Match.
func CompareFile[H Hidden](ctx context.Context, base *LogitsFile, model Scorer[H], text *Text, opt Options) (*Comparison, error) {
	if base.Vocab != model.Vocab() {
		return nil, fmt.Errorf("%s is for a vocabulary of %d tokens, the model has one of %d: their predictions cannot be compared", base.path, base.Vocab, model.Vocab())
	}
	if err := checkText(text, base.Vocab); err != nil {
		return nil, err
	}
	if err := base.Match(text); err != nil {
		return nil, err
	}
	p := newPairs(text.Scored())
	visit := func(i int, next int32, logits [][]float32) error {
		if err := p.visitSaved(i, next, logits[0], logits[1]); err != nil {
			return err
		}
		return opt.row(i, logits[1])
	}
	sources := []source{base, &running[H]{model: model}}
	if err := stream(ctx, sources, text, opt, &tally{all: p.numbers(), nll: p.nll, kld: p.kld}, visit); err != nil {
		return nil, err
	}
	return p.compared(text, "; KL divergence of the model's prediction from the 16-bit log-probabilities in the base's file, as llama-perplexity computes it"), nil
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
	p.agree(i, topB == topM, b, m)
	return nil
}

// visitSaved is visit with the base's log-probabilities b from a LogitsFile.
// The sum leaves out what the file does not resolve and is not normalised, so
// that it is llama-perplexity's, which may be below 0.
func (p *pairs) visitSaved(i int, next int32, b, m []float32) error {
	topB, err := maximum(b)
	if err != nil {
		return fmt.Errorf("base file: %w", err)
	}
	topM, err := maximum(m)
	if err != nil {
		return err
	}
	lse, err := logSumExp(m)
	if err != nil {
		return err
	}
	kld := 0.0
	for j, x := range b {
		if x > -savedRange {
			kld += math.Exp(float64(x)) * (float64(x) - float64(m[j]) + lse)
		}
	}
	p.base[i] = -float64(b[next])
	p.nll[i] = lse - float64(m[next])
	p.kld[i] = kld
	p.deltaP[i] = 100 * (math.Exp(-p.nll[i]) - math.Exp(-p.base[i]))
	p.agree(i, topB == topM, b, m)
	return nil
}

// agree notes how far the most likely tokens of base and model are the same.
func (p *pairs) agree(i int, same bool, b, m []float32) {
	if same {
		p.same[i] = 1
	}
	var room [2][5]int
	base, model, shared := top(b, room[0][:]), top(m, room[1][:]), 0
	for _, id := range base {
		if slices.Contains(model, id) {
			shared++
		}
	}
	p.same5[i] = float64(shared) / float64(len(base))
}

// top returns the indices of the largest values in descending order, as many
// as dst has; of equal values the first.
func top(v []float32, dst []int) []int {
	n := 0
	for i, x := range v {
		if n == len(dst) && x <= v[dst[n-1]] {
			continue
		}
		n = min(n+1, len(dst))
		at := n - 1
		for ; at > 0 && x > v[dst[at-1]]; at-- {
			dst[at] = dst[at-1]
		}
		dst[at] = i
	}
	return dst[:n]
}

// compared makes the statistics of a whole text and of its parts. how ends the
// definition.
func (p *pairs) compared(text *Text, how string) *Comparison {
	c := p.summary(text.spans(0, len(text.Windows)))
	c.Definition = text.Definition + how
	for i, part := range text.Parts {
		first := text.partStart(i)
		d := p.summary(text.spans(first, first+part.Windows))
		d.Name, d.Definition = part.Name, part.Definition+how
		c.Domains = append(c.Domains, d)
	}
	return c
}

// slice returns the positions of a span.
func (p *pairs) slice(s span) *pairs {
	return &pairs{p.nll[s.from:s.to], p.base[s.from:s.to], p.kld[s.from:s.to], p.deltaP[s.from:s.to], p.same[s.from:s.to], p.same5[s.from:s.to]}
}

// summary makes the statistics of some windows.
func (p *pairs) summary(windows []span) *Comparison {
	c := p.slice(span{windows[0].from, windows[len(windows)-1].to}).statistics()
	c.WindowNLL, c.WindowBase, c.WindowKLD = windowMeans(p.nll, windows), windowMeans(p.base, windows), windowMeans(p.kld, windows)
	for _, w := range windows {
		c.WindowScored = append(c.WindowScored, w.to-w.from)
	}
	return c
}

func (p *pairs) statistics() *Comparison {
	nll, base, cov := mean(p.nll), mean(p.base), covariance(p.nll, p.base)
	c := &Comparison{PPL: nll.exp(), Base: base.exp(), SameTop: mean(p.same).scale(100), SameTop5: mean(p.same5).scale(100), Scored: len(p.nll)}
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
