package verify

import (
	"encoding/json"
	"math"
	"os"
	"path/filepath"
	"reflect"
	"slices"
	"testing"

	"github.com/winnow-moe/winnow/engine"
	"github.com/winnow-moe/winnow/formats/arch"
	"github.com/winnow-moe/winnow/formats/gguf"
	"github.com/winnow-moe/winnow/formats/tokenizer"
	"github.com/winnow-moe/winnow/quant/isa"
	"github.com/winnow-moe/winnow/testdata/fixtures"
	"github.com/winnow-moe/winnow/testdata/pruned"
)

// miniature returns the folder of a trained miniature and of what hooks on HF's
// modules measured of its experts with code. Of tiny-r1 that was its BF16 twin.
func miniature(t *testing.T, name string) (model, saliency string) {
	dir := filepath.Join(fixtures.Dir(t, "packs/calibration"), "calibration/saliency")
	if name == "tiny-r1" {
		return fixtures.TinyR1(t), filepath.Join(dir, "tiny-r1-bf16.json")
	}
	return filepath.Join(fixtures.Dir(t, "packs/"+name), name), filepath.Join(dir, name+".json")
}

// rules are scores of experts, larger for those to keep, from n tokens that
// chose one, and the sum of the lengths of its contributions.
var rules = map[string]func(n, weighted float64) float64{
	"reap":         func(n, weighted float64) float64 { return weighted / max(n, 1) },
	"reap_sum":     func(_, weighted float64) float64 { return weighted },
	"frequency":    func(n, _ float64) float64 { return n },
	"reverse reap": func(n, weighted float64) float64 { return -weighted / max(n, 1) },
}

// chosenBy keeps so many experts of every block by a rule and the statistics in a
// file, as many in every group.
func chosenBy(t *testing.T, p *arch.Params, saliency, rule string, keep int) engine.Mask {
	t.Helper()
	b, err := os.ReadFile(saliency)
	if err != nil {
		t.Fatal(err)
	}
	var stats struct {
		Layers []struct {
			Layer    int
			Count    []float64
			Weighted []float64 `json:"sum_gnorm"`
		}
	}
	if err := json.Unmarshal(b, &stats); err != nil {
		t.Fatal(err)
	}
	mask, groups := engine.Mask{Keep: map[int][]int{}}, max(1, p.ExpertGroups)
	for _, l := range stats.Layers {
		size := p.Experts / groups
		score := func(e int) float64 { return rules[rule](l.Count[e], l.Weighted[e]) }
		for g := range groups {
			ids := make([]int, size)
			for i := range ids {
				ids[i] = g*size + i
			}
			slices.SortStableFunc(ids, func(a, b int) int {
				if score(a) > score(b) {
					return -1
				}
				return 1
			})
			mask.Keep[l.Layer] = append(mask.Keep[l.Layer], ids[:keep/groups]...)
		}
		slices.Sort(mask.Keep[l.Layer])
	}
	return mask
}

// domains cuts windows of the evaluation texts of all domains.
func domains(t *testing.T, model string, ctx, windows int) *Text {
	t.Helper()
	v, err := tokenizer.Load(model, tokenizer.Options{})
	if err != nil {
		t.Fatal(err)
	}
	var names []string
	var texts []*Text
	for _, name := range []string{"code", "english", "docs"} {
		text, err := Tokenize(v, readCorpus(t, "eval-"+name+".txt"), ctx, windows)
		if err != nil {
			t.Fatal(err)
		}
		names, texts = append(names, name), append(texts, text)
	}
	return Join(names, texts)
}

