package convert

import (
	"bytes"
	"errors"
	"math"
	"math/rand/v2"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"

	"github.com/winnow-moe/winnow/convert/experts"
	"github.com/winnow-moe/winnow/formats/arch"
	"github.com/winnow-moe/winnow/formats/calib"
	"github.com/winnow-moe/winnow/formats/gguf"
	"github.com/winnow-moe/winnow/testdata/fixtures"
)

// keepSome keeps of every block other experts: every one whose number within
// its group is not the block's, modulo the size of the group.
func keepSome(p *arch.Params) *experts.KeepList {
	groups := max(1, p.ExpertGroups)
	per := p.Experts / groups
	k := &experts.KeepList{Experts: p.Experts, Blocks: map[int][]int{}, Flatten: per-1 < 2 && groups > 1}
	if p.NextnLayers > 0 {
		k.MTP = "prune"
	}
	for l := range p.Layers {
		for e := range p.Experts {
			if p.MoE(l) && e%per != (l+1)%per {
				k.Blocks[l] = append(k.Blocks[l], e)
			}
		}
	}
	return k
}

// moeFamilies are the family fixtures with routed experts.
func moeFamilies(t *testing.T) map[string]string {
	dirs := map[string]string{}
	for _, name := range fixtures.Families(t) {
		dir := fixtures.Family(t, name)
		ck := openCheckpoint(t, dir, CheckpointOptions{})
		// Runtimes tell that queries and keys have no norm by the number of experts.
		if p := &ck.Model.Params; p.Experts > 0 && !p.NoQKNorm && p.Experts-max(1, p.ExpertGroups) >= p.ExpertsUsed {
			dirs[name] = dir
		}
	}
	if len(dirs) < 15 {
		t.Fatalf("only %d fixtures have experts", len(dirs))
	}
	return dirs
}

// pruneTo prunes a checkpoint folder while it is converted.
func pruneTo(t testing.TB, dir string, keep func(*arch.Params) *experts.KeepList, types ...string) []string {
	t.Helper()
	ck := openCheckpoint(t, dir, CheckpointOptions{})
	req := request(t, t.TempDir(), types...)
	req.Experts = keep(&ck.Model.Params)
	plan, err := ck.Plan(req)
	must(t, err)
	return run(t, plan, ck, RunOptions{})
}

// pruneFile prunes a GGUF file.
func pruneFile(t testing.TB, path string, keep func(*arch.Params) *experts.KeepList) string {
	t.Helper()
	src := NewGGUFSource(path, openGGUF(t, path))
	m, err := src.Model()
	must(t, err)
	req := request(t, t.TempDir(), "COPY")
	req.Experts = keep(&m.Params)
	plan, err := src.Plan(req)
	must(t, err)
	return run(t, plan, src, RunOptions{Inputs: src.Inputs()})[0]
}

// TestPruneCommutes: it does not matter whether experts are taken out of a
// checkpoint or of the file made from it, nor before or after it is quantized.
func TestPruneCommutes(t *testing.T) {
	types := []string{"F32", "Q8_0", "Q3_K_M"}
	for name, dir := range moeFamilies(t) {
		t.Run(name, func(t *testing.T) {
			whole, pruned := convertTo(t, dir, RunOptions{}, types...), pruneTo(t, dir, keepSome, types...)
			ck := openCheckpoint(t, dir, CheckpointOptions{})
			req := request(t, t.TempDir(), types[0])
			req.Experts = keepSome(&ck.Model.Params)
			plan, err := ck.Plan(req)
			must(t, err)
			sameRows(t, NewView(plan, 0, ck, nil), openGGUF(t, pruned[0]))
			for i := range types {
				sameFiles(t, pruneFile(t, whole[i], keepSome), pruned[i])
			}
			for _, typ := range []string{"Q4_K_M"} {
				sameFiles(t, quantizeTo(t, pruned[0], true, typ)[0], pruneFile(t, quantizeTo(t, whole[0], true, typ)[0], keepSome))
			}
		})
	}
}

// ofExperts matches the names of tensors with one entry per expert. It is the
// list of the reference slicer, not taken from the description of the families.
var ofExperts = regexp.MustCompile(`^blk\.(\d+)\.(ffn_(gate|up|down|gate_up)_exps\.(weight|bias|scale|input_scale)|ffn_gate_inp\.(weight|bias)|exp_probs_b(\.bias)?)$`)

// TestPruneKeepsBytes: what is left of a file are its bytes, and of tensors of
// experts the bytes of those that stay, in every type.
func TestPruneKeepsBytes(t *testing.T) {
	for name, dir := range moeFamilies(t) {
		t.Run(name, func(t *testing.T) {
			for _, path := range convertTo(t, dir, RunOptions{}, "BF16", "Q4_K_M", "IQ4_NL", "Q2_K") {
				before := openGGUF(t, path)
				m, err := arch.FromMetadata(before.Metadata())
				must(t, err)
				checkPruned(t, before, openGGUF(t, pruneFile(t, path, keepSome)), keepSome(&m.Params))
			}
		})
	}
}

