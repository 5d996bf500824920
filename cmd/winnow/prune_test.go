package main

import (
	"bytes"
	"encoding/json"
	"math"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"

	"github.com/winnow-moe/winnow/convert/experts"
	"github.com/winnow-moe/winnow/engine"
	"github.com/winnow-moe/winnow/formats/calib"
	"github.com/winnow-moe/winnow/quant/isa"
	"github.com/winnow-moe/winnow/testdata/fixtures"
	"github.com/winnow-moe/winnow/verify"
)

// goldenScores are the scores of one model and kind of text.
type goldenScores struct {
	IDs    [][]int32                    `json:"ids"`
	Super  [][2]int                     `json:"super_experts"`
	Layers []map[string]json.RawMessage `json:"layers"`
}

func readGoldenScores(t *testing.T, name, domain string) *goldenScores {
	t.Helper()
	b, err := os.ReadFile(filepath.Join(fixtures.Dir(t, "packs/saliency"), "saliency", name+"-"+domain+".json"))
	if err != nil {
		t.Fatal(err)
	}
	g := &goldenScores{}
	if err := json.Unmarshal(b, g); err != nil || len(g.Layers) == 0 {
		t.Fatal(err)
	}
	return g
}

// TestScoresGolden compares scores with those that hooks on HF's modules gave for
// the same tokens. One file has the statistics of three kinds of text; weights
// pick one.
func TestScoresGolden(t *testing.T) {
	domains := []string{"code", "docs", "english"}
	for _, name := range []string{"tiny-llama4", "tiny-gemma4-moe", "tiny-r1-bf16"} {
		t.Run(name, func(t *testing.T) {
			stats := &calib.Statistics{}
			golden := map[string]*goldenScores{}
			for _, domain := range domains {
				golden[domain] = readGoldenScores(t, name, domain)
				s := calibrateWindows(t, miniature(t, name), "", golden[domain].IDs, engine.Options{})
				s.Domains[0].Name, stats.ChunkSize = domain, s.ChunkSize
				stats.Domains = append(stats.Domains, s.Domains[0])
			}
			for _, domain := range domains {
				for rule := range golden[domain].Layers[0] {
					if rule != "layer" && !slices.Contains(pairScores, rule) {
						golden[domain].compare(t, stats, domain, rule)
					}
				}
			}
			compareLargest(t, stats, golden)
		})
	}
}

// compare checks a rule with a kind of text alone. The sums of one of three texts
// of equal length count three times; scores per token do not tell.
func (g *goldenScores) compare(t *testing.T, stats *calib.Statistics, domain, rule string) {
	t.Helper()
	s, err := experts.Score(stats, rule, calib.Weights{domain: 1})
	if err != nil {
		t.Fatal(err)
	}
	factor := 1.0
	if slices.Contains([]string{"energy", "seer", "ean_sum", "easy_ep"}, rule) {
		factor = 3
	}
	if len(s.Blocks) != len(g.Layers) {
		t.Fatalf("%d blocks, want %d", len(s.Blocks), len(g.Layers))
	}
	for _, layer := range g.Layers {
		var l int
		var want []float64
		if json.Unmarshal(layer["layer"], &l) != nil || json.Unmarshal(layer[rule], &want) != nil {
			t.Fatal("unreadable golden scores")
		}
		for e, w := range want {
			if v := s.Blocks[l][e] / factor; !(math.Abs(v-w) <= 1e-4*math.Abs(w)) {
				t.Errorf("%s, block %d, %s of expert %d: %.8g, want %.8g", domain, l, rule, e, v, w)
			}
		}
	}
	var super []experts.Expert
	for _, e := range g.Super {
		super = append(super, experts.Expert{Block: e[0], Expert: e[1]})
	}
	if !slices.Equal(s.Super, super) {
		t.Errorf("%s: super experts %v, want %v", domain, s.Super, super)
	}
}

