package verify

import (
	"fmt"
	"slices"
	"strings"

	"github.com/winnow-moe/winnow/formats/tokenizer"
)

// DefaultCtx is the window length that published perplexities use unless they
// say otherwise.
const DefaultCtx = 512

// MinCtx is the shortest window with a scored position.
const MinCtx = 3

// Text is an evaluation text as one vocabulary sees it, cut into windows.
type Text struct {
	// Windows are token ids, all of the same length.
	Windows [][]int32
	// Definition says how the windows came about.
	Definition string
}

// Tokenize makes the windows that llama-perplexity makes of a text file: one
// newline at its end is dropped, the rest is tokenized as a whole, with special
// tokens added and none recognised in the text, and cut; see Windows for ctx
// and chunks. Vocabularies that add an EOS token are refused, as there.
func Tokenize(v *tokenizer.Vocab, text string, ctx, chunks int) (*Text, error) {
	if v.AddEOS() {
		return nil, fmt.Errorf("the vocabulary adds an EOS token to every text; perplexity is not defined for it")
	}
	t, err := v.Encoder()
	if err != nil {
		return nil, err
	}
	ids := t.Encode(strings.TrimSuffix(text, "\n"), tokenizer.EncodeOptions{AddSpecial: true})
	bos, _ := v.BOS()
	return NewText(strings.TrimSuffix(v.Model+"/"+v.Pre, "/"), ids, ctx, chunks, bos, v.AddBOS())
}

// NewText cuts a tokenized text into windows of ctx tokens; see Windows.
// vocabulary names the tokenizer in the definition.
func NewText(vocabulary string, tokens []int32, ctx, chunks int, bos int32, addBOS bool) (*Text, error) {
	w, err := Windows(tokens, ctx, chunks, bos, addBOS)
	if err != nil {
		return nil, err
	}
	begin := "windows start with their own first token"
	if addBOS {
		begin = fmt.Sprintf("the first token of every window replaced by BOS (%d)", bos)
	}
	return &Text{w, fmt.Sprintf("llama-perplexity: %d tokens (tokenizer %s) cut into windows of %d without overlap, %d of %d used, %s; positions %d to %d of each predict the next token",
		len(tokens), vocabulary, ctx, len(w), len(tokens)/ctx, begin, firstScored(ctx), ctx-2)}, nil
}

// Windows cuts a tokenized text into windows of ctx tokens without overlap.
// What is left at the end is not used. With addBOS the first token of every
// window is replaced by bos. chunks limits the number of windows, 0 means all.
// A text shorter than two windows is an error. Definition: llama.cpp
// tools/perplexity/perplexity.cpp.
func Windows(tokens []int32, ctx, chunks int, bos int32, addBOS bool) ([][]int32, error) {
	if ctx < MinCtx {
		return nil, fmt.Errorf("windows of %d tokens have no scored position, want at least %d", ctx, MinCtx)
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
