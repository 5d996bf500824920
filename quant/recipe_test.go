package quant

import (
	"encoding/json"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/winnow-moe/winnow/formats/arch"
	"github.com/winnow-moe/winnow/formats/gguf"
	"github.com/winnow-moe/winnow/testdata/fixtures"
)

// mixes is mixes.json: what llama-quantize --dry-run said for real models'
// tensor lists (see the README beside it).
type mixes struct {
	TypeNames []string             `json:"type_names"`
	Models    map[string]*mixModel `json:"models"`
	Options   map[string]struct {
		Model   string               `json:"model"`
		FType   string               `json:"ftype"`
		Args    []string             `json:"args"`
		Changed map[string][2]string `json:"changed_vs_plain"`
	} `json:"options"`
}

type mixModel struct {
	Meta    map[string]any `json:"meta"`
	Tensors []mixTensor    `json:"tensors"`
	Mixes   map[string]struct {
		None         []int `json:"none"`
		Imatrix      []int `json:"imatrix"` // only where it differs from None
		NeedsImatrix bool  `json:"needs_imatrix"`
		Fallbacks    int   `json:"n_fallback"`
		// Error, when llama-quantize refuses: it finds no type that fits.
		Error []string `json:"error"`
	} `json:"mixes"`
}

// mixTensor is written as [name, shape, type].
type mixTensor struct{ gguf.TensorInfo }

func (t *mixTensor) UnmarshalJSON(b []byte) error {
	var typ string
	if err := json.Unmarshal(b, &[]any{&t.Name, &t.Shape, &typ}); err != nil {
		return err
	}
	var ok bool
	if t.Type, ok = gguf.ParseType(typ); !ok {
		return fmt.Errorf("type %q", typ)
	}
	return nil
}

func readMixes(t *testing.T, path string) *mixes {
	t.Helper()
	b, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	var m mixes
	if err := json.Unmarshal(b, &m); err != nil {
		t.Fatal(err)
	}
	return &m
}

// metadata rebuilds typed metadata from JSON.
func (m *mixModel) metadata() *gguf.Metadata {
	var meta gguf.Metadata
	for k, v := range m.Meta {
		switch v := v.(type) {
		case string:
			meta.Set(k, v)
		case float64:
			if v == float64(uint32(v)) {
				meta.Set(k, uint32(v))
			}
		}
	}
	return &meta
}

func (m *mixModel) facts(t *testing.T) ModelFacts {
	t.Helper()
	f, err := FactsFrom(m.metadata())
	if err != nil {
		t.Fatal(err)
	}
	return f
}

func (m *mixModel) infos() []gguf.TensorInfo {
	out := make([]gguf.TensorInfo, len(m.Tensors))
	for i := range m.Tensors {
		out[i] = m.Tensors[i].TensorInfo
	}
	return out
}

func mustLookup(t *testing.T, name string) *Recipe {
	t.Helper()
	r, err := LookupRecipe(name)
	if err != nil {
		t.Fatal(err)
	}
	return r
}

// checkMixes compares every table of the file and returns how many there are.
func checkMixes(t *testing.T, m *mixes) (tables int) {
	t.Helper()
	for model, mm := range m.Models {
		infos, facts := mm.infos(), mm.facts(t)
		for ftype, mix := range mm.Mixes {
			for _, imatrix := range []bool{false, true} {
				tables++
				label := fmt.Sprintf("%s, %s, imatrix %v", model, ftype, imatrix)
				choices, err := mustLookup(t, ftype).Assign(facts, infos, Options{Imatrix: imatrix})
				switch {
				case mix.Error != nil:
					wantError(t, err, "Q1_0 has no fallback")
				case err != nil:
					t.Errorf("%s: %v", label, err)
				case imatrix && mix.Imatrix != nil:
					checkTypes(t, label, infos, choices, m.TypeNames, mix.Imatrix)
				default:
					checkTypes(t, label, infos, choices, m.TypeNames, mix.None)
					if fallbacks, needs := summary(choices); !imatrix && (fallbacks != mix.Fallbacks || needs != mix.NeedsImatrix) {
						t.Errorf("%s: %d fallbacks, needs imatrix %v; llama-quantize has %d and %v", label, fallbacks, needs, mix.Fallbacks, mix.NeedsImatrix)
					}
				}
			}
		}
	}
	return tables
}

