//go:build linux || darwin || freebsd

package gguf

import (
	"errors"
	"math"
	"os"

	"golang.org/x/sys/unix"
)

func mmap(f *os.File, size int64) ([]byte, error) {
	if size > math.MaxInt {
		return nil, errors.New("file is larger than the address space")
	}
	return unix.Mmap(int(f.Fd()), 0, int(size), unix.PROT_READ, unix.MAP_SHARED)
}

func munmap(data []byte) error { return unix.Munmap(data) }

// adviseWillNeed starts reading ahead; the pages arrive while the caller
// computes.
func adviseWillNeed(data []byte, off, size int64) { advise(data, off, size, unix.MADV_WILLNEED) }

// adviseDontNeed takes pages out of the process. The map is read-only and
// shared, so a page that a neighbour still needs comes back from the cache.
func adviseDontNeed(data []byte, off, size int64) { advise(data, off, size, unix.MADV_DONTNEED) }

// advise extends the range to whole pages. Advice that fails changes nothing
// but speed.
func advise(data []byte, off, size int64, advice int) {
	if size == 0 {
		return
	}
	page := int64(os.Getpagesize())
	_ = unix.Madvise(data[off&^(page-1):off+size], advice)
}
