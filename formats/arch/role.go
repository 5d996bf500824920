package arch

import (
	"strconv"
	"strings"
)

// Role says what a tensor is for. It is the stem of the tensor's GGUF name:
// "blk.7.ffn_down_exps.weight" has role "ffn_down_exps". GGUF names mean the
// same in every architecture (gguf-py constants.py TENSOR_NAMES), so a role
// needs no further table, and policies key on it instead of on substrings.
type Role string

// Roles outside the blocks.
const (
	TokenEmbd         Role = "token_embd"
	Output            Role = "output"
	OutputNorm        Role = "output_norm"
	RopeFreqs         Role = "rope_freqs"
	PerLayerTokenEmbd Role = "per_layer_token_embd"
	PerLayerModelProj Role = "per_layer_model_proj"
	PositionEmbd      Role = "position_embd"
	TokenTypes        Role = "token_types"
)

// Roles of attention tensors.
const (
	AttnNorm    Role = "attn_norm"
	AttnQ       Role = "attn_q"
	AttnK       Role = "attn_k"
	AttnV       Role = "attn_v"
	AttnQKV     Role = "attn_qkv"
	AttnOutput  Role = "attn_output"
	AttnQNorm   Role = "attn_q_norm"
	AttnKNorm   Role = "attn_k_norm"
	AttnQA      Role = "attn_q_a"
	AttnQANorm  Role = "attn_q_a_norm"
	AttnQB      Role = "attn_q_b"
	AttnKVA     Role = "attn_kv_a_mqa"
	AttnKVANorm Role = "attn_kv_a_norm"
	AttnKVB     Role = "attn_kv_b"
	AttnKB      Role = "attn_k_b"
	AttnVB      Role = "attn_v_b"
	// PostAttnNorm norms the output of attention, or in families without
	// ffn_norm the input of the feed-forward network (Block.FFNNorm says so).
	PostAttnNorm Role = "post_attention_norm"
	AttnSinks    Role = "attn_sinks" // logits of a key that every query sees and that has no value
	AttnGate     Role = "attn_gate"  // gate of the output of a recurrent block
	// Factors on the rotation's wavelengths beyond the original context, or
	// within it (longrope).
	RopeFactorsLong  Role = "rope_factors_long"
	RopeFactorsShort Role = "rope_factors_short"
)

// Roles of recurrent blocks (gated delta net).
const (
	SSMA     Role = "ssm_a"
	SSMDt    Role = "ssm_dt"
	SSMNorm  Role = "ssm_norm"
	SSMOut   Role = "ssm_out"
	SSMBA    Role = "ssm_ba" // beta and alpha, per key head
	SSMAlpha Role = "ssm_alpha"
	SSMBeta  Role = "ssm_beta"
	// Of Kimi Delta Attention: convolutions, and the rates of forgetting and the
	// output gate, each made by two matrices.
	SSMConv1DQ Role = "ssm_conv1d_q"
	SSMConv1DK Role = "ssm_conv1d_k"
	SSMConv1DV Role = "ssm_conv1d_v"
	SSMFA      Role = "ssm_f_a"
	SSMFB      Role = "ssm_f_b"
	SSMGA      Role = "ssm_g_a"
	SSMGB      Role = "ssm_g_b"
)

// Roles of blocks with an embedding of their own (Gemma E-models), and the
// factor on a block's output.
const (
	PerLayerProjNorm Role = "per_layer_proj_norm"
	PerLayerGate     Role = "inp_gate"
	PerLayerProj     Role = "proj"
	PerLayerPostNorm Role = "post_norm"
	LayerOutputScale Role = "layer_output_scale"
)

// Roles of feed-forward tensors: dense, router, routed experts, shared expert.
const (
	FFNNorm      Role = "ffn_norm"
	FFNGate      Role = "ffn_gate"
	FFNUp        Role = "ffn_up"
	FFNDown      Role = "ffn_down"
	Router       Role = "ffn_gate_inp"
	RouterShared Role = "ffn_gate_inp_shexp"
	RouterBias   Role = "exp_probs_b"
	ExpertGate   Role = "ffn_gate_exps"
	ExpertUp     Role = "ffn_up_exps"
	ExpertGateUp Role = "ffn_gate_up_exps"
	ExpertDown   Role = "ffn_down_exps"
	SharedGate   Role = "ffn_gate_shexp"
	SharedUp     Role = "ffn_up_shexp"
	SharedDown   Role = "ffn_down_shexp"
	PostFFNNorm  Role = "post_ffw_norm"
	PostFFNNorm1 Role = "post_ffw_norm_1" // of the dense network beside experts
	PostFFNNorm2 Role = "post_ffw_norm_2" // of the experts
	PreFFNNorm2  Role = "pre_ffw_norm_2"  // of the experts' input
	IndexerProj  Role = "indexer.proj"
	IndexerKNorm Role = "indexer.k_norm"
	SSMConv1D    Role = "ssm_conv1d"
	ShortConv    Role = "shortconv.conv"
	IndexerAttnK Role = "indexer.attn_k"
	IndexerAttnQ Role = "indexer.attn_q_b"
	LaurelL      Role = "laurel_l"
	LaurelR      Role = "laurel_r"
	AltupRouter  Role = "altup_router"
	AltupCorrect Role = "altup_correct_coef"
	AltupPredict Role = "altup_predict_coef"
)

