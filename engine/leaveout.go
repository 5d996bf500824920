package engine

import (
	"math"
	"slices"

	"github.com/winnow-moe/winnow/engine/kernel"
	"github.com/winnow-moe/winnow/formats/arch"
)

// leftOut is how a block would route tokens without one of the experts that they
// chose: the best of those that are left, the next, takes its place, and the
// others get the gates that they have with it, all as if the router could not
// choose that expert. Only the choice itself is by the scores of the whole model:
// of groups, in which a token may have no other expert and goes without, and of
// experts by a softmax with a bias, which would shift by leaving one out.
type leftOut struct {
	next []int32 // [tokens], -1 for none; nil where it is not asked for
	// gates [tokens, used, used+1] are those of the chosen experts and the next
	// without each of the chosen ones.
	gates []float32
	mixer bool // the router is sparseMixer
}

func newLeftOut(tokens, used int) leftOut {
	return leftOut{next: make([]int32, tokens), gates: make([]float32, tokens*used*(used+1))}
}

// without returns the gates of a token without its expert i.
func (w *expertWatch) without(t, i int) []float32 {
	return w.gates[(t*w.used+i)*(w.used+1):][:w.used+1]
}

// leaveOut is told that a router chose experts for token t by scores. Without
// a watch it does nothing.
func (w *expertWatch) leaveOut(r *router, scores []float32, t int) {
	if w == nil || w.next == nil {
		return
	}
	chosen := w.chosen[t*w.used:][:w.used]
	if w.mixer {
		w.leaveOutMixed(r, chosen, scores, t)
		return
	}
	w.next[t] = r.next(chosen)
	others, weight := make([]int32, w.used), make([]float32, w.used)
	for i, e := range chosen {
		n := copy(others, chosen[:i])
		n += copy(others[n:], chosen[i+1:])
		if w.next[t] >= 0 {
			others[n] = w.next[t]
			n++
		}
		r.weighWithout(scores, e, others[:n], weight[:n])
		gates := w.without(t, i)
		copy(gates, weight[:i])
		copy(gates[i+1:], weight[i:n])
	}
}

// next returns the best expert beside the chosen ones, -1 for none; it takes
// those out of the choice.
func (r *router) next(chosen []int32) int32 {
	for _, e := range chosen {
		r.choice[e] = float32(math.Inf(-1))
	}
	return possible(r.choice)
}

// possible returns the best choice that is not out of the question, -1 for none.
func possible(choice []float32) int32 {
	best := make([]int32, 1)
	if top(best, choice); math.IsInf(float64(choice[best[0]]), -1) {
		return -1
	}
	return best[0]
}

// leaveOutMixed is leaveOut for sparseMixer, which leaves the logits without
// those of the experts that it chose.
func (w *expertWatch) leaveOutMixed(r *router, chosen []int32, left []float32, t int) {
	w.next[t] = possible(left)
	others, weight := make([]int32, w.used), make([]float32, w.used)
	if w.next[t] < 0 {
		others = others[1:]
	}
	for i, e := range chosen {
		logits := slices.Clone(w.logits.Row(t))
		r.bar(logits)
		logits[e] = float32(math.Inf(-1))
		sparseMixer(logits, others, weight[:len(others)])
		for j, o := range others {
			if at := slices.Index(chosen, o); at >= 0 {
				w.without(t, i)[at] = weight[j]
			} else {
				w.without(t, i)[w.used] = weight[j]
			}
		}
	}
}

// scaleGates multiplies gates by the factors of their experts.
func (w *expertWatch) scaleGates(factors []float32) {
	if w == nil {
		return
	}
	for t, next := range w.next {
		for i := range w.used {
			gates := w.without(t, i)
			for j, e := range w.chosen[t*w.used:][:w.used] {
				gates[j] *= factors[e]
			}
			if next >= 0 {
				gates[w.used] *= factors[next]
			}
		}
	}
}

// addNext adds the tokens to the networks of all experts that these are next for.
func (w *expertWatch) addNext(all []network) {
	if w == nil {
		return
	}
	for t, e := range w.next {
		if e >= 0 {
			all[e].tokens = append(all[e].tokens, int32(t))
			all[e].scale = append(all[e].scale, w.without(t, 0)[w.used])
			all[e].extra++
		}
	}
}

// leave measures what a token's output lacks without each of its experts:
//
//	|y − y'|² = Σ_ab d_a·d_b·f_a·f_b,  d = gates − gates without it
//
// Where gates apply to inputs, those of the others are what they were, and d is
// 1 for the expert left out and -1 for the next.
func (w *tokenWatch) leave(t int) {
	n := w.used
	if w.next[t] >= 0 {
		n++
	}
	for a := range n {
		for b := a; b < n; b++ {
			w.gram[a*n+b] = kernel.Inner(w.output(t, a), w.output(t, b))
		}
	}
	mirror(w.gram, n)
	for i := range w.used {
		w.changes(t, i)
		sum := 0.0
		for a, d := range w.change[:n] {
			row := 0.0
			for b, e := range w.change[:n] {
				row += float64(e * w.gram[a*n+b])
			}
			sum += float64(d * row)
		}
		w.lost[t*w.used+i] = max(0, sum)
	}
}

// changes sets how the gates change without expert i of token t.
func (w *tokenWatch) changes(t, i int) {
	if w.input {
		clear(w.change)
		w.change[i], w.change[w.used] = 1, -1
		return
	}
	gates := w.without(t, i)
	for j, g := range w.gate[t*w.used:][:w.used] {
		w.change[j] = float64(g) - float64(gates[j])
	}
	w.change[w.used] = -float64(gates[w.used])
}

// weighWithout is weigh of a router that does not have expert e. Its scores are
// those of all, but for a softmax over all experts, which is one over the others:
// where the weights do not sum to one anyway they grow.
func (r *router) weighWithout(scores []float32, e int32, chosen []int32, weight []float32) {
	r.weigh(scores, chosen, weight)
	if r.par.Gating != arch.GatingSoftmax || r.par.ExpertNorm {
		return
	}
	rest := 0.0
	for i, s := range scores {
		if i != int(e) {
			rest += float64(s)
		}
	}
	for i := range weight {
		if rest > 0 {
			weight[i] = float32(float64(weight[i]) / rest)
		}
	}
}
