package safetensors

import (
	"cmp"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"

	"github.com/winnow-moe/winnow/formats/prefetch"
	"github.com/winnow-moe/winnow/formats/strictjson"
)

// The file names of a checkpoint folder (transformers/utils: SAFE_WEIGHTS_NAME,
// SAFE_WEIGHTS_INDEX_NAME).
const (
	singleName = "model.safetensors"
	indexName  = "model.safetensors.index.json"
	extension  = ".safetensors"
)

// FileInfo is one file of a checkpoint.
type FileInfo struct {
	Path string
	Size int64 // in bytes
}

// Checkpoint is an open checkpoint. Its methods are safe for concurrent use.
type Checkpoint struct {
	tensors  []Tensor
	byName   map[string]int
	files    []FileInfo
	handles  []*os.File
	metadata map[string]string
	warnings []string
}

// Open opens the checkpoint in a folder: model.safetensors, or all files that
// model.safetensors.index.json names. The index and the headers must agree
// tensor by tensor. Files may be links, as in the HuggingFace cache, but the
// index can only name entries of the folder itself. A folder with pickled,
// adapter or unindexed weights is refused with the way out. Errors about what
// the folder holds match ErrFormat.
func Open(dir string) (*Checkpoint, error) {
	entries, err := listFolder(dir)
	if err != nil {
		return nil, err
	}
	single, indexed := entries[singleName], entries[indexName]
	switch {
	case indexed:
		return openIndexed(dir, entries)
	case single:
		c, err := OpenFile(filepath.Join(dir, singleName))
		if err != nil {
			return nil, err
		}
		c.warnLeftOut(entries, []string{singleName})
		return c, nil
	}
	return nil, fmt.Errorf("%q: %w", dir, noModel(entries))
}

// OpenFile opens one safetensors file as a checkpoint of its own.
func OpenFile(path string) (*Checkpoint, error) {
	c := &Checkpoint{}
	if err := c.openFiles([]string{path}); err != nil {
		c.Close()
		return nil, err
	}
	return c, nil
}

// listFolder returns the names in a folder.
func listFolder(dir string) (map[string]bool, error) {
	st, err := os.Stat(dir)
	if err != nil {
		return nil, err
	}
	if !st.IsDir() {
		return nil, fmt.Errorf("%w: %q is not a folder", ErrFormat, dir)
	}
	list, err := os.ReadDir(dir)
	if err != nil {
		return nil, err
	}
	names := make(map[string]bool, len(list))
	for _, e := range list {
		names[e.Name()] = true
	}
	return names, nil
}

// noModel says why a folder without the two known names is no checkpoint.
func noModel(entries map[string]bool) error {
	var tensors, pickles []string
	for _, name := range slices.Sorted(maps.Keys(entries)) {
		switch filepath.Ext(name) {
		case extension:
			tensors = append(tensors, name)
		case ".bin", ".pt", ".pth", ".ckpt", ".pkl":
			pickles = append(pickles, name)
		}
	}
	switch {
	case entries["adapter_config.json"], entries["adapter_model.safetensors"]:
		return fmt.Errorf("%w: this is a LoRA adapter, not a model: merge it into its base model first", ErrFormat)
	case len(tensors) > 0:
		return fmt.Errorf("%w: %d safetensors files (%q first) but neither %s nor %s, which says what belongs together: download it too",
			ErrFormat, len(tensors), tensors[0], singleName, indexName)
	case len(pickles) > 0:
		return fmt.Errorf("%w: the weights are PyTorch pickles (%q), which can run code and are never loaded: download a revision with safetensors, or save it as such where you trust it: "+
			`python -c "from transformers import AutoModelForCausalLM as M; M.from_pretrained('FOLDER', torch_dtype='auto').save_pretrained('NEW')"`,
			ErrFormat, pickles[0])
	}
	return fmt.Errorf("%w: no weights in this folder: neither %s nor %s", ErrFormat, singleName, indexName)
}

func openIndexed(dir string, entries map[string]bool) (*Checkpoint, error) {
	path := filepath.Join(dir, indexName)
	data, err := strictjson.ReadFile(path, MaxHeader)
	if err != nil {
		return nil, err
	}
	ix, err := parseIndex(data)
	if err == nil {
		err = ix.checkFolder(entries)
	}
	if err != nil {
		return nil, fmt.Errorf("%q: %w: %w", path, ErrFormat, err)
	}
	c := &Checkpoint{}
	if err := c.openFiles(ix.paths(dir)); err != nil {
		c.Close()
		return nil, err
	}
	if err := ix.checkTensors(c); err != nil {
		c.Close()
		return nil, fmt.Errorf("%q: %w: %w", path, ErrFormat, err)
	}
	c.warnTotalSize(ix.totalSize)
	c.warnLeftOut(entries, ix.files)
	return c, nil
}

