package main

import (
	"bytes"
	"slices"
	"strings"
	"testing"

	"github.com/winnow-moe/winnow/convert"
	"github.com/winnow-moe/winnow/formats/calib"
	"github.com/winnow-moe/winnow/testdata/fixtures"
)

// TestOtherModel: statistics belong to the model that they were measured on,
// whatever it was quantized to, and to what was pruned out of it; those of a model
// of the same dimensions are refused.
func TestOtherModel(t *testing.T) {
	model := fixtures.TinyR1(t)
	text := fixtures.Dir(t, "demo") + "/eval-docs.txt"
	t.Chdir(t.TempDir())
	winnowRun(t, "calibrate", model, "--text", text, "-c", "32", "--chunks", "2", "-o", "stats.gguf")
	winnowRun(t, "convert", model, "q4.gguf", "--type", "Q4_K_M")
	winnowRun(t, "prune", "q4.gguf", "--stats", "stats.gguf", "--keep", "8", "-o", "half.gguf", "--slice-imatrix", "half-stats.gguf")
	checkRouterDigests(t, "half.gguf", "half-stats.gguf", 8)
	checkRouterDigests(t, "q4.gguf", "stats.gguf", 16)

	s, err := calib.ReadStatistics("stats.gguf")
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	s.Routers[3], s.Routers[4] = s.Routers[4], s.Routers[3]
	if err := s.WriteGGUF("other.gguf", nil); err != nil {
		t.Fatal(err)
	}
	var stdout, stderr bytes.Buffer
	if status := run([]string{"prune", "q4.gguf", "--stats", "other.gguf", "--keep", "8", "-o", "x.gguf"}, &stdout, &stderr); status != exitInput ||
		!strings.Contains(stderr.String(), "other.gguf: the statistics are of another model: its first router has other weights for expert 3") || !strings.Contains(stderr.String(), "hint: --other-model") {
		t.Errorf("status %d: %s", status, &stderr)
	}
	winnowRun(t, "prune", "q4.gguf", "--stats", "other.gguf", "--keep", "8", "--other-model", "--dry-run")
	if status := run([]string{"calibrate", "merge", "stats.gguf", "other.gguf", "-o", "both.gguf"}, &stdout, &stderr); status != exitInput || !strings.Contains(stderr.String(), "another model") {
		t.Errorf("status %d: %s", status, &stderr)
	}
}

// checkRouterDigests compares what statistics know of a model's routers with a file.
func checkRouterDigests(t *testing.T, model, path string, experts int) {
	t.Helper()
	s, err := calib.ReadStatistics(path)
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	m, _, err := openModel(model, convert.CheckpointOptions{})
	if err != nil {
		t.Fatal(err)
	}
	defer m.Close()
	digests, err := routerDigests(t.Context(), m)
	if err != nil || len(digests) != experts || !slices.Equal(digests, s.Routers) {
		t.Errorf("%s has %q, %s has %q: %v", path, s.Routers, model, digests, err)
	}
}
