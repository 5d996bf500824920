package arch

import (
	"testing"

	"pgregory.net/rapid"
)

func TestParseName(t *testing.T) {
	for s, want := range map[string]Name{
		"blk.7.ffn_down_exps.weight":  {7, ExpertDown, "weight", ""},
		"blk.1.exp_probs_b.bias":      {1, RouterBias, "bias", ""},
		"token_embd.weight":           {-1, TokenEmbd, "weight", ""},
		"blk.3.nextn.eh_proj.weight":  {3, NextnEHProj, "weight", ""},
		"blk.0.layer_output_scale":    {0, "layer_output_scale", "", ""},
		"blk.0.ffn_gate.scale":        {0, FFNGate, "scale", ""},
		"blk.x.ffn_gate.weight":       {-1, "blk.x.ffn_gate", "weight", ""},
		"blk.-1.a":                    {-1, "blk.-1.a", "", ""},
		"blk.99999999999999.a.weight": {-1, "blk.99999999999999.a", "weight", ""},
		"blk.5":                       {-1, "blk.5", "", ""},
		"":                            {-1, "", "", ""},
	} {
		if got := ParseName(s); got != want || got.String() != s {
			t.Errorf("ParseName(%q) = %+v = %q, want %+v", s, got, got, want)
		}
	}
}

// What ParseName makes of any string is written and parsed again to the same.
func TestParseNameRoundTrip(t *testing.T) {
	piece := rapid.SampledFrom([]string{"blk", "0", "12", "007", "ffn_gate_exps", "weight", "bias", "scale", "nextn", "", "x"})
	rapid.Check(t, func(t *rapid.T) {
		s := rapid.OneOf(rapid.String(), rapid.Custom(func(t *rapid.T) string {
			s := piece.Draw(t, "first")
			for range rapid.IntRange(0, 5).Draw(t, "more") {
				s += "." + piece.Draw(t, "next")
			}
			return s
		})).Draw(t, "name")
		n := ParseName(s)
		if again := ParseName(n.String()); again != n {
			t.Fatalf("%q is %+v, written %q, parsed %+v", s, n, n, again)
		}
	})
}

func TestForceF32(t *testing.T) {
	for _, c := range []struct {
		name string
		dims int
		want bool
	}{
		{"blk.0.ffn_gate_inp.weight", 2, true},
		{"blk.0.attn_norm.weight", 1, true},
		{"blk.0.some_norm.weight", 2, true},
		{"blk.0.attn_norm_2.weight", 2, false},
		{"blk.0.exp_probs_b.bias", 2, true},
		{"blk.0.attn_q.weight", 2, false},
		{"output.weight", 1, true},
	} {
		if got := ForceF32(ParseName(c.name), c.dims); got != c.want {
			t.Errorf("ForceF32(%q, %d) = %v", c.name, c.dims, got)
		}
	}
}

func TestMatchPattern(t *testing.T) {
	for _, c := range []struct {
		pattern, name string
		want          bool
	}{
		{"a.b", "a.b", true},
		{"a.b", "a.bc", false},
		{"a.*", "a.", true},
		{"a.*", "a.b.c", true},
		{"a.*", "b.a", false},
		{"l.{l}.x", "l.0.x", true},
		{"l.{l}.x", "l.123.x", true},
		{"l.{l}.x", "l..x", false},
		{"l.{l}.x", "l.1a.x", false},
		{"l.{l}.x", "l.1.xy", false},
		{"l.{l}.x*", "l.1.xy", true},
		{"l.{l}.m.{l}", "l.1.m.22", true},
		{"l.{l}.m.{l}", "l.1.m.", false},
		{"l.{l}", "m.1", false},
	} {
		if got := matchPattern(c.pattern, c.name); got != c.want {
			t.Errorf("matchPattern(%q, %q) = %v", c.pattern, c.name, got)
		}
	}
}

func TestDropped(t *testing.T) {
	m := (&specimen{"deepseek_v3"}).model(t, false)
	if why, ok := m.Dropped("model.layers.17.self_attn.rotary_emb.inv_freq"); !ok || why == "" {
		t.Error("a rotary table is not dropped")
	}
	if _, ok := m.Dropped("model.layers.17.self_attn.q_proj.weight"); ok {
		t.Error("a weight is dropped")
	}
}

func TestLayer(t *testing.T) {
	for name, want := range map[string]int{
		"model.layers.0.a": 0, "model.layers.61.eh_proj.weight": 61, "layers.12": 12, "model.layers.9999999999.x": 9999999999,
		"model.layers.x.a": -1, "model.layers.": -1, "lm_head.weight": -1, "model.layers.-1.a": -1,
	} {
		got, ok := Layer(name)
		if !ok {
			got = -1
		}
		if got != want {
			t.Errorf("Layer(%q) = %d, want %d", name, got, want)
		}
	}
}

func TestSource(t *testing.T) {
	m := &Model{Params: Params{Layers: 5, NextnLayers: 1}}
	if got := m.Source("mtp.layers.{m}.w", 4, 0); got != "mtp.layers.0.w" {
		t.Error(got)
	}
	if got := m.Source("model.layers.{l}.mlp.experts.{e}.w", 60, 255); got != "model.layers.60.mlp.experts.255.w" {
		t.Error(got)
	}
	if got := m.Source("lm_head.weight", 1, 2); got != "lm_head.weight" {
		t.Error(got)
	}
}

func TestByArch(t *testing.T) {
	for _, f := range All {
		if got, ok := ByArch(f.Arch); !ok || got != f {
			t.Errorf("ByArch(%q) = %v", f.Arch, got)
		}
	}
	if _, ok := ByArch("frobnitz"); ok {
		t.Error("an unknown architecture is known")
	}
}