// index is the content of an index file.
type index struct {
	files     []string       // file names, sorted
	shard     map[string]int // tensor name to index into files
	totalSize string         // number as written, or what is there instead; "" if absent
}

// parseIndex reads {"metadata": {"total_size": n}, "weight_map": {"tensor": "file", …}}.
// No file is opened for it.
func parseIndex(data []byte) (*index, error) {
	s, err := strictjson.NewScanner(string(data))
	if err != nil {
		return nil, err
	}
	ix := &index{}
	fileOf := map[string]string{}
	err = s.Object(func(key string) error {
		switch key {
		case "weight_map":
			ix.shard = map[string]int{}
			return ix.readWeightMap(s, fileOf)
		case "metadata":
			return ix.readMetadata(s)
		}
		if strings.EqualFold(key, "weight_map") {
			return fmt.Errorf("unknown field %q, which differs from \"weight_map\" only in case", key)
		}
		return s.Skip()
	})
	if err == nil {
		err = s.End()
	}
	if err != nil {
		return nil, fmt.Errorf("%w%s", err, describe(data[:min(len(data), 64)]))
	}
	if ix.shard == nil {
		return nil, errors.New("field weight_map is missing")
	}
	ix.number(fileOf)
	return ix, nil
}

func (ix *index) readWeightMap(s *strictjson.Scanner, fileOf map[string]string) error {
	checked := map[string]bool{} // there are few files and many tensors
	err := s.Object(func(tensor string) error {
		file, err := s.Text()
		if err == nil && !checked[file] {
			err = checkShardName(file)
			checked[file] = true
		}
		if err != nil {
			return fmt.Errorf("file of tensor %.200q: %w", tensor, err)
		}
		fileOf[tensor] = file
		return nil
	})
	if err != nil {
		return fmt.Errorf("weight_map: %w", err)
	}
	return nil
}

// readMetadata keeps total_size, which is only informative: nothing about it
// is refused.
func (ix *index) readMetadata(s *strictjson.Scanner) error {
	if s.Kind() != strictjson.Object {
		return s.Skip()
	}
	return s.Object(func(key string) error {
		if key != "total_size" {
			return s.Skip()
		}
		if s.Kind() != strictjson.Number {
			ix.totalSize = s.Kind().String()
			return s.Skip()
		}
		n, err := s.Number()
		ix.totalSize = n
		return err
	})
}

// number sorts the file names and gives every tensor the number of its file.
func (ix *index) number(fileOf map[string]string) {
	numbers := map[string]int{}
	for _, f := range fileOf {
		numbers[f] = 0
	}
	ix.files = slices.Sorted(maps.Keys(numbers))
	for i, f := range ix.files {
		numbers[f] = i
	}
	for tensor, f := range fileOf {
		ix.shard[tensor] = numbers[f]
	}
}

// paths returns the files' paths in dir.
func (ix *index) paths(dir string) []string {
	list := make([]string, len(ix.files))
	for i, name := range ix.files {
		list[i] = filepath.Join(dir, name)
	}
	return list
}

// checkShardName accepts the name of a safetensors file in the same folder.
// Paths are refused even where they stay inside: no writer of checkpoints
// makes them, and links in subfolders could lead anywhere.
func checkShardName(name string) error {
	switch {
	case name == "":
		return errors.New("the file name is empty")
	case strings.Contains(name, "://"):
		return fmt.Errorf("%.200q is a URL: only files of the same folder can be named", name)
	case strings.ContainsAny(name, "/\\:\x00") || !filepath.IsLocal(name):
		return fmt.Errorf("%.200q is a path that may lead outside: only plain file names of the same folder are allowed", name)
	case filepath.Ext(name) != extension:
		return fmt.Errorf("%.200q is not a safetensors file (pickled weights are never loaded)", name)
	}
	return nil
}

