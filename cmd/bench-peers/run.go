//go:build unix

package main

import (
	"bytes"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strconv"
	"syscall"
	"time"
)

// comparison is a line of the table.
type comparison struct {
	name         string
	guided       bool
	threads      int
	ours, theirs []usage // round by round
	source       int64   // bytes
	same         bool
}

// usage is what a run took.
type usage struct {
	wall time.Duration
	peak int64 // bytes of resident memory
}

// compare runs both programs in turn.
func (b *bench) compare(s *subject, m *model, guided bool, threads int) (*comparison, error) {
	c := &comparison{name: s.name, guided: guided, threads: threads, source: m.bytes}
	ours, theirs := filepath.Join(b.dir, "winnow.gguf"), filepath.Join(b.dir, "llama.gguf")
	defer os.Remove(ours)
	defer os.Remove(theirs)
	args := slices.Clone(s.args)
	if guided {
		args = append(args, "--imatrix", m.imatrix)
	}
	recipe := s.name
	if s.noRecipe {
		recipe = "Q8_0"
	}
	for range b.rounds {
		tail := []string{recipe, strconv.Itoa(threads)}
		os.Remove(ours)
		u, err := run(b.winnow, slices.Concat([]string{"quantize", "-q"}, args, []string{m.path, ours}, tail))
		if err != nil {
			return nil, err
		}
		c.ours = append(c.ours, u)
		os.Remove(theirs)
		if u, err = run(filepath.Join(b.oracle, "llama-quantize"), slices.Concat(args, []string{m.path, theirs}, tail)); err != nil {
			return nil, err
		}
		c.theirs = append(c.theirs, u)
	}
	var err error
	c.same, err = sameFiles(ours, theirs)
	return c, err
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
		if errA != nil || errB != nil {
			return errA == errB, nil
		}
	}
}

// String returns the line of the table.
func (c *comparison) String() string {
	var ratios []float64
	for i := range c.ours {
		ratios = append(ratios, c.theirs[i].wall.Seconds()/c.ours[i].wall.Seconds())
	}
	slices.Sort(ratios)
	ours, theirs := median(c.ours), median(c.theirs)
	speed := func(u usage) float64 { return float64(c.source) / 1e6 / u.wall.Seconds() }
	bytes, guided := "same", "no"
	if !c.same {
		bytes = "DIFFERENT"
	}
	if c.guided {
		guided = "yes"
	}
	return fmt.Sprintf("%-8s %-7s %7d %9.1f %9.1f  %-22s %5d / %5d  %s", c.name, guided, c.threads, speed(ours), speed(theirs),
		fmt.Sprintf("%.1f (%.1f … %.1f)", theirs.wall.Seconds()/ours.wall.Seconds(), ratios[0], ratios[len(ratios)-1]),
		ours.peak/1e6, theirs.peak/1e6, bytes)
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
