package engine

import (
	"cmp"
	"context"
	"fmt"

	"github.com/winnow-moe/winnow/engine/kernel"
	"github.com/winnow-moe/winnow/formats/arch"
)

// DefaultGroupBytes bounds the activations of the heads that are scored
// together, and of the experts that run together, if Options do not say
// otherwise. More in a group means fewer waits of threads for each other.
const DefaultGroupBytes = 128 << 20

// Memory returns how many bytes Forward holds at most for a batch of so many
// tokens in sequences of at most the given length, whatever the tokens are:
// activations, with the groups of Options.GroupBytes, and tiles of the workers.
// It does not count what an observer keeps, an output weight that is held, nor
// memory that the runtime has not taken back yet.
func (m *Model) Memory(tokens, longest int, groupBytes int64) int64 {
	n := &needs{m: m, tokens: tokens, longest: max(1, min(longest, tokens)), budget: int(groupBytes / 4)}
	for i := range m.layers {
		n.layer(&m.layers[i])
	}
	for i := range m.predictors() {
		n.next(&m.nextn[i])
	}
	total := n.batch() + n.shared
	for _, floats := range n.most {
		total += floats
	}
	bytes := 4*total + n.ints
	if m.opt.Observer != nil {
		bytes += n.observed
	}
	if m.opt.Compute != ComputeF32 {
		bytes += n.rounded()
	}
	return bytes + m.workerBytes(longest)
}

// HiddenBytes returns the bytes of the final hidden states of so many tokens.
func (m *Model) HiddenBytes(tokens int) int64 { return 4 * int64(tokens) * int64(m.embd.cols) }

// place is a buffer of a pass, or several that are full together. Every block
// uses them anew, so that each takes what the most demanding block needs.
type place int

const (
	atLatent place = iota
	atQ
	atK
	atV
	atVT
	atGates  // z and alpha of a group of heads of a delta net
	atOutput // what heads attended to
	atKB
	atHidden
	atLogits
	atPerLayer
	atWatched
	atNext
	places
)

// needs adds up what a batch takes, in floats.
type needs struct {
	m               *Model
	tokens, longest int
	budget          int // floats of a group
	most            [places]int64
	shared          int64 // keys and values of several blocks
	ints            int64 // bytes of what is chosen
	observed        int64 // bytes, with an observer
}

// rows is a matrix with a row of so many elements for every token.
func (n *needs) rows(cols int) int64 { return int64(n.tokens) * int64(cols) }

func (n *needs) at(p place, floats int64) { n.most[p] = max(n.most[p], floats) }

// batch is what does not depend on blocks: the residual stream, its norm, the
// branch and network that are added to it, and the rotations.
func (n *needs) batch() int64 {
	kind, par, embed := &n.m.arch.Family.Block, n.m.Params(), n.m.embd.cols
	total := 2 * n.rows(embed)
	l := &n.m.layers[0]
	if par.ResidualScale != 0 || l.postAttn.w != nil || l.postFFN.w != nil || l.perLayerPostNorm != nil {
		total += n.rows(embed)
	}
	if kind.BesideDense {
		total += n.rows(embed)
	}
	// ids, positions and sequences of tokens, in slices that double as they grow.
	total += n.rows(2 * (1 + 2 + 2))
	return total + 4*int64(n.longest)*int64(par.HeadDim()) // of two kinds, sines and cosines
}

func (n *needs) layer(l *layer) {
	switch {
	case l.par.IsRecurrent(l.number):
		n.delta(l)
	case n.m.arch.Family.Block.Attn == arch.MLA:
		n.mla(l)
	default:
		n.gqa(l)
	}
	n.feedForward(l)
	if width := n.m.Params().PerLayerEmbed; l.perLayerGate != nil {
		n.at(atPerLayer, n.rows(width*n.group(width, len(n.m.layers))))
		n.at(atHidden, n.rows(width))
	}
}

// group is how many of count things with so many floats per token each fit the
// budget, at least one.
func (n *needs) group(perToken, count int) int {
	return min(count, max(1, n.budget/max(1, perToken*n.tokens)))
}

// heads counts a group of heads with so many floats per token in q, k, v and vt.
func (n *needs) heads(group, q, k, v, vt int) {
	n.at(atQ, n.rows(group*q))
	n.at(atK, n.rows(group*k))
	n.at(atV, n.rows(group*v))
	n.at(atVT, n.rows(group*vt))
}