// checkFolder compares the index with what the folder lists.
func (ix *index) checkFolder(entries map[string]bool) error {
	if len(ix.files) == 0 {
		return errors.New("weight_map is empty")
	}
	var missing []string
	place := 0
	for i, name := range ix.files {
		if !entries[name] {
			missing = append(missing, name)
			place = i + 1
		}
	}
	switch {
	case len(missing) == 1:
		return fmt.Errorf("shard %d of %d, %q, is missing: the download may be incomplete", place, len(ix.files), missing[0])
	case len(missing) > 1:
		return fmt.Errorf("%d of %d shards are missing: %s: the download may be incomplete", len(missing), len(ix.files), NameList(missing))
	case entries[singleName] && !slices.Contains(ix.files, singleName):
		return fmt.Errorf("ambiguous: the folder has both %s and this index of %d other files: remove one of them", singleName, len(ix.files))
	}
	return nil
}

// NameList quotes the first ten names and counts the others.
func NameList(names []string) string {
	const most = 10
	quoted := make([]string, min(len(names), most))
	for i := range quoted {
		quoted[i] = fmt.Sprintf("%.200q", names[i])
	}
	text := strings.Join(quoted, ", ")
	if n := len(names) - most; n > 0 {
		text += fmt.Sprintf(" and %d more", n)
	}
	return text
}

// checkTensors compares the index with the headers.
func (ix *index) checkTensors(c *Checkpoint) error {
	var unlisted []string
	for _, t := range c.tensors {
		shard, ok := ix.shard[t.Name]
		if !ok {
			unlisted = append(unlisted, t.Name)
			continue
		}
		if shard != t.Shard {
			return fmt.Errorf("weight_map says that tensor %q is in %q, but it is in %q", t.Name, ix.files[shard], ix.files[t.Shard])
		}
	}
	if len(unlisted) == 1 {
		shard := c.tensors[c.byName[unlisted[0]]].Shard
		return fmt.Errorf("tensor %.200q of shard %q is not listed in weight_map", unlisted[0], ix.files[shard])
	}
	if len(unlisted) > 1 {
		return fmt.Errorf("%d tensors of the shards are not listed in weight_map: %s", len(unlisted), NameList(unlisted))
	}
	return ix.checkGhosts(c)
}

// checkGhosts looks for tensors that the index lists and no shard has.
func (ix *index) checkGhosts(c *Checkpoint) error {
	if len(ix.shard) == len(c.tensors) {
		return nil
	}
	var ghosts []string
	for _, name := range slices.Sorted(maps.Keys(ix.shard)) {
		if _, ok := c.byName[name]; !ok {
			ghosts = append(ghosts, name)
		}
	}
	if len(ghosts) == 1 {
		return fmt.Errorf("weight_map says that tensor %.200q is in %q, but it is missing there", ghosts[0], ix.files[ix.shard[ghosts[0]]])
	}
	return fmt.Errorf("weight_map lists %d tensors that are missing in their shards: %s", len(ghosts), NameList(ghosts))
}

// warnTotalSize compares the index's sum of sizes, if it has one, with the
// headers. Released checkpoints have wrong ones.
func (c *Checkpoint) warnTotalSize(said string) {
	var total int64
	for _, t := range c.tensors {
		total += t.Size
	}
	if said != "" && !sameNumber(said, total) {
		c.warnings = append(c.warnings, fmt.Sprintf("%s: total_size is %.40s, but the tensors have %d bytes", indexName, said, total))
	}
}

// warnLeftOut names the files that look like weights of the model but are none
// of used.
func (c *Checkpoint) warnLeftOut(entries map[string]bool, used []string) {
	for _, name := range slices.Sorted(maps.Keys(entries)) {
		if strings.HasPrefix(name, "model") && filepath.Ext(name) == extension && !slices.Contains(used, name) {
			c.warnings = append(c.warnings, fmt.Sprintf("%q is not part of the checkpoint and is ignored", name))
		}
	}
}

// sameNumber compares a number of a file, which some writers make a float, with n.
func sameNumber(text string, n int64) bool {
	s, err := strictjson.NewScanner(strings.TrimSuffix(text, ".0"))
	if err != nil {
		return false
	}
	v, err := s.Int()
	return err == nil && v == n
}

// openFiles opens all files, reads their headers and joins their tensors.
func (c *Checkpoint) openFiles(paths []string) error {
	for shard, path := range paths {
		f, size, err := openRegular(path)
		if errors.Is(err, syscall.EMFILE) {
			return fmt.Errorf("cannot keep %d shards open at once, raise the limit on open files (ulimit -n): %w", len(paths), err)
		}
		if err != nil {
			return err
		}
		c.handles = append(c.handles, f)
		c.files = append(c.files, FileInfo{Path: path, Size: size})
		h, err := Parse(f, size, path)
		if err != nil {
			return err
		}
		for _, t := range h.Tensors {
			t.Shard = shard
			c.tensors = append(c.tensors, t)
		}
		c.addMetadata(h.Metadata)
	}
	return c.sortTensors()
}

