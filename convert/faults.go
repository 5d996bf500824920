package convert

import (
	"fmt"
	"regexp"
	"slices"
	"strconv"
	"strings"

	"github.com/winnow-moe/winnow/formats/arch"
	"github.com/winnow-moe/winnow/formats/safetensors"
)

// faults is what is wrong with the tensors of a checkpoint. They are told all
// at once, so that one look decides whether a download is incomplete, a file is
// another model's, or config.json is wrong.
type faults struct {
	missing  []missingTensor
	wrong    []string // texts about shapes and types
	resized  []string // contradictions between vocab_size and tensors
	leftOver []string // names that no rule owns
}

// missingTensor is a tensor that the model needs and the checkpoint lacks.
type missingTensor struct {
	name   string
	layer  int
	expert int    // -1: not an expert's
	text   string // the whole message
}

// verdict returns the error that faults amount to, nil where there are none.
// Where config.json contradicts the tensors it says so first: neither is
// believed.
func (cp *checkpointPlan) verdict() error {
	f := &cp.faults
	if len(f.missing)+len(f.wrong)+len(f.leftOver) == 0 {
		return nil
	}
	var parts []string
	if c := cp.contradictions(); len(c) > 0 {
		parts = append(parts, "config.json contradicts the tensors, and either may be wrong: "+strings.Join(c, "; "))
	}
	if n := len(f.missing); n == 1 {
		parts = append(parts, f.missing[0].text)
	} else if n > 1 {
		names := make([]string, n)
		for i := range names {
			names[i] = f.missing[i].name
		}
		parts = append(parts, fmt.Sprintf("%d tensors are missing: %s", n, safetensors.NameList(names)))
	}
	if n := len(f.wrong); n > 0 {
		const most = 10
		text := strings.Join(f.wrong[:min(n, most)], "; ")
		if n > most {
			text += plural(n-most, "; and %d more such tensor", "; and %d more such tensors")
		}
		parts = append(parts, text)
	}
	if n := len(f.leftOver); n > 0 {
		parts = append(parts, fmt.Sprintf("%s no place in a %s model with %d blocks: %s", plural(n, "%d tensor of the checkpoint has", "%d tensors of the checkpoint have"),
			cp.model.Family.Arch, cp.model.Params.Layers, safetensors.NameList(f.leftOver)))
	}
	err := formatError("%s", strings.Join(parts, "; "))
	if slices.ContainsFunc(f.missing, func(m missingTensor) bool { return m.layer >= cp.model.Params.Trunk() }) {
		return hinted("drop the multi-token prediction block with --mtp drop", err)
	}
	return err
}

// contradictions are settings that explain several faults.
func (cp *checkpointPlan) contradictions() []string {
	list := slices.Clone(cp.faults.resized)
	for _, find := range []func() string{cp.fewerBlocks, cp.noMTP, cp.moreBlocks, cp.otherExperts} {
		if text := find(); text != "" {
			list = append(list, text)
		}
	}
	return list
}

// present says which blocks the checkpoint has tensors of.
func (cp *checkpointPlan) present() []bool {
	list := make([]bool, cp.model.Params.Layers)
	for i, used := range cp.used {
		if l, ok := arch.Layer(cp.inv.Tensors[i].Name); ok && used && l < len(list) {
			list[l] = true
		}
	}
	return list
}

// fewerBlocks tells of blocks at the end of which the checkpoint has nothing.
func (cp *checkpointPlan) fewerBlocks() string {
	p := &cp.model.Params
	present := cp.present()
	n := p.Trunk()
	for n > 0 && !present[n-1] {
		n--
	}
	if n == p.Trunk() || n == 0 {
		return ""
	}
	return fmt.Sprintf("%s is %d, the checkpoint has %s", cp.model.SettingName("num_hidden_layers"), p.Trunk(), plural(n, "%d block", "%d blocks"))
}

// noMTP tells of multi-token prediction blocks that are announced but not there.
func (cp *checkpointPlan) noMTP() string {
	p := &cp.model.Params
	if p.NextnLayers == 0 || slices.Contains(cp.present()[p.Trunk():], true) {
		return ""
	}
	return fmt.Sprintf("num_nextn_predict_layers announces %s, the checkpoint has none", mtpBlocks(p.NextnLayers))
}

func mtpBlocks(n int) string {
	return plural(n, "%d multi-token prediction block", "%d multi-token prediction blocks")
}

