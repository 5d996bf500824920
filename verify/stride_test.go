package verify

import (
	"encoding/json"
	"math"
	"os"
	"path/filepath"
	"reflect"
	"runtime"
	"slices"
	"strings"
	"testing"
)

// TestHFStride compares with transformers' sliding windows on tiny-llama4
// (testdata/hfstride.py).
func TestHFStride(t *testing.T) {
	b, err := os.ReadFile(filepath.Join("testdata", "hfstride.json"))
	if err != nil {
		t.Fatal(err)
	}
	var golden struct {
		IDs   []int32
		Cases []struct {
			Ctx, Stride int
			WindowNLL   []float64 `json:"window_nll"`
			Scored      []int     `json:"window_scored"`
			PPL         float64
			Docs        float64 `json:"ppl_docs"`
		}
	}
	if err := json.Unmarshal(b, &golden); err != nil || len(golden.Cases) != 4 {
		t.Fatal("no golden:", err)
	}
	m := trainedModel(t, "tiny-llama4")
	for _, c := range golden.Cases {
		text, err := NewStrideText("tiny-llama4", golden.IDs, c.Ctx, c.Stride, 0)
		if err != nil {
			t.Fatal(err)
		}
		got, err := Perplexity(t.Context(), m, text, Options{})
		if err != nil {
			t.Fatal(err)
		}
		if !slices.Equal(got.WindowScored, c.Scored) {
			t.Fatalf("ctx %d, stride %d: scored %v, want %v", c.Ctx, c.Stride, got.WindowScored, c.Scored)
		}
		docs, weights := 0.0, 0.0
		for w, nll := range got.WindowNLL {
			near(t, "window", nll, c.WindowNLL[w], 1e-5)
			n := float64(got.WindowScored[w])
			if w > 0 && c.Stride < c.Ctx {
				n-- // the page's weights
			}
			docs, weights = docs+nll*n, weights+n
		}
		near(t, "ppl", got.PPL.Value, c.PPL, 1e-5*c.PPL)
		near(t, "the page's ppl", math.Exp(docs/weights), c.Docs, 1e-5*c.Docs)
		seqs, err := NewSequences([][]int32{golden.IDs, golden.IDs[:90]}, c.Ctx, c.Stride, len(c.Scored))
		if err != nil || !slices.EqualFunc(seqs.Windows, text.Windows, slices.Equal) || !slices.Equal(seqs.From, text.From) {
			t.Errorf("the ids as a sequence: %v, %v", seqs, err)
		}
	}
}

// TestStrideCoversAll: every token but the first is a target once.
func TestStrideCoversAll(t *testing.T) {
	for n := 10; n < 40; n++ {
		for ctx := 2; ctx <= 10; ctx++ {
			for stride := 1; stride <= ctx; stride++ {
				tokens := make([]int32, n)
				for i := range tokens {
					tokens[i] = int32(i)
				}
				text, err := NewStrideText("x", tokens, ctx, stride, 0)
				if err != nil {
					t.Fatal(err)
				}
				var targets []int32
				for w, window := range text.Windows {
					targets = append(targets, window[text.from(w)+1:]...)
				}
				want := tokens[1:]
				if stride == ctx { // the first token of a window has nothing before it
					want = slices.DeleteFunc(slices.Clone(want), func(id int32) bool { return int(id)%ctx == 0 })
				}
				if !slices.Equal(targets, want) || checkText(text, n) != nil {
					t.Fatalf("%d tokens, ctx %d, stride %d: targets %v, %v", n, ctx, stride, targets, checkText(text, n))
				}
			}
		}
	}
}

func TestStrideErrors(t *testing.T) {
	tokens := someTokens(50, 9)
	for _, c := range []struct {
		ctx, stride, chunks int
		hint                string
	}{{16, 17, 0, "stride of 17"}, {16, 0, 0, "stride of 0"}, {16, -1, 0, "stride of -1"}, {1, 1, 0, "no scored position"}, {51, 5, 0, "50 tokens, less than one window of 51"}, {16, 4, -1, "windows asked for"}} {
		if _, err := NewStrideText("x", tokens, c.ctx, c.stride, c.chunks); err == nil || !strings.Contains(err.Error(), c.hint) {
			t.Errorf("%+v: %v", c, err)
		}
	}
	text, err := NewStrideText("x", tokens, 16, 4, 3)
	if err != nil || len(text.Windows) != 3 || !strings.Contains(text.Definition, "3 of 10 used") {
		t.Errorf("three windows: %+v, %v", text, err)
	}
	text.From[1] = 15
	if _, err := Perplexity(t.Context(), wavy(9, 1), text, Options{}); err == nil || !strings.Contains(err.Error(), "window 1") {
		t.Errorf("nothing scored in a window: %v", err)
	}
}

