package experts

import (
	"context"
	"errors"
	"fmt"
	"math"
	"math/rand/v2"
	"os"
	"path/filepath"
	"reflect"
	"slices"
	"strings"
	"sync"
	"testing"

	"github.com/winnow-moe/winnow/formats/arch"
	"github.com/winnow-moe/winnow/formats/dtype"
	"github.com/winnow-moe/winnow/formats/safetensors"
	"github.com/winnow-moe/winnow/testdata/fixtures"
)

func TestMain(m *testing.M) { fixtures.Main(m) }

// configured reads the model that a checkpoint's config.json describes.
func configured(t *testing.T, dir string) *arch.Model {
	t.Helper()
	data, err := os.ReadFile(filepath.Join(dir, "config.json"))
	if err != nil {
		t.Fatal(err)
	}
	cfg, err := arch.ParseConfig(data)
	if err != nil {
		t.Fatal(err)
	}
	m, err := arch.FromConfig(cfg, false)
	if err != nil {
		t.Fatal(err)
	}
	return m
}

// checkpoint reads the experts of a checkpoint that has them as GGUF files do:
// one by one, in FP8 with a scale for every block of 128 × 128, or stacked.
type checkpoint struct {
	*arch.Model
	files   *safetensors.Checkpoint
	byName  map[string]int
	tensors map[string]arch.Tensor
}

func openCheckpoint(t *testing.T, dir string) *checkpoint {
	t.Helper()
	files, err := safetensors.Open(dir)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { files.Close() })
	c := &checkpoint{Model: configured(t, dir), files: files, byName: map[string]int{}, tensors: map[string]arch.Tensor{}}
	for i, s := range files.Tensors() {
		c.byName[arch.Canonical(s.Name)] = i
	}
	for _, t := range c.Tensors() {
		c.tensors[t.Name.String()] = t
	}
	return c
}

func (c *checkpoint) Rows(_ context.Context, name string, first, n int64, dst []float32) error {
	t := c.tensors[name]
	cols, rows := t.Shape[0], t.Shape[1]
	for r := first; r < first+n; r++ {
		source := c.Source(t.Rule.HF[0], t.Name.Layer, int(r/rows))
		at, to := r, dst[(r-first)*cols:][:cols]
		if t.Rule.Stacked() {
			at = r % rows
		}
		if err := c.decode(source, at*cols, to); err != nil {
			return err
		}
		if _, scaled := c.byName[source+"_scale_inv"]; scaled {
			factors := make([]float32, (cols+127)/128)
			if err := c.decode(source+"_scale_inv", at/128*int64(len(factors)), factors); err != nil {
				return err
			}
			for i := range to {
				to[i] *= factors[i/128]
			}
		}
	}
	return nil
}

func (c *checkpoint) decode(name string, first int64, dst []float32) error {
	i, ok := c.byName[name]
	if !ok {
		return fmt.Errorf("the checkpoint has no tensor %q", name)
	}
	typ := c.files.Tensors()[i].DType
	raw := make([]byte, len(dst)*typ.Bits()/8)
	if err := c.files.ReadAt(i, first*int64(typ.Bits()/8), raw); err != nil {
		return err
	}
	return dtype.Decode(typ, dst, raw)
}

// mergedModel is what testdata/merged.json says of one.
type mergedModel struct {
	Name   string
	Row    map[string][]float32 // the start of the first rows of the first group
	Groups []struct {
		Block int
		Group
		Gate, Up, Down []float64 // two sums, each with the root of its terms' squares
	}
}

