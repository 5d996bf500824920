package arch

import (
	"encoding/json"
	"fmt"
	"maps"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/winnow-moe/winnow/testdata/fixtures"
)

// gemma4Text is a fixture's config.json with some settings of its texts changed.
func gemma4Text(t *testing.T, fixture string, c changes) []byte {
	t.Helper()
	base := readConfig(t, fixtures.Family(t, fixture))
	var top struct {
		Text json.RawMessage `json:"text_config"`
	}
	if err := json.Unmarshal(base, &top); err != nil || top.Text == nil {
		t.Fatal(err)
	}
	return changed(t, base, changes{"text_config": json.RawMessage(changed(t, top.Text, c))})
}

// TestGemma4Forms: what config.json leaves to HF's defaults, and what
// transformers 5.23 says in per_layer_config, means the same.
func TestGemma4Forms(t *testing.T) {
	moe := mustLoad(t, gemma4Text(t, "gemma4_moe", nil), false)
	for name, c := range map[string]changes{
		"per_layer_config": {"global_head_dim": nil, "num_global_key_value_heads": nil,
			"per_layer_config": changes{"05": changes{"head_dim": 32, "num_key_value_heads": 1}}},
		"layer_types":     {"layer_types": nil},
		"rope_parameters": {"rope_parameters": nil},
		"text only":       {"use_bidirectional_attention": nil},
	} {
		got := mustLoad(t, gemma4Text(t, "gemma4_moe", c), false)
		if diff := cmp.Diff(moe.Params, got.Params); diff != "" {
			t.Errorf("%s: %s", name, diff)
		}
		want, err := proportionalFactors.Generate(moe)
		factors, err2 := proportionalFactors.Generate(got)
		if err != nil || err2 != nil || !slices.Equal(factors, want) {
			t.Errorf("%s: factors %g, want %g", name, factors, want)
		}
	}
	// global_head_dim is 512 by default, and key heads of full blocks count only beside attention_k_eq_v.
	p := mustLoad(t, gemma4Text(t, "gemma4_moe", changes{"global_head_dim": nil, "attention_k_eq_v": false}), false).Params
	if p.KeyLen != 512 || p.RopeDim != 512 || p.KVHeads != 2 || p.KVHeadsAt != nil {
		t.Errorf("defaults: heads of %d, %d rotated, %d key heads %d", p.KeyLen, p.RopeDim, p.KVHeads, p.KVHeadsAt)
	}
}

func TestGemma4Errors(t *testing.T) {
	layers := func(over changes) changes {
		c := changes{"5": changes{"head_dim": 32}}
		maps.Copy(c, over)
		return changes{"per_layer_config": c}
	}
	for _, c := range []struct {
		fixture string
		change  changes
		words   []string
	}{
		{"gemma4_moe", changes{"use_bidirectional_attention": "all"}, []string{"use_bidirectional_attention", "all"}},
		{"gemma4_moe", changes{"layer_types": []string{"full_attention"}}, []string{"layer_types", "1", "6"}},
		{"gemma4_moe", changes{"num_hidden_layers": 1 << 30}, []string{"num_hidden_layers", "512"}},
		{"gemma4_moe", layers(changes{"2": changes{"head_dim": 32}}), []string{"per_layer_config", "head_dim", "block 2"}},
		{"gemma4_moe", layers(changes{"5": changes{"sliding_window": 3}}), []string{"per_layer_config", "sliding_window"}},
		{"gemma4_moe", layers(changes{"5": 7}), []string{"per_layer_config", `"5"`}},
		{"gemma4_moe", layers(changes{"full_attention": changes{}}), []string{"per_layer_config", "full_attention"}},
		{"gemma4_moe", layers(changes{"5": changes{"head_dim": "big"}}), []string{"head_dim", "big"}},
		{"gemma4_e", changes{"per_layer_config": changes{"2": changes{"head_dim": 32}, "5": changes{"head_dim": 64}, "7": changes{"head_dim": 32}}}, []string{"per_layer_config", "block 5"}},
		{"gemma4_e", changes{"num_kv_shared_layers": 6}, []string{"num_kv_shared_layers", "6 of 8"}}, // two sliding blocks before
		{"gemma4_e", changes{"num_kv_shared_layers": 8}, []string{"num_kv_shared_layers"}},
		{"gemma4_e", changes{"num_kv_shared_layers": 9}, []string{"num_kv_shared_layers"}},
		{"gemma4_e", changes{"hidden_size_per_layer_input": 1 << 25}, []string{"hidden_size_per_layer_input"}},
	} {
		_, err := load(gemma4Text(t, c.fixture, c.change), false)
		t.Run(strings.Join(c.words, ","), func(t *testing.T) { wantError(t, err, append(c.words, "config.json")...) })
	}
}

// TestSharedKV lists who shares with whom, as HF's kv_sharing_modes has it.
func TestSharedKV(t *testing.T) {
	p := mustLoad(t, gemma4Text(t, "gemma4_e", nil), false).Params
	var from, lend []string
	for l := range p.Layers {
		from = append(from, fmt.Sprint(p.SharesKV(l)))
		if p.LendsKV(l) {
			lend = append(lend, fmt.Sprint(l))
		}
	}
	if got := strings.Join(from, " "); got != "0 1 2 3 3 2 3 2" || strings.Join(lend, " ") != "2 3" {
		t.Errorf("blocks use keys of %s; %s lend theirs", got, lend)
	}
}
