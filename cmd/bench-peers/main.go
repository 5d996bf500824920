//go:build unix

// Command bench-peers measures winnow against llama-quantize on this machine:
// the same input and the same number of threads, runs in turn, whole processes
// from start to exit. For every type it prints megabytes of source weights per
// second for both, the ratio with its spread over the rounds, the peak memory of
// both, and whether the files are the same byte for byte. It is a tool for
// developers; `make bench-peers` builds what it needs.
package main

import (
	"errors"
	"flag"
	"fmt"
	"log"
	"os"
	"slices"
	"strings"
)

func main() {
	log.SetFlags(0)
	log.SetPrefix("bench-peers: ")
	var b bench
	types := flag.String("types", "", "types to measure, separated by commas (default: all)")
	flag.StringVar(&b.winnow, "winnow", "./winnow", "winnow's program")
	flag.StringVar(&b.oracle, "oracle", "", "`folder` of llama-quantize")
	flag.StringVar(&b.dir, "dir", "", "`folder` for the files, best in memory (default: a temporary one in /dev/shm or wherever temporary files go)")
	flag.IntVar(&b.rounds, "rounds", 3, "runs of each program")
	flag.Parse()
	if err := b.all(*types); err != nil {
		log.Fatal(err)
	}
}

// bench is one session of measurements.
type bench struct {
	winnow, oracle, dir string
	rounds              int
}

// subject is a type with the command line that gives it to all matrices.
type subject struct {
	name     string
	args     []string // after the imatrix, before input and output
	noRecipe bool     // args choose the type; the recipe is Q8_0
	source   string   // type of the source's matrices
	blocks   int      // size of the source: see writeModel
	plain    bool     // measured without imatrix
	guided   bool     // measured with imatrix
}

// subjects are ordered as the README's table. Slow types get less to do.
var subjects = func() []subject {
	const slow, medium, fast = 1, 4, 16
	list := func(blocks int, plain, guided bool, names ...string) (s []subject) {
		for _, n := range names {
			s = append(s, subject{name: n, args: []string{"--pure", "--token-embedding-type", "f16"}, source: "F16", blocks: blocks, plain: plain, guided: guided})
		}
		return s
	}
	s := list(medium, true, true, "Q4_K_S", "Q5_K_S", "Q6_K", "Q3_K_S", "Q2_K")
	s = append(s, list(slow, true, true, "IQ4_XS", "IQ4_NL", "IQ3_S", "IQ3_XXS")...)
	s = append(s, list(slow, false, true, "IQ2_S", "IQ2_XS", "IQ2_XXS", "IQ1_M", "IQ1_S")...)
	s = append(s, list(fast, true, false, "Q8_0")...)
	s = append(s, list(medium, true, true, "Q4_0", "Q4_1", "Q5_0", "Q5_1")...)
	s = append(s, list(fast, true, false, "TQ1_0", "TQ2_0", "Q1_0", "Q2_0")...)
	for _, n := range []string{"MXFP4", "NVFP4"} {
		s = append(s, subject{name: n, args: []string{"--tensor-type", "blk=" + strings.ToLower(n)}, noRecipe: true, source: "F16", blocks: medium, plain: true})
	}
	s = append(s, list(fast, true, false, "F16", "BF16")...)
	for i := range s {
		if s[i].name == "F16" || s[i].name == "BF16" {
			s[i].source = "F32"
		}
	}
	return s
}()

func (b *bench) all(types string) error {
	if b.oracle == "" {
		return errors.New("-oracle must name the folder of llama-quantize; testdata/oracle/build.sh makes one")
	}
	if b.dir == "" {
		dir, err := os.MkdirTemp(memory(), "bench-peers")
		if err != nil {
			return err
		}
		defer os.RemoveAll(dir)
		b.dir = dir
	}
	fmt.Printf("%-8s %-7s %7s %9s %9s  %-22s %13s  %s\n", "type", "imatrix", "threads", "winnow", "llama", "ratio (min … max)", "peak MB", "bytes")
	for i := range subjects {
		s := &subjects[i]
		if types != "" && !slices.Contains(strings.Split(types, ","), s.name) {
			continue
		}
		if err := b.measure(s); err != nil {
			return fmt.Errorf("%s: %w", s.name, err)
		}
	}
	return nil
}

// memory returns a folder in memory where there is one, else "".
func memory() string {
	const dir = "/dev/shm"
	if _, err := os.Stat(dir); err != nil {
		return ""
	}
	return dir
}

// measure prints the lines of a type.
func (b *bench) measure(s *subject) error {
	model, err := writeModel(b.dir, s.source, s.blocks)
	if err != nil {
		return err
	}
	defer model.remove()
	for _, guided := range []bool{false, true} {
		if guided && !s.guided || !guided && !s.plain {
			continue
		}
		for _, threads := range []int{1, 2} {
			r, err := b.compare(s, model, guided, threads)
			if err != nil {
				return err
			}
			fmt.Println(r)
		}
	}
	return nil
}
