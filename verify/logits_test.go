package verify

import (
	"bytes"
	"encoding/binary"
	"errors"
	"io"
	"math"
	"os"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"testing"

	"github.com/klauspost/compress/zstd"
	"github.com/winnow-moe/winnow/testdata/fixtures"
)

// stockFile unpacks the file of logits that llama-perplexity wrote for tiny-r1
// in F32 (testdata/kld.sh).
func stockFile(t *testing.T) string {
	t.Helper()
	f, err := os.Open(filepath.Join("testdata", "kld.base.zst"))
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	z, err := zstd.NewReader(f)
	if err != nil {
		t.Fatal(err)
	}
	defer z.Close()
	b, err := io.ReadAll(z)
	if err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(t.TempDir(), "kld.base")
	if err := os.WriteFile(path, b, 0o666); err != nil {
		t.Fatal(err)
	}
	return path
}

func openLogits(t *testing.T, path string) *LogitsFile {
	t.Helper()
	l, err := OpenLogits(path)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { l.Close() })
	return l
}

// stockLine is a number in llama-perplexity's statistics, with its error.
var stockLine = regexp.MustCompile(`(?m)^ ?([^:\n]+?) *: *(-?[\d.]+)%?(?: ± +([\d.]+))?`)

// TestStockDivergence compares every number that llama-perplexity
// --kl-divergence prints for tiny-r1 in Q4_K_M beside F32. The printed digits
// differ by what float32 logits of two programs do.
func TestStockDivergence(t *testing.T) {
	base := openLogits(t, stockFile(t))
	m := checkpointModel(t, fixtures.TinyR1(t), "Q4_K_M")
	c, err := CompareFile(t.Context(), base, m, base.Text(0, 0, true), Options{})
	if err != nil {
		t.Fatal(err)
	}
	k, p := &c.KLD, &c.DeltaP
	type number struct {
		Estimate
		tolerance float64
	}
	ours := map[string]number{
		"Mean PPL(Q)":                    {c.PPL, 1e-6 * c.PPL.Value},
		"Mean PPL(base)":                 {c.Base, 2e-6},
		"Cor(ln(PPL(Q)), ln(PPL(base)))": {Estimate{100 * c.Correlation, 0}, 0.01},
		"Mean ln(PPL(Q)/PPL(base))":      {c.LogRatio, 2e-6},
		"Mean PPL(Q)/PPL(base)":          {c.Ratio, 2e-6},
		"Mean PPL(Q)-PPL(base)":          {c.Difference, 2e-4},
		"Mean    KLD":                    {k.Mean, 2e-6},
		"Mean    Δp":                     {p.Mean, 1e-3},
		"RMS Δp":                         {c.DeltaPRMS, 1e-3},
		"Same top p":                     {c.SameTop, 1e-3},
	}
	for name, v := range map[string][2]float64{
		"Maximum": {k.Max, p.Max}, "99.9%": {k.P999, p.P999}, "99.0%": {k.P99, p.P99}, "95.0%": {k.P95, p.P95}, "90.0%": {k.P90, p.P90},
		"75.0%": {k.P75, p.P75}, "Median": {k.Median, p.Median}, "25.0%": {k.P25, p.P25}, "10.0%": {k.P10, p.P10}, "5.0%": {k.P5, p.P5},
		"1.0%": {k.P1, p.P1}, "0.1%": {k.P01, p.P01}, "Minimum": {k.Min, p.Min},
	} {
		pad := strings.Repeat(" ", max(0, len("Median ")-len(name)))
		for i, what := range []string{"KLD", "Δp"} {
			key := strings.TrimSpace(name + pad + " " + what)
			ours[key] = number{Estimate{v[i], 0}, []float64{2e-6, 1e-3}[i]}
		}
	}
	text, err := os.ReadFile(filepath.Join("testdata", "kld.txt"))
	if err != nil {
		t.Fatal(err)
	}
	squeeze := regexp.MustCompile(` +`)
	byName := map[string]number{}
	for name, n := range ours {
		byName[squeeze.ReplaceAllString(name, " ")] = n
	}
	compared := 0
	for _, line := range stockLine.FindAllStringSubmatch(string(text), -1) {
		name := squeeze.ReplaceAllString(strings.TrimSpace(line[1]), " ")
		n, ok := byName[name]
		if !ok {
			t.Errorf("no number for %q", name)
			continue
		}
		want, _ := strconv.ParseFloat(line[2], 64)
		near(t, name, n.Value, want, n.tolerance)
		if line[3] != "" {
			want, _ = strconv.ParseFloat(line[3], 64)
			near(t, name+", error", n.Error, want, 2*n.tolerance)
		}
		compared++
	}
	if compared != 6+12+16 { // perplexities, divergences, probabilities
		t.Errorf("%d numbers compared", compared)
	}
}

