package source

import (
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net/http"
	"net/url"
	"strconv"
	"strings"
	"time"
)

// ErrAccess is in the chain of errors about repositories and files that are not
// there, or not for everybody.
var ErrAccess = errors.New("no access to the repository")

// ErrNetwork is in the chain of errors of requests that failed however often they
// were repeated.
var ErrNetwork = errors.New("the hub cannot be reached")

// accessError is a refusal, with what can be done about it.
type accessError struct{ text, hint string }

func (e *accessError) Error() string        { return e.text }
func (e *accessError) Hint() string         { return e.hint }
func (e *accessError) Is(target error) bool { return target == ErrAccess }

// temporary marks errors that may not come again, and how long to wait at least.
type temporary struct {
	err   error
	after time.Duration
}

func (e *temporary) Error() string { return e.err.Error() }
func (e *temporary) Unwrap() error { return e.err }

// networkError is the last of several failures.
type networkError struct{ err error }

func (e *networkError) Error() string        { return e.err.Error() }
func (e *networkError) Unwrap() error        { return e.err }
func (e *networkError) Is(target error) bool { return target == ErrNetwork }

// Limits of patience.
const (
	maxWait      = 30 * time.Second
	maxAsked     = 10 * time.Minute // that a server may have us wait
	maxRedirects = 10
)

