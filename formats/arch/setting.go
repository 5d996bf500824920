package arch

import (
	"encoding/json"
	"fmt"
	"math"
	"slices"
)

// Setting says where one hyper-parameter comes from in config.json. A family
// lists its settings in the order in which llama.cpp's converter writes them.
type Setting struct {
	// Key is the GGUF key without the architecture prefix, or keyFileType.
	Key string
	// From are the accepted config.json paths; the first present wins. With
	// Sum their values are added instead, and all must be present.
	From []string
	Sum  bool
	// Value, when not nil, is used instead of (or, with From, in absence of)
	// a value of the file: int, float64, string or bool.
	Value any
	// Derive, when not nil, computes the value in absence of one in the file,
	// from the settings before this one.
	Derive func(*Params) int
	// Compute, when not nil, takes the value out of config.json by code, for
	// what From cannot say; nil without error means that there is none.
	Compute func(cfg *Config, p *Params) (any, error)
	// Times multiplies a number (0 means 1).
	Times float64
	// Enum maps the file's strings; any other string is refused.
	Enum map[string]any
	// Optional: absent in the file means absent in the metadata.
	Optional bool
	// When limits the setting to configs whose path has one of the values.
	When *Condition
	// Silent settings are derived by readers as they are here: not written.
	Silent bool
	// Early settings are written right behind general.architecture: llama.cpp's
	// converter sets their keys while it goes through the tensors.
	Early bool
	// OmitZero leaves false, 0 and "" out of the metadata, Omit this value: what
	// readers of the file take for granted. A family's Defaults have it.
	OmitZero bool
	Omit     any
}

// omits reports whether v is not written.
func (s *Setting) omits(v any) bool {
	if s.OmitZero && (v == false || v == 0.0 || v == 0 || v == "") {
		return true
	}
	if f, ok := asFloat(v); ok && s.Omit != nil {
		want, _ := asFloat(s.Omit)
		return f == want
	}
	return s.Omit != nil && v == s.Omit
}

// Condition holds when the string at Path is one of In.
type Condition struct {
	Path string
	In   []string
}

func (c *Condition) holds(cfg *Config) bool {
	return c == nil || slices.Contains(c.In, cfg.Text(c.Path))
}

// keyFileType marks the place of general.file_type among the settings: it
// belongs to the output, not to the model.
const keyFileType = ""

// resolve computes the value for the setting, ok false when there is none.
func (s *Setting) resolve(cfg *Config, p *Params) (v any, ok bool, err error) {
	if !s.When.holds(cfg) {
		return nil, false, nil
	}
	if s.Sum {
		return s.sum(cfg)
	}
	if s.Compute != nil {
		v, err := s.Compute(cfg, p)
		return v, err == nil && v != nil, err
	}
	for _, path := range s.From {
		raw, ok := cfg.lookup(path)
		if !ok {
			continue
		}
		v, err := s.convert(cfg, path, raw)
		return v, err == nil, err
	}
	switch {
	case s.Value != nil:
		return s.Value, true, nil
	case s.Derive != nil:
		return s.Derive(p), true, nil
	case s.Optional:
		return nil, false, nil
	}
	return nil, false, configError("%s is missing", userName(s.From[0]))
}

func (s *Setting) sum(cfg *Config) (any, bool, error) {
	total := 0.0
	for _, path := range s.From {
		f, ok, err := cfg.number(path)
		if err != nil {
			return nil, false, err
		}
		if !ok {
			return nil, false, configError("%s is missing", userName(path))
		}
		total += f
	}
	return total, true, nil
}

func (s *Setting) convert(cfg *Config, path string, raw any) (any, error) {
	if s.Enum != nil {
		str, isText := raw.(string)
		v, ok := s.Enum[str]
		if !isText || !ok {
			return nil, configError("%s is %s, which this family's description does not cover (known: %s)", userName(path), show(raw), enumNames(s.Enum))
		}
		return v, nil
	}
	switch list := raw.(type) {
	case []any:
		return convertList(path, list)
	case json.Number:
		f, _, err := cfg.number(path)
		if s.Times != 0 {
			f *= s.Times
		}
		return f, err
	case bool, string:
		return raw, nil
	}
	return nil, configError("%s is %s, wanted a number", userName(path), show(raw))
}

