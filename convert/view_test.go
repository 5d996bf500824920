package convert

import (
	"bytes"
	"context"
	"errors"
	"math/rand/v2"
	"testing"

	"github.com/winnow-moe/winnow/testdata/fixtures"
	"golang.org/x/sync/errgroup"
)

// viewOf presents the fixture tiny-r1 as a model of a type.
func viewOf(t *testing.T, kind string, closer func() error) *View {
	t.Helper()
	ck := openCheckpoint(t, fixtures.TinyR1(t), CheckpointOptions{})
	plan, err := ck.Plan(request(t, t.TempDir(), kind))
	must(t, err)
	return NewView(plan, 0, ck, closer)
}

// TestViewEqualsFile reads every tensor and many ranges, which span experts
// and heads, from several goroutines, and compares them with the written file.
func TestViewEqualsFile(t *testing.T) {
	for _, kind := range []string{"F32", "Q8_0"} {
		f := openGGUF(t, convertTo(t, fixtures.TinyR1(t), RunOptions{}, kind)[0])
		v := viewOf(t, kind, nil)
		sameMetadata(t, v.Metadata(), f.Metadata())
		sameRows(t, v, f)
		g, ctx := errgroup.WithContext(t.Context())
		for seed := range uint64(4) {
			g.Go(func() error { return compareRanges(ctx, t, v, f.Rows, seed) })
		}
		must(t, g.Wait(), v.Close())
	}
}

// compareRanges reuses one buffer for ranges of many sizes.
func compareRanges(ctx context.Context, t *testing.T, v *View, rows func(context.Context, int, int64, int64, []byte) ([]byte, error), seed uint64) error {
	rng := rand.New(rand.NewPCG(seed, 2))
	var buf []byte
	for range 60 {
		i := rng.IntN(len(v.Tensors()))
		info := v.Tensors()[i]
		first := rng.Int64N(info.Rows())
		n := rng.Int64N(min(info.Rows()-first, 600) + 1)
		got, err := v.Rows(ctx, i, first, n, buf)
		if err != nil {
			return err
		}
		buf = got
		ref, err := rows(ctx, i, first, n, nil)
		if err != nil {
			return err
		}
		if !bytes.Equal(got, ref) {
			t.Errorf("%q: rows %d to %d differ", info.Name, first, first+n)
		}
		v.Release(i)
	}
	return nil
}

func TestViewErrors(t *testing.T) {
	closed := errors.New("closed")
	v := viewOf(t, "F32", func() error { return closed })
	rows := v.Tensors()[0].Rows()
	for _, r := range [][2]int64{{-1, 1}, {0, -1}, {0, rows + 1}, {rows, 1}, {1, 1<<63 - 1}} {
		if _, err := v.Rows(t.Context(), 0, r[0], r[1], nil); err == nil {
			t.Errorf("rows from %d, %d of them, of %d: no error", r[0], r[1], rows)
		}
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := v.Rows(ctx, 0, 0, 1, nil); !errors.Is(err, context.Canceled) {
		t.Errorf("error %v, want cancellation", err)
	}
	if err := v.Close(); !errors.Is(err, closed) {
		t.Errorf("error %v, want that of the closer", err)
	}
}

// TestViewRefusesNaN: a view checks values as a run does.
func TestViewRefusesNaN(t *testing.T) {
	ck, data := damaged(t)
	plan, err := ck.Plan(request(t, t.TempDir(), "F32"))
	must(t, err)
	v := NewView(plan, 0, data, nil)
	for i, info := range v.Tensors() {
		_, err := v.Rows(t.Context(), i, 0, info.Rows(), nil)
		if info.Name == "blk.1.ffn_down_exps.weight" {
			wantRefusal(t, err, ErrInput, info.Name, "row 194, column 3", "NaN")
		} else if err != nil {
			t.Error(err)
		}
	}
}
