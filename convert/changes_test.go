package convert

import (
	"context"
	"encoding/json"
	"errors"
	"math"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"sync/atomic"
	"testing"

	"github.com/winnow-moe/winnow/convert/experts"
	"github.com/winnow-moe/winnow/formats/arch"
	"github.com/winnow-moe/winnow/formats/calib"
	"github.com/winnow-moe/winnow/formats/dtype"
	"github.com/winnow-moe/winnow/formats/gguf"
	"github.com/winnow-moe/winnow/formats/safetensors"
	"github.com/winnow-moe/winnow/quant"
	"github.com/winnow-moe/winnow/testdata/fixtures"
)

// testChanges are the rows of a model, with something added to some of them.
type testChanges struct {
	m   gguf.Model
	has *regexp.Regexp
	// add is what is added to all elements of a row; nil: nothing.
	add func(name string, row int64) float32
}

func (c *testChanges) Has(name string) bool { return c.has.MatchString(name) }

func (c *testChanges) Rows(ctx context.Context, name string, first, n int64, dst []float32) error {
	i := slices.IndexFunc(c.m.Tensors(), func(t gguf.TensorInfo) bool { return t.Name == name })
	raw, err := c.m.Rows(ctx, i, first, n, nil)
	if err != nil {
		return err
	}
	if err := quant.DecodeRows(c.m.Tensors()[i].Type, dst, raw); err != nil {
		return err
	}
	for r := range n {
		if c.add == nil {
			break
		}
		cols := int64(len(dst)) / n
		for k := range dst[r*cols : (r+1)*cols] {
			dst[r*cols+int64(k)] += c.add(name, first+r)
		}
	}
	return nil
}

// networks matches the weights and biases of routed experts.
var networks = regexp.MustCompile(`^blk\.\d+\.ffn_(gate|up|down|gate_up)_exps\.(weight|bias)$`)

// asModel is a checkpoint as the model that its float32 file is.
func asModel(t testing.TB, ck *Checkpoint) *View {
	t.Helper()
	plan, err := ck.Plan(request(t, t.TempDir(), "F32"))
	must(t, err)
	return NewView(plan, 0, ck, nil)
}

// changeTo makes files of a checkpoint with changes and of those experts that stay.
func changeTo(t *testing.T, ck *Checkpoint, ch Changes, keep *experts.KeepList, types ...string) []string {
	t.Helper()
	req := request(t, t.TempDir(), types...)
	req.Changes, req.Experts = ch, keep
	plan, err := ck.Plan(req)
	must(t, err)
	paths := run(t, plan, ck, RunOptions{})
	for o, path := range paths {
		sameRows(t, NewView(plan, o, ck, nil), openGGUF(t, path))
	}
	return paths
}

// changeFile makes a file of another one with changes, in the types that it has.
func changeFile(t *testing.T, path string, ch Changes, keep func(*arch.Params) *experts.KeepList, imp *Importance) string {
	t.Helper()
	src := NewGGUFSource(path, openGGUF(t, path))
	m, err := src.Model()
	must(t, err)
	req := request(t, t.TempDir(), "COPY")
	req.Changes, req.Experts, req.Importance = ch, keep(&m.Params), imp
	plan, err := src.Plan(req)
	must(t, err)
	return run(t, plan, src, RunOptions{Inputs: src.Inputs()})[0]
}

// changeFolder makes a folder with changes.
func changeFolder(t *testing.T, ck *Checkpoint, ch Changes, keep *experts.KeepList) (string, error) {
	t.Helper()
	plan, err := ck.PlanFolder(keep, ch)
	if err != nil {
		return "", err
	}
	to := filepath.Join(t.TempDir(), filepath.Base(ck.Dir))
	must(t, RunFolder(t.Context(), plan, ck, to, RunOptions{}))
	return to, nil
}

// moeForms are the family fixtures with routed experts, and such in packed forms.
func moeForms(t *testing.T) map[string]string {
	dirs := moeFamilies(t)
	for form := range packedForms(t) {
		dir := packedDir(t, form)
		if openCheckpoint(t, dir, CheckpointOptions{}).Model.Params.Experts > 0 {
			dirs["packed "+form] = dir
		}
	}
	return dirs
}

