package convert

import (
	"bytes"
	"crypto/sha256"
	"encoding/binary"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"reflect"
	"slices"
	"strings"
	"testing"

	"github.com/winnow-moe/winnow/formats/gguf"
	"github.com/winnow-moe/winnow/testdata/fixtures"
)

// golden is testdata/tiny_r1.json, what llama.cpp makes of the checkpoint
// tiny-r1; see tiny_r1.py there.
type golden struct {
	Converter map[string]struct {
		File    string
		Keys    [][]any // name, type, value or hash
		Tensors [][]any // name, type, shape, hash
	}
	Quantize map[string]string
}

func loadGolden(t *testing.T) *golden {
	t.Helper()
	var g golden
	must(t, json.Unmarshal(readFile(t, filepath.Join("testdata", "tiny_r1.json")), &g))
	return &g
}

func hash(b []byte) string {
	sum := sha256.Sum256(b)
	return hex.EncodeToString(sum[:])
}

// describeKey puts a metadata value in the form of the golden.
func describeKey(t *testing.T, key string, v any) []any {
	typ, elem, _ := gguf.TypeOf(v)
	rv := reflect.ValueOf(v)
	switch {
	case typ == gguf.TypeArray:
		return []any{key, fmt.Sprintf("[%d]%s", rv.Len(), elem), hash(arrayBytes(t, v))}
	case rv.CanUint():
		return []any{key, typ.String(), float64(rv.Uint())}
	case rv.CanFloat():
		return []any{key, typ.String(), rv.Float()}
	}
	return []any{key, typ.String(), v}
}

func arrayBytes(t *testing.T, v any) []byte {
	var b bytes.Buffer
	if list, ok := v.([]string); ok {
		for _, s := range list {
			must(t, binary.Write(&b, binary.LittleEndian, uint64(len(s))))
			b.WriteString(s)
		}
		return b.Bytes()
	}
	must(t, binary.Write(&b, binary.LittleEndian, v))
	return b.Bytes()
}

func describeTensor(t *testing.T, m gguf.Model, i int) []any {
	info := m.Tensors()[i]
	shape := []any{}
	for _, d := range info.Shape {
		shape = append(shape, float64(d))
	}
	return []any{info.Name, info.Type.String(), shape, hash(allRows(t, m, i))}
}

// TestTinyR1EqualsConverter compares keys, tensors and whole files with
// llama.cpp's converter. One value is another on purpose: its converter does
// not see the add_bos_token of DeepSeek's tokenizer_config.json.
func TestTinyR1EqualsConverter(t *testing.T) {
	g := loadGolden(t)
	types := []string{"F32", "BF16", "Q8_0"}
	for i, path := range convertTo(t, fixtures.TinyR1(t), RunOptions{}, types...) {
		t.Run(types[i], func(t *testing.T) {
			ref, f := g.Converter[types[i]], openGGUF(t, path)
			var keys, tensors [][]any
			for _, k := range f.Metadata().Keys() {
				v, _ := f.Metadata().Get(k)
				keys = append(keys, describeKey(t, k, v))
			}
			bos := slices.IndexFunc(ref.Keys, func(k []any) bool { return k[0] == "tokenizer.ggml.add_bos_token" })
			ref.Keys[bos][2] = true
			for i := range f.Tensors() {
				tensors = append(tensors, describeTensor(t, f, i))
			}
			sameLists(t, keys, ref.Keys)
			sameLists(t, tensors, ref.Tensors)
			if got := hash(readFile(t, path)); got != ref.File {
				t.Errorf("the file has hash %s, want %s", got, ref.File)
			}
		})
	}
}

func sameLists(t *testing.T, got, want [][]any) {
	t.Helper()
	if len(got) != len(want) {
		t.Errorf("%d entries, want %d", len(got), len(want))
	}
	for i := range min(len(got), len(want)) {
		if !reflect.DeepEqual(got[i], want[i]) {
			t.Errorf("entry %d is %v, want %v", i, got[i], want[i])
		}
	}
}

// straight are types also made straight from FP8.
var straight = []string{"Q2_K", "Q4_K_M", "Q5_0", "Q8_0"}

