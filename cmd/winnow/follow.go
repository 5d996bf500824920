package main

import (
	"fmt"
	"math"
	"time"

	"github.com/winnow-moe/winnow/verify"
)

// tracker shows how far models are with the windows of a text: through their
// blocks, batch by batch, and with the logits.
type tracker struct {
	bar     *progress
	models  []track
	before  []int   // tokens of the windows before each
	logits  float64 // the share that logits have in the work
	windows int     // done
	remark  string
	now     func() time.Time
	start   time.Time
	from    float64 // work that was done at the start
}

// track is how far one model is, in tokens.
type track struct{ done, batch float64 }

// follow begins to show progress. Logits count if they are made.
func (a *app) follow(what string, text *verify.Text, logits bool, models ...*scored) *tracker {
	t := &tracker{bar: a.newProgress(what, false), models: make([]track, len(models)), before: []int{0}, now: time.Now}
	for i, w := range text.Windows {
		t.before = append(t.before, t.before[i]+len(w))
	}
	if logits {
		t.logits = logitsShare(models, text)
	}
	for i, m := range models {
		m.onBlock = func(done, total, tokens int) { t.block(i, done, total, tokens) }
	}
	t.begin()
	t.show()
	return t
}

// logitsShare is the part of all work that logits take.
func logitsShare(models []*scored, text *verify.Text) float64 {
	blocks, logits := 0.0, 0.0
	for _, m := range models {
		b, l := m.engine.Work()
		blocks += b * float64(text.Len())
		logits += l * float64(text.Scored())
	}
	return logits / (blocks + logits)
}

// begin starts the clock.
func (t *tracker) begin() { t.start, t.from = t.now(), t.work() }

// block is told that a batch is through done of total blocks of model i, which
// count over all batches of a pass.
func (t *tracker) block(i, done, total, tokens int) {
	m, resumed := &t.models[i], t.work() == 0 && done > 1
	if m.batch = float64(tokens) * float64(done) / float64(total); done == total {
		m.done, m.batch = m.done+float64(tokens), 0
	}
	if resumed {
		t.begin()
	}
	t.show()
}

// window is told that so many windows are done, and of a remark on them.
func (t *tracker) window(done int, remark string) {
	resumed := t.work() == 0 && done > 0
	t.windows, t.remark = done, remark
	for i := range t.models {
		t.models[i].done = max(t.models[i].done, float64(t.before[done]))
	}
	if resumed {
		t.begin()
	}
	t.show()
}

// work is what is done, in tokens through a model.
func (t *tracker) work() float64 {
	done := 0.0
	for _, m := range t.models {
		done += (1 - t.logits) * min(m.done+m.batch, float64(t.total()))
	}
	return done + t.logits*float64(len(t.models)*t.before[t.windows])
}

func (t *tracker) total() int { return t.before[len(t.before)-1] }

// show updates what is shown: the remark, the tokens per second since the start
// and the time left.
func (t *tracker) show() {
	const parts = 1000 // of a token
	work, all := t.work(), float64(len(t.models)*t.total())
	remark := t.remark
	if took := t.now().Sub(t.start).Seconds(); work > t.from && took > 0 {
		rate := (work - t.from) / took
		if remark != "" {
			remark += ", "
		}
		left := time.Duration(math.Round((all-work)/rate)) * time.Second
		remark += fmt.Sprintf("%s tokens/s, %s left", rateText(rate), left)
	}
	if remark != "" {
		remark = " (" + remark + ")"
	}
	t.bar.update(int64(work*parts), int64(all*parts), remark)
}

// rateText writes a rate with three digits.
func rateText(v float64) string {
	if v < 100 {
		return fmt.Sprintf("%.3g", v)
	}
	return fmt.Sprintf("%.0f", v)
}

func (t *tracker) finish() { t.bar.finish() }
