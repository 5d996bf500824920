package experts

import (
	"encoding/json"
	"errors"
	"math"
	"os"
	"reflect"
	"slices"
	"strconv"
	"strings"
	"testing"
)

// known is a block of testdata/groups.json: matrices without their lower half,
// and by method and number of groups each center with its members.
type known struct {
	Name                     string
	Counts, Reap             []float64
	Distance, Cosine, Logits []float64
	Groups                   map[string]map[string][]centered
}

// centered is a center and the members of its group.
type centered struct {
	center  int
	members []int
}

func (c *centered) UnmarshalJSON(data []byte) error {
	return json.Unmarshal(data, &[]any{&c.center, &c.members})
}

func readJSON[T any](t *testing.T, file string) (v T) {
	t.Helper()
	data, err := os.ReadFile("testdata/" + file)
	if err != nil {
		t.Fatal(err)
	}
	if err := json.Unmarshal(data, &v); err != nil {
		t.Fatal(err)
	}
	return v
}

// square makes a symmetric matrix of its upper half.
func square(upper []float64, n int, diagonal float64) []float64 {
	out := make([]float64, n*n)
	for i := range n {
		out[i*n+i] = diagonal
		for j := i + 1; j < n; j++ {
			out[i*n+j], out[j*n+i] = upper[0], upper[0]
			upper = upper[1:]
		}
	}
	return out
}

func (k *known) likeness() *Likeness {
	n := len(k.Counts)
	return &Likeness{Counts: k.Counts, Reap: k.Reap, Distance: square(k.Distance, n, 0), Cosine: square(k.Cosine, n, 1), Logits: square(k.Logits, n, 1)}
}

// TestGroupsOfOracle compares groups with those of prune_oracle.py, on blocks of
// the miniatures and on made up ones where many numbers are equal.
func TestGroupsOfOracle(t *testing.T) {
	for _, k := range readJSON[[]known](t, "groups.json") {
		for method, by := range k.Groups {
			for number, want := range by {
				keep, _ := strconv.Atoi(number)
				groups, err := GroupExperts(method, k.likeness(), keep, nil)
				if err != nil {
					t.Fatal(err)
				}
				var got []centered
				for _, g := range groups {
					got = append(got, centered{g.Center, g.Members})
				}
				if !reflect.DeepEqual(got, want) {
					t.Errorf("%s, %s, %d groups:\ngot  %v\nwant %v", k.Name, method, keep, got, want)
				}
				checkWeights(t, &k, method, groups)
			}
		}
	}
}

// checkWeights compares the ratios of weights with those of counts or scores.
func checkWeights(t *testing.T, k *known, method string, groups []Group) {
	t.Helper()
	scores, least := k.Counts, 1e-9
	if method == "ream" {
		scores, least = k.Reap, 1e-12
	}
	if err := checkMerged(0, groups, len(scores)); err != nil {
		t.Error(err)
	}
	for _, g := range groups {
		for i, e := range g.Members {
			if a, b := g.Weights[i]*(scores[g.Center]+least), g.Weights[slices.Index(g.Members, g.Center)]*(scores[e]+least); math.Abs(a-b) > 1e-14*a {
				t.Errorf("%s, %s: expert %d weighs %v beside its center %d", k.Name, method, e, g.Weights[i], g.Center)
			}
		}
	}
}

// TestMean: the mean takes M-SMoE's groups, and its neurons as they are.
func TestMean(t *testing.T) {
	l := readJSON[[]known](t, "groups.json")[0].likeness()
	a, err := GroupExperts("mean", l, 8, nil)
	if err != nil {
		t.Fatal(err)
	}
	if b, err := GroupExperts("m-smoe", l, 8, nil); err != nil || !reflect.DeepEqual(a, b) {
		t.Errorf("%v, %v; want %v", b, err, a)
	}
	aligned := map[string]bool{}
	for _, r := range MergeRules() {
		aligned[r.Name] = r.Align
	}
	if want := map[string]bool{"ream": true, "m-smoe": true, "hc-smoe": false, "mean": false}; !reflect.DeepEqual(aligned, want) || MergeRules()[0].Name != DefaultMerge {
		t.Errorf("%v, want %v", aligned, want)
	}
}

// TestSuperAlone: super experts stay and take nobody in, whatever their score.
func TestSuperAlone(t *testing.T) {
	for _, k := range readJSON[[]known](t, "groups.json") {
		n := len(k.Counts)
		super := []int{n - 1, 2}
		for _, r := range MergeRules() {
			for _, keep := range []int{3, n - 1, n} {
				groups, err := GroupExperts(r.Name, k.likeness(), keep, super)
				if err != nil {
					t.Fatal(err)
				}
				var all, alone []int
				for _, g := range groups {
					all = append(all, g.Members...)
					if slices.Contains(super, g.Center) && len(g.Members) == 1 && g.Weights[0] == 1 {
						alone = append(alone, g.Center)
					}
				}
				slices.Sort(all)
				if len(groups) != keep || len(all) != n || len(slices.Compact(all)) != n || !slices.Equal(alone, []int{2, n - 1}) {
					t.Errorf("%s, %s, %d groups with %v alone: %v", k.Name, r.Name, keep, super, groups)
				}
			}
		}
	}
}

func TestGroupsRefused(t *testing.T) {
	good := func() *Likeness { return readJSON[[]known](t, "groups.json")[0].likeness() }
	for _, c := range []struct {
		method string
		change func(*Likeness)
		keep   int
		super  []int
		kind   error
		want   string
	}{
		{"best", nil, 8, nil, ErrRefused, "ream, m-smoe, hc-smoe, mean"},
		{"ream", nil, 0, nil, ErrRefused, "16 experts are to be merged into 0"},
		{"ream", nil, 17, nil, ErrRefused, "into 17"},
		{"ream", nil, 2, []int{3, 4}, ErrRefused, "2 experts must stay as they are"},
		{"ream", nil, 16, []int{16}, ErrInvalid, "expert 16 is to be protected"},
		{"ream", nil, 8, []int{1, 1}, ErrInvalid, "each once"},
		{"ream", func(l *Likeness) { l.Reap[3] = math.NaN() }, 8, nil, ErrInvalid, "scores"},
		{"m-smoe", func(l *Likeness) { l.Counts[3] = -1 }, 8, nil, ErrInvalid, "scores"},
		{"ream", func(l *Likeness) { l.Cosine = nil }, 8, nil, ErrInvalid, "has 0 numbers, want 256 for 16"},
		{"mean", func(l *Likeness) { l.Logits[0] = math.Inf(1) }, 8, nil, ErrInvalid, "not finite"},
		{"hc-smoe", func(l *Likeness) { l.Distance[0] = math.NaN() }, 8, nil, ErrInvalid, "not finite"},
	} {
		l := good()
		if c.change != nil {
			c.change(l)
		}
		if _, err := GroupExperts(c.method, l, c.keep, c.super); !errors.Is(err, c.kind) || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%s: %v, want %q", c.method, err, c.want)
		}
	}
}
