package experts

import (
	"context"
	"fmt"
	"maps"
	"runtime"
	"slices"
	"sync"

	"golang.org/x/sync/errgroup"

	"github.com/winnow-moe/winnow/formats/arch"
)

// Rows reads rows [first, first+n) of a tensor of the whole model, by GGUF name,
// as float32; rows of all experts follow each other. It is called by several
// goroutines at once.
type Rows func(ctx context.Context, name string, first, n int64, dst []float32) error

// MergeOptions say how experts are merged.
type MergeOptions struct {
	Align   bool // members' hidden neurons are put into the center's order first (see MergeRules)
	Threads int  // that match neurons; 0: one for each processor
	// Products, if set, computes the costs of matching much faster than a loop of Go
	// in float64 does. Where two orders are all but equally good the one that is found
	// may depend on its rounding.
	Products Products
	// Progress is told how many of the experts to be aligned are; may be nil.
	Progress func(done, total int)
}

// Merge is the weights of a model in which groups of experts have become one: in
// the place of a group's center is the mean of its members, and everywhere else
// what was there. Weights are computed when they are asked for, in float64 and in
// the order of the experts: they do not depend on how many are asked for at once.
type Merge struct {
	read    Rows
	blocks  map[int]*mergedBlock
	tensors map[string]*mergedTensor // those that change, by GGUF name
}

// mergedBlock is a block whose experts are merged.
type mergedBlock struct {
	keep   []int
	groups map[int][]part // of more than one expert, by center
}

// part is an expert in a mean.
type part struct {
	expert int
	weight float64
	order  []int32 // its neuron at each place; nil: as they are
}

// axis says where a tensor has the hidden neurons.
type axis int

const (
	nowhere axis = iota
	alongRows
	alongColumns
)

// mergedTensor is a tensor with a matrix, or a vector, for every expert.
type mergedTensor struct {
	name       string
	block      *mergedBlock
	rows, cols int64 // of one expert
	neurons    axis
	n          int64 // hidden neurons; where gate and up are one, up's come behind the gate's
}

// NewMerge merges groups of experts by block. To align them it reads the weights
// of every member, two experts at a time for each thread, which beside them needs
// up to 12 bytes for every pair of neurons, and keeps the orders of the neurons.
// Errors match ErrInvalid where groups do not fit the model.
func NewMerge(ctx context.Context, m *arch.Model, groups map[int][]Group, read Rows, opt MergeOptions) (*Merge, error) {
	if err := checkRouted(&m.Params); err != nil {
		return nil, err
	}
	out := &Merge{read: read, blocks: map[int]*mergedBlock{}, tensors: map[string]*mergedTensor{}}
	for _, l := range slices.Sorted(maps.Keys(groups)) {
		if !slices.Contains(Blocks(&m.Params, PruneMTP), l) {
			return nil, invalid("block %d has no experts in the model", l)
		}
		if err := checkMerged(l, groups[l], m.Params.Experts); err != nil {
			return nil, err
		}
		out.blocks[l] = newMergedBlock(groups[l])
	}
	for _, t := range m.Tensors() {
		if b := out.blocks[t.Name.Layer]; b != nil && len(b.groups) > 0 {
			if merged := newMergedTensor(&t, b); merged != nil {
				out.tensors[merged.name] = merged
			}
		}
	}
	if !opt.Align {
		return out, nil
	}
	return out, out.align(ctx, opt)
}

func newMergedBlock(groups []Group) *mergedBlock {
	b := &mergedBlock{groups: map[int][]part{}}
	for _, g := range groups {
		b.keep = append(b.keep, g.Center)
		if len(g.Members) == 1 {
			continue
		}
		for i, e := range g.Members {
			b.groups[g.Center] = append(b.groups[g.Center], part{expert: e, weight: g.Weights[i]})
		}
	}
	return b
}

// newMergedTensor describes a tensor of the experts' networks, nil for others:
// of routers and of factors on outputs the center's stay.
func newMergedTensor(t *arch.Tensor, b *mergedBlock) *mergedTensor {
	out := &mergedTensor{name: t.Name.String(), block: b, rows: 1, cols: t.Shape[0]}
	wide := int64(1)
	switch t.Name.Role {
	case arch.ExpertGate, arch.ExpertUp:
		out.neurons = alongRows
	case arch.ExpertGateUp:
		out.neurons, wide = alongRows, 2
	case arch.ExpertDown:
		out.neurons = alongColumns
	default:
		return nil
	}
	switch {
	case t.Name.Suffix == "weight" && len(t.Shape) == 3:
		out.rows = t.Shape[1]
	case t.Name.Suffix != "bias" || len(t.Shape) != 2:
		return nil
	case out.neurons == alongRows:
		out.neurons = alongColumns
	default:
		out.neurons = nowhere
	}
	out.n = map[axis]int64{alongRows: out.rows, alongColumns: out.cols}[out.neurons] / wide
	return out
}

