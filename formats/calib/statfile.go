package calib

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"math"
	"slices"
	"strconv"
	"strings"

	"github.com/winnow-moe/winnow/formats/gguf"
)

// A file of statistics is an importance matrix in the GGUF form, which programs
// that know nothing else read as such. Behind its keys it has
//
//	winnow.calibration.version          UINT32            1
//	winnow.calibration.domains          ARRAY of STRING   their names
//	winnow.calibration.chunks           ARRAY of UINT32   windows of each
//	winnow.calibration.datasets         ARRAY of STRING   the texts
//	winnow.calibration.dataset_domains  ARRAY of UINT32   the domain of each text
//	winnow.calibration.shared           ARRAY of STRING   "D.V" of a weight V in domain D that has the input ...
//	winnow.calibration.shared_with      ARRAY of STRING   ... of another, W
//	winnow.calibration.routers          ARRAY of STRING   Statistics.Routers, if they are known
//
// and behind its tensors, for domain number D, F64 tensors:
//
//	winnow.D.W.sum2         [columns·matrices, 2]  of a weight W
//	winnow.D.W.rows         [matrices]
//	winnow.D.blk.L.<stat>   [numbers, 2], maxima [numbers]
//
// and of blocks whose tokens were sampled, as F32
//
//	winnow.D.blk.L.sample_inputs  [embed, tokens]
//	winnow.D.blk.L.sample_logits  [experts, tokens]
//
// A weight that shares the input of another has no tensors of its own. The first row of two has the sums, the second what rounding them to float64
// left: both together are the exact sums.
const (
	prefixStatistics  = "winnow."
	keyVersion        = "winnow.calibration.version"
	keyDomains        = "winnow.calibration.domains"
	keyDomainChunks   = "winnow.calibration.chunks"
	keyTexts          = "winnow.calibration.datasets"
	keyTextDomains    = "winnow.calibration.dataset_domains"
	keyShared         = "winnow.calibration.shared"
	keySharedWith     = "winnow.calibration.shared_with"
	keyRouters        = "winnow.calibration.routers"
	suffixSquares     = ".sum2"
	suffixRows        = ".rows"
	statisticsVersion = 1
)

// WriteGGUF writes statistics with the importance matrix of the given weights.
// The file has its name only when it is complete and on disk.
func (s *Statistics) WriteGGUF(path string, weights Weights) error {
	m, err := s.Matrix(weights)
	if err != nil {
		return fmt.Errorf("writing %s: %w", path, err)
	}
	meta, tensors := m.header()
	s.addKeys(meta)
	sections := s.sections()
	for i := range sections {
		tensors = append(tensors, sections[i].Info)
	}
	layout, err := gguf.NewLayout(meta, tensors, gguf.LayoutOptions{})
	if err != nil {
		return invalid("writing %s: %w", path, err)
	}
	w, err := layout.Create(path, gguf.CreateOptions{})
	if err != nil {
		return err
	}
	defer w.Abort()
	if err := m.writeEntries(w); err != nil {
		return err
	}
	for i, p := range sections {
		data, err := p.Data()
		if err != nil {
			return fmt.Errorf("writing %s: tensor %q: %w", path, p.Info.Name, err)
		}
		if err := w.WriteAt(2*len(m.Entries)+i, 0, data); err != nil {
			return err
		}
	}
	return w.Commit()
}

func (s *Statistics) addKeys(meta *gguf.Metadata) {
	var names, texts, shared, with []string
	var chunks []uint32
	var of []uint32
	for i, d := range s.Domains {
		for _, t := range d.totals() {
			for _, name := range t.weights[1:] {
				shared, with = append(shared, strconv.Itoa(i)+"."+name), append(with, t.weights[0])
			}
		}
		names, chunks = append(names, d.Name), append(chunks, uint32(d.Chunks))
		for _, text := range d.Datasets {
			texts, of = append(texts, text), append(of, uint32(i))
		}
	}
	meta.Set(keyVersion, uint32(statisticsVersion))
	meta.Set(keyDomains, names)
	meta.Set(keyDomainChunks, chunks)
	meta.Set(keyTexts, texts)
	meta.Set(keyTextDomains, of)
	meta.Set(keyShared, shared)
	meta.Set(keySharedWith, with)
	if s.Routers != nil {
		meta.Set(keyRouters, s.Routers)
	}
}

