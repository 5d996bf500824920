package main

import (
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"runtime/debug"
	"strconv"
	"strings"

	"github.com/winnow-moe/winnow/convert"
	"github.com/winnow-moe/winnow/engine"
	"github.com/winnow-moe/winnow/formats/arch"
	"github.com/winnow-moe/winnow/formats/gguf"
	"github.com/winnow-moe/winnow/verify"
)

const (
	// programBytes is what the program itself takes of resident memory, and the
	// runtime for its own.
	programBytes = 32 << 20
	// usualBatch bounds the tokens of a batch where no limit is given: beyond it
	// speed grows no more.
	usualBatch = 8192
	// unknownMemory stands for the memory of a machine that does not tell.
	unknownMemory = 4 << 30
	leastRows     = 16 // of logits at a time
)

// needs is what a measurement takes memory for.
type needs struct {
	models  []modelNeeds // which run one after the other over every batch
	vocab   int          // 0: no logits are made
	sources int          // of logits
	longest int          // window
	tokens  int          // of all windows
	kept    int64        // bytes of results
	used    int64        // bytes in use already
}

// modelNeeds is what a model tells of its needs; see engine.Model.
type modelNeeds interface {
	Memory(tokens, longest int, groupBytes int64) int64
	HiddenBytes(tokens int) int64
	OutputBytes() int64
}

// fit is how a measurement keeps to its memory.
type fit struct {
	batch int   // tokens
	rows  int   // of logits, for each model
	group int64 // bytes; see engine.Options
	hold  bool  // the output weights
}

// bytes is what it takes at most.
func (n *needs) bytes(f fit) int64 {
	all, most := int64(0), int64(0)
	for _, m := range n.models {
		all += m.HiddenBytes(f.batch)
		most = max(most, m.Memory(f.batch, n.longest, f.group)-m.HiddenBytes(f.batch))
	}
	total := n.used + n.kept + all + most
	if n.vocab > 0 {
		total += int64(n.sources) * int64(f.rows) * int64(n.vocab) * 4
		if f.hold {
			total += n.outputs()
		}
	}
	return total
}

// outputs is the size of the output weights.
func (n *needs) outputs() (bytes int64) {
	for _, m := range n.models {
		bytes += m.OutputBytes()
	}
	return bytes
}

// choose finds the largest batch of at most so many tokens that fits a limit. Of
// the limit a tenth is left to what the runtime has not taken back yet. Logits
// and groups get a share each, and the output weights are held if they take no
// more than a quarter. least is the lowest limit that any batch fits.
func (n *needs) choose(limit int64, most int) (f fit, least int64, ok bool) {
	room := limit/10*9 - n.used - n.kept
	tightest := fit{batch: n.longest, rows: leastRows, group: 1}
	least = n.bytes(tightest) / 9 * 10
	f = fit{batch: n.longest, rows: verify.DefaultLogitRows, group: engine.DefaultGroupBytes, hold: n.vocab > 0 && n.outputs() <= room/4}
	if n.vocab > 0 {
		perRow := 4 * int64(n.sources) * int64(n.vocab)
		f.rows = int(min(max(room/6/perRow, leastRows), verify.DefaultLogitRows))
	}
	f.group = min(max(room/8, 1), engine.DefaultGroupBytes)
	fits := func(f fit) bool { return n.bytes(f) <= limit/10*9 }
	if !fits(f) {
		if f = tightest; !fits(f) {
			return f, least, false
		}
	}
	high := max(n.longest, min(n.tokens, most))
	for f.batch < high {
		middle := f
		middle.batch = f.batch + (high-f.batch+1)/2
		if fits(middle) {
			f = middle
		} else {
			high = middle.batch - 1
		}
	}
	return f, least, true
}

// memoryFit chooses how a measurement with the given needs runs.
func (f *scoreFlags) memoryFit(n *needs) (fit, error) {
	limit, most := int64(f.maxMemory), f.batch
	if most == 0 {
		most = n.tokens
	}
	if limit == 0 {
		if f.batch > 0 {
			return fit{batch: f.batch, rows: verify.DefaultLogitRows, group: engine.DefaultGroupBytes}, nil
		}
		limit, most = availableMemory()/2, usualBatch
	}
	n.used += inUse()
	choice, least, ok := n.choose(limit, most)
	switch {
	case f.maxMemory == 0:
		choice.hold = false // the system keeps what it maps
		return choice, nil
	case !ok:
		return fit{}, &usageError{&convert.HintError{
			Err:  fmt.Errorf("--max-memory %s is too little for this model and windows of %d tokens: it takes at least %dM", f.maxMemory.String(), n.longest, least/1e6*101/100+1),
			Hint: "shorter windows (--ctx) take less",
		}}
	case f.batch > 0 && choice.batch < min(f.batch, n.tokens):
		return fit{}, usagef("--batch-tokens %d does not fit --max-memory %s: %d do", f.batch, f.maxMemory.String(), choice.batch)
	}
	debug.SetMemoryLimit(limit - programBytes)
	return choice, nil
}

