package engine

import (
	"context"
	"fmt"
	"slices"

	"github.com/winnow-moe/winnow/engine/kernel"
	"github.com/winnow-moe/winnow/formats/arch"
)

// indexer holds the tensors of the choice of keys.
type indexer struct {
	q, k, proj *tensor
	kNorm      affine
}

// slots are the fields of the roles.
func (x *indexer) slots() map[arch.Role]affineSlots {
	return map[arch.Role]affineSlots{
		arch.IndexerAttnQ: {weight: &x.q}, arch.IndexerAttnK: {weight: &x.k}, arch.IndexerProj: {weight: &x.proj},
		arch.IndexerKNorm: {weight: &x.kNorm.w, bias: &x.kNorm.b},
	}
}

// indexerEps is that of the norm of the indexer's keys, whatever the model's is.
const indexerEps = 1e-6

// index is DeepSeek V3.2's lightning indexer (DeepSeek-V3.2 inference/model.py,
// class Indexer; HF modeling_deepseek_v32.py): of the keys before it and its own
// a query sees only the IndexerTopK with the largest
//
//	Σ_h w_h · max(0, q_h · k)
//
// where q comes from the query latent, w and k, which all heads share, from the
// block's input. The leading elements of q and k are rotated, in halves, and
// k is normed. The result has the chosen keys of every token, ascending, nil for
// tokens that see all. Factors that are the same for all keys are left out, as
// is the Hadamard rotation of both sides, which changes no product.
func (p *pass) index(ctx context.Context, l *layer, latent kernel.Matrix) ([][]int32, error) {
	par := l.par
	if p.longest <= par.IndexerTopK {
		// The weights are observed all the same: what is told of a sequence does
		// not depend on others.
		return nil, p.observeProducts(ctx, product{w: l.indexer.q, x: latent}, product{w: l.indexer.k, x: p.in}, product{w: l.indexer.proj, x: p.in})
	}
	// q [tokens, heads·d] is where the outputs of attention will be.
	q := p.buffers.att.matrix(p.x.Rows, par.IndexerHeads*par.IndexerKeyLen)
	k := p.buffers.k.matrix(p.x.Rows, par.IndexerKeyLen)
	weights := p.buffers.logits.matrix(p.x.Rows, par.IndexerHeads)
	err := p.multiply(ctx, whole(l.indexer.q, latent, q), whole(l.indexer.k, p.in, k), whole(l.indexer.proj, p.in, weights))
	if err != nil {
		return nil, err
	}
	norm, err := p.m.normer(ctx, l.indexer.kNorm)
	if err != nil {
		return nil, err
	}
	norm.kind, norm.eps = arch.LayerNorm, indexerEps
	err = p.m.chunks(ctx, p.x.Rows, func(_ *worker, first, n int) error {
		for i := first; i < first+n; i++ {
			key := k.Row(i)
			norm.apply(key, key)
			rope := *p.layerRope[p.seqOf[i]]
			rope.pairs = arch.RopeHalves
			rope.rotate(key, p.pos[i])
			for row := q.Row(i); len(row) > 0; row = row[par.IndexerKeyLen:] {
				rope.rotate(row, p.pos[i])
			}
		}
		return nil
	})
	if err != nil {
		return nil, err
	}
	return p.chooseKeys(ctx, par.IndexerTopK, q, k, weights)
}

// chooseKeys scores the keys of every query and keeps n of them.
func (p *pass) chooseKeys(ctx context.Context, n int, q, k, weights kernel.Matrix) ([][]int32, error) {
	type task struct {
		seq   span
		first int // query
	}
	var tasks []task
	total := 0
	for _, s := range p.seqs {
		total += max(0, s.n-n) * n
		for first := n / queryBlock * queryBlock; first < s.n; first += queryBlock {
			tasks = append(tasks, task{s, first})
		}
	}
	chosen, room := make([][]int32, q.Rows), grow(&p.chosen, total)
	for _, s := range p.seqs {
		for pos := n; pos < s.n; pos++ {
			chosen[s.first+pos], room = room[:n:n], room[n:]
		}
	}
	return chosen, p.m.parallel(ctx, len(tasks), func(_ context.Context, w *worker, i int) error {
		t := tasks[i]
		queries := min(queryBlock, t.seq.n-t.first)
		at := t.seq.first + t.first
		scores := w.keyScores(q.Slice(at, queries), k.Slice(t.seq.first, t.first+queries), weights.Slice(at, queries))
		if !finite(scores) {
			return fmt.Errorf("the indexer's scores are not finite: values overflow float32")
		}
		for j := max(0, n-t.first); j < queries; j++ {
			seen := scores.Row(j)[:t.first+j+1]
			largest(chosen[at+j], seen, grow(&w.tiles[1], len(seen)))
		}
		return nil
	})
}

// keyScores computes the indexer's scores [queries, keys].
func (w *worker) keyScores(q, k, weights kernel.Matrix) kernel.Matrix {
	scores := kernel.NewMatrix(grow(&w.tiles[0], q.Rows*k.Rows), q.Rows, k.Rows)
	clear(scores.Data)
	products := kernel.NewMatrix(grow(&w.out, q.Rows*k.Rows), q.Rows, k.Rows)
	for h := range weights.Cols {
		kernel.MatMul(products, q.Columns(h*k.Cols, k.Cols), k)
		for i := range q.Rows {
			row := products.Row(i)
			for j, f := range row {
				row[j] = max(f, 0)
			}
			kernel.AddScaled(scores.Row(i), row, weights.Row(i)[h])
		}
	}
	return scores
}

// largest fills best with the indices, ascending, of the largest values, of
// equal ones the first. buf has the length of values.
func largest(best []int32, values, buf []float32) {
	copy(buf, values)
	slices.Sort(buf)
	limit := buf[len(buf)-len(best)]
	equal := 0 // values like the limit that are among the largest
	for _, v := range buf[len(buf)-len(best):] {
		if v == limit {
			equal++
		}
	}
	n := 0
	for i, v := range values {
		if v > limit || v == limit && equal > 0 {
			if v == limit {
				equal--
			}
			best[n] = int32(i)
			n++
		}
	}
}

// gather moves the elements with the given indices, which ascend, to the front
// and returns them; scatter moves them back and clears the others.
func gather(x []float32, indices []int32) []float32 {
	for i, from := range indices {
		x[i] = x[from]
	}
	return x[:len(indices)]
}

func scatter(x []float32, indices []int32) {
	i := len(indices) - 1
	for to := len(x) - 1; to >= 0; to-- {
		if i >= 0 && int(indices[i]) == to {
			x[to] = x[i]
			i--
		} else {
			x[to] = 0
		}
	}
}
