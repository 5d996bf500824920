package arch

import (
	"maps"
)

// Vision towers. A tower is described as a family is, in a file of its own, and
// becomes a file of its own (mmproj) beside that of the texts: its architecture
// is "clip", its hyper-parameters come from vision_config, from the settings of
// the checkpoint's image processor and from the text model it feeds. Reference:
// llama.cpp conversion/base.py (MmprojModel) and tools/mtmd/clip.cpp.

// Vision are the hyper-parameters of a vision tower beside those that it shares
// with text models: blocks, width, feed-forward width, heads and epsilon.
type Vision struct {
	Encoder          bool // there is one
	Projection       int  // width of the text model's residual stream
	ImageSize, Patch int  // pixels of a side
	Mean, Std        []float32
	Kind             string // of the projector, which stands for the whole tower
	Scale            int    // side of the squares of patches that become one
	GELU             bool
	Positions        int // of each axis of a table of positions
	// AdapterIn and AdapterOut are the widths of the two layers behind the
	// blocks, Output that of the tower.
	AdapterIn, AdapterOut, Output int
}

// Keys of vision towers, without the "clip." prefix. The last ones are never
// written: readers see the shapes.
const (
	KeyHasVision        = "has_vision_encoder"
	KeyVisionProjection = "vision.projection_dim"
	KeyVisionImageSize  = "vision.image_size"
	KeyVisionPatch      = "vision.patch_size"
	KeyVisionEmbedding  = "vision.embedding_length"
	KeyVisionFF         = "vision.feed_forward_length"
	KeyVisionBlocks     = "vision.block_count"
	KeyVisionHeads      = "vision.attention.head_count"
	KeyVisionMean       = "vision.image_mean"
	KeyVisionStd        = "vision.image_std"
	KeyVisionEps        = "vision.attention.layer_norm_epsilon"
	KeyVisionKind       = "vision.projector_type"
	KeyVisionScale      = "vision.projector.scale_factor"
	KeyProjectorKind    = "projector_type"
	KeyUseGELU          = "use_gelu"

	keyVisionPositions  = "vision.positions"
	keyVisionAdapterIn  = "vision.projector.input"
	keyVisionAdapterOut = "vision.projector.output"
	keyVisionOutput     = "vision.output"
)

func init() {
	maps.Copy(fields, map[string]func(*Params) any{
		KeyHasVision:        func(p *Params) any { return &p.Vision.Encoder },
		KeyVisionProjection: func(p *Params) any { return &p.Vision.Projection },
		KeyVisionImageSize:  func(p *Params) any { return &p.Vision.ImageSize },
		KeyVisionPatch:      func(p *Params) any { return &p.Vision.Patch },
		KeyVisionEmbedding:  func(p *Params) any { return &p.Embed },
		KeyVisionFF:         func(p *Params) any { return &p.FF },
		KeyVisionBlocks:     func(p *Params) any { return &p.Layers },
		KeyVisionHeads:      func(p *Params) any { return &p.Heads },
		KeyVisionMean:       func(p *Params) any { return &p.Vision.Mean },
		KeyVisionStd:        func(p *Params) any { return &p.Vision.Std },
		KeyVisionEps:        func(p *Params) any { return &p.NormEps },
		KeyVisionKind:       func(p *Params) any { return &p.Vision.Kind },
		KeyVisionScale:      func(p *Params) any { return &p.Vision.Scale },
		KeyProjectorKind:    func(p *Params) any { return &p.Vision.Kind },
		KeyUseGELU:          func(p *Params) any { return &p.Vision.GELU },
		keyVisionPositions:  func(p *Params) any { return &p.Vision.Positions },
		keyVisionAdapterIn:  func(p *Params) any { return &p.Vision.AdapterIn },
		keyVisionAdapterOut: func(p *Params) any { return &p.Vision.AdapterOut },
		keyVisionOutput:     func(p *Params) any { return &p.Vision.Output },
	})
}

// Roles of vision towers. Those of blocks follow the prefix "v.blk.N.".
const (
	VisionPatches    Role = "v.patch_embd"
	VisionPositions  Role = "v.position_embd"
	VisionClass      Role = "v.class_embd"
	VisionPreNorm    Role = "v.pre_ln"
	VisionPostNorm   Role = "v.post_ln"
	VisionStdBias    Role = "v.std_bias"
	VisionStdScale   Role = "v.std_scale"
	VisionNorm1      Role = "ln1"
	VisionNorm2      Role = "ln2"
	VisionAttnOut    Role = "attn_out"
	VisionAttnPost   Role = "attn_post_norm"
	VisionFFNPost    Role = "ffn_post_norm"
	ProjectorInput   Role = "mm.input_projection"
	ProjectorOutput  Role = "mm.model.fc"
	ProjectorHidden1 Role = "mm.model.mlp.1"
	ProjectorHidden2 Role = "mm.model.mlp.2"
)

