package main

import (
	"fmt"
	"path/filepath"
	"strings"

	"github.com/winnow-moe/winnow/convert"
	"github.com/winnow-moe/winnow/formats/durable"
)

// modelfile is a Modelfile of Ollama for one output: what `ollama create NAME
// -f PATH` reads (github.com/ollama/ollama docs/modelfile.md and parser).
type modelfile struct{ path, text string }

// planModelfiles makes a Modelfile for every output, in the output's folder.
// Where there are several outputs their types tell the Modelfiles apart.
func planModelfiles(plan *convert.Plan, ck *convert.Checkpoint) ([]modelfile, error) {
	var list []modelfile
	for i := range plan.Outputs {
		o := &plan.Outputs[i]
		if o.Layout.Shards() > 1 {
			return nil, &usageError{&convert.HintError{
				Err:  fmt.Errorf("--ollama: %q would be %d files, and Ollama imports no split models", o.Path, o.Layout.Shards()),
				Hint: "leave out --max-shard-size and --max-shard-tensors",
			}}
		}
		name := "Modelfile"
		if len(plan.Outputs) > 1 {
			name += "-" + o.Recipe.Name
		}
		list = append(list, modelfile{filepath.Join(filepath.Dir(o.Path), name), modelfileText(filepath.Base(o.Path), ck)})
	}
	return list, nil
}

// modelfileText is the content. The prompt format is not in it: Ollama takes it
// from the chat template in the GGUF file, if it knows that template.
func modelfileText(file string, ck *convert.Checkpoint) string {
	var b strings.Builder
	fmt.Fprintf(&b, "FROM ./%s\n", file)
	for _, s := range ck.StopTexts() {
		if !strings.ContainsAny(s, "\r\n") { // which a quoted word cannot hold
			fmt.Fprintf(&b, "PARAMETER stop \"%s\"\n", s)
		}
	}
	if text := ck.License(); text != "" && !strings.Contains(text, `"""`) {
		fmt.Fprintf(&b, "LICENSE \"\"\"%s\"\"\"\n", text)
	}
	return b.String()
}

// writeModelfiles writes them whole or not at all.
func (a *app) writeModelfiles(list []modelfile) error {
	for _, m := range list {
		if err := durable.WriteBytes(m.path, []byte(m.text)); err != nil {
			return err
		}
		a.note("for Ollama: ollama create NAME -f %s", m.path)
	}
	return nil
}
