package convert

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"path/filepath"
	"reflect"
	"slices"
	"strings"
	"testing"

	"github.com/winnow-moe/winnow/formats/arch"
	"github.com/winnow-moe/winnow/formats/dtype"
	"github.com/winnow-moe/winnow/formats/tokenizer"
	"github.com/winnow-moe/winnow/testdata/fixtures"
)

// loadModel reads the configuration of a fixture, changed.
func loadModel(t testing.TB, fixture string, changes map[string]any, mtp bool) *arch.Model {
	t.Helper()
	cfg, err := arch.ParseConfig(edit(t, readFile(t, filepath.Join(fixtures.Family(t, fixture), "config.json")), changes))
	must(t, err)
	m, err := arch.FromConfig(cfg, mtp)
	must(t, err)
	return m
}

// literal lists the input tensors of a model, sorted by name, without files.
func literal(m *arch.Model) []Source {
	seen := map[string]bool{}
	var list []Source
	for _, x := range m.Tensors() {
		experts := 1
		if x.Rule.Stacked() {
			experts = m.Params.Experts
		}
		if x.Rule.Generate != nil {
			continue
		}
		for e := range experts {
			name := m.Source(x.Rule.HF[0], x.Name.Layer, e)
			if shape, _ := m.SourceShape(x.Rule, x.Name.Layer); !seen[name] {
				seen[name] = true
				list = append(list, Source{Name: name, Storage: Storage{DType: dtype.BF16}, Shape: shape})
			}
		}
	}
	slices.SortFunc(list, func(a, b Source) int { return cmp.Compare(a.Name, b.Name) })
	return list
}

// find returns the tensor called name, to be changed.
func find(t testing.TB, list []Source, name string) *Source {
	t.Helper()
	i := slices.IndexFunc(list, func(s Source) bool { return s.Name == name })
	if i < 0 {
		t.Fatalf("no tensor %q", name)
	}
	return &list[i]
}

func without(list []Source, names ...string) []Source {
	return slices.DeleteFunc(list, func(s Source) bool { return slices.Contains(names, s.Name) })
}

// TestPlanErrors damages the list of tensors of deepseek_v3 in one way each.
func TestPlanErrors(t *testing.T) {
	add := func(names ...string) func(t *testing.T, l []Source) []Source {
		return func(_ *testing.T, l []Source) []Source {
			for _, n := range names {
				l = append(l, Source{Name: n, Storage: Storage{DType: dtype.F32}, Shape: []int64{1}})
			}
			return l
		}
	}
	remove := func(names ...string) func(t *testing.T, l []Source) []Source {
		return func(_ *testing.T, l []Source) []Source { return without(l, names...) }
	}
	change := func(name string, f func(*Source)) func(t *testing.T, l []Source) []Source {
		return func(t *testing.T, l []Source) []Source { f(find(t, l, name)); return l }
	}
	shape := func(d ...int64) func(*Source) { return func(s *Source) { s.Shape = d } }
	const (
		down  = "model.layers.2.mlp.experts.5.down_proj.weight"
		first = "model.layers.2.mlp.experts.0.down_proj.weight"
		kvb   = "model.layers.0.self_attn.kv_b_proj.weight"
	)
	for name, c := range map[string]struct {
		damage func(t *testing.T, l []Source) []Source
		words  []string
	}{
		"global missing":    {remove("model.norm.weight"), []string{`"model.norm.weight" is missing`}},
		"block missing":     {remove("model.layers.1.input_layernorm.weight"), []string{"layers.1.input_layernorm", "num_hidden_layers is 3"}},
		"expert missing":    {remove(down), []string{down, "blk.2.ffn_down_exps.weight", "8 experts"}},
		"expert 0 missing":  {remove(first), []string{first}},
		"no output":         {remove("lm_head.weight"), []string{"lm_head.weight", "tie_word_embeddings"}},
		"unknown":           {add("model.layers.0.frobnicate.weight"), []string{`"model.layers.0.frobnicate.weight"`, "no place", "deepseek2"}},
		"two unknown":       {add("a", "b"), []string{`2 tensors of the checkpoint have no place in a deepseek2 model with 3 blocks: "a", "b"`}},
		"many unknown":      {add(strings.Split("a b c d e f g h i j k l", " ")...), []string{`12 tensors`, `"a", "b", "c", "d", "e", "f", "g", "h", "i", "j" and 2 more`}},
		"control character": {add("a\x1b[2J"), []string{`"a\x1b[2J"`}},
		"extra expert":      {add("model.layers.1.mlp.experts.8.up_proj.weight"), []string{"experts.8"}},
		"block too many":    {add("model.layers.4.input_layernorm.weight"), []string{"layers.4", "3 blocks"}},
		"wrong rows":        {change(down, shape(65, 32)), []string{down, "[65 32]", "[64 32]", "[hidden_size, moe_intermediate_size]"}},
		"swapped axes":      {change(down, shape(32, 64)), []string{down, "[32 64]", "[64 32]"}},
		"more axes":         {change("model.norm.weight", shape(64, 1)), []string{"model.norm.weight", "[64 1]"}},
		"scalar":            {change("model.norm.weight", shape()), []string{"model.norm.weight", "[]", "[hidden_size]"}},
		"wrong heads":       {change(kvb, shape(96, 32)), []string{kvb, "num_attention_heads*(qk_nope_head_dim+v_head_dim)", "kv_lora_rank"}},
		"integers":          {change(down, func(s *Source) { s.Storage.DType = dtype.I64 }), []string{down, "I64", "floating point"}},
	} {
		t.Run(name, func(t *testing.T) {
			m := loadModel(t, "deepseek_v3", nil, false)
			_, _, err := modelTensors(m, NewInventory(c.damage(t, literal(m))))
			wantRefusal(t, err, ErrInput, c.words...)
		})
	}
}

