package verify

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/winnow-moe/winnow/engine"
	"github.com/winnow-moe/winnow/formats/gguf"
	"github.com/winnow-moe/winnow/testdata/fixtures"
)

// stopping loads a model that calls stop after every block of a batch.
func stopping(t *testing.T, family string, stop func()) *engine.Model {
	t.Helper()
	m, err := engine.Load(openGGUF(t, filepath.Join(fixtures.Family(t, family), "ref-bf16.gguf")), engine.Options{
		Events: engine.Events{Layer: func(int, int, int) { stop() }},
	})
	if err != nil {
		t.Fatal(err)
	}
	return m
}

// keptOptions are those of small batches with a checkpoint after every block.
func keptOptions(path string) Options {
	return Options{BatchTokens: 40, LogitRows: 7, Checkpoint: &Checkpoint{Path: path, Facts: []Fact{{"model", "a"}, {"text", "b"}}}}
}

// TestCheckpoint ends measurements after every third block, and goes on until
// they are done: the numbers are those of a run without a stop.
func TestCheckpoint(t *testing.T) {
	text, err := NewText("fake", someTokens(90, 200), 10, 0, 1, true)
	if err != nil {
		t.Fatal(err)
	}
	whole := Join([]string{"a", "b"}, []*Text{text, text})
	for _, family := range []string{"deepseek_v2_lite", "gemma4_e", "qwen3_next"} {
		measure := func(ctx context.Context, opt Options, stop func()) (any, error) {
			return Compare(ctx, stopping(t, family, stop), stopping(t, family, stop), whole, opt)
		}
		want, err := measure(t.Context(), Options{}, func() {})
		if err != nil {
			t.Fatal(err)
		}
		opt, runs := keptOptions(filepath.Join(t.TempDir(), "run.ckpt")), 0
		for {
			runs++
			ctx, cancel := context.WithCancel(t.Context())
			left := 3
			got, err := measure(ctx, opt, func() {
				if left--; left == 0 {
					cancel()
				}
			})
			cancel()
			if err == nil {
				if diff := cmp.Diff(want, got); diff != "" {
					t.Errorf("%s, after %d runs: %s", family, runs, diff)
				}
				break
			}
			if !errors.Is(err, context.Canceled) || runs > 100 {
				t.Fatal(family, err)
			}
		}
		if runs < 5 {
			t.Errorf("%s: done after %d runs", family, runs)
		}
		if err := opt.Checkpoint.Remove(); err != nil {
			t.Error(err)
		}
		if left, _ := os.ReadDir(filepath.Dir(opt.Checkpoint.Path)); len(left) > 0 {
			t.Errorf("left behind: %v", left)
		}
	}
}

// unfinished makes a checkpoint of a run that ended in the second batch.
func unfinished(t *testing.T, text *Text, opt Options) {
	t.Helper()
	ctx, cancel := context.WithCancel(t.Context())
	left := 4
	m := stopping(t, "gemma4_e", func() {
		if left--; left == 0 {
			cancel()
		}
	})
	left += m.Blocks()
	if _, err := Perplexity(ctx, m, text, opt); !errors.Is(err, context.Canceled) {
		t.Fatal(err)
	}
}

// TestCheckpointRefuses wants errors that say what differs or is wrong.
func TestCheckpointRefuses(t *testing.T) {
	text := someText(t, 100, 10, 200)
	opt := keptOptions(filepath.Join(t.TempDir(), "run.ckpt"))
	unfinished(t, text, opt)
	good, err := os.ReadFile(opt.Checkpoint.Path)
	if err != nil {
		t.Fatal(err)
	}
	m := stopping(t, "gemma4_e", func() {})
	refused := func(what, hint string, m *engine.Model, text *Text, opt Options) {
		t.Helper()
		_, err := Perplexity(t.Context(), m, text, opt)
		if !errors.Is(err, ErrCheckpoint) && !errors.Is(err, gguf.ErrFormat) || !strings.Contains(err.Error(), hint) || !strings.Contains(err.Error(), "run.ckpt") {
			t.Errorf("%s: %v, want %q", what, err, hint)
		}
	}
	other := func(change func(*Checkpoint)) Options {
		o := keptOptions(opt.Checkpoint.Path)
		change(o.Checkpoint)
		return o
	}
	refused("another text", "another text: there b, here c", m, text, other(func(c *Checkpoint) { c.Facts[1].Value = "c" }))
	refused("another fact", "another kind of measurement", m, text, other(func(c *Checkpoint) { c.Facts[1].Name = "c" }))
	refused("more facts", "another kind of measurement", m, text, other(func(c *Checkpoint) { c.Facts = append(c.Facts, Fact{}) }))
	refused("a shorter text", "the text has 2 windows", m, &Text{Windows: text.Windows[:2]}, opt)
	small := opt
	small.BatchTokens = 20
	refused("less memory", "allow as much memory", m, text, small)
	refused("another model", `tensor "checkpoint.0.x" is F32`, stopping(t, "hunyuan_v1_moe", func() {}), text, opt)
	for i := 0; i < len(good); i += max(1, len(good)/100) {
		bad := append([]byte(nil), good...)
		bad[i] ^= 4
		if err := os.WriteFile(opt.Checkpoint.Path, bad, 0o666); err != nil {
			t.Fatal(err)
		}
		_, err := Perplexity(t.Context(), m, text, opt)
		if err == nil {
			// Padding between tensors belongs to none.
			if padding(t, opt.Checkpoint.Path, int64(i)) {
				continue
			}
			t.Fatalf("byte %d of %d is damaged, and nothing was found", i, len(good))
		}
	}
	for _, n := range []int{0, 3, 100, len(good) / 2, len(good) - 40} {
		if err := os.WriteFile(opt.Checkpoint.Path, good[:n], 0o666); err != nil {
			t.Fatal(err)
		}
		if _, err := Perplexity(t.Context(), m, text, opt); err == nil {
			t.Errorf("%d of %d bytes were taken", n, len(good))
		}
	}
}

// padding reports whether byte i of a GGUF file is in no tensor.
func padding(t *testing.T, path string, i int64) bool {
	f := openGGUF(t, path)
	for n := range f.Tensors() {
		if _, off := f.Place(n); i >= off && i < off+f.Tensors()[n].Size() {
			return false
		}
	}
	return true
}
