package convert

import (
	"fmt"
	"maps"
	"slices"
	"strconv"
	"strings"

	"github.com/winnow-moe/winnow/formats/arch"
)

// quantConfig is what quantization_config of a checkpoint says. The tensors
// decide how they are read; this tells what they leave open, and must agree.
type quantConfig struct {
	method   string
	families []family // that the tensors may have; empty without a method
	block    [2]int64 // rows and columns of a block of scales; zeros: none
	groups   []int64  // sizes of groups along a row; empty: not said
	format   string   // of GPTQ: "gptq" or "gptq_v2"
}

// methods reads the settings of each known quant_method.
var methods = map[string]func(*quantConfig, map[string]any) error{
	"fp8":                (*quantConfig).fp8,
	"fbgemm_fp8":         func(c *quantConfig, _ map[string]any) error { c.families = []family{familyScaled}; return nil },
	"mxfp4":              func(c *quantConfig, _ map[string]any) error { c.families = []family{familyMXFP4}; return nil },
	"modelopt":           (*quantConfig).modelopt,
	"compressed-tensors": (*quantConfig).compressedTensors,
	"gptq":               (*quantConfig).gptq,
	"awq":                (*quantConfig).awq,
}

// readQuantConfig reads quantization_config. A method or format that is not
// known is refused.
func readQuantConfig(cfg *arch.Config) (*quantConfig, error) {
	c := &quantConfig{}
	q := cfg.Object("quantization_config")
	if q == nil {
		q = cfg.Object("compression_config") // of older compressed-tensors
	}
	if q == nil {
		return c, nil
	}
	c.method, _ = q["quant_method"].(string)
	read := methods[c.method]
	if read == nil {
		return nil, formatError("config.json: quantization_config.quant_method is %s, which is not supported (supported: %s)",
			showValue(q["quant_method"]), strings.Join(slices.Sorted(maps.Keys(methods)), ", "))
	}
	return c, read(c, q)
}

// allows checks that tensors of a family agree with the config.
func (c *quantConfig) allows(f family, tensor string) error {
	if c.method == "" || slices.Contains(c.families, f) {
		return nil
	}
	return formatError("config.json: quantization_config.quant_method is %q, but tensor %q is stored as %s", c.method, tensor, f)
}

func (c *quantConfig) fp8(q map[string]any) error {
	c.families = []family{familyScaled}
	return c.setBlock("weight_block_size", q["weight_block_size"])
}

func (c *quantConfig) modelopt(q map[string]any) error {
	switch algo, _ := q["quant_algo"].(string); algo {
	case "FP8", "FP8_PER_CHANNEL_PER_TOKEN":
		c.families = []family{familyScaled}
	case "NVFP4", "W4A16_NVFP4":
		c.families = []family{familyNVFP4}
	case "", "MIXED_PRECISION":
		c.families = []family{familyScaled, familyNVFP4}
	default:
		return formatError("config.json: quantization_config.quant_algo is %q, which is not supported", algo)
	}
	return nil
}

// compressedFormats are the formats of compressed-tensors (config/format.py).
var compressedFormats = map[string]family{
	"float-quantized": familyScaled, "naive-quantized": familyScaled, "int-quantized": familyScaled,
	"pack-quantized": familyInt4, "nvfp4-pack-quantized": familyNVFP4, "mxfp4-pack-quantized": familyMXFP4,
}

func (c *quantConfig) compressedTensors(q map[string]any) error {
	format, _ := q["format"].(string)
	groups, _ := q["config_groups"].(map[string]any)
	if format == "mixed-precision" {
		for _, name := range slices.Sorted(maps.Keys(groups)) {
			g, _ := groups[name].(map[string]any)
			if err := c.addFormat("config_groups."+name+".format", g["format"]); err != nil {
				return err
			}
		}
	} else if err := c.addFormat("format", q["format"]); err != nil {
		return err
	}
	for _, name := range slices.Sorted(maps.Keys(groups)) {
		g, _ := groups[name].(map[string]any)
		w, _ := g["weights"].(map[string]any)
		if err := c.readGroup("config_groups."+name+".weights.", w); err != nil {
			return err
		}
	}
	return nil
}

