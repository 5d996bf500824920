package experts

import (
	"bytes"
	"encoding/json"
	"fmt"
	"maps"
	"math"
	"slices"

	"github.com/winnow-moe/winnow/formats/arch"
	"github.com/winnow-moe/winnow/formats/strictjson"
)

// Merging says how the experts of a model are merged: those that stay are the
// centers of groups.
type Merging struct {
	Method string          // one of MergeRules
	Align  bool            // hidden neurons are matched first
	Groups map[int][]Group // by block, ascending by center
}

// SelectMerged forms the groups of every block of a model: the keep-list has
// their centers. Centers are free, so that routing groups must be given up where
// the model has some. Errors match ErrRefused, or ErrInvalid where a likeness does
// not belong to the model.
func SelectMerged(method string, blocks map[int]*Likeness, super []Expert, p *arch.Params, opt Options) (*KeepList, error) {
	r, err := findMergeRule(method)
	if err != nil {
		return nil, err
	}
	k, err := newKeepList(p, opt)
	if err != nil {
		return nil, err
	}
	if p.ExpertGroups > 1 && !k.Flatten {
		return nil, refused("the model's experts are in %d groups, which merging gives up: ask for that (flatten)", p.ExpertGroups)
	}
	k.Merge = &Merging{Method: method, Align: r.align, Groups: map[int][]Group{}}
	for _, l := range Blocks(p, k.MTP) {
		like := blocks[l]
		if like == nil {
			return nil, unknownBlock(p, l)
		}
		if n := len(r.weights(like)); n != p.Experts {
			return nil, invalid("block %d: likeness of %d experts, the model has %d", l, n, p.Experts)
		}
		var alone []int
		for _, e := range super {
			if e.Block == l {
				alone = append(alone, e.Expert)
			}
		}
		if k.Merge.Groups[l], err = GroupExperts(method, like, opt.Keep, alone); err != nil {
			return nil, fmt.Errorf("block %d: %w", l, err)
		}
		k.Blocks[l] = k.Merge.centers(l)
	}
	return k, k.Check(p)
}

// centers returns those of the groups of a block.
func (m *Merging) centers(l int) (list []int) {
	for _, g := range m.Groups[l] {
		list = append(list, g.Center)
	}
	return list
}

// checkMerge finds what is wrong with groups whatever the model.
func (k *KeepList) checkMerge() error {
	if k.Merge == nil {
		return nil
	}
	if _, err := findMergeRule(k.Merge.Method); err != nil {
		return invalid("merge: %v", err)
	}
	for _, l := range slices.Sorted(maps.Keys(k.Merge.Groups)) {
		if k.Blocks[l] == nil {
			return invalid("merge has groups of block %d, which keeps no experts", l)
		}
	}
	for _, l := range k.Numbers() {
		if len(k.Merge.Groups[l]) == 0 {
			return invalid("merge has no groups of block %d", l)
		}
		if err := checkMerged(l, k.Merge.Groups[l], k.Experts); err != nil {
			return err
		}
		if centers := k.Merge.centers(l); !slices.Equal(centers, k.Blocks[l]) {
			return invalid("block %d keeps the experts %v, and the centers of its groups are %v", l, k.Blocks[l], centers)
		}
	}
	return nil
}

// sumError is how far the weights of a group may be from one, as what they are
// written with may round them.
const sumError = 1e-6

// checkMerged finds what is wrong with the groups of a block of so many experts:
// no expert is in two of them.
func checkMerged(l int, groups []Group, experts int) error {
	seen := make([]bool, experts)
	for i, g := range groups {
		if i > 0 && g.Center <= groups[i-1].Center {
			return invalid("block %d: the group of expert %d comes behind that of %d; centers ascend", l, g.Center, groups[i-1].Center)
		}
		if err := g.check(experts); err != nil {
			return fmt.Errorf("block %d, group of expert %d: %w", l, g.Center, err)
		}
		for _, e := range g.Members {
			if seen[e] {
				return invalid("block %d: expert %d is in two groups", l, e)
			}
			seen[e] = true
		}
	}
	return nil
}

func (g *Group) check(experts int) error {
	sum := 0.0
	if len(g.Weights) != len(g.Members) {
		return invalid("it has %d members and %d weights", len(g.Members), len(g.Weights))
	}
	for i, e := range g.Members {
		switch {
		case e < 0 || e >= experts:
			return invalid("it has expert %d; the experts are 0 to %d", e, experts-1)
		case i > 0 && e <= g.Members[i-1]:
			return invalid("expert %d comes behind %d; members ascend", e, g.Members[i-1])
		case !(g.Weights[i] > 0):
			return invalid("the weight of expert %d is %g, want more than 0", e, g.Weights[i])
		}
		sum += g.Weights[i]
	}
	if !slices.Contains(g.Members, g.Center) {
		return invalid("it does not have the expert")
	}
	if !(math.Abs(sum-1) <= sumError) {
		return invalid("its weights add up to %g, want 1", sum)
	}
	return nil
}

func (m *Merging) parse(s *strictjson.Scanner) error {
	return exactly(s, map[string]func() error{
		"method": func() (err error) { m.Method, err = s.Text(); return err },
		"align":  func() (err error) { m.Align, err = s.Bool(); return err },
		"groups": func() error {
			m.Groups = map[int][]Group{}
			return s.Object(func(number string) error { return m.parseBlock(s, number) })
		},
	})
}

func (m *Merging) parseBlock(s *strictjson.Scanner, number string) error {
	l, err := blockNumber(number)
	if err != nil {
		return err
	}
	err = s.Array(func() error {
		var g Group
		err := g.parse(s)
		m.Groups[l] = append(m.Groups[l], g)
		return err
	})
	return within(number, err)
}

func (g *Group) parse(s *strictjson.Scanner) error {
	return exactly(s, map[string]func() error{
		"center":  func() (err error) { g.Center, err = scanInt(s); return err },
		"members": func() (err error) { g.Members, err = scanInts(s); return err },
		"weights": func() error {
			return s.Array(func() error {
				v, err := scanFloat(s)
				g.Weights = append(g.Weights, v)
				return err
			})
		},
	})
}

// exactly reads an object that has these keys and no others.
func exactly(s *strictjson.Scanner, members map[string]func() error) error {
	missing := maps.Clone(members)
	err := s.Object(func(key string) error {
		read := members[key]
		if read == nil {
			return fmt.Errorf("there is no key %q", key)
		}
		delete(missing, key)
		return within(key, read())
	})
	if err == nil && len(missing) > 0 {
		err = fmt.Errorf("%s is missing", slices.Min(slices.Collect(maps.Keys(missing))))
	}
	return err
}

// write adds the groups to the JSON of a keep-list, a line for every block;
// nothing if m is nil.
func (m *Merging) write(b *bytes.Buffer) error {
	if m == nil {
		return nil
	}
	fmt.Fprintf(b, ",\n  \"merge\": {\n    \"method\": %q,\n    \"align\": %v,\n    \"groups\": {", m.Method, m.Align)
	for i, l := range slices.Sorted(maps.Keys(m.Groups)) {
		groups, err := json.Marshal(m.Groups[l])
		if err != nil {
			return err
		}
		if i > 0 {
			b.WriteByte(',')
		}
		fmt.Fprintf(b, "\n      \"%d\": %s", l, groups)
	}
	b.WriteString("\n    }\n  }")
	return nil
}
