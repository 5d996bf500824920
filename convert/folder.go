package convert

import (
	"bufio"
	"cmp"
	"context"
	"errors"
	"io"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync/atomic"

	"github.com/winnow-moe/winnow/convert/experts"
	"github.com/winnow-moe/winnow/formats/arch"
	"github.com/winnow-moe/winnow/formats/durable"
	"github.com/winnow-moe/winnow/formats/safetensors"
	"github.com/winnow-moe/winnow/formats/strictjson"
	"golang.org/x/sync/errgroup"
)

// FolderPlan says everything about a pruned checkpoint folder before a byte is
// written. Its weights are the bytes of the checkpoint that it is made from,
// whatever their format, but for those that Changes compute.
type FolderPlan struct {
	// Source is the checkpoint as the user named it.
	Source string
	// Layout holds the tensors and the files with weights.
	Layout *safetensors.Layout
	// Copied are the names of the other files, which stay as they are.
	Copied []string
	// Dropped lists tensors and files that are left out; those of experts that
	// do not stay are not among them.
	Dropped []Dropped
	Notes   []string

	config  []byte
	tensors []folderTensor // in the order of Layout.Tensors
	changes Changes
}

// folderTensor is a tensor of the pruned checkpoint: parts of one that there is.
type folderTensor struct {
	source int
	parts  []span
	// Of changed weights: what is put into them, their rows that are worked on at
	// a time, and the number of the tensor with their scales, if they have some.
	patches []patch
	chunk   int64
	scale   int
	// withWeight says that the weight's patches write this tensor too.
	withWeight bool
}

// span is a range of bytes of a tensor.
type span struct{ off, n int64 }

// folderPlan collects the tensors of a pruned checkpoint.
type folderPlan struct {
	*selection
	c        *Checkpoint
	prefixes map[string]int // of names of single experts' tensors, before the expert's number, to the block
	stacked  map[int]stack  // tensors with all experts of a block
}

// stack is where the experts of block l are in a tensor.
type stack struct{ l, axis int }

// PlanFolder decides what a checkpoint becomes in which only some experts are
// left, and in which weights have changed. Changes may be nil. It reads no
// weights.
func (c *Checkpoint) PlanFolder(keep *experts.KeepList, changes Changes) (*FolderPlan, error) {
	sel, err := newSelection(c.Model, keep)
	if err != nil {
		return nil, err
	}
	if err := checkMerge(c.merged, keep, changes); err != nil {
		return nil, err
	}
	f := &folderPlan{selection: sel, c: c}
	f.how.DropMTP = keep.MTP == "drop"
	if err := f.index(); err != nil {
		return nil, err
	}
	patches, err := f.patches(changes)
	if err != nil {
		return nil, err
	}
	p := &FolderPlan{Source: c.Dir, Notes: slices.Clone(c.Warnings), changes: changes}
	var list []safetensors.Tensor
	for i, t := range c.files.Tensors() {
		t, parts, err := f.prune(i, t)
		if err != nil {
			return nil, err
		}
		if f.leavesOut(t.Name) {
			p.Dropped = append(p.Dropped, Dropped{t.Name, "multi-token prediction block, which the keep-list drops"})
		} else if parts != nil {
			list, p.tensors = append(list, t), append(p.tensors, folderTensor{source: i, parts: parts})
		}
	}
	p.addPatches(f, patches)
	p.noteChanged(c)
	largest := int64(0)
	for _, file := range c.files.Files() {
		largest = max(largest, file.Size)
	}
	if p.Layout, err = safetensors.NewLayout(list, c.files.Metadata(), largest); err != nil {
		return nil, err
	}
	if p.config, err = f.configText(); err != nil {
		return nil, err
	}
	return p, p.listFiles()
}

// leavesOut reports whether a tensor belongs to a block that is left out.
func (f *folderPlan) leavesOut(name string) bool { return f.how.DropMTP && f.model.OfMTP(name) }

// index finds out which tensors of the checkpoint belong to experts.
func (f *folderPlan) index() error {
	f.prefixes, f.stacked = map[string]int{}, map[int]stack{}
	inv := f.c.inv
	for _, t := range f.model.Tensors() {
		for _, template := range t.Rule.HF {
			if before, _, ok := strings.Cut(template, "{e}"); ok {
				f.prefixes[f.model.Source(before, t.Name.Layer, 0)] = t.Name.Layer
				continue
			}
			i, ok := inv.Lookup(f.model.Source(template, t.Name.Layer, 0))
			if !ok || f.drops(t.Name.Layer) {
				continue
			}
			axis := t.Rule.SourceExpertAxis()
			if axis < 0 {
				continue
			}
			f.stacked[i] = stack{t.Name.Layer, axis}
			if packed := inv.Tensors[i].packed; packed != nil {
				for _, part := range packed.parts() {
					f.stacked[part] = stack{t.Name.Layer, axis}
				}
			}
		}
	}
	if f.model.Params.NextnLayers > 0 || f.how.DropMTP {
		return nil
	}
	for _, t := range f.c.files.Tensors() {
		if f.model.OfMTP(t.Name) {
			return hinted("open the checkpoint with its multi-token prediction blocks and prune them too, or drop them",
				refused("tensor %q belongs to a multi-token prediction block, of which the keep-list says nothing", t.Name))
		}
	}
	return nil
}

