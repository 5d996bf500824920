package gguf

import (
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"sync/atomic"
	"syscall"

	"github.com/winnow-moe/winnow/formats/durable"
)

// CreateOptions guard the files that a Writer is about to replace.
type CreateOptions struct {
	// Inputs are files that the output is made from. An output that is one of
	// them, under any name or link, is refused.
	Inputs []string
}

// Writer fills the files of a Layout. Each is called <name>.part in the target
// folder until Commit; an older output stays as it is until then. A part file
// is locked while it is written, so a second run into the same output fails at
// once; a part file that a killed run left behind is taken over.
type Writer struct {
	layout  *Layout
	parts   []*partFile
	written []atomic.Int64 // bytes per tensor
	done    bool
}

// partFile is a shard on its way to its final name.
type partFile struct {
	final string
	temp  string
	file  *os.File
	lock  io.Closer // held until the file has its final name
}

// Create makes the part files for an output called path (see Paths), after
// making sure that the file system has room for all of them.
func (l *Layout) Create(path string, opt CreateOptions) (*Writer, error) {
	w := &Writer{layout: l, written: make([]atomic.Int64, len(l.tensors))}
	for _, p := range l.Paths(path) {
		if err := w.add(p, opt); err != nil {
			w.Abort()
			return nil, err
		}
	}
	if err := w.reserve(); err != nil {
		w.Abort()
		return nil, err
	}
	return w, nil
}

func (w *Writer) add(path string, opt CreateOptions) error {
	temp := path + durable.Suffix
	for _, in := range opt.Inputs {
		for _, out := range []string{path, temp} {
			same, err := SameFile(in, out)
			if err != nil {
				return err
			}
			if same {
				return fmt.Errorf("output %s is the input %s", out, in)
			}
		}
	}
	if st, err := os.Stat(path); err == nil && !st.Mode().IsRegular() {
		return fmt.Errorf("output %w", notRegular(path, st.Mode()))
	}
	file, lock, err := openLocked(temp)
	if err != nil {
		return fmt.Errorf("creating the output: %w", err)
	}
	w.parts = append(w.parts, &partFile{path, temp, file, lock})
	return nil
}

// SameFile reports whether two paths lead to one file, through symbolic or
// hard links too. A path that does not exist is no file.
func SameFile(a, b string) (bool, error) {
	sa, err := os.Stat(a)
	if errors.Is(err, os.ErrNotExist) {
		return false, nil
	}
	if err != nil {
		return false, err
	}
	sb, err := os.Stat(b)
	if errors.Is(err, os.ErrNotExist) {
		return false, nil
	}
	if err != nil {
		return false, err
	}
	return os.SameFile(sa, sb), nil
}

// reserve takes the disk space before hours of work depend on it. A file in
// memory gets its pages one by one whoever asks for them: to reserve them takes
// as long as to write them, on one core.
func (w *Writer) reserve() error {
	dir := filepath.Dir(w.parts[0].final)
	need := w.layout.Size()
	if free, ok := freeBytes(dir); ok && free < need {
		return spaceError(dir, need, free)
	}
	for i, p := range w.parts {
		size := w.layout.ShardSize(i)
		if limit, ok := fileSizeLimit(); ok && size > limit {
			return fmt.Errorf("%s: needs %d bytes, but this process may only write files of %d bytes (ulimit -f): %w", p.final, size, limit, syscall.EFBIG)
		}
		if !onTmpfs(p.file) {
			if err := preallocate(p.file, size); err != nil {
				return w.describe(p, size, err)
			}
		}
		// Sets the length where nothing was allocated, so that padding reads as zeros.
		if err := p.file.Truncate(size); err != nil {
			return w.describe(p, size, err)
		}
	}
	return nil
}

// spaceError says what is needed and what there is; it matches ENOSPC.
func spaceError(path string, need, free int64) error {
	return fmt.Errorf("%s: needs %d bytes, %d are available: %w", path, need, free, syscall.ENOSPC)
}

// describe adds the numbers to an error about a full disk.
func (w *Writer) describe(p *partFile, need int64, err error) error {
	if errors.Is(err, syscall.ENOSPC) {
		free, _ := freeBytes(filepath.Dir(p.final))
		return spaceError(p.final, need, free)
	}
	return fmt.Errorf("writing %s: %w", p.final, err)
}

// WriteAt writes bytes of one tensor, off counted from its start. It may be
// called concurrently, but not together with Commit or Abort. Every byte of a
// tensor must be written exactly once.
func (w *Writer) WriteAt(tensor int, off int64, p []byte) error {
	if w.done {
		return fmt.Errorf("writing tensor %d: %w", tensor, os.ErrClosed)
	}
	t := &w.layout.tensors[tensor]
	if n := int64(len(p)); off < 0 || n > t.Size()-off {
		return fmt.Errorf("tensor %q: %d bytes at offset %d do not fit its %d bytes", t.Name, n, off, t.Size())
	}
	place := w.layout.places[tensor]
	part := w.parts[place.part]
	if _, err := part.file.WriteAt(p, place.offset+off); err != nil {
		return fmt.Errorf("tensor %q: %w", t.Name, w.describe(part, w.layout.ShardSize(place.part), err))
	}
	w.written[tensor].Add(int64(len(p)))
	return nil
}

// Commit makes sure that all tensors are complete, writes the headers, forces
// everything to disk and only then gives the files their final names. After
// an error, Abort removes what is left.
func (w *Writer) Commit() error {
	if w.done {
		return fmt.Errorf("committing: %w", os.ErrClosed)
	}
	for i := range w.written {
		if t := &w.layout.tensors[i]; w.written[i].Load() != t.Size() {
			return fmt.Errorf("tensor %q: %d bytes were written, want %d", t.Name, w.written[i].Load(), t.Size())
		}
	}
	for i, p := range w.parts {
		if err := p.finish(w.layout.Header(i)); err != nil {
			return w.describe(p, w.layout.ShardSize(i), err)
		}
	}
	if err := w.publish(); err != nil {
		return err
	}
	w.done = true
	return w.unlock()
}

// finish completes a part file. The header comes last: what an interrupted run
// leaves starts with zeros and cannot be taken for a model.
func (p *partFile) finish(header []byte) error {
	if _, err := p.file.WriteAt(header, 0); err != nil {
		return err
	}
	if err := p.file.Sync(); err != nil {
		return err
	}
	err := p.file.Close()
	p.file = nil
	return err
}

// publish renames the parts, the first one last: loaders start there, so a set
// under its final names is never without its other parts. After an error
// nothing new stays under a final name.
func (w *Writer) publish() (err error) {
	var named []string
	defer func() {
		if err != nil {
			for _, p := range named {
				os.Remove(p)
			}
		}
	}()
	for i := len(w.parts) - 1; i >= 0; i-- {
		if err := os.Rename(w.parts[i].temp, w.parts[i].final); err != nil {
			return err
		}
		named = append(named, w.parts[i].final)
	}
	return durable.SyncDir(filepath.Dir(w.parts[0].final))
}

func (w *Writer) unlock() error {
	var errs []error
	for _, p := range w.parts {
		errs = append(errs, p.lock.Close())
	}
	return errors.Join(errs...)
}

// Abort removes the part files. It does nothing after a successful Commit, so
// it can be deferred.
func (w *Writer) Abort() {
	if w.done {
		return
	}
	w.done = true
	for _, p := range w.parts {
		if p.file != nil {
			p.file.Close()
		}
		removeLocked(p.temp, p.lock)
	}
}
