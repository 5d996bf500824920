package tokenizer

import (
	"bufio"
	"bytes"
	"cmp"
	"encoding/base64"
	"fmt"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
)

// tiktoken is a vocabulary in the form of OpenAI's tiktoken: byte strings by
// rank, which is also their id and the order in which they are merged.
type tiktoken struct {
	file   string
	tokens []string // by rank
}

// maxRankedBytes caps one token of a tiktoken file; the longest of released
// models are runs of some hundred spaces or signs.
const maxRankedBytes = 4096

// readTiktoken reads the folder's tiktoken.model (Kimi K2) or its only file
// *.tiktoken (Hunyuan A13B, Qwen 1); nil when there is none.
func readTiktoken(dir string) (*tiktoken, error) {
	path := filepath.Join(dir, "tiktoken.model")
	raw, err := readOptional(path, maxSmallBytes)
	if err != nil {
		return nil, err
	}
	if raw == nil {
		list, err := filepath.Glob(filepath.Join(globEscape(dir), "*.tiktoken"))
		switch {
		case err != nil || len(list) == 0:
			return nil, err
		case len(list) > 1:
			return nil, invalid("%d files *.tiktoken, want one: %q", len(list), list)
		}
		path = list[0]
		if raw, err = readOptional(path, maxSmallBytes); err != nil || raw == nil {
			return nil, err
		}
	}
	return parseTiktoken(filepath.Base(path), raw)
}

// parseTiktoken reads lines of a token in base64 and its rank.
func parseTiktoken(file string, raw []byte) (*tiktoken, error) {
	t := &tiktoken{file: file}
	ranks := map[string]int{}
	lines := bufio.NewScanner(bytes.NewReader(raw))
	lines.Buffer(nil, 2*maxRankedBytes)
	for n := 1; lines.Scan(); n++ {
		line := lines.Text()
		if line == "" {
			continue
		}
		text, number, _ := strings.Cut(line, " ")
		token, err := base64.StdEncoding.DecodeString(text)
		rank, err2 := strconv.Atoi(number)
		if err != nil || err2 != nil || len(token) == 0 || len(token) > maxRankedBytes {
			return nil, invalid("%s: line %d (%.40q) is not a token in base64 and a rank", file, n, line)
		}
		if rank < 0 || rank >= maxTokens {
			return nil, invalid("%s: line %d has rank %d, outside 0 to %d", file, n, rank, maxTokens)
		}
		if first, twice := ranks[string(token)]; twice {
			return nil, invalid("%s: line %d repeats the token of rank %d (duplicate)", file, n, first)
		}
		ranks[string(token)] = rank
	}
	if err := lines.Err(); err != nil {
		return nil, invalid("%s: %w", file, err)
	}
	t.tokens = make([]string, len(ranks))
	for token, rank := range ranks {
		if rank >= len(t.tokens) || t.tokens[rank] != "" {
			return nil, invalid("%s: rank %d of token %.40q leaves a hole in the %d ranks or is a duplicate", file, rank, token, len(ranks))
		}
		t.tokens[rank] = token
	}
	if len(t.tokens) == 0 {
		return nil, invalid("%s holds no tokens", file)
	}
	return t, nil
}

// toAlphabet spells bytes as byte-level vocabularies do.
func toAlphabet(raw string) string {
	var b strings.Builder
	for i := range len(raw) {
		b.WriteRune(byteRunes[raw[i]])
	}
	return b.String()
}

// mergesOfRanks finds the merges of tokens that are merged by rank: the two
// parts that the ranks below its own leave of a token. Single bytes have none;
// neither have tokens of which more parts are left, which only ever stand for
// a whole word.
func mergesOfRanks(tokens []string) []string {
	ids := make(map[string]int32, len(tokens))
	for rank, t := range tokens {
		if t != "" {
			ids[t] = int32(rank)
		}
	}
	var lines []string
	var m merger
	for rank, t := range tokens {
		if len(t) < 2 {
			continue
		}
		m.reset()
		for i := range len(t) {
			m.add(i, i+1, -1)
		}
		m.run(func(a, b *node) (float64, int32, bool) {
			id, ok := ids[t[a.from:b.to]]
			return float64(id), id, ok && id < int32(rank)
		})
		if second := m.nodes[0].next; second >= 0 && m.nodes[second].next < 0 {
			cut := m.nodes[second].from
			lines = append(lines, toAlphabet(t[:cut])+" "+toAlphabet(t[cut:]))
		}
	}
	return lines
}

