package main

import (
	"context"
	"fmt"

	"github.com/spf13/cobra"

	"github.com/winnow-moe/winnow/formats/gguf"
)

// shardFlags are the settings of shard.
type shardFlags struct {
	out     string
	size    sizeValue
	tensors int
	force   bool
}

func newShardCommand(a *app) *cobra.Command {
	c := &cobra.Command{
		Use:   "shard",
		Short: "Split a GGUF file into several, or join them",
		Long: `Change how a GGUF model is divided into files. Tensors keep their bytes and
their order, and keys what they say; any GGUF file will do.`,
	}
	split, join := shardFlags{}, shardFlags{}
	s := &cobra.Command{
		Use:     "split FILE -o NAME --max-shard-size SIZE|--max-shard-tensors N",
		Short:   "Split a file into NAME-00001-of-0000N.gguf and so on",
		Example: "  winnow shard split big.gguf -o part.gguf --max-shard-size 50G",
		Args:    args(cobra.ExactArgs(1)),
		RunE: func(cmd *cobra.Command, pos []string) error {
			if split.size == 0 && split.tensors < 1 {
				return usagef("split needs a limit: --max-shard-size SIZE or --max-shard-tensors N")
			}
			return a.shard(cmd.Context(), pos[0], &split)
		},
	}
	s.Flags().Var(&split.size, "max-shard-size", "split into files of at most `SIZE`, such as 50G")
	s.Flags().IntVar(&split.tensors, "max-shard-tensors", 0, "split into files of at most `N` tensors")
	j := &cobra.Command{
		Use:     "join FILE -o NAME",
		Short:   "Join the files of a model, of which any is named, into one",
		Example: "  winnow shard join big-00001-of-00004.gguf -o big.gguf",
		Args:    args(cobra.ExactArgs(1)),
		RunE:    func(cmd *cobra.Command, pos []string) error { return a.shard(cmd.Context(), pos[0], &join) },
	}
	for _, x := range []struct {
		c     *cobra.Command
		flags *shardFlags
	}{{s, &split}, {j, &join}} {
		x.c.Flags().StringVarP(&x.flags.out, "output", "o", "", "the `NAME` to write")
		x.c.Flags().BoolVar(&x.flags.force, "force", false, "replace existing outputs")
		a.takeFromHub(x.c)
		c.AddCommand(x.c)
	}
	return c
}

// shardReport is the result of shard in the form --json prints.
type shardReport struct {
	Files   []shardFile `json:"files"`
	Tensors int         `json:"tensors"`
}

type shardFile struct {
	Path string `json:"path"`
	Size int64  `json:"bytes"`
}

// copyBytes is how much is copied at a time.
const copyBytes = 16 << 20

// shard writes a model anew, divided as the flags say.
func (a *app) shard(ctx context.Context, in string, flags *shardFlags) error {
	if flags.out == "" {
		return usagef("the output is missing: -o NAME")
	}
	f, err := gguf.OpenUnmapped(in)
	if err != nil {
		return err
	}
	defer f.Close()
	var inputs []string
	for _, p := range f.Parts() {
		inputs = append(inputs, p.Path)
	}
	layout, err := gguf.NewLayout(f.Metadata(), f.Tensors(), gguf.LayoutOptions{MaxShardBytes: int64(flags.size), MaxShardTensors: flags.tensors})
	if err != nil {
		return fmt.Errorf("%s: %w", in, err)
	}
	r := &shardReport{Tensors: len(f.Tensors())}
	for i, path := range layout.Paths(flags.out) {
		if err := checkOutput(path, inputs, flags.force); err != nil {
			return err
		}
		r.Files = append(r.Files, shardFile{path, layout.ShardSize(i)})
	}
	if err := a.copyTensors(ctx, f, layout, flags.out, inputs); err != nil {
		return err
	}
	if a.json {
		return a.printJSON(r)
	}
	for _, f := range r.Files {
		a.printf("%s: %s\n", printable(f.Path), sizeText(f.Size))
	}
	return nil
}

// copyTensors writes all tensors of a file as they are, in another layout.
func (a *app) copyTensors(ctx context.Context, f *gguf.File, layout *gguf.Layout, path string, inputs []string) error {
	w, err := layout.Create(path, gguf.CreateOptions{Inputs: inputs})
	if err != nil {
		return err
	}
	defer w.Abort()
	total, done := int64(0), int64(0)
	for i := range f.Tensors() {
		total += f.Tensors()[i].Size()
	}
	bar := a.newProgress("copying", true)
	defer bar.finish()
	buf := make([]byte, 0, copyBytes)
	for i := range f.Tensors() {
		info := &f.Tensors()[i]
		if info.Size() == 0 {
			continue
		}
		rows, each := info.Rows(), info.RowBytes()
		step := max(1, copyBytes/each)
		for first := int64(0); first < rows; first += step {
			if err := ctx.Err(); err != nil {
				return err
			}
			n := min(step, rows-first)
			if int64(cap(buf)) < n*each {
				buf = make([]byte, 0, n*each)
			}
			raw, err := f.Rows(ctx, i, first, n, buf[:n*each])
			if err != nil {
				return err
			}
			if err := w.WriteAt(i, first*each, raw); err != nil {
				return err
			}
			done += int64(len(raw))
			bar.update(done, total, "")
		}
	}
	return w.Commit()
}