// sections lists the tensors beside those of the importance matrix.
func (s *Statistics) sections() (list []Section) {
	add := func(name string, data func() ([]float64, error), shape ...int64) {
		list = append(list, Section{gguf.TensorInfo{Name: name, Type: gguf.F64, Shape: shape}, func() ([]byte, error) {
			values, err := data()
			return encodeF64(values), err
		}})
	}
	for i, d := range s.Domains {
		prefix := prefixStatistics + strconv.Itoa(i) + "."
		for _, t := range d.totals() {
			name := prefix + t.weights[0]
			add(name+suffixSquares, t.sums.split, int64(t.sums.n), 2)
			add(name+suffixRows, func() ([]float64, error) { return floats(t.rows), nil }, int64(len(t.rows)))
		}
		for _, layer := range d.Layers() {
			t := d.experts[layer]
			for j := range stats {
				name := fmt.Sprintf("%sblk.%d.%s", prefix, layer, Stat(j))
				if stats[j].max {
					add(name, func() ([]float64, error) { return t.max[j], nil }, int64(len(t.max[j])))
				} else if t.sums[j].n > 0 {
					add(name, t.sums[j].split, int64(t.sums[j].n), 2)
				}
			}
		}
		list = append(list, d.sampleSections(prefix)...)
	}
	return list
}

// split returns all values and then what they lack.
func (s *series) split() ([]float64, error) {
	sums, err := s.load()
	out := make([]float64, 2*len(sums))
	for i, v := range sums {
		out[i], out[len(sums)+i] = v.split()
	}
	return out, err
}

func floats(n []int64) []float64 {
	out := make([]float64, len(n))
	for i, v := range n {
		out[i] = float64(v)
	}
	return out
}

func encodeF64(f []float64) []byte {
	b := make([]byte, 0, 8*len(f))
	for _, v := range f {
		b = binary.LittleEndian.AppendUint64(b, math.Float64bits(v))
	}
	return b
}

// HasStatistics reports whether a GGUF file with this metadata holds statistics.
func HasStatistics(meta *gguf.Metadata) bool { _, ok := meta.Get(keyVersion); return ok }

// ReadStatistics opens a file of statistics and checks all of it. The file stays
// open until Close.
func ReadStatistics(path string) (*Statistics, error) {
	f, err := gguf.Open(path)
	if err != nil {
		return nil, err
	}
	s, err := parseStatistics(f)
	if err != nil {
		return nil, errors.Join(fmt.Errorf("%s: %w", path, err), f.Close())
	}
	s.file = f
	return s, nil
}

func parseStatistics(f gguf.Model) (*Statistics, error) {
	meta := f.Metadata()
	if v, ok := meta.Int(keyVersion); !ok || v != statisticsVersion {
		return nil, invalid("metadata key %s is missing or not %d: the file has no statistics that this program reads", keyVersion, statisticsVersion)
	}
	s := &Statistics{}
	s.Routers, _ = meta.Strings(keyRouters)
	if err := s.readDomains(meta); err != nil {
		return nil, err
	}
	r := &partReader{f: f, byName: map[string]int{}}
	for i, t := range f.Tensors() {
		r.byName[t.Name] = i
	}
	for i := range f.Tensors() {
		name, ok := strings.CutPrefix(f.Tensors()[i].Name, prefixStatistics)
		if !ok {
			continue
		}
		number, rest, _ := strings.Cut(name, ".")
		n, err := strconv.Atoi(number)
		if err != nil || n < 0 || n >= len(s.Domains) {
			return nil, invalid("tensor %q: there is no domain %q", f.Tensors()[i].Name, number)
		}
		if err := r.read(s.Domains[n], i, rest); err != nil {
			return nil, fmt.Errorf("tensor %q: %w", f.Tensors()[i].Name, err)
		}
	}
	if err := s.readShared(meta); err != nil {
		return nil, err
	}
	return s, s.check()
}

