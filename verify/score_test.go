package verify

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"math"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/winnow-moe/winnow/testdata/fixtures"
)

func TestMain(m *testing.M) { fixtures.Main(m) }

// fakeModel predicts from the position and the token alone: the logit of id is
// logit(window's own token, position, id).
type fakeModel struct {
	vocab  int
	logit  func(token int32, pos, id int) float64
	passes []int // windows per forward pass
	rows   int   // most rows asked for at a time
	fail   error
}

type fakeHidden struct{ seqs [][]int32 }

func (h *fakeHidden) Seq(i int) (first, n int) {
	for _, s := range h.seqs[:i] {
		first += len(s)
	}
	return first, len(h.seqs[i])
}

func (f *fakeModel) Vocab() int { return f.vocab }

func (f *fakeModel) Forward(_ context.Context, seqs [][]int32) (*fakeHidden, error) {
	f.passes = append(f.passes, len(seqs))
	return &fakeHidden{seqs}, f.fail
}

func (f *fakeModel) Logits(_ context.Context, h *fakeHidden, first, n int, dst []float32) error {
	f.rows = max(f.rows, n)
	if len(dst) != n*f.vocab {
		return fmt.Errorf("buffer of %d for %d rows", len(dst), n)
	}
	for r := range n {
		seq, pos := 0, first+r
		for pos >= len(h.seqs[seq]) {
			pos -= len(h.seqs[seq])
			seq++
		}
		for id := range f.vocab {
			dst[r*f.vocab+id] = float32(f.logit(h.seqs[seq][pos], pos, id))
		}
	}
	return nil
}

// wavy is a fake whose distributions all differ, sharper with sharp.
func wavy(vocab int, sharp float64) *fakeModel {
	return &fakeModel{vocab: vocab, logit: func(token int32, pos, id int) float64 {
		return float64(float32(sharp * math.Sin(float64(1+id)*(0.7+float64(token))+float64(pos))))
	}}
}

// someTokens are n ids below vocab.
func someTokens(n, vocab int) []int32 {
	t := make([]int32, n)
	for i := range t {
		t[i] = int32((i*i + 3*i + i/7) % vocab)
	}
	return t
}

func someText(t *testing.T, n, ctx, vocab int) *Text {
	t.Helper()
	text, err := NewText("fake", someTokens(n, vocab), ctx, 0, 1, true)
	if err != nil {
		t.Fatal(err)
	}
	return text
}

// evaluation is what HF's evaluation of a text counted.
type evaluation struct {
	Tokens int `json:"tokens_with_bos"`
	Ctx    int `json:"n_ctx"`
	Chunks int
	Scored int
}

// evaluations reads the golden counts by text.
func evaluations(t *testing.T) map[string]evaluation {
	t.Helper()
	var golden struct{ Files map[string]evaluation }
	data, err := os.ReadFile(filepath.Join(fixtures.Dir(t, "packs/golden-tiny-r1"), "tiny-r1", "ppl.json"))
	if err != nil {
		t.Fatal(err)
	}
	if err := json.Unmarshal(data, &golden); err != nil || len(golden.Files) == 0 {
		t.Fatal("no golden:", err)
	}
	return golden.Files
}

// TestWindowsCounts compares with the counts of the HF evaluation.
func TestWindowsCounts(t *testing.T) {
	for name, g := range evaluations(t) {
		text, err := NewText(name, make([]int32, g.Tokens), g.Ctx, 0, 0, true)
		if err != nil {
			t.Fatal(name, err)
		}
		if len(text.Windows) != g.Chunks || text.Scored() != g.Scored {
			t.Errorf("%s: %d windows, %d scored; want %d, %d", name, len(text.Windows), text.Scored(), g.Chunks, g.Scored)
		}
	}
}

