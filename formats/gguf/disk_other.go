//go:build !(linux || darwin || freebsd)

package gguf

import (
	"fmt"
	"io"
	"os"
)

// openLocked creates path. Without locks, a file that exists may belong to
// another run, so it is refused.
func openLocked(path string) (*os.File, io.Closer, error) {
	f, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE|os.O_EXCL, 0o666)
	if os.IsExist(err) {
		return nil, nil, fmt.Errorf("another run is writing %s, or was stopped: remove the file if it was", path)
	}
	return f, io.NopCloser(nil), err
}

func removeLocked(path string, _ io.Closer) { os.Remove(path) }

func freeBytes(string) (int64, bool) { return 0, false }

func fileSizeLimit() (int64, bool) { return 0, false }