// TestTinyR1EqualsLlamaQuantize compares whole files with llama-quantize, all
// made from one read, and their tensors with those that come straight from FP8.
func TestTinyR1EqualsLlamaQuantize(t *testing.T) {
	if testing.Short() {
		t.Skip("searches scales for 200 million weights, which takes minutes under the race detector")
	}
	g := loadGolden(t)
	var types []string
	for name := range g.Quantize {
		if kind, ok := strings.CutPrefix(name, "F32-"); ok && !strings.Contains(kind, "-") {
			types = append(types, kind)
		}
	}
	dir := fixtures.TinyR1(t)
	floats := convertTo(t, dir, RunOptions{}, "F32", "BF16")
	direct := convertTo(t, dir, RunOptions{}, straight...)
	for i, path := range quantizeTo(t, floats[0], false, types...) {
		if hash(readFile(t, path)) != g.Quantize["F32-"+types[i]] {
			t.Errorf("%s differs from llama-quantize's file", types[i])
		}
		if j := slices.Index(straight, types[i]); j >= 0 {
			sameRows(t, openGGUF(t, direct[j]), openGGUF(t, path))
		}
		if types[i] == "Q4_K_M" {
			again := quantizeTo(t, path, true, "Q8_0")[0]
			if hash(readFile(t, again)) != g.Quantize["F32-Q4_K_M-Q8_0"] {
				t.Error("Q4_K_M quantized again to Q8_0 differs from llama-quantize's file")
			}
		}
	}
	if got := quantizeTo(t, floats[1], false, "Q4_K_M")[0]; hash(readFile(t, got)) != g.Quantize["BF16-Q4_K_M"] {
		t.Error("Q4_K_M from BF16 differs from llama-quantize's file")
	}
}

// TestLlamaQuantizeOracle runs llama-quantize on fixtures whose rows are too
// short for most types, so that fallbacks are compared too.
func TestLlamaQuantizeOracle(t *testing.T) {
	bin := os.Getenv("WINNOW_ORACLE")
	if bin == "" {
		t.Skip("extra test: WINNOW_ORACLE does not name a folder with llama-quantize")
	}
	for _, family := range []string{"deepseek_v3", "deepseek_v3_fp8", "deepseek_v2_lite"} {
		f32 := convertTo(t, fixtures.Family(t, family), RunOptions{}, "F32")[0]
		for _, kind := range []string{"Q8_0", "Q4_0", "F16", "Q4_K_M", "Q6_K", "Q2_K"} {
			theirs := filepath.Join(t.TempDir(), "theirs.gguf")
			cmd := exec.Command(filepath.Join(bin, "llama-quantize"), f32, theirs, kind, "1")
			cmd.Env = append(os.Environ(), "LD_LIBRARY_PATH="+bin)
			if out, err := cmd.CombinedOutput(); err != nil {
				t.Fatalf("%v: %s", err, out)
			}
			sameFiles(t, quantizeTo(t, f32, false, kind)[0], theirs)
		}
	}
}

// TestTrainedEqualsLlamaQuantize compares what checkpoints become straight away
// with the tensors that llama-quantize makes of the F32 files of llama.cpp's
// converter (testdata/trained.json; trained.py there).
func TestTrainedEqualsLlamaQuantize(t *testing.T) {
	if testing.Short() {
		t.Skip("searches scales for 13 million weights, which takes long under the race detector")
	}
	var golden map[string]map[string][][]string // checkpoint, type: name, type, hash
	must(t, json.Unmarshal(readFile(t, filepath.Join("testdata", "trained.json")), &golden))
	for name, kinds := range golden {
		types := slices.Sorted(maps.Keys(kinds))
		dir := filepath.Join(fixtures.Dir(t, "packs/"+name), name)
		for i, path := range convertTo(t, dir, RunOptions{}, types...) {
			f := openGGUF(t, path)
			got := map[string]string{}
			for j, info := range f.Tensors() {
				got[info.Name] = info.Type.String() + " " + hash(allRows(t, f, j))
			}
			for _, want := range kinds[types[i]] {
				if got[want[0]] != want[1]+" "+want[2] {
					t.Errorf("%s, %s: tensor %q is %s, llama-quantize makes %s", name, types[i], want[0], got[want[0]], want[1:])
				}
			}
			if len(got) != len(kinds[types[i]]) || len(got) < 40 {
				t.Errorf("%s, %s: %d tensors, want %d", name, types[i], len(got), len(kinds[types[i]]))
			}
		}
	}
}