// wantRefusal checks the kind of an error and its words.
func wantRefusal(t *testing.T, err, kind error, words ...string) {
	t.Helper()
	if !errors.Is(err, kind) {
		t.Fatalf("error %v, want %v with %q", err, kind, words)
	}
	for _, w := range words {
		if !strings.Contains(err.Error(), w) {
			t.Errorf("message %q lacks %q", err, w)
		}
	}
}

// TestPlanAccepts changes the list of tensors in ways that are allowed.
func TestPlanAccepts(t *testing.T) {
	mtp := loadModel(t, "deepseek_v3", nil, true)
	all := literal(mtp)
	trunk := loadModel(t, "deepseek_v3", nil, false)
	tensors, dropped, err := modelTensors(trunk, NewInventory(all))
	must(t, err)
	if len(dropped) == 0 || len(dropped) != len(all)-len(literal(trunk)) {
		t.Errorf("%d of %d tensors dropped", len(dropped), len(all))
	}
	for _, d := range dropped {
		if !strings.HasPrefix(d.Name, "model.layers.3.") || !strings.Contains(d.Why, "--mtp keep") {
			t.Errorf("%q is dropped: %s", d.Name, d.Why)
		}
	}
	kept, dropped, err := modelTensors(mtp, NewInventory(all))
	must(t, err)
	if len(dropped) > 0 || len(kept) <= len(tensors) {
		t.Errorf("%d tensors kept, %d without the MTP block, dropped %v", len(kept), len(tensors), dropped)
	}

	_, _, err = modelTensors(mtp, NewInventory(literal(trunk)))
	wantRefusal(t, err, ErrInput, "announces 1 multi-token prediction block, the checkpoint has none", "23 tensors are missing")
	var hint *HintError
	if !errors.As(err, &hint) || !strings.Contains(hint.Hint, "--mtp drop") {
		t.Errorf("hint of %v", err)
	}

	tied := loadModel(t, "deepseek_v3", map[string]any{"tie_word_embeddings": true}, false)
	for _, list := range [][]Source{literal(trunk), without(literal(trunk), "lm_head.weight")} {
		x, dropped, err := modelTensors(tied, NewInventory(list))
		must(t, err)
		if i := slices.IndexFunc(x, func(x Tensor) bool { return x.Name == "output.weight" }); i >= 0 {
			t.Error("tied model has an output matrix")
		}
		if extra := len(list) - len(literal(trunk)) + 1; len(dropped) != extra {
			t.Errorf("dropped %v, want %d", dropped, extra)
		}
	}

	bias := "model.layers.1.mlp.gate.e_score_correction_bias"
	fewer, _, err := modelTensors(trunk, NewInventory(without(literal(trunk), bias)))
	must(t, err)
	if len(fewer) != len(tensors)-1 {
		t.Errorf("%d tensors without an optional one, %d with it", len(fewer), len(tensors))
	}
	table := Source{Name: "model.layers.1.self_attn.rotary_emb.inv_freq", Storage: Storage{DType: dtype.F32}, Shape: []int64{4}}
	_, dropped, err = modelTensors(trunk, NewInventory(append(literal(trunk), table)))
	if err != nil || len(dropped) != 1 || dropped[0].Name != table.Name {
		t.Errorf("dropped %v, error %v", dropped, err)
	}
}

