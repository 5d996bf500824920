package arch

import (
	"slices"
	"testing"
)

func TestMechanisms(t *testing.T) {
	for arch, want := range map[string][]string{
		"deepseek2":  {"latent attention (MLA)", "rope of adjacent elements", "RMSNorm", "SwiGLU", "routed experts", "router bias", "shared experts", "MTP blocks"},
		"llama":      {"grouped-query attention", "rope of adjacent elements", "RMSNorm", "SwiGLU", "routed experts"},
		"gpt-oss":    {"grouped-query attention", "clamped SwiGLU", "sliding window", "attention sinks", "routed experts"},
		"starcoder2": {"LayerNorm", "GELU"},
		"olmo2":      {"QK norm of all heads", "norms behind"},
	} {
		f, ok := ByArch(arch)
		if !ok {
			t.Fatalf("no family %s", arch)
		}
		list := f.Mechanisms()
		for _, w := range want {
			if !slices.Contains(list, w) {
				t.Errorf("%s: %q lacks %q", arch, list, w)
			}
		}
	}
	for _, f := range All {
		if routed := slices.Contains(f.Mechanisms(), "routed experts"); routed != f.Routed() {
			t.Errorf("%s: routed %v, listed %v", f.Arch, f.Routed(), routed)
		}
		if p := f.Everything(); p.Embed != 1 || p.Heads != 1 || f.Routed() && (p.Experts < 1 || p.Gating < GatingSoftmax) {
			t.Errorf("%s: everything is %+v", f.Arch, p)
		}
		if slices.Contains(f.Mechanisms(), "") {
			t.Errorf("%s has a mechanism without a name: %q", f.Arch, f.Mechanisms())
		}
	}
}
