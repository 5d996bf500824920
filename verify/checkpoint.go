package verify

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"io/fs"
	"math"
	"os"
	"slices"
	"time"

	"github.com/winnow-moe/winnow/engine"
	"github.com/winnow-moe/winnow/formats/durable"
	"github.com/winnow-moe/winnow/formats/gguf"
)

// A checkpoint is a GGUF file with the keys
//
//	winnow.checkpoint.version   UINT32            1
//	winnow.checkpoint.facts     ARRAY of STRING   name, value, name, value …
//	winnow.checkpoint.position  ARRAY of UINT32   first window of the batch at hand, its windows, positions scored before it
//	winnow.checkpoint.blocks    ARRAY of UINT32   for the models in their order: blocks that the batch went through
//
// and the tensors
//
//	checkpoint.results   F64 [scored, numbers]   of the positions scored before the batch
//	checkpoint.M.PART    F32 [columns, rows]     the state of the batch in model M; see engine.State
//	checkpoint.sums      I32 [1 + tensors]       CRC-32C of keys and directory, then of each tensor before it
//
// among which those of Sums are, with keys and names of their own.
const (
	keyCheckpoint     = "winnow.checkpoint.version"
	keyFacts          = "winnow.checkpoint.facts"
	keyPosition       = "winnow.checkpoint.position"
	keyBlocks         = "winnow.checkpoint.blocks"
	checkpointResults = "checkpoint.results"
	checkpointSums    = "checkpoint.sums"
	checkpointVersion = 1
	copyBytes         = 1 << 20 // read or written at a time
)

var castagnoli = crc32.MakeTable(crc32.Castagnoli)

// ErrCheckpoint is in every error about the contents of a checkpoint.
var ErrCheckpoint = errors.New("not a usable checkpoint")

// Checkpoint keeps an unfinished measurement in a file: the states of the batch
// at hand between two blocks, and the results so far. A run with the same
// checkpoint goes on there and gives the same bits.
type Checkpoint struct {
	Path string
	// Facts say what is measured. A checkpoint of other facts is refused.
	Facts []Fact
	// Every is the least time between two saves; 0 saves after every block. It is
	// exceeded where saving would take more than a twentieth of the time.
	Every time.Duration
	// Sums, if not nil, are results that are not among those of scored positions.
	Sums Sums

	next time.Time // to save
}

// Fact is one thing that must be the same when a measurement goes on.
type Fact struct{ Name, Value string }

// Sums are what an observer adds up.
type Sums interface {
	// Save sets keys and lists tensors.
	Save(meta *gguf.Metadata) []Section
	// Load replaces what there is by what Save described.
	Load(m gguf.Model) error
}

// Section is a tensor of a checkpoint, whose bytes are made when it is written.
type Section struct {
	Info gguf.TensorInfo
	Data func() ([]byte, error)
}

// position is how far a measurement is.
type position struct {
	window, windows int // the batch at hand
	scored          int // positions before it
	blocks          []int
}

// Remove removes the file, and what an interrupted save left.
func (c *Checkpoint) Remove() error {
	for _, p := range []string{c.Path, c.Path + durable.Suffix} {
		if err := os.Remove(p); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return err
		}
	}
	return nil
}

// due reports whether it is time to save.
func (c *Checkpoint) due() bool {
	if c.next.IsZero() {
		c.next = time.Now().Add(c.Every)
	}
	return c.Every <= 0 || !time.Now().Before(c.next)
}

// save writes the file anew.
func (c *Checkpoint) save(at position, states []*engine.State, results [][]float64) error {
	start := time.Now()
	meta, content := c.describe(at, states, results)
	tensors := make([]gguf.TensorInfo, len(content), len(content)+1)
	for i := range content {
		tensors[i] = content[i].info
	}
	sums := []uint32{headerSum(meta, tensors)}
	tensors = append(tensors, gguf.TensorInfo{Name: checkpointSums, Type: gguf.I32, Shape: []int64{int64(len(tensors)) + 1}})
	layout, err := gguf.NewLayout(meta, tensors, gguf.LayoutOptions{})
	if err != nil {
		return fmt.Errorf("checkpoint %s: %w", c.Path, err)
	}
	w, err := layout.Create(c.Path, gguf.CreateOptions{})
	if err != nil {
		return fmt.Errorf("checkpoint: %w", err)
	}
	defer w.Abort()
	for i := range content {
		sum, err := content[i].write(w, i)
		if err != nil {
			return fmt.Errorf("checkpoint: %w", err)
		}
		sums = append(sums, sum)
	}
	if err := w.WriteAt(len(content), 0, binary.LittleEndian.AppendUint32(nil, sums[0])); err != nil {
		return err
	}
	for i, s := range sums[1:] {
		if err := w.WriteAt(len(content), 4*int64(i+1), binary.LittleEndian.AppendUint32(nil, s)); err != nil {
			return err
		}
	}
	if err := w.Commit(); err != nil {
		return fmt.Errorf("checkpoint: %w", err)
	}
	c.next = time.Now().Add(max(c.Every, 20*time.Since(start)))
	return nil
}

