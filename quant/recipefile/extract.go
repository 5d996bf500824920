package recipefile

import (
	"cmp"
	"errors"
	"fmt"
	"slices"
	"strconv"

	"github.com/winnow-moe/winnow/formats/arch"
	"github.com/winnow-moe/winnow/formats/gguf"
	"github.com/winnow-moe/winnow/quant"
)

// Extract derives the recipe of an existing file, whatever made it: its file
// type, and rules for the tensors that the file type's own rules would give
// another type. Quantizing the model anew with that recipe, and with an
// importance matrix if the file says that it was made with one, gives every
// tensor its type again, except those that no recipe quantizes.
//
// Where general.file_type is missing, is none of llama-quantize's, or cannot
// lead to the file (F16, which knows no exceptions), the recipe that comes
// nearest takes its place. The recipe's remarks tell such things.
func Extract(md *gguf.Metadata, tensors []gguf.TensorInfo) (*File, error) {
	facts, err := quant.FactsFrom(md)
	if err != nil {
		return nil, err
	}
	x := extraction{facts: facts, tensors: tensors, names: make([]arch.Name, len(tensors)), roles: map[arch.Role][]int{}}
	for i := range tensors {
		n := arch.ParseName(tensors[i].Name)
		x.names[i] = n
		if n.Suffix == "weight" {
			x.roles[n.Role] = append(x.roles[n.Role], i)
		}
	}
	f := &File{}
	number, known := md.Get(gguf.KeyFileType)
	if file, ok := md.String("quantize.imatrix.file"); ok {
		x.imatrix = true
		f.Remarks = append(f.Remarks, fmt.Sprintf("made with an importance matrix, %s: pass one with --imatrix", strconv.Quote(file)))
	}
	declared, err := quant.LookupRecipe(fmt.Sprint(number))
	if known && err == nil && x.fit(f, []*quant.Recipe{declared}) {
		return f, nil
	}
	why := "general.file_type is missing"
	if known {
		why = fmt.Sprintf("general.file_type is %v, which does not lead to these types", number)
	}
	f.Remarks = append(f.Remarks, why+": nearest recipe")
	if x.fit(f, quant.Recipes()) {
		return f, nil
	}
	for i := range tensors {
		if _, err := quant.ParseType(tensors[i].Type.String()); err != nil {
			return nil, fmt.Errorf("no recipe leads to these types: tensor %q: %w", tensors[i].Name, err)
		}
	}
	return nil, errors.New("no recipe leads to the types of the tensors")
}

// extraction looks for the rules that lead to the types of a file.
type extraction struct {
	facts   quant.ModelFacts
	tensors []gguf.TensorInfo
	names   []arch.Name         // of the tensors
	roles   map[arch.Role][]int // weights by role
	imatrix bool
}

// candidate is a recipe with the tensors whose types it misses.
type candidate struct {
	recipe *quant.Recipe
	pure   bool
	missed []int
}

// fit takes the recipe that misses the fewest tensors and that rules can mend.
func (x *extraction) fit(f *File, recipes []*quant.Recipe) bool {
	var list []candidate
	for _, r := range recipes {
		for _, pure := range []bool{false, true} {
			c := candidate{recipe: r, pure: pure}
			var err error
			if c.missed, err = x.missed(&c, nil); err == nil && !r.KeepsTypes {
				list = append(list, c)
			}
		}
	}
	slices.SortStableFunc(list, func(a, b candidate) int { return cmp.Compare(len(a.missed), len(b.missed)) })
	for i := range list {
		if rules, ok := x.mend(&list[i]); ok {
			f.Type, f.Pure, f.Rules = list[i].recipe.Name, list[i].pure, rules
			return true
		}
	}
	return false
}

// missed lists the tensors that would get another type than they have.
func (x *extraction) missed(c *candidate, rules []Rule) ([]int, error) {
	opt := quant.Options{Imatrix: x.imatrix, Pure: c.pure}
	var err error
	if opt.TensorTypes, err = (&File{Rules: rules}).TensorTypes(); err != nil {
		return nil, err
	}
	choices, err := c.recipe.Assign(x.facts, x.tensors, opt)
	if err != nil {
		return nil, err
	}
	var missed []int
	for i := range choices {
		if choices[i].Type != x.tensors[i].Type {
			missed = append(missed, i)
		}
	}
	return missed, nil
}

// mend finds rules that make a recipe right. Since a rule for one tensor can
// change which tensors the recipe counts, it goes on until nothing is missed.
func (x *extraction) mend(c *candidate) ([]Rule, bool) {
	pinned := make([]bool, len(x.tensors))
	for missed := c.missed; len(missed) > 0; {
		if pinned[missed[0]] {
			return nil, false // rules do not help: the recipe ignores them
		}
		for _, i := range missed {
			x.pin(pinned, i)
		}
		var err error
		if missed, err = x.missed(c, x.rules(pinned)); err != nil {
			return nil, false
		}
	}
	return x.rules(pinned), true
}

// pin marks a tensor for a rule, and with it all of its role if they have the
// same type.
func (x *extraction) pin(pinned []bool, tensor int) {
	pinned[tensor] = true
	same := x.roles[x.names[tensor].Role]
	for _, i := range same {
		if x.tensors[i].Type != x.tensors[tensor].Type {
			return
		}
	}
	for _, i := range same {
		pinned[i] = true
	}
}

// rules makes rules for the pinned tensors: by role where that names them
// alone, with roles of the same types in the same blocks together.
func (x *extraction) rules(pinned []bool) []Rule {
	type key struct {
		role arch.Role
		typ  gguf.Type
	}
	var order []key
	layers := map[key]Layers{}
	var named []Rule
	for i, n := range x.names {
		switch k := (key{n.Role, x.tensors[i].Type}); {
		case !pinned[i]:
		case n.Layer < 0 && len(x.roles[n.Role]) > 1: // not expected: a role in and outside the blocks
			named = append(named, Rule{Name: x.tensors[i].Name, Type: x.tensors[i].Type})
		default:
			if layers[k] == nil {
				order = append(order, k)
			}
			layers[k] = append(layers[k], n.Layer)
		}
	}
	var rules []Rule
	index := map[string]int{}
	for _, k := range order {
		r := Rule{Roles: []string{string(k.role)}, Type: k.typ}
		if l := layers[k]; len(l) < len(x.roles[k.role]) {
			slices.Sort(l)
			r.Layers = l
		}
		same := r.Layers.String() + " " + r.Type.String()
		if i, ok := index[same]; ok {
			rules[i].Roles = append(rules[i].Roles, r.Roles[0])
			continue
		}
		index[same] = len(rules)
		rules = append(rules, r)
	}
	return append(rules, named...)
}
