package experts

import (
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"maps"
	"slices"
	"strconv"

	"github.com/winnow-moe/winnow/formats/arch"
	"github.com/winnow-moe/winnow/formats/strictjson"
)

// What becomes of multi-token prediction (MTP) blocks.
const (
	DropMTP  = "drop"  // they are left out
	PruneMTP = "prune" // they keep as many experts as the others
)

// KeepList says which experts of each MoE block stay.
type KeepList struct {
	Experts int           // per block, of the model that it is for
	Flatten bool          // groups are given up: the result has one, n_group = topk_group = 1
	Blocks  map[int][]int // by block number: the experts that stay, ascending, as many in every block
	MTP     string        // DropMTP or PruneMTP; "" for models without MTP blocks
	Merge   *Merging      // what becomes of the others; nil: they go
	Provenance
}

// Provenance says where a keep-list comes from. It is for people and decides
// nothing.
type Provenance struct {
	Model      string             `json:"model,omitempty"`
	Rule       string             `json:"rule,omitempty"`
	Seed       uint64             `json:"seed,omitempty"`
	Weights    map[string]float64 `json:"weights,omitempty"`
	Combine    string             `json:"combine,omitempty"`    // how scores of several kinds of text became one
	Statistics string             `json:"statistics,omitempty"` // file
	Tool       string             `json:"tool,omitempty"`
}

// Caps on what a keep-list may claim.
const (
	maxExperts = 1 << 14
	maxBytes   = 64 << 20
)

// runtimeExperts is LLAMA_MAX_EXPERTS of llama.cpp.
const runtimeExperts = 1024

const formatVersion = 1

// Keep returns the number of experts of every block that stay.
func (k *KeepList) Keep() int {
	for _, ids := range k.Blocks {
		return len(ids)
	}
	return 0
}

// Numbers returns the block numbers, ascending.
func (k *KeepList) Numbers() []int { return slices.Sorted(maps.Keys(k.Blocks)) }

// checkAlone finds what is wrong whatever the model.
func (k *KeepList) checkAlone() error {
	switch {
	case k.Experts < 1 || k.Experts > maxExperts:
		return invalid("experts is %d, want 1 to %d", k.Experts, maxExperts)
	case k.MTP != "" && k.MTP != DropMTP && k.MTP != PruneMTP:
		return invalid("mtp is %q, want %q or %q", k.MTP, DropMTP, PruneMTP)
	case len(k.Blocks) == 0:
		return invalid("blocks lists no block")
	}
	numbers := k.Numbers()
	for _, l := range numbers {
		if err := k.checkBlock(l); err != nil {
			return err
		}
		if n, first := len(k.Blocks[l]), len(k.Blocks[numbers[0]]); n != first {
			return invalid("block %d keeps %d experts and block %d keeps %d; all blocks keep as many", numbers[0], first, l, n)
		}
	}
	return k.checkMerge()
}

func (k *KeepList) checkBlock(l int) error {
	ids := k.Blocks[l]
	if l < 0 || l >= arch.MaxLayers {
		return invalid("block %d is not a block, want 0 to %d", l, arch.MaxLayers-1)
	}
	if len(ids) == 0 {
		return invalid("block %d keeps no expert", l)
	}
	for i, id := range ids {
		switch {
		case id < 0 || id >= k.Experts:
			return invalid("block %d keeps expert %d; the experts are 0 to %d", l, id, k.Experts-1)
		case i > 0 && id == ids[i-1]:
			return invalid("block %d keeps expert %d twice", l, id)
		case i > 0 && id < ids[i-1]:
			return invalid("block %d: expert %d comes behind %d; numbers ascend", l, id, ids[i-1])
		}
	}
	return nil
}

