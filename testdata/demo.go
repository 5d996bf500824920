// Package testdata carries the demonstration checkpoint inside the program.
//
// The Go tool skips directories of this name in patterns such as ./..., so the
// package is only built because cmd/winnow imports it.
package testdata

import (
	"archive/tar"
	"bytes"
	_ "embed"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"

	"github.com/klauspost/compress/zstd"
)

//go:embed demo.tar.zst
var demo []byte

// UnpackDemo writes the demonstration files below dir: the checkpoint folder
// tiny-r1 (DeepSeek-R1's on-disk form in miniature, FP8), an evaluation text
// eval-docs.txt, and that text's licence.
func UnpackDemo(dir string) error { return Unpack(bytes.NewReader(demo), dir) }

// Unpack extracts a zstd-compressed tar archive of plain files and symbolic
// links below dir. Names that would leave dir are refused.
func Unpack(r io.Reader, dir string) error {
	zr, err := zstd.NewReader(r)
	if err != nil {
		return err
	}
	defer zr.Close()
	tr := tar.NewReader(zr)
	for {
		h, err := tr.Next()
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return err
		}
		if !filepath.IsLocal(h.Name) {
			return fmt.Errorf("archive entry %q leaves the folder", h.Name)
		}
		if err := unpackEntry(tr, h, filepath.Join(dir, filepath.FromSlash(h.Name))); err != nil {
			return err
		}
	}
}

func unpackEntry(tr *tar.Reader, h *tar.Header, path string) error {
	switch h.Typeflag {
	case tar.TypeDir:
		return os.MkdirAll(path, 0o777)
	case tar.TypeSymlink:
		if err := os.MkdirAll(filepath.Dir(path), 0o777); err != nil {
			return err
		}
		return os.Symlink(h.Linkname, path)
	case tar.TypeLink:
		return fmt.Errorf("archive entry %q is a hard link", h.Name)
	}
	if err := os.MkdirAll(filepath.Dir(path), 0o777); err != nil {
		return err
	}
	f, err := os.Create(path)
	if err != nil {
		return err
	}
	if _, err := io.Copy(f, tr); err != nil {
		f.Close()
		return err
	}
	return f.Close()
}
