package main

import (
	"encoding/json"
	"path/filepath"
	"testing"

	"github.com/winnow-moe/winnow/quant/isa"
	"github.com/winnow-moe/winnow/testdata/fixtures"
)

// TestRepairPays: with half of the experts, a greedy choice whose experts are
// repaired diverges at least a quarter less on held-out text than REAP's alone.
func TestRepairPays(t *testing.T) {
	if len(isa.Available()) == 1 || testing.Short() {
		t.Skip("without vectors it takes minutes, and has the same bits")
	}
	corpus := filepath.Join(fixtures.Dir(t, "packs/corpus"), "corpus")
	for _, name := range []string{"tiny-r1", "tiny-gemma4-moe"} {
		t.Run(name, func(t *testing.T) {
			t.Chdir(t.TempDir())
			model := miniature(t, name)
			calibrate, prune := []string{"calibrate", model, "-c", "128", "--chunks", "16", "-o", "stats.gguf"}, []string{"prune", model, "--stats", "stats.gguf", "--keep", "8", "--groups", "equal", "-c", "128", "--chunks", "6", "--dry-run", "--json"}
			for _, d := range []string{"code", "docs", "english"} {
				calibrate = append(calibrate, "--text", d+"="+filepath.Join(corpus, "calib-"+d+".txt"))
				prune = append(prune, "--text", d+"="+filepath.Join(corpus, "eval-"+d+".txt"))
			}
			winnowRun(t, calibrate...)
			var reap, greedy pruneReport
			if err := json.Unmarshal(winnowRun(t, append(prune, "--rule", "reap")...), &reap); err != nil {
				t.Fatal(err)
			}
			if err := json.Unmarshal(winnowRun(t, append(prune, "--rule", "greedy", "--repair")...), &greedy); err != nil {
				t.Fatal(err)
			}
			before, after := reap.Measured[0].KLD.Mean.Value, greedy.Repair.After.KLD.Mean.Value
			t.Logf("KLD of REAP %.4f, of greedy %.4f, repaired %.4f", before, greedy.Measured[0].KLD.Mean.Value, after)
			if !greedy.Repair.Kept || !(after <= 0.75*before) {
				t.Errorf("KLD %.4f with greedy and repair, %.4f by REAP", after, before)
			}
		})
	}
}
