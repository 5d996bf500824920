package verify

import (
	"fmt"
	"math"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/winnow-moe/winnow/engine"
	"github.com/winnow-moe/winnow/formats/tokenizer"
	"github.com/winnow-moe/winnow/testdata/fixtures"
)

func loadEngine(t *testing.T, path string) *engine.Model {
	t.Helper()
	m, err := engine.Load(openGGUF(t, path), engine.Options{})
	if err != nil {
		t.Fatal(err)
	}
	return m
}

// TestEnginePerplexity scores a fixture with the engine and compares with the
// same positions of HF's logits.
func TestEnginePerplexity(t *testing.T) {
	for _, family := range []string{"deepseek_v3", "deepseek_v2_lite"} {
		ids, logits := hfLogits(t, family)
		vocab, sum, n := len(logits)/len(ids), 0.0, 0
		for pos := len(ids) / 2; pos < len(ids)-1; pos++ {
			row, total := logits[pos*vocab:(pos+1)*vocab], 0.0
			for _, x := range row {
				total += math.Exp(float64(x))
			}
			sum, n = sum+math.Log(total)-float64(row[ids[pos+1]]), n+1
		}
		// Twice the same window: no state may pass from one to the other.
		text, err := NewText("ids", append(ids, ids...), len(ids), 0, 0, false)
		if err != nil {
			t.Fatal(err)
		}
		m := loadEngine(t, filepath.Join(fixtures.Family(t, family), "ref-bf16.gguf"))
		got, err := Perplexity(t.Context(), m, text, Options{})
		if err != nil {
			t.Fatal(err)
		}
		for w, nll := range got.WindowNLL {
			if math.Abs(nll-sum/float64(n)) > 1e-4 {
				t.Errorf("%s, window %d: mean nll %.6f, HF %.6f", family, w, nll, sum/float64(n))
			}
		}
		c, err := Compare(t.Context(), m, m, text, Options{})
		if err != nil || c.KLD.Max != 0 || c.SameTop.Value != 100 || c.PPL != got.PPL {
			t.Errorf("%s beside itself: %+v, %v", family, c, err)
		}
	}
}

func readCorpus(t *testing.T, name string) string {
	t.Helper()
	b, err := os.ReadFile(filepath.Join(fixtures.Dir(t, "packs/corpus"), "corpus", name))
	if err != nil {
		t.Fatal(err)
	}
	return string(b)
}

// TestTokenize: the evaluation texts have the tokens that HF's evaluation
// counted.
func TestTokenize(t *testing.T) {
	v, err := tokenizer.Load(fixtures.TinyR1(t), tokenizer.Options{})
	if err != nil {
		t.Fatal(err)
	}
	for name, g := range evaluations(t) {
		text, err := Tokenize(v, readCorpus(t, "eval-"+name+".txt"), g.Ctx, 0)
		if err != nil {
			t.Fatal(err)
		}
		if want := fmt.Sprintf("%d tokens (tokenizer gpt2/deepseek-v3)", g.Tokens); !strings.Contains(text.Definition, want) {
			t.Errorf("%s: definition %q, want %q", name, text.Definition, want)
		}
		bos, _ := v.BOS()
		if w := text.Windows; len(w) != g.Chunks || w[0][0] != bos || w[7][0] != bos {
			t.Errorf("%s: %d windows beginning with %d and %d; want %d with %d", name, len(w), w[0][0], w[7][0], g.Chunks, bos)
		}
	}
	v.Add = []tokenizer.AddFlag{{Kind: "eos", Value: true}}
	if _, err := Tokenize(v, "text", 3, 0); err == nil || !strings.Contains(err.Error(), "EOS") {
		t.Errorf("vocabulary with EOS: %v", err)
	}
}
