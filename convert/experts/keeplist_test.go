package experts

import (
	"bytes"
	"errors"
	"fmt"
	"reflect"
	"strings"
	"testing"

	"github.com/winnow-moe/winnow/formats/arch"
)

func someList() *KeepList {
	return &KeepList{Experts: 4, MTP: DropMTP, Blocks: map[int][]int{1: {0, 1, 3}, 2: {1, 2, 3}}, Provenance: Provenance{
		Model: "a \"model\"", Rule: "reap", Seed: 1<<64 - 1, Weights: map[string]float64{"code": 0.6, "chat": 0.4}, Statistics: "s.gguf", Tool: "winnow",
	}}
}

// someMerge is someList with groups: two of block 1 and none of the experts go
// alone, and expert 0 of block 2 goes.
func someMerge() *KeepList {
	k := someList()
	alone := func(e int) Group { return Group{Center: e, Members: []int{e}, Weights: []float64{1}} }
	k.Merge = &Merging{Method: "ream", Align: true, Groups: map[int][]Group{
		1: {alone(0), {Center: 1, Members: []int{1, 2}, Weights: []float64{2. / 3, 1. / 3}}, alone(3)}, 2: {alone(1), alone(2), alone(3)}}}
	return k
}

func TestKeepListFile(t *testing.T) {
	for _, k := range []*KeepList{someList(), someMerge(), {Experts: 16, Flatten: true, Blocks: map[int][]int{10: {15}, 9: {0}}}} {
		var b bytes.Buffer
		if err := k.Write(&b); err != nil {
			t.Fatal(err)
		}
		got, err := ReadKeepList(&b)
		if err != nil || !reflect.DeepEqual(got, k) {
			t.Errorf("%+v, %v; want %+v", got, err, k)
		}
	}
	if k := someList(); k.Keep() != 3 || (&KeepList{}).Keep() != 0 {
		t.Error(k.Keep())
	}
}

// TestKeepListText: groups follow what a keep-list without them has.
func TestKeepListText(t *testing.T) {
	var plain, merged bytes.Buffer
	if err := errors.Join(someList().Write(&plain), someMerge().Write(&merged)); err != nil {
		t.Fatal(err)
	}
	const alone = `{"center":%[1]d,"members":[%[1]d],"weights":[1]}`
	one := func(e int) string { return fmt.Sprintf(alone, e) }
	want := strings.TrimSuffix(plain.String(), "\n}\n") + `,
  "merge": {
    "method": "ream",
    "align": true,
    "groups": {
      "1": [` + one(0) + `,{"center":1,"members":[1,2],"weights":[0.6666666666666666,0.3333333333333333]},` + one(3) + `],
      "2": [` + one(1) + `,` + one(2) + `,` + one(3) + `]
    }
  }
}
`
	if merged.String() != want {
		t.Errorf("%s\nwant %s", &merged, want)
	}
}

