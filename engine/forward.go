package engine

import (
	"context"
	"fmt"
	"math"

	"github.com/winnow-moe/winnow/engine/kernel"
	"github.com/winnow-moe/winnow/formats/arch"
)

// Hidden holds the final hidden states of sequences: after the last block and
// the output norm, ready to be multiplied by the output weight.
type Hidden struct {
	rows   kernel.Matrix // [tokens of all sequences, embed]
	seqs   []span
	blocks int // that they went through
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
	h, err := m.newHidden(seqs)
	if err != nil {
		return nil, err
	}
	h.rows.Data = make([]float32, h.rows.Rows*h.rows.Cols)
	batches := m.batches(h.seqs)
	p := &pass{m: m, blocks: len(batches) * m.steps()}
	for _, b := range batches {
		p.start(h, seqs[b.first:b.first+b.n], h.seqs[b.first:b.first+b.n])
		if err := p.run(ctx, 0); err != nil {
			return nil, err
		}
	}
	return h, nil
}

// newHidden checks sequences and makes a place for their hidden states, without
// its memory.
func (m *Model) newHidden(seqs [][]int32) (*Hidden, error) {
	h := &Hidden{seqs: make([]span, len(seqs)), blocks: len(m.layers)}
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
	h.rows = kernel.Matrix{Rows: total, Cols: m.embd.cols, Stride: m.embd.cols}
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
	seqOf        []int   // the sequence of every token
	seqs         []span
	x            kernel.Matrix // [tokens, embed]: the residual stream
	norm         kernel.Matrix // [tokens, embed]: its normalised form
	in           kernel.Matrix // [tokens, embed]: what the branch at hand works on, norm or x
	out          kernel.Matrix // [tokens, embed]: what it adds its result to
	longest      int           // sequence of the batch
	factors      ropeFactors
	ropes        map[ropeKey]*ropeTable
	layerRope    []*ropeTable       // of every sequence, in the block at hand
	shared       map[int]keysValues // of blocks whose keys and values later ones use
	chosen       []int32            // keys, see index
	perLayer     perLayerPart       // embeddings of the block at hand and some after it
	buffers      buffers
	watch        *expertWatch // of the experts at hand, when there is an observer
	squares      []float64    // for the observer
	done, blocks int          // progress over all batches
	after        func(*State) error
}

// keysValues are the keys [tokens, heads·dk] and values [heads·dv, tokens] of a block.
type keysValues struct{ k, vt kernel.Matrix }

// buffers are the activations within a block, kept from block to block.
type buffers struct {
	norm, latent, qLatent, q, k, v, z, alpha, vt, att, kB, hidden, logits, branch, beside, perLayer, watched, next buffer
}

type buffer struct{ data []float32 }

// matrix returns rows of cols elements with unspecified contents.
func (b *buffer) matrix(rows, cols int) kernel.Matrix {
	return kernel.NewMatrix(grow(&b.data, rows*cols), rows, cols)
}

// start sets the pass up for a batch, whose hidden states grow in place.
func (p *pass) start(h *Hidden, ids [][]int32, seqs []span) {
	p.ids, p.pos, p.seqOf, p.seqs = nil, nil, nil, nil
	p.longest = 0
	for i, s := range ids {
		p.seqs = append(p.seqs, span{len(p.ids), len(s)})
		p.ids = append(p.ids, s...)
		for pos := range s {
			p.pos, p.seqOf = append(p.pos, pos), append(p.seqOf, i)
		}
		p.longest = max(p.longest, seqs[i].n)
	}
	p.x = h.rows.Slice(seqs[0].first, len(p.ids))
	p.norm = p.buffers.norm.matrix(p.x.Rows, p.x.Cols)
	p.ropes, p.shared, p.perLayer = map[ropeKey]*ropeTable{}, map[int]keysValues{}, perLayerPart{}
}