// Has reports whether rows of a tensor are not those of the model.
func (m *Merge) Has(name string) bool { return m.tensors[name] != nil }

// Keep returns the centers by block, ascending: the experts that stay.
func (m *Merge) Keep() map[int][]int {
	out := map[int][]int{}
	for l, b := range m.blocks {
		out[l] = slices.Clone(b.keep)
	}
	return out
}

// Rows computes rows [first, first+n) of a tensor that it has, in the numbering
// of the whole model. Beside dst it needs the memory of up to four more of its
// size. It may be called by several goroutines at once.
func (m *Merge) Rows(ctx context.Context, name string, first, n int64, dst []float32) error {
	t := m.tensors[name]
	if t == nil {
		return invalid("tensor %q is not merged", name)
	}
	if first < 0 || n < 0 || int64(len(dst)) != n*t.cols {
		return invalid("tensor %q: %d numbers wanted as rows %d to %d of %d", name, len(dst), first, first+n-1, t.cols)
	}
	for n > 0 {
		e, k := first/t.rows, min(n, t.rows-first%t.rows)
		var err error
		if parts := t.block.groups[int(e)]; parts != nil {
			err = m.mean(ctx, t, parts, first%t.rows, k, dst[:k*t.cols])
		} else {
			for k < n && t.block.groups[int((first+k)/t.rows)] == nil {
				k += min(t.rows, n-k)
			}
			err = m.read(ctx, name, first, k, dst[:k*t.cols])
		}
		if err != nil {
			return fmt.Errorf("tensor %q: %w", name, err)
		}
		dst, first, n = dst[k*t.cols:], first+k, n-k
	}
	return nil
}

// mean computes rows [first, first+n) of the mean of some experts.
func (m *Merge) mean(ctx context.Context, t *mergedTensor, parts []part, first, n int64, dst []float32) error {
	sum, rows := make([]float64, len(dst)), &gathered{}
	for _, p := range parts {
		if err := rows.read(ctx, m.read, t, &p, first, n); err != nil {
			return err
		}
		for i := range n {
			to, from := sum[i*t.cols:][:t.cols], rows.row(i)
			if t.neurons != alongColumns || p.order == nil {
				for x, v := range from {
					to[x] += float64(p.weight * float64(v))
				}
				continue
			}
			for x := range to {
				to[x] += float64(p.weight * float64(from[t.source(p.order, int64(x))]))
			}
		}
	}
	for i, v := range sum {
		dst[i] = float32(v)
	}
	return nil
}

// source is the place in an expert of what comes to stand at place i.
func (t *mergedTensor) source(order []int32, i int64) int64 {
	return i - i%t.n + int64(order[i%t.n])
}

// gathered is rows of one expert.
type gathered struct {
	data []float32
	cols int64
	at   []int64 // where in data each row is, counted in rows
}

func (g *gathered) row(i int64) []float32 { return g.data[g.at[i]*g.cols:][:g.cols] }

// read fills g with the rows of an expert that come to stand at [first, first+n).
func (g *gathered) read(ctx context.Context, read Rows, t *mergedTensor, p *part, first, n int64) error {
	want := make([]int64, n)
	for i := range n {
		if want[i] = first + i; t.neurons == alongRows && p.order != nil {
			want[i] = t.source(p.order, first+i)
		}
	}
	g.cols, g.at = t.cols, make([]int64, n)
	sorted := slices.Sorted(slices.Values(want))
	spans, total := spans(sorted)
	if int64(len(g.data)) < total*t.cols {
		g.data = make([]float32, total*t.cols)
	}
	for _, s := range spans {
		if err := read(ctx, t.name, int64(p.expert)*t.rows+s.first, s.n, g.data[s.at*t.cols:][:s.n*t.cols]); err != nil {
			return err
		}
	}
	for i, row := range want {
		k, found := slices.BinarySearchFunc(spans, row, func(s span, row int64) int { return int(s.first - row) })
		if !found {
			k--
		}
		g.at[i] = spans[k].at + row - spans[k].first
	}
	return nil
}

// span is rows that are read at once, and where they come to stand.
type span struct{ first, n, at int64 }

// spans gathers ascending rows that follow each other, or all with what is
// between them where that is less than twice as much: some readers need as long
// for a row as for many.
func spans(rows []int64) (list []span, total int64) {
	if n := rows[len(rows)-1] + 1 - rows[0]; n < 2*int64(len(rows)) {
		return []span{{rows[0], n, 0}}, n
	}
	for i, row := range rows {
		if i > 0 && row == rows[i-1]+1 {
			list[len(list)-1].n++
		} else {
			list = append(list, span{row, 1, int64(i)})
		}
	}
	return list, int64(len(rows))
}

