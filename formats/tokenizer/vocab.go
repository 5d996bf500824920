package tokenizer

import (
	"errors"
	"fmt"
	"math"
	"slices"
	"strings"
)

// ErrInvalid is wrapped by every refusal of a vocabulary: damaged,
// contradictory, or of a kind that is not supported.
var ErrInvalid = errors.New("invalid tokenizer")

func invalid(format string, args ...any) error {
	return fmt.Errorf("%w: "+format, append([]any{ErrInvalid}, args...)...)
}

// The tokenizer models, as tokenizer.ggml.model names them.
const (
	ModelBPE     = "gpt2"   // byte-level BPE with merges
	ModelSPM     = "llama"  // SentencePiece BPE: scores, byte fallback
	ModelCharBPE = "gemma4" // BPE over characters with merges, byte fallback
	ModelUnigram = "t5"     // SentencePiece unigram: scores, byte fallback
)

var models = []string{ModelBPE, ModelSPM, ModelCharBPE, ModelUnigram}

// Token types, as tokenizer.ggml.token_type holds them (llama.h enum
// llama_token_type). Zero, undefined, is accepted when reading.
const (
	TypeNormal      = int32(1)
	TypeUnknown     = int32(2)
	TypeControl     = int32(3)
	TypeUserDefined = int32(4)
	TypeUnused      = int32(5)
	TypeByte        = int32(6)
)

// Vocab is everything that a GGUF file says about a tokenizer. Slices must
// not be changed once an Encoder exists.
type Vocab struct {
	Model string // ModelBPE, ModelSPM, ModelCharBPE or ModelUnigram
	Pre   string // name of the pre-tokenizer; "default" where ModelBPE is not, "" for ModelCharBPE

	Tokens []string  // by id; byte-level tokens in the byte alphabet, others literally
	Types  []int32   // by id; nil in files that have none, which means TypeNormal
	Scores []float32 // by id; not for ModelBPE, without meaning for ModelCharBPE
	Merges []string  // "left right" by rank; ModelBPE and ModelCharBPE

	Special     []SpecialID // in file order
	Add         []AddFlag   // in file order
	Templates   []Template  // chat templates
	SpacePrefix *bool       // add_space_prefix, when the file has the key
	Squeeze     *bool       // remove_extra_whitespaces, when the file has the key
	CharsMap    []byte      // precompiled_charsmap of ModelUnigram, or nil
	// prefixLast says that add_space_prefix is written behind everything else.
	prefixLast bool

	// EOG lists the ids that end a generation: generation_config.json's eos
	// list, and eos, eot and eom. GGUF keeps only the latter.
	EOG []int32
	// Warnings are oddities of a checkpoint's files that lose nothing a model uses.
	Warnings []string

	source *source
}

// source is what a checkpoint knows of its tokenizer and GGUF has no key for.
// It makes a loaded Vocab encode exactly as its tokenizer.json does.
type source struct {
	steps        splitter // ModelBPE
	ignoreMerges bool
	norm         normalizer
	spaces       spacing // the other models
	added        []addedToken
}

// SpecialID says which token plays a role: kind is bos, eos, unk, sep, pad,
// cls, mask, eot or eom.
type SpecialID struct {
	Kind string
	ID   int32
}

// AddFlag says whether encoding adds the bos, eos or sep token.
type AddFlag struct {
	Kind  string
	Value bool
}

// Template is a chat template. The main one has no name.
type Template struct {
	Name, Text string
}

// Size returns the number of tokens.
func (v *Vocab) Size() int { return len(v.Tokens) }

// defaultRoles are the roles that files without the keys mean (llama.cpp's
// llama-vocab.cpp), by id.
var defaultRoles = map[string][]string{ModelSPM: {"unk", "bos", "eos"}, ModelUnigram: {"pad", "eos", "unk"}}

// ID returns the token that plays a role such as "eos".
func (v *Vocab) ID(kind string) (int32, bool) {
	if id, ok := v.special(kind); ok {
		return id, true
	}
	if i := slices.Index(defaultRoles[v.Model], kind); i >= 0 && i < len(v.Tokens) {
		return int32(i), true
	}
	return 0, false
}

// special returns the token that the file says plays a role.
func (v *Vocab) special(kind string) (int32, bool) {
	for _, s := range v.Special {
		if s.Kind == kind {
			return s.ID, true
		}
	}
	return 0, false
}

// BOS returns the token that begins a text.
func (v *Vocab) BOS() (int32, bool) { return v.ID("bos") }

// AddBOS reports whether encoding with special tokens begins with BOS.
func (v *Vocab) AddBOS() bool {
	_, ok := v.BOS()
	return ok && v.adds("bos", v.Model == ModelSPM || slices.Contains(bosByDefault, v.Pre))
}

