package arch

import (
	"encoding/json"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/winnow-moe/winnow/formats/gguf"
	"github.com/winnow-moe/winnow/testdata/fixtures"
)

// wantError checks that an error is a refusal with all of the words, each of
// which may list alternatives with "|".
func wantError(t *testing.T, err error, words ...string) {
	t.Helper()
	if !errors.Is(err, ErrUnsupported) {
		t.Fatalf("error %v, want a refusal with %q", err, words)
	}
	text := strings.ToLower(err.Error())
	for _, group := range words {
		found := false
		for _, w := range strings.Split(group, "|") {
			found = found || strings.Contains(text, strings.ToLower(w))
		}
		if !found {
			t.Errorf("message %q lacks %q", err, group)
		}
	}
}

// configErrors are faults in the configuration of the fixture deepseek_v3.
var configErrors = []struct {
	change changes
	words  []string
}{
	{changes{"architectures": nil}, []string{"architectures", "missing", "deepseek_v3"}},
	{changes{"architectures": "DeepseekV3ForCausalLM"}, []string{"architectures", "list"}},
	{changes{"architectures": []string{}}, []string{"architectures", "list"}},
	{changes{"architectures": []int{1}}, []string{"architectures[0] is 1"}},
	{changes{"architectures": []string{"Frobnitz"}}, []string{`"Frobnitz"`, `nearest that is: "DeepseekV3ForCausalLM" (family deepseek2)`}},
	{changes{"hidden_act": "gelu"}, []string{"hidden_act", `"gelu"`, "silu"}},
	{changes{"attention_bias": true}, []string{"attention_bias", "true"}},
	{changes{"moe_layer_freq": 2}, []string{"moe_layer_freq is 2"}},
	{changes{"moe_layer_freq": []int{1, 1}}, []string{"moe_layer_freq is [1,1]"}},
	{changes{"topk_method": "dice"}, []string{"topk_method", "dice", "noaux_tc"}},
	{changes{"torch_dtype": "float3"}, []string{"torch_dtype", "float3"}},
	{changes{"scoring_func": "tanh"}, []string{"scoring_func", "tanh", "sigmoid"}},
	{changes{"scoring_func": 3}, []string{"scoring_func is 3"}},

	{changes{"hidden_size": nil}, []string{"hidden_size is missing"}},
	{changes{"hidden_size": "64"}, []string{"hidden_size", "whole number"}},
	{changes{"hidden_size": []int{64}}, []string{"hidden_size is [64]", "number"}},
	{changes{"hidden_size": 0}, []string{"hidden_size", "is 0"}},
	{changes{"hidden_size": -32}, []string{"hidden_size is -32"}},
	{changes{"hidden_size": 64.5}, []string{"hidden_size is 64.5"}},
	{changes{"hidden_size": 1 << 25}, []string{"hidden_size", "16777216"}},
	{changes{"hidden_size": 1e18}, []string{"hidden_size", "whole number"}},
	{changes{"hidden_size": json.RawMessage("1e999")}, []string{"hidden_size is 1e999", "out of range"}},
	{changes{"num_hidden_layers": 0}, []string{"num_hidden_layers", "is 0"}},
	{changes{"num_hidden_layers": 513}, []string{"num_hidden_layers", "512"}},
	{changes{"num_attention_heads": 0}, []string{"num_attention_heads", "is 0"}},
	{changes{"intermediate_size": 0}, []string{"intermediate_size"}},
	{changes{"vocab_size": 1 << 25}, []string{"vocab_size"}},
	{changes{"rms_norm_eps": 0}, []string{"rms_norm_eps"}},
	{changes{"rms_norm_eps": -1}, []string{"rms_norm_eps"}},
	{changes{"rms_norm_eps": "small"}, []string{"rms_norm_eps", "number"}},
	{changes{"rope_theta": 1e39}, []string{"rope_theta", "number"}},
	{changes{"rope_theta": -1}, []string{"rope_theta"}},

	{changes{"rope_scaling": changes{"type": "warp9"}}, []string{"rope_scaling.rope_type", "warp9", "yarn"}},
	{changes{"rope_scaling": changes{"type": 9}}, []string{"rope_scaling.rope_type is 9"}},
	{changes{"rope_scaling": changes{"type": "linear"}}, []string{"rope_scaling.factor is missing"}},
	{changes{"rope_scaling": changes{"type": "linear", "factor": 0}}, []string{"rope_scaling", "factor"}},
	{changes{"rope_scaling": changes{"type": "yarn", "factor": 2}, "original_max_position_embeddings": nil},
		[]string{"rope_scaling.original_max_position_embeddings is missing"}},
	{changes{"rope_scaling": changes{"factor": 2}}, []string{"rope_scaling", "factor 2", "rope_type"}},
	{changes{"rope_scaling": "yarn"}, []string{`rope_scaling is "yarn"`, "object"}},
	{changes{"qk_rope_head_dim": 7}, []string{"rope.dimension_count", "even"}},
	{changes{"qk_rope_head_dim": 0}, []string{"rope.dimension_count", "even"}},
	{changes{"qk_rope_head_dim": nil}, []string{"qk_rope_head_dim is missing"}},
	{changes{"qk_rope_head_dim": true}, []string{"qk_rope_head_dim is true", "number"}},
	{changes{"qk_nope_head_dim": 0}, []string{"qk_nope_head_dim", "positive"}},
	{changes{"v_head_dim": 0}, []string{"v_head_dim", "positive"}},
	{changes{"kv_lora_rank": 0}, []string{"kv_lora_rank", "positive"}},

	{changes{"n_routed_experts": 20000}, []string{"20000 experts", "limit"}},
	{changes{"num_experts_per_tok": nil}, []string{"num_experts_per_tok"}},
	{changes{"num_experts_per_tok": 9}, []string{"num_experts_per_tok", "1 to 8"}},
	{changes{"moe_intermediate_size": 0}, []string{"moe_intermediate_size"}},
	{changes{"n_group": 3}, []string{"n_group", "8 experts"}},
	{changes{"topk_group": 5}, []string{"topk_group"}},
	{changes{"topk_group": 0}, []string{"topk_group"}},
	{changes{"first_k_dense_replace": 4}, []string{"first_k_dense_replace", "3 blocks"}},
	{changes{"norm_topk_prob": "yes"}, []string{"norm_topk_prob is yes", "true or false"}},
	{changes{"num_nextn_predict_layers": 513}, []string{"num_nextn_predict_layers"}},
	{changes{"num_nextn_predict_layers": 1.5}, []string{"num_nextn_predict_layers"}},
	{changes{"num_nextn_predict_layers": "one"}, []string{"num_nextn_predict_layers", "number"}},
	{changes{"tie_word_embeddings": "no"}, []string{"tie_word_embeddings"}},
}

