package main

import (
	"fmt"
	"os"

	"github.com/winnow-moe/winnow/convert/experts"
	"github.com/winnow-moe/winnow/formats/arch"
)

// readKeepList reads a keep-list for a model.
func readKeepList(path string, p *arch.Params) (*experts.KeepList, error) {
	k, err := parseKeepList(path)
	if err != nil {
		return nil, err
	}
	if err := k.Check(p); err != nil {
		return nil, &inputError{fmt.Errorf("keep-list %q: %w", path, err)}
	}
	return k, nil
}

// parseKeepList reads a keep-list of any model.
func parseKeepList(path string) (*experts.KeepList, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	k, err := experts.ReadKeepList(f)
	if err != nil {
		return nil, &inputError{fmt.Errorf("keep-list %q: %w", path, err)}
	}
	return k, nil
}
