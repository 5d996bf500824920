package source

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"sync"
	"time"
)

// Hub is a Hugging Face Hub, or a server like it, with the cache of what came from
// there.
type Hub struct {
	Endpoint string // without a slash at the end
	Token    string // "": none
	Cache    string // the folder with models--org--name
	Offline  bool   // only what is in the cache
	// Timeout is how long nothing may arrive before a request is given up.
	Timeout time.Duration
	// Retries is how often a request is repeated that brought nothing new.
	Retries int
	// Wait is the first pause before one, which doubles each time; tests set it.
	Wait time.Duration

	once   sync.Once
	client *http.Client
}

const (
	defaultEndpoint = "https://huggingface.co"
	defaultTimeout  = 10 * time.Second
	defaultRetries  = 5
	defaultWait     = time.Second
)

// FromEnv is the hub that the environment describes as huggingface_hub reads it:
// HF_ENDPOINT, HF_TOKEN or the file HF_TOKEN_PATH, HF_HUB_CACHE, HF_HOME,
// HF_HUB_OFFLINE, HF_HUB_DOWNLOAD_TIMEOUT.
func FromEnv(getenv func(string) string) (*Hub, error) {
	h := &Hub{Endpoint: strings.TrimRight(first(getenv("HF_ENDPOINT"), defaultEndpoint), "/"), Timeout: defaultTimeout, Retries: defaultRetries, Wait: defaultWait}
	u, err := url.Parse(h.Endpoint)
	if err != nil || u.Host == "" || u.Scheme != "https" && u.Scheme != "http" {
		return nil, fmt.Errorf("HF_ENDPOINT is %q, want the address of a hub such as %s", h.Endpoint, defaultEndpoint)
	}
	home := getenv("HF_HOME")
	if home == "" {
		base := getenv("XDG_CACHE_HOME")
		if base == "" {
			dir, err := os.UserHomeDir()
			if err != nil {
				return nil, err
			}
			base = filepath.Join(dir, ".cache")
		}
		home = filepath.Join(base, "huggingface")
	}
	h.Cache = first(getenv("HF_HUB_CACHE"), getenv("HUGGINGFACE_HUB_CACHE"), filepath.Join(home, "hub"))
	h.Offline = isTrue(getenv("HF_HUB_OFFLINE"))
	if h.Token = strings.TrimSpace(first(getenv("HF_TOKEN"), getenv("HUGGING_FACE_HUB_TOKEN"))); h.Token == "" {
		raw, err := os.ReadFile(first(getenv("HF_TOKEN_PATH"), filepath.Join(home, "token")))
		if err == nil {
			h.Token = strings.TrimSpace(string(raw))
		} else if !errors.Is(err, os.ErrNotExist) {
			return nil, fmt.Errorf("the token: %w", err)
		}
	}
	if strings.ContainsFunc(h.Token, func(r rune) bool { return r <= ' ' || r > '~' }) {
		return nil, errors.New("the token has characters that no token has")
	}
	if s := getenv("HF_HUB_DOWNLOAD_TIMEOUT"); s != "" {
		seconds, err := time.ParseDuration(s + "s")
		if err != nil || seconds <= 0 {
			return nil, fmt.Errorf("HF_HUB_DOWNLOAD_TIMEOUT is %q, want a number of seconds", s)
		}
		h.Timeout = seconds
	}
	return h, nil
}

func first(list ...string) string {
	for _, s := range list {
		if s != "" {
			return s
		}
	}
	return ""
}

func isTrue(s string) bool {
	switch strings.ToUpper(s) {
	case "1", "ON", "YES", "TRUE":
		return true
	}
	return false
}

// File is a file of a repository.
type File struct {
	Path string
	Size int64
	// Git is the Git hash of what the repository has: the file, or a pointer to it.
	// SHA256 is that of a large file, "" for small ones.
	Git, SHA256 string
}

// hash names the contents: the name of the file in the cache.
func (f *File) hash() string { return first(f.SHA256, f.Git) }

// Snapshot is a repository at a commit.
type Snapshot struct {
	Ref
	Commit string
	Files  []File
}

// Limits on what a listing may claim.
const (
	maxPage  = 64 << 20 // bytes of an answer
	maxFiles = 200_000
)

