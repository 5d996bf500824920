//go:build unix

package main

import (
	"bytes"
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/winnow-moe/winnow/formats/gguf"
	"github.com/winnow-moe/winnow/formats/tokenizer"
	"github.com/winnow-moe/winnow/testdata"
)

// window is the number of tokens of a window: the default of all programs.
const window = 512

// subject of runs is a model and a text of enough of its tokens.
type running struct {
	name, path, text string
}

// peer is a program with settings.
type peer struct {
	name     string
	folder   string // of llama-perplexity and llama-imatrix; "" for winnow
	settings []string
	runs     []usage
}

// batchSizes are what llama.cpp's -b and -ub are tried with.
var batchSizes = []int{512, 1024, 2048, 4096}

// searched is how many tokens they are tried on.
const searched = 8192

var runningColumns = []column{
	{"model", -9}, {"threads", 7}, {"program", -26}, {"tokens/s", 8}, {"CPU s", 6}, {"f32 is faster", -20}, {"int8 is faster", -20}, {"peak MB", 7}, {"PPL", -10},
}

// running compares runs of models: kind is perplexity or imatrix.
func (b *bench) running(kind string) error {
	if b.computes == nil {
		if err := b.findComputes(); err != nil {
			return err
		}
	}
	clock := ""
	if b.cpu {
		clock = "processor time, "
	}
	b.begin(fmt.Sprintf("%s: %d tokens in windows of %d, whole processes with loading, %smedian of %d rounds", kind, b.tokens, window, clock, b.rounds), runningColumns)
	for i := range shapes {
		if !slices.Contains(strings.Split(b.models, ","), shapes[i].name) {
			continue
		}
		path, err := b.shapeFile(&shapes[i])
		if err == nil {
			err = b.runModel(kind, shapes[i].name, path)
		}
		if err != nil {
			return fmt.Errorf("%s: %w", shapes[i].name, err)
		}
	}
	if b.file == "" {
		return nil
	}
	return b.runModel(kind, strings.TrimSuffix(filepath.Base(b.file), filepath.Ext(b.file)), b.file)
}

// findComputes asks winnow how it can compute: by default in float32.
func (b *bench) findComputes() error {
	help, err := b.run(b.winnow, []string{"perplexity", "--help"})
	if err != nil {
		return err
	}
	b.computes = []string{""}
	if bytes.Contains(help.out, []byte("--compute ")) {
		b.computes = []string{"f32", "int8"}
	}
	return nil
}

func (b *bench) runModel(kind, name, path string) error {
	s := &running{name: name, path: path}
	if err := b.makeText(s); err != nil {
		return err
	}
	defer os.Remove(s.text)
	for _, threads := range b.threads {
		peers, err := b.peers(s)
		if err != nil {
			return err
		}
		for range b.rounds {
			for _, p := range peers {
				u, err := b.runPeer(kind, s, p, threads, b.tokens)
				if err != nil {
					return err
				}
				p.runs = append(p.runs, u)
			}
		}
		for i := range peers {
			b.print(b.runningCells(kind, s, peers, i, threads))
		}
	}
	return nil
}

// peers are winnow in all its ways to compute and the others, with their
// defaults and at their best.
func (b *bench) peers(s *running) ([]*peer, error) {
	var list []*peer
	for _, c := range b.computes {
		p := &peer{name: "winnow"}
		if c != "" {
			p = &peer{name: "winnow " + c, settings: []string{"--compute", c}}
		}
		list = append(list, p)
	}
	for _, other := range []struct{ name, folder string }{{"llama.cpp", b.oracle}, {"ik_llama.cpp", b.ik}} {
		if other.folder == "" {
			continue
		}
		size, err := b.bestSize(s, other.folder)
		if err != nil {
			return nil, err
		}
		list = append(list, &peer{name: other.name, folder: other.folder},
			&peer{name: fmt.Sprintf("%s -b/-ub %d", other.name, size), folder: other.folder, settings: batches(size)})
	}
	return list, nil
}

func batches(size int) []string {
	n := strconv.Itoa(size)
	return []string{"-b", n, "-ub", n}
}

// bestSize finds the best of the batch sizes for a program on a model, with the
// most threads.
func (b *bench) bestSize(s *running, folder string) (int, error) {
	if b.batch > 0 {
		return b.batch, nil
	}
	key := folder + " " + s.path
	if size := b.bestSizes[key]; size > 0 {
		return size, nil
	}
	best, least := 0, usage{}
	for _, size := range batchSizes {
		u, err := b.runPeer("perplexity", s, &peer{folder: folder, settings: batches(size)}, slices.Max(b.threads), min(b.tokens, searched))
		if err != nil {
			return 0, err
		}
		if best == 0 || b.time(u) < b.time(least) {
			best, least = size, u
		}
	}
	if b.bestSizes == nil {
		b.bestSizes = map[string]int{}
	}
	b.bestSizes[key] = best
	return best, nil
}