// prune returns what becomes of tensor i, and the parts of it that stay: none
// where it belongs to an expert that does not.
func (f *folderPlan) prune(i int, t safetensors.Tensor) (safetensors.Tensor, []span, error) {
	all := []span{{0, t.Size}}
	if s, ok := f.stacked[i]; ok {
		parts, err := f.slice(&t, s)
		return t, parts, err
	}
	before, l, e, rest, ok := f.ofExpert(t.Name)
	if !ok || f.leavesOut(t.Name) {
		return t, all, nil
	}
	k, stays := slices.BinarySearch(f.keep.Blocks[l], e)
	if !stays {
		return t, nil, nil
	}
	t.Name = before + strconv.Itoa(k) + rest
	return t, all, nil
}

// ofExpert takes the name of a tensor of one expert apart.
func (f *folderPlan) ofExpert(name string) (before string, l, e int, rest string, ok bool) {
	canonical := arch.Canonical(name)
	for i := 1; i < len(canonical); i++ {
		if canonical[i-1] != '.' {
			continue
		}
		if l, ok = f.prefixes[canonical[:i]]; !ok {
			continue
		}
		number, _, _ := strings.Cut(canonical[i:], ".")
		n, err := strconv.ParseUint(number, 10, 31)
		if err != nil {
			continue
		}
		at := len(name) - len(canonical[i:])
		return name[:at], l, int(n), name[at+len(number):], true
	}
	return "", 0, 0, "", false
}

// slice leaves of a tensor the entries of experts that stay.
func (f *folderPlan) slice(t *safetensors.Tensor, s stack) ([]span, error) {
	n := int64(f.keep.Experts)
	if s.axis >= len(t.Shape) || t.Shape[s.axis] != n {
		return nil, formatError("tensor %q has shape %v, wanted %d experts along axis %d", t.Name, t.Shape, n, s.axis)
	}
	outer := int64(1)
	for _, d := range t.Shape[:s.axis] {
		outer *= d
	}
	if t.Size%(outer*n) != 0 {
		return nil, formatError("tensor %q: %d bytes cannot be divided among %d experts", t.Name, t.Size, n)
	}
	size := t.Size / (outer * n)
	ids := f.keep.Blocks[s.l]
	t.Shape = slices.Clone(t.Shape)
	t.Shape[s.axis] = int64(len(ids))
	var parts []span
	for o := range outer {
		for r := range runs(ids) {
			parts = append(parts, span{(o*n + int64(r.id)) * size, int64(r.n) * size})
		}
	}
	return parts, nil
}

// configText is the config.json of the pruned checkpoint.
func (f *folderPlan) configText() ([]byte, error) {
	data, err := strictjson.ReadFile(filepath.Join(f.c.Dir, "config.json"), configLimit)
	if err != nil {
		return nil, err
	}
	if err := f.checkNames(data); err != nil {
		return nil, err
	}
	pruned := f.model.Params.Pruned(f.how)
	changes := map[string]any{configExpertsBefore: cmp.Or(f.c.expertsBefore, f.model.Params.Experts)}
	change := func(key string, value int) (found bool) {
		for _, name := range f.model.ConfigNames(key) {
			if has, err := hasSetting(data, name); err == nil && has {
				changes[name], found = value, true
			}
		}
		return found
	}
	if !change(arch.KeyExpertCount, pruned.Experts) {
		return nil, formatError("config.json: the number of experts is not a setting of its own")
	}
	if f.how.Merged != "" {
		changes[configMerged] = f.how.Merged
	}
	if f.how.Flatten {
		change(arch.KeyExpertGroups, 1)
		change(arch.KeyGroupsUsed, 1)
	}
	if names := f.model.ConfigNames(arch.KeyNextnLayers); f.how.DropMTP && f.model.AnnouncedMTP > 0 && !change(arch.KeyNextnLayers, 0) {
		changes[names[0]] = 0
	}
	return setSettings(data, changes)
}

// checkNames refuses a config.json that names single experts, as lists of what
// is not quantized may do: their numbers would be wrong.
func (f *folderPlan) checkNames(data []byte) error {
	config, err := strictjson.Decode(data)
	if err != nil {
		return formatError("config.json: %v", err)
	}
	var walk func(v any) error
	walk = func(v any) error {
		switch v := v.(type) {
		case string:
			if _, _, _, _, ok := f.ofExpert(v); ok {
				return hinted("name experts by a pattern", formatError("config.json names the expert %q, whose number changes", v))
			}
		case []any:
			for _, e := range v {
				if err := walk(e); err != nil {
					return err
				}
			}
		case map[string]any:
			for _, key := range slices.Sorted(maps.Keys(v)) {
				if err := cmp.Or(walk(key), walk(v[key])); err != nil {
					return err
				}
			}
		}
		return nil
	}
	return walk(config)
}

