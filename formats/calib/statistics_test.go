package calib

import (
	"errors"
	"fmt"
	"math"
	"math/big"
	"math/rand/v2"
	"os"
	"path/filepath"
	"reflect"
	"slices"
	"strings"
	"testing"

	"github.com/winnow-moe/winnow/formats/gguf"
)

// TestExact adds numbers of many magnitudes in several orders: the sum is that
// of math/big, to a unit of 2⁻⁴⁷ per number, and the same for every order.
func TestExact(t *testing.T) {
	rng := rand.New(rand.NewPCG(1, 2))
	values := make([]float64, 2000)
	want := new(big.Float).SetPrec(300)
	for i := range values {
		values[i] = math.Ldexp(rng.Float64()-0.3, rng.IntN(80)-35)
		want.Add(want, new(big.Float).SetFloat64(values[i]))
	}
	var first exact
	for round := range 5 {
		var parts [3]exact
		for i, v := range values {
			if err := parts[(i*7+round)%3].add(v); err != nil {
				t.Fatal(err)
			}
		}
		sum := parts[round%3]
		for i := 1; i < 3; i++ {
			if err := sum.merge(parts[(round+i)%3]); err != nil {
				t.Fatal(err)
			}
		}
		if round == 0 {
			first = sum
		}
		if sum != first {
			t.Errorf("round %d: %v, before %v", round, sum, first)
		}
		rng.Shuffle(len(values), func(i, j int) { values[i], values[j] = values[j], values[i] })
	}
	hi, lo := first.split()
	got := new(big.Float).SetPrec(300).SetFloat64(hi)
	got.Add(got, new(big.Float).SetFloat64(lo))
	diff, _ := got.Sub(got, want).Float64()
	if math.Abs(diff) > 2000*0x1p-48 {
		t.Errorf("off by %g", diff)
	}
	if nearest, _ := want.Float64(); math.Abs(nearest-hi) > math.Abs(nearest)*0x1p-52 {
		t.Errorf("value %v, want %v", hi, nearest)
	}
	var back exact
	if err := errors.Join(back.add(hi), back.add(lo)); err != nil || back != first {
		t.Errorf("read back: %v, %v, want %v", back, err, first)
	}
	for _, v := range []float64{math.NaN(), math.Inf(1), 0x1p58, -0x1p60} {
		if err := new(exact).add(v); !errors.Is(err, ErrInvalid) {
			t.Errorf("%v: %v", v, err)
		}
	}
}

// someStatistics have two kinds of text, a weight of two experts and a block.
func someStatistics(t *testing.T) *Statistics {
	t.Helper()
	s := &Statistics{ChunkSize: 10}
	for i, name := range []string{"code", "chat"} {
		d := s.Domain(name)
		d.AddDataset(name + ".txt")
		d.Chunks = int64(1 + 3*i)
		sums := NewExpertSums(2, true)
		for j := range sums {
			for k := range sums[j] {
				sums[j][k] = float64(1+j+10*k) / 3
			}
		}
		err := errors.Join(
			d.Input([]string{"blk.0.ffn_up_exps.weight", "blk.0.ffn_gate_exps.weight"}, 1, 2, 4, []float64{1.5, float64(1+i) / 7}),
			d.Input([]string{"blk.0.attn_q.weight"}, 0, 1, 10*d.Chunks, []float64{float64(1+i) * 100}),
			d.Experts(3, sums))
		if err != nil {
			t.Fatal(err)
		}
	}
	return s
}

// dump is all that statistics hold.
func dump(t *testing.T, s *Statistics) string {
	t.Helper()
	var b strings.Builder
	sums := func(s *series) {
		v, err := s.load()
		if err != nil {
			t.Fatal(err)
		}
		fmt.Fprintln(&b, v)
	}
	fmt.Fprintln(&b, s.ChunkSize)
	for _, d := range s.Domains {
		fmt.Fprintln(&b, d.Name, d.Datasets, d.Chunks)
		for _, in := range d.totals() {
			fmt.Fprintln(&b, in.weights, in.rows)
			sums(&in.sums)
		}
		for _, n := range d.Layers() {
			l := d.Layer(n)
			fmt.Fprintln(&b, n, l.Experts, l.max)
			for i := range l.sums {
				sums(&l.sums[i])
			}
		}
	}
	return b.String()
}

func TestStatisticsFile(t *testing.T) {
	s := someStatistics(t)
	path := filepath.Join(t.TempDir(), "stats.gguf")
	if err := s.WriteGGUF(path, nil); err != nil {
		t.Fatal(err)
	}
	got, err := ReadStatistics(path)
	if err != nil {
		t.Fatal(err)
	}
	defer got.Close()
	if a, b := dump(t, got), dump(t, s); a != b {
		t.Errorf("%s, want %s", a, b)
	}
	m, err := Read(path, Options{})
	if err != nil || len(m.Warnings) > 0 || m.Chunks != 5 || m.ChunkSize != 10 || !reflect.DeepEqual(m.Datasets, []string{"code.txt", "chat.txt"}) {
		t.Fatalf("%+v, %v", m, err)
	}
	defer m.Close()
	e, _ := m.Find("blk.0.ffn_up_exps.weight")
	if sums, err := e.Sums(); err != nil || !reflect.DeepEqual(e.Counts, []int64{0, 8}) || !reflect.DeepEqual(sums, []float32{0, 0, 3, 3. / 7}) {
		t.Errorf("%v, %v, %v", e.Counts, sums, err)
	}
	// A file without its last bytes is refused.
	b, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	short := path + ".short"
	if err := os.WriteFile(short, b[:len(b)-64], 0o644); err != nil {
		t.Fatal(err)
	}
	if _, err := ReadStatistics(short); err == nil {
		t.Error("a truncated file is read")
	}
}

