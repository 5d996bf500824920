package source

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/winnow-moe/winnow/formats/durable"
)

// The cache is huggingface_hub's (hub-docs, local-cache.md):
//
//	models--org--name/blobs/<hash>               contents
//	models--org--name/refs/<revision>            a commit
//	models--org--name/snapshots/<commit>/<file>  links to contents
//	.locks/models--org--name/<hash>.lock         held while contents arrive
type cache struct{ root, name string }

func (h *Hub) cacheOf(repo string) *cache {
	return &cache{h.Cache, "models--" + strings.ReplaceAll(repo, "/", "--")}
}

func (c *cache) blob(hash string) string { return filepath.Join(c.root, c.name, "blobs", hash) }

func (c *cache) ref(revision string) string {
	return filepath.Join(c.root, c.name, "refs", filepath.FromSlash(revision))
}

func (c *cache) snapshot(commit string) string {
	return filepath.Join(c.root, c.name, "snapshots", commit)
}

func (c *cache) lock(hash string) string {
	return filepath.Join(c.root, ".locks", c.name, hash+".lock")
}

// has reports whether contents of a size are there.
func (c *cache) has(f *File) bool {
	st, err := os.Stat(c.blob(f.hash()))
	return err == nil && st.Mode().IsRegular() && st.Size() == f.Size
}

// link gives contents their name in a snapshot. Where links cannot be made it is
// another name of the same file, or a copy.
func (c *cache) link(commit string, f *File) error {
	path := filepath.Join(c.snapshot(commit), filepath.FromSlash(f.Path))
	if err := os.MkdirAll(filepath.Dir(path), 0o777); err != nil {
		return err
	}
	target, err := filepath.Rel(filepath.Dir(path), c.blob(f.hash()))
	if err != nil {
		return err
	}
	if now, err := os.Readlink(path); err == nil && now == target {
		return nil
	}
	if st, err := os.Lstat(path); err == nil && st.Mode().IsRegular() && st.Size() == f.Size {
		return nil // a system without links put it there
	}
	temp := path + durable.Suffix
	os.Remove(temp)
	if os.Symlink(target, temp) != nil {
		if err := os.Link(c.blob(f.hash()), temp); err != nil {
			return err
		}
	}
	return os.Rename(temp, path)
}

// remember notes which commit a revision is.
func (c *cache) remember(revision, commit string) error {
	if revision == commit {
		return nil
	}
	path := c.ref(revision)
	if now, err := os.ReadFile(path); err == nil && string(now) == commit {
		return nil
	}
	if err := os.MkdirAll(filepath.Dir(path), 0o777); err != nil {
		return err
	}
	return durable.WriteBytes(path, []byte(commit))
}

// cached is the snapshot that the cache has of a reference.
func (h *Hub) cached(ref Ref) (*Snapshot, error) {
	c := h.cacheOf(ref.Repo)
	s := &Snapshot{Ref: ref, Commit: ref.Revision}
	if !commitHash.MatchString(ref.Revision) {
		raw, err := os.ReadFile(c.ref(ref.Revision))
		if err != nil && !errors.Is(err, fs.ErrNotExist) {
			return nil, err
		}
		if s.Commit = strings.TrimSpace(string(raw)); !commitHash.MatchString(s.Commit) {
			return nil, offline(ref, c)
		}
	}
	dir := c.snapshot(s.Commit)
	err := filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() {
			return err
		}
		st, err := os.Stat(path)
		if err != nil {
			return err
		}
		name, err := filepath.Rel(dir, path)
		s.Files = append(s.Files, File{Path: filepath.ToSlash(name), Size: st.Size()})
		return err
	})
	if errors.Is(err, fs.ErrNotExist) {
		return nil, offline(ref, c)
	}
	slices.SortFunc(s.Files, func(a, b File) int { return strings.Compare(a.Path, b.Path) })
	return s, err
}

func offline(ref Ref, c *cache) error {
	return &accessError{fmt.Sprintf("%s is not in the cache %s, and HF_HUB_OFFLINE is set", ref, c.root), "unset HF_HUB_OFFLINE, or download it before"}
}
