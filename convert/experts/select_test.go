package experts

import (
	"errors"
	"slices"
	"strings"
	"testing"

	"github.com/winnow-moe/winnow/formats/arch"
)

// model has 4 experts in blocks 1 and 2, of which a token uses 2, and MTP blocks
// with as many behind them.
func model(mtp int) *arch.Params {
	return &arch.Params{Layers: 3 + mtp, NextnLayers: mtp, LeadingDense: 1, Experts: 4, ExpertsUsed: 2, ExpertFF: 8}
}

// grouped has 16 experts in 4 groups, of which a token uses 2 with 4 experts.
func grouped() *arch.Params {
	return &arch.Params{Layers: 2, LeadingDense: 1, Experts: 16, ExpertsUsed: 4, ExpertGroups: 4, GroupsUsed: 2, Gating: arch.GatingSigmoid}
}

// ramp scores experts higher the higher their numbers.
func ramp(p *arch.Params) *Scores {
	s := &Scores{Experts: p.Experts, Blocks: map[int][]float64{}}
	for _, l := range Blocks(p, PruneMTP) {
		for e := range p.Experts {
			s.Blocks[l] = append(s.Blocks[l], float64(e))
		}
	}
	return s
}

func TestSelect(t *testing.T) {
	p := grouped()
	k, err := Select(ramp(p), p, Options{Keep: 8})
	if err != nil || k.MTP != "" || !slices.Equal(k.Blocks[1], []int{2, 3, 6, 7, 10, 11, 14, 15}) {
		t.Errorf("equal groups: %v, %v", k, err)
	}
	k, err = Select(ramp(p), p, Options{Keep: 6, Flatten: true})
	if err != nil || !k.Flatten || !slices.Equal(k.Blocks[1], []int{10, 11, 12, 13, 14, 15}) {
		t.Errorf("one group: %v, %v", k, err)
	}
	even := ramp(p)
	clear(even.Blocks[1])
	if k, err = Select(even, p, Options{Keep: 5, Flatten: true}); err != nil || !slices.Equal(k.Blocks[1], []int{0, 1, 2, 3, 4}) {
		t.Errorf("equal scores: %v, %v", k, err)
	}
}

func TestSelectMTP(t *testing.T) {
	p := model(1)
	for mtp, blocks := range map[string][]int{DropMTP: {1, 2}, PruneMTP: {1, 2, 3}} {
		if k, err := Select(ramp(p), p, Options{Keep: 3, MTP: mtp}); err != nil || !slices.Equal(k.Numbers(), blocks) || k.MTP != mtp {
			t.Errorf("%s: %v, %v", mtp, k, err)
		}
	}
	s := ramp(p)
	delete(s.Blocks, 3)
	if _, err := Select(s, p, Options{Keep: 3, MTP: PruneMTP}); !errors.Is(err, ErrInvalid) || !strings.Contains(err.Error(), "multi-token") {
		t.Errorf("MTP block without scores: %v", err)
	}
	delete(s.Blocks, 2)
	if _, err := Select(s, p, Options{Keep: 3, MTP: DropMTP}); !errors.Is(err, ErrInvalid) {
		t.Errorf("block without scores: %v", err)
	}
	if _, err := Select(s, &arch.Params{Layers: 2}, Options{Keep: 3}); !errors.Is(err, ErrInvalid) {
		t.Errorf("dense model: %v", err)
	}
}