func checkTypes(t *testing.T, label string, infos []gguf.TensorInfo, choices []Choice, names []string, table []int) {
	t.Helper()
	got, want := make([]string, len(choices)), make([]string, len(choices))
	for i, c := range choices {
		got[i] = infos[i].Name + " " + strings.ToUpper(c.Type.String())
		want[i] = infos[i].Name + " " + strings.ToUpper(names[table[i]])
		if (c.Fallback == "") != (c.Type == c.Wanted) || c.Rule == "" || c.Copied && c.Type != infos[i].Type {
			t.Errorf("%s: %s: inconsistent choice %+v", label, infos[i].Name, c)
		}
	}
	if d := cmp.Diff(want, got); d != "" {
		t.Errorf("%s (-llama-quantize +ours):\n%s", label, d)
	}
}

// summary counts fallbacks and tells whether any tensor needs weights.
func summary(choices []Choice) (fallbacks int, needs bool) {
	for _, c := range choices {
		needs = needs || c.NeedsWeights
		if c.Fallback != "" {
			fallbacks++
		}
	}
	return fallbacks, needs
}

func TestAssignLikeLlamaQuantize(t *testing.T) {
	m := readMixes(t, filepath.Join(goldens(t), "mixes.json"))
	if n := checkMixes(t, m); n != 18*36*2 {
		t.Errorf("%d tables compared", n)
	}
}

// TestAssignOtherArchitectures covers the rules that only concern
// architectures mixes.json lacks; testdata/recipes.md says how it was made.
func TestAssignOtherArchitectures(t *testing.T) {
	checkMixes(t, readMixes(t, filepath.Join("testdata", "recipes.json")))
}

// quantizeArgs turns llama-quantize's arguments into options, and applies
// those that change the model. ok is false for arguments not covered here.
func quantizeArgs(t *testing.T, args []string, facts *ModelFacts) (opt Options, ok bool) {
	t.Helper()
	typ := func(s string) *gguf.Type {
		v, ok := gguf.ParseType(s)
		if !ok {
			t.Fatalf("type %q", s)
		}
		return &v
	}
	for i := 0; i < len(args); i++ {
		value := func() string { i++; return args[i] }
		switch args[i] {
		case "--pure":
			opt.Pure = true
		case "--leave-output-tensor":
			opt.LeaveOutput = true
		case "--output-tensor-type":
			opt.OutputType = typ(value())
		case "--token-embedding-type":
			opt.TokenEmbdType = typ(value())
		case "--imatrix":
			opt.Imatrix = true
			value()
		case "--tensor-type":
			o, err := ParseOverride(value())
			if err != nil {
				t.Fatal(err)
			}
			opt.TensorTypes = append(opt.TensorTypes, o)
		case "--override-kv":
			key, v, _ := strings.Cut(value(), "=int:")
			switch {
			case strings.HasSuffix(key, ".block_count"):
				fmt.Sscan(v, &facts.Layers)
			case strings.HasSuffix(key, ".expert_count"):
				fmt.Sscan(v, &facts.Experts)
			}
		case "--max-buffer-size", "--include-weights", "--exclude-weights":
			value()
		default:
			return opt, false
		}
	}
	return opt, true
}

