package convert

import (
	"regexp"
	"strings"

	"github.com/winnow-moe/winnow/formats/gguf"
	"github.com/winnow-moe/winnow/quant"
)

// Summary is a plan as a document: what --json prints.
type Summary struct {
	Source      string          `json:"source"`
	Arch        string          `json:"architecture"`
	SourceBytes int64           `json:"source_bytes"`
	TempDisk    int64           `json:"temporary_disk_bytes"`
	Parameters  int64           `json:"parameters"`
	Outputs     []OutputSummary `json:"outputs"`
	Dropped     []Dropped       `json:"dropped"`
	Notes       []string        `json:"notes,omitempty"`
}

// OutputSummary describes one file of a plan.
type OutputSummary struct {
	Path          string          `json:"path"`
	Type          string          `json:"type"`
	Files         int             `json:"files"`
	FileBytes     int64           `json:"file_bytes"`
	TensorBytes   int64           `json:"tensor_bytes"`
	BitsPerWeight float64         `json:"bits_per_weight"`
	Thorough      int             `json:"thorough_tensors,omitempty"` // encoded with the thorough search
	Tensors       []TensorSummary `json:"tensors"`
}

// TensorSummary describes one tensor of an output.
type TensorSummary struct {
	Name     string    `json:"name"`
	Shape    []int64   `json:"shape"` // GGUF order
	Source   string    `json:"source"`
	Type     gguf.Type `json:"type"`
	Bytes    int64     `json:"bytes"`
	Search   string    `json:"search,omitempty"` // unless default
	Rule     string    `json:"rule,omitempty"`
	Fallback string    `json:"fallback,omitempty"`
}

// Summary renders the plan. Bits per weight count the tensor bytes of the
// file, without header and padding.
func (p *Plan) Summary() Summary {
	s := Summary{Source: p.Source, Arch: p.Arch, SourceBytes: p.SourceBytes(), Dropped: p.Dropped, Notes: p.Notes}
	for i := range p.Tensors {
		info := gguf.TensorInfo{Shape: p.Tensors[i].Shape}
		s.Parameters += info.Elements()
	}
	for o := range p.Outputs {
		out := &p.Outputs[o]
		doc := OutputSummary{Path: out.Path, Type: out.Recipe.Name, Files: out.Layout.Shards(), FileBytes: out.Layout.Size()}
		for i := range p.Tensors {
			info := p.Info(o, i)
			doc.TensorBytes += info.Size()
			t := TensorSummary{
				Name: info.Name, Shape: info.Shape, Source: p.Tensors[i].From, Type: info.Type, Bytes: info.Size(),
				Rule: out.Choices[i].Rule, Fallback: out.Choices[i].Fallback,
			}
			if s := out.Choices[i].Search; s != quant.DefaultSearch {
				t.Search = s.String()
				doc.Thorough++
			}
			doc.Tensors = append(doc.Tensors, t)
		}
		if s.Parameters > 0 {
			doc.BitsPerWeight = float64(doc.TensorBytes) * 8 / float64(s.Parameters)
		}
		s.Outputs = append(s.Outputs, doc)
	}
	return s
}

// Fallback gathers the tensors of one output whose rows do not fit the wanted
// type, for one reason.
type Fallback struct {
	Recipe, Why string
	Tensors     int
	Bytes       int64 // as planned
	WantedBytes int64 // what the wanted type would have taken
}

// Fallbacks lists where types did not fit, in order of appearance.
func (p *Plan) Fallbacks() []Fallback {
	var list []Fallback
	for o := range p.Outputs {
		index := map[string]int{}
		for i := range p.Tensors {
			c := &p.Outputs[o].Choices[i]
			if c.Fallback == "" {
				continue
			}
			j, ok := index[c.Fallback]
			if !ok {
				j = len(list)
				index[c.Fallback] = j
				list = append(list, Fallback{Recipe: p.Outputs[o].Recipe.Name, Why: c.Fallback})
			}
			info := p.Info(o, i)
			list[j].Tensors++
			list[j].Bytes += info.Size()
			list[j].WantedBytes += info.Elements() * int64(c.Wanted.BlockBytes()) / int64(c.Wanted.BlockLen())
		}
	}
	return list
}

// DefaultName is the stem of output names by the GGUF naming convention.
func (c *Checkpoint) DefaultName() string { return c.id.fileName() }

// partNumber ends the names of the files of a split model.
var partNumber = regexp.MustCompile(`-[0-9]{5}-of-[0-9]{5}\.gguf$`)

// DefaultName is the stem of output names: the input's without its ending or
// number of the part, and without a trailing type.
func (s *GGUFSource) DefaultName() string {
	name := strings.TrimSuffix(partNumber.ReplaceAllString(s.path, ""), ".gguf")
	if i := strings.LastIndexByte(name, '-'); i > 0 {
		switch strings.ToUpper(name[i+1:]) {
		case "F32", "F16", "BF16":
			name = name[:i]
		}
	}
	return name
}
