package tokenizer

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"github.com/winnow-moe/winnow/formats/strictjson"
)

// Options say what the files of a checkpoint leave open.
type Options struct {
	// Pre overrides the recognised pre-tokenizer (a tokenizer.ggml.pre name).
	Pre string
	// Prefer lists the names that the model's family uses where the structure
	// of tokenizer.json fits several.
	Prefer []string
	// VocabSize is the number of tokens the model has embeddings for. Zero
	// means config.json's vocab_size, and without one the tokenizer's own size.
	VocabSize int
	// Special gives roles to tokens by text where neither tokenizer_config.json
	// nor config.json does. The tokens must exist.
	Special []SpecialText
	// SpacePrefix sets add_space_prefix for families that fix it, such as
	// Gemma; the key is then written last.
	SpacePrefix *bool
	// Model is the tokenizer model that the family's files have where a
	// checkpoint allows several: ModelCharBPE for Gemma 4, or "".
	Model string
}

// SpecialText names the token that plays a role; see SpecialID.
type SpecialText struct {
	Kind, Text string
}

// Caps on files, far above those of released models.
const (
	maxTokenizerBytes = 512 << 20
	maxSmallBytes     = 64 << 20
	// maxPadding bounds how far vocab_size may exceed the tokenizer's tokens.
	maxPadding = 1 << 20
)

// Load reads the tokenizer of a checkpoint folder: tokenizer.model if there is
// one (SentencePiece), else tokenizer.json, else tiktoken.model or a file
// *.tiktoken, together with
// tokenizer_config.json, added_tokens.json, special_tokens_map.json,
// chat_template.jinja or .json, config.json (vocab_size, *_token_id) and
// generation_config.json (eos list).
//
// The result is what llama.cpp's converter writes, but for two things: an
// explicit add_bos_token of tokenizer_config.json wins over a post-processor
// that says nothing about BOS; and unigram vocabularies, which it knows for T5
// only, are stored as such for every family.
func Load(dir string, opt Options) (*Vocab, error) {
	f, err := readFolder(dir)
	if err != nil {
		return nil, err
	}
	return f.load(opt)
}

// load builds the vocabulary from the files' contents.
func (f *folder) load(opt Options) (*Vocab, error) {
	var err error
	if opt.VocabSize == 0 {
		if opt.VocabSize, err = f.vocabSize(); err != nil {
			return nil, err
		}
	}
	if opt.VocabSize < 0 || opt.VocabSize > maxTokens {
		return nil, invalid("config.json: vocab_size %d is outside 0 to %d", opt.VocabSize, maxTokens)
	}
	v, err := f.vocab(opt)
	if err != nil {
		return nil, err
	}
	if err := f.roles(v, opt); err != nil {
		return nil, err
	}
	return v, v.check()
}

// folder holds the files of a checkpoint that concern its tokenizer. Absent
// files are nil.
type folder struct {
	tokenizer  *tokenizerJSON
	spm        *spmFile
	ranks      *tiktoken
	added      map[string]any // added_tokens.json
	config     map[string]any // tokenizer_config.json
	model      map[string]any // config.json
	generation map[string]any // generation_config.json
	templates  any            // chat_template.jinja or .json: string or list
}

func readFolder(dir string) (*folder, error) {
	f := &folder{}
	raw, err := readOptional(filepath.Join(dir, "tokenizer.json"), maxTokenizerBytes)
	if err != nil {
		return nil, err
	}
	if raw != nil {
		if f.tokenizer, err = parseTokenizerJSON(raw); err != nil {
			return nil, err
		}
	}
	if raw, err = readOptional(filepath.Join(dir, "tokenizer.model"), maxSmallBytes); err != nil {
		return nil, err
	}
	if raw != nil {
		if f.spm, err = parseSPM(raw); err != nil {
			return nil, err
		}
	}
	if f.tokenizer == nil && f.spm == nil {
		if f.ranks, err = readTiktoken(dir); err != nil {
			return nil, err
		}
	}
	if f.tokenizer == nil && f.spm == nil && f.ranks == nil {
		return nil, invalid("no tokenizer in %q: neither tokenizer.json nor tokenizer.model nor a tiktoken file", dir)
	}
	return f, f.readSmall(dir)
}

