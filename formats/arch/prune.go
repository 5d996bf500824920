package arch

import "slices"

// ExpertAxis returns the axis of the tensor, counted as Shape is, along which
// there is one entry for each routed expert; -1: there is none.
func (r *Rule) ExpertAxis() int { return expertAxis(r.Shape) }

func expertAxis(dims []Dim) int {
	return slices.IndexFunc(dims, func(d Dim) bool { return d.Name == dimExperts.Name })
}
