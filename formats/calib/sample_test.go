package calib

import (
	"context"
	"errors"
	"path/filepath"
	"slices"
	"testing"

	"github.com/winnow-moe/winnow/formats/gguf"
)

// addSample samples n tokens of two inputs and two logits, counted from first.
func addSample(t *testing.T, d *Domain, block, first, n int) {
	t.Helper()
	var inputs, logits []float32
	for i := range n {
		v := float32(first + i)
		inputs, logits = append(inputs, v, -v), append(logits, v+0.25, v+0.5)
	}
	if err := d.Sample(block, n, inputs, logits); err != nil {
		t.Fatal(err)
	}
}

// sampledStatistics are someStatistics with samples: of code 2 tokens of 10, of
// chat 3 of 40.
func sampledStatistics(t *testing.T) *Statistics {
	s := someStatistics(t)
	block := s.Domains[0].Layers()[0]
	addSample(t, s.Domains[0], block, 0, 2)
	addSample(t, s.Domains[1], block, 10, 1)
	addSample(t, s.Domains[1], block, 11, 2)
	return s
}

func wantSample(t *testing.T, s *Statistics, weights Weights, inputs, logits []float32, each []float64) {
	t.Helper()
	got, err := s.Sample(s.Domains[0].Layers()[0], weights)
	if err != nil {
		t.Fatal(err)
	}
	if got.Tokens != len(each) || !slices.Equal(got.Inputs, inputs) || !slices.Equal(got.Logits, logits) || !slices.Equal(got.Weights, each) {
		t.Errorf("sample %+v, want %v, %v, %v", got, inputs, logits, each)
	}
}

func TestSample(t *testing.T) {
	s := sampledStatistics(t)
	path := filepath.Join(t.TempDir(), "stats.gguf")
	if err := s.WriteGGUF(path, nil); err != nil {
		t.Fatal(err)
	}
	read, err := ReadStatistics(path)
	if err != nil {
		t.Fatal(err)
	}
	defer read.Close()
	inputs, logits := []float32{0, 0, 1, -1, 10, -10, 11, -11, 12, -12}, []float32{0.25, 0.5, 1.25, 1.5, 10.25, 10.5, 11.25, 11.5, 12.25, 12.5}
	for _, s := range []*Statistics{s, read} {
		if s.Sampled() != 5 {
			t.Errorf("%d tokens sampled", s.Sampled())
		}
		// Every token stands for as many of its text: 10 of code, 40 of chat.
		wantSample(t, s, nil, inputs, logits, []float64{5, 5, 40.0 / 3, 40.0 / 3, 40.0 / 3})
		// Each kind has half of the 50 tokens.
		wantSample(t, s, Weights{"code": 1, "chat": 1}, inputs, logits, []float64{12.5, 12.5, 40 * 0.625 / 3, 40 * 0.625 / 3, 40 * 0.625 / 3})
		wantSample(t, s, Weights{"code": 1}, inputs[:4], logits[:4], []float64{25, 25})
	}
	sum, err := MergeStatistics(read, s)
	if err != nil {
		t.Fatal(err)
	}
	wantSample(t, sum, Weights{"code": 1}, slices.Concat(inputs[:4], inputs[:4]), slices.Concat(logits[:4], logits[:4]), []float64{25, 25, 25, 25})
	picked, err := s.Select(Selection{Experts: 2, Weight: func(string) ([]int, bool) { return nil, false }, Block: func(int) []int { return []int{1} }})
	if err != nil {
		t.Fatal(err)
	}
	wantSample(t, picked, Weights{"code": 1}, inputs[:4], []float32{0.5, 1.5}, []float64{25, 25})
}

// sectionFile holds sections as a model.
type sectionFile struct {
	meta  *gguf.Metadata
	infos []gguf.TensorInfo
	data  [][]byte
}

func (f *sectionFile) Metadata() *gguf.Metadata   { return f.meta }
func (f *sectionFile) Tensors() []gguf.TensorInfo { return f.infos }
func (f *sectionFile) Release(int)                {}
func (f *sectionFile) Close() error               { return nil }

func (f *sectionFile) Rows(_ context.Context, i int, first, n int64, _ []byte) ([]byte, error) {
	size := f.infos[i].RowBytes()
	return f.data[i][first*size : (first+n)*size], nil
}

func TestSampleErrors(t *testing.T) {
	s := sampledStatistics(t)
	block := s.Domains[0].Layers()[0]
	if err := s.Domains[0].Sample(block, 1, []float32{1}, []float32{1, 2}); !errors.Is(err, ErrInvalid) {
		t.Errorf("another width: %v", err)
	}
	if _, err := someStatistics(t).Sample(block, nil); !errors.Is(err, ErrInvalid) {
		t.Errorf("no sample: %v", err)
	}
	if _, err := s.Sample(block, Weights{"prose": 1}); !errors.Is(err, ErrInvalid) {
		t.Errorf("unknown domain: %v", err)
	}
	for name, change := range map[string]func(*gguf.TensorInfo){
		"type":    func(i *gguf.TensorInfo) { i.Type = gguf.F64 },
		"tokens":  func(i *gguf.TensorInfo) { i.Shape[1]++ },
		"name":    func(i *gguf.TensorInfo) { i.Name = "winnow.0.blk.7.sample_inputs" },
		"missing": func(i *gguf.TensorInfo) { i.Name = "winnow.0.blk.3.sample" },
	} {
		t.Run(name, func(t *testing.T) {
			f := &sectionFile{meta: &gguf.Metadata{}}
			for _, p := range sampledStatistics(t).Sections(f.meta) {
				if p.Info.Shape = slices.Clone(p.Info.Shape); p.Info.Name == "winnow.0.blk.3.sample_inputs" {
					change(&p.Info)
				}
				raw, err := p.Data()
				if err != nil {
					t.Fatal(err)
				}
				f.infos, f.data = append(f.infos, p.Info), append(f.data, raw)
			}
			if _, err := ParseStatistics(f); !errors.Is(err, ErrInvalid) {
				t.Errorf("error %v", err)
			}
		})
	}
}

func TestSampleThin(t *testing.T) {
	s := &Sample{Tokens: 5, Inputs: []float32{0, 0, 1, 1, 2, 2, 3, 3, 4, 4}, Logits: []float32{0, 10, 20, 30, 40}, Weights: []float64{1, 1, 2, 2, 2}}
	got := s.Thin(2)
	if got.Tokens != 2 || !slices.Equal(got.Inputs, []float32{1, 1, 3, 3}) || !slices.Equal(got.Logits, []float32{10, 30}) || got.Weights[0]+got.Weights[1] != 8 || got.Weights[1] != 2*got.Weights[0] {
		t.Errorf("%+v", got)
	}
	if s.Thin(5) != s || s.Thin(9) != s {
		t.Error("all tokens are not all")
	}
}
