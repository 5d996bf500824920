package convert

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"math"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"testing"

	"github.com/winnow-moe/winnow/formats/dtype"
	"github.com/winnow-moe/winnow/formats/gguf"
	"github.com/winnow-moe/winnow/quant"
	"github.com/winnow-moe/winnow/testdata/fixtures"
)

// TestOutputIndependentOfRun: neither threads nor memory nor other outputs
// change a byte. A budget of one byte makes units as small as they get, so
// that tensors, experts and heads are cut at many places.
func TestOutputIndependentOfRun(t *testing.T) {
	dir := fixtures.TinyR1(t)
	types := []string{"Q8_0", "BF16", "Q4_0"}
	var alone []string
	for _, kind := range types {
		alone = append(alone, convertTo(t, dir, RunOptions{Threads: 1}, kind)...)
	}
	for _, opt := range []RunOptions{{}, {Threads: 2, MaxMemory: 1}, {Threads: 7, MaxMemory: 200 << 20}} {
		for i, path := range convertTo(t, dir, opt, types...) {
			sameFiles(t, path, alone[i])
		}
	}
}

// TestUnits: every row of every tensor is worked on once, in file order, by
// units that keep to the limit where a row does.
func TestUnits(t *testing.T) {
	m := loadModel(t, "deepseek_v3", nil, false)
	p, err := inMemory(t, m, literal(m), &quantConfig{}).Plan(Request{})
	must(t, err)
	for _, limit := range []int64{1, 100, 1000, 1 << 20} {
		tensor, row := 0, int64(0)
		for u := range p.units(limit) {
			if info := (&gguf.TensorInfo{Shape: p.Tensors[tensor].Shape}); u.tensor != tensor && row == info.Rows() {
				tensor, row = tensor+1, 0
			}
			if u.tensor != tensor || u.out != row {
				t.Fatalf("limit %d: unit of tensor %d at row %d, want tensor %d, row %d", limit, u.tensor, u.out, tensor, row)
			}
			if size := p.elements(u.piece, u.n); size > limit && u.n > 1 {
				t.Fatalf("limit %d: unit of %d elements", limit, size)
			}
			row += u.n
		}
		if tensor != len(p.Tensors)-1 {
			t.Errorf("limit %d: the last unit belongs to tensor %d of %d", limit, tensor, len(p.Tensors))
		}
		for range p.units(limit) {
			break
		}
	}
}

func TestUnitSize(t *testing.T) {
	for _, c := range []struct {
		budget  int64
		workers int
		outputs int
		want    int64
	}{{0, 1, 1, maxUnit}, {1, 1, 1, minUnit}, {baseMemory, 8, 1, minUnit}, {baseMemory + 20<<20, 10, 1, 1 << 20 / 10}, {baseMemory + 56<<20, 2, 3, 1 << 20}, {1 << 40, 4, 20, maxUnit}} {
		if got := unitSize(c.budget, c.workers, c.outputs); got != c.want {
			t.Errorf("%d bytes, %d workers, %d outputs: %d elements, want %d", c.budget, c.workers, c.outputs, got, c.want)
		}
	}
}

// TestSplitOutput: a split output opens as a set of the same content, and a
// split input as the whole.
func TestSplitOutput(t *testing.T) {
	dir := fixtures.TinyR1(t)
	whole := openGGUF(t, convertTo(t, dir, RunOptions{}, "BF16")[0])
	ck := openCheckpoint(t, dir, CheckpointOptions{})
	req := request(t, t.TempDir(), "BF16")
	req.Layout.MaxShardBytes = 3 << 20
	plan, err := ck.Plan(req)
	must(t, err)
	out := plan.Outputs[0]
	run(t, plan, ck, RunOptions{Inputs: ck.Inputs()})
	if n := out.Layout.Shards(); n < 4 || plan.Summary().Outputs[0].Files != n {
		t.Fatalf("%d shards", n)
	}
	first := out.Layout.Paths(out.Path)[0]
	set := openGGUF(t, first)
	sameMetadata(t, set.Metadata(), whole.Metadata())
	sameRows(t, set, whole)
	if !slices.EqualFunc(set.Tensors(), whole.Tensors(), func(a, b gguf.TensorInfo) bool { return a.Name == b.Name }) {
		t.Error("the order of tensors differs")
	}
	if src := NewGGUFSource(first, set); len(src.Inputs()) != out.Layout.Shards() {
		t.Errorf("inputs %q", src.Inputs())
	}
	sameFiles(t, quantizeTo(t, first, false, "COPY")[0], quantizeTo(t, whole.Parts()[0].Path, false, "COPY")[0])
}