// describe makes the keys and the content.
func (c *Checkpoint) describe(at position, states []*engine.State, results [][]float64) (*gguf.Metadata, []content) {
	meta := &gguf.Metadata{}
	meta.Set(keyCheckpoint, uint32(checkpointVersion))
	var facts []string
	for _, f := range c.Facts {
		facts = append(facts, f.Name, f.Value)
	}
	meta.Set(keyFacts, facts)
	meta.Set(keyPosition, []uint32{uint32(at.window), uint32(at.windows), uint32(at.scored)})
	blocks := make([]uint32, len(states))
	var list []content
	if at.scored > 0 {
		shape := []int64{int64(at.scored), int64(len(results))}
		list = append(list, content{info: gguf.TensorInfo{Name: checkpointResults, Type: gguf.F64, Shape: shape}, encoded: func() ([]byte, error) {
			var all []byte
			for _, r := range results {
				for _, f := range r[:at.scored] {
					all = binary.LittleEndian.AppendUint64(all, math.Float64bits(f))
				}
			}
			return all, nil
		}})
	}
	for i, s := range states {
		if s == nil {
			continue
		}
		blocks[i] = uint32(s.Done)
		for _, p := range s.Parts {
			list = append(list, content{info: partInfo(i, p), floats: p.Data})
		}
	}
	meta.Set(keyBlocks, blocks)
	if c.Sums != nil {
		for _, s := range c.Sums.Save(meta) {
			list = append(list, content{info: s.Info, encoded: s.Data})
		}
	}
	return meta, list
}

// partInfo is the tensor of a part of the state in a model.
func partInfo(model int, p engine.Part) gguf.TensorInfo {
	return gguf.TensorInfo{Name: fmt.Sprintf("checkpoint.%d.%s", model, p.Name), Type: gguf.F32, Shape: []int64{int64(p.Cols), int64(p.Rows)}}
}

// content is a tensor to be written: numbers, or their bytes.
type content struct {
	info    gguf.TensorInfo
	floats  []float32
	encoded func() ([]byte, error)
}

// write writes tensor i and returns its checksum.
func (c *content) write(w *gguf.Writer, i int) (sum uint32, err error) {
	put := func(off int, raw []byte) error {
		sum = crc32.Update(sum, castagnoli, raw)
		return w.WriteAt(i, int64(off), raw)
	}
	raw := make([]byte, 0, copyBytes)
	for off := 0; off < len(c.floats); off += copyBytes / 4 {
		raw = raw[:0]
		for _, f := range c.floats[off:min(off+copyBytes/4, len(c.floats))] {
			raw = binary.LittleEndian.AppendUint32(raw, math.Float32bits(f))
		}
		if err := put(4*off, raw); err != nil {
			return 0, err
		}
	}
	if c.encoded == nil {
		return sum, nil
	}
	if raw, err = c.encoded(); err != nil {
		return 0, err
	}
	return sum, put(0, raw)
}

// headerSum is the checksum of keys and directory.
func headerSum(meta *gguf.Metadata, tensors []gguf.TensorInfo) uint32 {
	h := crc32.New(castagnoli)
	for _, k := range meta.Keys() {
		v, _ := meta.Get(k)
		fmt.Fprintf(h, "%q %T %q\n", k, v, fmt.Sprint(v))
	}
	for _, t := range tensors {
		fmt.Fprintf(h, "%q %s %v\n", t.Name, t.Type, t.Shape)
	}
	return h.Sum32()
}

// savedRun is an open checkpoint.
type savedRun struct {
	f      *gguf.File
	path   string
	byName map[string]int
	at     position
}

// open opens the file, nil if there is none, and makes sure that it is whole
// and of the same measurement.
func (c *Checkpoint) open(ctx context.Context) (*savedRun, error) {
	if _, err := os.Stat(c.Path); errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	f, err := gguf.OpenUnmapped(c.Path)
	if err != nil {
		return nil, fmt.Errorf("%w: %w", ErrCheckpoint, err)
	}
	s := &savedRun{f: f, path: c.Path, byName: map[string]int{}}
	for i := range f.Tensors() {
		s.byName[f.Tensors()[i].Name] = i
	}
	if err := s.check(ctx, c.Facts); err != nil {
		f.Close()
		return nil, err
	}
	return s, nil
}

func (s *savedRun) fail(format string, args ...any) error {
	return fmt.Errorf("%s: %w: %w", s.path, ErrCheckpoint, fmt.Errorf(format, args...))
}

