package engine

import (
	"cmp"
	"context"
	"fmt"

	"github.com/winnow-moe/winnow/engine/kernel"
)

// State is a batch of sequences between two blocks: all that the blocks to
// come need, so that a pass can stop there and go on in another process with
// the same bits.
type State struct {
	// Done is the number of blocks that the batch went through; Blocks()+1 says
	// that it is through the output norm, too, and is what Forward returns.
	Done int
	// Parts are the residual stream and the keys and values of blocks that later
	// ones share; see StateParts.
	Parts []Part
}

// Part is a matrix of a State, row after row without gaps. Data of a State that
// a pass reports is valid during the call only.
type Part struct {
	Name       string
	Rows, Cols int
	Data       []float32
}

// Blocks returns the number of blocks that a pass goes through.
func (m *Model) Blocks() int { return len(m.layers) }

// StateParts describes, without their data, the parts of the state of a batch
// of so many tokens that went through done blocks: "x" [tokens, embed], and for
// each block l whose keys and values later ones use "keys.l" [tokens, heads·dk]
// and "values.l" [heads·dv, tokens].
func (m *Model) StateParts(tokens, done int) []Part {
	parts := []Part{{Name: "x", Rows: tokens, Cols: m.embd.cols}}
	for _, l := range m.lenders(done) {
		par := m.layers[l].par
		dk := par.HeadDim()
		parts = append(parts,
			Part{Name: fmt.Sprintf("keys.%d", l), Rows: tokens, Cols: par.KVHeads * dk},
			Part{Name: fmt.Sprintf("values.%d", l), Rows: par.KVHeads * cmp.Or(par.ValueLen, dk), Cols: tokens})
	}
	return parts
}

// lenders are the blocks among the first done whose keys and values blocks to
// come may use.
func (m *Model) lenders(done int) (blocks []int) {
	for l := 0; l < done && done < len(m.layers); l++ {
		if m.Params().LendsKV(l) {
			blocks = append(blocks, l)
		}
	}
	return blocks
}

// Resume is Forward for one batch whatever its size: from the start, or from a
// state of the same sequences, whose memory it takes over. after, if not nil, is
// called with the state after every block; an error of it ends the pass.
func (m *Model) Resume(ctx context.Context, seqs [][]int32, from *State, after func(*State) error) (*Hidden, error) {
	h, err := m.newHidden(seqs)
	if err != nil {
		return nil, err
	}
	done := 0
	if from != nil {
		if err := m.checkState(from, h.rows.Rows); err != nil {
			return nil, err
		}
		h.rows, done = from.Parts[0].matrix(), from.Done
	} else {
		h.rows.Data = make([]float32, h.rows.Rows*h.rows.Cols)
	}
	if done > len(m.layers) {
		return h, nil
	}
	p := &pass{m: m, blocks: m.steps(), done: done, after: after}
	p.start(h, seqs, h.seqs)
	if from != nil {
		p.restore(from)
	}
	return h, p.run(ctx, done)
}

// checkState makes sure that a state is one of a batch of so many tokens.
func (m *Model) checkState(s *State, tokens int) error {
	if s.Done < 1 || s.Done > len(m.layers)+1 {
		return fmt.Errorf("a state after %d blocks does not fit a model of %d", s.Done, len(m.layers))
	}
	want := m.StateParts(tokens, s.Done)
	if len(s.Parts) != len(want) {
		return fmt.Errorf("a state after %d blocks has %d parts, want %d", s.Done, len(s.Parts), len(want))
	}
	for i, w := range want {
		p := &s.Parts[i]
		if p.Name != w.Name || p.Rows != w.Rows || p.Cols != w.Cols || len(p.Data) != w.Rows*w.Cols {
			return fmt.Errorf("part %d of a state is %q [%d, %d], want %q [%d, %d]", i, p.Name, p.Rows, p.Cols, w.Name, w.Rows, w.Cols)
		}
		if !kernel.Finite(p.Data) {
			return fmt.Errorf("part %q of a state is not finite", p.Name)
		}
	}
	return nil
}

func (p *Part) matrix() kernel.Matrix { return kernel.NewMatrix(p.Data, p.Rows, p.Cols) }

// State returns the hidden states as the state of a batch that is through.
func (h *Hidden) State() *State {
	return &State{Done: h.blocks + 1, Parts: []Part{{"x", h.rows.Rows, h.rows.Cols, h.rows.Data}}}
}

// restore takes over the keys and values in the state of the batch.
func (p *pass) restore(s *State) {
	for i, l := range p.m.lenders(s.Done) {
		p.shared[l] = keysValues{s.Parts[1+2*i].matrix(), s.Parts[2+2*i].matrix()}
	}
}

// state describes the batch after done blocks.
func (p *pass) state(done int) *State {
	s := &State{Done: done, Parts: p.m.StateParts(p.x.Rows, done)}
	s.Parts[0].Data = p.x.Data[:p.x.Rows*p.x.Cols]
	for i, l := range p.m.lenders(done) {
		kv := p.shared[l]
		s.Parts[1+2*i].Data, s.Parts[2+2*i].Data = kv.k.Data, kv.vt.Data
	}
	return s
}
