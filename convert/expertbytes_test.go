package convert

import (
	"context"
	"encoding/binary"
	"math"
	"slices"
	"strings"
	"testing"

	"github.com/winnow-moe/winnow/formats/gguf"
	"github.com/winnow-moe/winnow/testdata/fixtures"
)

// TestExpertBytes: with all experts the parts add up to the whole, and an expert
// has the numbers that its shapes say, one of the router's rows and of its biases
// included.
func TestExpertBytes(t *testing.T) {
	for name, numbers := range map[string]func(hidden, inner int64) int64{
		"mixtral":     func(h, i int64) int64 { return 3*h*i + 2*h }, // routers are F32
		"gemma4_moe":  func(h, i int64) int64 { return 3*h*i + 2*h + 2 },
		"deepseek_v3": func(h, i int64) int64 { return 3*h*i + 2*h + 2 },
	} {
		ck, err := OpenCheckpoint(fixtures.Family(t, name), CheckpointOptions{})
		must(t, err)
		defer ck.Close()
		plan, err := ck.Plan(Request{Outputs: []OutputRequest{{"x.gguf", recipe(t, "BF16")}}})
		must(t, err)
		p := &ck.Model.Params
		moe := int64(0)
		for l := range p.Layers {
			if p.MoE(l) {
				moe++
			}
		}
		b := plan.ExpertBytes(0, ck.Model, p.Layers)
		if want := 2 * moe * numbers(int64(p.Embed), int64(p.ExpertFF)); b.Expert != want {
			t.Errorf("%s: %d bytes of an expert, want %d", name, b.Expert, want)
		}
		if got, size := b.Total(p.Experts), plan.Outputs[0].Layout.Size(); got < size || got > size+int64(len(plan.Tensors))*gguf.DefaultAlignment {
			t.Errorf("%s: %d bytes with all experts, the file has %d", name, got, size)
		}
		s := plan.SourceExpertBytes(ck.Model, p.Layers)
		if got := s.Total(p.Experts); got != plan.SourceBytes() {
			t.Errorf("%s: %d bytes of input, want %d", name, got, plan.SourceBytes())
		}
		if less := plan.ExpertBytes(0, ck.Model, p.Layers-1); p.MoE(p.Layers-1) && less.Expert != b.Expert/moe*(moe-1) {
			t.Errorf("%s: %d bytes of an expert without the last block, with it %d", name, less.Expert, b.Expert)
		}
	}
}

// oneTensor is a model of one F32 tensor.
type oneTensor struct {
	gguf.Model
	info   gguf.TensorInfo
	values []float32
}

func (l *oneTensor) Tensors() []gguf.TensorInfo { return []gguf.TensorInfo{l.info} }
func (l *oneTensor) Release(int)                {}
func (l *oneTensor) Rows(_ context.Context, _ int, first, n int64, _ []byte) ([]byte, error) {
	var b []byte
	cols := l.info.Shape[0]
	for _, v := range l.values[first*cols : (first+n)*cols] {
		b = binary.LittleEndian.AppendUint32(b, math.Float32bits(v))
	}
	return b, nil
}

func TestDownNorms(t *testing.T) {
	m := &oneTensor{
		info:   gguf.TensorInfo{Name: "blk.7.ffn_down_exps.weight", Type: gguf.F32, Shape: []int64{2, 3, 2}},
		values: []float32{1, 2, 3, 4, 5, 6, -1, 0, 0, 10, 1, 0},
	}
	norms := DownNorms(m)
	if got, err := norms(t.Context(), 7); err != nil || !slices.Equal(got, []float64{35, 56, 2, 100}) {
		t.Errorf("%v, %v", got, err)
	}
	if _, err := norms(t.Context(), 6); err == nil || !strings.Contains(err.Error(), "blk.6.ffn_down_exps.weight") {
		t.Errorf("block without experts: %v", err)
	}
	// More rows than are decoded at a time.
	m.info.Shape, m.values = []int64{1, 1000, 2}, make([]float32, 2000)
	for i := range m.values {
		m.values[i] = 1 + float32(i/1000)
	}
	if got, err := norms(t.Context(), 7); err != nil || !slices.Equal(got, []float64{1000, 4000}) {
		t.Errorf("%v, %v", got, err)
	}
}
