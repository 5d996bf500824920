//go:build unix

package durable

import (
	"errors"
	"os"
	"syscall"
)

// SyncDir makes renames in a folder durable. Some network file systems cannot.
func SyncDir(dir string) error {
	d, err := os.Open(dir)
	if err != nil {
		return err
	}
	defer d.Close()
	if err := d.Sync(); err != nil && !errors.Is(err, syscall.EINVAL) && !errors.Is(err, syscall.ENOTSUP) {
		return err
	}
	return nil
}
