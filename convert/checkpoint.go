package convert

import (
	"bytes"
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"math"
	"os"
	"path/filepath"
	"slices"

	"github.com/winnow-moe/winnow/convert/experts"
	"github.com/winnow-moe/winnow/formats/arch"
	"github.com/winnow-moe/winnow/formats/gguf"
	"github.com/winnow-moe/winnow/formats/safetensors"
	"github.com/winnow-moe/winnow/formats/strictjson"
	"github.com/winnow-moe/winnow/formats/tokenizer"
	"github.com/winnow-moe/winnow/quant"
)

// Checkpoint is an open HuggingFace checkpoint folder: its configuration,
// vocabulary and tensor headers. No weight has been read, but for some rows where
// an output matrix is left out as tied.
type Checkpoint struct {
	Dir   string
	Model *arch.Model
	Vocab *tokenizer.Vocab
	// Warnings are oddities of the files that do not stop a conversion.
	Warnings []string

	inv        *Inventory
	tensors    []Tensor
	dropped    []Dropped
	files      *safetensors.Checkpoint
	generation map[string]any // generation_config.json, may be nil
	id         *identity
	// What the identity comes from, beside the folder's name: the model card
	// and the repository that config.json names.
	card       modelCard
	repository string
	// expertsBefore are the experts per block before winnow took some out; 0:
	// that has not been done.
	expertsBefore int
	// merged is the method by which winnow merged experts, "" if it did not.
	merged string
}

// CheckpointOptions say how to read a checkpoint.
type CheckpointOptions struct {
	// Pre overrides the recognition of the pre-tokenizer.
	Pre string
	// MTP keeps ("keep") or leaves out ("drop") multi-token prediction blocks;
	// "" does as llama.cpp's converter does for the family.
	MTP string
}

// OpenCheckpoint reads the headers of a checkpoint folder, and the factors of
// NVFP4 weights, one number each. Errors about the
// content match ErrInput, or the format errors of the package concerned.
func OpenCheckpoint(dir string, opt CheckpointOptions) (*Checkpoint, error) {
	c := &Checkpoint{Dir: dir}
	cfg, err := readConfig(dir)
	if err != nil {
		return nil, err
	}
	quantized, err := readQuantConfig(cfg)
	if err != nil {
		return nil, err
	}
	if c.Model, err = modelOf(cfg, opt.MTP); err != nil {
		return nil, err
	}
	if c.Vocab, err = tokenizer.Load(dir, vocabOptions(c.Model, opt.Pre)); err != nil {
		return nil, err
	}
	if c.Model.Family.TrimVocab {
		c.Model.Params.Vocab = c.Vocab.Size()
	}
	if c.generation, err = readOptionalJSON(filepath.Join(dir, "generation_config.json")); err != nil {
		return nil, err
	}
	if c.files, err = safetensors.Open(dir); err != nil {
		return nil, err
	}
	c.Warnings = append(c.files.Warnings(), c.Vocab.Warnings...)
	c.inv = checkpointInventory(c.files)
	if err = attachPackings(c.inv, quantized); err == nil {
		err = loadFactors(context.Background(), c.inv, c)
	}
	if err == nil {
		c.tensors, c.dropped, err = modelTensors(c.Model, c.inv)
	}
	if err == nil {
		err = c.checkTied()
	}
	if err == nil {
		err = c.readIdentity()
	}
	if err != nil {
		return nil, errors.Join(err, c.Close())
	}
	return c, nil
}

// checkTied warns where an output matrix is left out because config.json ties it
// to the embedding, though it is another: some rows of both are compared.
func (c *Checkpoint) checkTied() error {
	i, has := c.inv.Lookup("lm_head.weight")
	j, ok := c.inv.Lookup("model.embed_tokens.weight")
	if !c.Model.Tied || !has || !ok {
		return nil
	}
	differs := "its size or type"
	head, embd := &c.inv.Tensors[i], &c.inv.Tensors[j]
	if slices.Equal(head.Shape, embd.Shape) && head.Storage == embd.Storage {
		differs = ""
		const samples = 8
		row := c.files.Tensors()[i].Size / head.Rows()
		a, b := make([]byte, row), make([]byte, row)
		for n := range int64(samples) {
			off := n * (head.Rows() - 1) / (samples - 1) * row
			if err := errors.Join(c.files.ReadAt(i, off, a), c.files.ReadAt(j, off, b)); err != nil {
				return err
			}
			if !bytes.Equal(a, b) {
				differs = "its values"
			}
		}
	}
	if differs != "" {
		c.Warnings = append(c.Warnings, fmt.Sprintf("%q is left out because config.json ties the output matrix to the embedding (tie_word_embeddings), "+
			"but it differs from %q in %s; set tie_word_embeddings to false if it belongs to the model", head.Name, embd.Name, differs))
	}
	return nil
}

