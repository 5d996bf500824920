package main

import (
	"bytes"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"math"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/winnow-moe/winnow/engine/kernel"
	"github.com/winnow-moe/winnow/formats/arch"
	"github.com/winnow-moe/winnow/formats/gguf"
	"github.com/winnow-moe/winnow/testdata/fixtures"
)

// process is the program as a process of its own.
type process struct {
	*exec.Cmd
	out, err bytes.Buffer
}

func startProgram(t *testing.T, args ...string) *process {
	t.Helper()
	if runtime.GOOS == "windows" {
		t.Skip("needs signals")
	}
	p := &process{Cmd: exec.Command("winnow", args...)}
	p.Stdout, p.Stderr = &p.out, &p.err
	if err := p.Start(); err != nil {
		t.Fatal(err)
	}
	return p
}

// runProgram runs it to the end and returns its output.
func runProgram(t *testing.T, args ...string) string {
	t.Helper()
	p := startProgram(t, args...)
	if err := p.Wait(); err != nil {
		t.Fatalf("winnow %q: %v: %s", args, err, &p.err)
	}
	return p.out.String()
}

// untilDone starts the program again and again and kills it when it has saved
// its checkpoint a few times, until it ends by itself.
func untilDone(t *testing.T, checkpoint string, args ...string) (out string, kills int) {
	t.Helper()
	rng := rand.New(rand.NewPCG(1, uint64(len(args))))
	for kills = 0; kills < 200; kills++ {
		p := startProgram(t, append(args, "--checkpoint", checkpoint, "--checkpoint-every", "0s")...)
		stop := make(chan bool)
		go func() {
			if saved(checkpoint, 1+rng.IntN(5), stop) {
				p.Process.Kill()
			}
		}()
		err := p.Wait()
		close(stop)
		if err == nil {
			return p.out.String(), kills
		}
		if p.ProcessState.Exited() {
			t.Fatalf("after %d kills: %v: %s", kills, err, &p.err)
		}
	}
	t.Fatal("it is never done")
	return "", 0
}

// saved waits until a file was written anew n times.
func saved(path string, n int, stop <-chan bool) bool {
	last, _ := os.Stat(path)
	for n > 0 {
		select {
		case <-stop:
			return false
		case <-time.After(time.Millisecond):
		}
		st, err := os.Stat(path)
		if err == nil && (last == nil || !os.SameFile(st, last)) {
			last, n = st, n-1
		}
	}
	return true
}

// TestKillAndResume kills measurements at random times; with a checkpoint they go
// on, and their results are those of a run that was left alone.
func TestKillAndResume(t *testing.T) {
	if testing.Short() {
		t.Skip("runs the program many times")
	}
	text := filepath.Join(fixtures.Dir(t, "demo"), "eval-docs.txt")
	model := filepath.Join(fixtures.Family(t, "deepseek_v3"), "ref-bf16.gguf")
	base := filepath.Join(fixtures.Family(t, "deepseek_v2_lite"), "ref-bf16.gguf")
	dir := t.TempDir()
	checkpoint := filepath.Join(dir, "run.ckpt")

	score := []string{"perplexity", model, "--base", base, "--text", text, "--text", "again=" + text, "-c", "64", "--chunks", "12", "--batch-tokens", "512", "--json"}
	want := runProgram(t, score...)
	got, kills := untilDone(t, checkpoint, score...)
	if got != want || kills < 4 {
		t.Errorf("perplexity, killed %d times: %s, want %s", kills, got, want)
	}

	stats := func(name string) []string {
		return []string{"calibrate", model, "--text", text, "--text", "b=" + text, "-c", "64", "--chunks", "12", "--batch-tokens", "512", "-o", filepath.Join(dir, name), "--json"}
	}
	want = runProgram(t, stats("want.gguf")...)
	got, kills = untilDone(t, checkpoint, stats("got.gguf")...)
	a, _ := os.ReadFile(filepath.Join(dir, "want.gguf"))
	b, _ := os.ReadFile(filepath.Join(dir, "got.gguf"))
	if got != want || !bytes.Equal(a, b) || len(a) == 0 || kills < 4 {
		t.Errorf("calibrate, killed %d times: another result, or %d bytes are not the %d of a whole run", kills, len(b), len(a))
	}

	model = filepath.Join(fixtures.Family(t, "deepseek_v32_mtp"), "ref-bf16.gguf") // whose last block is of multi-token prediction
	want = runProgram(t, stats("want-mtp.gguf")...)
	got, kills = untilDone(t, checkpoint, stats("got-mtp.gguf")...)
	a, _ = os.ReadFile(filepath.Join(dir, "want-mtp.gguf"))
	b, _ = os.ReadFile(filepath.Join(dir, "got-mtp.gguf"))
	if got != want || !bytes.Equal(a, b) || len(a) == 0 || kills < 4 {
		t.Errorf("calibrate with multi-token prediction, killed %d times: another result, or %d bytes are not the %d of a whole run", kills, len(b), len(a))
	}
	if left, _ := os.ReadDir(dir); len(left) != 4 {
		t.Errorf("left behind: %v", left)
	}
}