// TestMergeOfOracle compares merged experts with those of prune_oracle.py.
func TestMergeOfOracle(t *testing.T) {
	for _, want := range readJSON[[]mergedModel](t, "merged.json") {
		if testing.Short() && want.Name == "tiny-r1" {
			continue // its products take long under the race detector
		}
		dir := fixtures.TinyR1(t)
		if want.Name == "tiny-gemma4-moe" {
			dir = filepath.Join(fixtures.Dir(t, "packs/tiny-gemma4-moe"), "tiny-gemma4-moe")
		}
		c := openCheckpoint(t, dir)
		groups := map[int][]Group{}
		for _, g := range want.Groups {
			groups[g.Block] = append(groups[g.Block], g.Group)
		}
		opt := MergeOptions{Align: true}
		if want.Name == "tiny-gemma4-moe" {
			opt.Products = products32
		}
		m, err := NewMerge(t.Context(), c.Model, groups, c.Rows, opt)
		if err != nil {
			t.Fatal(err)
		}
		for i, g := range want.Groups {
			got := mergedExpert(t, m, c.Model, g.Block, g.Center)
			for part, sums := range map[string][]float64{"gate": g.Gate, "up": g.Up, "down": g.Down} {
				checkSums(t, fmt.Sprintf("%s block %d expert %d %s", want.Name, g.Block, g.Center, part), got[part], sums)
				if row := want.Row[part]; i == 0 && row != nil {
					for x, v := range row {
						if d := math.Abs(float64(v - got[part][0][x])); d > 2e-6*math.Abs(float64(v))+1e-8 {
							t.Errorf("%s %s row 0 column %d: %v, want %v", want.Name, part, x, got[part][0][x], v)
						}
					}
				}
			}
		}
	}
}

// products32 computes in float32, as the oracle does.
func products32(dst, a, b []float32, n, width int) {
	for i := range n {
		for j := range n {
			sum := float32(0)
			for k, v := range a[i*width:][:width] {
				sum += float32(v * b[j*width+k])
			}
			dst[i*n+j] = sum
		}
	}
}

// mergedExpert reads the matrices of an expert, row by row.
func mergedExpert(t *testing.T, m *Merge, model *arch.Model, l, e int) map[string][][]float32 {
	t.Helper()
	out := map[string][][]float32{}
	for part, role := range map[string]arch.Role{"gate": arch.ExpertGate, "up": arch.ExpertUp, "both": arch.ExpertGateUp, "down": arch.ExpertDown} {
		name := arch.Name{Layer: l, Role: role, Suffix: "weight"}.String()
		for _, tensor := range model.Tensors() {
			if tensor.Name.String() != name {
				continue
			}
			cols, rows := tensor.Shape[0], tensor.Shape[1]
			data := make([]float32, cols*rows)
			if err := m.Rows(t.Context(), name, int64(e)*rows, rows, data); err != nil || !m.Has(name) {
				t.Fatal(m.Has(name), err)
			}
			out[part] = slices.Collect(slices.Chunk(data, int(cols)))
		}
	}
	if both := out["both"]; both != nil {
		out["gate"], out["up"] = both[:len(both)/2], both[len(both)/2:]
	}
	return out
}

// checkSums compares the sums that merge.py takes over a matrix. The oracle
// rounds every product and sum to float32.
func checkSums(t *testing.T, what string, rows [][]float32, want []float64) {
	t.Helper()
	for k, f := range [][2]float64{{.7, 1.3}, {2.9, .11}} {
		sum := 0.0
		for i, row := range rows {
			for j, v := range row {
				sum += math.Cos(f[0]*float64(i)+1) * float64(v) * math.Cos(f[1]*float64(j)+2)
			}
		}
		if d := math.Abs(sum - want[2*k]); !(d <= 1e-6*want[2*k+1]) {
			t.Errorf("%s: sum %d is %v, want %v, with terms of %v", what, k, sum, want[2*k], want[2*k+1])
		}
	}
}

// inMemory is a model with made up experts.
type inMemory struct {
	*arch.Model
	data map[string][]float32
	t    map[string]arch.Tensor
	lock sync.Mutex
	most int64 // rows that were read at once
}

func newInMemory(t *testing.T, family string, seed uint64) *inMemory {
	t.Helper()
	m := &inMemory{Model: configured(t, fixtures.Family(t, family)), data: map[string][]float32{}, t: map[string]arch.Tensor{}}
	rng := rand.New(rand.NewPCG(seed, 1))
	for _, t := range m.Tensors() {
		if t.Rule.ExpertAxis() < 0 {
			continue
		}
		n := int64(1)
		for _, d := range t.Shape {
			n *= d
		}
		list := make([]float32, n)
		for i := range list {
			list[i] = float32(rng.NormFloat64())
		}
		m.data[t.Name.String()], m.t[t.Name.String()] = list, t
	}
	return m
}