// TestMTPKeep: the tensors of the MTP block are those of the checkpoint.
func TestMTPKeep(t *testing.T) {
	dir := fixtures.Family(t, "deepseek_v3")
	ck := openCheckpoint(t, dir, CheckpointOptions{MTP: "keep"})
	plan, err := ck.Plan(request(t, t.TempDir(), "BF16"))
	must(t, err)
	f := openGGUF(t, run(t, plan, ck, RunOptions{})[0])
	dropped := openGGUF(t, filepath.Join(dir, "ref-bf16.gguf"))
	index := map[string]int{}
	for i, info := range f.Tensors() {
		index[info.Name] = i
	}
	for i, info := range dropped.Tensors() {
		if !slices.Equal(allRows(t, f, index[info.Name]), allRows(t, dropped, i)) {
			t.Errorf("%q differs", info.Name)
		}
	}
	for name, source := range map[string]string{
		"blk.3.nextn.eh_proj.weight":          "model.layers.3.eh_proj.weight",
		"blk.3.nextn.embed_tokens.weight":     "model.layers.3.embed_tokens.weight",
		"blk.3.nextn.shared_head_head.weight": "model.layers.3.shared_head.head.weight",
		"blk.3.attn_q_b.weight":               "model.layers.3.self_attn.q_b_proj.weight",
	} {
		i, ok := ck.inv.Lookup(source)
		if !ok {
			t.Fatalf("no %q", source)
		}
		raw := make([]byte, ck.inv.Tensors[i].bytes(ck.inv.Tensors[i].Rows()*ck.inv.Tensors[i].Cols()))
		must(t, ck.ReadAt(t.Context(), i, 0, raw))
		if got := allRows(t, f, index[name]); !slices.Equal(got, raw) {
			t.Errorf("%q is not %q", name, source)
		}
	}
	if _, err := OpenCheckpoint(dir, CheckpointOptions{MTP: "perhaps"}); !errors.Is(err, ErrRefused) {
		t.Errorf("error %v", err)
	}
}

// values makes BF16 input of a constant for every tensor of a list.
func values(list []Source) memory {
	var data memory
	for i := range list {
		raw := make([]byte, list[i].bytes(list[i].Rows()*list[i].Cols()))
		for j := 0; j < len(raw); j += 2 {
			binary.LittleEndian.PutUint16(raw[j:], dtype.ToBF16(1))
		}
		data = append(data, raw)
	}
	return data
}

// damaged is a checkpoint in memory with a NaN in expert 3 of block 1.
func damaged(t *testing.T) (*Checkpoint, memory) {
	t.Helper()
	m := loadModel(t, "deepseek_v3", nil, false)
	ck := inMemory(t, m, literal(m), &quantConfig{})
	data := values(ck.inv.Tensors)
	i, _ := ck.inv.Lookup("model.layers.1.mlp.experts.3.down_proj.weight")
	// Experts are 64 rows of 32: row 2, column 3 of this one.
	binary.LittleEndian.PutUint16(data[i][2*(2*32+3):], dtype.ToBF16(float32(math.NaN())))
	return ck, data
}

// TestValuesRefused: weights that no type or not this one can hold.
func TestValuesRefused(t *testing.T) {
	ck, data := damaged(t)
	dir := t.TempDir()
	plan, err := ck.Plan(request(t, dir, "F32", "Q8_0"))
	must(t, err)
	err = Run(t.Context(), plan, data, RunOptions{})
	wantRefusal(t, err, ErrInput, "blk.1.ffn_down_exps.weight", "row 194, column 3", "NaN")
	wantEmpty(t, dir)

	i, _ := ck.inv.Lookup("model.layers.1.mlp.experts.3.down_proj.weight")
	binary.LittleEndian.PutUint16(data[i][2*(2*32+3):], dtype.ToBF16(1e6))
	plan, err = ck.Plan(request(t, dir, "F16"))
	must(t, err)
	err = Run(t.Context(), plan, data, RunOptions{})
	wantRefusal(t, err, ErrInput, "blk.1.ffn_down_exps.weight", "F16 row 194, block 3")
	wantEmpty(t, dir)
	plan, err = ck.Plan(request(t, dir, "BF16"))
	must(t, err, Run(t.Context(), plan, data, RunOptions{}))
}

func wantEmpty(t *testing.T, dir string, but ...string) {
	t.Helper()
	left, err := os.ReadDir(dir)
	must(t, err)
	for _, e := range left {
		if !slices.Contains(but, e.Name()) {
			t.Errorf("%q is left behind", e.Name())
		}
	}
}

// fetching notes what is fetched ahead and what is read without.
type fetching struct {
	memory
	mu      sync.Mutex
	fetched [][]bool // byte by byte
	total   int64
	missed  []string
}

func (f *fetching) Prefetch(i int, off, n int64) {
	f.mu.Lock()
	defer f.mu.Unlock()
	for j := off; j < off+n; j++ {
		f.fetched[i][j] = true
	}
	f.total += n
}