// readShared gives weights the inputs that they share.
func (s *Statistics) readShared(meta *gguf.Metadata) error {
	shared, _ := meta.Strings(keyShared)
	with, _ := meta.Strings(keySharedWith)
	if len(shared) != len(with) {
		return invalid("metadata keys %s and %s have %d and %d elements", keyShared, keySharedWith, len(shared), len(with))
	}
	for i, name := range shared {
		number, weight, _ := strings.Cut(name, ".")
		n, err := strconv.Atoi(number)
		if err != nil || n < 0 || n >= len(s.Domains) {
			return invalid("metadata key %s: there is no domain of %q", keyShared, name)
		}
		d := s.Domains[n]
		t := d.inputs[with[i]]
		if t == nil || d.inputs[weight] != nil || checkName(weight) != nil {
			return invalid("metadata key %s: %q cannot have the input of %q", keyShared, name, with[i])
		}
		t.weights = append(t.weights, weight)
		d.inputs[weight] = t
	}
	for _, d := range s.Domains {
		for _, t := range d.inputs {
			slices.Sort(t.weights)
		}
	}
	return nil
}

func (s *Statistics) readDomains(meta *gguf.Metadata) error {
	var err error
	if s.ChunkSize, err = chunks(meta, keyChunkSize); err != nil {
		return err
	}
	names, ok := meta.Strings(keyDomains)
	counts, ok2 := meta.Ints(keyDomainChunks)
	if !ok || !ok2 || len(names) == 0 || len(names) != len(counts) {
		return invalid("metadata keys %s and %s do not list the domains and their windows", keyDomains, keyDomainChunks)
	}
	for i, name := range names {
		if counts[i] < 0 || counts[i] > maxChunks {
			return invalid("metadata key %s: %d windows, want 0 to %d", keyDomainChunks, counts[i], maxChunks)
		}
		if s.Domain(name); len(s.Domains) != i+1 {
			return invalid("metadata key %s: %q is there twice", keyDomains, name)
		}
		s.Domains[i].Chunks = counts[i]
	}
	texts, _ := meta.Strings(keyTexts)
	of, _ := meta.Ints(keyTextDomains)
	if len(texts) != len(of) {
		return invalid("metadata keys %s and %s have %d and %d elements", keyTexts, keyTextDomains, len(texts), len(of))
	}
	for i, d := range of {
		if d < 0 || d >= int64(len(names)) {
			return invalid("metadata key %s: there is no domain %d", keyTextDomains, d)
		}
		s.Domains[d].AddDataset(texts[i])
	}
	return nil
}

// check finds blocks that lack a statistic.
func (s *Statistics) check() error {
	for _, d := range s.Domains {
		if err := d.checkSamples(); err != nil {
			return fmt.Errorf("domain %q: %w", d.Name, err)
		}
		for layer, t := range d.experts {
			for i := range stats {
				n := t.sums[i].n + len(t.max[i])
				if n == 0 && stats[i].optional {
					continue
				}
				if n != Stat(i).size(t.Experts) {
					return invalid("domain %q, block %d: %s has %d numbers, want %d for %d experts", d.Name, layer, Stat(i), n, Stat(i).size(t.Experts), t.Experts)
				}
			}
		}
	}
	return nil
}

// partReader reads tensors of a file of statistics.
type partReader struct {
	f      gguf.Model
	byName map[string]int
}

// read reads tensor i, whose name behind the domain is given.
func (r *partReader) read(d *Domain, i int, name string) error {
	if weight, ok := strings.CutSuffix(name, suffixSquares); ok {
		return r.input(d, i, weight)
	}
	if strings.HasSuffix(name, suffixRows) {
		return nil // read with the sums
	}
	fields := strings.Split(name, ".")
	if len(fields) != 3 {
		return invalid("the name is not one of a statistic")
	}
	layer, err := strconv.Atoi(fields[1])
	if err == nil && fields[2] == sampleInputs {
		return r.sample(d, i, layer, strings.TrimSuffix(r.f.Tensors()[i].Name, sampleInputs))
	}
	if fields[2] == sampleLogits {
		return nil // read with the inputs
	}
	stat := slices.IndexFunc(stats[:], func(s statInfo) bool { return s.name == fields[2] })
	if err != nil || stat < 0 {
		return invalid("the name is not one of a statistic")
	}
	return r.expert(d, i, layer, stat)
}

