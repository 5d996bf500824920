package engine

import (
	"bufio"
	"compress/gzip"
	"context"
	"encoding/binary"
	"encoding/hex"
	"math"
	"os"
	"slices"
	"strings"
	"testing"

	"github.com/winnow-moe/winnow/engine/kernel"
	"github.com/winnow-moe/winnow/formats/gguf"
	"github.com/winnow-moe/winnow/quant"
)

// someTensors is a model as far as products need one.
type someTensors struct {
	gguf.Model
	data [][]byte
	rows int64 // of each
}

func (s *someTensors) Rows(_ context.Context, i int, first, n int64, _ []byte) ([]byte, error) {
	size := int64(len(s.data[i])) / s.rows
	return s.data[i][first*size : (first+n)*size], nil
}

// ggmlProducts are products that ggml computed (testdata/oracle/mulmat.cpp).
type ggmlProduct struct {
	kind    gguf.Type
	weights []byte
	want    []float32 // [5, 8]
}

const ggmlCols, ggmlRows, ggmlTokens = 512, 8, 5

func ggmlProducts(t *testing.T) (x []float32, products []ggmlProduct) {
	t.Helper()
	f, err := os.Open("testdata/mulmat.txt.gz")
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	z, err := gzip.NewReader(f)
	if err != nil {
		t.Fatal(err)
	}
	lines := bufio.NewScanner(z)
	lines.Buffer(nil, 1<<20)
	for lines.Scan() {
		fields := strings.Fields(lines.Text())
		if fields[0] == "x" {
			x = floatBits(t, fields[1])
			continue
		}
		kind, ok := gguf.ParseType(strings.ToUpper(fields[0]))
		if !ok {
			t.Fatalf("unknown type %q", fields[0])
		}
		weights, err := hex.DecodeString(fields[1])
		if err != nil {
			t.Fatal(err)
		}
		products = append(products, ggmlProduct{kind, weights, floatBits(t, fields[2])})
	}
	return x, products
}

func floatBits(t *testing.T, text string) []float32 {
	t.Helper()
	b, err := hex.DecodeString(text)
	if err != nil {
		t.Fatal(err)
	}
	out := make([]float32, len(b)/4)
	for i := range out {
		out[i] = math.Float32frombits(binary.LittleEndian.Uint32(b[4*i:]))
	}
	return out
}

// TestInt8 compares products of every type with ggml's. The rounded activations
// must be the same, so that all that is left are roundings of float32 sums: ggml
// adds in another order, and in Q8_1 rounds the sum of a block to half precision.
func TestInt8(t *testing.T) {
	x, products := ggmlProducts(t)
	if len(products) != 25 {
		t.Fatalf("%d types, want 25", len(products))
	}
	in := kernel.NewMatrix(x, ggmlTokens, ggmlCols)
	for _, p := range products {
		t.Run(p.kind.String(), func(t *testing.T) {
			p.compare(t, multiplyAll(t, ComputeInt8, in, p)[0], multiplyAll(t, ComputeF32, in, p)[0])
		})
	}
	// Weights of several types in one call share activations only in the form
	// that each wants.
	exact := multiplyAll(t, ComputeF32, in, products...)
	for i, got := range multiplyAll(t, ComputeInt8, in, products...) {
		products[i].compare(t, got, exact[i])
	}
}

// compare holds products to ggml's.
func (p *ggmlProduct) compare(t *testing.T, got, exact []float32) {
	t.Helper()
	limit := 2e-6
	if p.kind == gguf.Q4_1 || p.kind == gguf.Q5_1 {
		limit = 2e-3
	}
	for i := range ggmlTokens {
		size := 0.0
		for j := range ggmlRows {
			size += math.Abs(float64(exact[i*ggmlRows+j])) / ggmlRows
		}
		for j := range ggmlRows {
			at := i*ggmlRows + j
			if d := math.Abs(float64(got[at]-p.want[at])) / size; !(d <= limit) {
				t.Errorf("%s, token %d, row %d: %g, ggml %g, exact %g", p.kind, i, j, got[at], p.want[at], exact[at])
			}
		}
	}
}

// multiplyAll multiplies with all weights of each, in one call.
func multiplyAll(t *testing.T, c Compute, in kernel.Matrix, list ...ggmlProduct) [][]float32 {
	t.Helper()
	src := &someTensors{rows: ggmlRows}
	m := &Model{src: src, opt: Options{Threads: 2, Compute: c}}
	m.makeWorkers()
	var products []product
	var out [][]float32
	for i, p := range list {
		src.data = append(src.data, p.weights)
		w, err := newTensor(&gguf.TensorInfo{Name: "w", Type: p.kind, Shape: []int64{ggmlCols, ggmlRows}}, i, []int64{ggmlCols, ggmlRows})
		if err != nil {
			t.Fatal(err)
		}
		m.bindForm(w)
		dst := kernel.NewMatrix(make([]float32, in.Rows*ggmlRows), in.Rows, ggmlRows)
		products, out = append(products, whole(w, in, dst)), append(out, dst.Data)
	}
	if err := m.multiply(t.Context(), products...); err != nil {
		t.Fatal(err)
	}
	return out
}

// TestInt8Invariance holds int8 mode to the same bits for any number of threads,
// batches and groups, with integers of both widths and 16-bit weights.
func TestInt8Invariance(t *testing.T) {
	for _, kind := range []gguf.Type{gguf.Q8_0, gguf.Q4_0, gguf.Q5_1, gguf.BF16} {
		model := func(opt Options) *Model {
			opt.Compute = ComputeInt8
			return requantized(t, "deepseek_v3", kind).load(t, opt)
		}
		seqs := someSeqs(500, 48, 1, 310, 65)
		_, exact := allLogits(t, requantized(t, "deepseek_v3", kind).load(t, Options{}), seqs)
		var want []float32
		for _, s := range seqs {
			_, l := allLogits(t, model(Options{Threads: 1}), [][]int32{s})
			want = append(want, l...)
		}
		if slices.Equal(want, exact) {
			t.Errorf("%s: int8 mode rounds nothing", kind)
		}
		for _, v := range []struct {
			opt    Options
			budget int
		}{{Options{}, DefaultGroupBytes / 4}, {Options{Threads: 3, BatchTokens: 60}, 20000}, {Options{Threads: 2}, 1}} {
			m := model(v.opt)
			m.budget = v.budget
			if _, got := allLogits(t, m, seqs); !slices.Equal(got, want) {
				t.Errorf("%s, %+v: logits differ from those of sequences alone", kind, v)
			}
		}
	}
}

// requantized is a family's fixture with its matrices in another type.
func requantized(t *testing.T, family string, kind gguf.Type) *altered {
	t.Helper()
	a := alter(t, family)
	for i := range a.tensors {
		info := &a.tensors[i]
		if info.Type == gguf.BF16 && info.RowLen()%int64(kind.BlockLen()) == 0 {
			info.Type = kind
		}
	}
	a.rows = func(info *gguf.TensorInfo, _, n int64, data []byte) ([]byte, error) {
		if info.Type != kind || kind == gguf.BF16 {
			return data, nil
		}
		values := make([]float32, n*info.RowLen())
		if err := quant.DecodeRows(gguf.BF16, values, data); err != nil {
			return nil, err
		}
		out := make([]byte, n*info.RowBytes())
		return out, quant.EncodeRows(kind, out, values, int(info.RowLen()), nil)
	}
	return a
}
