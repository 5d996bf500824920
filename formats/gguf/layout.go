package gguf

import (
	"encoding/binary"
	"fmt"
	"math"
	"slices"
	"strings"
)

// LayoutOptions say how an output is divided into files. Zero values mean no
// limit; with no limit exceeded the output is a single file.
type LayoutOptions struct {
	// MaxShardBytes bounds the tensor bytes of a shard, not counting padding
	// and header, as gguf-py's split_max_size does. A larger tensor gets a
	// shard of its own.
	MaxShardBytes int64
	// MaxShardTensors bounds the number of tensors of a shard.
	MaxShardTensors int
	// FirstTensors, when not nil, divides the output like another one: shard
	// i starts with tensor FirstTensors[i]. The limits do not apply then.
	FirstTensors []int
}

// Layout is a decided output: every header byte and every offset, before
// anything is written. It is immutable.
type Layout struct {
	tensors []TensorInfo
	places  []place
	shards  []shard
}

type shard struct {
	first, end int    // tensors [first, end)
	header     []byte // including the padding up to the data section
	size       int64  // of the file
}

// NewLayout lays out version 3 files that hold meta and the tensors in the
// given order, densely, each padded to general.alignment (32 when absent).
// Split keys in meta are replaced. Like gguf-py's writer, a split output keeps
// the metadata in its first shard, followed by split.no, split.count and
// split.tensors.count, and puts these three alone into the others; a
// general.alignment is repeated in each shard, because readers take it per file.
//
// Whatever Parse would refuse is an error here.
func NewLayout(meta *Metadata, tensors []TensorInfo, opt LayoutOptions) (*Layout, error) {
	meta = meta.Clone()
	for _, k := range splitKeys {
		meta.Delete(k)
	}
	alignment, err := alignmentOf(meta)
	if err != nil {
		return nil, err
	}
	if err := checkKeys(meta); err != nil {
		return nil, err
	}
	if err := checkTensors(tensors); err != nil {
		return nil, err
	}
	l := &Layout{tensors: slices.Clone(tensors), places: make([]place, len(tensors))}
	l.divide(opt)
	if len(l.shards) > maxSplits || len(tensors) > math.MaxInt32 {
		return nil, fmt.Errorf("output would have %d shards, at most %d are possible", len(l.shards), maxSplits)
	}
	for i := range l.shards {
		if err := l.fill(i, l.shardMetadata(i, meta), alignment); err != nil {
			return nil, err
		}
	}
	return l, nil
}

// checkKeys also makes room for the three split keys.
func checkKeys(meta *Metadata) error {
	if n := meta.Len(); n > maxKeys-len(splitKeys) {
		return fmt.Errorf("%d metadata keys are too many (limit %d)", n, maxKeys-len(splitKeys))
	}
	for _, k := range meta.Keys() {
		if err := checkIdent(k, maxKeyBytes, "key"); err != nil {
			return err
		}
		v, _ := meta.Get(k)
		if err := checkValue(v, 0); err != nil {
			return fmt.Errorf("key %.200q: %w", k, err)
		}
	}
	return nil
}

// checkValue keeps to the caps of the reader. depth counts the arrays around v.
func checkValue(v any, depth int) error {
	tooLong := func(n, limit int) error {
		return fmt.Errorf("length %d is too large (limit %d)", n, limit)
	}
	if t, _, _ := TypeOf(v); t == TypeArray && depth >= maxNesting {
		return fmt.Errorf("array is nested deeper than %d levels", maxNesting)
	}
	switch v := v.(type) {
	case string:
		if len(v) > maxStringBytes {
			return tooLong(len(v), maxStringBytes)
		}
	case []string:
		if len(v) > maxStrings {
			return tooLong(len(v), maxStrings)
		}
		for _, s := range v {
			if len(s) > maxStringBytes {
				return tooLong(len(s), maxStringBytes)
			}
		}
	case []Nested:
		if len(v) > maxStrings {
			return tooLong(len(v), maxStrings)
		}
		for _, e := range v {
			if t, _, ok := TypeOf(e.Value); !ok || t != TypeArray {
				return fmt.Errorf("element of an array of arrays is a %T", e.Value)
			}
			if err := checkValue(e.Value, depth+1); err != nil {
				return err
			}
		}
	default:
		_, elem, _ := TypeOf(v)
		if width := int(fixedTypes[elem].width); binary.Size(v) > maxNumbers*width {
			return tooLong(binary.Size(v)/width, maxNumbers)
		}
	}
	return nil
}

func checkTensors(tensors []TensorInfo) error {
	if n := len(tensors); n > maxTensors {
		return fmt.Errorf("%d tensors are too many (limit %d)", n, maxTensors)
	}
	seen := make(map[string]bool, len(tensors))
	total := int64(0)
	for i := range tensors {
		t := &tensors[i]
		if err := checkIdent(t.Name, maxNameBytes, "tensor name"); err != nil {
			return err
		}
		if seen[t.Name] {
			return fmt.Errorf("duplicate tensor %q", t.Name)
		}
		seen[t.Name] = true
		if len(t.Shape) > maxDims {
			return fmt.Errorf("tensor %q has %d dimensions, at most %d are allowed", t.Name, len(t.Shape), maxDims)
		}
		if err := t.CheckShape(); err != nil {
			return err
		}
		// Half of the range leaves room for padding and headers.
		if total += t.Size(); total < 0 || total > math.MaxInt64/2 {
			return fmt.Errorf("tensor %q makes the output larger than %d bytes", t.Name, int64(math.MaxInt64/2))
		}
	}
	return nil
}

