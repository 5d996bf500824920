package engine

import (
	"bytes"
	"encoding/binary"
	"path/filepath"
	"strings"
	"testing"

	"github.com/winnow-moe/winnow/formats/arch"
	"github.com/winnow-moe/winnow/formats/gguf"
	"github.com/winnow-moe/winnow/testdata/fixtures"
)

func TestLoadErrors(t *testing.T) {
	tests := []struct {
		name   string
		change func(*altered)
		want   []string // in the message
	}{
		{"unknown architecture", func(a *altered) { a.md.Set(gguf.KeyArchitecture, "abacus") }, []string{"abacus"}},
		{"missing tensor", func(a *altered) { a.remove(t, "blk.1.attn_kv_a_norm.weight") }, []string{"blk.1.attn_kv_a_norm.weight", "missing"}},
		{"unexpected tensor", func(a *altered) { a.tensors[a.find(t, "output.weight")].Name = "blk.2.ssm_a.weight" }, []string{"blk.2.ssm_a.weight", "deepseek2"}},
		{"wrong shape", func(a *altered) { a.tensors[a.find(t, "blk.0.attn_k_b.weight")].Shape = []int64{16, 16, 8} }, []string{"blk.0.attn_k_b.weight", "[16 16 8]", "[16 32 4]"}},
		{"no decoder", func(a *altered) { a.tensors[a.find(t, "blk.0.ffn_up.weight")].Type = gguf.Type(99) }, []string{"blk.0.ffn_up.weight", "99"}},
		{"yarn without context", func(a *altered) {
			a.md.Set("deepseek2.context_length", uint32(0))
			a.md.Set("deepseek2."+arch.KeyRopeOrigContext, uint32(0))
		}, []string{arch.KeyRopeOrigContext}},
		{"rope base", func(a *altered) { a.md.Set("deepseek2."+arch.KeyRopeBase, float32(0)) }, []string{arch.KeyRopeBase}},
		{"too few experts in groups", func(a *altered) { a.md.Set("deepseek2."+arch.KeyGroupsUsed, uint32(1)) }, []string{"groups", "3 experts"}},
	}
	for _, tc := range tests {
		t.Run(tc.name, func(t *testing.T) {
			a := alter(t, "deepseek_v3")
			tc.change(a)
			_, err := Load(a, Options{})
			if err == nil {
				t.Fatal("no error")
			}
			for _, w := range tc.want {
				if !strings.Contains(err.Error(), w) {
					t.Errorf("error %q does not mention %q", err, w)
				}
			}
		})
	}
}

func TestUnknownMechanisms(t *testing.T) {
	tests := []struct {
		name   string
		change func(*arch.Model)
	}{
		{"attention", func(m *arch.Model) { m.Family.Block.Attn = 99 }},
		{"rotary pairing", func(m *arch.Model) { m.Family.Block.Rope = 99 }},
		{arch.KeyExpertGating, func(m *arch.Model) { m.Params.Gating = 99 }},
	}
	for _, tc := range tests {
		am, err := arch.FromMetadata(alter(t, "deepseek_v3").Metadata())
		if err != nil {
			t.Fatal(err)
		}
		family := *am.Family
		am.Family = &family
		tc.change(am)
		if err := checkMechanisms(am); err == nil || !strings.Contains(err.Error(), tc.name) {
			t.Errorf("%s: error %v", tc.name, err)
		}
	}
	if _, err := newRope(&arch.Params{RopeBase: 1e4, RopeScaling: "frobnitz"}, arch.RopeHalves, nil); err == nil {
		t.Error("scaling longrope: no error")
	}
	m := &Model{layers: make([]layer, 1)}
	for _, name := range []string{"blk.0.frobnitz.weight", "blk.0.attn_q.scale", "token_types.weight"} {
		if m.slot(arch.ParseName(name)) != nil {
			t.Errorf("tensor %q has a field", name)
		}
	}
}