// TestMaskOrderings holds what was measured with HF's modules on the trained
// miniatures (12 of 16 experts, chosen by code): on code itself keeping the
// experts with the smallest contributions is worst, and a sum over the calibration
// text better than a mean, while the mean costs less than the frequency on texts
// of other kinds.
func TestMaskOrderings(t *testing.T) {
	if len(isa.Available()) == 1 {
		t.Skip("without vectors it takes minutes, and has the same bits")
	}
	for _, name := range []string{"tiny-r1", "tiny-gemma4-moe"} {
		t.Run(name, func(t *testing.T) {
			model, saliency := miniature(t, name)
			m := checkpointModel(t, model, "F32")
			s, err := NewMasks(m, m, domains(t, model, 128, 8), Options{})
			if err != nil {
				t.Fatal(err)
			}
			order := []string{"reverse reap", "reap", "reap_sum", "frequency"}
			var masks []engine.Mask
			for _, rule := range order {
				masks = append(masks, chosenBy(t, m.Params(), saliency, rule, 12))
			}
			all, err := s.Compare(t.Context(), masks...)
			if err != nil {
				t.Fatal(err)
			}
			if best := order[Closest(all)]; best != "reap" {
				t.Fatalf("best is %s, want reap", best)
			}
			code, others := map[string]float64{}, map[string]float64{}
			for i, rule := range order {
				d := all[i].Domains
				code[rule], others[rule] = d[0].KLD.Mean.Value, (d[1].KLD.Mean.Value+d[2].KLD.Mean.Value)/2
				t.Logf("%-12s KLD of code %.4f, of others %.4f", rule, code[rule], others[rule])
			}
			for _, rule := range order[1:] {
				if code[rule] >= code["reverse reap"] {
					t.Errorf("code: KLD of %s is %.4f, the reverse of reap has %.4f", rule, code[rule], code["reverse reap"])
				}
			}
			if code["reap_sum"] >= code["reap"] || others["reap"] >= others["frequency"] {
				t.Errorf("KLD of code: %v, of others: %v", code, others)
			}
		})
	}
}

// TestMaskedTrained: trained models whose routers cannot choose some experts
// predict what models without these experts do.
func TestMaskedTrained(t *testing.T) {
	for _, name := range []string{"tiny-r1", "tiny-gemma4-moe", "tiny-llama4"} {
		model, saliency := miniature(t, name)
		file := checkpointView(t, model, "F32")
		m, err := engine.Load(file, engine.Options{})
		if err != nil {
			t.Fatal(err)
		}
		for _, keep := range []int{m.Params().Experts / 2, m.Params().Experts * 3 / 4} {
			testMaskedTrained(t, name, file, m, chosenBy(t, m.Params(), saliency, "reap", keep))
		}
		if m.Params().ExpertGroups > 1 {
			testMaskedTrained(t, name, file, m, engine.Mask{Keep: pruned.Choose(m.Params(), 7, true), Flatten: true})
		}
	}
}

func testMaskedTrained(t *testing.T, name string, file gguf.Model, m *engine.Model, mask engine.Mask) {
	t.Helper()
	small, err := engine.Load(pruned.Model(t, file, mask.Keep, mask.Flatten), engine.Options{})
	if err != nil {
		t.Fatal(err)
	}
	without, err := m.Masked(mask)
	if err != nil {
		t.Fatal(err)
	}
	seqs := [][]int32{someTokens(90, m.Vocab()), someTokens(40, m.Vocab()/2)}
	var logits [2][]float32
	for i, m := range []*engine.Model{small, without} {
		h, err := m.Forward(t.Context(), seqs)
		if err != nil {
			t.Fatal(err)
		}
		logits[i] = make([]float32, h.Rows()*m.Vocab())
		if err := m.Logits(t.Context(), h, 0, h.Rows(), logits[i]); err != nil {
			t.Fatal(err)
		}
	}
	worst := 0.0
	for i, v := range logits[0] {
		if d := math.Abs(float64(v) - float64(logits[1][i])); !(d <= worst) {
			worst = d
		}
	}
	t.Logf("%s, flattened %t: %.2g", name, mask.Flatten, worst)
	if !(worst <= 1e-5) {
		t.Errorf("%s: logits of the pruned and the masked model differ by %g", name, worst)
	}
}

