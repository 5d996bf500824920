package main

import (
	"strings"

	"github.com/spf13/cobra"
	"github.com/winnow-moe/winnow/engine"
	"github.com/winnow-moe/winnow/formats/arch"
)

func newFamiliesCommand(a *app) *cobra.Command {
	return &cobra.Command{
		Use:   "families",
		Short: "Model families and what winnow does with them",
		Long: `List the model families: general.architecture of the GGUF form, the classes in
config.json's architectures, the mechanisms that blocks are made of, and
whether winnow converts checkpoints, runs models (perplexity, logits), and
prunes experts ("later": not yet; "-": there are none).`,
		Args: args(cobra.NoArgs),
		RunE: func(*cobra.Command, []string) error { return a.printFamilies() },
	}
}

// familySupport is what is supported of a family, in the form --json prints.
type familySupport struct {
	Family     string   `json:"family"`
	Classes    []string `json:"classes"`
	Convert    string   `json:"convert"`
	Run        string   `json:"run"` // yes, no, or partly: see RunNote
	RunNote    string   `json:"run_note,omitempty"`
	Prune      string   `json:"prune"`
	Mechanisms []string `json:"mechanisms"`
}

func supportOf(f *arch.Family) familySupport {
	s := familySupport{Family: f.Arch, Classes: f.Classes, Convert: "yes", Run: "yes", Prune: "-", Mechanisms: f.Mechanisms()}
	switch some, err := engine.CheckFamily(f); {
	case err == nil:
	case some:
		s.Run, s.RunNote = "partly", err.Error()
	default:
		s.Run, s.RunNote = "no", err.Error()
	}
	if f.Routed() {
		s.Prune = "later"
	}
	return s
}

func (a *app) printFamilies() error {
	list := make([]familySupport, len(arch.All))
	for i, f := range arch.All {
		list[i] = supportOf(f)
	}
	if a.json {
		return a.printJSON(list)
	}
	rows := [][]string{{"family", "convert", "run", "prune", "classes; mechanisms"}}
	for i := range list {
		rows = append(rows, list[i].rows()...)
	}
	a.printf("%s", table("lllll", rows))
	return nil
}

// rows are the lines of the table; the last column is wrapped.
func (s *familySupport) rows() [][]string {
	const first = 38 // columns before the last one
	text := strings.Join(s.Classes, ", ") + ";\n" + strings.Join(s.Mechanisms, ", ")
	if s.RunNote != "" {
		text += ";\n" + s.RunNote
	}
	var rows [][]string
	for part := range strings.SplitSeq(text, "\n") {
		for line := range strings.SplitSeq(wrap(part, strings.Repeat(" ", first)), "\n") {
			rows = append(rows, []string{"", "", "", "", strings.TrimSpace(line)})
		}
	}
	copy(rows[0], []string{s.Family, s.Convert, s.Run, s.Prune})
	return rows
}
