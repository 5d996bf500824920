package source

import (
	"bytes"
	"context"
	"crypto/sha1"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"math/rand/v2"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"
)

// fakeHub answers as the hub does: large files come from another host.
type fakeHub struct {
	files  map[string][]byte
	hub    *httptest.Server
	cdn    *httptest.Server
	lock   sync.Mutex
	tokens []string // that the other host was told
	asked  []string // ranges of large files
	// wrong changes the answers of the other host, each with its number.
	wrong func(n int, w http.ResponseWriter, r *http.Request, body []byte) bool
	gated bool
}

const fakeCommit = "0123456789abcdef0123456789abcdef01234567"

func newFakeHub(t *testing.T) *fakeHub {
	big := make([]byte, 3<<20)
	rng := rand.New(rand.NewPCG(1, 2))
	for i := range big {
		big[i] = byte(rng.Uint32())
	}
	f := &fakeHub{files: map[string][]byte{"config.json": []byte("{}"), "model.safetensors": big, "sub/more.json": []byte("[1]"), "pytorch_model.bin": {1}}}
	f.hub = httptest.NewServer(http.HandlerFunc(f.answer))
	f.cdn = httptest.NewServer(http.HandlerFunc(f.large))
	t.Cleanup(f.hub.Close)
	t.Cleanup(f.cdn.Close)
	return f
}

func (f *fakeHub) client(t *testing.T) *Hub {
	return &Hub{Endpoint: f.hub.URL, Token: "hf_secret", Cache: t.TempDir(), Timeout: time.Second, Retries: 3, Wait: time.Millisecond}
}

func isLarge(name string) bool { return strings.HasSuffix(name, ".safetensors") }

func gitHash(b []byte) string {
	h := sha1.New()
	fmt.Fprintf(h, "blob %d\x00", len(b))
	h.Write(b)
	return hex.EncodeToString(h.Sum(nil))
}

func (f *fakeHub) answer(w http.ResponseWriter, r *http.Request) {
	name, resolve := strings.CutPrefix(r.URL.Path, "/org/m/resolve/"+fakeCommit+"/")
	switch {
	case f.gated:
		w.Header().Set("X-Error-Code", "GatedRepo")
		w.WriteHeader(http.StatusForbidden)
	case r.URL.Path == "/api/models/org/m/revision/main":
		fmt.Fprintf(w, `{"sha":%q}`, fakeCommit)
	case r.URL.Path == "/api/models/org/m/tree/"+fakeCommit:
		f.list(w, r)
	case resolve && isLarge(name):
		http.Redirect(w, r, strings.Replace(f.cdn.URL, "127.0.0.1", "localhost", 1)+"/"+name, http.StatusFound)
	case resolve && f.files[name] != nil:
		w.Write(f.files[name])
	default:
		w.Header().Set("X-Error-Code", "RevisionNotFound")
		w.WriteHeader(http.StatusNotFound)
	}
}

// list gives two files a page.
func (f *fakeHub) list(w http.ResponseWriter, r *http.Request) {
	names := []string{"config.json", "model.safetensors", "pytorch_model.bin", "sub/more.json"}
	at, _ := strconv.Atoi(r.URL.Query().Get("cursor"))
	var page []map[string]any
	for _, n := range names[at : at+2] {
		e := map[string]any{"type": "file", "path": n, "size": len(f.files[n]), "oid": gitHash(f.files[n])}
		if isLarge(n) {
			sum := sha256.Sum256(f.files[n])
			e["oid"], e["lfs"] = gitHash(sum[:]), map[string]any{"oid": hex.EncodeToString(sum[:]), "size": len(f.files[n])}
		}
		page = append(page, e)
	}
	if at == 0 {
		w.Header().Set("Link", fmt.Sprintf(`<%s%s?recursive=true&cursor=2>; rel="next"`, f.hub.URL, r.URL.Path))
	}
	json.NewEncoder(w).Encode(page)
}

// large serves large files, with ranges, as the other host.
func (f *fakeHub) large(w http.ResponseWriter, r *http.Request) {
	f.lock.Lock()
	f.tokens = append(f.tokens, r.Header.Get("Authorization"))
	f.asked = append(f.asked, r.Header.Get("Range"))
	n := len(f.asked)
	f.lock.Unlock()
	body := f.files[strings.TrimPrefix(r.URL.Path, "/")]
	if f.wrong != nil && f.wrong(n, w, r, body) {
		return
	}
	w.Header().Set("ETag", `"v1"`)
	http.ServeContent(w, r, "", time.Time{}, bytes.NewReader(body))
}

