package main

// Rules of the user interface: results go to stdout, everything else to
// stderr. Messages start with "winnow: ", are lower case and have no full
// stop. A terminal gets one progress line that disappears when done; a pipe
// gets a line per minute; --quiet gets neither. Nothing is coloured.

import (
	"fmt"
	"io"
	"os"
	"strings"
	"sync"
	"time"
	"unicode/utf8"

	"github.com/schollz/progressbar/v3"
	"golang.org/x/term"
)

// progress shows how far long work is.
type progress struct {
	update func(done, total int64, extra string)
	finish func()
}

// newProgress makes the progress display for work called what. bytes: the
// amounts are bytes.
func (a *app) newProgress(what string, bytes bool) *progress {
	if a.quiet || a.json {
		return &progress{func(int64, int64, string) {}, func() {}}
	}
	if f, ok := a.stderr.(*os.File); ok && term.IsTerminal(int(f.Fd())) {
		return barProgress(a.stderr, what, bytes)
	}
	return lineProgress(a.stderr, what, bytes, time.Minute)
}

func barProgress(w io.Writer, what string, bytes bool) *progress {
	var mu sync.Mutex
	var bar *progressbar.ProgressBar
	return &progress{
		update: func(done, total int64, extra string) {
			mu.Lock()
			defer mu.Unlock()
			if bar == nil {
				bar = progressbar.NewOptions64(total,
					progressbar.OptionSetWriter(w),
					progressbar.OptionShowBytes(bytes),
					progressbar.OptionShowCount(),
					progressbar.OptionSetPredictTime(true),
					progressbar.OptionSetWidth(20),
					progressbar.OptionThrottle(100*time.Millisecond),
					progressbar.OptionClearOnFinish())
			}
			bar.Describe(what + extra)
			if done > bar.State().CurrentNum {
				bar.Set64(done)
			}
		},
		finish: func() {
			mu.Lock()
			defer mu.Unlock()
			if bar != nil {
				bar.Finish()
			}
		},
	}
}

// lineProgress writes a line per interval with the time left, judged by the
// speed so far.
func lineProgress(w io.Writer, what string, bytes bool, interval time.Duration) *progress {
	var mu sync.Mutex
	start := time.Now()
	next := start.Add(interval)
	return &progress{
		update: func(done, total int64, extra string) {
			mu.Lock()
			defer mu.Unlock()
			now := time.Now()
			if now.Before(next) || done <= 0 {
				return
			}
			next = now.Add(interval)
			left := time.Duration(float64(now.Sub(start)) * float64(total-done) / float64(done)).Round(time.Second)
			amount := fmt.Sprintf("%d of %d", done, total)
			if bytes {
				amount = sizeText(done) + " of " + sizeText(total)
			}
			fmt.Fprintf(w, "winnow: %s%s: %s, %s left\n", what, extra, amount, left)
		},
		finish: func() {},
	}
}

// sizeText writes a byte count with a decimal unit, as model pages do.
func sizeText(n int64) string {
	switch f := float64(n); {
	case n >= 1e12:
		return fmt.Sprintf("%.2f TB", f/1e12)
	case n >= 1e9:
		return fmt.Sprintf("%.2f GB", f/1e9)
	case n >= 1e6:
		return fmt.Sprintf("%.1f MB", f/1e6)
	case n >= 1e3:
		return fmt.Sprintf("%.1f kB", f/1e3)
	}
	return fmt.Sprintf("%d B", n)
}

// wrap breaks a text into lines of at most 79 characters.
func wrap(text string) string {
	var b strings.Builder
	col := 0
	for word := range strings.FieldsSeq(text) {
		n := utf8.RuneCountInString(word)
		switch {
		case col == 0:
		case col+1+n > 79:
			b.WriteByte('\n')
			col = 0
		default:
			b.WriteByte(' ')
			col++
		}
		b.WriteString(word)
		col += n
	}
	return b.String()
}
