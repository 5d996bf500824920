package engine

import (
	"fmt"
	"math"
	"slices"
	"strings"
	"testing"

	"github.com/winnow-moe/winnow/formats/arch"
	"github.com/winnow-moe/winnow/formats/calib"
	"github.com/winnow-moe/winnow/formats/gguf"
	"github.com/winnow-moe/winnow/testdata/fixtures"
	"github.com/winnow-moe/winnow/testdata/pruned"
)

// TestMasked: a model whose routers cannot choose some experts predicts what a
// model without these experts does, in every family, for every number of experts
// that a token can do with, with and without its groups.
func TestMasked(t *testing.T) {
	for _, family := range fixtures.Families(t) {
		t.Run(family, func(t *testing.T) {
			file := alter(t, family)
			if m := file.load(t, Options{}); m.Params().Experts == 0 {
				t.SkipNow()
			}
			testMasked(t, file)
		})
	}
}

// TestMaskedGroups is TestMasked for models whose groups have more than two
// experts: all but the grouping of the fixtures is theirs.
func TestMaskedGroups(t *testing.T) {
	for _, tc := range []struct {
		family       string
		groups, used uint32
	}{{"deepseek_v3", 2, 1}, {"deepseek_v3", 2, 2}, {"deepseek_v2_lite", 2, 2}, {"glm4_moe", 2, 2}} {
		t.Run(fmt.Sprintf("%s/%d of %d groups", tc.family, tc.used, tc.groups), func(t *testing.T) {
			file := alter(t, tc.family)
			prefix, _ := file.md.String("general.architecture")
			file.md.Set(prefix+"."+arch.KeyExpertGroups, tc.groups)
			file.md.Set(prefix+"."+arch.KeyGroupsUsed, tc.used)
			if tried := testMasked(t, file); !slices.Contains(tried, false) {
				t.Error("no number of experts was tried with equal groups")
			}
		})
	}
}

// testMasked tries all numbers of experts; it returns which were flattened.
func testMasked(t *testing.T, file *altered) (flattened []bool) {
	t.Helper()
	m := file.load(t, Options{})
	par, seqs := m.Params(), someSeqs(m.Vocab(), 12, 21)
	_, whole := allLogits(t, m, seqs)
	for keep := par.ExpertsUsed; keep < par.Experts; keep++ {
		for _, flatten := range []bool{false, true} {
			if par.ExpertGroups < 2 && flatten || !flatten && par.ExpertGroups > 1 && !fitsGroups(par, keep) {
				continue
			}
			flattened = append(flattened, flatten)
			compareMasked(t, file, m, Mask{Keep: pruned.Choose(par, keep, flatten), Flatten: flatten}, seqs, whole)
		}
	}
	if len(flattened) == 0 {
		t.Error("no number of experts was tried")
	}
	return flattened
}

// fitsGroups reports whether groups of as many experts each can do without those
// that are not there.
func fitsGroups(p *arch.Params, keep int) bool {
	each := keep / p.ExpertGroups
	return keep%p.ExpertGroups == 0 && each*p.GroupsUsed >= p.ExpertsUsed && (each >= 2 || p.GroupScore() != arch.GroupTop2)
}

func compareMasked(t *testing.T, file gguf.Model, m *Model, mask Mask, seqs [][]int32, whole []float32) {
	t.Helper()
	without, err := m.Masked(mask)
	if err != nil {
		t.Fatal(err)
	}
	small, err := Load(pruned.Model(t, file, mask.Keep, mask.Flatten), Options{})
	if err != nil {
		t.Fatal(err)
	}
	_, got := allLogits(t, without, seqs)
	_, want := allLogits(t, small, seqs)
	d := maxDiff(t, got, want)
	t.Logf("keep %v, flattened %t: %.2g from the pruned model, %.2g from the whole", mask.Keep, mask.Flatten, d, maxDiff(t, got, whole))
	if !(d <= 1e-5) {
		t.Errorf("keep %v: logits differ by %g from those of the pruned model", mask.Keep, d)
	}
	if maxDiff(t, got, whole) < 1e-4 {
		t.Errorf("keep %v: the mask changes nothing", mask.Keep)
	}
	if _, again := allLogits(t, m, seqs); maxDiff(t, again, whole) != 0 {
		t.Error("the model that was masked is another")
	}
}

