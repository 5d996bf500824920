package verify

import (
	"context"
	"fmt"
	"math"
	"runtime"

	"golang.org/x/sync/errgroup"

	"github.com/winnow-moe/winnow/engine"
)

// Hidden holds the final hidden states of the tokens of several sequences.
type Hidden interface {
	// Seq returns the first row of sequence i and its number of rows.
	Seq(i int) (first, n int)
}

// Scorer is a model that can be scored. *engine.Model is a
// Scorer[*engine.Hidden].
type Scorer[H Hidden] interface {
	// Vocab returns the length of a row of logits.
	Vocab() int
	// Forward runs sequences that start at position 0 and do not see each other.
	Forward(ctx context.Context, seqs [][]int32) (H, error)
	// Logits writes the logits of rows [first, first+n) of h to dst,
	// n*Vocab() values.
	Logits(ctx context.Context, h H, first, n int, dst []float32) error
}

const defaultBatchTokens = 8192

// blockRows is the number of rows whose logits are held at a time: 132 MB per
// model for a vocabulary of 129280. A window of 512 is one block.
const blockRows = 256

// Options steers a measurement. No option but the windows themselves changes
// a result.
type Options struct {
	// BatchTokens bounds the tokens whose hidden states are held at once, at
	// least one window; 0 means 8192. More than a model takes in one pass gains
	// nothing.
	BatchTokens int
	// Threads is the number of rows evaluated at a time, 0 for one per CPU.
	Threads int
	// Window, when not nil, is called after every window with the number of
	// windows done and the results so far, from the calling goroutine.
	Window func(done, total int, sofar Running)
	// Row, when not nil, gets the model's logits at scored position i, counted
	// over all windows; LogitsWriter.Row is made for it. Of several models it is
	// the first. Calls for different i may run at the same time; logits is valid
	// during the call.
	Row func(i int, logits []float32) error
}

// Running is a result over the windows scored so far.
type Running struct {
	PPL float64 // exp(mean nll)
	KLD float64 // mean divergence; NaN if there is no base
}

// row passes logits on.
func (o *Options) row(i int, logits []float32) error {
	if o.Row == nil {
		return nil
	}
	return o.Row(i, logits)
}

// Result is the perplexity of a model on a text.
type Result struct {
	// Name is that of the text, if it is one of several.
	Name string `json:"name,omitempty"`
	// Definition says what the number is: text, windows, scored positions.
	Definition string `json:"definition"`
	// PPL is exp(mean nll).
	PPL Estimate `json:"ppl"`
	// NLL is the mean negative log-likelihood of a scored token, in nats.
	NLL Estimate `json:"nll"`
	// WindowNLL is the mean of every window, WindowScored its scored tokens.
	WindowNLL    []float64 `json:"window_nll"`
	WindowScored []int     `json:"window_scored"`
	// Scored is the number of scored tokens.
	Scored int `json:"scored"`
	// Domains are the results of the single texts, if there are several.
	Domains []*Result `json:"domains,omitempty"`
}

// Perplexity scores a model on a text. Logits that are not finite are an
// error that names window and position.
func Perplexity[H Hidden](ctx context.Context, s Scorer[H], text *Text, opt Options) (*Result, error) {
	if err := checkText(text, s.Vocab()); err != nil {
		return nil, err
	}
	nll := make([]float64, text.scored())
	err := stream(ctx, []source{&running[H]{model: s}}, text, opt, &tally{nll: nll}, func(i int, next int32, logits [][]float32) error {
		lse, err := logSumExp(logits[0])
		if err != nil {
			return err
		}
		nll[i] = lse - float64(logits[0][next])
		return opt.row(i, logits[0])
	})
	if err != nil {
		return nil, err
	}
	r := newResult(text.Definition, nll, text.spans(0, len(text.Windows)))
	for p, part := range text.Parts {
		first := text.partStart(p)
		d := newResult(part.Definition, nll, text.spans(first, first+part.Windows))
		d.Name = part.Name
		r.Domains = append(r.Domains, d)
	}
	return r, nil
}

