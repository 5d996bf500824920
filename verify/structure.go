package verify

import (
	"fmt"
	"slices"

	"github.com/winnow-moe/winnow/formats/arch"
	"github.com/winnow-moe/winnow/formats/gguf"
	"github.com/winnow-moe/winnow/formats/tokenizer"
)

// Kind says what a Problem concerns.
type Kind string

// The kinds of problems.
const (
	Metadata   Kind = "metadata"
	Vocabulary Kind = "vocabulary"
	Missing    Kind = "missing tensor"
	Unexpected Kind = "unexpected tensor"
	Shape      Kind = "shape"
)

// Problem is one thing about a model that keeps runtimes from loading it.
type Problem struct {
	Kind Kind `json:"kind"`
	// Tensor is the tensor's name, empty for metadata and vocabulary.
	Tensor string `json:"tensor,omitempty"`
	// Text says what was found and what was wanted; it is complete by itself.
	Text string `json:"text"`
}

// maxExperts is the most experts per block that llama.cpp loads
// (src/llama-hparams.h LLAMA_MAX_EXPERTS).
const maxExperts = 1024

// Structure checks a model against the description of its family: the
// architecture is known, its keys are there with the types that llama.cpp's
// loader insists on, the vocabulary is sound, and the tensors are exactly
// those of the family, with their shapes. Metadata without any tensor is a
// vocabulary file, which lacks none. What concerns bytes and offsets is checked
// when a file is opened.
func Structure(m gguf.Model) []Problem {
	var problems []Problem
	if _, err := tokenizer.FromMetadata(m.Metadata()); err != nil {
		problems = append(problems, Problem{Kind: Vocabulary, Text: err.Error()})
	}
	model, err := arch.FromMetadata(m.Metadata())
	if err != nil {
		return append([]Problem{{Kind: Metadata, Text: err.Error()}}, problems...)
	}
	problems = append(checkKeys(m.Metadata(), model), problems...)
	if len(m.Tensors()) > 0 {
		problems = append(problems, checkTensors(m.Tensors(), model)...)
	}
	return problems
}

// checkKeys compares the types of hyper-parameters with those that the family
// writes: arch reads any integer, llama.cpp only the exact type.
func checkKeys(md *gguf.Metadata, model *arch.Model) (problems []Problem) {
	bad := func(format string, args ...any) {
		problems = append(problems, Problem{Kind: Metadata, Text: fmt.Sprintf(format, args...)})
	}
	var want gguf.Metadata
	model.WriteMetadata(&want, 0)
	for _, key := range want.Keys() {
		found, ok := md.Get(key)
		if !ok {
			continue
		}
		v, _ := want.Get(key)
		have, _, _ := gguf.TypeOf(found)
		if need, _, _ := gguf.TypeOf(v); have != need {
			bad("key %q has type %s, want %s", key, have, need)
		}
	}
	if n := model.Params.Experts; n > maxExperts {
		bad("%d experts per block (expert_count); llama.cpp loads at most %d", n, maxExperts)
	}
	if tokens, ok := md.Strings(tokenizer.KeyTokens); ok && len(tokens) != model.Params.Vocab {
		bad("%s has %d entries, but the model's vocabulary has %d (vocab_size)", tokenizer.KeyTokens, len(tokens), model.Params.Vocab)
	}
	return problems
}

// checkTensors compares a tensor directory with the family's list.
func checkTensors(have []gguf.TensorInfo, model *arch.Model) (problems []Problem) {
	bad := func(kind Kind, tensor, format string, args ...any) {
		problems = append(problems, Problem{kind, tensor, fmt.Sprintf(format, args...)})
	}
	index := make(map[string]*gguf.TensorInfo, len(have))
	for i := range have {
		index[have[i].Name] = &have[i]
	}
	for _, t := range model.Tensors() {
		name := t.Name.String()
		switch found, ok := index[name]; {
		case !ok && !t.Rule.Optional:
			bad(Missing, name, "tensor %q is missing; %s models have it with shape %v", name, model.Family.Arch, t.Shape)
		case ok && !sameShape(found.Shape, t.Shape):
			bad(Shape, name, "tensor %q has shape %v, want %v", name, found.Shape, t.Shape)
		}
		delete(index, name)
	}
	for i := range have {
		name := have[i].Name
		if index[name] == nil {
			continue
		}
		w := -1
		if weight, _, ok := arch.Factors(name); ok && index[weight] == nil {
			w = slices.IndexFunc(have, func(t gguf.TensorInfo) bool { return t.Name == weight })
		}
		switch {
		case w >= 0 && !sameShape(have[i].Shape, arch.FactorShape(have[w].Shape)):
			bad(Shape, name, "tensor %q has shape %v, want %v", name, have[i].Shape, arch.FactorShape(have[w].Shape))
		case w < 0:
			bad(Unexpected, name, "tensor %q has no place in %s models", name, model.Family.Arch)
		}
	}
	return problems
}

// sameShape compares shapes as ggml does: axes of length 1 at the end do not
// count.
func sameShape(a, b []int64) bool {
	trim := func(s []int64) []int64 {
		for len(s) > 0 && s[len(s)-1] == 1 {
			s = s[:len(s)-1]
		}
		return s
	}
	return slices.Equal(trim(a), trim(b))
}