func (s *savedRun) check(ctx context.Context, facts []Fact) error {
	meta := s.f.Metadata()
	v, ok := meta.Int(keyCheckpoint)
	if !ok {
		return s.fail("it is another kind of GGUF file")
	}
	if v != checkpointVersion {
		return s.fail("its version is %d, this program reads %d", v, checkpointVersion)
	}
	if err := s.checkSums(ctx); err != nil {
		return err
	}
	have, _ := meta.Strings(keyFacts)
	if len(have) != 2*len(facts) {
		return s.fail("it is of another kind of measurement")
	}
	for i, f := range facts {
		if have[2*i] != f.Name {
			return s.fail("it is of another kind of measurement")
		}
		if have[2*i+1] != f.Value {
			return s.fail("it was made with another %s: there %s, here %s", f.Name, have[2*i+1], f.Value)
		}
	}
	at, _ := meta.Ints(keyPosition)
	blocks, _ := meta.Ints(keyBlocks)
	if len(at) != 3 || len(blocks) == 0 {
		return s.fail("keys %s and %s do not say how far it is", keyPosition, keyBlocks)
	}
	s.at = position{window: int(at[0]), windows: int(at[1]), scored: int(at[2])}
	for _, b := range blocks {
		s.at.blocks = append(s.at.blocks, int(b))
	}
	return nil
}

// checkSums reads everything and compares checksums.
func (s *savedRun) checkSums(ctx context.Context) error {
	tensors := s.f.Tensors()
	n := len(tensors) - 1
	if n < 0 || tensors[n].Name != checkpointSums || tensors[n].Type != gguf.I32 || tensors[n].Elements() != int64(n)+1 {
		return s.fail("its last tensor is not %q with %d checksums", checkpointSums, n+1)
	}
	var sums []uint32
	if err := s.stream(ctx, n, func(raw []byte) {
		for ; len(raw) > 0; raw = raw[4:] {
			sums = append(sums, binary.LittleEndian.Uint32(raw))
		}
	}); err != nil {
		return err
	}
	if headerSum(s.f.Metadata(), tensors[:n]) != sums[0] {
		return s.fail("it is damaged: the checksum of its keys and directory is wrong")
	}
	for i := range n {
		sum := uint32(0)
		if err := s.stream(ctx, i, func(raw []byte) { sum = crc32.Update(sum, castagnoli, raw) }); err != nil {
			return err
		}
		if sum != sums[i+1] {
			return s.fail("it is damaged: the checksum of tensor %q is wrong", tensors[i].Name)
		}
	}
	return nil
}

// stream hands out the bytes of a tensor, some rows at a time.
func (s *savedRun) stream(ctx context.Context, i int, use func(raw []byte)) error {
	info := &s.f.Tensors()[i]
	step := max(1, copyBytes/max(1, info.RowBytes()))
	var buf []byte
	for first := int64(0); first < info.Rows(); first += step {
		n := min(step, info.Rows()-first)
		if need := n * info.RowBytes(); int64(len(buf)) < need {
			buf = make([]byte, need)
		}
		raw, err := s.f.Rows(ctx, i, first, n, buf)
		if err != nil {
			return fmt.Errorf("%s: %w", s.path, err)
		}
		use(raw)
	}
	return nil
}

// find returns the number of a tensor that must be there.
func (s *savedRun) find(want gguf.TensorInfo) (int, error) {
	i, ok := s.byName[want.Name]
	if !ok {
		return 0, s.fail("tensor %q is missing", want.Name)
	}
	if have := s.f.Tensors()[i]; have.Type != want.Type || !slices.Equal(have.Shape, want.Shape) {
		return 0, s.fail("tensor %q is %s %v, want %s %v", want.Name, have.Type, have.Shape, want.Type, want.Shape)
	}
	return i, nil
}

// results fills the results of the positions that are scored.
func (s *savedRun) results(ctx context.Context, dst [][]float64) error {
	if s.at.scored == 0 {
		return nil
	}
	i, err := s.find(gguf.TensorInfo{Name: checkpointResults, Type: gguf.F64, Shape: []int64{int64(s.at.scored), int64(len(dst))}})
	if err != nil {
		return err
	}
	var all []float64
	if err := s.stream(ctx, i, func(raw []byte) {
		for ; len(raw) > 0; raw = raw[8:] {
			all = append(all, math.Float64frombits(binary.LittleEndian.Uint64(raw)))
		}
	}); err != nil {
		return err
	}
	for r := range dst {
		copy(dst[r], all[r*s.at.scored:][:s.at.scored])
	}
	return nil
}

// state reads the state of the batch in a model.
func (s *savedRun) state(ctx context.Context, model int, parts []engine.Part) (*engine.State, error) {
	state := &engine.State{Done: s.at.blocks[model], Parts: parts}
	for k := range parts {
		i, err := s.find(partInfo(model, parts[k]))
		if err != nil {
			return nil, err
		}
		data := make([]float32, 0, parts[k].Rows*parts[k].Cols)
		if err := s.stream(ctx, i, func(raw []byte) {
			for ; len(raw) > 0; raw = raw[4:] {
				data = append(data, math.Float32frombits(binary.LittleEndian.Uint32(raw)))
			}
		}); err != nil {
			return nil, err
		}
		parts[k].Data = data
	}
	return state, nil
}
