//go:build !unix

package durable

// SyncDir does nothing: such systems make renames durable by themselves.
func SyncDir(string) error { return nil }
