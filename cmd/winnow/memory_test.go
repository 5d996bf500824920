package main

import (
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/winnow-moe/winnow/convert"
	"github.com/winnow-moe/winnow/engine"
	"github.com/winnow-moe/winnow/verify"
)

// plainModel takes fixed + perToken·tokens bytes and half of a group, if that is more
// than a thousand bytes for each token.
type plainModel struct{ fixed, perToken, hidden, output int64 }

func (m plainModel) Memory(tokens, _ int, group int64) int64 {
	return m.fixed + m.perToken*int64(tokens) + max(group/2, 1000*int64(tokens))
}
func (m plainModel) HiddenBytes(tokens int) int64 { return m.hidden * int64(tokens) }
func (m plainModel) OutputBytes() int64           { return m.output }

// TestChoose computes what fits by hand.
func TestChoose(t *testing.T) {
	one := needs{
		models: []modelNeeds{plainModel{fixed: 1e6, perToken: 10e3, hidden: 4e3, output: 5e6}},
		vocab:  1000, sources: 1, longest: 500, tokens: 40000, used: 50e6, kept: 4e6,
	}
	// Of 900 MB 54 are gone; groups get an eighth, 105.75 MB, and take half of it
	// or a kilobyte for each token; 256 rows take 1.024 MB and the output weight is
	// held. So 11 kB for a token are left 838.976 MB: 76270 tokens, which is all.
	f, _, ok := one.choose(1e9, 1<<30)
	if want := (fit{batch: 40000, rows: 256, group: 105750000, hold: true}); !ok || f != want {
		t.Errorf("1 GB: %+v, want %+v", f, want)
	}
	// 90 - 54 = 36 MB: groups of 4.5 take 2.25, which the tokens exceed; 256 rows
	// 1.024 and 5 held: 28.976 MB for 11 kB each.
	f, _, ok = one.choose(100e6, 1<<30)
	if want := (fit{batch: 2634, rows: 256, group: 4500000, hold: true}); !ok || f != want {
		t.Errorf("100 MB: %+v, want %+v", f, want)
	}
	if f, _, _ = one.choose(100e6, 1000); f.batch != 1000 {
		t.Errorf("a batch of at most 1000 has %d tokens", f.batch)
	}
	// Two models that do not run at the same time: the hidden states of both.
	two := one
	two.models = append(two.models, plainModel{fixed: 2e6, perToken: 20e3, hidden: 3e3, output: 4e6})
	two.sources = 2
	// 126 - 2 - 7.875 - 2.048 - 9 MB for 20 + 4 kB each.
	f, _, ok = two.choose(200e6, 1<<30)
	if want := (fit{batch: 4378, rows: 256, group: 15750000, hold: true}); !ok || f != want {
		t.Errorf("two models: %+v, want %+v", f, want)
	}
	// The least: one window, 16 rows of logits, nothing held.
	_, least, ok := one.choose(50e6, 1<<30)
	if want := int64(50e6+4e6+1e6+500*11e3+16*4000) / 9 * 10; ok || least < want-20 || least > want+20 {
		t.Errorf("least %d (%v), want %d", least, ok, want)
	}
	if f, _, ok = one.choose(least+20, 1<<30); !ok || f.batch != 500 {
		t.Errorf("%+v, %v do not fit the least", f, ok)
	}
	if _, _, ok = one.choose(least-100, 1<<30); ok {
		t.Error("less than the least fits")
	}
}

// TestMemoryFit looks at what flags ask for.
func TestMemoryFit(t *testing.T) {
	n := needs{models: []modelNeeds{plainModel{fixed: 1e6, perToken: 10e3}}, longest: 500, tokens: 1 << 20}
	for _, c := range []struct {
		flags scoreFlags
		hint  string
	}{
		{scoreFlags{maxMemory: 1e6}, "it takes at least"},
		{scoreFlags{maxMemory: 1e9, batch: 1 << 19}, "does not fit"},
	} {
		m := n
		_, err := c.flags.memoryFit(&m)
		if err == nil || !strings.Contains(err.Error(), c.hint) || exitStatus(err) != exitUsage {
			t.Errorf("%+v: %v, want %q", c.flags, err, c.hint)
		}
	}
	m := n
	f, err := (&scoreFlags{batch: 77}).memoryFit(&m)
	if want := (fit{batch: 77, rows: verify.DefaultLogitRows, group: engine.DefaultGroupBytes}); err != nil || f != want {
		t.Errorf("77 tokens without a limit: %+v, %v", f, err)
	}
	m = n
	if f, err = (&scoreFlags{}).memoryFit(&m); err != nil || f.batch < 500 || f.batch > usualBatch || f.hold {
		t.Errorf("without flags: %+v, %v", f, err)
	}
	var h *convert.HintError
	if _, err := (&scoreFlags{maxMemory: 1e6}).memoryFit(&m); !errors.As(err, &h) {
		t.Errorf("no hint with %v", err)
	}
}

func TestAvailableMemory(t *testing.T) {
	if n := availableMemory(); n < 64<<20 {
		t.Errorf("%d bytes", n)
	}
	path := filepath.Join(t.TempDir(), "info")
	if err := os.WriteFile(path, []byte("MemTotal:  10 kB\nMemAvailable:    7 kB\ninactive_file 99\n"), 0o666); err != nil {
		t.Fatal(err)
	}
	if n, ok := memInfo(path, "MemAvailable:"); !ok || n != 7<<10 {
		t.Errorf("%d, %v", n, ok)
	}
	if n, ok := memInfo(path, "inactive_file"); !ok || n != 99 {
		t.Errorf("%d, %v", n, ok)
	}
	if _, ok := memInfo(path, "Swap:"); ok {
		t.Error("a missing line was found")
	}
}
