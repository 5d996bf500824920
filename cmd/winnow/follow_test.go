package main

import (
	"testing"
	"time"

	"github.com/winnow-moe/winnow/verify"
)

// seen is what a tracker shows.
type seen struct {
	done, total int64
	extra       string
}

func followed(models int) (*tracker, *seen, *time.Time) {
	got, clock := &seen{}, time.Unix(0, 0)
	t := &tracker{models: make([]track, models), before: []int{0, 100, 200, 300}, now: func() time.Time { return clock }}
	t.bar = &progress{update: func(done, total int64, extra string) { *got = seen{done, total, extra} }, finish: func() {}}
	t.begin()
	return t, got, &clock
}

// Two windows in one batch of four blocks, then one; a fifth of the work are logits.
func TestTracker(t *testing.T) {
	tr, got, clock := followed(1)
	tr.logits = 0.2
	at := func(seconds int, want seen) {
		t.Helper()
		*clock = time.Unix(int64(seconds), 0)
		tr.show()
		if *got != want {
			t.Errorf("after %d s: %+v, want %+v", seconds, *got, want)
		}
	}
	at(0, seen{0, 300000, ""})
	tr.block(0, 1, 4, 200)
	at(4, seen{40000, 300000, " (10 tokens/s, 26s left)"})
	for done := 2; done <= 4; done++ {
		tr.block(0, done, 4, 200)
	}
	at(16, seen{160000, 300000, " (10 tokens/s, 14s left)"})
	tr.window(1, "PPL 7.0000")
	tr.window(2, "PPL 8.0000")
	at(20, seen{200000, 300000, " (PPL 8.0000, 10 tokens/s, 10s left)"})
	tr.block(0, 4, 4, 100)
	tr.window(3, "PPL 9.0000")
	at(25, seen{300000, 300000, " (PPL 9.0000, 12 tokens/s, 0s left)"})
}

// What a checkpoint has does not count for the speed.
func TestTrackerResumed(t *testing.T) {
	tr, got, clock := followed(2)
	*clock = time.Unix(1, 0)
	tr.window(1, "PPL 7.0000")
	tr.block(1, 2, 4, 100)
	*clock = time.Unix(11, 0)
	tr.block(1, 4, 4, 100)
	if want := (seen{300000, 600000, " (PPL 7.0000, 10 tokens/s, 30s left)"}); *got != want {
		t.Errorf("%+v, want %+v", *got, want)
	}
}

// The models' own progress reaches the tracker.
func TestFollow(t *testing.T) {
	m := &scored{}
	tr := (&app{quiet: true}).follow("scoring", &verify.Text{Windows: [][]int32{{1, 2}, {3}}}, false, m)
	m.onBlock(1, 2, 2)
	if tr.work() != 1 || tr.total() != 3 {
		t.Errorf("%g of %d tokens, want 1 of 3", tr.work(), tr.total())
	}
}