// moreBlocks tells of tensors in blocks behind the last.
func (cp *checkpointPlan) moreBlocks() string {
	p := &cp.model.Params
	last, mtp := -1, false
	for _, name := range cp.faults.leftOver {
		if l, ok := arch.Layer(name); ok && l >= p.Layers {
			last = max(last, l)
			mtp = mtp || strings.HasSuffix(name, ".eh_proj.weight")
		}
	}
	switch {
	case last < 0:
		return ""
	case mtp:
		return fmt.Sprintf("num_nextn_predict_layers announces %s, the checkpoint has block %d", mtpBlocks(cp.model.AnnouncedMTP), last)
	}
	return fmt.Sprintf("%s is %d, the checkpoint has tensors of block %d", cp.model.SettingName("num_hidden_layers"), p.Trunk(), last)
}

// expertNumber finds the number of an expert in the name of a tensor.
var expertNumber = regexp.MustCompile(`\.experts\.(\d{1,9})\.`)

// otherExperts tells of blocks with more experts than announced, or fewer.
func (cp *checkpointPlan) otherExperts() string {
	want := cp.model.Params.Experts
	has, layer := 0, -1
	for _, name := range cp.faults.leftOver {
		if m := expertNumber.FindStringSubmatch(name); m != nil {
			e, _ := strconv.Atoi(m[1]) // nine digits fit
			if l, ok := arch.Layer(name); ok && e >= want && e >= has {
				has, layer = e+1, l
			}
		}
	}
	if layer < 0 {
		has, layer = cp.fewerExperts()
	}
	if layer < 0 {
		return ""
	}
	return fmt.Sprintf("%s is %d, the checkpoint has %s in block %d", cp.model.SettingName("n_routed_experts"), want, plural(has, "%d expert", "%d experts"), layer)
}

// fewerExperts returns how many experts a block has when all from some number
// on are missing with more than one tensor; layer -1 says that no block is so.
func (cp *checkpointPlan) fewerExperts() (has, layer int) {
	missing := map[[2]int]int{} // tensors, by block and expert
	for _, m := range cp.faults.missing {
		if m.expert >= 0 {
			missing[[2]int{m.layer, m.expert}]++
		}
	}
	want := cp.model.Params.Experts
	for l := range cp.model.Params.Layers {
		n := want
		for n > 0 && missing[[2]int{l, n - 1}] > 1 {
			n--
		}
		if n > 0 && n < want {
			return n, l
		}
	}
	return 0, -1
}

// lacks records that a tensor is missing, unless that is allowed.
func (cp *checkpointPlan) lacks(t *arch.Tensor) {
	p := &cp.model.Params
	template := t.Rule.HF[0]
	if t.Name.Layer >= p.Trunk() {
		template = t.Rule.HF[len(t.Rule.HF)-1] // where names in MTP blocks differ, theirs is the last
	}
	name := cp.model.Source(template, t.Name.Layer, 0)
	m := missingTensor{name: name, layer: t.Name.Layer, expert: -1, text: fmt.Sprintf("tensor %q is missing", name)}
	switch {
	case t.Rule.Role == arch.Output:
		m.text += " and config.json does not set tie_word_embeddings, so the model has no output matrix"
	case t.Rule.Optional:
		return
	case t.Name.Layer >= p.Trunk():
		m.text = fmt.Sprintf("tensor %q of the multi-token prediction block is missing", name)
	case t.Name.Layer >= 0:
		m.text += fmt.Sprintf(" (config.json: %s is %d)", cp.model.SettingName("num_hidden_layers"), p.Trunk())
	}
	cp.faults.missing = append(cp.faults.missing, m)
}

// lacksExpert records that one expert's part of a tensor is missing.
func (cp *checkpointPlan) lacksExpert(t *arch.Tensor, name string, e int) {
	text := fmt.Sprintf("tensor %q is missing (needed for %q; config.json: %s is %d, so there are %d experts)",
		name, t.Name, cp.model.SettingName("n_routed_experts"), cp.model.Params.Experts, cp.model.Params.Experts)
	cp.faults.missing = append(cp.faults.missing, missingTensor{name, t.Name.Layer, e, text})
}

// misshapen records an error about an input tensor's shape or type.
func (cp *checkpointPlan) misshapen(t *arch.Tensor, i int, err error) {
	if cp.used[i] {
		return // by another tensor made of it
	}
	cp.used[i] = true
	cp.faults.wrong = append(cp.faults.wrong, strings.TrimPrefix(err.Error(), ErrInput.Error()+": "))
	s, p := &cp.inv.Tensors[i], &cp.model.Params
	if vocab := t.Rule.Role == arch.TokenEmbd || t.Rule.Role == arch.Output; vocab && len(s.Shape) == 2 && s.Shape[1] == int64(p.Embed) && s.Shape[0] != int64(p.Vocab) {
		cp.faults.resized = append(cp.faults.resized, fmt.Sprintf("vocab_size is %d, %q has %d rows", p.Vocab, s.Name, s.Shape[0]))
	}
}