// newResult summarises the scored positions of some windows.
func newResult(definition string, nll []float64, windows []span) *Result {
	all := nll[windows[0].from:windows[len(windows)-1].to]
	r := &Result{Definition: definition, NLL: mean(all), Scored: len(all), WindowNLL: windowMeans(nll, windows)}
	r.PPL = r.NLL.exp()
	for _, w := range windows {
		r.WindowScored = append(r.WindowScored, w.to-w.from)
	}
	return r
}

// span is a range of scored positions, counted over all windows.
type span struct{ from, to int }

// spans are the scored positions of windows first to end-1.
func (t *Text) spans(first, end int) []span {
	out, at := make([]span, 0, end-first), 0
	for w := range t.Windows[:end] {
		n := t.scoredIn(w)
		if w >= first {
			out = append(out, span{at, at + n})
		}
		at += n
	}
	return out
}

// partStart is the first window of a part.
func (t *Text) partStart(p int) int {
	first := 0
	for _, q := range t.Parts[:p] {
		first += q.Windows
	}
	return first
}

func windowMeans(v []float64, windows []span) []float64 {
	out := make([]float64, len(windows))
	for i, w := range windows {
		out[i] = average(v[w.from:w.to])
	}
	return out
}

// checkText makes sure that every window can be scored with a vocabulary of
// the given size.
func checkText(t *Text, vocab int) error {
	if len(t.Windows) == 0 || t.From == nil && len(t.Windows[0]) < MinCtx {
		return fmt.Errorf("nothing to score: no window of at least %d tokens", MinCtx)
	}
	for i, w := range t.Windows {
		if t.From == nil && len(w) != len(t.Windows[0]) {
			return fmt.Errorf("window %d has %d tokens, the first has %d", i, len(w), len(t.Windows[0]))
		}
		if from := t.from(i); from < 0 || t.scoredIn(i) < 1 {
			return fmt.Errorf("window %d has %d tokens: none is scored from position %d on", i, len(w), from)
		}
		for pos, id := range w {
			if id < 0 || int(id) >= vocab {
				return fmt.Errorf("window %d, position %d: token %d is outside the vocabulary of %d", i, pos, id, vocab)
			}
		}
	}
	return nil
}

// visitor gets the logits of every source at scored position i, counted over
// all windows, and the token that follows. Calls for different i may run at
// the same time; logits is valid during the call.
type visitor func(i int, next int32, logits [][]float32) error

// source gives the predictions for the windows of a text: a model that runs,
// or a file of what one predicted.
type source interface {
	vocab() int
	// forget drops what forward holds.
	forget()
	// forward takes the next windows.
	forward(ctx context.Context, seqs [][]int32) error
	// predict writes the logits at positions pos to pos+n-1 of window seq of
	// those that forward took; index counts the scored positions of all windows.
	predict(ctx context.Context, seq, pos, index, n int, dst []float32) error
}

// running is a model as a source.
type running[H Hidden] struct {
	model  Scorer[H]
	hidden H
}

func (r *running[H]) vocab() int { return r.model.Vocab() }

func (r *running[H]) forget() {
	var none H
	r.hidden = none
}

func (r *running[H]) forward(ctx context.Context, seqs [][]int32) (err error) {
	r.hidden, err = r.model.Forward(ctx, seqs)
	return err
}

func (r *running[H]) predict(ctx context.Context, seq, pos, _, n int, dst []float32) error {
	row, _ := r.hidden.Seq(seq)
	return r.model.Logits(ctx, r.hidden, row+pos, n, dst)
}

// tally adds up what is known of the scored positions, for progress. visit
// fills nll and kld, which is nil without a base.
type tally struct {
	nll, kld       []float64
	sumNLL, sumKLD float64
}

// add takes the positions of one more window, whose last is to-1.
func (t *tally) add(w span) Running {
	for _, v := range t.nll[w.from:w.to] {
		t.sumNLL += v
	}
	r := Running{PPL: math.Exp(t.sumNLL / float64(w.to)), KLD: math.NaN()}
	if t.kld != nil {
		for _, v := range t.kld[w.from:w.to] {
			t.sumKLD += v
		}
		r.KLD = t.sumKLD / float64(w.to)
	}
	return r
}

