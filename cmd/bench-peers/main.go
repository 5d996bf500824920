//go:build unix

// Command bench-peers measures winnow beside its peers on this machine: the same
// input and the same number of threads, runs in turn, whole processes from start
// to exit. Its kinds of measurement are
//
//   - quantize: megabytes of source weights per second of `winnow quantize` and
//     llama-quantize for every type, and whether the files are the same. A third
//     program in turn with them reads the source and writes as many bytes as the
//     output has, and computes nothing: "of copy" is the speed of winnow as a
//     part of that.
//   - perplexity, imatrix: tokens per second of `winnow perplexity` and
//     `winnow calibrate`, and of llama-perplexity and llama-imatrix with their
//     defaults and with the best of some batch sizes; of ik_llama.cpp's, too,
//     where -ik names a build of it.
//   - gemm: float32 products of engine/kernel and of OpenBLAS on one core, as
//     parts of what its multiply-add units can do.
//
// Ratios are medians over the rounds with the least and the largest.
//
// It is a tool for developers; `make bench-peers` builds what it needs.
package main

import (
	"errors"
	"flag"
	"fmt"
	"log"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
)

// Commands as first argument, which make this program another.
var commands = map[string]func(args []string) error{copyCommand: copyMain, gemmCommand: gemmMain}

func main() {
	log.SetFlags(0)
	log.SetPrefix("bench-peers: ")
	if len(os.Args) > 1 && commands[os.Args[1]] != nil {
		if err := commands[os.Args[1]](os.Args[2:]); err != nil {
			log.Fatal(err)
		}
		return
	}
	var b bench
	flag.StringVar(&b.kinds, "kind", strings.Join(kinds, ","), "`kinds` of measurement, separated by commas")
	flag.StringVar(&b.types, "types", "", "`types` to quantize to, separated by commas (default: all)")
	flag.StringVar(&b.models, "models", strings.Join(shapeNames(), ","), "`models` to run, separated by commas")
	flag.StringVar(&b.file, "model", "", "a GGUF `file` to run beside them")
	flag.IntVar(&b.tokens, "tokens", 32768, "tokens to run")
	flag.StringVar(&b.winnow, "winnow", "./winnow", "winnow's program")
	flag.StringVar(&b.oracle, "oracle", "", "`folder` of llama.cpp's programs")
	flag.StringVar(&b.ik, "ik", "", "`folder` of ik_llama.cpp's programs, if there are any")
	flag.StringVar(&b.blas, "blas", "testdata/oracle/gemm.c", "the C `file` that times OpenBLAS")
	flag.StringVar(&b.dir, "dir", "", "`folder` for the files, best in memory; models to run are kept there (default: a temporary one in /dev/shm or wherever temporary files go)")
	flag.StringVar(&b.lock, "lock", "", "a `file` to lock for each run, where others measure on the same machine")
	threads := flag.String("threads", "1,2", "`numbers` of threads, separated by commas")
	flag.IntVar(&b.rounds, "rounds", 3, "runs of each program")
	flag.IntVar(&b.batch, "batch", 0, "`tokens` for llama.cpp's -b and -ub at their best (0: try some)")
	flag.BoolVar(&b.cpu, "cpu", false, "compare runs by the processor's time, on one thread: then other programs show little")
	flag.BoolVar(&b.markdown, "markdown", false, "print tables in Markdown")
	flag.Parse()
	err := b.setThreads(*threads)
	if err == nil {
		err = b.all()
	}
	if err != nil {
		log.Fatal(err)
	}
}

// kinds in the order in which they are measured. The most memory that this
// program ever held counts as held by those it starts: the smallest come first.
var kinds = []string{"quantize", "gemm", "perplexity", "imatrix"}

// bench is one session of measurements.
type bench struct {
	kinds, types, models, file string
	winnow, oracle, ik, blas   string
	dir, lock                  string
	rounds, tokens, batch      int
	threads                    []int
	markdown, cpu              bool
	columns                    []column // of the table at hand
	model                      *model   // the last one quantized
	computes                   []string // winnow's ways to compute
	bestSizes                  map[string]int
}

func (b *bench) setThreads(list string) error {
	for s := range strings.SplitSeq(list, ",") {
		n, err := strconv.Atoi(s)
		if err != nil || n < 1 {
			return fmt.Errorf("-threads is %q, want numbers like 1,2", list)
		}
		b.threads = append(b.threads, n)
	}
	return nil
}

func (b *bench) all() error {
	wanted := strings.Split(b.kinds, ",")
	for _, k := range wanted {
		if !slices.Contains(kinds, k) {
			return fmt.Errorf("-kind is %q, want some of %s", b.kinds, strings.Join(kinds, ","))
		}
	}
	if b.oracle == "" && b.kinds != "gemm" {
		return errors.New("-oracle must name the folder of llama.cpp's programs; testdata/oracle/build.sh makes one")
	}
	if b.dir == "" {
		dir, err := os.MkdirTemp(memory(), "bench-peers")
		if err != nil {
			return err
		}
		defer os.RemoveAll(dir)
		b.dir = dir
	}
	if err := b.absolute(); err != nil {
		return err
	}
	fmt.Println(machine())
	for _, k := range kinds {
		if !slices.Contains(wanted, k) {
			continue
		}
		var err error
		switch k {
		case "quantize":
			err = b.quantizing()
		case "gemm":
			err = b.products()
		default:
			err = b.running(k)
		}
		if err != nil {
			return fmt.Errorf("%s: %w", k, err)
		}
	}
	return nil
}

// absolute makes paths hold in dir, where programs run: some leave logs.
func (b *bench) absolute() (err error) {
	for _, p := range []*string{&b.dir, &b.winnow, &b.oracle, &b.ik, &b.file, &b.lock} {
		if *p == "" {
			continue
		}
		if *p, err = filepath.Abs(*p); err != nil {
			return err
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
