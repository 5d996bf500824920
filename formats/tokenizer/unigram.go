package tokenizer

import "fmt"

// fromUnigram builds the vocabulary of a tokenizer.json with a Unigram model.
func (f *folder) fromUnigram(opt Options) (*Vocab, error) {
	t := f.tokenizer
	if err := checkPre(opt); err != nil {
		return nil, err
	}
	form, err := t.pieceForm(opt)
	if err != nil {
		return nil, err
	}
	for i, p := range t.scored {
		t.vocab = append(t.vocab, entry{p.text, int64(i)})
	}
	added, err := f.allAdded()
	if err != nil {
		return nil, err
	}
	s, err := fill(t.vocab, added, opt.VocabSize)
	if err != nil {
		return nil, err
	}
	v := &Vocab{Model: ModelUnigram, Pre: "default", Tokens: s.texts, Scores: make([]float32, s.size), Types: make([]int32, s.size),
		SpacePrefix: &form.prefix, Squeeze: &form.squeeze, CharsMap: form.charsMap}
	v.source = &source{norm: form.norm, spaces: form.spaces, added: added}
	for i := range v.Tokens {
		v.Types[i] = TypeNormal
		switch {
		case !s.used[i]:
			v.Tokens[i], v.Scores[i], v.Types[i] = fmt.Sprintf("[PAD%d]", i), -10000, TypeUnused
		case i >= len(t.scored):
		default:
			v.Scores[i] = t.scored[i].score
			if t.byteFallback && isByteToken(v.Tokens[i]) {
				v.Types[i] = TypeByte
			}
		}
	}
	for _, a := range added {
		v.Tokens[a.id], v.Types[a.id] = a.stored()
		v.Scores[a.id] = addedScore
	}
	if t.unknownID >= 0 {
		v.Types[t.unknownID], v.Scores[t.unknownID] = TypeUnknown, t.scored[t.unknownID].score
	}
	return v, nil
}

// completeUnigram writes down what readers would otherwise take from T5: the
// ids of unk, eos and pad, and that eos ends every text.
func (v *Vocab) completeUnigram() {
	if v.Model != ModelUnigram {
		return
	}
	for id, kind := range v.Types {
		if _, ok := v.special("unk"); !ok && kind == TypeUnknown {
			v.Special = append(v.Special, SpecialID{"unk", int32(id)})
		}
	}
	for _, kind := range [...]string{"bos", "eos"} {
		if _, set := v.flag(kind); !set {
			v.Add = append(v.Add, AddFlag{kind, false})
		}
	}
}
