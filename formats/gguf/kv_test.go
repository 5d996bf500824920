package gguf

import (
	"fmt"
	"math"
	"slices"
	"strings"
	"testing"
)

func TestMetadataOrderAndTypes(t *testing.T) {
	m := &Metadata{}
	if _, ok := m.Get("absent"); ok || m.Len() != 0 {
		t.Error("the zero value is not empty")
	}
	m.Set("a", uint8(1))
	m.Set("b", "text")
	m.Set("c", []string{"x"})
	m.Set("a", int64(-2))
	c := m.Clone()
	m.Delete("b")
	m.Delete("absent")
	m.Set("b", float32(0.5))
	if got := m.Keys(); !slices.Equal(got, []string{"a", "c", "b"}) {
		t.Errorf("keys %q", got)
	}
	if got := c.Keys(); !slices.Equal(got, []string{"a", "b", "c"}) {
		t.Errorf("the copy's keys are %q", got)
	}
	if s, ok := c.String("b"); s != "text" || !ok {
		t.Errorf("the copy's b is %q, %v", s, ok)
	}
	if _, ok := m.String("b"); ok {
		t.Error("a number was taken for a string")
	}
	if s, ok := m.Strings("c"); !ok || len(s) != 1 {
		t.Errorf("strings %q, %v", s, ok)
	}
}

func TestMetadataNumbers(t *testing.T) {
	m := &Metadata{}
	for _, v := range []any{uint8(7), int8(7), uint16(7), int16(7), uint32(7), int32(7), uint64(7), int64(7)} {
		m.Set("n", v)
		if n, ok := m.Int("n"); n != 7 || !ok {
			t.Errorf("%T: Int is %d, %v", v, n, ok)
		}
	}
	m.Set("n", uint64(math.MaxUint64))
	if _, ok := m.Int("n"); ok {
		t.Error("2^64-1 was taken for an int64")
	}
	m.Set("n", true)
	if _, ok := m.Int("n"); ok {
		t.Error("a bool was taken for a number")
	}
	if b, ok := m.Bool("n"); !b || !ok {
		t.Error("Bool does not return the bool")
	}
	for _, v := range []any{float32(2.5), 2.5} {
		m.Set("f", v)
		if f, ok := m.Float("f"); f != 2.5 || !ok {
			t.Errorf("%T: Float is %v, %v", v, f, ok)
		}
	}
	if _, ok := m.Float("n"); ok {
		t.Error("a bool was taken for a float")
	}
}

func TestSetPanicsOnForeignTypes(t *testing.T) {
	defer func() {
		if r := recover(); r == nil || !strings.Contains(r.(string), "complex128") {
			t.Errorf("recovered %v, want a panic naming the type", r)
		}
	}()
	(&Metadata{}).Set("k", 1i)
}

func TestValueTypeNames(t *testing.T) {
	for v, want := range map[any]string{uint8(0): "UINT8", true: "BOOL", "": "STRING", float64(0): "FLOAT64"} {
		if vt, _, ok := TypeOf(v); !ok || vt.String() != want {
			t.Errorf("TypeOf(%T) = %s, %v, want %s", v, vt, ok, want)
		}
	}
	for _, c := range []struct {
		v    any
		want ValueType
	}{{[]int8{}, TypeInt8}, {[]uint16{}, TypeUint16}, {[]uint64{}, TypeUint64}, {[]int64{}, TypeInt64}, {[]float32{}, TypeFloat32}, {[]Nested{}, TypeArray}} {
		if vt, elem, ok := TypeOf(c.v); !ok || vt != TypeArray || elem != c.want {
			t.Errorf("TypeOf(%T) = %s of %s, %v", c.v, vt, elem, ok)
		}
	}
	if s := ValueType(13).String(); s != "type(13)" {
		t.Errorf("type 13 is called %q", s)
	}
}

// Sizes of one block as ggml-common.h asserts them.
func TestTypes(t *testing.T) {
	for name, want := range map[string][2]int{"Q4_K": {256, 144}, "q6_k": {256, 210}, "Q8_0": {32, 34}, "IQ2_XXS": {256, 66}, "MXFP4": {32, 17}, "bf16": {1, 2}} {
		typ, ok := ParseType(name)
		if !ok || typ.BlockLen() != want[0] || typ.BlockBytes() != want[1] {
			t.Errorf("%s: %v, %d elements, %d bytes, want %d", name, ok, typ.BlockLen(), typ.BlockBytes(), want)
		}
		if typ.Quantized() != (want[0] > 1) || typ.RowBytes(512) != int64(512/want[0]*want[1]) {
			t.Errorf("%s: quantized %v, row bytes %d", name, typ.Quantized(), typ.RowBytes(512))
		}
		if b, err := typ.MarshalText(); err != nil || !strings.EqualFold(string(b), name) {
			t.Errorf("%s is written %q, error %v", name, b, err)
		}
	}
	if _, ok := ParseType("Q9_K"); ok || Type(4).Valid() || Type(99).String() != "type(99)" {
		t.Error("unknown types are taken for known ones")
	}
}

func TestCheckShape(t *testing.T) {
	for _, c := range []struct {
		typ   Type
		shape []int64
		want  string // "" means valid
	}{
		{F32, nil, ""}, {F32, []int64{0}, ""}, {Q4_K, []int64{512, 0, 3}, ""}, {Q8_0, []int64{0, 5}, ""},
		{F64, []int64{1 << 30, 1 << 28}, ""},
		{F32, []int64{-1}, "negative"},
		{I8, []int64{1 << 31, 1 << 31}, "overflows"},
		{I8, []int64{1 << 40, 0, 1 << 40}, "overflows"},
		{Q4_K, []int64{128}, "multiple of the Q4_K block size 256"},
		{33, []int64{32}, "Q4_0_8_8"},
		{200, []int64{32}, "unknown type 200"},
	} {
		ti := TensorInfo{"t", c.typ, c.shape}
		err := ti.CheckShape()
		if (err == nil) != (c.want == "") || err != nil && !strings.Contains(err.Error(), c.want) {
			t.Errorf("%v: error %v, want %q", ti, err, c.want)
		}
	}
}

func TestSetAfter(t *testing.T) {
	var m Metadata
	for _, key := range []string{"a", "b", "c"} {
		m.Set(key, "old")
	}
	other := m.Clone()
	m.SetAfter("a", "x", "new")
	m.SetAfter("nowhere", "y", "new")
	m.SetAfter("a", "c", "new")
	if got := fmt.Sprint(m.Keys(), other.Keys()); got != "[a x b c y] [a b c]" {
		t.Errorf("keys %s", got)
	}
	if v, _ := m.String("c"); v != "new" {
		t.Errorf("c is %q", v)
	}
}