// TestPlanOrder: a tensor comes when its last input tensor has been seen, in
// the order of the rules where one input completes several, and all expert
// stacks of a block come with the last expert tensor of the block.
func TestPlanOrder(t *testing.T) {
	m := loadModel(t, "deepseek_v3", map[string]any{
		"num_hidden_layers": 2, "num_nextn_predict_layers": 0,
		"n_routed_experts": 2, "n_group": 1, "topk_group": 1, "num_experts_per_tok": 1,
	}, false)
	list := literal(m)
	move := func(name string) { // to the end
		s := *find(t, list, name)
		list = append(without(list, name), s)
	}
	move("model.layers.0.self_attn.kv_b_proj.weight")
	move("model.layers.1.mlp.experts.0.up_proj.weight")
	move("model.embed_tokens.weight")
	tensors, _, err := modelTensors(m, NewInventory(list))
	must(t, err)
	var names []string
	for _, x := range tensors {
		names = append(names, strings.TrimSuffix(x.Name, ".weight"))
	}
	order := `output blk.0.attn_norm blk.0.ffn_down blk.0.ffn_gate blk.0.ffn_up blk.0.ffn_norm
		blk.0.attn_kv_a_norm blk.0.attn_kv_a_mqa blk.0.attn_output blk.0.attn_q_a_norm blk.0.attn_q_a blk.0.attn_q_b
		blk.1.attn_norm blk.1.exp_probs_b.bias blk.1.ffn_gate_inp blk.1.ffn_down_shexp blk.1.ffn_gate_shexp blk.1.ffn_up_shexp blk.1.ffn_norm
		blk.1.attn_kv_a_norm blk.1.attn_kv_a_mqa blk.1.attn_k_b blk.1.attn_v_b blk.1.attn_output blk.1.attn_q_a_norm blk.1.attn_q_a blk.1.attn_q_b
		output_norm blk.0.attn_k_b blk.0.attn_v_b blk.1.ffn_down_exps blk.1.ffn_gate_exps blk.1.ffn_up_exps token_embd`
	if want := strings.Fields(order); !slices.Equal(names, want) {
		t.Errorf("order\n%q, want\n%q", names, want)
	}
}

// TestPlanIsPure: the same input gives the same plan.
func TestPlanIsPure(t *testing.T) {
	m := loadModel(t, "deepseek_v2_lite", nil, false)
	list := literal(m)
	copied := slices.Clone(list)
	a, _, err := modelTensors(m, NewInventory(list))
	must(t, err)
	b, _, err := modelTensors(m, NewInventory(copied))
	must(t, err)
	if !reflect.DeepEqual(a, b) || !reflect.DeepEqual(list, copied) {
		t.Error("two plans of one inventory differ, or the inventory has changed")
	}
}

// TestScales ties FP8 weights to their scales.
func TestScales(t *testing.T) {
	for _, c := range []struct {
		name, scaleName string
		shape           []int64
		dt              dtype.Type
		block           [2]int64
		words           []string // nil: accepted
	}{
		{"whole blocks", "w_scale_inv", []int64{2, 1}, dtype.F32, [2]int64{128, 128}, nil},
		{"BF16 scales", "w_scale_inv", []int64{2, 1}, dtype.BF16, [2]int64{128, 128}, nil},
		{"no scales", "v_scale_inv", []int64{2, 1}, dtype.F32, [2]int64{128, 128}, []string{`"w" has no scales`, `"w_scale_inv" is missing`}},
		{"no block size", "w_scale_inv", []int64{2, 1}, dtype.F32, [2]int64{}, []string{"weight_block_size", `"w"`}},
		{"integer scales", "w_scale_inv", []int64{2, 1}, dtype.I32, [2]int64{128, 128}, []string{`"w_scale_inv"`, "I32", "F32"}},
		{"too few rows", "w_scale_inv", []int64{1, 1}, dtype.F32, [2]int64{128, 128}, []string{`"w_scale_inv" has shape [1 1]`, `"w" [160 100]`, "[2 1]"}},
		{"one axis", "w_scale_inv", []int64{2}, dtype.F32, [2]int64{128, 128}, []string{`"w_scale_inv" has shape [2]`}},
		{"other blocks", "w_scale_inv", []int64{2, 1}, dtype.F32, [2]int64{128, 64}, []string{"blocks of [128 64]", "[2 2]"}},
	} {
		t.Run(c.name, func(t *testing.T) {
			inv := NewInventory([]Source{
				{Name: c.scaleName, Storage: Storage{DType: c.dt}, Shape: c.shape},
				{Name: "w", Storage: Storage{DType: dtype.F8E4M3}, Shape: []int64{160, 100}},
			})
			err := attachPackings(inv, &quantConfig{block: c.block})
			if c.words != nil {
				wantRefusal(t, err, ErrInput, c.words...)
				return
			}
			must(t, err)
			want := &scaled{elements: dtype.F8E4M3, scale: 0, blockRows: c.block[0], blockCols: c.block[1], cols: 100}
			if got := inv.Tensors[1].packed; !reflect.DeepEqual(got, want) || inv.Tensors[0].packed != nil {
				t.Errorf("%+v, want %+v", got, want)
			}
		})
	}
}