// stream runs all windows through the sources, batch by batch, and visits the
// scored positions.
func stream(ctx context.Context, sources []source, text *Text, opt Options, sum *tally, visit visitor) error {
	if opt.BatchTokens <= 0 {
		opt.BatchTokens = defaultBatchTokens
	}
	if opt.Threads <= 0 {
		opt.Threads = runtime.GOMAXPROCS(0)
	}
	b := &block{sources: sources, visit: visit, threads: opt.Threads}
	rows := 0
	for w := range text.Windows {
		rows = max(rows, min(blockRows, text.scoredIn(w)))
	}
	for range sources {
		b.logits = append(b.logits, make([]float32, rows*sources[0].vocab()))
	}
	spans := text.spans(0, len(text.Windows))
	for at := 0; at < len(text.Windows); {
		seqs := text.batch(at, opt.BatchTokens)
		if err := b.forward(ctx, seqs); err != nil {
			return fmt.Errorf("windows %d to %d: %w", at, at+len(seqs)-1, err)
		}
		for i, tokens := range seqs {
			w := at + i
			if err := b.window(ctx, i, text.from(w), spans[w].from, tokens); err != nil {
				return fmt.Errorf("window %d: %w", w, err)
			}
			sofar := sum.add(spans[w])
			if opt.Window != nil {
				opt.Window(w+1, len(text.Windows), sofar)
			}
		}
		at += len(seqs)
	}
	return nil
}

// batch returns the windows from at on that have at most limit tokens
// together, at least one.
func (t *Text) batch(at, limit int) [][]int32 {
	end, tokens := at, 0
	for end < len(t.Windows) && (end == at || tokens+len(t.Windows[end]) <= limit) {
		tokens += len(t.Windows[end])
		end++
	}
	return t.Windows[at:end]
}

// block takes the sources through one batch of windows, a block of rows at a
// time.
type block struct {
	sources []source
	logits  [][]float32 // per source, blockRows rows at most
	visit   visitor
	threads int
}

func (b *block) forward(ctx context.Context, seqs [][]int32) error {
	for _, s := range b.sources {
		s.forget() // the last batch's states must not stay alive beside this one's
	}
	for _, s := range b.sources {
		if err := s.forward(ctx, seqs); err != nil {
			return err
		}
	}
	return nil
}

// window visits the scored positions of sequence seq of the batch, from first
// on; index is the number of the first in the text.
func (b *block) window(ctx context.Context, seq, first, index int, tokens []int32) error {
	end, vocab := len(tokens)-1, b.sources[0].vocab()
	for pos := first; pos < end; pos += blockRows {
		n := min(blockRows, end-pos)
		for i, s := range b.sources {
			if err := s.predict(ctx, seq, pos, index+pos-first, n, b.logits[i][:n*vocab]); err != nil {
				return err
			}
		}
		if err := b.rows(index+pos-first, pos, tokens[pos+1:pos+1+n]); err != nil {
			return err
		}
	}
	return nil
}

// rows visits the positions whose logits are in the block, in parallel.
func (b *block) rows(index, pos int, next []int32) error {
	g, vocab := errgroup.Group{}, b.sources[0].vocab()
	for t := range min(b.threads, len(next)) {
		g.Go(func() error {
			row := make([][]float32, len(b.sources))
			for i := t; i < len(next); i += b.threads {
				for m := range row {
					row[m] = b.logits[m][i*vocab : (i+1)*vocab]
				}
				if err := b.visit(index+i, next[i], row); err != nil {
					return fmt.Errorf("position %d: %w", pos+i, err)
				}
			}
			return nil
		})
	}
	return g.Wait()
}

// logSumExp returns ln Σ exp(v), summed in float64.
func logSumExp(v []float32) (float64, error) {
	top, err := maximum(v)
	if err != nil {
		return 0, err
	}
	max := float64(v[top])
	return max + math.Log(engine.SumExp(v, max)), nil
}

// maximum returns the index of the largest value, the first of equals, and an
// error if any value is not finite.
func maximum(v []float32) (int, error) {
	top := 0
	for i, x := range v {
		if x-x != 0 { // NaN and infinities only
			return 0, fmt.Errorf("the logit of token %d is %g, want a finite number", i, x)
		}
		if x > v[top] {
			top = i
		}
	}
	return top, nil
}
