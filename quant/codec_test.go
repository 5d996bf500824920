package quant

import (
	"encoding/binary"
	"encoding/json"
	"fmt"
	"math"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/winnow-moe/winnow/formats/gguf"
	"github.com/winnow-moe/winnow/formats/safetensors"
	"github.com/winnow-moe/winnow/testdata/fixtures"
)

func TestMain(m *testing.M) { fixtures.Main(m) }

// goldens is the folder of ggml's own encodings (its README says how made).
func goldens(tb testing.TB) string {
	return filepath.Join(fixtures.Dir(tb, "packs/goldens-quant"), "quant")
}

// tensors is an open safetensors file of the goldens.
type tensors struct {
	tb testing.TB
	c  *safetensors.Checkpoint
}

func openTensors(tb testing.TB, name string) tensors {
	tb.Helper()
	c, err := safetensors.OpenFile(filepath.Join(goldens(tb), name))
	if err != nil {
		tb.Fatal(err)
	}
	tb.Cleanup(func() { c.Close() })
	return tensors{tb, c}
}

func (t tensors) bytes(name string) []byte {
	t.tb.Helper()
	i, ok := t.c.Lookup(name)
	if !ok {
		t.tb.Fatalf("no golden tensor %q", name)
	}
	b := make([]byte, t.c.Tensors()[i].Size)
	if err := t.c.ReadAt(i, 0, b); err != nil {
		t.tb.Fatal(err)
	}
	return b
}

func (t tensors) floats(name string) []float32 {
	t.tb.Helper()
	return floats(t.bytes(name))
}

func floats(b []byte) []float32 {
	v := make([]float32, len(b)/4)
	for i := range v {
		v[i] = math.Float32frombits(binary.LittleEndian.Uint32(b[4*i:]))
	}
	return v
}

// goldenCase is one entry of index.json.
type goldenCase struct {
	Type, Input, Imatrix string
	Rows, Cols           int
	Valid                bool
}

func goldenCases(tb testing.TB) []goldenCase {
	tb.Helper()
	var index struct{ Cases []goldenCase }
	readJSON(tb, "index.json", &index)
	return index.Cases
}

func readJSON(tb testing.TB, name string, v any) {
	tb.Helper()
	data, err := os.ReadFile(filepath.Join(goldens(tb), name))
	if err == nil {
		err = json.Unmarshal(data, v)
	}
	if err != nil {
		tb.Fatal(err)
	}
}

// TestEncodeGoldens compares every golden encoding of a known type, valid or
// not, byte by byte, and Validate with ggml's verdict.
func TestEncodeGoldens(t *testing.T) {
	in, out := openTensors(t, "inputs.safetensors"), openTensors(t, "outputs.safetensors")
	compared := map[gguf.Type]int{}
	for _, c := range goldenCases(t) {
		typ, _ := gguf.ParseType(c.Type)
		if _, ok := Lookup(typ); !ok {
			continue
		}
		key := c.Type + "/" + c.Input + "/" + c.Imatrix
		var weights []float32
		if c.Imatrix != "none" {
			weights = in.floats(fmt.Sprintf("imatrix/%d/%s", c.Cols, c.Imatrix))
		}
		want := out.bytes(key)
		got := make([]byte, len(want))
		if err := EncodeRows(typ, got, in.floats("x/"+c.Input), c.Cols, weights); err != nil {
			t.Fatalf("%s: %v", key, err)
		}
		compareBlocks(t, key, typ, got, want)
		if err := Validate(typ, got, len(got)/c.Rows); (err == nil) != c.Valid {
			t.Errorf("%s: Validate says %v, ggml says valid=%v", key, err, c.Valid)
		}
		compared[typ]++
	}
	for i := range codecs {
		c := &codecs[i]
		if c.Encode != nil && c.Type != gguf.F32 && compared[c.Type] < 20 {
			t.Errorf("%s: only %d goldens", c.Type, compared[c.Type])
		}
	}
	t.Log(compared)
}

// compareBlocks reports the blocks that differ: how many, and the first.
func compareBlocks(t *testing.T, key string, typ gguf.Type, got, want []byte) {
	t.Helper()
	size, bad, first := typ.BlockBytes(), 0, -1
	for b := 0; b*size < len(want); b++ {
		if !slices.Equal(got[b*size:][:size], want[b*size:][:size]) {
			if bad++; first < 0 {
				first = b
			}
		}
	}
	if bad > 0 {
		t.Errorf("%s: %d of %d blocks differ; block %d:\n got %x\nwant %x", key, bad, len(want)/size, first,
			got[first*size:][:size], want[first*size:][:size])
	}
}

// TestDecodeGoldens decodes golden encodings and random blocks, bit by bit.
func TestDecodeGoldens(t *testing.T) {
	out, decoded := openTensors(t, "outputs.safetensors"), openTensors(t, "dequant.safetensors")
	random := openTensors(t, "dequant_random.safetensors")
	for _, tensor := range decoded.c.Tensors() {
		name, _, _ := strings.Cut(tensor.Name, "/")
		compareDecoded(t, name, out.bytes(tensor.Name), decoded.floats(tensor.Name))
	}
	for _, tensor := range random.c.Tensors() {
		if name, ok := strings.CutPrefix(tensor.Name, "blocks/"); ok {
			compareDecoded(t, name, random.bytes(tensor.Name), random.floats("values/"+name))
		}
	}
}

func compareDecoded(t *testing.T, name string, blocks []byte, want []float32) {
	t.Helper()
	typ, _ := gguf.ParseType(name)
	if _, ok := Lookup(typ); !ok {
		return
	}
	got := make([]float32, len(want))
	if err := DecodeRows(typ, got, blocks); err != nil {
		t.Fatal(err)
	}
	for i := range want {
		if math.Float32bits(got[i]) != math.Float32bits(want[i]) {
			t.Fatalf("%s: element %d is %v (%#x), want %v (%#x)", name, i,
				got[i], math.Float32bits(got[i]), want[i], math.Float32bits(want[i]))
		}
	}
}