// memory is an input held in memory.
type memory [][]byte

func (m memory) ReadAt(ctx context.Context, i int, off int64, p []byte) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	if off < 0 || off+int64(len(p)) > int64(len(m[i])) {
		return fmt.Errorf("tensor %d: bytes %d to %d of %d", i, off, off+int64(len(p)), len(m[i]))
	}
	copy(p, m[i][off:])
	return nil
}

// inMemory makes a checkpoint of a literal list of tensors.
func inMemory(t testing.TB, m *arch.Model, list []Source, q *quantConfig) *Checkpoint {
	t.Helper()
	c := &Checkpoint{Dir: "in-memory", Model: m, Vocab: &tokenizer.Vocab{}, inv: NewInventory(list)}
	must(t, attachPackings(c.inv, q))
	var err error
	c.tensors, c.dropped, err = modelTensors(m, c.inv)
	must(t, err)
	c.id = identify(modelCard{}, "", c.Dir, 0, "")
	return c
}

// TestSummary adds up a plan in another way than the code does.
func TestSummary(t *testing.T) {
	m := loadModel(t, "deepseek_v3", nil, true)
	list := literal(m)
	trunk := inMemory(t, loadModel(t, "deepseek_v3", nil, false), list, &quantConfig{})
	p, err := trunk.Plan(request(t, "out", "F32", "Q4_K_M"))
	must(t, err)
	s := p.Summary()
	elements := int64(0)
	for _, x := range list {
		if !strings.HasPrefix(x.Name, "model.layers.3.") {
			elements += x.Rows() * x.Cols()
		}
	}
	if s.Parameters != elements || s.SourceBytes != 2*elements || s.Arch != "deepseek2" || s.Source != "in-memory" {
		t.Errorf("%d parameters from %d bytes, want %d from %d", s.Parameters, s.SourceBytes, elements, 2*elements)
	}
	if o := s.Outputs[0]; o.TensorBytes != 4*elements || o.BitsPerWeight != 32 || o.Files != 1 || o.Path != filepath.Join("out", "F32.gguf") {
		t.Errorf("F32: %+v", o)
	}
	sum := int64(0)
	for _, x := range s.Outputs[1].Tensors {
		sum += x.Bytes
	}
	if o := s.Outputs[1]; o.TensorBytes != sum || o.FileBytes <= sum || len(o.Tensors) != len(p.Tensors) || o.BitsPerWeight != float64(sum)*8/float64(elements) {
		t.Errorf("Q4_K_M: %d bytes of tensors in a file of %d, want %d", o.TensorBytes, o.FileBytes, sum)
	}
	if _, err := json.Marshal(s); err != nil {
		t.Error(err)
	}

	// Rows of 64 and less hold no block of 256 elements.
	fallbacks := p.Fallbacks()
	n := 0
	for _, f := range fallbacks {
		n += f.Tensors
		if f.Recipe != "Q4_K_M" || !strings.Contains(f.Why, "row length") || f.WantedBytes >= f.Bytes || f.WantedBytes == 0 {
			t.Errorf("%+v", f)
		}
	}
	want := 0
	for _, x := range s.Outputs[1].Tensors {
		if x.Fallback != "" {
			want++
		}
	}
	if n != want || n == 0 {
		t.Errorf("%d tensors fall back, the summary has %d", n, want)
	}
}

func TestDefaultName(t *testing.T) {
	ck := openCheckpoint(t, fixtures.TinyR1(t), CheckpointOptions{})
	if got := ck.DefaultName(); got != "Tiny-R1-16x3.7M" {
		t.Errorf("%q", got)
	}
	for path, want := range map[string]string{
		"m-F32.gguf": "m", "dir/m-bf16.gguf": "dir/m", "m-f16": "m", "m-Q8_0.gguf": "m-Q8_0", "m.gguf": "m", "-F16.gguf": "-F16",
	} {
		if got := (&GGUFSource{path: path}).DefaultName(); got != want {
			t.Errorf("%q: %q, want %q", path, got, want)
		}
	}
}

func TestStorage(t *testing.T) {
	s := Source{Storage: Storage{DType: dtype.BF16}}
	if s.Rows() != 1 || s.Cols() != 1 || s.Storage.String() != "BF16" {
		t.Errorf("scalar: %d rows, %d columns, %s", s.Rows(), s.Cols(), s.Storage)
	}
}