// TestMaskedObserver: an observer of a model whose routers cannot choose some
// experts is told of the others what one of a model without these is told.
func TestMaskedObserver(t *testing.T) {
	for _, family := range []string{"deepseek_v3", "deepseek_v2_lite", "ernie4_5_moe", "gemma4_moe", "llama4_scout", "gpt_oss", "phimoe"} {
		t.Run(family, func(t *testing.T) {
			file, masked, small := alter(t, family), statistics{}, statistics{}
			m := file.load(t, Options{Observer: masked, LeaveOneOut: true})
			mask := Mask{Keep: pruned.Choose(m.Params(), m.Params().Experts-2, true), Flatten: true}
			without, err := m.Masked(mask)
			if err != nil {
				t.Fatal(err)
			}
			p, err := Load(pruned.Model(t, file, mask.Keep, mask.Flatten), Options{Observer: small, LeaveOneOut: true})
			if err != nil {
				t.Fatal(err)
			}
			seqs := someSeqs(m.Vocab(), 12, 21)
			for _, m := range []*Model{without, p} {
				if _, err := m.Forward(t.Context(), seqs); err != nil {
					t.Fatal(err)
				}
			}
			for block, keep := range mask.Keep {
				for _, stat := range []calib.Stat{calib.Selected, calib.Gate, calib.Norm, calib.Weighted, calib.LeaveOut} {
					got, want := masked[block][stat], small[block][stat]
					sum := 0.0
					for i, e := range keep {
						if sum += got[e]; math.Abs(got[e]-want[i]) > 1e-4*math.Abs(want[i])+1e-12 {
							t.Errorf("block %d, expert %d: statistic %d is %g, want %g", block, e, stat, got[e], want[i])
						}
					}
					for _, v := range got {
						sum -= v
					}
					if math.Abs(sum) > 1e-6 {
						t.Errorf("block %d: experts that cannot be chosen have statistic %d", block, stat)
					}
				}
			}
		})
	}
}

// TestMaskedRefused: masks that fit no model without experts.
func TestMaskedRefused(t *testing.T) {
	file := alter(t, "deepseek_v3")
	v3 := file.load(t, Options{})
	if p := v3.Params(); p.Experts != 8 || p.ExpertsUsed != 3 || p.ExpertGroups != 4 || p.GroupsUsed != 2 || p.LeadingDense != 1 {
		t.Fatalf("the fixture is another: %+v", p)
	}
	file.md.Set("deepseek2."+arch.KeyExpertGroups, uint32(2))
	file.md.Set("deepseek2."+arch.KeyGroupsUsed, uint32(1))
	halves := file.load(t, Options{})
	for _, tc := range []struct {
		m       *Model
		block   int
		keep    []int
		flatten bool
		want    string
	}{
		{v3, 0, []int{0, 1, 2, 3}, true, "block 0 has no routed experts"},
		{v3, 99, []int{0, 1, 2, 3}, true, "block 99 has no routed experts"},
		{v3, 1, []int{0, 1, 2, 8}, true, "block 1: expert 8 follows 2: want numbers of the 8 experts, ascending"},
		{v3, 1, []int{0, 1, 1, 2}, true, "block 1: expert 1 follows 1"},
		{v3, 1, []int{-1, 1, 2, 3}, true, "block 1: expert -1 follows -1"},
		{v3, 1, []int{0, 1}, true, "block 1: 2 experts are kept, less than the 3 that a token uses"},
		{v3, 1, []int{0, 1, 2, 3}, false, "block 1: group 0 keeps 2 of its 2 experts, where 4 are kept in 4 groups"},
		{v3, 1, []int{0, 2, 4, 6}, false, "block 1: every group keeps 1 experts, want at least the 2 that a group is judged by"},
		{halves, 1, []int{0, 1, 2, 4, 5}, false, "block 1: group 0 keeps 3 of its 4 experts, where 5 are kept in 2 groups"},
		{halves, 1, []int{0, 1, 4, 5}, false, "block 1: the 1 groups that a token may use keep 2 experts each, less than the 3 that it uses"},
	} {
		_, err := tc.m.Masked(Mask{Keep: map[int][]int{tc.block: tc.keep}, Flatten: tc.flatten})
		if err == nil || !strings.Contains(err.Error(), tc.want) {
			t.Errorf("%v in block %d: %v, want %q", tc.keep, tc.block, err, tc.want)
		}
	}
}