// llamaErrors are faults in the configuration of the fixture llama.
var llamaErrors = []struct {
	change changes
	words  []string
}{
	{changes{"rope_scaling": changes{"rope_type": "frobnitz"}}, []string{"rope_scaling.rope_type", "frobnitz"}},
	{changes{"rope_scaling": nil, "num_key_value_heads": 3}, []string{"num_key_value_heads", "is 3", "num_attention_heads"}},
	{changes{"rope_scaling": nil, "num_key_value_heads": 8}, []string{"num_key_value_heads"}},
	{changes{"rope_scaling": nil, "head_dim": nil, "num_attention_heads": 6}, []string{"num_attention_heads", "6", "hidden_size"}},
	{changes{"rope_scaling": nil, "head_dim": 0}, []string{"head_dim|rope.dimension_count"}},
	{changes{"rope_scaling": nil, "head_dim": 15}, []string{"rope.dimension_count", "even"}},
}

func TestConfigErrors(t *testing.T) {
	base := readConfig(t, fixtures.Family(t, "deepseek_v3"))
	for _, c := range configErrors {
		_, err := load(changed(t, base, c.change), false)
		t.Run(strings.Join(c.words, ","), func(t *testing.T) { wantError(t, err, append(c.words, "config.json")...) })
	}
	base = readConfig(t, fixtures.Family(t, "llama"))
	for _, c := range llamaErrors {
		_, err := load(changed(t, base, c.change), false)
		t.Run(strings.Join(c.words, ","), func(t *testing.T) { wantError(t, err, append(c.words, "config.json")...) })
	}
	for text, words := range map[string][]string{
		``: {"config.json"}, `[]`: {"object"}, `{"a": 1, "a": 2}`: {"duplicate"}, `{"a": `: {"config.json"}, `{}`: {"architectures"},
	} {
		_, err := load([]byte(text), false)
		wantError(t, err, words...)
	}
	_, err := ParseConfig(make([]byte, maxConfigBytes+1))
	wantError(t, err, "limit")
}

// elsewhere are cases of the corpus whose fault lies outside config.json or
// shows only beside the tensors; formats/tokenizer and convert refuse them.
var elsewhere = map[string]bool{
	"g-cfg-missing": true, "g-cfg-hidden_size-33": true, "g-cfg-num_hidden_layers-2": true, "g-cfg-vocab_size-mm": true,
	"g-cfg-intermediate_size-100": true, "g-cfg-quantization_config-quant_methodzorp": true, "g-cfg-head_dim-24": true,
	"g-cfg-eos_token_id-99999": true, "g-cfg-untied-no-lm-head": true,
}

