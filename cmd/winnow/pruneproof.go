package main

import (
	"context"
	"fmt"

	"github.com/winnow-moe/winnow/convert"
	"github.com/winnow-moe/winnow/engine"
	"github.com/winnow-moe/winnow/formats/gguf"
	"github.com/winnow-moe/winnow/formats/tokenizer"
	"github.com/winnow-moe/winnow/verify"
)

const (
	// promptTokens is the length of the prompts that are continued, where windows
	// are long enough to be halved for it.
	promptTokens = 32
	// maxDeviation bounds the mean of what a written model's predictions may lie
	// from those of the whole one without the same experts: rounding leaves 1e-6.
	maxDeviation = 1e-4
)

// proofReport says what pruning costs on the texts of --verify.
type proofReport struct {
	// Path is the file or folder that was measured; without one it was the whole
	// model whose routers cannot choose the experts that go.
	Path string `json:"path,omitempty"`
	*verify.Comparison
	// Deviation is how far what was written predicts something else than the whole
	// model in the same types whose routers cannot choose the others.
	Deviation *verify.Deviation `json:"deviation,omitempty"`
	// Rounded says that weights have changed and were rounded to the types of a
	// folder: the deviation is that of the rounding, and decides nothing.
	Rounded bool `json:"rounded,omitempty"`
	// Continued are the continuations of every text, or of the only one.
	Continued []continuedReport `json:"continued,omitempty"`
}

// continuedReport is how far continuations repeat themselves, those of the whole
// and of the pruned model.
type continuedReport struct {
	Name   string             `json:"name,omitempty"`
	Before *verify.Repetition `json:"before"`
	After  *verify.Repetition `json:"after"`
}

// prove measures what was written or, if nothing was, what was chosen.
func (a *app) prove(ctx context.Context, c *choice) ([]*proofReport, error) {
	p := &proof{app: a, choice: c, kept: &keptExperts{list: c.list}}
	if len(c.written) == 0 {
		r, err := p.masked(ctx)
		return []*proofReport{r}, err
	}
	var list []*proofReport
	for _, o := range c.written {
		r, err := p.written(ctx, o)
		if err != nil {
			return nil, err
		}
		list = append(list, r)
	}
	return list, nil
}

// proof is what prove has at hand.
type proof struct {
	*app
	*choice
	kept   *keptExperts
	before []*verify.Repetition // continuations by the whole model, once known
}

// masked measures the choice, of which no file is written.
func (p *proof) masked(ctx context.Context) (*proofReport, error) {
	flags, whole := &p.ev.flags.scoreFlags, p.ev.whole
	m, err := p.app.masked(p.changed(p.choice), flags, p.kept)
	if err != nil {
		return nil, err
	}
	r := &proofReport{}
	r.Comparison, err = scoring(ctx, p.app, flags, p.ev.proof, []*scored{whole, m}, nil, func(opt verify.Options) (*verify.Comparison, error) {
		return verify.Compare(ctx, whole.engine, m.engine, p.ev.proof, opt)
	})
	if err == nil {
		r.Continued, err = p.continued(ctx, m)
	}
	return r, err
}

// written measures an output, and whether it predicts what the whole model does
// without the experts that went.
func (p *proof) written(ctx context.Context, o output) (*proofReport, error) {
	flags, whole := &p.ev.flags.scoreFlags, p.ev.whole
	m, err := p.openScored(o.path, flags)
	if err != nil {
		return nil, err
	}
	defer m.model.Close()
	as, err := p.wholeAs(o)
	if err != nil {
		return nil, err
	}
	twin, err := p.app.masked(p.newScored(p.path, as, flags, engine.Options{}), flags, p.kept)
	if err != nil {
		return nil, err
	}
	r := &proofReport{Path: o.path, Rounded: p.changes != nil && p.asFolder()}
	r.Comparison, err = scoring(ctx, p.app, flags, p.ev.proof, []*scored{whole, m, twin}, nil, func(opt verify.Options) (c *verify.Comparison, err error) {
		c, r.Deviation, err = verify.CompareTwin(ctx, whole.engine, m.engine, twin.engine, p.ev.proof, opt)
		return c, err
	})
	if err == nil {
		r.Continued, err = p.continued(ctx, m)
	}
	return r, err
}