// TestDomainWeights: each kind of text has its share of the mean, whatever its length.
func TestDomainWeights(t *testing.T) {
	s := someStatistics(t)
	m, err := s.Matrix(Weights{"code": 3, "chat": 1})
	if err != nil {
		t.Fatal(err)
	}
	w, err := m.Weights("blk.0.attn_q.weight", 1, 1)
	// Means are 100/10 and 200/40.
	if want := float32(0.75*10 + 0.25*5); err != nil || math.Abs(float64(w[0]-want)) > 1e-5 {
		t.Errorf("%v, %v, want %v", w, err, want)
	}
	if e, _ := m.Find("blk.0.attn_q.weight"); e.Counts[0] != 50 {
		t.Errorf("%d rows, want those of both texts", e.Counts[0])
	}
	for _, bad := range []Weights{{"other": 1}, {"code": 0}} {
		if _, err := s.Matrix(bad); !errors.Is(err, ErrInvalid) {
			t.Errorf("%v: %v", bad, err)
		}
	}
}

// statistic returns one of a block.
func statistic(t *testing.T, d *Domain, layer int, s Stat) []float64 {
	t.Helper()
	v, err := d.Layer(layer).Values(s)
	if err != nil {
		t.Fatal(err)
	}
	return v
}

func TestMergeStatistics(t *testing.T) {
	a, b := someStatistics(t), someStatistics(t)
	sum, err := MergeStatistics(a, b)
	if err != nil {
		t.Fatal(err)
	}
	d := sum.Domains[0]
	if len(sum.Domains) != 2 || d.Chunks != 2 || len(d.Datasets) != 1 {
		t.Errorf("%+v", d)
	}
	for stat, factor := range map[Stat]float64{Gate: 2, LeaveOut: 2, MaxAbs: 1} {
		got, was := statistic(t, d, 3, stat), statistic(t, a.Domains[0], 3, stat)
		if len(got) != 2 || got[1] != factor*was[1] {
			t.Errorf("%s: %v, before %v", stat, got, was)
		}
	}
	b.ChunkSize = 11
	if _, err := MergeStatistics(a, b); !errors.Is(err, ErrInvalid) {
		t.Errorf("other windows: %v", err)
	}
	c, err := a.Coverage(3)
	if err != nil || len(c.Blocks) != 1 || c.Blocks[0].Experts != 2 || c.Weights != 3 || c.Domains[1].Tokens != 40 {
		t.Errorf("%+v, %v", c, err)
	}
}

// TestMergeDifferent: a statistic that some runs did not measure is not known of
// their sum; weights that shared an input in one of them do not in the sum.
func TestMergeDifferent(t *testing.T) {
	a, b := someStatistics(t), &Statistics{ChunkSize: 10}
	d := b.Domain("code")
	err := errors.Join(
		d.Input([]string{"blk.0.ffn_up_exps.weight"}, 0, 2, 1, []float64{1, 2}),
		d.Experts(3, NewExpertSums(2, false)))
	if err != nil {
		t.Fatal(err)
	}
	sum, err := MergeStatistics(a, b)
	if err != nil {
		t.Fatal(err)
	}
	if v := statistic(t, sum.Domains[0], 3, LeaveOut); len(v) != 0 {
		t.Errorf("leave_out: %v", v)
	}
	if !a.Measured(LeaveOut) || sum.Measured(LeaveOut) || !sum.Measured(MaxAbs) || !sum.Measured(Gate) {
		t.Errorf("measured: leave_out of a %v, of the sum %v, peaks %v, gates %v", a.Measured(LeaveOut), sum.Measured(LeaveOut), sum.Measured(MaxAbs), sum.Measured(Gate))
	}
	m, err := sum.Matrix(nil)
	if err != nil {
		t.Fatal(err)
	}
	for name, want := range map[string][]int64{"blk.0.ffn_up_exps.weight": {1, 8}, "blk.0.ffn_gate_exps.weight": {0, 8}} {
		if e, ok := m.Find(name); !ok || !slices.Equal(e.Counts, want) {
			t.Errorf("%s: %+v, want %v rows", name, e, want)
		}
	}
	if n := len(sum.Domains[0].totals()); n != 3 {
		t.Errorf("%d inputs, want those of three weights", n)
	}
}

// otherKeys is a file with other metadata.
type otherKeys struct {
	gguf.Model
	meta *gguf.Metadata
}

func (o otherKeys) Metadata() *gguf.Metadata { return o.meta }

// TestSharedInputs refuses weights that cannot share what the file says.
func TestSharedInputs(t *testing.T) {
	path := filepath.Join(t.TempDir(), "stats.gguf")
	if err := someStatistics(t).WriteGGUF(path, nil); err != nil {
		t.Fatal(err)
	}
	f, err := gguf.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	const gate, up = "blk.0.ffn_gate_exps.weight", "blk.0.ffn_up_exps.weight"
	for _, bad := range [][2][]string{
		{{"0." + up, "1." + up}, {gate}},
		{{"2." + up}, {gate}},
		{{"x"}, {gate}},
		{{"0." + up}, {"blk.9.ffn_gate_exps.weight"}},
		{{"0." + gate}, {gate}},
		{{"0."}, {gate}},
	} {
		meta := f.Metadata().Clone()
		meta.Set(keyShared, bad[0])
		meta.Set(keySharedWith, bad[1])
		if _, err := parseStatistics(otherKeys{f, meta}); !errors.Is(err, ErrInvalid) {
			t.Errorf("%v: %v", bad, err)
		}
	}
}