func TestAssignOptions(t *testing.T) {
	m := readMixes(t, filepath.Join(goldens(t), "mixes.json"))
	compared := 0
	for name, o := range m.Options {
		t.Run(name, func(t *testing.T) {
			mm := m.Models[o.Model]
			infos, facts := mm.infos(), mm.facts(t)
			opt, ok := quantizeArgs(t, o.Args, &facts)
			if o.Args[0] == "--prune-layers" {
				infos = dropBlocks(infos, 3, 5)
				ok = true
			}
			if !ok {
				t.Fatalf("arguments %q", o.Args)
			}
			choices, err := mustLookup(t, o.FType).Assign(facts, infos, opt)
			if strings.HasSuffix(name, "q4k_odd_rows") {
				// The dry run lists Q4_K for rows of 960; the real run fails
				// when it validates what it encoded.
				if err == nil || !strings.Contains(err.Error(), "row length 960 is not a multiple of the Q4_K block size 256") {
					t.Errorf("error %v", err)
				}
				return
			}
			if err != nil {
				t.Fatal(err)
			}
			compared++
			plain := map[string]int{}
			for i, x := range mm.Tensors {
				plain[x.Name] = mm.Mixes[o.FType].None[i]
			}
			for i, c := range choices {
				want := m.TypeNames[plain[infos[i].Name]]
				if change, ok := o.Changed[infos[i].Name]; ok {
					want = change[1]
				}
				if !strings.EqualFold(want, c.Type.String()) {
					t.Errorf("%s: %s, want %s (%s)", infos[i].Name, c.Type, want, c.Rule)
				}
			}
		})
	}
	if compared != len(m.Options)-2 {
		t.Errorf("%d of %d option sets compared", compared, len(m.Options))
	}
}

// dropBlocks removes blocks and renumbers the later ones, as --prune-layers
// does before types are chosen.
func dropBlocks(infos []gguf.TensorInfo, drop ...int) []gguf.TensorInfo {
	var out []gguf.TensorInfo
	for _, x := range infos {
		n := arch.ParseName(x.Name)
		if slices.Contains(drop, n.Layer) {
			continue
		}
		shift := 0
		for _, d := range drop {
			if n.Layer > d {
				shift++
			}
		}
		n.Layer -= shift
		x.Name = n.String()
		out = append(out, x)
	}
	return out
}

// TestWholeFileRuns compares order and types with files that llama-quantize
// wrote from a tiny MoE model of uneven row lengths.
func TestWholeFileRuns(t *testing.T) {
	dir := filepath.Join(goldens(t), "e2e")
	f, err := gguf.Open(filepath.Join(dir, "model.gguf"))
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	b, err := os.ReadFile(filepath.Join(dir, "e2e.json"))
	if err != nil {
		t.Fatal(err)
	}
	var runs struct {
		Runs []struct {
			FType   string
			Args    []string
			RC      int
			Error   []string
			Tensors []e2eTensor
		}
	}
	if err := json.Unmarshal(b, &runs); err != nil {
		t.Fatal(err)
	}
	infos := f.Tensors()
	compared := 0
	for _, run := range runs.Runs {
		facts, err := FactsFrom(f.Metadata())
		if err != nil {
			t.Fatal(err)
		}
		opt, ok := quantizeArgs(t, run.Args, &facts)
		if !ok {
			continue // layers pruned: covered by TestAssignOptions
		}
		label := fmt.Sprintf("%s %q", run.FType, run.Args)
		choices, err := mustLookup(t, run.FType).Assign(facts, infos, opt)
		if run.RC != 0 {
			checkRefusal(t, label, run.Error[0], choices, err)
			continue
		}
		if err != nil {
			t.Errorf("%s: %v", label, err)
			continue
		}
		compared++
		var got []e2eTensor
		for _, i := range Order(infos) {
			got = append(got, e2eTensor{infos[i].Name, choices[i].Type})
		}
		if d := cmp.Diff(run.Tensors, got); d != "" {
			t.Errorf("%s (-llama-quantize +ours):\n%s", label, d)
		}
	}
	if compared < 70 {
		t.Errorf("only %d runs compared", compared)
	}
}

// checkRefusal expects what llama-quantize refuses to be an error, or to need
// weights that are missing.
func checkRefusal(t *testing.T, label, message string, choices []Choice, err error) {
	t.Helper()
	if strings.Contains(message, "no tensor type fallback") {
		if err == nil || !strings.Contains(err.Error(), "row length 288 is not a multiple of the Q1_0 block size 128, and Q1_0 has no fallback") {
			t.Errorf("%s: error %v", label, err)
		}
		return
	}
	if err != nil || !slices.ContainsFunc(choices, func(c Choice) bool { return c.NeedsWeights }) {
		t.Errorf("%s: error %v, and no tensor needs weights; llama-quantize says %s", label, err, message)
	}
}

// e2eTensor is written as [name, type number, offset, hash].
type e2eTensor struct {
	Name string
	Type gguf.Type
}

