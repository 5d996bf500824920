// Package prefetch asks the operating system to read parts of files ahead of
// their use.
package prefetch

import (
	"os"

	"golang.org/x/sys/unix"
)

// File begins to read n bytes from off on into the system's cache. It does not
// wait for them, and nothing depends on it but speed.
func File(f *os.File, off, n int64) {
	if n > 0 { // to the system 0 means everything
		_ = unix.Fadvise(int(f.Fd()), off, n, unix.FADV_WILLNEED)
	}
}