// mergesOfIDs finds the merges of a byte-level vocabulary that has none,
// whose ids are its ranks.
func (v *Vocab) mergesOfIDs() []string {
	tokens := make([]string, len(v.Tokens))
	for id, text := range v.Tokens {
		if raw, ok := fromAlphabet(text); ok && v.typeOf(id) == TypeNormal && len(raw) <= maxRankedBytes {
			tokens[id] = string(raw)
		}
	}
	return mergesOfRanks(tokens)
}

// hunyuanTokens are the control tokens of Hunyuan A13B, which only the code of
// its tokenizer knows (tokenization_hy.py).
func hunyuanTokens() []string {
	names := []string{"<|endoftext|>", "<|startoftext|>", "<|bos|>", "<|eos|>", "<|pad|>"}
	for i := range 205 {
		names = append(names, fmt.Sprintf("<|extra_%d|>", i))
	}
	return names
}

// reservedTokens is the number of control tokens behind Kimi K2's ranks
// (tokenization_kimi.py, num_reserved_special_tokens).
const reservedTokens = 256

// controls are the control tokens that follow the ranks: named by
// tokenizer_config.json, else as the code of the model's tokenizer does.
func (f *folder) controls() ([]addedToken, error) {
	named, err := f.decoder()
	if err != nil {
		return nil, err
	}
	base := int64(len(f.ranks.tokens))
	texts := map[int64]string{}
	switch f.ranks.file {
	case "tiktoken.model":
		for id := base; id < base+reservedTokens; id++ {
			texts[id] = fmt.Sprintf("<|reserved_token_%d|>", id)
		}
	case "hy.tiktoken":
		for i, name := range hunyuanTokens() {
			texts[base+int64(i)] = name
		}
	}
	for _, a := range named {
		if a.id < base {
			return nil, invalid("tokenizer_config.json: added token %.60q has the id %d of a token of %s (conflict)", a.text, a.id, f.ranks.file)
		}
		texts[a.id] = a.text
	}
	list := make([]addedToken, 0, len(texts))
	for id, text := range texts {
		list = append(list, addedToken{id: id, text: text, special: true})
	}
	slices.SortFunc(list, func(a, b addedToken) int { return cmp.Compare(a.id, b.id) })
	return list, nil
}

// tiktokenPre are the cuts of vocabularies that say nothing of it: the pattern
// is in the code of their tokenizers.
var tiktokenPre = map[string]string{"tiktoken.model": "kimi-k2", "hy.tiktoken": "hunyuan", "qwen.tiktoken": "qwen2"}

// fromRanks builds a byte-level BPE vocabulary from a tiktoken file.
func (f *folder) fromRanks(opt Options) (*Vocab, error) {
	pre := cmp.Or(opt.Pre, tiktokenPre[f.ranks.file])
	row := preByName(pre)
	if row == nil {
		return nil, invalid("%s: pre-tokenizer %q is unknown: the file has no pattern to recognise it by; name one with --pre NAME", f.ranks.file, pre)
	}
	controls, err := f.controls()
	if err != nil {
		return nil, err
	}
	vocab := make([]entry, len(f.ranks.tokens))
	for rank, t := range f.ranks.tokens {
		vocab[rank] = entry{toAlphabet(t), int64(rank)}
	}
	s, err := fill(vocab, controls, opt.VocabSize)
	if err != nil {
		return nil, err
	}
	v := &Vocab{Model: ModelBPE, Pre: pre, Tokens: s.texts, Types: make([]int32, s.size), Merges: mergesOfRanks(f.ranks.tokens)}
	v.source = &source{steps: row.steps, ignoreMerges: true, added: controls} // tiktoken takes words that are tokens whole
	for i := range v.Types {
		v.Types[i] = TypeNormal
		if !s.used[i] {
			v.Tokens[i], v.Types[i] = fmt.Sprintf("[PAD%d]", i), TypeUnused
		}
	}
	for _, a := range controls {
		v.Types[a.id] = TypeControl
		if f.ranks.file == "hy.tiktoken" && a.text == "<|bos|>" { // config.json has another, wrong one
			v.Special = append(v.Special, SpecialID{"bos", int32(a.id)})
		}
	}
	return v, nil
}
