package arch

import "slices"

// The vision tower of Gemma 4. Reference: transformers modeling_gemma4.py
// (Gemma4VisionModel, Gemma4MultimodalEmbedder); GGUF form: llama.cpp
// conversion/gemma.py (Gemma4VisionAudioModel) and tools/mtmd/models/gemma4v.cpp.
//
// Patches come as pixels × colours and are stored as the kernel of a
// convolution: colours × lines × columns. Small models clip inputs and outputs
// of their projections to numbers stored beside the weights.
var gemma4Vision = Family{
	Arch: "clip",
	Settings: slices.Concat(
		towerSettings(Setting{Key: KeyVisionImageSize, Value: 224}), // of any number: the tower takes images as they are
		[]Setting{
			{Key: KeyVisionKind, Value: "gemma4v"},
			def(KeyVisionEps, 1e-6, "layer_norm_eps"),
			{Key: keyVisionPositions, From: []string{"position_embedding_size"}, Silent: true},
		}),
	Asserts: []Assert{
		geluAct("hidden_activation"),
		{"attention_bias", []any{false}, "projections have no bias"},
		{"rms_norm_eps", []any{1e-6}, "readers of the file take it for granted"},
		{"rope_parameters.rope_theta", []any{100.0}, "readers of the file take it for granted"},
		{"pooling_kernel_size", []any{3.0}, "readers of the file take it for granted"},
	},
	Rules: slices.Concat(
		[]Rule{
			{Role: ProjectorInput, HF: []string{"model.embed_vision.embedding_projection.weight"}, Shape: []Dim{dimTowerProjection, dimEmbed}},
			{Role: VisionPatches, HF: []string{gemma4Tower + "patch_embedder.input_proj.weight"},
				Shape: []Dim{dimEmbed, dimColours, dimPatch, dimPatch}, Source: []Dim{dimEmbed, dimPixels},
				Cut: []HeadCut{{Heads: dimOne, Stride: dimEmbed, Offset: dimZero, Count: dimEmbed, Mode: CutPlanes,
					Columns: &Columns{From: dimZero, Count: dimPatch, Step: 3}}}},
			{Role: VisionPositions, HF: []string{gemma4Tower + "patch_embedder.position_embedding_table"}, Shape: []Dim{dimAxes, dimPositions, dimEmbed}},
			{Role: VisionStdBias, Suffix: NoSuffix, HF: []string{gemma4Tower + "std_bias"}, Shape: []Dim{dimEmbed}, Optional: true},
			{Role: VisionStdScale, Suffix: NoSuffix, HF: []string{gemma4Tower + "std_scale"}, Shape: []Dim{dimEmbed}, Optional: true},
			gemma4VisionNorm(VisionNorm1, "input_layernorm", dimEmbed),
			gemma4VisionNorm(VisionNorm2, "pre_feedforward_layernorm", dimEmbed),
			gemma4VisionNorm(VisionAttnPost, "post_attention_layernorm", dimEmbed),
			gemma4VisionNorm(VisionFFNPost, "post_feedforward_layernorm", dimEmbed),
			gemma4VisionNorm(AttnQNorm, "self_attn.q_norm", dimVisionHead),
			gemma4VisionNorm(AttnKNorm, "self_attn.k_norm", dimVisionHead),
		},
		gemma4Clipped(AttnQ, "self_attn.q_proj", dimEmbed, dimEmbed),
		gemma4Clipped(AttnK, "self_attn.k_proj", dimEmbed, dimEmbed),
		gemma4Clipped(AttnV, "self_attn.v_proj", dimEmbed, dimEmbed),
		gemma4Clipped(VisionAttnOut, "self_attn.o_proj", dimEmbed, dimEmbed),
		gemma4Clipped(FFNGate, "mlp.gate_proj", dimFF, dimEmbed),
		gemma4Clipped(FFNUp, "mlp.up_proj", dimFF, dimEmbed),
		gemma4Clipped(FFNDown, "mlp.down_proj", dimEmbed, dimFF),
	),
	Within: []string{gemma4Tower, "model.embed_vision.", "model.audio_tower.", "model.embed_audio."},
	Drop:   []Drop{{"model.audio_tower.*", audioTower}, {"model.embed_audio.*", audioTower}},
}

const (
	gemma4Tower = "model.vision_tower."
	audioTower  = "audio tower and its projector, which are not supported"
)

var (
	dimAxes      = Dim{"2", func(*Params) int { return 2 }}
	dimPositions = Dim{"position_embedding_size", func(p *Params) int { return p.Vision.Positions }}
)

func gemma4VisionNorm(role Role, hf string, shape Dim) Rule {
	return visionBlock(role, "", gemma4Tower+"encoder.layers.{l}."+hf+".weight", shape)
}

// gemma4Clipped is a projection with the bounds that it may have.
func gemma4Clipped(role Role, hf string, shape ...Dim) []Rule {
	hf = gemma4Tower + "encoder.layers.{l}." + hf + "."
	rules := []Rule{visionBlock(role, "", hf+"linear.weight", shape...)}
	for _, bound := range []string{"input_max", "input_min", "output_max", "output_min"} {
		r := visionBlock(role, bound, hf+bound, dimOne)
		r.Source, r.Optional = []Dim{}, true
		rules = append(rules, r)
	}
	return rules
}
