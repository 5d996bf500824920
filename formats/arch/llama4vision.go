package arch

import (
	"math"
	"slices"
)

// The vision tower of Llama 4. Reference: transformers modeling_llama4.py
// (Llama4VisionModel, Llama4MultiModalProjector); GGUF form: llama.cpp
// conversion/llama4.py and tools/mtmd/models/llama4.cpp. Squares of patches
// become one (pixel shuffle) on the way to the adapter's two layers.
var llama4Vision = Family{
	Arch: "clip",
	Settings: slices.Concat(
		towerSettings(req(KeyVisionImageSize, "image_size")),
		[]Setting{
			{Key: KeyProjectorKind, Value: "llama4"},
			req(KeyVisionEps, "norm_eps"),
			{Key: KeyVisionScale, Compute: pixelShuffle},
			{Key: KeyUseGELU, Value: true},
			{Key: keyVisionAdapterIn, From: []string{"projector_input_dim"}, Silent: true},
			{Key: keyVisionAdapterOut, From: []string{"projector_output_dim"}, Silent: true},
			{Key: keyVisionOutput, From: []string{"vision_output_dim"}, Silent: true},
		}),
	Asserts: []Assert{
		{"hidden_act", []any{"gelu"}, "the activation is GELU"},
		{"num_channels", []any{3.0}, "images have three colours"},
		{"multi_modal_projector_bias", []any{false}, "the projector has no bias"},
		{"vision_feature_select_strategy", []any{"default"}, "the class token is left out"},
	},
	Rules: slices.Concat(
		[]Rule{
			{Role: ProjectorOutput, HF: []string{"multi_modal_projector.linear_1.weight"}, Shape: []Dim{dimTowerProjection, dimVisionOutput}},
			{Role: VisionClass, Suffix: NoSuffix, HF: []string{"vision_model.class_embedding"}, Shape: []Dim{dimEmbed}},
			{Role: VisionPatches, HF: []string{"vision_model.patch_embedding.linear.weight"}, Shape: []Dim{dimEmbed, dimPixels}},
			{Role: VisionPositions, HF: []string{"vision_model.positional_embedding_vlm"}, Shape: []Dim{dimPatches, dimEmbed}},
			{Role: ProjectorHidden1, HF: []string{"vision_model.vision_adapter.mlp.fc1.weight"}, Shape: []Dim{dimAdapterIn, dimFF}},
			{Role: ProjectorHidden2, HF: []string{"vision_model.vision_adapter.mlp.fc2.weight"}, Shape: []Dim{dimAdapterOut, dimAdapterOut}},
		},
		withBias(Rule{Role: VisionPreNorm, HF: []string{"vision_model.layernorm_pre.weight"}, Shape: []Dim{dimEmbed}}),
		withBias(Rule{Role: VisionPostNorm, HF: []string{"vision_model.layernorm_post.weight"}, Shape: []Dim{dimEmbed}}),
		llama4VisionBlock(VisionNorm1, "input_layernorm", dimEmbed),
		llama4VisionBlock(VisionAttnPost, "post_attention_layernorm", dimEmbed),
		llama4VisionBlock(AttnQ, "self_attn.q_proj", dimEmbed, dimEmbed),
		llama4VisionBlock(AttnK, "self_attn.k_proj", dimEmbed, dimEmbed),
		llama4VisionBlock(AttnV, "self_attn.v_proj", dimEmbed, dimEmbed),
		llama4VisionBlock(VisionAttnOut, "self_attn.o_proj", dimEmbed, dimEmbed),
		llama4VisionBlock(FFNUp, "mlp.fc1", dimFF, dimEmbed),
		llama4VisionBlock(FFNDown, "mlp.fc2", dimEmbed, dimFF),
	),
	Within: []string{"vision_model.", "multi_modal_projector."},
}

var (
	dimAdapterIn    = Dim{"projector_input_dim", func(p *Params) int { return p.Vision.AdapterIn }}
	dimAdapterOut   = Dim{"projector_output_dim", func(p *Params) int { return p.Vision.AdapterOut }}
	dimVisionOutput = Dim{"vision_output_dim", func(p *Params) int { return p.Vision.Output }}
	dimPatches      = Dim{"(image_size/patch_size)^2+1", func(p *Params) int {
		side := p.Vision.ImageSize / max(1, p.Vision.Patch)
		return side*side + 1
	}}
)

func llama4VisionBlock(role Role, hf string, shape ...Dim) []Rule {
	return withBias(visionBlock(role, "", "vision_model.model.layers.{l}."+hf+".weight", shape...))
}

// withBias is a weight's rule and that of its bias.
func withBias(r Rule) []Rule { return append([]Rule{r}, biases(r)...) }

// pixelShuffle is the side of the squares of patches that become one.
func pixelShuffle(cfg *Config, _ *Params) (any, error) {
	f, ok, err := cfg.number("pixel_shuffle_ratio")
	if err != nil || !ok || !(f > 0) || f > 1 {
		return nil, configError("vision_config.pixel_shuffle_ratio is %g, wanted a number from 0 to 1", f)
	}
	return math.Trunc(1 / f), nil
}
