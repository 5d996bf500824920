package kernel

import (
	"os"
	"slices"
	"sync/atomic"
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
}

var portable = Set{Name: "portable", Lanes: portableLanes, products: []product{{1, product1x4}}, block: 64}

const portableLanes = 4

var active atomic.Pointer[Set]

// The environment variable WINNOW_ISA names the instruction set to use, as in
// quant/kernel.
func init() {
	active.Store(best())
	if name, set := os.LookupEnv("WINNOW_ISA"); set {
		Use(name)
	}
}

func best() *Set { return Sets()[0] }

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
