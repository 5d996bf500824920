package main

import (
	"bytes"
	"encoding/json"
	"math"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/winnow-moe/winnow/testdata/fixtures"
	"github.com/winnow-moe/winnow/verify"
)

// TestDemo runs the demonstration and compares its perplexity of the source
// with what transformers computes for the same windows.
func TestDemo(t *testing.T) {
	if testing.Short() {
		t.Skip("scores a model of 15 million parameters four times: half a minute of computing")
	}
	dir := filepath.Join(t.TempDir(), "new", "demo")
	var stdout, stderr bytes.Buffer
	if status := run([]string{"demo", dir, "--json"}, &stdout, &stderr); status != exitOK || stderr.Len() > 0 {
		t.Fatalf("exit status %d, stderr %q", status, stderr.String())
	}
	var doc struct {
		Folder, Definition string
		Rows               []demoRow
	}
	if err := json.Unmarshal(stdout.Bytes(), &doc); err != nil {
		t.Fatal(err)
	}
	if len(doc.Rows) != 4 || doc.Folder != dir {
		t.Fatalf("%d rows, folder %q", len(doc.Rows), doc.Folder)
	}
	if got, want := doc.Rows[0].PPL.Value, goldenPPL(t, demoChunks); math.Abs(got/want-1) > 5e-4 {
		t.Errorf("perplexity of the source is %.4f, want %.4f within 0.05 %%", got, want)
	}
	for i, r := range doc.Rows[1:] {
		if st, err := os.Stat(filepath.Join(dir, r.File)); err != nil || st.Size() != r.Bytes {
			t.Errorf("%s: %v, %v, want %d bytes", r.File, st, err, r.Bytes)
		}
		if r.KLD == nil || i > 0 && !(r.KLD.Value > doc.Rows[i].KLD.Value) {
			t.Errorf("%s: KLD %v does not grow with fewer bits", r.File, r.KLD)
		}
	}
}

// goldenPPL is the perplexity of the first windows of the demonstration's text,
// by transformers in float32.
func goldenPPL(t *testing.T, windows int) float64 {
	b, err := os.ReadFile(filepath.Join(fixtures.Dir(t, "packs/golden-tiny-r1"), "tiny-r1", "ppl.json"))
	if err != nil {
		t.Fatal(err)
	}
	var doc struct {
		Files map[string]struct {
			N    int       `json:"n_ctx"`
			Mean []float64 `json:"chunk_mean_nll"`
		}
	}
	if err := json.Unmarshal(b, &doc); err != nil {
		t.Fatal(err)
	}
	docs := doc.Files["docs"]
	if docs.N != demoCtx || len(docs.Mean) < windows {
		t.Fatalf("golden windows: %d of %d tokens", len(docs.Mean), docs.N)
	}
	sum := 0.0
	for _, nll := range docs.Mean[:windows] {
		sum += nll
	}
	return math.Exp(sum / float64(windows))
}

func TestPrintDemo(t *testing.T) {
	e := func(v float64) verify.Estimate { return verify.Estimate{Value: v, Error: v / 100} }
	kld, top := e(0.007757), e(92.03)
	rows := []demoRow{
		{"tiny-r1 (FP8 source)", 10_700_000, 8.882, e(91.0721), nil, nil},
		{"tiny-r1-Q4_K_M.gguf", 5_971_296, 4.904, e(91.2718), &kld, &top},
	}
	var stdout bytes.Buffer
	a := &app{stdout: &stdout}
	if err := a.printDemo(rows, "the definition", "folder", 0); err != nil {
		t.Fatal(err)
	}
	want := `file                     size    bpw         PPL ± err       KLD  same top
tiny-r1 (FP8 source)  10.7 MB  8.882  91.0721 ± 0.9107         -         -
tiny-r1-Q4_K_M.gguf    6.0 MB  4.904  91.2718 ± 0.9127  0.007757   92.03 %
`
	if got := stdout.String(); !strings.HasPrefix(got, want) || !strings.Contains(got, "PPL       the definition\n") {
		t.Errorf("got\n%s", got)
	}
	if widest(stdout.String()) > lineWidth {
		t.Errorf("wider than %d columns:\n%s", lineWidth, stdout.String())
	}
}
