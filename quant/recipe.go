package quant

import (
	"cmp"
	"fmt"
	"math"
	"slices"
	"strconv"
	"strings"

	"github.com/winnow-moe/winnow/formats/arch"
	"github.com/winnow-moe/winnow/formats/gguf"
)

// Recipe says which type every tensor of a model gets. The recipes are those
// of llama-quantize under the names its users know.
type Recipe struct {
	// Name is what users type, such as "Q4_K_M".
	Name string
	// FileType is llama.cpp's number of the recipe (llama.h enum
	// llama_ftype), the value of general.file_type.
	FileType uint32
	// Default is the type of tensors that no rule mentions.
	Default gguf.Type
	// KeepsTypes marks the recipe COPY: every tensor keeps its type and the
	// file its file type. FileType and Default mean nothing then.
	KeepsTypes bool

	rules []rule
}

// Recipes returns all recipes, roughly from large files to small ones.
func Recipes() []*Recipe {
	out := make([]*Recipe, len(recipes))
	for i := range recipes {
		out[i] = &recipes[i]
	}
	return out
}

// LookupRecipe finds a recipe by name, ignoring case, or by the number of its
// file type. Q3_K, Q4_K and Q5_K mean their _M recipes.
func LookupRecipe(name string) (*Recipe, error) {
	upper := strings.ToUpper(name)
	if full, ok := recipeAliases[upper]; ok {
		upper = full
	}
	number, err := strconv.ParseUint(name, 10, 32)
	numeric := err == nil
	for i := range recipes {
		r := &recipes[i]
		if r.Name == upper || numeric && !r.KeepsTypes && uint64(r.FileType) == number {
			return r, nil
		}
	}
	known := make([]string, len(recipes))
	for i := range recipes {
		known[i] = recipes[i].Name
	}
	return nil, fmt.Errorf("unknown recipe %q (known: %s)", name, strings.Join(known, ", "))
}

// ModelFacts are the properties of a model that recipes depend on.
type ModelFacts struct {
	Arch    string // general.architecture
	Layers  int    // blocks in the file, MTP blocks included
	Experts int    // routed experts before any were taken out, 0 for a dense model
	GQA     int    // query heads per key/value head in block 0; 0 without key/value heads
}

// FactsFrom reads the facts from a model's metadata. It fails when the
// architecture or its block count is missing.
func FactsFrom(m *gguf.Metadata) (ModelFacts, error) {
	name, ok := m.String(gguf.KeyArchitecture)
	if !ok {
		return ModelFacts{}, fmt.Errorf("metadata has no string %q", gguf.KeyArchitecture)
	}
	number := func(key string) int64 {
		v, _ := m.Get(name + "." + key)
		return firstInt(v)
	}
	layers := number(arch.KeyBlockCount)
	if layers <= 0 || layers > math.MaxInt32 {
		return ModelFacts{}, fmt.Errorf("metadata key %q is missing or not a number of blocks", name+"."+arch.KeyBlockCount)
	}
	f := ModelFacts{Arch: name, Layers: int(layers), Experts: int(number(arch.KeyExpertCount))}
	if before, ok := m.Int(arch.KeyExpertsBefore); ok {
		f.Experts = int(before)
	}
	heads, kv := number(arch.KeyHeadCount), number(arch.KeyHeadCountKV)
	if _, ok := m.Get(name + "." + arch.KeyHeadCountKV); !ok {
		kv = heads
	}
	if kv != 0 {
		f.GQA = int(heads / kv)
	}
	return f, nil
}

// firstInt returns an integer metadata value, or the first of an array: the
// value of block 0 where blocks differ. Anything else is 0.
func firstInt(v any) int64 {
	switch v := v.(type) {
	case uint32:
		return int64(v)
	case int32:
		return int64(v)
	case uint64:
		return int64(min(v, math.MaxInt64))
	case int64:
		return v
	case []uint32:
		if len(v) > 0 {
			return int64(v[0])
		}
	case []int32:
		if len(v) > 0 {
			return int64(v[0])
		}
	}
	return 0
}

