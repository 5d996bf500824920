package arch

import (
	"slices"
	"strings"
	"testing"

	"github.com/winnow-moe/winnow/testdata/fixtures"
)

// TestRecurrentBlocks: layer_types decides which blocks are recurrent, else
// full_attention_interval, else every fourth is not; MTP blocks never are.
func TestRecurrentBlocks(t *testing.T) {
	base := readConfig(t, fixtures.Family(t, "qwen3_next"))
	for name, c := range map[string]struct {
		change changes
		mtp    bool
		want   []bool
	}{
		"nothing":     {changes{"full_attention_interval": nil}, false, []bool{true, true, true, false}},
		"interval":    {changes{"full_attention_interval": 2}, true, []bool{true, false, true, false, false}},
		"layer_types": {changes{"layer_types": []string{"full_attention", "linear_attention", "linear_attention", "full_attention"}}, true, []bool{false, true, true, false, false}},
	} {
		m := mustLoad(t, changed(t, base, c.change), c.mtp)
		if !slices.Equal(m.Params.Recurrent, c.want) {
			t.Errorf("%s: recurrent blocks %v, want %v", name, m.Params.Recurrent, c.want)
		}
		md := written(m)
		md.Delete("qwen3next." + KeyRecurrent)
		if name == "layer_types" {
			continue
		}
		if back, err := FromMetadata(md); err != nil || !slices.Equal(back.Params.Recurrent, c.want) {
			t.Errorf("%s: read back without the list: %v, %v", name, back, err)
		}
	}
}

// TestMTPNames: a model of its own names for MTP blocks has them in both modes.
func TestMTPNames(t *testing.T) {
	m := (&specimen{"qwen3_next"}).model(t, false)
	if m.AnnouncedMTP != 1 || m.Params.NextnLayers != 0 || !m.OfMTP("mtp.fc.weight") || m.OfMTP("model.layers.3.input_layernorm.weight") || !m.OfMTP("model.layers.4.x") {
		t.Errorf("%d MTP blocks, %d kept", m.AnnouncedMTP, m.Params.NextnLayers)
	}
	none := mustLoad(t, changed(t, readConfig(t, fixtures.Family(t, "qwen3_next")), changes{"mtp_num_hidden_layers": 0}), true)
	if _, ok := written(none).Get("qwen3next." + KeyNextnLayers); ok || none.Params.Layers != 4 || none.OfMTP("mtp.fc.weight") {
		t.Errorf("without MTP: %+v", none.Params)
	}
}

// TestDeltaErrors: what the descriptions do not cover is refused by name.
func TestDeltaErrors(t *testing.T) {
	linear := changes{"full_attn_layers": []int{3}, "kda_layers": []int{1, 2, 4}, "head_dim": 16, "num_heads": 4, "short_conv_kernel_size": 4}
	with := func(key string, value any) changes {
		c := changes{}
		for k, v := range linear {
			c[k] = v
		}
		if c[key] = value; value == nil {
			delete(c, key)
		}
		return changes{"linear_attn_config": c}
	}
	for _, c := range []struct {
		fixture string
		change  changes
		words   []string
	}{
		{"qwen3_next", changes{"linear_num_value_heads": 3}, []string{"linear_num_value_heads", "3"}},
		{"qwen3_next", changes{"linear_conv_kernel_dim": 0}, []string{"linear_conv_kernel_dim"}},
		{"qwen3_next", changes{"linear_value_head_dim": nil}, []string{"linear_value_head_dim", "missing"}},
		{"qwen3_next", changes{"layer_types": []string{"full_attention"}}, []string{"layer_types", "num_hidden_layers"}},
		{"qwen3_next", changes{"layer_types": []string{"full_attention", "x", "full_attention", "full_attention"}}, []string{"layer_types", "x"}},
		{"qwen3_next", changes{"norm_topk_prob": false}, []string{"norm_topk_prob"}},
		{"qwen3_next", changes{"mtp_num_hidden_layers": 2}, []string{"mtp_num_hidden_layers", "2"}},
		{"qwen3_next", changes{"num_hidden_layers": 100000}, []string{"num_hidden_layers", "512"}},
		{"qwen3_5_moe", changes{"text_config": changes{}}, []string{"num_hidden_layers"}},
		{"deepseek_v32", changes{"index_topk": 0}, []string{"index_topk"}},
		{"deepseek_v32", changes{"index_head_dim": 4}, []string{"index_head_dim"}},
		{"deepseek_v32", changes{"q_lora_rank": nil}, []string{"q_lora_rank"}},
		{"deepseek_v32", changes{"num_nextn_predict_layers": -1}, []string{"num_nextn_predict_layers", "-1"}},
		{"kimi_linear", changes{"q_lora_rank": 8}, []string{"q_lora_rank", "8"}},
		{"kimi_linear", changes{"moe_router_activation_func": "softmax"}, []string{"moe_router_activation_func", "softmax"}},
		{"kimi_linear", with("num_heads", 2), []string{"linear_attn_config.num_heads", "2"}},
		{"kimi_linear", with("full_attn_layers", nil), []string{"full_attn_layers", "missing"}},
		{"kimi_linear", with("full_attn_layers", []string{"a"}), []string{"full_attn_layers", "numbers"}},
	} {
		_, err := load(changed(t, readConfig(t, fixtures.Family(t, c.fixture)), c.change), true)
		t.Run(strings.Join(c.words, ","), func(t *testing.T) { wantError(t, err, append(c.words, "config.json")...) })
	}
	base := mustLoad(t, readConfig(t, fixtures.Family(t, "qwen3_5_moe")), true)
	if got := base.Params.RopeSections; !slices.Equal(got, []int{2, 1, 1, 0}) {
		t.Errorf("sections of positions %v", got)
	}
}
