package convert

import (
	"encoding/binary"
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"testing"
	"time"

	"github.com/winnow-moe/winnow/formats/gguf"
	"github.com/winnow-moe/winnow/testdata/fixtures"

	"github.com/klauspost/compress/zstd"
)

// layout is the tensor list of a released checkpoint, by shard.
type layout struct {
	Shards    map[string][]listed
	Tensors   int   `json:"n_tensors"`
	TotalSize int64 `json:"total_size"`
	Params    int64 // weights, without scales
}

// listed is [name, dtype, shape] in the file.
type listed struct {
	name, dtype string
	shape       []int64
}

func (l *listed) UnmarshalJSON(b []byte) error {
	return json.Unmarshal(b, &[]any{&l.name, &l.dtype, &l.shape})
}

func (l *listed) elements() int64 {
	n := int64(1)
	for _, d := range l.shape {
		n *= d
	}
	return n
}

func (l *listed) bytes() int64 {
	return l.elements() * map[string]int64{"F32": 4, "BF16": 2, "F8_E4M3": 1, "U8": 1}[l.dtype]
}

func readLayout(t testing.TB, path string) *layout {
	t.Helper()
	f, err := os.Open(path)
	must(t, err)
	defer f.Close()
	z, err := zstd.NewReader(f)
	must(t, err)
	defer z.Close()
	var l layout
	must(t, json.NewDecoder(z).Decode(&l))
	return &l
}

// writeSparse writes the checkpoint at full apparent size: true headers, holes
// for data, and the small tokenizer of a fixture.
func (l *layout) writeSparse(t testing.TB, dir string) {
	t.Helper()
	files := map[string]string{}
	for name, tensors := range l.Shards {
		var head strings.Builder
		head.WriteString(`{"__metadata__":{"format":"pt"}`)
		off := int64(0)
		for i := range tensors {
			x := &tensors[i]
			end := off + x.bytes()
			shape, err := json.Marshal(x.shape)
			must(t, err)
			fmt.Fprintf(&head, `,%q:{"dtype":%q,"shape":%s,"data_offsets":[%d,%d]}`, x.name, x.dtype, shape, off, end)
			files[x.name], off = name, end
		}
		head.WriteString("}")
		f, err := os.Create(filepath.Join(dir, name))
		must(t, err)
		must(t, binary.Write(f, binary.LittleEndian, uint64(head.Len())))
		_, err = f.WriteString(head.String())
		must(t, err)
		if err := f.Truncate(8 + int64(head.Len()) + off); err != nil {
			t.Skipf("the file system takes no files with holes: %v", err)
		}
		must(t, f.Close())
	}
	index, err := json.Marshal(map[string]any{"metadata": map[string]any{"total_size": l.TotalSize}, "weight_map": files})
	must(t, err, os.WriteFile(filepath.Join(dir, "model.safetensors.index.json"), index, 0o666))
	for _, name := range []string{"tokenizer.json", "tokenizer_config.json"} {
		must(t, os.WriteFile(filepath.Join(dir, name), readFile(t, filepath.Join(fixtures.Family(t, "llama"), name)), 0o666))
	}
}

// TestReleasedModels opens and plans released checkpoints at their full size, up
// to 139,583 tensors in 61 files of 1.03 TB, without a byte of weights. It logs
// the table that testdata/real/README.md shows.
func TestReleasedModels(t *testing.T) {
	if testing.Short() {
		t.Skip("writes sparse checkpoints of many files")
	}
	sources, err := filepath.Glob(filepath.Join("..", "testdata", "real", "*", "tensors.json.zst"))
	must(t, err)
	if len(sources) != 8 {
		t.Fatalf("%d layouts", len(sources))
	}
	for _, source := range sources {
		name := filepath.Base(filepath.Dir(source))
		t.Run(name, func(t *testing.T) {
			l := readLayout(t, source)
			dir := filepath.Join(t.TempDir(), name)
			must(t, os.Mkdir(dir, 0o777))
			l.writeSparse(t, dir)
			must(t, os.WriteFile(filepath.Join(dir, "config.json"), readFile(t, filepath.Join(filepath.Dir(source), "config.json")), 0o666))
			before, start := heap(), time.Now()
			ck, err := OpenCheckpoint(dir, CheckpointOptions{})
			must(t, err)
			defer ck.Close()
			p, err := ck.Plan(request(t, t.TempDir(), "Q4_K_M"))
			must(t, err)
			took, grown := time.Since(start), heap()-before
			if took > 30*time.Second { // below one second on an idle machine
				t.Errorf("opening and planning takes %v", took)
			}
			if grown > 150<<20 {
				t.Errorf("checkpoint and plan hold %d MB", grown>>20)
			}
			s := p.Summary()
			checkTotals(t, l, p, &s)
			checkUnits(t, p)
			if m := &ck.Model.Params; m.Experts > 0 && !m.NoQKNorm {
				checkPrunedPlan(t, ck, &s, l.TotalSize)
			}
			o := &s.Outputs[0]
			t.Logf("| %s | %d | %.1f GB | %d | %d | %.1f GB | %.4f | %.1f s |", name, l.Tensors, float64(l.TotalSize)/1e9,
				len(o.Tensors), len(s.Dropped), float64(o.FileBytes)/1e9, o.BitsPerWeight, took.Seconds())
		})
	}
}