// pair is a member to be aligned with the center of its group.
type pair struct {
	block  *mergedBlock
	layer  int
	center int
	part   *part
}

// align finds the orders of the members' neurons.
func (m *Merge) align(ctx context.Context, opt MergeOptions) error {
	pairs := m.pairs()
	next, done := 0, 0
	var lock sync.Mutex
	take := func(finished int) *pair {
		lock.Lock()
		defer lock.Unlock()
		if done += finished; finished > 0 && opt.Progress != nil {
			opt.Progress(done, len(pairs))
		}
		if next == len(pairs) {
			return nil
		}
		next++
		return &pairs[next-1]
	}
	threads := opt.Threads
	if threads <= 0 {
		threads = runtime.GOMAXPROCS(0)
	}
	group, ctx := errgroup.WithContext(ctx)
	for range min(threads, len(pairs)) {
		group.Go(func() error {
			a := aligner{merge: m, products: opt.Products}
			for p := take(0); p != nil; p = take(1) {
				if err := a.align(ctx, p); err != nil {
					return fmt.Errorf("block %d, experts %d and %d: %w", p.layer, p.center, p.part.expert, err)
				}
			}
			return nil
		})
	}
	return group.Wait()
}

// pairs lists the members to be aligned, those of one center together.
func (m *Merge) pairs() (list []pair) {
	for _, l := range slices.Sorted(maps.Keys(m.blocks)) {
		b := m.blocks[l]
		for _, c := range slices.Sorted(maps.Keys(b.groups)) {
			for i := range b.groups[c] {
				if p := &b.groups[c][i]; p.expert != c {
					list = append(list, pair{b, l, c, p})
				}
			}
		}
	}
	return list
}

// aligner aligns one pair after the other. It has the weights of two experts.
type aligner struct {
	merge          *Merge
	products       Products
	last           *pair
	center, expert neurons
}

func (a *aligner) align(ctx context.Context, p *pair) (err error) {
	if a.last == nil || a.last.block != p.block || a.last.center != p.center {
		if err := a.load(ctx, &a.center, p, p.center); err != nil {
			return err
		}
		a.last = p
	}
	if err := a.load(ctx, &a.expert, p, p.part.expert); err != nil {
		return err
	}
	p.part.order, err = match(ctx, &a.center, &a.expert, a.products)
	return err
}

// matrixRoles are those of an expert's matrices.
var matrixRoles = [...]arch.Role{arch.ExpertGate, arch.ExpertUp, arch.ExpertGateUp, arch.ExpertDown}

// load reads the weights of an expert.
func (a *aligner) load(ctx context.Context, to *neurons, p *pair, e int) error {
	parts := to.parts[:0]
	for i, role := range matrixRoles {
		t := a.merge.tensors[arch.Name{Layer: p.layer, Role: role, Suffix: "weight"}.String()]
		if t == nil {
			continue
		}
		to.n = int(t.n)
		to.data[i] = slices.Grow(to.data[i][:0], int(t.rows*t.cols))
		whole := to.data[i][:t.rows*t.cols]
		if err := a.weights(ctx, t, int64(e), whole); err != nil {
			return fmt.Errorf("tensor %q: %w", t.name, err)
		}
		for part := range slices.Chunk(whole, int(t.n*t.width())) {
			parts = append(parts, part)
		}
	}
	to.parts = parts
	return nil
}

// width is how many weights a neuron has in each of its rows, or its column.
func (t *mergedTensor) width() int64 {
	if t.neurons == alongColumns {
		return t.rows
	}
	return t.cols
}

// weights reads the matrix of an expert, a neuron after the other.
func (a *aligner) weights(ctx context.Context, t *mergedTensor, e int64, dst []float32) error {
	if t.neurons == alongRows {
		return a.merge.read(ctx, t.name, e*t.rows, t.rows, dst)
	}
	strip := make([]float32, min(t.rows, stripRows)*t.cols)
	for first := int64(0); first < t.rows; first += stripRows {
		n := min(stripRows, t.rows-first)
		if err := a.merge.read(ctx, t.name, e*t.rows+first, n, strip[:n*t.cols]); err != nil {
			return err
		}
		for r := range n {
			for c := range t.cols {
				dst[c*t.rows+first+r] = strip[r*t.cols+c]
			}
		}
	}
	return nil
}

// stripRows is how many rows are read at once to be turned on their side.
const stripRows = 256