// TestStockFile writes what llama-perplexity wrote: the same bytes before the
// rows, and rows at most one step apart.
func TestStockFile(t *testing.T) {
	path := stockFile(t)
	stock := openLogits(t, path)
	m := checkpointModel(t, fixtures.TinyR1(t), "F32")
	text := stock.Text(0, 0, true)
	saved := save(t, m, text)
	got, err := os.ReadFile(saved)
	if err != nil {
		t.Fatal(err)
	}
	want, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	start := stock.layout.rowsStart()
	if len(got) != len(want) || !bytes.Equal(got[:start], want[:start]) {
		t.Fatalf("%d bytes, want %d; header and tokens equal: %v", len(got), len(want), bytes.Equal(got[:start], want[:start]))
	}
	a, b := make([]float32, stock.Vocab), make([]float32, stock.Vocab)
	worst := 0.0
	for i := range text.Scored() {
		at := stock.layout.row(i)
		decodeSaved(a, got[at:])
		decodeSaved(b, want[at:])
		for j := range a {
			worst = max(worst, math.Abs(float64(a[j]-b[j])))
		}
	}
	t.Logf("log-probabilities differ by at most %.2g", worst)
	if !(worst < 3e-4) {
		t.Errorf("log-probabilities differ by %g", worst)
	}
	c, err := CompareFile(t.Context(), openLogits(t, saved), m, text, Options{})
	if err != nil {
		t.Fatal(err)
	}
	near(t, "divergence from itself", c.KLD.Mean.Value, 0, 2e-6)
	near(t, "ratio to itself", c.Ratio.Value, 1, 1e-5)
	near(t, "same top", c.SameTop.Value, 100, 0)
}

// save writes the logits of a model and returns the file.
func save[H Hidden](t *testing.T, m Scorer[H], text *Text) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "saved")
	w, err := CreateLogits(path, text, m.Vocab())
	if err != nil {
		t.Fatal(err)
	}
	defer w.Abort()
	if _, err := Perplexity(t.Context(), m, text, Options{Row: w.Row}); err != nil {
		t.Fatal(err)
	}
	if _, err := os.Stat(path); err == nil {
		t.Error("the file has its name before it is complete")
	}
	if err := w.Commit(); err != nil {
		t.Fatal(err)
	}
	return path
}

// TestSaved: what is written is read again, also for a vocabulary of odd size,
// and gives the statistics of a comparison of the models up to the 16 bits.
func TestSaved(t *testing.T) {
	text, base, model := someText(t, 900, 64, 19), wavy(19, 2), wavy(19, 2.3)
	l := openLogits(t, save(t, base, text))
	if l.Ctx != 64 || l.Vocab != 19 || l.Chunks != 14 {
		t.Errorf("windows %d × %d, vocabulary %d", l.Chunks, l.Ctx, l.Vocab)
	}
	got, err := CompareFile(t.Context(), l, model, text, Options{})
	if err != nil {
		t.Fatal(err)
	}
	want, err := Compare(t.Context(), base, model, text, Options{})
	if err != nil {
		t.Fatal(err)
	}
	g, w := numbers(t, got), numbers(t, want)
	for name := range w {
		near(t, name, g[name], w[name], 2e-3*math.Abs(w[name])+2e-3)
	}
	near(t, "kld", got.KLD.Mean.Value, want.KLD.Mean.Value, 1e-5)
	own := l.Text(2, 1, true)
	if len(own.Windows) != 2 || own.Windows[1][0] != 1 || own.Tokens[64] != text.Tokens[64] || own.Windows[1][5] != text.Windows[1][5] {
		t.Errorf("the file's own text: %v", own.Windows)
	}
	if _, err := CompareFile(t.Context(), l, model, own, Options{}); err != nil {
		t.Error("part of the windows:", err)
	}
}