// TestChangeNothing: changes that give a model's own weights leave its files and
// folders as they are, in every family, form and type.
func TestChangeNothing(t *testing.T) {
	types := []string{"F32", "BF16", "Q4_0", "Q4_K_M"}
	folders := 0
	for name, dir := range moeForms(t) {
		t.Run(name, func(t *testing.T) {
			var opt CheckpointOptions
			if name == "deepseek_v3" { // a block of which a keep-list would have to say what becomes of it
				opt.MTP = "keep"
			}
			ck := openCheckpoint(t, dir, opt)
			keep := keepSome(&ck.Model.Params)
			ch := &testChanges{m: asModel(t, ck), has: networks}
			if strings.HasPrefix(name, "packed nvfp4") {
				_, err := ck.Plan(Request{Outputs: request(t, t.TempDir(), "F32").Outputs, Changes: ch})
				var hint *HintError
				if !errors.Is(err, ErrRefused) || !errors.As(err, &hint) || !strings.Contains(err.Error(), "factors") {
					t.Errorf("weights with factors: error %v", err)
				}
				return
			}
			want := changeTo(t, ck, nil, keep, types...)
			for i, path := range changeTo(t, ck, ch, keep, types...) {
				sameFiles(t, path, want[i])
			}
			for _, path := range changeTo(t, ck, nil, nil, types...) {
				f := openGGUF(t, path)
				sameFiles(t, changeFile(t, path, &testChanges{m: f, has: networks}, keepSome, nil), pruneFile(t, path, keepSome))
			}
			got, err := changeFolder(t, ck, ch, keep)
			if stored := ck.inv.Tensors[expertSource(ck)].packed; stored != nil && stored.String() != "F8_E4M3" {
				var hint *HintError
				if !errors.Is(err, ErrRefused) || !errors.As(err, &hint) || !strings.Contains(err.Error(), stored.String()) {
					t.Errorf("weights in %s: error %v", stored, err)
				}
				return
			}
			must(t, err)
			folders++
			plain, err := changeFolder(t, ck, nil, keep)
			must(t, err)
			files, err := filepath.Glob(filepath.Join(plain, "*"))
			must(t, err)
			for _, path := range files {
				sameFiles(t, filepath.Join(got, filepath.Base(path)), path)
			}
		})
	}
	if folders < 16 {
		t.Errorf("only %d folders", folders)
	}
}

// expertSource is a tensor of the checkpoint with weights of experts.
func expertSource(ck *Checkpoint) int {
	i := slices.IndexFunc(ck.tensors, func(t Tensor) bool { return strings.Contains(t.Name, "_exps.weight") })
	return ck.tensors[i].Pieces[0].Source
}

// addedTo says which rows of tensors belong to expert 2 of the blocks, but for
// those whose gate and up projections change only in the latter.
func addedTo(m gguf.Model, experts int64) func(name string, row int64) float32 {
	rows := map[string]int64{}
	for _, t := range m.Tensors() {
		rows[t.Name] = t.Rows()
	}
	return func(name string, row int64) float32 {
		if networks.MatchString(name) && !strings.Contains(name, "gate_exps") && row/(rows[name]/experts) == 2 {
			return 1
		}
		return 0
	}
}

// checkAdded compares the experts' weights in a file of the pruned model with
// those of the whole one to which something was added, rounded by round.
func checkAdded(t *testing.T, got, whole gguf.Model, keep *experts.KeepList, add func(string, int64) float32, round func(float32) float32) {
	t.Helper()
	changed := 0
	for i, info := range got.Tensors() {
		j := slices.IndexFunc(whole.Tensors(), func(x gguf.TensorInfo) bool { return x.Name == info.Name })
		was := whole.Tensors()[j]
		if !networks.MatchString(info.Name) {
			continue
		}
		cols, perExpert := info.RowLen(), was.Rows()/int64(keep.Experts)
		now, before := make([]float32, info.Elements()), make([]float32, was.Elements())
		must(t, quant.DecodeRows(info.Type, now, allRows(t, got, i)), quant.DecodeRows(was.Type, before, allRows(t, whole, j)))
		for k, id := range keep.Blocks[arch.ParseName(info.Name).Layer] {
			for r := range perExpert {
				more := add(info.Name, int64(id)*perExpert+r)
				for c := range cols {
					want := before[(int64(id)*perExpert+r)*cols+c]
					if more != 0 {
						changed++
						want = round(want + more)
					}
					if v := now[(int64(k)*perExpert+r)*cols+c]; v != want {
						t.Fatalf("%s, expert %d, row %d, column %d: %v, want %v", info.Name, id, r, c, v, want)
					}
				}
			}
		}
	}
	if changed == 0 {
		t.Error("nothing was added")
	}
}

