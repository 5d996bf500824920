package engine

import (
	"context"
	"fmt"

	"github.com/winnow-moe/winnow/engine/kernel"
	"github.com/winnow-moe/winnow/formats/arch"
)

// queryBlock is the number of queries of one head that are scored together.
// Scores of a worker take queryBlock times the length of the sequence.
const queryBlock = 64

// headGroup returns how many heads, whose queries, keys and values are the
// given floats per token, are handled together: at least one.
func (p *pass) headGroup(perToken, heads int) int {
	return min(heads, max(1, p.m.budget/(perToken*max(1, p.x.Rows))))
}

// gqa is grouped-query attention (Ainslie et al. 2023) with rotary positions:
// the output is added to the residual stream.
func (p *pass) gqa(ctx context.Context, l *layer) error {
	par := p.m.Params()
	d, per := par.HeadDim(), par.Heads/par.KVHeads // query heads per key head
	att := p.buffers.att.matrix(p.x.Rows, par.Heads*d)
	step := p.headGroup((per+2)*d, par.KVHeads)
	for h := 0; h < par.KVHeads; h += step {
		n := min(step, par.KVHeads-h)
		// q [tokens, n·per·d], k [tokens, n·d], vt [n·d, tokens]
		q := p.buffers.q.matrix(p.x.Rows, n*per*d)
		k := p.buffers.k.matrix(p.x.Rows, n*d)
		vt := p.buffers.vt.matrix(n*d, p.x.Rows)
		err := p.m.multiply(ctx,
			product{w: l.q, first: h * per * d, rows: n * per * d, x: p.norm, dst: q},
			product{w: l.k, first: h * d, rows: n * d, x: p.norm, dst: k},
			product{w: l.v, first: h * d, rows: n * d, x: p.norm, dst: vt, transposed: true})
		if err != nil {
			return err
		}
		if err := p.rotateHeads(ctx, q, d, 0); err != nil {
			return err
		}
		if err := p.rotateHeads(ctx, k, d, 0); err != nil {
			return err
		}
		out := att.Columns(h*per*d, n*per*d)
		if err := p.attend(ctx, &heads{q: q, k: k, vt: vt, out: out, n: n * per, per: per}); err != nil {
			return err
		}
	}
	out := whole(l.attnOutput, att, p.x)
	out.add = true
	return p.m.multiply(ctx, out)
}

// mla is DeepSeek's multi-head latent attention (DeepSeek-V2, section 2.1; HF
// modeling_deepseek_v3.py): keys and values are decompressed from a latent of
// r elements per token by k_b and v_b, and the rotated part of the keys is
// shared by all heads. Decompressing costs less than scoring in the latent
// space as soon as a sequence has more than a few tokens.
func (p *pass) mla(ctx context.Context, l *layer) error {
	par := p.m.Params()
	tokens, r := p.x.Rows, par.KVLora
	dk, dv, nope := par.KeyLenMLA, par.ValueLenMLA, par.KeyLenMLA-par.RopeDim
	latent, query, qWeight, err := p.latents(ctx, l)
	if err != nil {
		return err
	}
	att := p.buffers.att.matrix(tokens, par.Heads*dv)
	step := p.headGroup(2*dk+dv, par.Heads)
	for h := 0; h < par.Heads; h += step {
		n := min(step, par.Heads-h)
		// q [tokens, n·dk], vt [n·dv, tokens]
		q := p.buffers.q.matrix(tokens, n*dk)
		vt := p.buffers.vt.matrix(n*dv, tokens)
		err := p.m.multiply(ctx,
			product{w: qWeight, first: h * dk, rows: n * dk, x: query, dst: q},
			product{w: l.vB, first: h * dv, rows: n * dv, x: latent.Columns(0, r), dst: vt, transposed: true})
		if err != nil {
			return err
		}
		if err := p.rotateHeads(ctx, q, dk, nope); err != nil {
			return err
		}
		k, err := p.keys(ctx, l.kB, latent, h, n)
		if err != nil {
			return err
		}
		if err := p.attend(ctx, &heads{q: q, k: k, vt: vt, out: att.Columns(h*dv, n*dv), n: n, per: 1}); err != nil {
			return err
		}
	}
	out := whole(l.attnOutput, att, p.x)
	out.add = true
	return p.m.multiply(ctx, out)
}

// latents computes the compressed keys and values, [tokens, r + rope]: the
// normalised latent followed by the rotated shared part of the keys; and what
// the queries are made from, the normalised query latent or the block's input,
// with the weight that makes them.
func (p *pass) latents(ctx context.Context, l *layer) (latent, query kernel.Matrix, qWeight *tensor, err error) {
	par := p.m.Params()
	r, eps := par.KVLora, p.m.arch.Family.Block.LatentNormEps
	if eps == 0 {
		eps = par.NormEps
	}
	latent = p.buffers.latent.matrix(p.x.Rows, r+par.RopeDim)
	query, qWeight = p.norm, l.q
	products := []product{whole(l.kvA, p.norm, latent)}
	if l.qA != nil {
		query, qWeight = p.buffers.qLatent.matrix(p.x.Rows, par.QLora), l.qB
		products = append(products, whole(l.qA, p.norm, query))
	}
	kvNorm, err := p.m.vector(ctx, l.kvANorm)
	if err != nil {
		return latent, query, nil, err
	}
	qNorm, err := p.m.vector(ctx, l.qANorm)
	if err != nil {
		return latent, query, nil, err
	}
	if err := p.m.multiply(ctx, products...); err != nil {
		return latent, query, nil, err
	}
	err = p.m.chunks(ctx, p.x.Rows, func(_ *worker, first, n int) error {
		for i := first; i < first+n; i++ {
			row := latent.Row(i)
			rmsNorm(row[:r], row[:r], kvNorm, eps)
			p.rope.rotate(row[r:], p.pos[i])
			if qNorm != nil {
				rmsNorm(query.Row(i), query.Row(i), qNorm, eps)
			}
		}
		return nil
	})
	return latent, query, qWeight, err
}

