package tokenizer

import (
	"slices"
	"strings"
)

// roles finds out which tokens play a role and which are added when encoding.
// It follows llama.cpp's converter (gguf-py vocab.py, SpecialVocab) in what it
// looks at and in which order, because that is the order of the keys:
// tokenizer_config.json's names, then config.json's ids, the first one wins.
type roles struct {
	kinds []string             // in the order in which they are looked for
	names map[string]tokenName // tokenizer_config.json's X_token
	have  bool                 // there is a tokenizer_config.json
	flags []flag
}

// tokenName is the value of an X_token key. Older files wrap the text in an
// object; the converter takes such a value for different from any text.
type tokenName struct {
	text   string
	object bool
}

func (n tokenName) is(text string) bool { return !n.object && n.text == text }

// flag is an AddFlag; weak ones are defaults of a post-processor that says
// nothing about the token.
type flag struct {
	AddFlag
	weak bool
}

// setFlag sets a flag in its first place.
func (r *roles) setFlag(kind string, value, weak bool) {
	i := slices.IndexFunc(r.flags, func(f flag) bool { return f.Kind == kind })
	switch {
	case i < 0:
		r.flags = append(r.flags, flag{AddFlag{kind, value}, weak})
	case !weak:
		r.flags[i].Value, r.flags[i].weak = value, false
	}
}

// standIn lets one name stand in for a missing other.
func (r *roles) standIn(missing, other string) {
	if r.names[missing].text == "" {
		r.names[missing] = r.names[other]
	}
}

func (f *folder) roles(v *Vocab, opt Options) error {
	r := &roles{kinds: []string{"bos", "eos", "unk", "sep", "pad", "cls", "mask"}, have: f.config != nil, names: map[string]tokenName{}}
	for _, kind := range [...]string{"bos", "eos", "unk", "sep", "pad", "cls", "mask", "eot", "eom"} {
		switch n := f.config[kind+"_token"].(type) {
		case string:
			r.names[kind] = tokenName{text: n}
		case map[string]any:
			if text, ok := n["content"].(string); ok {
				r.names[kind] = tokenName{text: text, object: true}
			}
		}
	}
	if f.tokenizer != nil {
		r.standIn("bos", "cls")
		r.standIn("eos", "sep")
		r.postProcessor(f.tokenizer.post)
	}
	if r.have {
		if err := f.named(v, r); err != nil {
			return err
		}
	}
	if err := f.numbered(v, r); err != nil {
		return err
	}
	if err := v.defaults(opt.Special); err != nil {
		return err
	}
	if v.Model == ModelCharBPE {
		r.setFlag("bos", true, false)
	}
	for _, fl := range r.flags {
		v.Add = append(v.Add, fl.AddFlag)
	}
	v.completeUnigram()
	if opt.SpacePrefix != nil {
		v.SpacePrefix, v.prefixLast = opt.SpacePrefix, true
	}
	return f.endings(v)
}

// postProcessor derives flags from what the post-processor adds.
func (r *roles) postProcessor(v any) {
	o, ok := v.(map[string]any)
	if !ok {
		return
	}
	list, ok := o["processors"].([]any)
	if !ok {
		list = []any{o}
	}
	for _, p := range list {
		o, _ := p.(map[string]any)
		switch o["type"] {
		case "ByteLevel":
			r.setFlag("bos", false, true)
			r.setFlag("eos", false, true)
		case "RobertaProcessing":
			r.roberta(o)
		case "TemplateProcessing":
			r.template(o)
		}
	}
}

func (r *roles) roberta(o map[string]any) {
	for _, kind := range [...]string{"bos", "eos", "sep"} {
		r.setFlag(kind, true, false)
	}
	for _, kind := range [...]string{"cls", "sep"} {
		pair, _ := o[kind].([]any)
		if text, ok := textAt(pair, 0); ok && r.names[kind].text == "" {
			r.names[kind] = tokenName{text: text}
		}
	}
}

