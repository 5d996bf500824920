package verify

import (
	"crypto/sha256"
	"errors"
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
	// Windows are token ids.
	Windows [][]int32
	// From has the first scored position of each window: it and all after it
	// predict the next token. nil stands for the second half of each window, as
	// llama-perplexity has it; all windows then have one length.
	From []int
	// Tokens are the tokens of the windows before BOS replaced the first of each.
	// nil where llama-perplexity would make no such windows of any text.
	Tokens []int32
	// Definition says how the windows came about.
	Definition string
	// Parts are the texts that Join made this one of.
	Parts []Part
}

// Part is one of several texts that are scored together.
type Part struct {
	// Name is that of the domain.
	Name string
	// Definition says how the windows came about.
	Definition string
	// Windows is the number of windows.
	Windows int
}

// from is the first scored position of window w.
func (t *Text) from(w int) int {
	if t.From == nil {
		return firstScored(len(t.Windows[w]))
	}
	return t.From[w]
}

// scoredIn is the number of scored positions of window w.
func (t *Text) scoredIn(w int) int { return len(t.Windows[w]) - 1 - t.from(w) }

// Scored is the number of scored positions of all windows.
func (t *Text) Scored() int { return t.scoredBefore(len(t.Windows)) }

// scoredBefore is the number of scored positions of the first n windows.
func (t *Text) scoredBefore(n int) int {
	scored := 0
	for w := range n {
		scored += t.scoredIn(w)
	}
	return scored
}

// partOf returns the part that a window belongs to and where the next begins.
func (t *Text) partOf(w int) (part, end int) {
	for p, q := range t.Parts {
		if end += q.Windows; w < end {
			return p, end
		}
	}
	return 0, len(t.Windows)
}

// Digest identifies what is scored: all token ids, and in every window the first
// position that counts.
func (t *Text) Digest() string {
	h := sha256.New()
	for w, tokens := range t.Windows {
		fmt.Fprintln(h, t.from(w), tokens)
	}
	for _, p := range t.Parts {
		fmt.Fprintf(h, "%q %d\n", p.Name, p.Windows)
	}
	return fmt.Sprintf("%x", h.Sum(nil)[:8])
}

// Len is the number of tokens of all windows.
func (t *Text) Len() int {
	n := 0
	for _, w := range t.Windows {
		n += len(w)
	}
	return n
}

// Join makes one text of several, which must be cut by the same definition;
// names are their domains.
func Join(names []string, texts []*Text) *Text {
	all, whole := &Text{}, true
	for i, t := range texts {
		all.Windows = append(all.Windows, t.Windows...)
		all.From = append(all.From, t.From...)
		all.Tokens = append(all.Tokens, t.Tokens...)
		all.Parts = append(all.Parts, Part{names[i], t.Definition, len(t.Windows)})
		whole = whole && t.Tokens != nil
	}
	if !whole {
		all.Tokens = nil
	}
	all.Definition = fmt.Sprintf("%d texts, each cut on its own, every scored token counts once; %s: %s", len(texts), names[0], texts[0].Definition)
	return all
}

// Tokenize makes the windows that llama-perplexity makes of a text file: one
// newline at its end is dropped, the rest is tokenized as a whole, with special
// tokens added and none recognised in the text, and cut; see Windows for ctx
// and chunks. Vocabularies that add an EOS token are refused, as there.
func Tokenize(v *tokenizer.Vocab, text string, ctx, chunks int) (*Text, error) {
	ids, err := encode(v, strings.TrimSuffix(text, "\n"))
	if err != nil {
		return nil, err
	}
	bos, _ := v.BOS()
	return NewText(vocabularyName(v), ids, ctx, chunks, bos, v.AddBOS())
}

// TokenizeStride makes sliding windows of a text, see NewStrideText: it is
// tokenized as a whole and as it is, with special tokens added and none
// recognised in the text.
func TokenizeStride(v *tokenizer.Vocab, text string, ctx, stride, chunks int) (*Text, error) {
	ids, err := encode(v, text)
	if err != nil {
		return nil, err
	}
	return NewStrideText(vocabularyName(v), ids, ctx, stride, chunks)
}

func encode(v *tokenizer.Vocab, text string) ([]int32, error) {
	if v.AddEOS() {
		return nil, fmt.Errorf("the vocabulary adds an EOS token to every text; perplexity is not defined for it")
	}
	if text == "" {
		return nil, errors.New("the text is empty")
	}
	t, err := v.Encoder()
	if err != nil {
		return nil, err
	}
	return t.Encode(text, tokenizer.EncodeOptions{AddSpecial: true}), nil
}