// Check finds what keeps a keep-list from being applied to a model: blocks or
// experts that the model does not have, and results that cannot choose as many
// experts per token as the model does or that runtimes do not load. Errors match
// ErrInvalid.
func (k *KeepList) Check(p *arch.Params) error {
	if err := checkRouted(p); err != nil {
		return err
	}
	if err := k.checkAlone(); err != nil {
		return err
	}
	if k.Experts != p.Experts {
		return invalid("it is for blocks of %d experts, the model has %d: it belongs to another model, or the model is pruned already", k.Experts, p.Experts)
	}
	if err := k.checkBlocks(p); err != nil {
		return err
	}
	if err := CheckCount(p, k.Keep(), k.Flatten); err != nil {
		return invalid("%v", err) // the list is to blame, not a request
	}
	return k.checkGroups(p)
}

// checkRouted refuses models without experts.
func checkRouted(p *arch.Params) error {
	if p.Experts == 0 || len(Blocks(p, PruneMTP)) == 0 {
		return invalid("the model has no routed experts")
	}
	return nil
}

// Blocks returns the numbers of the blocks that a keep-list for a model with
// these MTP blocks has entries for.
func Blocks(p *arch.Params, mtp string) (list []int) {
	end := p.Layers
	if mtp == DropMTP {
		end = p.Trunk()
	}
	for l := range end {
		if p.MoE(l) {
			list = append(list, l)
		}
	}
	return list
}

// checkBlocks compares the blocks listed with those of the model.
func (k *KeepList) checkBlocks(p *arch.Params) error {
	if p.NextnLayers > 0 && k.MTP == "" {
		return invalid("mtp is missing; the model has %d multi-token prediction %s, whose experts must go (%q) or be pruned too (%q)",
			p.NextnLayers, plural(p.NextnLayers, "block", "blocks"), DropMTP, PruneMTP)
	}
	want := Blocks(p, k.MTP)
	for _, l := range want {
		if _, ok := k.Blocks[l]; !ok {
			return invalid("block %d is missing; the model has experts there", l)
		}
	}
	for _, l := range k.Numbers() {
		switch {
		case slices.Contains(want, l):
		case l >= p.Trunk() && l < p.Layers:
			return invalid("block %d is a multi-token prediction block, which mtp %q leaves out", l, k.MTP)
		default:
			return invalid("block %d has no experts in the model", l)
		}
	}
	return nil
}

// checkGroups sees that every group keeps as many experts.
func (k *KeepList) checkGroups(p *arch.Params) error {
	if k.Flatten && p.ExpertGroups <= 1 {
		return invalid("flatten is set, but the model's experts have no groups")
	}
	if groups(p, k.Flatten) == 1 {
		return nil
	}
	size := p.Experts / p.ExpertGroups
	for _, l := range k.Numbers() {
		counts := make([]int, p.ExpertGroups)
		for _, id := range k.Blocks[l] {
			counts[id/size]++
		}
		for g, n := range counts {
			if want := k.Keep() / p.ExpertGroups; n != want {
				return invalid("block %d keeps %d of the experts %d to %d, want %d: each of the %d groups keeps as many, unless flatten is set",
					l, n, g*size, (g+1)*size-1, want, p.ExpertGroups)
			}
		}
	}
	return nil
}

// ReadKeepList reads a keep-list as Write writes it. Keys that it does not know
// are errors.
func ReadKeepList(r io.Reader) (*KeepList, error) {
	data, err := io.ReadAll(io.LimitReader(r, maxBytes+1))
	if err != nil {
		return nil, err
	}
	if len(data) > maxBytes {
		return nil, invalid("it has more than %d bytes", maxBytes)
	}
	k := &KeepList{}
	if err := k.parse(string(data)); err != nil {
		return nil, &kindError{err, ErrInvalid}
	}
	return k, k.checkAlone()
}

func (k *KeepList) parse(text string) error {
	s, err := strictjson.NewScanner(text)
	if err != nil {
		return err
	}
	version := int64(0)
	err = s.Object(func(key string) (err error) {
		switch key {
		case "winnow_keep_list":
			version, err = s.Int()
		case "experts":
			k.Experts, err = scanInt(s)
		case "flatten":
			k.Flatten, err = s.Bool()
		case "mtp":
			k.MTP, err = s.Text()
		case "provenance":
			err = k.parseProvenance(s)
		case "blocks":
			k.Blocks = map[int][]int{}
			err = s.Object(func(number string) error { return k.parseBlock(s, number) })
		case "merge":
			k.Merge = &Merging{}
			err = k.Merge.parse(s)
		default:
			return fmt.Errorf("there is no key %q in keep-lists", key)
		}
		return within(key, err)
	})
	if err != nil {
		return err
	}
	if version != formatVersion {
		return fmt.Errorf("winnow_keep_list is missing or not %d: this is no keep-list that this program reads", formatVersion)
	}
	return s.End()
}