func (f *folder) readSmall(dir string) error {
	for _, file := range []struct {
		name string
		dst  *map[string]any
	}{
		{"added_tokens.json", &f.added}, {"tokenizer_config.json", &f.config},
		{"config.json", &f.model}, {"generation_config.json", &f.generation},
	} {
		o, err := readObject(dir, file.name)
		if err != nil {
			return err
		}
		*file.dst = o
	}
	if f.config == nil { // transformers takes the special tokens from here
		o, err := readObject(dir, "special_tokens_map.json")
		if err != nil {
			return err
		}
		f.config = o
	}
	return f.readTemplates(dir)
}

// readTemplates reads the chat templates outside tokenizer_config.json.
func (f *folder) readTemplates(dir string) error {
	raw, err := readOptional(filepath.Join(dir, "chat_template.jinja"), maxSmallBytes)
	if err != nil {
		return err
	}
	if raw == nil {
		o, err := readObject(dir, "chat_template.json")
		if o != nil {
			f.templates = o["chat_template"]
		}
		return err
	}
	f.templates = string(raw)
	more, err := filepath.Glob(filepath.Join(globEscape(dir), "additional_chat_templates", "*.jinja"))
	if err != nil || len(more) == 0 {
		return err
	}
	list := []any{map[string]any{"name": "default", "template": string(raw)}}
	for _, path := range more {
		raw, err := readOptional(path, maxSmallBytes)
		if err != nil {
			return err
		}
		list = append(list, map[string]any{"name": strings.TrimSuffix(filepath.Base(path), ".jinja"), "template": string(raw)})
	}
	f.templates = list
	return nil
}

