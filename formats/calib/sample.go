package calib

import (
	"context"
	"fmt"
	"maps"
	"slices"

	"github.com/winnow-moe/winnow/formats/dtype"
	"github.com/winnow-moe/winnow/formats/gguf"
)

// Sample is what some tokens of a text bring to the routed experts of a block:
// enough to compute what a block would put out with other experts, or with others
// in their place.
type Sample struct {
	Tokens int
	Inputs []float32 // [Tokens, embed]: what the experts are applied to
	Logits []float32 // [Tokens, experts]: what the router says of them
	// Weights say how many tokens of the text each stands for [Tokens]. Only
	// Statistics.Sample sets them.
	Weights []float64
}

// Thin returns n of the tokens, spread evenly, which stand for as many together; s
// itself if it has no more.
func (s *Sample) Thin(n int) *Sample {
	if n >= s.Tokens {
		return s
	}
	out, before, after := &Sample{Tokens: n}, 0.0, 0.0
	inputs, logits := len(s.Inputs)/s.Tokens, len(s.Logits)/s.Tokens
	for i := range n {
		t := (2*i + 1) * s.Tokens / (2 * n)
		out.Inputs = append(out.Inputs, s.Inputs[t*inputs:][:inputs]...)
		out.Logits = append(out.Logits, s.Logits[t*logits:][:logits]...)
		out.Weights = append(out.Weights, s.Weights[t])
		after += s.Weights[t]
	}
	for _, w := range s.Weights {
		before += w
	}
	for i := range out.Weights {
		out.Weights[i] *= before / after
	}
	return out
}

// sampled are the tokens of a block that a text was sampled by, in the order in
// which they came.
type sampled struct {
	tokens, embed, experts int
	here                   Sample
	others                 []func() (Sample, error) // before those that are here
}

// Sample adds tokens of a window, with inputs [tokens, embed] and the logits of
// the router [tokens, experts].
func (d *Domain) Sample(layer, tokens int, inputs, logits []float32) error {
	if tokens == 0 {
		return nil
	}
	add := &sampled{tokens: tokens, embed: len(inputs) / tokens, experts: len(logits) / tokens}
	s := d.samples[layer]
	if s == nil {
		s = &sampled{embed: add.embed, experts: add.experts}
		d.samples[layer] = s
	}
	if err := s.like(add); err != nil {
		return fmt.Errorf("block %d: %w", layer, err)
	}
	s.tokens += tokens
	s.here.Tokens += tokens
	s.here.Inputs = append(s.here.Inputs, inputs...)
	s.here.Logits = append(s.here.Logits, logits...)
	return nil
}

// Sampled returns how many tokens of the domain were sampled in every block.
func (d *Domain) Sampled() int {
	least := 0
	for _, s := range d.samples {
		if least == 0 || s.tokens < least {
			least = s.tokens
		}
	}
	return least
}

// like makes sure that two samples are of the same block.
func (s *sampled) like(o *sampled) error {
	if s.embed != o.embed || s.experts != o.experts {
		return invalid("sampled tokens have %d inputs and %d logits, those before %d and %d", o.embed, o.experts, s.embed, s.experts)
	}
	return nil
}

// load reads the tokens.
func (s *sampled) load() (Sample, error) {
	var out Sample
	for _, other := range append(slices.Clip(s.others), func() (Sample, error) { return s.here, nil }) {
		more, err := other()
		if err != nil {
			return out, err
		}
		out.Tokens += more.Tokens
		out.Inputs, out.Logits = append(out.Inputs, more.Inputs...), append(out.Logits, more.Logits...)
	}
	return out, nil
}

// hold reads the tokens, so that no file is needed any more.
func (s *sampled) hold() (err error) {
	s.here, err = s.load()
	s.others = nil
	return err
}

// view returns the same tokens, which are read when they are asked for.
func (s *sampled) view() *sampled {
	return &sampled{tokens: s.tokens, embed: s.embed, experts: s.experts, others: []func() (Sample, error){s.load}}
}

// plus returns the tokens of both, which reads them when it is asked for.
func (s *sampled) plus(o *sampled) (*sampled, error) {
	if err := s.like(o); err != nil {
		return nil, err
	}
	out := s.view()
	out.tokens += o.tokens
	out.others = append(out.others, o.load)
	return out, nil
}

// pick leaves the logits of some experts.
func (s *sampled) pick(ids []int) *sampled {
	out := &sampled{tokens: s.tokens, embed: s.embed, experts: len(ids)}
	out.others = append(out.others, func() (Sample, error) {
		all, err := s.load()
		logits := make([]float32, 0, all.Tokens*len(ids))
		for t := range all.Tokens {
			logits = append(logits, pick(all.Logits[t*s.experts:][:s.experts], ids)...)
		}
		all.Logits = logits
		return all, err
	})
	return out
}

// mergeSamples adds the tokens of another domain.
func (d *Domain) mergeSamples(o *Domain) error {
	for layer, from := range o.samples {
		to := d.samples[layer]
		if to == nil {
			d.samples[layer] = from.view()
			continue
		}
		sum, err := to.plus(from)
		if err != nil {
			return fmt.Errorf("block %d: %w", layer, err)
		}
		d.samples[layer] = sum
	}
	return nil
}