// TestInterruptMeasurement: the checkpoint of an interrupted run can be used, by
// that run only.
func TestInterruptMeasurement(t *testing.T) {
	dir := t.TempDir()
	path := filepath.Join(dir, "run.ckpt")
	text := filepath.Join(fixtures.Dir(t, "demo"), "eval-docs.txt")
	args := []string{"perplexity", fixtures.TinyR1(t), "--text", text, "-c", "128", "--chunks", "60", "--checkpoint", path, "--checkpoint-every", "0s", "--threads", "1"}
	p := startProgram(t, args...)
	for begin := time.Now(); ; time.Sleep(time.Millisecond) {
		if _, err := os.Stat(path); err == nil {
			break
		}
		if time.Since(begin) > time.Minute {
			t.Fatal("nothing is saved")
		}
	}
	p.Process.Signal(syscall.SIGINT)
	err := p.Wait()
	var exit *exec.ExitError
	if !errors.As(err, &exit) || exit.ExitCode() != exitInterrupted {
		t.Errorf("ended with %v, want exit status %d: %s", err, exitInterrupted, &p.err)
	}
	if want := "winnow: error: interrupted\nwinnow: hint: the same command goes on from " + path + "\n"; !strings.Contains(p.err.String(), want) {
		t.Errorf("got %q, want %q", &p.err, want)
	}
	if left, _ := os.ReadDir(dir); len(left) != 1 {
		t.Errorf("left behind: %v", left)
	}
	for hint, change := range map[string][]string{
		"another text, or way to cut it": {"-c", "64"},
		"of another kind":                {"--base", fixtures.TinyR1(t)},
	} {
		other := startProgram(t, append(args, change...)...)
		err := other.Wait()
		if !errors.As(err, &exit) || exit.ExitCode() != exitInput || !strings.Contains(other.err.String(), hint) || !strings.Contains(other.err.String(), "hint: remove "+path) {
			t.Errorf("%q: %v: %s", change, err, &other.err)
		}
	}
	if got, want := runProgram(t, append(args, "--json")...), runProgram(t, append(args[:8:8], "--json")...); got != want {
		t.Errorf("resumed %s, want %s", got, want)
	}
}

// writeWideModel writes a qwen3moe model with many experts, few of them used,
// with random weights and without a vocabulary.
func writeWideModel(t *testing.T, path string) {
	t.Helper()
	f, err := gguf.Open(filepath.Join(fixtures.Family(t, "qwen3_moe"), "ref-bf16.gguf"))
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	meta := f.Metadata().Clone()
	for key, v := range map[string]uint32{"block_count": 5, "embedding_length": 512, "expert_count": 64, "expert_used_count": 2, "expert_feed_forward_length": 256} {
		meta.Set("qwen3moe."+key, v)
	}
	m, err := arch.FromMetadata(meta)
	if err != nil {
		t.Fatal(err)
	}
	var tensors []gguf.TensorInfo
	for _, w := range m.Tensors() {
		info := gguf.TensorInfo{Name: w.Name.String(), Type: gguf.BF16, Shape: w.Shape}
		if len(w.Shape) == 1 {
			info.Type = gguf.F32
		}
		tensors = append(tensors, info)
	}
	layout, err := gguf.NewLayout(meta, tensors, gguf.LayoutOptions{})
	if err != nil {
		t.Fatal(err)
	}
	w, err := layout.Create(path, gguf.CreateOptions{})
	if err != nil {
		t.Fatal(err)
	}
	defer w.Abort()
	rng := rand.New(rand.NewPCG(3, 4))
	for i, info := range tensors {
		if err := w.WriteAt(i, 0, someWeights(rng, &info)); err != nil {
			t.Fatal(err)
		}
	}
	if err := w.Commit(); err != nil {
		t.Fatal(err)
	}
}