func (n *needs) gqa(l *layer) {
	par, all := l.par, n.m.Params()
	d := par.HeadDim()
	dv, wide := cmp.Or(par.ValueLen, d), d
	if n.m.arch.Family.Block.QueryGate {
		wide *= 2
	}
	q := par.Heads / par.KVHeads * wide
	group := n.group(q+d+2*dv, par.KVHeads)
	lends := all.LendsKV(l.number)
	if lends {
		n.shared += n.rows(par.KVHeads * (d + dv))
	}
	if lends || all.SharesKV(l.number) != l.number || n.m.arch.Family.Block.QKNorm == arch.QKNormWhole {
		group = par.KVHeads
	}
	n.heads(group, q, d, dv, dv)
	n.at(atOutput, n.rows(par.Heads*dv))
}

func (n *needs) mla(l *layer) {
	par := n.m.Params()
	dk, dv, r := par.KeyLenMLA, par.ValueLenMLA, par.KVLora
	nope := dk - par.RopeDim
	n.at(atLatent, n.rows(r+par.RopeDim+par.QLora))
	n.at(atOutput, n.rows(max(par.Heads*dv, par.IndexerHeads*par.IndexerKeyLen)))
	group := n.group(2*dk+dv, par.Heads)
	n.heads(group, dk, dk, 0, dv)
	n.at(atK, n.rows(par.IndexerKeyLen))
	n.at(atKB, int64(group)*int64(nope)*int64(r))
	n.at(atLogits, n.rows(par.IndexerHeads))
	if par.IndexerTopK > 0 {
		n.ints = max(n.ints, 4*n.rows(par.IndexerTopK+6))
	}
	sequences := int64(n.tokens/n.longest + 1)
	if n.m.opt.Observer != nil {
		n.at(atWatched, n.rows(r))
	}
	n.observed = max(n.observed, 4*n.rows(r)+8*sequences*int64(par.Heads*(nope+r)))
}

func (n *needs) delta(l *layer) {
	par := l.par
	dk, dv, perKey := par.StateSize, par.InnerSize/par.TimeStepRank, par.TimeStepRank/par.StateGroups
	n.at(atOutput, n.rows(par.InnerSize))
	n.at(atLogits, n.rows(2*par.TimeStepRank))
	n.at(atLatent, n.rows(2*dk))
	group := n.group(3*dk+2*perKey*dv, par.StateGroups)
	n.heads(group, dk, dk, perKey*dv, 0)
	n.at(atGates, n.rows(group*(dk+perKey*dv)))
}

// feedForward counts networks that run together: all that fit the budget, at
// least the widest alone, for which all tokens may have chosen it.
func (n *needs) feedForward(l *layer) {
	par, shared := l.par, 0
	if l.router.w == nil || n.m.arch.Family.Block.BesideDense {
		n.at(atHidden, n.rows(par.FF))
	}
	if l.router.w == nil {
		return
	}
	if l.sharedUp != nil {
		shared = l.sharedUp.rows
	}
	perToken, once := par.ExpertsUsed, 1
	if n.m.opt.Observer != nil {
		more, again := n.watched(par)
		perToken, once = perToken+more+again, once+min(again, 1)
		n.at(atWatched, n.rows(perToken*n.m.embd.cols))
	}
	all, widest := n.rows(perToken*par.ExpertFF+shared), n.rows(max(once*par.ExpertFF, shared))
	n.at(atHidden, min(all, max(int64(n.budget), widest)))
	n.at(atLogits, n.rows(par.Experts))
	if n.m.arch.Family.Block.RouteResidual {
		n.at(atLatent, n.rows(n.m.embd.cols))
	}
	// Choice and weight of every token; for every expert the same again, in
	// slices that double as they grow; the factor of shared experts.
	n.ints = max(n.ints, 8*n.rows(par.ExpertsUsed)*4+4*n.rows(1))
	n.observe(l)
}

// watched is how many more experts run for a token when they are watched, and how
// many of those that it chose run again.
func (n *needs) watched(par *arch.Params) (more, again int) {
	if n.m.opt.LeaveOneOut {
		more = 1
	}
	if n.m.arch.Family.Block.WeightInput {
		again = par.ExpertsUsed
	}
	return more, again
}

