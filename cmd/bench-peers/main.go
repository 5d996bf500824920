//go:build unix

// Command bench-peers measures winnow against llama-quantize on this machine:
// the same input and the same number of threads, runs in turn, whole processes
// from start to exit. For every type it prints megabytes of source weights per
// second for both, the ratio with its spread over the rounds, the peak memory of
// both, and whether the files are the same byte for byte.
//
// A third program in turn with them reads the source and writes as many bytes as
// the output has, in as many threads, and computes nothing: what the machine's
// memory and system allow. "of copy" is the speed of winnow as a part of that.
//
// It is a tool for developers; `make bench-peers` builds what it needs.
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
	if len(os.Args) > 1 && os.Args[1] == copyCommand {
		if err := copyMain(os.Args[2:]); err != nil {
			log.Fatal(err)
		}
		return
	}
	var b bench
	types := flag.String("types", "", "types to measure, separated by commas (default: all)")
	flag.StringVar(&b.winnow, "winnow", "./winnow", "winnow's program")
	flag.StringVar(&b.oracle, "oracle", "", "`folder` of llama-quantize")
	flag.StringVar(&b.dir, "dir", "", "`folder` for the files, best in memory (default: a temporary one in /dev/shm or wherever temporary files go)")
	flag.IntVar(&b.rounds, "rounds", 3, "runs of each program")
	flag.BoolVar(&b.markdown, "markdown", false, "print a table in Markdown")
	flag.Parse()
	if err := b.all(*types); err != nil {
		log.Fatal(err)
	}
}

// bench is one session of measurements.
type bench struct {
	winnow, oracle, dir string
	rounds              int
	markdown            bool
	model               *model // the last one
}

// subject is a type with the command line that gives it to all matrices.
type subject struct {
	name     string
	args     []string // after the imatrix, before input and output
	noRecipe bool     // args choose the type; the recipe is Q8_0
	source   string   // type of the source's matrices
	matrices int      // size of the source: see writeModel
	plain    bool     // measured without imatrix
	guided   bool     // measured with imatrix
}

// subjects are ordered as the README's table. Fast types get more to do, so that
// no run takes much less than a fifth of a second.
var subjects = func() []subject {
	const slowest, slow, medium, brisk, fast = 2, 4, 12, 32, 96
	list := func(matrices int, plain, guided bool, names ...string) (s []subject) {
		for _, n := range names {
			s = append(s, subject{name: n, args: []string{"--pure", "--token-embedding-type", "f16"}, source: "F16", matrices: matrices, plain: plain, guided: guided})
		}
		return s
	}
	s := list(medium, true, true, "Q4_K_S", "Q5_K_S", "Q6_K", "Q3_K_S", "Q2_K")
	s = append(s, list(slow, true, true, "IQ4_XS", "IQ4_NL", "IQ3_S")...)
	s = append(s, list(slowest, false, true, "IQ3_XXS", "IQ2_S", "IQ2_XS", "IQ2_XXS", "IQ1_M", "IQ1_S")...)
	s = append(s, list(fast, true, false, "Q8_0", "Q4_0", "Q4_1", "Q5_0", "Q5_1")...)
	s = append(s, list(brisk, false, true, "Q4_0", "Q4_1", "Q5_0", "Q5_1")...)
	s = append(s, list(fast, true, false, "TQ1_0", "TQ2_0", "Q1_0", "Q2_0")...)
	for _, n := range []string{"MXFP4", "NVFP4"} {
		s = append(s, subject{name: n, args: []string{"--tensor-type", "blk=" + strings.ToLower(n)}, noRecipe: true, source: "F16", matrices: brisk, plain: true})
	}
	s = append(s, list(fast, true, false, "F16", "BF16")...)
	for i := range s {
		if s[i].name == "F16" || s[i].name == "BF16" {
			s[i].source, s[i].matrices = "F32", s[i].matrices/2
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
	defer func() {
		if b.model != nil {
			b.model.remove()
		}
	}()
	fmt.Println(machine())
	fmt.Printf("MB/s of source weights, median of %d rounds\n\n", b.rounds)
	b.printHeader()
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
	if err := b.prepare(s); err != nil {
		return err
	}
	for _, guided := range []bool{false, true} {
		if guided && !s.guided || !guided && !s.plain {
			continue
		}
		for _, threads := range []int{1, 2} {
			c, err := b.compare(s, guided, threads)
			if err != nil {
				return err
			}
			b.print(c.cells())
		}
	}
	return nil
}

// prepare writes the source that a type is made from, unless it is there.
func (b *bench) prepare(s *subject) (err error) {
	if m := b.model; m != nil {
		if m.typeName == s.source && m.matrices == s.matrices {
			return nil
		}
		m.remove()
	}
	b.model, err = writeModel(b.dir, s.source, s.matrices)
	return err
}