// hangUp sends the head of a whole answer and n bytes.
func hangUp(w http.ResponseWriter, body []byte, n int) {
	w.Header().Set("ETag", `"v1"`)
	w.Header().Set("Content-Length", strconv.Itoa(len(body)))
	w.Write(body[:n])
	panic(http.ErrAbortHandler)
}

func get(t *testing.T, h *Hub) (string, error) {
	t.Helper()
	ref, _, err := ParseRef("hf:org/m")
	if err != nil {
		t.Fatal(err)
	}
	s, err := h.Snapshot(t.Context(), ref)
	if err != nil {
		return "", err
	}
	return h.Download(t.Context(), s, Checkpoint, Events{})
}

func (f *fakeHub) check(t *testing.T, dir string) {
	t.Helper()
	for name, want := range f.files {
		got, err := os.ReadFile(filepath.Join(dir, name))
		if Checkpoint(name) && (err != nil || !bytes.Equal(got, want)) {
			t.Errorf("%s: %d bytes, %v", name, len(got), err)
		}
		if !Checkpoint(name) && err == nil {
			t.Errorf("%s was not asked for", name)
		}
	}
	for _, token := range f.tokens {
		if token != "" {
			t.Errorf("another host was told the token")
		}
	}
}

// TestDownload: whatever goes wrong on the way, what arrives is what is listed.
func TestDownload(t *testing.T) {
	const half = 1 << 20
	for name, c := range map[string]struct {
		wrong func(n int, w http.ResponseWriter, r *http.Request, body []byte) bool
		asked string // the last range
	}{
		"nothing": {},
		"hangs up": {func(n int, w http.ResponseWriter, _ *http.Request, body []byte) bool {
			if n == 1 {
				hangUp(w, body, half)
			}
			return false
		}, "bytes=1048576-"},
		"range ignored": {func(n int, w http.ResponseWriter, _ *http.Request, body []byte) bool {
			if n == 1 {
				hangUp(w, body, half)
			}
			w.Write(body)
			return true
		}, "bytes=1048576-"},
		"range shifted once": {func(n int, w http.ResponseWriter, _ *http.Request, body []byte) bool {
			switch n {
			case 1:
				hangUp(w, body, half)
			case 2:
				w.Header().Set("Content-Range", fmt.Sprintf("bytes %d-%d/%d", half+16, len(body)-1, len(body)))
				w.WriteHeader(http.StatusPartialContent)
				w.Write(body[half+16:])
				return true
			}
			return false
		}, "bytes=1048576-"},
		"changed": {func(n int, w http.ResponseWriter, r *http.Request, body []byte) bool {
			if n == 1 {
				hangUp(w, append([]byte{^body[0]}, body[1:]...), half)
			}
			w.Header().Set("ETag", `"v2"`)
			http.ServeContent(w, r, "", time.Time{}, bytes.NewReader(body))
			return true
		}, "bytes=1048576-"},
		"corrupt once": {func(n int, w http.ResponseWriter, _ *http.Request, body []byte) bool {
			if n == 1 {
				bad := bytes.Clone(body)
				bad[half] ^= 1
				w.Write(bad)
			}
			return n == 1
		}, ""},
		"busy": {func(n int, w http.ResponseWriter, _ *http.Request, _ []byte) bool {
			if n < 3 {
				w.WriteHeader([]int{0, http.StatusServiceUnavailable, http.StatusTooManyRequests}[n])
			}
			return n < 3
		}, ""},
		"link expired": {func(n int, w http.ResponseWriter, _ *http.Request, body []byte) bool {
			switch n {
			case 1:
				hangUp(w, body, half)
			case 2:
				w.WriteHeader(http.StatusForbidden)
				return true
			}
			return false
		}, "bytes=1048576-"},
		"page instead": {func(n int, w http.ResponseWriter, _ *http.Request, _ []byte) bool {
			if n == 1 {
				w.Write([]byte("<html>sign in</html>"))
			}
			return n == 1
		}, ""},
	} {
		t.Run(name, func(t *testing.T) {
			f := newFakeHub(t)
			f.wrong = c.wrong
			dir, err := get(t, f.client(t))
			if err != nil {
				t.Fatal(err)
			}
			f.check(t, dir)
			if got := f.asked[len(f.asked)-1]; got != c.asked {
				t.Errorf("asked last for %q of %q, want %q", got, f.asked, c.asked)
			}
		})
	}
}