// observe counts what watching experts takes beside their outputs.
func (n *needs) observe(l *layer) {
	par, embed := l.par, n.m.embd.cols
	more, again := n.watched(par)
	sequences := int64(n.tokens/n.longest + 1)
	// Logits, shares and products of the router; four numbers of each chosen
	// expert, three of a token, and the places of outputs.
	bytes := n.rows(16*par.Experts+32*par.ExpertsUsed+24) + 8*n.rows(par.ExpertsUsed+more+again)
	if more > 0 { // gates without each expert; lists of tokens
		bytes += n.rows(4*par.ExpertsUsed*(par.ExpertsUsed+1) + 32)
	}
	squares := sequences * int64(max(par.Experts*(embed+par.ExpertFF), par.FF))
	bytes += 8 * min(squares, max(observedSums, sequences*int64(max(embed, par.FF))))
	bytes += 8 * sequences * int64(2*par.Experts*par.Experts+17*par.Experts)
	n.observed = max(n.observed, bytes)
}

// rounded is what activations take that are rounded before they are multiplied:
// of the left sides of one call at a time, in two forms at most, and in buffers
// that may have grown for others.
func (n *needs) rounded() int64 {
	in := max(n.rows(n.m.embd.cols), n.most[atOutput], n.most[atLatent])
	return 4 * 2 * (in + max(in, n.most[atHidden]))
}

// workerBytes is the memory of the workers: encoded and decoded tiles, packed
// ones, and products before they are combined. Tiles of integers have more rows
// in the same memory.
func (m *Model) workerBytes(longest int) int64 {
	most := tileFloats
	if m.opt.Compute != ComputeF32 {
		most = tileIntegers
	}
	tile, out := tileFloats, queryBlock*longest
	for i := range m.steps() {
		for _, index := range m.block(i).indices {
			info := &m.src.Tensors()[index]
			rows, cols := int(info.Rows()), max(1, int(info.RowLen()))
			tile = max(tile, min(rows, kernel.Active().Lanes)*cols)
			out = max(out, chunk*min(rows, max(kernel.Active().Lanes, most/cols)))
		}
	}
	outs := 1
	if m.opt.Observer != nil {
		outs++ // a copy of products
	}
	par := m.Params()
	tile = max(tile, par.KVLora*par.KeyLenMLA)
	if par.IndexerTopK > 0 {
		tile = max(tile, queryBlock*longest)
	}
	// A worker that was put aside may be there beside each that runs.
	return 2 * 4 * int64(m.opt.Threads) * int64(5*tile+outs*out)
}

// OutputBytes is the encoded size of the output weight, which Logits reads.
func (m *Model) OutputBytes() int64 { return m.output.w.info.Size() }

// holdOutput reads the output weight, once for all rows of logits.
func (m *Model) holdOutput(ctx context.Context) error {
	m.heldLock.Lock()
	defer m.heldLock.Unlock()
	w := m.output.w
	if !m.opt.HoldOutput || w.held.Load() != nil {
		return nil
	}
	held := make([]byte, w.info.Size())
	step := max(1, tileFloats/w.cols)
	for first := 0; first < w.rows; first += step {
		n := min(step, w.rows-first)
		dst := held[int64(first)*w.info.RowBytes():][:int64(n)*w.info.RowBytes()]
		raw, err := m.src.Rows(ctx, w.index, int64(first), int64(n), dst)
		if err != nil {
			return fmt.Errorf("holding the output weight: %w", err)
		}
		copy(dst, raw)
	}
	w.held.Store(&held)
	return nil
}

// Work returns about how many multiplications the blocks take for a token, and
// its logits.
func (m *Model) Work() (blocks, logits float64) {
	for i := range m.steps() {
		l := m.block(i)
		for _, index := range l.indices {
			info := &m.src.Tensors()[index]
			n := float64(info.Elements())
			if len(info.Shape) == 3 && l.par.Experts > 0 && int(info.Shape[2]) == l.par.Experts {
				n *= float64(l.par.ExpertsUsed) / float64(l.par.Experts)
			}
			blocks += n
		}
	}
	return blocks, float64(m.output.w.info.Elements())
}
