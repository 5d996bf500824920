package engine

import (
	"context"
	"runtime"
	"slices"
	"testing"

	"github.com/winnow-moe/winnow/engine/kernel"
	"github.com/winnow-moe/winnow/formats/calib"
	"github.com/winnow-moe/winnow/formats/gguf"
)

// live returns the bytes that are in use.
func live() int64 {
	runtime.GC() // twice: a pool gives up what it has only then
	runtime.GC()
	var s runtime.MemStats
	runtime.ReadMemStats(&s)
	return int64(s.HeapAlloc)
}

// TestMemory compares what a batch is said to take with what is in use when its
// rows are read: never more, and not far less. The tiles of the one worker are
// far smaller here than they may be.
func TestMemory(t *testing.T) {
	if testing.Short() || kernel.Active().Lanes < 8 {
		t.Skip("collects garbage many times and needs fast products")
	}
	for _, family := range []string{
		"gemma4_e", "gemma4_moe", "deepseek_v32", "qwen3_moe", "qwen3_next", "kimi_linear", "llama4_scout",
		"deepseek_v32_mtp", "glm4_moe",
	} {
		for _, group := range []int64{0, 1} {
			checkMemory(t, family, Options{GroupBytes: group}, 40, 100)
		}
		checkMemory(t, family, Options{Compute: ComputeInt8}, 40, 100)
		checkMemory(t, family, Options{Observer: new(calib.Statistics).Domain("test"), LeaveOneOut: true}, 8, 100)
	}
}

// checkMemory runs n sequences of a length.
func checkMemory(t *testing.T, family string, opt Options, n, length int) {
	t.Helper()
	a := alter(t, family)
	lengths := slices.Repeat([]int{length}, n)
	seqs := someSeqs(200, lengths...)
	before, most, reads := int64(0), int64(0), 0
	a.rows = func(info *gguf.TensorInfo, first, n int64, data []byte) ([]byte, error) {
		if info.Name == "token_embd.weight" {
			return data, nil
		}
		if reads++; reads%31 == 1 {
			most = max(most, live()-before)
		}
		return data, nil
	}
	opt.Threads = 1 // reads one after the other
	m := a.load(t, opt)
	before = live()
	h, err := m.Forward(t.Context(), seqs)
	if err != nil {
		t.Fatal(family, err)
	}
	workers, slack := m.workerBytes(length), int64(512<<10)
	said := m.Memory(n*length, length, m.opt.GroupBytes) - workers + slack
	if opt.Observer != nil {
		said += 1 << 20 // what it keeps
	}
	if most > said || most < (said-slack)/4 {
		t.Errorf("%s, groups of %d bytes: %d bytes are in use, said %d", family, opt.GroupBytes, most, said)
	}
	runtime.KeepAlive(h)
}

// TestHoldOutput wants the output weight read once, and the same logits.
func TestHoldOutput(t *testing.T) {
	for _, family := range []string{"deepseek_v3", "gemma3"} { // the latter's is the embedding
		a := alter(t, family)
		seqs := someSeqs(200, 60)
		plain := a.load(t, Options{})
		_, want := allLogits(t, plain, seqs)
		m := a.load(t, Options{HoldOutput: true, Threads: 1})
		h, err := m.Forward(t.Context(), seqs)
		if err != nil {
			t.Fatal(err)
		}
		rows := int64(0)
		a.rows = func(info *gguf.TensorInfo, _, n int64, data []byte) ([]byte, error) {
			if info.Name == m.output.w.info.Name {
				rows += n
			}
			return data, nil
		}
		got := make([]float32, len(want))
		for i := range 6 {
			if err := m.Logits(context.Background(), h, 10*i, 10, got[10*i*m.Vocab():][:10*m.Vocab()]); err != nil {
				t.Fatal(err)
			}
		}
		if !slices.Equal(got, want) {
			t.Errorf("%s: other logits", family)
		}
		if int(rows) != m.Vocab() {
			t.Errorf("%s: %d rows read, want %d", family, rows, m.Vocab())
		}
	}
}
