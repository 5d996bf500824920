//go:build unix

package main

import (
	"cmp"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"time"

	"github.com/winnow-moe/winnow/engine/kernel"
)

// gemmCommand as first argument makes this program one that multiplies: tokens,
// rows and length of the weights, milliseconds. It prints GFLOP/s.
const gemmCommand = "gemm"

// gemmShapes are tokens, rows and length of products: as one of the experts of
// the models has them in a batch, as tiles of big matrices are, and one as big
// as BLAS likes them.
var gemmShapes = [][3]int{
	{64, 512, 1024}, {256, 256, 1024}, {1024, 256, 1024}, {1024, 512, 512}, {512, 64, 4096}, {4096, 256, 1024}, {2048, 1024, 2048},
}

// gemmTime is how long a run multiplies, in milliseconds.
const gemmTime = "500"

var gemmColumns = []column{
	{"tokens × rows × length", -22}, {"winnow", 6}, {"OpenBLAS", 8}, {"of OpenBLAS", -24}, {"of peak", 7}, {"OpenBLAS of peak", 16},
}

// products compares float32 products on one core.
func (b *bench) products() error {
	blas := filepath.Join(b.dir, "gemm-blas")
	build := exec.Command(cmp.Or(os.Getenv("CC"), "cc"), "-O3", "-march=native", "-o", blas, b.blas, "-lopenblas")
	if out, err := build.CombinedOutput(); err != nil {
		return fmt.Errorf("%v (needs a C compiler and OpenBLAS, Debian's libopenblas-dev): %w\n%s", build.Args, err, out)
	}
	defer os.Remove(blas)
	self, err := os.Executable()
	if err != nil {
		return err
	}
	peak := 0.0
	for range b.rounds {
		f, err := b.flops(blas, "peak", gemmTime)
		if err != nil {
			return err
		}
		peak = max(peak, f)
	}
	b.begin(fmt.Sprintf("gemm: float32 on one core, weights packed in the call, GFLOP/s, median of %d rounds; multiply-add peak %.1f", b.rounds, peak), gemmColumns)
	for _, s := range gemmShapes {
		shape := []string{strconv.Itoa(s[0]), strconv.Itoa(s[1]), strconv.Itoa(s[2])}
		args := append(slices.Clone(shape), gemmTime)
		var ours, theirs, ratio []float64
		for range b.rounds {
			o, err := b.flops(self, slices.Concat([]string{gemmCommand}, args)...)
			if err != nil {
				return err
			}
			t, err := b.flops(blas, args...)
			if err != nil {
				return err
			}
			ours, theirs, ratio = append(ours, o), append(theirs, t), append(ratio, 100*o/t)
		}
		o, t := middle(ours), middle(theirs)
		b.print([]string{
			strings.Join(shape, " × "), fmt.Sprintf("%.1f", o), fmt.Sprintf("%.1f", t),
			fmt.Sprintf("%.0f %% (%.0f … %.0f)", middle(ratio), slices.Min(ratio), slices.Max(ratio)),
			fmt.Sprintf("%.0f %%", 100*o/peak), fmt.Sprintf("%.0f %%", 100*t/peak),
		})
	}
	return nil
}

// flops runs a program that prints GFLOP/s, on one core where taskset can see
// to that.
func (b *bench) flops(program string, args ...string) (float64, error) {
	args = slices.Concat([]string{program}, args)
	if taskset, err := exec.LookPath("taskset"); err == nil {
		args = slices.Concat([]string{taskset, "-c", "0"}, args)
	}
	u, err := b.run(args[0], args[1:])
	if err != nil {
		return 0, err
	}
	return strconv.ParseFloat(strings.TrimSpace(string(u.out)), 64)
}

func middle(x []float64) float64 {
	return slices.Sorted(slices.Values(x))[len(x)/2]
}

func gemmMain(args []string) error {
	var n [4]int
	if len(args) != len(n) {
		return errors.New(gemmCommand + " takes tokens, rows, length and milliseconds")
	}
	for i := range n {
		var err error
		if n[i], err = strconv.Atoi(args[i]); err != nil {
			return err
		}
	}
	runtime.GOMAXPROCS(1)
	tokens, rows, length := n[0], n[1], n[2]
	x, w := make([]float32, tokens*length), make([]float32, rows*length)
	for i := range x {
		x[i] = float32(i%17) - 8
	}
	for i := range w {
		w[i] = float32(i%13) - 6
	}
	dst := kernel.NewMatrix(make([]float32, tokens*rows), tokens, rows)
	multiply := func() { kernel.MatMul(dst, kernel.NewMatrix(x, tokens, length), kernel.NewMatrix(w, rows, length)) }
	multiply()
	start, calls := cpuTime(), 0
	for cpuTime()-start < time.Duration(n[3])*time.Millisecond {
		multiply()
		calls++
	}
	fmt.Println(2 * float64(tokens) * float64(rows) * float64(length) * float64(calls) / (cpuTime() - start).Seconds() / 1e9)
	return nil
}

// cpuTime is what the program took of the processor so far. Other programs do
// not show in it.
func cpuTime() time.Duration {
	var u syscall.Rusage
	if err := syscall.Getrusage(syscall.RUSAGE_SELF, &u); err != nil {
		return 0
	}
	return time.Duration(u.Utime.Nano() + u.Stime.Nano())
}
