//go:build linux || darwin || freebsd

package gguf

import (
	"errors"
	"fmt"
	"io"
	"math"
	"os"

	"golang.org/x/sys/unix"
)

// openLocked creates or takes over path, empties it and holds an exclusive
// lock on it until the lock is closed. File systems without locks go without.
func openLocked(path string) (*os.File, io.Closer, error) {
	for range 100 {
		lock, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE|unix.O_NOFOLLOW, 0o666)
		if err != nil {
			return nil, nil, err
		}
		if err := unix.Flock(int(lock.Fd()), unix.LOCK_EX|unix.LOCK_NB); errors.Is(err, unix.EWOULDBLOCK) {
			lock.Close()
			return nil, nil, fmt.Errorf("another run is writing %s", path)
		}
		// The run that held the lock may have renamed or removed the file.
		if !stillAt(lock, path) {
			lock.Close()
			continue
		}
		file, err := os.OpenFile(path, os.O_RDWR|os.O_TRUNC|unix.O_NOFOLLOW, 0)
		if err != nil {
			lock.Close()
			return nil, nil, err
		}
		return file, lock, nil
	}
	return nil, nil, fmt.Errorf("%s keeps being replaced by other runs", path)
}

func stillAt(f *os.File, path string) bool {
	a, err := f.Stat()
	if err != nil {
		return false
	}
	b, err := os.Lstat(path)
	return err == nil && os.SameFile(a, b)
}

// removeLocked removes a file before letting go of its lock, so that it never
// removes the file of the next run.
func removeLocked(path string, lock io.Closer) {
	os.Remove(path)
	lock.Close()
}

// freeBytes returns what an ordinary user can still write to the file system
// of dir. ok is false when it does not say.
func freeBytes(dir string) (n int64, ok bool) {
	var st unix.Statfs_t
	if err := unix.Statfs(dir, &st); err != nil || st.Blocks == 0 {
		return 0, false
	}
	return int64(st.Bavail) * int64(st.Bsize), true
}

// fileSizeLimit returns the largest file this process may write. Exceeding it
// would end the process with a signal.
func fileSizeLimit() (n int64, ok bool) {
	var lim unix.Rlimit
	if err := unix.Getrlimit(unix.RLIMIT_FSIZE, &lim); err != nil || uint64(lim.Cur) > math.MaxInt64 {
		return 0, false
	}
	return int64(lim.Cur), true
}
