package main

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"os"
	"runtime"

	"github.com/spf13/cobra"

	"github.com/winnow-moe/winnow/formats/durable"
	"github.com/winnow-moe/winnow/formats/gguf"
	"github.com/winnow-moe/winnow/verify"
)

// verifyFlags are the settings of verify.
type verifyFlags struct {
	manifest, write string
	force           bool
}

func newVerifyCommand(a *app) *cobra.Command {
	flags := verifyFlags{}
	c := &cobra.Command{
		Use:   "verify FILE...",
		Short: "Whether GGUF files are whole and as they should be",
		Long: `Read GGUF files from end to end: structure and vocabulary as runtimes want them
(inspect --check), no block with scales or values that are not finite, and with
--manifest the SHA-256 of every tensor as it was when --write-manifest wrote them
down. A split file is one model, whichever part is named.`,
		Example: `  winnow verify R1-Q4_K_M.gguf
  winnow verify R1-Q4_K_M.gguf --write-manifest r1.json
  winnow verify downloaded.gguf --manifest r1.json`,
		Args: args(cobra.MinimumNArgs(1)),
		RunE: func(cmd *cobra.Command, pos []string) error {
			if len(pos) > 1 && (flags.manifest != "" || flags.write != "") {
				return usagef("a manifest is of one model, not of %d", len(pos))
			}
			if flags.write != "" {
				if err := checkOutput(flags.write, append([]string{flags.manifest}, pos...), flags.force); err != nil {
					return err
				}
			}
			return a.verify(cmd.Context(), pos, &flags)
		},
	}
	c.Flags().StringVar(&flags.manifest, "manifest", "", "compare with the hashes in `FILE`")
	c.Flags().StringVar(&flags.write, "write-manifest", "", "write the hashes of all tensors to `FILE`")
	c.Flags().BoolVar(&flags.force, "force", false, "replace an existing manifest")
	return c
}

// manifest is a list of the tensors of a model, in the form that files have.
type manifest struct {
	Version int              `json:"winnow_manifest"`
	Tensors []verify.Content `json:"tensors"`
}

const manifestVersion = 1

// verified is the result of verify in the form --json prints.
type verified struct {
	Path     string           `json:"path"`
	Tensors  int              `json:"tensors"`
	Bytes    int64            `json:"bytes"`
	Problems []verify.Problem `json:"problems"`
}

func (a *app) verify(ctx context.Context, paths []string, flags *verifyFlags) error {
	var want *manifest
	if flags.manifest != "" {
		var err error
		if want, err = readManifest(flags.manifest); err != nil {
			return err
		}
	}
	list, problems := []verified{}, 0
	for _, path := range paths {
		r, contents, err := a.verifyFile(ctx, path)
		if err != nil {
			return err
		}
		if want != nil {
			r.Problems = append(r.Problems, verify.CompareContents(contents, want.Tensors)...)
		}
		problems += len(r.Problems)
		list = append(list, *r)
		if flags.write != "" && len(r.Problems) == 0 {
			if err := writeManifest(flags.write, contents); err != nil {
				return err
			}
		}
	}
	if err := a.printVerified(list); err != nil || problems == 0 {
		return err
	}
	return &checkError{problems}
}

// verifyFile reads all of a file.
func (a *app) verifyFile(ctx context.Context, path string) (*verified, []verify.Content, error) {
	f, err := gguf.OpenUnmapped(path)
	if err != nil {
		return nil, nil, err
	}
	defer f.Close()
	threads := a.threads
	if threads == 0 {
		threads = runtime.GOMAXPROCS(0)
	}
	bar := a.newProgress("verifying", true)
	contents, problems, err := verify.ReadContents(ctx, f, threads, func(done, total int64) { bar.update(done, total, "") })
	bar.finish()
	if err != nil {
		return nil, nil, err
	}
	r := &verified{Path: path, Tensors: len(contents), Problems: append(append([]verify.Problem{}, verify.Structure(f)...), problems...)}
	for _, c := range contents {
		r.Bytes += c.Bytes
	}
	a.warn(f.Warnings)
	return r, contents, nil
}

func (a *app) printVerified(list []verified) error {
	if a.json {
		return a.printJSON(list)
	}
	for _, r := range list {
		if len(r.Problems) == 0 {
			a.printf("%s: ok, %d tensors, %s\n", printable(r.Path), r.Tensors, sizeText(r.Bytes))
			continue
		}
		a.printf("%s:\n", printable(r.Path))
		for _, p := range r.Problems {
			a.printf("  %s: %s\n", p.Kind, printable(p.Text))
		}
	}
	return nil
}

func writeManifest(path string, contents []verify.Content) error {
	var b bytes.Buffer
	enc := json.NewEncoder(&b)
	enc.SetIndent("", " ")
	if err := enc.Encode(manifest{manifestVersion, contents}); err != nil {
		return err
	}
	return durable.WriteBytes(path, b.Bytes())
}

// maxManifest bounds a file of hashes, in bytes.
const maxManifest = 256 << 20

func readManifest(path string) (*manifest, error) {
	st, err := os.Stat(path)
	if err != nil {
		return nil, err
	}
	if !st.Mode().IsRegular() || st.Size() > maxManifest {
		return nil, &inputError{fmt.Errorf("%q is no manifest: want a regular file of at most %d bytes", path, maxManifest)}
	}
	raw, err := os.ReadFile(path)
	if err != nil {
		return nil, err
	}
	m := &manifest{}
	d := json.NewDecoder(bytes.NewReader(raw))
	d.DisallowUnknownFields()
	if err := d.Decode(m); err != nil {
		return nil, &inputError{fmt.Errorf("manifest %q: %w", path, err)}
	}
	if m.Version != manifestVersion || len(m.Tensors) == 0 {
		return nil, &inputError{fmt.Errorf("manifest %q: winnow_manifest is %d with %d tensors, want %d with some", path, m.Version, len(m.Tensors), manifestVersion)}
	}
	return m, nil
}