// someWeights are of magnitude 1/64 to 1/32, or for norms 1.
func someWeights(rng *rand.Rand, info *gguf.TensorInfo) (raw []byte) {
	raw = make([]byte, 0, info.Size())
	for int64(len(raw)) < info.Size() {
		if info.Type == gguf.F32 {
			raw = binary.LittleEndian.AppendUint32(raw, 0x3f800000)
		} else {
			raw = binary.LittleEndian.AppendUint16(raw, uint16(rng.Uint32())&0x807f|0x3c80)
		}
	}
	return raw
}

// peak follows a process and returns the most memory that it had resident and
// the bytes that it read, both when they were last seen.
func (p *process) peak(t *testing.T) (resident, read int64) {
	t.Helper()
	dir := fmt.Sprintf("/proc/%d/", p.Process.Pid)
	done := make(chan error, 1)
	go func() { done <- p.Wait() }()
	for {
		if n, ok := memInfo(dir+"status", "VmHWM:"); ok {
			resident = max(resident, n)
		}
		if n, ok := memInfo(dir+"io", "rchar:"); ok {
			read = max(read, n)
		}
		select {
		case err := <-done:
			if err != nil {
				t.Fatalf("%v: %s", err, &p.err)
			}
			return resident, read
		case <-time.After(time.Millisecond):
		}
	}
}

// TestMaxMemory scores a model three times as large as the memory allowed, with
// the bits of an unlimited run: what is resident exceeds the limit by less than a
// tenth, and each weight is read once for a batch.
func TestMaxMemory(t *testing.T) {
	if runtime.GOOS != "linux" || raceDetector || testing.Short() || kernel.Active().Lanes < 8 {
		t.Skip("needs /proc, the program without the race detector, and fast products")
	}
	dir := t.TempDir()
	model, ids := filepath.Join(dir, "wide.gguf"), filepath.Join(dir, "ids.json")
	writeWideModel(t, model)
	st, err := os.Stat(model)
	if err != nil {
		t.Fatal(err)
	}
	var seqs [][]int32
	rng := rand.New(rand.NewPCG(5, 6))
	for range 64 {
		seq := make([]int32, 64)
		for i := range seq {
			seq[i] = rng.Int32N(200)
		}
		seqs = append(seqs, seq)
	}
	data, _ := json.Marshal(seqs)
	if err := os.WriteFile(ids, data, 0o666); err != nil {
		t.Fatal(err)
	}
	limit := st.Size() / 3
	alone := []string{"perplexity", model, "--ids", ids, "-c", "64", "--threads", "2", "--json"}
	for models, args := range map[int][]string{1: alone, 2: append(alone[:len(alone):len(alone)], "--base", model)} {
		want := runProgram(t, args...)
		p := startProgram(t, append(args, "--max-memory", strconv.FormatInt(limit, 10))...)
		resident, read := p.peak(t)
		reads := float64(read) / float64(st.Size()) / float64(models)
		t.Logf("%d models: %d of %d MB resident, weights read %.3f times", models, resident>>20, limit>>20, reads)
		if p.out.String() != want {
			t.Errorf("%s, want %s", &p.out, want)
		}
		if resident > limit/10*11 {
			t.Errorf("%d bytes resident with a limit of %d", resident, limit)
		}
		if batches := math.Round(reads); batches < 2 || math.Abs(reads-batches) > 0.02*batches {
			t.Errorf("%d models: weights are read %.3f times, want once for each of several batches", models, reads)
		}
	}
}