// keys decompresses the keys of heads [h, h+n): [tokens, n·(nope + rope)].
// k_b is stored as [heads, r, nope]; each head is transposed once so that the
// products run along rows.
func (p *pass) keys(ctx context.Context, kB *tensor, latent kernel.Matrix, h, n int) (kernel.Matrix, error) {
	r, nope, dk := p.m.Params().KVLora, kB.cols, p.m.Params().KeyLenMLA
	turned := kernel.NewMatrix(grow(&p.buffers.kB.data, n*nope*r), n*nope, r)
	k := p.buffers.k.matrix(p.x.Rows, n*dk)
	err := p.m.parallel(ctx, n, func(ctx context.Context, w *worker, i int) error {
		weights, err := p.m.read(ctx, w, 0, kB, (h+i)*r, r)
		if err == nil {
			transpose(turned.Slice(i*nope, nope), weights)
		}
		return err
	})
	if err != nil {
		return k, err
	}
	return k, p.m.chunks(ctx, p.x.Rows, func(_ *worker, first, rows int) error {
		c, dst := latent.Slice(first, rows), k.Slice(first, rows)
		for i := range n {
			if err := checked(kB, dst.Columns(i*dk, nope), c.Columns(0, r), turned.Slice(i*nope, nope)); err != nil {
				return err
			}
			for t := range rows {
				copy(dst.Row(t)[i*dk+nope:(i+1)*dk], c.Row(t)[r:])
			}
		}
		return nil
	})
}

// transpose writes the columns of src to the rows of dst.
func transpose(dst, src kernel.Matrix) {
	for i := range dst.Rows {
		row := dst.Row(i)
		for j := range row {
			row[j] = src.Data[j*src.Stride+i]
		}
	}
}

// rotateHeads turns the elements from offset on of every head of d elements in
// x [tokens, heads·d].
func (p *pass) rotateHeads(ctx context.Context, x kernel.Matrix, d, offset int) error {
	return p.m.chunks(ctx, x.Rows, func(_ *worker, first, n int) error {
		for i := first; i < first+n; i++ {
			for row := x.Row(i); len(row) > 0; row = row[d:] {
				p.rope.rotate(row[offset:], p.pos[i])
			}
		}
		return nil
	})
}

// heads is the input and output of attention for a group of n query heads, per
// of which share one key and value head.
type heads struct {
	q, k   kernel.Matrix // [tokens, n·dk], [tokens, n/per·dk]
	vt     kernel.Matrix // [n/per·dv, tokens]: values, transposed
	out    kernel.Matrix // [tokens, n·dv]
	n, per int
}

// attend computes softmax(scale·q·kᵀ)·v for every sequence and head, each
// query over the keys up to its own.
func (p *pass) attend(ctx context.Context, a *heads) error {
	type task struct {
		seq         span
		head, query int
	}
	var tasks []task
	for _, s := range p.seqs {
		for h := range a.n {
			for q := 0; q < s.n; q += queryBlock {
				tasks = append(tasks, task{s, h, q})
			}
		}
	}
	scale := scoreScale(p.m.arch)
	return p.m.parallel(ctx, len(tasks), func(_ context.Context, w *worker, i int) error {
		t := &tasks[i]
		if a.block(w, t.seq, t.head, t.query, scale) {
			return nil
		}
		return fmt.Errorf("attention of head %d is not finite: values overflow float32", t.head)
	})
}

// block computes the output of up to queryBlock queries of one head from query
// first of a sequence on. It reports whether the result is finite.
func (a *heads) block(w *worker, seq span, head, first int, scale float32) bool {
	dk, dv, kv := a.q.Cols/a.n, a.out.Cols/a.n, head/a.per
	queries := min(queryBlock, seq.n-first)
	keys := first + queries
	// scores [queries, keys]
	scores := kernel.NewMatrix(grow(&w.out, queries*keys), queries, keys)
	q := a.q.Columns(head*dk, dk).Slice(seq.first+first, queries)
	k := a.k.Columns(kv*dk, dk).Slice(seq.first, keys)
	kernel.MatMul(scores, q, k)
	var sums [queryBlock]float64
	for i := range queries {
		row := scores.Row(i)
		sums[i] = kernel.Softmax(row[:first+i+1], scale)
		clear(row[first+i+1:])
	}
	// Later keys have weight zero, which adds nothing to the sums.
	out := a.out.Columns(head*dv, dv).Slice(seq.first+first, queries)
	vt := a.vt.Slice(kv*dv, dv).Columns(seq.first, keys)
	kernel.MatMul(out, scores, vt)
	for i := range queries {
		inv := float32(1 / sums[i])
		row := out.Row(i)
		for j := range row {
			row[j] *= inv
		}
	}
	return finite(out)
}

// attention runs the block's kind of attention.
func (p *pass) attention(ctx context.Context, l *layer) error {
	if p.m.arch.Family.Block.Attn == arch.MLA {
		return p.mla(ctx, l)
	}
	return p.gqa(ctx, l)
}
