package main

import (
	"bytes"
	"encoding/json"
	"math"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"

	"github.com/winnow-moe/winnow/convert"
	"github.com/winnow-moe/winnow/formats/arch"
	"github.com/winnow-moe/winnow/testdata/fixtures"
)

// live is a model that llama.cpp is to run without some experts, with a folder of
// its own as the current one.
type live struct {
	*testing.T
	bin   string // folder of llama.cpp's tools
	model string
	text  []string // which text, and how it is cut, for both programs
}

func newLive(t *testing.T, name string) *live {
	t.Helper()
	bin := os.Getenv("WINNOW_ORACLE")
	if bin == "" {
		t.Skip("extra test: WINNOW_ORACLE does not name a folder with llama-perplexity")
	}
	l := &live{t, bin, liveModel(t, name), []string{"-f", corpusText(t, "eval-code"), "-c", "64", "--chunks", "8"}}
	t.Chdir(t.TempDir())
	if name == "gpt_oss" {
		l.truncate()
	}
	return l
}

// truncate makes the model a copy whose correction range of YaRN is rounded, as
// llama.cpp rounds it whatever config.json says.
func (l *live) truncate() {
	l.Helper()
	if err := os.CopyFS("model", os.DirFS(l.model)); err != nil {
		l.Fatal(err)
	}
	l.model = "model"
	config := filepath.Join(l.model, "config.json")
	b, err := os.ReadFile(config)
	if err != nil {
		l.Fatal(err)
	}
	changed := bytes.Replace(b, []byte(`"truncate": false`), []byte(`"truncate": true`), 1)
	if bytes.Equal(b, changed) {
		l.Fatalf("%s does not say that YaRN's range is not rounded", config)
	}
	if err := os.WriteFile(config, changed, 0o666); err != nil {
		l.Fatal(err)
	}
}

// liveModel returns the folder of a trained checkpoint or a family's fixture.
func liveModel(t *testing.T, name string) string {
	t.Helper()
	if strings.HasPrefix(name, "tiny-") {
		return miniature(t, name)
	}
	return fixtures.Family(t, name)
}

// perplexity runs llama-perplexity, which writes its predictions to llama.kld. It
// computes in float32 where weights are floats.
func (l *live) perplexity(file string, more ...string) (output []byte, err error) {
	args := append([]string{"-m", file, "--kl-divergence-base", "llama.kld", "-t", "1", "--no-escape", "-fa", "off", "-ctk", "f32", "-ctv", "f32"}, l.text...)
	cmd := exec.Command(filepath.Join(l.bin, "llama-perplexity"), append(args, more...)...)
	cmd.Env = append(os.Environ(), "LD_LIBRARY_PATH="+l.bin, "GGML_NO_BACKTRACE=1")
	return cmd.CombinedOutput()
}

// llama returns the perplexity that llama-perplexity finds of a file.
func (l *live) llama(file string, more ...string) float64 {
	l.Helper()
	for range 20 { // it may end before its last lines are out
		out, err := l.perplexity(file, more...)
		if err != nil {
			l.Fatalf("llama-perplexity of %s: %v: %s", file, err, out)
		}
		if found := regexp.MustCompile(`Final estimate: PPL = ([0-9.]+)`).FindSubmatch(out); found != nil {
			ppl, err := strconv.ParseFloat(string(found[1]), 64)
			if err != nil {
				l.Fatal(err)
			}
			return ppl
		}
	}
	l.Fatalf("llama-perplexity of %s: no estimate", file)
	return 0
}

// beside is what winnow perplexity finds of a model beside llama.kld.
type beside struct {
	PPL struct{ Value float64 }
	KLD struct {
		Mean struct{ Value float64 }
		Max  float64
	}
}

func (l *live) winnow(model string, more ...string) (b beside) {
	l.Helper()
	args := slices.Concat([]string{"perplexity", model, "--base", "llama.kld", "--json"}, l.text, more)
	if err := json.Unmarshal(winnowRun(l.T, args...), &b); err != nil {
		l.Fatal(err)
	}
	return b
}

// same holds what llama.cpp predicts with the values of a file against what winnow
// predicts of a model. Values become float32 first: what is multiplied with blocks
// llama.cpp rounds to 8 bits. The divergence that is left is that of 16 bits, in
// llama.kld.
func (l *live) same(what, file, model string, more ...string) {
	l.Helper()
	winnowRun(l.T, "quantize", "--allow-requantize", "--force", file, "decoded.gguf", "F32")
	want := l.llama("decoded.gguf")
	got := l.winnow(model, more...)
	l.Logf("%s: PPL %.4f in llama.cpp, %.4f here; KLD %.1e, at most %.1e", what, want, got.PPL.Value, got.KLD.Mean.Value, got.KLD.Max)
	if !(math.Abs(got.PPL.Value/want-1) <= 1e-4) || !(math.Abs(got.KLD.Mean.Value) <= 1e-5) || !(got.KLD.Max <= 1e-4) {
		l.Errorf("%s: llama.cpp predicts something else", what)
	}
}

