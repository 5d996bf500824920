package verify

import (
	"context"
	"errors"
	"fmt"

	"github.com/winnow-moe/winnow/engine"
)

// source gives the predictions for the windows of a text: a model that runs,
// or a file of what one predicted.
type source interface {
	vocab() int
	// forget drops what forward holds.
	forget()
	// forward takes the next windows, from a state of them on if there is one,
	// and reports the state after every block.
	forward(ctx context.Context, seqs [][]int32, from *engine.State, after func(*engine.State) error) error
	// state is that of the windows that forward took, nil where nothing runs.
	state() *engine.State
	// parts describes a state of so many tokens after some blocks.
	parts(tokens, done int) []engine.Part
	// predict writes the logits at positions pos to pos+n-1 of window seq of
	// those that forward took; index counts the scored positions of all windows.
	predict(ctx context.Context, seq, pos, index, n int, dst []float32) error
}

// Resumer is a Scorer whose passes can stop between blocks, and go on in
// another process. *engine.Model is one. Its hidden states have a method State
// that returns a *engine.State.
type Resumer[H Hidden] interface {
	Scorer[H]
	// Resume is Forward from a state on, if it is not nil, and reports the state
	// after every block.
	Resume(ctx context.Context, seqs [][]int32, from *engine.State, after func(*engine.State) error) (H, error)
	// StateParts describes a state of so many tokens after some blocks.
	StateParts(tokens, done int) []engine.Part
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

func (r *running[H]) forward(ctx context.Context, seqs [][]int32, from *engine.State, after func(*engine.State) error) (err error) {
	if from == nil && after == nil {
		r.hidden, err = r.model.Forward(ctx, seqs)
		return err
	}
	m, ok := r.model.(Resumer[H])
	if !ok {
		return errors.New("the model cannot be stopped between blocks: no checkpoint is possible")
	}
	r.hidden, err = m.Resume(ctx, seqs, from, after)
	return err
}

func (r *running[H]) state() *engine.State {
	if h, ok := any(r.hidden).(interface{ State() *engine.State }); ok {
		return h.State()
	}
	return nil
}

func (r *running[H]) parts(tokens, done int) []engine.Part {
	if m, ok := r.model.(Resumer[H]); ok {
		return m.StateParts(tokens, done)
	}
	return nil
}

func (r *running[H]) predict(ctx context.Context, seq, pos, _, n int, dst []float32) error {
	row, _ := r.hidden.Seq(seq)
	return r.model.Logits(ctx, r.hidden, row+pos, n, dst)
}

// run takes the windows of a text through sources, batch by batch, and keeps a
// checkpoint on the way, if there is one.
type run struct {
	sources []source
	text    *Text
	limit   int         // tokens of a batch
	results [][]float64 // numbers of the scored positions
	keep    *Checkpoint
}

// batches calls each for every batch, whose first window is at, when all
// sources have taken it. begin is called first with the number of windows that a
// checkpoint has the results of. No batch goes beyond end(at).
func (r *run) batches(ctx context.Context, end func(at int) int, begin func(at int), each func(at int, seqs [][]int32) error) error {
	at, from, err := r.restore(ctx)
	if err != nil {
		return err
	}
	begin(at.window)
	for w := at.window; w < len(r.text.Windows); {
		seqs := r.text.batch(w, end(w), r.limit)
		if w == at.window && at.windows > 0 {
			seqs = r.text.Windows[w : w+at.windows]
		}
		if err := r.forward(ctx, w, seqs, from); err != nil {
			return fmt.Errorf("windows %d to %d: %w", w, w+len(seqs)-1, err)
		}
		from = nil
		if err := each(w, seqs); err != nil {
			return err
		}
		w += len(seqs)
	}
	return nil
}

// forward takes a batch through the sources, from states on if there are any.
func (r *run) forward(ctx context.Context, at int, seqs [][]int32, from []*engine.State) error {
	for _, s := range r.sources {
		s.forget() // the last batch's states must not stay alive beside this one's
	}
	var done []*engine.State
	for i, s := range r.sources {
		var state *engine.State
		if i < len(from) {
			state, from[i] = from[i], nil
		}
		if err := s.forward(ctx, seqs, state, r.saver(at, len(seqs), done)); err != nil {
			return err
		}
		if r.keep != nil {
			done = append(done, s.state())
		}
	}
	return nil
}

// saver returns what saves the state of a batch in a model, behind those of the
// models before it; nil without a checkpoint.
func (r *run) saver(at, windows int, done []*engine.State) func(*engine.State) error {
	if r.keep == nil {
		return nil
	}
	return func(s *engine.State) error {
		if !r.keep.due() {
			return nil
		}
		states := append(done[:len(done):len(done)], s)
		return r.keep.save(position{window: at, windows: windows, scored: r.text.scoredBefore(at)}, states, r.results)
	}
}

// restore reads the checkpoint, if there is one: where it is and the states of
// the batch at hand.
func (r *run) restore(ctx context.Context) (at position, from []*engine.State, err error) {
	if r.keep == nil {
		return at, nil, nil
	}
	s, err := r.keep.open(ctx)
	if s == nil {
		return at, nil, err
	}
	defer s.f.Close()
	at = s.at
	if err := r.check(s); err != nil {
		return at, nil, err
	}
	if err := s.results(ctx, r.results); err != nil {
		return at, nil, err
	}
	tokens := 0
	for _, w := range r.text.Windows[at.window : at.window+at.windows] {
		tokens += len(w)
	}
	if tokens > r.limit && at.windows > 1 {
		return at, nil, s.fail("its batch has %d tokens, more than the %d that a batch may have now; allow as much memory as before", tokens, r.limit)
	}
	for i, blocks := range at.blocks {
		if blocks == 0 {
			from = append(from, nil)
			continue
		}
		state, err := s.state(ctx, i, r.sources[i].parts(tokens, blocks))
		if err != nil {
			return at, nil, err
		}
		from = append(from, state)
	}
	if r.keep.Sums == nil {
		return at, from, nil
	}
	if err := r.keep.Sums.Load(s.f); err != nil {
		return at, nil, s.fail("%w", err)
	}
	return at, from, nil
}

// check makes sure that a checkpoint lies within the text.
func (r *run) check(s *savedRun) error {
	n := len(r.text.Windows)
	if at := s.at; at.window < 0 || at.windows < 1 || at.window >= n || at.windows > n-at.window || at.scored != r.text.scoredBefore(at.window) || len(at.blocks) > len(r.sources) {
		return s.fail("it is at window %d with %d at hand and %d positions scored, in %d models; the text has %d windows, there are %d models", at.window, at.windows, at.scored, len(at.blocks), n, len(r.sources))
	}
	return nil
}

// Observe takes the windows of a text through a model for the sake of what
// follows its passes. No batch has windows of two parts; begin is called before
// the first window of a part and, from a checkpoint on, of a later one, done
// after every batch with its windows. Of opt only BatchTokens, Window and
// Checkpoint count.
func Observe[H Hidden](ctx context.Context, s Scorer[H], text *Text, opt Options, begin func(part int), done func(windows int)) error {
	r := &run{sources: []source{&running[H]{model: s}}, text: text, limit: opt.batchTokens(), keep: opt.Checkpoint}
	count := 0
	report := func() {
		if opt.Window != nil {
			opt.Window(count, len(text.Windows), Running{})
		}
	}
	part := -1
	end := func(at int) int {
		p, last := text.partOf(at)
		if p != part {
			part = p
			begin(p)
		}
		return last
	}
	return r.batches(ctx, end, func(at int) { count = at; report() }, func(_ int, seqs [][]int32) error {
		done(len(seqs))
		count += len(seqs)
		report()
		return nil
	})
}
