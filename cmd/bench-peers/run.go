//go:build unix

package main

import (
	"bytes"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"syscall"
	"time"
)

// usage is what a run took.
type usage struct {
	wall time.Duration
	cpu  time.Duration // of all threads
	peak int64         // bytes of resident memory
	out  []byte
}

// run waits for a program and says what it took. Meanwhile the lock is held.
func (b *bench) run(program string, args []string) (usage, error) {
	if b.lock != "" {
		f, err := os.OpenFile(b.lock, os.O_CREATE|os.O_RDONLY, 0o666)
		if err != nil {
			return usage{}, err
		}
		defer f.Close()
		if err := syscall.Flock(int(f.Fd()), syscall.LOCK_EX); err != nil {
			return usage{}, err
		}
	}
	cmd := exec.Command(program, args...)
	cmd.Dir = b.dir
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
	return usage{wall, cmd.ProcessState.UserTime() + cmd.ProcessState.SystemTime(), peak, out.Bytes()}, nil
}

// ratios returns how many times longer b took than a: the median of the rounds,
// the least and the most.
func ratios(a, b []usage, time func(usage) time.Duration) string {
	var r []float64
	for i := range a {
		r = append(r, time(b[i]).Seconds()/time(a[i]).Seconds())
	}
	slices.Sort(r)
	return fmt.Sprintf("%.2f (%.2f … %.2f)", r[len(r)/2], r[0], r[len(r)-1])
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
