// Package durable gives files their names when they are complete and on disk,
// so that neither an error nor a crash leaves half of one under its own name.
package durable

import (
	"bufio"
	"errors"
	"fmt"
	"os"
	"path/filepath"
)

// Suffix is that of the name that a file has while it is written.
const Suffix = ".part"

// WriteFile writes a file whole or not at all, and returns when it is on disk. The
// name that it has before is path and Suffix.
func WriteFile(path string, write func(*bufio.Writer) error) (err error) {
	temp := path + Suffix
	f, err := os.Create(temp)
	if err != nil {
		return err
	}
	defer func() {
		if err != nil {
			os.Remove(temp)
		}
	}()
	w := bufio.NewWriterSize(f, 1<<20)
	if err = errors.Join(write(w), w.Flush(), f.Sync(), f.Close()); err != nil {
		return fmt.Errorf("writing %q: %w", path, err)
	}
	return Rename(temp, path)
}

// WriteBytes is WriteFile for contents at hand.
func WriteBytes(path string, contents []byte) error {
	return WriteFile(path, func(w *bufio.Writer) error {
		_, err := w.Write(contents)
		return err
	})
}

// Rename renames a file or folder that is on disk, and returns when the new name
// is, too.
func Rename(from, to string) error {
	if err := os.Rename(from, to); err != nil {
		return err
	}
	return SyncDir(filepath.Dir(filepath.Clean(to)))
}
