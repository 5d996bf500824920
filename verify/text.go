package verify

import (
	"fmt"
	"slices"
)

// DefaultCtx is the window length that published perplexities use unless they
// say otherwise.
const DefaultCtx = 512

// minCtx is the shortest window with a scored position.
const minCtx = 3

// Text is an evaluation text as one vocabulary sees it, cut into windows.
type Text struct {
	// Windows are token ids, all of the same length.
	Windows [][]int32
	// Definition says how the windows came about.
	Definition string
}

// NewText cuts a tokenized text into windows of ctx tokens; see Windows.
// tokenizer names the vocabulary in the definition.
func NewText(tokenizer string, tokens []int32, ctx, chunks int, bos int32, addBOS bool) (*Text, error) {
	w, err := Windows(tokens, ctx, chunks, bos, addBOS)
	if err != nil {
		return nil, err
	}
	begin := "windows start with their own first token"
	if addBOS {
		begin = fmt.Sprintf("the first token of every window replaced by BOS (%d)", bos)
	}
	return &Text{w, fmt.Sprintf("llama-perplexity: %d tokens (tokenizer %s) cut into windows of %d without overlap, %d of %d used, %s; positions %d to %d of each predict the next token",
		len(tokens), tokenizer, ctx, len(w), len(tokens)/ctx, begin, firstScored(ctx), ctx-2)}, nil
}

// Windows cuts a text, tokenized as a whole with special tokens added and none
// parsed, into windows of ctx tokens without overlap. What is left at the end
// is not used. With addBOS the first token of every window is replaced by bos.
// chunks limits the number of windows, 0 means all. A text shorter than two
// windows is an error. Definition: llama.cpp tools/perplexity/perplexity.cpp.
func Windows(tokens []int32, ctx, chunks int, bos int32, addBOS bool) ([][]int32, error) {
	if ctx < minCtx {
		return nil, fmt.Errorf("windows of %d tokens have no scored position, want at least %d", ctx, minCtx)
	}
	if chunks < 0 {
		return nil, fmt.Errorf("%d windows asked for, want a positive number, or 0 for all", chunks)
	}
	if len(tokens)/2 < ctx {
		return nil, fmt.Errorf("the text has %d tokens; a context of %d needs at least %d", len(tokens), ctx, 2*ctx)
	}
	n := len(tokens) / ctx
	if chunks > 0 {
		n = min(n, chunks)
	}
	windows := make([][]int32, n)
	for i := range windows {
		windows[i] = slices.Clone(tokens[i*ctx : (i+1)*ctx])
		if addBOS {
			windows[i][0] = bos
		}
	}
	return windows, nil
}

// firstScored is the first position of a window whose prediction counts: the
// half before it gives every scored token some context. The last position has
// no next token in the window.
func firstScored(ctx int) int { return ctx / 2 }

// scoredPerWindow is the number of scored positions of a window.
func scoredPerWindow(ctx int) int { return ctx - 1 - firstScored(ctx) }