// Sampled returns how many tokens were sampled, of all domains.
func (s *Statistics) Sampled() int {
	n := 0
	for _, d := range s.Domains {
		n += d.Sampled()
	}
	return n
}

// HasSample reports whether tokens were sampled of all texts for a block.
func (s *Statistics) HasSample(layer int) bool {
	return !slices.ContainsFunc(s.Domains, func(d *Domain) bool { return d.Chunks > 0 && d.samples[layer] == nil })
}

// Sample reads the tokens of a block that were sampled, of all domains that have
// weight, one after the other. Their weights add up to the tokens of the texts;
// with weights of domains each counts as Factors says.
func (s *Statistics) Sample(layer int, weights Weights) (*Sample, error) {
	factors, err := s.Factors(weights)
	if err != nil {
		return nil, err
	}
	out := &Sample{}
	for i, d := range s.Domains {
		factor := 1.0
		if factors != nil {
			factor = factors[i]
		}
		if factor == 0 {
			continue
		}
		from := d.samples[layer]
		if from == nil {
			return nil, invalid("no tokens of the texts %q were sampled for block %d", d.Name, layer)
		}
		more, err := from.load()
		if err != nil {
			return nil, fmt.Errorf("block %d: %w", layer, err)
		}
		if len(out.Inputs) > 0 && (len(out.Inputs)/out.Tokens != from.embed || len(out.Logits)/out.Tokens != from.experts) {
			return nil, invalid("block %d: the tokens sampled of the texts %q have %d inputs and %d logits, others have others", layer, d.Name, from.embed, from.experts)
		}
		out.Tokens += more.Tokens
		out.Inputs, out.Logits = append(out.Inputs, more.Inputs...), append(out.Logits, more.Logits...)
		each := factor * float64(d.Chunks*int64(s.ChunkSize)) / float64(more.Tokens)
		for range more.Tokens {
			out.Weights = append(out.Weights, each)
		}
	}
	return out, nil
}

// checkSamples finds samples that do not go with the statistics.
func (d *Domain) checkSamples() error {
	for layer, s := range d.samples {
		if t := d.experts[layer]; t == nil || t.Experts != s.experts {
			return invalid("block %d: tokens with %d logits were sampled, which do not go with its statistics", layer, s.experts)
		}
	}
	return nil
}

// Names of the tensors of a sample, in place of a statistic's.
const (
	sampleInputs = "sample_inputs"
	sampleLogits = "sample_logits"
)

// sampleSections lists the tensors of a domain's sample, of type F32.
func (d *Domain) sampleSections(prefix string) (list []Section) {
	for _, layer := range slices.Sorted(maps.Keys(d.samples)) {
		s := d.samples[layer]
		add := func(name string, width int, of func(*Sample) []float32) {
			info := gguf.TensorInfo{Name: fmt.Sprintf("%sblk.%d.%s", prefix, layer, name), Type: gguf.F32, Shape: []int64{int64(width), int64(s.tokens)}}
			list = append(list, Section{info, func() ([]byte, error) {
				all, err := s.load()
				return encode(of(&all)), err
			}})
		}
		add(sampleInputs, s.embed, func(s *Sample) []float32 { return s.Inputs })
		add(sampleLogits, s.experts, func(s *Sample) []float32 { return s.Logits })
	}
	return list
}

// sample reads a block's sample, of which tensor i has the inputs.
func (r *partReader) sample(d *Domain, i, layer int, prefix string) error {
	j, ok := r.byName[prefix+sampleLogits]
	if !ok {
		return invalid("%q is missing", prefix+sampleLogits)
	}
	inputs, logits := &r.f.Tensors()[i], &r.f.Tensors()[j]
	for _, t := range []*gguf.TensorInfo{inputs, logits} {
		if t.Type != gguf.F32 || len(t.Shape) > 2 || t.Elements() == 0 || t.Rows() != inputs.Rows() {
			return invalid("%q is %s of shape %v, want F32 with a row for each of %d tokens", t.Name, t.Type, t.Shape, inputs.Rows())
		}
	}
	s := &sampled{tokens: int(inputs.Rows()), embed: int(inputs.RowLen()), experts: int(logits.RowLen())}
	s.others = append(s.others, func() (out Sample, err error) {
		out.Tokens = s.tokens
		if out.Inputs, err = r.floats(i); err == nil {
			out.Logits, err = r.floats(j)
		}
		return out, err
	})
	if d.samples[layer] != nil {
		return invalid("block %d is there twice", layer)
	}
	d.samples[layer] = s
	return nil
}

// floats reads a tensor of type F32.
func (r *partReader) floats(i int) ([]float32, error) {
	info := &r.f.Tensors()[i]
	defer r.f.Release(i)
	raw, err := r.f.Rows(context.Background(), i, 0, info.Rows(), nil)
	if err != nil {
		return nil, err
	}
	out := make([]float32, info.Elements())
	if err := dtype.Decode(dtype.F32, out, raw); err != nil {
		return nil, err
	}
	for j, v := range out {
		if v-v != 0 {
			return nil, fmt.Errorf("tensor %q: %w", info.Name, invalid("value %d is %v, which is not finite", j, v))
		}
	}
	return out, nil
}