// template reads a TemplateProcessing: which special tokens stand first and
// last for one text, and between two texts.
func (r *roles) template(o map[string]any) {
	single, _ := o["single"].([]any)
	var first, last string
	if len(single) > 1 {
		if first = templateID(single[0], "SpecialToken"); first != "" {
			r.leading(first)
		}
		if last = templateID(single[len(single)-1], "SpecialToken"); last != "" {
			r.trailing(last)
		}
	}
	if pair, _ := o["pair"].([]any); len(pair) > 0 {
		r.between(pair, first, last)
	}
}

// templateID returns the id of a template part of the wanted kind, or "".
func templateID(part any, kind string) string {
	o, _ := part.(map[string]any)
	o, _ = o[kind].(map[string]any)
	id, _ := o["id"].(string)
	return id
}

func (r *roles) leading(first string) {
	if !r.names["bos"].is(first) && !r.names["cls"].is(first) {
		for _, kind := range [...]string{"bos", "cls"} {
			if r.names[kind].text == "" && (r.have || kind == "bos") {
				r.names[kind] = tokenName{text: first}
			}
		}
	}
	r.setFlag("bos", r.names["bos"].is(first) || r.names["cls"].is(first), false)
}

func (r *roles) trailing(last string) {
	if eos := r.names["eos"]; !eos.is(last) {
		// The configured eos ends a turn, the template's ends the text.
		for _, kind := range [...]string{"eot", "eom"} {
			if r.have && !slices.Contains(r.kinds, kind) {
				r.kinds = append(r.kinds, kind)
				r.names[kind] = eos
				break
			}
		}
		r.names["eos"] = tokenName{text: last}
	}
	r.setFlag("eos", true, false)
}

// between decides add_sep from "first A sep B last".
func (r *roles) between(pair []any, first, last string) {
	if first != "" && templateID(pair[0], "SpecialToken") == first {
		pair = pair[1:]
	}
	if n := len(pair); last != "" && n > 0 && templateID(pair[n-1], "SpecialToken") == last {
		pair = pair[:n-1]
	}
	n := len(pair)
	if n < 3 || templateID(pair[0], "Sequence") != "A" || templateID(pair[n-1], "Sequence") != "B" {
		return
	}
	middle := pair[1 : n-1]
	separates := func(part any) bool {
		id := templateID(part, "SpecialToken")
		return id != "" && (r.names["sep"].is(id) || r.names["eos"].is(id))
	}
	add := separates(middle[0]) && last == "" || len(middle) == 2 && separates(middle[1])
	r.setFlag("sep", add, false)
	if add && r.names["sep"].text == "" && r.have {
		r.names["sep"] = r.names["eos"]
	}
}

// named takes flags and ids from tokenizer_config.json.
func (f *folder) named(v *Vocab, r *roles) error {
	if err := f.chatTemplate(v); err != nil {
		return err
	}
	for _, kind := range r.kinds {
		if on, ok := f.config["add_"+kind+"_token"].(bool); ok {
			r.configured(kind, on)
		}
		name := r.names[kind].text
		if name == "" || f.tokenizer == nil {
			continue
		}
		i := slices.IndexFunc(f.tokenizer.added, func(a addedToken) bool { return a.text == name })
		if i < 0 {
			continue
		}
		if err := v.setSpecial(kind, f.tokenizer.added[i].id, "tokenizer.json: "+kind+"_token"); err != nil {
			return err
		}
	}
	r.flags = slices.DeleteFunc(r.flags, func(fl flag) bool { return !writable(fl.Kind) })
	return nil
}

// configured applies add_X_token. A post-processor knows better, except where
// it is silent: then the explicit add_bos_token counts, which the tokenizers
// of DeepSeek V3 and R1 rely on (the converter leaves their BOS out).
func (r *roles) configured(kind string, on bool) {
	i := slices.IndexFunc(r.flags, func(f flag) bool { return f.Kind == kind })
	if i < 0 {
		r.setFlag(kind, on, false)
	} else if kind == "bos" && r.flags[i].weak {
		r.flags[i].Value = on
	}
}

