package verify

import (
	"context"
	"fmt"
	"slices"
)

// Greedy continues prompts, each with the tokens that the model finds most likely
// one after the other: n of them, or fewer if one of stop comes, which ends the
// continuation.
//
// The engine keeps no keys and values from pass to pass: every pass takes whole
// sequences. For each to give more than one token the continuation is guessed, and
// as much of it is kept as the model would have said itself. That changes the
// number of passes and no token. Still it is for small models, and for some
// hundred prompts of some ten tokens.
func Greedy[H Hidden](ctx context.Context, s Scorer[H], prompts [][]int32, n int, stop ...int32) ([][]int32, error) {
	if n < 1 {
		return nil, fmt.Errorf("continuations of %d tokens asked for", n)
	}
	out := make([][]int32, len(prompts))
	all := make([]*continuation, len(prompts))
	for i, p := range prompts {
		if len(p) == 0 {
			return nil, fmt.Errorf("prompt %d is empty", i)
		}
		all[i] = &continuation{prompt: len(p), tokens: slices.Clone(p), most: n, stop: stop}
	}
	for left := all; len(left) > 0; {
		if err := extend(ctx, s, left); err != nil {
			return nil, err
		}
		left = slices.DeleteFunc(slices.Clone(left), (*continuation).done)
	}
	for i, c := range all {
		out[i] = c.tokens[c.prompt:]
	}
	return out, nil
}

// Prompts returns the first tokens of n windows of the text, or of all if it has
// fewer, spread over it; windows that are no longer than that are left out.
func (t *Text) Prompts(n, length int) (prompts [][]int32) {
	n = min(n, len(t.Windows))
	for i := range n {
		if w := t.Windows[i*len(t.Windows)/n]; len(w) > length {
			prompts = append(prompts, w[:length])
		}
	}
	return prompts
}

// continuation is a sequence that grows.
type continuation struct {
	tokens []int32
	prompt int // tokens of the prompt
	most   int // tokens beyond it
	stop   []int32
	guess  []int32 // what may follow
}

func (c *continuation) left() int { return c.prompt + c.most - len(c.tokens) }

func (c *continuation) done() bool {
	return c.left() == 0 || len(c.tokens) > c.prompt && slices.Contains(c.stop, c.tokens[len(c.tokens)-1])
}

// extend runs sequences with their guesses and adds at least one token to each.
func extend[H Hidden](ctx context.Context, s Scorer[H], list []*continuation) error {
	seqs := make([][]int32, len(list))
	for i, c := range list {
		c.look()
		seqs[i] = slices.Concat(c.tokens, c.guess)
	}
	h, err := s.Forward(ctx, seqs)
	if err != nil {
		return err
	}
	var logits []float32
	for i, c := range list {
		first, _ := h.Seq(i)
		rows, vocab := len(c.guess)+1, s.Vocab()
		logits = slices.Grow(logits[:0], rows*vocab)[:rows*vocab]
		if err := s.Logits(ctx, h, first+len(c.tokens)-1, rows, logits); err != nil {
			return err
		}
		said := make([]int32, rows)
		for r := range said {
			id, err := maximum(logits[r*vocab : (r+1)*vocab])
			if err != nil {
				return fmt.Errorf("prompt %d, position %d: %w", i, len(c.tokens)+r-1, err)
			}
			said[r] = int32(id)
		}
		c.take(said)
	}
	return nil
}

// look guesses what follows: what did the last time that the last two tokens
// came, up to the end and on from there.
func (c *continuation) look() {
	c.guess = c.guess[:0]
	end := len(c.tokens)
	for at := end - 1; at >= 2; at-- {
		if c.tokens[at-1] != c.tokens[end-1] || c.tokens[at-2] != c.tokens[end-2] {
			continue
		}
		for i := range c.left() - 1 {
			c.guess = append(c.guess, c.tokens[at+i%(end-at)])
		}
		return
	}
}

// take adds what the model said after the tokens and after each of the guess: up
// to where it says something else.
func (c *continuation) take(said []int32) {
	for i, id := range said {
		c.tokens = append(c.tokens, id)
		if c.done() || i < len(c.guess) && c.guess[i] != id {
			return
		}
	}
}

// Repetition says how far continuations repeat themselves, which pruned models do
// more than others, and which a divergence over texts does not show.
type Repetition struct {
	Prompts int `json:"prompts"`
	Tokens  int `json:"tokens"` // of all continuations
	// Repeated is the share of the sequences of four tokens of a continuation that
	// are not the first of their kind in it, in percent, its mean over the
	// continuations (Welleck et al. 2019, "Neural Text Generation with Unlikelihood
	// Training": seq-rep-4).
	Repeated Estimate `json:"repeated"`
	// Loops is the share of the continuations that end in a loop, in percent: the
	// same tokens three times and more, for twelve tokens at least, at their end.
	Loops Estimate `json:"loops"`
}

const (
	repeatedGram = 4
	loopRounds   = 3
	loopTokens   = 12
)

// Repetitions measures continuations.
func Repetitions(continuations [][]int32) *Repetition {
	r := &Repetition{Prompts: len(continuations)}
	var repeated, loops []float64
	for _, c := range continuations {
		r.Tokens += len(c)
		repeated = append(repeated, repeatedShare(c))
		loop := 0.0
		if endsInLoop(c) {
			loop = 1
		}
		loops = append(loops, loop)
	}
	r.Repeated, r.Loops = mean(repeated).scale(100), mean(loops).scale(100)
	return r
}

// repeatedShare is 0 for what is shorter than a sequence of four.
func repeatedShare(tokens []int32) float64 {
	seen, all := map[[repeatedGram]int32]bool{}, 0
	for ; len(tokens) >= repeatedGram; tokens = tokens[1:] {
		seen[[repeatedGram]int32(tokens)] = true
		all++
	}
	if all == 0 {
		return 0
	}
	return 1 - float64(len(seen))/float64(all)
}

func endsInLoop(tokens []int32) bool {
	for period := 1; loopRounds*period <= len(tokens); period++ {
		n := max(loopRounds*period, loopTokens)
		if n > len(tokens) {
			continue
		}
		tail := tokens[len(tokens)-n:]
		if slices.Equal(tail[period:], tail[:n-period]) {
			return true
		}
	}
	return false
}