// wholeAs is the whole model in the types of an output.
func (p *proof) wholeAs(o output) (gguf.Model, error) {
	if p.asFolder() || o.keepsTypes && p.changes == nil {
		return p.changed(p.choice).model, nil
	}
	plan, data := p.plan, convert.Data(p.file)
	if p.folder != nil {
		data = p.folder
	}
	if p.changes != nil {
		var err error
		if plan, err = p.preview(p.changes); err != nil {
			return nil, err
		}
	}
	return convert.NewView(plan, o.index, data, nil), nil
}

// continued has the whole and the pruned model continue the texts.
func (p *proof) continued(ctx context.Context, m *scored) (list []continuedReport, err error) {
	if p.ev.flags.generate == 0 {
		return nil, nil
	}
	if p.before == nil {
		if p.before, err = p.repetitions(ctx, p.ev.whole); err != nil {
			return nil, err
		}
	}
	after, err := p.repetitions(ctx, m)
	if err != nil {
		return nil, err
	}
	for i, r := range after {
		c := continuedReport{Before: p.before[i], After: r}
		if i < len(p.ev.proof.Parts) {
			c.Name = p.ev.proof.Parts[i].Name
		}
		list = append(list, c)
	}
	return list, nil
}

// repetitions has a model continue the beginnings of the windows of every text.
func (p *proof) repetitions(ctx context.Context, m *scored) (list []*verify.Repetition, err error) {
	v, err := tokenizer.FromMetadata(m.model.Metadata())
	if err != nil {
		return nil, err
	}
	parts := p.prompts()
	bar, done, all := p.newProgress("continuing", false), 0, 0
	defer bar.finish()
	for _, prompts := range parts {
		all += len(prompts)
	}
	for _, prompts := range parts {
		var said [][]int32
		for batch := range batches(prompts, p.ev.flags.generate, m.options.BatchTokens) {
			more, err := verify.Greedy(ctx, m.engine, batch, p.ev.flags.generate, v.EOG...)
			if err != nil {
				return nil, &inputError{fmt.Errorf("%s: %w", m.path, err)}
			}
			said = append(said, more...)
			done += len(batch)
			bar.update(int64(done), int64(all), "")
		}
		list = append(list, verify.Repetitions(said))
	}
	return list, nil
}

// prompts are the beginnings of windows of every text, or of the only one.
func (p *proof) prompts() (parts [][][]int32) {
	length := min(promptTokens, p.ev.flags.ctx/2)
	text, first := p.ev.proof, 0
	if len(text.Parts) == 0 {
		return [][][]int32{text.Prompts(p.ev.flags.prompts, length)}
	}
	for _, part := range text.Parts {
		one := verify.Text{Windows: text.Windows[first : first+part.Windows]}
		parts = append(parts, one.Prompts(p.ev.flags.prompts, length))
		first += part.Windows
	}
	return parts
}

// batches divides prompts so that each batch with its continuations has at most so
// many tokens, or is one prompt.
func batches(prompts [][]int32, generate, tokens int) func(yield func([][]int32) bool) {
	return func(yield func([][]int32) bool) {
		for len(prompts) > 0 {
			n := max(1, tokens/(len(prompts[0])+generate))
			n = min(n, len(prompts))
			if !yield(prompts[:n]) {
				return
			}
			prompts = prompts[n:]
		}
	}
}

// checkProofs finds outputs that do not predict what they should. Activations
// rounded to 8 bits make large differences of small ones, so then nothing is
// decided.
func checkProofs(list []*proofReport, compute engine.Compute) error {
	for _, r := range list {
		if d := r.Deviation; d != nil && !r.Rounded && compute == engine.ComputeF32 && !(d.Mean <= maxDeviation) {
			return &failedCheck{fmt.Errorf("%q does not predict what the whole model does without the experts that went: log-probabilities differ by %.3g on average", r.Path, d.Mean)}
		}
	}
	return nil
}
