package engine

import (
	"context"
	"fmt"
	"math"

	"github.com/winnow-moe/winnow/engine/kernel"
)

// perLayer holds the embeddings that blocks get of their own (Gemma's E models;
// HF modeling_gemma4.py, Gemma4TextModel.project_per_layer_inputs).
type perLayer struct {
	tokenEmbd *tensor // [vocab, blocks·width]: a row has a part for every block
	modelProj *tensor // [blocks·width, embed]
	projNorm  *tensor // [width]
}

// perLayerPart are the embeddings of blocks [first, first+n), side by side.
type perLayerPart struct {
	first, n int
	rows     kernel.Matrix // [tokens, n·width]
}

// columns returns those of one block.
func (e *perLayerPart) columns(block, width int) kernel.Matrix {
	return e.rows.Columns((block-e.first)*width, width)
}

// perLayerInput adds the block's own embedding:
// x += post_norm(proj(act(gate·x) ∘ embedding)).
func (p *pass) perLayerInput(ctx context.Context, l *layer) error {
	if l.perLayerGate == nil {
		return nil
	}
	if err := p.perLayerEmbeddings(ctx, l.number); err != nil {
		return err
	}
	width := p.m.Params().PerLayerEmbed
	return p.branch(ctx, affine{w: l.perLayerPostNorm}, func() error {
		gate := p.buffers.hidden.matrix(p.x.Rows, width)
		if err := p.multiply(ctx, whole(l.perLayerGate, p.x, gate)); err != nil {
			return err
		}
		own, act := p.perLayer.columns(l.number, width), p.m.arch.Family.Block.Act
		err := p.m.chunks(ctx, gate.Rows, func(_ *worker, first, n int) error {
			for i := first; i < first+n; i++ {
				activate(act, gate.Row(i), own.Row(i))
			}
			return nil
		})
		if err != nil {
			return err
		}
		out := whole(l.perLayerProj, gate, p.out)
		out.add = true
		return p.multiply(ctx, out)
	})
}

// perLayerEmbeddings makes the embeddings of a block and of as many after it as
// fit the budget, from the tokens and their embedding x0:
//
//	(norm(model_proj·x0/√embed) + √width·token_embd[token])/√2
//
// The embedding of tokens is the biggest tensor of such models. Of it only the
// rows of the batch's tokens are read, once for all blocks that are made together.
func (p *pass) perLayerEmbeddings(ctx context.Context, block int) error {
	if e := &p.perLayer; block < e.first+e.n && block >= e.first {
		return nil
	}
	m, width := p.m, p.m.Params().PerLayerEmbed
	n := min(len(m.layers)-block, max(1, m.budget/(width*max(1, p.x.Rows))))
	p.perLayer = perLayerPart{block, n, p.buffers.perLayer.matrix(p.x.Rows, n*width)}
	if err := p.embed(ctx, m.embd, p.norm); err != nil {
		return err
	}
	own := p.perLayer.rows
	if err := m.multiply(ctx, product{w: m.perLayer.modelProj, first: block * width, rows: n * width, x: p.norm, dst: own}); err != nil {
		return err
	}
	norm, err := m.vector(ctx, m.perLayer.projNorm)
	if err != nil {
		return err
	}
	down, up, half := float32(1/math.Sqrt(float64(p.x.Cols))), float32(math.Sqrt(float64(width))), float32(math.Sqrt(0.5))
	return m.chunks(ctx, own.Rows, func(w *worker, first, rows int) error {
		for i := first; i < first+rows; i++ {
			tokens, err := m.read(ctx, w, 0, m.perLayer.tokenEmbd, int(p.ids[i]), 1)
			if err != nil {
				return err
			}
			token := tokens.Data[block*width:][:n*width]
			row := own.Row(i)
			for b := 0; b < n*width; b += width {
				part := row[b:][:width]
				scaleBy(part, down)
				rmsNorm(part, part, norm, m.Params().NormEps)
				kernel.AddScaled(part, token[b:][:width], up)
				scaleBy(part, half)
			}
			if !finite(own.Slice(i, 1)) {
				return fmt.Errorf("tensor %q, row %d is not finite", m.perLayer.tokenEmbd.info.Name, p.ids[i])
			}
		}
		return nil
	})
}