// TestDownloadAgain: what is there is not asked for again; what was left is gone on
// from, by another process as well; the listing's hashes are kept to.
func TestDownloadAgain(t *testing.T) {
	f := newFakeHub(t)
	h := f.client(t)
	h.Retries = 0
	f.wrong = func(_ int, w http.ResponseWriter, _ *http.Request, body []byte) bool {
		hangUp(w, body, 1<<20)
		return true
	}
	if _, err := get(t, h); !errors.Is(err, ErrNetwork) {
		t.Fatalf("error %v", err)
	}
	f.wrong = nil
	dir, err := get(t, h)
	if err != nil || f.asked[len(f.asked)-1] != "bytes=1048576-" {
		t.Fatalf("asked for %q: %v", f.asked, err)
	}
	f.check(t, dir)
	n := len(f.asked)
	if again, err := get(t, h); err != nil || again != dir || len(f.asked) != n {
		t.Errorf("asked %d times more: %v", len(f.asked)-n, err)
	}
	left, _ := filepath.Glob(filepath.Join(h.Cache, "models--org--m", "blobs", "*.*"))
	if commit, err := os.ReadFile(filepath.Join(h.Cache, "models--org--m", "refs", "main")); err != nil || string(commit) != fakeCommit || len(left) != 0 {
		t.Errorf("refs/main is %q (%v); left are %q", commit, err, left)
	}
	h.Offline = true
	f.hub.Close()
	if again, err := get(t, h); err != nil || again != dir {
		t.Errorf("offline: %q, %v", again, err)
	}
	ref, _, _ := ParseRef("hf:org/other")
	if _, err := h.Snapshot(t.Context(), ref); !errors.Is(err, ErrAccess) || !strings.Contains(err.Error(), "HF_HUB_OFFLINE") {
		t.Errorf("offline, not there: %v", err)
	}
}

