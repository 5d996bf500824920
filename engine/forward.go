package engine

import (
	"context"
	"fmt"

	"github.com/winnow-moe/winnow/engine/kernel"
)

// Hidden holds the final hidden states of sequences: after the last block and
// the output norm, ready to be multiplied by the output weight.
type Hidden struct {
	rows kernel.Matrix // [tokens of all sequences, embed]
	seqs []span
}

// span is a range of rows.
type span struct{ first, n int }

// Rows returns the number of tokens of all sequences.
func (h *Hidden) Rows() int { return h.rows.Rows }

// Seq returns the rows of sequence i: token t is row first+t.
func (h *Hidden) Seq(i int) (first, n int) { return h.seqs[i].first, h.seqs[i].n }

// Forward runs sequences of token ids through the model, each from position 0
// and none aware of the others. Batches of whole sequences of at most
// Options.BatchTokens tokens (a longer sequence is a batch of its own) go
// through the model one after the other, each block by block; only the hidden
// states of all of them are kept.
//
// An id outside the vocabulary, and a value that is not finite anywhere on the
// way, are errors.
func (m *Model) Forward(ctx context.Context, seqs [][]int32) (*Hidden, error) {
	h := &Hidden{seqs: make([]span, len(seqs))}
	total := 0
	for i, s := range seqs {
		for pos, id := range s {
			if id < 0 || int(id) >= m.embd.rows {
				return nil, fmt.Errorf("sequence %d, position %d: token id %d is outside the vocabulary of %d", i, pos, id, m.embd.rows)
			}
		}
		h.seqs[i] = span{total, len(s)}
		total += len(s)
	}
	h.rows = kernel.NewMatrix(make([]float32, total*m.embd.cols), total, m.embd.cols)

	batches := m.batches(h.seqs)
	p := &pass{m: m, blocks: len(batches) * len(m.layers)}
	for _, b := range batches {
		p.start(h, seqs[b.first:b.first+b.n], h.seqs[b.first:b.first+b.n])
		if err := p.run(ctx); err != nil {
			return nil, err
		}
	}
	return h, nil
}

// batches groups sequences in their order: ranges of their numbers.
func (m *Model) batches(seqs []span) []span {
	var out []span
	tokens := 0
	for i, s := range seqs {
		if len(out) == 0 || tokens+s.n > m.opt.BatchTokens {
			out = append(out, span{i, 0})
			tokens = 0
		}
		out[len(out)-1].n++
		tokens += s.n
	}
	return out
}

// pass is one batch on its way through the model.
type pass struct {
	m            *Model
	ids          []int32 // of all tokens of the batch
	pos          []int   // of every token in its sequence
	seqs         []span
	x            kernel.Matrix // [tokens, embed]: the residual stream
	norm         kernel.Matrix // [tokens, embed]: its normalised form
	rope         *ropeTable
	buffers      buffers
	done, blocks int // progress over all batches
}

// buffers are the activations within a block, kept from block to block.
type buffers struct {
	norm, latent, qLatent, q, k, vt, att, kB, hidden, logits buffer
}

type buffer struct{ data []float32 }

// matrix returns rows of cols elements with unspecified contents.
func (b *buffer) matrix(rows, cols int) kernel.Matrix {
	return kernel.NewMatrix(grow(&b.data, rows*cols), rows, cols)
}

// start sets the pass up for a batch, whose hidden states grow in place.
func (p *pass) start(h *Hidden, ids [][]int32, seqs []span) {
	p.ids, p.pos, p.seqs = nil, nil, nil
	longest := 0
	for i, s := range ids {
		p.seqs = append(p.seqs, span{len(p.ids), len(s)})
		p.ids = append(p.ids, s...)
		for pos := range s {
			p.pos = append(p.pos, pos)
		}
		longest = max(longest, seqs[i].n)
	}
	p.x = h.rows.Slice(seqs[0].first, len(p.ids))
	p.norm = p.buffers.norm.matrix(p.x.Rows, p.x.Cols)
	p.rope = p.m.rope.table(longest)
}

// run is the forward pass.
func (p *pass) run(ctx context.Context) error {
	// x [tokens, embed] = rows of the embedding
	if err := p.embed(ctx); err != nil {
		return err
	}
	for i := range p.m.layers {
		if err := p.block(ctx, &p.m.layers[i]); err != nil {
			return fmt.Errorf("block %d: %w", i, err)
		}
		p.done++
		if report := p.m.opt.Events.Layer; report != nil {
			report(p.done, p.blocks, p.x.Rows)
		}
	}
	// x = norm(x)
	return p.normalize(ctx, p.m.outNorm, p.x)
}

// block runs one transformer block and lets its weights go.
func (p *pass) block(ctx context.Context, l *layer) error {
	defer func() {
		for _, i := range l.indices {
			p.m.src.Release(i)
		}
	}()
	// norm [tokens, embed] = attn_norm(x)
	if err := p.normalize(ctx, l.attnNorm, p.norm); err != nil {
		return err
	}
	// x += attention(norm)
	if err := p.attention(ctx, l); err != nil {
		return err
	}
	// norm [tokens, embed] = ffn_norm(x)
	if err := p.normalize(ctx, l.ffnNorm, p.norm); err != nil {
		return err
	}
	// x += ffn(norm)
	return p.feedForward(ctx, l)
}

// embed looks up the rows of the token embedding.
func (p *pass) embed(ctx context.Context) error {
	m := p.m
	return m.chunks(ctx, len(p.ids), func(w *worker, first, n int) error {
		for i := first; i < first+n; i++ {
			row, err := m.read(ctx, w, 0, m.embd, int(p.ids[i]), 1)
			if err != nil {
				return err
			}
			if !finite(row) {
				return fmt.Errorf("tensor %q, row %d is not finite", m.embd.info.Name, p.ids[i])
			}
			copy(p.x.Row(i), row.Data)
		}
		return nil
	})
}

// normalize writes the norm of x with the given weight to dst.
func (p *pass) normalize(ctx context.Context, weight *tensor, dst kernel.Matrix) error {
	w, err := p.m.vector(ctx, weight)
	if err != nil {
		return err
	}
	eps := p.m.Params().NormEps
	return p.m.chunks(ctx, p.x.Rows, func(_ *worker, first, n int) error {
		for i := first; i < first+n; i++ {
			rmsNorm(dst.Row(i), p.x.Row(i), w, eps)
		}
		if d := dst.Slice(first, n); !finite(d) {
			return fmt.Errorf("the norm with tensor %q is not finite: values overflow float32", weight.info.Name)
		}
		return nil
	})
}

// Logits multiplies rows [first, first+n) of h by the output weight:
// dst [n, Vocab()]. Every call reads the whole output weight, so rows are best
// asked for in blocks of some hundred.
func (m *Model) Logits(ctx context.Context, h *Hidden, first, n int, dst []float32) error {
	if first < 0 || n < 0 || n > h.Rows()-first {
		return fmt.Errorf("logits of rows %d+%d: there are %d rows", first, n, h.Rows())
	}
	if len(dst) != n*m.Vocab() {
		return fmt.Errorf("logits of %d rows of %d need %d values, the destination has %d", n, m.Vocab(), n*m.Vocab(), len(dst))
	}
	return m.multiply(ctx, whole(m.output, h.rows.Slice(first, n), kernel.NewMatrix(dst, n, m.Vocab())))
}
