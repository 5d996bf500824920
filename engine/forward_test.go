package engine

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"math"
	"math/rand/v2"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"

	"github.com/winnow-moe/winnow/formats/arch"
	"github.com/winnow-moe/winnow/formats/gguf"
	"github.com/winnow-moe/winnow/testdata/fixtures"
)

// someSeqs returns sequences of random ids with the given lengths.
func someSeqs(vocab int, lengths ...int) [][]int32 {
	rng := rand.New(rand.NewPCG(7, 9))
	seqs := make([][]int32, len(lengths))
	for i, n := range lengths {
		for range n {
			seqs[i] = append(seqs[i], int32(rng.IntN(vocab)))
		}
	}
	return seqs
}

// TestInvariance wants the same bits from every number of threads, batch
// size, grouping of heads and experts, and company of other sequences. One
// sequence is longer than a block of queries and a span of the kernel.
func TestInvariance(t *testing.T) {
	for _, family := range []string{"deepseek_v3", "deepseek_v2_lite", "mistral", "deepseek_v32", "qwen3_next", "qwen3_5_moe", "kimi_linear", "gemma4_e", "phi3_long", "phimoe"} {
		path := filepath.Join(fixtures.Family(t, family), "ref-bf16.gguf")
		seqs := someSeqs(500, 48, 1, 0, 310, 17, 64, 65)
		one := openModel(t, path, Options{Threads: 1})
		var want []float32
		for _, s := range seqs {
			if len(s) > 0 {
				_, l := allLogits(t, one, [][]int32{s})
				want = append(want, l...)
			}
		}
		for _, v := range []struct {
			opt    Options
			budget int
		}{{Options{}, DefaultGroupBytes / 4}, {Options{Threads: 3}, 20000}, {Options{Threads: 16, BatchTokens: 1}, DefaultGroupBytes / 4}, {Options{Threads: 2, BatchTokens: 320}, 1}} {
			m := openModel(t, path, v.opt)
			m.budget = v.budget
			_, got := allLogits(t, m, seqs)
			for i := range want {
				if math.Float32bits(got[i]) != math.Float32bits(want[i]) {
					t.Errorf("%s, %+v: logit %d of row %d is %g, alone %g", family, v, i%m.Vocab(), i/m.Vocab(), got[i], want[i])
					break
				}
			}
		}
	}
}

// TestCausal wants nothing of a later token in an earlier row.
func TestCausal(t *testing.T) {
	m := openModel(t, filepath.Join(fixtures.Family(t, "deepseek_v3"), "ref-bf16.gguf"), Options{})
	seqs := someSeqs(500, 70)
	_, whole := allLogits(t, m, seqs)
	for _, n := range []int{1, 20, 63, 69} {
		_, part := allLogits(t, m, [][]int32{seqs[0][:n]})
		if !slices.Equal(part, whole[:n*m.Vocab()]) {
			t.Errorf("logits of the first %d tokens change with what follows", n)
		}
	}
}

