package verify

import (
	"cmp"
	"context"
	"fmt"
	"math"
	"runtime"
	"slices"

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

// DefaultLogitRows is the number of rows whose logits are held at a time: 132 MB
// per model for a vocabulary of 129280. A window of 512 is one block.
const DefaultLogitRows = 256

// Options steers a measurement. No option but the windows themselves changes
// a result.
type Options struct {
	// BatchTokens bounds the tokens whose hidden states are held at once, at
	// least one window; 0 means 8192. More than a model takes in one pass gains
	// nothing.
	BatchTokens int
	// LogitRows bounds the rows whose logits are held at once, for each model; 0
	// means DefaultLogitRows.
	LogitRows int
	// Threads is the number of rows evaluated at a time, 0 for one per CPU.
	Threads int
	// Window, when not nil, is called after every window with the number of
	// windows done and the results so far, from the calling goroutine; and first
	// with those that a checkpoint has the results of, if any.
	Window func(done, total int, sofar Running)
	// Row, when not nil, gets the model's logits at scored position i, counted
	// over all windows; LogitsWriter.Row is made for it. Of several models it is
	// the first. Calls for different i may run at the same time; logits is valid
	// during the call.
	Row func(i int, logits []float32) error
	// Checkpoint, when not nil, is where the measurement is kept while it is not
	// finished. What Row did before is not in it.
	Checkpoint *Checkpoint
}

func (o *Options) batchTokens() int { return cmp.Or(max(o.BatchTokens, 0), defaultBatchTokens) }

func (o *Options) logitRows() int { return cmp.Or(max(o.LogitRows, 0), DefaultLogitRows) }

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
	nll := make([]float64, text.Scored())
	err := stream(ctx, []source{&running[H]{model: s}}, text, opt, &tally{all: [][]float64{nll}, nll: nll}, func(i int, next int32, logits [][]float32) error {
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

// tally adds up what is known of the scored positions, for progress. visit
// fills nll and kld, which is nil without a base.
type tally struct {
	all            [][]float64 // every number of a position, for checkpoints
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
	b := &block{sources: sources, visit: visit, threads: opt.Threads, most: opt.logitRows()}
	if b.threads <= 0 {
		b.threads = runtime.GOMAXPROCS(0)
	}
	rows := 0
	for w := range text.Windows {
		rows = max(rows, min(b.most, text.scoredIn(w)))
	}
	for range sources {
		b.logits = append(b.logits, make([]float32, rows*sources[0].vocab()))
	}
	spans := text.spans(0, len(text.Windows))
	report := func(done int, sofar Running) {
		if opt.Window != nil {
			opt.Window(done, len(text.Windows), sofar)
		}
	}
	begin := func(at int) {
		var sofar Running
		for _, s := range spans[:at] {
			sofar = sum.add(s)
		}
		if at > 0 {
			report(at, sofar)
		}
	}
	r := &run{sources: sources, text: text, limit: opt.batchTokens(), results: sum.all, keep: opt.Checkpoint}
	return r.batches(ctx, func(int) int { return len(text.Windows) }, begin, func(at int, seqs [][]int32) error {
		for i, tokens := range seqs {
			w := at + i
			if err := b.window(ctx, i, text.from(w), spans[w].from, tokens); err != nil {
				return fmt.Errorf("window %d: %w", w, err)
			}
			report(w+1, sum.add(spans[w]))
		}
		return nil
	})
}

// batch returns the windows from at on, before end, that have at most limit
// tokens together, at least one.
func (t *Text) batch(at, end, limit int) [][]int32 {
	to, tokens := at, 0
	for to < end && (to == at || tokens+len(t.Windows[to]) <= limit) {
		tokens += len(t.Windows[to])
		to++
	}
	return t.Windows[at:to]
}

// block takes the sources through one batch of windows, a block of rows at a
// time.
type block struct {
	sources []source
	logits  [][]float32 // per source
	most    int         // rows of logits
	visit   visitor
	threads int
}

// window visits the scored positions of sequence seq of the batch, from first
// on; index is the number of the first in the text.
func (b *block) window(ctx context.Context, seq, first, index int, tokens []int32) error {
	end, vocab := len(tokens)-1, b.sources[0].vocab()
	for pos := first; pos < end; pos += b.most {
		n := min(b.most, end-pos)
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
	top, finite := engine.Largest(v)
	if !finite {
		_, err := maximum(v)
		return 0, err
	}
	return float64(top) + math.Log(engine.SumExp(v, float64(top))), nil
}

// maximum returns the index of the largest value, the first of equals, and an
// error if any value is not finite.
func maximum(v []float32) (int, error) {
	top, finite := engine.Largest(v)
	if finite {
		return slices.Index(v, top), nil
	}
	i := slices.IndexFunc(v, func(x float32) bool { return x-x != 0 }) // NaN and infinities only
	return 0, fmt.Errorf("the logit of token %d is %g, want a finite number", i, v[i])
}