func (m *inMemory) Rows(_ context.Context, name string, first, n int64, dst []float32) error {
	m.lock.Lock()
	defer m.lock.Unlock()
	m.most = max(m.most, n)
	cols := m.t[name].Shape[0]
	copy(dst, m.data[name][first*cols:(first+n)*cols])
	return nil
}

// of is what an expert has of a tensor, with its shape: rows of one, or of both
// halves where gate and up are one.
func (m *inMemory) of(name string, e int) (list []float32, rows, cols int) {
	size := len(m.data[name]) / m.Params.Experts
	cols = int(m.t[name].Shape[0])
	return m.data[name][e*size:][:size], size / cols, cols
}

// permute makes an expert a copy of another whose hidden neurons are in another
// order.
func (m *inMemory) permute(t *testing.T, from, to int, order []int) {
	t.Helper()
	n := len(order)
	for name, tensor := range m.t {
		src, rows, cols := m.of(name, from)
		dst, _, _ := m.of(name, to)
		role, bias := tensor.Name.Role, tensor.Name.Suffix == "bias"
		for i := range rows {
			for j := range cols {
				r, c := i, j
				switch {
				case role == arch.ExpertDown && !bias || role != arch.ExpertDown && bias && role != arch.Router && role != arch.RouterBias:
					c = order[j%n] + j/n*n
				case role == arch.ExpertGate || role == arch.ExpertUp || role == arch.ExpertGateUp:
					r = order[i%n] + i/n*n
				}
				dst[i*cols+j] = src[r*cols+c]
			}
		}
	}
}

var mergeFamilies = []string{"deepseek_v3", "gemma4_moe", "gpt_oss", "mixtral", "llama4_scout"}

// TestMergePermuted: an expert merged with copies of itself whose neurons are in
// another order is itself.
func TestMergePermuted(t *testing.T) {
	for _, family := range mergeFamilies {
		m := newInMemory(t, family, 5)
		l := Blocks(&m.Params, DropMTP)[0]
		rng := rand.New(rand.NewPCG(7, 8))
		m.permute(t, 1, 0, rng.Perm(m.Params.ExpertFF))
		m.permute(t, 1, 3, rng.Perm(m.Params.ExpertFF))
		groups := map[int][]Group{l: {{Center: 1, Members: []int{0, 1, 3}, Weights: []float64{.1, .3, .6}}, {Center: 2, Members: []int{2}, Weights: []float64{1}}}}
		var seen []string
		merge, err := NewMerge(t.Context(), m.Model, groups, m.Rows, MergeOptions{Align: true, Threads: 2, Progress: func(done, total int) { seen = append(seen, fmt.Sprint(done, " of ", total)) }})
		if err != nil {
			t.Fatal(err)
		}
		if keep := merge.Keep(); !reflect.DeepEqual(keep, map[int][]int{l: {1, 2}}) || !slices.Equal(seen, []string{"1 of 2", "2 of 2"}) {
			t.Errorf("%s: %v stay, progress %q", family, keep, seen)
		}
		changed := 0
		for name, tensor := range m.t {
			network := strings.HasPrefix(name, fmt.Sprintf("blk.%d.ffn_", l)) && strings.Contains(name, "_exps.") && tensor.Name.Suffix != "scale"
			if merge.Has(name) != network {
				t.Errorf("%s: %s is merged: %v", family, name, merge.Has(name))
			}
			if network {
				changed++
				if got := allRows(t, merge, m, name, 1<<30); !slices.Equal(got, m.data[name]) {
					t.Errorf("%s: %s differs", family, name)
				}
			}
		}
		if want := map[string]int{"gemma4_moe": 2, "gpt_oss": 6}[family]; changed != max(3, want) && changed != want {
			t.Errorf("%s: %d tensors", family, changed)
		}
	}
}

