package main

import (
	"errors"
	"fmt"
	"io"
	"os"
	"runtime"
	"runtime/pprof"
	"strings"

	"github.com/spf13/cobra"
	"github.com/winnow-moe/winnow/convert"
	"github.com/winnow-moe/winnow/quant/isa"
)

// app carries what every command needs: streams and global flags.
type app struct {
	stdout, stderr io.Writer
	json, quiet    bool
	threads        int
	cpuProfile     string
	stopProfile    func()
	started        bool // the command line is understood and its command runs
}

func newRootCommand(a *app) *cobra.Command {
	root := &cobra.Command{
		Use:   "winnow",
		Short: "Convert, quantize and measure open-weight language models",
		Long: `winnow takes a HuggingFace checkpoint to a small local GGUF file and measures
what that cost. One program, no Python, no GPU, no intermediate files.`,
		Example: `  winnow demo                                       see it work on a tiny model
  winnow convert DeepSeek-R1 --type Q4_K_M --dry-run     what would be written
  winnow convert DeepSeek-R1 --type Q8_0,Q4_K_M        two files from one read
  winnow perplexity R1-Q4_K_M.gguf --text wiki.txt --base DeepSeek-R1`,
		SilenceErrors: true,
		SilenceUsage:  true,
	}
	// Help fits a terminal of 80 columns; the root's ends with the statuses.
	usage := strings.ReplaceAll(root.UsageTemplate(), ".FlagUsages", ".FlagUsagesWrapped 79")
	root.SetUsageTemplate(usage + "{{if not .HasParent}}\n" + exitHelp + "\n{{end}}")
	flags := root.PersistentFlags()
	flags.BoolVar(&a.json, "json", false, "write the result as one JSON document")
	flags.BoolVarP(&a.quiet, "quiet", "q", false, "no progress and no remarks")
	flags.IntVarP(&a.threads, "threads", "t", 0, "`N` cores to compute on (0: all); changes no result")
	flags.StringVar(&a.cpuProfile, "cpu-profile", "", "write a CPU profile to `FILE`")
	flags.MarkHidden("cpu-profile")
	root.PersistentPreRunE = func(*cobra.Command, []string) error { return a.start() }
	a.addCommands(root)
	return root
}

func (a *app) addCommands(root *cobra.Command) {
	add := func(id, title string, commands ...*cobra.Command) {
		root.AddGroup(&cobra.Group{ID: id, Title: title})
		for _, c := range commands {
			c.GroupID = id
			root.AddCommand(c)
		}
	}
	models := []*cobra.Command{
		newConvertCommand(a), newQuantizeCommand(a), newPruneCommand(a), newPerplexityCommand(a), newLogitsCommand(a), newInspectCommand(a), newCalibrateCommand(a), newVerifyCommand(a),
	}
	for _, c := range models {
		a.takeFromHub(c)
	}
	add("make", "Make files:", models[0], models[1], models[2], newRecipeCommand(a), newShardCommand(a), newDemoCommand(a), newDownloadCommand(a))
	add("look", "Look and measure:", models[3], models[4], models[5], models[6], models[7], newImatrixCommand(a), newFamiliesCommand(a))
	add("other", "Other:", newVersionCommand(a), newCompletionCommand(a))
	root.SetHelpCommand(newHelpCommand(root))
	root.SetHelpCommandGroupID("other")
}

// start prepares what every command needs.
func (a *app) start() error {
	a.started = true
	if a.threads < 0 {
		return usagef("--threads is %d, want a positive number, or 0 for all cores", a.threads)
	}
	if err := isa.Check(); err != nil {
		return &usageError{err}
	}
	a.useThreads(a.threads)
	if a.cpuProfile == "" {
		return nil
	}
	f, err := os.Create(a.cpuProfile)
	if err != nil {
		return err
	}
	a.stopProfile = func() { pprof.StopCPUProfile(); f.Close() }
	return pprof.StartCPUProfile(f)
}

// useThreads bounds the cores of everything, reading and writing included.
func (a *app) useThreads(n int) {
	if n > 0 {
		a.threads = n
		runtime.GOMAXPROCS(n)
	}
}

func newHelpCommand(root *cobra.Command) *cobra.Command {
	return &cobra.Command{
		Use:   "help [COMMAND]",
		Short: "Help about a command",
		RunE: func(_ *cobra.Command, pos []string) error {
			c, _, err := root.Find(pos)
			if err != nil {
				return commandLineError(root, err)
			}
			return c.Help()
		},
	}
}

func newCompletionCommand(a *app) *cobra.Command {
	return &cobra.Command{
		Use:   "completion bash|zsh|fish|powershell",
		Short: "Script that completes commands, flags and types in a shell",
		Example: `  source <(winnow completion bash)
  winnow completion zsh > "${fpath[1]}/_winnow"
  winnow completion fish > ~/.config/fish/completions/winnow.fish`,
		ValidArgs: []string{"bash", "zsh", "fish", "powershell"},
		Args:      args(cobra.MatchAll(cobra.ExactArgs(1), cobra.OnlyValidArgs)),
		RunE: func(c *cobra.Command, pos []string) error {
			switch root := c.Root(); pos[0] {
			case "bash":
				return root.GenBashCompletionV2(a.stdout, true)
			case "zsh":
				return root.GenZshCompletion(a.stdout)
			case "fish":
				return root.GenFishCompletion(a.stdout, true)
			default:
				return root.GenPowerShellCompletionWithDesc(a.stdout)
			}
		},
	}
}

// args says how a command is called when its arguments do not fit.
func args(check cobra.PositionalArgs) cobra.PositionalArgs {
	return func(c *cobra.Command, pos []string) error {
		usage := strings.TrimSuffix(c.UseLine(), " [flags]")
		switch err := check(c, pos); {
		case err == nil:
			return nil
		case len(pos) == 0:
			return fmt.Errorf("arguments are missing: usage is %s", usage)
		default:
			return fmt.Errorf("arguments %q do not fit: usage is %s", pos, usage)
		}
	}
}

// commandLineError makes an error of cobra's parser one of usage, with a hint.
func commandLineError(c *cobra.Command, err error) error {
	msg, guess, guessed := strings.Cut(err.Error(), "\n\nDid you mean this?\n\t")
	next := "see `" + c.CommandPath() + " --help`"
	if guessed {
		next = "did you mean " + strings.Join(strings.Fields(guess), " or ") + "?"
	}
	return &usageError{&convert.HintError{Err: errors.New(msg), Hint: next}}
}