// keepBut keeps every expert but one.
func keepBut(id int) func(*arch.Params) *experts.KeepList {
	return func(p *arch.Params) *experts.KeepList {
		k := &experts.KeepList{Experts: p.Experts, Blocks: map[int][]int{}, Flatten: p.ExpertGroups > 1}
		if p.NextnLayers > 0 {
			k.MTP = "prune"
		}
		for l := range p.Layers {
			for e := range p.Experts {
				if p.MoE(l) && e != id {
					k.Blocks[l] = append(k.Blocks[l], e)
				}
			}
		}
		return k
	}
}

// TestChangeExpert: what is added to one expert is added to this one, in files
// and in folders, and nothing else changes.
func TestChangeExpert(t *testing.T) {
	for _, name := range []string{"qwen3_moe", "mixtral", "llama4_scout", "gemma4_moe", "gpt_oss_bf16", "ernie4_5_moe", "deepseek_v3"} {
		t.Run(name, func(t *testing.T) {
			dir := fixture(t, name)
			var opt CheckpointOptions
			if name == "deepseek_v3" {
				opt.MTP = "keep"
			}
			ck := openCheckpoint(t, dir, opt)
			keep, whole := keepBut(1)(&ck.Model.Params), asModel(t, ck)
			ch := &testChanges{m: whole, has: networks, add: addedTo(whole, int64(ck.Model.Params.Experts))}
			checkAdded(t, openGGUF(t, changeTo(t, ck, ch, keep, "F32")[0]), whole, keep, ch.add, func(x float32) float32 { return x })

			folder, err := changeFolder(t, ck, ch, keep)
			must(t, err)
			round := func(x float32) float32 { return x }
			if typ, ok := ck.inv.Tensors[expertSource(ck)].Storage.blocks(); ok && typ != gguf.F32 {
				round = func(x float32) float32 {
					raw, out := make([]byte, 2), make([]float32, 1)
					must(t, quant.EncodeRows(typ, raw, []float32{x}, 1, nil), quant.DecodeRows(typ, out, raw))
					return out[0]
				}
			}
			checkAdded(t, asModel(t, openCheckpoint(t, folder, opt)), whole, keep, ch.add, round)
		})
	}
}

func fixture(t *testing.T, name string) string {
	t.Helper()
	if !slices.Contains(fixtures.Families(t), name) {
		t.Fatalf("no fixture %q among %q", name, fixtures.Families(t))
	}
	return fixtures.Family(t, name)
}

// TestChangeBlocks: a file that keeps its types has of rows that change what
// quant makes of their new values, and of all others its bytes.
func TestChangeBlocks(t *testing.T) {
	dir := fixtures.TinyR1(t)
	ck := openCheckpoint(t, dir, CheckpointOptions{})
	matrix := someImportance(ck.Model)
	imp := &Importance{Matrix: matrix, File: "x"}
	for _, typ := range []string{"Q4_K_M", "IQ2_XXS"} {
		t.Run(typ, func(t *testing.T) {
			req := request(t, t.TempDir(), typ)
			req.Importance = imp
			plan, err := ck.Plan(req)
			must(t, err)
			whole := openGGUF(t, run(t, plan, ck, RunOptions{})[0])
			path := req.Outputs[0].Path
			ch := &testChanges{m: whole, has: networks, add: addedTo(whole, int64(ck.Model.Params.Experts))}
			for _, imp := range []*Importance{nil, imp} {
				if typ == "IQ2_XXS" && imp == nil {
					continue
				}
				got := openGGUF(t, changeFile(t, path, ch, keepBut(1), imp))
				checkBlocks(t, got, whole, ch, imp)
			}
		})
	}
}

