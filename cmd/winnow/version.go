package main

import (
	"runtime"
	"runtime/debug"

	"github.com/spf13/cobra"

	"github.com/winnow-moe/winnow/engine/kernel"
)

// version is set by release builds with -ldflags "-X main.version=v1.2.3".
var version = "development"

func newVersionCommand(a *app) *cobra.Command {
	return &cobra.Command{
		Use:   "version",
		Short: "Version of this program",
		Args:  args(cobra.NoArgs),
		RunE: func(*cobra.Command, []string) error {
			doc := struct {
				Version  string `json:"version"`
				Revision string `json:"revision,omitempty"`
				Go       string `json:"go"`
				Platform string `json:"platform"`
				Products string `json:"products"` // the instruction set that they use
			}{version, revision(), runtime.Version(), runtime.GOOS + "/" + runtime.GOARCH, kernel.Active().Name}
			if a.json {
				return a.printJSON(doc)
			}
			a.printf("winnow %s (%s, %s)\n", doc.Version, doc.Go, doc.Platform)
			if doc.Revision != "" {
				a.printf("revision %s\n", doc.Revision)
			}
			return nil
		},
	}
}

// revision returns the source revision that the Go tool recorded, if any.
func revision() string {
	info, ok := debug.ReadBuildInfo()
	if !ok {
		return ""
	}
	for _, s := range info.Settings {
		if s.Key == "vcs.revision" {
			return s.Value[:min(12, len(s.Value))]
		}
	}
	return ""
}