// TestBadCorpus reads the configurations of the corpus of bad input.
func TestBadCorpus(t *testing.T) {
	root := filepath.Join(fixtures.Dir(t, "packs/bad"), "given")
	data, err := os.ReadFile(filepath.Join(root, "manifest.json"))
	if err != nil {
		t.Fatal(err)
	}
	var cases []struct {
		ID, Kind, Path, Expect string
		Hints                  []string `json:"contains_hint"`
	}
	if err := json.Unmarshal(data, &cases); err != nil {
		t.Fatal(err)
	}
	refused, accepted := 0, 0
	for _, c := range cases {
		if c.Kind != "config" || elsewhere[c.ID] {
			continue
		}
		t.Run(c.ID, func(t *testing.T) {
			_, err := load(readConfig(t, filepath.Join(root, c.Path)), false)
			if c.Expect == "ok" {
				accepted++
				if err != nil {
					t.Error(err)
				}
				return
			}
			refused++
			wantError(t, err, c.Hints...)
		})
	}
	if refused < 19 || accepted < 7 {
		t.Errorf("%d cases refused, %d accepted", refused, accepted)
	}
}

// TestMetadataErrors damages the metadata of a file.
func TestMetadataErrors(t *testing.T) {
	good := written((&specimen{"deepseek_v3"}).model(t, false))
	for _, c := range []struct {
		key   string
		value any // nil deletes the key
		words []string
	}{
		{gguf.KeyArchitecture, nil, []string{"general.architecture", "missing"}},
		{gguf.KeyArchitecture, uint32(1), []string{"general.architecture"}},
		{gguf.KeyArchitecture, "frobnitz", []string{"frobnitz", "deepseek2, llama"}},
		{"deepseek2.block_count", nil, []string{`"deepseek2.block_count" is missing`}},
		{"deepseek2.block_count", "three", []string{"deepseek2.block_count", "three", "string"}},
		{"deepseek2.block_count", int32(-3), []string{"deepseek2.block_count"}},
		{"deepseek2.block_count", uint64(1 << 40), []string{"deepseek2.block_count"}},
		{"deepseek2.block_count", uint32(513), []string{"block_count", "512"}},
		{"deepseek2.block_count", []int32{3}, []string{"deepseek2.block_count"}},
		{"deepseek2.expert_gating_func", uint32(4), []string{"expert_gating_func is 4"}},
		{"deepseek2.expert_gating_func", "sigmoid", []string{"expert_gating_func"}},
		{"deepseek2.expert_weights_norm", uint32(1), []string{"expert_weights_norm"}},
		{"deepseek2.rope.scaling.type", "longrope", []string{"longrope"}},
		{"deepseek2.rope.scaling.type", true, []string{"rope.scaling.type"}},
		{"deepseek2.rope.freq_base", "x", []string{"rope.freq_base"}},
		{"deepseek2.nextn_predict_layers", uint32(3), []string{"num_nextn_predict_layers", "3"}},
		{"deepseek2.nextn_predict_layers", "x", []string{"nextn_predict_layers"}},
	} {
		md := good.Clone()
		if c.value == nil {
			md.Delete(c.key)
		} else {
			md.Set(c.key, c.value)
		}
		_, err := FromMetadata(md)
		t.Run(strings.Join(c.words, ","), func(t *testing.T) { wantError(t, err, c.words...) })
	}
}

// TestMetadataDefaults: keys that files of other writers lack.
func TestMetadataDefaults(t *testing.T) {
	md := written((&specimen{"deepseek_v2_lite"}).model(t, false))
	md.Delete("deepseek2.expert_gating_func")
	md.Delete("deepseek2.vocab_size")
	md.Set("tokenizer.ggml.tokens", []string{"a", "b", "c"})
	m, err := FromMetadata(md)
	if err != nil || m.Params.Gating != GatingSoftmax || m.Params.Vocab != 3 {
		t.Errorf("%+v, %v", m, err)
	}
	md = written((&specimen{"llama"}).model(t, false))
	md.Delete("llama.rope.dimension_count")
	md.Delete("llama.rope.freq_base")
	m, err = FromMetadata(md)
	if err != nil || m.Params.RopeDim != 16 || m.Params.RopeBase != 10000 {
		t.Errorf("%+v, %v", m, err)
	}
}

// TestRefusesMechanisms: a key that changes the computation and that no family
// described so far owns is refused, unless its value turns it off.
func TestRefusesMechanisms(t *testing.T) {
	m := mustLoad(t, readConfig(t, fixtures.Family(t, "deepseek_v3")), false)
	for _, v := range []any{uint32(4096), float32(0.5), uint32(0), float32(0)} {
		var md gguf.Metadata
		md.Set(gguf.KeyArchitecture, m.Family.Arch)
		m.WriteMetadata(&md, 0)
		md.Set(m.Family.Arch+".attention.sliding_window", v)
		_, err := FromMetadata(&md)
		on := v == uint32(4096) || v == float32(0.5)
		if on != (err != nil) || on && !strings.Contains(err.Error(), "sliding_window") {
			t.Errorf("sliding_window %v: error %v", v, err)
		}
	}
}
