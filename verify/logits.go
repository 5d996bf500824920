package verify

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"math"
	"os"
	"slices"
	"sync"

	"github.com/winnow-moe/winnow/engine"
	"github.com/winnow-moe/winnow/formats/durable"
)

// A file of logits, as llama-perplexity --kl-divergence-base writes and reads
// it (llama.cpp, tools/perplexity/perplexity.cpp), little-endian: the magic,
// window length, vocabulary size and number of windows as int32, the tokens of
// the windows before BOS replaced the first of each, int32; then a row for each
// scored position: float32 scale and lowest log-probability, and for each token
// a uint16 step above the lowest, padded to an even number.
const (
	logitsMagic  = "_logits_"
	logitsHeader = int64(len(logitsMagic)) + 3*4

	// savedRange is what a row resolves below its most likely token, in nats.
	savedRange = 16
	savedSteps = 65535
	// maxSaved bounds window length, vocabulary and windows, far above what is
	// sensible, so that sizes do not overflow.
	maxSaved = 1 << 24
)

// ErrLogits is in every error about the contents of a file of logits.
var ErrLogits = errors.New("not a usable file of logits")

// IsLogitsFile reports whether path is a file of logits.
func IsLogitsFile(path string) bool {
	f, err := os.Open(path)
	if err != nil {
		return false
	}
	defer f.Close()
	magic := make([]byte, len(logitsMagic))
	_, err = io.ReadFull(f, magic)
	return err == nil && string(magic) == logitsMagic
}

// savedLayout says where the parts of a file of logits are.
type savedLayout struct{ ctx, vocab, chunks int64 }

func (l savedLayout) rowBytes() int64  { return 8 + 2*((l.vocab+1)/2*2) }
func (l savedLayout) perChunk() int64  { return l.ctx - 1 - l.ctx/2 }
func (l savedLayout) rowsStart() int64 { return logitsHeader + 4*l.ctx*l.chunks }
func (l savedLayout) row(i int) int64  { return l.rowsStart() + int64(i)*l.rowBytes() }
func (l savedLayout) size() int64 {
	return l.rowsStart() + l.chunks*l.perChunk()*l.rowBytes()
}

// LogitsFile is an open file of logits. Rows are read when they are needed.
type LogitsFile struct {
	// Ctx is the length of a window, Vocab the size of the vocabulary, Chunks
	// the number of windows.
	Ctx, Vocab, Chunks int

	path   string
	f      *os.File
	layout savedLayout
	tokens []int32
	raw    []byte // one row
}

// OpenLogits opens a file of logits and reads its tokens.
func OpenLogits(path string) (*LogitsFile, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	l := &LogitsFile{path: path, f: f}
	if err := l.readHeader(); err != nil {
		f.Close()
		return nil, fmt.Errorf("%s: %w: %w", path, ErrLogits, err)
	}
	return l, nil
}

func (l *LogitsFile) readHeader() error {
	st, err := l.f.Stat()
	if err != nil {
		return err
	}
	head := make([]byte, logitsHeader)
	if _, err := io.ReadFull(l.f, head); err != nil {
		return fmt.Errorf("header: %w", err)
	}
	if string(head[:len(logitsMagic)]) != logitsMagic {
		return fmt.Errorf("it begins with %q, want %q", head[:len(logitsMagic)], logitsMagic)
	}
	var v [3]int64
	for i, name := range []string{"n_ctx", "n_vocab", "n_chunk"} {
		v[i] = int64(int32(binary.LittleEndian.Uint32(head[len(logitsMagic)+4*i:])))
		if v[i] < 1 || v[i] > maxSaved {
			return fmt.Errorf("%s is %d, want 1 to %d", name, v[i], maxSaved)
		}
	}
	l.layout = savedLayout{v[0], v[1], v[2]}
	if l.layout.perChunk() < 1 {
		return fmt.Errorf("n_ctx is %d, want at least %d", v[0], MinCtx)
	}
	// The division comes first, so that a false number of windows overflows nothing.
	if per := 4*v[0] + l.layout.perChunk()*l.layout.rowBytes(); v[2] > st.Size()/per || l.layout.size() != st.Size() {
		return fmt.Errorf("the file has %d bytes; %d windows of %d tokens with a vocabulary of %d take another number: it is not complete", st.Size(), v[2], v[0], v[1])
	}
	l.Ctx, l.Vocab, l.Chunks = int(v[0]), int(v[1]), int(v[2])
	l.raw = make([]byte, l.layout.rowBytes())
	l.tokens = make([]int32, l.Ctx*l.Chunks)
	if err := binary.Read(l.f, binary.LittleEndian, l.tokens); err != nil {
		return fmt.Errorf("tokens: %w", err)
	}
	return nil
}

