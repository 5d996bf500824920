package calib

import (
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"math"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/winnow-moe/winnow/testdata/fixtures"
)

func TestMain(m *testing.M) { fixtures.Main(m) }

// goldens is the folder with matrices of known content.
func goldens(tb testing.TB) string {
	tb.Helper()
	return filepath.Join(fixtures.Dir(tb, "packs/goldens-quant"), "quant", "e2e")
}

func unmarshal(tb testing.TB, path string, v any) {
	tb.Helper()
	b, err := os.ReadFile(path)
	if err == nil {
		err = json.Unmarshal(b, v)
	}
	if err != nil {
		tb.Fatal(err)
	}
}

func mustRead(tb testing.TB, path string, opt Options) *Matrix {
	tb.Helper()
	m, err := Read(path, opt)
	if err != nil {
		tb.Fatal(err)
	}
	tb.Cleanup(func() { m.Close() })
	return m
}

func hash(b []byte) string {
	s := sha256.Sum256(b)
	return hex.EncodeToString(s[:])
}

func hashFile(tb testing.TB, path string) string {
	tb.Helper()
	b, err := os.ReadFile(path)
	if err != nil {
		tb.Fatal(err)
	}
	return hash(b)
}

// write writes m in the form that llama-imatrix calls "gguf" or "dat".
func write(m *Matrix, form, path string) error {
	if form == "gguf" {
		return m.WriteGGUF(path)
	}
	return m.WriteDat(path)
}

// content is the part of imatrix.json about one entry.
type content struct {
	Ne        []int   `json:"ne"`
	Counts    []int64 `json:"counts"`
	SumsSHA   string  `json:"sums_sha256"`
	Effective string  `json:"effective_sha256"`
	Calls     int64   `json:"ncall"`
	Values    int     `json:"nval"`
	ValuesSHA string  `json:"values_sha256"`
}

type known struct {
	GGUF   map[string]content
	Meta   map[string]any `json:"gguf_meta"`
	Legacy map[string]content
	// Trailer is what the legacy file has at its end.
	Trailer struct {
		Chunks  int
		Dataset string
	} `json:"legacy_trailer"`
	Converted map[string]string `json:"llama_imatrix_conversion_sha256"`
}

func mustKnow(tb testing.TB) (k known) {
	tb.Helper()
	unmarshal(tb, filepath.Join(goldens(tb), "imatrix.json"), &k)
	return k
}

func sumsOf(tb testing.TB, m *Matrix, name string) []float32 {
	tb.Helper()
	e, ok := m.Find(name)
	if !ok {
		tb.Fatalf("no entry %q", name)
	}
	s, err := e.Sums()
	if err != nil {
		tb.Fatal(err)
	}
	return s
}

func TestGGUFContent(t *testing.T) {
	k := mustKnow(t)
	m := mustRead(t, filepath.Join(goldens(t), "imatrix.gguf"), Options{})
	if diff := cmp.Diff([]string{"calib-a.txt", "calib-b.txt"}, m.Datasets); diff != "" || m.Chunks != 5 || m.ChunkSize != 512 {
		t.Errorf("datasets %q, %d chunks of %d rows, want those of %v", m.Datasets, m.Chunks, m.ChunkSize, k.Meta)
	}
	if len(m.Entries) != len(k.GGUF) || len(m.Warnings) > 0 {
		t.Errorf("%d entries, warnings %q, want %d and none", len(m.Entries), m.Warnings, len(k.GGUF))
	}
	for name, c := range k.GGUF {
		if got := hash(encode(sumsOf(t, m, name))); got != c.SumsSHA {
			t.Errorf("%s: sums have SHA-256 %s, want %s", name, got, c.SumsSHA)
		}
		e, _ := m.Find(name)
		if !slices.Equal(e.Counts, c.Counts) || e.Columns() != c.Ne[0] || e.Size() != c.Ne[0]*c.Ne[1] {
			t.Errorf("%s: counts %v, %d columns, want %v, %v", name, e.Counts, e.Columns(), c.Counts, c.Ne)
		}
		checkWeights(t, m, name, c.Ne[0], c.Ne[1], c.Effective)
	}
}