// TestLayerOrder watches what is read: per batch every row of every weight of
// the trunk once, block after block, each block let go before the next; no
// tensor of a multi-token prediction block ever.
func TestLayerOrder(t *testing.T) {
	a := alter(t, "deepseek_v2_lite")
	var mu sync.Mutex
	read := map[string][]int{} // times read, per row
	layer, widest := -1, 0
	released := map[string]bool{}
	a.rows = func(info *gguf.TensorInfo, first, n int64, data []byte) ([]byte, error) {
		mu.Lock()
		defer mu.Unlock()
		if l := arch.ParseName(info.Name).Layer; l >= 0 {
			if l < layer {
				t.Errorf("%q is read in block %d", info.Name, layer)
			}
			layer = l
		}
		if released[info.Name] {
			t.Errorf("%q is read after its release", info.Name)
		}
		if read[info.Name] == nil {
			read[info.Name] = make([]int, info.Rows())
		}
		for i := first; i < first+n; i++ {
			read[info.Name][i]++
		}
		widest = max(widest, len(data))
		return data, nil
	}
	a.release = func(info *gguf.TensorInfo) { released[info.Name] = true }
	var events []string
	m := a.load(t, Options{Threads: 2, Events: Events{Layer: func(done, total, tokens int) {
		events = append(events, fmt.Sprint(done, total, tokens))
	}}})
	// Enough tokens that every expert has some.
	if _, err := m.Forward(t.Context(), someSeqs(500, 100, 60)); err != nil {
		t.Fatal(err)
	}
	for name, times := range read {
		if name == "token_embd.weight" {
			continue
		}
		for row, n := range times {
			if n != 1 {
				t.Fatalf("row %d of %q is read %d times", row, name, n)
			}
		}
		if name != "output_norm.weight" && !released[name] {
			t.Errorf("%q is not released", name)
		}
	}
	if want := len(a.tensors) - 1; len(read) != want { // all but output.weight
		t.Errorf("%d tensors are read, want %d", len(read), want)
	}
	if limit := max(4*tileFloats, 1<<16); widest > limit {
		t.Errorf("%d bytes are read at once", widest)
	}
	if len(events) != 26 || events[0] != "1 26 160" || events[25] != "26 26 160" {
		t.Errorf("events %q", events)
	}
}

// TestBatches counts passes over the model by the events of two batches.
func TestBatches(t *testing.T) {
	var last string
	m := alter(t, "mistral").load(t, Options{BatchTokens: 50, Events: Events{Layer: func(done, total, tokens int) {
		last = fmt.Sprint(done, total, tokens)
	}}})
	h, err := m.Forward(t.Context(), someSeqs(500, 30, 20, 60, 10))
	if err != nil {
		t.Fatal(err)
	}
	layers := m.Params().Trunk()
	if want := fmt.Sprint(3*layers, 3*layers, 10); last != want { // 30+20, 60, 10
		t.Errorf("last event %q, want %q", last, want)
	}
	if first, n := h.Seq(2); first != 50 || n != 60 || h.Rows() != 120 {
		t.Errorf("sequence 2 is rows %d+%d of %d", first, n, h.Rows())
	}
}

// poison makes the first value of row 0 of a tensor NaN.
func poison(name string) func(*gguf.TensorInfo, int64, int64, []byte) ([]byte, error) {
	return func(info *gguf.TensorInfo, first, _ int64, data []byte) ([]byte, error) {
		if info.Name != name || first != 0 {
			return data, nil
		}
		data = slices.Clone(data)
		switch info.Type {
		case gguf.F32:
			binary.LittleEndian.PutUint32(data, 0x7fc00000)
		case gguf.BF16:
			binary.LittleEndian.PutUint16(data, 0x7fc0)
		}
		return data, nil
	}
}

// TestNotFinite poisons one tensor after the other: the error names it.
func TestNotFinite(t *testing.T) {
	for _, family := range []string{"deepseek_v3", "mistral", "deepseek_v32_mtp", "qwen3_next", "qwen3_5_moe", "kimi_linear", "gemma4_e"} {
		a := alter(t, family)
		m := a.load(t, Options{Observer: recorder{}}) // runs multi-token prediction, too
		seqs := someSeqs(500, 120)
		seqs[0][3] = 0
		for i := range a.tensors {
			name := a.tensors[i].Name
			if n := arch.ParseName(name); m.Idle(n) != "" || n.Role == arch.NextnSharedHead {
				continue
			}
			a.rows = poison(name)
			h, err := m.Forward(t.Context(), seqs)
			if err == nil {
				err = m.Logits(t.Context(), h, 0, 1, make([]float32, m.Vocab()))
			}
			if err == nil || !strings.Contains(err.Error(), name) || !strings.Contains(err.Error(), "finite") {
				t.Errorf("NaN in %q: error %v", name, err)
			}
		}
	}
}

