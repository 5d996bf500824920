package arch

import (
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"math"
	"regexp"
	"strings"

	"github.com/winnow-moe/winnow/formats/strictjson"
)

// ErrUnsupported is wrapped by every refusal of a config.json or of GGUF
// metadata: invalid, contradictory, or beyond what the family's description
// covers.
var ErrUnsupported = errors.New("unsupported model")

// ErrUnknownFamily is wrapped by the refusal of a config.json whose class
// belongs to no family. It matches ErrUnsupported too.
var ErrUnknownFamily = fmt.Errorf("%w: config.json", ErrUnsupported)

// Config is a checkpoint's config.json, with the parts that newer and older
// library versions spell differently brought to one spelling: a text_config
// object is merged over the top level, and rope_parameters (or rope_scaling
// and rope_theta) is found under "rope.…".
type Config struct {
	values map[string]any
}

// maxConfigBytes bounds a config.json; released ones are below 100 kB.
const maxConfigBytes = 64 << 20

// ParseConfig reads the text of a config.json.
func ParseConfig(data []byte) (*Config, error) {
	if len(data) > maxConfigBytes {
		return nil, configError("the file has %d bytes, more than the limit of %d", len(data), maxConfigBytes)
	}
	v, err := strictjson.Decode(data)
	if err != nil {
		return nil, configError("%v", err)
	}
	top, ok := v.(map[string]any)
	if !ok {
		return nil, configError("the top level is not a JSON object")
	}
	if text, ok := top["text_config"].(map[string]any); ok {
		maps.Copy(top, text)
	}
	if top["rope"], err = ropeSettings(top); err != nil {
		return nil, err
	}
	return &Config{values: top}, nil
}

// ropeSettings merges the spellings of the rotary embedding's settings.
func ropeSettings(top map[string]any) (map[string]any, error) {
	rope := map[string]any{}
	for _, key := range []string{"rope_scaling", "rope_parameters"} {
		m, ok := top[key].(map[string]any)
		if !ok && top[key] != nil {
			return nil, configError("%s is %s, wanted an object", key, show(top[key]))
		}
		maps.Copy(rope, m)
	}
	if rope["rope_type"] == nil {
		rope["rope_type"] = rope["type"]
	}
	if rope["rope_type"] == nil && rope["factor"] != nil {
		return nil, configError("rope_scaling has the factor %s, but no rope_type", show(rope["factor"]))
	}
	for _, k := range []string{"rope_theta", "partial_rotary_factor", "original_max_position_embeddings"} {
		if _, ok := rope[k]; !ok && top[k] != nil {
			rope[k] = top[k]
		}
	}
	return rope, nil
}

func configError(format string, args ...any) error {
	return fmt.Errorf("%w: config.json: "+format, append([]any{ErrUnsupported}, args...)...)
}

// lookup finds a value by a dotted path. Absent and null are the same.
func (c *Config) lookup(path string) (any, bool) {
	var v any = c.values
	for _, k := range strings.Split(path, ".") {
		m, ok := v.(map[string]any)
		if !ok {
			return nil, false
		}
		if v, ok = m[k]; !ok || v == nil {
			return nil, false
		}
	}
	return v, true
}

// userName is the name of a setting as the user finds it in the file.
func userName(path string) string {
	if rest, ok := strings.CutPrefix(path, "rope."); ok {
		if rest == "rope_theta" {
			return rest
		}
		return "rope_scaling." + rest
	}
	return path
}

// Architecture returns architectures[0], the class that selects the family.
func (c *Config) Architecture() (string, error) {
	v, ok := c.lookup("architectures")
	if !ok {
		return "", configError("architectures is missing, so the model family is unknown (model_type %v)", c.values["model_type"])
	}
	list, ok := v.([]any)
	if !ok || len(list) == 0 {
		return "", configError("architectures is %s, wanted a list with one class name", show(v))
	}
	s, ok := list[0].(string)
	if !ok {
		return "", configError("architectures[0] is %s, wanted a class name", show(list[0]))
	}
	return s, nil
}

// Object returns a nested object such as quantization_config, or nil.
func (c *Config) Object(path string) map[string]any {
	v, _ := c.lookup(path)
	m, _ := v.(map[string]any)
	return m
}

// list returns a list setting and whether it is present.
func (c *Config) list(path string) ([]any, bool) {
	v, _ := c.lookup(path)
	list, ok := v.([]any)
	return list, ok
}

// Text returns a string setting, or "".
func (c *Config) Text(path string) string {
	v, _ := c.lookup(path)
	s, _ := v.(string)
	return s
}

// Bool returns a boolean setting and whether it is present.
func (c *Config) Bool(path string) (value, ok bool) {
	v, _ := c.lookup(path)
	value, ok = v.(bool)
	return value, ok
}

// number returns a numeric setting.
func (c *Config) number(path string) (float64, bool, error) {
	v, ok := c.lookup(path)
	if !ok {
		return 0, false, nil
	}
	n, isNum := v.(json.Number)
	if !isNum {
		return 0, false, configError("%s is %s, wanted a number", userName(path), show(v))
	}
	f, err := n.Float64()
	if err != nil || math.IsInf(f, 0) {
		return 0, false, configError("%s is %s, which is out of range", userName(path), show(v))
	}
	return f, true, nil
}

// numbers returns a setting that is a list of numbers.
func (c *Config) numbers(path string) ([]float32, error) {
	list, ok := c.list(path)
	if !ok {
		return nil, configError("%s is missing or not a list", userName(path))
	}
	out := make([]float32, len(list))
	for i, v := range list {
		n, isNum := v.(json.Number)
		f, err := n.Float64()
		if !isNum || err != nil || !(math.Abs(f) <= math.MaxFloat32) {
			return nil, configError("%s holds %s, wanted numbers", userName(path), show(v))
		}
		out[i] = float32(f)
	}
	return out, nil
}

// numberOr returns a numeric setting, or another number where it is absent.
func (c *Config) numberOr(path string, other float64) (float64, error) {
	f, ok, err := c.number(path)
	if !ok {
		f = other
	}
	return f, err
}

// show renders a JSON value briefly for an error message.
func show(v any) string {
	b, err := json.Marshal(v)
	if err != nil {
		return "unprintable"
	}
	if len(b) > 60 {
		b = append(b[:57], "..."...)
	}
	return string(b)
}

// settingWord matches the names of settings in a formula such as
// "num_attention_heads*head_dim".
var settingWord = regexp.MustCompile(`[a-z][a-z0-9_]+`)

// settingKeys are the keys of the settings that families name differently, by
// the names that dimensions have for them. Where no setting has the first key
// the next counts.
var settingKeys = map[string][]string{
	"n_routed_experts":      {KeyExpertCount},
	"moe_intermediate_size": {KeyExpertFF, KeyFeedForward},
	"n_shared_experts":      {KeyExpertShared},
}

// SettingName turns names of settings, as dimensions have them, to those that
// this model's config.json uses: the expert count of one family is
// n_routed_experts, of others num_experts or num_local_experts.
func (m *Model) SettingName(formula string) string {
	if m.config == nil {
		return formula
	}
	return settingWord.ReplaceAllStringFunc(formula, func(name string) string {
		if _, ok := m.config.lookup(name); ok {
			return name
		}
		for _, key := range settingKeys[name] {
			for _, s := range m.Family.Settings {
				if s.Key != key {
					continue
				}
				for _, path := range s.From {
					if _, ok := m.config.lookup(path); ok {
						return userName(path)
					}
				}
			}
		}
		return name
	})
}
