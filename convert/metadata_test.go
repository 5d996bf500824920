package convert

import (
	"encoding/json"
	"testing"

	"github.com/winnow-moe/winnow/formats/gguf"
)

// TestTitle compares with gguf-py's Metadata.id_to_title.
func TestTitle(t *testing.T) {
	for _, c := range [][2]string{
		{"tiny-r1", "Tiny R1"},
		{"DeepSeek-R1", "DeepSeek R1"},
		{"deepseek-r1", "Deepseek R1"},
		{"DeepSeek-V3.1", "DeepSeek V3.1"},
		{"deepseek-v2-lite", "Deepseek v2 Lite"},
		{"Kimi-K2-Instruct", "Kimi K2 Instruct"},
		{"llama-3.1-8b-instruct", "Llama 3.1 8b Instruct"},
		{"mixtral-8x7b-v0.1", "Mixtral 8x7b v0.1"},
		{"o'neil-x", "O'Neil X"},
		{"a--b-", "A B"},
		{"foo_bar-v2", "Foo_Bar v2"},
		{"x", "X"},
		{"deepseek_v3", "Deepseek_V3"},
		{"v1.5-base", "v1.5 Base"},
		{"v1.-x", "V1. X"},
		{"vx-1", "Vx 1"},
		{"3b-stories", "3b Stories"},
		{"über-modell", "Über Modell"},
		{"rev_2-8bit", "Rev_2 8bit"},
		{"Llama-2-7b-hf", "Llama 2 7b Hf"},
		{"iPhone-x", "iPhone X"},
		{"123", "123"},
		{"a.b-c.d", "A.B C.D"},
		{"--v2", "v2"},
		{"my model-x", "My Model X"},
	} {
		for _, dir := range []string{c[0], "models/" + c[0], "models/" + c[0] + "/"} {
			if got := title(folderName(dir)); got != c[1] {
				t.Errorf("title of %q is %q, want %q", dir, got, c[1])
			}
		}
	}
}

// TestRoundedCount compares with gguf-py's model_weight_count_rounded_notation.
func TestRoundedCount(t *testing.T) {
	for _, c := range []struct {
		n    int64
		want string
	}{
		{0, "0.00K"},
		{1, "0.00K"},
		{9, "0.01K"},
		{99, "0.10K"},
		{999, "1.0K"},
		{1499, "1.5K"},
		{9949, "10K"},
		{9950, "10K"},
		{99499, "99K"},
		{158336, "158K"},
		{999999, "1000K"},
		{1000000, "1000K"},
		{1000001, "1.0M"},
		{1050000, "1.1M"},
		{1250000, "1.2M"},
		{2500001, "2.5M"},
		{3700000, "3.7M"},
		{9949999, "10M"},
		{12345678, "12M"},
		{999999999, "1000M"},
		{1000000001, "1.0B"},
		{9500000001, "10B"},
		{10500000000, "10B"},
		{37000000000, "37B"},
		{671026419200, "671B"},
		{999999999999, "1000B"},
		{1000000000001, "1.0T"},
		{25000000000000, "25T"},
	} {
		if got := roundedCount(c.n); got != c.want {
			t.Errorf("roundedCount(%d) = %q, want %q", c.n, got, c.want)
		}
	}
}

// TestSizeLabel: the converter's files have the other labels; a model whose
// blocks differ in experts has the mean, rounded down.
func TestSizeLabel(t *testing.T) {
	for want, tensors := range map[string][]Tensor{
		"0.10K":   {{Name: "token_embd.weight", Shape: []int64{10, 10}}},
		"16x1.5M": {{Name: "output.weight", Shape: []int64{1000, 1000}}, {Name: "blk.0.ffn_up_exps.weight", Shape: []int64{540, 1000, 16}}},
		"3x0.02K": {{Name: "blk.0.ffn_up_exps.weight", Shape: []int64{2, 5, 2}}, {Name: "blk.1.ffn_up_exps.weight", Shape: []int64{2, 5, 5}}},
		"0.01K":   {{Name: "blk.0.ffn_up_exps.weight", Shape: []int64{10}}},
	} {
		if got := sizeLabel(tensors); got != want {
			t.Errorf("%q, want %q", got, want)
		}
	}
}

func TestSamplingValue(t *testing.T) {
	gen := map[string]any{
		"f": json.Number("0.6"), "i": json.Number("50"), "s": "text", "b": true, "huge": json.Number("1e400"), "half": json.Number("1.5"), "big": json.Number("3e9"),
	}
	for _, c := range []struct {
		from []string
		kind gguf.ValueType
		want any // nil: none
	}{
		{[]string{"f"}, gguf.TypeFloat32, float32(0.6)},
		{[]string{"i"}, gguf.TypeInt32, int32(50)},
		{[]string{"i"}, gguf.TypeFloat32, float32(50)},
		{[]string{"none", "i"}, gguf.TypeInt32, int32(50)},
		{[]string{"s"}, gguf.TypeString, "text"},
		{[]string{"s"}, gguf.TypeFloat32, nil},
		{[]string{"b"}, gguf.TypeInt32, nil},
		{[]string{"huge"}, gguf.TypeFloat32, nil},
		{[]string{"half"}, gguf.TypeInt32, nil},
		{[]string{"big"}, gguf.TypeInt32, nil},
		{[]string{"i"}, gguf.TypeString, nil},
	} {
		if got, ok := samplingValue(gen, c.from, c.kind); got != c.want || ok != (c.want != nil) {
			t.Errorf("%q as %s: %v, want %v", c.from, c.kind, got, c.want)
		}
	}
}
