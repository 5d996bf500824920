package main

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"hash"
	"io"
	"os"

	"github.com/winnow-moe/winnow/convert"
	"github.com/winnow-moe/winnow/formats/calib"
	"github.com/winnow-moe/winnow/formats/gguf"
	"github.com/winnow-moe/winnow/verify"
)

// checkCheckpoint refuses a checkpoint in the place of another file.
func (f *scoreFlags) checkCheckpoint(inputs []string, outputs ...string) error {
	if f.checkpoint == "" {
		return nil
	}
	// One that exists is looked at before it is replaced.
	return checkOutput(f.checkpoint, append(outputs, inputs...), true)
}

// keep returns where a measurement of a text is kept, nil if nowhere. Nothing
// but what changes its numbers is among the facts.
func (f *scoreFlags) keep(ctx context.Context, what string, text *verify.Text, models []*scored, more ...verify.Fact) (*verify.Checkpoint, error) {
	if f.checkpoint == "" {
		return nil, nil
	}
	facts := []verify.Fact{{Name: "command", Value: what}, {Name: "version of this program", Value: version + revision()}, {Name: "text, or way to cut it", Value: text.Digest()}, {Name: "--compute", Value: f.compute.String()}}
	facts = append(facts, more...)
	for i, m := range models {
		digest, err := modelDigest(ctx, m.model)
		if err != nil {
			return nil, fmt.Errorf("%s: %w", m.path, err)
		}
		facts = append(facts, verify.Fact{Name: modelRole(i, len(models)), Value: digest})
		if m.kept != nil {
			facts = append(facts, verify.Fact{Name: "--experts", Value: m.kept.digest()})
		}
	}
	if f.baseFile != "" {
		digest, err := fileDigest(f.baseFile)
		if err != nil {
			return nil, err
		}
		facts = append(facts, verify.Fact{Name: "base", Value: digest})
	}
	return &verify.Checkpoint{Path: f.checkpoint, Facts: facts, Every: f.every}, nil
}

// modelRole names model i of some: with a base, that comes first.
func modelRole(i, models int) string {
	if i == 0 && models > 1 {
		return "base"
	}
	return "model"
}

// stopped adds to the error of an interrupted run how it goes on.
func (f *scoreFlags) stopped(err error) error {
	if f.checkpoint == "" {
		return err
	}
	if errors.Is(err, context.Canceled) {
		if _, e := os.Stat(f.checkpoint); e == nil {
			return &convert.HintError{Err: err, Hint: "the same command goes on from " + f.checkpoint}
		}
		return &convert.HintError{Err: err, Hint: "it was stopped before the first save (--checkpoint-every)"}
	}
	if errors.Is(err, verify.ErrCheckpoint) {
		return &convert.HintError{Err: err, Hint: "remove " + f.checkpoint + " to begin anew"}
	}
	return err
}

// finished removes the checkpoint of a run whose result is there.
func (f *scoreFlags) finished() error {
	if f.checkpoint == "" {
		return nil
	}
	return (&verify.Checkpoint{Path: f.checkpoint}).Remove()
}

// modelDigest tells models apart by their keys, their directory, and the first,
// middle and last row of every tensor: reading all of a model would take longer
// than its first batch.
func modelDigest(ctx context.Context, m gguf.Model) (string, error) {
	h, meta := sha256.New(), m.Metadata()
	for _, k := range meta.Keys() {
		v, _ := meta.Get(k)
		fmt.Fprintf(h, "%q %T %v\n", k, v, v)
	}
	var buf []byte
	for i, t := range m.Tensors() {
		fmt.Fprintf(h, "%q %s %v\n", t.Name, t.Type, t.Shape)
		last := t.Rows() - 1
		for _, row := range []int64{0, last / 2, last} {
			if row < 0 {
				continue
			}
			if n := t.RowBytes(); int64(len(buf)) < n {
				buf = make([]byte, n)
			}
			raw, err := m.Rows(ctx, i, row, 1, buf)
			if err != nil {
				return "", err
			}
			h.Write(raw)
		}
		m.Release(i)
	}
	return digestText(h), nil
}

// fileDigest tells files apart by their size, their first, middle and last part.
func fileDigest(path string) (string, error) {
	const part = 1 << 20
	f, err := os.Open(path)
	if err != nil {
		return "", err
	}
	defer f.Close()
	st, err := f.Stat()
	if err != nil {
		return "", err
	}
	h := sha256.New()
	fmt.Fprintln(h, st.Size())
	for _, at := range []int64{0, st.Size() / 2, max(0, st.Size()-part)} {
		if _, err := io.Copy(h, io.NewSectionReader(f, at, part)); err != nil {
			return "", err
		}
	}
	return digestText(h), nil
}

func digestText(h hash.Hash) string { return fmt.Sprintf("%x", h.Sum(nil)[:8]) }

// keptStatistics are the statistics of a calibration as part of a checkpoint.
type keptStatistics struct{ *calib.Statistics }

// Save implements verify.Sums.
func (k keptStatistics) Save(meta *gguf.Metadata) []verify.Section {
	var list []verify.Section
	for _, s := range k.Sections(meta) {
		list = append(list, verify.Section(s))
	}
	return list
}

// Load implements verify.Sums.
func (k keptStatistics) Load(m gguf.Model) error {
	s, err := calib.ParseStatistics(m)
	if err != nil {
		return err
	}
	*k.Statistics = *s
	return nil
}