func (f *fetching) ReadAt(ctx context.Context, i int, off int64, p []byte) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	if slices.Contains(f.fetched[i][off:off+int64(len(p))], false) {
		f.missed = append(f.missed, fmt.Sprintf("tensor %d, byte %d", i, off))
	}
	return f.memory.ReadAt(ctx, i, off, p)
}

// TestLookahead: all input is fetched once, before it is read, however it is
// rearranged.
func TestLookahead(t *testing.T) {
	for _, family := range []string{"deepseek_v3", "llama"} {
		m := loadModel(t, family, map[string]any{"rope_scaling": nil}, false)
		ck := inMemory(t, m, literal(m), &quantConfig{})
		for _, budget := range []int64{0, 1} {
			f := &fetching{memory: values(ck.inv.Tensors)}
			for _, raw := range f.memory {
				f.fetched = append(f.fetched, make([]bool, len(raw)))
			}
			plan, err := ck.Plan(request(t, t.TempDir(), "F16"))
			must(t, err, Run(t.Context(), plan, f, RunOptions{Threads: 2, MaxMemory: budget}))
			if f.total != plan.inputBytes() || len(f.missed) > 0 {
				t.Errorf("%s, %d bytes of memory: %d of %d bytes were fetched, not %.3q", family, budget, f.total, plan.inputBytes(), f.missed)
			}
		}
	}
}

// unreadable fails to read one tensor.
type unreadable struct {
	memory
	tensor int
}

var errDisk = errors.New("disk on fire")

func (u unreadable) ReadAt(ctx context.Context, i int, off int64, p []byte) error {
	if i == u.tensor {
		return errDisk
	}
	return u.memory.ReadAt(ctx, i, off, p)
}

// TestFailedRun: whatever ends a run, older outputs stay as they are and
// nothing else stays.
func TestFailedRun(t *testing.T) {
	m := loadModel(t, "deepseek_v3", nil, false)
	ck := inMemory(t, m, literal(m), &quantConfig{})
	data := values(ck.inv.Tensors)
	for name, attempt := range map[string]func(p *Plan) error{
		"read error": func(p *Plan) error {
			err := Run(t.Context(), p, unreadable{data, 17}, RunOptions{})
			if !errors.Is(err, errDisk) {
				t.Errorf("error %v", err)
			}
			return err
		},
		"cancelled": func(p *Plan) error {
			ctx, cancel := context.WithCancel(t.Context())
			n := 0
			err := Run(ctx, p, data, RunOptions{Events: Events{Tensor: func(string) {
				if n++; n == 20 {
					cancel()
				}
			}}})
			if !errors.Is(err, context.Canceled) {
				t.Errorf("error %v", err)
			}
			return err
		},
		"cancelled before": func(p *Plan) error {
			ctx, cancel := context.WithCancel(t.Context())
			cancel()
			return Run(ctx, p, data, RunOptions{})
		},
		"no folder for the second output": func(p *Plan) error {
			p.Outputs[1].Path = filepath.Join(filepath.Dir(p.Outputs[1].Path), "none", "x.gguf")
			return Run(t.Context(), p, data, RunOptions{})
		},
		"closed while writing": func(p *Plan) error {
			ex := &execution{plan: p, data: data}
			defer ex.abort()
			w, err := p.Outputs[0].Layout.Create(p.Outputs[0].Path, gguf.CreateOptions{})
			must(t, err)
			w.Abort()
			ex.writers = []*gguf.Writer{w}
			p.Outputs = p.Outputs[:1]
			return ex.run(t.Context())
		},
		"name taken by a folder": func(p *Plan) error {
			path := p.Outputs[0].Path
			p.Outputs = p.Outputs[:1]
			var once sync.Once
			err := Run(t.Context(), p, data, RunOptions{Events: Events{Progress: func(int64, int64) {
				once.Do(func() { must(t, os.Remove(path), os.Mkdir(path, 0o777)) })
			}}})
			must(t, os.Remove(path), os.WriteFile(path, []byte("old"), 0o666))
			return err
		},
	} {
		t.Run(name, func(t *testing.T) {
			dir := t.TempDir()
			plan, err := ck.Plan(request(t, dir, "F32", "BF16"))
			must(t, err, os.WriteFile(plan.Outputs[0].Path, []byte("old"), 0o666))
			old := plan.Outputs[0].Path
			if err := attempt(plan); err == nil {
				t.Error("no error")
			}
			wantEmpty(t, dir, filepath.Base(old))
			if got := string(readFile(t, old)); got != "old" {
				t.Errorf("the older output is %.20q", got)
			}
		})
	}
}