func vocabularyName(v *tokenizer.Vocab) string { return strings.TrimSuffix(v.Model+"/"+v.Pre, "/") }

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
	return &Text{Windows: w, Tokens: slices.Clone(tokens[:len(w)*ctx]), Definition: fmt.Sprintf(
		"llama-perplexity: %d tokens (tokenizer %s) cut into windows of %d without overlap, %d of %d used, %s; positions %d to %d of each predict the next token",
		len(tokens), vocabulary, ctx, len(w), len(tokens)/ctx, begin, firstScored(ctx), ctx-2)}, nil
}

// NewStrideText makes sliding windows of a tokenized text, the definition of
// transformers' documentation ("Perplexity of fixed-length models"): a window
// of ctx tokens begins every stride tokens, the last ends with the text, and of
// each only the tokens that no window before it held are scored. So every token
// but the first is scored once. No window gets a BOS token of its own. chunks
// limits the number of windows, 0 means all.
func NewStrideText(vocabulary string, tokens []int32, ctx, stride, chunks int) (*Text, error) {
	if len(tokens) < ctx {
		return nil, fmt.Errorf("the text has %d tokens, less than one window of %d", len(tokens), ctx)
	}
	t := &Text{}
	all, err := t.slide(tokens, ctx, stride, chunks)
	if err != nil {
		return nil, err
	}
	t.Definition = fmt.Sprintf("hf-stride: %d tokens (tokenizer %s), a window of %d every %d, %d of %d used; of each window those tokens are predicted that no window before it held",
		len(tokens), vocabulary, ctx, stride, len(t.Windows), all)
	return t, nil
}

// slide adds the sliding windows of a tokenized text and returns how many
// there would be without a limit.
func (t *Text) slide(tokens []int32, ctx, stride, chunks int) (int, error) {
	if err := checkStride(ctx, stride, chunks); err != nil {
		return 0, err
	}
	all, last := 0, 0
	for begin := 0; last < len(tokens) && len(tokens)-begin > 1; begin += stride {
		end := begin + min(ctx, len(tokens)-begin)
		if all++; chunks == 0 || all <= chunks {
			t.Windows = append(t.Windows, slices.Clone(tokens[begin:end]))
			t.From = append(t.From, max(0, last-begin-1))
		}
		last = end
	}
	return all, nil
}

func checkStride(ctx, stride, chunks int) error {
	switch {
	case ctx < 2:
		return fmt.Errorf("windows of %d tokens have no scored position, want at least 2", ctx)
	case stride < 1 || stride > ctx:
		return fmt.Errorf("a stride of %d does not suit windows of %d tokens: want 1 to %d, so that no token is left out", stride, ctx, ctx)
	case chunks < 0:
		return fmt.Errorf("%d windows asked for, want a positive number, or 0 for all", chunks)
	}
	return nil
}

// NewSequences makes windows of token sequences, taken as they are. Without a
// stride each is cut into windows of ctx tokens, whose second half is scored as
// by llama-perplexity, and must have at least one; with a stride see
// NewStrideText, and sequences shorter than ctx are one window. chunks limits
// the number of windows.
func NewSequences(seqs [][]int32, ctx, stride, chunks int) (*Text, error) {
	t, n := &Text{}, 0
	for i, s := range seqs {
		if err := t.sequence(s, ctx, stride); err != nil {
			return nil, fmt.Errorf("sequence %d: %w", i, err)
		}
		n += len(s)
	}
	all := len(t.Windows)
	if chunks > 0 && chunks < all {
		t.Windows = t.Windows[:chunks]
		if t.From != nil {
			t.From = t.From[:chunks]
		}
	}
	t.Definition = fmt.Sprintf("llama-perplexity: token ids, %d sequences with %d tokens cut into windows of %d without overlap, %d of %d used, as they are; positions %d to %d of each predict the next token",
		len(seqs), n, ctx, len(t.Windows), all, firstScored(ctx), ctx-2)
	if stride > 0 {
		t.Definition = fmt.Sprintf("hf-stride: token ids, %d sequences with %d tokens, in each a window of %d every %d, %d of %d used; of each window those tokens are predicted that no window before it held",
			len(seqs), n, ctx, stride, len(t.Windows), all)
	}
	return t, nil
}

// sequence adds the windows of one sequence.
func (t *Text) sequence(s []int32, ctx, stride int) error {
	if stride > 0 {
		if len(s) < 2 {
			return fmt.Errorf("%d tokens, want at least 2", len(s))
		}
		_, err := t.slide(s, ctx, stride, 0)
		return err
	}
	if ctx < MinCtx {
		return fmt.Errorf("windows of %d tokens have no scored position, want at least %d", ctx, MinCtx)
	}
	if len(s) < ctx {
		return fmt.Errorf("%d tokens, less than one window of %d", len(s), ctx)
	}
	for w := range slices.Chunk(s[:len(s)/ctx*ctx], ctx) {
		t.Windows = append(t.Windows, w)
	}
	return nil
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
