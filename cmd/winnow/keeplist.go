package main

import (
	"fmt"
	"os"

	"github.com/winnow-moe/winnow/convert/experts"
	"github.com/winnow-moe/winnow/formats/arch"
)

// readKeepList reads a keep-list for a model.
func readKeepList(path string, p *arch.Params) (*experts.KeepList, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	k, err := experts.ReadKeepList(f)
	if err == nil {
		err = k.Check(p)
	}
	if err != nil {
		return nil, &inputError{fmt.Errorf("keep-list %q: %w", path, err)}
	}
	return k, nil
}