func checkBlocks(t *testing.T, got, whole *gguf.File, ch *testChanges, imp *Importance) {
	t.Helper()
	for i, info := range got.Tensors() {
		j := slices.IndexFunc(whole.Tensors(), func(x gguf.TensorInfo) bool { return x.Name == info.Name })
		was := whole.Tensors()[j]
		if was.Type != info.Type {
			t.Fatalf("%s became %s", info.Name, info.Type)
		}
		if !networks.MatchString(info.Name) {
			continue
		}
		old, now := allRows(t, whole, j), allRows(t, got, i)
		cols, rows, size := info.RowLen(), info.Shape[1], info.RowBytes()
		var weights []float32
		if imp != nil {
			var err error
			weights, err = imp.Matrix.Weights(info.Name, int(cols), int(was.Shape[2]))
			must(t, err)
		}
		for e := range was.Shape[2] {
			k := e
			switch {
			case e == 1:
				continue
			case e > 1:
				k--
			}
			var of []float32
			if weights != nil {
				of = weights[e*cols : (e+1)*cols]
			}
			for r := range rows {
				want := slices.Clone(old[(e*rows+r)*size:][:size])
				if more := ch.add(info.Name, e*rows+r); more != 0 {
					values := make([]float32, cols)
					must(t, quant.DecodeRows(info.Type, values, want))
					for c := range values {
						values[c] += more
					}
					must(t, quant.EncodeRows(info.Type, want, values, int(cols), of))
				}
				if !slices.Equal(now[(k*rows+r)*size:][:size], want) {
					t.Fatalf("%s %s: expert %d, row %d differs", info.Name, info.Type, e, r)
				}
			}
		}
	}
}

// TestChangeSource: what is changed counts as read, progress comes to its end, and
// the checkpoint's list of tensors stays as it is.
func TestChangeSource(t *testing.T) {
	ck := openCheckpoint(t, fixture(t, "qwen3_moe"), CheckpointOptions{})
	ch := &testChanges{m: asModel(t, ck), has: networks}
	req := request(t, t.TempDir(), "F32")
	plain, err := ck.Plan(req)
	must(t, err)
	req.Changes = ch
	plan, err := ck.Plan(req)
	must(t, err)
	if a, b := plan.SourceBytes(), plain.SourceBytes(); a != b {
		t.Errorf("%d bytes to read, want %d", a, b)
	}
	if a, b := plan.SourceExpertBytes(ck.Model, 9), plain.SourceExpertBytes(ck.Model, 9); a != b {
		t.Errorf("bytes %v, want %v", a, b)
	}
	var done, total atomic.Int64
	run(t, plan, ck, RunOptions{Events: Events{Progress: func(n, of int64) {
		total.Store(of)
		for m := done.Load(); n > m && !done.CompareAndSwap(m, n); m = done.Load() {
		}
	}}})
	if done.Load() != total.Load() || total.Load() == 0 {
		t.Errorf("%d of %d bytes done", done.Load(), total.Load())
	}
	if n := len(ck.inv.Tensors); n != len(plain.inv.Tensors) || n == len(plan.inv.Tensors) {
		t.Error("a plan changes the checkpoint")
	}
}

// TestChangedModel: a model with changes has their values in float32, and
// everything else as it is.
func TestChangedModel(t *testing.T) {
	path := convertTo(t, fixture(t, "gpt_oss"), RunOptions{}, "Q8_0")[0]
	f := openGGUF(t, path)
	if Changed(f, nil) != gguf.Model(f) {
		t.Error("no changes make another model")
	}
	closed := &closer{Model: f}
	ch := &testChanges{m: f, has: networks, add: addedTo(f, 4)}
	m := Changed(closed, ch)
	n := 0
	for i, info := range m.Tensors() {
		was := f.Tensors()[i]
		if !networks.MatchString(info.Name) {
			if info.Type != was.Type || !slices.Equal(allRows(t, m, i), allRows(t, f, i)) {
				t.Errorf("%s differs", info.Name)
			}
			continue
		}
		n++
		if info.Type != gguf.F32 || !slices.Equal(info.Shape, was.Shape) {
			t.Fatalf("%v, before %v", info, was)
		}
		got, want := make([]float32, info.RowLen()), make([]float32, info.RowLen())
		for _, row := range []int64{0, info.Rows() / 2, info.Rows() - 1} {
			raw, err := m.Rows(t.Context(), i, row, 1, nil)
			must(t, err, quant.DecodeRows(gguf.F32, got, raw), ch.Rows(t.Context(), info.Name, row, 1, want))
			if !slices.Equal(got, want) {
				t.Errorf("%s: row %d differs", info.Name, row)
			}
		}
		if _, err := m.Rows(t.Context(), i, info.Rows(), 1, nil); err == nil {
			t.Error("a row behind the last is read")
		}
	}
	if n == 0 {
		t.Error("nothing changed")
	}
	ch.add = func(string, int64) float32 { return float32(math.NaN()) }
	i := slices.IndexFunc(m.Tensors(), func(t gguf.TensorInfo) bool { return networks.MatchString(t.Name) })
	if _, err := m.Rows(t.Context(), i, 0, 1, nil); !errors.Is(err, ErrInput) {
		t.Errorf("NaN: error %v", err)
	}
	m.Release(3)
	must(t, m.Close())
	if closed.released != 3 || !closed.closed {
		t.Error("Release and Close are not passed on")
	}
}

