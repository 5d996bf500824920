package isa

import (
	"slices"
	"strings"
	"testing"
)

// TestBest names each set of the machine, and others.
func TestBest(t *testing.T) {
	sets := Available()
	t.Logf("available: %v", sets)
	every := func(string) bool { return true }
	for i, name := range sets {
		t.Setenv(Variable, name)
		if got := Best(every); got != name {
			t.Errorf("%s chooses %s", name, got)
		}
		next := sets[min(i+1, len(sets)-1)]
		if got := Best(func(s string) bool { return s != name }); got != next {
			t.Errorf("%s, for which there are no kernels, chooses %s, want %s", name, got, next)
		}
		if err := Check(); err != nil {
			t.Errorf("%s: %v", name, err)
		}
	}
	for _, name := range append(slices.Clone(all), "", "AVX2", "none such") {
		if slices.Contains(sets, name) {
			continue
		}
		t.Setenv(Variable, name)
		if got := Best(every); got != sets[0] {
			t.Errorf("%q chooses %s, want %s", name, got, sets[0])
		}
		err, known := Check(), slices.Contains(all, name)
		if err == nil || !strings.Contains(err.Error(), Variable) || strings.Contains(err.Error(), "machine") != known {
			t.Errorf("%q: %v", name, err)
		}
	}
}