// livePruned are models that llama.cpp runs without some experts. What it does not
// run is in TestLlamaRules. Left out are fixtures that it runs otherwise with all of
// their experts: ernie4_5_moe_step (not at all), phimoe (its routers' sparse mixer),
// llama4_smallchunk (the size of chunks), and gemma4_moe and deepseek_v32, whose
// random weights make routers choose by the last bits (GELU is a table of half
// precision there).
var livePruned = []struct {
	name string
	keep int
	more []string
}{
	{"tiny-r1", 8, nil}, // two of each group
	{"tiny-r1", 7, []string{"--groups", "flatten"}},
	{"tiny-gemma4-moe", 9, nil},
	{"tiny-llama4", 5, nil},
	{"qwen3_moe", 5, nil},
	{"mixtral", 3, nil},
	{"gpt_oss", 3, nil},
	{"gpt_oss_bf16", 3, nil},
	{"glm4_moe", 5, []string{"--mtp", "prune"}},
	{"glm4_moe", 5, []string{"--mtp", "drop"}},
	{"deepseek_v3", 5, []string{"--groups", "flatten"}},
	{"deepseek_v2_lite", 3, nil},
	{"llama4_scout", 3, nil},
	{"minimax_m2", 5, nil},
	{"ernie4_5_moe", 4, nil},
	{"olmoe", 4, nil},
	{"granitemoe", 4, nil},
	{"granitemoe_shared", 4, nil},
	{"hunyuan_v1_moe", 3, nil},
	{"qwen2_moe", 5, nil},
	{"qwen3_next", 3, nil},
	{"qwen3_5_moe", 3, nil},
	{"dots1", 4, nil},
	{"kimi_linear", 4, nil},
}

// TestLlamaPruned: llama.cpp loads what is written without some experts, and
// predicts what winnow predicts of the whole model with its routers masked: of a
// file made from the folder, and of a file made from a quantized one.
func TestLlamaPruned(t *testing.T) {
	for _, c := range livePruned {
		t.Run(strings.Join(append([]string{c.name}, c.more...), " "), func(t *testing.T) {
			l := newLive(t, c.name)
			winnowRun(t, append([]string{"prune", l.model, "--rule", "random", "--keep", strconv.Itoa(c.keep), "--type", "F32", "-o", "F32.gguf", "--save-plan", "keep.json"}, c.more...)...)
			l.same("F32", "F32.gguf", l.model, "--experts", "keep.json")
			whole := l.winnow(l.model).KLD.Mean.Value

			winnowRun(t, "convert", l.model, "whole.gguf", "--type", "Q4_K_M")
			winnowRun(t, "prune", "whole.gguf", "--plan", "keep.json", "-o", "pruned.gguf")
			l.same("Q4_K_M", "pruned.gguf", "whole.gguf", "--experts", "keep.json")

			// The file itself: rounded activations make the difference, and random
			// weights a large one, but not that of a single wrong expert.
			want := l.llama("pruned.gguf", "--no-repack")
			got := l.winnow("whole.gguf", "--experts", "keep.json", "--compute", "int8")
			t.Logf("Q4_K_M with activations of 8 bits: PPL %.4f in llama.cpp, %.4f here; KLD %.1e, of the whole model %.2g", want, got.PPL.Value, got.KLD.Mean.Value, whole)
			if !(got.KLD.Mean.Value <= whole/20) {
				t.Error("llama.cpp predicts something else of the quantized file")
			}
		})
	}
}

