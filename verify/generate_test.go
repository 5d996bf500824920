package verify

import (
	"fmt"
	"path/filepath"
	"slices"
	"testing"

	"github.com/winnow-moe/winnow/testdata/fixtures"
)

// slowly continues a prompt token by token.
func slowly[H Hidden](t *testing.T, s Scorer[H], prompt []int32, n int, stop ...int32) []int32 {
	t.Helper()
	tokens := slices.Clone(prompt)
	for range n {
		h, err := s.Forward(t.Context(), [][]int32{tokens})
		if err != nil {
			t.Fatal(err)
		}
		row := make([]float32, s.Vocab())
		if err := s.Logits(t.Context(), h, len(tokens)-1, 1, row); err != nil {
			t.Fatal(err)
		}
		id := int32(slices.Index(row, slices.Max(row)))
		if tokens = append(tokens, id); slices.Contains(stop, id) {
			break
		}
	}
	return tokens[len(prompt):]
}

// TestGreedy compares with one token at a time, of a model that runs, and of
// fakes that end in loops or stop.
func TestGreedy(t *testing.T) {
	m := loadEngine(t, filepath.Join(fixtures.Family(t, "qwen3_moe"), "ref-bf16.gguf"))
	tokens := someTokens(40, m.Vocab())
	testGreedy(t, m, [][]int32{tokens[:8], tokens[8:9], tokens[9:31]}, 12)
	tokens = someTokens(40, 17)
	prompts := [][]int32{tokens[:8], tokens[8:9], tokens[9:31]}
	testGreedy(t, wavy(17, 3), prompts, 30)
	testGreedy(t, wavy(17, 3), prompts, 30, 4, 9)

	// The token after one is a number more, in a circle.
	circle := &fakeModel{vocab: 5, logit: func(token int32, _, id int) float64 {
		if int(token+1)%5 == id {
			return 1
		}
		return 0
	}}
	testGreedy(t, circle, [][]int32{{0}, {1, 2, 3}}, 64)
	circle.passes = nil
	got, err := Greedy(t.Context(), circle, [][]int32{{3}}, 64)
	if err != nil || len(circle.passes) > 10 {
		t.Errorf("%d passes for %d tokens in a circle of 5, %v", len(circle.passes), len(got[0]), err)
	}
	if r := Repetitions(got); r.Loops.Value != 100 || r.Prompts != 1 || r.Tokens != 64 {
		t.Errorf("%+v", r)
	}
	for _, bad := range [][][]int32{{{1}, {}}} {
		if _, err := Greedy(t.Context(), circle, bad, 4); err == nil {
			t.Errorf("prompts %v: no error", bad)
		}
	}
	if _, err := Greedy(t.Context(), circle, prompts, 0); err == nil {
		t.Error("0 tokens: no error")
	}
}

func testGreedy[H Hidden](t *testing.T, s Scorer[H], prompts [][]int32, n int, stop ...int32) {
	t.Helper()
	got, err := Greedy(t.Context(), s, prompts, n, stop...)
	if err != nil {
		t.Fatal(err)
	}
	for i, p := range prompts {
		if want := slowly(t, s, p, n, stop...); !slices.Equal(got[i], want) {
			t.Errorf("prompt %d, stop at %v: %v, want %v", i, stop, got[i], want)
		}
	}
}

func TestRepetitions(t *testing.T) {
	for _, tc := range []struct {
		name     string
		tokens   []int32
		repeated float64 // of 100
		loop     bool
	}{
		{"nothing", nil, 0, false},
		{"short", []int32{1, 1, 1}, 0, false},
		{"once", []int32{1, 2, 3, 4, 5, 6, 7}, 0, false},
		{"one of five", []int32{1, 2, 3, 4, 1, 2, 3, 4}, 20, false},
		{"the same token", []int32{5, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7}, 80, true},
		{"eleven of them", []int32{5, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7}, 100 * 7. / 9, false},
		{"five, three times", []int32{9, 1, 2, 3, 4, 5, 1, 2, 3, 4, 5, 1, 2, 3, 4, 5}, 100 * 7. / 13, true},
		{"left again", []int32{1, 2, 3, 4, 5, 1, 2, 3, 4, 5, 1, 2, 3, 4, 5, 9}, 100 * 7. / 13, false},
	} {
		r := Repetitions([][]int32{tc.tokens})
		near(t, tc.name, r.Repeated.Value, tc.repeated, 1e-9)
		if (r.Loops.Value == 100) != tc.loop {
			t.Errorf("%s: loops %v, want %t", tc.name, r.Loops, tc.loop)
		}
	}
}

func TestPrompts(t *testing.T) {
	text := &Text{Windows: [][]int32{{1, 2, 3}, {4, 5, 6}, {7, 8}, {9, 10, 11}, {12, 13, 14}}}
	for n, want := range map[int]string{0: "[]", 2: "[[1 2]]", 3: "[[1 2] [4 5] [9 10]]", 9: "[[1 2] [4 5] [9 10] [12 13]]"} {
		if got := fmt.Sprint(text.Prompts(n, 2)); got != want {
			t.Errorf("%d prompts: %s, want %s", n, got, want)
		}
	}
}