// run is the forward pass of a batch that went through some blocks already.
func (p *pass) run(ctx context.Context, through int) error {
	var err error
	if p.factors, err = p.m.ropeFactors(ctx); err != nil {
		return err
	}
	if through == 0 {
		// x [tokens, embed] = rows of the embedding
		if err := p.embed(ctx, p.m.embd, p.x); err != nil {
			return err
		}
	}
	for i := through; i < len(p.m.layers); i++ {
		if err := p.block(ctx, &p.m.layers[i]); err != nil {
			return fmt.Errorf("block %d: %w", i, err)
		}
		p.passed()
		if p.after == nil {
			continue
		}
		if err := p.after(p.state(i + 1)); err != nil {
			return err
		}
	}
	// x = norm(x)
	if err := p.normalize(ctx, p.m.outNorm, p.x); err != nil {
		return err
	}
	if w := p.m.output.w; w != p.m.embd {
		if err := p.observeHead(ctx, w); err != nil {
			return err
		}
	}
	return p.predict(ctx)
}

// passed tells that the batch is through a block.
func (p *pass) passed() {
	p.done++
	if report := p.m.opt.Events.Layer; report != nil {
		report(p.done, p.blocks, p.x.Rows)
	}
}

// block runs one transformer block and lets its weights go.
func (p *pass) block(ctx context.Context, l *layer) error {
	defer func() {
		for _, i := range l.indices {
			p.m.src.Release(i)
		}
	}()
	kind := &p.m.arch.Family.Block
	ffnNorm, postAttn, postFFN := l.ffnNorm, l.postAttn, l.postFFN
	if kind.FFNNorm == arch.PostAttnNorm {
		ffnNorm, postAttn = l.postAttn, affine{}
	}
	// x += post_attention_norm(attention(attn_norm(x)))
	if err := p.input(ctx, l.attnNorm); err != nil {
		return err
	}
	if err := p.branch(ctx, postAttn, func() error { return p.attention(ctx, l) }); err != nil {
		return err
	}
	// x += post_ffw_norm(ffn(ffn_norm(x))); side by side, ffn works on attn_norm(x)
	if !p.m.Params().Parallel && kind.Residual != arch.ParallelNorm {
		if err := p.input(ctx, ffnNorm); err != nil {
			return err
		}
	}
	if err := p.branch(ctx, postFFN, func() error { return p.feedForward(ctx, l) }); err != nil {
		return err
	}
	if err := p.perLayerInput(ctx, l); err != nil {
		return err
	}
	return p.scaleOutput(ctx, l)
}

// input sets in: the residual stream normed, or as it is where there is no norm.
func (p *pass) input(ctx context.Context, norm affine) error {
	if p.in = p.x; norm.w == nil {
		return nil
	}
	p.in = p.norm
	return p.normalize(ctx, norm, p.norm)
}

// branch adds what run adds to out to the residual stream: at once, or after a
// norm and the factor on branches.
func (p *pass) branch(ctx context.Context, post affine, run func() error) error {
	scale := p.m.Params().ResidualScale
	if p.out = p.x; post.w == nil && scale == 0 {
		return run()
	}
	p.out = p.buffers.branch.matrix(p.x.Rows, p.x.Cols)
	clear(p.out.Data)
	if err := run(); err != nil {
		return err
	}
	if scale == 0 {
		scale = 1
	}
	return p.addNormed(ctx, p.x, p.out, post, scale)
}

// addNormed adds scale·norm(x) to dst; x is overwritten. Without a norm it is x itself.
func (p *pass) addNormed(ctx context.Context, dst, x kernel.Matrix, norm affine, scale float32) error {
	n, err := p.m.normer(ctx, norm)
	if err != nil {
		return err
	}
	return p.m.chunks(ctx, x.Rows, func(_ *worker, first, rows int) error {
		for i := first; i < first+rows; i++ {
			row := x.Row(i)
			if norm.w != nil {
				n.apply(row, row)
			}
			kernel.AddScaled(dst.Row(i), row, scale)
		}
		return nil
	})
}