// TestOverflow makes values overflow where no tensor is to blame: in scores.
func TestOverflow(t *testing.T) {
	a := alter(t, "mistral")
	a.rows = func(info *gguf.TensorInfo, _, _ int64, data []byte) ([]byte, error) {
		if info.Name != "blk.1.attn_q.weight" && info.Name != "blk.1.attn_k.weight" {
			return data, nil
		}
		data = slices.Clone(data)
		for i := 0; i < len(data); i += 2 {
			binary.LittleEndian.PutUint16(data[i:], 0x6000) // about 3.7e19
		}
		return data, nil
	}
	_, err := a.load(t, Options{}).Forward(t.Context(), someSeqs(500, 40))
	if err == nil || !strings.Contains(err.Error(), "block 1") || !strings.Contains(err.Error(), "attention") {
		t.Errorf("error %v", err)
	}
}

func TestForwardErrors(t *testing.T) {
	a := alter(t, "mistral")
	m := a.load(t, Options{})
	for _, id := range []int32{-1, int32(m.Vocab())} {
		_, err := m.Forward(t.Context(), [][]int32{{1, 2}, {3, 4, id}})
		if err == nil || !strings.Contains(err.Error(), fmt.Sprintf("sequence 1, position 2: token id %d", id)) {
			t.Errorf("id %d: error %v", id, err)
		}
	}
	h, err := m.Forward(t.Context(), [][]int32{{1, 2}})
	if err != nil {
		t.Fatal(err)
	}
	for _, r := range [][3]int{{-1, 1, 1}, {0, 3, 3}, {2, 1, 1}, {0, 1, 2}, {0, -1, -1}} {
		if err := m.Logits(t.Context(), h, r[0], r[1], make([]float32, max(0, r[2])*m.Vocab())); err == nil {
			t.Errorf("logits %v: no error", r)
		}
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := m.Forward(ctx, [][]int32{{1, 2}}); !errors.Is(err, context.Canceled) {
		t.Errorf("canceled: error %v", err)
	}
	if h, err := m.Forward(t.Context(), nil); err != nil || h.Rows() != 0 {
		t.Errorf("no sequences: %v", err)
	}
}

// TestReadErrors fails the reading of one tensor after the other.
func TestReadErrors(t *testing.T) {
	broken := errors.New("disk on fire")
	for _, family := range []string{"deepseek_v3", "mistral", "deepseek_v32_mtp", "qwen3_next", "qwen3_5_moe", "kimi_linear", "gemma4_e"} {
		a := alter(t, family)
		m := a.load(t, Options{Observer: recorder{}}) // runs multi-token prediction, too
		seqs := someSeqs(500, 120)
		for i := range a.tensors {
			name := a.tensors[i].Name
			if n := arch.ParseName(name); m.Idle(n) != "" || n.Role == arch.NextnSharedHead {
				continue
			}
			a.rows = func(info *gguf.TensorInfo, _, _ int64, data []byte) ([]byte, error) {
				if info.Name == name {
					return nil, broken
				}
				return data, nil
			}
			h, err := m.Forward(t.Context(), seqs)
			if err == nil {
				err = m.Logits(t.Context(), h, 0, 1, make([]float32, m.Vocab()))
			}
			if !errors.Is(err, broken) {
				t.Errorf("%q unreadable: error %v", name, err)
			}
		}
	}
	a := alter(t, "mistral")
	a.rows = func(_ *gguf.TensorInfo, _, _ int64, data []byte) ([]byte, error) { return data[:len(data)-2], nil }
	if _, err := a.load(t, Options{}).Forward(t.Context(), someSeqs(500, 4)); err == nil || !strings.Contains(err.Error(), "token_embd.weight") {
		t.Errorf("short rows: error %v", err)
	}
}

func BenchmarkForward(b *testing.B) {
	m := openModel(b, filepath.Join(fixtures.Family(b, "deepseek_v3"), "ref-bf16.gguf"), Options{})
	seqs := someSeqs(500, 256, 256, 256, 256)
	for b.Loop() {
		if _, err := m.Forward(b.Context(), seqs); err != nil {
			b.Fatal(err)
		}
	}
	b.ReportMetric(1024*float64(b.N)/b.Elapsed().Seconds(), "tokens/s")
}