// inUse returns the bytes that this process holds already.
func inUse() int64 {
	runtime.GC()
	var s runtime.MemStats
	runtime.ReadMemStats(&s)
	return int64(s.HeapAlloc) + programBytes
}

// availableMemory returns the bytes that a new process can take without making
// others wait: what the system says or, if it is less, the control group. A
// system that says nothing has unknownMemory.
func availableMemory() int64 {
	available := int64(unknownMemory)
	if n, ok := memInfo("/proc/meminfo", "MemAvailable:"); ok {
		available = n
	}
	group := "/sys/fs/cgroup"
	limit, ok1 := number(filepath.Join(group, "memory.max"))
	used, ok2 := number(filepath.Join(group, "memory.current"))
	cache, ok3 := memInfo(filepath.Join(group, "memory.stat"), "inactive_file")
	if ok1 && ok2 && ok3 {
		available = min(available, max(limit-used+cache, 0))
	}
	return available
}

// memInfo reads a line of a file like /proc/meminfo: a name, a number and its
// unit, bytes or kB.
func memInfo(path, name string) (int64, bool) {
	b, err := os.ReadFile(path)
	if err != nil {
		return 0, false
	}
	for line := range strings.Lines(string(b)) {
		fields := strings.Fields(line)
		if len(fields) < 2 || fields[0] != name {
			continue
		}
		n, err := strconv.ParseInt(fields[1], 10, 64)
		if len(fields) > 2 && fields[2] == "kB" {
			n <<= 10
		}
		return n, err == nil
	}
	return 0, false
}

// number reads a file that holds one.
func number(path string) (int64, bool) {
	b, err := os.ReadFile(path)
	if err != nil {
		return 0, false
	}
	n, err := strconv.ParseInt(strings.TrimSpace(string(b)), 10, 64)
	return n, err == nil
}

// scoringNeeds are those of scoring a text, beside a file of logits or not.
func scoringNeeds(models []*scored, file bool, text *verify.Text) *needs {
	n := &needs{vocab: models[0].engine.Vocab(), sources: len(models), tokens: text.Len(), longest: longestWindow(text)}
	if file {
		n.sources++
	}
	for _, m := range models {
		n.models = append(n.models, m.engine)
	}
	// Six numbers for every position and model, and a few copies to sort them.
	n.kept = int64(n.tokens) * 8 * (6*int64(len(models)) + 6)
	return n
}

// observingNeeds are those of calibrating with texts of so many domains.
func observingNeeds(m *scored, text *verify.Text, domains int) *needs {
	n := &needs{models: []modelNeeds{m.engine}, tokens: text.Len(), longest: longestWindow(text)}
	p := m.engine.Params()
	n.kept = int64(domains)*statisticsBytes(m.model, p.Experts) + 64<<20
	for _, w := range text.Windows {
		// Lists grow by a quarter, and the largest is copied while it is written.
		n.kept += int64(min(len(w), m.options.SampleTokens) * sampledBytes(p) * 5 / 4)
	}
	return n
}

// statisticsBytes is about what the statistics of a domain take: exact sums of
// 16 bytes for every column of every matrix of the blocks' weights, and for
// every pair of a block's experts, and as much again for a quarter of them while
// they are written.
func statisticsBytes(m gguf.Model, experts int) int64 {
	sums, blocks := int64(0), int64(0)
	for _, t := range m.Tensors() {
		name := arch.ParseName(t.Name)
		if len(t.Shape) < 2 || name.Layer < 0 {
			continue
		}
		columns := t.RowLen()
		for _, d := range t.Shape[2:] {
			columns *= d
		}
		sums += columns
		if name.Role == arch.Router {
			blocks++
		}
	}
	return 20 * (sums + blocks*int64(experts)*int64(2*experts+16))
}

func longestWindow(text *verify.Text) int {
	n := 0
	for _, w := range text.Windows {
		n = max(n, len(w))
	}
	return n
}