// AddEOS reports whether encoding with special tokens ends with EOS.
func (v *Vocab) AddEOS() bool {
	_, ok := v.ID("eos")
	return ok && v.adds("eos", v.Model == ModelUnigram)
}

func (v *Vocab) adds(kind string, absent bool) bool {
	if on, set := v.flag(kind); set {
		return on
	}
	return absent
}

// flag returns what the file says of adding a token.
func (v *Vocab) flag(kind string) (on, set bool) {
	for _, a := range v.Add {
		if a.Kind == kind {
			return a.Value, true
		}
	}
	return false, false
}

func (v *Vocab) spacePrefix() bool {
	if v.SpacePrefix != nil {
		return *v.SpacePrefix
	}
	return v.Model == ModelSPM
}

func (v *Vocab) squeezes() bool { return v.Squeeze != nil && *v.Squeeze }

// bytewise reports whether tokens are spelled in the byte alphabet; in the
// other models they are text with U+2581 for spaces, or <0xHH>.
func (v *Vocab) bytewise() bool { return v.Model == ModelBPE }

// typeOf returns the type of token id.
func (v *Vocab) typeOf(id int) int32 {
	if v.Types == nil {
		return TypeNormal
	}
	return v.Types[id]
}

// maxTokens caps a vocabulary; released ones have less than a million tokens.
const maxTokens = 16 << 20

// check proves what the rest of the package relies on: lists of one length,
// finite scores, known types, no empty or repeated token, ids in range, and
// merges of known tokens.
func (v *Vocab) check() error {
	n := len(v.Tokens)
	switch {
	case n == 0:
		return invalid("tokens: the vocabulary is empty")
	case n > maxTokens:
		return invalid("tokens: %d tokens, the limit is %d", n, maxTokens)
	case v.Types != nil && len(v.Types) != n:
		return invalid("token_type: length mismatch: %d entries for %d tokens", len(v.Types), n)
	case v.Scores != nil && len(v.Scores) != n:
		return invalid("scores: length mismatch: %d entries for %d tokens", len(v.Scores), n)
	case (v.Model == ModelSPM || v.Model == ModelUnigram) && v.Scores == nil:
		return invalid("scores are missing, which tokenizer model %q needs", v.Model)
	}
	for i, s := range v.Scores {
		if math.IsNaN(float64(s)) || math.IsInf(float64(s), 0) {
			return invalid("scores: token %d (%.40q) has score %v, which is not finite", i, v.Tokens[i], s)
		}
	}
	for i, t := range v.Types {
		if t < 0 || t > TypeByte {
			return invalid("token_type: token %d (%.40q) has type %d, outside 0 to 6", i, v.Tokens[i], t)
		}
	}
	for _, s := range v.Special {
		if s.ID < 0 || int(s.ID) >= n {
			return invalid("%s token id %d is out of range: the vocabulary has %d tokens", s.Kind, s.ID, n)
		}
	}
	ids, err := v.index()
	if err != nil {
		return err
	}
	return v.checkMerges(ids)
}

// index maps texts to ids. Empty tokens are left out: files have them where
// a text could not be read.
func (v *Vocab) index() (map[string]int32, error) {
	ids := make(map[string]int32, len(v.Tokens))
	for i, t := range v.Tokens {
		if first, twice := ids[t]; twice && t != "" {
			return nil, invalid("tokens: duplicate token %.40q: ids %d and %d", t, first, i)
		}
		ids[t] = int32(i)
	}
	delete(ids, "")
	return ids, nil
}

func (v *Vocab) checkMerges(ids map[string]int32) error {
	// Kimi K2's vocabulary is merged by rank alone and may come without merges.
	if (v.Model == ModelBPE || v.Model == ModelCharBPE) && v.Merges == nil && v.Pre != "kimi-k2" {
		return invalid("merges are missing, which tokenizer model %q needs", v.Model)
	}
	for i, m := range v.Merges {
		left, right, ok := splitMerge(m)
		if !ok {
			return invalid("merges: entry %d (%.40q) is not two tokens with a space between", i, m)
		}
		for _, t := range [...]string{left, right, left + right} {
			if _, known := ids[t]; !known {
				return invalid("merges: entry %d (%.40q) needs token %.40q, which is not in the vocabulary", i, m, t)
			}
		}
	}
	return nil
}

// splitMerge cuts "left right" at the first space that leaves a left part, as
// llama.cpp does.
func splitMerge(m string) (left, right string, ok bool) {
	if m == "" {
		return "", "", false
	}
	i := strings.IndexByte(m[1:], ' ')
	if i < 0 || i+2 == len(m) {
		return "", "", false
	}
	return m[:i+1], m[i+2:], true
}
