package kernel

import (
	"slices"
	"sync/atomic"

	"github.com/winnow-moe/winnow/isa"
)

// Set is the products of an instruction set.
type Set struct {
	Name       string
	Lanes      int       // width of a panel
	products   []product // by rows, ascending
	block      int       // rows of x at a time, a multiple of the largest product's
	transpose8 func(dst *float32, dstStride int, src *float32, srcStride int, blocks int)
	vectors    bool // the exponential and others have a kernel

	narrow map[int][]integerProduct // by quads to a scale
	wide   []integerProduct
	codes  *codeKernels // nil: none
}

var portable = Set{Name: isa.Portable, Lanes: portableLanes, products: []product{{1, product1x4}}, block: 64}

const portableLanes = 4

var active atomic.Pointer[Set]

func init() {
	Use(isa.Best(func(name string) bool {
		return slices.ContainsFunc(sets, func(s *Set) bool { return s.Name == name })
	}))
}

// Active returns the set in use.
func Active() *Set { return active.Load() }

// Sets returns those of this machine, the best first; the portable one is the
// last.
func Sets() []*Set { return append(slices.Clone(sets), &portable) }

// Use makes the named set active and reports whether the machine has it. It
// serves comparisons and measurements, and not while products run.
func Use(name string) bool {
	for _, s := range Sets() {
		if s.Name == name {
			active.Store(s)
			return true
		}
	}
	return false
}