func TestLegacyContent(t *testing.T) {
	k := mustKnow(t)
	for file, chunks := range map[string]int{"imatrix.dat": k.Trailer.Chunks, "imatrix_notrailer.dat": 0} {
		m := mustRead(t, filepath.Join(goldens(t), file), Options{})
		if len(m.Entries) != len(k.Legacy) || m.Chunks != chunks || len(m.Warnings) > 0 {
			t.Errorf("%s: %d entries, %d chunks, warnings %q, want %d, %d and none", file, len(m.Entries), m.Chunks, m.Warnings, len(k.Legacy), chunks)
		}
		if chunks > 0 && !slices.Equal(m.Datasets, []string{k.Trailer.Dataset}) {
			t.Errorf("%s: datasets %q, want %q", file, m.Datasets, k.Trailer.Dataset)
		}
		for name, c := range k.Legacy {
			s := sumsOf(t, m, name)
			for i := range s {
				s[i] /= DefaultChunkSize
			}
			e, _ := m.Find(name)
			if got := hash(encode(s)); got != c.ValuesSHA || !slices.Equal(e.Counts, []int64{c.Calls * DefaultChunkSize}) || e.Size() != c.Values {
				t.Errorf("%s: %s: %d values of SHA-256 %s, counts %v, want %+v", file, name, e.Size(), got, e.Counts, c)
			}
			ne := k.GGUF[name].Ne
			checkWeights(t, m, name, ne[0], ne[1], c.Effective)
		}
	}
}

// checkWeights compares with the weights that llama-quantize derives.
func checkWeights(t *testing.T, m *Matrix, name string, columns, experts int, want string) {
	t.Helper()
	w, err := m.Weights(name, columns, experts)
	if err != nil {
		t.Fatal(err)
	}
	if got := hash(encode(w)); got != want {
		t.Errorf("%s: weights have SHA-256 %s, want %s", name, got, want)
	}
}

// TestConversions compares all four ways of conversion with llama-imatrix, once
// through Merge and once directly.
func TestConversions(t *testing.T) {
	for way, want := range mustKnow(t).Converted {
		from, to, _ := strings.Cut(way, "->")
		m := mustRead(t, filepath.Join(goldens(t), from), Options{})
		merged, err := Merge(m)
		if err != nil {
			t.Fatal(err)
		}
		for how, m := range map[string]*Matrix{"read": m, "merged": merged} {
			path := filepath.Join(t.TempDir(), "out")
			if err := write(m, to, path); err != nil {
				t.Fatal(err)
			}
			if got := hashFile(t, path); got != want {
				t.Errorf("%s, %s: SHA-256 %s, llama-imatrix has %s", way, how, got, want)
			}
		}
	}
}

// merge is a case of testdata/llama_imatrix.json.
type merge struct {
	In     []string
	Chunk  int
	Format string
	SHA256 string
}

func (c merge) String() string {
	return fmt.Sprintf("%s in chunks of %d to %s", strings.Join(c.In, ","), c.Chunk, c.Format)
}

// run merges as "llama-imatrix -c CHUNK" does.
func (c merge) run(t *testing.T, dir, path string) {
	t.Helper()
	var ms []*Matrix
	for _, name := range c.In {
		m := mustRead(t, filepath.Join(dir, name), Options{ChunkSize: c.Chunk})
		m.ChunkSize = c.Chunk
		ms = append(ms, m)
	}
	m, err := Merge(ms[0], ms[1:]...)
	if err != nil {
		t.Fatal(err)
	}
	if err := write(m, c.Format, path); err != nil {
		t.Fatal(err)
	}
}

func TestMerges(t *testing.T) {
	var golden struct{ Merges []merge }
	unmarshal(t, filepath.Join("testdata", "llama_imatrix.json"), &golden)
	if len(golden.Merges) < 60 {
		t.Fatalf("%d merges, want at least 60", len(golden.Merges))
	}
	for _, c := range golden.Merges {
		path := filepath.Join(t.TempDir(), "out")
		c.run(t, goldens(t), path)
		if got := hashFile(t, path); got != c.SHA256 {
			t.Errorf("%v: SHA-256 %s, llama-imatrix has %s", c, got, c.SHA256)
		}
	}
}

