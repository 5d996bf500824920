package gguf

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

func TestFullTmpfs(t *testing.T) {
	if os.Getuid() != 0 {
		t.Skip("only root can mount a small file system")
	}
	dir := t.TempDir()
	if err := unix.Mount("tmpfs", dir, "tmpfs", 0, "size=64k"); err != nil {
		t.Skipf("mounting a small file system: %v", err)
	}
	defer unix.Unmount(dir, 0)
	path := filepath.Join(dir, "m.gguf")
	older := strings.Repeat("x", 20<<10)
	writeFile(t, path, []byte(older))
	tensors := []TensorInfo{{"a", I8, []int64{30 << 10}}, {"b", I8, []int64{20 << 10}}}
	l := mustLayout(t, &Metadata{}, tensors, LayoutOptions{})
	_, err := l.Create(path, CreateOptions{})
	if !errors.Is(err, unix.ENOSPC) || !strings.Contains(err.Error(), fmt.Sprintf("needs %d bytes", l.Size())) || !strings.Contains(err.Error(), "are available") {
		t.Errorf("error %v, want needed and available bytes", err)
	}
	if b, _ := os.ReadFile(path); string(b) != older || len(listDir(t, dir)) != 1 {
		t.Errorf("the older output has %d bytes, folder %q", len(b), listDir(t, dir))
	}
	// A remnant of a killed run does not count as used.
	writeFile(t, path+".part", []byte(older))
	w, err := mustLayout(t, &Metadata{}, tensors[:1], LayoutOptions{}).Create(path, CreateOptions{})
	if err != nil {
		t.Fatal(err)
	}
	w.Abort()
	if err := preallocateBeyond(dir); !errors.Is(err, unix.ENOSPC) {
		t.Errorf("reserving more than there is: error %v, want ENOSPC", err)
	}
}

func preallocateBeyond(dir string) error {
	f, err := os.Create(filepath.Join(dir, "x"))
	if err != nil {
		return err
	}
	defer f.Close()
	return preallocate(f, 1<<20)
}

func TestFileSizeLimit(t *testing.T) {
	var old unix.Rlimit
	if err := unix.Getrlimit(unix.RLIMIT_FSIZE, &old); err != nil {
		t.Skip(err)
	}
	limit := old
	limit.Cur = 1000
	if err := unix.Setrlimit(unix.RLIMIT_FSIZE, &limit); err != nil {
		t.Skip(err)
	}
	defer unix.Setrlimit(unix.RLIMIT_FSIZE, &old)
	meta, tensors, _ := testModel(t)
	dir := t.TempDir()
	_, err := mustLayout(t, meta, tensors, LayoutOptions{}).Create(filepath.Join(dir, "m.gguf"), CreateOptions{})
	if !errors.Is(err, unix.EFBIG) || !strings.Contains(err.Error(), "ulimit") {
		t.Errorf("error %v, want EFBIG with a way out", err)
	}
	if left := listDir(t, dir); len(left) > 0 {
		t.Errorf("left behind: %q", left)
	}
}

func TestPipeIsNotRead(t *testing.T) {
	path := filepath.Join(t.TempDir(), "m.gguf")
	if err := unix.Mkfifo(path, 0o666); err != nil {
		t.Skip(err)
	}
	if _, err := Open(path); err == nil || !strings.Contains(err.Error(), "not a regular file") {
		t.Errorf("error %v, want a refusal", err)
	}
}
