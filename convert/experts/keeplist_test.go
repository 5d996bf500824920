package experts

import (
	"bytes"
	"errors"
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

func TestKeepListFile(t *testing.T) {
	for _, k := range []*KeepList{someList(), {Experts: 16, Flatten: true, Blocks: map[int][]int{10: {15}, 9: {0}}}} {
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
	var b bytes.Buffer
	if err := someList().Write(&b); err != nil {
		f.Fatal(err)
	}
	f.Add(b.Bytes())
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
