package experts

import (
	"cmp"
	"math"
	"slices"
	"strings"
)

// DefaultMerge keeps the experts that add most and merges the others into those
// that compute alike (REAM, arXiv 2604.04356).
const DefaultMerge = "ream"

// Likeness is what merging knows of the experts of a block. Matrices are [E,E],
// row by row; a rule uses only some of them.
type Likeness struct {
	Counts   []float64 // [E] tokens that chose the expert
	Reap     []float64 // [E] mean |c| of what the expert adds, over its tokens
	Distance []float64 // [E,E] |mean f_i − mean f_j| of outputs, the means over all tokens
	Cosine   []float64 // [E,E] mean of cos(f_i, f_j) over all tokens
	Logits   []float64 // [E,E] cosine of the router's logits of i and j, as vectors over the tokens
}

// Group is some experts that become one: the weighted mean of their weights, in
// the place of the center and with its row of the router.
type Group struct {
	Center  int       `json:"center"`
	Members []int     `json:"members"` // ascending, with the center
	Weights []float64 `json:"weights"` // of each member; their sum is 1
}

// mergeRule is a way to form groups.
type mergeRule struct {
	name  string
	align bool // members' hidden neurons are put into the center's order first
	what  string
	// needs lists what of a likeness the rule uses: scores [E], matrices [E,E]
	needs func(*Likeness) (scores, matrices [][]float64)
	// weights are the scores by which the mean of a group is weighted
	weights func(*Likeness) []float64
	groups  func(*grouping) map[int][]int // members by center
}

// mergeRules; formulas in the methods of grouping.
var mergeRules = []mergeRule{
	{DefaultMerge, true, "those of the largest mean |c| take in their nearest, in turn (REAM)",
		func(l *Likeness) (s, m [][]float64) { return [][]float64{l.Reap}, [][]float64{l.Cosine, l.Logits} }, (*Likeness).reap, (*grouping).ream},
	{"m-smoe", true, "the most frequent take in those of the most similar logits (M-SMoE)", needsLogits, (*Likeness).frequency, (*grouping).bySimilarLogits},
	{"hc-smoe", false, "clusters of mean outputs, by average linkage (HC-SMoE)",
		func(l *Likeness) (s, m [][]float64) { return [][]float64{l.Counts}, [][]float64{l.Distance} }, (*Likeness).frequency, (*grouping).clusters},
	{"mean", false, "the groups of m-smoe; neurons are not matched", needsLogits, (*Likeness).frequency, (*grouping).bySimilarLogits},
}

func needsLogits(l *Likeness) (scores, matrices [][]float64) {
	return [][]float64{l.Counts}, [][]float64{l.Logits}
}

// The scores by which groups are weighted. The small terms give groups of experts
// that no token chose a mean, all members alike.
// MergeScore names the rule of the scores that a way to merge chooses the experts
// that stay by, and weighs those that it merges.
func MergeScore(method string) string {
	if method == DefaultMerge {
		return DefaultRule
	}
	return "frequency"
}

func (l *Likeness) frequency() []float64 { return plus(l.Counts, 1e-9) }
func (l *Likeness) reap() []float64      { return plus(l.Reap, 1e-12) }

func plus(list []float64, x float64) []float64 {
	out := make([]float64, len(list))
	for i, v := range list {
		out[i] = v + x
	}
	return out
}

// MergeRules lists the ways to form groups of experts, the default first.
func MergeRules() (list []RuleInfo) {
	for _, r := range mergeRules {
		list = append(list, RuleInfo{Name: r.name, What: r.what, Align: r.align})
	}
	return list
}

func findMergeRule(name string) (*mergeRule, error) {
	var names []string
	for i := range mergeRules {
		if mergeRules[i].name == name {
			return &mergeRules[i], nil
		}
		names = append(names, mergeRules[i].name)
	}
	return nil, refused("there is no way %q to merge; the ways are %s", name, strings.Join(names, ", "))
}

// grouping is a block whose experts are to form groups.
type grouping struct {
	*Likeness
	experts, keep int
	super         []bool // by expert: stays as it is
}