func (t *e2eTensor) UnmarshalJSON(b []byte) error {
	var offset, hash any
	return json.Unmarshal(b, &[]any{&t.Name, &t.Type, &offset, &hash})
}

func TestAssignIgnoresSliceOrder(t *testing.T) {
	m := readMixes(t, filepath.Join(goldens(t), "mixes.json"))
	mm := m.Models["llama3_8b_gqa4"]
	infos, r := mm.infos(), mustLookup(t, "Q4_K_M")
	want, err := r.Assign(mm.facts(t), infos, Options{})
	if err != nil {
		t.Fatal(err)
	}
	perm := rand.New(rand.NewPCG(1, 2)).Perm(len(infos))
	shuffled := make([]gguf.TensorInfo, len(infos))
	for i, p := range perm {
		shuffled[i] = infos[p]
	}
	got, err := r.Assign(mm.facts(t), shuffled, Options{})
	if err != nil {
		t.Fatal(err)
	}
	for i, p := range perm {
		if got[i] != want[p] {
			t.Errorf("%s: %+v, in file order %+v", shuffled[i].Name, got[i], want[p])
		}
	}
}

// TestAssignConverter compares with files of llama.cpp's converter.
func TestAssignConverter(t *testing.T) {
	// All packed families but gpt_oss, whose packed experts are passed on.
	families := []string{
		"cohere2", "deepseek_v2_lite", "deepseek_v3", "deepseek_v32", "deepseek_v3_fp8", "dots1", "ernie4_5", "ernie4_5_moe", "gemma2", "gemma3", "gemma4_moe", "glm4", "glm4_moe", "gpt_oss_bf16",
		"granite", "granitemoe", "granitemoe_shared", "hunyuan_v1_moe", "llama", "llama4_maverick", "llama4_scout", "llama4_smallchunk", "minimax_m2", "mistral", "mistral_swa", "mixtral",
		"olmo2", "olmoe", "phi3", "phi3_long", "phimoe", "qwen2", "qwen2_moe", "qwen3", "qwen3_5_moe", "qwen3_moe", "qwen3_next", "smollm3", "stablelm", "stablelm_parallel", "starcoder2",
	}
	for _, family := range families {
		f, err := gguf.Open(filepath.Join(fixtures.Family(t, family), "ref-bf16.gguf"))
		if err != nil {
			t.Fatal(err)
		}
		infos := f.Tensors()
		choices, err := mustLookup(t, "bf16").AssignConverter(infos, true)
		if err != nil {
			t.Errorf("%s: %v", family, err)
		}
		for i, c := range choices {
			if c.Type != infos[i].Type {
				t.Errorf("%s: %s: %s (%s), the converter wrote %s", family, infos[i].Name, c.Type, c.Rule, infos[i].Type)
			}
		}
		f.Close()
	}
}

func TestAssignConverterFallback(t *testing.T) {
	infos := []gguf.TensorInfo{{Name: "blk.0.ffn_up.weight", Shape: []int64{100, 64}}, {Name: "blk.0.ffn_norm.weight", Shape: []int64{64}}}
	q8 := mustLookup(t, "q8_0")
	choices, err := q8.AssignConverter(infos, false)
	if err != nil {
		t.Fatal(err)
	}
	want := []Choice{
		{Type: gguf.F16, Wanted: gguf.Q8_0, Rule: "Q8_0", Fallback: "row length 100 is not a multiple of 32: Q8_0 becomes F16"},
		{Type: gguf.F32, Wanted: gguf.F32, Rule: "ffn_norm is always F32"},
	}
	if d := cmp.Diff(want, choices); d != "" {
		t.Error(d)
	}
	_, err = q8.AssignConverter(infos, true)
	wantError(t, err, `recipe Q8_0: tensor "blk.0.ffn_up.weight": row length 100 is not a multiple of the Q8_0 block size 32`)
	for _, name := range []string{"Q4_K_M", "COPY"} {
		_, err = mustLookup(t, name).AssignConverter(infos, false)
		wantError(t, err, "recipe "+name+" is not one of the converter's")
	}
}

func wantError(t *testing.T, err error, want string) {
	t.Helper()
	if err == nil || !strings.Contains(err.Error(), want) {
		t.Errorf("error %v, want %q", err, want)
	}
}