func TestWindows(t *testing.T) {
	tokens := []int32{9, 1, 2, 3, 4, 5, 6, 7, 8}
	got, err := Windows(tokens, 4, 0, 99, true)
	if want := [][]int32{{99, 1, 2, 3}, {99, 5, 6, 7}}; err != nil || !slices.EqualFunc(got, want, slices.Equal) {
		t.Errorf("with BOS: %v, %v; want %v", got, err, want)
	}
	if tokens[0] != 9 || tokens[4] != 4 {
		t.Error("Windows changed its input")
	}
	got, err = Windows(tokens, 4, 1, 99, false)
	if want := [][]int32{{9, 1, 2, 3}}; err != nil || !slices.EqualFunc(got, want, slices.Equal) {
		t.Errorf("without BOS, one chunk: %v, %v; want %v", got, err, want)
	}
	if got, err = Windows(tokens, 3, 99, 0, false); err != nil || len(got) != 3 {
		t.Errorf("more chunks than there are: %v, %v", got, err)
	}
	for _, c := range []struct {
		ctx, chunks int
		hint        string
	}{{5, 0, "at least 10"}, {2, 0, "no scored position"}, {-1, 0, "no scored position"}, {math.MaxInt, 0, "has 9 tokens"}, {4, -1, "windows asked for"}} {
		if _, err := NewText("x", tokens, c.ctx, c.chunks, 0, false); err == nil || !strings.Contains(err.Error(), c.hint) {
			t.Errorf("ctx %d, chunks %d: error %v, want %q", c.ctx, c.chunks, err, c.hint)
		}
	}
}

func TestDefinition(t *testing.T) {
	text, err := NewText("gpt2/deepseek-v3", make([]int32, 1030), 512, 1, 7, true)
	if err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{"1030 tokens", "gpt2/deepseek-v3", "windows of 512", "1 of 2 used", "BOS (7)", "positions 256 to 510"} {
		if !strings.Contains(text.Definition, want) {
			t.Errorf("definition %q lacks %q", text.Definition, want)
		}
	}
	text, err = NewText("spm", make([]int32, 1030), 512, 0, 7, false)
	if err != nil || strings.Contains(text.Definition, "BOS") {
		t.Errorf("definition without BOS: %q, %v", text.Definition, err)
	}
}

// probability is the textbook softmax, without shifting.
func (f *fakeModel) probability(token int32, pos, id int) float64 {
	sum := 0.0
	for j := range f.vocab {
		sum += math.Exp(f.logit(token, pos, j))
	}
	return math.Exp(f.logit(token, pos, id)) / sum
}

func near(t *testing.T, what string, got, want, tolerance float64) {
	t.Helper()
	if !(math.Abs(got-want) <= tolerance) {
		t.Errorf("%s: got %.12g, want %.12g", what, got, want)
	}
}

// TestPerplexity compares with the product of probabilities, taken the long
// way and with the running sums of llama-perplexity's error formula.
func TestPerplexity(t *testing.T) {
	const ctx, vocab = 600, 23 // more scored rows per window than a block has
	text, f := someText(t, 5*ctx+7, ctx, vocab), wavy(vocab, 2)
	var done []int
	var last float64
	got, err := Perplexity(t.Context(), f, text, Options{BatchTokens: 2 * ctx, Threads: 3,
		Window: func(n, total int, sofar Running) { done, last = append(done, n*10+total), sofar.PPL }})
	if err != nil {
		t.Fatal(err)
	}
	nll, nll2, count, window := 0.0, 0.0, 0, make([]float64, 5)
	for w, tokens := range text.Windows {
		for pos := 300; pos <= 598; pos++ {
			v := -math.Log(f.probability(tokens[pos], pos, int(tokens[pos+1])))
			nll, nll2, count, window[w] = nll+v, nll2+v*v, count+1, window[w]+v/299
		}
	}
	m := nll / float64(count)
	near(t, "ppl", got.PPL.Value, math.Exp(m), 1e-9)
	near(t, "ppl error", got.PPL.Error, math.Exp(m)*math.Sqrt((nll2/float64(count)-m*m)/float64(count-1)), 1e-9)
	near(t, "mean nll", got.NLL.Value, m, 1e-11)
	near(t, "progress", last, math.Exp(m), 1e-9)
	for w := range window {
		near(t, fmt.Sprint("window ", w), got.WindowNLL[w], window[w], 1e-11)
	}
	if got.Scored != count || got.Definition != text.Definition {
		t.Errorf("scored %d, want %d; definition %q", got.Scored, count, got.Definition)
	}
	if !slices.Equal(f.passes, []int{2, 2, 1}) || f.rows > DefaultLogitRows {
		t.Errorf("passes of %v windows, blocks of up to %d rows", f.passes, f.rows)
	}
	if !slices.Equal(done, []int{15, 25, 35, 45, 55}) {
		t.Errorf("progress %v", done)
	}
}