// readIdentity reads what the model is called and where it comes from.
func (c *Checkpoint) readIdentity() error {
	config, err := readOptionalJSON(filepath.Join(c.Dir, "config.json"))
	if err != nil {
		return err
	}
	var warning string
	if c.card, warning = readCard(c.Dir); warning != "" {
		c.Warnings = append(c.Warnings, warning)
	}
	c.repository, _ = config["_name_or_path"].(string)
	if n, ok := config[configExpertsBefore].(json.Number); ok {
		before, err := n.Int64()
		if err != nil || before < int64(c.Model.Params.Experts) || before > math.MaxInt32 {
			return formatError("config.json: %s is %s, wanted at least the number of experts", configExpertsBefore, n)
		}
		c.expertsBefore = int(before)
	}
	if v, ok := config[configMerged]; ok {
		if c.merged, ok = v.(string); !ok || c.merged == "" {
			return formatError("config.json: %s is %v, wanted the method of a merge", configMerged, v)
		}
	}
	c.id = c.identity(c.tensors)
	return nil
}

// identity is what a file with these tensors says of the model.
func (c *Checkpoint) identity(tensors []Tensor) *identity {
	params := int64(0)
	for i := range tensors {
		info := gguf.TensorInfo{Shape: tensors[i].Shape}
		params += info.Elements()
	}
	return identify(c.card, cmp.Or(c.repository, cachedRepo(c.Dir)), folderName(c.Dir), params, sizeLabel(tensors))
}

// vocabOptions is what a tokenizer's files leave to the model family.
func vocabOptions(m *arch.Model, pre string) tokenizer.Options {
	opt := tokenizer.Options{Pre: pre, VocabSize: m.Params.Vocab, Prefer: m.Family.Pre, Model: m.Family.Tokenizer}
	if m.Family.NoSpacePrefix {
		opt.SpacePrefix = new(bool)
	}
	for _, s := range m.Family.Special {
		opt.Special = append(opt.Special, tokenizer.SpecialText(s))
	}
	return opt
}

// Close closes the weight files.
func (c *Checkpoint) Close() error { return c.files.Close() }

// Inputs returns the paths of the weight files.
func (c *Checkpoint) Inputs() []string {
	var paths []string
	for _, f := range c.files.Files() {
		paths = append(paths, f.Path)
	}
	return paths
}

// ReadAt implements Data.
func (c *Checkpoint) ReadAt(ctx context.Context, tensor int, off int64, p []byte) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	return c.files.ReadAt(tensor, off, p)
}

// Prefetch implements Prefetcher.
func (c *Checkpoint) Prefetch(tensor int, off, n int64) { c.files.Prefetch(tensor, off, n) }

const configLimit = 64 << 20 // bytes; released config files are below 100 kB

func readConfig(dir string) (*arch.Config, error) {
	if st, err := os.Stat(dir); err == nil && !st.IsDir() {
		return nil, formatError("%q is a file, wanted a checkpoint directory with config.json and safetensors files", dir)
	}
	path := filepath.Join(dir, "config.json")
	data, err := strictjson.ReadFile(path, configLimit)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, explainNoConfig(dir, err)
	}
	if err != nil {
		return nil, fmt.Errorf("%w: %w", ErrInput, err)
	}
	return arch.ParseConfig(data)
}

// explainNoConfig says more about a folder without config.json.
func explainNoConfig(dir string, err error) error {
	if _, e := os.Stat(filepath.Join(dir, "adapter_config.json")); e == nil {
		return formatError("%q holds a LoRA adapter (adapter_config.json), not a model: merge it into its base model first", dir)
	}
	if _, e := os.Stat(dir); e != nil {
		return e
	}
	return hinted("pass the folder of a HuggingFace checkpoint", fmt.Errorf("%w: %w", ErrInput, err))
}

func modelOf(cfg *arch.Config, mtp string) (*arch.Model, error) {
	drop, err := arch.FromConfig(cfg, false)
	if err != nil {
		return nil, err
	}
	keep := !drop.Family.DropMTP
	switch mtp {
	case "":
	case "keep", "drop":
		keep = mtp == "keep"
	default:
		return nil, refused("--mtp is %q, wanted keep or drop", mtp)
	}
	if !keep {
		return drop, nil
	}
	return arch.FromConfig(cfg, true)
}

func readOptionalJSON(path string) (map[string]any, error) {
	data, err := strictjson.ReadFile(path, configLimit)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("%w: %w", ErrInput, err)
	}
	v, err := strictjson.Decode(data)
	if err != nil {
		return nil, formatError("%s: %v", filepath.Base(path), err)
	}
	m, ok := v.(map[string]any)
	if !ok {
		return nil, formatError("%s: the top level is not a JSON object", filepath.Base(path))
	}
	return m, nil
}

func checkpointInventory(files *safetensors.Checkpoint) *Inventory {
	list := files.Tensors()
	tensors := make([]Source, len(list))
	for i := range list {
		tensors[i] = Source{Name: list[i].Name, Storage: Storage{DType: list[i].DType}, Shape: list[i].Shape}
	}
	return NewInventory(tensors)
}

