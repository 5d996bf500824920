// Command winnow converts HuggingFace checkpoints to GGUF, quantizes them, and
// measures what that cost.
package main

import (
	"context"
	"io"
	"os"
	"os/signal"
	"slices"
	"syscall"
)

func main() { os.Exit(run(os.Args[1:], os.Stdout, os.Stderr)) }

// run executes one command line and returns the exit status.
func run(args []string, stdout, stderr io.Writer) int {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	context.AfterFunc(ctx, stop) // a second signal ends the program at once
	app := &app{stdout: stdout, stderr: stderr, stopProfile: func() {}}
	root := newRootCommand(app)
	root.SetArgs(args)
	root.SetOut(stdout)
	root.SetErr(stderr)
	cmd, err := root.ExecuteContextC(ctx)
	app.stopProfile()
	switch {
	case err == nil:
		return exitOK
	case !app.started: // the command line did not get past the parser
		app.json = app.json || slices.Contains(args, "--json")
		err = commandLineError(cmd, err)
	}
	return app.fail(err)
}