// scaleOutput multiplies the residual stream by the block's factor, if any.
func (p *pass) scaleOutput(ctx context.Context, l *layer) error {
	f, err := p.m.vector(ctx, l.outputScale)
	if err != nil || f == nil {
		return err
	}
	return p.m.chunks(ctx, p.x.Rows, func(_ *worker, first, n int) error {
		for i := first; i < first+n; i++ {
			scaleBy(p.x.Row(i), f[0])
		}
		return nil
	})
}

func scaleBy(x []float32, f float32) { kernel.Scaled(x, x, nil, f) }

// embed looks up the rows of a token embedding.
func (p *pass) embed(ctx context.Context, embd *tensor, dst kernel.Matrix) error {
	m, scale := p.m, p.m.Params().EmbeddingScale
	if m.arch.Family.Block.ScaleEmbedding {
		scale = float32(math.Sqrt(float64(p.x.Cols)))
	}
	return m.chunks(ctx, len(p.ids), func(w *worker, first, n int) error {
		for i := first; i < first+n; i++ {
			row, err := m.read(ctx, w, 0, embd, int(p.ids[i]), 1)
			if err != nil {
				return err
			}
			if !finite(row) {
				return fmt.Errorf("tensor %q, row %d is not finite", embd.info.Name, p.ids[i])
			}
			copy(dst.Row(i), row.Data)
			if scale != 0 {
				scaleBy(dst.Row(i), scale)
			}
		}
		return nil
	})
}

// normalize writes a norm of x to dst.
func (p *pass) normalize(ctx context.Context, norm affine, dst kernel.Matrix) error {
	n, err := p.m.normer(ctx, norm)
	if err != nil {
		return err
	}
	return p.m.chunks(ctx, p.x.Rows, func(_ *worker, first, rows int) error {
		for i := first; i < first+rows; i++ {
			n.apply(dst.Row(i), p.x.Row(i))
		}
		if d := dst.Slice(first, rows); !finite(d) {
			return fmt.Errorf("the norm with tensor %q is not finite: values overflow float32", norm.w.info.Name)
		}
		return nil
	})
}

// Logits multiplies rows [first, first+n) of h by the output weight:
// dst [n, Vocab()]. Every call goes through the whole output weight, so rows are
// best asked for in blocks of some hundred; see Options.HoldOutput, too.
func (m *Model) Logits(ctx context.Context, h *Hidden, first, n int, dst []float32) error {
	if first < 0 || n < 0 || n > h.Rows()-first {
		return fmt.Errorf("logits of rows %d+%d: there are %d rows", first, n, h.Rows())
	}
	if len(dst) != n*m.Vocab() {
		return fmt.Errorf("logits of %d rows of %d need %d values, the destination has %d", n, m.Vocab(), n*m.Vocab(), len(dst))
	}
	if err := m.holdOutput(ctx); err != nil {
		return err
	}
	out := kernel.NewMatrix(dst, n, m.Vocab())
	if err := m.multiply(ctx, whole(m.output.w, h.rows.Slice(first, n), out)); err != nil {
		return err
	}
	return m.finishLogits(ctx, out)
}

// finishLogits applies what a family does with the products of the output weight.
func (m *Model) finishLogits(ctx context.Context, logits kernel.Matrix) error {
	par := m.Params()
	scale, softcap := par.LogitScale, par.FinalSoftcap
	if scale != 0 && !m.arch.Family.Block.LogitMultiplier {
		scale = 1 / scale
	}
	bias, err := m.vector(ctx, m.output.b)
	if err != nil || bias == nil && scale == 0 && softcap == 0 {
		return err
	}
	return m.chunks(ctx, logits.Rows, func(_ *worker, first, n int) error {
		for i := first; i < first+n; i++ {
			row := logits.Row(i)
			if bias != nil {
				addTo(row, bias)
			}
			if scale != 0 {
				scaleBy(row, scale)
			}
			if softcap != 0 {
				kernel.Softcap(row, 1, softcap)
			}
		}
		return nil
	})
}