// runPeer runs a program on the first tokens of the text.
func (b *bench) runPeer(kind string, s *running, p *peer, threads, tokens int) (usage, error) {
	chunks, n := strconv.Itoa(max(1, tokens/window)), strconv.Itoa(threads)
	output := filepath.Join(b.dir, "stats.gguf")
	defer os.Remove(output)
	if p.folder == "" {
		args := []string{"perplexity"}
		if kind == "imatrix" {
			args = []string{"calibrate", "--output", output}
		}
		args = append(args, "-q", "--text", s.text, "--chunks", chunks, "--threads", n)
		return b.run(b.winnow, slices.Concat(args, p.settings, []string{s.path}))
	}
	args := []string{"-m", s.path, "-f", s.text, "--chunks", chunks, "-t", n, "--no-escape"}
	if kind == "imatrix" {
		args = append(args, "-o", output, "--no-ppl") // as winnow, which tells no perplexity either
	}
	return b.run(filepath.Join(p.folder, "llama-"+kind), append(args, p.settings...))
}

// time is what a run took by the clock that counts.
func (b *bench) time(u usage) time.Duration {
	if b.cpu {
		return u.cpu
	}
	return u.wall
}

var pplPattern = regexp.MustCompile(`PPL.*? = ([0-9.]+)`)

// runningCells returns the line of a program.
func (b *bench) runningCells(kind string, s *running, peers []*peer, i, threads int) []string {
	p := peers[i]
	m := median(p.runs)
	against := func(ours int) string {
		if ours >= len(b.computes) || i < len(b.computes) && i <= ours {
			return ""
		}
		return ratios(peers[ours].runs, p.runs, b.time)
	}
	ppl := ""
	if found := pplPattern.FindAllSubmatch(m.out, -1); found != nil && kind == "perplexity" {
		ppl = string(found[len(found)-1][1])
	}
	return []string{
		s.name, strconv.Itoa(threads), p.name, fmt.Sprintf("%.0f", float64(b.tokens/window*window)/b.time(m).Seconds()),
		fmt.Sprintf("%.1f", m.cpu.Seconds()), against(0), against(1), fmt.Sprint(m.peak / 1e6), ppl,
	}
}

// makeText writes a text of somewhat more tokens than wanted: equal parts of
// the calibration texts.
func (b *bench) makeText(s *running) error {
	raw, err := corpus()
	if err != nil {
		return err
	}
	f, err := gguf.Open(s.path)
	if err != nil {
		return err
	}
	defer f.Close()
	v, err := tokenizer.FromMetadata(f.Metadata())
	if err != nil {
		return err
	}
	t, err := v.Encoder()
	if err != nil {
		return err
	}
	have, size := 0, 0
	for _, r := range raw {
		have += len(t.Encode(r, tokenizer.EncodeOptions{}))
		size += len(r)
	}
	want := float64(b.tokens) * 1.1 / float64(have)
	if want > 1 {
		return fmt.Errorf("-tokens is %d, the texts have about %.0f of this model's", b.tokens, float64(have)/1.1)
	}
	var text strings.Builder
	for _, r := range raw {
		text.WriteString(strings.ToValidUTF8(r[:int(float64(len(r))*want)], ""))
	}
	s.text = filepath.Join(b.dir, "text.txt")
	return os.WriteFile(s.text, []byte(text.String()), 0o666)
}

// corpus returns the calibration texts of the tests.
func corpus() (texts []string, err error) {
	dir, err := os.MkdirTemp("", "bench-peers")
	if err != nil {
		return nil, err
	}
	defer os.RemoveAll(dir)
	pack, err := os.Open("testdata/packs/corpus.tar.zst")
	if err != nil {
		return nil, fmt.Errorf("to be run in the repository's folder: %w", err)
	}
	defer pack.Close()
	if err := testdata.Unpack(pack, dir); err != nil {
		return nil, err
	}
	for _, name := range []string{"calib-english.txt", "calib-code.txt", "calib-docs.txt"} {
		data, err := os.ReadFile(filepath.Join(dir, "corpus", name))
		if err != nil {
			return nil, err
		}
		texts = append(texts, string(data))
	}
	return texts, nil
}