// allRows reads a tensor, so many rows at once.
func allRows(t *testing.T, merge *Merge, m *inMemory, name string, step int64) []float32 {
	t.Helper()
	cols := m.t[name].Shape[0]
	out := make([]float32, len(m.data[name]))
	total := int64(len(out)) / cols
	for first := int64(0); first < total; first += step {
		n := min(step, total-first)
		if err := merge.Rows(t.Context(), name, first, n, out[first*cols:(first+n)*cols]); err != nil {
			t.Fatal(err)
		}
	}
	return out
}

// TestMergePlain computes means as they are by hand, and with experts aligned
// sees that it makes no difference how many rows are asked for.
func TestMergePlain(t *testing.T) {
	for _, family := range mergeFamilies {
		m := newInMemory(t, family, 9)
		l := Blocks(&m.Params, DropMTP)[0]
		groups := map[int][]Group{l: {{Center: 2, Members: []int{0, 2, 3}, Weights: []float64{.5, .25, .25}}}}
		plain, err := NewMerge(t.Context(), m.Model, groups, m.Rows, MergeOptions{})
		if err != nil {
			t.Fatal(err)
		}
		aligned, err := NewMerge(t.Context(), m.Model, groups, m.Rows, MergeOptions{Align: true, Threads: 3})
		if err != nil {
			t.Fatal(err)
		}
		for name := range plain.tensors {
			want := slices.Clone(m.data[name])
			size := len(want) / m.Params.Experts
			for i := range size {
				want[2*size+i] = .5*want[i] + .25*want[2*size+i] + .25*want[3*size+i]
			}
			for i, v := range allRows(t, plain, m, name, 7) {
				if math.Abs(float64(v-want[i])) > 1e-6 {
					t.Fatalf("%s: %s: element %d is %v, want %v", family, name, i, v, want[i])
				}
			}
			whole := allRows(t, aligned, m, name, 1<<30)
			for _, step := range []int64{1, 5, 33} {
				if !slices.Equal(whole, allRows(t, aligned, m, name, step)) {
					t.Errorf("%s: %s differs when %d rows are read at once", family, name, step)
				}
			}
		}
	}
}

// TestMergeThreads: merged weights do not depend on how many threads match.
func TestMergeThreads(t *testing.T) {
	m := newInMemory(t, "deepseek_v3", 11)
	groups := map[int][]Group{}
	for _, l := range Blocks(&m.Params, DropMTP) {
		groups[l] = []Group{{Center: 0, Members: []int{0, 2, 5}, Weights: []float64{.5, .25, .25}}, {Center: 4, Members: []int{1, 3, 4}, Weights: []float64{.5, .25, .25}}}
	}
	var want map[string][]float32
	for _, threads := range []int{1, 4} {
		merge, err := NewMerge(t.Context(), m.Model, groups, m.Rows, MergeOptions{Align: true, Threads: threads, Products: products32})
		if err != nil {
			t.Fatal(err)
		}
		got := map[string][]float32{}
		var wait sync.WaitGroup
		var lock sync.Mutex
		for name := range merge.tensors {
			wait.Go(func() {
				rows := allRows(t, merge, m, name, 50)
				lock.Lock()
				defer lock.Unlock()
				got[name] = rows
			})
		}
		wait.Wait()
		if want != nil && !reflect.DeepEqual(got, want) {
			t.Error("weights differ")
		}
		want = got
	}
}

