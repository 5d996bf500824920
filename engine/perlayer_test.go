package engine

import (
	"slices"
	"sync"
	"testing"

	"github.com/winnow-moe/winnow/formats/gguf"
)

// TestPerLayerRows watches what is read of the embedding of tokens: the rows of
// tokens in the batch, once per token for all blocks together, and again only
// where not all blocks fit the budget.
func TestPerLayerRows(t *testing.T) {
	a := alter(t, "gemma4_e")
	var mu sync.Mutex
	var read []int
	a.rows = func(info *gguf.TensorInfo, first, n int64, data []byte) ([]byte, error) {
		if info.Name == "per_layer_token_embd.weight" {
			mu.Lock()
			defer mu.Unlock()
			for i := range n {
				read = append(read, int(first+i))
			}
		}
		return data, nil
	}
	m := a.load(t, Options{})
	for _, c := range []struct{ budget, times int }{{DefaultGroupBytes / 4, 1}, {3 * 5 * 8, 3}} { // 8 blocks, 3 at a time of 5 tokens
		read, m.budget = nil, c.budget
		if _, err := m.Forward(t.Context(), [][]int32{{2, 300, 17}, {2, 17}}); err != nil {
			t.Fatal(err)
		}
		want := slices.Repeat([]int{2, 300, 17, 2, 17}, c.times)
		slices.Sort(read)
		slices.Sort(want)
		if !slices.Equal(read, want) {
			t.Errorf("budget %d: rows %d are read, want %d", c.budget, read, want)
		}
	}
}