// TestMergesLive merges the sound files of the corpus, whose entries are not
// sorted, with the tool beside.
func TestMergesLive(t *testing.T) {
	bin := os.Getenv("WINNOW_ORACLE")
	if bin == "" {
		t.Skip("extra test: WINNOW_ORACLE does not name a folder with llama-imatrix")
	}
	root, cases := badCases(t)
	var sound []string
	for _, c := range cases {
		if c.Expect == "ok" {
			sound = append(sound, c.Path)
		}
	}
	for i, a := range sound {
		for _, form := range []string{"gguf", "dat"} {
			c := merge{In: []string{a, sound[(i+1)%len(sound)]}, Chunk: 64, Format: form}
			dir := t.TempDir()
			ours, theirs := filepath.Join(dir, "ours"), filepath.Join(dir, "theirs")
			cmd := exec.Command(filepath.Join(bin, "llama-imatrix"), "-m", "x", "-c", "64", "-o", theirs,
				"--in-file", filepath.Join(root, c.In[0])+","+filepath.Join(root, c.In[1]), "--output-format", form)
			if out, err := cmd.CombinedOutput(); err != nil {
				t.Fatalf("%v: %v: %s", c, err, out)
			}
			c.run(t, root, ours)
			if hashFile(t, ours) != hashFile(t, theirs) {
				t.Errorf("%v: bytes differ from llama-imatrix", c)
			}
		}
	}
}

func TestStatistics(t *testing.T) {
	var golden struct {
		Statistics []struct {
			Block, Tensor string
			Sum, Min, Max float64
			N             int
		}
	}
	unmarshal(t, filepath.Join("testdata", "llama_imatrix.json"), &golden)
	stats, err := mustRead(t, filepath.Join(goldens(t), "imatrix.gguf"), Options{}).Statistics()
	if err != nil {
		t.Fatal(err)
	}
	byName := map[string]Stats{}
	for _, s := range stats {
		byName[s.Name] = s
	}
	if len(golden.Statistics) != len(stats) {
		t.Fatalf("%d entries, llama-imatrix has %d", len(stats), len(golden.Statistics))
	}
	near := func(a, b, digits float64) bool { return math.Abs(a-b) <= 0.6*math.Pow(10, -digits) }
	for _, g := range golden.Statistics {
		name := g.Tensor + ".weight"
		if g.Block != "-" {
			name = "blk." + g.Block + "." + name
		}
		s := byName[name]
		if !near(s.Sum, g.Sum, 2) || !near(s.Min, g.Min, 4) || !near(s.Max, g.Max, 4) || s.Columns*(s.Counts-s.Empty) != g.N {
			t.Errorf("%s: %+v, llama-imatrix has %+v", name, s, g)
		}
	}
	want := Stats{Name: "blk.1.ffn_up_exps.weight", Columns: 256, Counts: 3, Empty: 1, Rows: 1269 + 768, MinRows: 0, MaxRows: 1269}
	got := byName[want.Name]
	got.Sum, got.Min, got.Max = 0, 0, 0
	if diff := cmp.Diff(want, got); diff != "" {
		t.Error(diff)
	}
}

// small is a matrix of two entries: an expert tensor with an unused expert, and
// a matrix.
func small() *Matrix {
	return &Matrix{Datasets: []string{"a.txt"}, Chunks: 1, ChunkSize: 4, Entries: []Entry{
		NewEntry("e.weight", []float32{2, 4, 0, 0, 9, 12}, []int64{2, 0, 3}),
		NewEntry("m.weight", []float32{8, 16}, []int64{4}),
	}}
}

func TestWeights(t *testing.T) {
	m := small()
	for _, c := range []struct {
		name             string
		columns, experts int
		want             []float32
	}{
		{"e.weight", 2, 3, []float32{1, 2, 1, 1, 3, 4}},
		{"m.weight", 2, 1, []float32{2, 4}},
		{"m.weight", 1, 2, []float32{2, 4}}, // one count for both matrices
		{"none.weight", 2, 1, nil},
	} {
		got, err := m.Weights(c.name, c.columns, c.experts)
		if err != nil || !slices.Equal(got, c.want) {
			t.Errorf("%s, %d × %d: %v, %v, want %v", c.name, c.columns, c.experts, got, err, c.want)
		}
	}
	if s := sumsOf(t, m, "m.weight"); !slices.Equal(s, []float32{8, 16}) {
		t.Errorf("sums became %v", s)
	}
	if _, err := (&Matrix{Entries: []Entry{NewEntry("w", []float32{1}, nil)}}).Weights("w", 1, 1); !errors.Is(err, ErrInvalid) {
		t.Errorf("entry without counts: %v", err)
	}
	if _, err := (&Matrix{}).Statistics(); !errors.Is(err, ErrInvalid) {
		t.Errorf("statistics of nothing: %v", err)
	}
	for _, size := range [][2]int{{2, 2}, {3, 3}, {3, 2}, {6, 1}} {
		_, err := m.Weights("e.weight", size[0], size[1])
		if !errors.Is(err, ErrSize) || !errors.Is(err, ErrInvalid) || !strings.Contains(err.Error(), `"e.weight"`) ||
			!strings.Contains(err.Error(), "6 values (2 × 3)") || !strings.Contains(err.Error(), fmt.Sprint(size[0]*size[1])) {
			t.Errorf("%v: error %v does not name the tensor and both sizes", size, err)
		}
	}
}