func TestMergeRefused(t *testing.T) {
	m := newInMemory(t, "deepseek_v3", 1)
	l := Blocks(&m.Params, DropMTP)[0]
	two := func(change func(*Group)) map[int][]Group {
		g := Group{Center: 1, Members: []int{0, 1}, Weights: []float64{.5, .5}}
		change(&g)
		return map[int][]Group{l: {g}}
	}
	for want, groups := range map[string]map[int][]Group{
		"block 0 has no experts":   {0: nil},
		"does not have the expert": two(func(g *Group) { g.Center = 2 }),
		"2 members and 1 weights":  two(func(g *Group) { g.Weights = g.Weights[1:] }),
		"weights add up to 0.7":    two(func(g *Group) { g.Weights[0] = .2 }),
		"weight of expert 0 is 0":  two(func(g *Group) { g.Weights[0] = 0 }),
		"the experts are 0 to":     two(func(g *Group) { g.Members[1] = 99 }),
		"members ascend":           two(func(g *Group) { g.Members[0] = 1 }),
		"is in two groups":         {l: append(two(func(*Group) {})[l], Group{Center: 2, Members: []int{0, 2}, Weights: []float64{.5, .5}})},
		"centers ascend":           {l: append(two(func(*Group) {})[l], Group{Center: 0, Members: []int{0}, Weights: []float64{1}})},
	} {
		if _, err := NewMerge(t.Context(), m.Model, groups, m.Rows, MergeOptions{}); !errors.Is(err, ErrInvalid) || !strings.Contains(err.Error(), want) {
			t.Errorf("%v, want %q", err, want)
		}
	}
	good := two(func(*Group) {})
	broken := errors.New("broken")
	fail := func(context.Context, string, int64, int64, []float32) error { return broken }
	if _, err := NewMerge(t.Context(), m.Model, good, fail, MergeOptions{Align: true}); !errors.Is(err, broken) || !strings.Contains(err.Error(), "experts 1 and 0") {
		t.Error(err)
	}
	merge, err := NewMerge(t.Context(), m.Model, good, fail, MergeOptions{})
	if err != nil {
		t.Fatal(err)
	}
	name := downName(l)
	if err := merge.Rows(t.Context(), name, 0, 1, make([]float32, m.t[name].Shape[0])); !errors.Is(err, broken) || !strings.Contains(err.Error(), name) {
		t.Error(err)
	}
	if err := merge.Rows(t.Context(), name, 0, 1, nil); !errors.Is(err, ErrInvalid) {
		t.Error(err)
	}
	if err := merge.Rows(t.Context(), "output.weight", 0, 1, nil); !errors.Is(err, ErrInvalid) || merge.Has("output.weight") {
		t.Error(err)
	}
	m.data[name][0] = float32(math.NaN())
	if _, err := NewMerge(t.Context(), m.Model, good, m.Rows, MergeOptions{Align: true}); !errors.Is(err, ErrInvalid) || !strings.Contains(err.Error(), "not finite") {
		t.Error(err)
	}
	stopped, stop := context.WithCancel(t.Context())
	stop()
	m.data[name][0] = 0
	if _, err := NewMerge(stopped, m.Model, good, m.Rows, MergeOptions{Align: true}); !errors.Is(err, context.Canceled) {
		t.Error(err)
	}
}

// TestSpans: rows near each other are read at once, others one run at a time.
func TestSpans(t *testing.T) {
	for _, c := range []struct {
		rows  []int64
		want  []span
		total int64
	}{
		{[]int64{5}, []span{{5, 1, 0}}, 1},
		{[]int64{3, 5, 6}, []span{{3, 4, 0}}, 4},
		{[]int64{3, 4, 9, 20, 21}, []span{{3, 2, 0}, {9, 1, 2}, {20, 2, 3}}, 5},
	} {
		if got, total := spans(c.rows); !slices.Equal(got, c.want) || total != c.total {
			t.Errorf("%v: %v, %d, want %v, %d", c.rows, got, total, c.want, c.total)
		}
	}
}

// BenchmarkMatch aligns two experts of Qwen3-30B-A3B's size.
func BenchmarkMatch(b *testing.B) {
	const n, width = 768, 2048
	rng := rand.New(rand.NewPCG(3, 4))
	one := func() *neurons {
		out := &neurons{n: n}
		for range 3 {
			part := make([]float32, n*width)
			for i := range part {
				part[i] = float32(rng.NormFloat64())
			}
			out.parts = append(out.parts, part)
		}
		return out
	}
	x, y := one(), one()
	for b.Loop() {
		if _, err := match(b.Context(), x, y, nil); err != nil {
			b.Fatal(err)
		}
	}
}