// compareLargest checks the largest share of an expert in the score of any kind of
// text, by golden scores.
func compareLargest(t *testing.T, stats *calib.Statistics, golden map[string]*goldenScores) {
	t.Helper()
	got, err := experts.ScoreMax(stats, "reap_sum", nil)
	if err != nil {
		t.Fatal(err)
	}
	want := map[int][]float64{}
	for _, g := range golden {
		for _, layer := range g.Layers {
			var l int
			var scores []float64
			if json.Unmarshal(layer["layer"], &l) != nil || json.Unmarshal(layer["reap_sum"], &scores) != nil {
				t.Fatal("unreadable golden scores")
			}
			sum := 0.0
			for _, v := range scores {
				sum += v
			}
			if want[l] == nil {
				want[l] = make([]float64, len(scores))
			}
			for e, v := range scores {
				want[l][e] = max(want[l][e], v/sum)
			}
		}
	}
	for l := range want {
		for e, w := range want[l] {
			if v := got.Blocks[l][e]; !(math.Abs(v-w) <= 1e-4*w) {
				t.Errorf("block %d, largest share of expert %d: %.8g, want %.8g", l, e, v, w)
			}
		}
	}
}

// chooser chooses experts of a trained miniature by calibration texts and measures
// the choices on evaluation texts, all in a folder of its own.
type chooser struct {
	*testing.T
	model string
	args  []string // of perplexity
}

func newChooser(t *testing.T, name string, windows int) *chooser {
	t.Helper()
	if len(isa.Available()) == 1 || testing.Short() {
		t.Skip("without vectors it takes minutes, and has the same bits")
	}
	c := &chooser{T: t, model: miniature(t, name)}
	c.args = []string{"perplexity", c.model, "-c", "128", "--chunks", strconv.Itoa(windows), "--json"}
	for _, d := range []string{"code", "english"} {
		c.args = append(c.args, "--text", d+"="+corpusText(t, "eval-"+d))
	}
	t.Chdir(t.TempDir())
	return c
}

func corpusText(t *testing.T, name string) string {
	return filepath.Join(fixtures.Dir(t, "packs/corpus"), "corpus", name+".txt")
}

func (c *chooser) calibrate(domain string, windows int) {
	c.Helper()
	winnowRun(c.T, "calibrate", c.model, "--text", domain+"="+corpusText(c.T, "calib-"+domain), "-c", "128", "--chunks", strconv.Itoa(windows), "-o", domain+".gguf")
}

// choose keeps half of the experts.
func (c *chooser) choose(plan, domain, rule string, more ...string) {
	c.Helper()
	winnowRun(c.T, append([]string{"prune", c.model, "--stats", domain + ".gguf", "--rule", rule, "--keep", "8", "--save-plan", plan}, more...)...)
	c.args = append(c.args, "--experts", plan)
}

// measure returns the divergences of every choice on code and on English.
func (c *chooser) measure() (kld [][2]float64) {
	c.Helper()
	var r choicesResult
	if err := json.Unmarshal(winnowRun(c.T, c.args...), &r); err != nil {
		c.Fatal(err)
	}
	for _, choice := range r.Choices {
		kld = append(kld, [2]float64{choice.Domains[0].KLD.Mean.Value, choice.Domains[1].KLD.Mean.Value})
	}
	return kld
}

// TestOwnDomain: what code and English choose differs, and each choice costs less
// on text of its kind than the other one does.
func TestOwnDomain(t *testing.T) {
	for _, name := range []string{"tiny-r1", "tiny-gemma4-moe"} {
		t.Run(name, func(t *testing.T) {
			c := newChooser(t, name, 12)
			var lists []*experts.KeepList
			for _, d := range []string{"code", "english"} {
				c.calibrate(d, 32)
				c.choose(d+".json", d, "reap_sum")
				list, err := readKeepListFile(d + ".json")
				if err != nil {
					t.Fatal(err)
				}
				lists = append(lists, list)
			}
			for l, ids := range lists[0].Blocks {
				if slices.Equal(ids, lists[1].Blocks[l]) {
					t.Errorf("block %d: code and English keep the same experts %v", l, ids)
				}
			}
			kld := c.measure()
			for i, d := range []string{"code", "English"} {
				if own, other := kld[i][i], kld[1-i][i]; !(own < other) {
					t.Errorf("%s: KLD %.4f, the choice by the other kind of text has %.4f", d, own, other)
				}
			}
		})
	}
}

