package convert

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"

	"github.com/winnow-moe/winnow/formats/arch"
	"github.com/winnow-moe/winnow/formats/gguf"
	"github.com/winnow-moe/winnow/formats/safetensors"
	"github.com/winnow-moe/winnow/formats/strictjson"
	"github.com/winnow-moe/winnow/formats/tokenizer"
	"github.com/winnow-moe/winnow/quant"
)

// Checkpoint is an open HuggingFace checkpoint folder: its configuration,
// vocabulary and tensor headers. No weight has been read.
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
}

// CheckpointOptions say how to read a checkpoint.
type CheckpointOptions struct {
	// Pre overrides the recognition of the pre-tokenizer.
	Pre string
	// MTP keeps ("keep") or leaves out ("drop") multi-token prediction blocks;
	// "" does as llama.cpp's converter does for the family.
	MTP string
}

// OpenCheckpoint reads the headers of a checkpoint folder. Errors about the
// content match ErrInput, or the format errors of the package concerned.
func OpenCheckpoint(dir string, opt CheckpointOptions) (*Checkpoint, error) {
	c := &Checkpoint{Dir: dir}
	cfg, err := readConfig(dir)
	if err != nil {
		return nil, err
	}
	block, err := fp8Block(cfg)
	if err != nil {
		return nil, err
	}
	if c.Model, err = modelOf(cfg, opt.MTP); err != nil {
		return nil, err
	}
	if c.Vocab, err = tokenizer.Load(dir, tokenizer.Options{Pre: opt.Pre, VocabSize: c.Model.Params.Vocab, Prefer: c.Model.Family.Pre}); err != nil {
		return nil, err
	}
	if c.generation, err = readOptionalJSON(filepath.Join(dir, "generation_config.json")); err != nil {
		return nil, err
	}
	if c.files, err = safetensors.Open(dir); err != nil {
		return nil, err
	}
	c.Warnings = c.files.Warnings()
	c.inv = checkpointInventory(c.files)
	if err = attachScales(c.inv, block); err == nil {
		c.tensors, c.dropped, err = modelTensors(c.Model, c.inv)
	}
	if err != nil {
		return nil, errors.Join(err, c.Close())
	}
	return c, nil
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

// fp8Block returns the size of an FP8 scale block, or zeros when the weights
// are not quantized. Other ways of quantizing are refused.
func fp8Block(cfg *arch.Config) (block [2]int64, err error) {
	q := cfg.Object("quantization_config")
	if q == nil {
		return block, nil
	}
	method, _ := q["quant_method"].(string)
	if method != "fp8" {
		return block, formatError("config.json: quantization_config.quant_method is %q; only \"fp8\" with block scales is supported", method)
	}
	list, ok := q["weight_block_size"].([]any)
	if !ok || len(list) != 2 {
		return block, formatError("config.json: quantization_config.weight_block_size is %v, wanted two numbers", q["weight_block_size"])
	}
	for i, v := range list {
		n, ok := v.(interface{ Int64() (int64, error) })
		if !ok {
			return block, formatError("config.json: quantization_config.weight_block_size is %v, wanted two numbers", list)
		}
		if block[i], err = n.Int64(); err != nil || block[i] < 1 || block[i] > 1<<20 {
			return block, formatError("config.json: quantization_config.weight_block_size is %v, wanted two positive numbers", list)
		}
	}
	return block, nil
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
		tensors[i] = Source{Name: list[i].Name, Storage: Storage{DType: list[i].DType}, Shape: list[i].Shape, Scale: -1}
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
	// AllowRequantize permits decoding already quantized GGUF input.
	AllowRequantize bool
	// PruneLayers lists blocks of GGUF input to leave out; the others are
	// numbered anew.
	PruneLayers []int
	// KeepSplit divides outputs into files as the GGUF input is.
	KeepSplit bool
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
	p := &Plan{Source: c.Dir, Arch: c.Model.Family.Arch, Tensors: c.tensors, Dropped: c.dropped, inv: c.inv, Notes: slices.Clone(c.Warnings), importance: req.Importance, preview: req.Preview}
	// Recipes see the model as the F32 file that llama.cpp's converter would
	// write, because that is what llama-quantize would be given.
	infos := make([]gguf.TensorInfo, len(c.tensors))
	for i := range infos {
		infos[i] = gguf.TensorInfo{Name: c.tensors[i].Name, Type: gguf.F32, Shape: c.tensors[i].Shape}
	}
	facts := quant.ModelFacts{
		Arch: p.Arch, Layers: c.Model.Params.Layers, Experts: c.Model.Params.Experts,
		GQA: c.Model.Params.Heads / c.Model.Params.KVHeads,
	}
	for _, o := range req.Outputs {
		choices, err := o.Recipe.Assign(facts, infos, req.recipeOptions())
		if err != nil {
			return nil, err
		}
		md := c.metadata(o.Recipe)
		req.finish(md)
		if err := p.addOutput(o, md, choices, req.Layout); err != nil {
			return nil, err
		}
	}
	p.noteSearch(req.Quant.Search)
	return p, p.noteOverrides(req.Quant.TensorTypes)
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