// Options change what a recipe does. The zero value changes nothing.
type Options struct {
	// Imatrix says that an importance matrix is in use, whatever its entries.
	Imatrix bool
	// Pure gives every tensor the default type: the recipe's rules are off.
	Pure bool
	// LeaveOutput keeps output.weight in its source type.
	LeaveOutput bool
	// OutputType and TokenEmbdType, when not nil, are the types of the output
	// and of the token embeddings. A tied embedding follows OutputType unless
	// TokenEmbdType is given.
	OutputType, TokenEmbdType *gguf.Type
	// TensorTypes overrides the types of tensors by name; the first match
	// wins. F32, F16 and BF16 recipes ignore it, as in llama-quantize.
	TensorTypes []Override
	// FileOrder walks the tensors in the order given instead of llama-quantize's
	// usual one: what --keep-split does to rules that count tensors.
	FileOrder bool
	// Search is the search for types that have it.
	Search Search
	// NoFallback makes it an error when a row is not a whole number of blocks,
	// instead of choosing a type with smaller blocks.
	NoFallback bool
}

// Choice is the decision for one tensor.
type Choice struct {
	// Type is the type to write.
	Type gguf.Type
	// Wanted is the type before the fallback for unusual row lengths; equal
	// to Type in all other cases.
	Wanted gguf.Type
	// Rule tells a user why, such as "Q4_K_M: ffn_down_exps in the first or
	// last eighth of the layers, or every third between".
	Rule string
	// Fallback, when not empty, tells why Type is not Wanted: "row length 96
	// is not a multiple of 256: Q4_K becomes Q5_0".
	Fallback string
	// Search is how the encoder of Type looks for codes.
	Search Search
	// Copied: the recipe does not apply and the tensor keeps its source type.
	Copied bool
	// NeedsWeights: llama-quantize refuses to make the tensor without
	// importance weights.
	NeedsWeights bool
}

// Order returns the indices of tensors in the order in which llama-quantize
// writes them: by block, with tensors outside the blocks first, then by name,
// byte by byte.
func Order(tensors []gguf.TensorInfo) []int {
	layers := make([]int, len(tensors))
	order := make([]int, len(tensors))
	for i := range tensors {
		layers[i], order[i] = arch.ParseName(tensors[i].Name).Layer, i
	}
	slices.SortStableFunc(order, func(a, b int) int {
		return cmp.Or(cmp.Compare(layers[a], layers[b]), cmp.Compare(tensors[a].Name, tensors[b].Name))
	})
	return order
}

// Assign chooses the type of every tensor as llama-quantize does, from names,
// source types and shapes alone. Choices are indexed like tensors; the order
// of tensors does not matter unless opt.FileOrder is set.
//
// It fails when a type that the user demanded does not fit a tensor's rows,
// when no fallback exists or is wanted, and when a feed-forward tensor of a
// MoE model lies in no block of the model.
func (r *Recipe) Assign(facts ModelFacts, tensors []gguf.TensorInfo, opt Options) ([]Choice, error) {
	a := assigner{recipe: r, facts: &facts, opt: &opt, tied: true}
	for i := range tensors {
		switch classify(arch.ParseName(tensors[i].Name)) {
		case classAttnV:
			a.values++
		case classOutput:
			a.tied = false
		}
	}
	choices := make([]Choice, len(tensors))
	order := Order(tensors)
	if opt.FileOrder {
		slices.Sort(order)
	}
	for _, i := range order {
		c, err := a.choose(&tensors[i])
		if err != nil {
			return nil, fmt.Errorf("recipe %s: tensor %q: %w", r.Name, tensors[i].Name, err)
		}
		choices[i] = c
	}
	return choices, nil
}

// assigner walks the tensors of one model in output order.
type assigner struct {
	recipe *Recipe
	facts  *ModelFacts
	opt    *Options
	values int             // tensors of classAttnV in the file
	tied   bool            // no output.weight: the embedding serves as output
	seen   [numClasses]int // tensors that the rules were asked about, by class
}