// closer notes what it is told.
type closer struct {
	gguf.Model
	released int
	closed   bool
}

func (c *closer) Release(i int) { c.released = i }
func (c *closer) Close() error  { c.closed = true; return nil }

// TestChangeErrors: what cannot be changed is refused before anything is
// written, and what is no number while it is.
func TestChangeErrors(t *testing.T) {
	ck := openCheckpoint(t, fixture(t, "mixtral"), CheckpointOptions{})
	keep, model := keepSome(&ck.Model.Params), asModel(t, ck)
	all := regexp.MustCompile("attn_q|ffn_up_exps")
	for _, c := range []struct {
		plan  func() error
		kind  error
		words string
	}{
		{func() error { _, err := ck.PlanFolder(keep, &testChanges{m: model, has: all}); return err }, ErrRefused, "attn_q.weight"},
		{func() error {
			req := request(t, t.TempDir(), "F32")
			req.Experts = merged(keep, "ream")
			_, err := ck.Plan(req)
			return err
		}, ErrRefused, "must be computed"},
		{func() error { _, err := PruneStatistics(ck.Model, merged(keep, "ream"), nil); return err }, ErrRefused, "says nothing about"},
	} {
		if err := c.plan(); !errors.Is(err, c.kind) || !strings.Contains(err.Error(), c.words) {
			t.Errorf("error %v, want one with %q", err, c.words)
		}
	}

	bad := &testChanges{m: model, has: networks, add: func(name string, row int64) float32 {
		if strings.Contains(name, "ffn_up_exps") && row == 5 {
			return float32(math.Inf(1))
		}
		return 0
	}}
	req := request(t, t.TempDir(), "Q8_0")
	req.Changes = bad
	plan, err := ck.Plan(req)
	must(t, err)
	if err := Run(t.Context(), plan, ck, RunOptions{}); !errors.Is(err, ErrInput) || !strings.Contains(err.Error(), `ffn_up_exps.weight": the value at row 5, column 0`) {
		t.Errorf("an infinite weight: %v", err)
	}
	folder, err := ck.PlanFolder(keep, bad)
	must(t, err)
	to := filepath.Join(t.TempDir(), "x")
	if err := RunFolder(t.Context(), folder, ck, to, RunOptions{}); !errors.Is(err, ErrInput) || !strings.Contains(err.Error(), "row 5, column 0") {
		t.Errorf("an infinite weight: %v", err)
	}
	if left, _ := filepath.Glob(to + "*"); left != nil {
		t.Errorf("%q is left", left)
	}
}

// TestChangeNeedsImportance: a type that is not made without an importance
// matrix is not made anew without one.
func TestChangeNeedsImportance(t *testing.T) {
	ck := openCheckpoint(t, fixtures.TinyR1(t), CheckpointOptions{})
	req := request(t, t.TempDir(), "IQ2_XXS")
	req.Importance = &Importance{Matrix: someImportance(ck.Model), File: "x"}
	plan, err := ck.Plan(req)
	must(t, err)
	path := run(t, plan, ck, RunOptions{})[0]
	src := NewGGUFSource(path, openGGUF(t, path))
	req = request(t, t.TempDir(), "COPY")
	req.Changes = &testChanges{m: src.file, has: networks}
	var hint *HintError
	if _, err = src.Plan(req); !errors.Is(err, ErrRefused) || !errors.As(err, &hint) || !strings.Contains(err.Error(), "importance matrix") || !strings.Contains(hint.Hint, "--imatrix") {
		t.Errorf("without importance: %v", err)
	}
	req.Importance = &Importance{Matrix: &calib.Matrix{}, File: "x"}
	if _, err = src.Plan(req); !errors.Is(err, ErrRefused) {
		t.Errorf("with importance of something else: %v", err)
	}
}

