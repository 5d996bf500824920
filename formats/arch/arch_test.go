package arch

import (
	"encoding/json"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/winnow-moe/winnow/formats/gguf"
	"github.com/winnow-moe/winnow/testdata/fixtures"
)

func TestMain(m *testing.M) { fixtures.Main(m) }

// changes are replacements in the top level of a config.json; nil deletes.
type changes map[string]any

// specimen is a fixture with what llama.cpp's converter made of it.
type specimen struct{ fixture string }

// own are keys that the fixture's file of llama.cpp lacks or has with another
// value, because llama.cpp takes another value for granted or has no such mechanism.
var own = map[string][]string{
	"mistral_swa":       {"llama." + KeySlidingWindow},
	"gpt_oss":           {"gpt-oss." + KeyYarnExact},
	"llama4_smallchunk": {"llama4." + KeyChunkSize, "llama4." + KeyTempLength},
	"llama4_maverick":   {"llama4." + KeyNoQKNorm},
	"phimoe":            {"phimoe." + KeyRopeAttnFactor},
}

func readConfig(t testing.TB, dir string) []byte {
	t.Helper()
	data, err := os.ReadFile(filepath.Join(dir, "config.json"))
	if err != nil {
		t.Fatal(err)
	}
	return data
}

// changed returns a config.json with some settings changed.
func changed(t testing.TB, config []byte, c changes) []byte {
	t.Helper()
	var top map[string]any
	if err := json.Unmarshal(config, &top); err != nil {
		t.Fatal(err)
	}
	for k, v := range c {
		if top[k] = v; v == nil {
			delete(top, k)
		}
	}
	out, err := json.Marshal(top)
	if err != nil {
		t.Fatal(err)
	}
	return out
}

// load reads a config.json as a model.
func load(config []byte, withMTP bool) (*Model, error) {
	cfg, err := ParseConfig(config)
	if err != nil {
		return nil, err
	}
	return FromConfig(cfg, withMTP)
}

func mustLoad(t testing.TB, config []byte, withMTP bool) *Model {
	t.Helper()
	m, err := load(config, withMTP)
	if err != nil {
		t.Fatal(err)
	}
	return m
}

func (s *specimen) model(t testing.TB, withMTP bool) *Model {
	t.Helper()
	return mustLoad(t, readConfig(t, fixtures.Family(t, s.fixture)), withMTP)
}

// converted is the model as llama.cpp's converter sees it: with the MTP blocks
// that it keeps.
func (s *specimen) converted(t testing.TB) *Model {
	t.Helper()
	return s.model(t, !s.model(t, false).Family.DropMTP)
}

func (s *specimen) reference(t testing.TB) *gguf.File {
	t.Helper()
	f, err := gguf.Open(filepath.Join(fixtures.Family(t, s.fixture), "ref-bf16.gguf"))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { f.Close() })
	return f
}

// eachSpecimen runs a test per fixture.
func eachSpecimen(t *testing.T, f func(t *testing.T, s *specimen)) {
	seen := map[*Family]bool{}
	for _, name := range fixtures.Families(t) {
		s := &specimen{name}
		t.Run(name, func(t *testing.T) {
			seen[s.model(t, false).Family] = true
			f(t, s)
		})
	}
	if len(seen) != len(All) {
		t.Errorf("fixtures cover %d of %d families", len(seen), len(All))
	}
}

// written returns the model's own keys as metadata, and at the end a vocabulary.
func written(m *Model) *gguf.Metadata {
	md := &gguf.Metadata{}
	md.Set(gguf.KeyArchitecture, m.Family.Arch)
	m.WriteEarlyMetadata(md)
	m.WriteMetadata(md, 32)
	md.Set("tokenizer.ggml.tokens", make([]string, m.Params.Vocab))
	return md
}

// TestMetadata compares keys, value types, values and order with llama.cpp's
// converter, and reads parameters back from both forms.
func TestMetadata(t *testing.T) {
	eachSpecimen(t, func(t *testing.T, s *specimen) {
		m, ref := s.converted(t), s.reference(t).Metadata()
		var want []string
		for _, k := range ref.Keys() {
			if k == gguf.KeyFileType || strings.HasPrefix(k, m.Family.Arch+".") && !slices.Contains(own[s.fixture], k) {
				want = append(want, k)
			}
		}
		md := written(m)
		keys := slices.DeleteFunc(slices.Clone(md.Keys()[1:md.Len()-1]), func(k string) bool { return slices.Contains(own[s.fixture], k) })
		if diff := cmp.Diff(want, keys); diff != "" {
			t.Fatalf("keys (- llama.cpp, + ours):\n%s", diff)
		}
		for _, k := range want {
			ours, _ := md.Get(k)
			if theirs, _ := ref.Get(k); k != gguf.KeyFileType && !cmp.Equal(ours, theirs) {
				t.Errorf("%s is %v (%T), llama.cpp writes %v (%T)", k, ours, ours, theirs, theirs)
			}
		}
		files := map[string]*gguf.Metadata{"our": md}
		if len(own[s.fixture]) == 0 {
			files["llama.cpp's"] = ref
		}
		for from, md := range files {
			back, err := FromMetadata(md)
			if err != nil {
				t.Fatal(err)
			}
			if diff := cmp.Diff(m.Params, back.Params); diff != "" {
				t.Errorf("parameters change on the way through %s metadata:\n%s", from, diff)
			}
			if diff := cmp.Diff(written(m).Keys(), written(back).Keys()); diff != "" {
				t.Errorf("keys change on the way through %s metadata:\n%s", from, diff)
			}
		}
	})
}