func TestFilter(t *testing.T) {
	for _, c := range []struct {
		include, exclude []string
		want             int
	}{
		{nil, nil, 29},
		{nil, []string{"ffn_down"}, 25},
		{[]string{"attn_q", "attn_k"}, nil, 8},
		{[]string{"attn"}, []string{"blk.0.", "attn_v"}, 9},
	} {
		m := mustRead(t, filepath.Join(goldens(t), "imatrix.gguf"), Options{})
		m.Filter(c.include, c.exclude)
		if len(m.Entries) != c.want {
			t.Errorf("include %q, exclude %q: %d entries, want %d", c.include, c.exclude, len(m.Entries), c.want)
		}
	}
}

// TestRoundTrip writes and reads both forms.
func TestRoundTrip(t *testing.T) {
	dir := t.TempDir()
	for _, form := range []string{"gguf", "dat"} {
		path := filepath.Join(dir, "m."+form)
		if err := write(small(), form, path); err != nil {
			t.Fatal(err)
		}
		m := mustRead(t, path, Options{ChunkSize: 4})
		want := []float32{1, 2, 1, 1, 3, 4}
		got, err := m.Weights("e.weight", 2, 3)
		if err != nil || !slices.Equal(got, want) || m.Chunks != 1 || m.Datasets[0] != "a.txt" {
			t.Errorf("%s: weights %v, %v, chunks %d, datasets %q, want %v", form, got, err, m.Chunks, m.Datasets, want)
		}
		if _, err := os.Stat(path + ".part"); !os.IsNotExist(err) {
			t.Errorf("%s: the part file is still there: %v", form, err)
		}
		// Over its own input: the old file stays readable until it is closed.
		if err := write(m, form, path); err != nil {
			t.Error(err)
		}
	}
}

func TestMergeErrors(t *testing.T) {
	with := func(e ...Entry) *Matrix { return &Matrix{Entries: e} }
	big := []float32{math.MaxFloat32}
	for want, pair := range map[string][2]*Matrix{
		"mismatched sizes":             {small(), with(NewEntry("m.weight", []float32{1}, []int64{1}))},
		"mismatched numbers of counts": {small(), with(NewEntry("e.weight", make([]float32, 6), []int64{1, 1}))},
		"not finite":                   {with(NewEntry("w", big, []int64{1})), with(NewEntry("w", big, []int64{1}))},
		"size of chunks is":            {with(NewEntry("w", []float32{1}, []int64{maxCount})), with(NewEntry("w", []float32{1}, []int64{1}))},
		"no data":                      {small(), with()},
		"not sorted":                   {with(NewEntry("w", []float32{1}, []int64{1}), NewEntry("v", []float32{1}, []int64{1})), small()},
		"cannot be negative":           {small(), with(NewEntry("w", []float32{-1}, []int64{1}))},
	} {
		_, err := Merge(pair[0], pair[1])
		if !errors.Is(err, ErrInvalid) || !strings.Contains(err.Error(), want) {
			t.Errorf("%v, want an error with %q", err, want)
		}
	}
}

// TestMergeBroadcast adds one count for all experts to a count per expert, in
// either order.
func TestMergeBroadcast(t *testing.T) {
	one := &Matrix{Entries: []Entry{NewEntry("e.weight", []float32{1, 1, 1, 1, 1, 1}, []int64{10})}}
	for _, pair := range [][2]*Matrix{{one, small()}, {small(), one}} {
		m, err := Merge(pair[0], pair[1])
		if err != nil {
			t.Fatal(err)
		}
		if e, _ := m.Find("e.weight"); !slices.Equal(e.Counts, []int64{12, 10, 13}) {
			t.Errorf("counts are %v, want 12 10 13", e.Counts)
		}
		if s := sumsOf(t, m, "e.weight"); !slices.Equal(s, []float32{3, 5, 1, 1, 10, 13}) {
			t.Errorf("sums are %v", s)
		}
	}
}

