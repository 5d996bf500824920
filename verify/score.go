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
	// windows done and the perplexity so far, from the calling goroutine.
	Window func(done, total int, ppl float64)
}

// Result is the perplexity of a model on a text.
type Result struct {
	// Definition says what the number is: text, windows, scored positions.
	Definition string `json:"definition"`
	// PPL is exp(mean nll).
	PPL Estimate `json:"ppl"`
	// NLL is the mean negative log-likelihood of a scored token, in nats.
	NLL Estimate `json:"nll"`
	// WindowNLL is the mean of every window.
	WindowNLL []float64 `json:"window_nll"`
	// Scored is the number of scored tokens.
	Scored int `json:"scored"`
}

// Perplexity scores a model on a text. Logits that are not finite are an
// error that names window and position.
func Perplexity[H Hidden](ctx context.Context, s Scorer[H], text *Text, opt Options) (*Result, error) {
	if err := checkText(text, s.Vocab()); err != nil {
		return nil, err
	}
	nll := make([]float64, text.scored())
	err := stream(ctx, []Scorer[H]{s}, text, opt, nll, func(i int, next int32, logits [][]float32) error {
		lse, err := logSumExp(logits[0])
		nll[i] = lse - float64(logits[0][next])
		return err
	})
	if err != nil {
		return nil, err
	}
	per := len(nll) / len(text.Windows)
	r := &Result{Definition: text.Definition, NLL: mean(nll), Scored: len(nll), WindowNLL: make([]float64, len(text.Windows))}
	r.PPL = r.NLL.exp()
	for w := range r.WindowNLL {
		r.WindowNLL[w] = mean(nll[w*per : (w+1)*per]).Value
	}
	return r, nil
}

// scored is the number of scored positions of the text.
func (t *Text) scored() int { return len(t.Windows) * scoredPerWindow(len(t.Windows[0])) }

// checkText makes sure that every window can be scored with a vocabulary of
// the given size.
func checkText(t *Text, vocab int) error {
	if len(t.Windows) == 0 || len(t.Windows[0]) < MinCtx {
		return fmt.Errorf("nothing to score: no window of at least %d tokens", MinCtx)
	}
	for i, w := range t.Windows {
		if len(w) != len(t.Windows[0]) {
			return fmt.Errorf("window %d has %d tokens, the first has %d", i, len(w), len(t.Windows[0]))
		}
		for pos, id := range w {
			if id < 0 || int(id) >= vocab {
				return fmt.Errorf("window %d, position %d: token %d is outside the vocabulary of %d", i, pos, id, vocab)
			}
		}
	}
	return nil
}

// visitor gets the logits of every model at scored position i, counted over
// all windows, and the token that follows. Calls for different i may run at
// the same time; logits is valid during the call.
type visitor func(i int, next int32, logits [][]float32) error

// stream runs all windows through the models, batch by batch, and visits the
// scored positions. nll is filled by visit and read for progress.
func stream[H Hidden](ctx context.Context, models []Scorer[H], text *Text, opt Options, nll []float64, visit visitor) error {
	n, per := len(text.Windows[0]), scoredPerWindow(len(text.Windows[0]))
	if opt.BatchTokens <= 0 {
		opt.BatchTokens = defaultBatchTokens
	}
	if opt.Threads <= 0 {
		opt.Threads = runtime.GOMAXPROCS(0)
	}
	b := &block[H]{models: models, visit: visit, threads: opt.Threads}
	for range models {
		b.logits = append(b.logits, make([]float32, min(blockRows, per)*models[0].Vocab()))
	}
	batch := max(1, opt.BatchTokens/n)
	sum := 0.0
	for at := 0; at < len(text.Windows); at += batch {
		seqs := text.Windows[at:min(at+batch, len(text.Windows))]
		if err := b.forward(ctx, seqs); err != nil {
			return fmt.Errorf("windows %d to %d: %w", at, at+len(seqs)-1, err)
		}
		for i, w := range seqs {
			if err := b.window(ctx, i, (at+i)*per, w); err != nil {
				return fmt.Errorf("window %d: %w", at+i, err)
			}
			for _, v := range nll[(at+i)*per : (at+i+1)*per] {
				sum += v
			}
			if opt.Window != nil {
				opt.Window(at+i+1, len(text.Windows), math.Exp(sum/float64((at+i+1)*per)))
			}
		}
	}
	return nil
}

// block takes the models through one batch of windows, a block of rows at a
// time.
type block[H Hidden] struct {
	models  []Scorer[H]
	hidden  []H
	logits  [][]float32 // per model, blockRows rows at most
	visit   visitor
	threads int
}

func (b *block[H]) forward(ctx context.Context, seqs [][]int32) error {
	clear(b.hidden) // the last batch's states must not stay alive beside this one's
	b.hidden = b.hidden[:0]
	for _, m := range b.models {
		h, err := m.Forward(ctx, seqs)
		if err != nil {
			return err
		}
		b.hidden = append(b.hidden, h)
	}
	return nil
}

// window visits the scored positions of sequence seq of the batch; index is
// the number of its first scored position in the text.
func (b *block[H]) window(ctx context.Context, seq, index int, tokens []int32) error {
	first, end := firstScored(len(tokens)), len(tokens)-1
	for pos := first; pos < end; pos += blockRows {
		n := min(blockRows, end-pos)
		for m, model := range b.models {
			row, _ := b.hidden[m].Seq(seq)
			if err := model.Logits(ctx, b.hidden[m], row+pos, n, b.logits[m][:n*model.Vocab()]); err != nil {
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
func (b *block[H]) rows(index, pos int, next []int32) error {
	g, vocab := errgroup.Group{}, b.models[0].Vocab()
	for t := range min(b.threads, len(next)) {
		g.Go(func() error {
			row := make([][]float32, len(b.models))
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