// TestMergingRefused changes groups that are right.
func TestMergingRefused(t *testing.T) {
	var b bytes.Buffer
	if err := someMerge().Write(&b); err != nil {
		t.Fatal(err)
	}
	if err := someMerge().Check(model(1)); err != nil {
		t.Error(err)
	}
	for _, c := range [][3]string{
		{`"ream"`, `"best"`, `there is no way "best" to merge`},
		{`"align": true`, `"align": 1`, "merge: align: "},
		{`"align"`, `"aligned"`, `merge: there is no key "aligned"`},
		{`"groups"`, `"group"`, `merge: there is no key "group"`},
		{`"1": [{`, `"one": [{`, "merge: groups: \"one\" is not the number of a block"},
		{`"1": [{`, `"0": [{`, "merge has groups of block 0, which keeps no experts"},
		{`"2": [{"center":1,"members":[1],"weights":[1]},{"center":2,"members":[2],"weights":[1]},{"center":3,"members":[3],"weights":[1]}]`, `"2": []`, "merge has no groups of block 2"},
		{`{"center":1,"members":[1,2]`, `{"center":1,"centre":1,"members":[1,2]`, `merge: groups: 1: there is no key "centre"`},
		{`{"center":1,"members":[1,2]`, `{"members":[1,2]`, "merge: groups: 1: center is missing"},
		{"\n    \"align\": true,", "", "merge: align is missing"},
		{`{"center":1,"members":[1,2]`, `{"center":2,"members":[1,2]`, "block 1 keeps the experts [0 1 3], and the centers of its groups are [0 2 3]"},
		{`"members":[1,2]`, `"members":[1,3]`, "block 1: expert 3 is in two groups"},
		{`"members":[1,2]`, `"members":[2,1]`, "expert 1 comes behind 2"},
		{`"members":[1,2]`, `"members":[1,4]`, "it has expert 4; the experts are 0 to 3"},
		{`"members":[1,2]`, `"members":[1]`, "it has 1 members and 2 weights"},
		{`0.3333333333333333`, `0.334`, "its weights add up to 1.00"},
		{`0.3333333333333333`, `1e999`, "weights: "},
		{`0.6666666666666666,0.3333333333333333`, `1.5,-0.5`, "the weight of expert 2 is -0.5"},
	} {
		text := strings.Replace(b.String(), c[0], c[1], 1)
		if text == b.String() {
			t.Fatalf("there is no %q in %s", c[0], text)
		}
		if _, err := ReadKeepList(strings.NewReader(text)); !errors.Is(err, ErrInvalid) || !strings.Contains(err.Error(), c[2]) {
			t.Errorf("%s: %v, want %q", c[1], err, c[2])
		}
	}
}

func TestKeepListRefused(t *testing.T) {
	const head = `{"winnow_keep_list": 1, "experts": 4, `
	for text, want := range map[string]string{
		``:                        "ends",
		`[]`:                      "object",
		`{}`:                      "winnow_keep_list is missing",
		`{"winnow_keep_list": 2}`: "missing or not 1",
		`{"winnow_keep_list": 1}`: "experts is 0",
		`{"winnow_keep_list": 1, "experts": 1e3}`:                               "experts",
		`{"winnow_keep_list": 1, "experts": 99999999999, "blocks": {"1": [0]}}`: "out of range",
		head + `"blocks": {"1": [0]}} x`:                                        "trailing",
		head + `"blocks": {}}`:                                                  "lists no block",
		head + `"blocks": {"1": []}}`:                                           "block 1 keeps no expert",
		head + `"blocks": {"1": [0, 4]}}`:                                       "keeps expert 4; the experts are 0 to 3",
		head + `"blocks": {"1": [-1, 2]}}`:                                      "keeps expert -1",
		head + `"blocks": {"1": [0, 1.5]}}`:                                     "blocks: 1: ",
		head + `"blocks": {"1": [2, 2]}}`:                                       "keeps expert 2 twice",
		head + `"blocks": {"1": [2, 1]}}`:                                       "expert 1 comes behind 2",
		head + `"blocks": {"1": [0, 1], "2": [0]}}`:                             "block 1 keeps 2 experts and block 2 keeps 1",
		head + `"blocks": {"1": [0], "1": [0]}}`:                                "duplicate key",
		head + `"blocks": {"01": [0]}}`:                                         "not the number of a block",
		head + `"blocks": {"-1": [0]}}`:                                         "not a block",
		head + `"blocks": {"512": [0]}}`:                                        "not a block",
		head + `"blocks": {"1": [0]}, "flat": true}`:                            `no key "flat"`,
		head + `"blocks": {"1": [0]}, "flatten": 1}`:                            "flatten: ",
		head + `"blocks": {"1": [0]}, "mtp": "keep"}`:                           `mtp is "keep"`,
		head + `"blocks": {"1": [0]}, "provenance": {"by": "me"}}`:              `provenance: there is no key "by"`,
		head + `"blocks": {"1": [0]}, "provenance": {"seed": -1}}`:              "provenance: seed: ",
		head + `"blocks": {"1": [0]}, "provenance": {"weights": {"a":""}}}`:     "provenance: weights: a: ",
	} {
		if _, err := ReadKeepList(strings.NewReader(text)); !errors.Is(err, ErrInvalid) || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: %v, want %q", text, err, want)
		}
	}
}