// TestLlamaRules: what winnow refuses to write llama.cpp does not run. Settings of
// a file that it does run are changed to show that. One thing it would run, wrongly:
// Llama 4 Maverick without some experts, whose number tells it that queries and keys
// have no norm. It cannot be told by settings and so is refused for GGUF files only.
func TestLlamaRules(t *testing.T) {
	for _, c := range []struct {
		what, name string
		keep       int // of the file that llama.cpp runs
		more       []string
		settings   string
		assertion  string   // of llama.cpp that fails
		refused    []string // by winnow
	}{
		{"fewer experts than a token uses", "qwen3_moe", 5, nil, "qwen3moe.expert_used_count=int:6", "n_expert_used_max <= hparams.n_expert", []string{"--keep", "2"}},
		{"groups of unequal size", "tiny-r1", 7, []string{"--groups", "flatten"}, "deepseek2.expert_group_count=int:4,deepseek2.expert_group_used_count=int:2", "hparams.n_expert % hparams.n_expert_groups == 0", []string{"--keep", "7", "--groups", "equal"}},
		{"one expert in each group", "deepseek_v3", 4, []string{"--groups", "flatten"}, "deepseek2.expert_group_count=int:4,deepseek2.expert_group_used_count=int:2", "hparams.n_expert_groups < hparams.n_expert", []string{"--keep", "4", "--groups", "equal"}},
	} {
		t.Run(c.what, func(t *testing.T) {
			l := newLive(t, c.name)
			prune := []string{"prune", l.model, "--rule", "random", "--type", "F32", "-o"}
			winnowRun(t, append(append(prune, "good.gguf", "--keep", strconv.Itoa(c.keep)), c.more...)...)
			l.llama("good.gguf")
			if out, err := l.perplexity("good.gguf", "--override-kv", c.settings); err == nil || !strings.Contains(string(out), "GGML_ASSERT("+c.assertion+") failed") {
				t.Errorf("llama.cpp: %v: %s", err, out)
			}
			var out bytes.Buffer
			if status := run(append(append(prune, "bad.gguf", "-q"), c.refused...), &out, &out); status == exitOK {
				t.Error("winnow takes it")
			}
			t.Logf("%s", &out)
		})
	}
}

// TestLlamaChanged: llama.cpp predicts of merged and of repaired models what winnow
// does.
func TestLlamaChanged(t *testing.T) {
	for _, name := range []string{"tiny-r1", "tiny-gemma4-moe", "tiny-llama4"} {
		t.Run(name, func(t *testing.T) {
			l := newLive(t, name)
			calib := corpusText(t, "calib-code")
			winnowRun(t, "calibrate", l.model, "-f", calib, "-c", "64", "--chunks", "32", "-o", "stats.gguf")
			for _, flag := range []string{"--merge=ream", "--repair"} {
				var report pruneReport
				prune := []string{"prune", l.model, "--stats", "stats.gguf", "--rule", "reap", "--ratio", "50%", flag, "-f", calib, "-c", "64", "--chunks", "8", "--json"}
				if err := json.Unmarshal(winnowRun(t, append(prune, "--type", "F32,Q4_K_M", "-o", "{type}.gguf", "--save-plan", flag[2:]+".json", "--force")...), &report); err != nil {
					t.Fatal(err)
				}
				if flag == "--repair" && !report.Repair.Kept {
					t.Error("not repaired: there is nothing to compare")
				}
				for _, typ := range []string{"F32", "Q4_K_M"} {
					l.same(flag+" "+typ, typ+".gguf", typ+".gguf")
				}
			}
			winnowRun(t, "convert", l.model, "whole.gguf", "--type", "Q4_K_M")
			winnowRun(t, "prune", "whole.gguf", "--plan", "merge=ream.json", "-o", "merged.gguf")
			l.same("merged, file to file", "merged.gguf", "merged.gguf")
			winnowRun(t, "prune", "whole.gguf", "--plan", "repair.json", "--stats", "stats.gguf", "--repair", "-f", calib, "-c", "64", "--chunks", "8", "-o", "repaired.gguf")
			l.same("repaired, file to file", "repaired.gguf", "repaired.gguf")
		})
	}
}

// TestTransformersPruned has transformers load folders that experts were taken out
// of, merged in and repaired in, of every family: see convert/testdata/hf_pruned.py.
func TestTransformersPruned(t *testing.T) {
	python := os.Getenv("WINNOW_HF_PYTHON")
	if python == "" {
		t.Skip("extra test: WINNOW_HF_PYTHON does not name a Python with torch and transformers")
	}
	args := []string{filepath.Join("..", "..", "convert", "testdata", "hf_pruned.py"), "--text", corpusText(t, "calib-code"), "winnow"}
	for _, name := range append([]string{"tiny-r1", "tiny-gemma4-moe", "tiny-llama4"}, fixtures.Families(t)...) {
		if dir := liveModel(t, name); losesExperts(t, dir) {
			args = append(args, dir)
		}
	}
	out, err := exec.Command(python, args...).CombinedOutput() // TestMain has put winnow on the path
	t.Logf("%s", out)
	if err != nil {
		t.Error(err)
	}
}

// losesExperts reports whether a model has experts that can go. Llama 4 Maverick's
// number of experts tells that queries and keys have no norm.
func losesExperts(t *testing.T, dir string) bool {
	t.Helper()
	m, _, err := openModel(dir, convert.CheckpointOptions{})
	if err != nil {
		t.Fatal(err)
	}
	defer m.Close()
	am, err := arch.FromMetadata(m.Metadata())
	if err != nil {
		t.Fatal(err)
	}
	return am.Params.Experts > 2 && !am.Params.NoQKNorm
}
