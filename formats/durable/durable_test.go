package durable

import (
	"bufio"
	"errors"
	"os"
	"path/filepath"
	"testing"
)

func TestWriteFile(t *testing.T) {
	dir := t.TempDir()
	path := filepath.Join(dir, "a")
	for _, text := range []string{"first", "second, which replaces it"} {
		if err := WriteBytes(path, []byte(text)); err != nil {
			t.Fatal(err)
		}
		if got, err := os.ReadFile(path); err != nil || string(got) != text {
			t.Fatalf("%q, %v; want %q", got, err, text)
		}
	}
	// What is there survives a failure, and nothing else is left.
	broken := errors.New("broken")
	err := WriteFile(path, func(w *bufio.Writer) error {
		w.WriteString("half")
		return broken
	})
	if !errors.Is(err, broken) {
		t.Errorf("error %v, want %v", err, broken)
	}
	got, _ := os.ReadFile(path)
	entries, _ := os.ReadDir(dir)
	if string(got) != "second, which replaces it" || len(entries) != 1 {
		t.Errorf("after a failure the file has %q, and there are %d files", got, len(entries))
	}
	if WriteBytes(filepath.Join(dir, "nosuch", "a"), nil) == nil {
		t.Error("a folder that does not exist is no error")
	}
	if Rename(filepath.Join(dir, "nosuch"), path) == nil {
		t.Error("a file that does not exist was renamed")
	}
}
