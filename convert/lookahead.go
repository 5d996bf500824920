package convert

import (
	"iter"

	"github.com/winnow-moe/winnow/formats/arch"
)

// lookahead has input fetched before the units that need it are handed out.
type lookahead struct {
	plan  *Plan
	data  Prefetcher
	next  func() (unit, bool)
	stop  func()
	ahead int64 // bytes of units that were fetched but not yet handed out
}

// newLookahead looks ahead over the units of limit elements. Data that fetches
// nothing in advance is read as it is needed.
func newLookahead(p *Plan, data Data, limit int64) *lookahead {
	l := &lookahead{plan: p, stop: func() {}}
	if l.data, _ = data.(Prefetcher); l.data != nil {
		l.next, l.stop = iter.Pull(p.units(limit))
	}
	return l
}

// pass is called for each unit before it is handed out.
func (l *lookahead) pass(u unit) {
	if l.data == nil {
		return
	}
	for l.ahead < readAhead {
		v, ok := l.next()
		if !ok {
			break
		}
		l.fetch(v)
		l.ahead += l.plan.storedBytes(v)
	}
	l.ahead -= l.plan.storedBytes(u)
}

// fetch begins to read the stored bytes of a unit. Pieces that are rearranged
// are fetched whole.
func (l *lookahead) fetch(u unit) {
	src := &l.plan.inv.Tensors[u.piece.Source]
	if src.computed() {
		return
	}
	first, n, step := u.first, u.n, max(1, u.piece.Step)
	if u.piece.Mode != arch.CutRows || src.columnwise() {
		if first > 0 {
			return
		}
		n = u.piece.Count
	}
	start := u.piece.Start + first*step
	end := min(src.Rows(), start+n*step)
	l.data.Prefetch(u.piece.Source, src.bytes(start*src.Cols()), src.bytes((end-start)*src.Cols()))
}

// storedBytes returns the size of a unit's input.
func (p *Plan) storedBytes(u unit) int64 {
	return p.inv.Tensors[u.piece.Source].bytes(p.elements(u.piece, u.n))
}
