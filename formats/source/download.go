package source

import (
	"context"
	"crypto/sha1"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"hash"
	"io"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync/atomic"

	"golang.org/x/sync/errgroup"

	"github.com/winnow-moe/winnow/formats/durable"
)

// ErrCorrupt is in the chain of errors about contents that are not what the hub
// lists.
var ErrCorrupt = errors.New("corrupt contents")

// Events report progress. They are called from several goroutines. Nil fields are
// skipped.
type Events struct {
	// Progress is called as bytes arrive, with those that were there before, of all
	// files.
	Progress func(done, total int64)
}

const (
	// parallel is how many files arrive at a time.
	parallel = 4
	// enough bytes are a reason to be patient with a broken connection.
	enough = 1 << 20
	// corruptTries is how often contents with another hash are asked for again.
	corruptTries = 2
)

// Download brings the files of a snapshot that are wanted into the cache, and
// returns its folder. Files that are there are not asked for again.
func (h *Hub) Download(ctx context.Context, s *Snapshot, want func(path string) bool, events Events) (dir string, err error) {
	c := h.cacheOf(s.Repo)
	dir = c.snapshot(s.Commit)
	if h.Offline {
		return dir, nil
	}
	var files []*File
	p := &downloading{events: events}
	for i := range s.Files {
		if f := &s.Files[i]; want(f.Path) {
			files = append(files, f)
			p.total += f.Size
		}
	}
	if err := os.MkdirAll(filepath.Dir(c.blob("x")), 0o777); err != nil {
		return "", err
	}
	g, ctx := errgroup.WithContext(ctx)
	g.SetLimit(parallel)
	for _, f := range files {
		g.Go(func() error {
			if err := h.fetch(ctx, s, f, c, p); err != nil {
				return err
			}
			return c.link(s.Commit, f)
		})
	}
	if err := g.Wait(); err != nil {
		return "", err
	}
	return dir, c.remember(s.Revision, s.Commit)
}

// Verify compares the files of a snapshot in the cache with what the hub lists.
// Errors match ErrCorrupt.
func (h *Hub) Verify(ctx context.Context, s *Snapshot, want func(path string) bool, events Events) error {
	c, p := h.cacheOf(s.Repo), &downloading{events: events}
	for i := range s.Files {
		if want(s.Files[i].Path) {
			p.total += s.Files[i].Size
		}
	}
	for i := range s.Files {
		f := &s.Files[i]
		if !want(f.Path) {
			continue
		}
		sum := f.newSum()
		if _, err := copyFile(ctx, sum, c.blob(f.hash()), p); err != nil {
			return err
		}
		if got := sum.text(); got != f.hash() {
			return &corruptError{c.blob(f.hash()), f.hash(), got}
		}
	}
	return nil
}

// downloading is the progress of all files.
type downloading struct {
	events Events
	total  int64
	done   atomic.Int64
}

func (p *downloading) add(n int64) {
	if done := p.done.Add(n); p.events.Progress != nil {
		p.events.Progress(done, p.total)
	}
}

// corruptError names contents with another hash.
type corruptError struct{ name, want, got string }

func (e *corruptError) Error() string {
	return fmt.Sprintf("%q has the hash %s, the hub lists %s", e.name, e.got, e.want)
}
func (e *corruptError) Hint() string         { return "remove it and download it again" }
func (e *corruptError) Is(target error) bool { return target == ErrCorrupt }

// fetch brings a file into the cache, unless it is there.
func (h *Hub) fetch(ctx context.Context, s *Snapshot, f *File, c *cache, p *downloading) error {
	if c.has(f) {
		p.add(f.Size)
		return nil
	}
	return locked(ctx, c.lock(f.hash()), func() error {
		if c.has(f) { // another program brought it meanwhile
			p.add(f.Size)
			return nil
		}
		var err error
		for range corruptTries {
			d := &download{Hub: h, s: s, f: f, p: p, temp: c.blob(f.hash()) + ".incomplete"}
			if err = d.run(ctx); !errors.Is(err, ErrCorrupt) {
				break
			}
			p.add(-f.Size) // from the beginning
		}
		if err != nil {
			return fmt.Errorf("%s: %s: %w", s.Ref, f.Path, err)
		}
		return durable.Rename(c.blob(f.hash())+".incomplete", c.blob(f.hash()))
	})
}

// sum is the hash that names contents.
type sum struct{ hash.Hash }

func (f *File) newSum() sum {
	if f.SHA256 != "" {
		return sum{sha256.New()}
	}
	s := sum{sha1.New()} // Git's, of small files
	fmt.Fprintf(s, "blob %d\x00", f.Size)
	return s
}

func (s sum) text() string { return hex.EncodeToString(s.Sum(nil)) }

// download is a file on its way.
type download struct {
	*Hub
	s    *Snapshot
	f    *File
	p    *downloading
	temp string

	file *os.File
	sum  sum
	have int64
	etag string // of what has arrived; "" where it came in another run
}

