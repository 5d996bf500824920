package convert

import (
	"compress/gzip"
	"encoding/binary"
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/winnow-moe/winnow/testdata/fixtures"
)

// layout is the tensor list of a released checkpoint, by shard.
type layout struct {
	Shards    map[string][]listed
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
	z, err := gzip.NewReader(f)
	must(t, err)
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

// TestDeepSeekR1 opens and plans the real layout of DeepSeek-R1: 91,991
// tensors in 163 files, 689 GB.
func TestDeepSeekR1(t *testing.T) {
	if testing.Short() {
		t.Skip("writes a sparse checkpoint of 163 files")
	}
	source := filepath.Join("..", "testdata", "real", "DeepSeek-R1")
	l := readLayout(t, filepath.Join(source, "tensors.json.gz"))
	dir := filepath.Join(t.TempDir(), "DeepSeek-R1")
	must(t, os.Mkdir(dir, 0o777))
	l.writeSparse(t, dir)
	must(t, os.WriteFile(filepath.Join(dir, "config.json"), readFile(t, filepath.Join(source, "config.json")), 0o666))

	before := heap()
	start := time.Now()
	ck := openCheckpoint(t, dir, CheckpointOptions{})
	p, err := ck.Plan(request(t, t.TempDir(), "Q4_K_M"))
	must(t, err)
	s := p.Summary()
	// Generous for a loaded machine: it takes well below one second alone.
	if d := time.Since(start); d > 5*time.Second {
		t.Errorf("opening and planning takes %v", d)
	}
	if grown := heap() - before; grown > 150<<20 {
		t.Errorf("checkpoint and plan hold %d MB", grown>>20)
	}
	runtime.KeepAlive(p)
	checkTotals(t, l, &s)
	units := int64(0)
	for u := range p.units(maxUnit) {
		if size := p.elements(u.piece, u.n); size > maxUnit {
			t.Fatalf("a unit of %d elements", size)
		}
		units++
	}
	if units < s.Parameters/maxUnit || units > 2*s.Parameters/maxUnit {
		t.Errorf("%d units", units)
	}
}

func heap() int64 {
	runtime.GC()
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	return int64(m.HeapAlloc)
}

// checkTotals adds up the layout and compares it with the plan.
func checkTotals(t *testing.T, l *layout, s *Summary) {
	t.Helper()
	var all, mtp, mtpParams int64
	mtpTensors := 0
	for _, shard := range l.Shards {
		for i := range shard {
			x := &shard[i]
			all += x.bytes()
			if !strings.HasPrefix(x.name, "model.layers.61.") {
				continue
			}
			mtp += x.bytes()
			if mtpTensors++; !strings.HasSuffix(x.name, "_scale_inv") {
				mtpParams += x.elements()
			}
		}
	}
	if all != l.TotalSize {
		t.Fatalf("the layout has %d bytes, and says %d", all, l.TotalSize)
	}
	if s.SourceBytes != all-mtp {
		t.Errorf("%d bytes are read, want %d", s.SourceBytes, all-mtp)
	}
	if s.Parameters != l.Params-mtpParams || s.Parameters != 671_026_419_200 {
		t.Errorf("%d parameters, want %d", s.Parameters, l.Params-mtpParams)
	}
	// The scales of a dropped block are dropped with its weights, unnamed.
	dropped := slices.IndexFunc(s.Dropped, func(d Dropped) bool { return !strings.HasPrefix(d.Name, "model.layers.61.") })
	if dropped >= 0 || len(s.Dropped) == 0 || len(s.Dropped) > mtpTensors {
		t.Errorf("%d tensors dropped, %d belong to the MTP block", len(s.Dropped), mtpTensors)
	}
	o := &s.Outputs[0]
	sum := int64(0)
	for i := range o.Tensors {
		sum += o.Tensors[i].Bytes
	}
	if o.TensorBytes != sum || o.FileBytes < sum || o.FileBytes > sum+32<<20 {
		t.Errorf("%d bytes of tensors (want %d) in a file of %d", o.TensorBytes, sum, o.FileBytes)
	}
	if o.BitsPerWeight < 4.7 || o.BitsPerWeight > 4.95 {
		t.Errorf("%g bits per weight", o.BitsPerWeight)
	}
}
