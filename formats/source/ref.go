package source

import (
	"errors"
	"fmt"
	"path"
	"regexp"
	"strings"
)

// ErrRef is in the chain of errors about what a reference looks like.
var ErrRef = errors.New("invalid reference to a repository")

// Scheme begins references to repositories on the hub.
const Scheme = "hf:"

// DefaultRevision is that of references without one.
const DefaultRevision = "main"

// Ref is a repository on the hub, or one file of it, at a revision.
type Ref struct {
	Repo     string // org/name
	Path     string // of a file, "" for the whole repository
	Revision string // branch, tag or commit
}

var (
	repoName = regexp.MustCompile(`^[A-Za-z0-9][\w.-]{0,95}/[A-Za-z0-9][\w.-]{0,95}$`)
	revision = regexp.MustCompile(`^[A-Za-z0-9][\w./-]{0,199}$`)
)

// ParseRef reads hf:org/name, hf:org/name/file and either with @revision. ok is
// false for what does not begin with hf:. Errors match ErrRef.
func ParseRef(s string) (ref Ref, ok bool, err error) {
	rest, ok := strings.CutPrefix(s, Scheme)
	if !ok {
		return Ref{}, false, nil
	}
	rest, rev, pinned := strings.Cut(rest, "@")
	ref.Revision = DefaultRevision
	if pinned {
		ref.Revision = rev
	}
	parts := strings.SplitN(strings.Trim(rest, "/"), "/", 3)
	if len(parts) > 2 {
		ref.Path = parts[2]
	}
	ref.Repo = strings.Join(parts[:min(2, len(parts))], "/")
	switch {
	case !repoName.MatchString(ref.Repo) || strings.Contains(ref.Repo, "..") || strings.Contains(ref.Repo, "--"):
		return ref, true, fmt.Errorf("%w: %q, want hf:ORG/NAME[/FILE][@REVISION]", ErrRef, s)
	case !revision.MatchString(ref.Revision) || strings.Contains(ref.Revision, ".."):
		return ref, true, fmt.Errorf("%w: revision %q of %q", ErrRef, ref.Revision, s)
	case ref.Path != "" && checkPath(ref.Path) != nil:
		return ref, true, fmt.Errorf("%w: file %q of %q", ErrRef, ref.Path, s)
	}
	return ref, true, nil
}

func (r Ref) String() string {
	s := Scheme + r.Repo
	if r.Path != "" {
		s += "/" + r.Path
	}
	return s + "@" + r.Revision
}

// checkPath refuses paths that do not stay within a folder, on any system.
func checkPath(p string) error {
	if p == "" || len(p) > 1024 || path.Clean(p) != p || path.IsAbs(p) || strings.HasPrefix(p, "../") || p == ".." || p == "." ||
		strings.ContainsFunc(p, func(r rune) bool { return r < ' ' || r == '\\' || r == ':' || r == 0x7f }) {
		return fmt.Errorf("path %q of a file does not stay within its folder", p)
	}
	return nil
}

// Checkpoint reports whether a file belongs to a checkpoint that winnow reads:
// weights as safetensors, configuration, tokenizer and templates.
func Checkpoint(name string) bool {
	switch path.Ext(name) {
	case ".safetensors", ".json", ".jinja":
		return true
	case ".txt", ".model", ".tiktoken":
		return !strings.Contains(name, "/")
	}
	return false
}