// Close closes the file.
func (l *LogitsFile) Close() error { return l.f.Close() }

// Text makes the text of the tokens in the file, for a vocabulary that adds
// bos or not. chunks limits the number of windows, 0 means all.
func (l *LogitsFile) Text(chunks int, bos int32, addBOS bool) *Text {
	n := l.Chunks
	if chunks > 0 {
		n = min(n, chunks)
	}
	t := &Text{Tokens: slices.Clone(l.tokens[:n*l.Ctx])}
	begin := "windows start with their own first token"
	if addBOS {
		begin = fmt.Sprintf("the first token of every window replaced by BOS (%d)", bos)
	}
	for w := range slices.Chunk(slices.Clone(t.Tokens), l.Ctx) {
		if addBOS {
			w[0] = bos
		}
		t.Windows = append(t.Windows, w)
	}
	t.Definition = fmt.Sprintf("llama-perplexity: the tokens in %s, windows of %d, %d of %d used, %s; positions %d to %d of each predict the next token",
		l.path, l.Ctx, n, l.Chunks, begin, firstScored(l.Ctx), l.Ctx-2)
	return t
}

// Match makes sure that the file was made of a text, of whose windows it may
// have more.
func (l *LogitsFile) Match(t *Text) error {
	if t.Tokens == nil || t.From != nil {
		return fmt.Errorf("%s holds predictions for windows as llama-perplexity cuts them of a text; this one is cut by another definition", l.path)
	}
	if n := len(t.Windows[0]); n != l.Ctx {
		return fmt.Errorf("%s was made with windows of %d tokens, the text has windows of %d", l.path, l.Ctx, n)
	}
	for i, id := range t.Tokens[:min(len(t.Tokens), len(l.tokens))] {
		if id != l.tokens[i] {
			return fmt.Errorf("window %d, position %d: the text has token %d, %s has %d: it was made of another text or with another tokenizer",
				i/l.Ctx, i%l.Ctx, id, l.path, l.tokens[i])
		}
	}
	if len(t.Tokens) > len(l.tokens) {
		return fmt.Errorf("the text has %d windows, %s only %d", len(t.Windows), l.path, l.Chunks)
	}
	return nil
}

func (l *LogitsFile) vocab() int                   { return l.Vocab }
func (l *LogitsFile) forget()                      {}
func (l *LogitsFile) state() *engine.State         { return nil }
func (l *LogitsFile) parts(int, int) []engine.Part { return nil }

func (l *LogitsFile) forward(context.Context, [][]int32, *engine.State, func(*engine.State) error) error {
	return nil
}

// predict reads the log-probabilities of n scored positions from index on.
func (l *LogitsFile) predict(ctx context.Context, _, _, index, n int, dst []float32) error {
	for i := range n {
		if err := ctx.Err(); err != nil {
			return err
		}
		if _, err := l.f.ReadAt(l.raw, l.layout.row(index+i)); err != nil {
			return fmt.Errorf("%s: scored position %d: %w", l.path, index+i, err)
		}
		decodeSaved(dst[i*l.Vocab:(i+1)*l.Vocab], l.raw)
	}
	return nil
}