func (k *KeepList) parseBlock(s *strictjson.Scanner, number string) error {
	l, err := blockNumber(number)
	if err != nil {
		return err
	}
	k.Blocks[l], err = scanInts(s)
	return within(number, err)
}

// blockNumber reads the number of a block as it is written as a key.
func blockNumber(number string) (int, error) {
	l, err := strconv.Atoi(number)
	if err != nil || strconv.Itoa(l) != number {
		return 0, fmt.Errorf("%q is not the number of a block", number)
	}
	return l, nil
}

// scanInts reads a list of numbers.
func scanInts(s *strictjson.Scanner) (list []int, err error) {
	list = []int{}
	err = s.Array(func() error {
		n, err := scanInt(s)
		list = append(list, n)
		return err
	})
	return list, err
}

func (k *KeepList) parseProvenance(s *strictjson.Scanner) error {
	text := map[string]*string{"model": &k.Model, "rule": &k.Rule, "combine": &k.Combine, "statistics": &k.Statistics, "tool": &k.Tool}
	return s.Object(func(key string) (err error) {
		switch to := text[key]; {
		case to != nil:
			*to, err = s.Text()
		case key == "seed":
			var n string
			if n, err = s.Number(); err == nil {
				k.Seed, err = strconv.ParseUint(n, 10, 64)
			}
		case key == "weights":
			k.Weights = map[string]float64{}
			err = s.Object(func(name string) (err error) {
				k.Weights[name], err = scanFloat(s)
				return within(name, err)
			})
		default:
			return fmt.Errorf("there is no key %q", key)
		}
		return within(key, err)
	})
}

// scanInt reads a number that fits an int everywhere.
func scanInt(s *strictjson.Scanner) (int, error) {
	n, err := s.Int()
	if err == nil && (n < -1<<31 || n >= 1<<31) {
		err = fmt.Errorf("the number %d is out of range", n)
	}
	return int(n), err
}

// scanFloat reads a number that a float64 can have.
func scanFloat(s *strictjson.Scanner) (float64, error) {
	n, err := s.Number()
	if err != nil {
		return 0, err
	}
	return strconv.ParseFloat(n, 64)
}

// within says under which key an error is.
func within(key string, err error) error {
	if err == nil {
		return nil
	}
	return fmt.Errorf("%s: %w", key, err)
}

// Write writes the keep-list as JSON, a line for every block.
func (k *KeepList) Write(w io.Writer) error {
	var b bytes.Buffer
	fmt.Fprintf(&b, "{\n  \"winnow_keep_list\": %d,\n  \"experts\": %d,\n", formatVersion, k.Experts)
	if k.Flatten {
		fmt.Fprintf(&b, "  \"flatten\": true,\n")
	}
	if k.MTP != "" {
		fmt.Fprintf(&b, "  \"mtp\": %q,\n", k.MTP)
	}
	from, err := json.Marshal(k.Provenance)
	if err != nil {
		return err
	}
	fmt.Fprintf(&b, "  \"provenance\": %s,\n  \"blocks\": {", from)
	for i, l := range k.Numbers() {
		ids, err := json.Marshal(k.Blocks[l])
		if err != nil {
			return err
		}
		if i > 0 {
			b.WriteByte(',')
		}
		fmt.Fprintf(&b, "\n    \"%d\": %s", l, ids)
	}
	b.WriteString("\n  }")
	if err := k.Merge.write(&b); err != nil {
		return err
	}
	b.WriteString("\n}\n")
	_, err = w.Write(b.Bytes())
	return err
}

// plural chooses the form of a word that goes with a number.
func plural(n int, one, many string) string {
	if n == 1 {
		return one
	}
	return many
}
