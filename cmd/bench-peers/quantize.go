//go:build unix

package main

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
)

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

// quantizeColumns are those of the table of types.
var quantizeColumns = []column{
	{"type", -7}, {"imatrix", -7}, {"threads", 7}, {"winnow", 7}, {"llama", 7}, {"ratio (min … max)", -20},
	{"copy", 7}, {"of copy", 7}, {"peak MB", 9}, {"bytes", -9},
}

// quantizing compares winnow quantize with llama-quantize.
func (b *bench) quantizing() error {
	defer func() {
		if b.model != nil {
			b.model.remove()
		}
	}()
	b.begin(fmt.Sprintf("quantize: MB/s of source weights, median of %d rounds", b.rounds), quantizeColumns)
	for i := range subjects {
		s := &subjects[i]
		if b.types != "" && !slices.Contains(strings.Split(b.types, ","), s.name) {
			continue
		}
		if err := b.measure(s); err != nil {
			return fmt.Errorf("%s: %w", s.name, err)
		}
	}
	return nil
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
		for _, threads := range b.threads {
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

// comparison is a line of the table.
type comparison struct {
	name               string
	guided             bool
	threads            int
	ours, theirs, copy []usage // round by round
	source             int64   // bytes
	same               bool
}

// compare runs the programs in turn.
func (b *bench) compare(s *subject, guided bool, threads int) (*comparison, error) {
	c := &comparison{name: s.name, guided: guided, threads: threads, source: b.model.bytes}
	self, err := os.Executable()
	if err != nil {
		return nil, err
	}
	ours, theirs, copied := filepath.Join(b.dir, "winnow.gguf"), filepath.Join(b.dir, "llama.gguf"), filepath.Join(b.dir, "copy")
	defer os.Remove(ours)
	defer os.Remove(theirs)
	args := slices.Clone(s.args)
	if guided {
		args = append(args, "--imatrix", b.model.imatrix)
	}
	recipe := s.name
	if s.noRecipe {
		recipe = "Q8_0"
	}
	n := strconv.Itoa(threads)
	tail := []string{recipe, n}
	for range b.rounds {
		for _, r := range []struct {
			results *[]usage
			output  string
			program string
			args    func() []string
		}{
			{&c.ours, ours, b.winnow, func() []string {
				return slices.Concat([]string{"quantize", "-q"}, args, []string{b.model.path, ours}, tail)
			}},
			{&c.theirs, theirs, filepath.Join(b.oracle, "llama-quantize"), func() []string { return slices.Concat(args, []string{b.model.path, theirs}, tail) }},
			{&c.copy, copied, self, func() []string { return []string{copyCommand, b.model.path, copied, fileSize(ours), n} }},
		} {
			os.Remove(r.output)
			u, err := b.run(r.program, r.args())
			if err != nil {
				return nil, err
			}
			*r.results = append(*r.results, u)
		}
		os.Remove(copied)
	}
	c.same, err = sameFiles(ours, theirs)
	return c, err
}

// fileSize returns the size of a file in digits, "0" where there is none.
func fileSize(path string) string {
	st, err := os.Stat(path)
	if err != nil {
		return "0"
	}
	return strconv.FormatInt(st.Size(), 10)
}

// sameFiles compares two files.
func sameFiles(a, b string) (bool, error) {
	var files [2]*os.File
	for i, path := range []string{a, b} {
		f, err := os.Open(path)
		if err != nil {
			return false, err
		}
		defer f.Close()
		files[i] = f
	}
	var buf [2][1 << 16]byte
	for {
		n, errA := io.ReadFull(files[0], buf[0][:])
		m, errB := io.ReadFull(files[1], buf[1][:])
		if !bytes.Equal(buf[0][:n], buf[1][:m]) {
			return false, nil
		}
		for _, err := range []error{errA, errB} {
			if err != nil && !errors.Is(err, io.EOF) && !errors.Is(err, io.ErrUnexpectedEOF) {
				return false, err
			}
		}
		if errA != nil {
			return errB != nil, nil
		}
	}
}

// cells returns the line of the table.
func (c *comparison) cells() []string {
	var ratios []float64
	for i := range c.ours {
		ratios = append(ratios, c.theirs[i].wall.Seconds()/c.ours[i].wall.Seconds())
	}
	slices.Sort(ratios)
	ours, theirs, copied := median(c.ours), median(c.theirs), median(c.copy)
	speed := func(u usage) string { return fmt.Sprintf("%.1f", float64(c.source)/1e6/u.wall.Seconds()) }
	bytes, guided := "same", "no"
	if !c.same {
		bytes = "DIFFERENT"
	}
	if c.guided {
		guided = "yes"
	}
	return []string{
		c.name, guided, strconv.Itoa(c.threads), speed(ours), speed(theirs),
		fmt.Sprintf("%.1f (%.1f … %.1f)", theirs.wall.Seconds()/ours.wall.Seconds(), ratios[0], ratios[len(ratios)-1]),
		speed(copied), fmt.Sprintf("%.0f %%", 100*copied.wall.Seconds()/ours.wall.Seconds()),
		fmt.Sprintf("%d / %d", ours.peak/1e6, theirs.peak/1e6), bytes,
	}
}