// decodeSaved writes the log-probabilities of a row.
func decodeSaved(dst []float32, raw []byte) {
	scale, lowest := math.Float32frombits(binary.LittleEndian.Uint32(raw)), math.Float32frombits(binary.LittleEndian.Uint32(raw[4:]))
	for j := range dst {
		dst[j] = float32(scale*float32(binary.LittleEndian.Uint16(raw[8+2*j:]))) + lowest
	}
}

// encodeSaved writes a row: of logits, the log-probabilities in steps of
// 1/65535 of their range, at most 16 nats below the top, in the float32
// operations of llama-perplexity.
func encodeSaved(raw []byte, logits []float32) error {
	at, err := maximum(logits)
	if err != nil {
		return err
	}
	highest := logits[at]
	lowest, sum := max(slices.Min(logits), highest-savedRange), 0.0
	for _, x := range logits {
		sum += float64(float32(math.Exp(float64(x - highest))))
	}
	scale := (highest - lowest) / savedSteps
	binary.LittleEndian.PutUint32(raw, math.Float32bits(scale))
	binary.LittleEndian.PutUint32(raw[4:], math.Float32bits(lowest-highest-float32(math.Log(sum))))
	clear(raw[8:])
	if scale == 0 {
		return nil
	}
	inverse := 1 / scale
	for j, x := range logits {
		if x > lowest {
			binary.LittleEndian.PutUint16(raw[8+2*j:], uint16(math.RoundToEven(float64(inverse*(x-lowest)))))
		}
	}
	return nil
}

// LogitsWriter writes a file of logits. It has the name ".part" until Commit.
type LogitsWriter struct {
	path, temp string
	f          *os.File
	layout     savedLayout
	rows       sync.Pool // *[]byte, a row each
}

// CreateLogits begins a file with the logits that a model with a vocabulary of
// the given size predicts for a text, which must be cut as llama-perplexity
// does.
func CreateLogits(path string, t *Text, vocab int) (*LogitsWriter, error) {
	if t.Tokens == nil || t.From != nil || len(t.Windows) == 0 {
		return nil, fmt.Errorf("%s: such a file holds windows as llama-perplexity cuts them of a text; this one is cut by another definition", path)
	}
	w := &LogitsWriter{path: path, temp: path + durable.Suffix}
	w.layout = savedLayout{int64(len(t.Windows[0])), int64(vocab), int64(len(t.Windows))}
	if max(w.layout.ctx, w.layout.vocab, w.layout.chunks) > maxSaved {
		return nil, fmt.Errorf("%s: %d windows of %d tokens with a vocabulary of %d are too much for such a file", path, w.layout.chunks, w.layout.ctx, vocab)
	}
	f, err := os.Create(w.temp)
	if err != nil {
		return nil, err
	}
	w.f = f
	head := bytes.NewBufferString(logitsMagic)
	for _, v := range []any{[3]int32{int32(w.layout.ctx), int32(vocab), int32(w.layout.chunks)}, t.Tokens} {
		binary.Write(head, binary.LittleEndian, v) // a buffer takes everything
	}
	if _, err := f.Write(head.Bytes()); err != nil {
		w.Abort()
		return nil, err
	}
	return w, nil
}

// Row writes the logits at scored position i, counted over all windows. It may
// be called for several positions at the same time.
func (w *LogitsWriter) Row(i int, logits []float32) error {
	raw, _ := w.rows.Get().(*[]byte)
	if raw == nil {
		b := make([]byte, w.layout.rowBytes())
		raw = &b
	}
	defer w.rows.Put(raw)
	if err := encodeSaved(*raw, logits); err != nil {
		return err
	}
	_, err := w.f.WriteAt(*raw, w.layout.row(i))
	return err
}

// Commit gives the file its name. All rows must have been written.
func (w *LogitsWriter) Commit() error {
	defer w.Abort()
	if err := w.f.Sync(); err != nil {
		return err
	}
	if err := w.f.Close(); err != nil {
		return err
	}
	return durable.Rename(w.temp, w.path)
}

// Abort removes an unfinished file; after Commit it does nothing.
func (w *LogitsWriter) Abort() {
	w.f.Close()
	os.Remove(w.temp)
}