func TestLookupRecipe(t *testing.T) {
	for name, want := range map[string]string{
		"Q4_K_M": "Q4_K_M", "q4_k_m": "Q4_K_M", "15": "Q4_K_M", "Q4_K": "Q4_K_M", "q3_k": "Q3_K_M", "5": "", "0": "F32",
		"copy": "COPY", "Q8": "", "": "", "-1": "", "4294967296": "", "NVFP4": "",
	} {
		r, err := LookupRecipe(name)
		switch {
		case want == "":
			wantError(t, err, fmt.Sprintf("unknown recipe %q (known: F32, F16, BF16, Q8_0, ", name))
		case err != nil || r.Name != want:
			t.Errorf("%q: %v, %v", name, r, err)
		}
	}
	// llama.h's numbers, as gguf-py's LlamaFileType and the tool's help list them.
	numbers := map[string]uint32{
		"F32": 0, "F16": 1, "Q4_0": 2, "Q4_1": 3, "Q8_0": 7, "Q5_0": 8, "Q5_1": 9, "Q2_K": 10, "Q3_K_S": 11, "Q3_K_M": 12, "Q3_K_L": 13,
		"Q4_K_S": 14, "Q4_K_M": 15, "Q5_K_S": 16, "Q5_K_M": 17, "Q6_K": 18, "IQ2_XXS": 19, "IQ2_XS": 20, "Q2_K_S": 21, "IQ3_XS": 22,
		"IQ3_XXS": 23, "IQ1_S": 24, "IQ4_NL": 25, "IQ3_S": 26, "IQ3_M": 27, "IQ2_S": 28, "IQ2_M": 29, "IQ4_XS": 30, "IQ1_M": 31,
		"BF16": 32, "TQ1_0": 36, "TQ2_0": 37, "MXFP4_MOE": 38, "Q1_0": 40, "Q2_0": 41, "COPY": 0,
	}
	for _, r := range Recipes() {
		if n, ok := numbers[r.Name]; !ok || n != r.FileType {
			t.Errorf("%s has file type %d, want %d", r.Name, r.FileType, n)
		}
		delete(numbers, r.Name)
	}
	if len(numbers) > 0 {
		t.Errorf("recipes missing: %v", numbers)
	}
}

func TestParseOverride(t *testing.T) {
	for s, want := range map[string]string{
		"attn_v":          "is not of the form PATTERN=TYPE",
		"=q8_0":           "is not of the form PATTERN=TYPE",
		"attn_v=":         "is not of the form PATTERN=TYPE",
		"attn_v=q9_k":     `unknown type "q9_k"`,
		"(attn=q8_0":      `"(attn=q8_0": error parsing regexp`,
		"blk.[[:x:]]=f16": "[:digit:] are not supported",
	} {
		_, err := ParseOverride(s)
		wantError(t, err, want)
	}
	// A pattern that backtracks exponentially must not hang the program.
	o, err := ParseOverride("(.*.*.*)*#=q8_0")
	if err != nil {
		t.Fatal(err)
	}
	infos := []gguf.TensorInfo{{Name: "blk.0." + strings.Repeat("x", 58) + ".weight", Shape: []int64{256, 4}}}
	_, err = mustLookup(t, "Q4_K_M").Assign(ModelFacts{Arch: "llama", Layers: 1}, infos, Options{TensorTypes: []Override{o}})
	wantError(t, err, "match timeout")
}

func TestAssignErrors(t *testing.T) {
	ragged := []gguf.TensorInfo{{Name: "blk.0.attn_q.weight", Shape: []int64{96, 4}}}
	_, err := mustLookup(t, "Q4_K_M").Assign(ModelFacts{Arch: "llama", Layers: 1}, ragged, Options{NoFallback: true})
	wantError(t, err, `recipe Q4_K_M: tensor "blk.0.attn_q.weight": row length 96 is not a multiple of the Q4_K block size 256; Q5_0 would fit`)

	outside := []gguf.TensorInfo{{Name: "blk.4.ffn_down_exps.weight", Shape: []int64{256, 4, 2}}}
	_, err = mustLookup(t, "Q4_K_M").Assign(ModelFacts{Arch: "llama", Layers: 4, Experts: 2}, outside, Options{})
	wantError(t, err, `tensor "blk.4.ffn_down_exps.weight": not in one of the model's 4 blocks`)
}

