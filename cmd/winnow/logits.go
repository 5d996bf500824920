package main

import (
	"context"
	"encoding/binary"
	"errors"
	"io/fs"
	"math"
	"os"
	"strconv"
	"strings"

	"github.com/spf13/cobra"
	"github.com/winnow-moe/winnow/engine"
	"github.com/winnow-moe/winnow/formats/dtype"
	"github.com/winnow-moe/winnow/formats/safetensors"
	"github.com/winnow-moe/winnow/verify"
)

func newLogitsCommand(a *app) *cobra.Command {
	var (
		flags    scoreFlags
		ids, out string
		force    bool
	)
	c := &cobra.Command{
		Use:   "logits MODEL --ids IDS -o FILE",
		Short: "Logits of a token sequence, for checks against other runtimes",
		Long: `Run a model over one token sequence and write the logits of every position as
the tensor "logits" [tokens, vocabulary] F32 of a safetensors file. MODEL is a
GGUF file or a checkpoint folder.`,
		Example: `  winnow logits model.gguf --ids 0,17,4,99 -o logits.safetensors
  winnow logits DeepSeek-R1 --ids ids.txt -o logits.safetensors`,
		Args: args(cobra.ExactArgs(1)),
		RunE: func(cmd *cobra.Command, pos []string) error {
			seq, err := parseIDs(ids)
			if err != nil {
				return err
			}
			if out == "" {
				return usagef("logits needs an output: -o FILE")
			}
			if err := checkOutput(out, []string{pos[0]}, force); err != nil {
				return err
			}
			return a.logits(cmd.Context(), pos[0], seq, out, &flags)
		},
	}
	c.Flags().StringVar(&ids, "ids", "", "token `IDS` separated by commas or spaces, or a file with them")
	c.Flags().StringVarP(&out, "output", "o", "", "the safetensors `FILE` to write")
	c.Flags().BoolVar(&force, "force", false, "replace an existing output")
	checkpointFlags(c, &flags.ck)
	return c
}

// parseIDs reads token ids from the argument or, if it names a file, from there.
func parseIDs(arg string) ([]int32, error) {
	text := arg
	if strings.Trim(arg, "0123456789, ") != "" {
		b, err := os.ReadFile(arg)
		if errors.Is(err, fs.ErrNotExist) {
			return nil, usagef("--ids %q is neither a list of token ids nor a file", arg)
		}
		if err != nil {
			return nil, err
		}
		text = string(b)
	}
	var ids []int32
	for _, f := range strings.FieldsFunc(text, func(r rune) bool { return strings.ContainsRune(", \t\r\n[]", r) }) {
		n, err := strconv.ParseInt(f, 10, 32)
		if err != nil || n < 0 {
			return nil, usagef("%q is not a token id", f)
		}
		ids = append(ids, int32(n))
	}
	if len(ids) == 0 {
		return nil, usagef("no token ids: pass --ids 1,2,3 or a file with ids")
	}
	return ids, nil
}

func (a *app) logits(ctx context.Context, path string, ids []int32, out string, flags *scoreFlags) error {
	m, err := a.openScored(path, flags)
	if err != nil {
		return err
	}
	defer m.model.Close()
	for _, id := range ids {
		if int(id) >= m.engine.Vocab() {
			return usagef("token id %d is outside the vocabulary of %d", id, m.engine.Vocab())
		}
	}
	t := a.follow("running", &verify.Text{Windows: [][]int32{ids}}, false, m)
	h, err := m.engine.Forward(ctx, [][]int32{ids})
	t.finish()
	if err != nil {
		return err
	}
	if err := writeLogits(ctx, m.engine, h, len(ids), out); err != nil {
		return err
	}
	if a.json {
		return a.printJSON(struct {
			Model    string   `json:"model"`
			Warnings []string `json:"warnings,omitempty"`
			Output   string   `json:"output"`
			Shape    [2]int   `json:"shape"`
			IDs      []int32  `json:"ids"`
		}{path, m.warnings, out, [2]int{len(ids), m.engine.Vocab()}, ids})
	}
	a.printf("%s: logits [%d, %d] F32\n", printable(out), len(ids), m.engine.Vocab())
	return nil
}

// logitsRows is how many rows of logits are held at a time.
const logitsRows = 64

func writeLogits(ctx context.Context, e *engine.Model, h *engine.Hidden, n int, out string) error {
	vocab := e.Vocab()
	layout, err := safetensors.NewLayout([]safetensors.Tensor{
		{Name: "logits", DType: dtype.F32, Shape: []int64{int64(n), int64(vocab)}},
	}, nil, 0)
	if err != nil {
		return err
	}
	w, err := layout.CreateFile(out)
	if err != nil {
		return err
	}
	defer w.Abort()
	for first := 0; first < n; first += logitsRows {
		rows := min(logitsRows, n-first)
		values := make([]float32, rows*vocab)
		if err := e.Logits(ctx, h, first, rows, values); err != nil {
			return err
		}
		raw := make([]byte, 4*len(values))
		for i, v := range values {
			binary.LittleEndian.PutUint32(raw[4*i:], math.Float32bits(v))
		}
		if err := w.WriteAt(0, int64(first)*int64(vocab)*4, raw); err != nil {
			return err
		}
	}
	return w.Commit()
}