// convertList returns a list of numbers or of booleans.
func convertList(path string, list []any) (any, error) {
	var numbers []int
	var flags []bool
	for _, v := range list {
		switch v := v.(type) {
		case json.Number:
			n, err := v.Int64()
			if err != nil || n < 0 || n > maxCount {
				return nil, configError("%s holds %s, wanted whole numbers from 0 to %d", userName(path), v, int64(maxCount))
			}
			numbers = append(numbers, int(n))
		case bool:
			flags = append(flags, v)
		}
	}
	switch len(list) {
	case len(numbers):
		return numbers, nil
	case len(flags):
		return flags, nil
	}
	return nil, configError("%s is %s, wanted a list of numbers", userName(path), show(list))
}

func enumNames(m map[string]any) string {
	var names []string
	for k := range m {
		if k != "" {
			names = append(names, k)
		}
	}
	slices.Sort(names)
	return fmt.Sprint(names)
}

// store puts a resolved value into p, checking type and range.
func (s *Setting) store(p *Params, v any) error {
	name := s.Key
	if len(s.From) > 0 {
		name = userName(s.From[0])
	}
	switch dst := fields[s.Key](p).(type) {
	case *int:
		n, ok := asInt(v)
		if !ok || n < 0 || n > maxCount {
			return configError("%s is %v, wanted a whole number from 0 to %d", name, v, int64(maxCount))
		}
		*dst = n
	case perBlock:
		if list, ok := v.([]int); ok {
			dst.set(list)
			break
		}
		n, ok := asInt(v)
		if !ok || n < 0 || n > maxCount {
			return configError("%s is %v, wanted a whole number from 0 to %d", name, v, int64(maxCount))
		}
		*dst.all = n
	case *[]int:
		list, ok := v.([]int)
		if !ok {
			return configError("%s is %v, wanted a list of numbers", name, v)
		}
		*dst = list
	case *[]bool:
		list, ok := v.([]bool)
		if !ok {
			return configError("%s is %v, wanted a list of true and false", name, v)
		}
		*dst = list
	case *[]float32:
		list, ok := v.([]float32)
		if !ok {
			return configError("%s is %v, wanted a list of numbers", name, v)
		}
		*dst = list
	case *Gating:
		n, ok := asInt(v)
		if !ok {
			return configError("%s is %v, wanted a gating function", name, v)
		}
		*dst = Gating(n)
	case *float32:
		f, ok := asFloat(v)
		if !ok || math.Abs(f) > math.MaxFloat32 {
			return configError("%s is %v, wanted a number", name, v)
		}
		*dst = float32(f)
	case *bool:
		b, ok := v.(bool)
		if !ok {
			return configError("%s is %v, wanted true or false", name, v)
		}
		*dst = b
	case *string:
		str, ok := v.(string)
		if !ok {
			return configError("%s is %v, wanted a string", name, v)
		}
		*dst = str
	}
	return nil
}

func asInt(v any) (int, bool) {
	switch n := v.(type) {
	case int:
		return n, true
	case Gating:
		return int(n), true
	case float64:
		if n == math.Trunc(n) && math.Abs(n) < 1<<53 {
			return int(n), true
		}
	}
	return 0, false
}

func asFloat(v any) (float64, bool) {
	switch n := v.(type) {
	case int:
		return float64(n), true
	case float64:
		return n, true
	}
	return 0, false
}

// Constructors that keep the family tables short.

func req(key string, from ...string) Setting { return Setting{Key: key, From: from} }

func opt(key string, from ...string) Setting { return Setting{Key: key, From: from, Optional: true} }

func def(key string, value any, from ...string) Setting {
	return Setting{Key: key, From: from, Value: value}
}

func (s Setting) when(path string, in ...string) Setting {
	s.When = &Condition{path, in}
	return s
}