func TestChoiceTexts(t *testing.T) {
	infos := []gguf.TensorInfo{
		{Name: "token_embd.weight", Shape: []int64{512, 8}},
		{Name: "blk.0.attn_kv_b.weight", Shape: []int64{512, 8}},
		{Name: "blk.0.attn_q_b.weight", Shape: []int64{96, 8}},
		{Name: "blk.0.attn_norm.weight", Shape: []int64{512, 1}},
		{Name: "blk.0.ffn_gate_inp.weight", Shape: []int64{512, 8}},
		{Name: "blk.0.attn_sinks.bias", Shape: []int64{512, 8}},
		{Name: "blk.0.ssm_norm.weight", Shape: []int64{512, 8}},
	}
	choices, err := mustLookup(t, "q4_k_m").Assign(ModelFacts{Arch: "deepseek2", Layers: 8}, infos, Options{})
	if err != nil {
		t.Fatal(err)
	}
	want := []Choice{
		{Type: gguf.Q6_K, Wanted: gguf.Q6_K, Rule: "Q4_K_M: token_embd (also the output)"},
		{Type: gguf.Q6_K, Wanted: gguf.Q6_K, Rule: "Q4_K_M: attn_kv_b in the first or last eighth of the layers, or every third between"},
		{Type: gguf.Q5_0, Wanted: gguf.Q4_K, Rule: "Q4_K_M: default", Fallback: "row length 96 is not a multiple of 256: Q4_K becomes Q5_0"},
		{Rule: "kept: not a matrix", Copied: true},
		{Rule: "kept: ffn_gate_inp is never quantized", Copied: true},
		{Rule: "kept: not a weight", Copied: true},
		{Rule: "kept: norms are not quantized", Copied: true},
	}
	if d := cmp.Diff(want, choices); d != "" {
		t.Error(d)
	}
}

func TestFactsFrom(t *testing.T) {
	var m gguf.Metadata
	_, err := FactsFrom(&m)
	wantError(t, err, `metadata has no string "general.architecture"`)
	m.Set("general.architecture", "deci")
	_, err = FactsFrom(&m)
	wantError(t, err, `"deci.block_count" is missing`)
	m.Set("deci.block_count", int64(3))
	m.Set("deci.attention.head_count", []int32{8, 4, 2})
	for kv, want := range map[any]int{uint32(2): 4, int32(0): 0, uint64(8): 1} {
		m.Set("deci.attention.head_count_kv", kv)
		if f, err := FactsFrom(&m); err != nil || f != (ModelFacts{Arch: "deci", Layers: 3, GQA: want}) {
			t.Errorf("key/value heads %v: %+v, %v", kv, f, err)
		}
	}
	m.Set("deci.attention.head_count_kv", []uint32{4})
	m.Set("deci.expert_count", uint32(16))
	if f, err := FactsFrom(&m); err != nil || f != (ModelFacts{Arch: "deci", Layers: 3, Experts: 16, GQA: 2}) {
		t.Errorf("%+v, %v", f, err)
	}
	m.Delete("deci.attention.head_count_kv")
	if f, _ := FactsFrom(&m); f.GQA != 1 {
		t.Errorf("as many key/value heads as heads by default: %+v", f)
	}
}

// TestFactsOfPruned: recipes go on to decide by the number of experts that a
// model had before some were taken out.
func TestFactsOfPruned(t *testing.T) {
	var m gguf.Metadata
	m.Set(gguf.KeyArchitecture, "llama")
	m.Set("llama.block_count", uint32(2))
	m.Set("llama.expert_count", uint32(6))
	for want, key := range map[int]string{6: "other", 8: arch.KeyExpertsBefore} {
		md := m.Clone()
		md.Set(key, uint32(8))
		if f, err := FactsFrom(md); err != nil || f.Experts != want {
			t.Errorf("with %s: %d experts (%v), want %d", key, f.Experts, err, want)
		}
	}
}
