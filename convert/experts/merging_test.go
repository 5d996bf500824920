package experts

import (
	"bytes"
	"errors"
	"reflect"
	"strings"
	"testing"

	"github.com/winnow-moe/winnow/formats/arch"
)

// TestSelectMerged forms the groups of two blocks of a model with 16 experts and
// sees that the keep-list can be written and read.
func TestSelectMerged(t *testing.T) {
	blocks := readJSON[[]known](t, "groups.json")
	p := grouped()
	p.Layers = 3
	likeness := map[int]*Likeness{1: blocks[0].likeness(), 2: blocks[1].likeness()}
	k, err := SelectMerged("hc-smoe", likeness, []Expert{{2, 5}}, p, Options{Keep: 8, Flatten: true, MTP: PruneMTP})
	if err != nil {
		t.Fatal(err)
	}
	for l, super := range map[int][]int{1: nil, 2: {5}} {
		if want, err := GroupExperts("hc-smoe", likeness[l], 8, super); err != nil || !reflect.DeepEqual(k.Merge.Groups[l], want) {
			t.Errorf("block %d: %v, want %v, %v", l, k.Merge.Groups[l], want, err)
		}
	}
	if k.Keep() != 8 || !k.Flatten || k.Merge.Align || k.Merge.Method != "hc-smoe" || k.MTP != "" {
		t.Errorf("%+v", k)
	}
	var b bytes.Buffer
	if err := k.Write(&b); err != nil {
		t.Fatal(err)
	}
	if again, err := ReadKeepList(&b); err != nil || !reflect.DeepEqual(again, k) {
		t.Errorf("%v, %+v", err, again)
	}
}

func TestSelectMergedRefused(t *testing.T) {
	blocks := readJSON[[]known](t, "groups.json")
	l := map[int]*Likeness{1: blocks[0].likeness()}
	for want, c := range map[string]struct {
		method   string
		likeness map[int]*Likeness
		opt      Options
		kind     error
	}{
		`no way "best"`:                      {"best", l, Options{Keep: 8, Flatten: true}, ErrRefused},
		"which merging gives up":             {"ream", l, Options{Keep: 8}, ErrRefused},
		"every token uses 4":                 {"ream", l, Options{Keep: 3, Flatten: true}, ErrRefused},
		"known of the experts of block 1":    {"ream", nil, Options{Keep: 8, Flatten: true}, ErrInvalid},
		"block 1: likeness of 0 experts":     {"ream", map[int]*Likeness{1: {}}, Options{Keep: 8, Flatten: true}, ErrInvalid},
		"block 1: the likeness of experts h": {"ream", map[int]*Likeness{1: {Reap: make([]float64, 16)}}, Options{Keep: 8, Flatten: true}, ErrInvalid},
	} {
		if _, err := SelectMerged(c.method, c.likeness, nil, grouped(), c.opt); !errors.Is(err, c.kind) || !strings.Contains(err.Error(), want) {
			t.Errorf("%v, want %q", err, want)
		}
	}
	if _, err := SelectMerged("ream", l, nil, &arch.Params{Layers: 2}, Options{Keep: 8}); !errors.Is(err, ErrInvalid) {
		t.Error(err)
	}
}
