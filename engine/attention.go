package engine

import (
	"cmp"
	"context"
	"fmt"
	"math"
	"slices"

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
// the output is added to out. Families norm, rotate and scale queries and keys
// in their own ways; see prepare.
func (p *pass) gqa(ctx context.Context, l *layer) error {
	par := l.par
	d, per := par.HeadDim(), par.Heads/par.KVHeads // query heads per key head
	dv := cmp.Or(par.ValueLen, d)
	wide := d // rows of the query projection per head
	if p.m.arch.Family.Block.QueryGate {
		wide *= 2
	}
	pr, err := p.preparation(ctx, l)
	if err != nil {
		return err
	}
	queries, _, _ := l.projections(par.Heads*wide, par.KVHeads*d)
	att := p.buffers.att.matrix(p.x.Rows, par.Heads*dv)
	step := p.headGroup(per*wide+d+2*dv, par.KVHeads)
	if all := p.m.Params(); pr.qWhole != nil || all.LendsKV(l.number) || all.SharesKV(l.number) != l.number {
		step = par.KVHeads // norms over all heads, or keys of several blocks
	}
	for h := 0; h < par.KVHeads; h += step {
		n := min(step, par.KVHeads-h)
		// q [tokens, n·per·wide]: queries, and gates after each head's
		q := p.buffers.q.matrix(p.x.Rows, n*per*wide)
		if err := p.project(ctx, queries.to(h*per*wide, q)); err != nil {
			return err
		}
		kv, err := p.keysValues(ctx, l, pr, h, n)
		if err != nil {
			return err
		}
		if err := p.prepare(ctx, pr, q, pr.qNorm, pr.qWhole, wide, d, true); err != nil {
			return err
		}
		a := &heads{q: q, wide: wide, dk: d, k: kv.k, vt: kv.vt, out: att.Columns(h*per*dv, n*per*dv), n: n * per, per: per, mask: p.mask(l)}
		if pr.sinks != nil {
			a.sinks = pr.sinks[h*per:]
		}
		if err := p.attend(ctx, a); err != nil {
			return err
		}
		if wide > d {
			if err := p.gateHeads(ctx, a); err != nil {
				return err
			}
		}
	}
	return p.attentionOutput(ctx, l.attnOutput, att)
}

// attentionOutput adds the output projection of att to out.
func (p *pass) attentionOutput(ctx context.Context, weight affine, att kernel.Matrix) error {
	out := whole(weight.w, att, p.out)
	out.add = true
	if err := p.multiply(ctx, out); err != nil {
		return err
	}
	return p.addBias(ctx, p.out, weight.b, 0)
}

// projection is a product of the block's input with rows of a weight from
// first on, as many as dst has columns, and its bias.
type projection struct {
	affine
	first int
	dst   kernel.Matrix
}

// to returns the projection of rows from the given one of its part on.
func (j projection) to(row int, dst kernel.Matrix) projection {
	return projection{j.affine, j.first + row, dst}
}

// projections are those of queries, keys and values, of which q and k have so
// many rows: three tensors, or one.
func (l *layer) projections(qRows, kRows int) (q, k, v projection) {
	if l.qkv.w == nil {
		return projection{affine: l.q}, projection{affine: l.k}, projection{affine: l.v}
	}
	return projection{affine: l.qkv}, projection{affine: l.qkv, first: qRows}, projection{affine: l.qkv, first: qRows + kRows}
}

func (p *pass) project(ctx context.Context, list ...projection) error {
	products := make([]product, len(list))
	for i, j := range list {
		products[i] = product{w: j.w, first: j.first, rows: j.dst.Cols, x: p.in, dst: j.dst}
	}
	if err := p.multiply(ctx, products...); err != nil {
		return err
	}
	for _, j := range list {
		if err := p.addBias(ctx, j.dst, j.b, j.first); err != nil {
			return err
		}
	}
	return nil
}

// addBias adds elements of b from first on to every row of x.
func (p *pass) addBias(ctx context.Context, x kernel.Matrix, b *tensor, first int) error {
	bias, err := p.m.vector(ctx, b)
	if err != nil || bias == nil {
		return err
	}
	return p.m.chunks(ctx, x.Rows, func(_ *worker, at, n int) error {
		for i := at; i < at+n; i++ {
			addTo(x.Row(i), bias[first:][:x.Cols])
		}
		return nil
	})
}

// preparation is what a block does to queries and keys before they meet.
type preparation struct {
	qNorm, kNorm   []float32 // per head
	qWhole, kWhole []float32 // over all heads
	after, unit    bool      // the norm per head comes after rope; it has no weight
	rope           bool
	grow           bool // queries grow with the position
	sinks          []float32
	eps            float32
}

func (p *pass) preparation(ctx context.Context, l *layer) (pr *preparation, err error) {
	kind, par := p.m.arch.Family.Block.QKNorm, p.m.Params()
	pr = &preparation{rope: par.HasRope(l.number), eps: par.NormEps}
	pr.grow = !pr.rope && par.TempLength > 0
	if pr.sinks, err = p.m.vector(ctx, l.sinks); err != nil {
		return nil, err
	}
	q, err := p.m.vector(ctx, l.qNorm)
	if err != nil {
		return nil, err
	}
	k, err := p.m.vector(ctx, l.kNorm)
	if err != nil {
		return nil, err
	}
	switch kind {
	case arch.QKNormWhole:
		pr.qWhole, pr.kWhole = q, k
	case arch.QKNormUnit:
		pr.unit = pr.rope && !par.NoQKNorm
	case arch.QKNormAfterRope:
		pr.after = true
		fallthrough
	case arch.QKNormHeads:
		pr.qNorm, pr.kNorm = q, k
	}
	return pr, nil
}

// prepare norms and rotates the heads of x, each the first d of wide elements.
func (p *pass) prepare(ctx context.Context, pr *preparation, x kernel.Matrix, norm, all []float32, wide, d int, query bool) error {
	l := p.layerRope
	return p.m.chunks(ctx, x.Rows, func(_ *worker, first, n int) error {
		for i := first; i < first+n; i++ {
			row := x.Row(i)
			if all != nil {
				rmsNorm(row, row, all, pr.eps)
			}
			for ; len(row) > 0; row = row[wide:] {
				head := row[:d]
				if norm != nil && !pr.after {
					rmsNorm(head, head, norm, pr.eps)
				}
				if pr.rope {
					l[p.seqOf[i]].rotate(head, p.pos[i])
				}
				if pr.unit || norm != nil && pr.after {
					rmsNorm(head, head, norm, pr.eps)
				}
				if query && pr.grow {
					scaleBy(head, p.m.temperature(p.pos[i]))
				}
			}
		}
		return nil
	})
}

// temperature is the factor on queries of blocks without rope (Llama 4).
func (m *Model) temperature(pos int) float32 {
	par := m.Params()
	steps := math.Floor(float64(pos+1) / float64(par.TempLength))
	return float32(1 + float64(float64(par.TempScale)*math.Log1p(steps)))
}

// keysValues computes keys and values of key heads [h, h+n), or takes those of
// the block that this one shares them with.
func (p *pass) keysValues(ctx context.Context, l *layer, pr *preparation, h, n int) (keysValues, error) {
	par := l.par
	if from := p.m.Params().SharesKV(l.number); from != l.number {
		return p.shared[from], nil
	}
	d := par.HeadDim()
	dv := cmp.Or(par.ValueLen, d)
	// k [tokens, n·d], v [tokens, n·dv]
	k, v := p.buffers.k.matrix(p.x.Rows, n*d), p.buffers.v.matrix(p.x.Rows, n*dv)
	_, keys, values := l.projections(par.Heads*d, par.KVHeads*d)
	list := []projection{keys.to(h*d, k)}
	if values.w != nil {
		list = append(list, values.to(h*dv, v))
	}
	if err := p.project(ctx, list...); err != nil {
		return keysValues{}, err
	}
	if values.w == nil {
		copy(v.Data, k.Data)
	}
	// vt [n·dv, tokens]
	vt := p.buffers.vt.matrix(n*dv, p.x.Rows)
	norm := p.m.arch.Family.Block.ValueNorm
	err := p.m.chunks(ctx, v.Rows, func(_ *worker, first, rows int) error {
		for i := first; i < first+rows; i++ {
			row := v.Row(i)
			for head := row; norm && len(head) > 0; head = head[dv:] {
				rmsNorm(head[:dv], head[:dv], nil, pr.eps)
			}
			for j, f := range row {
				vt.Row(j)[i] = f
			}
		}
		return nil
	})
	if err != nil {
		return keysValues{}, err
	}
	if err := p.prepare(ctx, pr, k, pr.kNorm, pr.kWhole, d, d, false); err != nil {
		return keysValues{}, err
	}
	kv := keysValues{k, vt}
	if p.m.Params().LendsKV(l.number) {
		kv = keysValues{kernel.NewMatrix(slices.Clone(k.Data), k.Rows, k.Cols), kernel.NewMatrix(slices.Clone(vt.Data), vt.Rows, vt.Cols)}
		p.shared[l.number] = kv
	}
	return kv, nil
}

// gateHeads multiplies every head's output by the sigmoid of its gate.
func (p *pass) gateHeads(ctx context.Context, a *heads) error {
	dv := a.out.Cols / a.n
	return p.m.chunks(ctx, a.out.Rows, func(_ *worker, first, n int) error {
		for i := first; i < first+n; i++ {
			q, out := a.q.Row(i), a.out.Row(i)
			for h := range a.n {
				gate := q[h*a.wide+a.dk:][:dv]
				for j, g := range gate {
					out[h*dv+j] *= kernel.Sigmoid(g)
				}
			}
		}
		return nil
	})
}

// mask says which keys a query sees: those from its own back to a limit.
type mask struct{ window, chunk int }

func (p *pass) mask(l *layer) mask {
	par := p.m.Params()
	switch {
	case par.IsSliding(l.number):
		return mask{window: par.SlidingWindow}
	case par.ChunkSize > 0 && par.HasRope(l.number):
		return mask{chunk: par.ChunkSize}
	}
	return mask{}
}

// first returns the first key that the query at a position sees.
func (m mask) first(pos int) int {
	switch {
	case m.window > 0:
		return max(0, pos-m.window+1)
	case m.chunk > 0:
		return pos / m.chunk * m.chunk
	}
	return 0
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
	var chosen [][]int32
	if par.IndexerTopK > 0 {
		if chosen, err = p.index(ctx, l, query); err != nil {
			return err
		}
	}
	att := p.buffers.att.matrix(tokens, par.Heads*dv)
	watch := p.watchLatents(par.Heads, nope, latent.Columns(0, r))
	step := p.headGroup(2*dk+dv, par.Heads)
	for h := 0; h < par.Heads; h += step {
		n := min(step, par.Heads-h)
		// q [tokens, n·dk], vt [n·dv, tokens]
		q := p.buffers.q.matrix(tokens, n*dk)
		vt := p.buffers.vt.matrix(n*dv, tokens)
		err := p.multiply(ctx,
			product{w: qWeight, first: h * dk, rows: n * dk, x: query, dst: q},
			product{w: l.vB, first: h * dv, rows: n * dv, x: latent.Columns(0, r), dst: vt, transposed: true})
		if err != nil {
			return err
		}
		if par.HasRope(l.number) {
			if err := p.rotateHeads(ctx, q, dk, nope); err != nil {
				return err
			}
		}
		k, err := p.keys(ctx, l.kB, latent, h, n)
		if err != nil {
			return err
		}
		a := &heads{q: q, wide: dk, dk: dk, k: k, vt: vt, out: att.Columns(h*dv, n*dv), n: n, per: 1, chosen: chosen}
		if err := p.attend(ctx, a); err != nil {
			return err
		}
		if err := watch.heads(ctx, a, h); err != nil {
			return err
		}
	}
	if err := watch.report(l); err != nil {
		return err
	}
	return p.attentionOutput(ctx, l.attnOutput, att)
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
	query, qWeight = p.in, l.q.w
	products := []product{whole(l.kvA, p.in, latent)}
	if l.qA != nil {
		query, qWeight = p.buffers.qLatent.matrix(p.x.Rows, par.QLora), l.qB
		products = append(products, whole(l.qA, p.in, query))
	}
	kvNorm, err := p.m.vector(ctx, l.kvANorm)
	if err != nil {
		return latent, query, nil, err
	}
	qNorm, err := p.m.vector(ctx, l.qANorm)
	if err != nil {
		return latent, query, nil, err
	}
	if err := p.multiply(ctx, products...); err != nil {
		return latent, query, nil, err
	}
	err = p.m.chunks(ctx, p.x.Rows, func(_ *worker, first, n int) error {
		for i := first; i < first+n; i++ {
			row := latent.Row(i)
			rmsNorm(row[:r], row[:r], kvNorm, eps)
			if par.HasRope(l.number) {
				p.layerRope[p.seqOf[i]].rotate(row[r:], p.pos[i])
			}
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
			part := dst.Columns(i*dk, nope)
			kernel.MatMul(part, c.Columns(0, r), turned.Slice(i*nope, nope))
			if err := checkFinite(kB, part); err != nil {
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
				p.layerRope[p.seqOf[i]].rotate(row[offset:], p.pos[i])
			}
		}
		return nil
	})
}

// heads is the input and output of attention for a group of n query heads, per
// of which share one key and value head.
type heads struct {
	q, k     kernel.Matrix // [tokens, n·wide], of which dk are the query; [tokens, n/per·dk]
	vt       kernel.Matrix // [n/per·dv, tokens]: values, transposed
	out      kernel.Matrix // [tokens, n·dv]
	n, per   int
	wide, dk int
	mask     mask
	chosen   [][]int32 // keys that tokens see, without a mask; nil: all
	sinks    []float32 // of every head; nil: none
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
	scale, softcap := scoreScale(p.m.arch, a.dk), p.m.Params().AttnSoftcap
	return p.m.parallel(ctx, len(tasks), func(_ context.Context, w *worker, i int) error {
		t := &tasks[i]
		if a.block(w, t.seq, t.head, t.query, scale, softcap) {
			return nil
		}
		return fmt.Errorf("attention of head %d is not finite: values overflow float32", t.head)
	})
}

// block computes the output of up to queryBlock queries of one head from query
// first of a sequence on. It reports whether the result is finite.
func (a *heads) block(w *worker, seq span, head, first int, scale, softcap float32) bool {
	dk, dv, kv := a.dk, a.out.Cols/a.n, head/a.per
	queries := min(queryBlock, seq.n-first)
	low := a.mask.first(first) // no query of the block sees an earlier key
	keys := first + queries - low
	// scores [queries, keys]
	scores := kernel.NewMatrix(grow(&w.out, queries*keys), queries, keys)
	q := a.q.Columns(head*a.wide, dk).Slice(seq.first+first, queries)
	k := a.k.Columns(kv*dk, dk).Slice(seq.first+low, keys)
	kernel.MatMul(scores, q, k)
	sink := kernel.NoSink
	if a.sinks != nil {
		sink = a.sinks[head]
	}
	var sums [queryBlock]float64
	for i := range queries {
		row := scores.Row(i)
		from, to := a.mask.first(first+i)-low, first+i+1-low
		seen, factor := row[from:to], scale
		var chosen []int32
		if a.chosen != nil {
			chosen = a.chosen[seq.first+first+i]
		}
		if chosen != nil {
			seen = gather(seen, chosen)
		}
		if softcap != 0 {
			kernel.Softcap(seen, scale, softcap)
			factor = 1
		}
		sums[i] = kernel.Softmax(seen, factor, sink)
		if chosen != nil {
			scatter(row[from:to], chosen)
		}
		clear(row[:from])
		clear(row[to:])
	}
	// Keys that a query does not see have weight zero, which adds nothing.
	out := a.out.Columns(head*dv, dv).Slice(seq.first+first, queries)
	vt := a.vt.Slice(kv*dv, dv).Columns(seq.first+low, keys)
	kernel.MatMul(out, scores, vt)
	for i := range queries {
		scaleBy(out.Row(i), float32(1/sums[i]))
	}
	return finite(out)
}

// attention runs the block's kind of attention, or what it has instead.
func (p *pass) attention(ctx context.Context, l *layer) error {
	if l.par.IsRecurrent(l.number) {
		return p.deltaNet(ctx, l)
	}
	if err := p.setRope(l); err != nil {
		return err
	}
	if p.m.arch.Family.Block.Attn == arch.MLA {
		return p.mla(ctx, l)
	}
	return p.gqa(ctx, l)
}
