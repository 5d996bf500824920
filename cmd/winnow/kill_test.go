package main

import (
	"bytes"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/winnow-moe/winnow/testdata/fixtures"
)

// killTypes takes long enough to be killed in the middle.
const killTypes = "Q8_0,Q6_K,Q4_K_M"

// startConversion runs the program, which TestMain has put on the path, as a
// process of its own.
func startConversion(t *testing.T, dir string) (*exec.Cmd, *bytes.Buffer) {
	t.Helper()
	if runtime.GOOS == "windows" {
		t.Skip("needs signals")
	}
	var out bytes.Buffer
	cmd := exec.Command("winnow", "convert", fixtures.TinyR1(t), filepath.Join(dir, "{type}.gguf"), "--type", killTypes)
	cmd.Stdout, cmd.Stderr = &out, &out
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	return cmd, &out
}

// However a run ends, a file under its final name is complete.
func TestKill(t *testing.T) {
	good := t.TempDir()
	start := time.Now()
	cmd, out := startConversion(t, good)
	if err := cmd.Wait(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	took := time.Since(start)
	const kills = 10
	for i := range kills {
		dir := t.TempDir()
		cmd, _ := startConversion(t, dir)
		time.Sleep(took * time.Duration(2*i+1) / (2 * kills))
		cmd.Process.Kill()
		cmd.Wait()
		for name := range strings.SplitSeq(killTypes, ",") {
			got, err := os.ReadFile(filepath.Join(dir, name+".gguf"))
			if errors.Is(err, os.ErrNotExist) {
				continue
			}
			want, _ := os.ReadFile(filepath.Join(good, name+".gguf"))
			if !bytes.Equal(got, want) {
				t.Errorf("kill %d: %s.gguf is there but is not the file of a whole run", i, name)
			}
		}
		// What a killed run left does not hinder the next.
		if i == kills/2 {
			again, out := startConversion(t, dir)
			if err := again.Wait(); err != nil && !strings.Contains(out.String(), "exists") {
				t.Errorf("run after a kill: %v: %s", err, out)
			}
		}
	}
}

// An interrupted run says so and leaves nothing.
func TestInterrupt(t *testing.T) {
	dir := t.TempDir()
	cmd, out := startConversion(t, dir)
	for begin := time.Now(); ; time.Sleep(time.Millisecond) {
		if parts, _ := filepath.Glob(filepath.Join(dir, "*.part")); len(parts) > 0 {
			break
		}
		if time.Since(begin) > time.Minute {
			t.Fatal("nothing is written")
		}
	}
	cmd.Process.Signal(syscall.SIGINT)
	err := cmd.Wait()
	var exit *exec.ExitError
	if !errors.As(err, &exit) || exit.ExitCode() != exitInterrupted {
		t.Errorf("ended with %v, want exit status %d: %s", err, exitInterrupted, out)
	}
	if !strings.Contains(out.String(), "winnow: error: interrupted\nwinnow: hint: no unfinished file was left behind\n") {
		t.Errorf("got %q", out)
	}
	if left, _ := os.ReadDir(dir); len(left) > 0 {
		t.Errorf("left behind: %v", left)
	}
}