func checkPruned(t *testing.T, before, after *gguf.File, keep *experts.KeepList) {
	t.Helper()
	if len(before.Tensors()) != len(after.Tensors()) {
		t.Fatalf("%d tensors, before %d", len(after.Tensors()), len(before.Tensors()))
	}
	sliced := 0
	for i := range before.Tensors() {
		old, now := before.Tensors()[i], after.Tensors()[i]
		want := allRows(t, before, i)
		if f := ofExperts.FindStringSubmatch(old.Name); f != nil {
			l, _ := strconv.Atoi(f[1])
			size := len(want) / keep.Experts
			var parts [][]byte
			for _, id := range keep.Blocks[l] {
				parts = append(parts, want[id*size:(id+1)*size])
			}
			want = bytes.Join(parts, nil)
			sliced++
		}
		if old.Name != now.Name || old.Type != now.Type || !bytes.Equal(allRows(t, after, i), want) {
			t.Errorf("%s %s %v became %s %s %v", old.Name, old.Type, old.Shape, now.Name, now.Type, now.Shape)
		}
	}
	if sliced < 3*len(keep.Blocks) {
		t.Errorf("%d tensors of experts in %d blocks", sliced, len(keep.Blocks))
	}
}

// TestPruneMetadata: a pruned file says what it has, and what it had.
func TestPruneMetadata(t *testing.T) {
	path := pruneFile(t, convertTo(t, fixtures.TinyR1(t), RunOptions{}, "Q8_0")[0], keepSome)
	again := pruneFile(t, path, func(p *arch.Params) *experts.KeepList {
		k := keepSome(p)
		k.Flatten = true
		return k
	})
	for path, want := range map[string]map[string]any{
		path: {
			"general.name": "Tiny R1 (12 of 16 experts)", "deepseek2.expert_count": uint32(12), "deepseek2.expert_group_count": uint32(4),
			"deepseek2.expert_group_used_count": uint32(2), "deepseek2.expert_used_count": uint32(4), arch.KeyExpertsBefore: uint32(16), "general.size_label": "12x3.7M",
		},
		again: {
			"general.name": "Tiny R1 (8 of 16 experts)", "deepseek2.expert_count": uint32(8), "deepseek2.expert_group_count": uint32(1),
			"deepseek2.expert_group_used_count": uint32(1), arch.KeyExpertsBefore: uint32(16), "general.size_label": "8x3.7M",
		},
	} {
		md := openGGUF(t, path).Metadata()
		for key, v := range want {
			if got, _ := md.Get(key); got != v {
				t.Errorf("%s: %v, want %v", key, got, v)
			}
		}
	}
}

// TestPruneImportance: the weights of an importance matrix go with their experts.
func TestPruneImportance(t *testing.T) {
	for _, name := range []string{"deepseek_v3", "qwen3_moe", "gemma4_moe"} {
		t.Run(name, func(t *testing.T) {
			whole := convertTo(t, fixtures.Family(t, name), RunOptions{}, "F32")[0]
			src := NewGGUFSource(whole, openGGUF(t, whole))
			m, err := src.Model()
			must(t, err)
			keep := keepSome(&m.Params)
			matrix := someImportance(m)
			quantize := func(path string, keep *experts.KeepList, matrix *calib.Matrix) string {
				src := NewGGUFSource(path, openGGUF(t, path))
				req := request(t, t.TempDir(), "Q4_K_M")
				req.Experts, req.Importance = keep, &Importance{Matrix: matrix, File: "x"}
				plan, err := src.Plan(req)
				must(t, err)
				return run(t, plan, src, RunOptions{Inputs: src.Inputs()})[0]
			}
			want := pruneFile(t, quantize(whole, nil, matrix), keepSome)
			sameFiles(t, quantize(whole, keep, matrix), want)
			sliced, err := PruneMatrix(m, keep, matrix)
			must(t, err)
			sameFiles(t, quantize(pruneFile(t, whole, keepSome), nil, sliced), want)

			other := &calib.Matrix{Entries: slices.Clone(sliced.Entries)}
			if _, err := PruneMatrix(m, keep, other); !errors.Is(err, calib.ErrSize) {
				t.Errorf("a matrix of another model: %v", err)
			}
			other = &calib.Matrix{Entries: []calib.Entry{calib.NewEntry("blk.0.attn_output.weight", make([]float32, 7), []int64{1})}}
			if _, err := PruneMatrix(m, keep, other); !errors.Is(err, ErrInput) {
				t.Errorf("a matrix of other columns: %v", err)
			}
		})
	}
}

