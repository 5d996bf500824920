package engine

import (
	"context"
	"fmt"

	"github.com/winnow-moe/winnow/engine/kernel"
	"github.com/winnow-moe/winnow/formats/arch"
)

// nextn is what a block of multi-token prediction (MTP) has beside the tensors of
// an ordinary one.
type nextn struct {
	proj         *tensor // [embed, 2·embed]
	embd         *tensor // [vocab, embed]; nil: the model's
	eNorm, hNorm *tensor // [embed]: of the two halves of what proj is applied to
	headNorm     *tensor // [embed]: before its output weight; nil: the model's
	head         *tensor // [vocab, embed]: that, which is not multiplied
}

func (n *nextn) slots() map[arch.Role]affineSlots {
	return map[arch.Role]affineSlots{
		arch.NextnEHProj: {weight: &n.proj}, arch.NextnEmbd: {weight: &n.embd},
		arch.NextnENorm: {weight: &n.eNorm}, arch.NextnHNorm: {weight: &n.hNorm},
		arch.NextnSharedNorm: {weight: &n.headNorm}, arch.NextnSharedHead: {weight: &n.head},
	}
}

// watched reports whether anything is told of passes.
func (o *Options) watched() bool { return o.Observer != nil || o.Sampler != nil }

// boundNextn returns how many MTP blocks are bound: none if nothing needs them, or
// if the family does not say what they begin with.
func boundNextn(am *arch.Model, opt *Options) int {
	if !am.Family.HasMTP() || !opt.watched() && !opt.Nextn {
		return 0
	}
	return am.Params.NextnLayers
}

// predictors are the MTP blocks that a pass runs: for an observer or a sampler.
func (m *Model) predictors() []layer {
	if !m.opt.watched() {
		return nil
	}
	return m.nextn
}

// steps is the number of blocks that a batch goes through.
func (m *Model) steps() int { return len(m.layers) + len(m.predictors()) }

// predict runs the MTP blocks behind the output norm, one after the other. They
// change nothing of the batch.
func (p *pass) predict(ctx context.Context) error {
	q := *p // the batch as it is in these blocks
	defer func() { p.buffers, p.squares = q.buffers, q.squares }()
	list := p.m.predictors()
	for i := range list {
		if err := q.next(ctx, &list[i]); err != nil {
			return fmt.Errorf("block %d: %w", list[i].number, err)
		}
		p.passed()
	}
	return nil
}

// next runs an MTP block, for all tokens but the last of every sequence
// (DeepSeek-AI 2024, "DeepSeek-V3 Technical Report", arXiv 2412.19437, section
// 2.2). With e the embedding of the token that follows, and h what the output
// weight is applied to,
//
//	x = proj·[enorm(e); hnorm(h)]
//
// goes through an ordinary block, of which the norm of its head then makes the
// next h. That h is normed before hnorm is not in the report; llama.cpp
// (src/models/deepseek2.cpp, glm4-moe.cpp, qwen3next.cpp: h_nextn) and vLLM
// (model_executor/models/deepseek_mtp.py) have it so.
func (p *pass) next(ctx context.Context, l *layer) error {
	if err := p.enter(ctx, l); err != nil || p.x.Rows == 0 {
		return err
	}
	if err := p.block(ctx, l); err != nil {
		return err
	}
	norm := affine{w: l.nextn.headNorm}
	if norm.w == nil {
		norm = p.m.outNorm
	}
	if err := p.normalize(ctx, norm, p.x); err != nil {
		return err
	}
	if l.nextn.head == nil {
		return nil
	}
	return p.observeHead(ctx, l.nextn.head)
}

// enter makes x the input of an ordinary block.
func (p *pass) enter(ctx context.Context, l *layer) error {
	h := p.x.Gather(p.follow())
	in, err := p.nextInput(ctx, l, h)
	if err != nil {
		return err
	}
	p.x, p.norm = p.buffers.next.matrix(h.Rows, h.Cols), p.buffers.norm.matrix(h.Rows, h.Cols)
	return p.multiply(ctx, whole(l.nextn.proj, in, p.x))
}

// follow makes the batch that of the tokens that follow one, each at the position
// of the one before it, and returns the rows of those. Sequences without are left
// out.
func (p *pass) follow() (rows []int32) {
	ids, seqs := p.ids, p.seqs
	p.ids, p.pos, p.seqOf, p.seqs = nil, nil, nil, nil
	for _, s := range seqs {
		if s.n < 2 {
			continue
		}
		p.seqs = append(p.seqs, span{len(p.ids), s.n - 1})
		for i := range s.n - 1 {
			rows = append(rows, int32(s.first+i))
			p.ids, p.pos, p.seqOf = append(p.ids, ids[s.first+i+1]), append(p.pos, i), append(p.seqOf, len(p.seqs)-1)
		}
	}
	return rows
}

// nextInput makes [enorm(e); hnorm(h)], [tokens, 2·embed].
func (p *pass) nextInput(ctx context.Context, l *layer, h kernel.Matrix) (kernel.Matrix, error) {
	in, embed := p.buffers.hidden.matrix(h.Rows, 2*h.Cols), h.Cols
	embd := l.nextn.embd
	if embd == nil {
		embd = p.m.embd
	}
	if err := p.embed(ctx, embd, in.Columns(0, embed)); err != nil {
		return in, err
	}
	eNorm, err := p.m.normer(ctx, affine{w: l.nextn.eNorm})
	if err != nil {
		return in, err
	}
	hNorm, err := p.m.normer(ctx, affine{w: l.nextn.hNorm})
	if err != nil {
		return in, err
	}
	return in, p.m.chunks(ctx, h.Rows, func(_ *worker, first, n int) error {
		for i := first; i < first+n; i++ {
			row := in.Row(i)
			eNorm.apply(row[:embed], row[:embed])
			hNorm.apply(row[embed:], h.Row(i))
		}
		if !finite(in.Slice(first, n)) {
			return fmt.Errorf("the input of tensor %q is not finite: values overflow float32", l.nextn.proj.info.Name)
		}
		return nil
	})
}

// next counts what an MTP block takes beside an ordinary one: its residual stream,
// tokens of its own, and its input, whose columns are observed.
func (n *needs) next(l *layer) {
	embed := n.m.embd.cols
	n.layer(l)
	n.at(atNext, n.rows(embed)+n.rows(2*(1+2+2+1)))
	n.at(atHidden, n.rows(2*embed))
	n.observed = max(n.observed, 8*int64(n.tokens/n.longest+1)*int64(2*embed))
}
