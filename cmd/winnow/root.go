package main

import (
	"encoding/json"
	"fmt"
	"io"
	"os"
	"runtime/pprof"

	"github.com/spf13/cobra"
)

// app carries what every command needs: streams and global flags.
type app struct {
	stdout, stderr io.Writer
	json, quiet    bool
	threads        int
	cpuProfile     string
}

func newRootCommand(a *app) *cobra.Command {
	root := &cobra.Command{
		Use:   "winnow",
		Short: "Convert, quantize and measure open-weight language models",
		Long: `winnow takes a HuggingFace checkpoint to a small local GGUF file and proves
what that cost. One program, no Python, no GPU, no intermediate files.

  winnow demo                                      see it work on a tiny model
  winnow convert DeepSeek-R1 --type Q4_K_M --dry-run   what would be written
  winnow convert DeepSeek-R1 --type Q8_0,Q4_K_M    two files from one read
  winnow perplexity R1-Q4_K_M.gguf --text wiki.txt --base DeepSeek-R1

` + exitHelp,
		SilenceErrors: true,
		SilenceUsage:  true,
	}
	flags := root.PersistentFlags()
	flags.BoolVar(&a.json, "json", false, "write the result as one JSON document")
	flags.BoolVarP(&a.quiet, "quiet", "q", false, "no progress and no remarks")
	flags.IntVarP(&a.threads, "threads", "t", 0, "cores to compute on (0: all); never changes a result")
	flags.StringVar(&a.cpuProfile, "cpu-profile", "", "write a CPU profile to `FILE`")
	flags.MarkHidden("cpu-profile")
	root.SetFlagErrorFunc(func(_ *cobra.Command, err error) error { return &usageError{err} })
	var stopProfile func()
	root.PersistentPreRunE = func(*cobra.Command, []string) (err error) {
		stopProfile, err = startProfile(a.cpuProfile)
		return err
	}
	root.PersistentPostRun = func(*cobra.Command, []string) { stopProfile() }
	root.AddGroup(&cobra.Group{ID: "make", Title: "Make files:"}, &cobra.Group{ID: "look", Title: "Look and measure:"})
	for _, c := range []*cobra.Command{newConvertCommand(a), newQuantizeCommand(a), newDemoCommand(a)} {
		c.GroupID = "make"
		root.AddCommand(c)
	}
	for _, c := range []*cobra.Command{newPerplexityCommand(a), newLogitsCommand(a), newInspectCommand(a)} {
		c.GroupID = "look"
		root.AddCommand(c)
	}
	root.AddCommand(newVersionCommand(a))
	return root
}

func startProfile(path string) (stop func(), err error) {
	if path == "" {
		return func() {}, nil
	}
	f, err := os.Create(path)
	if err != nil {
		return nil, err
	}
	if err := pprof.StartCPUProfile(f); err != nil {
		return nil, err
	}
	return func() { pprof.StopCPUProfile(); f.Close() }, nil
}

// args makes cobra's argument checks usage errors.
func args(check cobra.PositionalArgs) cobra.PositionalArgs {
	return func(c *cobra.Command, a []string) error {
		if err := check(c, a); err != nil {
			return usagef("%s: %w (see %s --help)", c.Name(), err, c.CommandPath())
		}
		return nil
	}
}

// printJSON writes a result document to stdout.
func (a *app) printJSON(v any) error {
	enc := json.NewEncoder(a.stdout)
	enc.SetIndent("", "  ")
	return enc.Encode(v)
}

// printf writes a result to stdout.
func (a *app) printf(format string, args ...any) { fmt.Fprintf(a.stdout, format, args...) }

// note writes a remark to stderr.
func (a *app) note(format string, args ...any) {
	if !a.quiet {
		fmt.Fprintf(a.stderr, "winnow: "+format+"\n", args...)
	}
}
