//go:build unix

package main

import (
	"errors"
	"fmt"
	"io"
	"os"
	"runtime"
	"strconv"
	"sync"
)

// copyCommand as first argument makes this program one that copies: input,
// output, bytes to write, threads.
const copyCommand = "copy"

// copyUnit is how much is read at a time: as much as winnow does.
const copyUnit = 1 << 20

func copyMain(args []string) error {
	if len(args) != 4 {
		return fmt.Errorf("%s takes input, output, size and threads", copyCommand)
	}
	size, err := strconv.ParseInt(args[2], 10, 64)
	if err != nil {
		return err
	}
	threads, err := strconv.Atoi(args[3])
	if err != nil {
		return err
	}
	return copyBytes(args[0], args[1], size, threads)
}

// copyBytes reads all of a file and writes so many bytes of what it reads, spread
// evenly, to another: every unit of the input gives its share of the output.
func copyBytes(from, to string, size int64, threads int) error {
	runtime.GOMAXPROCS(threads)
	in, err := os.Open(from)
	if err != nil {
		return err
	}
	defer in.Close()
	st, err := in.Stat()
	if err != nil {
		return err
	}
	out, err := os.Create(to)
	if err != nil {
		return err
	}
	units := (st.Size() + copyUnit - 1) / copyUnit
	errs := make([]error, threads)
	var wg sync.WaitGroup
	for t := range threads {
		wg.Go(func() {
			buf := make([]byte, max(copyUnit, size/max(1, units)+1))
			for i := int64(t); i < units && errs[t] == nil; i += int64(threads) {
				_, err := in.ReadAt(buf[:copyUnit], i*copyUnit)
				if errors.Is(err, io.EOF) {
					err = nil
				}
				start, end := size*i/units, size*(i+1)/units
				if err == nil {
					_, err = out.WriteAt(buf[:end-start], start)
				}
				errs[t] = err
			}
		})
	}
	wg.Wait()
	return errors.Join(append(errs, out.Close())...)
}