// writable reports whether GGUF has a key for the flag of a kind.
func writable(kind string) bool {
	return slices.ContainsFunc(addKeys, func(k struct{ kind, key string }) bool { return k.kind == kind })
}

// numbered takes ids from config.json. Lists (several eos) have no key.
func (f *folder) numbered(v *Vocab, r *roles) error {
	for _, kind := range r.kinds {
		id, ok := integer(f.setting(kind + "_token_id"))
		if !ok || id == -1 && kind == "pad" {
			continue
		}
		if err := v.setSpecial(kind, id, "config.json: "+kind+"_token_id"); err != nil {
			return err
		}
	}
	return nil
}

// setSpecial gives a role to an id unless the role is taken.
func (v *Vocab) setSpecial(kind string, id int64, what string) error {
	if id < 0 || id >= int64(len(v.Tokens)) {
		return invalid("%s %d is out of range: the vocabulary has %d tokens", what, id, len(v.Tokens))
	}
	if !slices.ContainsFunc(v.Special, func(s SpecialID) bool { return s.Kind == kind }) {
		v.Special = append(v.Special, SpecialID{kind, int32(id)})
	}
	return nil
}

// defaults applies the family's own roles.
func (v *Vocab) defaults(special []SpecialText) error {
	for _, s := range special {
		id := slices.Index(v.Tokens, s.Text)
		if id < 0 {
			return invalid("the family's %s token %q is not in the vocabulary", s.Kind, s.Text)
		}
		if err := v.setSpecial(s.Kind, int64(id), s.Kind); err != nil {
			return err
		}
	}
	return nil
}

// endings collects EOG.
func (f *folder) endings(v *Vocab) error {
	list, ok := f.generation["eos_token_id"].([]any)
	if !ok {
		list = []any{f.generation["eos_token_id"]}
	}
	for _, e := range list {
		if e == nil {
			continue
		}
		id, ok := integer(e)
		if !ok || id < 0 || id >= int64(len(v.Tokens)) {
			return invalid("generation_config.json: eos_token_id %v is not the id of one of %d tokens", e, len(v.Tokens))
		}
		v.addEOG(int32(id))
	}
	for _, s := range v.Special {
		if s.Kind == "eos" || s.Kind == "eot" || s.Kind == "eom" {
			v.addEOG(s.ID)
		}
	}
	return nil
}

// chatTemplate stores the templates: those of tokenizer_config.json, or of the
// files beside it when the key is absent.
func (f *folder) chatTemplate(v *Vocab) error {
	value, ok := f.config["chat_template"]
	if !ok {
		value = f.templates
	}
	switch t := value.(type) {
	case nil:
		return nil
	case string:
		v.Templates = []Template{{Text: t}}
		return nil
	case []any:
		return v.namedTemplates(t)
	}
	return invalid("chat_template is neither text nor a list of named templates")
}

func (v *Vocab) namedTemplates(list []any) error {
	for i, e := range list {
		o, _ := e.(map[string]any)
		name, ok1 := o["name"].(string)
		text, ok2 := o["template"].(string)
		if !ok1 || !ok2 || name == "" {
			return invalid("chat_template: entry %d has no name or no template text", i)
		}
		name = strings.Map(plainName, name)
		if name == "default" {
			name = ""
		}
		if slices.ContainsFunc(v.Templates, func(t Template) bool { return t.Name == name }) {
			return invalid("chat_template: two templates are named %q", name)
		}
		v.Templates = append(v.Templates, Template{Name: name, Text: text})
	}
	return nil
}

// plainName keeps names usable as parts of a key.
func plainName(r rune) rune {
	if r >= '0' && r <= '9' || r >= 'a' && r <= 'z' || r >= 'A' && r <= 'Z' {
		return r
	}
	return '_'
}