var (
	commitHash = regexp.MustCompile(`^[0-9a-f]{40}$`)
	largeHash  = regexp.MustCompile(`^[0-9a-f]{64}$`)
)

// Snapshot resolves a reference to a commit and lists its files. Offline, and only
// then, it is what the cache has.
func (h *Hub) Snapshot(ctx context.Context, ref Ref) (*Snapshot, error) {
	if h.Offline {
		return h.cached(ref)
	}
	var info struct {
		SHA string `json:"sha"`
	}
	if _, err := h.api(ctx, ref, "/api/models/"+ref.Repo+"/revision/"+url.PathEscape(ref.Revision), &info); err != nil {
		return nil, err
	}
	if !commitHash.MatchString(info.SHA) {
		return nil, fmt.Errorf("%s: the hub names the commit %q, which is none", ref, info.SHA)
	}
	s := &Snapshot{Ref: ref, Commit: info.SHA}
	next := "/api/models/" + ref.Repo + "/tree/" + s.Commit + "?recursive=true&limit=1000"
	for next != "" {
		var page []entry
		link, err := h.api(ctx, ref, next, &page)
		if err != nil {
			return nil, err
		}
		if err := s.add(page); err != nil {
			return nil, fmt.Errorf("%s: %w", ref, err)
		}
		if next, err = h.nextPage(link, next); err != nil {
			return nil, fmt.Errorf("%s: %w", ref, err)
		}
	}
	return s, nil
}

// entry is one of a listing.
type entry struct {
	Type string `json:"type"`
	Path string `json:"path"`
	Size int64  `json:"size"`
	OID  string `json:"oid"`
	LFS  *struct {
		OID  string `json:"oid"`
		Size int64  `json:"size"`
	} `json:"lfs"`
}

// add adds a page of a listing.
func (s *Snapshot) add(page []entry) error {
	for _, e := range page {
		if e.Type != "file" {
			continue
		}
		f := File{Path: e.Path, Size: e.Size, Git: e.OID}
		if e.LFS != nil {
			f.Size, f.SHA256 = e.LFS.Size, e.LFS.OID
		}
		switch {
		case checkPath(f.Path) != nil:
			return checkPath(f.Path)
		case f.Size < 0 || !commitHash.MatchString(f.Git) || f.SHA256 != "" && !largeHash.MatchString(f.SHA256):
			return fmt.Errorf("the listing has size %d and hash %q of %q", f.Size, f.hash(), f.Path)
		case len(s.Files) == maxFiles:
			return fmt.Errorf("more than %d files", maxFiles)
		}
		s.Files = append(s.Files, f)
	}
	return nil
}

// nextPage returns the path of the page after one, "" after the last. A page on
// another server is none of ours.
func (h *Hub) nextPage(link, last string) (string, error) {
	for part := range strings.SplitSeq(link, ",") {
		target, params, ok := strings.Cut(part, ";")
		if !ok || !strings.Contains(params, `rel="next"`) {
			continue
		}
		u, err := url.Parse(strings.Trim(strings.TrimSpace(target), "<>"))
		if err != nil {
			return "", err
		}
		base, _ := url.Parse(h.Endpoint)
		if u.Host != "" && u.Host != base.Host || u.RequestURI() == last {
			return "", fmt.Errorf("the listing goes on at %q, which is not its next page", u.Redacted())
		}
		return u.RequestURI(), nil
	}
	return "", nil
}

// api asks the hub for JSON, and returns where the listing goes on.
func (h *Hub) api(ctx context.Context, ref Ref, path string, into any) (link string, err error) {
	err = h.retry(ctx, func(ctx context.Context) (bool, error) {
		resp, err := h.get(ctx, path, nil)
		if err != nil {
			return false, err
		}
		defer resp.Body.Close()
		if resp.StatusCode != http.StatusOK {
			return false, h.refusal(resp, ref)
		}
		raw, err := io.ReadAll(io.LimitReader(resp.Body, maxPage+1))
		if err != nil {
			return false, &temporary{err: err}
		}
		if len(raw) > maxPage {
			return false, fmt.Errorf("%s: an answer of more than %d bytes", ref, maxPage)
		}
		if err := json.Unmarshal(raw, into); err != nil {
			return false, &temporary{err: fmt.Errorf("%s: the answer is not JSON: %w", ref, err)}
		}
		link = resp.Header.Get("Link")
		return true, nil
	})
	return link, err
}