func (r *partReader) expert(d *Domain, i, layer, stat int) (err error) {
	t := d.experts[layer]
	if t == nil {
		t = &ExpertTotals{}
		d.experts[layer] = t
	}
	if stats[stat].max {
		t.max[stat], err = r.values(i)
		return err
	}
	if t.sums[stat], err = r.series(i); err == nil && Stat(stat) != RouterGram && Stat(stat) != Gate {
		err = r.checkPositive(i)
	}
	if Stat(stat) == Selected {
		t.Experts = t.sums[stat].n
	}
	return err
}

func (r *partReader) input(d *Domain, i int, weight string) error {
	sums, err := r.series(i)
	if err != nil {
		return err
	}
	name := strings.TrimSuffix(r.f.Tensors()[i].Name, suffixSquares) + suffixRows
	at, ok := r.byName[name]
	if !ok {
		return invalid("%q is missing", name)
	}
	rows, err := r.values(at)
	if err != nil {
		return err
	}
	t := &inputTotals{weights: []string{weight}, sums: sums}
	for _, v := range rows {
		if !(v >= 0 && v <= maxCount && v == math.Floor(v)) {
			return invalid("%q has %v, want a whole number of at most %d", name, v, int64(maxCount))
		}
		t.rows = append(t.rows, int64(v))
	}
	if len(rows) == 0 || sums.n == 0 || sums.n%len(rows) != 0 {
		return invalid("%d sums cannot be divided among %d matrices", sums.n, len(rows))
	}
	d.inputs[weight] = t
	return nil
}

// series checks exact sums, which are read again when they are asked for.
func (r *partReader) series(i int) (series, error) {
	sums, err := r.sums(i)
	return series{n: len(sums), others: []func() ([]exact, error){func() ([]exact, error) { return r.sums(i) }}}, err
}

// checkPositive refuses sums below zero, of what is never negative.
func (r *partReader) checkPositive(i int) error {
	values, err := r.values(i)
	if err != nil {
		return err
	}
	for j, v := range values[:len(values)/2] {
		if v < 0 {
			return invalid("number %d is %v, which a sum of lengths or counts cannot be", j, v)
		}
	}
	return nil
}

// sums reads exact sums.
func (r *partReader) sums(i int) ([]exact, error) {
	info := &r.f.Tensors()[i]
	if info.Rows() != 2 {
		return nil, invalid("its shape is %v, want 2 rows", info.Shape)
	}
	v, err := r.values(i)
	if err != nil {
		return nil, err
	}
	out := make([]exact, len(v)/2)
	for j := range out {
		if err := out[j].add(v[j]); err != nil {
			return nil, err
		}
		if err := out[j].add(v[len(out)+j]); err != nil {
			return nil, err
		}
	}
	return out, nil
}

func (r *partReader) values(i int) ([]float64, error) {
	info := &r.f.Tensors()[i]
	if info.Type != gguf.F64 {
		return nil, invalid("type %s, want F64", info.Type)
	}
	if info.Elements() > maxValues {
		return nil, invalid("%d values are too many (limit %d)", info.Elements(), maxValues)
	}
	defer r.f.Release(i)
	raw, err := r.f.Rows(context.Background(), i, 0, info.Rows(), nil)
	if err != nil {
		return nil, err
	}
	out := make([]float64, info.Elements())
	for j := range out {
		out[j] = math.Float64frombits(binary.LittleEndian.Uint64(raw[8*j:]))
		if math.IsNaN(out[j]) || math.IsInf(out[j], 0) {
			return nil, invalid("value %d is %v, which is not finite", j, out[j])
		}
	}
	return out, nil
}
