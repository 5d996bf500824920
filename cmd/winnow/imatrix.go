package main

import (
	"fmt"
	"strconv"

	"github.com/spf13/cobra"
	"github.com/winnow-moe/winnow/formats/calib"
)

func newImatrixCommand(a *app) *cobra.Command {
	var (
		out, format string
		chunk       int
		force       bool
	)
	c := &cobra.Command{
		Use:   "imatrix FILE... [-o FILE]",
		Short: "Look at, convert and merge importance matrices",
		Long: `Show what an importance matrix (GGUF or .dat, as llama-imatrix writes them)
knows of each tensor: rows seen, experts that no token reached, range of the
mean squared inputs. With -o, several files are added up and written.`,
		Example: `  winnow imatrix imatrix.gguf
  winnow imatrix english.gguf code.dat -o both.gguf
  winnow imatrix imatrix.gguf -o imatrix.dat --output-format dat`,
		Args: args(cobra.MinimumNArgs(1)),
		RunE: func(_ *cobra.Command, pos []string) error {
			if format != "gguf" && format != "dat" {
				return usagef("--output-format is %q, want gguf or dat", format)
			}
			if out != "" {
				if err := checkOutput(out, pos, force); err != nil {
					return err
				}
			}
			return a.imatrix(pos, out, format, chunk)
		},
	}
	c.Flags().StringVarP(&out, "output", "o", "", "the `FILE` to write")
	c.Flags().StringVar(&format, "output-format", "gguf", "`gguf|dat`")
	c.Flags().BoolVar(&force, "force", false, "replace an existing output")
	c.Flags().IntVar(&chunk, "ctx", calib.DefaultChunkSize, "rows per chunk of .dat files, which do not say: `N`")
	return c
}

func (a *app) imatrix(paths []string, out, format string, chunk int) error {
	var all []*calib.Matrix
	for _, p := range paths {
		m, err := calib.Read(p, calib.Options{ChunkSize: chunk})
		if err != nil {
			return err
		}
		defer m.Close()
		a.warn(m.Warnings)
		all = append(all, m)
	}
	m := all[0]
	if out != "" || len(all) > 1 {
		merged, err := calib.Merge(m, all[1:]...)
		if err != nil {
			return err
		}
		m = merged
	}
	if out != "" {
		write := m.WriteGGUF
		if format == "dat" {
			write = m.WriteDat
		}
		if err := write(out); err != nil {
			return err
		}
	}
	stats, err := m.Statistics()
	if err != nil {
		return err
	}
	return a.printMatrix(m, stats)
}

func (a *app) printMatrix(m *calib.Matrix, stats []calib.Stats) error {
	if a.json {
		return a.printJSON(struct {
			Datasets  []string      `json:"datasets"`
			Chunks    int           `json:"chunks"`
			ChunkSize int           `json:"chunk_size"`
			Entries   []calib.Stats `json:"entries"`
		}{m.Datasets, m.Chunks, m.ChunkSize, stats})
	}
	rows := [][]string{{"tensor", "columns", "experts", "unseen", "rows", "mean x²"}}
	for _, s := range stats {
		rows = append(rows, []string{
			printable(s.Name), strconv.Itoa(s.Columns), strconv.Itoa(s.Counts), strconv.Itoa(s.Empty),
			strconv.FormatInt(s.Rows, 10), fmt.Sprintf("%.4g", s.Sum/float64(max(1, s.Columns*(s.Counts-s.Empty)))),
		})
	}
	a.printf("%s", table("lrrrrr", rows))
	a.printf("\n%d entries, %d chunks of %d rows", len(stats), m.Chunks, m.ChunkSize)
	for _, d := range m.Datasets {
		a.printf(", %s", printable(d))
	}
	a.printf("\n")
	return nil
}
