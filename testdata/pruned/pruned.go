// Package pruned gives tests a model without some of its experts, cut out of the
// tensors of the whole one row by row: what such a file is, made in the plainest
// way.
package pruned

import (
	"context"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"

	"github.com/winnow-moe/winnow/formats/arch"
	"github.com/winnow-moe/winnow/formats/gguf"
)

type model struct {
	gguf.Model
	md      *gguf.Metadata
	tensors []gguf.TensorInfo
	kept    [][]int // of every tensor that has experts
	experts int
}

// Model cuts a model to the experts of every block that are kept, all of them as
// many. Flatten gives groups up.
func Model(t testing.TB, m gguf.Model, keep map[int][]int, flatten bool) gguf.Model {
	t.Helper()
	am, err := arch.FromMetadata(m.Metadata())
	if err != nil {
		t.Fatal(err)
	}
	out := &model{Model: m, md: m.Metadata().Clone(), tensors: slices.Clone(m.Tensors()), experts: am.Params.Experts}
	out.kept = make([][]int, len(out.tensors))
	n := 0
	for i := range out.tensors {
		name := arch.ParseName(out.tensors[i].Name)
		if list, ok := keep[name.Layer]; ok && ofExperts(name) {
			n, out.kept[i] = len(list), list
			out.tensors[i].Shape = cut(t, &out.tensors[i], out.experts, n)
		}
	}
	prefix := am.Family.Arch + "."
	out.md.Set(prefix+arch.KeyExpertCount, uint32(n))
	if flatten && am.Params.ExpertGroups > 1 {
		out.md.Set(prefix+arch.KeyExpertGroups, uint32(1))
		out.md.Set(prefix+arch.KeyGroupsUsed, uint32(1))
	}
	return out
}

// cut returns the shape with n experts: the last dimension is theirs, but that
// the bias of Ernie's choice is a matrix of one row.
func cut(t testing.TB, info *gguf.TensorInfo, experts, n int) []int64 {
	shape := slices.Clone(info.Shape)
	at := len(shape) - 1
	if info.Rows() == 1 {
		at = 0
	}
	if shape[at] != int64(experts) {
		t.Fatalf("%s has shape %v, want one of %d experts", info.Name, info.Shape, experts)
	}
	shape[at] = int64(n)
	return shape
}

// ofExperts goes by llama.cpp's names: stacked experts, and the router's rows and
// biases, but not what scales its input.
func ofExperts(n arch.Name) bool {
	s := n.String()
	return strings.Contains(s, "_exps.") || strings.Contains(s, ".exp_probs_b.") ||
		strings.HasSuffix(s, ".ffn_gate_inp.weight") || strings.HasSuffix(s, ".ffn_gate_inp.bias")
}

func (m *model) Metadata() *gguf.Metadata   { return m.md }
func (m *model) Tensors() []gguf.TensorInfo { return m.tensors }

func (m *model) Rows(ctx context.Context, i int, first, n int64, buf []byte) ([]byte, error) {
	keep, whole := m.kept[i], &m.Model.Tensors()[i]
	if keep == nil {
		return m.Model.Rows(ctx, i, first, n, buf)
	}
	row, out := make([]byte, whole.RowBytes()), buf[:0]
	if whole.Rows() == 1 {
		raw, err := m.Model.Rows(ctx, i, 0, 1, row)
		size := len(raw) / m.experts
		for _, e := range keep {
			out = append(out, raw[e*size:(e+1)*size]...)
		}
		return out, err
	}
	each := whole.Rows() / int64(m.experts)
	for r := first; r < first+n; r++ {
		raw, err := m.Model.Rows(ctx, i, int64(keep[r/each])*each+r%each, 1, row)
		if err != nil {
			return nil, err
		}
		out = append(out, raw...)
	}
	return out, nil
}

// Choose keeps so many experts of every block of a model, not the same in all,
// and of groups as many in each unless they are given up.
func Choose(p *arch.Params, keep int, flatten bool) map[int][]int {
	rng, blocks := rand.New(rand.NewPCG(1, uint64(keep))), map[int][]int{}
	groups := 1
	if p.ExpertGroups > 1 && !flatten {
		groups = p.ExpertGroups
	}
	size := p.Experts / groups
	for l := range p.Trunk() {
		if !p.MoE(l) {
			continue
		}
		for g := range groups {
			for _, e := range rng.Perm(size)[:keep/groups] {
				blocks[l] = append(blocks[l], g*size+e)
			}
		}
		slices.Sort(blocks[l])
	}
	return blocks
}