// TestCheck compares keep-lists with models that they do not fit.
func TestCheck(t *testing.T) {
	if err := someList().Check(model(1)); err != nil {
		t.Error(err)
	}
	if err := someList().Check(model(0)); err != nil {
		t.Errorf("blocks that are not there are dropped: %v", err)
	}
	eight := model(1)
	eight.Experts = 8
	three := model(1)
	three.ExpertsUsed = 4
	for _, c := range []struct {
		change func(*KeepList)
		p      *arch.Params
		want   string
	}{
		{nil, &arch.Params{Layers: 3}, "no routed experts"},
		{nil, eight, "blocks of 4 experts, the model has 8"},
		{nil, three, "every token uses 4"},
		{func(k *KeepList) { k.MTP = "" }, model(1), "mtp is missing"},
		{func(k *KeepList) { k.MTP = PruneMTP }, model(1), "block 3 is missing"},
		{func(k *KeepList) { delete(k.Blocks, 1) }, model(1), "block 1 is missing"},
		{func(k *KeepList) { k.Blocks[0] = []int{0, 1, 2} }, model(1), "block 0 has no experts"},
		{func(k *KeepList) { k.Blocks[3] = []int{0, 1, 2} }, model(1), "block 3 is a multi-token prediction block"},
		{func(k *KeepList) { k.Blocks[4] = []int{0, 1, 2} }, model(1), "block 4 has no experts"},
		{func(k *KeepList) { k.Blocks[2] = []int{0, 1} }, model(1), "keeps 2"},
		{func(k *KeepList) { k.Flatten = true }, model(1), "have no groups"},
		{func(k *KeepList) { *k = KeepList{Experts: 16, Blocks: map[int][]int{1: {0, 1, 2, 3, 4, 5, 8, 12}}} }, grouped(), "keeps 4 of the experts 0 to 3, want 2"},
		{func(k *KeepList) { *k = KeepList{Experts: 16, Blocks: map[int][]int{1: {0, 1, 2, 3, 4, 5}}} }, grouped(), "do not divide"},
	} {
		k := someList()
		if c.change != nil {
			c.change(k)
		}
		if err := k.Check(c.p); !errors.Is(err, ErrInvalid) || errors.Is(err, ErrRefused) || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%v, want %q", err, c.want)
		}
	}
}

// FuzzKeepList: what is read is written and read again as the same.
func FuzzKeepList(f *testing.F) {
	for _, k := range []*KeepList{someList(), someMerge()} {
		var b bytes.Buffer
		if err := k.Write(&b); err != nil {
			f.Fatal(err)
		}
		f.Add(b.Bytes())
	}
	f.Add([]byte(`{"winnow_keep_list":1,"experts":2,"flatten":true,"blocks":{"0":[1],"7":[0]}}`))
	f.Fuzz(func(t *testing.T, data []byte) {
		k, err := ReadKeepList(bytes.NewReader(data))
		if err != nil {
			if !errors.Is(err, ErrInvalid) {
				t.Fatalf("not ErrInvalid: %v", err)
			}
			return
		}
		k.Check(model(1))
		var b bytes.Buffer
		if err := k.Write(&b); err != nil {
			t.Fatal(err)
		}
		again, err := ReadKeepList(&b)
		if err != nil || !reflect.DeepEqual(again, k) {
			t.Fatalf("%+v, %v; want %+v", again, err, k)
		}
	})
}