// TestTensors compares names and shapes with llama.cpp's converter.
func TestTensors(t *testing.T) {
	eachSpecimen(t, func(t *testing.T, s *specimen) {
		left := map[string]Tensor{}
		list := s.converted(t).Tensors()
		for _, x := range list {
			left[x.Name.String()] = x
		}
		if len(left) != len(list) {
			t.Errorf("%d tensors have %d different names", len(list), len(left))
		}
		for _, ref := range s.reference(t).Tensors() {
			x, ok := left[ref.Name]
			switch {
			case !ok:
				t.Errorf("%q of the reference is not in the description", ref.Name)
			case !slices.Equal(x.Shape, ref.Shape):
				t.Errorf("%q is %v, in the reference %v", ref.Name, x.Shape, ref.Shape)
			}
			if f32 := ForceF32(ParseName(ref.Name), len(ref.Shape)); f32 != (ref.Type == gguf.F32) {
				t.Errorf("ForceF32(%q) is %v, the reference has %s", ref.Name, f32, ref.Type)
			}
			delete(left, ref.Name)
		}
		for name, x := range left {
			if !x.Rule.Optional {
				t.Errorf("%q is not in the reference", name)
			}
		}
	})
}

// TestEveryRuleIsUsed: no rule may rest untested. deepseek_v3 announces an MTP
// block; the other rules need no variant.
func TestEveryRuleIsUsed(t *testing.T) {
	used := map[*Rule]bool{}
	eachSpecimen(t, func(t *testing.T, s *specimen) {
		for _, x := range s.model(t, true).Tensors() {
			used[x.Rule] = true
			checkShapes(t, s.model(t, true), x)
		}
	})
	for _, name := range []string{"tiny-gemma4-moe", "tiny-llama4"} {
		m := mustLoad(t, readConfig(t, filepath.Join(fixtures.Dir(t, "packs/"+name), name)), false)
		for _, x := range m.Tensors() {
			used[x.Rule] = true
			checkShapes(t, m, x)
		}
	}
	for _, f := range All {
		for i := range f.Rules {
			if !used[&f.Rules[i]] {
				t.Errorf("no fixture of %s has %s", f.Arch, f.Rules[i].Role)
			}
		}
	}
}

func product(shape []int64) int64 {
	n := int64(1)
	for _, d := range shape {
		n *= d
	}
	return n
}

// checkShapes: the parts taken from the sources make up the tensor.
func checkShapes(t *testing.T, m *Model, x Tensor) {
	t.Helper()
	source, why := m.SourceShape(x.Rule, x.Name.Layer)
	want := product(source)
	if x.Rule.Stacked() {
		want *= int64(m.Params.Experts)
	}
	if x.Rule.Cut != nil {
		want = cutElements(t, m.Params.At(x.Name.Layer), x, source)
	}
	if x.Rule.Generate != nil {
		values, err := x.Rule.Generate(m)
		if want = int64(len(values)); err != nil || want == 0 {
			return
		}
	}
	if got := product(x.Shape); got != want || got == 0 {
		t.Errorf("%s has shape %v, its sources %v = %s", x.Name, x.Shape, source, why)
	}
	for _, h := range x.Rule.HF {
		if (strings.Contains(h, "{l}") || strings.Contains(h, "{m}") || strings.HasPrefix(h, "mtp.")) != (x.Name.Layer >= 0) || strings.Contains(h, "{e}") != x.Rule.Stacked() {
			t.Errorf("%s: placeholders in %q", x.Name, h)
		}
	}
}