// choose applies, in this order: what is never quantized, the user's types for
// embedding and output, unquantized recipes, the user's patterns, the rules.
func (a *assigner) choose(t *gguf.TensorInfo) (Choice, error) {
	n := arch.ParseName(t.Name)
	c := classify(n)
	if why := a.kept(n, t); why != "" {
		return Choice{Type: t.Type, Wanted: t.Type, Rule: why, Copied: true}, nil
	}
	override, err := a.override(t.Name)
	if err != nil {
		return Choice{}, err
	}
	choice := Choice{Wanted: a.recipe.Default, Rule: a.recipe.Name}
	demanded := false
	switch {
	case c == classEmbedding && a.opt.TokenEmbdType != nil && (n.Role == arch.TokenEmbd || override == nil):
		choice.Wanted, choice.Rule, demanded = *a.opt.TokenEmbdType, "type demanded for the token embedding", true
	case c == classOutput && a.opt.OutputType != nil:
		choice.Wanted, choice.Rule, demanded = *a.opt.OutputType, "type demanded for the output", true
	case !a.recipe.Default.Quantized():
	case override != nil:
		choice.Wanted, choice.Rule = override.Type, "override "+override.Label
	case a.opt.Pure:
		choice.Rule = a.recipe.Name + ": the same type for all"
	default:
		if choice.Wanted, choice.Rule, err = a.mix(n, c, t); err != nil {
			return Choice{}, err
		}
	}
	return a.fit(choice, t, c, demanded)
}

// kept tells why a tensor keeps its source type, or returns "".
func (a *assigner) kept(n arch.Name, t *gguf.TensorInfo) string {
	switch {
	case a.recipe.KeepsTypes:
		return a.recipe.Name
	case dims(t) < 2:
		return "kept: not a matrix"
	case n.Suffix != "weight":
		return "kept: not a weight"
	case n.IsNorm():
		return "kept: norms are not quantized"
	case neverQuantized[n.Role], neverQuantized[stem(n.Role)], neverQuantizedIn[a.facts.Arch][n.Role]:
		return fmt.Sprintf("kept: %s is never quantized", n.Role)
	case n.Role == arch.Output && a.opt.LeaveOutput:
		return "kept: the output is left alone on demand"
	}
	return ""
}

// dims counts the axes as ggml does: trailing axes of length 1 are none.
func dims(t *gguf.TensorInfo) int {
	n := len(t.Shape)
	for n > 1 && t.Shape[n-1] == 1 {
		n--
	}
	return n
}

func (a *assigner) override(name string) (*Override, error) {
	for i := range a.opt.TensorTypes {
		o := &a.opt.TensorTypes[i]
		if ok, err := o.Matches(name); err != nil || ok {
			return o, err
		}
	}
	return nil, nil
}

// mix asks the recipe's rules.
func (a *assigner) mix(n arch.Name, c class, t *gguf.TensorInfo) (gguf.Type, string, error) {
	s := site{
		facts: a.facts, imatrix: a.opt.Imatrix, name: n, class: c,
		row: t.RowLen(), mats: 1, block: int64(a.recipe.Default.BlockLen()),
		pos: a.seen[c], span: a.facts.Layers, seen: a.seen[c],
	}
	if len(t.Shape) > 2 {
		s.mats = t.Shape[2]
	}
	a.seen[c]++
	switch c {
	case classEmbedding:
		if a.tied {
			s.class = classOutput
			if a.opt.OutputType != nil {
				return *a.opt.OutputType, "type demanded for the output, which is also the token embedding", nil
			}
		}
	case classAttnV:
		s.span = a.values
	case classDown, classGate, classUp:
		if a.facts.Experts > 1 {
			if n.Layer < 0 || n.Layer >= a.facts.Layers {
				return 0, "", fmt.Errorf("not in one of the model's %d blocks", a.facts.Layers)
			}
			s.pos = n.Layer
		}
	}
	for i := range a.recipe.rules {
		if r := &a.recipe.rules[i]; r.matches(&s) {
			return r.typ, a.recipe.Name + ": " + r.explain(&s), nil
		}
	}
	return a.recipe.Default, a.recipe.Name + ": default", nil
}

