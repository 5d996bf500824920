// Package source gets checkpoints from the Hugging Face Hub into the cache that
// huggingface_hub and llama.cpp share, byte for byte as they were published.
//
//	ref, ok, err := source.ParseRef("hf:org/name@main")
//	hub, err := source.FromEnv(os.Getenv)
//	snapshot, err := hub.Snapshot(ctx, ref)
//	dir, err := hub.Download(ctx, snapshot, source.Checkpoint, source.Events{})
//
// A revision is resolved to a commit once, and only that is used afterwards. Every
// file is verified while it arrives, by the SHA-256 or the Git hash that the
// listing has of it, and has its name only then. What a broken connection left is
// kept and gone on from.
package source