// towerPrefix begins the names of tensors in the blocks of a tower.
const towerPrefix = "v."

// towerSettings are the keys that MmprojModel.set_gguf_parameters writes for
// every vision tower, in its order.
func towerSettings(imageSize Setting) []Setting {
	return []Setting{
		{Key: keyFileType},
		{Key: KeyHasVision, Value: true},
		req(KeyVisionProjection, textWidth),
		imageSize,
		req(KeyVisionPatch, "patch_size"),
		req(KeyVisionEmbedding, "hidden_size"),
		req(KeyVisionFF, "intermediate_size"),
		req(KeyVisionBlocks, "num_hidden_layers"),
		req(KeyVisionHeads, "num_attention_heads"),
		{Key: KeyVisionMean, Compute: imageStatistic("image_mean")},
		{Key: KeyVisionStd, Compute: imageStatistic("image_std")},
	}
}

// Where a tower's settings have what is not in vision_config.
const (
	textWidth      = "text_hidden_size"
	imageProcessor = "image_processor"
)

// imageStatistic is a number per colour.
func imageStatistic(name string) func(*Config, *Params) (any, error) {
	return func(cfg *Config, _ *Params) (any, error) {
		v, _ := cfg.lookup(imageProcessor + "." + name)
		list, _ := v.([]any)
		out := make([]float32, len(list))
		for i := range list {
			f, ok, err := (&Config{map[string]any{name: list[i]}}).number(name)
			if err != nil || !ok {
				return nil, processorError("%s is %s, wanted three numbers", name, show(v))
			}
			out[i] = float32(f)
		}
		if len(list) != 3 {
			return nil, processorError("%s is %s, wanted three numbers", name, show(v))
		}
		return out, nil
	}
}

func processorError(format string, args ...any) error {
	return formatError("preprocessor_config.json or processor_config.json: "+format, args...)
}

// visionBlock makes a rule for a tensor of every block of a tower.
func visionBlock(role Role, suffix, hf string, shape ...Dim) Rule {
	return Rule{Role: role, Suffix: suffix, HF: []string{hf}, Where: AllBlocks, Shape: shape}
}

var (
	dimPatch           = Dim{"patch_size", func(p *Params) int { return p.Vision.Patch }}
	dimColours         = Dim{"3", func(*Params) int { return 3 }}
	dimPixels          = Dim{"3*patch_size^2", func(p *Params) int { return 3 * p.Vision.Patch * p.Vision.Patch }}
	dimVisionHead      = Dim{"hidden_size/num_attention_heads", func(p *Params) int { return p.Embed / max(1, p.Heads) }}
	dimTowerProjection = Dim{"hidden_size of the text model", func(p *Params) int { return p.Vision.Projection }}
)

// Tower returns the model of the checkpoint's vision tower. images are the
// settings of its image processor.
func (m *Model) Tower(images map[string]any) (*Model, error) {
	f := m.Family.Tower
	if f == nil {
		return nil, formatError("vision towers of %s models are not supported", m.Family.Arch)
	}
	vision := m.config.Object("vision_config")
	if vision == nil {
		return nil, configError("vision_config is missing: the checkpoint has no vision tower")
	}
	cfg := &Config{maps.Clone(vision)}
	cfg.values[textWidth], cfg.values[imageProcessor] = m.config.values["hidden_size"], images
	t := &Model{Family: f, Params: f.Defaults, config: cfg}
	for i := range f.Asserts {
		if err := f.Asserts[i].check(cfg); err != nil {
			return nil, err
		}
	}
	for i := range f.Settings {
		if err := t.apply(cfg, &f.Settings[i]); err != nil {
			return nil, err
		}
	}
	return t, t.checkTower()
}

func (m *Model) checkTower() error {
	p := &m.Params
	for _, c := range []struct {
		name string
		v    int
	}{
		{"hidden_size", p.Embed}, {"intermediate_size", p.FF}, {"num_attention_heads", p.Heads},
		{"patch_size", p.Vision.Patch}, {"image_size", p.Vision.ImageSize},
	} {
		if c.v < 1 || c.v > maxWidth {
			return configError("vision_config.%s is %d, wanted 1 to %d", c.name, c.v, maxWidth)
		}
	}
	switch v := &p.Vision; {
	case p.Embed%p.Heads != 0:
		return configError("vision_config.num_attention_heads %d does not divide hidden_size %d", p.Heads, p.Embed)
	case v.Patch > 1<<10 || v.Positions > maxWidth || v.AdapterIn > maxWidth || v.AdapterOut > maxWidth || v.Output > maxWidth || v.Projection > maxWidth:
		return configError("vision_config has a size beyond all limits: %+v", *v)
	}
	return nil
}