// GroupExperts forms as many groups of the experts of a block as are to stay, in
// the order of their centers. Super experts are groups of their own. Routing
// groups do not matter: which experts are centers is free, as in a keep-list that
// gives groups up. Errors match ErrRefused, or ErrInvalid where the likeness is
// not of such a block.
func GroupExperts(method string, l *Likeness, keep int, super []int) ([]Group, error) {
	r, err := findMergeRule(method)
	if err != nil {
		return nil, err
	}
	g := &grouping{Likeness: l, experts: len(r.weights(l)), keep: keep}
	if err := g.check(r.needs(l)); err != nil {
		return nil, err
	}
	if err := g.protect(super); err != nil {
		return nil, err
	}
	var out []Group
	weights := r.weights(l)
	for center, members := range r.groups(g) {
		out = append(out, weighted(center, members, weights))
	}
	slices.SortFunc(out, func(a, b Group) int { return cmp.Compare(a.Center, b.Center) })
	return out, nil
}

// check sees that a rule has what it needs.
func (g *grouping) check(scores, matrices [][]float64) error {
	if g.keep < 1 || g.keep > g.experts {
		return refused("%d experts are to be merged into %d", g.experts, g.keep)
	}
	for _, list := range scores {
		if slices.ContainsFunc(list, func(v float64) bool { return !(v >= 0 && v <= math.MaxFloat64) }) {
			return invalid("the scores of experts to be merged must not be negative or without bound")
		}
	}
	for _, list := range matrices {
		if len(list) != g.experts*g.experts {
			return invalid("the likeness of experts has %d numbers, want %d for %d experts", len(list), g.experts*g.experts, g.experts)
		}
		if slices.ContainsFunc(list, func(v float64) bool { return math.IsNaN(v) || math.IsInf(v, 0) }) {
			return invalid("the likeness of experts has numbers that are not finite")
		}
	}
	return nil
}

// protect marks the experts that stay as they are.
func (g *grouping) protect(super []int) error {
	g.super = make([]bool, g.experts)
	for _, e := range super {
		if e < 0 || e >= g.experts || g.super[e] {
			return invalid("expert %d is to be protected: the experts are 0 to %d, each once", e, g.experts-1)
		}
		g.super[e] = true
	}
	if len(super) > g.keep || len(super) == g.keep && g.keep < g.experts {
		return refused("%d experts must stay as they are (super experts), and %d groups leave none for the other %d", len(super), g.keep, g.experts-len(super))
	}
	return nil
}

// weighted makes a group of its members.
func weighted(center int, members []int, scores []float64) Group {
	slices.Sort(members)
	out, sum := Group{Center: center, Members: members}, 0.0
	for _, e := range members {
		sum += scores[e]
	}
	for _, e := range members {
		out.Weights = append(out.Weights, scores[e]/sum)
	}
	return out
}

// centers returns the experts with the largest scores, the largest first, of
// equal ones the lower number; super experts come before all.
func (g *grouping) centers(scores []float64) []int {
	ids := make([]int, g.experts)
	for e := range ids {
		ids[e] = e
	}
	first := func(e int) int {
		if g.super[e] {
			return 1
		}
		return 0
	}
	slices.SortStableFunc(ids, func(a, b int) int {
		return cmp.Or(first(b)-first(a), cmp.Compare(scores[b], scores[a]))
	})
	return ids[:g.keep]
}

// owners starts groups of one: of every expert the center that it belongs to,
// -1 for those that are none.
func (g *grouping) owners(centers []int) []int {
	owner := make([]int, g.experts)
	for e := range owner {
		owner[e] = -1
	}
	for _, c := range centers {
		owner[c] = c
	}
	return owner
}

// join gives every expert without a center the one with the least cost, of equal
// ones the first, and returns the members of each.
func (g *grouping) join(centers, owner []int, cost func(e, center int) float64) map[int][]int {
	groups := map[int][]int{}
	for e, c := range owner {
		if c < 0 {
			for _, next := range centers {
				if !g.super[next] && (c < 0 || cost(e, next) < cost(e, c)) {
					c = next
				}
			}
		}
		groups[c] = append(groups[c], e)
	}
	return groups
}