// merged makes a keep-list one of a merge in which every expert that goes joins the
// first that stays.
func merged(k *experts.KeepList, method string) *experts.KeepList {
	out := *k
	out.Flatten = false
	out.Merge = &experts.Merging{Method: method, Groups: map[int][]experts.Group{}}
	for l, ids := range k.Blocks {
		for i, center := range ids {
			g := experts.Group{Center: center, Members: []int{center}, Weights: []float64{1}}
			if i == 0 {
				for e := range k.Experts {
					if !slices.Contains(ids, e) {
						g.Members = append(g.Members, e)
					}
				}
				slices.Sort(g.Members)
				g.Weights = slices.Repeat([]float64{1 / float64(len(g.Members))}, len(g.Members))
			}
			out.Merge.Groups[l] = append(out.Merge.Groups[l], g)
		}
	}
	return &out
}

// TestMerged: files and folders record that experts were merged, keep it, and
// are not merged again.
func TestMerged(t *testing.T) {
	ck := openCheckpoint(t, fixture(t, "qwen3_moe"), CheckpointOptions{})
	ch, keep := &testChanges{m: asModel(t, ck), has: networks}, merged(keepSome(&ck.Model.Params), "ream")
	plan, err := ck.PlanFolder(keep, ch)
	must(t, err)
	folder := filepath.Join(t.TempDir(), "x")
	must(t, RunFolder(t.Context(), plan, ck, folder, RunOptions{}))
	once := openCheckpoint(t, folder, CheckpointOptions{})
	req := request(t, t.TempDir(), "F32")
	req.Changes, req.Experts = ch, keep
	direct, err := ck.Plan(req)
	must(t, err)
	path := run(t, direct, ck, RunOptions{})[0]
	for _, path := range []string{path, convertTo(t, folder, RunOptions{}, "F32")[0], quantizeTo(t, path, false, "Q8_0")[0]} {
		src := NewGGUFSource(path, openGGUF(t, path))
		if got := src.Merged(); got != "ream" {
			t.Errorf("%s: merged %q", path, got)
		}
		again := request(t, t.TempDir(), "COPY")
		m, err := src.Model()
		must(t, err)
		again.Experts, again.Changes = merged(keepSome(&m.Params), "mean"), ch
		if _, err := src.Plan(again); !errors.Is(err, ErrInput) || !strings.Contains(err.Error(), "merged already (ream)") {
			t.Errorf("merged twice: %v", err)
		}
	}
	if once.Merged() != "ream" || ck.Merged() != "" || NotMerged(ck.Merged()) != nil {
		t.Errorf("merged %q from %q", once.Merged(), ck.Merged())
	}
	if _, err := once.PlanFolder(merged(keepSome(&once.Model.Params), "mean"), ch); !errors.Is(err, ErrInput) {
		t.Errorf("merged twice: %v", err)
	}
	keys := openGGUF(t, path).Metadata().Keys()
	if i := slices.Index(keys, arch.KeyMerged); i < 1 || keys[i-1] != arch.KeyExpertsBefore {
		t.Errorf("keys %q", keys)
	}
	if _, err := OpenCheckpoint(copyFixture(t, folder, map[string]any{configMerged: 3}), CheckpointOptions{}); !errors.Is(err, ErrInput) {
		t.Errorf("a merge by a number: %v", err)
	}
}

// TestChangeNotes: it is said where weights that a block type holds are encoded anew.
func TestChangeNotes(t *testing.T) {
	ck := openCheckpoint(t, fixture(t, "gpt_oss"), CheckpointOptions{})
	req := request(t, t.TempDir(), "Q8_0")
	req.Changes = &testChanges{m: asModel(t, ck), has: networks}
	for allow, want := range map[bool]string{false: "what differs is encoded anew as MXFP4", true: "they are encoded anew as Q8_0"} {
		req.AllowRequantize = allow
		plan, err := ck.Plan(req)
		must(t, err)
		if !slices.ContainsFunc(plan.Notes, func(s string) bool { return strings.Contains(s, want) }) {
			t.Errorf("notes %q, want one with %q", plan.Notes, want)
		}
	}
}

