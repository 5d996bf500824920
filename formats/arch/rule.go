package arch

import (
	"cmp"
	"strings"
)

// Dim is a symbolic length: its value for a model and the config settings
// that determine it, for error messages.
type Dim struct {
	Name string
	Of   func(*Params) int
}

// Where says which blocks have a tensor.
type Where int

// The block ranges.
const (
	Global      Where = iota // outside the blocks
	AllBlocks                // every block, MTP blocks included
	DenseBlocks              // the leading dense blocks
	MoEBlocks                // blocks with routed experts, MTP blocks included
	MTPBlocks                // only MTP blocks
)

// Rule maps one logical weight between its checkpoint names, its GGUF name and
// its shape. {l} in a name runs over the blocks in Where, {e} over experts: a
// rule with {e} stacks its sources along a new slowest axis.
type Rule struct {
	Role   Role
	Suffix string // "" means "weight", NoSuffix none
	// HF lists accepted checkpoint names; the first present wins.
	HF    []string
	Where Where
	// Shape is the tensor as GGUF users see it, slowest axis first.
	Shape []Dim
	// Source is the shape of each checkpoint tensor where it is not simply
	// Shape (or Shape without the expert axis).
	Source []Dim
	// Cut, when set, takes a slice of every head of the source; the slices of
	// several cuts follow each other.
	Cut []HeadCut
	// Blocks, when set, replaces Source and Cut for checkpoints that hold the
	// tensor in blocks of MXFP4, which lie along what a GGUF file has as rows.
	Blocks *Blocks
	// Order, when set, rearranges the elements of every row.
	Order *HeadOrder
	// Op is applied to every element.
	Op Op
	// Trim: the source may have more rows than the tensor; the rest is left out.
	Trim bool
	// Generate, when set, computes a vector that no checkpoint has; nil without
	// error means that the model has none.
	Generate func(*Model) ([]float32, error)
	// Optional tensors may be missing.
	Optional bool
	// If limits the rule to models for which it holds.
	If func(*Params) bool
	// In limits the rule to blocks for which it holds.
	In func(p *Params, l int) bool
}

// Blocks is the form of a tensor in blocks of MXFP4.
type Blocks struct {
	Source []Dim
	Cut    []HeadCut
}

// InBlocks is the rule for a checkpoint that holds the tensor in MXFP4.
func (r *Rule) InBlocks() *Rule {
	if r.Blocks == nil {
		return r
	}
	b := *r
	b.Source, b.Cut = r.Blocks.Source, r.Blocks.Cut
	return &b
}

// NoSuffix is the suffix of a rule whose tensor's name has none.
const NoSuffix = "-"

// Op is an operation on every element of a tensor.
type Op int

// The operations.
const (
	OpNone   Op = iota
	OpAddOne    // x + 1: norms whose weight is stored as an offset
	OpNegExp    // −exp(x): decay rates stored as logarithms
	OpExp       // exp(x)
)

// HeadCut views the source's rows from Base on as heads of Stride rows and
// takes rows Offset, Offset+Step, …, Count of them, of each, in the given
// arrangement.
type HeadCut struct {
	Heads, Stride, Offset, Count Dim
	Base                         Dim // nil function: 0
	Step                         int // 0 means 1
	Mode                         CutMode
	// Groups, when set, takes the heads of one group after the other to one
	// head of each group, then the next of each: head j is head
	// (j%Groups)·(Heads/Groups) + j/Groups of the source.
	Groups Dim
	// Columns, when set, takes only some columns.
	Columns *Columns
}

// Columns takes columns From, From+Step, …, Count of them.
type Columns struct {
	From, Count Dim
	Step        int // 0 means 1
}

// HeadOrder rearranges the elements of a row, which form heads of Size.
type HeadOrder struct {
	Heads, Size Dim
	Interleave  bool // as CutInterleaved, within each head
	Groups      Dim  // as HeadCut.Groups, among the heads
}

// CutMode is the arrangement of the rows cut from a head.
type CutMode int

// The arrangements.
const (
	// CutRows keeps the rows as they are.
	CutRows CutMode = iota
	// CutTransposed swaps rows and columns of each head's slice.
	CutTransposed
	// CutInterleaved reorders rows i and i+n/2 to 2i and 2i+1, which turns a
	// half-split rotary layout into an adjacent one.
	CutInterleaved
	// CutPlanes takes rows that hold a square of pixels, each with Columns.Step
	// colours, apart into a row per colour and line of Columns.Count pixels.
	CutPlanes
)

// At returns the row of the source with which head j's slice starts.
func (c *HeadCut) At(p *Params, j int) int {
	return c.Base.value(p) + regrouped(j, c.Heads.Of(p), c.Groups.value(p))*c.Stride.Of(p) + c.Offset.Of(p)
}

// regrouped returns the source's number of head j.
func regrouped(j, heads, groups int) int {
	if groups < 2 {
		return j
	}
	return j%groups*(heads/groups) + j/groups
}

// Permutation returns for every element of a row its place in the source's row.
func (o *HeadOrder) Permutation(p *Params) []int32 {
	heads, size := o.Heads.Of(p), o.Size.Of(p)
	out := make([]int32, 0, heads*size)
	for j := range heads {
		first := regrouped(j, heads, o.Groups.value(p)) * size
		for i := range size {
			if o.Interleave {
				i = i%2*(size/2) + i/2
			}
			out = append(out, int32(first+i))
		}
	}
	return out
}

// value is Of, or 0 where there is none.
func (d Dim) value(p *Params) int {
	if d.Of == nil {
		return 0
	}
	return d.Of(p)
}

// Stacked reports whether the rule stacks one source per expert.
func (r *Rule) Stacked() bool { return len(r.HF) > 0 && strings.Contains(r.HF[0], "{e}") }

// Name returns the rule's GGUF name in block l (-1 outside the blocks).
func (r *Rule) Name(l int) Name {
	s := cmp.Or(r.Suffix, "weight")
	if s == NoSuffix {
		s = ""
	}
	return Name{Layer: l, Role: r.Role, Suffix: s}
}