// retry calls do until it succeeds, fails for good, or brought nothing new Retries
// times in a row. do reports whether it did bring something.
func (h *Hub) retry(ctx context.Context, do func(context.Context) (progress bool, err error)) error {
	wait, failures := h.Wait, 0
	for {
		progress, err := do(ctx)
		var again *temporary
		if err == nil || !errors.As(err, &again) || ctx.Err() != nil {
			return errors.Join(ctx.Err(), err)
		}
		if progress {
			wait, failures = h.Wait, 0
		}
		if failures++; failures > h.Retries {
			return &networkError{fmt.Errorf("%w (tried %d times)", err, failures)}
		}
		pause := max(again.after, time.Duration(float64(wait)*(0.5+rand.Float64())))
		if pause > maxAsked {
			return &networkError{fmt.Errorf("%w; it asks to wait %v", err, again.after)}
		}
		wait = min(2*wait, maxWait)
		select {
		case <-time.After(pause):
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

// get sends a request. The token goes to the hub alone, wherever that redirects to.
func (h *Hub) get(ctx context.Context, path string, header http.Header) (*http.Response, error) {
	ctx, cancel := context.WithCancelCause(ctx)
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, h.Endpoint+path, nil)
	if err != nil {
		cancel(nil)
		return nil, err
	}
	for k, v := range header {
		req.Header[k] = v
	}
	req.Header.Set("User-Agent", "winnow")
	req.Header.Set("Accept-Encoding", "identity") // bytes as they are stored
	if h.Token != "" {
		req.Header.Set("Authorization", "Bearer "+h.Token)
	}
	stop := time.AfterFunc(h.Timeout, func() { cancel(errStalled) })
	resp, err := h.http().Do(req)
	if err != nil {
		stop.Stop()
		cause := context.Cause(ctx)
		cancel(nil)
		var wrapped *url.Error
		if errors.As(err, &wrapped) {
			err = wrapped.Err // without the address, which may be signed
		}
		if errors.Is(err, errRedirects) {
			return nil, &networkError{err}
		}
		if cause != nil {
			err = cause
		}
		return nil, &temporary{err: err}
	}
	stop.Stop()
	resp.Body = &watched{resp.Body, stop, h.Timeout, ctx, cancel}
	return resp, nil
}

var (
	errStalled   = errors.New("nothing arrived for too long")
	errRedirects = errors.New("too many redirects")
)

// http returns the client, which follows redirects without the token.
func (h *Hub) http() *http.Client {
	h.once.Do(func() {
		h.client = &http.Client{CheckRedirect: func(req *http.Request, via []*http.Request) error {
			if len(via) >= maxRedirects {
				return errRedirects
			}
			if req.URL.Host != via[0].URL.Host || via[0].URL.Scheme == "https" && req.URL.Scheme != "https" {
				req.Header.Del("Authorization")
			}
			return nil
		}}
	})
	return h.client
}

// watched is a body that is given up when nothing arrives.
type watched struct {
	io.ReadCloser
	stop    *time.Timer
	timeout time.Duration
	ctx     context.Context
	cancel  context.CancelCauseFunc
}

func (w *watched) Read(p []byte) (int, error) {
	w.stop.Reset(w.timeout) // whoever reads may take the time that it needs between
	n, err := w.ReadCloser.Read(p)
	w.stop.Stop()
	if err != nil && !errors.Is(err, io.EOF) {
		if cause := context.Cause(w.ctx); cause != nil {
			err = cause
		}
	}
	return n, err
}

func (w *watched) Close() error {
	w.stop.Stop()
	err := w.ReadCloser.Close()
	w.cancel(nil)
	return err
}

// refusal makes an error of an answer that is none.
func (h *Hub) refusal(resp *http.Response, ref Ref) error {
	message := strings.ToValidUTF8(resp.Header.Get("X-Error-Message"), "?")
	if len(message) > 300 {
		message = message[:300]
	}
	status := resp.StatusCode
	page := h.Endpoint + "/" + ref.Repo
	switch code := resp.Header.Get("X-Error-Code"); {
	case status == 408, status == 429, status >= 500:
		return &temporary{fmt.Errorf("%s: the hub answers %s", ref, resp.Status), asked(resp.Header)}
	case code == "GatedRepo" && h.Token == "":
		return &accessError{fmt.Sprintf("%s is for those who accepted its conditions", ref), "accept them at " + page + " and set HF_TOKEN to a token of yours"}
	case code == "GatedRepo":
		return &accessError{fmt.Sprintf("%s is not for the owner of this token", ref), "accept the conditions at " + page + ", or wait until access is granted"}
	case code == "RevisionNotFound":
		return &accessError{fmt.Sprintf("%s: there is no revision %q", ref, ref.Revision), "branches, tags and commits are listed at " + page + "/tree/main"}
	case code == "EntryNotFound":
		return &accessError{fmt.Sprintf("%s: there is no such file", ref), "files are listed at " + page + "/tree/" + ref.Revision}
	case status == 401 && h.Token != "" && code == "":
		return &accessError{fmt.Sprintf("%s: the hub does not know the token", ref), "make a new token, or unset HF_TOKEN"}
	case status == 401, status == 404:
		hint := "check the spelling; a private repository takes a token (HF_TOKEN)"
		if h.Token != "" {
			hint = "check the spelling, and whether the token may read it"
		}
		return &accessError{fmt.Sprintf("there is no repository %q on %s, or it is private", ref.Repo, h.Endpoint), hint}
	case status == 403:
		return &temporary{err: fmt.Errorf("%s: refused (%s): %s", ref, resp.Status, message)}
	}
	return &accessError{fmt.Sprintf("%s: the hub answers %s: %s", ref, resp.Status, message), ""}
}

// asked is how long a server asks to wait: Retry-After in seconds or as a date, or
// t= of RateLimit.
func asked(h http.Header) time.Duration {
	if s := h.Get("Retry-After"); s != "" {
		if n, err := strconv.Atoi(s); err == nil && n >= 0 {
			return time.Duration(n) * time.Second
		}
		if t, err := http.ParseTime(s); err == nil {
			return max(0, time.Until(t))
		}
	}
	for part := range strings.SplitSeq(h.Get("RateLimit"), ";") {
		if s, ok := strings.CutPrefix(strings.TrimSpace(part), "t="); ok {
			if n, err := strconv.Atoi(s); err == nil && n >= 0 {
				return time.Duration(n) * time.Second
			}
		}
	}
	return 0
}
