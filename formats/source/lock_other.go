//go:build !unix

package source

import "context"

// locked runs do: there is no lock that other programs respect.
func locked(_ context.Context, _ string, do func() error) error { return do() }
