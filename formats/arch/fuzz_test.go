package arch

import (
	"bytes"
	"errors"
	"runtime"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/winnow-moe/winnow/formats/gguf"
	"github.com/winnow-moe/winnow/testdata/fixtures"
)

func allocated() uint64 {
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	return m.TotalAlloc
}

// bounded fails when f takes memory out of proportion to n bytes of input.
// The constant covers the tensor list of the largest model that is accepted.
func bounded(t *testing.T, n int, f func()) {
	before := allocated()
	f()
	if used := allocated() - before; used > 200*uint64(n)+32<<20 {
		t.Fatalf("%d bytes allocated for %d bytes of input", used, n)
	}
}

// stable checks that an accepted model survives its metadata.
func stable(t *testing.T, m *Model, md *gguf.Metadata) {
	m.Tensors()
	m.WriteEarlyMetadata(md)
	m.WriteMetadata(md, 0)
	md.Set("tokenizer.ggml.tokens", make([]string, min(m.Params.Vocab, 1<<16)))
	back, err := FromMetadata(md)
	if err != nil {
		t.Fatalf("metadata of an accepted model is refused: %v", err)
	}
	if !cmp.Equal(back.Params, m.Params) {
		t.Fatalf("parameters change on the way through metadata:\n%+v\n%+v", m.Params, back.Params)
	}
}

// FuzzConfig: any text is accepted or refused, without a panic and with little
// memory, and what is accepted survives the way through metadata.
func FuzzConfig(f *testing.F) {
	for _, name := range fixtures.Families(f) {
		f.Add(readConfig(f, fixtures.Family(f, name)))
	}
	deepseek := readConfig(f, fixtures.Family(f, "deepseek_v3"))
	for _, c := range configErrors {
		f.Add(changed(f, deepseek, c.change))
	}
	f.Fuzz(func(t *testing.T, config []byte) {
		bounded(t, len(config), func() {
			for _, mtp := range []bool{false, true} {
				m, err := load(config, mtp)
				if err != nil {
					if !errors.Is(err, ErrUnsupported) {
						t.Fatalf("error is not ErrUnsupported: %v", err)
					}
					continue
				}
				md := &gguf.Metadata{}
				md.Set(gguf.KeyArchitecture, m.Family.Arch)
				stable(t, m, md)
			}
		})
	})
}

// FuzzMetadata does the same with the header of a GGUF file.
func FuzzMetadata(f *testing.F) {
	for _, name := range fixtures.Families(f) {
		l, err := gguf.NewLayout(written((&specimen{name}).model(f, true)), nil, gguf.LayoutOptions{})
		if err != nil {
			f.Fatal(err)
		}
		f.Add(l.Header(0))
	}
	f.Fuzz(func(t *testing.T, file []byte) {
		dir, err := gguf.Parse(bytes.NewReader(file), int64(len(file)), "fuzz.gguf")
		if err != nil {
			return
		}
		bounded(t, len(file), func() {
			m, err := FromMetadata(dir.Metadata)
			if err != nil {
				if !errors.Is(err, ErrUnsupported) {
					t.Fatalf("error is not ErrUnsupported: %v", err)
				}
				return
			}
			stable(t, m, dir.Metadata.Clone())
		})
	})
}
