package main

import (
	"context"
	"fmt"
	"os"
	"path"
	"path/filepath"

	"github.com/spf13/cobra"

	"github.com/winnow-moe/winnow/formats/source"
)

// downloadFlags are the settings of download.
type downloadFlags struct {
	include []string
	all     bool
	verify  bool
	list    bool
}

func newDownloadCommand(a *app) *cobra.Command {
	flags := downloadFlags{}
	c := &cobra.Command{
		Use:   "download hf:ORG/NAME[@REVISION]",
		Short: "Get a checkpoint from the Hugging Face Hub",
		Long: `Bring a checkpoint from the Hugging Face Hub into the cache that huggingface_hub
and llama.cpp use, too, and print its folder. Every file is verified by the hash
that the hub lists while it arrives; a broken download goes on where it was.

What belongs to a checkpoint is taken: safetensors, configuration, tokenizer.
--all takes all files, --include those whose names match a pattern. Other
commands take hf:ORG/NAME in place of a folder and download what they need.

The environment says the rest, as for huggingface_hub: HF_TOKEN or HF_TOKEN_PATH,
HF_HOME or HF_HUB_CACHE, HF_ENDPOINT, HF_HUB_OFFLINE, HF_HUB_DOWNLOAD_TIMEOUT.`,
		Example: `  winnow download hf:Qwen/Qwen3-30B-A3B
  winnow download hf:org/name@v1.0 --include '*.json'
  winnow convert hf:Qwen/Qwen3-30B-A3B --type Q4_K_M -o qwen3.gguf`,
		Args: args(cobra.ExactArgs(1)),
		RunE: func(cmd *cobra.Command, pos []string) error {
			for _, p := range flags.include {
				if _, err := path.Match(p, ""); err != nil {
					return usagef("--include %q is not a pattern: %v", p, err)
				}
			}
			ref, ok, err := source.ParseRef(pos[0])
			if !ok {
				return usagef("%q is not hf:ORG/NAME", pos[0])
			}
			if err != nil {
				return &usageError{err}
			}
			return a.download(cmd.Context(), ref, &flags)
		},
	}
	c.Flags().StringSliceVar(&flags.include, "include", nil, "take files whose names match the `PATTERN`, may be repeated")
	c.Flags().BoolVar(&flags.all, "all", false, "take all files")
	c.Flags().BoolVar(&flags.verify, "verify", false, "read what is in the cache already and compare its hashes")
	c.Flags().BoolVar(&flags.list, "list", false, "list the files instead")
	return c
}

// downloaded is the result of download in the form --json prints.
type downloaded struct {
	Repo   string           `json:"repository"`
	Commit string           `json:"commit"`
	Path   string           `json:"path,omitempty"`
	Files  []downloadedFile `json:"files"`
}

type downloadedFile struct {
	Path   string `json:"path"`
	Size   int64  `json:"bytes"`
	SHA256 string `json:"sha256,omitempty"`
	Git    string `json:"git,omitempty"`
}

// wants reports whether a file is to be taken.
func (f *downloadFlags) wants(ref source.Ref) func(string) bool {
	return func(name string) bool {
		switch {
		case ref.Path != "":
			return name == ref.Path
		case f.all:
			return true
		case len(f.include) == 0:
			return source.Checkpoint(name)
		}
		for _, p := range f.include {
			whole, _ := path.Match(p, name)
			base, _ := path.Match(p, path.Base(name))
			if whole || base {
				return true
			}
		}
		return false
	}
}

func (a *app) download(ctx context.Context, ref source.Ref, flags *downloadFlags) error {
	r, err := a.fetch(ctx, ref, flags)
	if err != nil {
		return err
	}
	if a.json {
		return a.printJSON(r)
	}
	if flags.list {
		rows := [][]string{}
		for _, f := range r.Files {
			rows = append(rows, []string{sizeText(f.Size), printable(f.Path)})
		}
		a.printf("%s", table("rl", rows))
		return nil
	}
	a.printf("%s\n", r.Path)
	return nil
}

// fetch brings what is wanted of a repository into the cache.
func (a *app) fetch(ctx context.Context, ref source.Ref, flags *downloadFlags) (*downloaded, error) {
	hub, err := source.FromEnv(os.Getenv)
	if err != nil {
		return nil, &usageError{err}
	}
	s, err := hub.Snapshot(ctx, ref)
	if err != nil {
		return nil, err
	}
	want := flags.wants(ref)
	r := &downloaded{Repo: ref.Repo, Commit: s.Commit, Files: []downloadedFile{}}
	for _, f := range s.Files {
		if want(f.Path) {
			r.Files = append(r.Files, downloadedFile{f.Path, f.Size, f.SHA256, f.Git})
		}
	}
	if len(r.Files) == 0 {
		return nil, &inputError{errNothing(ref)}
	}
	if flags.list {
		return r, nil
	}
	bar := a.newProgress("downloading", true)
	r.Path, err = hub.Download(ctx, s, want, source.Events{Progress: func(done, total int64) { bar.update(done, total, "") }})
	bar.finish()
	if err == nil && flags.verify && !hub.Offline {
		bar := a.newProgress("verifying", true)
		err = hub.Verify(ctx, s, want, source.Events{Progress: func(done, total int64) { bar.update(done, total, "") }})
		bar.finish()
	}
	if err == nil && ref.Path != "" {
		r.Path = filepath.Join(r.Path, filepath.FromSlash(ref.Path))
	}
	return r, err
}

// takeFromHub has a command take what its arguments name on the hub.
func (a *app) takeFromHub(c *cobra.Command) {
	run := c.RunE
	c.RunE = func(cmd *cobra.Command, pos []string) error {
		pos, err := a.local(cmd.Context(), pos)
		if err != nil {
			return err
		}
		return run(cmd, pos)
	}
}

// local returns the paths of arguments of which some may be on the hub, and brings
// those.
func (a *app) local(ctx context.Context, args []string) ([]string, error) {
	out := append([]string(nil), args...)
	for i, arg := range args {
		ref, ok, err := source.ParseRef(arg)
		if !ok {
			continue
		}
		if err != nil {
			return nil, &usageError{err}
		}
		r, err := a.fetch(ctx, ref, &downloadFlags{})
		if err != nil {
			return nil, err
		}
		a.note("%s is commit %s", ref, r.Commit)
		out[i] = r.Path
	}
	return out, nil
}

func errNothing(ref source.Ref) error {
	if ref.Path != "" {
		return fmt.Errorf("%s: there is no such file", ref)
	}
	return fmt.Errorf("%s has no files of a checkpoint (--all takes others)", ref)
}