// TestEvents: progress ends at the total and tensors are announced in order.
func TestEvents(t *testing.T) {
	ck := openCheckpoint(t, fixtures.Family(t, "deepseek_v3_fp8"), CheckpointOptions{})
	plan, err := ck.Plan(request(t, t.TempDir(), "BF16"))
	must(t, err)
	var mu sync.Mutex
	var names []string
	top, total := int64(0), int64(0)
	must(t, Run(t.Context(), plan, ck, RunOptions{Threads: 3, Events: Events{
		Tensor: func(name string) { names = append(names, name) },
		Progress: func(done, of int64) {
			mu.Lock()
			top, total = max(top, done), of
			mu.Unlock()
		},
	}}))
	if top != total || total == 0 {
		t.Errorf("progress ends at %d of %d", top, total)
	}
	if !slices.EqualFunc(plan.Tensors, names, func(x Tensor, name string) bool { return x.Name == name }) {
		t.Errorf("announced %q", names)
	}
}

// TestPathsRefused: outputs that would replace an input or each other.
func TestPathsRefused(t *testing.T) {
	path := convertTo(t, fixtures.Family(t, "deepseek_v3"), RunOptions{}, "F32")[0]
	before := hash(readFile(t, path))
	src := NewGGUFSource(path, openGGUF(t, path))
	dir := filepath.Dir(path)
	for name, paths := range map[string][]string{
		"the input":         {path},
		"the input by link": {filepath.Join(dir, "link.gguf")},
		"twice":             {filepath.Join(dir, "a.gguf"), filepath.Join(dir, "a.gguf")},
		"twice, spelt anew": {filepath.Join(dir, "a.gguf"), dir + "/./a.gguf"},
	} {
		t.Run(name, func(t *testing.T) {
			if name == "the input by link" {
				must(t, os.Link(path, paths[0]))
			}
			var req Request
			for _, p := range paths {
				req.Outputs = append(req.Outputs, OutputRequest{Path: p, Recipe: recipe(t, "BF16")})
			}
			plan, err := src.Plan(req)
			must(t, err)
			if err := Run(t.Context(), plan, src, RunOptions{Inputs: src.Inputs()}); err == nil {
				t.Error("no error")
			} else if len(paths) == 2 && name == "twice" && !errors.Is(err, ErrRefused) {
				t.Errorf("error %v", err)
			}
			wantEmpty(t, dir, filepath.Base(path), "link.gguf")
		})
	}
	if hash(readFile(t, path)) != before {
		t.Error("the input has changed")
	}
}

// TestQuantizeRefused: input that a quantization must not or cannot start from.
func TestQuantizeRefused(t *testing.T) {
	path := convertTo(t, fixtures.TinyR1(t), RunOptions{}, "Q8_0")[0]
	src := NewGGUFSource(path, openGGUF(t, path))
	_, err := src.Plan(request(t, t.TempDir(), "Q4_0"))
	wantRefusal(t, err, ErrRefused, "is already Q8_0", "second loss")
	var hint *HintError
	if !errors.As(err, &hint) || hint.Hint == "" || hint.Error() != hint.Unwrap().Error() {
		t.Errorf("hint of %v", err)
	}
	if _, err := src.Plan(request(t, t.TempDir(), "COPY")); err != nil {
		t.Error(err)
	}
	if _, err := src.Plan(request(t, t.TempDir(), "IQ2_XXS")); err == nil {
		t.Error("a type that cannot be written is planned")
	}
	ragged := request(t, t.TempDir(), "Q4_K_M")
	ragged.Quant.NoFallback = true
	if _, err := openCheckpoint(t, fixtures.Family(t, "deepseek_v3"), CheckpointOptions{}).Plan(ragged); err == nil {
		t.Error("rows that do not fit are planned without a fallback")
	}

	empty := filepath.Join(t.TempDir(), "empty.gguf")
	l, err := gguf.NewLayout(&gguf.Metadata{}, nil, gguf.LayoutOptions{})
	must(t, err)
	w, err := l.Create(empty, gguf.CreateOptions{})
	must(t, err, w.Commit())
	_, err = NewGGUFSource(empty, openGGUF(t, empty)).Plan(request(t, t.TempDir(), "Q8_0"))
	wantRefusal(t, err, ErrInput, "general.architecture", "empty.gguf")
}

// TestQuantOptions reach the recipe.
func TestQuantOptions(t *testing.T) {
	ck := openCheckpoint(t, fixtures.TinyR1(t), CheckpointOptions{})
	req := request(t, t.TempDir(), "Q4_K_M")
	o, err := quant.ParseOverride("ffn_down_exps=q8_0")
	must(t, err)
	req.Quant.TensorTypes = []quant.Override{o}
	plan, err := ck.Plan(req)
	must(t, err)
	for i, x := range plan.Tensors {
		if x.Name == "blk.1.ffn_down_exps.weight" && plan.Info(0, i).Type != gguf.Q8_0 {
			t.Errorf("%v", plan.Info(0, i))
		}
	}
}
