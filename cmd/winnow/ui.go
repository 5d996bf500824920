package main

// Rules of the user interface: results go to stdout, everything else to
// stderr. Messages start with "winnow: ", are lower case and have no full
// stop. A terminal gets one progress line that disappears when done; a pipe
// gets a line per minute; --quiet gets neither. Nothing is coloured.

import (
	"encoding/json"
	"fmt"
	"io"
	"os"
	"strconv"
	"strings"
	"sync"
	"time"
	"unicode"
	"unicode/utf8"

	"github.com/schollz/progressbar/v3"
	"golang.org/x/term"
)

// printJSON writes a result document to stdout.
func (a *app) printJSON(v any) error { return writeJSON(a.stdout, v) }

func writeJSON(w io.Writer, v any) error {
	enc := json.NewEncoder(w)
	enc.SetEscapeHTML(false)
	enc.SetIndent("", "  ")
	return enc.Encode(v)
}

// printf writes a result to stdout.
func (a *app) printf(format string, args ...any) {
	io.WriteString(a.stdout, visible(fmt.Sprintf(format, args...)))
}

// note writes a remark to stderr. With --json remarks are in the document.
func (a *app) note(format string, args ...any) {
	if !a.quiet && !a.json {
		fmt.Fprintf(a.stderr, "winnow: %s\n", visible(fmt.Sprintf(format, args...)))
	}
}

// warn writes the oddities of an input to stderr.
func (a *app) warn(warnings []string) {
	for _, w := range warnings {
		a.note("warning: %s", w)
	}
}

// visible replaces characters that could steer a terminal, since texts contain
// names from files.
func visible(s string) string {
	var b strings.Builder
	for _, r := range s {
		if r == '\n' || unicode.IsPrint(r) {
			b.WriteRune(r)
		} else {
			b.WriteString(strings.Trim(strconv.QuoteRune(r), "'"))
		}
	}
	return b.String()
}

// printable quotes names that are empty or hold characters not to be seen.
func printable(s string) string {
	if q := strconv.Quote(s); q != `"`+s+`"` || s == "" {
		return q
	}
	return s
}

// progress shows how far long work is.
type progress struct {
	update func(done, total int64, extra string)
	finish func()
}

// newProgress makes the progress display for work called what. Amounts are
// shown if they are bytes, with the time left; else only their share.
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
				options := []progressbar.Option{
					progressbar.OptionSetWriter(w),
					progressbar.OptionSetPredictTime(bytes), progressbar.OptionSetElapsedTime(bytes),
					progressbar.OptionSetWidth(10),
					progressbar.OptionThrottle(100 * time.Millisecond),
					progressbar.OptionClearOnFinish(),
				}
				if bytes {
					options = append(options, progressbar.OptionShowBytes(true), progressbar.OptionShowCount())
				}
				bar = progressbar.NewOptions64(total, options...)
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

// lineProgress writes a line per interval; the time left is judged by the speed
// so far.
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
			amount := fmt.Sprintf("%.0f %%", 100*float64(done)/float64(total))
			if bytes {
				left := time.Duration(float64(now.Sub(start)) * float64(total-done) / float64(done)).Round(time.Second)
				amount = fmt.Sprintf("%s of %s, %s left", sizeText(done), sizeText(total), left)
			}
			fmt.Fprintf(w, "winnow: %s%s: %s\n", what, extra, amount)
		},
		finish: func() {},
	}
}

// countText writes a number of parameters or the like.
func countText(n int64) string {
	switch f := float64(n); {
	case n >= 1e9:
		return fmt.Sprintf("%.2f billion", f/1e9)
	case n >= 1e6:
		return fmt.Sprintf("%.2f million", f/1e6)
	}
	return strconv.FormatInt(n, 10)
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

// lineWidth is how long lines of text are at most; names are never cut.
const lineWidth = 79

// wrap breaks a text into lines that follow indent; the first is meant for a
// line on which as many columns are taken already.
func wrap(text, indent string) string {
	var b strings.Builder
	col := len(indent)
	for word := range strings.FieldsSeq(text) {
		n := utf8.RuneCountInString(word)
		switch {
		case b.Len() == 0:
		case col+1+n > lineWidth:
			b.WriteString("\n" + indent)
			col = len(indent)
		default:
			b.WriteByte(' ')
			col++
		}
		b.WriteString(word)
		col += n
	}
	return b.String()
}

// cut shortens a text to n characters.
func cut(text string, n int) string {
	if r := []rune(text); len(r) > n {
		return string(r[:n-1]) + "…"
	}
	return text
}

// table aligns columns. align has a letter per column, l or r.
func table(align string, rows [][]string) string {
	var widths []int
	for _, row := range rows {
		for c, cell := range row {
			if c == len(widths) {
				widths = append(widths, 0)
			}
			widths[c] = max(widths[c], utf8.RuneCountInString(cell))
		}
	}
	var b strings.Builder
	for _, row := range rows {
		line := ""
		for c, cell := range row {
			pad := strings.Repeat(" ", widths[c]-utf8.RuneCountInString(cell))
			if align[c] == 'r' {
				line += pad + cell + "  "
			} else {
				line += cell + pad + "  "
			}
		}
		b.WriteString(strings.TrimRight(line, " ") + "\n")
	}
	return b.String()
}

// widest returns the length of the longest line.
func widest(text string) int {
	n := 0
	for line := range strings.Lines(text) {
		n = max(n, utf8.RuneCountInString(strings.TrimSuffix(line, "\n")))
	}
	return n
}

// plural chooses the form of a word that goes with a number.
func plural(n int, one, many string) string {
	if n == 1 {
		return one
	}
	return many
}
