package main

import (
	"bufio"
	"bytes"
	"encoding/json"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/winnow-moe/winnow/testdata/fixtures"
)

// faultyHub runs the kit's server of a repository org/m, whose files come from
// another host, with faults.
func faultyHub(t *testing.T, folder string, faults []map[string]any, more ...string) string {
	t.Helper()
	python, err := exec.LookPath("python3")
	if err != nil {
		t.Skip("no python3 for the kit's server")
	}
	kit := fixtures.Shared(t, "bad")
	args := append([]string{filepath.Join(kit, "hubserver.py"), "--repo", "org/m=" + folder, "--cdn-host", "localhost"}, more...)
	c := exec.Command(python, args...)
	out, err := c.StdoutPipe()
	if err == nil {
		err = c.Start()
	}
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Process.Kill(); c.Wait() })
	line, err := bufio.NewReader(out).ReadString('\n')
	if err != nil {
		t.Fatal(err)
	}
	url := strings.TrimSpace(strings.TrimPrefix(line, "HUB "))
	body, _ := json.Marshal(append([]map[string]any{}, faults...))
	if resp, err := http.Post(url+"/__ctl/faults", "application/json", bytes.NewReader(body)); err != nil {
		t.Fatal(err)
	} else {
		resp.Body.Close()
	}
	return url
}

// TestFaultyHub converts a checkpoint from the kit's server with each of its
// faults: the file is that of an undisturbed run, or there is a clear error and a
// later run gives it. The token goes to the hub alone.
func TestFaultyHub(t *testing.T) {
	if testing.Short() {
		t.Skip("takes half a minute")
	}
	folder := fixtures.TinyR1(t)
	const shard = "model-00001-of-000002.safetensors"
	cut := func(n int) map[string]any {
		return map[string]any{"kind": "truncate", "bytes": n, "where": "cdn", "match": shard, "count": 1}
	}
	cases := []struct {
		name    string
		faults  []map[string]any
		options []string
		fails   string // words of the error; "" if it must succeed
	}{
		{"none", nil, nil, ""},
		{"paged", nil, []string{"--page", "2"}, ""},
		{"latency", []map[string]any{{"kind": "latency", "ms": 50}}, nil, ""},
		{"429 of the listing", []map[string]any{{"kind": "status", "code": 429, "retry_after": 1, "where": "api", "count": 1}}, nil, ""},
		{"503 of files", []map[string]any{{"kind": "status", "code": 503, "where": "cdn", "count": 3}}, nil, ""},
		{"502 of links", []map[string]any{{"kind": "status", "code": 502, "where": "resolve", "count": 2}}, nil, ""},
		{"truncated", []map[string]any{cut(1 << 20)}, nil, ""},
		{"reset", []map[string]any{{"kind": "reset", "bytes": 2 << 20, "where": "cdn", "match": shard, "count": 2}}, nil, ""},
		{"range ignored", []map[string]any{cut(1 << 20), {"kind": "ignore_range", "where": "cdn", "match": shard}}, nil, ""},
		{"changed on the way", []map[string]any{cut(1 << 20), {"kind": "changed", "where": "cdn", "match": shard, "skip": 1, "offset": 2 << 20}}, nil, "has the hash"},
		{"range shifted", []map[string]any{cut(1 << 20), {"kind": "bad_range", "shift": 16, "where": "cdn", "match": shard, "range_only": true, "count": 2}}, nil, ""},
		{"link expired", []map[string]any{cut(1 << 20), {"kind": "expired", "where": "cdn", "match": shard, "skip": 1, "count": 1}}, nil, ""},
		{"corrupt", []map[string]any{{"kind": "corrupt", "where": "cdn", "match": shard}}, nil, "has the hash"},
		{"corrupt once", []map[string]any{{"kind": "corrupt", "where": "cdn", "match": shard, "count": 1}}, nil, ""},
		{"short", []map[string]any{{"kind": "short", "bytes": 1000, "where": "cdn", "match": shard}}, nil, "are announced"},
		{"page", []map[string]any{{"kind": "html", "where": "cdn", "match": shard, "count": 1}}, nil, ""},
		{"chunked", []map[string]any{{"kind": "chunked", "where": "cdn", "match": shard}}, nil, ""},
		{"gzip", []map[string]any{{"kind": "gzip", "where": "file"}}, nil, ""},
		{"stall", []map[string]any{{"kind": "stall", "bytes": 1 << 20, "s": 4, "where": "cdn", "match": shard, "count": 1}}, nil, ""},
		{"hang", []map[string]any{{"kind": "hang", "s": 4, "where": "resolve", "count": 1}}, nil, ""},
		{"redirect loop", []map[string]any{{"kind": "redirect_loop", "where": "cdn", "match": shard}}, nil, "redirects"},
		{"closed", []map[string]any{{"kind": "close_now", "where": "any", "count": 2}}, nil, ""},
	}
	t.Setenv("HF_TOKEN", "hf_good")
	t.Setenv("HF_HUB_DOWNLOAD_TIMEOUT", "1")
	t.Setenv("NO_PROXY", "127.0.0.1,localhost")
	dir := t.TempDir()
	var want []byte // of the first case
	for _, c := range cases {
		t.Run(c.name, func(t *testing.T) {
			t.Setenv("HF_HOME", t.TempDir())
			url := faultyHub(t, folder, c.faults, c.options...)
			t.Setenv("HF_ENDPOINT", url)
			out := filepath.Join(dir, "out.gguf")
			var stdout, stderr bytes.Buffer
			convert := []string{"convert", "hf:org/m", "--type", "Q4_K_M", "-o", out, "--force", "-q"}
			status := run(convert, &stdout, &stderr)
			if c.fails != "" {
				if status != exitNetwork || !strings.Contains(stderr.String(), c.fails) {
					t.Errorf("status %d: %s", status, &stderr)
				}
				if _, err := os.Stat(out); err == nil {
					t.Error("there is an output")
				}
				post(t, url+"/__ctl/faults", "[]")
				stderr.Reset()
				status = run(convert, &stdout, &stderr)
			}
			if status != exitOK {
				t.Fatalf("status %d: %s", status, &stderr)
			}
			got, err := os.ReadFile(out)
			if err != nil {
				t.Fatal(err)
			}
			if os.Remove(out); want == nil {
				want = got
			}
			if !bytes.Equal(got, want) {
				t.Error("the file is another one")
			}
			for _, r := range hubLog(t, url) {
				if r.Where == "cdn" && r.Auth {
					t.Error("the token went to another host")
				}
			}
		})
	}
}

func post(t *testing.T, url, body string) {
	t.Helper()
	resp, err := http.Post(url, "application/json", strings.NewReader(body))
	if err != nil {
		t.Fatal(err)
	}
	resp.Body.Close()
}

type hubRequest struct {
	Where string
	Auth  bool
}

func hubLog(t *testing.T, url string) (list []hubRequest) {
	t.Helper()
	resp, err := http.Get(url + "/__ctl/log")
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	if err := json.NewDecoder(resp.Body).Decode(&list); err != nil {
		t.Fatal(err)
	}
	return list
}