// cutElements counts what the cuts take, and checks that they stay inside.
func cutElements(t *testing.T, p *Params, x Tensor, source []int64) (total int64) {
	t.Helper()
	cols := source[len(source)-1]
	rows := product(source) / cols
	for i := range x.Rule.Cut {
		c := &x.Rule.Cut[i]
		heads, count, step := c.Heads.Of(p), c.Count.Of(p), max(1, c.Step)
		for h := range heads {
			if first := c.At(p, h); first < 0 || int64(first+(count-1)*step) >= rows {
				t.Errorf("%s: head %d takes rows from %d on, %d of them, of %d", x.Name, h, first, count, rows)
			}
		}
		n := cols
		if c.Columns != nil {
			n = int64(c.Columns.Count.Of(p))
			if last := int64(c.Columns.From.Of(p)) + (n-1)*int64(max(1, c.Columns.Step)); last >= cols {
				t.Errorf("%s: column %d of %d", x.Name, last, cols)
			}
		}
		total += int64(heads*count) * n
	}
	return total
}

// TestSourceShape: messages name the settings behind a shape.
func TestSourceShape(t *testing.T) {
	m := (&specimen{"deepseek_v3"}).model(t, false)
	for _, c := range []struct {
		role  Role
		shape []int64
		why   string
	}{
		{ExpertDown, []int64{64, 32}, "[hidden_size, moe_intermediate_size]"},
		{AttnKB, []int64{128, 32}, "[num_attention_heads*(qk_nope_head_dim+v_head_dim), kv_lora_rank]"},
		{TokenEmbd, []int64{512, 64}, "[vocab_size, hidden_size]"},
	} {
		i := slices.IndexFunc(m.Family.Rules, func(r Rule) bool { return r.Role == c.role })
		if shape, why := m.SourceShape(&m.Family.Rules[i], 0); !slices.Equal(shape, c.shape) || why != c.why {
			t.Errorf("%s: %v %s, want %v %s", c.role, shape, why, c.shape, c.why)
		}
	}
}

// TestMTP keeps and drops the multi-token prediction block of a checkpoint. The names of
// its tensors are those that llama.cpp gives them in families that keep them
// (glm4moe, deepseek32).
func TestMTP(t *testing.T) {
	s := &specimen{"deepseek_v3"}
	drop, keep := s.model(t, false), s.model(t, true)
	if drop.AnnouncedMTP != 1 || drop.Params.Layers != 3 || drop.Params.NextnLayers != 0 {
		t.Errorf("dropped: %d announced, %d blocks, %d MTP blocks", drop.AnnouncedMTP, drop.Params.Layers, drop.Params.NextnLayers)
	}
	if keep.AnnouncedMTP != 1 || keep.Params.Layers != 4 || keep.Params.NextnLayers != 1 || keep.Params.Trunk() != 3 {
		t.Errorf("kept: %d announced, %d blocks, %d MTP blocks", keep.AnnouncedMTP, keep.Params.Layers, keep.Params.NextnLayers)
	}
	names := map[string]bool{}
	for _, x := range keep.Tensors() {
		names[x.Name.String()] = true
	}
	for _, x := range drop.Tensors() {
		delete(names, x.Name.String())
	}
	var nextn []string
	for n := range names {
		if !strings.HasPrefix(n, "blk.3.") {
			t.Errorf("%q comes with the MTP block", n)
		}
		if strings.Contains(n, "nextn") {
			nextn = append(nextn, n)
		}
	}
	slices.Sort(nextn)
	want := []string{
		"blk.3.nextn.eh_proj.weight", "blk.3.nextn.embed_tokens.weight", "blk.3.nextn.enorm.weight",
		"blk.3.nextn.hnorm.weight", "blk.3.nextn.shared_head_head.weight", "blk.3.nextn.shared_head_norm.weight",
	}
	if diff := cmp.Diff(want, nextn); diff != "" {
		t.Error(diff)
	}
	if !names["blk.3.ffn_gate_exps.weight"] || !names["blk.3.attn_k_b.weight"] {
		t.Error("the MTP block lacks experts or attention")
	}
	md := written(keep)
	if n, ok := md.Get("deepseek2." + KeyNextnLayers); !ok || n != uint32(1) {
		t.Errorf("nextn_predict_layers is %v", n)
	}
	back, err := FromMetadata(md)
	if err != nil || !cmp.Equal(back.Params, keep.Params) {
		t.Errorf("read back %+v, %v", back, err)
	}
}

// TestDerived checks what follows from parameters.
func TestDerived(t *testing.T) {
	v3, lite := (&specimen{"deepseek_v3"}).model(t, false), (&specimen{"deepseek_v2_lite"}).model(t, false)
	llama := (&specimen{"llama"}).model(t, false)
	if v3.Params.GroupScore() != GroupTop2 || lite.Params.GroupScore() != GroupMax {
		t.Error("groups of experts are scored in the wrong way")
	}
	if v3.Params.MoE(0) || !v3.Params.MoE(1) || llama.Params.MoE(1) {
		t.Error("MoE blocks")
	}
	for _, c := range []struct {
		p    Params
		want int
	}{{v3.Params, 24}, {llama.Params, 16}, {Params{Embed: 64, Heads: 4}, 16}, {Params{}, 0}} {
		if got := c.p.HeadDim(); got != c.want {
			t.Errorf("head size %d, want %d", got, c.want)
		}
	}
	if (&Rule{Where: Where(99)}).has(&v3.Params, 0) {
		t.Error("an unknown place has tensors")
	}
}