// TestTied leaves the output weight out: the embedding takes its place.
func TestTied(t *testing.T) {
	a := alter(t, "mistral")
	a.remove(t, "output.weight")
	m := a.load(t, Options{})
	if m.output.w != m.embd || m.Vocab() != m.Params().Vocab {
		t.Errorf("output is %q with %d rows", m.output.w.info.Name, m.Vocab())
	}
	want := alter(t, "mistral")
	want.source[want.find(t, "output.weight")] = want.find(t, "token_embd.weight")
	seqs := [][]int32{{1, 5, 9}}
	_, got := allLogits(t, m, seqs)
	_, ref := allLogits(t, want.load(t, Options{}), seqs)
	if d := maxDiff(t, got, ref); d != 0 {
		t.Errorf("logits differ by %g from those of a copied embedding", d)
	}
}

// TestFactors halves the weights of a stack of experts and of a matrix and gives
// both factors of two: that changes nothing. Factors of activations are not used.
func TestFactors(t *testing.T) {
	seqs := [][]int32{{1, 5, 9, 2, 7}}
	_, want := allLogits(t, alter(t, "mixtral").load(t, Options{}), seqs)
	a := alter(t, "mixtral")
	halved := map[string]int64{"blk.0.ffn_down_exps.": 1, "blk.1.attn_output.": 1}
	for name := range halved {
		halved[name] = arch.FactorShape(a.tensors[a.find(t, name+"weight")].Shape)[0]
		for _, suffix := range []string{"scale", "input_scale"} {
			a.tensors = append(a.tensors, gguf.TensorInfo{Name: name + suffix, Type: gguf.F32, Shape: []int64{halved[name]}})
			a.source = append(a.source, a.find(t, "output_norm.weight"))
		}
	}
	a.rows = func(info *gguf.TensorInfo, _, _ int64, data []byte) ([]byte, error) {
		for name, n := range halved {
			switch info.Name {
			case name + "scale":
				return bytes.Repeat([]byte{0, 0, 0, 0x40}, int(n)), nil // 2
			case name + "weight":
				data = bytes.Clone(data)
				for i := 0; i < len(data); i += 2 {
					if b := binary.LittleEndian.Uint16(data[i:]); b&0x7f80 > 0x80 {
						binary.LittleEndian.PutUint16(data[i:], b-0x80) // BF16, exponent less one
					}
				}
			}
		}
		return data, nil
	}
	_, got := allLogits(t, a.load(t, Options{}), seqs)
	if d := maxDiff(t, got, want); d != 0 {
		t.Errorf("logits differ by %g", d)
	}
	a.tensors[len(a.tensors)-2].Shape = []int64{2} // a "scale"
	if _, err := Load(a, Options{}); err == nil || !strings.Contains(err.Error(), "scale\" has shape [2]") {
		t.Errorf("error %v", err)
	}
}

// TestCheckFamily: what it says of a family is what Load says of its fixture.
func TestCheckFamily(t *testing.T) {
	for _, name := range fixtures.Families(t) {
		f, err := gguf.Open(filepath.Join(fixtures.Family(t, name), "ref-bf16.gguf"))
		if err != nil {
			t.Fatal(err)
		}
		defer f.Close()
		text, _ := f.Metadata().String(gguf.KeyArchitecture)
		family, ok := arch.ByArch(text)
		if !ok {
			continue
		}
		_, loadErr := Load(f, Options{})
		some, err := CheckFamily(family)
		if err != nil && !some && loadErr == nil || err == nil && loadErr != nil {
			t.Errorf("%s: CheckFamily says %v (only some: %v), Load says %v", name, err, some, loadErr)
		}
	}
	unknown := arch.Family{Arch: "x", Block: arch.Block{Attn: 99, Rope: arch.RopeHalves}}
	if some, err := CheckFamily(&unknown); err == nil || some {
		t.Errorf("attention of kind 99: %v, some %v", err, some)
	}
}
