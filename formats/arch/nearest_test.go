package arch

import (
	"strings"
	"testing"
)

func TestNearest(t *testing.T) {
	for name, want := range map[string]string{
		"Qwen3VLForConditionalGeneration":         "Qwen3ForCausalLM",
		"Qwen3VLMoeForConditionalGeneration":      "Qwen3MoeForCausalLM",
		"Qwen2_5_VLForConditionalGeneration":      "Qwen2ForCausalLM",
		"Gemma3nForConditionalGeneration":         "Gemma3ForCausalLM",
		"GlmForCausalLM":                          "Glm4ForCausalLM",
		"DeepseekV4ForCausalLM":                   "DeepseekV2ForCausalLM",
		"Llama5ForCausalLM":                       "LlamaForCausalLM",
		"MistralNemoForCausalLM":                  "MistralForCausalLM",
		"GPT2LMHeadModel":                         "",
		"FrobnitzForCausalLM":                     "",
		"":                                        "",
		"qwen3_vl":                                "Qwen3ForCausalLM",
		strings.Repeat("x", 1000) + "ForCausalLM": "",
	} {
		if _, got := nearest(name); got != want {
			t.Errorf("nearest to %.40q is %q, want %q", name, got, want)
		}
	}
	if got := nearestText("FrobnitzForCausalLM", "llama"); !strings.Contains(got, `"LlamaForCausalLM" (family llama)`) {
		t.Errorf("by model_type: %q", got)
	}
}

func TestEditDistance(t *testing.T) {
	for _, c := range []struct {
		a, b string
		want int
	}{{"", "", 0}, {"a", "", 1}, {"", "ab", 2}, {"kitten", "sitting", 3}, {"flaw", "lawn", 2}, {"same", "same", 0}} {
		if got := editDistance(c.a, c.b); got != c.want {
			t.Errorf("%q, %q: %d, want %d", c.a, c.b, got, c.want)
		}
	}
}