// TestFewest: the number found is within the limit, and the next below it, which
// was measured too, is not.
func TestFewest(t *testing.T) {
	passes := 0
	opt := engine.Options{Events: engine.Events{Layer: func(done, total, _ int) {
		if done == total {
			passes++
		}
	}}}
	m, err := engine.Load(openGGUF(t, filepath.Join(fixtures.Family(t, "qwen3_moe"), "ref-bf16.gguf")), opt)
	if err != nil {
		t.Fatal(err)
	}
	par := m.Params()
	first := func(keep int) (mask engine.Mask, err error) {
		mask.Keep = map[int][]int{}
		for l := range par.Layers {
			for e := range keep {
				mask.Keep[l] = append(mask.Keep[l], e)
			}
		}
		return mask, nil
	}
	var counts []int
	for k := par.ExpertsUsed; k < par.Experts; k++ {
		counts = append(counts, k)
	}
	s, err := NewMasks(m, m, someText(t, 90, 30, m.Vocab()), Options{BatchTokens: 30})
	if err != nil {
		t.Fatal(err)
	}
	all := map[int]float64{}
	for _, k := range counts {
		mask, _ := first(k)
		c, err := s.Compare(t.Context(), mask)
		if err != nil {
			t.Fatal(err)
		}
		all[k] = c[0].KLD.Mean.Value
	}
	if want := 3 * (1 + len(counts)); passes != want {
		t.Errorf("%d passes over the 3 windows, want %d: one of the base", passes, want)
	}
	for _, limit := range []float64{0, all[counts[1]], all[counts[len(counts)-1]], math.Inf(1)} {
		found, tried, err := s.Fewest(t.Context(), counts, first, limit)
		if err != nil || len(tried) > 1+int(math.Log2(float64(len(counts)))) {
			t.Fatalf("limit %g: %d tried, %v", limit, len(tried), err)
		}
		below := counts[len(counts)-1]
		if found != nil {
			if below = found.Keep - 1; found.KLD.Mean.Value > limit || found.KLD.Mean.Value != all[found.Keep] {
				t.Errorf("limit %g: %d experts with %g, %g", limit, found.Keep, found.KLD.Mean.Value, all[found.Keep])
			}
		}
		if below >= counts[0] && !(all[below] > limit) {
			t.Errorf("limit %g: %+v is found, but %d experts have %g", limit, found, below, all[below])
		}
	}
}

func TestLead(t *testing.T) {
	c := func(kld ...float64) *Comparison { return &Comparison{KLD: distribution(kld), WindowKLD: kld} }
	all := []*Comparison{c(4, 5), c(1, 2), c(9, 9), c(2, 5)}
	next, by := Lead(all) // differences 1 and 3: mean 2, error sqrt(1/1)
	if Closest(all) != 1 || next != 3 || by != (Estimate{2, 1}) {
		t.Errorf("best %d, next %d by %+v", Closest(all), next, by)
	}
}

// TestCompareTwin: the comparison is that without a twin, and the deviation that
// of log-probabilities computed row by row.
func TestCompareTwin(t *testing.T) {
	const vocab = 17
	text, base, model, twin := someText(t, 900, 64, vocab), wavy(vocab, 2), wavy(vocab, 5), wavy(vocab, 9)
	got, far, err := CompareTwin(t.Context(), base, model, twin, text, Options{BatchTokens: 128, LogitRows: 7})
	if err != nil {
		t.Fatal(err)
	}
	want, err := Compare(t.Context(), base, model, text, Options{})
	if err != nil || !reflect.DeepEqual(got, want) {
		t.Errorf("%+v, want %+v; %v", got, want, err)
	}
	most, sum := 0.0, 0.0
	for w := range text.Windows {
		a, b := probabilities(t, model, text.Windows[w]), probabilities(t, twin, text.Windows[w])
		for pos := text.from(w); pos < len(text.Windows[w])-1; pos++ {
			largest := 0.0
			for id := range vocab {
				largest = max(largest, math.Abs(math.Log(a[pos][id])-math.Log(b[pos][id])))
			}
			most, sum = max(most, largest), sum+largest
		}
	}
	near(t, "largest", far.Max, most, 1e-12)
	near(t, "mean", far.Mean, sum/float64(text.Scored()), 1e-12)
	if _, far, err = CompareTwin(t.Context(), base, model, wavy(vocab, 5), text, Options{}); err != nil || *far != (Deviation{}) {
		t.Errorf("a model and itself: %+v, %v", far, err)
	}
}

// probabilities are those of all tokens at every position of a window.
func probabilities(t *testing.T, m *fakeModel, window []int32) [][]float64 {
	t.Helper()
	h, err := m.Forward(t.Context(), [][]int32{window})
	if err != nil {
		t.Fatal(err)
	}
	logits := make([]float32, len(window)*m.Vocab())
	if err := m.Logits(t.Context(), h, 0, len(window), logits); err != nil {
		t.Fatal(err)
	}
	var rows [][]float64
	for row := range slices.Chunk(logits, m.Vocab()) {
		p, sum := make([]float64, len(row)), 0.0
		for i, v := range row {
			p[i] = math.Exp(float64(v))
			sum += p[i]
		}
		for i := range p {
			p[i] /= sum
		}
		rows = append(rows, p)
	}
	return rows
}