// TestDownloadRefused: what cannot be right is an error, and nothing has its name.
func TestDownloadRefused(t *testing.T) {
	corrupt := func(_ int, w http.ResponseWriter, _ *http.Request, body []byte) bool {
		w.Write(append([]byte{^body[0]}, body[1:]...))
		return true
	}
	stall := func(_ int, w http.ResponseWriter, r *http.Request, body []byte) bool {
		w.Header().Set("Content-Length", strconv.Itoa(len(body)))
		w.Write(body[:10])
		w.(http.Flusher).Flush()
		<-r.Context().Done()
		return true
	}
	loop := func(_ int, w http.ResponseWriter, r *http.Request, _ []byte) bool {
		http.Redirect(w, r, r.URL.Path, http.StatusFound)
		return true
	}
	for name, c := range map[string]struct {
		wrong func(n int, w http.ResponseWriter, r *http.Request, body []byte) bool
		want  error
		words string
	}{
		"corrupt": {corrupt, ErrCorrupt, "model.safetensors"},
		"stalls":  {stall, ErrNetwork, "nothing arrived for too long"},
		"loop":    {loop, ErrNetwork, "redirects"},
		"busy": {func(_ int, w http.ResponseWriter, _ *http.Request, _ []byte) bool {
			w.WriteHeader(http.StatusBadGateway)
			return true
		}, ErrNetwork, "502"},
	} {
		t.Run(name, func(t *testing.T) {
			f := newFakeHub(t)
			f.wrong = c.wrong
			h := f.client(t)
			h.Timeout, h.Retries = 50*time.Millisecond, 1
			_, err := get(t, h)
			if err == nil || !errors.Is(err, c.want) || !strings.Contains(err.Error(), c.words) {
				t.Errorf("error %v, want %v with %q", err, c.want, c.words)
			}
			if found, _ := filepath.Glob(filepath.Join(h.Cache, "models--org--m", "snapshots", "*", "*.safetensors")); len(found) > 0 {
				t.Errorf("%q has its name", found)
			}
		})
	}
	f := newFakeHub(t)
	f.gated = true
	h := f.client(t)
	if _, err := get(t, h); !errors.Is(err, ErrAccess) || !strings.Contains(err.Error(), "this token") {
		t.Errorf("gated: %v", err)
	}
	h.Token = ""
	if _, err := get(t, h); !errors.Is(err, ErrAccess) || !strings.Contains(err.Error(), "conditions") {
		t.Errorf("gated, no token: %v", err)
	}
	f.gated = false
	ref, _, _ := ParseRef("hf:org/m@nope")
	if _, err := h.Snapshot(t.Context(), ref); !errors.Is(err, ErrAccess) || !strings.Contains(err.Error(), `no revision "nope"`) {
		t.Errorf("revision: %v", err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := h.Snapshot(ctx, ref); !errors.Is(err, context.Canceled) {
		t.Errorf("cancelled: %v", err)
	}
}

func TestParseRef(t *testing.T) {
	for s, want := range map[string]Ref{
		"hf:org/name":                  {"org/name", "", "main"},
		"hf:org/name@v1.0":             {"org/name", "", "v1.0"},
		"hf:o.r-g/n_a.me/sub/x.gguf@a": {"o.r-g/n_a.me", "sub/x.gguf", "a"},
	} {
		if got, ok, err := ParseRef(s); got != want || !ok || err != nil {
			t.Errorf("%q: %+v, %v, %v", s, got, ok, err)
		}
	}
	if _, ok, err := ParseRef("folder/hf:x"); ok || err != nil {
		t.Error("a path is no reference")
	}
	for _, s := range []string{"hf:", "hf:name", "hf:../x", "hf:a/..", "hf:a/b@", "hf:a/b@../c", "hf:a/b/../../c", "hf:a--b/c", "hf:a/b/c\nd", "hf:a/b@x y"} {
		if ref, ok, err := ParseRef(s); !ok || !errors.Is(err, ErrRef) {
			t.Errorf("%q: %+v, %v", s, ref, err)
		}
	}
}

// TestListing: names and hashes of a listing are not trusted.
func TestListing(t *testing.T) {
	good := entry{Type: "file", Path: "a.json", Size: 1, OID: fakeCommit}
	for name, change := range map[string]func(*entry){
		"outside":   func(e *entry) { e.Path = "../a.json" },
		"absolute":  func(e *entry) { e.Path = "/etc/passwd" },
		"backslash": func(e *entry) { e.Path = `..\a` },
		"control":   func(e *entry) { e.Path = "a\x1b[2J" },
		"hash":      func(e *entry) { e.OID = "../../x" },
		"size":      func(e *entry) { e.Size = -1 },
	} {
		e := good
		change(&e)
		if err := (&Snapshot{}).add([]entry{e}); err == nil {
			t.Errorf("%s: no error", name)
		}
	}
	if err := (&Snapshot{}).add([]entry{good}); err != nil {
		t.Error(err)
	}
}

func TestFromEnv(t *testing.T) {
	home := t.TempDir()
	if err := os.WriteFile(filepath.Join(home, "token"), []byte("hf_file\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	env := map[string]string{"HF_HOME": home}
	h, err := FromEnv(func(k string) string { return env[k] })
	if err != nil || h.Token != "hf_file" || h.Cache != filepath.Join(home, "hub") || h.Endpoint != defaultEndpoint || h.Offline {
		t.Errorf("%+v, %v", h, err)
	}
	env = map[string]string{"HF_HOME": home, "HF_TOKEN": "hf_env", "HF_HUB_CACHE": "/c", "HF_ENDPOINT": "http://x:1/", "HF_HUB_OFFLINE": "yes", "HF_HUB_DOWNLOAD_TIMEOUT": "2.5"}
	h, err = FromEnv(func(k string) string { return env[k] })
	if err != nil || h.Token != "hf_env" || h.Cache != "/c" || h.Endpoint != "http://x:1" || !h.Offline || h.Timeout != 2500*time.Millisecond {
		t.Errorf("%+v, %v", h, err)
	}
	for k, v := range map[string]string{"HF_ENDPOINT": "ftp://x", "HF_TOKEN": "a b", "HF_HUB_DOWNLOAD_TIMEOUT": "soon"} {
		if _, err := FromEnv(func(s string) string {
			if s == k {
				return v
			}
			return map[string]string{"HF_HOME": home}[s]
		}); err == nil {
			t.Errorf("%s=%s: no error", k, v)
		}
	}
}
