// Command winnow converts HuggingFace checkpoints to GGUF, quantizes them, and
// measures what that cost.
package main

import (
	"context"
	"os"
	"os/signal"
	"syscall"
)

func main() { os.Exit(run(os.Args[1:])) }

// run executes one command line and returns the exit status.
func run(args []string) int {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	app := &app{stdout: os.Stdout, stderr: os.Stderr}
	root := newRootCommand(app)
	root.SetArgs(args)
	root.SetOut(app.stdout)
	root.SetErr(app.stderr)
	if err := root.ExecuteContext(ctx); err != nil {
		return app.fail(err)
	}
	return exitOK
}
