package convert

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/winnow-moe/winnow/formats/arch"
	"github.com/winnow-moe/winnow/testdata/fixtures"
)

// TestContradictions: config.json says one thing and the tensors another. The
// message names setting, value and what is there.
func TestContradictions(t *testing.T) {
	for name, c := range map[string]struct {
		family string
		change map[string]any
		words  []string
		lacks  string
	}{
		"fewer blocks":   {"deepseek_v3", map[string]any{"num_hidden_layers": 5, "num_nextn_predict_layers": nil}, []string{"num_hidden_layers is 5, the checkpoint has 4 blocks"}, ""},
		"more blocks":    {"llama", map[string]any{"num_hidden_layers": 1}, []string{"num_hidden_layers is 1, the checkpoint has tensors of block 2", "18 tensors of the checkpoint have no place"}, ""},
		"unannounced":    {"deepseek_v3", map[string]any{"num_nextn_predict_layers": 0}, []string{"num_nextn_predict_layers announces 0 multi-token prediction blocks, the checkpoint has block 3"}, "num_hidden_layers"},
		"fewer experts":  {"mixtral", map[string]any{"num_local_experts": 6}, []string{"num_local_experts is 6, the checkpoint has 4 experts in block 0", "tensors are missing"}, "n_routed_experts"},
		"more experts":   {"mixtral", map[string]any{"num_local_experts": 3}, []string{"num_local_experts is 3, the checkpoint has 4 experts in block", "no place"}, ""},
		"named experts":  {"qwen3_moe", map[string]any{"num_experts": 4, "num_experts_per_tok": 2}, []string{"num_experts is 4, the checkpoint has 8 experts"}, "local"},
		"fused experts":  {"gpt_oss_bf16", map[string]any{"num_local_experts": 16}, []string{"num_local_experts", "makes it [16"}, "n_routed_experts"},
		"vocabulary":     {"qwen3", map[string]any{"vocab_size": 1000}, []string{`vocab_size is 1000, "model.embed_tokens.weight" has 544 rows`}, ""},
		"width":          {"qwen3", map[string]any{"hidden_size": 128}, []string{`"model.embed_tokens.weight" has shape [544 64], but config.json makes it [544 128] = [vocab_size, hidden_size]`, "more such tensors"}, "contradicts"},
		"one expert":     {"mixtral", map[string]any{"num_local_experts": 5}, []string{"experts.4", "num_local_experts is 5, the checkpoint has 4 experts"}, ""},
		"head dimension": {"qwen3", map[string]any{"head_dim": 8}, []string{"num_attention_heads*head_dim"}, ""},
	} {
		t.Run(name, func(t *testing.T) {
			dir := copyFixture(t, fixtures.Family(t, c.family), c.change)
			_, err := OpenCheckpoint(dir, CheckpointOptions{})
			if err == nil {
				t.Fatal("no error")
			}
			wantRefusal(t, err, ErrInput, c.words...)
			if c.lacks != "" && strings.Contains(err.Error(), c.lacks) {
				t.Errorf("message %q has %q", err, c.lacks)
			}
			if n := len(err.Error()); n > 3000 {
				t.Errorf("message of %d bytes: %s", n, err)
			}
		})
	}
}

// TestUnsupportedValues: what no description covers is refused with the
// setting, its value and what would do, before there is any weight to read.
func TestUnsupportedValues(t *testing.T) {
	for name, c := range map[string]struct {
		change map[string]any
		words  []string
	}{
		"class":         {map[string]any{"architectures": []string{"Qwen3VLForConditionalGeneration"}}, []string{"architectures", `"Qwen3VLForConditionalGeneration"`, `"Qwen3ForCausalLM" (family qwen3)`}},
		"rope type":     {map[string]any{"rope_scaling": map[string]any{"rope_type": "warp", "factor": 2}}, []string{"rope_scaling.rope_type", `"warp"`, "yarn"}},
		"rope factor":   {map[string]any{"rope_scaling": map[string]any{"rope_type": "yarn"}}, []string{"rope_scaling", "factor"}},
		"activation":    {map[string]any{"hidden_act": "relu"}, []string{"hidden_act", `"relu"`, "silu"}},
		"quantization":  {map[string]any{"quantization_config": map[string]any{"quant_method": "zorp"}}, []string{"quantization_config.quant_method", `"zorp"`}},
		"float type":    {map[string]any{"torch_dtype": "posit16"}, []string{"torch_dtype", `"posit16"`}},
		"every 2nd MoE": {map[string]any{"decoder_sparse_step": 2}, []string{"decoder_sparse_step", "2"}},
		"sliding":       {map[string]any{"use_sliding_window": true}, []string{"use_sliding_window", "true"}},
	} {
		t.Run(name, func(t *testing.T) {
			dir := copyFixture(t, fixtures.Family(t, "qwen3_moe"), c.change)
			must(t, os.Remove(filepath.Join(dir, "model.safetensors")))
			_, err := OpenCheckpoint(dir, CheckpointOptions{})
			kind := error(arch.ErrUnsupported)
			if name == "quantization" {
				kind = ErrInput
			}
			wantRefusal(t, err, kind, c.words...)
		})
	}
}

// TestTiedOutput: a matrix that config.json makes superfluous is left out, with
// a warning where it is not the embedding.
func TestTiedOutput(t *testing.T) {
	untied := openCheckpoint(t, fixtures.Family(t, "qwen3_moe"), CheckpointOptions{})
	if len(untied.Warnings) > 0 {
		t.Errorf("warnings %q", untied.Warnings)
	}
	dir := copyFixture(t, fixtures.Family(t, "qwen3_moe"), map[string]any{"tie_word_embeddings": true})
	ck := openCheckpoint(t, dir, CheckpointOptions{})
	if text := fmt.Sprint(ck.Warnings); !strings.Contains(text, `"lm_head.weight" is left out`) || !strings.Contains(text, "differs") {
		t.Errorf("warnings %q", ck.Warnings)
	}
	if len(ck.dropped) != 1 || ck.dropped[0].Name != "lm_head.weight" {
		t.Errorf("dropped %v", ck.dropped)
	}
	// The same values under both names: nothing to say.
	head, _ := ck.files.Lookup("lm_head.weight")
	embd, _ := ck.files.Lookup("model.embed_tokens.weight")
	to, from := ck.files.Tensors()[head], ck.files.Tensors()[embd]
	path := filepath.Join(dir, "model.safetensors")
	data := readFile(t, path)
	copy(data[to.Offset:to.Offset+to.Size], data[from.Offset:from.Offset+from.Size])
	must(t, os.WriteFile(path, data, 0o666))
	if ck := openCheckpoint(t, dir, CheckpointOptions{}); len(ck.Warnings) > 0 {
		t.Errorf("warnings %q", ck.Warnings)
	}
}