func TestCheckCount(t *testing.T) {
	maverick := model(0)
	maverick.Experts, maverick.NoQKNorm = 128, true
	large := model(0)
	large.Experts = 2048
	for _, c := range []struct {
		p       *arch.Params
		keep    int
		flatten bool
		want    string // "": fine
	}{
		{model(0), 2, false, ""},
		{model(0), 1, false, "every token uses 2"},
		{model(0), 5, false, "5 experts are to stay of 4"},
		{large, 1025, false, "LLAMA_MAX_EXPERTS"},
		{maverick, 96, false, "no norm"},
		{maverick, 128, false, ""},
		{grouped(), 12, false, ""},
		{grouped(), 10, false, "do not divide into the model's 4 groups"},
		{grouped(), 10, true, ""},
		{grouped(), 4, false, "fewer than 2 in each"},
		{grouped(), 4, true, ""},
		{&arch.Params{Layers: 1, Experts: 16, ExpertsUsed: 4, ExpertGroups: 4, GroupsUsed: 1}, 8, false, "with 2 experts, and needs 4"},
	} {
		err := CheckCount(c.p, c.keep, c.flatten)
		if c.want == "" && err != nil || c.want != "" && (!errors.Is(err, ErrRefused) || !strings.Contains(err.Error(), c.want)) {
			t.Errorf("%d experts, flatten %v: %v, want %q", c.keep, c.flatten, err, c.want)
		}
	}
	if n := Smallest(grouped(), false); n != 8 {
		t.Errorf("smallest %d, want 8", n)
	}
}

func TestTarget(t *testing.T) {
	b := Bytes{Expert: 100, Rest: 1000} // 2600 with all 16
	for _, c := range []struct {
		target  Target
		flatten bool
		want    int
	}{
		{Target{Keep: 12}, false, 12},
		{Target{Ratio: 0.25}, false, 12},
		{Target{Ratio: 0.3}, false, 12}, // 4.8 experts: one of each group
		{Target{Ratio: 0.3}, true, 12},  // 4 of them
		{Target{Ratio: 0.4}, true, 10},  // 6.4
		{Target{Size: 2300}, false, 12}, // room for 13
		{Target{Size: 2300}, true, 13},
		{Target{Size: 2200}, false, 12},
		{Target{Size: 2199}, false, 8},
	} {
		if n, err := c.target.Count(grouped(), c.flatten, b); err != nil || n != c.want {
			t.Errorf("%+v, flatten %v: %d, %v; want %d", c.target, c.flatten, n, err, c.want)
		}
	}
	for want, target := range map[string]Target{
		"not one of each":                  {Ratio: 0.2},
		"less than all":                    {Ratio: 1.5},
		"all 16 experts fit":               {Size: 2600},
		"the model needs 8, which is 1800": {Size: 1799},
	} {
		if _, err := target.Count(grouped(), false, b); !errors.Is(err, ErrRefused) || !strings.Contains(err.Error(), want) {
			t.Errorf("%+v: %v, want %q", target, err, want)
		}
	}
	if _, err := (Target{Size: 900}).Count(grouped(), true, b); err == nil {
		t.Error("a size below that of the rest")
	}
}

func TestWarnings(t *testing.T) {
	for keep, want := range map[int]string{4: "nothing is left to choose", 12: "unusual number", 8: "llama-quantize"} {
		if list := Warnings(grouped(), keep, true); !strings.Contains(strings.Join(list, "; "), want) || !strings.Contains(strings.Join(list, "; "), "given up") {
			t.Errorf("%d: %v, want %q and that groups are given up", keep, list, want)
		}
	}
	if list := Warnings(grouped(), 16, false); len(list) != 0 {
		t.Errorf("%v", list)
	}
}

// TestGreedy: choices of removals are nested, and those of all sizes leave out the
// first that go.
func TestGreedy(t *testing.T) {
	p := &arch.Params{Layers: 1, Experts: 6, ExpertsUsed: 2}
	s := Greedy(p, map[int]Removal{0: {Order: []int{4, 0, 5, 2}, Errors: []float64{0, .1, .2, .3, .4}}})
	for keep, want := range map[int][]int{5: {0, 1, 2, 3, 5}, 4: {1, 2, 3, 5}, 3: {1, 2, 3}, 2: {1, 3}} {
		k, err := Select(s, p, Options{Keep: keep})
		if err != nil || !slices.Equal(k.Blocks[0], want) {
			t.Errorf("%d experts: %v, %v, want %v", keep, k, err, want)
		}
	}
	if s.Curve[0][2] != .2 || s.Rule != GreedyRule {
		t.Errorf("%+v", s)
	}
}