// TestSavedRow pins rows: range, rounding, clipping at 16 nats, equal logits.
func TestSavedRow(t *testing.T) {
	raw := make([]byte, 8+2*4)
	if err := encodeSaved(raw, []float32{0, -8, -16, -40}); err != nil {
		t.Fatal(err)
	}
	var steps [4]uint16
	for j := range steps {
		steps[j] = binary.LittleEndian.Uint16(raw[8+2*j:])
	}
	if steps != [4]uint16{65535, 32768, 0, 0} { // 32767.5 to even
		t.Errorf("steps %v", steps)
	}
	dst := make([]float32, 4)
	decodeSaved(dst, raw)
	near(t, "top", float64(dst[0]), -math.Log(1+math.Exp(-8)+math.Exp(-16)), 2e-6)
	if err := encodeSaved(raw, []float32{3, 3, 3, 3}); err != nil {
		t.Fatal(err)
	}
	decodeSaved(dst, raw)
	near(t, "equal logits", float64(dst[2]), -math.Log(4), 1e-6)
	if err := encodeSaved(raw, []float32{3, float32(math.NaN()), 3, 3}); err == nil {
		t.Error("NaN is written")
	}
}

func TestSavedErrors(t *testing.T) {
	text, dir := someText(t, 200, 16, 11), t.TempDir()
	good, err := os.ReadFile(save(t, wavy(11, 1), text))
	if err != nil {
		t.Fatal(err)
	}
	with := func(at int, v uint32) []byte {
		b := bytes.Clone(good)
		binary.LittleEndian.PutUint32(b[at:], v)
		return b
	}
	for name, c := range map[string]struct {
		data []byte
		hint string
	}{
		"magic":    {append([]byte("_logitz_"), good[8:]...), "_logitz_"},
		"short":    {good[:11], "header"},
		"cut":      {good[:len(good)-1], "not complete"},
		"longer":   {append(bytes.Clone(good), 0), "not complete"},
		"windows":  {with(16, 1<<23), "not complete"},
		"ctx":      {with(8, 2), "n_ctx is 2"},
		"negative": {with(12, 1<<31), "n_vocab is -2147483648"},
	} {
		path := filepath.Join(dir, name)
		if err := os.WriteFile(path, c.data, 0o666); err != nil {
			t.Fatal(err)
		}
		if _, err := OpenLogits(path); !errors.Is(err, ErrLogits) || !strings.Contains(err.Error(), c.hint) || !strings.Contains(err.Error(), path) {
			t.Errorf("%s: %v, want %q", name, err, c.hint)
		}
	}
	path := filepath.Join(dir, "good")
	if err := os.WriteFile(path, good, 0o666); err != nil {
		t.Fatal(err)
	}
	if !IsLogitsFile(path) || IsLogitsFile(filepath.Join(dir, "magic")) || IsLogitsFile(dir) || IsLogitsFile(filepath.Join(dir, "none")) {
		t.Error("files of logits are not recognised")
	}
	l := openLogits(t, path)
	other := someText(t, 200, 16, 11)
	other.Tokens[37], other.Windows[2][5] = 10, 10
	stride, err := NewStrideText("fake", someTokens(200, 11), 16, 8, 0)
	if err != nil {
		t.Fatal(err)
	}
	for name, c := range map[string]struct {
		model *fakeModel
		text  *Text
		hint  string
	}{
		"vocabulary": {wavy(12, 1), text, "vocabulary of 11 tokens, the model has one of 12"},
		"tokens":     {wavy(11, 1), other, "window 2, position 5: the text has token 10"},
		"ctx":        {wavy(11, 1), someText(t, 200, 20, 11), "windows of 16 tokens, the text has windows of 20"},
		"windows":    {wavy(11, 1), someText(t, 400, 16, 11), "the text has 25 windows"},
		"stride":     {wavy(11, 1), stride, "another definition"},
	} {
		if _, err := CompareFile(t.Context(), l, c.model, c.text, Options{}); err == nil || !strings.Contains(err.Error(), c.hint) {
			t.Errorf("%s: %v, want %q", name, err, c.hint)
		}
	}
	if _, err := CreateLogits(filepath.Join(dir, "x"), stride, 11); err == nil || !strings.Contains(err.Error(), "another definition") {
		t.Errorf("saving with a stride: %v", err)
	}
	nan := bytes.Clone(good)
	binary.LittleEndian.PutUint32(nan[l.layout.row(9):], math.Float32bits(float32(math.NaN())))
	if err := os.WriteFile(filepath.Join(dir, "nan"), nan, 0o666); err != nil {
		t.Fatal(err)
	}
	_, err = CompareFile(t.Context(), openLogits(t, filepath.Join(dir, "nan")), wavy(11, 1), text, Options{})
	if err == nil || !strings.Contains(err.Error(), "window 1: position 10: base file: the logit of token 0 is NaN") {
		t.Errorf("NaN in the file: %v", err)
	}
}