// TestF8Blocks compares blocks with those that PyTorch makes (testdata/f8block.py).
func TestF8Blocks(t *testing.T) {
	var cases []struct {
		Type           string
		Rows, Cols     int64
		Block          [2]int64
		Values, Scales []float32
		Codes          []int
	}
	must(t, json.Unmarshal(readFile(t, filepath.Join("testdata", "f8block.json")), &cases))
	for _, c := range cases {
		typ, _ := dtype.Parse(c.Type)
		r := &rewriter{values: c.Values, was: make([]float32, len(c.Values)), raw: make([]byte, len(c.Values))}
		for i := range r.was {
			r.was[i] = 7 // nothing stays
		}
		for r0 := int64(0); r0 < c.Rows; r0 += c.Block[0] {
			for c0 := int64(0); c0 < c.Cols; c0 += c.Block[1] {
				stored, scale := make([]byte, typ.Bits()/8), make([]float32, 1)
				b := block{r0, min(c.Rows, r0+c.Block[0]), c0, min(c.Cols, c0+c.Block[1]), c.Cols}
				must(t, r.encodeBlock(b, typ, stored), dtype.Decode(typ, scale, stored))
				if scale[0] != c.Scales[0] {
					t.Errorf("%s: the scale at row %d, column %d is %v, want %v", c.Type, r0, c0, scale[0], c.Scales[0])
				}
				c.Scales = c.Scales[1:]
			}
		}
		for i, code := range r.raw {
			if int(code) != c.Codes[i] {
				t.Errorf("%s: the code of %v is %#02x, want %#02x", c.Type, c.Values[i], code, c.Codes[i])
			}
		}
	}
}

// f8Experts copies a checkpoint of bfloat16 with its experts in 8-bit floats that
// have a scale of a type for each block, which are 0.001, 0.002 and so on.
func f8Experts(t *testing.T, dir string, block [2]int64, typ dtype.Type, settings map[string]any) string {
	t.Helper()
	to := copyFixture(t, dir, map[string]any{"quantization_config": settings})
	files, err := safetensors.Open(dir)
	must(t, err)
	defer files.Close()
	var list []safetensors.Tensor
	var data [][]byte
	for i, info := range files.Tensors() {
		raw := make([]byte, info.Size)
		must(t, files.ReadAt(i, 0, raw))
		if !strings.Contains(info.Name, ".experts.") {
			list, data = append(list, info), append(data, raw)
			continue
		}
		values := make([]float32, len(raw)/2)
		must(t, dtype.Decode(dtype.BF16, values, raw))
		rows, cols := info.Shape[0], info.Shape[1]
		grid := []int64{ceilDiv(rows, block[0]), ceilDiv(cols, block[1])}
		scales := make([]float32, grid[0]*grid[1])
		for k := range scales {
			scales[k] = float32(k+1) / 1000
		}
		stored := make([]byte, len(scales)*typ.Bits()/8)
		if typ == dtype.BF16 {
			dtype.EncodeBF16(stored, scales)
		} else {
			dtype.EncodeF32(stored, scales)
		}
		codes := make([]byte, len(values))
		for k, v := range values {
			codes[k] = dtype.ToF8E4M3(v / scales[int64(k)/cols/block[0]*grid[1]+int64(k)%cols/block[1]])
		}
		list = append(list, safetensors.Tensor{Name: info.Name, DType: dtype.F8E4M3, Shape: info.Shape}, safetensors.Tensor{Name: info.Name + "_scale", DType: typ, Shape: grid})
		data = append(data, codes, stored)
	}
	layout, err := safetensors.NewLayout(list, nil, 0)
	must(t, err)
	w, err := layout.CreateFile(filepath.Join(to, "model.safetensors"))
	must(t, err)
	for i := range data {
		must(t, w.WriteAt(i, 0, data[i]))
	}
	must(t, w.Commit())
	return to
}