// TestConfigForms: spellings that mean the same.
func TestConfigForms(t *testing.T) {
	base := readConfig(t, fixtures.Family(t, "deepseek_v3"))
	want := mustLoad(t, base, false)
	var top map[string]any
	if err := json.Unmarshal(base, &top); err != nil {
		t.Fatal(err)
	}
	scaling := top["rope_scaling"].(map[string]any)
	renamed := maps.Clone(scaling)
	delete(renamed, "type")
	renamed["rope_type"], renamed["rope_theta"] = "yarn", 10000.0
	text := maps.Clone(top)
	delete(text, "architectures")
	for name, config := range map[string][]byte{
		"rope_parameters":     changed(t, base, changes{"rope_scaling": nil, "rope_theta": nil, "rope_parameters": renamed}),
		"rope_type":           changed(t, base, changes{"rope_scaling": renamed}),
		"text_config":         changed(t, []byte(`{"architectures": ["DeepseekV3ForCausalLM"]}`), changes{"text_config": text}),
		"no scoring_func":     changed(t, base, changes{"scoring_func": nil}),
		"num_local_experts":   changed(t, base, changes{"n_routed_experts": nil, "num_local_experts": 8}),
		"unknown settings":    changed(t, base, changes{"frobnicate": []int{1}}),
		"null settings":       changed(t, base, changes{"q_lora_rank": 24, "head_dim": json.RawMessage("null")}),
		"default rope values": changed(t, base, changes{"rope_theta": nil, "rms_norm_eps": nil}),
	} {
		if got := mustLoad(t, config, false); !cmp.Equal(got.Params, want.Params) {
			t.Errorf("%s: %s", name, cmp.Diff(want.Params, got.Params))
		}
	}
	linear := mustLoad(t, changed(t, base, changes{"rope_scaling": changes{"type": "linear", "factor": 4}}), false)
	if linear.Params.RopeScaling != "linear" || linear.Params.RopeFactor != 4 || linear.Params.YarnLogMul != 0 {
		t.Errorf("linear scaling: %+v", linear.Params)
	}
	plain := mustLoad(t, changed(t, base, changes{"rope_scaling": changes{"rope_type": "default"}}), false)
	if _, ok := written(plain).Get("deepseek2." + KeyRopeScaling); ok || plain.Params.RopeScaling != "" {
		t.Errorf("no scaling: %+v", plain.Params)
	}
}

// TestGemma3Defaults: the published files of Gemma 3 leave most of text_config
// to the defaults of the class (transformers configuration_gemma3.py).
func TestGemma3Defaults(t *testing.T) {
	m := mustLoad(t, []byte(`{"architectures": ["Gemma3ForConditionalGeneration"], "text_config": {"hidden_size": 2560,
		"intermediate_size": 10240, "num_hidden_layers": 34, "rope_scaling": {"factor": 8.0, "rope_type": "linear"}, "sliding_window": 1024}}`), false)
	p := &m.Params
	if p.Vocab != 262208 || p.Heads != 8 || p.KVHeads != 4 || p.HeadDim() != 256 || p.RopeFactor != 8 {
		t.Errorf("%+v", p)
	}
}

// TestConfigAccess covers the accessors other packages use.
func TestConfigAccess(t *testing.T) {
	cfg, err := ParseConfig([]byte(`{"a": {"b": "c"}, "t": true, "n": null}`))
	if err != nil {
		t.Fatal(err)
	}
	if cfg.Text("a.b") != "c" || cfg.Text("a") != "" || cfg.Object("a")["b"] != "c" || cfg.Object("n") != nil || cfg.Object("a.b.c") != nil {
		t.Error("texts and objects")
	}
	if v, ok := cfg.Bool("t"); !v || !ok {
		t.Error("true is not found")
	}
	if _, ok := cfg.Bool("n"); ok {
		t.Error("null is a boolean")
	}
}

// TestOlderFiles: files of older converters lack the rotary base of sliding
// blocks, for which readers take 10000.
func TestOlderFiles(t *testing.T) {
	for _, name := range []string{"gemma3", "gemma4_moe"} {
		m := (&specimen{name}).model(t, false)
		md := written(m)
		md.Delete(m.Family.Arch + "." + KeyRopeBaseSWA)
		back, err := FromMetadata(md)
		if err != nil || back.Params.RopeBaseSWA != 10000 || m.Params.RopeBaseSWA != 10000 {
			t.Errorf("%s: base %g, in the checkpoint %g, %v", name, back.Params.RopeBaseSWA, m.Params.RopeBaseSWA, err)
		}
	}
}