// oldWeights are the endings of files that hold weights of the whole model.
var oldWeights = []string{".safetensors", ".bin", ".pt", ".pth", ".gguf", ".msgpack", ".h5", ".onnx", ".index.json"}

// listFiles finds the files that are copied.
func (p *FolderPlan) listFiles() error {
	entries, err := os.ReadDir(p.Source)
	if err != nil {
		return err
	}
	for _, e := range entries {
		name := e.Name()
		info, err := os.Stat(filepath.Join(p.Source, name)) // of what a link leads to
		if err != nil {
			return err
		}
		switch {
		case name == "config.json", strings.HasSuffix(name, ".safetensors"), name == "model.safetensors.index.json":
		case slices.ContainsFunc(oldWeights, func(end string) bool { return strings.HasSuffix(name, end) }):
			p.Dropped = append(p.Dropped, Dropped{name, "weights of the whole model"})
		case !info.Mode().IsRegular():
			p.Dropped = append(p.Dropped, Dropped{name, "not a file"})
		default:
			p.Copied = append(p.Copied, name)
		}
	}
	return nil
}

// Size returns the bytes of the files with weights.
func (p *FolderPlan) Size() int64 {
	size := int64(0)
	for _, f := range p.Layout.Files() {
		size += f.Size
	}
	return size
}

// RunFolder writes the checkpoint of a plan to a folder, which must be new or
// empty. It has its name only when it is complete and on disk.
func RunFolder(ctx context.Context, p *FolderPlan, c *Checkpoint, dir string, opt RunOptions) (err error) {
	if err := CheckNewFolder(dir); err != nil {
		return err
	}
	parent := filepath.Dir(filepath.Clean(dir))
	tmp, err := os.MkdirTemp(parent, filepath.Base(dir)+".part-")
	if err != nil {
		return err
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, os.RemoveAll(tmp))
		}
	}()
	if err := p.write(ctx, c, tmp, opt); err != nil {
		return err
	}
	if err := os.Chmod(tmp, 0o755); err != nil {
		return err
	}
	if err := os.Remove(dir); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	return durable.Rename(tmp, dir)
}

// CheckNewFolder refuses a folder with something in it, as RunFolder does.
func CheckNewFolder(dir string) error {
	if base := filepath.Base(dir); base == "." || base == ".." || base == string(filepath.Separator) {
		return hinted("choose another folder", refused("%q cannot be made anew, as it has no name of its own", dir))
	}
	entries, err := os.ReadDir(dir)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return nil
	case err != nil:
		return err
	case len(entries) > 0:
		return hinted("choose another folder", refused("%q exists and is not empty", dir))
	}
	return nil
}

// write fills a folder.
func (p *FolderPlan) write(ctx context.Context, c *Checkpoint, dir string, opt RunOptions) error {
	if err := durable.WriteBytes(filepath.Join(dir, "config.json"), p.config); err != nil {
		return err
	}
	for _, name := range p.Copied {
		if err := copyFile(filepath.Join(dir, name), filepath.Join(p.Source, name)); err != nil {
			return err
		}
	}
	w, err := p.Layout.Create(dir)
	if err != nil {
		return err
	}
	if err := p.fill(ctx, c, w, opt); err != nil {
		return errors.Join(err, w.Abort())
	}
	return w.Commit()
}

// fill writes the tensors. What is copied is read from front to back; where
// weights are computed, several are worked on at a time.
func (p *FolderPlan) fill(ctx context.Context, c *Checkpoint, w *safetensors.Writer, opt RunOptions) error {
	list := p.Layout.Tensors()
	total, done := int64(0), atomic.Int64{}
	for i := range list {
		total += list[i].Size
	}
	g, ctx := errgroup.WithContext(ctx)
	next := atomic.Int64{}
	for range p.workers(c, opt) {
		g.Go(func() error {
			rw := &rewriter{plan: p, c: c, w: w, rd: reader{inv: c.inv, data: c}}
			for i := int(next.Add(1)) - 1; i < len(list); i = int(next.Add(1)) - 1 {
				if opt.Events.Tensor != nil {
					opt.Events.Tensor(list[i].Name)
				}
				if err := rw.write(ctx, i); err != nil {
					return err
				}
				if n := done.Add(list[i].Size); opt.Events.Progress != nil {
					opt.Events.Progress(n, total)
				}
			}
			return nil
		})
	}
	return g.Wait()
}

func copyFile(to, from string) error {
	f, err := os.Open(from)
	if err != nil {
		return err
	}
	return errors.Join(durable.WriteFile(to, func(w *bufio.Writer) error {
		_, err := io.Copy(w, f)
		return err
	}), f.Close())
}