// TestOptionsChangeNothing: batches and threads leave every bit as it is.
func TestOptionsChangeNothing(t *testing.T) {
	text := someText(t, 200, 16, 11)
	want, err := Perplexity(t.Context(), wavy(11, 1), text, Options{})
	if err != nil {
		t.Fatal(err)
	}
	for _, opt := range []Options{{BatchTokens: 1}, {Threads: 7}, {BatchTokens: 40, Threads: 1}} {
		got, err := Perplexity(t.Context(), wavy(11, 1), text, opt)
		if err != nil || got.PPL != want.PPL || !slices.Equal(got.WindowNLL, want.WindowNLL) {
			t.Errorf("%+v: %+v, %v; want %+v", opt, got, err, want)
		}
	}
}

// TestLargeLogits: the softmax does not overflow.
func TestLargeLogits(t *testing.T) {
	f := &fakeModel{vocab: 2, logit: func(_ int32, _, id int) float64 { return 1e4 * float64(id) }}
	r, err := Perplexity(t.Context(), f, &Text{Windows: [][]int32{{0, 0, 1}, {0, 0, 0}}}, Options{})
	if err != nil {
		t.Fatal(err)
	}
	near(t, "certain", r.WindowNLL[0], 0, 0)
	near(t, "impossible", r.WindowNLL[1], 1e4, 0)
}

func TestScoreErrors(t *testing.T) {
	boom := errors.New("boom")
	broken := func(v float64) *fakeModel {
		return &fakeModel{vocab: 5, logit: func(_ int32, pos, id int) float64 {
			if pos == 6 && id == 3 {
				return v
			}
			return 0
		}}
	}
	ok := someText(t, 24, 8, 5)
	for name, c := range map[string]struct {
		model *fakeModel
		text  *Text
		hints []string
	}{
		"nan":     {broken(math.NaN()), ok, []string{"window 0", "position 6", "token 3", "NaN"}},
		"inf":     {broken(math.Inf(-1)), ok, []string{"window 0", "position 6", "-Inf"}},
		"forward": {&fakeModel{vocab: 5, fail: boom}, ok, []string{"windows 0 to 2", "boom"}},
		"empty":   {wavy(5, 1), &Text{}, []string{"nothing to score"}},
		"uneven":  {wavy(5, 1), &Text{Windows: [][]int32{{1, 2, 3}, {1, 2}}}, []string{"window 1", "2 tokens"}},
		"outside": {wavy(5, 1), &Text{Windows: [][]int32{{1, 2, 3}, {1, 5, 2}}}, []string{"window 1, position 1", "token 5", "vocabulary of 5"}},
	} {
		_, err := Perplexity(t.Context(), c.model, c.text, Options{})
		_, err2 := Compare(t.Context(), wavy(5, 1), c.model, c.text, Options{})
		for _, e := range []error{err, err2} {
			for _, h := range c.hints {
				if e == nil || !strings.Contains(e.Error(), h) {
					t.Errorf("%s: error %v, want %q", name, e, h)
				}
			}
		}
	}
	_, err := Compare(t.Context(), broken(math.NaN()), wavy(5, 1), ok, Options{})
	if err == nil || !strings.Contains(err.Error(), "base model") {
		t.Errorf("broken base: %v", err)
	}
	_, err = Compare(t.Context(), wavy(5, 1), wavy(6, 1), ok, Options{})
	if err == nil || !strings.Contains(err.Error(), "5 tokens") || !strings.Contains(err.Error(), "6") {
		t.Errorf("different vocabularies: %v", err)
	}
}