func TestWriteErrors(t *testing.T) {
	long := strings.Repeat("n", 60)
	one := func(name string, counts ...int64) *Matrix {
		return &Matrix{Entries: []Entry{NewEntry(name, make([]float32, 2), counts)}}
	}
	for _, c := range []struct {
		m    *Matrix
		form string
		want string
	}{
		{&Matrix{}, "gguf", "no data"},
		{&Matrix{}, "dat", "no data"},
		{one(long, 1), "gguf", "too long"},
		{one("", 1), "dat", "name is empty"},
		{one("w", 1, 2, 3), "dat", "mismatch"},
		{one("w"), "gguf", "counts are empty"},
		{one("w", -1), "gguf", "count 0 is -1"},
		{one("w\x00", 1), "dat", "UTF-8"},
		{one(strings.Repeat("n", 5000), 1), "dat", "too long"},
		{one("w", 0), "dat", "no entry has data"},
		{one("w", 1<<50), "dat", "calls"},
		{&Matrix{Chunks: -1, Entries: one("w", 1).Entries}, "gguf", "chunks is -1"},
		{&Matrix{Datasets: []string{strings.Repeat("d", maxDataset+1)}, Entries: one("w", 1).Entries}, "dat", "dataset"},
		{&Matrix{Entries: []Entry{NewEntry("w", nil, []int64{1})}}, "gguf", "no values"},
		{&Matrix{Entries: []Entry{NewEntry("w", []float32{1, float32(math.NaN())}, []int64{1})}}, "gguf", `"w": value 1 is NaN`},
		{&Matrix{Entries: []Entry{NewEntry("w", []float32{1, float32(math.Inf(1))}, []int64{1})}}, "dat", "not finite"},
		{&Matrix{Entries: []Entry{NewEntry("w", []float32{1}, []int64{1}), NewEntry("w", []float32{1}, []int64{1})}}, "gguf", "duplicate"},
	} {
		dir := t.TempDir()
		err := write(c.m, c.form, filepath.Join(dir, "out"))
		if !errors.Is(err, ErrInvalid) || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%s: %v, want an error with %q", c.form, err, c.want)
		}
		if left, _ := os.ReadDir(dir); len(left) > 0 {
			t.Errorf("%s: %s is left behind", c.form, left[0].Name())
		}
	}
	for _, form := range []string{"gguf", "dat"} {
		if err := write(small(), form, filepath.Join(t.TempDir(), "no", "folder")); err == nil || errors.Is(err, ErrInvalid) {
			t.Errorf("%s into a folder that does not exist: %v", form, err)
		}
		if err := write(small(), form, t.TempDir()); err == nil {
			t.Errorf("%s over a folder: no error", form)
		}
	}
}

func TestReadErrors(t *testing.T) {
	dir := t.TempDir()
	if _, err := Read(dir, Options{}); err == nil || !strings.Contains(err.Error(), "not a regular file") {
		t.Errorf("folder: %v", err)
	}
	if _, err := Read(filepath.Join(dir, "none"), Options{}); !os.IsNotExist(err) {
		t.Errorf("missing file: %v", err)
	}
	if _, err := Parse(bytes.NewReader(nil), 0, "x", Options{ChunkSize: -1}); err == nil {
		t.Error("negative chunk size accepted")
	}
}

// TestShrunkFile reads sums of a file that became shorter after it was checked.
func TestShrunkFile(t *testing.T) {
	for _, form := range []string{"gguf", "dat"} {
		path := filepath.Join(t.TempDir(), "m")
		if err := write(small(), form, path); err != nil {
			t.Fatal(err)
		}
		m := mustRead(t, path, Options{})
		if err := os.Truncate(path, 8); err != nil {
			t.Fatal(err)
		}
		for what, err := range map[string]error{
			"weights":    second(m.Weights("m.weight", 2, 1)),
			"statistics": second(m.Statistics()),
			"merge":      second(Merge(m)),
			"gguf":       m.WriteGGUF(filepath.Join(t.TempDir(), "out")),
			"dat":        m.WriteDat(filepath.Join(t.TempDir(), "out")),
		} {
			if err == nil || errors.Is(err, ErrInvalid) || !strings.Contains(err.Error(), path) || !strings.Contains(err.Error(), ".weight") {
				t.Errorf("%s, %s: error %v is not one of the system about %s", form, what, err, path)
			}
		}
		if err := m.Close(); err != nil {
			t.Error(err)
		}
	}
	_, err := Parse(bytes.NewReader([]byte("GG")), 100, "x", Options{})
	if err == nil || errors.Is(err, ErrInvalid) {
		t.Errorf("shorter than its size: %v", err)
	}
}

func second[T any](_ T, err error) error { return err }