// Request says what to make of the input.
type Request struct {
	// Outputs are the wanted files; several are made from one read.
	Outputs []OutputRequest
	// Layout splits outputs into shards.
	Layout gguf.LayoutOptions
	// Quant are overrides of the recipes.
	Quant quant.Options
	// Importance, when not nil, steers the choice of codes.
	Importance *Importance
	// Overrides are metadata keys to set, in order.
	Overrides []Override
	// AllowRequantize permits decoding already quantized GGUF input, and weights
	// of a checkpoint that would be kept in a GGUF type.
	AllowRequantize bool
	// PruneLayers lists blocks of GGUF input to leave out; the others are
	// numbered anew.
	PruneLayers []int
	// KeepSplit divides outputs into files as the GGUF input is.
	KeepSplit bool
	// Experts, when not nil, says which experts stay.
	Experts *experts.KeepList
	// Changes, when not nil, are weights of the model to compute instead of reading
	// them, before it loses experts.
	Changes Changes
	// Preview makes a plan to look at, which is never run: what would be
	// refused for lack of importance or of AllowRequantize becomes a note.
	Preview bool
}

// Override sets a metadata key.
type Override struct {
	Key   string
	Value any // see gguf.Metadata
}

// OutputRequest is one wanted file.
type OutputRequest struct {
	Path   string
	Recipe *quant.Recipe
}

// Plan decides the conversion. It reads no weights.
func (c *Checkpoint) Plan(req Request) (*Plan, error) {
	p := &Plan{Source: c.Dir, Arch: c.Model.Family.Arch, Dropped: c.dropped, inv: c.inv, Notes: slices.Clone(c.Warnings), importance: req.Importance, preview: req.Preview}
	var sel *selection
	if req.Experts != nil {
		var err error
		if sel, err = newSelection(c.Model, req.Experts); err != nil {
			return nil, err
		}
		if err := checkMerge(c.merged, req.Experts, req.Changes); err != nil {
			return nil, err
		}
	}
	kept, err := p.addCheckpoint(c.tensors, &req)
	if err != nil {
		return nil, err
	}
	if err := p.change(req.Changes, c.Model); err != nil {
		return nil, err
	}
	// Recipes see the model as the F32 file that llama.cpp's converter would
	// write, because that is what llama-quantize would be given.
	infos := make([]gguf.TensorInfo, len(p.Tensors))
	for i := range infos {
		infos[i] = gguf.TensorInfo{Name: p.Tensors[i].Name, Type: gguf.F32, Shape: p.Tensors[i].Shape}
	}
	facts := quant.ModelFacts{
		Arch: p.Arch, Layers: c.Model.Params.Layers, Experts: cmp.Or(c.expertsBefore, c.Model.Params.Experts),
		GQA: c.Model.Params.QueriesPerKey(0),
	}
	choices, fileTypes := make([][]quant.Choice, len(req.Outputs)), make([]uint32, len(req.Outputs))
	for i, o := range req.Outputs {
		if choices[i], err = assign(o.Recipe, facts, infos, req.recipeOptions()); err != nil {
			return nil, err
		}
		fileTypes[i] = p.chooseStored(o.Recipe, choices[i], kept)
		p.encodeChanged(choices[i], req.Quant.Search)
	}
	if err := p.prune(sel, choices, &req); err != nil {
		return nil, err
	}
	for i, o := range req.Outputs {
		md := c.metadata(fileTypes[i])
		sel.metadata(md, p.Tensors)
		req.finish(md)
		if err := p.addOutput(o, md, choices[i], req.Layout); err != nil {
			return nil, err
		}
	}
	p.noteChanged()
	p.noteSearch(req.Quant.Search)
	return p, p.noteOverrides(req.Quant.TensorTypes)
}

// assign chooses the types of a file made from a checkpoint: without
// quantization those of llama.cpp's converter, else what llama-quantize makes
// of its F32 file.
func assign(r *quant.Recipe, facts quant.ModelFacts, infos []gguf.TensorInfo, opt quant.Options) ([]quant.Choice, error) {
	demands := opt.LeaveOutput || opt.OutputType != nil || opt.TokenEmbdType != nil
	if r.KeepsTypes || r.Default.Quantized() || demands {
		return r.Assign(facts, infos, opt)
	}
	return r.AssignConverter(infos, opt.NoFallback)
}

// addOutput completes the plan of one file.
func (p *Plan) addOutput(o OutputRequest, md *gguf.Metadata, choices []quant.Choice, opt gguf.LayoutOptions) error {
	for i := range choices {
		c := &choices[i]
		if codec, ok := quant.Lookup(c.Type); !c.Copied && (!ok || codec.Encode == nil) {
			return refused("%s needs the type %s for tensor %q, which this version cannot write", o.Recipe.Name, c.Type, p.Tensors[i].Name)
		}
	}
	if err := p.checkImportance(o.Recipe, choices); err != nil {
		return err
	}
	recordSearch(md, o.Recipe, choices)
	p.Outputs = append(p.Outputs, Output{Path: o.Path, Recipe: o.Recipe, Metadata: md, Choices: choices})
	n := len(p.Outputs) - 1
	layout, err := gguf.NewLayout(md, p.infos(n), opt)
	if err != nil {
		return err
	}
	p.Outputs[n].Layout = layout
	return nil
}
