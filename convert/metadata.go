package convert

import (
	"encoding/json"
	"fmt"
	"math"
	"strings"

	"github.com/winnow-moe/winnow/formats/arch"
	"github.com/winnow-moe/winnow/formats/gguf"
)

// sampling maps generation_config.json settings to recommended sampler keys,
// in the order of gguf-py's metadata.py. Later names of a list are fallbacks.
var sampling = []struct {
	key  string
	from []string
	kind gguf.ValueType
}{
	{"general.sampling.sequence", []string{"sequence"}, gguf.TypeString},
	{"general.sampling.top_k", []string{"top_k"}, gguf.TypeInt32},
	{"general.sampling.top_p", []string{"top_p"}, gguf.TypeFloat32},
	{"general.sampling.min_p", []string{"min_p"}, gguf.TypeFloat32},
	{"general.sampling.xtc_probability", []string{"xtc_probability"}, gguf.TypeFloat32},
	{"general.sampling.xtc_threshold", []string{"xtc_threshold"}, gguf.TypeFloat32},
	{"general.sampling.temp", []string{"temperature"}, gguf.TypeFloat32},
	{"general.sampling.penalty_last_n", []string{"penalty_last_n"}, gguf.TypeInt32},
	{"general.sampling.penalty_repeat", []string{"penalty_repeat", "repetition_penalty"}, gguf.TypeFloat32},
	{"general.sampling.mirostat", []string{"mirostat"}, gguf.TypeInt32},
	{"general.sampling.mirostat_tau", []string{"mirostat_tau"}, gguf.TypeFloat32},
	{"general.sampling.mirostat_eta", []string{"mirostat_eta"}, gguf.TypeFloat32},
}

// metadata makes the keys of an output in the order in which llama.cpp's
// converter writes them.
func (c *Checkpoint) metadata(fileType uint32) *gguf.Metadata {
	md := c.general(c.Model, "model", c.id, fileType)
	if c.expertsBefore > 0 {
		md.SetAfter(c.Model.Family.Arch+"."+arch.KeyExpertCount, arch.KeyExpertsBefore, uint32(c.expertsBefore))
	}
	if c.merged != "" {
		md.SetAfter(arch.KeyExpertsBefore, arch.KeyMerged, c.merged)
	}
	c.Vocab.WriteTo(md)
	return md
}

// general makes the keys that texts and vision towers have.
func (c *Checkpoint) general(m *arch.Model, kind string, id *identity, fileType uint32) *gguf.Metadata {
	md := &gguf.Metadata{}
	md.Set(gguf.KeyArchitecture, m.Family.Arch)
	m.WriteEarlyMetadata(md)
	md.Set(gguf.KeyGeneralType, kind)
	for _, s := range sampling {
		if v, ok := samplingValue(c.generation, s.from, s.kind); ok {
			md.Set(s.key, v)
		}
	}
	id.writeTo(md)
	m.WriteMetadata(md, fileType)
	md.Set(gguf.KeyQuantizationVersion, gguf.QuantizationVersion)
	return md
}

func samplingValue(gen map[string]any, from []string, kind gguf.ValueType) (any, bool) {
	for _, name := range from {
		switch v := gen[name].(type) {
		case json.Number:
			f, err := v.Float64()
			switch {
			case err != nil:
			case kind == gguf.TypeFloat32:
				return float32(f), true
			case kind == gguf.TypeInt32 && f == math.Trunc(f) && math.Abs(f) <= math.MaxInt32:
				return int32(f), true
			}
		case string:
			if kind == gguf.TypeString {
				return v, true
			}
		}
	}
	return nil, false
}

// sizeLabel names the parameter count: for experts "<experts>x<count of one
// expert's share plus everything shared>" (gguf-py utility.size_label).
func sizeLabel(tensors []Tensor) string {
	var total, shared, expert, experts, stacks int64
	for i := range tensors {
		info := gguf.TensorInfo{Shape: tensors[i].Shape}
		n := info.Elements()
		total += n
		if role := arch.ParseName(tensors[i].Name).Role; strings.HasSuffix(string(role), "_exps") && len(tensors[i].Shape) >= 3 {
			e := tensors[i].Shape[2]
			expert += n / e
			experts += e
			stacks++
		} else {
			shared += n
		}
	}
	if stacks > 0 {
		return fmt.Sprintf("%dx%s", experts/stacks, roundedCount(shared+expert))
	}
	return roundedCount(total)
}

// roundedCount writes a count with a unit and at least two significant digits.
func roundedCount(n int64) string {
	unit, scale := "K", 1e-3
	switch {
	case n > 1e12:
		unit, scale = "T", 1e-12
	case n > 1e9:
		unit, scale = "B", 1e-9
	case n > 1e6:
		unit, scale = "M", 1e-6
	}
	x := float64(n) * scale
	digits := len(strings.TrimLeft(fmt.Sprintf("%.0f", math.RoundToEven(x)), "0"))
	return fmt.Sprintf("%.*f%s", max(2-digits, 0), x, unit)
}
