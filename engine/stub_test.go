package engine

import (
	"context"
	"path/filepath"
	"testing"

	"github.com/winnow-moe/winnow/formats/gguf"
	"github.com/winnow-moe/winnow/testdata/fixtures"
)

// altered is a model with changes: keys set, tensors left out, replaced or
// added, rows observed or falsified.
type altered struct {
	gguf.Model
	md      *gguf.Metadata
	tensors []gguf.TensorInfo
	source  []int // index into Model's directory
	rows    func(t *gguf.TensorInfo, first, n int64, data []byte) ([]byte, error)
	release func(t *gguf.TensorInfo)
}

func alter(t testing.TB, family string) *altered {
	t.Helper()
	f, err := gguf.Open(filepath.Join(fixtures.Family(t, family), "ref-bf16.gguf"))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { f.Close() })
	a := &altered{Model: f, md: f.Metadata().Clone(), tensors: append([]gguf.TensorInfo(nil), f.Tensors()...)}
	for i := range a.tensors {
		a.source = append(a.source, i)
	}
	return a
}

func (a *altered) Metadata() *gguf.Metadata   { return a.md }
func (a *altered) Tensors() []gguf.TensorInfo { return a.tensors }

func (a *altered) Rows(ctx context.Context, i int, first, n int64, buf []byte) ([]byte, error) {
	data, err := a.Model.Rows(ctx, a.source[i], first, n, buf)
	if err == nil && a.rows != nil {
		data, err = a.rows(&a.tensors[i], first, n, data)
	}
	return data, err
}

func (a *altered) Release(i int) {
	if a.release != nil {
		a.release(&a.tensors[i])
	}
}

func (a *altered) find(t testing.TB, name string) int {
	t.Helper()
	for i := range a.tensors {
		if a.tensors[i].Name == name {
			return i
		}
	}
	t.Fatalf("no tensor %q", name)
	return 0
}

func (a *altered) remove(t testing.TB, name string) {
	i := a.find(t, name)
	a.tensors = append(a.tensors[:i], a.tensors[i+1:]...)
	a.source = append(a.source[:i], a.source[i+1:]...)
}

func (a *altered) load(t testing.TB, opt Options) *Model {
	t.Helper()
	m, err := Load(a, opt)
	if err != nil {
		t.Fatal(err)
	}
	return m
}