func (c *quantConfig) addFormat(key string, v any) error {
	name, _ := v.(string)
	f, ok := compressedFormats[name]
	if !ok {
		return formatError("config.json: quantization_config.%s is %s, which is not supported (supported: %s)",
			key, showValue(v), strings.Join(slices.Sorted(maps.Keys(compressedFormats)), ", "))
	}
	c.families = append(c.families, f)
	return nil
}

// readGroup reads the settings of the weights of one group of layers.
func (c *quantConfig) readGroup(key string, w map[string]any) error {
	if bits, ok := integer(w["num_bits"]); ok && bits != 4 && slices.Contains(c.families, familyInt4) && len(c.families) == 1 {
		return formatError("config.json: quantization_config.%snum_bits is %d; only 4 is supported for packed weights", key, bits)
	}
	if size, ok := integer(w["group_size"]); ok {
		c.groups = append(c.groups, size)
	}
	return c.setBlock(key+"block_structure", w["block_structure"])
}

func (c *quantConfig) gptq(q map[string]any) error {
	c.families = []family{familyGPTQ}
	c.format, _ = q["checkpoint_format"].(string)
	switch c.format {
	case "", "gptq", "gptq_v2":
	default:
		return formatError("config.json: quantization_config.checkpoint_format is %q, wanted \"gptq\" or \"gptq_v2\"", c.format)
	}
	return c.fourBits(q)
}

func (c *quantConfig) awq(q map[string]any) error {
	c.families = []family{familyAWQ}
	if v, _ := q["version"].(string); v != "" && !strings.EqualFold(v, "gemm") {
		return formatError("config.json: quantization_config.version is %q; only the form \"gemm\" is supported", v)
	}
	return c.fourBits(q)
}

// fourBits reads what GPTQ and AWQ have in common.
func (c *quantConfig) fourBits(q map[string]any) error {
	if bits, ok := integer(q["bits"]); ok && bits != 4 {
		return formatError("config.json: quantization_config.bits is %d; only 4 is supported", bits)
	}
	if size, ok := integer(q["group_size"]); ok {
		c.groups = []int64{size}
	}
	return nil
}

// setBlock reads a pair of numbers, a list or of the form "128x128".
func (c *quantConfig) setBlock(key string, v any) error {
	if v == nil {
		return nil
	}
	list, _ := v.([]any)
	if s, ok := v.(string); ok {
		for _, part := range strings.Split(s, "x") {
			if n, err := strconv.ParseInt(part, 10, 64); err == nil {
				list = append(list, n)
			}
		}
	}
	const limit = 1 << 20
	ok := len(list) == 2
	for i := 0; ok && i < 2; i++ {
		c.block[i], ok = integer(list[i])
		ok = ok && c.block[i] >= 1 && c.block[i] <= limit
	}
	if !ok {
		return formatError("config.json: quantization_config.%s is %s, wanted two positive numbers", key, showValue(v))
	}
	return nil
}

// integer reads a whole number of a JSON document.
func integer(v any) (int64, bool) {
	switch v := v.(type) {
	case int64:
		return v, true
	case interface{ Int64() (int64, error) }:
		n, err := v.Int64()
		return n, err == nil
	}
	return 0, false
}

// showValue renders a setting for an error message.
func showValue(v any) string {
	switch v := v.(type) {
	case nil:
		return "missing"
	case string:
		return fmt.Sprintf("%.100q", v)
	}
	return fmt.Sprintf("%.100v", v)
}

// numbers lists numbers for an error message.
func numbers(list []int64) string {
	out := make([]string, len(list))
	for i, n := range list {
		out[i] = strconv.FormatInt(n, 10)
	}
	return strings.Join(out, " and ")
}
