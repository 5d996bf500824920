package engine

import (
	"errors"
	"fmt"
	"slices"
	"testing"

	"github.com/winnow-moe/winnow/formats/arch"
	"github.com/winnow-moe/winnow/formats/calib"
	"github.com/winnow-moe/winnow/formats/gguf"
)

// nextnFamilies have a block of multi-token prediction.
var nextnFamilies = []string{"deepseek_v32_mtp", "glm4_moe", "qwen3_next", "qwen3_5_moe"}

// reachBlock takes a batch from one block to the next, if it is one of multi-token
// prediction.
func reachBlock(t *testing.T, p *pass, l *layer) {
	t.Helper()
	norm := p.m.outNorm
	switch i := l.number - len(p.m.layers); {
	case i < 0:
		return
	case i > 0:
		norm = affine{w: p.m.nextn[i-1].nextn.headNorm}
	}
	if err := p.normalize(t.Context(), norm, p.x); err != nil {
		t.Fatal(err)
	}
	if err := p.enter(t.Context(), l); err != nil {
		t.Fatal(err)
	}
}

// TestResumeObserved stops passes that are observed after every block and goes on
// with another model: the two observers are told what one of a whole pass is, of
// multi-token prediction by the second.
func TestResumeObserved(t *testing.T) {
	for _, family := range nextnFamilies {
		a := alter(t, family)
		opt := Options{Observer: recorder{}, LeaveOneOut: true}
		seqs := someSeqs(200, 24, 1, 17)
		if _, err := a.load(t, opt).Resume(t.Context(), seqs, nil, nil); err != nil {
			t.Fatal(family, err)
		}
		want := fmt.Sprint(opt.Observer)
		for done := 1; done <= a.load(t, opt).Blocks(); done++ {
			told := recorder{}
			opt.Observer = told
			m := a.load(t, opt)
			var at *State
			_, err := m.Resume(t.Context(), seqs, nil, stopAfter(done, &at))
			block := fmt.Sprint("experts ", m.Blocks())
			if !errors.Is(err, errStop) || told[block] != nil {
				t.Fatalf("%s: stopped after %d blocks: %v, %v", family, done, err, told[block])
			}
			h, err := a.load(t, opt).Resume(t.Context(), seqs, at, nil)
			if err != nil {
				t.Fatal(family, err)
			}
			if fmt.Sprint(told) != want {
				t.Errorf("%s: stopped after %d blocks, other reports", family, done)
			}
			if _, err := a.load(t, opt).Resume(t.Context(), seqs, h.State(), nil); err != nil || fmt.Sprint(told) != want {
				t.Errorf("%s: at the end, there are other reports: %v", family, err)
			}
		}
	}
}

// TestNextnOnlyObserved: without an observer blocks of multi-token prediction are
// not read, nor looked at.
func TestNextnOnlyObserved(t *testing.T) {
	for _, family := range nextnFamilies {
		a := alter(t, family)
		read := map[string]bool{}
		a.rows = func(info *gguf.TensorInfo, _, _ int64, data []byte) ([]byte, error) {
			read[info.Name] = true
			return data, nil
		}
		m := a.load(t, Options{Threads: 1})
		block := fmt.Sprintf("blk.%d.", m.Blocks())
		mtp := func() (list []string) {
			for name := range read {
				if len(name) > len(block) && name[:len(block)] == block {
					list = append(list, name)
				}
			}
			return list
		}
		if _, err := m.Forward(t.Context(), someSeqs(200, 24)); err != nil || len(mtp()) > 0 {
			t.Errorf("%s: %v read: %v", family, mtp(), err)
		}
		if n := (arch.Name{Layer: m.Blocks(), Role: arch.ExpertUp, Suffix: "weight"}); m.Idle(n) != "multi-token prediction" {
			t.Errorf("%s: %s is idle: %q", family, n, m.Idle(n))
		}
		if _, err := a.load(t, Options{Threads: 1, Sampler: (&calib.Statistics{}).Domain("test"), SampleTokens: 4}).Forward(t.Context(), someSeqs(200, 24)); err != nil || len(mtp()) == 0 {
			t.Errorf("%s: nothing read for a sampler: %v", family, err)
		}
		if _, err := m.Sampled(t.Context(), m.Blocks(), &calib.Sample{}); err == nil {
			t.Errorf("%s: a block that is not bound can be sampled", family)
		}
	}
}

// TestNextnChain: of two blocks of multi-token prediction the second works on what
// the first gives its head, of one token less of every sequence.
func TestNextnChain(t *testing.T) {
	for _, family := range nextnFamilies {
		a := alter(t, family)
		prefix, _ := a.md.String("general.architecture")
		last := a.load(t, Options{}).Params().Layers - 1
		a.md.Set(prefix+"."+arch.KeyBlockCount, uint32(last+2))
		a.md.Set(prefix+"."+arch.KeyNextnLayers, uint32(2))
		a.md.Delete(prefix + "." + arch.KeyRecurrent)
		for i := range slices.Clone(a.tensors) {
			if n := arch.ParseName(a.tensors[i].Name); n.Layer == last {
				info := a.tensors[i]
				n.Layer++
				info.Name = n.String()
				a.tensors, a.source = append(a.tensors, info), append(a.source, a.source[i])
			}
		}
		got := recorder{}
		m := a.load(t, Options{Observer: got, ObserveOutput: true})
		if _, err := m.Forward(t.Context(), someSeqs(200, 24, 2, 17)); err != nil {
			t.Fatal(family, err)
		}
		for i, tokens := range [][]int{{23, 1, 16}, {22, 15}} {
			reports := got[fmt.Sprintf("blk.%d.nextn.eh_proj.weight", last+i)]
			if len(reports) != len(tokens) {
				t.Fatalf("%s, block %d: %v", family, last+i, reports)
			}
			for j, n := range tokens {
				if want := fmt.Sprintf("0/1 %d rows ", n); reports[j][:len(want)] != want {
					t.Errorf("%s, block %d: %q, want %q", family, last+i, reports[j], want)
				}
			}
		}
	}
}