// TestChangeF8: experts of a checkpoint in 8-bit floats are written in them, as
// near as these are, and blocks that do not change keep their bytes.
func TestChangeF8(t *testing.T) {
	bf16 := fixture(t, "qwen3_moe")
	weights := func(more map[string]any) map[string]any {
		more["num_bits"], more["type"] = 8, "float"
		return map[string]any{"quant_method": "compressed-tensors", "format": "float-quantized",
			"config_groups": map[string]any{"group_0": map[string]any{"targets": []any{"Linear"}, "weights": more}}}
	}
	const all = 1 << 20
	for name, c := range map[string]struct {
		dir   string
		block [2]int64
	}{
		"tiny-r1": {fixtures.TinyR1(t), [2]int64{128, 128}},
		"family":  {fixture(t, "deepseek_v3_fp8"), [2]int64{128, 128}},
		"channel": {f8Experts(t, bf16, [2]int64{1, all}, dtype.BF16, weights(map[string]any{"strategy": "channel"})), [2]int64{1, all}},
		"tensor":  {f8Experts(t, bf16, [2]int64{all, all}, dtype.F32, map[string]any{"quant_method": "fp8"}), [2]int64{all, all}},
		"edges":   {f8Experts(t, bf16, [2]int64{24, 20}, dtype.F32, weights(map[string]any{"strategy": "block", "block_structure": []any{24, 20}})), [2]int64{24, 20}},
	} {
		t.Run(name, func(t *testing.T) {
			ck := openCheckpoint(t, c.dir, CheckpointOptions{MTP: "keep"})
			if format := ck.inv.Tensors[expertSource(ck)].format(); format != "F8_E4M3" {
				t.Fatalf("experts are %s", format)
			}
			keep, whole := keepBut(1)(&ck.Model.Params), asModel(t, ck)
			ch := &testChanges{m: whole, has: networks, add: addedTo(whole, int64(ck.Model.Params.Experts))}
			folder, err := changeFolder(t, ck, ch, keep)
			must(t, err)
			got := asModel(t, openCheckpoint(t, folder, CheckpointOptions{MTP: "keep"}))
			changed := 0
			for i, info := range got.Tensors() {
				if networks.MatchString(info.Name) {
					changed += checkF8(t, got, i, whole, ch, keep, c.block)
				}
			}
			if changed == 0 {
				t.Error("nothing was added")
			}
		})
	}
}

// checkF8 compares tensor i of what was written with what was asked for, and
// returns the number of its experts that changed.
func checkF8(t *testing.T, got gguf.Model, i int, whole gguf.Model, ch *testChanges, keep *experts.KeepList, block [2]int64) (changed int) {
	t.Helper()
	info := got.Tensors()[i]
	j := slices.IndexFunc(whole.Tensors(), func(x gguf.TensorInfo) bool { return x.Name == info.Name })
	rows, cols := info.Shape[1], info.RowLen()
	now, want := make([]float32, rows*cols), make([]float32, rows*cols)
	for k, id := range keep.Blocks[arch.ParseName(info.Name).Layer] {
		raw, err := got.Rows(t.Context(), i, int64(k)*rows, rows, nil)
		must(t, err, quant.DecodeRows(gguf.F32, now, raw))
		raw, err = whole.Rows(t.Context(), j, int64(id)*rows, rows, nil)
		must(t, err, quant.DecodeRows(gguf.F32, want, raw))
		if ch.add(info.Name, int64(id)*rows) == 0 {
			if !slices.Equal(now, want) {
				t.Fatalf("%s: expert %d differs", info.Name, id)
			}
			continue
		}
		changed++
		for n := range want {
			want[n]++
		}
		nearF8(t, info.Name, now, want, cols, block)
	}
	return changed
}

// nearF8 compares values with what was asked for: they are half a unit of three
// bits of mantissa, or of the smallest code, apart at most. The scale may be 1/256
// smaller than the largest value needs.
func nearF8(t *testing.T, name string, got, want []float32, cols int64, block [2]int64) {
	t.Helper()
	largest := map[[2]int64]float64{}
	at := func(n int) [2]int64 { return [2]int64{int64(n) / cols / block[0], int64(n) % cols / block[1]} }
	for n, v := range want {
		largest[at(n)] = max(largest[at(n)], math.Abs(float64(v)))
	}
	for n, v := range want {
		scale := largest[at(n)] / 448
		allowed := max(math.Abs(float64(v))/16, scale/1024) * (1 + 1.0/256)
		if diff := math.Abs(float64(got[n]) - float64(v)); diff > allowed {
			t.Fatalf("%s: %v became %v, scale %g", name, v, got[n], scale)
		}
	}
}