// checkPrunedPlan plans the model without some of its experts, as a file and as
// a folder, and counts what is left.
func checkPrunedPlan(t *testing.T, ck *Checkpoint, whole *Summary, before int64) {
	t.Helper()
	start := time.Now()
	req := request(t, t.TempDir(), "Q4_K_M")
	req.Experts = keepSome(&ck.Model.Params)
	if ck.Model.Params.NextnLayers == 0 && ck.Model.AnnouncedMTP > 0 {
		req.Experts.MTP = "drop"
	}
	p, err := ck.Plan(req)
	must(t, err)
	folder, err := ck.PlanFolder(req.Experts, nil)
	must(t, err)
	if took := time.Since(start); took > 30*time.Second { // below one second on an idle machine
		t.Errorf("planning without some experts takes %v", took)
	}
	checkUnits(t, p)
	kept, all := int64(req.Experts.Keep()), int64(req.Experts.Experts)
	want, s := int64(0), p.Summary()
	for _, x := range whole.Outputs[0].Tensors {
		n := (&gguf.TensorInfo{Shape: x.Shape}).Elements()
		if ofExperts.MatchString(x.Name) {
			n = n / all * kept
		}
		want += n
	}
	if s.Parameters != want {
		t.Errorf("%d parameters without some experts, want %d", s.Parameters, want)
	}
	req.Changes = &testChanges{has: networks}
	changed, err := ck.Plan(req)
	must(t, err)
	checkUnits(t, changed)
	if n := changed.Summary().Parameters; n != want {
		t.Errorf("%d parameters with changes, want %d", n, want)
	}
	if size := folder.Size(); size >= before || size < whole.SourceBytes*(kept-1)/all {
		t.Errorf("a folder of %d bytes with %d of %d experts, before %d", size, kept, all, before)
	}
	t.Logf("%d of %d experts: %d parameters, %.1f GB as a folder, %.1f s", kept, all, s.Parameters, float64(folder.Size())/1e9, time.Since(start).Seconds())
}

// checkUnits divides a plan into the units that a run reads.
func checkUnits(t *testing.T, p *Plan) {
	t.Helper()
	units, planned := int64(0), int64(0)
	for u := range p.units(maxUnit) {
		size := p.elements(u.piece, u.n)
		if size > maxUnit {
			t.Fatalf("a unit of %d elements", size)
		}
		planned += size
		units++
	}
	// Columns taken in steps are read with those between them.
	if want := p.Summary().Parameters; planned < want || planned > want+want/1000 || units > 2*want/maxUnit+int64(len(p.Tensors)) {
		t.Errorf("%d units of %d elements, want %d", units, planned, want)
	}
}

func heap() int64 {
	runtime.GC()
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	return int64(m.HeapAlloc)
}

// checkTotals adds up the layout and compares it with the plan: what is not
// read is what the plan says it leaves out.
func checkTotals(t *testing.T, l *layout, p *Plan, s *Summary) {
	t.Helper()
	dropped := map[string]bool{}
	for _, d := range s.Dropped {
		dropped[d.Name] = true
	}
	var all, read int64
	params := l.Params
	for _, shard := range l.Shards {
		for i := range shard {
			x := &shard[i]
			all += x.bytes()
			// The scales of a dropped tensor are dropped with it, unnamed.
			if weight := strings.TrimSuffix(x.name, "_scale_inv"); !dropped[weight] {
				read += x.bytes()
			} else if weight == x.name {
				params -= x.elements()
			}
		}
	}
	for i := range p.Tensors {
		if x := &p.Tensors[i]; x.From == "computed" {
			params += p.elements(&x.Pieces[0], 1)
		}
	}
	if all != l.TotalSize {
		t.Fatalf("the layout has %d bytes, and says %d", all, l.TotalSize)
	}
	if s.SourceBytes != read {
		t.Errorf("%d bytes are read, want %d", s.SourceBytes, read)
	}
	if s.Parameters != params {
		t.Errorf("%d parameters, want %d", s.Parameters, params)
	}
	for _, d := range s.Dropped {
		if d.Why == "" {
			t.Errorf("%q is left out without a reason", d.Name)
		}
	}
	o := &s.Outputs[0]
	sum := int64(0)
	for i := range o.Tensors {
		sum += o.Tensors[i].Bytes
	}
	if o.TensorBytes != sum || o.FileBytes < sum || o.FileBytes > sum+32<<20 {
		t.Errorf("%d bytes of tensors (want %d) in a file of %d", o.TensorBytes, sum, o.FileBytes)
	}
	if o.BitsPerWeight < 4.2 || o.BitsPerWeight > 5.4 {
		t.Errorf("%g bits per weight", o.BitsPerWeight)
	}
}