func globEscape(path string) string {
	return strings.NewReplacer(`\`, `\\`, `*`, `\*`, `?`, `\?`, `[`, `\[`).Replace(path)
}

// readOptional returns nil for a file that does not exist.
func readOptional(path string, limit int64) ([]byte, error) {
	raw, err := strictjson.ReadFile(path, limit)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("%w: %w", ErrInvalid, err)
	}
	if raw == nil {
		raw = []byte{}
	}
	return raw, nil
}

// readObject reads a file that holds a JSON object.
func readObject(dir, name string) (map[string]any, error) {
	raw, err := readOptional(filepath.Join(dir, name), maxSmallBytes)
	if err != nil || raw == nil {
		return nil, err
	}
	v, err := strictjson.Decode(raw)
	if err != nil {
		return nil, invalid("%s: %w", name, err)
	}
	o, ok := v.(map[string]any)
	if !ok {
		return nil, invalid("%s: the top level is not a JSON object", name)
	}
	return o, nil
}

// setting looks a key of config.json up, at the top level and in text_config.
func (f *folder) setting(key string) any {
	if v := f.model[key]; v != nil {
		return v
	}
	text, _ := f.model["text_config"].(map[string]any)
	return text[key]
}

func (f *folder) vocabSize() (int, error) {
	v := f.setting("vocab_size")
	if v == nil {
		return 0, nil
	}
	n, ok := integer(v)
	if !ok || n < 1 || n > maxTokens {
		return 0, invalid("config.json: vocab_size %v is not an integer from 1 to %d", v, maxTokens)
	}
	return int(n), nil
}

// integer reads a JSON number that is written as an integer.
func integer(v any) (int64, bool) {
	n, ok := v.(json.Number)
	if !ok {
		return 0, false
	}
	i, err := strconv.ParseInt(string(n), 10, 64)
	return i, err == nil
}

// vocab builds tokens, types, scores and merges.
func (f *folder) vocab(opt Options) (*Vocab, error) {
	chars := opt.Model == ModelCharBPE || opt.Pre == ModelCharBPE
	switch t := f.tokenizer; {
	case f.ranks != nil:
		return f.fromRanks(opt)
	case f.spm != nil && (t == nil || !chars):
		return f.fromPieces(opt)
	case t.kind == "Unigram":
		return f.fromUnigram(opt)
	case t.kind != "BPE":
		return nil, invalid("tokenizer.json: model type %q is unknown or not supported, only BPE and Unigram are", t.kind)
	case t.byteFallback && chars:
		return f.fromCharBPE(opt)
	case t.byteFallback:
		return f.fromFallbackBPE(opt)
	}
	return f.fromByteLevel(opt)
}

// slots are the tokens by id while they are collected.
type slots struct {
	size  int
	texts []string
	used  []bool
}

// newSlots sizes the vocabulary for tokens of which the last id is last.
// Without a vocab_size the ids must have no hole.
func newSlots(vocabSize, count int, last int64, file string) (*slots, error) {
	n := vocabSize
	if n == 0 {
		n = count
	}
	if last >= int64(n) {
		return nil, invalid("%s: token id %d is out of range: the vocabulary (vocab_size) has %d tokens", file, last, n)
	}
	if n > 2*count+maxPadding {
		return nil, invalid("config.json: vocab_size %d is far larger than the %d tokens of %s", n, count, file)
	}
	return &slots{n, make([]string, n), make([]bool, n)}, nil
}

// put stores a token; the same text may come twice for one id.
func (s *slots) put(id int64, text, what string) error {
	switch {
	case id < 0 || id >= int64(s.size):
		return invalid("%s %.60q has id %d, outside the vocabulary (vocab_size) of %d tokens", what, text, id, s.size)
	case s.used[id] && s.texts[id] != text:
		return invalid("%s %.60q has the id %d of token %.60q: a duplicate or conflicting id", what, text, id, s.texts[id])
	}
	s.texts[id], s.used[id] = text, true
	return nil
}

// fromByteLevel builds a byte-level BPE vocabulary.
func (f *folder) fromByteLevel(opt Options) (*Vocab, error) {
	t := f.tokenizer
	v := &Vocab{Model: ModelBPE, source: &source{ignoreMerges: t.ignoreMerges}}
	var err error
	if v.Pre, v.source.steps, err = t.preTokenizer(opt); err != nil {
		return nil, err
	}
	if v.source.norm, err = normalizerOf(t.normalizer); err != nil {
		return nil, err
	}
	if err := t.checkUnknown(); err != nil {
		return nil, err
	}
	added, err := f.allAdded()
	if err != nil {
		return nil, err
	}
	s, err := fill(t.vocab, added, opt.VocabSize)
	if err != nil {
		return nil, err
	}
	v.source.added = added
	v.Tokens, v.Types = s.texts, make([]int32, s.size)
	for i := range v.Types {
		v.Types[i] = TypeNormal
		if !s.used[i] {
			v.Tokens[i], v.Types[i] = fmt.Sprintf("[PAD%d]", i), TypeUnused
		}
	}
	for _, a := range added {
		v.Tokens[a.id], v.Types[a.id] = a.stored()
	}
	v.Merges, err = t.mergeLines()
	return v, err
}

// fill puts the tokens of the model and the added tokens into slots.
func fill(vocab []entry, added []addedToken, vocabSize int) (*slots, error) {
	last := int64(-1)
	texts := make(map[string]int64, len(vocab))
	count := len(vocab)
	for _, e := range vocab {
		texts[e.text] = e.id
		last = max(last, e.id)
	}
	for _, a := range added {
		if id, ok := texts[a.text]; !ok {
			count++
		} else if id != a.id {
			return nil, invalid("tokenizer.json: added token %.60q has id %d, in the vocabulary it has id %d (conflict)", a.text, a.id, id)
		}
		last = max(last, a.id)
	}
	s, err := newSlots(vocabSize, count, last, "tokenizer.json")
	if err != nil {
		return nil, err
	}
	for _, e := range vocab {
		if err := s.put(e.id, e.text, "tokenizer.json: token"); err != nil {
			return nil, err
		}
	}
	for _, a := range added {
		if err := s.put(a.id, a.text, "added token"); err != nil {
			return nil, err
		}
	}
	return s, nil
}

// preTokenizer chooses the name and the steps.
func (t *tokenizerJSON) preTokenizer(opt Options) (string, splitter, error) {
	if opt.Pre != "" {
		row := preByName(opt.Pre)
		if row == nil {
			return "", nil, invalid("pre-tokenizer %q is unknown", opt.Pre)
		}
		return opt.Pre, row.steps, nil
	}
	steps, err := splitterOf(t.preTok)
	if err != nil {
		return "", nil, invalid("tokenizer.json: %w", err)
	}
	name, err := recognize(steps, opt.Prefer)
	if err != nil {
		return "", nil, invalid("tokenizer.json: %w", err)
	}
	return name, preByForm(steps.form()), nil
}

// preByForm returns the table's own steps for a structure that it has; they
// use hand-written matchers.
func preByForm(form string) splitter {
	i := slices.IndexFunc(preTokenizers, func(p preTokenizer) bool { return p.steps.form() == form })
	return preTokenizers[i].steps
}

// checkPre refuses a pre-tokenizer where the vocabulary has none.
func checkPre(opt Options) error {
	if opt.Pre != "" && opt.Pre != "default" {
		return invalid("pre-tokenizer %q does not fit: the vocabulary is SentencePiece's, which cuts nothing before merging", opt.Pre)
	}
	return nil
}

// fromPieces builds the vocabulary of a tokenizer.model.
func (f *folder) fromPieces(opt Options) (*Vocab, error) {
	if err := checkPre(opt); err != nil {
		return nil, err
	}
	n := opt.VocabSize
	if n == 0 {
		n = len(f.spm.pieces)
	}
	if len(f.spm.pieces) > n {
		return nil, invalid("tokenizer.model: %d pieces are more than vocab_size %d", len(f.spm.pieces), n)
	}
	if n > 2*len(f.spm.pieces)+maxPadding {
		return nil, invalid("config.json: vocab_size %d is far larger than the %d pieces of tokenizer.model", n, len(f.spm.pieces))
	}
	v := &Vocab{Model: ModelSPM, Pre: "default", Tokens: make([]string, n), Scores: make([]float32, n), Types: make([]int32, n)}
	for i := range v.Tokens {
		if i >= len(f.spm.pieces) {
			v.Tokens[i], v.Scores[i], v.Types[i] = fmt.Sprintf("[PAD%d]", i), -10000, TypeUnused
			continue
		}
		p := f.spm.pieces[i]
		if p.kind == TypeUserDefined { // the converter knows these from the other files only
			p.kind = TypeNormal
		}
		v.Tokens[i], v.Scores[i], v.Types[i] = p.text, p.score, p.kind
	}
	if err := f.overrideSPM(v); err != nil {
		return nil, err
	}
	if f.spm.unigram {
		v.Model, v.CharsMap = ModelUnigram, f.spm.charsMap
		v.SpacePrefix, v.Squeeze = &f.spm.prefix, &f.spm.squeeze
		return v, nil
	}
	if on, ok := f.config["add_prefix_space"].(bool); ok {
		v.SpacePrefix = &on
	}
	v.source = f.sourceOfPieces(len(v.Tokens), opt)
	return v, nil
}

// sourceOfPieces is how a tokenizer.json beside the tokenizer.model of a BPE
// vocabulary treats text, which transformers goes by; nil when there is none of
// that kind.
func (f *folder) sourceOfPieces(size int, opt Options) *source {
	t := f.tokenizer
	if t == nil || t.kind != "BPE" || !t.byteFallback {
		return nil
	}
	form, err := t.pieceForm(opt)
	if err != nil || form.squeeze || form.charsMap != nil {
		return nil
	}
	behind := func(a addedToken) bool { return a.id >= int64(size) }
	return &source{norm: form.norm, spaces: form.spaces, added: slices.DeleteFunc(slices.Clone(t.added), behind)}
}

// addedScore keeps added tokens from ever being merged.
const addedScore = -1000

// overrideSPM lets added_tokens.json and tokenizer_config.json name tokens.
// Tokens behind the vocabulary have no row in the embedding and are left out,
// such as the image token that Gemma 3's models without vision still list.
func (f *folder) overrideSPM(v *Vocab) error {
	for _, text := range sortedKeys(f.added) {
		id, ok := integer(f.added[text])
		if !ok || id < 0 || text == "" {
			return invalid("added_tokens.json: added token %.60q has id %v, want an integer of 0 or more and a text", text, f.added[text])
		}
		if v.leavesOut(id, text, "added_tokens.json") {
			continue
		}
		v.Tokens[id], v.Scores[id], v.Types[id] = text, addedScore, TypeUserDefined
	}
	decoder, err := f.decoder()
	if err != nil {
		return err
	}
	for _, a := range decoder {
		if v.leavesOut(a.id, a.text, "tokenizer_config.json") {
			continue
		}
		v.Tokens[a.id], v.Types[a.id] = a.stored()
		v.Scores[a.id] = addedScore
	}
	return nil
}

// leavesOut reports whether an added token lies behind the vocabulary, and
// says so in a warning.
func (v *Vocab) leavesOut(id int64, text, file string) bool {
	if id < int64(len(v.Tokens)) {
		return false
	}
	v.Warnings = append(v.Warnings, fmt.Sprintf("%s: the token %.60q is left out: it has id %d, and the model's vocabulary (vocab_size) has %d tokens", file, text, id, len(v.Tokens)))
	return true
}

func sortedKeys[T any](m map[string]T) []string {
	keys := make([]string, 0, len(m))
	for k := range m {
		keys = append(keys, k)
	}
	slices.Sort(keys)
	return keys
}

// fromFallbackBPE builds a SentencePiece vocabulary from its tokenizer.json
// form, BPE over characters with byte fallback. Scores are the negated ranks
// of the merges, so that merging by score follows the same order.
func (f *folder) fromFallbackBPE(opt Options) (*Vocab, error) {
	t := f.tokenizer
	if err := checkPre(opt); err != nil {
		return nil, err
	}
	form, err := t.pieceForm(opt)
	if err != nil {
		return nil, err
	}
	if form.squeeze || form.charsMap != nil {
		return nil, invalid("tokenizer.json: the normalizer collapses spaces or has a character map, which the GGUF form of a BPE vocabulary cannot say")
	}
	if err := t.checkUnknown(); err != nil {
		return nil, err
	}
	added, err := f.allAdded()
	if err != nil {
		return nil, err
	}
	s, err := fill(t.vocab, added, opt.VocabSize)
	if err != nil {
		return nil, err
	}
	v := &Vocab{Model: ModelSPM, Pre: "default", Tokens: s.texts, Scores: make([]float32, s.size), Types: make([]int32, s.size)}
	v.source = &source{norm: form.norm, spaces: form.spaces, added: added}
	ids := make(map[string]int, s.size)
	for i, text := range v.Tokens {
		v.Types[i] = TypeNormal
		switch {
		case !s.used[i]:
			v.Tokens[i], v.Types[i], v.Scores[i] = fmt.Sprintf("[PAD%d]", i), TypeUnused, -10000
		case isByteToken(text):
			v.Types[i] = TypeByte
		}
		ids[v.Tokens[i]] = i
	}
	if err := t.scoreMerges(v, ids); err != nil {
		return nil, err
	}
	for _, a := range added {
		v.Tokens[a.id], v.Types[a.id] = a.stored()
		v.Scores[a.id] = addedScore
	}
	if id, ok := ids[t.unknown]; ok {
		v.Types[id], v.Scores[id] = TypeUnknown, 0
	}
	if !form.prefix {
		v.SpacePrefix, v.prefixLast = new(bool), true
	}
	return v, nil
}

// scoreMerges gives every merged token its score. SentencePiece knows one
// rank per result, so the merges that give one token must stand together.
func (t *tokenizerJSON) scoreMerges(v *Vocab, ids map[string]int) error {
	scored := make(map[int]bool, len(t.merges))
	previous := -1
	for rank, m := range t.merges {
		id, ok := ids[m[0]+m[1]]
		if !ok {
			return invalid("tokenizer.json: merge %d needs token %.60q, which is not in the vocabulary", rank, m[0]+m[1])
		}
		if id == previous {
			continue
		}
		if scored[id] {
			return invalid("tokenizer.json: the order of the merges cannot be expressed as sentencepiece scores: token %.60q comes back at merge %d", m[0]+m[1], rank)
		}
		scored[id], previous = true, id
		v.Scores[id] = -float32(rank + 1)
	}
	return nil
}

// isByteToken reports whether a token is written <0xHH>.
func isByteToken(s string) bool {
	_, ok := byteOfToken(s)
	return ok
}

func byteOfToken(s string) (byte, bool) {
	if len(s) != 6 || !strings.HasPrefix(s, "<0x") || s[5] != '>' {
		return 0, false
	}
	b, err := strconv.ParseUint(s[3:5], 16, 8)
	return byte(b), err == nil
}