// fit turns the wanted type into one whose blocks fit the tensor's rows. Types
// demanded for a single tensor are not replaced.
func (a *assigner) fit(c Choice, t *gguf.TensorInfo, cl class, demanded bool) (Choice, error) {
	c.Type = c.Wanted
	if t.RowLen()%int64(c.Type.BlockLen()) != 0 {
		if demanded {
			return Choice{}, raggedError(t, c.Wanted)
		}
		var err error
		if c.Type, err = fallback(t, c.Wanted); err != nil {
			return Choice{}, err
		}
		if a.opt.NoFallback {
			return Choice{}, fmt.Errorf("%w; %s would fit", raggedError(t, c.Wanted), c.Type)
		}
		c.Fallback = fallbackText(t, c.Wanted, c.Type)
	}
	c.Search = a.opt.Search.For(c.Type)
	c.NeedsWeights = cl != classEmbedding && cl != classOutput &&
		(wantsImatrix[c.Type] || c.Type == gguf.Q2_K && a.recipe.Name == "Q2_K_S")
	return c, nil
}

// fallback finds a type that fits: one with smaller blocks, or else F16.
func fallback(t *gguf.TensorInfo, wanted gguf.Type) (gguf.Type, error) {
	smaller, ok := shapeFallback[wanted]
	switch {
	case ok && t.RowLen()%int64(smaller.BlockLen()) == 0:
		return smaller, nil
	case ok || wanted.BlockLen() <= 32:
		return gguf.F16, nil
	}
	return 0, fmt.Errorf("%w, and %s has no fallback", raggedError(t, wanted), wanted)
}

func raggedError(t *gguf.TensorInfo, wanted gguf.Type) error {
	return fmt.Errorf("row length %d is not a multiple of the %s block size %d", t.RowLen(), wanted, wanted.BlockLen())
}

func fallbackText(t *gguf.TensorInfo, wanted, got gguf.Type) string {
	return fmt.Sprintf("row length %d is not a multiple of %d: %s becomes %s", t.RowLen(), wanted.BlockLen(), wanted, got)
}

// AssignConverter chooses the types that llama.cpp's converter writes straight
// from a checkpoint (conversion/base.py, prepare_tensors): F32 for what
// arch.ForceF32 names, the recipe's type for all other weights, and F16 where
// rows are not whole blocks. The converter knows only F32, F16, BF16 and Q8_0;
// other recipes are an error.
//
// That is not what Assign makes of the converter's F32 file: the two keep
// different tensors in F32, such as per_layer_model_proj (only llama-quantize)
// and indexer.proj (only the converter). Weights that a checkpoint holds in
// MXFP4 the converter passes on as they are; they are not for this function.
func (r *Recipe) AssignConverter(tensors []gguf.TensorInfo, noFallback bool) ([]Choice, error) {
	if r.KeepsTypes || r.Default.Quantized() && r.Default != gguf.Q8_0 {
		return nil, fmt.Errorf("recipe %s is not one of the converter's: F32, F16, BF16, Q8_0", r.Name)
	}
	choices := make([]Choice, len(tensors))
	for i := range tensors {
		t := &tensors[i]
		c := Choice{Type: r.Default, Wanted: r.Default, Rule: r.Name}
		switch n := arch.ParseName(t.Name); {
		case arch.ForceF32(n, len(t.Shape)):
			c.Type, c.Wanted = gguf.F32, gguf.F32
			c.Rule = fmt.Sprintf("%s is always F32", n.Role)
		case n.Role == arch.VisionPatches && r.Default != gguf.F16:
			c.Type, c.Wanted = gguf.F32, gguf.F32
			c.Rule = fmt.Sprintf("%s is F32 or F16", n.Role)
		case t.RowLen()%int64(r.Default.BlockLen()) == 0:
		case noFallback:
			return nil, fmt.Errorf("recipe %s: tensor %q: %w", r.Name, t.Name, raggedError(t, r.Default))
		default:
			c.Type = gguf.F16
			c.Fallback = fallbackText(t, r.Default, gguf.F16)
		}
		choices[i] = c
	}
	return choices, nil
}
