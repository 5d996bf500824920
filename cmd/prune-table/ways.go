package main

import (
	"encoding/json"
	"fmt"
	"slices"
	"strings"
)

// Kinds of text, and numbers of experts of 16, of the second table.
var (
	kinds  = []string{"code", "docs", "english"}
	counts = []string{"12", "8"}
	merges = []string{"ream", "hc-smoe"}
)

// sample is how many tokens of a window the calibrations keep.
const sample = "64"

// way is what one model and number of experts cost in several ways.
type way struct {
	model, keep string
	rules       map[string]float64
	repaired    float64
	merged      map[string]float64
	mergedWell  float64 // by the first of merges, repaired
}

// measured is what prune prints with --json of what it measured.
type measured struct {
	Measured []struct {
		Rule string
		cost
	}
	Merge  *struct{ Merged cost }
	Repair *struct {
		After cost
	}
}

type cost struct {
	KLD struct{ Mean struct{ Value float64 } } `json:"kld"`
}

// ways measures all.
func (b *bench) ways() (list []*way, err error) {
	for _, model := range models {
		args := []string{"calibrate", model, "--ctx", ctx, "--chunks", calibrate, "--sample", sample, "-o", model + ".gguf"}
		for _, d := range kinds {
			args = append(args, "--text", d+"="+text("calib", d))
		}
		if _, err := b.run(args...); err != nil {
			return nil, err
		}
		for _, keep := range counts {
			w := &way{model: model, keep: keep, rules: map[string]float64{}, merged: map[string]float64{}}
			if err := b.tryAll(w); err != nil {
				return nil, err
			}
			list = append(list, w)
		}
	}
	return list, nil
}

// tryAll prunes by all rules and repairs the best, and merges.
func (b *bench) tryAll(w *way) error {
	m, err := b.prune(w, "--rule", "auto")
	if err != nil {
		return err
	}
	for _, t := range m.Measured {
		w.rules[t.Rule] = t.KLD.Mean.Value
	}
	w.repaired = m.Repair.After.KLD.Mean.Value
	for i, method := range merges {
		if m, err = b.prune(w, "--rule", "reap", "--merge", method); err != nil {
			return err
		}
		if w.merged[method] = m.Merge.Merged.KLD.Mean.Value; i == 0 {
			w.mergedWell = m.Repair.After.KLD.Mean.Value
		}
	}
	return nil
}

func (b *bench) prune(w *way, more ...string) (*measured, error) {
	args := append([]string{"prune", w.model, "--stats", w.model + ".gguf", "--keep", w.keep, "--groups", "equal", "--repair", "--ctx", ctx, "--chunks", "16", "--dry-run", "--json"}, more...)
	for _, d := range kinds {
		args = append(args, "--text", d+"="+text("eval", d))
	}
	out, err := b.run(args...)
	if err != nil {
		return nil, err
	}
	m := &measured{}
	return m, json.Unmarshal(out, m)
}

// markdownWays is the second table.
func markdownWays(list []*way) string {
	var b strings.Builder
	b.WriteString("| model | experts | `reap` | `reap_sum` | `greedy` | the best of them, repaired | `ream` | `hc-smoe` | `ream`, repaired |\n|---|---|---:|---:|---:|---:|---:|---:|---:|\n")
	for _, w := range list {
		fmt.Fprintf(&b, "| %s | %s of 16", w.model, w.keep)
		costs := []float64{w.rules["reap"], w.rules["reap_sum"], w.rules["greedy"], w.repaired, w.merged["ream"], w.merged["hc-smoe"], w.mergedWell}
		for _, c := range costs {
			if c == slices.Min(costs) {
				fmt.Fprintf(&b, " | **%.4f**", c)
			} else {
				fmt.Fprintf(&b, " | %.4f", c)
			}
		}
		b.WriteString(" |\n")
	}
	fmt.Fprintf(&b, "\nKL divergence from the whole model; %s windows of %s tokens of each of three kinds of text for calibration, of which %s tokens are sampled, 16 windows of each held out; groups of experts kept, but given up by merges.\n", calibrate, ctx, sample)
	return b.String()
}