// someImportance has an entry for every matrix, of columns that differ much.
func someImportance(m *arch.Model) *calib.Matrix {
	rng := rand.New(rand.NewPCG(3, 4))
	out := &calib.Matrix{Datasets: []string{"text"}, Chunks: 3}
	for _, t := range m.Tensors() {
		if len(t.Shape) < 2 || t.Name.Layer < 0 {
			continue
		}
		matrices := int64(1)
		if len(t.Shape) == 3 {
			matrices = t.Shape[2]
		}
		sums, counts := make([]float32, t.Shape[0]*matrices), make([]int64, matrices)
		for i := range sums {
			sums[i] = float32(math.Exp(6 * rng.Float64()))
		}
		for i := range counts {
			counts[i] = 1 + rng.Int64N(100)
		}
		out.Entries = append(out.Entries, calib.NewEntry(t.Name.String(), sums, counts))
	}
	slices.SortFunc(out.Entries, func(a, b calib.Entry) int { return strings.Compare(a.Name, b.Name) })
	return out
}

// TestPruneErrors: what cannot be pruned is refused before anything is written.
func TestPruneErrors(t *testing.T) {
	path := convertTo(t, fixtures.Family(t, "qwen3_moe"), RunOptions{}, "Q8_0")[0]
	src := NewGGUFSource(path, openGGUF(t, path))
	m, err := src.Model()
	must(t, err)
	plan := func(src *GGUFSource, change func(*Request)) error {
		req := request(t, t.TempDir(), "COPY")
		req.Experts = keepSome(&m.Params)
		change(&req)
		_, err := src.Plan(req)
		return err
	}
	for name, c := range map[string]struct {
		change func(*Request)
		words  string
	}{
		"another model": {func(r *Request) { r.Experts.Experts++ }, "experts"},
		"blocks too":    {func(r *Request) { r.PruneLayers = []int{1} }, "blocks and experts"},
		"a block that is not there": {func(r *Request) {
			for l := range r.Experts.Blocks {
				delete(r.Experts.Blocks, l)
				return
			}
		}, "block"},
	} {
		if err := plan(src, c.change); err == nil || !strings.Contains(err.Error(), c.words) {
			t.Errorf("%s: error %v, want one with %q", name, err, c.words)
		}
	}

	// A tensor that the family's description does not know of may be anything.
	odd := filepath.Join(t.TempDir(), "odd.gguf")
	infos := append(slices.Clone(src.file.Tensors()), gguf.TensorInfo{Name: "blk.0.ffn_gate_exps.lora", Type: gguf.F32, Shape: []int64{4, 8}})
	layout, err := gguf.NewLayout(src.file.Metadata(), infos, gguf.LayoutOptions{})
	must(t, err)
	w, err := layout.Create(odd, gguf.CreateOptions{})
	must(t, err)
	for i := range infos {
		must(t, w.WriteAt(i, 0, make([]byte, infos[i].Size())))
	}
	must(t, w.Commit())
	if err := plan(NewGGUFSource(odd, openGGUF(t, odd)), func(*Request) {}); !errors.Is(err, ErrInput) || !strings.Contains(err.Error(), "ffn_gate_exps.lora") {
		t.Errorf("an unknown tensor: %v", err)
	}
}

// TestPruneSplit: a file in parts is pruned part by part, or to one file.
func TestPruneSplit(t *testing.T) {
	ck := openCheckpoint(t, fixtures.Family(t, "deepseek_v3"), CheckpointOptions{})
	req := request(t, t.TempDir(), "Q8_0")
	req.Layout = gguf.LayoutOptions{MaxShardTensors: 5}
	plan, err := ck.Plan(req)
	must(t, err)
	run(t, plan, ck, RunOptions{})
	first := plan.Outputs[0].Layout.Paths(plan.Outputs[0].Path)[0]
	whole := pruneTo(t, ck.Dir, keepSome, "Q8_0")[0]
	sameFiles(t, pruneFile(t, first, keepSome), whole)

	src := NewGGUFSource(first, openGGUF(t, first))
	req = request(t, t.TempDir(), "COPY")
	req.KeepSplit, req.Experts = true, keepSome(&ck.Model.Params)
	parts, err := src.Plan(req)
	must(t, err)
	run(t, parts, src, RunOptions{Inputs: src.Inputs()})
	if got, want := parts.Outputs[0].Layout.Shards(), plan.Outputs[0].Layout.Shards(); got != want {
		t.Errorf("%d parts, want %d", got, want)
	}
	merged := openGGUF(t, parts.Outputs[0].Layout.Paths(filepath.Join(filepath.Dir(parts.Outputs[0].Path), "COPY.gguf"))[0])
	want := openGGUF(t, whole)
	for i := range want.Tensors() {
		if !bytes.Equal(allRows(t, merged, i), allRows(t, want, i)) {
			t.Errorf("%s differs", want.Tensors()[i].Name)
		}
	}
}