// run goes on from what is there until the file is complete, and verifies it. What
// has arrived stays when it fails, unless it is corrupt.
func (d *download) run(ctx context.Context) (err error) {
	if d.file, err = os.OpenFile(d.temp, os.O_RDWR|os.O_CREATE, 0o666); err != nil {
		return err
	}
	defer func() { err = errors.Join(err, d.file.Close()) }()
	if err := d.take(ctx); err != nil {
		return err
	}
	for d.have < d.f.Size {
		if err := d.retry(ctx, d.receive); err != nil {
			return err
		}
	}
	if got := d.sum.text(); got != d.f.hash() {
		return errors.Join(&corruptError{d.f.Path, d.f.hash(), got}, d.file.Truncate(0))
	}
	return d.file.Sync()
}

// take takes up what an earlier run left.
func (d *download) take(ctx context.Context) error {
	st, err := d.file.Stat()
	if err != nil {
		return err
	}
	if st.Size() > d.f.Size {
		return d.restart()
	}
	d.sum = d.f.newSum()
	d.have, err = copyReader(ctx, d.sum, d.file, d.p)
	return err
}

// restart forgets what has arrived.
func (d *download) restart() error {
	d.p.add(-d.have)
	d.sum, d.have, d.etag = d.f.newSum(), 0, ""
	_, err := d.file.Seek(0, io.SeekStart)
	return errors.Join(err, d.file.Truncate(0))
}

// receive asks for what is missing and takes what comes.
func (d *download) receive(ctx context.Context) (progress bool, err error) {
	header := http.Header{}
	if d.have > 0 {
		header.Set("Range", "bytes="+strconv.FormatInt(d.have, 10)+"-")
		if d.etag != "" && !strings.HasPrefix(d.etag, "W/") {
			header.Set("If-Range", d.etag)
		}
	}
	resp, err := d.get(ctx, "/"+d.s.Repo+"/resolve/"+d.s.Commit+"/"+escape(d.f.Path), header)
	if err != nil {
		return false, err
	}
	defer resp.Body.Close()
	if err := d.begin(resp); err != nil {
		return false, err
	}
	n, err := copyReader(ctx, io.MultiWriter(d.file, d.sum), io.LimitReader(resp.Body, d.f.Size-d.have+1), d.p)
	d.have += n
	switch {
	case d.have > d.f.Size:
		return false, errors.Join(&temporary{err: fmt.Errorf("more than its %d bytes arrive", d.f.Size)}, d.restart())
	case err != nil && isDisk(err):
		return false, err
	case d.have < d.f.Size:
		if err == nil {
			err = io.ErrUnexpectedEOF
		}
		return n >= enough, &temporary{err: fmt.Errorf("%d of %d bytes arrived: %w", d.have, d.f.Size, err)}
	}
	return true, nil
}

// begin decides from the head of an answer whether its body goes on from what is
// there.
func (d *download) begin(resp *http.Response) error {
	switch resp.StatusCode {
	case http.StatusOK:
		if d.have > 0 {
			if err := d.restart(); err != nil { // it begins anew
				return err
			}
		}
	case http.StatusPartialContent:
		var from, to, size int64
		if n, err := fmt.Sscanf(resp.Header.Get("Content-Range"), "bytes %d-%d/%d", &from, &to, &size); err != nil || n != 3 || from != d.have || size != d.f.Size {
			return &temporary{err: fmt.Errorf("asked for bytes from %d of %d on, the answer is %q", d.have, d.f.Size, resp.Header.Get("Content-Range"))}
		}
	case http.StatusRequestedRangeNotSatisfiable:
		return errors.Join(&temporary{err: errors.New("the range is not there")}, d.restart())
	default:
		ref := d.s.Ref
		ref.Path = d.f.Path
		return d.refusal(resp, ref)
	}
	if etag := resp.Header.Get("ETag"); d.have == 0 {
		d.etag = etag
	} else if d.etag != "" && etag != d.etag {
		return errors.Join(&temporary{err: errors.New("the file changed while it arrived")}, d.restart())
	}
	if n := resp.ContentLength; n >= 0 && n != d.f.Size-d.have {
		return &temporary{err: fmt.Errorf("%d bytes are announced where %d are missing", n, d.f.Size-d.have)}
	}
	return nil
}

// escape writes a path in a URL.
func escape(path string) string {
	parts := strings.Split(path, "/")
	for i, p := range parts {
		parts[i] = url.PathEscape(p)
	}
	return strings.Join(parts, "/")
}

// isDisk reports whether an error is of the disk and not of the network.
func isDisk(err error) bool {
	var p *os.PathError
	return errors.As(err, &p)
}

func copyFile(ctx context.Context, to io.Writer, path string, p *downloading) (int64, error) {
	f, err := os.Open(path)
	if err != nil {
		return 0, err
	}
	defer f.Close()
	return copyReader(ctx, to, f, p)
}

// copyReader copies all that there is, with progress.
func copyReader(ctx context.Context, to io.Writer, from io.Reader, p *downloading) (n int64, err error) {
	buf := make([]byte, 1<<20)
	for {
		k, err := from.Read(buf)
		if k > 0 {
			if _, err := to.Write(buf[:k]); err != nil {
				return n, err
			}
			n += int64(k)
			p.add(int64(k))
		}
		switch {
		case errors.Is(err, io.EOF):
			return n, nil
		case err != nil:
			return n, err
		case ctx.Err() != nil:
			return n, ctx.Err()
		}
	}
}