func TestSequences(t *testing.T) {
	seqs := [][]int32{{1, 2, 3, 4, 5}, {6, 7, 8, 0}}
	text, err := NewSequences(seqs, 4, 0, 0)
	if want := [][]int32{{1, 2, 3, 4}, {6, 7, 8, 0}}; err != nil || !slices.EqualFunc(text.Windows, want, slices.Equal) || text.From != nil || text.Tokens != nil {
		t.Errorf("windows: %+v, %v", text, err)
	}
	if text, err = NewSequences(seqs, 4, 2, 2); err != nil || len(text.Windows) != 2 || !slices.Equal(text.From, []int{0, 1}) {
		t.Errorf("sliding windows: %+v, %v", text, err)
	}
	for _, c := range []struct {
		ctx, stride int
		seqs        [][]int32
		hint        string
	}{
		{5, 0, seqs, "sequence 1: 4 tokens, less than one window of 5"}, {2, 0, seqs, "no scored position"},
		{4, 2, [][]int32{{1, 2}, {1}}, "sequence 1: 1 tokens"}, {4, 5, seqs, "stride of 5"},
	} {
		if _, err := NewSequences(c.seqs, c.ctx, c.stride, 0); err == nil || !strings.Contains(err.Error(), c.hint) {
			t.Errorf("%+v: %v", c, err)
		}
	}
}

// TestJoin: domains get what each text gets alone, and the total is that of
// all tokens.
func TestJoin(t *testing.T) {
	a, b := someText(t, 200, 16, 11), someText(t, 130, 16, 11)
	all := Join([]string{"a", "b"}, []*Text{a, b})
	base, model := wavy(11, 1), wavy(11, 2)
	total, err := Perplexity(t.Context(), model, all, Options{BatchTokens: 48})
	if err != nil {
		t.Fatal(err)
	}
	compared, err := Compare(t.Context(), base, model, all, Options{})
	if err != nil {
		t.Fatal(err)
	}
	sum := 0.0
	for i, text := range []*Text{a, b} {
		want, err := Perplexity(t.Context(), model, text, Options{})
		if err != nil {
			t.Fatal(err)
		}
		want.Name = string(rune('a' + i))
		if !reflect.DeepEqual(total.Domains[i], want) {
			t.Errorf("%+v, alone %+v", total.Domains[i], want)
		}
		alone, err := Compare(t.Context(), base, model, text, Options{})
		if err != nil {
			t.Fatal(err)
		}
		alone.Name = want.Name
		if !reflect.DeepEqual(compared.Domains[i], alone) {
			t.Errorf("%+v, alone %+v", compared.Domains[i], alone)
		}
		sum += want.NLL.Value * float64(want.Scored)
	}
	near(t, "total", total.NLL.Value, sum/float64(total.Scored), 1e-12)
	if total.Scored != all.Scored() || len(total.WindowNLL) != len(all.Windows) || compared.Scored != total.Scored || len(total.Domains) != 2 {
		t.Errorf("%d scored in %d windows", total.Scored, len(total.WindowNLL))
	}
	if len(all.Tokens) != 16*len(all.Windows) || all.Len() != len(all.Tokens) {
		t.Errorf("%d tokens kept", len(all.Tokens))
	}
}

func TestTop(t *testing.T) {
	for _, c := range []struct {
		v    []float32
		n    int
		want []int
	}{
		{[]float32{3, 1, 4, 1, 5, 9, 2, 6}, 5, []int{5, 7, 4, 2, 0}},
		{[]float32{1, 1, 1, 1}, 3, []int{0, 1, 2}},
		{[]float32{1, 2, 2, 1}, 3, []int{1, 2, 0}},
		{[]float32{1, 2}, 5, []int{1, 0}},
	} {
		if got := top(c.v, make([]int, c.n)); !slices.Equal(got, c.want) {
			t.Errorf("top of %v: %v, want %v", c.v, got, c.want)
		}
	}
}

// TestMemory: no more is allocated than blocks of rows, however long windows
// and text are, with a model as base and with a file, which is written too.
func TestMemory(t *testing.T) {
	if raceDetector {
		t.Skip("the race detector allocates, too")
	}
	const ctx, vocab = 2050, 4000
	flat := func() *fakeModel {
		return &fakeModel{vocab: vocab, logit: func(token int32, pos, id int) float64 { return float64((int(token)*pos + id) & 7) }}
	}
	text := someText(t, 3*ctx, ctx, vocab)
	allocated := func(what string, blocks uint64, run func() error) {
		t.Helper()
		var before, after runtime.MemStats
		runtime.ReadMemStats(&before)
		if err := run(); err != nil {
			t.Fatal(err)
		}
		runtime.ReadMemStats(&after)
		got, all := after.TotalAlloc-before.TotalAlloc, uint64(text.Scored()*vocab*4)
		if limit := blocks*DefaultLogitRows*vocab*4 + 2<<20; got > limit || limit > all/3*2 {
			t.Errorf("%s: %d bytes allocated, limit %d, all logits %d", what, got, limit, all)
		}
	}
	var saved string
	allocated("perplexity, saving", 1, func() error { saved = save(t, flat(), text); return nil })
	allocated("two models", 2, func() error { _, err := Compare(t.Context(), flat(), flat(), text, Options{}); return err })
	base := openLogits(t, saved)
	allocated("a model beside a file", 2, func() error { _, err := CompareFile(t.Context(), base, flat(), text, Options{}); return err })
}
