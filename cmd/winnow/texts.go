package main

import (
	"compress/gzip"
	"encoding/json"
	"fmt"
	"io"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/klauspost/compress/zstd"
)

// maxTextBytes bounds an evaluation text; WikiText-103 has half a gigabyte.
const maxTextBytes = 1 << 30

// textFile is a text to score and the domain it stands for.
type textFile struct{ name, path string }

// parseTexts reads the values of a flag such as --text, [NAME=]FILE. What stands before the
// first = is a name if it could not be a path with folders. Without one the
// file's name up to its first dot is taken.
func parseTexts(flag string, values []string) ([]textFile, error) {
	var files []textFile
	for _, v := range values {
		name, path, named := strings.Cut(v, "=")
		if !named || strings.ContainsAny(name, `/\`) {
			name, path = "", v
		}
		if path == "" || named && name == "" && path != v {
			return nil, usagef("%s %q: want FILE or NAME=FILE", flag, v)
		}
		if name == "" {
			name, _, _ = strings.Cut(filepath.Base(path), ".")
		}
		for _, f := range files {
			if f.name == name {
				return nil, usagef("two texts have the name %q; name them: %s NAME=FILE", name, flag)
			}
			if f.path == "-" && path == "-" {
				return nil, usagef("standard input can be read for one text only")
			}
		}
		files = append(files, textFile{name, path})
	}
	return files, nil
}

// isLines reports whether a file has a JSON object per line, going by its name.
func isLines(path string) bool {
	return strings.HasSuffix(strings.TrimSuffix(strings.TrimSuffix(path, ".gz"), ".zst"), ".jsonl")
}

// readField reads a text file; of a .jsonl file the field of every line, joined
// by empty lines.
func readField(path, field string) (string, error) {
	text, err := readText(path)
	if err != nil {
		return "", err
	}
	if isLines(path) {
		if text, err = joinLines(text, field); err != nil {
			return "", &inputError{fmt.Errorf("%s: %w", path, err)}
		}
	}
	if text == "" {
		return "", &inputError{fmt.Errorf("%s: the text is empty", path)}
	}
	return text, nil
}

func joinLines(text, field string) (string, error) {
	var docs []string
	n := 0
	for line := range strings.Lines(text) {
		n++
		if strings.TrimSpace(line) == "" {
			continue
		}
		var object map[string]json.RawMessage
		if err := json.Unmarshal([]byte(line), &object); err != nil {
			return "", fmt.Errorf("line %d: want a JSON object: %w", n, err)
		}
		raw, ok := object[field]
		if !ok {
			return "", fmt.Errorf("line %d has no field %q but %q", n, field, slices.Sorted(maps.Keys(object)))
		}
		var doc *string
		if err := json.Unmarshal(raw, &doc); err != nil || doc == nil {
			return "", fmt.Errorf("line %d: field %q is not a string", n, field)
		}
		docs = append(docs, *doc)
	}
	return strings.Join(docs, "\n\n"), nil
}

// readSequences reads token ids: a JSON list of lists, or one list.
func readSequences(path string) ([][]int32, error) {
	text, err := readText(path)
	if err != nil {
		return nil, err
	}
	var seqs [][]int32
	if err := json.Unmarshal([]byte(text), &seqs); err != nil {
		var one []int32
		if json.Unmarshal([]byte(text), &one) != nil {
			return nil, &inputError{fmt.Errorf("%s: want a JSON list of lists of token ids: %w", path, err)}
		}
		seqs = [][]int32{one}
	}
	if len(seqs) == 0 {
		return nil, &inputError{fmt.Errorf("%s: no token ids", path)}
	}
	return seqs, nil
}

// readText reads a text file.
func readText(path string) (string, error) {
	f := os.Stdin
	if path != "-" {
		var err error
		if f, err = os.Open(path); err != nil {
			return "", err
		}
		defer f.Close()
	}
	text, err := decompress(path, f)
	if err != nil {
		return "", &inputError{fmt.Errorf("%s: %w", path, err)}
	}
	return text, nil
}

// decompress reads everything, unpacking by the ending of the name.
func decompress(name string, r io.Reader) (string, error) {
	switch {
	case strings.HasSuffix(name, ".gz"):
		z, err := gzip.NewReader(r)
		if err != nil {
			return "", err
		}
		r = z
	case strings.HasSuffix(name, ".zst"):
		z, err := zstd.NewReader(r)
		if err != nil {
			return "", err
		}
		defer z.Close()
		r = z
	}
	b, err := io.ReadAll(io.LimitReader(r, maxTextBytes+1))
	if err != nil {
		return "", err
	}
	if len(b) > maxTextBytes {
		return "", fmt.Errorf("the text is longer than %s", sizeText(maxTextBytes))
	}
	return string(b), nil
}