// Roles of a multi-token prediction (MTP, "next n") layer.
const (
	NextnEHProj     Role = "nextn.eh_proj"
	NextnEmbd       Role = "nextn.embed_tokens"
	NextnENorm      Role = "nextn.enorm"
	NextnHNorm      Role = "nextn.hnorm"
	NextnSharedHead Role = "nextn.shared_head_head"
	NextnSharedNorm Role = "nextn.shared_head_norm"
)

// Name is a GGUF tensor name taken apart.
type Name struct {
	Layer  int // block number, or -1 outside the blocks
	Role   Role
	Suffix string // "weight", "bias", "scale"; empty for the few names without one
	// Prefix comes before the block in the names of a tower's tensors. ParseName
	// leaves it, and the block, in the role.
	Prefix string
}

// ParseName takes a GGUF tensor name apart. Every string has an answer; an
// unknown name simply has a role that no policy mentions.
func ParseName(s string) Name {
	n := Name{Layer: -1}
	if rest, ok := strings.CutPrefix(s, "blk."); ok {
		if num, tail, ok := strings.Cut(rest, "."); ok {
			if l, err := strconv.ParseUint(num, 10, 31); err == nil {
				n.Layer, s = int(l), tail
			}
		}
	}
	if i := strings.LastIndexByte(s, '.'); i >= 0 {
		switch s[i+1:] {
		case "weight", "bias", "scale":
			n.Suffix = s[i+1:]
			s = s[:i]
		}
	}
	n.Role = Role(s)
	return n
}

// String returns the GGUF tensor name.
func (n Name) String() string {
	s := string(n.Role)
	if n.Layer >= 0 {
		s = n.Prefix + "blk." + strconv.Itoa(n.Layer) + "." + s
	}
	if n.Suffix != "" {
		s += "." + n.Suffix
	}
	return s
}

// Factors says that a tensor holds factors of the weight called weight, one for
// each of its matrices, as NVFP4 weights have them beside them whatever the
// family (llama.cpp src/llama-model.cpp, "scale"). Those with activations are
// for runtimes that quantize the inputs too, and change nothing else.
func Factors(name string) (weight string, activations, ok bool) {
	if base, found := strings.CutSuffix(name, ".input_scale"); found {
		return base + ".weight", true, true
	}
	base, found := strings.CutSuffix(name, ".scale")
	return base + ".weight", false, found
}

// FactorShape is the shape of the factors of a weight (GGUF order).
func FactorShape(weight []int64) []int64 {
	if len(weight) > 2 {
		return []int64{weight[2]}
	}
	return []int64{1}
}

// IsNorm reports whether the tensor is the weight of a normalisation.
func (n Name) IsNorm() bool {
	return n.Suffix == "weight" && strings.HasSuffix(string(n.Role), "_norm")
}

// alwaysF32 are weights that runtimes want in float32 whatever the file type:
// routers, whose rounding would change which experts run, and small
// convolution kernels.
var alwaysF32 = map[Role]bool{
	Router: true, RouterShared: true, PositionEmbd: true, VisionPositions: true, TokenTypes: true,
	SSMConv1D: true, SSMConv1DQ: true, SSMConv1DK: true, SSMConv1DV: true, ShortConv: true, IndexerProj: true, AltupCorrect: true, AltupPredict: true,
}

// ForceF32 reports whether llama.cpp's converter writes the tensor in F32 in
// every file type: vectors, norms, routers, and everything that is not a
// ".weight" (conversion/base.py, prepare_tensors). dims is the number of axes.
func ForceF32(n Name, dims int) bool {
	return dims <= 1 || n.IsNorm() || alwaysF32[n.Role] || n.Suffix != "weight"
}
