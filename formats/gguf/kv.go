package gguf

import (
	"fmt"
	"maps"
	"math"
	"slices"
)

// ValueType is the type number of a metadata value (ggml docs/gguf.md).
type ValueType uint32

// The value types of GGUF version 2 and 3.
const (
	TypeUint8 ValueType = iota
	TypeInt8
	TypeUint16
	TypeInt16
	TypeUint32
	TypeInt32
	TypeFloat32
	TypeBool
	TypeString
	TypeArray
	TypeUint64
	TypeInt64
	TypeFloat64
)

var valueTypeNames = [...]string{"UINT8", "INT8", "UINT16", "INT16", "UINT32", "INT32", "FLOAT32", "BOOL", "STRING", "ARRAY", "UINT64", "INT64", "FLOAT64"}

// String returns the specification's name, such as "UINT32".
func (t ValueType) String() string {
	if int(t) < len(valueTypeNames) {
		return valueTypeNames[t]
	}
	return fmt.Sprintf("type(%d)", uint32(t))
}

// Nested is one element of an array of arrays: again a slice of a scalar type
// or []Nested.
type Nested struct{ Value any }

// TypeOf returns the value type of v and, for arrays, the element type.
// ok is false when v is not a metadata value.
func TypeOf(v any) (t, elem ValueType, ok bool) {
	switch v.(type) {
	case uint8:
		return TypeUint8, 0, true
	case int8:
		return TypeInt8, 0, true
	case uint16:
		return TypeUint16, 0, true
	case int16:
		return TypeInt16, 0, true
	case uint32:
		return TypeUint32, 0, true
	case int32:
		return TypeInt32, 0, true
	case float32:
		return TypeFloat32, 0, true
	case bool:
		return TypeBool, 0, true
	case string:
		return TypeString, 0, true
	case uint64:
		return TypeUint64, 0, true
	case int64:
		return TypeInt64, 0, true
	case float64:
		return TypeFloat64, 0, true
	case []uint8:
		return TypeArray, TypeUint8, true
	case []int8:
		return TypeArray, TypeInt8, true
	case []uint16:
		return TypeArray, TypeUint16, true
	case []int16:
		return TypeArray, TypeInt16, true
	case []uint32:
		return TypeArray, TypeUint32, true
	case []int32:
		return TypeArray, TypeInt32, true
	case []float32:
		return TypeArray, TypeFloat32, true
	case []bool:
		return TypeArray, TypeBool, true
	case []string:
		return TypeArray, TypeString, true
	case []uint64:
		return TypeArray, TypeUint64, true
	case []int64:
		return TypeArray, TypeInt64, true
	case []float64:
		return TypeArray, TypeFloat64, true
	case []Nested:
		return TypeArray, TypeArray, true
	}
	return 0, 0, false
}

// Metadata is an ordered set of key/value pairs. A value is held as the Go
// value of its type: uint8, int8, uint16, int16, uint32, int32, float32, bool,
// string, uint64, int64, float64, or for arrays a slice of one of these
// ([]string, []int32, …); an array of arrays is a []Nested. The zero value is empty and
// ready for use.
type Metadata struct {
	keys   []string
	values map[string]any
}

// Len returns the number of pairs.
func (m *Metadata) Len() int { return len(m.keys) }

// Keys returns the keys in file order. Callers must not change it.
func (m *Metadata) Keys() []string { return m.keys }

// Get returns the value under key.
func (m *Metadata) Get(key string) (any, bool) { v, ok := m.values[key]; return v, ok }

// Set stores a value: under its present place if the key exists, else at the
// end. It panics when v is not a metadata value, which is a programming error.
func (m *Metadata) Set(key string, v any) {
	if _, _, ok := TypeOf(v); !ok {
		panic(fmt.Sprintf("gguf: %T is not a metadata value (key %q)", v, key))
	}
	if m.values == nil {
		m.values = map[string]any{}
	}
	if _, ok := m.values[key]; !ok {
		m.keys = append(m.keys, key)
	}
	m.values[key] = v
}

// SetAfter stores a value like Set; a new key gets its place behind another one,
// or at the end where that is missing.
func (m *Metadata) SetAfter(before, key string, v any) {
	_, had := m.Get(key)
	m.Set(key, v)
	if i := slices.Index(m.keys, before); i >= 0 && !had {
		m.keys = slices.Insert(slices.Clone(m.keys[:len(m.keys)-1]), i+1, key)
	}
}

// Delete removes a key, if present.
func (m *Metadata) Delete(key string) {
	if _, ok := m.values[key]; !ok {
		return
	}
	delete(m.values, key)
	keys := make([]string, 0, len(m.keys)-1)
	for _, k := range m.keys {
		if k != key {
			keys = append(keys, k)
		}
	}
	m.keys = keys
}

// Clone returns an independent copy; array values are shared.
func (m *Metadata) Clone() *Metadata {
	c := &Metadata{keys: append([]string(nil), m.keys...), values: make(map[string]any, len(m.values))}
	maps.Copy(c.values, m.values)
	return c
}

// String returns a string value; ok is false when absent or of another type.
func (m *Metadata) String(key string) (string, bool) { s, ok := m.values[key].(string); return s, ok }

// Bool returns a boolean value; ok is false when absent or of another type.
func (m *Metadata) Bool(key string) (bool, bool) { b, ok := m.values[key].(bool); return b, ok }

// Int returns any integer value that fits an int64.
func (m *Metadata) Int(key string) (int64, bool) {
	switch v := m.values[key].(type) {
	case uint8:
		return int64(v), true
	case int8:
		return int64(v), true
	case uint16:
		return int64(v), true
	case int16:
		return int64(v), true
	case uint32:
		return int64(v), true
	case int32:
		return int64(v), true
	case uint64:
		return int64(v), v <= math.MaxInt64
	case int64:
		return v, true
	}
	return 0, false
}

// Float returns a floating point value (FLOAT32 or FLOAT64).
func (m *Metadata) Float(key string) (float64, bool) {
	switch v := m.values[key].(type) {
	case float32:
		return float64(v), true
	case float64:
		return v, true
	}
	return 0, false
}

// Strings returns an array of strings.
func (m *Metadata) Strings(key string) ([]string, bool) {
	s, ok := m.values[key].([]string)
	return s, ok
}

// Ints returns an array of integers of up to 32 bits.
func (m *Metadata) Ints(key string) ([]int64, bool) {
	switch v := m.values[key].(type) {
	case []int32:
		return widen(v), true
	case []uint32:
		return widen(v), true
	}
	return nil, false
}

func widen[T int32 | uint32](list []T) []int64 {
	out := make([]int64, len(list))
	for i, n := range list {
		out[i] = int64(n)
	}
	return out
}

// Well-known keys that more than one package reads or writes. Keys of one
// family's hyper-parameters live in formats/arch, those of the tokenizer in
// formats/tokenizer.
const (
	KeyArchitecture        = "general.architecture"
	KeyGeneralType         = "general.type"
	KeyName                = "general.name"
	KeySizeLabel           = "general.size_label"
	KeyAlignment           = "general.alignment"
	KeyFileType            = "general.file_type"
	KeyQuantizationVersion = "general.quantization_version"
	KeySplitNo             = "split.no"
	KeySplitCount          = "split.count"
	KeySplitTensorsCount   = "split.tensors.count"
)

// QuantizationVersion is the version of the quantized formats (ggml GGML_QNT_VERSION).
const QuantizationVersion = uint32(2)

// DefaultAlignment is the alignment of tensor data when general.alignment is absent.
const DefaultAlignment = 32