// divide assigns tensors to shards by gguf-py's rule (GGUFWriter.add_tensor_info):
// a shard that holds something is closed when the next tensor would exceed a limit.
func (l *Layout) divide(opt LayoutOptions) {
	if opt.FirstTensors != nil {
		for i, first := range opt.FirstTensors {
			end := len(l.tensors)
			if i+1 < len(opt.FirstTensors) {
				end = opt.FirstTensors[i+1]
			}
			l.shards = append(l.shards, shard{first: first, end: end})
		}
		return
	}
	cur := shard{}
	var bytes int64
	for i := range l.tensors {
		size := l.tensors[i].Size()
		full := opt.MaxShardTensors > 0 && i-cur.first >= opt.MaxShardTensors
		large := opt.MaxShardBytes > 0 && bytes+size > opt.MaxShardBytes
		if i > cur.first && (full || large) {
			cur.end = i
			l.shards = append(l.shards, cur)
			cur, bytes = shard{first: i}, 0
		}
		bytes += size
	}
	cur.end = len(l.tensors)
	l.shards = append(l.shards, cur)
}

// shardMetadata returns the keys of shard i.
func (l *Layout) shardMetadata(i int, meta *Metadata) *Metadata {
	if len(l.shards) == 1 {
		return meta
	}
	m := &Metadata{}
	if a, ok := meta.Get(KeyAlignment); ok {
		m.Set(KeyAlignment, a)
	}
	if i == 0 {
		m = meta.Clone()
	}
	m.Set(KeySplitNo, uint16(i))
	m.Set(KeySplitCount, uint16(len(l.shards)))
	m.Set(KeySplitTensorsCount, int32(len(l.tensors)))
	return m
}

// fill computes offsets, header and size of shard i.
func (l *Layout) fill(i int, meta *Metadata, alignment int64) error {
	s := &l.shards[i]
	b := append([]byte(nil), magic...)
	b = binary.LittleEndian.AppendUint32(b, writtenVersion)
	b = binary.LittleEndian.AppendUint64(b, uint64(s.end-s.first))
	b = binary.LittleEndian.AppendUint64(b, uint64(meta.Len()))
	for _, k := range meta.Keys() {
		v, _ := meta.Get(k)
		t, _, _ := TypeOf(v)
		b = appendString(b, k)
		b = binary.LittleEndian.AppendUint32(b, uint32(t))
		b = appendValue(b, v)
	}
	off := int64(0)
	for j := s.first; j < s.end; j++ {
		b = appendTensor(b, &l.tensors[j], off)
		l.places[j] = place{i, off}
		off += align(l.tensors[j].Size(), alignment)
	}
	b = append(b, make([]byte, align(int64(len(b)), alignment)-int64(len(b)))...)
	if len(b) > maxHeaderBytes {
		return fmt.Errorf("header of %d bytes is larger than the limit of %d", len(b), maxHeaderBytes)
	}
	for j := s.first; j < s.end; j++ {
		l.places[j].offset += int64(len(b))
	}
	s.header, s.size = b, int64(len(b))+off
	return nil
}

func appendString(b []byte, s string) []byte {
	b = binary.LittleEndian.AppendUint64(b, uint64(len(s)))
	return append(b, s...)
}

// appendValue appends a value without its own type number.
func appendValue(b []byte, v any) []byte {
	t, elem, _ := TypeOf(v)
	if t != TypeArray {
		if s, ok := v.(string); ok {
			return appendString(b, s)
		}
		return appendFixed(b, v)
	}
	b = binary.LittleEndian.AppendUint32(b, uint32(elem))
	switch v := v.(type) {
	case []string:
		b = binary.LittleEndian.AppendUint64(b, uint64(len(v)))
		for _, s := range v {
			b = appendString(b, s)
		}
		return b
	case []Nested:
		b = binary.LittleEndian.AppendUint64(b, uint64(len(v)))
		for _, e := range v {
			b = appendValue(b, e.Value)
		}
		return b
	}
	b = binary.LittleEndian.AppendUint64(b, uint64(int64(binary.Size(v))/fixedTypes[elem].width))
	return appendFixed(b, v)
}

func appendFixed(b []byte, v any) []byte {
	b, err := binary.Append(b, binary.LittleEndian, v)
	if err != nil {
		panic(fmt.Sprintf("gguf: %T is not a metadata value", v))
	}
	return b
}

func appendTensor(b []byte, t *TensorInfo, off int64) []byte {
	b = appendString(b, t.Name)
	b = binary.LittleEndian.AppendUint32(b, uint32(len(t.Shape)))
	for _, n := range t.Shape {
		b = binary.LittleEndian.AppendUint64(b, uint64(n))
	}
	b = binary.LittleEndian.AppendUint32(b, uint32(t.Type))
	return binary.LittleEndian.AppendUint64(b, uint64(off))
}

// Shards returns the number of files.
func (l *Layout) Shards() int { return len(l.shards) }

// Header returns everything of a shard that precedes its tensor data, padding
// included. Callers must not change it.
func (l *Layout) Header(shard int) []byte { return l.shards[shard].header }

// ShardSize returns the bytes of a shard's file.
func (l *Layout) ShardSize(shard int) int64 { return l.shards[shard].size }

// Size returns the bytes of all files.
func (l *Layout) Size() int64 {
	n := int64(0)
	for i := range l.shards {
		n += l.shards[i].size
	}
	return n
}

// Place returns the shard of a tensor and the offset of its data from the
// start of that shard's file.
func (l *Layout) Place(tensor int) (shard int, offset int64) {
	return l.places[tensor].part, l.places[tensor].offset
}

// Paths returns the names of the files for an output called path: path itself
// for a single file, else path without ".gguf" and with -00001-of-0000N.gguf.
func (l *Layout) Paths(path string) []string {
	if len(l.shards) == 1 {
		return []string{path}
	}
	return splitPaths(strings.TrimSuffix(path, ".gguf"), len(l.shards))
}
