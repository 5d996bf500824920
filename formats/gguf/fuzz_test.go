package gguf

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"
)

// FuzzParse checks that any input is parsed or refused without a panic, with
// memory in proportion to its size, and that what parses can be written and
// parsed again to the same metadata, tensors and data.
func FuzzParse(f *testing.F) {
	root, cases := badCases(f)
	for _, c := range cases {
		if b, err := os.ReadFile(filepath.Join(root, c.Path, c.Entry)); err == nil && len(b) < 1<<16 {
			f.Add(b)
		}
	}
	f.Fuzz(func(t *testing.T, in []byte) {
		before := allocated()
		d, err := Parse(bytes.NewReader(in), int64(len(in)), "fuzz.gguf")
		if n := allocated() - before; n > 100*uint64(len(in))+1<<20 {
			t.Fatalf("%d bytes allocated for %d bytes of input", n, len(in))
		}
		if err != nil {
			if !errors.Is(err, ErrFormat) {
				t.Fatalf("error is not ErrFormat: %v", err)
			}
			return
		}
		rewrite(t, d, in)
	})
}

func allocated() uint64 {
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	return m.TotalAlloc
}

func rewrite(t *testing.T, d *Directory, in []byte) {
	for _, k := range splitKeys {
		d.Metadata.Delete(k)
	}
	if d.Metadata.Len() > maxKeys-len(splitKeys) {
		return
	}
	l, err := NewLayout(d.Metadata, d.Tensors, LayoutOptions{})
	if err != nil {
		t.Fatalf("what parses cannot be laid out: %v", err)
	}
	out := make([]byte, l.Size())
	copy(out, l.Header(0))
	for i := range d.Tensors {
		_, off := l.Place(i)
		copy(out[off:], tensorBytes(d, i, in))
	}
	d2, err := Parse(bytes.NewReader(out), int64(len(out)), "again.gguf")
	if err != nil {
		t.Fatalf("what was written does not parse: %v", err)
	}
	// Types cannot get lost here: an array value keeps its element type.
	same := cmp.Options{cmp.AllowUnexported(Metadata{}), cmpopts.EquateNaNs(), cmpopts.EquateEmpty()}
	if diff := cmp.Diff(d.Metadata, d2.Metadata, same); diff != "" {
		t.Fatalf("metadata differs: %s", diff)
	}
	if diff := cmp.Diff(d.Tensors, d2.Tensors); diff != "" {
		t.Fatalf("tensors differ: %s", diff)
	}
	for i := range d.Tensors {
		if !bytes.Equal(tensorBytes(d, i, in), tensorBytes(d2, i, out)) {
			t.Fatalf("data of tensor %d differs", i)
		}
	}
}

// tensorBytes returns a tensor's data. An empty tensor may lie beyond the end.
func tensorBytes(d *Directory, i int, file []byte) []byte {
	if n := d.Tensors[i].Size(); n > 0 {
		return file[d.Offsets[i]:][:n]
	}
	return nil
}

// BenchmarkParse parses a header with a vocabulary of 200,000 tokens.
func BenchmarkParse(b *testing.B) {
	const n = 200_000
	tokens, types, scores := make([]string, n), make([]int32, n), make([]float32, n)
	for i := range tokens {
		tokens[i] = fmt.Sprintf("token-%d", i)
	}
	meta := &Metadata{}
	meta.Set("tokenizer.ggml.tokens", tokens)
	meta.Set("tokenizer.ggml.token_type", types)
	meta.Set("tokenizer.ggml.scores", scores)
	meta.Set("tokenizer.ggml.merges", tokens)
	tensors := make([]TensorInfo, 1000)
	for i := range tensors {
		tensors[i] = TensorInfo{fmt.Sprintf("blk.%d.ffn_down_exps.weight", i), Q4_K, []int64{0, 7168, 256}}
	}
	l := mustLayout(b, meta, tensors, LayoutOptions{})
	file := l.Header(0)
	b.SetBytes(int64(len(file)))
	b.ReportAllocs()
	for b.Loop() {
		if _, err := Parse(bytes.NewReader(file), int64(len(file)), "bench"); err != nil {
			b.Fatal(err)
		}
	}
}
