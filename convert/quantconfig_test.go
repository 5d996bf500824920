package convert

import (
	"fmt"
	"reflect"
	"testing"

	"github.com/winnow-moe/winnow/formats/arch"
)

func quantConfigOf(t *testing.T, text string) (*quantConfig, error) {
	t.Helper()
	cfg, err := arch.ParseConfig([]byte(`{"quantization_config": ` + text + `}`))
	must(t, err)
	return readQuantConfig(cfg)
}

// TestQuantConfigErrors: what is not known or not a number is refused with key
// and value.
func TestQuantConfigErrors(t *testing.T) {
	for text, words := range map[string][]string{
		`{}`:                                 {"quant_method is missing"},
		`{"quant_method": 4}`:                {"quant_method is 4"},
		`{"quant_method": "bitsandbytes"}`:   {`quant_method is "bitsandbytes"`, "gptq"},
		fp8(`128`):                           {"weight_block_size is 128", "two positive numbers"},
		fp8(`[128]`):                         {"weight_block_size", "two positive numbers"},
		fp8(`[128, "a"]`):                    {"two positive numbers"},
		fp8(`[128, 0]`):                      {"two positive numbers"},
		fp8(`[128, 1.5]`):                    {"two positive numbers"},
		fp8(`[128, 9999999999999999999999]`): {"two positive numbers"},
		fp8(`"128x"`):                        {`weight_block_size is "128x"`},
		`{"quant_method": "modelopt", "quant_algo": "W8A8"}`:                                                                                 {`quant_algo is "W8A8"`},
		`{"quant_method": "compressed-tensors"}`:                                                                                             {"quantization_config.format is missing", "pack-quantized"},
		`{"quant_method": "compressed-tensors", "format": "marlin-24"}`:                                                                      {`format is "marlin-24"`},
		`{"quant_method": "compressed-tensors", "format": "mixed-precision", "config_groups": {"g": {"format": "dense"}}}`:                   {`config_groups.g.format is "dense"`},
		`{"quant_method": "compressed-tensors", "format": "pack-quantized", "config_groups": {"g": {"weights": {"num_bits": 8}}}}`:           {"config_groups.g.weights.num_bits is 8"},
		`{"quant_method": "compressed-tensors", "format": "float-quantized", "config_groups": {"g": {"weights": {"block_structure": [1]}}}}`: {"config_groups.g.weights.block_structure is [1]"},
		`{"quant_method": "gptq", "bits": 3}`:                                                                                                {"quantization_config.bits is 3"},
		`{"quant_method": "gptq", "checkpoint_format": "marlin"}`:                                                                            {`checkpoint_format is "marlin"`},
		`{"quant_method": "awq", "bits": 8}`:                                                                                                 {"bits is 8"},
		`{"quant_method": "awq", "bits": 4, "version": "gemv"}`:                                                                              {`version is "gemv"`},
	} {
		_, err := quantConfigOf(t, text)
		wantRefusal(t, err, ErrInput, append(words, "config.json: quantization_config")...)
	}
}

// TestQuantConfig: what is known of each method.
func TestQuantConfig(t *testing.T) {
	for text, want := range map[string]quantConfig{
		fp8(`[128, 64]`):                                      {method: "fp8", families: []family{familyScaled}, block: [2]int64{128, 64}},
		`{"quant_method": "fp8"}`:                             {method: "fp8", families: []family{familyScaled}},
		`{"quant_method": "fbgemm_fp8"}`:                      {method: "fbgemm_fp8", families: []family{familyScaled}},
		`{"quant_method": "mxfp4"}`:                           {method: "mxfp4", families: []family{familyMXFP4}},
		`{"quant_method": "modelopt", "quant_algo": "NVFP4"}`: {method: "modelopt", families: []family{familyNVFP4}},
		`{"quant_method": "modelopt", "quant_algo": "FP8"}`:   {method: "modelopt", families: []family{familyScaled}},
		`{"quant_method": "modelopt"}`:                        {method: "modelopt", families: []family{familyScaled, familyNVFP4}},
		`{"quant_method": "gptq", "bits": 4, "group_size": 128, "checkpoint_format": "gptq_v2"}`:                                                                              {method: "gptq", families: []family{familyGPTQ}, groups: []int64{128}, format: "gptq_v2"},
		`{"quant_method": "awq", "bits": 4, "group_size": -1, "version": "GEMM"}`:                                                                                             {method: "awq", families: []family{familyAWQ}, groups: []int64{-1}},
		`{"quant_method": "compressed-tensors", "format": "float-quantized", "config_groups": {"g": {"weights": {"block_structure": "128x64"}}}}`:                             {method: "compressed-tensors", families: []family{familyScaled}, block: [2]int64{128, 64}},
		`{"quant_method": "compressed-tensors", "format": "pack-quantized", "config_groups": {"g": {"weights": {"num_bits": 4, "group_size": 32}}}}`:                          {method: "compressed-tensors", families: []family{familyInt4}, groups: []int64{32}},
		`{"quant_method": "compressed-tensors", "format": "mixed-precision", "config_groups": {"a": {"format": "nvfp4-pack-quantized"}, "b": {"format": "float-quantized"}}}`: {method: "compressed-tensors", families: []family{familyNVFP4, familyScaled}},
	} {
		got, err := quantConfigOf(t, text)
		must(t, err)
		if !reflect.DeepEqual(*got, want) {
			t.Errorf("%s: %+v, want %+v", text, *got, want)
		}
	}
}

func fp8(block string) string {
	return fmt.Sprintf(`{"quant_method": "fp8", "weight_block_size": %s}`, block)
}
