//go:build unix

package main

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"time"
)

// comparison is a line of the table.
type comparison struct {
	name               string
	guided             bool
	threads            int
	ours, theirs, copy []usage // round by round
	source             int64   // bytes
	same               bool
}

// usage is what a run took.
type usage struct {
	wall time.Duration
	peak int64 // bytes of resident memory
}

// compare runs the programs in turn.
func (b *bench) compare(s *subject, guided bool, threads int) (*comparison, error) {
	c := &comparison{name: s.name, guided: guided, threads: threads, source: b.model.bytes}
	self, err := os.Executable()
	if err != nil {
		return nil, err
	}
	ours, theirs, copied := filepath.Join(b.dir, "winnow.gguf"), filepath.Join(b.dir, "llama.gguf"), filepath.Join(b.dir, "copy")
	defer os.Remove(ours)
	defer os.Remove(theirs)
	args := slices.Clone(s.args)
	if guided {
		args = append(args, "--imatrix", b.model.imatrix)
	}
	recipe := s.name
	if s.noRecipe {
		recipe = "Q8_0"
	}
	n := strconv.Itoa(threads)
	tail := []string{recipe, n}
	for range b.rounds {
		for _, r := range []struct {
			results *[]usage
			output  string
			program string
			args    func() []string
		}{
			{&c.ours, ours, b.winnow, func() []string {
				return slices.Concat([]string{"quantize", "-q"}, args, []string{b.model.path, ours}, tail)
			}},
			{&c.theirs, theirs, filepath.Join(b.oracle, "llama-quantize"), func() []string { return slices.Concat(args, []string{b.model.path, theirs}, tail) }},
			{&c.copy, copied, self, func() []string { return []string{copyCommand, b.model.path, copied, fileSize(ours), n} }},
		} {
			os.Remove(r.output)
			u, err := run(r.program, r.args())
			if err != nil {
				return nil, err
			}
			*r.results = append(*r.results, u)
		}
		os.Remove(copied)
	}
	c.same, err = sameFiles(ours, theirs)
	return c, err
}

// fileSize returns the size of a file in digits, "0" where there is none.
func fileSize(path string) string {
	st, err := os.Stat(path)
	if err != nil {
		return "0"
	}
	return strconv.FormatInt(st.Size(), 10)
}

// run waits for a program and says what it took.
func run(program string, args []string) (usage, error) {
	cmd := exec.Command(program, args...)
	cmd.Env = append(os.Environ(), "LD_LIBRARY_PATH="+filepath.Dir(program))
	var out bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &out
	start := time.Now()
	err := cmd.Run()
	wall := time.Since(start)
	if err != nil {
		last := out.Bytes()
		return usage{}, fmt.Errorf("%v: %w\n%s", cmd.Args, err, last[max(0, len(last)-500):])
	}
	peak := cmd.ProcessState.SysUsage().(*syscall.Rusage).Maxrss
	if runtime.GOOS != "darwin" {
		peak <<= 10 // kilobytes elsewhere
	}
	return usage{wall, peak}, nil
}

// sameFiles compares two files.
func sameFiles(a, b string) (bool, error) {
	var files [2]*os.File
	for i, path := range []string{a, b} {
		f, err := os.Open(path)
		if err != nil {
			return false, err
		}
		defer f.Close()
		files[i] = f
	}
	var buf [2][1 << 16]byte
	for {
		n, errA := io.ReadFull(files[0], buf[0][:])
		m, errB := io.ReadFull(files[1], buf[1][:])
		if !bytes.Equal(buf[0][:n], buf[1][:m]) {
			return false, nil
		}
		for _, err := range []error{errA, errB} {
			if err != nil && !errors.Is(err, io.EOF) && !errors.Is(err, io.ErrUnexpectedEOF) {
				return false, err
			}
		}
		if errA != nil {
			return errB != nil, nil
		}
	}
}

// columns are the headings of the table with the widths of its text form.
var columns = []struct {
	name  string
	width int // negative: to the left
}{
	{"type", -7}, {"imatrix", -7}, {"threads", 7}, {"winnow", 7}, {"llama", 7}, {"ratio (min … max)", -20},
	{"copy", 7}, {"of copy", 7}, {"peak MB", 9}, {"bytes", -9},
}

// cells returns the line of the table.
func (c *comparison) cells() []string {
	var ratios []float64
	for i := range c.ours {
		ratios = append(ratios, c.theirs[i].wall.Seconds()/c.ours[i].wall.Seconds())
	}
	slices.Sort(ratios)
	ours, theirs, copied := median(c.ours), median(c.theirs), median(c.copy)
	speed := func(u usage) string { return fmt.Sprintf("%.1f", float64(c.source)/1e6/u.wall.Seconds()) }
	bytes, guided := "same", "no"
	if !c.same {
		bytes = "DIFFERENT"
	}
	if c.guided {
		guided = "yes"
	}
	return []string{
		c.name, guided, strconv.Itoa(c.threads), speed(ours), speed(theirs),
		fmt.Sprintf("%.1f (%.1f … %.1f)", theirs.wall.Seconds()/ours.wall.Seconds(), ratios[0], ratios[len(ratios)-1]),
		speed(copied), fmt.Sprintf("%.0f %%", 100*copied.wall.Seconds()/ours.wall.Seconds()),
		fmt.Sprintf("%d / %d", ours.peak/1e6, theirs.peak/1e6), bytes,
	}
}

func (b *bench) printHeader() {
	names, rules := make([]string, len(columns)), make([]string, len(columns))
	for i, c := range columns {
		names[i], rules[i] = c.name, "---"
		if c.width > 0 {
			rules[i] = "---:"
		}
	}
	b.print(names)
	if b.markdown {
		b.print(rules)
	}
}

func (b *bench) print(cells []string) {
	if b.markdown {
		fmt.Println("| " + strings.Join(cells, " | ") + " |")
		return
	}
	var line strings.Builder
	for i, c := range columns {
		fmt.Fprintf(&line, "%*s  ", c.width, cells[i])
	}
	fmt.Println(strings.TrimRight(line.String(), " "))
}

// median returns the run of median time, with the largest peak.
func median(u []usage) usage {
	u = slices.SortedFunc(slices.Values(u), func(a, b usage) int { return int(a.wall - b.wall) })
	m := u[len(u)/2]
	for _, v := range u {
		m.peak = max(m.peak, v.peak)
	}
	return m
}