// bySimilarLogits: the most frequent experts are centers, any other joins that
// whose logits are most like its own (M-SMoE, arXiv 2310.01334).
func (g *grouping) bySimilarLogits() map[int][]int {
	centers := g.centers(g.frequency())
	return g.join(centers, g.owners(centers), func(e, c int) float64 { return -g.Logits[e*g.experts+c] })
}

// reamSize is the most experts of a group that a center takes in at once: few
// large groups and many experts left alone (REAM calls it pseudo-pruning).
const reamSize = 16

// ream: the experts with the largest REAP are centers. One after the other, the
// largest first, takes in the nearest experts that are free; those that are left
// join the nearest center. The distance of two is 1 − (a + b)/2, with a the mean
// over tokens of (cos(f_i, f_j) + 1)/2 and b = 1 − d/max d, d being the distance
// of their logits as unit vectors (arXiv 2604.04356).
func (g *grouping) ream() map[int][]int {
	d := g.distances()
	centers := g.centers(g.Reap)
	owner := g.owners(centers)
	for _, c := range centers {
		if g.super[c] {
			continue
		}
		near, size := ascending(d[c*g.experts:][:g.experts]), 1
		for _, e := range near {
			if size < reamSize && owner[e] < 0 {
				owner[e] = c
				size++
			}
		}
	}
	return g.join(centers, owner, func(e, c int) float64 { return d[c*g.experts+e] })
}

// distances are those of ream.
func (g *grouping) distances() []float64 {
	d, most := make([]float64, len(g.Logits)), 1e-12
	for i, cos := range g.Logits {
		d[i] = math.Sqrt(max(0, 2-2*cos))
		most = max(most, d[i])
	}
	for i := range d {
		d[i] = 1 - ((g.Cosine[i]+1)/2+(1-d[i]/most))/2
	}
	return d
}

// ascending returns the places of numbers in their order, equal ones as they come.
func ascending(list []float64) []int {
	out := make([]int, len(list))
	for i := range out {
		out[i] = i
	}
	slices.SortStableFunc(out, func(a, b int) int { return cmp.Compare(list[a], list[b]) })
	return out
}

// clusters: clusters by average linkage of the experts' mean outputs, of each the
// most frequent expert is the center (HC-SMoE, arXiv 2410.08589). Super experts
// are left out of it.
func (g *grouping) clusters() map[int][]int {
	groups, ids := map[int][]int{}, []int{}
	for e, super := range g.super {
		if super {
			groups[e] = []int{e}
		} else {
			ids = append(ids, e)
		}
	}
	d := make([]float64, 0, len(ids)*len(ids))
	for _, a := range ids {
		for _, b := range ids {
			d = append(d, g.Distance[a*g.experts+b])
		}
	}
	often := g.frequency()
	for _, cluster := range averageLinkage(d, len(ids), g.keep-len(groups)) {
		center := ids[cluster[0]]
		for i, at := range cluster {
			if cluster[i] = ids[at]; often[ids[at]] > often[center] {
				center = ids[at]
			}
		}
		groups[center] = cluster
	}
	return groups
}

// averageLinkage merges the two nearest of n clusters, at first single points,
// until k are left (UPGMA). d is [n,n] and is overwritten; of equal distances the
// first counts, row by row. Clusters are ascending and come in the order of their
// first points. O(n³).
func averageLinkage(d []float64, n, k int) [][]int {
	members := make([][]int, n)
	for i := range members {
		members[i] = []int{i}
		d[i*n+i] = math.Inf(1)
	}
	for left := n; left > k; left-- {
		at := 0
		for x, v := range d {
			if v < d[at] {
				at = x
			}
		}
		i, j := min(at/n, at%n), max(at/n, at%n)
		a, b := float64(len(members[i])), float64(len(members[j]))
		for x := range n {
			mean := math.Inf(1)
			if x != i && x != j {
				mean = (float64(a*d[i*n+x]) + float64(b*d[j*n+x])) / (a + b)
			}
			d[i*n+x], d[x*n+i] = mean, mean
			d[j*n+x], d[x*n+j] = math.Inf(1), math.Inf(1)
		}
		members[i], members[j] = append(members[i], members[j]...), nil
	}
	var out [][]int
	for _, m := range members {
		if m != nil {
			slices.Sort(m)
			out = append(out, m)
		}
	}
	return out
}