// TestRuleOrderings holds what was measured with HF's modules on the trained
// miniatures (8 of 16 experts, chosen by code): on code itself sums over the text
// and greedy cost less than means, and these less than random numbers; on English
// the mean costs less than how often experts are used.
func TestRuleOrderings(t *testing.T) {
	for _, name := range []string{"tiny-r1", "tiny-gemma4-moe"} {
		t.Run(name, func(t *testing.T) {
			c := newChooser(t, name, 24)
			c.calibrate("code", 60)
			rules := []string{"reap", "frequency", "ean_sum", "reap_sum", "loo", "energy", "seer", "greedy"}
			for _, rule := range rules {
				c.choose(rule+".json", "code", rule)
			}
			for _, seed := range []string{"1", "2", "3"} {
				c.choose("random"+seed+".json", "code", "random", "--seed", seed)
			}
			kld := c.measure()
			code, english, random := map[string]float64{}, map[string]float64{}, 0.0
			for i, v := range kld {
				if i >= len(rules) {
					random += v[0] / 3
					continue
				}
				code[rules[i]], english[rules[i]] = v[0], v[1]
			}
			t.Logf("KLD on code %v, of random choices %.4f; on English %v", code, random, english)
			for _, rule := range rules[1:] {
				if !(code[rule] < code["reap"]) {
					t.Errorf("code: KLD of %s %.4f, of reap %.4f", rule, code[rule], code["reap"])
				}
			}
			if !(code["reap"] < random) {
				t.Errorf("code: KLD of reap %.4f, of random choices %.4f", code["reap"], random)
			}
			for _, rule := range []string{"frequency", "ean_sum"} {
				if !(english["reap"] < english[rule]) {
					t.Errorf("English: KLD of reap %.4f, of %s %.4f", english["reap"], rule, english[rule])
				}
			}
		})
	}
}

func readKeepListFile(path string) (*experts.KeepList, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	return experts.ReadKeepList(f)
}

// winnowRun runs a command and returns its results.
func winnowRun(t *testing.T, args ...string) []byte {
	t.Helper()
	var stdout, stderr bytes.Buffer
	if status := run(append(args, "-q"), &stdout, &stderr); status != exitOK {
		t.Fatalf("winnow %s: status %d: %s", strings.Join(args, " "), status, &stderr)
	}
	return stdout.Bytes()
}

// TestCheckProofs: predictions that are not those of the masked model fail, unless
// activations were rounded.
func TestCheckProofs(t *testing.T) {
	list := []*proofReport{{}, {Path: "a", Deviation: &verify.Deviation{Max: 1, Mean: 1e-6}}}
	if err := checkProofs(list, engine.ComputeF32); err != nil {
		t.Error(err)
	}
	for _, mean := range []float64{1e-3, math.NaN()} {
		list[1].Deviation.Mean = mean
		if err := checkProofs(list, engine.ComputeF32); exitStatus(err) != exitCheckFailed {
			t.Errorf("%v: status %d of %v", mean, exitStatus(err), err)
		}
	}
	if err := checkProofs(list, engine.ComputeInt8); err != nil {
		t.Error(err)
	}
}

func TestBatches(t *testing.T) {
	prompts := [][]int32{{1, 2}, {3, 4}, {5, 6}, {7, 8}, {9, 10}}
	for tokens, want := range map[int][]int{0: {1, 1, 1, 1, 1}, 10: {2, 2, 1}, 24: {4, 1}, 1000: {5}} {
		var got []int
		var all [][]int32
		for b := range batches(prompts, 3, tokens) {
			got, all = append(got, len(b)), append(all, b...)
		}
		if !slices.Equal(got, want) || len(all) != len(prompts) || all[4][1] != 10 {
			t.Errorf("%d tokens: %v, want %v", tokens, got, want)
		}
	}
}

func TestRangesText(t *testing.T) {
	for want, ids := range map[string][]int{"": nil, "3": {3}, "0-2 4 7-8": {0, 1, 2, 4, 7, 8}} {
		if got := rangesText(ids); got != want {
			t.Errorf("%v: %q, want %q", ids, got, want)
		}
	}
}
