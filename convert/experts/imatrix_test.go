package experts

import (
	"context"
	"errors"
	"slices"
	"strings"
	"testing"

	"github.com/winnow-moe/winnow/formats/calib"
)

// TestImatrixScore computes scores of experts with two columns by hand.
func TestImatrixScore(t *testing.T) {
	p := model(1) // the MTP block 3 has no entry
	p.ExpertFF = 2
	m := &calib.Matrix{Entries: []calib.Entry{
		calib.NewEntry(downName(1), []float32{1, 2, 3, 4, 0, 0, 5, 6}, []int64{2, 4, 0, 1}),
		calib.NewEntry(downName(2), []float32{1, 1, 1, 1, 1, 1, 1, 1}, []int64{1, 1, 1, 1}),
	}}
	norms := func(_ context.Context, block int) ([]float64, error) {
		return []float64{10, 1, 10, 1, 10, 1, 10, float64(block)}, nil
	}
	for rule, want := range map[string][]float64{"imx_energy": {12, 34, 0, 56}, "imx_msan": {6, 8.5, 0, 56}} {
		s, err := ImatrixScore(t.Context(), m, p, rule, norms)
		if err != nil || !slices.Equal(s.Blocks[1], want) || s.Blocks[2][3] != 12 && rule == "imx_energy" || len(s.Blocks) != 2 {
			t.Errorf("%s: %+v, %v; want %v", rule, s, err, want)
		}
	}
	if _, err := ImatrixScore(t.Context(), m, p, "reap", norms); !errors.Is(err, ErrRefused) {
		t.Errorf("rule that needs more: %v", err)
	}
	p.ExpertFF = 4
	if _, err := ImatrixScore(t.Context(), m, p, "imx_msan", norms); !errors.Is(err, ErrInvalid) || !strings.Contains(err.Error(), "4 experts of 4 columns") {
		t.Errorf("another size: %v", err)
	}
	p.ExpertFF, m.Entries = 2, m.Entries[:1]
	if _, err := ImatrixScore(t.Context(), m, p, "imx_msan", norms); !errors.Is(err, ErrInvalid) || !strings.Contains(err.Error(), "no entry for") {
		t.Errorf("a block that is missing: %v", err)
	}
}