// openRegular opens a file and returns its size. Other things than regular
// files are refused before they are opened: a pipe would block for ever.
func openRegular(path string) (*os.File, int64, error) {
	st, err := os.Stat(path)
	if errors.Is(err, fs.ErrNotExist) {
		if _, lerr := os.Lstat(path); lerr == nil {
			return nil, 0, fmt.Errorf("%w: %q is a link to a file that is missing: the download may be incomplete", ErrFormat, path)
		}
	}
	if err != nil {
		return nil, 0, err
	}
	if !st.Mode().IsRegular() {
		what := "not a regular file"
		if st.IsDir() {
			what = "a directory"
		}
		return nil, 0, fmt.Errorf("%w: %q is %s", ErrFormat, path, what)
	}
	f, err := os.Open(path)
	if err != nil {
		return nil, 0, err
	}
	return f, st.Size(), nil
}

func (c *Checkpoint) addMetadata(m map[string]string) {
	for k, v := range m {
		if c.metadata == nil {
			c.metadata = map[string]string{}
		}
		if _, ok := c.metadata[k]; !ok {
			c.metadata[k] = v
		}
	}
}

// sortTensors brings the tensors into their order and indexes their names.
func (c *Checkpoint) sortTensors() error {
	slices.SortFunc(c.tensors, func(a, b Tensor) int {
		return cmp.Or(cmp.Compare(a.Shard, b.Shard), strings.Compare(a.Name, b.Name))
	})
	c.byName = make(map[string]int, len(c.tensors))
	for i, t := range c.tensors {
		if j, ok := c.byName[t.Name]; ok {
			return fmt.Errorf("%w: duplicate tensor %q: in %q and in %q", ErrFormat, t.Name, c.files[c.tensors[j].Shard].Path, c.files[t.Shard].Path)
		}
		c.byName[t.Name] = i
	}
	return nil
}

// Tensors returns all tensors: files in the order of their names, and in each
// the tensors in the order of theirs, byte by byte. Callers must not change it.
func (c *Checkpoint) Tensors() []Tensor { return c.tensors }

// Lookup returns the index into Tensors of the tensor called name.
func (c *Checkpoint) Lookup(name string) (int, bool) { i, ok := c.byName[name]; return i, ok }

// Files returns the files in the order of their names.
func (c *Checkpoint) Files() []FileInfo { return c.files }

// Metadata returns the "__metadata__" of all files; of a key that occurs in
// several, the value of the first. Callers must not change it.
func (c *Checkpoint) Metadata() map[string]string { return c.metadata }

// Warnings returns what is odd but harmless, one sentence each.
func (c *Checkpoint) Warnings() []string { return c.warnings }

// ReadAt fills p from the data of tensor i (index into Tensors), starting at
// byte off of the tensor. All of p must lie inside; reading less is an error.
func (c *Checkpoint) ReadAt(i int, off int64, p []byte) error {
	t := &c.tensors[i]
	path := c.files[t.Shard].Path
	if off < 0 || off > t.Size-int64(len(p)) {
		return fmt.Errorf("%q: tensor %q: bytes %d to %d are not within its %d bytes", path, t.Name, off, off+int64(len(p)), t.Size)
	}
	if n, err := c.handles[t.Shard].ReadAt(p, t.Offset+off); n < len(p) {
		return fmt.Errorf("%q: tensor %q: %d of %d bytes read at byte %d: %w", path, t.Name, n, len(p), t.Offset+off, noEOF(err))
	}
	return nil
}

// Prefetch asks the system to read n bytes of tensor i, from byte off of it on,
// and does not wait for them. It is advice that may come to nothing.
func (c *Checkpoint) Prefetch(i int, off, n int64) {
	t := &c.tensors[i]
	prefetch.File(c.handles[t.Shard], t.Offset+off, n)
}

// Close closes the files. Closing twice does no harm.
func (c *Checkpoint) Close() error {
	var errs []error
	for _, f := range c.handles {
		if err := f.Close(); !errors.Is(err, os.ErrClosed) {
			errs = append(errs, err)
		}
	}
	return errors.Join(errs...)
}
